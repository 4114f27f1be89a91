"""Quantities of information: surprisal, entropy, cross-entropy, divergence, perplexity, in nats or in bits.

A distribution is given by its probabilities or by its logits, never by what its values look like. From logits nothing
goes through softmax: a class's surprisal and a row's entropy keep their digits where p rounds to 0 or to 1. Siblings:
functional.py (the loss of a classifier), likelihood.py (the loss of any other model).

Letters: p, q probabilities; z logits; H entropy; D divergence; V classes.
Source: C. E. Shannon, "A mathematical theory of communication", Bell System Tech. J. 27 (1948), except where a function
names another.
"""

from __future__ import annotations

import math
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from lastlayer import _algebra
from lastlayer._arrays import Array, class_axis, last, mask, real, round_to, row_shape, statistics_type, tile
from lastlayer._losses import fold, read_cross_entropy, read_probabilities
from lastlayer._validate import Unit, check_shape, element, position, read_unit
from lastlayer.functional import log_softmax

__all__ = ["cross_entropy", "entropy", "kl_divergence", "perplexity", "surprisal"]


def surprisal(
    probs: ArrayLike | None = None,
    *,
    logits: ArrayLike | None = None,
    axis: SupportsIndex = -1,
    unit: Unit = "nats",
    validate: bool = True,
) -> Any:
    """Return -log p of each class: how surprising it is to see it.

    Args:
        probs: probabilities, any shape; taken one by one, so they need not form a distribution.
        logits: logits instead, with the classes along axis.
        axis: the axis of the classes of logits.
        unit: "nats" (natural logarithm) or "bits" (logarithm to base 2).
        validate: check that probs lie in [0, 1].

    Returns:
        The shape of the argument: float32 for 16- and 32-bit input, else float64. 0 for a certain class, inf for an
        impossible one.

    Raises:
        ValueError: a probability outside [0, 1], NaN included; an axis that logits do not have; an unknown unit.
        TypeError: both or neither of probs and logits; what does not hold real numbers.

    Example:
        >>> sweets = {"red": 0.1, "green": 0.2, "blue": 0.3, "yellow": 0.25, "brown": 0.15}
        >>> print(surprisal(sweets["green"]).round(4), surprisal(sweets["yellow"], unit="bits"))
        1.6094 2.0
        >>> surprisal(logits=[0.0, 120.0])
        array([1.20000000e+02, 7.66764807e-53])
    """
    nats = read_unit(unit)
    if _given(probs, logits):
        p = read_probabilities("probs", probs, validate)  # type: ignore[arg-type]
        with np.errstate(all="ignore"):
            return round_to((0.0 - np.log(p.astype(np.float64))) / nats, statistics_type(p))
    z = real("logits", logits)  # type: ignore[arg-type]
    kind = statistics_type(z)
    return round_to((0.0 - log_softmax(z.astype(kind, copy=False), class_axis(axis, z.ndim))) / kind.type(nats), kind)


def entropy(
    probs: ArrayLike | None = None,
    *,
    logits: ArrayLike | None = None,
    axis: SupportsIndex = -1,
    keepdims: bool = False,
    where: ArrayLike | None = None,
    unit: Unit = "nats",
    validate: bool = True,
) -> Any:
    """Return H = -sum_j p_j log p_j, the mean surprisal of a draw.

    Args:
        probs: distributions along axis.
        logits: logits instead.
        axis: the axis of the classes.
        keepdims: keep it with size 1.
        where: booleans that broadcast to the argument: a class left out has probability 0 (logit -inf); the other
            probabilities must sum to one.
        unit: "nats" or "bits".
        validate: check that probs are distributions.

    Returns:
        The shape of the rows: float32 for 16- and 32-bit input, else float64.

    Raises:
        ValueError: a probability outside [0, 1]; a row whose sum is off 1 by more than sqrt(eps) of its type (the rule
            of ``numpy.random.Generator.choice``): 1.5e-8 in float64, 3.5e-4 in float32, 0.03 in float16, 0.09 in
            bfloat16; an axis that the argument does not have; an unknown unit.
        TypeError: both or neither of probs and logits; what does not hold real numbers; where that is not bool.

    Note:
        From logits H = log1p(rest) + moment / (1 + rest), of which both terms are >= 0, so that the entropy of a
        confident row keeps its digits; from probabilities those are lost already. An impossible class contributes 0.
        A row of logits without a distribution (NaN, +inf, nothing but -inf) gives NaN.

    Example:
        >>> print(entropy([0.5, 0.25, 0.25], unit="bits"))
        1.5
        >>> print(entropy(logits=[0.0, 0.0, -np.inf]).round(6))
        0.693147
    """
    nats = read_unit(unit)
    if _given(probs, logits):
        p, axes = _distributions("probs", probs, axis, validate, where)  # type: ignore[arg-type]
        kind, shape, value = statistics_type(p), row_shape(p.shape, axes, keepdims), _mean_surprisal(p, p, axes)
    else:
        z = mask(real("logits", logits), where)  # type: ignore[arg-type]
        axes = class_axis(axis, z.ndim)
        kind, shape = statistics_type(z), row_shape(z.shape, axes, keepdims)
        with np.errstate(all="ignore"):
            value = _algebra.finish(fold(tile(z, axes), moment=True)).entropy
    return round_to(value.reshape(shape) / nats, kind)


