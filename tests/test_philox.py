"""The random bits: the vectors that Random123 publishes, the layout of a counter, and a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from lastlayer import _backends, _philox

ONES, M0, M1, W0, W1 = 0xFFFFFFFF, 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
UNLIKELY = 1e-4

# J. K. Salmon et al., Random123, known-answer tests of philox4x32 with 10 rounds: counter, key, words.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def words(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Return the words of one counter, by Python's integers, as the paper writes a round."""
    left, right = (counter[0], counter[2]), (counter[1], counter[3])
    k0, k1 = key
    for _ in range(10):
        (hi0, lo0), (hi1, lo1) = divmod(M0 * left[0], 1 << 32), divmod(M1 * left[1], 1 << 32)
        left, right = (hi1 ^ right[0] ^ k0, hi0 ^ right[1] ^ k1), (lo1, lo0)
        k0, k1 = (k0 + W0) & ONES, (k1 + W1) & ONES
    return left[0], right[0], left[1], right[1]


def uniform(seed: int, offset: int, step: int, sample: int, second: bool = False) -> float:
    """Return one uniform by the layout that _philox.py states."""
    four = words((offset & ONES, offset >> 32, step, sample), (seed & ONES, seed >> 32))
    low, high = four[2:] if second else four[:2]
    return (((high << 32) | low) >> 11) / 2**53


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_the_published_vectors(counter, key, expected):
    assert tuple(int(word) for word in _philox.philox(counter, key)) == expected
    assert words(counter, key) == expected


def test_all_vectors_at_once():
    counters, keys = (np.array([vector[i] for vector in VECTORS], np.uint64).T for i in (0, 1))
    found = np.stack(_philox.philox(tuple(counters), tuple(keys)), -1)
    assert found.tolist() == [list(vector[2]) for vector in VECTORS]


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("module", [_philox, _backends.cpu])
def test_where_seed_offset_step_and_sample_go(module, second):
    if module is None:
        pytest.skip("the native module is not built")
    rng = np.random.default_rng(0)
    seeds, offsets = rng.integers(0, 2**64, (2, 20), dtype=np.uint64)
    steps = rng.integers(0, 2**32, 20, dtype=np.uint64)
    seeds[:3], offsets[1:4], steps[2:5] = [0, 1, 2**64 - 1], [0, 2**32, 2**64 - 1], [0, 1, 2**32 - 1]
    found = module.uniforms(seeds, offsets, steps, 7, second=second)
    expected = [
        [uniform(*map(int, row), s, second) for s in range(7)] for row in zip(seeds, offsets, steps, strict=True)
    ]
    assert found.dtype == np.float64
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("change", "bit"),
    [(word, bit) for word in ("seed", "offset", "step") for bit in (0, 1, 31, 32, 63) if word != "step" or bit < 32],
)
def test_every_bit_counts(change, bit):
    words = {"seed": 5, "offset": 6, "step": 7}
    one, other = (
        _philox.uniforms(*(np.array([value], np.uint64) for value in {**words, **more}.values()), 50)
        for more in ({}, {change: words[change] ^ (1 << bit)})
    )
    assert not np.isin(one, other).any()


@pytest.mark.parametrize("second", [False, True])
def test_uniforms_lie_on_the_grid_below_one(second):
    n = np.arange(1000, dtype=np.uint64)
    u = _philox.uniforms(n, n * 0, n * 0, 1000, second=second)
    assert u.min() >= 0
    assert u.max() < 1
    assert np.array_equal(u * 2.0**53, np.floor(u * 2.0**53))
    assert len(np.unique(u)) == u.size
    assert (np.floor(u * 2.0**53) % 2 == 1).any(), "the 53rd bit is always 0"
    assert scipy.stats.kstest(u.reshape(-1), "uniform").pvalue > UNLIKELY


AXES = {"seed": 0, "offset": 1, "step": 2}


@pytest.mark.parametrize("axis", [*AXES, "sample", "second"])
def test_neighbours_are_independent(axis):
    """Pairs of uniforms whose seeds, offsets, steps or samples are neighbours fill the square evenly, 32 x 32 cells."""
    n, samples = 4000, 100
    counters = [np.zeros(n, np.uint64) + np.uint64(word) for word in (3, 1, 4)]
    if axis in AXES:
        counters[AXES[axis]] = np.arange(n, dtype=np.uint64)
    else:
        counters[1] = np.arange(n, dtype=np.uint64)
    u = _philox.uniforms(*counters, samples)
    first, after = {
        "sample": (u[:, ::2], u[:, 1::2]),
        "second": (u, _philox.uniforms(*counters, samples, second=True)),
    }.get(axis, (u[::2], u[1::2]))
    cells = (first * 32).astype(int) * 32 + (after * 32).astype(int)
    assert scipy.stats.chisquare(np.bincount(cells.reshape(-1), minlength=1024)).pvalue > UNLIKELY


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("second", [False, True])
def test_rows_under_one_seed_have_their_numbers_as_offsets(name: str, second: bool) -> None:
    backend = getattr(_backends, name)
    if backend is None:
        pytest.skip("no native module")
    one = np.ones(5, np.uint64)
    seed, step = (1 << 64) - 3, (1 << 32) - 2
    offset = np.arange(5, dtype=np.uint64)
    expected = _philox.uniforms(np.uint64(seed) * one, offset, np.uint64(step) * one, 7, second=second)
    assert np.array_equal(backend.uniforms_of_rows(seed, step, 5, 7, second=second), expected)
