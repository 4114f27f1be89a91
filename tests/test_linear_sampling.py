"""Draws from hidden states equal draws from their logits, whatever the budget; the largest logits are a stable sort's.

Hidden states and weights are small integers over powers of two: their products are exact, however they are cut, so that
there is one set of logits to draw from.
"""

from __future__ import annotations

import math
import tracemalloc
from typing import Any
from unittest import mock

import laws
import ml_dtypes
import numpy as np
import pytest

import lastlayer as ll
from lastlayer import _backends, _draws, _linear_draws, _tile_draws
from lastlayer._algebra import fold
from lastlayer._draw_plans import Layout
from lastlayer._draws import BLOCK, STEPS, Rules
from lastlayer._statistics import Folded
from lastlayer.sampling import Sample

TYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
ROOMY = 1 << 26
LEADING, FEATURES, CLASSES = (4, 3), 4, 3000
MANY = 40_000  # classes, of which 1,024 candidates per row are fewer bytes than the row
# Of 3,000 classes: all rows; some whole rows where they are needed, else tiles of two blocks, of one.
BUDGETS = [ROOMY, 130_000, 60_000]
REFERENCE = _backends.choose(np.zeros((1, 1))) is _backends.reference


def problem(
    rng: np.random.Generator, dtype: Any = np.float32, classes: int = CLASSES, spread: float = 2.0
) -> tuple[Any, Any, Any]:
    """Return hidden states, weight and bias, as eighths."""

    def eighths(*shape: int) -> Any:
        return (rng.integers(-8, 9, shape) / 8).astype(dtype)

    return eighths(*LEADING, FEATURES) * dtype(spread), eighths(classes, FEATURES), eighths(classes)


def logits(h: Any, w: Any, b: Any = 0.0, scale: float = 1.0, softcap: float | None = None) -> Any:
    """Return the logits in the type that they are computed in."""
    dtype = np.float64 if h.dtype == np.float64 else np.float32
    z = h.astype(dtype) @ w.astype(dtype).T + np.asarray(b).astype(dtype)
    factor = scale / (softcap or 1.0)
    return z * dtype(factor) if softcap is None else np.tanh(z * dtype(factor)) * dtype(softcap)


def assert_same(got: Sample, expected: Sample, classes: int, what: Any = "") -> None:
    """Integers are equal; numbers to the roundings of two sums of float32 terms."""
    for name, a, b in zip(Sample._fields, got, expected, strict=True):
        assert a.dtype == b.dtype, (name, what)
        assert a.shape == b.shape, (name, what)
        if a.dtype.kind == "i":
            np.testing.assert_array_equal(a, b, err_msg=f"{name} {what}")
        else:
            allowed = 2 * (2 + math.log2(classes)) * laws.spacing(np.float32)
            np.testing.assert_allclose(a, b, rtol=allowed, atol=allowed, err_msg=f"{name} {what}")


def per_row(*values: float) -> Any:
    """Return one number per row, in turn."""
    return np.resize(np.array(values), LEADING)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several": {"num_samples": 5, "temperature": per_row(0, 0.5, 1, 1.3, 20)},
    "top_k": {"top_k": 7, "temperature": 0.7, "num_samples": 3},
    "per row": {"top_k": per_row(0, 3, 50, 1, 2000).astype(int), "top_p": per_row(0.5, 1, 0.9, 0), "num_samples": 2},
    "top_p and min_p": {"top_p": 0.8, "min_p": 0.01, "num_samples": 2, "temperature": 0.3},
    "llama.cpp": {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "temperature": 1.5, "order": "llama.cpp"},
    "vllm": {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "temperature": 0.8, "order": "vllm"},
    "filters that do nothing": {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "eta_cutoff": 0.0},
    "typical_p": {"typical_p": 0.7, "num_samples": 2},
    "cutoffs": {"epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3, "top_n_sigma": 3.0},
    "penalties": {"token_ids": [3, 5, 5], "repetition_penalty": 1.5, "frequency_penalty": 0.25, "top_k": 9},
    "bias and bans": {"bans": ([0, 11], [2, 0]), "logit_bias": ([2, 5], [1, 4], [30.0, -1.0])},
    "without replacement": {"num_samples": 4, "replacement": False},
    "greedy": {"temperature": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_draws_are_those_of_the_logits(
    rng: np.random.Generator, dtype: Any, budget: int, options: dict[str, Any]
) -> None:
    h, w, b = problem(rng, dtype)
    given = {"seed": 5, **options}
    expected = ll.categorical(logits(h, w, b), **given)
    got = ll.linear_categorical(h, w, linear_bias=b, memory_budget=budget, **given)
    if dtype in (np.float16, ml_dtypes.bfloat16):
        assert got.logprob.dtype == np.float32
    assert_same(got, expected, CLASSES)


@pytest.mark.parametrize("head", [{}, {"scale": 0.5}, {"softcap": 4.0}, {"softcap": 4.0, "scale": -2.0}], ids=str)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9, "temperature": 0.5}], ids=str)
def test_scale_and_softcap(
    rng: np.random.Generator, head: dict[str, Any], budget: int, options: dict[str, Any]
) -> None:
    h, w, _ = problem(rng)
    expected = ll.categorical(logits(h, w, **head), 3, seed=1, **options)
    assert_same(ll.linear_categorical(h, w, 3, memory_budget=budget, seed=1, **head, **options), expected, CLASSES)


