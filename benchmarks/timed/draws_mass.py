"""A row whose classes reach from a probability of a half to some 10^-10, and how often each decade of it is drawn.

Each decade of p has three probabilities, so that peers whose noise is one number per class and draw can be followed
too: the largest of the noises of n equal classes is drawn as one, with the same law.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray

import lastlayer.torch as F

CLASSES = (1, 6, 30, 120, 900, 4_500, 12_000, 45_000, 180_000, 18_000)  # by decade: [0.1, 1), [0.01, 0.1), ...
FACTORS = (6.0, 3.0, 1.5)  # a third of the classes of each but the first decade has so many times its lower end
AT_ONCE = 1_000_000  # draws
UNLIKELY = 1e-4  # of a right sampler failing one test; seeds are fixed, so that what holds keeps holding
LEAST = 10.0  # draws that a class must expect to stand alone in the chi-square test
LATTICE = 1 << 24  # of a float32 uniform


class Row(NamedTuple):
    """Logits, likeliest first as in a vocabulary sorted by frequency; per class p and decade; levels (logit, count)."""

    z: NDArray[np.float32]
    p: NDArray[np.float64]
    decade: NDArray[np.int64]
    levels: list[tuple[np.float32, int]]


def make_row(shrink: int = 1) -> Row:
    """Return the row, or one with fewer classes in the decades that have many."""
    p = [factor * 10.0 ** -(k + 1) for k in range(1, len(CLASSES)) for factor in FACTORS]
    counts = [n // 3 if n < 1000 else n // 3 // shrink for n in CLASSES[1:] for _ in FACTORS]
    p, counts = [1 - float(np.dot(p, counts)), *p], [1, *counts]
    levels = list(zip(np.log(p).astype(np.float32), counts, strict=True))
    z = np.repeat([level for level, _ in levels], counts)
    masses = np.exp(z.astype(np.float64))
    decade = np.repeat([0, *np.repeat(np.arange(1, len(CLASSES)), len(FACTORS))], counts)
    return Row(z, masses / masses.sum(), decade, levels)


def counts_of_ours(row: Row, draws: int) -> NDArray[np.int64]:
    """Return how often categorical draws each class."""
    found, z = np.zeros(len(row.z), np.int64), torch.from_numpy(row.z)
    for step, begin in enumerate(range(0, draws, AT_ONCE)):
        index = F.categorical(z, min(AT_ONCE, draws - begin), seed=20261122, step=step).index
        found += np.bincount(index.numpy(), minlength=len(found))
    return found


def counts_of_multinomial(row: Row, draws: int) -> NDArray[np.int64]:
    """Return how often torch.multinomial draws each class, with replacement, from a float32 softmax."""
    generator, found = torch.Generator().manual_seed(0), np.zeros(len(row.z), np.int64)
    p = torch.from_numpy(row.z).softmax(-1)
    for begin in range(0, draws, AT_ONCE):
        index = torch.multinomial(p, min(AT_ONCE, draws - begin), True, generator=generator)
        found += np.bincount(index.numpy(), minlength=len(found))
    return found


def gumbel_by_decade(row: Row, draws: int) -> NDArray[np.int64]:
    """Return how often z - log(-log u), in float32, is largest in each decade, u on the lattice of 2^-24."""
    rng, found = np.random.default_rng(0), np.zeros(len(CLASSES), np.int64)
    decade = np.array([0, *np.repeat(np.arange(1, len(CLASSES)), len(FACTORS))])
    for begin in range(0, draws, AT_ONCE):
        size = min(AT_ONCE, draws - begin)
        best, where = np.full(size, -np.inf, np.float32), np.zeros(size, np.int64)
        for i, (level, count) in enumerate(row.levels):
            if not count:
                continue
            # The largest of n uniforms is u^(1 / n); that of their roundings down is its rounding down.
            largest = np.floor(rng.random(size) ** (1 / count) * LATTICE).astype(np.float32) / np.float32(LATTICE)
            with np.errstate(divide="ignore"):
                noisy = level - np.log(-np.log(largest))
            where[noisy > best] = i
            best = np.maximum(best, noisy)
        found += np.bincount(decade[where], minlength=len(found))
    return found


def by_decade(row: Row, counts: NDArray[Any]) -> NDArray[Any]:
    """Return sums over the classes of each decade."""
    return np.bincount(row.decade, counts, len(CLASSES))


def interval(expected: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return between what a Poisson count lies, but for one time in 1 / UNLIKELY."""
    low, high = scipy.stats.poisson(expected).interval(1 - UNLIKELY)
    return low, high


def chi_square(row: Row, counts: NDArray[np.int64]) -> tuple[float, int]:
    """Return the p-value of the classes that are expected often enough, the rest as one, and how many they are."""
    expected = row.p * counts.sum()
    head = expected >= LEAST
    seen, due = (np.append(x[head], x[~head].sum()) for x in (counts, expected))
    return float(scipy.stats.chisquare(seen, due, sum_check=False).pvalue), int(head.sum())
