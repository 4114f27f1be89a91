"""The NumPy front end: softmax and its kin, the losses, and their gradients, as functions of arrays.

The dialect is that of scipy.special and jax.nn: ``axis=-1``, ``keepdims``, ``where``. The law that holds everywhere:
the row's maximum stays apart from the sum, so a loss or a log-probability keeps its digits however near 0 it is, and
whatever constant is added to the logits. Nothing warns, and no argument is written to. NumPy has no autograd, so each
loss has a twin that returns (value, gradient). Siblings: torch/functional.py (PyTorch's dialect), information.py,
sampling.py.

Letters: z logits, y target, p probability, w class weights, u the weight of a class in a row's loss, e label smoothing;
N rows, V classes. docs/mathematics.md derives what is only stated here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from lastlayer import _algebra, _backends, _losses
from lastlayer._arrays import (
    Array,
    Axis,
    axes_of,
    class_axis,
    fill,
    included,
    mask,
    real,
    round_to,
    row_shape,
    statistics_type,
    tile,
)
from lastlayer._validate import element, position

__all__ = [
    "argmax",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_value_and_grad",
    "cross_entropy",
    "cross_entropy_value_and_grad",
    "kl_div",
    "kl_div_value_and_grad",
    "log_sigmoid",
    "log_softmax",
    "logit",
    "logsumexp",
    "nll_loss",
    "nll_loss_value_and_grad",
    "sigmoid",
    "softmax",
]


def softmax(input: ArrayLike, axis: Axis = -1, *, where: ArrayLike | None = None) -> Array:
    """Return the probabilities p_j = exp(z_j) / sum_k exp(z_k).

    Args:
        input: logits, floating point or integers, any shape.
        axis: the axis, or axes, of the classes; None for all.
        where: booleans that broadcast to input; a class left out has probability 0.

    Returns:
        The shape and floating type of input; float64 for integers and lists.

    Raises:
        TypeError: input that is not real numbers (complex, object, strings, booleans); where that is not bool.
        ValueError: an axis that input does not have; where of another shape.

    Note:
        exp(z_j - max) / sum, with the rounding error of z_j - max put back; the row's constant cancels exactly. -inf
        is a mask. A row with NaN, with +inf or with nothing but -inf has no distribution: all of it is NaN.

    Example:
        >>> softmax([1.2, 2.5, 0.9]).round(4)
        array([0.1848, 0.6782, 0.1369])
        >>> softmax([1.2, 2.5, 0.9], where=[True, False, True]).round(4)
        array([0.5744, 0.    , 0.4256])

    Source: J. S. Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.
    """
    return _normalize("softmax", input, axis, where)


def log_softmax(input: ArrayLike, axis: Axis = -1, *, where: ArrayLike | None = None) -> Array:
    """Return log p_j = (z_j - max) - log1p(sum of the other exp(z_k - max)).

    Args:
        input: logits, floating point or integers, any shape.
        axis: the axis, or axes, of the classes; None for all.
        where: booleans that broadcast to input; a class left out has log-probability -inf.

    Returns:
        The shape and floating type of input; float64 for integers and lists.

    Raises:
        TypeError: input that is not real numbers; where that is not bool.
        ValueError: an axis that input does not have; where of another shape.

    Note:
        The largest entry of a confident row keeps its digits: log p of [20, 0] at 0 is -2.06e-9 where x - logsumexp(x)
        gives 0 in float32. -inf is a mask; a row with NaN, with +inf or with nothing but -inf is NaN.

    Example:
        >>> log_softmax([1.2, 0.5, 0.3]).round(4)
        array([-0.6435, -1.3435, -1.5435])
        >>> float(log_softmax(np.float32([20, 0]))[0])
        -2.0611...e-09

    Source: P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions",
    IMA J. Numer. Anal. 41 (2021).
    """
    return _normalize("log_softmax", input, axis, where)


def logsumexp(input: ArrayLike, axis: Axis = -1, *, keepdims: bool = False, where: ArrayLike | None = None) -> Any:
    """Return log sum_j exp(z_j) = max + log1p(sum of the other exp(z_j - max)).

    Args:
        input: logits, floating point or integers, any shape.
        axis: the axis, or axes, to sum over; None for all.
        keepdims: keep them with size 1.
        where: booleans that broadcast to input; what is left out does not count.

    Returns:
        float32 for 16- and 32-bit input, else float64, in the shape of the rows.

    Raises:
        TypeError: input that is not real numbers; where that is not bool.
        ValueError: an axis that input does not have; where of another shape.

    Note:
        The sum of nothing is 0: a row without classes, or with -inf only, gives -inf. +inf gives +inf, NaN gives NaN.
        Weights (``b`` of SciPy) are not supported.

    Example:
        >>> print(logsumexp([1000.0, 1000.0]))
        1000.6931471805599

    Source: P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions",
    IMA J. Numer. Anal. 41 (2021).
    """
    z = mask(real("input", input), where)
    axes = axes_of(axis, z.ndim)
    with np.errstate(all="ignore"):
        value = _algebra.logsumexp(_losses.fold(tile(z, axes)))
    return round_to(value.reshape(row_shape(z.shape, axes, keepdims)), statistics_type(z))


def sigmoid(input: ArrayLike) -> Any:
    """Return 1 / (1 + exp(-x)), the probability whose log-odds are x.

    Args:
        input: logits, floating point or integers, any shape.

    Returns:
        The shape and floating type of input; float64 for integers and lists.

    Raises:
        TypeError: input that is not real numbers.

    Note:
        q = exp(-|x|) / (1 + exp(-|x|)) is the smaller of the two probabilities; the result is q or 1 - q, so that
        both ends are right to the last digit and nothing overflows.

    Example:
        >>> sigmoid([-800.0, 0.0, 800.0])
        array([0. , 0.5, 1. ])

    Source: D. R. Cox, "The regression analysis of binary sequences", J. R. Stat. Soc. B 20 (1958).
    """
    return _elementwise(_losses.sigmoid, input)


def log_sigmoid(input: ArrayLike) -> Any:
    """Return log sigmoid(x) = min(x, 0) - log1p(exp(-|x|)).

    Args:
        input: logits, floating point or integers, any shape.

    Returns:
        The shape and floating type of input; float64 for integers and lists.

    Raises:
        TypeError: input that is not real numbers.

    Note:
        Both terms have one sign: nothing cancels, at either end.

    Example:
        >>> print(log_sigmoid(-800.0), log_sigmoid(40.0))
        -800.0 -4.248354255291...e-18

    Source: M. Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    return _elementwise(lambda x: np.minimum(x, 0.0) - np.log1p(np.exp(-np.abs(x))), input)


