"""What draws must be: kept sets by a sort and classes by a cumulative sum, in float64, row by row, in plain NumPy.

Written apart from the library, which it judges. A draw may differ from it only where the uniform lies within ROUNDING
of a boundary between two classes; such draws are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kept = NDArray[np.bool_]

# Float32 sums of masses are off by at most r = 2^-18 of themselves (native/draws.cpp). A boundary F = before / total
# then moves by 2 r F (1 - F), by half of r at the most.
ROUNDING = 2.0**-19

TRANSFORMERS = (
    "temperature", "top_n_sigma", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
LLAMA = ("top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "epsilon_cutoff", "eta_cutoff", "temperature")


class Compared(NamedTuple):
    """Draws compared with the reference: how many, how many differ, and |u - boundary| at the most among those."""

    draws: int = 0
    differ: int = 0
    farthest: float = 0.0

    def __add__(self, other: Compared) -> Compared:  # type: ignore[override]
        return Compared(self.draws + other.draws, self.differ + other.differ, max(self.farthest, other.farthest))


def probabilities(x: Floats, kept: Kept) -> Floats:
    """Return softmax over what is kept."""
    masses = np.where(kept, np.exp(x - x[kept].max()), 0.0)
    return masses / masses.sum()


def beginning(key: Floats, kept: Kept, weight: Floats, target: float) -> Kept:
    """Return the shortest beginning, by ascending key and then class, of what is kept whose weight reaches a target."""
    order = np.argsort(np.where(kept, key, math.inf), kind="stable")[: int(kept.sum())]
    before = np.append(0.0, np.cumsum(weight[order])[:-1])
    chosen = np.zeros_like(kept)
    chosen[order[: max(1, int(np.searchsorted(before, target, side="left")))]] = True
    return chosen


def by_top_k(x: Floats, kept: Kept, k: float) -> Kept:
    return kept if k <= 0 else beginning(-x, kept, np.ones_like(x), k)


def by_top_p(x: Floats, kept: Kept, p: float) -> Kept:
    masses = np.where(kept, np.exp(x - x[kept].max()), 0.0)
    return kept if p == 1 else beginning(-x, kept, masses, p * masses.sum())


def by_min_p(x: Floats, kept: Kept, p: float) -> Kept:
    return kept & (np.exp(x - x[kept].max()) >= p)


def by_typical_p(x: Floats, kept: Kept, p: float) -> Kept:
    if p == 1:
        return kept
    q = probabilities(x, kept)
    surprise = -np.log(np.where(q > 0, q, 1.0))
    masses = np.where(kept, np.exp(x - x[kept].max()), 0.0)
    return beginning(np.abs(surprise - (q * surprise).sum()), kept, masses, p * masses.sum())


def by_epsilon(x: Floats, kept: Kept, epsilon: float) -> Kept:
    q = probabilities(x, kept)
    return kept & (q >= min(epsilon, q.max()))


def by_eta(x: Floats, kept: Kept, eta: float) -> Kept:
    q = probabilities(x, kept)
    entropy = -(q * np.log(np.where(q > 0, q, 1.0))).sum()
    return by_epsilon(x, kept, min(eta, math.sqrt(eta) * math.exp(-entropy)))


def by_top_n_sigma(x: Floats, kept: Kept, n: float) -> Kept:
    return kept & (x >= x[kept].max() - (n * x[kept].std() if n < math.inf else math.inf))


FILTERS: dict[str, Callable[[Floats, Kept, float], Kept]] = {
    "top_n_sigma": by_top_n_sigma,
    "top_k": by_top_k,
    "top_p": by_top_p,
    "min_p": by_min_p,
    "typical_p": by_typical_p,
    "epsilon_cutoff": by_epsilon,
    "eta_cutoff": by_eta,
}


def distribution(z: Floats, options: dict[str, Any], order: tuple[str, ...] = TRANSFORMERS) -> Floats:
    """Return the probabilities of a row's classes under the options; 0 for those that are not kept."""
    x, kept = z - z.max(), z > -math.inf
    for step in order:
        if step == "temperature":
            x = x / options.get("temperature", 1.0)
        elif step in options:
            kept = FILTERS[step](x, kept, options[step])
    return probabilities(x, kept)


def of_row(options: dict[str, Any], row: int) -> dict[str, Any]:
    """Return the options of one row."""
    return {name: value if np.ndim(value) == 0 else float(value[row]) for name, value in options.items()}


def compare(q: Floats, index: NDArray[np.int64], uniforms: Floats) -> Compared:
    """Compare draws from one row of probabilities with the first class whose cumulative sum exceeds u."""
    sums = np.cumsum(q)
    threshold = uniforms * sums[-1]
    other = np.searchsorted(sums, threshold, side="right") != index
    y, u = index[other], threshold[other]
    below = np.where(y > 0, sums[y - 1], 0.0)
    distance = np.maximum(below - u, u - sums[y]) / sums[-1]
    distance = np.where(q[y] > 0, distance, math.inf)
    return Compared(len(index), int(other.sum()), float(distance.max(initial=0.0)))


def compare_one_by_one(q: Floats, index: NDArray[np.int64], uniforms: Floats) -> Compared:
    """Compare draws without replacement, each with what those before it leave."""
    found, left = Compared(), q.copy()
    for y, u in zip(index, uniforms, strict=True):
        found += compare(left, np.array([y]), np.array([u]))
        left[y] = 0.0
    return found


def score(q: list[Floats], index: NDArray[np.int64]) -> float:
    """Return by how many standard deviations the mean log-probability of draws (N, S) is off; inf for impossible ones.

    A cheap test of peers, whose uniforms are not known.
    """
    off = variance = 0.0
    for row, drawn in zip(q, index, strict=True):
        if not ((drawn >= 0) & (drawn < len(row))).all() or not (row[drawn] > 0).all():
            return math.inf
        logs = np.log(np.where(row > 0, row, 1.0))
        mean = float(row @ logs)
        off += float(logs[drawn].sum()) - len(drawn) * mean
        variance += len(drawn) * float(row @ (logs - mean) ** 2)
    return abs(off) / math.sqrt(variance) if variance > 0 else 0.0
