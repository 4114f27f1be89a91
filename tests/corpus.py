"""The adversarial corpus for counting digits, and its exact results by mpmath.

Rows of logits, exactly representable in their type: spreads, offsets, a dominant class, masks, near ties, tails that
underflow. Exact values come as two float64 numbers, high + low, so that float64 results can be judged too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import mpmath
import numpy as np

Floats = np.ndarray[Any, Any]
SIZES = (2, 3, 17, 100, 1000)
MANTISSA = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}


class Exact(NamedTuple):
    """A row's exact results, each as (high, low); the loss of target j is -log_softmax[j]."""

    softmax: Floats
    log_softmax: Floats
    logsumexp: Floats


def rows(dtype: Any, seed: int = 20261122) -> Iterator[tuple[str, Floats]]:
    """Yield (regime, row) in the given type."""
    rng = np.random.default_rng(seed)
    name = np.dtype(dtype).name
    largest = 6e4 if name == "float16" else np.inf
    for v in SIZES:
        for spread in (0.01, 1.0, 10.0, 100.0, 500.0):
            yield "spread", (rng.normal(size=v) * spread).astype(dtype)
        for offset in (1e2, -1e4, 1e6, -1e6):
            if abs(offset) < largest:
                yield "offset", (rng.normal(size=v) * 5 + offset).astype(dtype)
        for margin in (1, 5, 20, 48, 60, 88, 95, 103, 120, 300, 700):
            z = rng.normal(size=v)
            z[rng.integers(v)] += margin + 3
            yield "dominant", z.astype(dtype)
        for share in (0.3, 0.9):
            z = np.where(rng.random(v) < share, -np.inf, rng.normal(size=v) * 4)
            z[0] = 0.5
            yield "masked", z.astype(dtype)
        near = np.float64(1.5) + rng.integers(0, 2, v) * 2.0 ** -MANTISSA[name][0]
        yield "near tie", near.astype(dtype)
        yield "tail", (-np.linspace(0, {"float16": 20, "float64": 760}.get(name, 110), v)).astype(dtype)
        yield "tail", (-(np.linspace(0, {"float16": 20, "float64": 760}.get(name, 110), v) ** 0.5) * 9).astype(dtype)


def _pair(value: Any) -> tuple[float, float]:
    high = float(value)
    return (high, 0.0) if not np.isfinite(high) else (high, float(value - mpmath.mpf(high)))


def exact(row: Floats) -> Exact:
    """Return the exact results for a row with at least one finite logit."""
    with mpmath.workdps(40):
        z = [mpmath.mpf(float(x)) if np.isfinite(float(x)) else mpmath.ninf for x in row]
        top = max(range(len(z)), key=z.__getitem__)
        w = [mpmath.exp(x - z[top]) for x in z]
        rest = mpmath.fsum(x for j, x in enumerate(w) if j != top)
        log_sum = mpmath.log1p(rest)
        with mpmath.workdps(700):  # log-probabilities of a dominant class: the maximum plus something of size e^-700
            lse = z[top] + log_sum
        return Exact(
            np.array([_pair(x / (1 + rest)) for x in w]),
            np.array([_pair((x - z[top]) - log_sum) for x in z]),
            np.array(_pair(lse)),
        )


def ulps(got: Any, pair: Floats, dtype: Any) -> Floats:
    """Return |got - exact| in units in the last place of the exact value, in the given type."""
    mantissa, lowest = MANTISSA[np.dtype(dtype).name]
    got, high, low = np.asarray(got).astype(np.float64), pair[..., 0], pair[..., 1]
    _, exponent = np.frexp(np.where(np.isfinite(high), high, 1.0))
    unit = np.ldexp(1.0, np.maximum(exponent - 1, lowest) - mantissa)
    with np.errstate(invalid="ignore"):
        error = np.abs((got - high) - low) / unit
    return np.where(np.isfinite(high), np.where(np.isnan(error), np.inf, error), np.where(got == high, 0.0, np.inf))
