"""logit_statistics for torch: what losses are functions of, from logits, every field differentiable.

The mathematics is in lastlayer._algebra and lastlayer._statistics, the autograd node in statistics.py;
linear_statistics.py is the same from hidden states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lastlayer import _algebra, _statistics, _validate
from lastlayer._algebra import UNCOUNTED, LogitStatistics
from lastlayer.torch.functional import require_one_device, require_tensors
from lastlayer.torch.later import far, require, require_classes
from lastlayer.torch.statistics import eager, row_statistics


def logit_statistics(
    input: Tensor,
    target: Tensor | None = None,
    *,
    entropy: bool = False,
    rank: bool = False,
    argmax: bool = False,
    class_weights: Tensor | None = None,
    ignore_index: int = -100,
) -> LogitStatistics:
    r"""Return the statistics of rows of logits z that losses are functions of, with p = softmax(z), in nats.

    ::

        logsumexp = log sum_j exp(z_j)     logprob = z_y - logsumexp         entropy = -sum_j p_j log p_j
        mean_logit = sum_j u_j z_j         mean_logprob = sum_j u_j log p_j  remainder = log(1 - p_y)
        max = max_j z_j

    Args:
        input: logits (..., V), the classes last; float16, bfloat16, float32 or float64.
        target: class indices (...), or K distinct ones per row (..., K); int64 or uint8.
        entropy: whether to compute it.
        rank: whether to compute the target's: 1 + the number of classes with a larger logit.
        argmax: whether to compute the first class with the largest logit.
        class_weights: w (V), >= 0; u = w / sum(w). Without it u = 1 / V.
        ignore_index: a target whose row counts as absent (with K targets: all of them): its statistics and gradients
            are 0, its rank is 0, its argmax -1.

    Returns:
        ``LogitStatistics``: float32, or float64 for float64 input; each (...), ``logprob`` and ``rank`` (..., K) for K
        targets. ``None`` for what was not asked for. All but ``rank`` and ``argmax`` are differentiable, twice.

    Raises:
        IndexError: a target is neither a class nor ignored; the message names it.
        RuntimeError: dtypes or devices do not fit.
        TypeError: an argument is no tensor.
        ValueError: shapes do not fit; class weights are negative; a row names a class twice.

    Note:
        One read of the logits. Classes with the logit -inf are legal. A row that holds NaN or +inf, or -inf only, has
        no distribution: NaN, but for ``max`` and ``logsumexp``; the argmax of a row that holds NaN is -1. The gradient
        of ``max`` goes to the first class that attains it. ``remainder`` is -inf below -745, and its gradient fades
        to 0 below -80 (float64: -700). Under ``torch.compile`` and ``torch.func`` values are not checked.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> z = torch.tensor([[0.0, 0.0, -torch.inf], [20.0, 0.0, 0.0]])
        >>> s = F.logit_statistics(z, torch.tensor([0, 0]), entropy=True, rank=True)
        >>> s.logprob, s.entropy
        (tensor([-6.9315e-01, -4.1223e-09]), tensor([6.9315e-01, 8.6568e-08]))
        >>> s.rank
        tensor([1, 1])
    """
    require_tensors(input=input, target=input if target is None else target)
    check_logits(input)
    classes, leading = input.shape[-1], input.shape[:-1]
    check_class_weights(class_weights, classes)
    require_one_device(input, target=target, class_weights=class_weights)
    z, dtype = input.reshape(-1, classes), torch.float64 if input.dtype == torch.float64 else torch.float32
    index, ignored = check_targets(target, leading, classes, ignore_index)
    if ignored is not None and not eager(z):
        # Differentiating through NaN gives NaN even times 0; the kernels instead leave rows out that do not count.
        z = torch.where(ignored[:, None], 0.0, z)
    u = torch.ones(classes, dtype=dtype, device=z.device) if class_weights is None else class_weights.to(dtype)
    mass = u.double().sum()
    found = _algebra.logit_statistics(row_statistics(z, index, u, entropy=entropy), mass, lambda field: field.to(dtype))
    with torch.no_grad():
        if rank and index is not None:
            found = found._replace(rank=_statistics.rank(z, _statistics.pick(z, index)) + 1)
        if argmax:
            found = found._replace(argmax=torch.where(found.logsumexp.isnan(), -1, z.argmax(-1)))
    return shaped(found, ignored, leading)


def shaped(found: LogitStatistics, ignored: Tensor | None, leading: torch.Size) -> LogitStatistics:
    """Return the statistics of (N,) rows in their own shape, with those of ignored rows silenced."""

    def shape(name: str, field: Tensor | None) -> Tensor | None:
        if field is None:
            return None
        if ignored is not None:
            silent = ignored if field.dim() == 1 else ignored[:, None]
            field = torch.where(silent, UNCOUNTED.get(name, 0), field)
        return field.reshape((*leading, *field.shape[1:]))

    return LogitStatistics(*map(shape, found._fields, found))


def check_logits(input: Tensor, alone: bool = True) -> None:
    """Raise unless this is a floating tensor with classes; a shard may have none."""
    if not input.is_floating_point():
        raise RuntimeError(f"input has dtype {input.dtype}, expected a floating type")
    if input.dim() < 1 or (input.shape[-1] == 0 and alone):
        raise ValueError(f"input has shape {tuple(input.shape)}, expected (..., V) with at least one class")


def check_class_weights(weights: Tensor | None, classes: int, alone: bool = True) -> None:
    """Raise unless these are V finite factors >= 0 that do not sum to 0; a shard's may."""
    if weights is None:
        return
    require_tensors(class_weights=weights)
    _validate.check_shape("class_weights", weights, (classes,), ": one per class")
    if not weights.is_floating_point():
        raise RuntimeError(f"class_weights has dtype {weights.dtype}, expected a floating type")
    if not eager(weights):
        return
    require(torch.isfinite(weights) & (weights >= 0), _bad_weight, weights)
    if alone:
        require((weights > 0).any(), lambda _: ValueError("class_weights are all 0: at least one must be above"))


