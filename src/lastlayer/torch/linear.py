"""linear_cross_entropy for torch: hidden states to loss and gradients without the N x V logits.

The mathematics is in lastlayer._linear, the driver in lastlayer._stream, the autograd nodes in nodes.py; here is the
public function with its checks. linear_statistics.py is its sibling for all other losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lastlayer import _algebra, _linear, _validate
from lastlayer._statistics import place
from lastlayer._stream import ALONE, Peers
from lastlayer.torch.functional import cross_entropy, require_one_device, require_tensors
from lastlayer.torch.later import far, require, require_classes
from lastlayer.torch.nodes import autocast, cross_entropy_loss, linear_statistics
from lastlayer.torch.stream import Call


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    scale: float = 1.0,
    token_weight: Tensor | None = None,
    memory_budget: int | None = None,
    weight_grad: Tensor | None = None,
) -> Tensor:
    r"""Compute the cross-entropy of ``linear(input, linear_weight, linear_bias)`` without storing its N x V logits.

    The logits of a token are z = softcap * tanh(scale * (W h + b) / softcap); its loss, with class weights w, smoothing
    e and log p = log_softmax(z), is::

        -(1 - e) w_y log p_y - (e / V) sum_j w_j log p_j + z_loss * logsumexp(z)^2

    ``"mean"`` and ``"sum"`` form the gradients during the forward pass; ``"none"`` computes the logits a second time in
    the backward pass.

    Args:
        input: hidden states (D), (N, D) or (B, T, D): any leading shape.
        linear_weight: (V, D), of the input's dtype. (V, d_1, ..., D) is computed through full logits, as torch does.
        target: class indices of the leading shape, int64 or uint8, or class probabilities of the leading shape and V
            (not checked, as in torch); where these require a gradient, the loss goes through full logits.
        linear_bias: (V).
        weight: class weights (V).
        reduction: ``"none"``, ``"mean"`` (over the weights of the targets that count) or ``"sum"``.
        ignore_index: a target value whose tokens count as absent, -100 unless given; on a CPU they cost no product.
        label_smoothing: e, in [0, 1].
        options: accepted because torch's function has it; ``memory_budget`` decides here.
        z_loss: the factor of the squared logsumexp.
        softcap: bounds the logits to (-softcap, softcap).
        scale: multiplies the logits.
        token_weight: factors of the tokens' losses, in the leading shape; the mean divides by their weighted sum.
        memory_budget: bytes for the workspace, gradients not counted; None: 64 MiB on a CPU, on a GPU what 4,096 rows
            of logits take.
        weight_grad: where to add the gradient of ``linear_weight`` during the forward pass: of its shape; float32 saves
            a copy. Autograd then gives the weight none, and what comes in backwards must be 1.

    Returns:
        The loss: float32, or float64 for float64 input, whatever the 16-bit type of the input. A scalar, or the
        leading shape for ``"none"``. 0, connected to the graph, where every target is ignored.

    Raises:
        IndexError: a target is neither a class nor ignored; the message names it.
        RuntimeError: shapes, dtypes or devices do not fit; or a second derivative is asked for (needs full logits).
        ValueError: reduction, label_smoothing, softcap or another factor is out of range; the budget is too small.

    Note:
        16-bit inputs are multiplied in float32; on a GPU as they are, into float32 logits. There nothing waits for the
        device: a bad target is an error later (``check_errors``). Differs from torch: 16-bit input gives a float32
        loss, ignored rows cannot poison the gradient, and the mean over no tokens is 0, not NaN. ``torch.compile``
        takes it as one operator; ``vmap`` and forward-mode differentiation are not supported.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> h, W = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> F.linear_cross_entropy(h, W, torch.tensor([0, 2]))
        tensor(0.8620)
        >>> F.linear_cross_entropy(h, W, torch.tensor([0, -100]), reduction="none")
        tensor([0.8620, 0.0000])
    """
    _check_kinds(
        input=input, linear_weight=linear_weight, target=target,
        linear_bias=linear_bias, weight=weight, token_weight=token_weight,
    )  # fmt: skip
    if linear_weight.dim() > 2 or (_soft(input, linear_weight, target) and target.requires_grad):
        check_constants({"label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap, "scale": scale})
        _linear.check_options(reduction, label_smoothing, z_loss, softcap, scale, memory_budget)
        check_shapes(input, linear_weight, linear_bias, weight)
        extras = {
            "z_loss": z_loss != 0,
            "softcap": softcap is not None,
            "scale": scale != 1,
            "token_weight": token_weight,
            "weight_grad": weight_grad,
        }
        return _dense(
            input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, extras
        )
    tokens = prepare(
        input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, z_loss, softcap,
        scale, token_weight, memory_budget, ALONE,
    )  # fmt: skip
    if weight_grad is not None:
        _check_weight_grad(weight_grad, linear_weight, reduction)
    return loss_of(tokens, reduction, weight_grad=weight_grad)


class Tokens(NamedTuple):
    """The checked arguments of a cross-entropy: the rows that count, the head, and what their losses are made of."""

    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    target: Tensor
    soft: bool
    kept: Tensor | None
    leading: torch.Size
    factor: Tensor
    class_weight: Tensor | None
    label_smoothing: float
    z_loss: float
    softcap: float | None
    scale: float
    memory_budget: int | None
    peers: Peers


def prepare(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, weight: Tensor | None,
    reduction: str, ignore_index: int | None, label_smoothing: float, z_loss: float, softcap: float | None,
    scale: float, token_weight: Tensor | None, memory_budget: int | None, peers: Peers,
) -> Tokens:  # fmt: skip
    """Check the arguments and leave out the rows that are ignored."""
    check_constants({"label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap, "scale": scale})
    _linear.check_options(reduction, label_smoothing, z_loss, softcap, scale, memory_budget)
    if ignore_index is not None:
        ignore_index = _validate.read_integer("ignore_index", ignore_index)
    check_shapes(input, linear_weight, linear_bias, weight, peers.alone)
    leading, soft = input.shape[:-1], _soft(input, linear_weight, target)
    classes = linear_weight.shape[0] if soft else peers.classes or linear_weight.shape[0]
    if soft and ignore_index is not None:
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    require_one_device(input, target=target, token_weight=token_weight)
    _check_target(target, leading, classes, soft)
    _check_token_weight(token_weight, leading)
    h, W, b = autocast(input, linear_weight, linear_bias)
    h, factor = h.reshape(leading.numel(), h.shape[-1]), None if token_weight is None else token_weight.reshape(-1)
    y, kept = target.detach().reshape(leading.numel(), classes) if soft else target.reshape(-1), None
    rows = torch.ones(y.shape[0], dtype=torch.float64, device=y.device) if factor is None else factor.double()
    if not soft:
        ignored = -100 if ignore_index is None else ignore_index
        y = y.long().contiguous()  # a comparison in uint8 would wrap -100 round to 156
        y = require_classes(y.reshape(leading), y.reshape(leading) == ignored, classes).reshape(-1)
        if far(y):  # to leave rows out would wait for their number: they stay, and do not count
            rows = torch.where((y >= 0) & (y < classes), rows, torch.where(y == ignored, 0.0, math.nan))
        else:
            kept = rows_that_count(y, ignored)
            h, y, rows = (h, y, rows) if kept is None else (h[kept], y[kept], rows[kept])
    return Tokens(
        h, W, b, y, soft, kept, leading, rows, None if weight is None else weight.detach().double(), label_smoothing,
        z_loss, softcap, scale, memory_budget, peers,
    )  # fmt: skip


def loss_of(
    tokens: Tokens, reduction: str, total: Callable[[Tensor], Tensor] = lambda count: count,
    weight_grad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the cross-entropy of the tokens; the mean divides by the ``total`` of their weights."""
    h, W, peers, w, soft = tokens.input, tokens.linear_weight, tokens.peers, tokens.class_weight, tokens.soft
    classes, kind = peers.classes or len(W), torch.float64 if h.dtype == torch.float64 else torch.float32
    of_target = None if w is None or soft else class_weight_of(w, tokens.target, peers)
    terms = _linear.terms_of(
        tokens.factor, of_target, soft, reduction, tokens.label_smoothing, classes, tokens.z_loss, total
    )
    u = W.new_ones(len(W), dtype=torch.float64) if w is None else w
    call = Call(
        None if soft else tokens.target,
        u.to(kind) if soft else u if tokens.label_smoothing else None,
        tokens.scale, tokens.softcap, tokens.memory_budget,
        probabilities=tokens.target if soft else None, smoothing=tokens.label_smoothing, peers=peers,
        weight_grad=weight_grad,
    )  # fmt: skip
    if reduction != "none":
        return cross_entropy_loss(h, W, tokens.linear_bias, call, terms)
    found, *_ = linear_statistics(h, W, tokens.linear_bias, call, entropy=False)
    losses: Tensor = _algebra.loss(found, terms).to(kind)
    return spread(losses, tokens.kept, tokens.leading)


