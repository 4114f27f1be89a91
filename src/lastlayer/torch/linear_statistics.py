"""Any loss on hidden states: the statistics of each row's logits, and losses of them, without the N x V logits.

``linear_logit_statistics`` is for losses that couple rows, ``linear_loss`` for those that do not: it needs three
quarters of the products. The autograd nodes are in nodes.py, the statistics of given logits in logits.py, ready-made
losses in objectives/.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lastlayer import _algebra, _linear, _validate
from lastlayer._algebra import UNCOUNTED, LogitStatistics, Statistics
from lastlayer._statistics import Cotangents, Folded, cotangents
from lastlayer._stream import ALONE, Gradients, Peers, Stream
from lastlayer.torch.functional import require_one_device, require_tensors
from lastlayer.torch.later import far, require
from lastlayer.torch.linear import check_constants, check_shapes, spread
from lastlayer.torch.logits import check_class_weights, check_targets
from lastlayer.torch.nodes import autocast, fused_loss, linear_statistics, wanted
from lastlayer.torch.stream import Call

LossFunction = Callable[..., Tensor]
RowTensors = tuple[Tensor | None, ...]
Total = Callable[[Tensor], Tensor]
COUPLED = 1e-3  # a loss that changes by more than this part when half of the rows are taken away depends on them


class Problem(NamedTuple):
    """The checked arguments of a call: the rows that count, the head, and the constants.

    On a GPU all rows stay, since to leave some out would wait for their number, and ``silent`` are those that do not
    count; else ``kept`` are the numbers of those that do.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    call: Call
    kept: Tensor | None
    silent: Tensor | None
    leading: torch.Size

    @property
    def dtype(self) -> torch.dtype:
        """The type of statistics and losses."""
        return torch.float64 if self.input.dtype == torch.float64 else torch.float32

    def rows(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of the leading shape, and perhaps more dimensions, as the rows that count."""
        leading = len(self.leading)
        if tensor.shape[:leading] != self.leading:
            shape = tuple(self.leading)
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}, one per row: expand it")
        flat = tensor.reshape((self.leading.numel(), *tensor.shape[leading:]))
        return flat if self.kept is None else flat[self.kept]

    def all_rows(self, loss_fn: LossFunction, tensors: RowTensors, reduction: str) -> RowTensors:
        """Check what ``linear_loss`` takes besides, and return the rows of its row tensors that count."""
        _validate.check_reduction(reduction, ("mean", "sum"))
        if not callable(loss_fn):
            kind = type(loss_fn).__name__
            raise TypeError(f"loss_fn is {kind}, expected a function of the statistics and row tensors")
        named = {f"row_tensors[{i}]": tensor for i, tensor in enumerate(tensors)}
        require_tensors(**{name: tensor for name, tensor in named.items() if tensor is not None})
        require_one_device(self.input, **named)
        return tuple(None if tensor is None else self.rows(name, tensor) for name, tensor in named.items())


def problem(
    input: Tensor, linear_weight: Tensor, target: Tensor | None, linear_bias: Tensor | None,
    class_weights: Tensor | None, scale: float, softcap: float | None, ignore_index: int,
    memory_budget: int | None, peers: Peers,
) -> Problem:  # fmt: skip
    """Check the arguments and leave out the rows that are ignored."""
    check_constants({"scale": scale, "softcap": softcap})
    _linear.check_head(softcap, scale, memory_budget)
    require_tensors(input=input, linear_weight=linear_weight, linear_bias=linear_bias)
    if target is not None:
        require_tensors(target=target)
    if linear_weight.dim() != 2:
        raise ValueError(f"linear_weight has shape {tuple(linear_weight.shape)}, expected (V, D)")
    check_shapes(input, linear_weight, linear_bias, None, peers.alone)
    check_class_weights(class_weights, linear_weight.shape[0], peers.alone)
    require_one_device(input, target=target, class_weights=class_weights)
    if class_weights is not None and class_weights.requires_grad:
        raise RuntimeError("class_weights requires a gradient, which is not computed here")
    leading, classes = input.shape[:-1], peers.classes or linear_weight.shape[0]
    index, ignored = check_targets(target, leading, classes, ignore_index)
    kept = None if ignored is None or far(input) else (~ignored).nonzero()[:, 0]
    h, W, b = autocast(input, linear_weight, linear_bias)
    h = h.reshape(leading.numel(), h.shape[-1])
    if kept is not None and index is not None:
        h, index = h[kept], index[kept]
    kind = torch.float64 if h.dtype == torch.float64 else torch.float32
    u = W.new_ones(W.shape[0], dtype=kind) if class_weights is None else class_weights.detach().to(kind)
    index = None if index is None else index.contiguous()
    call = Call(index, u, scale, softcap, memory_budget, peers=peers)
    return Problem(h, W, b, call, kept, ignored if kept is None else None, leading)


def linear_logit_statistics(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | None = None,
    *,
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
    r"""Return ``logit_statistics`` of ``linear(input, linear_weight, linear_bias)`` without storing its N x V logits.

    The logits of a row are z = softcap * tanh(scale * (W h + b) / softcap). Any loss is a function of the result, also
    one that couples rows: sums over a sequence, differences of pairs, a batch's mean. The backward pass computes the
    logits a second time: 8 N D V operations in all. Where rows do not couple, ``linear_loss`` needs 6 N D V.

    Args:
        input: hidden states (..., D), any leading shape.
        linear_weight: (V, D), of the input's dtype.
        target: class indices (...), or K distinct ones per row (..., K); int64 or uint8.
        linear_bias: (V).
        scale: multiplies the logits.
        softcap: bounds the logits to (-softcap, softcap).
        entropy: whether to compute it.
        rank: whether to compute the target's: 1 + the number of classes with a larger logit. Where the budget does not
            hold 32 whole rows, that costs the products of a forward pass once more.
        argmax: whether to compute the first class with the largest logit.
        class_weights: w (V), >= 0, for ``mean_logit`` and ``mean_logprob``; without it all classes weigh the same.
        ignore_index: a target whose row counts as absent (with K targets: all of them) and costs no product: its
            statistics and gradients are 0, its rank is 0, its argmax -1.
        memory_budget: bytes for the workspace, gradients not counted; None: 64 MiB on a CPU, on a GPU what 4,096 rows
            of logits take.

    Returns:
        ``LogitStatistics``: float32, or float64 for float64 input, each of the leading shape (``logprob`` and ``rank``
        with K targets: (..., K)). ``None`` for what was not asked for. All but ``rank`` and ``argmax`` are
        differentiable.

    Raises:
        IndexError: a target is neither a class nor ignored; the message names it.
        RuntimeError: shapes, dtypes or devices do not fit; or a second derivative is asked for (needs full logits).
        ValueError: softcap, scale, target's shape or class weights are out of range; the budget is too small.

    Note:
        16-bit inputs are multiplied in float32. ``backward`` may be called as often as the graph is kept.
        ``torch.compile`` takes it as one operator; ``vmap`` and forward-mode differentiation are not supported.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> h, W = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> s = F.linear_logit_statistics(h, W, torch.tensor([0, 2]), entropy=True)
        >>> s.logprob, s.entropy
        (tensor([-0.8620, -0.8620]), tensor([1.0174, 1.0174]))
    """
    given = problem(
        input, linear_weight, target, linear_bias, class_weights, scale, softcap, ignore_index, memory_budget, ALONE
    )
    return statistics_of(given, entropy=entropy, rank=rank and target is not None, argmax=argmax)


def statistics_of(given: Problem, **asked: bool) -> LogitStatistics:
    """Return the statistics of a problem's rows, in the rows' shape."""
    found, mass, rank, argmax = linear_statistics(given.input, given.weight, given.bias, given.call, **asked)
    named = _algebra.logit_statistics(found, mass, lambda field: field.to(given.dtype))
    named = silenced(named._replace(rank=None if rank is None else rank + 1, argmax=argmax), given.silent)

    def shaped(name: str, field: Tensor | None) -> Tensor | None:
        return None if field is None else spread(field, given.kept, given.leading, UNCOUNTED.get(name, 0))

    return LogitStatistics(*map(shaped, named._fields, named))


def linear_loss(
    loss_fn: LossFunction,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | None,
    *row_tensors: Tensor | None,
    linear_bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    class_weights: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    memory_budget: int | None = None,
) -> Tensor:
    r"""Compute any loss that separates by row, from hidden states; gradients are formed in the forward pass.

    ``loss_fn(statistics, *row_tensors)`` is called on some rows at a time, with their ``LogitStatistics`` and their
    part of each row tensor, and returns one loss per row; the loss of row i must depend on row i alone. Its gradient by
    the statistics turns into that by the hidden states and the weight while the logits are still there: 6 N D V
    operations, where ``linear_logit_statistics`` needs 8.

    Args:
        loss_fn: any differentiable function of the fields of ``LogitStatistics`` and the row tensors, for instance one
            of ``lastlayer.torch.objectives``. It is called more than once, on parts of the rows.
        input: hidden states (..., D).
        linear_weight: (V, D), of the input's dtype.
        target: class indices (...), or K distinct ones per row (..., K); None where the loss needs none.
        *row_tensors: what else the loss needs of each row: (...) or (..., more); gradients reach those that want them.
            None is passed on as it is.
        linear_bias: (V).
        scale: multiplies the logits.
        softcap: bounds the logits to (-softcap, softcap).
        entropy: whether the loss uses the entropy, which is None otherwise.
        class_weights: w (V), >= 0, for ``mean_logit`` and ``mean_logprob``.
        reduction: ``"mean"`` over the rows that are not ignored, or ``"sum"``.
        ignore_index: a target whose row counts as absent; it is not shown to ``loss_fn``.
        memory_budget: bytes for the workspace, gradients not counted; None: 64 MiB on a CPU, on a GPU what 4,096 rows
            of logits take.

    Returns:
        The loss, a scalar: float32, or float64 for float64 input. 0, connected to the graph, where all are ignored.

    Raises:
        IndexError: a target is neither a class nor ignored; the message names it.
        RuntimeError: shapes, dtypes or devices do not fit; ``loss_fn`` uses a tensor that requires a gradient and is
            none of the arguments; or a second derivative is asked for.
        ValueError: ``loss_fn`` does not return one loss per row, or a row's loss changes with the rows beside it.

    Note:
        That rows do not couple is checked on the first rows of each call, by comparing their losses with those of the
        first half alone; a loss that depends on the batch in a way this does not show gets a wrong gradient. Under
        ``torch.compile`` this is ``loss_fn`` of ``linear_logit_statistics``, in one graph, unchecked; ``vmap`` and
        forward-mode differentiation are not supported.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> h, W = torch.eye(2, requires_grad=True), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> advantage = torch.tensor([1.0, -0.5])
        >>> F.linear_loss(lambda s, a: -a * s.logprob, h, W, torch.tensor([0, 2]), advantage)
        tensor(0.2155, grad_fn=<_FusedBackward>)
    """
    given = problem(
        input, linear_weight, target, linear_bias, class_weights, scale, softcap, ignore_index, memory_budget, ALONE
    )
    return loss_of(given, loss_fn, given.all_rows(loss_fn, row_tensors, reduction), entropy, reduction)


def _share(given: Problem, total: Total | None) -> float | Tensor:
    """Return 1 / the number of rows that count, 0 where none does."""
    count: float | Tensor = float(len(given.input)) if given.silent is None else (~given.silent).sum().double()
    if total is not None:
        count = total(torch.as_tensor(count, dtype=torch.float64, device=given.input.device))
    if isinstance(count, Tensor):
        return torch.where(count == 0, 0.0, 1 / count)
    return 1 / count if count else 0.0


def loss_of(
    given: Problem, loss_fn: LossFunction, row_tensors: RowTensors, entropy: bool, reduction: str,
    total: Total | None = None,
) -> Tensor:  # fmt: skip
    """Return the loss of a problem's rows, in one pass; the mean divides by ``total`` of their number."""
    factor: float | Tensor = 1.0
    if reduction == "mean":
        factor = _share(given, total)
    rows = tuple(row for row in row_tensors if row is not None)

    def losses_of(statistics: LogitStatistics, *some: Tensor) -> Tensor:
        left = iter(some)
        try:
            return loss_fn(statistics, *(None if row is None else next(left) for row in row_tensors))
        except TypeError as error:
            if not entropy:
                error.add_note("statistics.entropy is None: if loss_fn uses it, pass entropy=True")
            raise

    if torch.compiler.is_compiling() and given.call.peers is ALONE:
        return _compiled(given, losses_of, rows, factor, entropy)
    derive = any(wanted(given.input, given.weight, given.bias, *rows))

    def run(stream: Stream, into: Gradients | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        rule = _Rule(given, stream, losses_of, rows, factor, derive)
        return _linear.value_and_gradients(stream, rule, into, entropy).sum(), tuple(rule.of_rows)

    return fused_loss(given.input, given.weight, given.bias, given.call, run, rows)  # type: ignore[no-any-return]


def _compiled(
    given: Problem, loss_fn: LossFunction, rows: tuple[Tensor, ...], factor: float | Tensor, entropy: bool
) -> Tensor:
    """Return the same of all rows at once: a compiler sees the statistics as one operator, and ``loss_fn`` whole."""
    found, mass, *_ = linear_statistics(given.input, given.weight, given.bias, given.call, entropy=entropy)
    named = silenced(_algebra.logit_statistics(found, mass, lambda field: field.to(given.dtype)), given.silent)
    losses = loss_fn(named, *rows)
    losses = losses if given.silent is None else torch.where(given.silent, 0.0, losses)
    return (losses.double() * factor).sum().to(given.dtype)


class _Rule:
    """Losses and cotangents of a chunk's statistics, by differentiating ``loss_fn`` on vectors of the chunk's rows."""

    def __init__(
        self, given: Problem, stream: Stream, loss_fn: LossFunction, rows: tuple[Tensor, ...],
        factor: float | Tensor, derive: bool,
    ) -> None:  # fmt: skip
        self.dtype, self.loss_fn, self.factor, self.derive = given.dtype, loss_fn, factor, derive
        call, self.silent = given.call, given.silent
        self.rows = [row.detach().requires_grad_(derive and row.requires_grad) for row in rows]
        self.itemsize = stream.products.dtype.itemsize
        self.target_weight, self.softcap = call.target_weight(stream.classes), call.softcap
        self.of_rows = [torch.zeros_like(row) if row.requires_grad else None for row in self.rows]

    def __call__(self, rows: slice, found: Statistics, folded: Folded) -> tuple[Tensor, Cotangents | None]:
        with torch.set_grad_enabled(self.derive):
            leaves = Statistics(*(None if f is None else f.detach().requires_grad_(self.derive) for f in found))
            named = _algebra.logit_statistics(leaves, folded.state.mass, lambda field: field.to(self.dtype))
            silent = None if self.silent is None else self.silent[rows]
            named, some = silenced(named, silent), [row[rows] for row in self.rows]
            losses = self.loss_fn(named, *some)
            if rows.start == 0:
                _check_losses(losses, named, some, self.loss_fn, {*map(id, (*leaves, *self.rows))})
            losses = (losses if silent is None else torch.where(silent, 0.0, losses)).double() * self.factor
            if not self.derive:
                return losses, None
            sources = [t for t in (*leaves, *some) if t is not None and t.requires_grad]
            gradients = iter(_gradients(losses.sum(), sources))
        upstream = Statistics(*(None if leaf is None else next(gradients) for leaf in leaves))
        for row, into in zip(some, self.of_rows, strict=True):
            gradient = next(gradients) if row.requires_grad else None
            if into is not None and gradient is not None:
                into[rows] = gradient if silent is None else gradient.masked_fill(like_rows(silent, gradient), 0)
        of_target = None if self.target_weight is None else self.target_weight[rows]
        return losses.detach(), cotangents(found, folded, upstream, self.itemsize, of_target, self.softcap)


def silenced(named: LogitStatistics, silent: Tensor | None) -> LogitStatistics:
    """Return the statistics; those of rows that do not count are what ``LogitStatistics`` says, and constant."""
    if silent is None:
        return named

    def quiet(name: str, field: Tensor | None) -> Tensor | None:
        return None if field is None else torch.where(like_rows(silent, field), UNCOUNTED.get(name, 0), field)

    return LogitStatistics(*map(quiet, named._fields, named))


def like_rows(silent: Tensor, field: Tensor) -> Tensor:
    """Return one flag per row in a shape that broadcasts to a field of rows."""
    return silent.reshape(-1, *[1] * (field.dim() - 1))


def _check_losses(
    losses: Tensor, named: LogitStatistics, rows: list[Tensor], loss_fn: LossFunction, known: set[int]
) -> None:
    """Raise unless there is one loss per row, of its own row, and of no tensor that would get no gradient."""
    n = len(named.logsumexp)
    if not isinstance(losses, Tensor) or losses.shape != (n,) or not losses.is_floating_point():
        what = f"a {losses.dtype} tensor of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else repr(losses)
        raise ValueError(f"loss_fn returned {what} for {n} rows, expected floats of shape ({n},): one loss per row")
    for tensor in _leaves(losses):
        if id(tensor) not in known:
            raise RuntimeError(
                f"loss_fn uses a tensor of shape {tuple(tensor.shape)} that requires a gradient and is no argument, so "
                "that it would get none: pass it as a row tensor, expanded if need be, or use linear_logit_statistics"
            )
    half = n // 2
    if half == 0:
        return
    with torch.no_grad():
        part = LogitStatistics(*(None if field is None else field[:half] for field in named))
        try:
            alone, among = loss_fn(part, *(row[:half] for row in rows)), losses[:half]
            if alone.shape != among.shape:
                raise ValueError(f"it returned {tuple(alone.shape)}")
        except Exception as error:
            why = f"a loss for {half} rows cannot be computed as for {n}: {error}"
            raise ValueError(f"loss_fn uses tensors of all rows? {why}. Pass them as row tensors") from error
        size = torch.where(torch.isfinite(among), among, 0).abs().amax()
        close = (alone - among).abs() <= COUPLED * (among.abs() + size)
        same = close | (alone == among) | (alone.isnan() & among.isnan())

        def coupled(index: tuple[int, ...], alone: float, among: float) -> Exception:
            return ValueError(
                f"loss_fn couples rows: the loss of row {index[0]} is {among:.6g} among {n} rows and {alone:.6g} among "
                f"{half}. Use linear_logit_statistics: its result may be combined freely"
            )

        require(same, coupled, alone, among)


def _gradients(result: Tensor, sources: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradients of a result; None of what it does not depend on."""
    if not result.requires_grad:
        return (None,) * len(sources)
    return torch.autograd.grad(result, sources, allow_unused=True)


def _leaves(result: Tensor) -> list[Tensor]:
    """Return the tensors that a result would hand a gradient to."""
    found, todo, seen = [], [result.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo.extend(following for following, _ in node.next_functions)
    return found
