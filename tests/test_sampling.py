"""The laws of ``categorical`` and ``multinomial`` for NumPy: how draws are asked for, and what they depend on.

What is drawn is tested in test_draws.py, backend by backend; here both front doors are, with each backend behind them.
"""

from __future__ import annotations

import itertools
from typing import Any

import laws
import ml_dtypes
import numpy as np
import pytest
import scipy.special
import scipy.stats
from draw_laws import UNLIKELY, assert_frequencies, assert_mass_per_decade, inverse

import lastlayer as ll
from lastlayer import _backends, _draw_arguments, sampling

TYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
NAN, INF = np.nan, np.inf


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each backend in turn, named by the user."""
    module = getattr(_backends, request.param)
    if module is None:
        pytest.skip("the native module is not built")
    monkeypatch.setenv("LASTLAYER_BACKEND", request.param)
    return module


def assert_equal(some: Any, others: Any) -> None:
    """Two samples are the same, to the bit."""
    for name, a, b in zip(sampling.Sample._fields, some, others, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


# Which uniform a draw gets


def uniforms_of(shape: tuple[int, ...], samples: int, seed: Any, offset: Any = None, step: Any = 0) -> Any:
    return _draw_arguments.read_uniforms(seed, offset, step, shape, samples)


@pytest.mark.parametrize(
    ("seed", "offset", "step"),
    [
        (5, None, 0),
        (2**64 - 1, None, 2**32 - 1),
        (-1, -1, 7),
        (5, np.array([[3, 2**63, 9]], np.uint64), 0),
        ([[1, 2, 3], [4, 5, 6]], None, [[1], [2]]),
        ([[7], [8]], [0, 1, 2], np.uint8(3)),
    ],
)
def test_draws_follow_from_seed_offset_and_step(seed, offset, step, rng):
    z = rng.standard_normal((2, 3, 400))
    sample = ll.categorical(z, 30, seed=seed, offset=offset, step=step, temperature=0.7)
    words = [np.array(np.broadcast_to(np.asarray(each), (2, 3))).astype(np.uint64).reshape(6) for each in (seed, step)]
    default = np.arange(6) * (np.ndim(seed) == 0)
    offsets = default if offset is None else np.broadcast_to(np.asarray(offset), (2, 3)).reshape(6)
    u = sampling._backends.reference.uniforms(words[0], offsets.astype(np.uint64), words[1], 30)
    weights = np.exp((z - z.max(-1, keepdims=True)).reshape(6, 400) / 0.7)
    assert np.array_equal(sample.index.reshape(6, 30), inverse(weights, u))


def test_a_row_s_draws_are_its_own(rng):
    """Batch-mates, the place in the batch, the number of samples and the axis do not matter: only the words do."""
    z = (rng.standard_normal((7, 500)) * 3).astype(np.float32)
    seeds, offsets, steps = rng.integers(0, 2**62, (3, 7)) % [[2**62], [2**62], [2**32]]
    numbers = {
        "temperature": rng.uniform(0.5, 2, 7), "top_k": rng.integers(5, 100, 7), "top_p": rng.uniform(0.5, 1, 7),
        "repetition_penalty": rng.uniform(1, 2, 7),
    }  # fmt: skip
    ids = rng.integers(-1, 500, (7, 12))
    words = {"seed": seeds, "offset": offsets, "step": steps}
    whole = ll.categorical(z, 9, **words, **numbers, token_ids=ids)
    for rows in ([3], [5, 1], [6, 5, 4, 3, 2, 1, 0], [2, 2, 2]):
        some = {name: value[rows] for name, value in {**words, **numbers}.items()}
        part = ll.categorical(z[rows], 9, **some, token_ids=ids[rows])
        assert_equal(part, [field[rows] for field in whole])
    for i in range(7):
        some = {name: value[i] for name, value in {**words, **numbers}.items()}
        assert_equal(ll.categorical(z[i], 9, **some, token_ids=ids[i]), [field[i] for field in whole])
    fewer = ll.categorical(z, 4, **words, **numbers, token_ids=ids)
    one = ll.categorical(z, **words, **numbers, token_ids=ids)
    for name, a, b, c in zip(sampling.Sample._fields, whole, fewer, one, strict=True):
        per_row = name in sampling.PER_ROW
        assert np.array_equal(a if per_row else a[:, :4], b)
        assert np.array_equal(a if per_row else a[:, 0], c)
    moved = ll.categorical(z.T, 9, axis=0, **words, **numbers, token_ids=ids)
    assert_equal(whole, moved)


def test_words_that_differ_give_other_draws():
    z = np.zeros((4, 1000))
    base = {"seed": 1, "offset": np.arange(4), "step": 0}
    draws = [ll.categorical(z, 200, **base).index]
    for change in ({"seed": 2}, {"seed": 1 + 2**32}, {"offset": np.arange(4) + 4}, {"step": 1}, {"step": 2**31}):
        draws.append(ll.categorical(z, 200, **{**base, **change}).index)
    same = [np.mean(a == b) for a, b in itertools.combinations(draws, 2)]
    assert max(same) < scipy.stats.binom.ppf(1 - UNLIKELY, 800, 1e-3) / 800
    rows = [np.mean(draws[0][i] == draws[0][j]) for i, j in itertools.combinations(range(4), 2)]
    assert max(rows) < scipy.stats.binom.ppf(1 - UNLIKELY, 200, 1e-3) / 200


@pytest.mark.parametrize("word", ["seed", "offset", "step", "sample"])
def test_draws_of_neighbouring_words_are_independent(word):
    """Pairs of classes drawn at n and n + 1 come as often as p_i p_j."""
    n, p = 60_000, np.array([0.1, 0.4, 0.2, 0.3])
    words = {"seed": 0, "offset": 0, "step": 0}
    if word == "sample":
        index = ll.categorical(np.log(p), 2 * n, seed=3).index
    else:
        index = ll.categorical(np.broadcast_to(np.log(p), (2 * n, 4)), **{**words, word: np.arange(2 * n)}).index
    assert_frequencies(np.bincount(index[::2] * 4 + index[1::2], minlength=16), np.outer(p, p).reshape(-1))


def test_seeds_of_all_rows_are_read(rng):
    z = np.zeros((50, 20_000), np.float32)
    assert len(set(ll.categorical(z, seed=np.arange(50)).index.tolist())) > 40
    assert len(set(ll.categorical(z, seed=np.zeros(50, int)).index.tolist())) == 1
    assert len(set(ll.categorical(z, seed=0).index.tolist())) > 40
    mixed = ll.categorical(z, seed=[*[5] * 25, *range(25)]).index
    assert len(set(mixed[:25].tolist())) == 1
    assert len(set(ll.multinomial(z + 1, 1, seed=np.arange(50))[:, 0].tolist())) > 40


@pytest.mark.parametrize("threads", ["1", "2", "3", "7"])
def test_threads_change_nothing(monkeypatch, threads, rng):
    z = (rng.standard_normal((11, 70_000)) * 2).astype(np.float32)
    numbers = {"temperature": 0.9, "top_p": rng.uniform(0.3, 1, 11), "min_p": 1e-4, "seed": 4}
    drawn = ll.categorical(z, 3, **numbers), ll.categorical(z[:1], 3, temperature=0.8, seed=1)
    index = ll.multinomial(np.exp(z), 3, seed=2)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert_equal(drawn[0], ll.categorical(z, 3, **numbers))
    assert_equal(drawn[1], ll.categorical(z[:1], 3, temperature=0.8, seed=1))
    assert np.array_equal(index, ll.multinomial(np.exp(z), 3, seed=2))


def test_chunks_do_not_matter(rng, monkeypatch):
    z = rng.standard_normal((23, 10)).astype(np.float32)
    numbers = {
        "temperature": rng.uniform(0.5, 2, 23),
        "top_k": rng.integers(1, 10, 23),
        "token_ids": rng.integers(0, 10, (23, 4)),
        "presence_penalty": rng.uniform(0, 2, 23),
        "bans": (np.arange(23), rng.integers(0, 10, 23)),
    }

    def all_kinds() -> Any:
        return (
            *ll.categorical(z, 5, rng=3),
            *ll.categorical(z, 5, rng=3, **numbers),
            *ll.categorical(z, 5, rng=3, replacement=False),
            ll.multinomial(np.exp(z), 4, rng=3),
            ll.multinomial(np.exp(z), 4, True, rng=3),
        )

    whole = all_kinds()
    monkeypatch.setattr(sampling, "CHUNK_BYTES", 1)
    for a, b in zip(whole, all_kinds(), strict=True):
        assert np.array_equal(a, b)


# Frequencies


def test_a_million_draws_in_the_head_and_in_every_decade(rng):
    z = np.concatenate([rng.uniform(-14, 0, 3000), np.full(100, -np.inf)]).astype(np.float32)
    rng.shuffle(z)
    counts = np.bincount(ll.categorical(z, 1_000_000, rng=rng).index, minlength=3100)
    probs = scipy.special.softmax(z.astype(np.float64))
    assert_frequencies(counts, probs)
    assert_mass_per_decade(counts, probs)
    assert counts[probs == 0].sum() == 0


def test_a_million_rows_of_one_draw(rng):
    z = np.array([0.0, -INF, 1.0, -3.0, 2.0, -7.0, -INF], np.float32)
    index = ll.categorical(np.broadcast_to(z, (1_000_000, 7)), seed=11).index
    assert_frequencies(np.bincount(index, minlength=7), scipy.special.softmax(z.astype(np.float64)))


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


# Weights


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("classes", [1, 2, 31, 1023, 1024, 1025, 5000])
def test_draws_from_weights_equal_a_float64_reference(backend, dtype, classes, rng):
    p = np.where(rng.random((8, classes)) < 0.3, 0, rng.random((8, classes))).astype(dtype)
    p[:, classes // 2] = 0.5
    index = ll.multinomial(p, 70, True, seed=9)
    exact = inverse(p.astype(np.float64), uniforms_of((8,), 70, 9))
    within = 2 * classes * (2.0**-53 if backend is _backends.reference else 2.0**-20)
    assert (index != exact).sum() <= scipy.stats.binom.ppf(1 - UNLIKELY, index.size, min(1.0, within))
    assert (np.take_along_axis(p, index, -1) > 0).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_weights_without_replacement_are_drawn_one_after_the_other(dtype, rng):
    p = rng.random((40, 30)).astype(dtype)
    index = ll.multinomial(p, 12, seed=1)
    left = p.astype(np.float64)
    uniforms = uniforms_of((40,), 12, 1)
    for column in range(12):
        assert np.array_equal(index[:, column], inverse(left, uniforms[:, column : column + 1])[:, 0])
        np.put_along_axis(left, index[:, column : column + 1], 0, -1)


def probabilities_of_pairs(p: Any) -> Any:
    """Return p_i p_j / (1 - p_i), the law of two classes drawn without replacement."""
    probs = np.zeros(len(p) ** 2)
    for i, j in itertools.permutations(np.flatnonzero(p), 2):
        probs[i * len(p) + j] = p[i] * p[j] / (1 - p[i])
    return probs


def test_pairs_without_replacement(rng):
    p = np.array([0.1, 0.2, 0.3, 0.4, 0.0])
    pairs = ll.multinomial(np.broadcast_to(p, (200_000, 5)), 2, rng=rng)
    counts, probs = np.bincount(pairs[:, 0] * 5 + pairs[:, 1], minlength=25), probabilities_of_pairs(p)
    assert_frequencies(counts, probs)
    assert counts[probs == 0].sum() == 0


def test_pairs_from_logits_without_replacement(rng):
    z = np.array([0.3, -INF, 1.0, -1.0, 0.0], np.float32)
    rows = np.broadcast_to(z, (200_000, 5))
    sample = ll.categorical(rows, 2, replacement=False, rng=rng, temperature=0.8, top_k=3)
    p = np.where(z < 0, 0.0, scipy.special.softmax(np.where(z < 0, -INF, z.astype(np.float64) / 0.8)))
    pairs, probs = sample.index[:, 0] * 5 + sample.index[:, 1], probabilities_of_pairs(p)
    assert_frequencies(np.bincount(pairs, minlength=25), probs)
    said = sample.sampled_logprob.astype(np.float64).sum(-1)
    laws.assert_within(said, np.log(probs[pairs]), np.log(probs[pairs]), np.float32, terms=5)


def test_all_classes_without_replacement_are_a_permutation(rng):
    p = rng.random((300, 7)) * 10.0 ** rng.integers(-300, 1, (300, 7))
    assert (np.sort(ll.multinomial(p, 7, rng=rng), -1) == np.arange(7)).all()
    p[:, 2] = 0
    assert (np.sort(ll.multinomial(p, 6, rng=rng), -1) == [0, 1, 3, 4, 5, 6]).all()


def test_permutations_are_as_likely_as_they_should_be(rng):
    """Of three classes all six orders come, each as often as the product of its steps."""
    p = np.array([0.6, 0.3, 0.1])
    index = ll.multinomial(np.broadcast_to(p, (120_000, 3)), 3, rng=rng)
    orders = list(itertools.permutations(range(3)))
    counts = np.array([(index == order).all(-1).sum() for order in orders])
    assert_frequencies(counts, np.array([p[i] * p[j] / (1 - p[i]) for i, j, _ in orders]))


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


@pytest.mark.parametrize("scale", [1e-320, 1e-45, 1e38, 1e308])
def test_weights_of_any_size(scale):
    for dtype in (np.float32, np.float64):
        if float(np.finfo(dtype).smallest_subnormal) <= scale <= float(np.finfo(dtype).max):
            counts = np.bincount(ll.multinomial(np.array([scale, 0.0, scale], dtype), 1000, True, rng=1), minlength=3)
            assert counts[1] == 0
            assert min(counts[0], counts[2]) > 400


# Temperature, truncation


def test_temperature_zero_is_argmax():
    z = [[1.0, 3.0, 3.0], [2.0, -np.inf, 2.0]]
    sample = ll.categorical(z, 4, temperature=0.0, top_k=2, top_p=0.3, typical_p=0.2)
    assert (sample.index == [[1] * 4, [0] * 4]).all()
    assert (sample.sampled_logprob == 0).all()
    assert (sample.kept == 1).all()
    exact = ll.log_softmax(z)[[0, 1], [1, 0]]
    laws.assert_within(sample.logprob[:, 0], exact, exact, np.float64, terms=3)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1e-3])
@pytest.mark.parametrize("dtype", TYPES)
def test_tiny_temperatures_do_not_overflow(temperature, dtype):
    z = np.array([[-60000, 60000, 59000, -np.inf]], dtype)
    sample = ll.categorical(z, 20, temperature=temperature, rng=0)
    assert (sample.index == 1).all()
    assert (sample.sampled_logprob == 0).all()


def test_all_numbers_can_be_per_row(rng):
    z = rng.standard_normal((2, 3, 50)) * 2
    numbers = {
        "temperature": np.array([[0.0, 0.5, 1.0], [2.0, 1e-9, 1.0]]),
        "top_k": np.array([[0, 5, -1], [60, 50, 1]]),
        "top_p": np.array([1.0, 0.5, 0.9]),
        "min_p": np.array([[0.0], [0.1]]),
        "typical_p": 0.95,
        "epsilon_cutoff": np.array([[1e-3, 0.0, 0.02], [0.0, 1.0, 0.0]]),
        "eta_cutoff": [0.0, 1e-2, 1e-3],
        "top_n_sigma": [[np.inf], [1.5]],
    }
    sample = ll.categorical(z, 6, seed=3, **numbers)
    for place in np.ndindex(2, 3):
        mine = {name: np.broadcast_to(value, (2, 3))[place] for name, value in numbers.items()}
        alone = ll.categorical(z[place], 6, seed=3, offset=3 * place[0] + place[1], **mine)
        assert_equal(alone, [field[place] for field in sample])
    plain = ll.categorical(z, 6, seed=3)
    laws.assert_within(plain.logprob, plain.sampled_logprob, plain.sampled_logprob, np.float64, terms=50)


NO_FILTER = [
    {"temperature": 1},
    *({"top_k": k} for k in (0, -1, 50, 2**40)),
    *({name: 1} for name in ("top_p", "typical_p")),
    *({name: 0} for name in ("min_p", "epsilon_cutoff", "eta_cutoff")),
    {"top_n_sigma": INF},
]


@pytest.mark.parametrize("neutral", NO_FILTER, ids=str)
def test_what_is_neutral_changes_nothing(neutral, rng):
    z = (rng.standard_normal((4, 50)) * 20).astype(np.float32)
    assert_equal(ll.categorical(z, 8, seed=1, **neutral), ll.categorical(z, 8, seed=1))


def test_orders_by_name_and_by_list(rng):
    z = (rng.standard_normal((30, 60)) * 3).astype(np.float32)
    numbers = {"temperature": 2.5, "top_k": 30, "top_p": 0.7, "min_p": 0.1, "seed": 1}
    kept = {name: ll.categorical(z, order=name, **numbers).kept for name in ("transformers", "vllm", "llama.cpp")}
    assert np.array_equal(kept["transformers"], ll.categorical(z, **numbers).kept)
    assert not np.array_equal(kept["transformers"], kept["vllm"])
    assert not np.array_equal(kept["transformers"], kept["llama.cpp"])
    by_hand = ll.categorical(z, order=("temperature", "min_p", "top_k", "top_p"), **numbers)
    assert np.array_equal(by_hand.kept, kept["vllm"])
    rest = ll.categorical(
        z, order=["top_k", "top_p", "min_p"], **numbers
    )  # those not named come after: temperature last
    assert np.array_equal(rest.kept, kept["llama.cpp"])


# Shapes, types, generators


@pytest.mark.parametrize("dtype", TYPES)
def test_shapes_and_types(dtype, rng):
    z = rng.standard_normal((3, 4, 5)).astype(dtype)
    z.setflags(write=False)
    kind = np.float64 if dtype == np.float64 else np.float32
    fields = sampling.Sample._fields
    for axis, rows in [(-1, (3, 4)), (1, (3, 5)), (0, (4, 5))]:
        one, many = ll.categorical(z, axis=axis, rng=0), ll.categorical(z, 7, axis=axis, rng=0)
        assert all(x.shape == rows for x in one)
        for name, x in zip(fields, many, strict=True):
            assert x.shape == (rows if name in ("kept", "kept_mass", "logsumexp") else (*rows, 7))
            assert x.dtype == (np.int64 if name in ("index", "kept", "rank") else kind)
        moved = ll.categorical(np.ascontiguousarray(np.moveaxis(z, axis, -1)), 7, rng=0)
        assert_equal(many, moved)
        logs = np.take_along_axis(np.moveaxis(ll.log_softmax(z.astype(kind), axis), axis, -1), many.index, -1)
        laws.assert_within(many.logprob, logs, logs, kind, terms=5)
    assert np.ndim(ll.categorical([0.0, 1.0]).index) == 0
    assert all(x.shape == (0,) for x in ll.categorical(np.zeros((0, 3))))
    assert ll.categorical(np.zeros((2, 0, 3)), 4).logprob.shape == (2, 0, 4)
    for shape in [(6,), (2, 6), (0, 6)]:
        for replacement in (False, True):
            index = ll.multinomial(np.ones(shape, dtype), 3, replacement)
            assert index.shape == (*shape[:-1], 3)
            assert index.dtype == np.int64


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.dtype(">f4"), np.dtype(">f8")])
def test_other_numbers_are_logits_and_weights_too(kind, rng):
    z = rng.integers(0, 5, (4, 30))
    wide = z.astype(np.float64)
    assert np.array_equal(ll.categorical(z.astype(kind), 9, seed=1).index, ll.categorical(wide, 9, seed=1).index)
    assert np.array_equal(ll.multinomial(z.astype(kind), 9, seed=1), ll.multinomial(wide, 9, seed=1))


def test_generators():
    z = np.zeros((5, 1000))
    seeds = [7, np.random.default_rng(7), np.random.PCG64(7), np.random.SeedSequence(7)]
    draws = [ll.categorical(z, 3, rng=seed).index for seed in seeds]
    assert all(np.array_equal(draws[0], other) for other in draws[1:])
    generator = np.random.default_rng(7)
    assert not np.array_equal(ll.categorical(z, rng=generator).index, ll.categorical(z, rng=generator).index)
    assert not np.array_equal(ll.categorical(z, 3).index, ll.categorical(z, 3).index)
    assert not np.array_equal(ll.multinomial(z + 1, 3), ll.multinomial(z + 1, 3))


def test_nothing_is_written_to(rng):
    z, ids = rng.standard_normal((4, 30)).astype(np.float32), rng.integers(0, 30, (4, 6))
    copies = z.copy(), ids.copy()
    for array in (z, ids):
        array.setflags(write=False)
    ll.categorical(z, 3, seed=0, top_k=5, token_ids=ids, presence_penalty=1.0, bans=(0, [1, 2]), replacement=False)
    ll.multinomial(np.abs(z), 3, seed=0)
    assert np.array_equal(z, copies[0])
    assert np.array_equal(ids, copies[1])


# Malformed calls

OK = np.zeros((2, 3))
IDS = np.zeros((2, 4), int)


def with_row(row: Any) -> Any:
    return np.array([[0.0, 1.0, 2.0], row])


MALFORMED = [
    (ll.categorical, (with_row([NAN, 0, 0]),), {}, ValueError, r"row\[1\] of input has NaN"),
    (ll.categorical, (with_row([-INF, NAN, -INF]),), {}, ValueError, r"row\[1\] of input has NaN"),
    (ll.categorical, (with_row([-INF] * 3),), {}, ValueError, r"row\[1\] of input has no logit above -inf"),
    (ll.categorical, (with_row([0, INF, 0]),), {}, ValueError, r"row\[1\] of input has \+inf"),
    (ll.categorical, (with_row([0, INF, 0]),), {"temperature": 0}, ValueError, r"row\[1\] of input has \+inf"),
    (ll.categorical, (with_row([0, INF, 0]),), {"top_k": 1, "top_p": 0.5}, ValueError, r"row\[1\] of input has \+inf"),
    (ll.categorical, (with_row([0, NAN, 0])[None],), {}, ValueError, r"row\[0, 1\] of input has NaN"),
    (ll.categorical, ([NAN],), {}, ValueError, "the row of input has NaN"),
    (ll.categorical, (np.zeros((2, 0)),), {}, ValueError, "no classes"),
    (ll.categorical, (OK,), {"temperature": -0.5}, ValueError, "temperature = -0.5 must be"),
    (ll.categorical, (OK,), {"temperature": NAN}, ValueError, "temperature = nan must be"),
    (ll.categorical, (OK,), {"temperature": INF}, ValueError, "temperature = inf must be"),
    (ll.categorical, (OK,), {"temperature": [1.0, -1.0]}, ValueError, r"temperature\[1\] = -1.0 must be"),
    (ll.categorical, (OK,), {"temperature": [1.0] * 3}, ValueError, r"temperature has shape \(3,\).*rows, \(2,\)"),
    (ll.categorical, (OK,), {"temperature": "hot"}, TypeError, "temperature has dtype"),
    (ll.categorical, (OK,), {"top_k": -2}, ValueError, "top_k = -2 must be a number of classes, or 0 or -1"),
    (ll.categorical, (OK,), {"top_k": [1, -5]}, ValueError, r"top_k\[1\] = -5 must be a number of classes"),
    (ll.categorical, (OK,), {"top_k": 2.0}, TypeError, "top_k = 2.0 must be an integer"),
    (ll.categorical, (OK,), {"top_k": [2.0, 1.0]}, TypeError, "top_k has dtype float64, expected integers"),
    *(
        (ll.categorical, (OK,), {name: value}, ValueError, f"{name} = {value} must lie in")
        for name in ("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
        for value in (-0.1, 1.1, NAN, INF)
    ),
    (ll.categorical, (OK,), {"top_n_sigma": -1.0}, ValueError, "top_n_sigma = -1.0 must be a number >= 0"),
    (ll.categorical, (OK,), {"order": "hf"}, ValueError, "order = 'hf' is not one of 'transformers'"),
    (ll.categorical, (OK,), {"order": ("top_q",)}, ValueError, "order names 'top_q', which is not one of"),
    (ll.categorical, (OK,), {"order": ("top_k", "top_k")}, ValueError, "names a step twice"),
    (ll.categorical, (OK,), {"repetition_penalty": 1.2}, ValueError, "repetition_penalty needs token_ids"),
    (ll.categorical, (OK,), {"presence_penalty": 1, "prompt_ids": IDS}, ValueError, "presence_penalty needs token_ids"),
    (ll.categorical, (OK,), {"repetition_penalty": 0, "token_ids": IDS}, ValueError, "repetition_penalty = 0 must be"),
    (ll.categorical, (OK,), {"presence_penalty": INF, "token_ids": IDS}, ValueError, "presence_penalty = inf must be"),
    (ll.categorical, (OK,), {"token_ids": IDS + 3}, IndexError, r"token_ids\[0, 0\] = 3 is outside \[0, 3\)"),
    (ll.categorical, (OK,), {"token_ids": 1}, ValueError, "token_ids has no dimensions"),
    (ll.categorical, (OK,), {"token_ids": IDS[[0, 0, 0]]}, ValueError, r"token_ids has shape \(3, 4\).*rows, \(2,\)"),
    (ll.categorical, (OK,), {"token_ids": IDS * 1.0}, TypeError, "token_ids has dtype float64, expected integers"),
    (ll.categorical, (OK,), {"logit_bias": (0, 1)}, TypeError, "logit_bias must be a tuple of 3 arrays"),
    (ll.categorical, (OK,), {"logit_bias": ([0, 1], [0, 1], [1, INF])}, ValueError, "value of logit_bias at 1 is inf"),
    (ll.categorical, (OK,), {"logit_bias": ([0, 1], [0, 1], [1, NAN])}, ValueError, "value of logit_bias at 1 is nan"),
    (ll.categorical, (OK,), {"logit_bias": ([0, 1], [0, 1, 2], 1)}, ValueError, r"logit_bias.*\(2,\), \(3,\), \(\)"),
    (ll.categorical, (OK,), {"logit_bias": (2, 0, 1.0)}, IndexError, r"row of logit_bias\[0\] = 2 is outside \[0, 2\)"),
    (ll.categorical, (OK,), {"bans": (0, [1, 3])}, IndexError, r"class of bans\[1\] = 3 is outside \[0, 3\)"),
    (ll.categorical, (OK,), {"bans": (0, -1)}, IndexError, r"class of bans\[0\] = -1 is outside \[0, 3\)"),
    (ll.categorical, (OK,), {"bans": (0.0, 1)}, TypeError, "row of bans has dtype float64, expected integers"),
    (ll.categorical, (OK, 4), {"replacement": False}, ValueError, r"row\[0\] of input has fewer .* num_samples = 4"),
    (
        ll.categorical,
        (with_row([-INF, 0, -INF]), 2),
        {"replacement": False},
        ValueError,
        r"row\[1\] of input has fewer",
    ),
    (ll.categorical, (OK, 2), {"replacement": False, "top_k": 1}, ValueError, r"row\[0\] of input has fewer"),
    (ll.categorical, (OK,), {"seed": 1.0}, TypeError, "seed has dtype float64, expected integers"),
    (ll.categorical, (OK,), {"seed": [1, 2, 3]}, ValueError, r"seed has shape \(3,\).*rows, \(2,\)"),
    (ll.categorical, (OK,), {"seed": 2**64}, ValueError, "seed does not fit in 64 bits"),
    (ll.categorical, (OK,), {"seed": 1, "rng": 2}, ValueError, "seed and rng are both given"),
    (ll.categorical, (OK,), {"seed": 1, "offset": [0.5, 1]}, TypeError, "offset has dtype float64"),
    (ll.categorical, (OK,), {"seed": 1, "step": -1}, ValueError, r"step = -1 must lie in \[0, 2\*\*32\)"),
    (ll.categorical, (OK,), {"seed": 1, "step": [0, 2**32]}, ValueError, r"step\[1\] = 4294967296 must lie in"),
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
    (ll.multinomial, ([1.0, 1.0], 1), {"seed": 1, "rng": 2}, ValueError, "seed and rng are both given"),
    (ll.multinomial, (OK + 1, 1), {"seed": [1, 2, 3]}, ValueError, r"seed has shape \(3,\).*rows, \(2,\)"),
    (ll.multinomial, (OK + 1, 1), {"step": 2**32}, ValueError, r"step = 4294967296 must lie in"),
]


@pytest.mark.parametrize(("f", "args", "kwargs", "error", "match"), MALFORMED)
def test_malformed_calls_raise(f, args, kwargs, error, match):
    with pytest.raises(error, match=match):
        f(*args, **kwargs)