def class_weight_of(weight: Tensor, target: Tensor, peers: Peers) -> Tensor:
    """Return w_y of each target, from whoever holds the class; 0 of what is no class."""

    def mine() -> Tensor:
        column, inside = place(target, weight[None], peers.first_class)
        return torch.where(inside, weight[torch.where(inside, column, 0)], 0.0) if len(weight) else like

    like = torch.zeros(target.shape, dtype=weight.dtype, device=weight.device)
    return peers.add(mine, like)  # type: ignore[no-any-return]


def _soft(input: Tensor, linear_weight: Tensor, target: Tensor) -> bool:
    return tuple(target.shape) == (*input.shape[:-1], linear_weight.shape[0]) and target.dim() == input.dim()


def _check_kinds(**arguments: Tensor | None) -> None:
    require_tensors(**arguments)
    if arguments["input"].dim() < 1 or arguments["linear_weight"].dim() < 2:  # type: ignore[union-attr]
        check_shapes(*(arguments[name] for name in ("input", "linear_weight", "linear_bias", "weight")))  # type: ignore[arg-type]


def spread(field: Tensor, kept: Tensor | None, leading: torch.Size, others: int = 0) -> Tensor:
    """Return what was computed for the rows that count, (n, ...), in the rows' shape, and ``others`` for the others."""
    if kept is not None:
        field = field.new_full((leading.numel(), *field.shape[1:]), others).index_put((kept,), field)
    return field.reshape((*leading, *field.shape[1:]))


