"""The laws of draws, on every backend: which class a uniform gives, and what is said about it.

The draws are asked for as the front ends do, by ``backend.draw`` with uniforms, rules and edits, and tested against
float64 cumulative sums and mpmath. What is kept is in test_truncation.py.
"""

from __future__ import annotations

import math
from typing import Any

import laws
import ml_dtypes
import mpmath
import numpy as np
import pytest
import sampling_models as models
import scipy.special
import scipy.stats
from draw_laws import LAST, UNLIKELY, assert_frequencies, assert_mass_per_decade, draw, rows_of_all_kinds

from lastlayer import _backends, _draws
from lastlayer._draws import FINE, HAS_INFINITY, HAS_NAN, HAS_NOTHING, ORDERS, TOO_FEW, Drawn, Edits, Rules

TYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
INF, NAN = math.inf, math.nan


@pytest.fixture
def backend(backend: Any) -> Any:
    """Each backend that draws."""
    if not hasattr(backend, "draw"):
        pytest.skip("no draw kernel")
    return backend


# The same uniforms, the same class


def assert_inverse(backend: Any, index: Any, z: Any, uniforms: Any, temperature: float = 1.0) -> None:
    """Draws are those of a cumulative sum, but where the uniform lies within the rounding of a boundary, and rarely."""
    x = laws.wide(z)
    masses = np.exp((x - x.max(-1, keepdims=True)) / temperature).astype(np.longdouble)
    cumulative = np.cumsum(masses, -1)
    cumulative = cumulative / cumulative[:, -1:]
    count = z.shape[1]
    within = 2 * count * 2.0**-53 if backend is _backends.reference else 2.0**-20
    exact = np.stack([np.searchsorted(c, u, side="right") for c, u in zip(cumulative, uniforms, strict=True)])
    different = index != exact
    row = np.nonzero(different)[0]
    low, high = (np.minimum(side[different], other[different]) for side, other in ((index, exact), (exact, index)))
    low, high = np.minimum(index, exact)[different], np.maximum(index, exact)[different]
    far = np.maximum(
        np.abs(uniforms[different] - cumulative[row, low]), np.abs(uniforms[different] - cumulative[row, high - 1])
    )
    assert (far <= within).all(), far.max(initial=0)
    share = min(1.0, 2 * count * within)  # a uniform is that near one of the boundaries
    assert different.sum() <= scipy.stats.binom.ppf(1 - UNLIKELY, different.size, share)
    assert (np.take_along_axis(x, index, -1) > -INF).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("classes", [1, 2, 31, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_draws_equal_a_float64_reference(backend, dtype, classes, temperature, rng):
    z = (rng.standard_normal((9, classes)) * np.array([4, 4, 4, 0, 0.1, 20, 4, 4, 1])[:, None]).astype(dtype)
    z[6, 1:] = -INF
    z[7, :-1] = -INF
    uniforms = rng.random((9, 60))
    uniforms[:, :2] = 0, LAST
    found = draw(backend, z, uniforms, temperature=temperature)
    assert_inverse(backend, found.index, z, uniforms, temperature)
    assert_numbers(found, z, temperature)


@pytest.mark.parametrize("kind", ["spread", "flat", "peaked"])
def test_draws_equal_a_float64_reference_over_a_whole_vocabulary(backend, kind, rng):
    scale = {"spread": 4.0, "flat": 0.0, "peaked": 1.0}[kind]
    z = (rng.standard_normal((3, 128_256)) * scale).astype(np.float32)
    z[:, 70_000] += 12 * (kind == "peaked")
    uniforms = rng.random((3, 2000))
    uniforms[:, :2] = 0, LAST
    found = draw(backend, z, uniforms, temperature=0.8)
    assert_inverse(backend, found.index, z, uniforms, 0.8)
    assert_numbers(found, z, 0.8)


def assert_numbers(found: Drawn, z: Any, temperature: float) -> None:
    """What is said of the draws of a row without filters is true."""
    x, classes = laws.wide(z), z.shape[1]
    kind = np.float64 if z.dtype == np.float64 else np.float32
    for logprob, t in [(found.logprob, 1.0), (found.sampled_logprob, temperature)]:
        exact = np.take_along_axis(scipy.special.log_softmax(x / t, -1), found.index, -1)
        size = np.abs(x[x > -INF]).max() / t * (kind == np.float64)  # scipy's own rounding
        laws.assert_within(logprob, exact, exact, kind, terms=classes, size=size)
    lse = scipy.special.logsumexp(x, -1)
    laws.assert_within(found.logsumexp[:, None], lse[:, None], lse[:, None], kind, terms=classes, size=1.0)
    some = found.index[:, :20]
    rank = 1 + (x[:, None, :] > np.take_along_axis(x, some, -1)[:, :, None]).sum(-1)
    assert np.array_equal(found.rank[:, :20], rank)
    assert np.array_equal(found.kept, (x > -INF).sum(-1))
    laws.assert_within(found.kept_mass[:, None], np.ones((len(x), 1)), np.ones((len(x), 1)), np.float32, terms=classes)
    assert (found.status == FINE).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("margin", [0, 1, 5, 20, 40, 60])
def test_logprobs_keep_their_digits_in_confident_rows(backend, dtype, margin, rng):
    z = rng.standard_normal((3, 40)).astype(dtype)
    z[:, 11] = margin
    found = draw(backend, z, rng.random((3, 30)), temperature=0.5)
    kind = np.float64 if dtype == np.float64 else np.float32
    tiny = np.finfo(kind).tiny  # below it digits go
    with mpmath.workdps(60):
        for i, row in enumerate(z.astype(np.float64)):
            for logprob, t in [(found.logprob, 1), (found.sampled_logprob, mpmath.mpf(0.5))]:
                x = [mpmath.mpf(float(value)) / t for value in row]
                rest = [mpmath.fsum(mpmath.exp(other - x[j]) for k, other in enumerate(x) if k != j) for j in range(40)]
                exact = np.array([float(-mpmath.log1p(rest[j])) for j in found.index[i]])
                terms = 40 * 2.0 ** (
                    2 * margin + 8
                )  # a relative error of the odds is an absolute one of their logarithm
                laws.assert_within(logprob[i][:, None], exact[:, None], exact[:, None], kind, terms=terms, size=tiny)


# Both ends, and classes that nobody draws


def test_both_ends_of_the_uniforms(backend):
    z = np.array([[-INF, -INF, 0.0, -INF, 1.0, -INF], [-800.0, 0.0, -INF, 0.0, 0.0, -800.0]], np.float32)
    for replacement in (True, False):
        first = draw(backend, z, [[0.0], [0.0]], replacement=replacement).index[:, 0]
        last = draw(backend, z, [[LAST], [LAST]], replacement=replacement).index[:, 0]
        assert first.tolist() == [2, 1]
        assert last.tolist() == [4, 4]


@pytest.mark.parametrize("classes", [37, 100, 1000, 1024, 1030, 4096, 5000])
@pytest.mark.parametrize("numbers", [{}, {"top_p": 0.95}, {"min_p": 1e-3}], ids=str)
@pytest.mark.parametrize("replacement", [True, False])
def test_the_last_uniform_stays_below_any_total(backend, classes, numbers, replacement, rng):
    z = np.log(rng.random((200, classes))).astype(np.float32)
    z[:, -5:], z[:, :3] = -INF, -INF
    z[:, 3], z[:, -6] = 0.0, 0.0
    for u, expected in ((0.0, 3), (LAST, classes - 6)):
        found = draw(backend, z, np.full((200, 1), u), replacement=replacement, **numbers)
        assert (found.index == expected).all(), u


@pytest.mark.parametrize("classes", [1, 2, 37, 100, 1000, 1024, 1030, 5000])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("replacement", [True, False])
def test_weights_at_both_ends_of_the_uniforms(backend, classes, dtype, replacement, rng):
    p = (0.5 + rng.random((200, classes)) / 2).astype(dtype)
    first, last = min(3, classes - 1), max(0, classes - 6)
    p[:, :first], p[:, last + 1 :] = 0, 0
    p[:, [first, last]] = 1
    for u, expected in ((0.0, min(first, last)), (LAST, max(first, last))):
        index, status = backend.multinomial(p, np.full((200, 1), u), replacement)
        assert (status == FINE).all()
        assert (index == expected).all(), u


def test_a_million_draws_and_none_of_probability_zero(backend, rng):
    z = np.where(rng.random(3000) < 0.5, rng.uniform(-3, 0, 3000), -INF).astype(np.float32)
    z[[0, -1]] = -INF
    z[rng.integers(0, 3000, 300)] = -2000.0
    banned = np.flatnonzero(z > -4)[::7]
    edits = Edits(np.array([0, len(banned)]), banned, np.full(len(banned), -INF))
    index = draw(backend, z[None], rng.random((1, 1_000_000)), edits=edits).index[0]
    probs = np.where(z > -INF, np.exp(z.astype(np.float64)), 0.0)
    probs[banned] = 0
    assert np.isin(index, np.flatnonzero(probs)).all()
    counts = np.bincount(index, minlength=3000)
    assert_frequencies(counts, probs / probs.sum())


FILTERED = [
    {},
    {"temperature": 1.5},
    {"top_k": 2500},
    {"top_p": 0.99999},
    {"min_p": 1e-6},
    {"epsilon_cutoff": 1e-7, "temperature": 1.2},
    {"top_k": 2900, "typical_p": 0.99999},
]


@pytest.mark.parametrize("numbers", FILTERED, ids=str)
def test_a_million_draws_in_the_head_and_in_every_decade(backend, numbers, rng):
    """Many unlikely classes, the likely ones first: the tail is where float32 noise would cut."""
    z = -np.sort(rng.uniform(0, 14, 3000)).astype(np.float32)
    filters = [(name, models.EVERY[name]) for name in ORDERS["transformers"]]
    probs = np.exp(models.chain(filters, z.astype(np.float64), numbers).logprobs)
    index = draw(backend, z[None], rng.random((1, 1_000_000)), **numbers).index[0]
    counts = np.bincount(index, minlength=3000)
    assert_frequencies(counts, probs)
    assert_mass_per_decade(counts, probs, 4)


# Without replacement


def test_one_by_one_is_drawing_and_banning(backend, rng):
    """Each draw is the one that its uniform gives in a row from which those before it are banned."""
    z = rows_of_all_kinds(rng, 24, 60, ties=True)
    z = z[(z > -INF).sum(-1) >= 6]
    uniforms = rng.random((len(z), 6))
    found = draw(backend, z, uniforms, replacement=False, temperature=0.7)
    left = z.copy()
    for column in range(6):
        alone = draw(backend, left, uniforms[:, column : column + 1], temperature=0.7)
        assert np.array_equal(alone.index[:, 0], found.index[:, column])
        kinds = [each[:, :1] for each in (found.sampled_logprob[:, column:], alone.sampled_logprob)]
        laws.assert_within(kinds[0], kinds[1], kinds[1], np.float32, terms=60)
        left[np.arange(len(z)), found.index[:, column]] = -INF


def test_ordered_draws_have_the_probability_they_say(backend, rng):
    """Pairs come as often as exp(sum of sampled_logprob), which is p_i p_j / (1 - p_i)."""
    z = np.array([[math.log(0.1), -INF, math.log(0.2), math.log(0.3), math.log(0.4), -INF]])
    found = draw(backend, np.broadcast_to(z, (200_000, 6)), rng.random((200_000, 2)), replacement=False)
    pair = found.index[:, 0] * 6 + found.index[:, 1]
    said = np.zeros(36)
    said[pair] = np.exp(found.sampled_logprob.sum(-1))
    p = np.exp(z[0])
    exact = np.where(np.eye(6) > 0, 0, p[:, None] * p / (1 - p[:, None])).reshape(-1)
    laws.assert_within(said, exact, exact, np.float32, terms=6)
    assert_frequencies(np.bincount(pair, minlength=36), exact)


def test_all_that_is_kept_can_be_taken_out(backend, rng):
    z = (rng.standard_normal((40, 30)) * 200).astype(np.float32)
    found = draw(backend, z, rng.random((40, 12)), replacement=False, top_k=12)
    expected = np.sort(np.argsort(-z, -1)[:, :12], -1)
    assert np.array_equal(np.sort(found.index, -1), expected)
    assert np.isfinite(found.sampled_logprob).all()


@pytest.mark.parametrize("temperature", [1e-300, 1e-305, 5e-324])
def test_tiny_temperatures_take_classes_out_in_order(backend, temperature):
    """z / T overflows: what is left is the largest logit that is left, each time."""
    z = np.array([[0.0, 60000.0, -60000.0, 59000.0]], np.float32)
    found = draw(backend, z, np.full((1, 4), 0.5), replacement=False, temperature=temperature)
    assert found.index.tolist() == [[1, 3, 0, 2]]
    assert (found.sampled_logprob == 0).all()


@pytest.mark.parametrize("name", Rules._fields[1:])
@pytest.mark.parametrize("temperature", [5e-324, 1e-305, 1e-300, 1e-30, 1e-3])
@pytest.mark.parametrize("dtype", TYPES)
def test_tiny_temperatures_do_not_overflow(backend, temperature, dtype, name):
    z = np.array([[-60000, 60000, 59000, -INF]], dtype)
    found = draw(backend, z, np.linspace(0, LAST, 20)[None], temperature=temperature, **{name: 1.0})
    assert (found.index == 1).all()
    assert (found.sampled_logprob == 0).all()
    assert found.kept[0] >= 1


def test_huge_temperatures_are_flat(backend):
    z = np.array([[-5.0, 0.0, -INF, 5.0, 5.0]], np.float32)
    found = draw(backend, z, np.array([[0.0, 0.24, 0.26, 0.49, 0.51, 0.74, 0.76, LAST]]), temperature=1e300)
    assert found.index.tolist() == [[0, 0, 1, 1, 3, 3, 4, 4]]


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("gap", [80.0, 300.0, 710.0, 740.0])
def test_the_least_likely_class_has_a_logprob(backend, gap, replacement):
    """The uniform 0 draws it, once in 2^53; what is said of it is still true."""
    z = np.array([[-gap, 0.0, -1.0]])
    found = draw(backend, z, [[0.0]], replacement=replacement)
    assert found.index[0, 0] == 0
    exact = scipy.special.log_softmax(z)[:, :1]
    for logprob in (found.logprob, found.sampled_logprob):
        laws.assert_within(logprob, exact, exact, np.float64, terms=3)


# Edits, rows without a distribution, layouts


def test_edits_replace_logits(backend, rng):
    z = rng.standard_normal((5, 1500)).astype(np.float32)
    z[:, 3] = -INF
    start, index = np.array([0, 3, 3, 5, 5, 8]), np.array([0, 3, 1499, 1023, 1024, 2, 3, 700])
    value = np.array([5.0, 6.0, 5.5, -INF, 7.0, 0.25, 1.0 + 2.0**-40, 6.5])
    changed = z.astype(np.float64)
    for i in range(5):
        changed[i, index[start[i] : start[i + 1]]] = value[start[i] : start[i + 1]]
    uniforms = rng.random((5, 300))
    for numbers in ({}, {"top_k": 40, "top_p": 0.9}, {"temperature": 0.0}):
        found = draw(backend, z, uniforms, edits=Edits(start, index, value), **numbers)
        alone = draw(_backends.reference, changed, uniforms, **numbers)
        assert (found.index != alone.index).sum() <= (0 if backend is _backends.reference else 1)
        same = found.index == alone.index
        laws.assert_within(
            found.sampled_logprob[same],
            alone.sampled_logprob[same],
            alone.sampled_logprob[same],
            np.float32,
            terms=1500,
        )
        assert np.array_equal(found.kept, alone.kept)
        own = scipy.special.log_softmax(z.astype(np.float64), -1)  # logprob is of the logits as they were passed
        exact = np.take_along_axis(own, found.index, -1)
        laws.assert_within(found.logprob, exact, exact, np.float32, terms=1500)
        filters = [(name, models.EVERY[name]) for name in ORDERS["transformers"] if numbers.get(name, 0) > 0]
        kept = [
            models.chain(filters, row, numbers).classes if filters else np.flatnonzero(row > -INF) for row in changed
        ]
        kept = [
            np.array([row.argmax()]) if numbers.get("temperature") == 0 else k
            for row, k in zip(changed, kept, strict=True)
        ]
        share = np.array([np.exp(row)[each].sum() for row, each in zip(own, kept, strict=True)])[:, None]
        laws.assert_within(found.kept_mass[:, None], share, share, np.float32, terms=1500)
        mass = draw(_backends.reference, z, uniforms[:, :1]).logsumexp
        laws.assert_within(found.logsumexp[:, None], mass[:, None], mass[:, None], np.float32, terms=1500)


@pytest.mark.parametrize("classes", [3, 33, 1024, 3000])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("numbers", [{}, {"top_k": 2, "top_p": 0.9}, {"temperature": 0.0}, {"typical_p": 0.5}])
def test_rows_without_a_distribution_have_a_status_of_their_own(backend, classes, dtype, numbers, rng):
    z = rng.standard_normal((8, classes)).astype(dtype)
    z[1, -1], z[2, 0], z[3], z[5, classes // 2], z[6] = NAN, INF, -INF, NAN, INF
    z[5, 0] = -INF
    uniforms = rng.random((8, 4))
    found = draw(backend, z, uniforms, **numbers)
    assert found.status.tolist() == [FINE, HAS_NAN, HAS_INFINITY, HAS_NOTHING, FINE, HAS_NAN, HAS_INFINITY, FINE]
    alone = draw(backend, z[[0, 4, 7]], uniforms[[0, 4, 7]], **numbers)
    assert np.array_equal(found.index[[0, 4, 7]], alone.index)


def test_too_few_classes_to_take_out(backend):
    z = np.array([[0.0, 1.0, 2.0], [0.0, -INF, 1.0], [0.0, -INF, -INF]], np.float32)
    assert draw(backend, z, np.full((3, 2), 0.5), replacement=False).status.tolist() == [FINE, FINE, TOO_FEW]
    assert draw(backend, z, np.full((3, 2), 0.5), replacement=False, top_k=1).status.tolist() == [TOO_FEW] * 3
    assert draw(backend, z, np.full((3, 2), 0.5), replacement=False, temperature=0.0).status.tolist() == [TOO_FEW] * 3
    assert draw(backend, z, np.full((3, 4), 0.5), replacement=False).status.tolist() == [TOO_FEW] * 3


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("numbers", [{}, {"top_k": 50, "top_p": 0.9, "min_p": 0.02}, {"typical_p": 0.8}], ids=str)
@pytest.mark.parametrize("replacement", [True, False])
def test_a_row_does_not_know_its_neighbours_nor_its_strides(backend, dtype, numbers, replacement, rng):
    z = (rng.standard_normal((13, 2100)) * 2).astype(dtype)
    uniforms, temperature = rng.random((13, 5)), rng.uniform(0.5, 2, 13)
    numbers = {**numbers, "temperature": temperature}

    def at(z: Any, rows: Any, columns: int = 5) -> Drawn:
        some = {name: value[rows] if name == "temperature" else value for name, value in numbers.items()}
        return draw(backend, z, uniforms[rows, :columns], replacement=replacement, **some)

    whole = at(z, slice(None))
    wide = np.zeros((26, 4200), dtype)
    wide[::2, ::2] = z
    layouts = [np.asfortranarray(z), wide[::2, ::2], np.ascontiguousarray(z[::-1, ::-1])[::-1, ::-1]]
    for other in [at(layout, slice(None)) for layout in layouts]:
        for name, a, b in zip(Drawn._fields, whole, other, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
    rows = rng.permutation(13)[:7]
    for part in (rows, rows[:1]):
        for name, a, b in zip(Drawn._fields, whole, at(z[part], part), strict=True):
            np.testing.assert_array_equal(a[part], b, err_msg=name)
    assert np.array_equal(at(z, slice(None), 2).index, whole.index[:, :2])


def test_no_rows(backend):
    found = draw(backend, np.zeros((0, 5), np.float32), np.zeros((0, 3)))
    assert [each.shape for each in found] == [(0, 3)] * 4 + [(0,)] * 4


# Draws in two steps, and the largest logits


@pytest.mark.parametrize("classes", [1, 31, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("dtype", TYPES)
def test_block_and_class_make_the_inverse(backend, classes, dtype, rng):
    z = (rng.standard_normal((6, classes)) * 3).astype(dtype)
    z[4:, :-1] = -INF
    temperature = np.array([1.0, 0.3, 2.0, 1.0, 1.0, 0.5])
    uniforms = rng.random((6, 40))
    uniforms[:, :2] = 0, LAST
    top, mass = backend.masses(z, temperature)
    block, share = backend.choose(top, mass, temperature, uniforms)
    index = np.empty_like(block)
    for i, s in np.ndindex(*block.shape):
        first = int(block[i, s]) * _draws.BLOCK
        piece = z[i : i + 1, first : first + _draws.BLOCK]
        index[i, s] = first + backend.inside(piece, temperature[i : i + 1], share[i, s : s + 1])[0]
    whole = draw(_backends.reference, z, uniforms, temperature=temperature).index
    within = 2.0**-18 if backend is not _backends.reference else 2.0**-40
    assert (index != whole).sum() <= scipy.stats.binom.ppf(1 - UNLIKELY, index.size, min(1, classes * within))
    assert (np.take_along_axis(z, index, -1) > -INF).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("k", [1, 2, 17, 100])
def test_topk_is_a_stable_sort(backend, dtype, k, rng):
    z = np.round(rng.standard_normal((7, 100)) * 2).astype(dtype)
    z[3], z[4, 5:] = -INF, -INF
    value, index = backend.topk(z, k)
    order = np.argsort(-z.astype(np.float64), -1, kind="stable")[:, :k]
    assert np.array_equal(index, order)
    assert np.array_equal(np.asarray(value, np.float64), np.take_along_axis(z, order, -1).astype(np.float64))
