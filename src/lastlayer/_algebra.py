"""The specification: what every kernel computes, as array code for NumPy and PyTorch alike.

A row of logits z_1..z_V is folded once into a small state that keeps its maximum **apart from the sum**:

    max = z_k            rest   = sum_{j != k} exp(z_j - max)          k: one class that attains the maximum
                         moment = sum_j (max - z_j) exp(z_j - max)
    with weights u:      spread = sum_j u_j (max - z_j)                mass = sum_j u_j

States of disjoint sets of classes ``merge``; ``finish`` turns a state into statistics. Every term in them is >= 0, so
nothing cancels: -log p_y = (max - z_y) + log1p(rest) keeps its digits however close p_y is to 1. Backwards, a loss
that is a function of the statistics reaches the logits as four numbers per row (``gradient``):

    dz_j = p_j (alpha + beta log p_j) + gamma [j = y] + delta u_j

Every function works on the last axis, writes nothing in place and, on torch tensors, is differentiable by any
transform. Letters: z logits, y target, p probability, u class weights, N rows, V classes. Derivations are in
docs/mathematics.md; the native twin is native/rows.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy.ndarray or torch.Tensor: the functions below use only what both offer under one name


class State(NamedTuple):
    """What one pass over a set of classes keeps of each row; every field has the shape of the rows."""

    max: Array
    rest: Array
    moment: Array
    spread: Array
    mass: Array


class Statistics(NamedTuple):
    """What losses are functions of. ``cross`` is -sum_j u_j log p_j for the weights u given to the fold.

    With K targets per row, logprob is (..., K) and ``others`` the log-probability of all classes but these.
    """

    logsumexp: Array
    logprob: Array
    entropy: Array
    cross: Array
    max: Array = None
    others: Array = None


class LogitStatistics(NamedTuple):
    """The statistics of rows of logits z with p = softmax(z), in nats; None for what was not asked for.

    Attributes:
        logsumexp: log sum_j exp(z_j).
        logprob: log p_y of the target y, (..., K) for K targets per row.
        entropy: -sum_j p_j log p_j.
        mean_logit: sum_j u_j z_j with u = 1/V, or the class weights' shares.
        max: the largest logit.
        mean_logprob: sum_j u_j log p_j: mean_logit - logsumexp with all its digits.
        remainder: the log-probability of all classes but the target or targets: log(1 - p_y) with all its digits.
        rank: 1 + the number of classes with a logit above the target's, int64; 0 for an ignored row.
        argmax: the first class with the largest logit, int64; -1 for an ignored row.
    """

    logsumexp: Array = None
    logprob: Array = None
    entropy: Array = None
    mean_logit: Array = None
    max: Array = None
    mean_logprob: Array = None
    remainder: Array = None
    rank: Array = None
    argmax: Array = None


UNCOUNTED = {"rank": 0, "argmax": -1}  # of an ignored row; its other statistics are 0


class Coefficients(NamedTuple):
    """The four numbers per row through which any loss reaches the logits."""

    alpha: Array
    beta: Array
    gamma: Array
    delta: Array


class Terms(NamedTuple):
    """The three factors of ``loss``: one number, or one per row; None is 0."""

    nll: Array | float | None
    cross: Array | float | None
    square: Array | float | None


IDENTITY = State(-math.inf, 0.0, 0.0, 0.0, 0.0)
LN2 = math.log(2.0)


def namespace(array: Array) -> Any:
    """Return the module, numpy or torch, whose functions take this array."""
    if isinstance(array, (np.ndarray, np.generic)):  # no union: torch.compile does not know how to form one
        return np
    import torch

    return torch


def cast(array: Array, like: Array) -> Array:
    """Return the array in the type of another."""
    return array.astype(like.dtype, copy=False) if namespace(array) is np else array.to(like.dtype)


def double(array: Array) -> Array:
    """Return the array in float64."""
    return array.astype(np.float64) if namespace(array) is np else array.double()


def classes(z: Array) -> Array:
    """Return 0..V-1 where z lives."""
    if namespace(z) is np:
        return np.arange(z.shape[-1])
    import torch

    return torch.arange(z.shape[-1], device=z.device)


def exp_difference(z: Array, m: Array) -> tuple[Array, Array]:
    """Return x = z - m and exp(z - m), the latter with the rounding error of x put back (Knuth's TwoSum).

    Without it exp is off by |x|/2 units in the last place: 40 at x = -80. Where z = m = -inf or +inf, x is 0.
    """
    xp = namespace(z)
    difference = z - m
    x = xp.where((z == m) & ~xp.isfinite(m), 0.0, difference)
    back = difference - z
    error = (z - (difference - back)) - (m + back)
    w = xp.exp(x)
    return x, w + w * xp.where(xp.isfinite(error), error, 0.0)


def apart(z: Array) -> Array:
    """Tell which class of each row is the one kept out of the sum: the first that attains the maximum."""
    return classes(z) == namespace(z).argmax(z, -1)[..., None]


def fold(z: Array, weight: Array | None = None) -> State:
    """Fold all classes of z (..., V) into one state per row; weight u is (V,) or like z."""
    xp = namespace(z)
    top = apart(z)
    m = xp.sum(xp.where(top, z, 0.0), -1)
    x, w = exp_difference(z, m[..., None])
    rest = xp.sum(xp.where(top, 0.0, w), -1)
    # A constant, so that the derivatives by z_k and by max, of which it is the difference, need not cancel.
    x = xp.where(top, 0.0, x)
    moment = xp.sum(xp.where(w > 0, -x, 0.0) * w, -1)
    if weight is None:
        return State(m, rest, moment, xp.zeros_like(m), xp.zeros_like(m))
    spread = xp.sum(weight * xp.where((weight != 0) | xp.isfinite(x), -x, 0.0), -1)
    return State(m, rest, moment, spread, xp.sum(weight, -1) + xp.zeros_like(m))


def merge(a: State, b: State) -> State:
    """Join the states of two disjoint sets of classes: associative, commutative, with IDENTITY."""
    xp = namespace(a.max)
    first = ~(a.max < b.max)
    won = State(*(xp.where(first, x, y) for x, y in zip(a, b, strict=True)))
    lost = State(*(xp.where(first, y, x) for x, y in zip(a, b, strict=True)))
    gap = xp.where(won.max == lost.max, 0.0, won.max - lost.max)
    decay = xp.exp(-gap)
    total = decay * (1 + lost.rest)
    return State(
        won.max,
        won.rest + total,
        won.moment + decay * lost.moment + xp.where(decay > 0, gap, 0.0) * total,
        won.spread + lost.spread + xp.where(lost.mass != 0, gap, 0.0) * lost.mass,
        won.mass + lost.mass,
    )


def identity_like(rows: Array) -> State:
    """Return the state of no classes at all, one per row."""
    return State(*(namespace(rows).full_like(rows, value) for value in IDENTITY))


def log_sum(state: State) -> Array:
    """Return log sum_j exp(z_j - max), exact for a dominant class; NaN for a row that has no distribution."""
    xp = namespace(state.max)
    return xp.where(xp.isfinite(state.max), xp.log1p(state.rest), math.nan)


def logsumexp(state: State) -> Array:
    """Return log sum_j exp(z_j): -inf for a row of -inf only, +inf for a row that holds +inf."""
    return state.max + namespace(state.max).log1p(state.rest)


def finish(state: State, target_logit: Array | None = None) -> Statistics:
    """Turn states into statistics; all differences are of terms with one sign."""
    s = log_sum(state)
    z_y = state.max if target_logit is None else target_logit
    return Statistics(
        logsumexp(state),
        -((state.max - z_y) + s),
        s + state.moment / (1 + state.rest),
        state.spread + state.mass * s,
        state.max,
    )


def log1mexp(x: Array) -> Array:
    """Return log(1 - exp(x)) for x <= 0 with the digits of both ends (Maechler 2012); its slope at x = 0 is 0."""
    xp = namespace(x)
    near, far = xp.where((x > -LN2) & (x < 0), x, -LN2), xp.where(x > -LN2, -LN2, x)
    inner = xp.where(x > -LN2, xp.log(-xp.expm1(near)), xp.log1p(-xp.exp(far)))
    return xp.where(x == 0, -math.inf, inner)


def softplus(x: Array) -> Array:
    """Return log(1 + exp(x)) as a sum of two terms >= 0."""
    xp = namespace(x)
    return xp.logaddexp(x, xp.zeros_like(x))


def log_others(chosen: State, others: State) -> Array:
    """Return log(1 - P) where P is the probability of the chosen classes; -inf where there are no others."""
    xp = namespace(others.max)
    a, b = logsumexp(chosen), logsumexp(others)
    odds = xp.where(xp.isfinite(b), a - b, 0.0)
    both = xp.isfinite(b) & (a < math.inf)
    none = xp.isfinite(a) & (b == -math.inf)
    return xp.where(both, -softplus(odds), xp.where(none, -math.inf, math.nan))


def logit_statistics(found: Statistics, mass: Array, round_: Callable[[Array], Array]) -> LogitStatistics:
    """Return the statistics under their public names, for weights that sum to mass, each rounded once."""
    mean = None if found.cross is None else -found.cross / mass
    xp = namespace(found.logsumexp)
    highest = None if found.max is None else xp.where(xp.isnan(found.logsumexp), math.nan, found.max)
    fields = LogitStatistics(
        found.logsumexp,
        found.logprob,
        found.entropy,
        None if mean is None else found.logsumexp + mean,
        highest,
        mean,
        found.others,
    )
    return LogitStatistics(*(None if field is None else round_(field) for field in fields))


def coefficients(statistics: Statistics, mass: Array, cotangents: Statistics) -> Coefficients:
    """Turn the incoming gradients of a row's statistics into its four numbers; a cotangent may be None."""
    xp = namespace(mass)
    zero = xp.zeros_like(mass)
    lse, logprob, entropy, cross = (zero if g is None else g for g in cotangents[:4])
    mixed = zero if cotangents.entropy is None else xp.where(entropy != 0, entropy * statistics.entropy, 0.0)
    return Coefficients(lse - logprob - mixed + cross * mass, -entropy, logprob, -cross)


def loss(statistics: Statistics, terms: Terms) -> Array:
    """Return nll (-log p_y) + cross sum_j u_j (-log p_j) + square lse^2; a factor 0 silences its term, infinite or not.

    Cross-entropy with class weights, label smoothing, class probabilities and z-loss, per-token weights and reductions
    are all in the three factors.
    """
    nll = None if terms.nll is None else -statistics.logprob
    square = None if terms.square is None else statistics.logsumexp**2
    total = namespace(statistics.logsumexp).zeros_like(statistics.logsumexp)
    for factor, value in zip(terms, (nll, statistics.cross, square), strict=True):
        if factor is not None:
            total = total + times(factor, value)
    return total


def times(factor: Array | float, value: Array) -> Array:
    """Return factor * value, where 0 * inf and 0 * NaN are 0: what has no weight does not count."""
    if isinstance(factor, float):
        return factor * value if factor != 0 else namespace(value).zeros_like(value)
    return factor * namespace(value).where(factor != 0, value, 0.0)


def numbers_of(statistics: Statistics, mass: Array, terms: Terms, upstream: Array | float = 1.0) -> Coefficients:
    """Return the four numbers per row of ``loss``, times the incoming gradient."""
    ones = namespace(mass).ones_like(mass)
    nll, cross, square = (None if factor is None else factor * upstream * ones for factor in terms)
    lse = None if square is None else 2 * times(square, statistics.logsumexp)
    cotangents = Statistics(lse, None if nll is None else -nll, None, cross)
    return coefficients(Statistics(statistics.logsumexp, None, None, None), mass, cotangents)


def gradient(
    z: Array,
    state: State,
    numbers: Coefficients,
    target: Array | None = None,
    weight: Array | None = None,
    first_class: int = 0,
    softcap: float | None = None,
) -> Array:
    """Return dz for a tile of logits whose first column is class ``first_class``.

    At a maximum with p > 1/2, p = 1 - q with q = rest / (1 + rest) keeps the digits of a gradient that nearly cancels.
    A row whose four numbers are all 0 has the gradient 0, whatever its logits. With ``softcap`` c the tile holds
    z = c tanh(r / c) and the gradient returned is that of r: one factor 1 - (z/c)^2.
    """
    xp = namespace(z)
    alpha, beta, gamma, delta = (number[..., None] for number in numbers)
    m, rest = state.max[..., None], state.rest[..., None]
    x, w = exp_difference(z, m)
    share = xp.where(w > 0, w / (1 + rest), 0.0)
    slope = alpha + beta * xp.where(w > 0, x - xp.log1p(rest), 0.0)
    base = xp.zeros_like(slope) if weight is None else delta * weight
    if target is not None:
        base = base + xp.where(classes(z) + first_class == target[..., None], gamma, 0.0)
    confident = (z == m) & (rest < 1)
    dz = xp.where(confident, (slope + base) - rest / (1 + rest) * slope, share * slope + base)
    dz = xp.where(xp.isfinite(m) & xp.isfinite(rest), dz, math.nan)
    if softcap is not None:
        dz = dz * (1 - (z / softcap) ** 2)
    silent = (alpha == 0) & (beta == 0) & (gamma == 0) & (delta == 0)
    return xp.where(silent, 0.0, dz)


def softmax(z: Array) -> Array:
    """Return p_j = exp(z_j - max) / (1 + rest)."""
    xp = namespace(z)
    state = fold(z)
    _, w = exp_difference(z, state.max[..., None])
    return w / xp.where(xp.isfinite(state.max), 1 + state.rest, math.nan)[..., None]


def log_softmax(z: Array) -> Array:
    """Return log p_j = (z_j - max) - log1p(rest); at the maximum itself -log1p(rest), not 0."""
    state = fold(z)
    x, _ = exp_difference(z, state.max[..., None])
    return namespace(z).where(apart(z), 0.0, x) - log_sum(state)[..., None]
