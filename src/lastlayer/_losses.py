"""The losses of functional.py between their arguments and their results: one float64 number per row or element.

Reading an argument checks it, in the order in which a caller would; a ``Loss`` then knows its value and its gradient.
A factor of 0 (an ignored row, a class of weight or probability 0) silences what it multiplies, infinite or NaN.

Letters as in functional.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lastlayer import _algebra, _backends
from lastlayer._algebra import State, Terms, softplus
from lastlayer._arrays import (
    FLOATS,
    Array,
    class_axis,
    fill,
    native,
    real,
    round_to,
    row_shape,
    statistics_type,
    tile,
    unmasked,
)
from lastlayer._validate import (
    check_label_smoothing,
    check_reduction,
    check_shape,
    check_target,
    element,
    not_log_probability,
    position,
    read_integer,
)


@dataclass(frozen=True)
class Loss:
    """What every loss has; ``total`` is what the mean divides by, ``type`` that of the result."""

    input: Array
    total: float
    reduction: str
    type: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the losses."""
        raise NotImplementedError

    def each(self) -> NDArray[np.float64]:
        """Return the losses."""
        raise NotImplementedError

    def sum(self) -> Any:
        """Return the sum of the losses."""
        return np.sum(self.each())

    def reduced(self, total: Any) -> Any:
        """Return the sum of the losses, or their mean."""
        return total if self.reduction == "sum" else total / np.float64(self.total)

    @np.errstate(all="ignore")
    def exact_value(self) -> Any:
        """Return the reduced losses in float64."""
        return self.each() if self.reduction == "none" else self.reduced(self.sum())

    def value(self) -> Any:
        """Return the reduced losses, rounded once."""
        return round_to(self.exact_value(), self.type)

    def value_and_grad(self, cotangent: ArrayLike | None) -> tuple[Any, Array]:
        """Return the value, and the gradient in the type of the input."""
        return self.value(), self.pull_back(self.slopes(cotangent))

    @np.errstate(all="ignore")
    def slopes(self, cotangent: ArrayLike | None) -> Any:
        """Return the derivative of the value by each loss: one number, or an array of them."""
        if cotangent is None:
            return 1 / np.float64(self.total) if "mean" in self.reduction else np.float64(1)
        if self.reduction != "none":
            raise ValueError(f"cotangent is for reduction = 'none', not {self.reduction!r}: multiply the gradient")
        c = real("cotangent", cotangent)
        check_shape("cotangent", c, self.shape, ", the shape of the losses")
        return c.astype(np.float64)

    def pull_back(self, slopes: Any) -> Array:
        """Return the gradient of sum(slopes * losses)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Elementwise(Loss):
    """A loss whose terms are there."""

    losses: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the losses."""
        return self.losses.shape

    def each(self) -> NDArray[np.float64]:
        """Return the losses."""
        return self.losses


