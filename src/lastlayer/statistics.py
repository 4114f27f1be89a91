"""What losses are functions of, for NumPy: the statistics of rows of logits, and the gradient of any loss of them.

NumPy has no autograd, so the chain rule is in three steps: ``logit_statistics`` gives the statistics, the caller's loss
its derivatives by them (the cotangents), and ``logit_statistics_vjp``, the vector-Jacobian product, takes these to the
logits. The mathematics is in _algebra.py and _statistics.py; linear_statistics.py is the same from hidden states, and
torch/logits.py the twin, with autograd.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lastlayer import _algebra, _backends, _statistics
from lastlayer._algebra import UNCOUNTED, LogitStatistics, Statistics
from lastlayer._arrays import Array, class_axis, fill, real, round_to, row_shape, statistics_type, tile, unmasked
from lastlayer._losses import read_factors
from lastlayer._validate import check_shape, check_target, element, position, read_integer

__all__ = ["LogitStatistics", "logit_statistics", "logit_statistics_vjp"]


def logit_statistics(
    input: ArrayLike,
    target: ArrayLike | None = None,
    *,
    axis: SupportsIndex = -1,
    entropy: bool = False,
    rank: bool = False,
    argmax: bool = False,
    class_weights: ArrayLike | None = None,
    ignore_index: int = -100,
) -> LogitStatistics:
    """Return the statistics of rows of logits z that losses are functions of, with p = softmax(z), in nats.

    ::

        logsumexp = log sum_j exp(z_j)     logprob = z_y - logsumexp         entropy = -sum_j p_j log p_j
        mean_logit = sum_j u_j z_j         mean_logprob = sum_j u_j log p_j  remainder = log(1 - p_y)
        max = max_j z_j

    Args:
        input: logits, floating point or integers, with V classes along axis.
        target: class indices, integers in the shape of the rows (that of input without axis); or K distinct ones per
            row in one dimension more, which is the last wherever axis is: (..., K).
        axis: the axis of the classes.
        entropy: whether to compute it.
        rank: whether to compute the target's: 1 + the number of classes with a larger logit.
        argmax: whether to compute the first class with the largest logit.
        class_weights: w (V), >= 0; u = w / sum(w). Without it u = 1 / V.
        ignore_index: a target whose row counts as absent (with K targets: all of them): its statistics are 0, its rank
            is 0, its argmax -1.

    Returns:
        ``LogitStatistics``: float32 for 16- and 32-bit input, else float64, each in the shape of the rows; ``logprob``
        and ``rank`` are (..., K) for K targets. ``None`` for what was not asked for, or needs a target.

    Raises:
        IndexError: a target is neither a class nor ignored; the message names it.
        TypeError: input that is not real numbers; a target that does not hold integers.
        ValueError: shapes do not fit; no class at all; class weights are negative, not finite or all 0; a row names a
            class twice.

    Note:
        One read of the logits, and one more for the rank. Classes with the logit -inf are legal. A row that holds NaN
        or +inf, or -inf only, has no distribution: NaN, but for ``max`` and ``logsumexp``. Class weights matter up to
        a common factor.

    Example:
        >>> s = logit_statistics([[0.0, 0.0, -np.inf], [20.0, 0.0, 0.0]], [0, 0], entropy=True, rank=True)
        >>> s.logprob, s.entropy
        (array([-6.93147181e-01, -4.12230724e-09]), array([6.93147181e-01, 8.65684518e-08]))
        >>> s.rank
        array([1, 1])

    Source: C. M. Bishop, Pattern Recognition and Machine Learning (2006), 4.3.4, for the statistics of a softmax.
    """
    given = _read(input, target, axis, class_weights, ignore_index)
    z, index, kept, dtype = given.z, given.target, given.kept, statistics_type(given.input)

    def pick(field: Array) -> Array:
        return field if kept is None else field[kept]

    with np.errstate(all="ignore"):
        found, folded = _statistics.of_logits(z, index, given.weights, entropy)
        named = _algebra.logit_statistics(found, folded.state.mass, lambda field: round_to(pick(field), dtype))
        if rank and index is not None:
            named = named._replace(rank=pick(_statistics.rank(z, _statistics.pick(z, index)) + 1))
        if argmax:
            named = named._replace(argmax=pick(np.where(np.isnan(found.logsumexp), -1, np.argmax(z, -1))))
    return spread(named, given.rows, kept)


def logit_statistics_vjp(
    input: ArrayLike,
    cotangents: LogitStatistics,
    target: ArrayLike | None = None,
    *,
    axis: SupportsIndex = -1,
    class_weights: ArrayLike | None = None,
    ignore_index: int = -100,
) -> Array:
    """Return the gradient by the logits of a loss that is a function of their statistics.

    With cotangents g, the loss's derivatives by the statistics of a row, p = softmax(z) and targets k::

        dz_j = p_j (alpha + beta log p_j) + sum_k g_logprob_k [j = k] + (g_mean_logit + g_mean_logprob) u_j + ...
        alpha = g_logsumexp - sum_k g_logprob_k - g_entropy entropy - g_mean_logprob        beta = -g_entropy

    and with more terms for ``max`` (at the first class that attains it) and for ``remainder``.

    Args:
        input: logits, as in ``logit_statistics``, like all that is not listed here.
        cotangents: ``LogitStatistics`` whose fields are None (no derivative: 0) or real numbers in the shape of the
            statistic. ``rank`` and ``argmax`` must be None.
        target: class indices, needed for ``logprob`` and ``remainder``.
        axis: the axis of the classes.
        class_weights: w (V), for ``mean_logit`` and ``mean_logprob``.
        ignore_index: the target of rows that do not count; their gradient is 0, whatever their cotangents.

    Returns:
        The gradient in the shape and floating type of input (float64 for integers).

    Raises:
        IndexError, TypeError, ValueError: as ``logit_statistics``; TypeError for cotangents that are no
            ``LogitStatistics``; ValueError for one of another shape, of ``rank`` or ``argmax``, or that needs a target.

    Note:
        A row all of whose cotangents are 0 has the gradient 0, NaN in its logits included. A confident row's gradient
        keeps its digits, that of ``remainder`` too: 1 - P comes from the other classes alone. Where these hold less
        than exp(-700) ``remainder`` has no gradient. The logits are read twice.

    Example:
        The mean focal loss, -(1 - p)^2 log p of each row's target:

        >>> z, y = np.array([[0.2, 0.5, -0.1], [-0.1, 0.1, 0.3]]), [1, 2]
        >>> s = logit_statistics(z, y)
        >>> p, q = np.exp(s.logprob), np.exp(s.remainder)
        >>> print(np.mean(-(q**2) * s.logprob).round(6))
        0.294584
        >>> slope = (2 * p * q * s.logprob - q**2) / len(y)
        >>> logit_statistics_vjp(z, LogitStatistics(logsumexp=None, logprob=slope), y).round(4)
        array([[ 0.1173, -0.2041,  0.0869],
               [ 0.1072,  0.131 , -0.2382]])

    Source: docs/mathematics.md.
    """
    given = _read(input, target, axis, class_weights, ignore_index)
    index, upstream = given.target, read_cotangents(cotangents, given.rows, given.target)
    if given.kept is not None:
        upstream = LogitStatistics(*(None if g is None else np.where(given.kept, g.T, 0.0).T for g in upstream))
    u = given.weights if weighted(upstream) else None
    of_target = None if u is None or index is None else u[index]
    gradient = np.empty_like(given.input)
    if not gradient.size:
        return gradient
    with np.errstate(all="ignore"):
        found, folded = _statistics.of_logits(given.z, index, u, upstream.entropy is not None)
        inner = unnamed(upstream, folded.state.mass)
        numbers = _statistics.cotangents(found, folded, inner, given.z.dtype.itemsize, of_target)
        out, backend = tile(gradient, given.axes), _backends.choose(given.z)
        _statistics.write(backend, given.z, folded.state, numbers, index, u, out=out)
    return fill(gradient, given.axes, out)


def unnamed(upstream: LogitStatistics, mass: Array) -> Statistics:
    """Turn cotangents of the public statistics into those of the internal ones: _algebra.logit_statistics, backwards.

    ::

        mean_logprob = -cross / mass        mean_logit = logsumexp - cross / mass        remainder = others
    """
    mean = added(upstream.mean_logit, upstream.mean_logprob)
    return Statistics(
        added(upstream.logsumexp, upstream.mean_logit),
        upstream.logprob,
        upstream.entropy,
        None if mean is None else -mean / mass,
        upstream.max,
        upstream.remainder,
    )


def added(a: Array | None, b: Array | None) -> Array | None:
    """Return the sum of two cotangents, where None is 0."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def weighted(upstream: LogitStatistics) -> bool:
    """Tell whether these cotangents reach the logits through the class weights."""
    return upstream.mean_logit is not None or upstream.mean_logprob is not None


