"""The adversarial corpus for counting digits, by regime, and its exact results by mpmath.

Rows of logits, exactly representable in their type. A row of 32,000 classes has at most 1,000 distinct logits, so that
mpmath can judge the long sums too. Exact values come as two numbers: the float64 next to them, and what that leaves, in
units of its last place; so float64 results can be judged, subnormal ones included.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import mpmath
import numpy as np

Floats = np.ndarray[Any, Any]
SIZES = (2, 3, 17, 100, 1000)
LARGE = 32_000
DISTINCT = 1000
MANTISSA = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}


class Exact(NamedTuple):
    """A row's exact results, each as (nearest float64, rest in its ulp); the loss of target j is -log_softmax[j]."""

    softmax: Floats
    complement: Floats  # 1 - softmax
    log_softmax: Floats
    logsumexp: Floats
    entropy: Floats

    def gradient(self, target: int) -> Floats:
        """Return the gradient of the loss of one target by the logits: p_j, but p_y - 1 at the target."""
        p = self.softmax.copy()
        p[target] = -self.complement[target]
        return p


def normal(rng: np.random.Generator, v: int) -> Floats:
    """Draw v standard normal numbers, of which at most ``DISTINCT`` differ."""
    return rng.normal(size=v) if v <= DISTINCT else rng.choice(rng.normal(size=DISTINCT), v)


def rows(dtype: Any, seed: int = 20261122) -> Iterator[tuple[str, Floats]]:
    """Yield (regime, row) in the given type."""
    name = np.dtype(dtype).name
    for v in (*SIZES, LARGE):
        for regime, z in regimes(np.random.default_rng([seed, v]), v, name):
            yield regime, z.astype(dtype)


def regimes(rng: np.random.Generator, v: int, name: str) -> Iterator[tuple[str, Floats]]:
    """Yield (regime, row of v logits in float64) for the type of that name; long rows where the length matters."""
    mantissa, lowest = MANTISSA[name]
    for spread in (0.01, 1.0, 3.0):
        yield "diffuse", normal(rng, v) * spread
    for gap in (0.1, 0.3, 0.7):  # all terms but one alike: their roundings agree
        yield "diffuse", np.where(np.arange(v) == v // 2, 1.0, 1.0 - gap)
    for spread in (10.0, 100.0, 500.0):
        yield "peaked", normal(rng, v) * spread
    yield "peaked", normal(rng, v) + np.where(np.arange(v) < 4, 12.0, 0.0)
    yield "near tie", 1.5 + rng.integers(0, 2, v) * 2.0**-mantissa
    if v > DISTINCT:
        return
    for margin in (1, 5, 20, 48, 60, 88, 95, 103, 120, 300, 700):
        yield "confident", normal(rng, v) + np.where(np.arange(v) == rng.integers(v), margin + 3.0, 0.0)
    for offset in (1e2, 1e4, -1e4):
        yield "offset 1e4", normal(rng, v) * 5 + offset
    if name != "float16":
        for offset in (1e6, -1e6):
            yield "offset 1e6", normal(rng, v) * 5 + offset
    for share in (0.3, 0.9):
        z = np.where(rng.random(v) < share, -np.inf, normal(rng, v) * 4)
        z[0] = 0.5
        yield "masked", z
    end = {"float16": 20, "float64": 760}.get(name, 110)
    yield "subnormal tails", -np.linspace(0, end, v)
    yield "subnormal tails", -(np.linspace(0, end, v) ** 0.5) * 9
    # Probabilities from the least normal number to half the least subnormal one, below one class and below many.
    tail = np.log(2) * np.linspace(lowest + 1, lowest - mantissa - 1, v - 1)
    yield "subnormal tails", np.append(tail, 0.0)
    yield "subnormal tails", np.where(np.arange(v) % 2 == 0, normal(rng, v), np.append(0.0, tail))


def _last_bit(high: Any, name: str) -> Any:
    """Return the exponent of the last bit of numbers of this size, in the type of that name."""
    mantissa, lowest = MANTISSA[name]
    finite = np.isfinite(high) & (high != 0)
    _, exponent = np.frexp(np.where(finite, high, 1.0))
    return np.where(finite, np.maximum(exponent - 1, lowest), lowest) - mantissa


def _pair(value: Any) -> tuple[float, float]:
    high = float(value)
    if not np.isfinite(high):
        return high, 0.0
    return high, float(mpmath.ldexp(value - mpmath.mpf(high), -int(_last_bit(high, "float64"))))


def exact(row: Floats) -> Exact:
    """Return the exact results for a row with at least one finite logit; each distinct logit is computed once."""
    values, which, counts = np.unique(row.astype(np.float64), return_inverse=True, return_counts=True)
    with mpmath.workdps(40):
        z = [mpmath.mpf(float(x)) if np.isfinite(x) else mpmath.ninf for x in values]
        m = z[-1]
        n = [int(count) for count in counts]
        w = [mpmath.exp(x - m) for x in z]
        rest = mpmath.fsum(k * x for k, x in zip(n[:-1], w[:-1], strict=True)) + (n[-1] - 1)
        moment = mpmath.fsum(k * (m - x) * e for k, x, e in zip(n, z, w, strict=True) if e)
        total, log_sum = 1 + rest, mpmath.log1p(rest)
        complement = [1 - x / total for x in w[:-1]] + [rest / total]
        with mpmath.workdps(700):  # log-probabilities of a confident row: the maximum plus something of size e^-700
            lse = m + log_sum
        return Exact(
            np.array([_pair(x / total) for x in w])[which],
            np.array([_pair(x) for x in complement])[which],
            np.array([_pair((x - m) - log_sum) for x in z])[which],
            np.array(_pair(lse)),
            np.array(_pair(log_sum + moment / total)),
        )


def ulps(got: Any, pair: Floats, dtype: Any) -> Floats:
    """Return |got - exact| in units in the last place of the exact value, in the given type."""
    got, high, low = np.asarray(got).astype(np.float64), pair[..., 0], pair[..., 1]
    last = _last_bit(high, np.dtype(dtype).name)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(np.ldexp(got - high, -last) - np.ldexp(low, _last_bit(high, "float64") - last))
    return np.where(np.isfinite(high), np.where(np.isnan(error), np.inf, error), np.where(got == high, 0.0, np.inf))