def _bad_weight(index: tuple[int, ...], value: float) -> Exception:
    return ValueError(f"{_validate.element('class_weights', index)} = {value} must be a finite number >= 0")


def check_targets(
    target: Tensor | None, leading: torch.Size, classes: int, ignore_index: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return targets (N,) or (N, K) that are all classes, and which rows are ignored (None: none is).

    On a GPU a target that is no class is read as class 0 until somebody hears of it.
    """
    if target is None:
        return None, None
    ignore_index = _validate.read_integer("ignore_index", ignore_index)
    shape, many = tuple(target.shape), target.dim() == len(leading) + 1
    if shape[: len(leading)] != tuple(leading) or len(shape) > len(leading) + 1 or (many and shape[-1] == 0):
        expected = f"{tuple(leading)}, or {(*leading, 'K')} with K > 0 targets per row"
        raise ValueError(f"target has shape {shape}, expected {expected}")
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(f"target has dtype {target.dtype}, expected class indices: int64 or uint8")
    target = target.long()  # a comparison in uint8 would wrap -100 round to 156
    ignored = target == ignore_index
    rows = ignored.all(-1, keepdim=True) if many else ignored
    absent = rows
    if torch.compiler.is_compiling():
        target = require_classes(target, rows.expand_as(target), classes)
    elif eager(target):
        if many:
            require(~(ignored & ~rows), _partly_ignored, target)
        require_classes(target, rows, classes)
        if many:
            check_distinct(target, rows[..., 0])
        if far(target):
            absent = rows | (target < 0) | (target >= classes)
        elif not bool(rows.any()):
            return _flat(target, leading), None
    return _flat(target.masked_fill(absent, 0), leading), rows.reshape(-1)


def _partly_ignored(index: tuple[int, ...], value: int) -> Exception:
    at = f"{_validate.element('target', index)} = {int(value)}"
    return IndexError(f"{at} is ignore_index beside classes: ignore all K targets, or none")


def _flat(target: Tensor, leading: torch.Size) -> Tensor:
    return target.reshape((leading.numel(), *target.shape[len(leading) :]))


def check_distinct(target: Tensor, ignored: Tensor) -> None:
    """Raise ValueError for the first row that names a class twice."""
    ordered = target.sort(-1).values
    twice = (ordered[..., 1:] == ordered[..., :-1]) & ~ignored[..., None]
    require(~twice, _named_twice, ordered[..., 1:])


def _named_twice(index: tuple[int, ...], value: int) -> Exception:
    row = _validate.element("target", index[:-1])
    return ValueError(f"{row} names class {int(value)} twice: K targets must be distinct")
