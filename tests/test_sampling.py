"""The laws of draws: the class that float64 cumulative sums say, tails included, and never one of probability 0."""

import itertools

import laws
import ml_dtypes
import numpy as np
import pytest
import scipy.special
import scipy.stats

import lastlayer as ll
from lastlayer import _algebra, sampling

TYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
LAST = 1 - 2.0**-53  # the largest uniform
UNLIKELY = 1e-4  # of a correct sampler failing; seeds are fixed, so a test that passes keeps passing


@pytest.fixture
def rng():
    return np.random.default_rng(20261122)


def reference(weights, uniforms):
    """Return the first class whose float64 cumulative weight exceeds u * total, row by row."""
    cumulative = np.cumsum(weights, -1)
    return np.stack([np.searchsorted(c, u * c[-1], side="right") for c, u in zip(cumulative, uniforms, strict=True)])


def draw_logits(z, uniforms, temperature=1.0):
    z, uniforms = np.asarray(z), np.asarray(uniforms, np.float64)
    return sampling.from_logits(z, np.full(len(z), float(temperature)), uniforms, (len(z),))


def assert_frequencies(counts, probs):
    """Chi-square over the classes that are expected at least 10 times, the rest as one."""
    expected = probs * counts.sum()
    head = expected >= 10
    counts, expected = (np.append(x[head], x[~head].sum()) for x in (counts, expected))
    some = expected > 0
    assert (counts[~some] == 0).all()
    assert scipy.stats.chisquare(counts[some], expected[some]).pvalue > UNLIKELY


def assert_mass_per_decade(counts, probs):
    """In every decade of p the draws are as many as they should be, to the Poisson tails."""
    decade = np.floor(np.log10(np.where(probs > 0, probs, 1.0)))
    assert len(set(decade)) >= 5
    for d in set(decade[probs > 0]):
        expected, seen = probs[decade == d].sum() * counts.sum(), counts[decade == d].sum()
        low, high = scipy.stats.binom(int(counts.sum()), expected / counts.sum()).interval(1 - UNLIKELY)
        assert low <= seen <= high, (d, expected, seen)


# The same uniforms, the same class


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("classes", [1, 2, 3, 31, 64, 5000])
def test_draws_equal_a_float64_reference(dtype, temperature, classes, rng):
    z = (rng.standard_normal((9, classes)) * 4).astype(dtype)
    uniforms = rng.random((9, 50))
    x = z.astype(np.float64)
    weights = np.exp((x - x.max(-1, keepdims=True)) / temperature)
    sample = draw_logits(z, uniforms, temperature)
    assert np.array_equal(sample.index, reference(weights, uniforms))
    for logprob, t in [(sample.logprob, 1.0), (sample.sampled_logprob, temperature)]:
        exact = np.take_along_axis(_algebra.log_softmax(x / t), sample.index, -1)
        laws.assert_within(logprob, exact, exact, np.float32, terms=classes)


def test_both_ends_of_the_uniforms():
    z = [[-np.inf, -np.inf, 0.0, -np.inf, 1.0, -np.inf], [-800.0, 0.0, -np.inf, 0.0, 0.0, -800.0]]
    first = draw_logits(z, [[0.0], [0.0]]).index[:, 0]
    last = draw_logits(z, [[LAST], [LAST]]).index[:, 0]
    assert first.tolist() == [2, 1]
    assert last.tolist() == [4, 4]


@pytest.mark.parametrize("seed", range(20))
def test_the_last_uniform_stays_below_any_total(seed):
    rng = np.random.default_rng(seed)
    weights = rng.random((50, 37))
    weights[:, -5:] = 0
    assert (sampling.draw(weights, np.full((50, 1), LAST)) < 32).all()
    assert (sampling.draw(weights[:, ::-1], np.zeros((50, 1))) == 5).all()