@pytest.mark.parametrize("classes", [1, 2, 1023, 1024, 1025, 2048, 2049])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}], ids=str)
def test_ragged_vocabularies_and_masked_classes(
    rng: np.random.Generator, classes: int, options: dict[str, Any]
) -> None:
    h, w, b = problem(rng, classes=classes)
    b[1::2] = -np.inf
    b[:-1][: classes // 3] = -np.inf
    b[0 if classes == 1 else classes - 1 - (classes - 1) % 2] = 0.0
    expected = ll.categorical(logits(h, w, b), 9, seed=1, **options)
    for budget in (ROOMY, 40_000):
        got = ll.linear_categorical(h, w, 9, linear_bias=b, memory_budget=budget, seed=1, **options)
        assert_same(got, expected, classes, budget)
        assert np.isfinite(logits(h, w, b)[..., 0, :][..., got.index[0, 0]]).all()


@pytest.mark.parametrize("options", [{}, {"top_k": 50, "temperature": 0.5}, {"top_p": 0.9}], ids=str)
def test_tiles_with_masked_classes(rng: np.random.Generator, options: dict[str, Any]) -> None:
    """A tile may hold nothing but -inf; with few classes left, all of them are among the largest."""
    h, w, b = problem(rng, classes=MANY)
    b[1::3] = b[: 3 * BLOCK] = -np.inf
    few = np.full(MANY, -np.inf, np.float32)
    few[BLOCK :: 4 * BLOCK] = 0.0
    for bias in (b, few):
        with Ways() as ways:
            got = ll.linear_categorical(h, w, 4, linear_bias=bias, memory_budget=2**20, seed=1, **options)
        assert_same(got, ll.categorical(logits(h, w, bias), 4, seed=1, **options), MANY)
        assert ways.tiles
    assert not ways.rows


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0), (2, 1, 2)], ids=str)
def test_leading_shapes(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    _, w, _ = problem(rng)
    h = rng.integers(-8, 9, (*shape, FEATURES)) / 8.0
    for samples in (None, 2):
        for options in ({}, {"top_k": 2}, {"typical_p": 0.9}):
            expected = ll.categorical(logits(h, w), samples, seed=1, **options)
            for budget in (ROOMY, 60_000):
                got = ll.linear_categorical(h, w, samples, seed=1, memory_budget=budget, **options)
                assert_same(got, expected, CLASSES)
    found = ll.linear_topk(h, w, 4)
    assert found.value.shape == found.index.shape == found.logprob.shape == (*shape, 4)
    assert found.logsumexp.shape == shape


class Ways:
    """Remembers how rows were drawn from: by tiles of what sizes, as whole rows."""

    def __init__(self) -> None:
        self.tiles: list[Any] = []
        self.rows: list[Any] = []

    def __enter__(self) -> Ways:
        tiled, by_rows = _linear_draws.tiled, _linear_draws.by_rows

        def see_tiles(request: Any, plan: Any) -> Any:
            self.tiles.append(plan)
            return tiled(request, plan)

        def see_rows(request: Any, plan: Any, which: Any, drawn: Any) -> None:
            self.rows.append(which)
            by_rows(request, plan, which, drawn)

        self.patches = [
            mock.patch.object(_linear_draws, "tiled", see_tiles),
            mock.patch.object(_linear_draws, "by_rows", see_rows),
        ]
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        for patch in self.patches:
            patch.stop()


def test_the_budgets_of_these_tests_take_all_ways(rng: np.random.Generator) -> None:
    h, w, _ = problem(rng)
    seen = []
    for budget in BUDGETS:
        with Ways() as ways:
            ll.linear_categorical(h, w, seed=1, memory_budget=budget)
        seen.append([(plan.rows, plan.classes) for plan in ways.tiles])
    assert seen[0] == []
    assert all(plan[0][1] % BLOCK == 0 and plan[0][1] < CLASSES for plan in seen[1:]), seen
    assert any(plan[0][0] < 12 for plan in seen[1:]), seen


def test_only_rows_that_the_largest_logits_do_not_decide_are_swept_again(rng: np.random.Generator) -> None:
    h, w, b = problem(rng, classes=MANY)
    h[::2] /= 64  # nearly flat: 90 % of the mass are many more classes than candidates
    h[1::2] *= 16
    b *= 0
    expected = ll.categorical(logits(h, w, b), 2, top_p=0.9, seed=3)
    with Ways() as ways:
        got = ll.linear_categorical(h, w, 2, linear_bias=b, top_p=0.9, seed=3, memory_budget=2**20)
    assert_same(got, expected, MANY)
    assert len(ways.tiles) == len(ways.rows) == 1
    many = expected.kept.reshape(-1) >= _linear_draws.MOST
    assert 0 < many.sum() < many.size
    np.testing.assert_array_equal(ways.rows[0], np.nonzero(many)[0])


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 50}, {"min_p": 0.3}, {"top_k": 5, "top_p": 0.9}, {"top_p": 0.2}, {"temperature": 0}]
)
def test_what_is_decided_by_tiles_needs_no_whole_rows(rng: np.random.Generator, options: dict[str, Any]) -> None:
    h, w, b = problem(rng, classes=MANY, spread=32.0)
    with Ways() as ways:
        got = ll.linear_categorical(h, w, 2, linear_bias=b, seed=3, memory_budget=2**20, **options)
    assert_same(got, ll.categorical(logits(h, w, b), 2, seed=3, **options), MANY)
    assert ways.tiles
    assert not ways.rows


