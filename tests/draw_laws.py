"""Laws that all tests of draws share, and the one way in which they ask a backend for draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats

from lastlayer._draws import ORDERS, Drawn, Edits, Rules

LAST = 1 - 2.0**-53  # the largest uniform
UNLIKELY = 1e-4  # of a correct sampler failing; seeds are fixed, so a test that passes keeps passing


def draw(
    backend: Any, z: Any, uniforms: Any, order: Any = "transformers", edits: Edits | None = None,
    replacement: bool = True, **numbers: Any,
) -> Drawn:  # fmt: skip
    """Draw with rules of one number for all rows, or one per row."""
    z, uniforms = np.asarray(z), np.asarray(uniforms, np.float64)
    rules = {"temperature": 1.0, **numbers}
    per_row = (
        np.broadcast_to(np.asarray(rules[name], np.float64), len(z)).copy() if name in rules else None
        for name in Rules._fields
    )
    return backend.draw(z, uniforms, Rules(*per_row), ORDERS.get(order, order), edits, replacement)


def inverse(weights: Any, uniforms: Any) -> Any:
    """Return the first class whose float64 cumulative weight exceeds u * total, row by row."""
    cumulative = np.cumsum(weights, -1)
    return np.stack([np.searchsorted(c, u * c[-1], side="right") for c, u in zip(cumulative, uniforms, strict=True)])


def assert_frequencies(counts: Any, probs: Any) -> None:
    """Chi-square over the classes that are expected at least 10 times, the rest as one."""
    counts = np.asarray(counts, np.float64)
    expected = probs * counts.sum()
    head = expected >= 10
    counts, expected = (np.append(x[head], x[~head].sum()) for x in (counts, expected))
    some = expected > 0
    assert (counts[~some] == 0).all()
    assert scipy.stats.chisquare(counts[some], expected[some]).pvalue > UNLIKELY


def assert_mass_per_decade(counts: Any, probs: Any, decades: int = 5) -> None:
    """In every decade of p the draws are as many as they should be, to the binomial tails."""
    decade = np.floor(np.log10(np.where(probs > 0, probs, 1.0)))
    assert len(set(decade[probs > 0])) >= decades
    for d in set(decade[probs > 0]):
        low, high = scipy.stats.binom(int(counts.sum()), probs[decade == d].sum()).interval(1 - UNLIKELY)
        assert low <= counts[decade == d].sum() <= high, (d, low, high)


def rows_of_all_kinds(rng: np.random.Generator, count: int, classes: int, ties: bool) -> Any:
    """Return rows spread out, confident, flat, masked and, if asked for, with ties and with one class alone."""
    z = rng.standard_normal((count, classes)) * rng.choice([0.3, 1.0, 3.0, 8.0], (count, 1))
    kind = np.arange(count) % 6
    z[kind == 1, rng.integers(0, classes, (kind == 1).sum())] += 12
    z[kind == 2] *= 1e-2
    masked = (kind == 3)[:, None] & (rng.random(z.shape) < 0.5)
    masked[:, 5] = False
    if ties:
        z[kind == 4] = np.round(z[kind == 4])
        masked |= (kind == 5)[:, None] & (np.arange(classes) != 7)
    return np.where(masked, -np.inf, z).astype(np.float32)
