"""The last layer over many ranks: each holds a shard of the vocabulary, and the states of its classes are merged.

The same names as in lastlayer.torch, with ``group``: linear_cross_entropy, linear_logit_statistics and linear_loss from
hidden states, cross_entropy and logit_statistics from each rank's logits; linear_categorical, linear_topk and
categorical, which are in distributed_draws.py. The arithmetic is that of one process, and all ranks hold the same bits.
Sent are states (shards.py): of each token and rank 24 bytes for cross-entropy, 8 more for the entropy, 16 more for
smoothing or mean logits; and, where it is wanted, the gradient of the hidden states.

All ranks of the group call the same function with the same target and constants. Shards follow the order of the ranks;
they may differ in size or be empty. What one rank fails with is raised on all; where a rank is killed, the others
raise when the group notices, at the latest after its timeout.

Example, with a group of one rank, which holds all classes:
    >>> import torch, torch.distributed as dist
    >>> import lastlayer.torch.distributed as D
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> h, W, y = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 2])
    >>> D.linear_cross_entropy(h, W, y), D.linear_loss(lambda s: -s.logprob, h, W, y), D.cross_entropy(h @ W.T, y)
    (tensor(0.8620), tensor(0.8620), tensor(0.8620))
    >>> D.linear_logit_statistics(h, W, y).logprob, D.logit_statistics(h @ W.T, y).logprob
    (tensor([-0.8620, -0.8620]), tensor([-0.8620, -0.8620]))
    >>> D.categorical(h @ W.T, top_k=2, seed=7).index, D.linear_categorical(h, W, top_k=2, seed=7).index
    (tensor([2, 2]), tensor([2, 2]))
    >>> D.linear_topk(h, W, 2).index
    tensor([[0, 2],
            [1, 2]])
    >>> dist.destroy_process_group()
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lastlayer import _algebra, _backends, _linear, _statistics
from lastlayer._algebra import LogitStatistics, State, Statistics
from lastlayer._statistics import Folded
from lastlayer.torch import linear, linear_statistics
from lastlayer.torch.distributed_draws import categorical as categorical
from lastlayer.torch.distributed_draws import linear_categorical as linear_categorical
from lastlayer.torch.distributed_draws import linear_topk as linear_topk
from lastlayer.torch.functional import require_tensors
from lastlayer.torch.linear import check_shapes, class_weight_of
from lastlayer.torch.logits import check_class_weights, check_logits, check_targets, shaped
from lastlayer.torch.shards import Gathered, Group, Replicated, Shards, agree, attempt, mesh_of, unsharded

INPUT_GRADIENTS = ("all_reduce", "reduce_scatter", "partial")
OWN = ("classes", "own rows", "weighs")  # what may differ between ranks


@torch.compiler.disable  # type: ignore[untyped-decorator]  # ranks tell each other values
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    group: Group | None = None,
    input_gradient: str = "all_reduce",
    data_group: Group | None = None,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    scale: float = 1.0,
    token_weight: Tensor | None = None,
    memory_budget: int | None = None,
) -> Tensor:
    r"""Compute ``lastlayer.torch.linear_cross_entropy`` of a head whose classes are spread over the ranks of a group.

    Args:
        input: hidden states (..., D): the same on all ranks, or, for ``"reduce_scatter"``, this rank's part along
            dimension 0 (of a sequence, with the sequence first).
        linear_weight: this rank's classes (V_r, D), V_r >= 0; or a ``DTensor`` with placements ``[Shard(0)]``. A weight
            that FSDP has gathered is a plain tensor, and belongs into ``lastlayer.torch.linear_cross_entropy``.
        target: class indices over all ranks' classes, for all rows, the same on all ranks; or class probabilities of
            this rank's classes (..., V_r).
        group: the ranks that share the vocabulary; None: a DTensor's mesh, else all ranks.
        input_gradient: who gets which gradient of the input. ``"all_reduce"``: every rank the whole one;
            ``"reduce_scatter"``: every rank that of its part of the input; ``"partial"``: this rank's term of the sum,
            which the caller adds up.
        data_group: data-parallel ranks: the mean is over the tokens of all of them, times their number, so that the
            average of their gradients (what DDP and FSDP form) is the gradient of the mean over all tokens.
        linear_bias: of this rank's classes (V_r).
        weight: class weights of this rank's classes (V_r).
        reduction: as ``lastlayer.torch.linear_cross_entropy``, and so are all others.
        ignore_index: see there.
        label_smoothing: see there; V counts the classes of all ranks.
        z_loss: see there.
        softcap: see there.
        scale: see there.
        token_weight: see there; the same on all ranks.
        memory_budget: bytes for this rank's workspace, gradients not counted.

    Returns:
        The loss, the same bits on all ranks.

    Raises:
        IndexError: a target is neither a class nor ignored.
        RuntimeError: dtypes or devices do not fit, or another rank failed: its message is given.
        ValueError: shapes do not fit, or target, shapes, dtype or constants differ between ranks.
    """
    constants = {
        "reduction": reduction, "ignore_index": ignore_index, "label_smoothing": label_smoothing, "z_loss": z_loss,
        "softcap": softcap, "scale": scale, "memory_budget": memory_budget,
    }  # fmt: skip
    shards, h, W, b, w = _meet(
        input, linear_weight, target, linear_bias, weight, group, data_group, input_gradient, constants
    )
    tokens = shards.ready(
        lambda: linear.prepare(
            h, W, target, b, w, reduction, ignore_index, label_smoothing, z_loss, softcap, scale, token_weight,
            memory_budget, shards,
        )
    )  # fmt: skip
    return linear.loss_of(tokens, reduction, _total(data_group))


@torch.compiler.disable  # type: ignore[untyped-decorator]  # ranks tell each other values
def linear_logit_statistics(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | None = None,
    *,
    group: Group | None = None,
    input_gradient: str = "all_reduce",
    linear_bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    rank: bool = False,
    argmax: bool = False,
    class_weights: Tensor | None = None,
    ignore_index: int = -100,
    memory_budget: int | None = None,
) -> LogitStatistics:
    r"""Compute ``lastlayer.torch.linear_logit_statistics`` of a head whose classes are spread over a group's ranks.

    Args:
        input: hidden states, as in ``linear_cross_entropy`` here.
        linear_weight: this rank's classes (V_r, D), or a ``DTensor`` with placements ``[Shard(0)]``.
        target: class indices over all ranks' classes, one or K per row, the same on all ranks.
        group: the ranks that share the vocabulary.
        input_gradient: ``"all_reduce"``, ``"reduce_scatter"`` or ``"partial"``, as in ``linear_cross_entropy`` here.
        linear_bias: of this rank's classes (V_r).
        scale: multiplies the logits.
        softcap: bounds the logits.
        entropy: whether to compute it.
        rank: whether to compute the target's among the classes of all ranks.
        argmax: whether to compute the first class, over all ranks, with the largest logit.
        class_weights: of this rank's classes (V_r), >= 0; their shares are those in the sum over all ranks.
        ignore_index: a target whose row counts as absent.
        memory_budget: bytes for this rank's workspace.

    Returns:
        ``LogitStatistics``, the same bits on all ranks. The loss made of it must be the same on all ranks too: each
        back-propagates it, and gets the gradient of its own shard.

    Raises:
        IndexError: a target is neither a class nor ignored.
        RuntimeError: dtypes or devices do not fit, or another rank failed: its message is given.
        ValueError: shapes do not fit, or target, shapes, dtype or constants differ between ranks.
    """
    constants = {
        "scale": scale, "softcap": softcap, "ignore_index": ignore_index, "memory_budget": memory_budget,
        "asked": (entropy, rank, argmax),
    }  # fmt: skip
    shards, h, W, b, w = _meet(
        input, linear_weight, target, linear_bias, class_weights, group, None, input_gradient, constants
    )
    given = shards.ready(
        lambda: linear_statistics.problem(h, W, target, b, w, scale, softcap, ignore_index, memory_budget, shards)
    )
    return linear_statistics.statistics_of(given, entropy=entropy, rank=rank and target is not None, argmax=argmax)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # ranks tell each other values
def linear_loss(
    loss_fn: linear_statistics.LossFunction,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | None,
    *row_tensors: Tensor | None,
    group: Group | None = None,
    input_gradient: str = "all_reduce",
    data_group: Group | None = None,
    linear_bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    class_weights: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    memory_budget: int | None = None,
) -> Tensor:
    r"""Compute ``lastlayer.torch.linear_loss`` of a head whose classes are spread over the ranks of a group.

    Args:
        loss_fn: ``loss_fn(statistics, *row_tensors)`` -> one loss per row; called on every rank, with the same values.
        input: hidden states, as in ``linear_cross_entropy`` here.
        linear_weight: this rank's classes (V_r, D), or a ``DTensor`` with placements ``[Shard(0)]``.
        target: class indices over all ranks' classes, the same on all ranks; or None.
        *row_tensors: what else the loss needs of each row, the same on all ranks.
        group: the ranks that share the vocabulary.
        input_gradient: ``"all_reduce"``, ``"reduce_scatter"`` or ``"partial"``, as in ``linear_cross_entropy`` here.
        data_group: data-parallel ranks over whose rows the mean is taken, as in ``linear_cross_entropy`` here.
        linear_bias: of this rank's classes (V_r).
        scale: multiplies the logits.
        softcap: bounds the logits.
        entropy: whether the loss uses the entropy.
        class_weights: of this rank's classes (V_r), >= 0.
        reduction: ``"mean"`` over the rows that are not ignored, or ``"sum"``.
        ignore_index: a target whose row counts as absent.
        memory_budget: bytes for this rank's workspace.

    Returns:
        The loss, a scalar, the same bits on all ranks.

    Raises:
        IndexError: a target is neither a class nor ignored.
        RuntimeError: dtypes or devices do not fit, or another rank failed: its message is given.
        ValueError: shapes do not fit, ``loss_fn`` couples rows, or something differs between ranks.
    """
    constants = {
        "scale": scale, "softcap": softcap, "ignore_index": ignore_index, "memory_budget": memory_budget,
        "reduction": reduction, "asked": (entropy,),
    }  # fmt: skip
    shards, h, W, b, w = _meet(
        input, linear_weight, target, linear_bias, class_weights, group, data_group, input_gradient, constants
    )

    def prepare() -> tuple[linear_statistics.Problem, linear_statistics.RowTensors]:
        made = linear_statistics.problem(h, W, target, b, w, scale, softcap, ignore_index, memory_budget, shards)
        return made, made.all_rows(loss_fn, row_tensors, reduction)

    given, rows = shards.ready(prepare)
    return linear_statistics.loss_of(given, loss_fn, rows, entropy, reduction, _total(data_group))


def logit_statistics(
    input: Tensor,
    target: Tensor | None = None,
    *,
    group: Group | None = None,
    entropy: bool = False,
    rank: bool = False,
    argmax: bool = False,
    class_weights: Tensor | None = None,
    ignore_index: int = -100,
) -> LogitStatistics:
    r"""Compute ``lastlayer.torch.logit_statistics`` of logits whose classes are spread over the ranks of a group.

    Args:
        input: the logits of this rank's classes (..., V_r).
        target: class indices over all ranks' classes, one or K per row, the same on all ranks.
        group: the ranks that share the vocabulary.
        entropy: whether to compute it.
        rank: whether to compute the target's among the classes of all ranks.
        argmax: whether to compute the first class, over all ranks, with the largest logit.
        class_weights: of this rank's classes (V_r), >= 0.
        ignore_index: a target whose row counts as absent.

    Returns:
        ``LogitStatistics``, the same bits on all ranks; the gradient is that of this rank's logits.

    Raises:
        IndexError: a target is neither a class nor ignored.
        RuntimeError: dtypes or devices do not fit, or another rank failed: its message is given.
        ValueError: shapes do not fit, or something differs between ranks.
    """
    z, index, ignored, u, shards = _logits(input, target, class_weights, group, ignore_index, (entropy, rank, argmax))
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    found, mass, counts, top = _of_shards(z, index, u, shards, entropy, rank and target is not None, argmax)
    named = _algebra.logit_statistics(found, mass, lambda field: field.to(dtype))
    named = named._replace(rank=None if counts is None else counts + 1, argmax=top)
    return shaped(named, ignored, input.shape[:-1])


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    group: Group | None = None,
    data_group: Group | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    r"""Compute the cross-entropy of logits whose classes, the last dimension, are spread over the ranks of a group.

    Args:
        input: the logits of this rank's classes (..., V_r).
        target: class indices over all ranks' classes (...), the same on all ranks.
        weight: class weights of this rank's classes (V_r).
        group: the ranks that share the vocabulary.
        data_group: data-parallel ranks over whose tokens the mean is taken, as in ``linear_cross_entropy`` here.
        ignore_index: a target whose row counts as absent.
        reduction: ``"none"``, ``"mean"`` (over the weights of the targets that count) or ``"sum"``.
        label_smoothing: e, in [0, 1]; V counts the classes of all ranks.
        z_loss: the factor of the squared logsumexp.

    Returns:
        The loss, the same bits on all ranks: float32, or float64 for float64 input. 0 where every target is ignored.

    Raises:
        IndexError: a target is neither a class nor ignored.
        RuntimeError: dtypes or devices do not fit, or another rank failed: its message is given.
        ValueError: shapes do not fit, or something differs between ranks.
    """

    def check() -> None:
        _linear.check_options(reduction, label_smoothing, z_loss, None, 1.0, None)
        if target.shape != input.shape[:-1]:
            raise ValueError(f"target has shape {tuple(target.shape)}, expected {tuple(input.shape[:-1])}")

    constants = (reduction, label_smoothing, z_loss)
    z, index, ignored, u, shards = _logits(input, target, weight, group, ignore_index, constants, data_group, check)
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    found, *_ = _of_shards(z, index, u, shards, False, False, False)
    if ignored is not None:
        found = Statistics(*(None if f is None else torch.where(ignored, 0.0, f) for f in found))
    factor = torch.ones_like(found.logsumexp.detach()) if ignored is None else (~ignored).double()
    of_target = None if weight is None or index is None else class_weight_of(weight.detach().double(), index, shards)
    shards.close()
    terms = _linear.terms_of(
        factor, of_target, False, reduction, label_smoothing, shards.classes, z_loss, _total(data_group)
    )
    losses: Tensor = _algebra.loss(found, terms)
    return losses.to(dtype).reshape(input.shape[:-1]) if reduction == "none" else losses.sum().to(dtype)


def _meet(
    input: Tensor, linear_weight: Tensor, target: Tensor | None, linear_bias: Tensor | None,
    class_weights: Tensor | None, group: Group | None, others: Group | None, input_gradient: str,
    constants: dict[str, Any],
) -> tuple[Shards, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Return the ranks as peers, the input as all of them see it, and this rank's weight, bias and class weights."""
    group = mesh_of(linear_weight) if group is None else group
    whole = (linear_weight, linear_bias, class_weights)
    parts, error = attempt(lambda: _parts(*whole))
    W, b, w = whole if parts is None else parts
    scattered = input_gradient == "reduce_scatter"

    def describe() -> dict[str, Any]:
        if error is not None:
            raise error
        require_tensors(input=input, linear_weight=W)
        if input_gradient not in INPUT_GRADIENTS:
            known = ", ".join(map(repr, INPUT_GRADIENTS))
            raise ValueError(f"input_gradient = {input_gradient!r} is not one of {known}")
        if W.dim() != 2 or input.dim() < 1 + scattered:
            shapes = f"{tuple(input.shape)} and {tuple(W.shape)}"
            raise ValueError(f"input and linear_weight have shapes {shapes}, expected (..., D) and (V, D)")
        check_shapes(input, W, b, w, alone=False)
        if W.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
            raise RuntimeError(f"linear_weight has dtype {W.dtype}, input {input.dtype}: expected the same")
        shape = tuple(input.shape)
        own = {"classes": len(W), "own rows": shape[0] if scattered else 0, "weighs": _weighs(w)}
        same = {"input": shape[1:] if scattered else shape, "dtype": str(input.dtype), "target": _digest(target)}
        wanted = {"whether input has a gradient": torch.is_grad_enabled() and input.requires_grad}
        return own | same | wanted | _given(b, w) | {"autocast": torch.is_autocast_enabled(input.device.type)}

    shards, told = _exchange(describe, constants | {"input_gradient": input_gradient}, group, others)
    if scattered:
        return shards, Gathered.apply(input, group, [each["own rows"] for each in told]), W, b, w  # type: ignore[no-untyped-call]
    same = Replicated.apply(input, group) if input_gradient == "all_reduce" else input  # type: ignore[no-untyped-call]
    return shards, same, W, b, w