def test_chunks_do_not_matter(rng, monkeypatch):
    z = rng.standard_normal((23, 10)).astype(np.float32)
    whole = ll.categorical(z, 5, rng=3), ll.multinomial(np.exp(z), 4, rng=3)
    monkeypatch.setattr(sampling, "CHUNK_BYTES", 1)
    pieces = ll.categorical(z, 5, rng=3), ll.multinomial(np.exp(z), 4, rng=3)
    for a, b in zip(whole[0], pieces[0], strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(whole[1], pieces[1])


# Frequencies


def test_a_million_draws_in_the_head_and_in_every_decade(rng):
    z = np.concatenate([rng.uniform(-14, 0, 3000), np.full(100, -np.inf)]).astype(np.float32)
    rng.shuffle(z)
    counts = np.bincount(ll.categorical(z, 1_000_000, rng=rng).index, minlength=3100)
    probs = scipy.special.softmax(z.astype(np.float64))
    assert_frequencies(counts, probs)
    assert_mass_per_decade(counts, probs)
    assert counts[probs == 0].sum() == 0


def test_a_million_tempered_draws(rng):
    z = rng.standard_normal(50)
    counts = np.bincount(ll.categorical(z, 1_000_000, temperature=0.5, rng=rng).index, minlength=50)
    assert_frequencies(counts, scipy.special.softmax(z / 0.5))


def test_a_million_draws_from_weights(rng):
    p = np.where(rng.random(500) < 0.3, 0, 10 ** rng.uniform(-7, 0, 500)).astype(np.float32)
    counts = np.bincount(ll.multinomial(p, 1_000_000, True, rng=rng), minlength=500)
    probs = p.astype(np.float64) / p.astype(np.float64).sum()
    assert_frequencies(counts, probs)
    assert_mass_per_decade(counts, probs)
    assert counts[p == 0].sum() == 0


def test_pairs_without_replacement(rng):
    p = np.array([0.1, 0.2, 0.3, 0.4, 0.0])
    pairs = ll.multinomial(np.broadcast_to(p, (200_000, 5)), 2, rng=rng)
    counts = np.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25)
    probs = np.zeros(25)
    for i, j in itertools.permutations(range(4), 2):
        probs[i * 5 + j] = p[i] * p[j] / (1 - p[i])
    assert_frequencies(counts, probs)
    assert counts[probs == 0].sum() == 0


def test_all_classes_without_replacement_are_a_permutation(rng):
    p = rng.random((300, 7)) * 10.0 ** rng.integers(-300, 1, (300, 7))
    assert (np.sort(ll.multinomial(p, 7, rng=rng), -1) == np.arange(7)).all()
    p[:, 2] = 0
    assert (np.sort(ll.multinomial(p, 6, rng=rng), -1) == [0, 1, 3, 4, 5, 6]).all()


def test_an_unlikely_class_needs_more_than_a_uniform_of_zero():
    """With 53 bits alone u = 0 would make any class the first to arrive: once in 2^53, whatever its weight."""
    weights = np.array([[1.0, 1e-20, 0.0]])
    uniforms = np.array([[[0.5, 0.0, 0.0], [0.5, 0.5, 0.0]]])
    assert sampling.race(weights, uniforms, 2).tolist() == [[0, 1]]
    uniforms[0, 1, 1] = 2.0**-40
    assert sampling.race(weights, uniforms, 2).tolist() == [[1, 0]]
    ends = np.array([[[LAST, LAST, 0.0], [LAST, LAST, 0.0]]])
    assert sampling.race(weights, ends, 2).tolist() == [[0, 1]]