def rows_that_count(target: Tensor, ignored: int) -> Tensor | None:
    """Return the numbers of the rows that are not ignored, None if none is."""
    keep = target != ignored
    return None if bool(keep.all()) else keep.nonzero()[:, 0]


def check_constants(numbers: dict[str, Any]) -> None:
    """Raise for a number that wants a gradient."""
    for name, value in numbers.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise RuntimeError(f"{name} requires a gradient, which is not computed here")


def check_shapes(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, weight: Tensor | None, alone: bool = True
) -> None:
    """Raise unless these fit together; a shard of the vocabulary may be empty."""
    if input.dim() < 1:
        raise RuntimeError("expected input with dimensionality at least 1, got 0")
    if linear_weight.dim() < 2:
        raise RuntimeError(f"expected linear_weight with dimensionality at least 2, got {linear_weight.dim()}")
    if input.shape[-1] != linear_weight.shape[-1]:
        raise RuntimeError(
            "expected equal input and linear_weight last dimensions (in_features), "
            f"got {input.shape[-1]} and {linear_weight.shape[-1]}, respectively"
        )
    if linear_weight.shape[0] == 0 and alone:
        raise RuntimeError(f"linear_weight has shape {tuple(linear_weight.shape)}: expected at least one class")
    outputs = tuple(linear_weight.shape[:-1])
    if linear_bias is not None and tuple(linear_bias.shape) != outputs:
        raise RuntimeError(f"expected linear_bias shape {outputs}, got {tuple(linear_bias.shape)}")
    if weight is not None and tuple(weight.shape) != outputs[:1]:
        raise RuntimeError(f"expected weight (one per class) shape {outputs[:1]}, got {tuple(weight.shape)}")
    if not input.is_floating_point():
        raise RuntimeError(f"expected a floating point input, got {input.dtype}")
    require_one_device(input, linear_weight=linear_weight, linear_bias=linear_bias, weight=weight)
    mixed = alone and not torch.is_autocast_enabled(input.device.type)
    for name, tensor in (("linear_weight", linear_weight), ("linear_bias", linear_bias), ("weight", weight)):
        if tensor is None:
            continue
        if not tensor.is_floating_point() or (mixed and name != "weight" and tensor.dtype != input.dtype):
            raise RuntimeError(f"{name} has dtype {tensor.dtype}, input {input.dtype}: expected the same floating type")
    if weight is not None and weight.requires_grad:
        raise RuntimeError("weight (class weights) requires a gradient, which linear_cross_entropy does not compute")