def logit(input: ArrayLike) -> Any:
    """Return the log-odds log(p / (1 - p)), the inverse of sigmoid.

    Args:
        input: probabilities, floating point or integers, any shape.

    Returns:
        The shape and floating type of input; float64 for integers and lists. 0 gives -inf, 1 gives +inf, and what
        is no probability gives NaN, as in scipy.special.

    Raises:
        TypeError: input that is not real numbers.

    Note:
        2 atanh(2p - 1) between 1/4 and 3/4, where 2p - 1 is exact; outside log p - log1p(-p), where neither cancels.

    Example:
        >>> print(logit(0.5), logit(1e-300), logit(1 - 2**-53))
        0.0 -690.7755278982... 36.7368005696...

    Source: J. Berkson, "Application of the logistic function to bio-assay", J. Am. Stat. Assoc. 39 (1944).
    """
    return _elementwise(_logit, input)


def argmax(
    input: ArrayLike, axis: SupportsIndex | None = -1, *, keepdims: bool = False, where: ArrayLike | None = None
) -> Any:
    """Return the index of the largest logit, the most probable class.

    Args:
        input: logits, floating point or integers, any shape.
        axis: the axis of the classes; None for the flattened array.
        keepdims: keep it with size 1.
        where: booleans that broadcast to input; a class left out is never chosen, whatever the others are.

    Returns:
        int64, in the shape of the rows. Ties go to the lowest index. NaN counts as the largest, as in NumPy.

    Raises:
        TypeError: input that is not real numbers; where that is not bool.
        ValueError: an axis that input does not have; where of another shape; a row without a class to choose.

    Example:
        >>> print(argmax([1.2, 2.5, 0.9]), argmax([3.0, 3.0]))
        1 0
    """
    z = real("input", input)
    axes = axes_of(None, z.ndim) if axis is None else class_axis(axis, z.ndim)
    rows, shape = tile(z, axes), row_shape(z.shape, axes)
    if rows.shape[1] == 0 and rows.shape[0] > 0:
        raise ValueError(f"input has shape {z.shape}: there is no class to choose along axis {axis}")
    if where is not None:
        keep = tile(included(where, z.shape), axes)
        if not keep.any(-1).all():
            raise ValueError(f"where leaves no class to choose in {_row(position(~keep.any(-1).reshape(shape)))}")
        top = np.max(tile(mask(z, where), axes), -1, keepdims=True)
        rows = keep & ((rows == top) | (rows != rows))
    index = np.argmax(rows, -1) if rows.size else np.zeros(len(rows))
    return round_to(index.reshape(row_shape(z.shape, axes, keepdims)), np.int64)


def nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    axis: SupportsIndex = -1,
    validate: bool = True,
) -> Any:
    """Return the negative log-likelihood of log-probabilities: -w_y log p_y.

    Args:
        input: log-probabilities, with V classes along axis; what ``log_softmax`` returns.
        target: class indices, integers in the shape of input without axis.
        weight: one weight >= 0 per class, (V,).
        ignore_index: rows with this target count for nothing.
        reduction: "mean" (divided by the sum of w_y over the rows that count), "sum" or "none".
        axis: the axis of the classes.
        validate: raise if a gathered value is above 0.

    Returns:
        A float, or for "none" an array in the shape of target: float32 for 16- and 32-bit input, else float64. The
        mean of no rows is NaN, as in torch.

    Raises:
        IndexError: a target outside [0, V) that is not ignore_index.
        ValueError: a gathered value above 0, which is no log-probability (probabilities or logits were passed); shapes
            that do not fit; weights that are negative or not finite; an unknown reduction.
        TypeError: a target that does not hold integers; other arguments that are not real numbers.

    Note:
        Sums are kept in float64. A weight of 0 silences a class, an infinite loss included.

    Example:
        >>> logs = [[-0.5, -1, -2], [-0.1, -2, -0.9], [-1.5, -0.2, -1.3], [-0.3, -0.8, -0.5]]
        >>> print(nll_loss(logs, [0, 2, 1, 0]))
        0.475

    Source: R. A. Fisher, "On the mathematical foundations of theoretical statistics", Phil. Trans. A 222 (1922).
    """
    return _losses.read_nll(input, target, weight, ignore_index, reduction, axis, validate).value()


def nll_loss_value_and_grad(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    axis: SupportsIndex = -1,
    validate: bool = True,
    cotangent: ArrayLike | None = None,
) -> tuple[Any, Array]:
    """Return ``nll_loss`` and its gradient: -w_y c at the target, 0 elsewhere.

    Args:
        input: as in ``nll_loss``, like all that is not listed here.
        target: class indices.
        weight: class weights.
        ignore_index: the target of rows that do not count.
        reduction: "mean", "sum" or "none".
        axis: the axis of the classes.
        validate: raise if a gathered value is above 0.
        cotangent: for "none", the factor c of each row's gradient, in the shape of target; ones by default.

    Returns:
        The value, and the gradient in the shape and floating type of input (float64 for integers).

    Raises:
        IndexError, ValueError, TypeError: as ``nll_loss``; ValueError for a cotangent of another shape.

    Example:
        >>> value, gradient = nll_loss_value_and_grad([[-0.5, -1.0], [-2.0, -0.1]], [0, 1])
        >>> gradient
        array([[-0.5,  0. ],
               [ 0. , -0.5]])
    """
    return _losses.read_nll(input, target, weight, ignore_index, reduction, axis, validate).value_and_grad(cotangent)


def cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    axis: SupportsIndex = -1,
) -> Any:
    """Return the cross-entropy of logits: -log softmax(z)_y.

        indices         (1 - e) w_y (-log p_y) + (e / V) sum_j w_j (-log p_j)
        probabilities   sum_j w_j t_j (-log p_j),  with (1 - e) t_j + e / V in place of t_j

    Args:
        input: logits, with V classes along axis.
        target: class indices (integers, in the shape of input without axis) or class probabilities (floating point, in
            the shape of input). The type decides, never the values.
        weight: one weight >= 0 per class, (V,).
        ignore_index: rows with this target are left out; it has no meaning for probabilities.
        reduction: "mean", "sum" or "none". The mean divides by the sum of w_y over the rows that count; for
            probabilities by the number of rows, so the two forms of a weighted mean differ, as they do in torch.
        label_smoothing: e in [0, 1].
        axis: the axis of the classes.

    Returns:
        A float, or for "none" an array in the shape of the rows: float32 for 16- and 32-bit input, else float64. The
        mean of no rows (an empty batch, all ignored) is NaN, as in torch; ``linear_cross_entropy`` returns 0 there.

    Raises:
        IndexError: a target outside [0, V) that is not ignore_index.
        ValueError: shapes that do not fit; probabilities outside [0, 1]; weights that are negative or not finite;
            label_smoothing outside [0, 1]; an unknown reduction.
        TypeError: a target of floating type and the shape of indices; a boolean target; input that is not real numbers.

    Note:
        loss = (max - z_y) + log1p(rest): never logsumexp - z_y, so float32 keeps the digits of a loss of 1e-21. An
        ignored row acts as a deleted one, NaN in its logits included. A probability or weight of 0 on a logit of -inf
        contributes 0; label smoothing on one is infinite. NaN, +inf, or nothing but -inf in a row that counts: NaN.
        Probabilities are used as given, their sum is not checked.

    Example:
        >>> print(cross_entropy([[1, 2, 0.1], [1.2, 0.5, 0.3], [0.4, 1, 1.5]], [2, 0, 1]).round(4))
        1.3743
        >>> print(cross_entropy([1.0, 2.0, 0.1], [0.0, 1.0, 0.0]).round(4))
        0.417

    Source: C. M. Bishop, Pattern Recognition and Machine Learning (2006), 4.3.4; C. Szegedy et al., "Rethinking the
    Inception architecture", 2016, for label smoothing.
    """
    return _losses.read_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing, axis).value()