def test_more_classes_than_float32_can_count(rng):
    """2^24 + 3 classes, of which the second half owns a third of the mass."""
    classes, draws = 2**24 + 3, 3000
    half = classes // 2
    p = np.full(classes, 2, np.float32)
    p[half:] = 1
    index = ll.multinomial(p, draws, True, rng=rng)
    share = p[half:].sum(dtype=np.float64) / p.sum(dtype=np.float64)
    low, high = scipy.stats.binom(draws, share).interval(1 - UNLIKELY)
    assert low <= (index >= half).sum() <= high
    assert len(set((index // 2**20).tolist())) >= 16


def test_weights_of_any_size(rng):
    for scale in (1e-320, 1e308):
        counts = np.bincount(ll.multinomial([scale, 0.0, scale], 1000, True, rng=rng), minlength=3)
        assert counts[1] == 0
        assert min(counts[0], counts[2]) > 400


# Temperature


def test_temperature_zero_is_argmax():
    z = [[1.0, 3.0, 3.0], [2.0, -np.inf, 2.0]]
    sample = ll.categorical(z, 4, temperature=0.0)
    assert (sample.index == [[1] * 4, [0] * 4]).all()
    assert (sample.sampled_logprob == 0).all()
    assert np.array_equal(sample.logprob[:, 0], ll.log_softmax(z)[[0, 1], [1, 0]])


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1e-3])
@pytest.mark.parametrize("dtype", TYPES)
def test_tiny_temperatures_do_not_overflow(temperature, dtype):
    z = np.array([[-60000, 60000, 59000, -np.inf]], dtype)
    sample = ll.categorical(z, 20, temperature=temperature, rng=0)
    assert (sample.index == 1).all()
    assert (sample.sampled_logprob == 0).all()


def test_a_temperature_per_row(rng):
    z = rng.standard_normal((2, 3, 50))
    t = np.array([[0.0, 0.5, 1.0], [2.0, 1e-9, 1.0]])
    sample = ll.categorical(z, 6, temperature=t, rng=0)
    for i, j in np.ndindex(2, 3):
        uniforms = np.random.default_rng(0).random((6, 6))[3 * i + j][None]
        alone = draw_logits(z[i, j][None], uniforms, t[i, j])
        for a, b in zip(sample, alone, strict=True):
            assert np.array_equal(a[i, j], b[0])
    assert np.array_equal(sample.logprob[:, 2], sample.sampled_logprob[:, 2])
    assert np.array_equal(ll.categorical(z, 6, temperature=t[:, :1], rng=0).index[0, 0], sample.index[0, 0])


# Shapes, types, generators


@pytest.mark.parametrize("dtype", TYPES)
def test_shapes_and_types(dtype, rng):
    z = rng.standard_normal((3, 4, 5)).astype(dtype)
    z.setflags(write=False)
    kind = np.float64 if dtype == np.float64 else np.float32
    for axis, rows in [(-1, (3, 4)), (1, (3, 5)), (0, (4, 5))]:
        one, many = ll.categorical(z, axis=axis, rng=0), ll.categorical(z, 7, axis=axis, rng=0)
        assert all(x.shape == rows for x in one)
        assert all(x.shape == (*rows, 7) for x in many)
        assert [x.dtype for x in many] == [np.int64, kind, kind]
        moved = ll.categorical(np.ascontiguousarray(np.moveaxis(z, axis, -1)), 7, rng=0)
        assert all(np.array_equal(a, b) for a, b in zip(many, moved, strict=True))
        logs = np.take_along_axis(np.moveaxis(ll.log_softmax(z.astype(kind), axis), axis, -1), many.index, -1)
        laws.assert_within(many.logprob, logs, logs, kind, terms=5)
    assert np.ndim(ll.categorical([0.0, 1.0]).index) == 0
    assert ll.categorical(np.zeros((0, 3))).index.shape == (0,)
    assert ll.categorical(np.zeros((2, 0, 3)), 4).logprob.shape == (2, 0, 4)
    for shape in [(6,), (2, 6), (0, 6)]:
        for replacement in (False, True):
            index = ll.multinomial(np.ones(shape, dtype), 3, replacement)
            assert index.shape == (*shape[:-1], 3)
            assert index.dtype == np.int64


def test_generators():
    z = np.zeros((5, 1000))
    seeds = [7, np.random.default_rng(7), np.random.PCG64(7), np.random.SeedSequence(7)]
    draws = [ll.categorical(z, 3, rng=seed).index for seed in seeds]
    assert all(np.array_equal(draws[0], other) for other in draws[1:])
    generator = np.random.default_rng(7)
    assert not np.array_equal(ll.categorical(z, rng=generator).index, ll.categorical(z, rng=generator).index)
    assert not np.array_equal(ll.categorical(z, 3).index, ll.categorical(z, 3).index)


# Malformed calls

NAN, INF = np.nan, np.inf
OK = np.zeros((2, 3))


def with_row(row):
    return np.array([[0.0, 1.0, 2.0], row])


MALFORMED = [
    (ll.categorical, (with_row([NAN, 0, 0]),), {}, ValueError, r"row\[1\] of input has NaN"),
    (ll.categorical, (with_row([-INF, NAN, -INF]),), {}, ValueError, r"row\[1\] of input has NaN"),
    (ll.categorical, (with_row([-INF] * 3),), {}, ValueError, r"row\[1\] of input has no logit above -inf"),
    (ll.categorical, (with_row([0, INF, 0]),), {}, ValueError, r"row\[1\] of input has \+inf"),
    (ll.categorical, (with_row([0, INF, 0]),), {"temperature": 0}, ValueError, r"row\[1\] of input has \+inf"),
    (ll.categorical, (with_row([0, NAN, 0])[None],), {}, ValueError, r"row\[0, 1\] of input has NaN"),
    (ll.categorical, ([NAN],), {}, ValueError, "the row of input has NaN"),
    (ll.categorical, (np.zeros((2, 0)),), {}, ValueError, "no classes"),
    (ll.categorical, (OK,), {"temperature": -0.5}, ValueError, "temperature = -0.5 must be"),
    (ll.categorical, (OK,), {"temperature": NAN}, ValueError, "temperature = nan must be"),
    (ll.categorical, (OK,), {"temperature": INF}, ValueError, "temperature = inf must be"),
    (ll.categorical, (OK,), {"temperature": [1.0, -1.0]}, ValueError, r"temperature\[1\] = -1.0 must be"),
    (ll.categorical, (OK,), {"temperature": [1.0] * 3}, ValueError, r"temperature has shape \(3,\).*rows, \(2,\)"),
    (ll.categorical, (OK,), {"temperature": "hot"}, TypeError, "temperature has dtype"),
    (ll.categorical, (OK, 0), {}, ValueError, "num_samples = 0 must be at least 1"),
    (ll.categorical, (OK, 1.5), {}, TypeError, "float"),
    (ll.categorical, (OK,), {"axis": 2}, ValueError, "axis 2"),
    (ll.categorical, (1.0,), {}, ValueError, "axis -1"),
    (ll.categorical, (OK.astype(complex),), {}, TypeError, "input has dtype complex128"),
    (ll.categorical, ([True, False],), {}, TypeError, "input has dtype bool"),
    (ll.multinomial, (np.zeros((1, 2, 3)), 1), {}, ValueError, "prob_dist must be 1 or 2 dim"),
    (ll.multinomial, (1.0, 1), {}, ValueError, "prob_dist must be 1 or 2 dim"),
    (ll.multinomial, ([1.0, 1.0], 0), {}, ValueError, "cannot sample n_sample <= 0 samples"),
    (ll.multinomial, ([1.0, 1.0], -1), {}, ValueError, "cannot sample n_sample <= 0 samples"),
    (ll.multinomial, ([1.0, 1.0], 3), {}, ValueError, "cannot sample n_sample > prob_dist"),
    (ll.multinomial, ([1.0, 0.0], 2), {}, ValueError, r"not enough non-negative.*row 0 has 1 weights above 0"),
    (ll.multinomial, ([[1.0, 1.0], [0.0, 1.0]], 2), {}, ValueError, r"row 1 has 1 weights above 0, num_samples = 2"),
    *(
        (ll.multinomial, (with_row(row), 1, replacement), {}, ValueError, f"{match}.*row 1")
        for replacement in (False, True)
        for row, match in [
            ([1, -1, 1], "element < 0"),
            ([1, INF, 1], "`inf`"),
            ([1, NAN, 1], "`nan`"),
            ([0, 0, 0], r"invalid multinomial distribution \(sum of probabilities <= 0\)"),
        ]
    ),
    (ll.multinomial, (np.zeros((2, 0)), 1, True), {}, ValueError, "invalid multinomial distribution"),
    (ll.multinomial, ([1.0, 1.0], 1.0), {}, TypeError, "float"),
    (ll.multinomial, (["a"], 1), {}, TypeError, "input has dtype <U1"),
]


@pytest.mark.parametrize(("f", "args", "kwargs", "error", "match"), MALFORMED)
def test_malformed_calls_raise(f, args, kwargs, error, match):
    with pytest.raises(error, match=match):
        f(*args, **kwargs)