def swept(z: Any, size: int, temperature: Any) -> Any:
    """Return what a sweep leaves of whole rows of logits, with their largest ones."""
    value, index = _draws.topk(z, size)
    scaled = fold((z - z.max(-1, keepdims=True)) / temperature[:, None])
    folded = Folded(fold(z), None, scaled._replace(max=z.max(-1) / temperature))
    return _tile_draws.Swept(folded, (z > -np.inf).sum(-1), value=value, index=index)


@pytest.mark.parametrize("order", ["transformers", "vllm", "llama.cpp"])
@pytest.mark.parametrize("step", [0.0, 1.0])
def test_a_certificate_is_never_wrong(rng: np.random.Generator, order: str, step: float) -> None:
    """Rows that have it are drawn from as with all classes, plateaus and rows of few classes included."""
    rows, classes, size = 4000, 40, 12
    z = rng.normal(size=(rows, classes)) * rng.choice([0.1, 1, 4], rows)[:, None]
    z = np.round(z) if step else z
    z[rng.random((rows, classes)) < rng.choice([0, 0.9], rows)[:, None]] = -np.inf
    z[:, 7] = 0.0

    def some(*values: float) -> Any:
        return rng.choice(np.array(values), rows)

    rules = Rules(
        some(0.0, 0.5, 1.0, 3.0), None, some(1, 3, 12, 13, np.inf), some(0, 0.3, 0.5, 0.9, 1), some(0, 0.01, 0.2, 1)
    )
    uniforms, steps = rng.random((rows, 2)), _draws.ORDERS[order]
    with np.errstate(all="ignore"):
        exact = _draws.draw(z, uniforms, rules, steps)
        t = np.where(rules.temperature == 0, 1.0, rules.temperature)
        got, sure = _tile_draws.by_candidates(swept(z, size, t), rules, steps, uniforms, classes)
    for name in ("index", "rank", "kept"):
        np.testing.assert_array_equal(getattr(got, name)[sure], getattr(exact, name)[sure], err_msg=name)
    for name in ("logprob", "sampled_logprob", "kept_mass", "logsumexp"):
        np.testing.assert_allclose(getattr(got, name)[sure], getattr(exact, name)[sure], rtol=1e-13, atol=1e-13)
    assert rows / 2 < sure.sum() < rows
    wrong = ~sure & ((got.kept != exact.kept) | (got.index != exact.index).any(-1))
    assert wrong.any()  # or the certificate would be worth nothing