def cross_entropy_value_and_grad(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    axis: SupportsIndex = -1,
    cotangent: ArrayLike | None = None,
) -> tuple[Any, Array]:
    """Return ``cross_entropy`` and its gradient with respect to the logits: c (p_j sum_k u_k - u_j).

    Args:
        input: as in ``cross_entropy``, like all that is not listed here.
        target: class indices or class probabilities.
        weight: class weights.
        ignore_index: the target of rows that do not count; their gradient is exactly 0.
        reduction: "mean", "sum" or "none".
        label_smoothing: e in [0, 1].
        axis: the axis of the classes.
        cotangent: for "none", the factor c of each row's gradient, in the shape of the rows; ones by default.

    Returns:
        The value, and the gradient in the shape and floating type of input (float64 for integers).

    Raises:
        IndexError, ValueError, TypeError: as ``cross_entropy``; ValueError for a cotangent of another shape.

    Note:
        At the row's maximum p = 1 - q is not rounded before the target is taken from it, so that the gradient of a
        confident row keeps its digits.

    Example:
        >>> value, gradient = cross_entropy_value_and_grad([[0.2, 0.5, -0.1], [-0.1, 0.1, 0.3]], [1, 2])
        >>> print(value.round(7))
        0.8701458
        >>> gradient.round(4)
        array([[ 0.1618, -0.2816,  0.1198],
               [ 0.1347,  0.1645, -0.2991]])

    Source: C. M. Bishop, Pattern Recognition and Machine Learning (2006), equation 4.109.
    """
    return _losses.read_cross_entropy(
        input, target, weight, ignore_index, reduction, label_smoothing, axis
    ).value_and_grad(cotangent)


def binary_cross_entropy_with_logits(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    pos_weight: ArrayLike | None = None,
    reduction: str = "mean",
) -> Any:
    """Return w [pos_weight y softplus(-x) + (1 - y) softplus(x)], the negative log-likelihood of yes/no answers.

    Args:
        input: logits x of "yes", any shape.
        target: the answers, or their probabilities y in [0, 1], in the shape of input: booleans, integers or floats.
        weight: factors >= 0 that broadcast to input.
        pos_weight: factors >= 0 of the "yes" term, that broadcast to input.
        reduction: "mean" (over all elements), "sum" or "none".

    Returns:
        A float, or for "none" an array in the shape of input: float32 for 16- and 32-bit input, else float64. The mean
        of nothing is NaN.

    Raises:
        ValueError: shapes that do not fit; targets outside [0, 1]; weights that are negative or not finite; an unknown
            reduction.
        TypeError: arguments that are not real numbers.

    Note:
        softplus(x) = max(x, 0) + log1p(exp(-|x|)) on each side, so nothing cancels and nothing is clipped: 120 at x =
        120, y = 0. A term whose factor is 0 is 0, so that x = +inf with y = 1 costs nothing.

    Example:
        >>> print(binary_cross_entropy_with_logits([120.0, -50.0], [0, 0], reduction="none"))
        [1.20000000e+02 1.92874985e-22]

    Source: C. M. Bishop, Pattern Recognition and Machine Learning (2006), equation 4.90.
    """
    return _losses.read_binary(input, target, weight, pos_weight, reduction).value()


