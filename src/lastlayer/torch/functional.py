"""torch.nn.functional's softmax family and its losses, with torch's signatures, shapes and dtypes, and all the digits.

Here are the checks, the reductions and what torch promises; the mathematics of rows is in statistics.py. Whatever a
function does not take (integers, complex numbers, no elements at all) it hands to torch, result or error.

How a call is computed is decided in one place, ``statistics.eager``. On plain CPU and CUDA tensors, losses are formed
in float64 from statistics of the rows and rounded once. Under ``torch.compile``, ``torch.func`` transforms,
forward-mode differentiation, tensor subclasses, or where a class weight or a class probability needs a gradient, the
same formulas run as torch operations in float32 (float64 for float64). Where there may be no values, none is looked at:
what ``validate`` guards is then not reported.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as _torch
from torch import Tensor
from torch.nn import _reduction as _former

from lastlayer import _backends, _validate
from lastlayer._algebra import Terms
from lastlayer._validate import ArgumentError, NotLogProbabilityWarning
from lastlayer.torch.later import capturing, far, outside, post, require_classes
from lastlayer.torch.row_softmax import softmax as _softmax
from lastlayer.torch.row_softmax import write_softmax
from lastlayer.torch.statistics import eager, fused, row_logsumexp, row_loss, rows, total_loss, wide

OPTIONAL = ("weight", "pos_weight", "linear_bias", "token_weight")
FLOATS = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))
HALVES = frozenset((torch.float16, torch.bfloat16))


def _takes(input: Tensor) -> bool:
    """Tell whether the computation is ours: floating, dense, and not nested."""
    return input.dtype in FLOATS and input.layout is torch.strided and not input.is_nested


def require_tensors(**arguments: Any) -> None:
    """Raise TypeError for an argument that is no tensor, nor None where that is legal."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor) and not (value is None and name in OPTIONAL):
            raise TypeError(f"{name} must be a Tensor, not {type(value).__name__}")


def require_one_device(input: Tensor, **others: Tensor | None) -> None:
    """Raise RuntimeError for a tensor on another device than input."""
    on_cpu = input.is_cpu
    for name, other in others.items():
        if other is not None and not (on_cpu and other.is_cpu) and other.device != input.device:
            raise RuntimeError(f"{name} is on {other.device}, input on {input.device}: expected one device")


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """Return "none", "mean" or "sum", from torch's present and former arguments, with torch's warnings and errors."""
    if size_average is not None or reduce is not None:
        return _former.legacy_get_string(size_average, reduce)
    if reduction in _validate.REDUCTIONS:
        return reduction
    return _validate.REDUCTIONS[_former.get_enum(reduction)]


def _autocasts(input: Tensor) -> bool:
    """Tell whether torch.autocast is on, under which torch computes losses in float32 and returns them so."""
    return torch.is_autocast_enabled(input.device.type)


def _loss_dtype(dtype: torch.dtype, input: Tensor) -> torch.dtype:
    return torch.float32 if dtype in HALVES and _autocasts(input) else dtype


def _times(factor: Tensor, loss: Tensor) -> Tensor:
    """Return factor * loss, where 0 * inf is 0: what has no weight does not count, however improbable it is."""
    return factor * torch.where((factor == 0) & (loss == math.inf), 0.0, loss)


def _reduce(losses: Tensor, counted: Tensor | None, reduction: str, dtype: torch.dtype) -> Tensor:
    """Reduce, and round once; the mean divides by the sum of ``counted``, or by the number of losses."""
    if reduction == "none":
        return losses.to(dtype)
    total = losses.sum()
    if reduction == "mean":
        total = total / (losses.numel() if counted is None else counted.sum())
    return total.to(dtype)


def _rowwise(input: Tensor, dim: int, dtype: torch.dtype | None, log: bool, out: Tensor | None) -> Tensor:
    if out is not None:
        return _rowwise_into(input, dim, dtype, log, out)
    if dtype is not None:
        input = input.to(dtype)
    elif input.dtype in HALVES and input.device.type != "cpu" and _autocasts(input):
        input = input.float()
    if type(dim) is not int or not _takes(input) or input.numel() == 0 or input.dim() == 0:
        return input.log_softmax(dim) if log else input.softmax(dim)
    return _softmax(input, dim, log=log)