def test_a_boundary_of_top_p_that_rounding_could_move_is_in_doubt() -> None:
    rules = Rules(np.ones(3), top_p=np.array([0.5, 0.5 - 2.0**-18, 0.5 + 2.0**-18]))
    value = np.zeros((3, 6))  # of 8 equal classes: four of them have exactly 1/2
    total = np.full(3, 8.0)
    sure = _tile_draws.certificate(value, rules, STEPS, np.zeros(3, bool), (total, total))
    assert sure.tolist() == [False, True, True]


def test_shards_and_tiles_cover_every_block_once(rng: np.random.Generator) -> None:
    for _ in range(200):
        sizes = rng.integers(0, [5, 1500, 4000, 3], 4)
        rng.shuffle(sizes)
        ends, total = np.cumsum(sizes), int(sizes.sum())
        holders = np.zeros(-(-total // BLOCK), int)
        for end, size in zip(ends, sizes, strict=True):
            if size:
                holders[(end - size) // BLOCK : -(-end // BLOCK)] += 1
        seen, owners, step = np.zeros(total, int), np.zeros(len(holders), int), BLOCK * int(rng.integers(1, 4))
        for rank, (end, size) in enumerate(zip(ends, sizes, strict=True)):
            layout = Layout(int(end - size), int(size), total, np.nonzero(holders > 1)[0])
            owners += [layout.holds(b, rank) for b in range(layout.blocks)]
            for tile in layout.tiles(step):
                assert 0 < tile.stop - tile.start <= step
                first, (blocks, columns) = layout.first + tile.start, layout.complete(tile)
                if blocks.start < blocks.stop:
                    assert first + columns.start == blocks.start * BLOCK
                    assert first + columns.stop == min(blocks.stop * BLOCK, total)
                    seen[first + columns.start : first + columns.stop] += 1
                for i, inside, part in layout.pieces(tile):
                    assert layout.shared[i] * BLOCK + inside.start == first + part.start
                    assert inside.stop - inside.start == part.stop - part.start
                    seen[first + part.start : first + part.stop] += 1
        assert (seen == 1).all()
        assert (owners == 1).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("k", [1, 7, 1500, CLASSES])
@pytest.mark.parametrize("budget", [ROOMY, 130_000])
def test_the_largest_logits_are_those_of_a_stable_sort(
    rng: np.random.Generator, dtype: Any, k: int, budget: int
) -> None:
    h, w, b = problem(rng, dtype)
    b[::5] = -np.inf
    z = logits(h, w, b).astype(np.float64)
    order = np.argsort(-z, -1, kind="stable")[..., :k]
    budget = max(budget, 400 * k)
    got = ll.linear_topk(h, w, k, linear_bias=b, memory_budget=budget)
    np.testing.assert_array_equal(got.index, order)
    np.testing.assert_array_equal(got.value, np.take_along_axis(z, order, -1))
    with np.errstate(invalid="ignore"):
        exact = np.take_along_axis(ll.log_softmax(z), order, -1)
    kind = np.float64 if dtype == np.float64 else np.float32
    assert got.value.dtype == got.logprob.dtype == got.logsumexp.dtype == kind
    laws.assert_within(got.logprob, exact, exact, kind, terms=CLASSES)
    laws.assert_within(got.logsumexp, ll.logsumexp(z), ll.logsumexp(z), kind, terms=CLASSES)


@pytest.mark.skipif(REFERENCE, reason="the reference makes float64 copies of a tile")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(3000, 5000), (100, 40_000)], ids=str)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"top_k": 50, "top_p": 0.9}, {"top_p": 0.9}], ids=str)
def test_the_budget_is_kept(
    rng: np.random.Generator, dtype: Any, shape: tuple[int, int], options: dict[str, Any]
) -> None:
    (rows, classes), features, budget = shape, 16, 2**20
    h, w = (rng.normal(size=(n, features)).astype(dtype) for n in shape)

    def peak(call: Any) -> int:
        tracemalloc.start()
        call()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    def both(call: Any) -> int:  # of two: the interpreter's own tables grow now and then
        return min(peak(call), peak(call))

    per_row = 8 * 20 * rows
    drawn = both(lambda: ll.linear_categorical(h, w, memory_budget=budget, seed=1, **options))
    assert drawn <= budget + per_row
    assert drawn < 4 * rows * classes / 5
    assert both(lambda: ll.linear_topk(h, w, 3, memory_budget=budget)) <= budget + per_row