def binary_cross_entropy_with_logits_value_and_grad(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    pos_weight: ArrayLike | None = None,
    reduction: str = "mean",
    cotangent: ArrayLike | None = None,
) -> tuple[Any, Array]:
    """Return the loss and its gradient c w [(1 - y) sigmoid(x) - pos_weight y sigmoid(-x)].

    Args:
        input: as in ``binary_cross_entropy_with_logits``, like all that is not listed here.
        target: answers or probabilities in [0, 1].
        weight: factors >= 0.
        pos_weight: factors >= 0 of the "yes" term.
        reduction: "mean", "sum" or "none".
        cotangent: for "none", the factor c of each element's gradient, in the shape of input; ones by default.

    Returns:
        The value, and the gradient in the shape and floating type of input (float64 for integers).

    Raises:
        ValueError, TypeError: as ``binary_cross_entropy_with_logits``; ValueError for a cotangent of another shape.

    Example:
        >>> value, gradient = binary_cross_entropy_with_logits_value_and_grad([0.0, 0.0], [1, 0])
        >>> gradient
        array([-0.25,  0.25])
    """
    return _losses.read_binary(input, target, weight, pos_weight, reduction).value_and_grad(cotangent)


def kl_div(input: ArrayLike, target: ArrayLike, *, reduction: str = "mean", log_target: bool = False) -> Any:
    """Return the terms of the Kullback-Leibler divergence of log-probabilities: t (log t - input).

    Args:
        input: log-probabilities of the model, any shape.
        target: probabilities t in [0, 1], or with log_target their logarithms, in the shape of input.
        reduction: "mean" (over all elements, which is not the divergence), "batchmean" (sum divided by the length of
            the first dimension: the divergence of a batch of rows), "sum" or "none".
        log_target: whether target holds logarithms.

    Returns:
        A float, or for "none" an array in the shape of input: float32 for 16- and 32-bit arguments, else float64. The
        mean of nothing is NaN.

    Raises:
        ValueError: different shapes; target outside [0, 1]; an unknown reduction.
        TypeError: arguments that are not real numbers.

    Note:
        A term with t = 0 is 0, on a log-probability of -inf too. The terms have both signs and cancel where the two
        distributions agree: ``lastlayer.information.kl_divergence`` does not.

    Example:
        >>> print(kl_div(np.log([[0.5, 0.5]]), [[0.25, 0.75]], reduction="batchmean").round(6))
        0.130812

    Source: S. Kullback, R. A. Leibler, "On information and sufficiency", Ann. Math. Stat. 22 (1951).
    """
    return _losses.read_divergence(input, target, reduction, log_target).value()


def kl_div_value_and_grad(
    input: ArrayLike,
    target: ArrayLike,
    *,
    reduction: str = "mean",
    log_target: bool = False,
    cotangent: ArrayLike | None = None,
) -> tuple[Any, Array]:
    """Return ``kl_div`` and its gradient with respect to the log-probabilities: -c t.

    Args:
        input: as in ``kl_div``, like all that is not listed here.
        target: probabilities, or with log_target their logarithms.
        reduction: "mean", "batchmean", "sum" or "none".
        log_target: whether target holds logarithms.
        cotangent: for "none", the factor c of each element's gradient, in the shape of input; ones by default.

    Returns:
        The value, and the gradient in the shape and floating type of input (float64 for integers).

    Raises:
        ValueError, TypeError: as ``kl_div``; ValueError for a cotangent of another shape.

    Example:
        >>> kl_div_value_and_grad(np.log([[0.5, 0.5]]), [[0.25, 0.75]], reduction="sum")[1]
        array([[-0.25, -0.75]])
    """
    return _losses.read_divergence(input, target, reduction, log_target).value_and_grad(cotangent)


def _row(index: tuple[int, ...]) -> str:
    return element("row", index) if index else "the row"


def _normalize(kernel: str, input: ArrayLike, axis: Axis, where: ArrayLike | None) -> Array:
    z = mask(real("input", input), where)
    axes = axes_of(axis, z.ndim)
    out = np.empty_like(z)
    if z.size:
        fill(out, axes, getattr(_backends.choose(z), kernel)(tile(z, axes), out=tile(out, axes)))
    return out


@np.errstate(all="ignore")
def _elementwise(f: Callable[[Array], Array], input: ArrayLike) -> Any:
    x = real("input", input)
    return round_to(f(x.astype(np.float64)), x.dtype)


def _logit(p: Array) -> Array:
    middle = (p >= 0.25) & (p <= 0.75)
    return np.where(middle, 2 * np.arctanh(np.where(middle, 2 * p - 1, 0.0)), np.log(p) - np.log1p(-p))