def _rowwise_into(input: Tensor, dim: int, dtype: torch.dtype | None, log: bool, out: Tensor) -> Tensor:
    """Write to memory that is there; where it overlaps the input, or itself, by way of a new tensor."""
    require_tensors(input=input, out=out)
    expected = input.dtype if dtype is None else dtype
    if torch.is_grad_enabled() and (input.requires_grad or out.requires_grad):
        raise RuntimeError("softmax and log_softmax with out= are not differentiable: leave out away, or use no_grad()")
    known = isinstance(dim, int) and input.shape == out.shape and out.dtype == expected == input.dtype
    if not known or not eager(input, out) or not _takes(input) or input.numel() == 0 or input.dim() == 0:
        return (torch.log_softmax if log else torch.softmax)(input, dim, dtype, out=out)
    if not out.is_contiguous() or out.untyped_storage().data_ptr() == input.untyped_storage().data_ptr():
        return out.copy_(_softmax(input, dim, log=log))
    return write_softmax(input, dim, log, out)


def softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return probabilities p_j = exp(z_j) / sum_k exp(z_k) along one dimension.

    Args:
        input: logits of any shape, float16, bfloat16, float32 or float64.
        dim: the dimension of the classes. Leaving it out is deprecated: torch then guesses, and warns.
        dtype: converts the input first.
        out: a tensor to write to, of the result's shape and dtype: no new memory, and no gradient.

    Returns:
        Probabilities of the input's shape and dtype.

    Raises:
        IndexError: dim is not a dimension of input.
        NotImplementedError: integers without dtype, complex numbers.

    Note:
        Computed as exp(z - max) / sum, so that a constant added to a row changes nothing. Rows that hold NaN or +inf,
        or -inf only, are NaN, as in torch.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> F.softmax(torch.tensor([0.0, 0.0, -torch.inf]), dim=0)
        tensor([0.5000, 0.5000, 0.0000])
        >>> p = torch.empty(2)
        >>> F.softmax(torch.tensor([0.0, 0.0]), dim=0, out=p) is p
        True
    """
    require_tensors(input=input)
    if dim is None:
        dim = _torch._get_softmax_dim("softmax", input.dim(), _stacklevel)  # type: ignore[attr-defined]
    return _rowwise(input, dim, dtype, log=False, out=out)


def log_softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return log-probabilities log p_j = (z_j - max) - log1p(rest) along one dimension.

    rest is the sum of exp(z_k - max) over all classes but one that attains the maximum.

    Args:
        input: logits of any shape, float16, bfloat16, float32 or float64.
        dim: the dimension of the classes. Leaving it out is deprecated: torch then guesses, and warns.
        dtype: converts the input first.
        out: a tensor to write to, of the result's shape and dtype: no new memory, and no gradient.

    Returns:
        Log-probabilities of the input's shape and dtype.

    Raises:
        IndexError: dim is not a dimension of input.
        NotImplementedError: integers without dtype, complex numbers.

    Note:
        Differs from torch in keeping its digits where p is close to 1: there torch returns 0, and a gradient of 0. Rows
        that hold NaN or +inf, or -inf only, are NaN, as in torch; a row whose upstream gradient is 0 has the gradient 0
        even then.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> F.log_softmax(torch.tensor([20.0, 0.0]), dim=0)
        tensor([-2.0612e-09, -2.0000e+01])
    """
    require_tensors(input=input)
    if dim is None:
        dim = _torch._get_softmax_dim("log_softmax", input.dim(), _stacklevel)  # type: ignore[attr-defined]
    return _rowwise(input, dim, dtype, log=True, out=out)