def _parts(
    weight: Tensor, bias: Tensor | None, class_weights: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return this rank's parts of what may be DTensors."""
    b, w = (None if tensor is None else unsharded(tensor) for tensor in (bias, class_weights))
    return unsharded(weight), b, w


def _exchange(
    describe: Callable[[], dict[str, Any]], constants: dict[str, Any], group: Group | None, others: Group | None
) -> tuple[Shards, list[dict[str, Any]]]:
    """Tell each other what was passed; raise on all ranks, those of the data-parallel group included."""
    about, error = attempt(describe)
    same = {name: repr(value) for name, value in constants.items()}
    told, failure = attempt(lambda: _compare(agree(group, None if about is None else about | same, error)))
    if others is not None:
        agree(others, None, failure)
    if failure is not None or told is None:
        raise failure or AssertionError
    return Shards(group, [each["classes"] for each in told], others), told


def _compare(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the ranks told, if all that should be the same is."""
    for rank, each in enumerate(told):
        for name in (key for key in each if key not in OWN):
            if each[name] != told[0][name]:
                values = "" if name == "target" else f": {told[0][name]} and {each[name]}"
                raise ValueError(f"{name} differs between ranks 0 and {rank} of the group{values}")
    if sum(each["classes"] for each in told) == 0:
        raise ValueError("no rank of the group has a class: expected at least one")
    if not any(each["weighs"] for each in told):
        raise ValueError("class_weights are all 0: at least one must be above")
    return told


def _given(bias: Tensor | None, weight: Tensor | None) -> dict[str, Any]:
    return {"whether linear_bias is given": bias is not None, "whether weight is given": weight is not None}


def _weighs(weight: Tensor | None) -> bool:
    return weight is None or bool((weight > 0).any())


def _digest(target: Tensor | None) -> str | None:
    """Return what tells targets apart; of class probabilities each rank has its own."""
    if not isinstance(target, Tensor) or target.is_floating_point():
        return None
    values = target.detach().long().contiguous().cpu().numpy()
    return f"{tuple(target.shape)} {hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()}"


def _total(group: Group | None) -> Callable[[Tensor], Tensor]:
    """Return what makes a count that of a data-parallel group, divided by its size: gradients will be averaged."""

    def total(count: Tensor) -> Tensor:
        summed = count.detach().clone()
        dist.all_reduce(summed, group=group)
        return summed / dist.get_world_size(group)

    return (lambda count: count) if group is None else total


def _logits(
    input: Tensor, target: Tensor | None, weights: Tensor | None, group: Group | None, ignore_index: int,
    constants: tuple[Any, ...], others: Group | None = None, check: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Shards]:  # fmt: skip
    """Return this rank's rows of logits, targets, which rows are ignored, class weights, and the ranks as peers."""

    def describe() -> dict[str, Any]:
        require_tensors(input=input, target=input if target is None else target)
        check_logits(input, alone=False)
        check()
        check_class_weights(weights, input.shape[-1], alone=False)
        own = {"classes": input.shape[-1], "weighs": _weighs(weights)}
        return own | _given(None, weights) | {"leading shape": tuple(input.shape[:-1]), "target": _digest(target)}

    shared = {"constants": constants, "ignore_index": ignore_index, "dtype": input.dtype}
    shards, _ = _exchange(describe, shared, group, others)
    index, ignored = shards.ready(lambda: check_targets(target, input.shape[:-1], shards.classes, ignore_index))
    z = input.reshape(input.shape[:-1].numel(), input.shape[-1])
    return z, index, ignored, z.new_ones(z.shape[1]) if weights is None else weights.detach(), shards


def _of_shards(
    z: Tensor, target: Tensor | None, weight: Tensor, shards: Shards, entropy: bool, rank: bool, argmax: bool
) -> tuple[Statistics, Tensor, Tensor | None, Tensor | None]:
    """Return statistics (float64), the sum of the weights, rank - 1 and argmax of rows of sharded logits."""
    out = _ShardStatistics.apply(z, target, weight, shards, entropy, rank, argmax)  # type: ignore[no-untyped-call]
    fields = len(Statistics._fields)
    return Statistics(*out[:fields]), *out[fields:]


class _ShardStatistics(torch.autograd.Function):
    """Statistics of sharded logits: one all-gather of states forwards, nothing to send backwards."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        target: Tensor | None,
        weight: Tensor,
        shards: Shards,
        entropy: bool,
        rank: bool,
        argmax: bool,
    ) -> Any:
        none = _statistics.nothing(z.new_zeros(len(z), dtype=torch.float64), target, argmax)
        folded = shards.join(
            lambda: _statistics.fold_logits(z, target, weight, shards.first_class, entropy, argmax),
            none.needed(entropy, True),
        )
        counts = None
        if rank:
            counts = shards.add(lambda: _statistics.rank(z, folded.chosen), (folded.chosen == 0) * 0)
        shards.close()
        found, state = _statistics.finish(folded, entropy), folded.state
        more = (found.logprob, found.others, folded.chosen)
        ctx.save_for_backward(z, target, weight, state.max, state.rest, state.mass, found.entropy, folded.first, *more)
        ctx.first_class = shards.first_class
        ctx.set_materialize_grads(False)
        constants = (state.mass.clone(), counts, _statistics.argmax_of(found, folded))
        ctx.mark_non_differentiable(*(t for t in constants if t is not None))
        return (*found._replace(max=state.max.clone()), *constants)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        z, target, weight, m, rest, mass, entropy, first, logprob, others, chosen = ctx.saved_tensors
        folded, u = Folded(State(m, rest, None, None, mass), chosen), None
        if chosen is not None and len(weight):
            column, inside = _statistics.place(target, z, ctx.first_class)
            u = weight[torch.where(inside, column, 0)].double()
        found = Statistics(None, logprob, entropy, None, m, others)
        given = _statistics.cotangents(
            found, folded, Statistics(*upstream[: len(Statistics._fields)]), z.dtype.itemsize, u
        )
        out = torch.empty_like(z)
        if z.shape[1]:
            _statistics.write(
                _backends.choose(z),
                z,
                folded.state,
                given,
                target,
                weight,
                ctx.first_class,
                None,
                first.clone(),
                out=out,
            )
        return out, *[None] * 6