def spread(found: LogitStatistics, rows: tuple[int, ...], kept: NDArray[np.bool_] | None) -> LogitStatistics:
    """Return the statistics of the rows that count in the shape of all rows."""

    def shaped(name: str, field: Array | None) -> Any:
        if field is None:
            return None
        every = field
        if kept is not None:
            every = np.full((len(kept), *field.shape[1:]), UNCOUNTED.get(name, 0), field.dtype)
            every[kept] = field
        return every.reshape((*rows, *field.shape[1:]))[()]

    return LogitStatistics(*map(shaped, found._fields, found))


class _Given(NamedTuple):
    """The checked arguments of a call; z is the input as (N, V)."""

    input: Array
    axes: tuple[int]
    z: Array
    rows: tuple[int, ...]
    target: NDArray[np.int64] | None
    kept: NDArray[np.bool_] | None
    weights: NDArray[np.float64]


def _read(
    input: ArrayLike,
    target: ArrayLike | None,
    axis: SupportsIndex,
    class_weights: ArrayLike | None,
    ignore_index: int,
) -> _Given:
    z = real("input", input)
    axes = class_axis(axis, z.ndim)
    rows, classes = row_shape(z.shape, axes), z.shape[axes[0]]
    if classes == 0:
        raise ValueError(f"input has shape {z.shape}: expected at least one class along axis {axes[0]}")
    weights = read_class_weights(class_weights, classes)
    return _Given(z, axes, tile(z, axes), rows, *read_targets(target, rows, classes, ignore_index), weights)