def logsumexp(input: Tensor, dim: int | Sequence[int], keepdim: bool = False, *, out: Tensor | None = None) -> Tensor:
    """Return max + log1p(rest), which is log sum_j exp(z_j), over one or several dimensions: ``torch.logsumexp``.

    Args:
        input: logits of any shape; float16, bfloat16, float32 or float64. Integers and complex numbers go to torch.
        dim: the dimension or dimensions to reduce.
        keepdim: keep them, with size 1.
        out: a tensor to write to.

    Returns:
        Logarithms of sums, of the input's dtype, rounded once.

    Raises:
        IndexError: dim is not a dimension of input.
        RuntimeError: a dimension appears twice.

    Note:
        -inf for a row of -inf only, +inf for a row that holds +inf. The gradient of such a row is NaN (torch: 0 at the
        finite elements of a row that holds +inf).

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> F.logsumexp(torch.tensor([[1000.0, 1000.0], [0.0, -20.0]]), dim=1)
        tensor([1.0007e+03, 2.0612e-09])
    """
    require_tensors(input=input)
    simple = input.dim() == 2 and type(dim) is int and dim in (1, -1) and out is None and not keepdim
    if simple and input.is_cpu and _takes(input) and input.numel() > 0 and eager(input):
        plain: Tensor = row_logsumexp(input.resolve_neg()).to(input.dtype)
        return plain
    dims = (dim,) if isinstance(dim, int) else dim
    known = isinstance(dims, tuple | list) and len(dims) > 0 and all(isinstance(d, int) for d in dims)
    if not known or not _takes(input) or input.numel() == 0 or input.dim() == 0:
        return torch.logsumexp(input, dim, keepdim, out=out)  # type: ignore[arg-type]
    n = input.dim()
    for d in dims:
        if not -n <= d < n:
            raise IndexError(f"Dimension out of range (expected to be in range of [{-n}, {n - 1}], but got {d})")
    reduced = [d % n for d in dims]
    if len(set(reduced)) < len(reduced):
        raise RuntimeError(f"dim = {tuple(dims)} names a dimension twice")
    kept = [d for d in range(n) if d not in reduced]
    dtype = input.dtype
    if dtype in HALVES and input.device.type != "cpu" and _autocasts(input):
        dtype = torch.float32
    moved = input.permute(*kept, *reduced).flatten(len(kept))
    result = row_logsumexp(rows(moved, -1))
    result = result.reshape([1 if d in reduced else input.shape[d] for d in range(n) if keepdim or d not in reduced])
    return result.to(dtype) if out is None else torch.add(result, 0, out=out)


def sigmoid(input: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-z)), the probability whose logit is z: torch's own.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> F.sigmoid(torch.tensor([0.0, 2.0]))
        tensor([0.5000, 0.8808])
    """
    return torch.sigmoid(input)


def logsigmoid(input: Tensor) -> Tensor:
    """Return log sigmoid(z) = min(z, 0) - log1p(exp(-|z|)), exact at both ends: torch's own.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> F.logsigmoid(torch.tensor([20.0, -200.0]))
        tensor([-2.0612e-09, -2.0000e+02])
    """
    return _torch.logsigmoid(input)


log_sigmoid = logsigmoid


def logit(input: Tensor, eps: float | None = None) -> Tensor:
    """Return the log-odds log(p / (1 - p)) of probabilities: ``torch.logit``, with digits near 1/2.

    Args:
        input: probabilities of any shape. Integers and booleans become the default float type, as in torch.
        eps: clamps the probabilities to [eps, 1 - eps] first.

    Returns:
        Log-odds of the input's shape and dtype; -inf at 0, inf at 1 and NaN outside [0, 1] unless eps is given.

    Note:
        Between 1/4 and 3/4 this is log1p((2p - 1) / (1 - p)), where torch rounds p / (1 - p) first and loses up to all
        digits of a small result.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> F.logit(torch.tensor([0.5, 0.75, 1.0]))
        tensor([0.0000, 1.0986,    inf])
    """
    require_tensors(input=input)
    eps = None if eps is None else _validate.read_number("eps", eps)
    if not _takes(input) or (eps is not None and not eps < 0.25):
        return torch.logit(input, eps)
    p = wide(input)
    central = (p > 0.25) & (p < 0.75)
    inner = torch.where(central, p, 0.5)
    return torch.where(central, torch.log1p((2 * inner - 1) / (1 - inner)), torch.logit(p, eps)).to(input.dtype)


def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Return the index of a largest element: ``torch.argmax``. Logits and their probabilities have the same one.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> F.argmax(torch.tensor([[0.2, 0.5, -0.1]]), dim=1)
        tensor([1])
    """
    return torch.argmax(input, dim, keepdim)


def _check_class_weight(weight: Tensor | None, classes: int) -> None:
    if weight is not None and tuple(weight.shape) != (classes,):
        raise ArgumentError(f"weight has shape {tuple(weight.shape)}, expected ({classes},): one per class")