def cross_entropy(
    p: ArrayLike, q: ArrayLike, *, axis: SupportsIndex = -1, unit: Unit = "nats", validate: bool = True
) -> Any:
    """Return H(p, q) = -sum_j p_j log q_j, the mean surprisal of who believes q where p is true.

    The loss of a classifier, which takes logits, is ``lastlayer.cross_entropy``.

    Args:
        p: the true distributions along axis.
        q: the believed ones, in the shape of p.
        axis: the axis of the classes.
        unit: "nats" or "bits".
        validate: check that p and q are distributions.

    Returns:
        The shape of the rows: float32 if both arguments are 16- or 32-bit, else float64. At least H(p); inf where q
        rules out what p does not.

    Raises:
        ValueError: what is no distribution (see ``entropy``); different shapes; an unknown unit.
        TypeError: what does not hold real numbers.

    Example:
        >>> print(cross_entropy([0.5, 0.5], [0.25, 0.75], unit="bits").round(6))
        1.207519
    """
    nats = read_unit(unit)
    (p, q), axes = _pair(p, q, axis, validate)
    return round_to(_mean_surprisal(p, q, axes) / nats, statistics_type(p, q))


def kl_divergence(
    p: ArrayLike, q: ArrayLike, *, axis: SupportsIndex = -1, unit: Unit = "nats", validate: bool = True
) -> Any:
    """Return D(p || q) = sum_j p_j log(p_j / q_j) = H(p, q) - H(p), what believing q costs.

    Args:
        p: the true distributions along axis.
        q: the believed ones, in the shape of p.
        axis: the axis of the classes.
        unit: "nats" or "bits".
        validate: check that p and q are distributions.

    Returns:
        The shape of the rows: float32 if both arguments are 16- or 32-bit, else float64. Never below 0; inf where q
        rules out what p does not.

    Raises:
        ValueError: what is no distribution (see ``entropy``); different shapes; an unknown unit.
        TypeError: what does not hold real numbers.

    Note:
        Summed as q - p - p log(q / p): terms >= 0 that differ from p log(p / q) by q - p, of which the sum is 0. So
        nothing cancels where p and q nearly agree, and a sum that is off 1 by a rounding costs nothing.

    Example:
        >>> print(kl_divergence([0.5, 0.5], [0.25, 0.75]).round(6))
        0.143841

    Source: S. Kullback, R. A. Leibler, "On information and sufficiency", Ann. Math. Stat. 22 (1951); I. Csiszár,
    "I-divergence geometry of probability distributions and minimization problems", Ann. Probab. 3 (1975).
    """
    nats = read_unit(unit)
    (p, q), axes = _pair(p, q, axis, validate)
    return round_to(_divergence(_wide(p, axes), _wide(q, axes)) / nats, statistics_type(p, q))