def test_inputs_are_not_written_to(rng: np.random.Generator) -> None:
    h, w, b = problem(rng)
    before = [array.copy() for array in (h, w, b)]
    for array in (h, w, b):
        array.flags.writeable = False
    for budget in BUDGETS:
        ll.linear_categorical(h, w, linear_bias=b, temperature=0.5, softcap=3.0, memory_budget=budget, rng=1)
        ll.linear_topk(h, w, 3, linear_bias=b, memory_budget=budget)
    for array, copy in zip((h, w, b), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_rng_makes_the_seed(rng: np.random.Generator) -> None:
    h, w, _ = problem(rng)
    one, two = (np.random.default_rng(4) for _ in range(2))
    expected = ll.categorical(logits(h, w), rng=one)
    np.testing.assert_array_equal(ll.linear_categorical(h, w, rng=two).index, expected.index)
    assert one.integers(1 << 60) == two.integers(1 << 60)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": np.ones((4, 2))}, ValueError, r"shapes \(4, 2\) and \(5, 3\), expected \(..., D\) and \(V, D\)"),
    ({"linear_weight": np.ones((0, 3))}, ValueError, "at least one class"),
    ({"linear_bias": np.ones(4)}, ValueError, r"linear_bias has shape \(4,\), expected \(5,\)"),
    ({"input": np.ones((4, 3), bool)}, TypeError, "input has dtype bool"),
    ({"softcap": -1.0}, ValueError, "softcap = -1.0"),
    ({"scale": np.nan}, ValueError, "scale = nan"),
    ({"memory_budget": 3}, ValueError, "memory_budget = 3 bytes is too small: at least"),
]
OF_DRAWS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"temperature": -1.0}, ValueError, "temperature = -1.0"),
    ({"top_k": [1, 2]}, ValueError, r"top_k has shape \(2,\), which does not broadcast to the rows, \(4,\)"),
    ({"bans": (0, 9)}, IndexError, "= 9 is outside"),
    ({"num_samples": 0}, ValueError, "num_samples = 0"),
    ({"num_samples": 6, "replacement": False}, ValueError, "fewer classes that can be drawn than num_samples = 6"),
    ({"top": 3}, TypeError, "unexpected argument 'top'"),
    ({"seed": 1, "rng": 1}, ValueError, "seed and rng are both given"),
    ({"linear_bias": [0.0, np.nan, 0, 0, 0]}, ValueError, r"row\[0\] of input has NaN"),
    ({"linear_bias": [-np.inf] * 5}, ValueError, r"row\[0\] of input has no logit above -inf"),
]
OF_TOPK: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"k": 0}, ValueError, r"k = 0 is outside \[1, 5\], the number of classes"),
    ({"k": 6}, ValueError, r"k = 6 is outside \[1, 5\]"),
    ({"k": 2.0}, TypeError, "k"),
    ({"linear_bias": [0.0, np.nan, 0, 0, 0]}, ValueError, r"row\[0\] of the logits has NaN"),
    ({"linear_bias": [0.0, np.inf, 0, 0, 0]}, ValueError, r"row\[0\] of the logits has \+inf"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD + OF_DRAWS, ids=lambda x: x if isinstance(x, str) else None)
def test_bad_input_of_draws_is_named(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    good = {"input": np.ones((4, 3)), "linear_weight": np.ones((5, 3))}
    ll.linear_categorical(**good)
    with pytest.raises(kind, match=message):
        ll.linear_categorical(**{**good, **change})


@pytest.mark.parametrize(("change", "kind", "message"), BAD + OF_TOPK, ids=lambda x: x if isinstance(x, str) else None)
def test_bad_input_of_topk_is_named(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    good = {"input": np.ones((4, 3)), "linear_weight": np.ones((5, 3)), "k": 2}
    ll.linear_topk(**good)
    with pytest.raises(kind, match=message):
        ll.linear_topk(**{**good, **change})


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, r"\+inf"), (-np.inf, "no logit above -inf")])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}], ids=str)
def test_tiles_name_the_row_that_cannot_be_drawn_from(
    rng: np.random.Generator, value: float, what: str, options: dict[str, Any]
) -> None:
    h, w, _ = problem(rng)
    h[...], w[:, -1] = abs(h), 1.0
    h[2, 1, -1], h[3, 0, -1] = value, value
    h[:2, :, -1] = 0.0
    with Ways() as ways, pytest.raises(ValueError, match=rf"row\[2, 1\] of input has {what}"):
        ll.linear_categorical(h, w, memory_budget=60_000, seed=1, **options)
    assert ways.tiles