def _check_class_indices(input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """Raise torch's kind of exception unless this is (C), (N, C) or (N, C, d_1, ...) with class indices."""
    shape = tuple(target.shape)
    expected = (input.shape[0], *input.shape[2:]) if input.dim() > 1 else ()
    if shape != expected and not (input.dim() == 1 and shape == (1,)):
        why = f"class indices for input {tuple(input.shape)}, whose classes are dimension {min(input.dim() - 1, 1)}"
        raise ArgumentError(f"target has shape {shape}, expected {expected}: {why}")
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(f"target has dtype {target.dtype}, expected torch.int64 (or torch.uint8) class indices")
    classes = input.shape[1] if input.dim() > 1 else input.shape[0]
    _check_class_weight(weight, classes)
    if weight is not None and weight.dtype != input.dtype:
        castable = _autocasts(input) and {weight.dtype, input.dtype} <= {*HALVES, torch.float32}
        if not castable:
            raise RuntimeError(f"weight has dtype {weight.dtype}, expected input's {input.dtype}")
    require_one_device(input, target=target, weight=weight)


def _class_indices(
    target: Tensor, classes: int, ignore_index: int, look: bool, at_once: bool
) -> tuple[Tensor, Tensor | None]:
    """Return int64 targets that are all classes, and which of them stand for an ignored row (None: none does)."""
    index = target.long()
    if look and not far(index) and index.numel() > 0:
        low, high = (int(value) for value in torch.aminmax(index))
        if low >= 0 and high < classes and not low <= ignore_index <= high:
            return index, None
    ignored = index == ignore_index
    if look:
        require_classes(index, ignored, classes, at_once=at_once)
    outside = ignored | (index < 0) | (index >= classes) if far(index) else ignored
    return index.masked_fill(outside, 0), ignored


def _weighted(
    losses: Tensor, index: Tensor, ignored: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the losses times their targets' weights, 0 in ignored rows, and what the mean divides by the sum of."""
    counted = None if ignored is None else ~ignored
    if weight is not None:
        counted = weight.to(losses.dtype)[index]
        counted = counted if ignored is None else counted.masked_fill(ignored, 0)
        losses = _times(counted, losses)
    return losses if ignored is None else torch.where(ignored, 0.0, losses), counted


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    validate: bool | None = None,
) -> Tensor:
    """Return the negative log-likelihood -w_y log p_y of targets y, given **log-probabilities**.

    Args:
        input: log-probabilities (C), (N, C) or (N, C, d_1, ...); float16, bfloat16, float32 or float64.
        target: class indices (), (N) or (N, d_1, ...); int64 or uint8.
        weight: class weights w (C), of the input's dtype.
        size_average: deprecated.
        ignore_index: a target whose row counts as absent.
        reduce: deprecated.
        reduction: ``"none"``, ``"mean"`` (the sum divided by the sum of the targets' weights) or ``"sum"``.
        validate: look at the values: targets must be classes, and a value above 0 is reported. None looks at once on
            a CPU; on a GPU it does not wait: a target that is no class has a loss of NaN, and a later call, or
            ``check_errors``, raises. True waits. While a CUDA graph is captured nothing is looked at.

    Returns:
        The loss in the input's dtype (float32 under autocast for 16-bit input): a scalar, or the target's shape.

    Raises:
        IndexError: a target is neither a class nor ignored; the message names it.
        RuntimeError: shapes, dtypes or devices do not fit.
        ValueError: reduction is unknown, or the target's shape does not fit.

    Warns:
        NotLogProbabilityWarning: a value above 0 was gathered, so probabilities or raw logits were passed.

    Note:
        The result is summed in float64 and rounded once, so that a float16 mean over many tokens is finite. Where every
        row is ignored the mean is 0/0: NaN, as in torch, with a gradient of 0. Differs from torch: a class of weight 0
        contributes 0 even where its log-probability is -inf, and ``weight`` is differentiable.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> logits = torch.tensor([[1.0, 2.0, 0.1], [1.2, 0.5, 0.3], [0.4, 1.0, 1.5]])
        >>> F.nll_loss(F.log_softmax(logits, dim=1), torch.tensor([2, 0, 1]))
        tensor(1.3743)
    """
    reduction = _reduction(size_average, reduce, reduction)
    require_tensors(input=input, target=target, weight=weight)
    ignore_index = _validate.read_integer("ignore_index", ignore_index)
    if input.dim() == 0 or not _takes(input):
        return _torch.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)
    _check_class_indices(input, target, weight)
    if input.numel() == 0:
        return _torch.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)
    concrete = eager(input, target, weight)
    look = validate is not False and concrete and not capturing(input)
    axis = min(input.dim() - 1, 1)
    target = target if input.dim() > 1 else target.reshape(())
    index, ignored = _class_indices(target, input.shape[axis], ignore_index, look, at_once=validate is True)
    logp = input.gather(axis, index.unsqueeze(axis)).squeeze(axis)
    logp = logp.double() if concrete else wide(logp)
    if far(target) and concrete:  # read as class 0 above: an index outside would end the device's context
        logp = torch.where((target < 0) | (target >= input.shape[axis]), math.nan, logp)
    if ignored is not None:
        logp = torch.where(ignored, 0.0, logp)
    if look and (validate or not far(input)):
        message = _validate.not_log_probability(logp.detach())
        if message is not None:
            warnings.warn(message, NotLogProbabilityWarning, stacklevel=2)
    losses, counted = _weighted(-logp, index, ignored, weight)
    return _reduce(losses, counted, reduction, _loss_dtype(input.dtype, input))


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    validate: bool | None = None,
) -> Tensor:
    """Return the cross-entropy between targets and the distributions of **logits**.

    With log p = log_softmax(z), class weights w and label smoothing e, the loss of a row is::

        class index y            -(1 - e) w_y log p_y - (e / C) sum_j w_j log p_j
        class probabilities t    -sum_j ((1 - e) t_j + e / C) w_j log p_j

    Args:
        input: logits (C), (N, C) or (N, C, d_1, ...); float16, bfloat16, float32 or float64.
        target: class indices (), (N) or (N, d_1, ...), int64 or uint8; or class probabilities of the input's shape,
            whose values are not checked, as in torch.
        weight: class weights w (C), of the input's dtype.
        size_average: deprecated.
        ignore_index: a target whose row counts as absent; for class indices only.
        reduce: deprecated.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``: the sum divided by the sum of the targets' weights w_y for class
            indices, by the number of rows for class probabilities.
        label_smoothing: e, in [0, 1].
        validate: look at the values: targets must be classes. None looks at once on a CPU; on a GPU it does not wait:
            a target that is no class makes the loss NaN, and a later call, or ``check_errors``, raises. True waits.
            While a CUDA graph is captured nothing is looked at.

    Returns:
        The loss, a scalar, or the target's shape without classes; of the input's dtype (with class probabilities, that
        of the promoted arguments; float32 for 16-bit types under autocast).

    Raises:
        IndexError: a target is neither a class nor ignored; the message names it.
        RuntimeError: shapes, dtypes or devices do not fit; label_smoothing is outside [0, 1] (a ValueError too).
        ValueError: reduction is unknown, or the target's shape does not fit.

    Note:
        Statistics are float64 and rounded once: the loss of a row never rounds to 0 while its logits are finite, a
        16-bit mean does not overflow, and a constant added to a row changes nothing. Where every row is ignored the
        mean is 0/0: NaN, as in torch, with a gradient of 0. A row with +inf, NaN or -inf only is NaN; label smoothing
        with a logit of -inf is inf. Where the input requires a gradient, the mean and the sum form it in the same visit
        of the rows, and hand it out at the first backward: evaluate under ``torch.no_grad()``. Differs from torch:

        - an ignored row is as good as deleted, even where its logits are NaN: its gradient is 0;
        - a class probability of 0, or a class of weight 0, contributes 0 even where the logit is -inf (torch: NaN);
        - label_smoothing below 0 or NaN raises;
        - ``weight`` is differentiable with class indices too.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> logits = torch.tensor([[0.2, 0.5, -0.1], [-0.1, 0.1, 0.3]], requires_grad=True)
        >>> loss = F.cross_entropy(logits, torch.tensor([1, 2]))
        >>> loss.backward()
        >>> round(loss.item(), 7), logits.grad
        (0.8701458, tensor([[ 0.1618, -0.2816,  0.1198],
                [ 0.1347,  0.1645, -0.2991]]))
        >>> F.cross_entropy(torch.tensor([48.0, 0.0]), torch.tensor(0))
        tensor(1.4252e-21)
    """
    if (
        weight is None
        and size_average is None
        and reduce is None
        and label_smoothing == 0
        and type(ignore_index) is int
    ):
        plain = _plain_class_indices(input, target, ignore_index, reduction)
        if plain is not None:
            return plain
    reduction = _reduction(size_average, reduce, reduction)
    require_tensors(input=input, target=target, weight=weight)
    ignore_index = _validate.read_integer("ignore_index", ignore_index)
    _validate.check_label_smoothing(label_smoothing)
    label_smoothing = float(label_smoothing)
    if input.dim() == 0 or not _takes(input):
        return _torch.cross_entropy(input, target, weight, None, ignore_index, None, reduction, label_smoothing)
    soft = target.shape == input.shape
    if soft:
        _check_class_probabilities(input, target, weight, ignore_index)
    else:
        _check_class_indices(input, target, weight)
    if input.numel() == 0:
        return _torch.cross_entropy(input, target, weight, None, ignore_index, None, reduction, label_smoothing)
    if soft:
        return _probability_targets(input, target, weight, reduction, label_smoothing)
    return _index_targets(input, target, weight, ignore_index, reduction, label_smoothing, validate)