@dataclass(frozen=True)
class NegativeLogLikelihood(Elementwise):
    """loss_i = share_i (-input[i, y_i]) with share_i = w_y, 0 in rows that do not count."""

    axes: tuple[int, ...]
    target: NDArray[np.int64]
    share: NDArray[np.float64]

    def pull_back(self, slopes: Array) -> Array:
        """Return -share c at the target, 0 elsewhere."""
        gradient = np.zeros_like(self.input)
        rows = tile(gradient, self.axes)
        if rows.size:
            rows[np.arange(len(rows)), self.target] = round_to(times(-self.share, slopes).reshape(-1), gradient.dtype)
        return fill(gradient, self.axes, rows)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """loss_i = nll_i (-log p_y) + cross_i sum_j u_j (-log p_j), 0 in ignored rows; one visit of the rows gives all."""

    axes: tuple[int, ...]
    target: NDArray[np.int64] | None
    ignored: int
    weight: Array | None
    terms: Terms

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the losses."""
        return row_shape(self.input.shape, self.axes)

    def each(self) -> NDArray[np.float64]:
        """Return the losses."""
        losses = np.empty(self.shape)
        self._visit(losses=losses.reshape(-1))
        return losses

    def sum(self) -> Any:
        """Return the sum of the losses."""
        return np.float64(self._visit())

    def value_and_grad(self, cotangent: ArrayLike | None) -> tuple[Any, Array]:
        """Return the value, and the gradient in the type of the input."""
        if self.reduction == "none" or not self.input.size:
            return super().value_and_grad(cotangent)
        slope = self.slopes(cotangent) if self.total else 0.0  # a mean over no rows is NaN, its gradient 0
        gradient = np.empty_like(self.input)
        with np.errstate(all="ignore"):
            value = round_to(self.reduced(np.float64(self._visit(gradient, scale=float(slope)))), self.type)
        return value, gradient

    def pull_back(self, slopes: Any) -> Array:
        """Return c (p_j sum_k u_k - u_j), by the four numbers per row."""
        gradient = np.empty_like(self.input)
        if gradient.size:
            rows, c = len(tile(gradient, self.axes)), np.asarray(slopes).reshape(-1)
            scaled = (
                None if f is None else np.ascontiguousarray(np.broadcast_to(times(f, c), rows)) for f in self.terms
            )
            self._visit(gradient, terms=Terms(*scaled))
        return gradient

    def _visit(
        self,
        gradient: Array | None = None,
        terms: Terms | None = None,
        losses: Array | None = None,
        scale: float = 1.0,
    ) -> float:
        rows = tile(self.input, self.axes)
        if not rows.size:
            value = 0.0 if self.target is not None or not len(rows) else np.nan  # of no classes no target is one
            if losses is not None:
                losses[...] = value
            return value
        out = None if gradient is None else tile(gradient, self.axes)
        visit, terms = _backends.choose(rows).loss, terms or self.terms
        total: float = visit(
            rows, terms, self.target, self.weight, ignored=self.ignored, scale=scale, losses=losses, out=out
        )
        if gradient is not None and out is not None:
            fill(gradient, self.axes, out)
        return total


@dataclass(frozen=True)
class BinaryCrossEntropy(Elementwise):
    """loss = yes softplus(-x) + no softplus(x)."""

    x: NDArray[np.float64]
    yes: NDArray[np.float64]
    no: NDArray[np.float64]

    @np.errstate(all="ignore")
    def pull_back(self, slopes: Array) -> Array:
        """Return c (no sigmoid(x) - yes sigmoid(-x))."""
        slope = times(self.no, sigmoid(self.x)) - times(self.yes, sigmoid(-self.x))
        return np.asarray(round_to(slopes * slope, self.input.dtype))


@dataclass(frozen=True)
class Divergence(Elementwise):
    """loss = t (log t - input)."""

    t: NDArray[np.float64]

    def pull_back(self, slopes: Array) -> Array:
        """Return -c t."""
        return np.asarray(round_to(times(-self.t, slopes), self.input.dtype))


def read_nll(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None,
    ignore_index: int,
    reduction: str,
    axis: SupportsIndex,
    validate: bool,
) -> Loss:
    """Read the arguments of ``nll_loss``."""
    check_reduction(reduction)
    x = real("input", input)
    axes = class_axis(axis, x.ndim)
    w = read_weight(weight, x.shape[axes[0]])
    y, keep = _read_indices(_read_target(target), x, axes, ignore_index)
    rows = tile(x, axes)
    logprob = np.where(keep, _gather(rows, y).reshape(keep.shape), 0.0)
    message = not_log_probability(logprob) if validate else None
    if message is not None:
        raise ValueError(message)
    share = _class_weights(w, y).reshape(keep.shape) * keep
    losses = times(share, 0.0 - logprob)
    return NegativeLogLikelihood(x, float(np.sum(share)), reduction, statistics_type(x), losses, axes, y, share)


def read_cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    axis: SupportsIndex,
) -> Loss:
    """Read the arguments of ``cross_entropy``; the type of target decides what it is."""
    check_reduction(reduction)
    check_label_smoothing(label_smoothing)
    label_smoothing = float(label_smoothing)
    z = real("input", input)
    axes = class_axis(axis, z.ndim)
    w, t, classes = read_weight(weight, z.shape[axes[0]]), _read_target(target), z.shape[axes[0]]
    type = statistics_type(z)
    if t.dtype.kind in "iu":
        y, skipped = _checked_indices(t, z, axes, ignore_index)
        u = (np.ones(classes) if w is None else w) / max(classes, 1) if label_smoothing else None
        nll: Any = 1 - label_smoothing
        total = float(len(y) - skipped)
        if w is not None:
            share = _class_weights(w, np.where(y == ignore_index, 0, y)) * (y != ignore_index)
            nll, total = nll * share, float(np.sum(share))
        terms = Terms(nll, label_smoothing if label_smoothing else None, None)
        return CrossEntropy(z, total, reduction, type, axes, y, ignore_index, u, terms)
    u = tile(_read_class_probabilities(t, z, axes, ignore_index), axes)
    if w is not None or label_smoothing:
        factors = np.ones(classes) if w is None else w
        u = (1 - label_smoothing) * factors * u + label_smoothing / max(classes, 1) * factors
    return CrossEntropy(z, len(u), reduction, type, axes, None, -1, u, Terms(None, 1.0, None))


def read_binary(
    input: ArrayLike, target: ArrayLike, weight: ArrayLike | None, pos_weight: ArrayLike | None, reduction: str
) -> Loss:
    """Read the arguments of ``binary_cross_entropy_with_logits``."""
    check_reduction(reduction)
    given, y = real("input", input), unmasked("target", target)
    y = read_probabilities("target", y.astype(np.float64) if y.dtype == np.bool_ else y).astype(np.float64)
    check_shape("target", y, given.shape, ", that of input")
    w = 1.0 if weight is None else _factors_like("weight", weight, given.shape)
    positive = 1.0 if pos_weight is None else _factors_like("pos_weight", pos_weight, given.shape)
    with np.errstate(all="ignore"):
        x, yes, no = given.astype(np.float64), w * positive * y, w * (1 - y)
        losses = times(yes, softplus(-x)) + times(no, softplus(x))
    return BinaryCrossEntropy(given, given.size, reduction, statistics_type(given), losses, x, yes, no)


@np.errstate(all="ignore")
def read_divergence(input: ArrayLike, target: ArrayLike, reduction: str, log_target: bool) -> Loss:
    """Read the arguments of ``kl_div``."""
    check_reduction(reduction, ("none", "mean", "batchmean", "sum"))
    x = real("input", input)
    given = real("target", target) if log_target else read_probabilities("target", target)
    check_shape("target", given, x.shape, ", that of input")
    wide = given.astype(np.float64)
    t, log_t = (np.exp(wide), wide) if log_target else (wide, np.log(wide))
    total = len(x) if reduction == "batchmean" and x.ndim else x.size
    losses = times(t, log_t - x.astype(np.float64))
    return Divergence(x, total, reduction, statistics_type(x, given), losses, t)


def read_probabilities(name: str, value: ArrayLike, validate: bool = True) -> Array:
    """Return value as floats in [0, 1]."""
    p = real(name, value)
    bad = ~((p >= 0) & (p <= 1))
    if validate and bad.any():
        index = position(bad)
        raise ValueError(f"{element(name, index)} = {p[index]} is not a probability in [0, 1]")
    return p


def fold(z: Array, weight: Array | None = None, moment: bool = False) -> State:
    """Fold a tile (N, V) with the backend that takes it; rows without classes are the identity."""
    if z.shape[1] == 0:
        return _algebra.identity_like(np.empty(len(z)))
    return State(*_backends.choose(z).fold(z, weight, moment))


def times(factor: Array | float, value: Array) -> Array:
    """Return factor * value where a factor of 0 silences any value."""
    with np.errstate(all="ignore"):
        return np.asarray(_algebra.times(factor, value))


def sigmoid(x: Array) -> Array:
    """Return the smaller of the two probabilities, q, or 1 - q: both ends to the last digit."""
    e = np.exp(-np.abs(x))
    q = e / (1 + e)
    return np.asarray(np.where(x < 0, q, 1 - q))


def read_factors(name: str, value: ArrayLike) -> Array:
    """Return finite factors >= 0 in float64."""
    w = real(name, value).astype(np.float64)
    bad = ~((w >= 0) & np.isfinite(w))
    if bad.any():
        index = position(bad)
        raise ValueError(f"{element(name, index)} = {w[index]} must be a finite number >= 0")
    return w


def _factors_like(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Return finite factors >= 0, one per element."""
    w = read_factors(name, value)
    try:
        return np.broadcast_to(w, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {w.shape}, which does not broadcast to {shape}") from None


def read_weight(weight: ArrayLike | None, classes: int) -> Array | None:
    if weight is None:
        return None
    w = read_factors("weight", weight)
    check_shape("weight", w, (classes,), ": one per class")
    return w


def _read_target(target: ArrayLike) -> Array:
    t = unmasked("target", target)
    if t.size == 0 and not isinstance(target, np.ndarray):
        return t.astype(np.int64)
    if t.dtype.kind not in "iu" and t.dtype.name not in FLOATS:
        raise TypeError(f"target has dtype {t.dtype}, expected integers (class indices) or floats (probabilities)")
    return t


def _read_indices(
    target: Array, z: Array, axes: tuple[int], ignore_index: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the class of each row (N,), 0 where it is ignored, and which rows count, in their shape."""
    y, _ = _checked_indices(target, z, axes, ignore_index)
    keep = np.asarray(target != ignore_index)
    return np.where(keep.reshape(-1), y, 0), keep


def _checked_indices(target: Array, z: Array, axes: tuple[int], ignore_index: int) -> tuple[NDArray[np.int64], int]:
    """Return the target of each row (N,), a class or ignored, and how many are ignored."""
    shape, classes = row_shape(z.shape, axes), z.shape[axes[0]]
    if target.dtype.kind not in "iu":
        raise TypeError(f"target has dtype {target.dtype}, expected integers: class indices")
    check_shape("target", target, shape, f", that of input {z.shape} without axis {axes[0]}")
    ignore_index = read_integer("ignore_index", ignore_index)
    y = np.ascontiguousarray(target, dtype=np.int64).reshape(-1)
    bad, skipped = _backends.choose(z).check_targets(y, classes, ignore_index)
    if bad >= 0 or target.dtype == np.uint64:
        check_target(target, classes, ignore_index)
    return y, skipped


def _read_class_probabilities(target: Array, z: Array, axes: tuple[int], ignore_index: int) -> Array:
    if target.shape == row_shape(z.shape, axes):
        raise TypeError(
            f"target has dtype {target.dtype} and shape {target.shape}: class indices must be integers, and class "
            f"probabilities must have the shape of input, {z.shape}"
        )
    check_shape("target", target, z.shape, ": class probabilities have the shape of input")
    if read_integer("ignore_index", ignore_index) >= 0:
        raise ValueError(f"ignore_index = {ignore_index} has no meaning for a target of class probabilities")
    return read_probabilities("target", native(target))


def _class_weights(w: Array | None, target: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return w_y; 1 where there are no weights, or no classes."""
    return np.ones(len(target)) if w is None or not w.size else np.asarray(w[target])


def _gather(rows: Array, target: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return rows[i, y_i] in float64; 0 where there are no classes."""
    if rows.shape[1] == 0:
        return np.zeros(len(rows))
    return np.asarray(rows[np.arange(len(rows)), target].astype(np.float64))
