"""Philox 4x32-10, a counter-based generator: the uniforms of a draw are a function of where it is, not of when.

    key = seed (64 bits)        counter = (offset (64 bits), step (32 bits), sample (32 bits))

Each counter gives four words of 32 bits: the first two make the uniform of the draw, the last two that of an
acceptance test (speculative decoding). Uniforms are k 2^-53 in [0, 1), k an integer of 53 bits. native/draws.cpp has
the same function.

Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = np.uint64(0xFFFFFFFF)
LOW = np.uint64(32)

Words = NDArray[np.uint64]


def philox(counter: tuple[ArrayLike, ...], key: tuple[ArrayLike, ...]) -> tuple[Words, ...]:
    """Return the four words of four-word counters under two-word keys: uint64 arrays that hold 32 bits each."""
    a, b, c, d = (np.asarray(word, np.uint64) for word in counter)
    k, m = (np.asarray(word, np.uint64) for word in key)
    first, second = (np.uint64(multiplier) for multiplier in MULTIPLIERS)
    for _ in range(ROUNDS):
        left, right = first * a, second * c
        a, b, c, d = (right >> LOW) ^ b ^ k, right & MASK, (left >> LOW) ^ d ^ m, left & MASK
        k, m = (k + np.uint64(WEYL[0])) & MASK, (m + np.uint64(WEYL[1])) & MASK
    return a, b, c, d


def uniforms(
    seed: NDArray[np.uint64],
    offset: NDArray[np.uint64],
    step: NDArray[np.uint64],
    samples: int,
    *,
    second: bool = False,
) -> NDArray[np.float64]:
    """Return the uniforms (N, S) of samples 0..S-1 of rows with these seeds, offsets and steps (N,), each uint64."""
    seed, offset, step = (word[:, None] for word in (seed, offset, step))
    counter = (offset & MASK, offset >> LOW, step & MASK, np.arange(samples, dtype=np.uint64)[None])
    words = philox(counter, (seed & MASK, seed >> LOW))
    low, high = words[2:] if second else words[:2]
    return ((high << LOW | low) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniforms_of_rows(seed: int, step: int, rows: int, samples: int, *, second: bool = False) -> NDArray[np.float64]:
    """Return the uniforms of rows 0..N-1 under one seed and step."""
    one = np.ones(rows, np.uint64)
    offset = np.arange(rows, dtype=np.uint64)
    return uniforms(np.uint64(seed) * one, offset, np.uint64(step) * one, samples, second=second)