def _plain_class_indices(input: Tensor, target: Tensor, ignored: int, reduction: str) -> Tensor | None:
    """Return the mean or sum of the commonest case, with no more questions than it needs; None: ask all of them."""
    if type(target) is not Tensor or target.dtype is not torch.int64 or not target.is_cpu or reduction == "none":
        return None
    if not isinstance(input, Tensor) or not eager(input) or input.dtype not in FLOATS:
        return None
    if input.dim() != 2 or input.is_neg():
        return None
    n, backend = input.shape[0], _backends.choose(input)
    if target.shape != (n,) or not target.is_contiguous() or backend is not _backends.cpu or input.numel() == 0:
        return None
    bad, skipped = backend.check_targets(target, input.shape[1], ignored)
    if bad >= 0 or skipped == n or reduction not in ("mean", "sum"):
        return None
    terms = Terms(1 / (n - skipped) if reduction == "mean" else 1.0, None, None)
    dtype = _loss_dtype(input.dtype, input)
    if torch.is_grad_enabled() and input.requires_grad:
        return row_loss(input, target, None, terms, ignored=ignored, total=True, dtype=dtype, use_kernels=True)
    return total_loss(input, target, None, terms, ignored, dtype)


def _check_class_probabilities(input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> None:
    if not target.is_floating_point():
        why = "a target of the input's shape holds class probabilities"
        raise RuntimeError(f"target has dtype {target.dtype}, expected a floating type: {why}")
    if ignore_index >= 0:
        raise ArgumentError(f"ignore_index = {ignore_index} cannot be combined with class probabilities")
    _check_class_weight(weight, input.shape[min(input.dim() - 1, 1)])
    require_one_device(input, target=target, weight=weight)


def _index_targets(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignored: int,
    reduction: str,
    smoothing: float,
    validate: bool | None,
) -> Tensor:
    use_kernels = fused(input, target, weight)
    z, index = rows(input, min(input.dim() - 1, 1)), target.long().reshape(-1).contiguous()
    classes = z.shape[1]
    skipped = _count_ignored(z, index, target, ignored, validate, use_kernels)
    nll: Any = 1.0 - smoothing
    counted: Any = None if skipped is None else index.shape[0] - skipped
    if weight is not None:
        skip = index == ignored
        share = (weight.double() if use_kernels else wide(weight))[index.masked_fill(skip, 0)].masked_fill(skip, 0)
        nll, counted = nll * share, share.sum()
    elif skipped is None:
        counted = (index != ignored).sum()
    u = None
    if smoothing > 0:
        u = z.new_ones(classes) if weight is None else weight
    terms = Terms(nll, smoothing / classes if smoothing > 0 else None, None)
    shape = target.shape if input.dim() > 1 else ()
    dtype = _loss_dtype(input.dtype, input)
    return _reduced_rows(z, index, u, terms, ignored, reduction, counted, shape, dtype, use_kernels)


def _count_ignored(
    z: Tensor, index: Tensor, target: Tensor, ignored: int, validate: bool | None, use_kernels: bool
) -> int | Tensor | None:
    """Return how many rows are ignored, None where nobody may look; raise for a target that is no class."""
    if not use_kernels and not eager(z, target):
        return None
    bad: int | Tensor
    skipped: int | Tensor
    bad, skipped = _backends.choose(z).check_targets(index, z.shape[1], ignored)
    if validate is False or capturing(z):
        return skipped
    if isinstance(bad, Tensor):
        describe = outside("target", z.shape[1])
        post(bad, target.shape, describe, index.take(bad.clamp(min=0)), at_once=validate is True)
    elif bad >= 0:
        labels = index.reshape(target.shape)
        require_classes(labels, labels == ignored, z.shape[1])
    return skipped


def _reduced_rows(
    z: Tensor,
    target: Tensor | None,
    u: Tensor | None,
    terms: Terms,
    ignored: int,
    reduction: str,
    counted: int | float | Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    use_kernels: bool,
) -> Tensor:
    """Return the losses of the rows, reduced; the mean divides by ``counted``, where it can before the gradient."""

    def losses(terms: Terms, dtype: torch.dtype) -> Tensor:
        total = reduction != "none"
        return row_loss(z, target, u, terms, ignored=ignored, total=total, dtype=dtype, use_kernels=use_kernels)

    if reduction == "none":
        return losses(terms, dtype).reshape(shape)
    if reduction == "sum":
        return losses(terms, dtype)
    if not use_kernels:
        return (losses(terms, wide(z).dtype) / counted).to(dtype)
    share, nothing = _share(counted, z)
    mean: Tensor = losses(Terms(*(None if factor is None else share * factor for factor in terms)), dtype) + nothing
    return mean


def _share(counted: int | float | Tensor, z: Tensor) -> tuple[Any, Any]:
    """Return 1 / counted and 0, or 0 and NaN where nothing counts; not waiting for a count on a GPU."""
    if isinstance(counted, Tensor) and far(z):
        none = counted == 0
        return torch.where(none, 0.0, 1 / counted.double()), torch.where(none, math.nan, 0.0)
    counted = float(counted)
    return (1 / counted, 0.0) if counted else (0.0, math.nan)


def _probability_targets(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float
) -> Tensor:
    axis = min(input.dim() - 1, 1)
    z, u = rows(input, axis), rows(wide(target), axis)
    if smoothing > 0:
        u = u * (1 - smoothing) + smoothing / z.shape[1]
    dtype = torch.promote_types(input.dtype, target.dtype)
    if weight is not None:
        u = u * weight
        dtype = torch.promote_types(dtype, weight.dtype)
    shape = (input.shape[0], *input.shape[2:]) if input.dim() > 1 else ()
    dtype, use_kernels = _loss_dtype(dtype, input), fused(input, target, weight)
    return _reduced_rows(
        z, None, u, Terms(None, 1.0, None), -1, reduction, float(z.shape[0]), shape, dtype, use_kernels
    )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return the binary cross-entropy w (c t softplus(-z) + (1 - t) softplus(z)) of logits z and targets t.

    Args:
        input: logits z of any shape; float16, bfloat16, float32 or float64.
        target: probabilities t of the input's shape; their values are not checked, as in torch.
        weight: w, broadcast to the input's shape.
        size_average: deprecated.
        reduce: deprecated.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        pos_weight: c, the weight of positive targets, broadcast to the input's shape.

    Returns:
        The loss in the target's dtype, as torch has it (float32 for 16-bit types under autocast): a scalar, or the
        input's shape.

    Raises:
        ValueError: target and input differ in shape; reduction is unknown.
        RuntimeError: weight or pos_weight cannot be broadcast; dtypes or devices do not fit.

    Note:
        Both terms are at least 0, so nothing cancels; torch forms (1 - t) z + softplus(-z), 0 for z = -20 and t = 0.
        Differs from torch: a logit of +inf with target 1, or -inf with target 0, contributes 0 (torch: NaN). 16-bit
        losses are computed in float32 and rounded once.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> F.binary_cross_entropy_with_logits(torch.tensor([-20.0, 2.0]), torch.tensor([0.0, 1.0]), reduction="none")
        tensor([2.0612e-09, 1.2693e-01])
    """
    reduction = _reduction(size_average, reduce, reduction)
    require_tensors(input=input, target=target, weight=weight, pos_weight=pos_weight)
    if target.shape != input.shape:
        raise ValueError(f"target has shape {tuple(target.shape)}, expected that of input, {tuple(input.shape)}")
    require_one_device(input, target=target)
    if any(t is not None and not _takes(t) for t in (input, target, weight, pos_weight)):
        return _torch.binary_cross_entropy_with_logits(
            input, target, weight, reduction=reduction, pos_weight=pos_weight
        )
    _check_factors(input, weight=weight, pos_weight=pos_weight)
    z, t = wide(input), wide(target)
    positive = t if pos_weight is None else wide(pos_weight) * t
    losses = _times(positive, -_torch.logsigmoid(z)) + _times(1 - t, -_torch.logsigmoid(-z))
    losses = losses if weight is None else _times(wide(weight), losses)
    return _reduce(losses, None, reduction, _loss_dtype(target.dtype, input))


def _check_factors(input: Tensor, **factors: Tensor | None) -> None:
    """Raise unless each factor broadcasts to the input's shape and is on its device; one number may be on a CPU."""
    for name, factor in factors.items():
        if factor is None:
            continue
        if factor.dim() > 0 or factor.device.type != "cpu":
            require_one_device(input, **{name: factor})
        pairs = zip(reversed(factor.shape), reversed(input.shape), strict=False)
        if factor.dim() > input.dim() or any(n not in (1, expected) for n, expected in pairs):
            shapes = f"{tuple(factor.shape)}, which does not broadcast to input's {tuple(input.shape)}"
            raise ArgumentError(f"{name} has shape {shapes}")


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """Return the Kullback-Leibler divergence t (log t - input), element by element.

    Args:
        input: **log-probabilities** of any shape; float16, bfloat16, float32 or float64.
        target: probabilities t, or log-probabilities with ``log_target``; input and target broadcast. Values are not
            checked, as in torch.
        size_average: deprecated.
        reduce: deprecated.
        reduction: ``"none"``, ``"sum"``, ``"batchmean"`` (the sum divided by the size of dimension 0) or ``"mean"``
            (over all elements: not the divergence of anything, and torch warns).
        log_target: whether target holds logarithms.

    Returns:
        The divergence in the promoted dtype (float32 for 16-bit types under autocast): a scalar, or the broadcast
        shape.

    Raises:
        ValueError: reduction is unknown.
        RuntimeError: the shapes cannot be broadcast; integers or complex numbers; devices differ.

    Note:
        Differs from torch: a class of target probability 0 contributes 0, also where input is -inf or log t is -inf
        (torch: NaN). 16-bit divergences are computed in float32 and rounded once.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> logp = torch.tensor([[0.5, 0.5, 0.0]]).log()
        >>> F.kl_div(logp, torch.tensor([[0.9, 0.1, 0.0]]), reduction="batchmean")
        tensor(0.3681)
    """
    legacy = size_average is not None or reduce is not None
    if not legacy and reduction == "mean":
        warnings.warn(
            "reduction: 'mean' divides the total loss by both the batch size and the support size. 'batchmean' divides "
            "only by the batch size, and aligns with the KL div math definition.",
            stacklevel=2,
        )
    how = _reduction(size_average, reduce, "sum" if reduction == "batchmean" and not legacy else reduction)
    require_tensors(input=input, target=target)
    require_one_device(input, target=target)
    if not _takes(input) or not _takes(target):
        return torch.kl_div(input, target, _validate.REDUCTIONS.index(how), log_target=log_target)
    logp, t = wide(input), wide(target)
    if log_target:
        absent = t == -math.inf
        logt = torch.where(absent, 0.0, t)
        losses = torch.where(absent, 0.0, logt.exp() * (logt - torch.where(absent, 0.0, logp)))
    else:
        losses = torch.xlogy(t, t) + _times(t, -logp)
    dtype = _loss_dtype(torch.promote_types(input.dtype, target.dtype), input)
    total = _reduce(losses, None, how, losses.dtype)
    return (total / input.shape[0] if reduction == "batchmean" and input.dim() > 0 else total).to(dtype)