def perplexity(
    input: ArrayLike, target: ArrayLike, *, ignore_index: int = -100, axis: SupportsIndex = -1
) -> np.float64:
    """Return exp(mean of -log p_y): among how many equally probable classes the model hesitates, on average.

    Args:
        input: logits, with V classes along axis.
        target: class indices, integers in the shape of input without axis, or class probabilities in that of input.
        ignore_index: rows with this target are left out.
        axis: the axis of the classes.

    Returns:
        A float64, whatever the input's type: 1 for a perfect model, V for a uniform one. NaN if no row counts.

    Raises:
        IndexError, ValueError, TypeError: as ``lastlayer.cross_entropy``.

    Note:
        The mean is never rounded to float32, and no probability is formed: a gap of 120 between logits gives e^120.
        Above a mean of 709.78 nats float64 overflows to inf.

    Example:
        >>> print(perplexity([[0.0, 0.0, 0.0, 0.0]], [2]).round(6))
        4.0
        >>> print(perplexity(np.float32([[0, 120]]), [0]))
        1.3041808783936...e+52

    Source: F. Jelinek, R. L. Mercer, L. R. Bahl, J. K. Baker, "Perplexity: a measure of the difficulty of speech
    recognition tasks", J. Acoust. Soc. Am. 62 (1977).
    """
    loss = read_cross_entropy(input, target, None, ignore_index, "mean", 0.0, axis)
    with np.errstate(all="ignore"):
        return np.float64(np.exp(loss.exact_value()))


def _given(probs: ArrayLike | None, logits: ArrayLike | None) -> bool:
    """Tell whether it is probs that were given; exactly one of the two must be."""
    if (probs is None) == (logits is None):
        raise TypeError(f"expected one of probs and logits, got {'neither' if probs is None else 'both'}")
    return probs is not None


def _tolerance(p: Array) -> float:
    # ml_dtypes' bfloat16 has no np.finfo.
    return math.sqrt(2.0**-7 if p.dtype.name == "bfloat16" else float(np.finfo(p.dtype).eps))


def _distributions(
    name: str, value: ArrayLike, axis: SupportsIndex, validate: bool, where: ArrayLike | None = None
) -> tuple[Array, tuple[int]]:
    """Return probabilities, those left out replaced by 0, and the axis along which they sum to one."""
    p = read_probabilities(name, mask(real(name, value), where, 0.0), validate)
    axes = class_axis(axis, p.ndim)
    sums = np.sum(p, axes, dtype=np.float64)
    bad = np.abs(sums - 1) > _tolerance(p)
    if validate and bad.any():
        index = position(bad)
        raise ValueError(
            f"{element('row', index) if index else 'the row'} of {name} sums to {float(np.asarray(sums)[index])}, "
            f"expected 1 to within {_tolerance(p):.2g}"
        )
    return p, axes


def _pair(p: ArrayLike, q: ArrayLike, axis: SupportsIndex, validate: bool) -> tuple[tuple[Array, Array], tuple[int]]:
    first, axes = _distributions("p", p, axis, validate)
    second, _ = _distributions("q", q, axis, validate)
    check_shape("q", second, first.shape, ", that of p")
    return (first, second), axes


def _wide(p: Array, axes: tuple[int]) -> Array:
    return last(p, axes).astype(np.float64)


@np.errstate(all="ignore")
def _mean_surprisal(p: Array, q: Array, axes: tuple[int]) -> Array:
    """Return -sum_j p_j log q_j, where 0 log q = 0."""
    p, q = _wide(p, axes), _wide(q, axes)
    return np.asarray(np.sum(np.where(p != 0, p * -np.log(q), 0.0), -1))


@np.errstate(all="ignore")
def _divergence(p: Array, q: Array) -> Array:
    """Return sum_j q - p - p log(q / p), where p = 0 leaves q."""
    ratio = q / p
    # q / p leaves the range of float64 only where one of the two is next to nothing.
    log_ratio = np.where((ratio > 1e-300) & np.isfinite(ratio), np.log(ratio), np.log(q) - np.log(p))
    x = (q - p) / p
    near = np.abs(x) <= 0.5
    terms = np.where(near, p * _excess(np.where(near, x, 0.0)), (q - p) - p * log_ratio)
    return np.asarray(np.sum(np.where(p != 0, terms, q), -1))


def _excess(x: Array) -> Array:
    """Return x - log1p(x) >= 0 for |x| <= 1/2: with t = x / (2 + x), log1p(x) = 2 (t + t^3/3 + t^5/5 + ...).

    x - 2t = x t, so the difference is t (x - 2 t^2 (1/3 + t^2/5 + ...)). |t| <= 1/3, and
    17 terms leave less than 1e-17.
    """
    t = x / (2 + x)
    series = np.zeros_like(t)
    for odd in range(35, 1, -2):
        series = series * t * t + 1 / odd
    return np.asarray(t * (x - 2 * t * t * series))