def read_class_weights(class_weights: ArrayLike | None, classes: int) -> NDArray[np.float64]:
    """Return class weights of which the largest is 1."""
    if class_weights is None:
        return np.ones(classes)
    w = read_factors("class_weights", class_weights)
    check_shape("class_weights", w, (classes,), ": one per class")
    if not w.any():
        raise ValueError("class_weights are all 0: at least one must be above")
    return np.asarray(w / w.max())


def read_targets(
    target: ArrayLike | None, rows: tuple[int, ...], classes: int, ignore_index: int
) -> tuple[NDArray[np.int64] | None, NDArray[np.bool_] | None]:
    """Return targets (N,) or (N, K) that are all classes, and which rows count (None: all)."""
    if target is None:
        return None, None
    y, ignore_index = unmasked("target", target), read_integer("ignore_index", ignore_index)
    if y.dtype.kind not in "iu" and y.size:
        raise TypeError(f"target has dtype {y.dtype}, expected integers: class indices")
    many = y.ndim == len(rows) + 1
    if y.shape[: len(rows)] != rows or y.ndim > len(rows) + 1 or (many and y.shape[-1] == 0):
        expected = f"{rows}, or ({', '.join([*map(str, rows), 'K'])}) with K > 0 targets per row"
        raise ValueError(f"target has shape {y.shape}, expected {expected}")
    ignored = y == ignore_index
    absent = np.all(ignored, -1, keepdims=True) if many else ignored
    if many and (some := ignored & ~absent).any():
        at = element("target", position(some))
        raise IndexError(f"{at} = {ignore_index} is ignore_index beside classes: ignore all K targets, or none")
    ignored = absent
    check_target(np.where(ignored, 0, y), classes, None)
    if many:
        _check_distinct(y, ignored)
    index = np.where(ignored, 0, y).astype(np.int64).reshape((math.prod(rows), *y.shape[len(rows) :]))
    return index, ~ignored.reshape(-1) if ignored.any() else None


def _check_distinct(target: Array, ignored: Array) -> None:
    """Raise ValueError for the first row that names a class twice."""
    ordered = np.sort(target, -1)
    twice = (ordered[..., 1:] == ordered[..., :-1]) & ~ignored
    if twice.any():
        *row, column = position(twice)
        value = int(ordered[(*row, column)])
        raise ValueError(f"{element('target', tuple(row))} names class {value} twice: K targets must be distinct")


def read_cotangents(cotangents: LogitStatistics, rows: tuple[int, ...], index: Array | None) -> LogitStatistics:
    """Return the cotangents in float64, (N,) or (N, K)."""
    if not isinstance(cotangents, LogitStatistics):
        raise TypeError(f"cotangents is of type {type(cotangents).__name__}, expected LogitStatistics")
    for name in UNCOUNTED:
        if getattr(cotangents, name) is not None:
            raise ValueError(f"cotangents.{name} is given, but {name} is an integer and has no derivative: pass None")

    def read(name: str, value: Any) -> Array | None:
        if value is None:
            return None
        if index is None and name in ("logprob", "remainder"):
            raise ValueError(f"cotangents.{name} is given, but there is no target")
        g = real(f"cotangents.{name}", value).astype(np.float64)
        more = () if index is None or name != "logprob" else index.shape[1:]
        check_shape(f"cotangents.{name}", g, (*rows, *more), f", the shape of {name}")
        return g.reshape((math.prod(rows), *more))

    return LogitStatistics(*map(read, cotangents._fields, cotangents))