def _check_target(target: Tensor, leading: torch.Size, classes: int, soft: bool) -> None:
    if soft:
        if not target.is_floating_point():
            raise RuntimeError(f"target has dtype {target.dtype} and a shape of class probabilities: expected floats")
        return
    if target.shape != leading:
        expected = f"{tuple(leading)} (class indices) or {(*leading, classes)} (class probabilities)"
        raise RuntimeError(f"expected target of shape {expected}, got {tuple(target.shape)}")
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(f"target has dtype {target.dtype}, expected class indices: int64 or uint8")


def _check_weight_grad(weight_grad: Tensor, linear_weight: Tensor, reduction: str) -> None:
    require_tensors(weight_grad=weight_grad)
    _validate.check_shape("weight_grad", weight_grad, tuple(linear_weight.shape), ", as linear_weight")
    require_one_device(linear_weight, weight_grad=weight_grad)
    if not weight_grad.is_floating_point() or weight_grad.requires_grad:
        raise RuntimeError("weight_grad must be a floating tensor that requires no gradient itself")
    if reduction == "none" or torch.compiler.is_compiling():
        why = "under torch.compile" if torch.compiler.is_compiling() else "with reduction = 'none'"
        raise RuntimeError(f"weight_grad is not supported {why}: the gradient is not formed in the forward pass there")


def _check_token_weight(token_weight: Tensor | None, leading: torch.Size) -> None:
    if token_weight is None:
        return
    _validate.check_shape("token_weight", token_weight, tuple(leading), ", one factor per token")
    if not token_weight.is_floating_point():
        raise TypeError(f"token_weight has dtype {token_weight.dtype}, expected a floating type")
    if token_weight.requires_grad:
        raise RuntimeError("token_weight requires a gradient: use reduction='none' and multiply the losses by it")
    require(torch.isfinite(token_weight), _bad_token_weight, token_weight)


def _bad_token_weight(index: tuple[int, ...], value: float) -> Exception:
    return ValueError(f"{_validate.element('token_weight', index)} = {value} must be finite")


def _dense(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int | None,
    label_smoothing: float,
    extras: dict[str, Any],
) -> Tensor:
    """Through full logits, as torch does: K-dimensional heads (V, d_1, ..., D), and targets that require a gradient."""
    given = [name for name, value in extras.items() if value is not None and value is not False]
    if given:
        kind = "a K-dimensional linear_weight" if linear_weight.dim() > 2 else "a target that requires a gradient"
        raise RuntimeError(f"{', '.join(given)} cannot be combined with {kind}")
    if linear_weight.dim() == 2:
        flat = F.linear(input, linear_weight, linear_bias).reshape(-1, linear_weight.shape[0])
        loss = cross_entropy(
            flat, target.reshape(flat.shape), weight, reduction=reduction, label_smoothing=label_smoothing
        )
        return loss.reshape(input.shape[:-1]) if reduction == "none" else loss
    if input.dim() != 2:
        shapes = f"{tuple(linear_weight.shape)} requires batched input, (N, {input.shape[-1]}), got unbatched input"
        raise RuntimeError(
            f"K-dimensional loss defined by linear_weight shape {shapes} with shape {tuple(input.shape)}"
        )
    outputs = linear_weight.shape[:-1]
    bias = None if linear_bias is None else linear_bias.reshape(-1)
    logits = F.linear(input, linear_weight.reshape(-1, input.shape[-1]), bias).reshape(-1, *outputs)
    if target.shape == logits.shape and ignore_index is not None:
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    ignored = -100 if ignore_index is None else ignore_index
    return cross_entropy(
        logits, target, weight, ignore_index=ignored, reduction=reduction, label_smoothing=label_smoothing
    )
