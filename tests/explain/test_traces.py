"""Traces: every value is the library's to the last bit, every exact one is exact, and the rest says what it shows.

The exact values are checked against the textbook formulas at 9,000 digits, where nothing needs care: margins of 1e4
leave 4,343 zeros.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import pytest

import lastlayer as ll
from lastlayer import explain, information
from lastlayer import likelihood as families
from lastlayer.explain import exact, given, pytorch
from lastlayer.explain.trace import Step, Trace

INF = math.inf
DIGITS = 9_000
TYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]

LOGITS: dict[str, Any] = {
    "three": [1.2, 2.5, 0.9],
    "worked example": [[0.2, 0.5, -0.1], [-0.1, 0.1, 0.3]],
    "margin 120": [0.0, 120.0],
    "margin 1e4": [[1e4, 0.0, -1e4], [0.0, 1.0, 1e4]],
    "masked": [[-INF, 1.0, 0.5], [2.0, -INF, -INF]],
    "one class": [3.0],
    "one class, rows": [[3.0], [-2.0]],
    "ties": [[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, -1.0]],
    "large offset": [[50_000.0, 50_001.0, 49_990.0], [-50_000.0, -50_001.0, -49_990.0]],
    "near the end of float16": [60_000.0, 60_000.0, -60_000.0],
    "no distribution": [[-INF, -INF], [math.nan, 0.0], [INF, 1.0]],
}
ORDINARY = ["three", "worked example", "ties", "masked", "margin 120"]


def logits(name: str, dtype: Any = np.float64) -> np.ndarray:
    return np.array(LOGITS[name]).astype(dtype)


def targets(z: np.ndarray) -> Any:
    return 0 if z.ndim == 1 else np.arange(len(z)) % z.shape[1]


def same(a: Any, b: Any) -> None:
    """Assert equality to the bit, the sign of zero included."""
    a, b = (np.asarray(each, np.float64) for each in (a, b))
    assert a.shape == b.shape
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.signbit(a) & ~np.isnan(a), np.signbit(b) & ~np.isnan(b))


def shape_of(value: Any) -> tuple[int, ...]:
    return np.shape(np.asarray(value, dtype=object))


def is_well_formed(trace: Trace) -> None:
    """The parts of each step have one shape, and JSON holds all of it."""
    assert json.loads(trace.to_json())["title"] == trace.title
    assert trace.steps
    for step in trace.steps:
        shapes = {shape_of(each) for each in (step.value, step.exact, step.ulp)}
        assert len(shapes) == 1, step.name
        (shape,) = shapes
        assert not step.labels or len(step.labels) == shape[-1], step.name
        assert all(isinstance(part, str) for part in (step.name, step.formula, step.latex, step.substituted, step.note))
        assert (np.asarray(step.ulp, float) >= 0).all()
        if trace.dtype == "float64":
            parts = (np.ravel(np.asarray(each, dtype=object)) for each in (step.value, step.exact, step.ulp))
            with mpmath.workdps(40):
                for value, text, ulp in zip(*parts, strict=True):
                    is_apart(step.name, value, text, ulp)


def is_apart(name: str, value: float, text: str, ulp: float) -> None:
    """The distance told is the one between the value and the text, to half a unit: a text has 17 digits."""
    told = mpmath.mpf(text)
    if not mpmath.isfinite(told) or not math.isfinite(value):
        one_is = mpmath.isfinite(told) or math.isfinite(value)
        assert ulp == (INF if one_is else 0), name
    elif abs(told) >= 2.0**-1022:
        place = mpmath.mpf(2) ** (mpmath.frexp(abs(told))[1] - 53)
        apart = abs(mpmath.mpf(value) - told) / place
        assert abs(apart - ulp) <= 0.5 + 1e-9 * ulp, (name, value, text, ulp)


def last(trace: Trace) -> Step:
    return trace.steps[-1]


# The last step is the library's


ROWWISE: list[tuple[Callable[..., Trace], Callable[..., Any]]] = [
    (explain.softmax, ll.softmax),
    (explain.log_softmax, ll.log_softmax),
    (explain.logsumexp, ll.logsumexp),
    (explain.sigmoid, ll.sigmoid),
    (explain.logit, ll.logit),
]


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize(("traced", "function"), ROWWISE, ids=lambda f: f.__name__)
def test_the_last_step_is_the_librarys_number(traced: Any, function: Any, name: str, dtype: Any):
    z = logits(name, dtype)
    trace = traced(z, check=False)
    is_well_formed(trace)
    same(trace.result, function(z))
    same(last(trace).value, function(z))
    assert trace.dtype == np.dtype(dtype).name


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("name", LOGITS)
def test_losses_are_the_librarys(name: str, dtype: Any):
    z = logits(name, dtype)
    y = targets(z)
    trace = explain.cross_entropy(z, y, check=False)
    value, gradient = ll.cross_entropy_value_and_grad(z, y)
    is_well_formed(trace)
    same(trace.result, value)
    same(trace.steps[-2].value, value)
    same(last(trace).value, gradient)
    trace = explain.perplexity(z, y, check=False)
    same(trace.result, ll.perplexity(z, y))
    same(last(trace).value, ll.perplexity(z, y))
    trace = explain.entropy(logits=z, check=False)
    same(last(trace).value, ll.entropy(logits=z))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"weight": [0.5, 2.0, 0.0]},
    {"weight": np.float32([0.1, 2.0, 3.0]), "reduction": "none"},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0, "reduction": "sum"},
    {"weight": [0.5, 2.0, 1.0], "label_smoothing": 0.25},
]
TARGETS: dict[str, Any] = {
    "indices": [1, 2],
    "one ignored": [1, -100],
    "all ignored": [-100, -100],
    "probabilities": [[0.5, 0.5, 0.0], [0.0, 0.1, 0.9]],
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_way_to_ask_for_a_cross_entropy(options: dict[str, Any], target: str, dtype: Any):
    z = logits("worked example", dtype)
    y = np.array(TARGETS[target])
    trace = explain.cross_entropy(z, y, **options, check=False)
    value, gradient = ll.cross_entropy_value_and_grad(z, y, **options)
    is_well_formed(trace)
    same(trace.result, value)
    same(trace.steps[-2].value, value)
    same(last(trace).value, gradient)
    same(last(explain.cross_entropy(z, y, **options, gradient=False, check=False)).value, value)


@pytest.mark.parametrize("options", [each for each in OPTIONS if "label_smoothing" not in each], ids=str)
def test_every_way_to_ask_for_an_nll(options: dict[str, Any]):
    for y in ([1, 2], [1, -100], [-100, -100]):
        logp = ll.log_softmax(logits("worked example", np.float32))
        trace = explain.nll_loss(logp, y, **options, check=False)
        is_well_formed(trace)
        same(trace.result, ll.nll_loss(logp, y, **options))
        same(last(trace).value, trace.result)


def test_one_row_needs_no_mean():
    trace = explain.cross_entropy([0.2, 0.5, -0.1], 1, check=False)
    assert "mean" not in [step.name for step in trace.steps]
    same(trace.result, ll.cross_entropy([0.2, 0.5, -0.1], 1))


DISTRIBUTIONS = [
    ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]),
    ([1.0, 0.0, 0.0], [0.0, 0.5, 0.5]),
    ([[0.5, 0.5], [0.0, 1.0]], [[0.5, 0.5], [0.0, 1.0]]),
    ([0.1] * 10, [0.05, 0.15] * 5),
    ([0.5, 0.5], [0.5 + 1e-9, 0.5 - 1e-9]),
]


@pytest.mark.parametrize("unit", ["nats", "bits"])
@pytest.mark.parametrize(("p", "q"), DISTRIBUTIONS, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_distributions_are_the_librarys(p: Any, q: Any, unit: Any, dtype: Any):
    p, q = np.array(p).astype(dtype), np.array(q).astype(dtype)
    for trace, value in (
        (explain.entropy(p, unit=unit, check=False), ll.entropy(p, unit=unit)),
        (explain.cross_entropy_between(p, q, unit=unit, check=False), information.cross_entropy(p, q, unit=unit)),
        (explain.kl_divergence(p, q, unit=unit, check=False), information.kl_divergence(p, q, unit=unit)),
    ):
        is_well_formed(trace)
        same(trace.result, value)
        same(last(trace).value, value)
        assert trace.unit == last(trace).unit == unit


LIKELIHOODS: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
    ("bernoulli", [1, 0, 1], {"probs": 0.7}, {}),
    ("bernoulli", 1, {"probs": 0.0}, {}),
    ("binomial", 7, {"total_count": 10, "probs": 0.7}, {"total_count": 10}),
    ("binomial", [7, 0], {"total_count": [10, 3], "probs": [0.1, 1.0]}, {"total_count": [10, 3]}),
    ("categorical", [0, 2, 2], {"probs": [0.25, 0.25, 0.5]}, {"num_classes": 4}),
    ("categorical", [0, 1], {"probs": [[0.5, 0.5], [1.0, 0.0]]}, {}),
    ("poisson", [2, 0, 5], {"rate": 1.5}, {}),
    ("normal", [1.0, 2.0, 6.0], {"loc": [0.0, 1.0, 3.0], "scale": 0.1}, {}),
    ("laplace", [[1.0, 2.0], [6.0, 7.0]], {"loc": 3.0, "scale": 2.0}, {}),
]


@pytest.mark.parametrize(("family", "data", "parameters", "more"), LIKELIHOODS, ids=str)
def test_likelihoods_are_the_librarys(family: str, data: Any, parameters: Any, more: Any):
    ours = getattr(families, family)
    trace = explain.likelihood(family, data, **parameters, unit="bits", check=False)
    is_well_formed(trace)
    same(last(trace).value, ours.likelihood(data, **parameters))
    same(trace.result, last(trace).value)
    bits = next(step for step in trace.steps if step.name == "in bits")
    same(bits.value, ours.nll(data, **parameters, unit="bits"))
    trace = explain.mle(family, data, **more, check=False)
    is_well_formed(trace)
    same(np.ravel(last(trace).value), np.concatenate([np.ravel(each) for each in ours.mle(data, **more)]))
    same(trace.result, last(trace).value)


# Exact values are exact


def mp_rows(z: np.ndarray) -> list[list[Any]]:
    return [[mpmath.mpf(float(x)) for x in row] for row in np.atleast_2d(z)]


def close(text: str, expected: Any) -> bool:
    """Tell whether a text of 17 digits is the number, rounded."""
    told = mpmath.mpf(text)
    if not mpmath.isfinite(expected) or expected == 0:
        return bool(told == expected or (told != told and expected != expected))
    return bool(abs(told - expected) <= abs(expected) * mpmath.mpf(10) ** -16 / 2)


@pytest.mark.parametrize("name", [name for name in LOGITS if name != "no distribution"])
def test_exact_is_the_textbooks_formula(name: str):
    z = logits(name, np.float64 if "1e4" in name else np.float32)
    y = np.atleast_1d(targets(z))
    loss = explain.cross_entropy(z, targets(z), check=False)
    traces = [explain.softmax(z, check=False), explain.log_softmax(z, check=False), explain.logsumexp(z, check=False)]
    with mpmath.workdps(DIGITS):
        rows = mp_rows(z)
        sums = [mpmath.fsum(mpmath.exp(x) for x in row) for row in rows]
        p = [[mpmath.exp(x) / s for x in row] for row, s in zip(rows, sums, strict=True)]
        logs = [[x - mpmath.log(s) for x in row] for row, s in zip(rows, sums, strict=True)]
        losses = [-row[k] for row, k in zip(logs, y, strict=True)]
        hot = [[int(j == k) for j in range(z.shape[-1])] for k in y]
        gradient = [[(a - b) / len(y) for a, b in zip(*each, strict=True)] for each in zip(p, hot, strict=True)]
        found = [
            (last(traces[0]).exact, p),
            (last(traces[1]).exact, logs),
            (last(traces[2]).exact, [[mpmath.log(s)] for s in sums]),
            (last(loss).exact, gradient),
            (loss.steps[-2].exact, [[mpmath.fsum(losses) / len(y)]]),
        ]
        for texts, expected in found:
            flat = [x for row in expected for x in row]
            told = np.asarray(texts, dtype=object).reshape(-1).tolist()
            assert [(a, mpmath.nstr(b, 20)) for a, b in zip(told, flat, strict=True) if not close(a, b)] == []


def test_exact_values_of_smoothing_weights_and_distributions():
    z, w, e = logits("worked example"), [0.5, 2.0, 1.0], 0.25
    indices = explain.cross_entropy(z, [1, 2], w, label_smoothing=e, check=False).steps[-2:]
    given_t = [[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]
    soft = explain.cross_entropy(z, given_t, w, label_smoothing=e, check=False).steps[-2:]
    with mpmath.workdps(50):
        weights = [mpmath.mpf(x) for x in w]
        hot, total = [[0, 1, 0], [0, 0, 1]], weights[1] + weights[2]
        for steps, t, divisor in ((indices, hot, total), (soft, given_t, mpmath.mpf(2))):
            losses, slopes = [], []
            for row, truth in zip(mp_rows(z), t, strict=True):
                s = mpmath.fsum(mpmath.exp(x) for x in row)
                u = [k * ((1 - e) * a + mpmath.mpf(e) / 3) for k, a in zip(weights, truth, strict=True)]
                losses.append(-mpmath.fsum(k * (x - mpmath.log(s)) for k, x in zip(u, row, strict=True)))
                slopes += [mpmath.exp(x) / s * mpmath.fsum(u) - k for k, x in zip(u, row, strict=True)]
            assert close(steps[0].exact, mpmath.fsum(losses) / divisor)
            told = [text for row in steps[1].exact for text in row]
            assert all(close(a, b / divisor) for a, b in zip(told, slopes, strict=True))


def test_exact_likelihoods():
    with mpmath.workdps(50):
        p, n = mpmath.mpf(0.7), mpmath.mpf(2)
        normal = mpmath.exp(-((mpmath.mpf(1) - 3) ** 2) / 8) / (n * mpmath.sqrt(2 * mpmath.pi))
        laplace = mpmath.exp(-mpmath.mpf(2) / 2) / 4
        for trace, expected in (
            (explain.likelihood("bernoulli", [1, 0], probs=0.7, check=False), p * (1 - p)),
            (explain.likelihood("binomial", 7, total_count=10, probs=0.7, check=False), 120 * p**7 * (1 - p) ** 3),
            (explain.likelihood("categorical", [0, 1], probs=[0.25, 0.75], check=False), mpmath.mpf(3) / 16),
            (explain.likelihood("poisson", 3, rate=2.0, check=False), 8 * mpmath.exp(-2) / 6),
            (explain.likelihood("normal", 1.0, loc=3.0, scale=2.0, check=False), normal),
            (explain.likelihood("laplace", 1.0, loc=3.0, scale=2.0, check=False), laplace),
        ):
            assert close(last(trace).exact, expected), trace.title


def test_divergence_of_nearly_equal_distributions_is_exact():
    trace = explain.kl_divergence([0.5, 0.5], [0.5 + 2.0**-40, 0.5 - 2.0**-40], check=False)
    with mpmath.workdps(80):
        d = mpmath.mpf(2) ** -39
        assert close(last(trace).exact, -(mpmath.log1p(d) + mpmath.log1p(-d)) / 2)
    assert last(trace).ulp < 4


def test_ulp_is_the_distance_in_units_of_the_last_place():
    for dtype in TYPES:
        one = np.array(1.0).astype(dtype)
        bits = exact.FORMATS[np.dtype(dtype).name][0]
        above = np.array(1.0 + 2.0 ** (1 - bits)).astype(dtype)
        assert above > one
        assert exact.ulp(above, exact.numbers(1.0)) == 1.0
        assert exact.ulp(one, exact.numbers(1.0) + exact.mp.mpf(2) ** -bits) == 0.5
        smallest = np.array(2.0 ** (exact.FORMATS[np.dtype(dtype).name][1] + 1 - bits)).astype(dtype)
        assert smallest > 0
        assert exact.ulp(smallest, exact.numbers(0.0)) == 1.0
    third = exact.mp.mpf(1) / 3
    assert abs(exact.ulp(np.float64(1 / 3), exact.numbers(third)) - 1 / 3) < 1e-9
    huge = exact.exp(exact.numbers(1e4))
    values = np.array([INF, INF, -INF, 0.0, INF, math.nan])
    exactly = np.array([*exact.numbers([INF, 1.0, -INF]), huge[()], huge[()], exact.mp.nan])
    assert exact.ulp(values, exactly).tolist() == [0.0, INF, 0.0, INF, INF, 0.0]
    below = exact.numbers(1.0) - exact.mp.mpf(10) ** -50
    assert exact.ulp(np.float64(1 - 2.0**-52), below) == 1.0


def test_a_correctly_rounded_value_is_within_half_an_ulp(rng: np.random.Generator):
    for dtype in (np.float32, np.float64):
        x = rng.normal(size=100) * 10.0 ** rng.integers(-30, 30, 100)
        assert (exact.ulp(x.astype(dtype), exact.numbers(x)) <= 0.5).all()


def test_texts_read_back():
    x = [0.1, -3.0, 1e-300, 2.0**-1074, 1.7e308, INF, -INF, 0.0]
    assert [float(text) for text in exact.text(exact.numbers(x))] == x
    assert exact.text(exact.numbers([math.nan, INF])) == ["nan", "inf"]
    assert exact.text(exact.exp(exact.numbers(-1e4))).endswith("e-4343")


# What the steps tell


def test_the_worked_example():
    trace = explain.cross_entropy([[0.2, 0.5, -0.1], [-0.1, 0.1, 0.3]], [1, 2], check=False)
    assert [step.name for step in trace.steps] == [
        "logits", "maximum", "exp of the differences", "their sum", "log-sum-exp", "log-probabilities",
        "those of the targets", "negative: surprise", "mean", "gradient",
    ]  # fmt: skip
    by_name = {step.name: step for step in trace.steps}
    assert round(trace.result, 4) == 0.8701
    assert by_name["maximum"].value == [0.5, 0.3]
    assert by_name["their sum"].substituted == "0.7408 + 1 + 0.5488; 0.6703 + 0.8187 + 1"
    assert by_name["those of the targets"].substituted == "log p_1; log p_2"
    assert by_name["mean"].substituted == "(0.8284 + 0.9119) / 2"
    assert by_name["logits"].unit == ""
    assert {by_name[name].unit for name in ("log-probabilities", "negative: surprise", "mean")} == {"nats"}
    assert trace.inputs["target"] == [1, 2]


def test_bits_are_nats_over_log_2():
    z, y = logits("worked example", np.float32), [1, 2]
    nats, bits = (explain.cross_entropy(z, y, unit=unit, check=False) for unit in ("nats", "bits"))
    assert bits.unit == "bits"
    same(bits.result, np.float32(nats.result) / np.float32(math.log(2)))
    step = next(each for each in bits.steps if each.name == "in bits")
    with mpmath.workdps(50):
        assert abs(mpmath.mpf(step.exact) * mpmath.log(2) - mpmath.mpf(nats.steps[-2].exact)) < 1e-15
    same(last(bits).value, last(nats).value)
    for traced in (
        explain.log_softmax(z, unit="bits", check=False),
        explain.nll_loss([-1.0], 0, unit="bits", check=False),
    ):
        assert (traced.unit, last(traced).name) == ("bits", "in bits")


def test_the_naive_way_is_shown_beside_the_right_one():
    trace = explain.log_softmax(np.float32([0, 20, 120]), check=False)
    naive, right = trace.steps[-2:]
    assert naive.value[0] == -INF
    assert naive.ulp[0] == INF
    assert right.value[0] == -120.0
    assert "-inf" in naive.note
    loss = explain.cross_entropy(np.float32([0, 20]), 1, check=False).steps[-2]
    assert 2.06e-9 < loss.value < 2.07e-9
    assert loss.ulp < 4
    assert "gives 0" in loss.note
    calm = explain.cross_entropy([0.0, 1.0], 1, check=False)
    assert not any("gives" in step.note for step in calm.steps)


def test_why_the_maximum_is_subtracted():
    def note(z: Any) -> str:
        return explain.softmax(z, check=False).steps[1].note

    assert "beyond float16" in note(np.float16([12.0, 0.0]))
    assert "beyond" not in note(np.float32([12.0, 0.0]))
    assert "is 0 in float64" in note([-800.0, -900.0])


def test_ignored_rows_are_named():
    trace = explain.cross_entropy(np.zeros((3, 2)), [0, -100, 1], check=False)
    assert any("row 1 (target -100)" in step.note for step in trace.steps)
    mean = next(step for step in trace.steps if step.name == "mean")
    assert "2 rows" in mean.note
    assert mean.substituted.endswith("/ 2")
    assert last(trace).value[1] == [0.0, 0.0]


def test_losses_of_16_bits_say_that_they_are_wider():
    assert "float32" in explain.cross_entropy(np.float16([0, 1]), 0, check=False).notes[0]
    assert explain.cross_entropy(np.float32([0, 1]), 0, check=False).notes == ()


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=lambda dtype: np.dtype(dtype).name)
def test_long_rows_are_whole_in_the_data_and_elided_in_the_text(rng: np.random.Generator, dtype: Any):
    z = (rng.normal(size=50_000) * 3).astype(dtype)
    trace = explain.cross_entropy(z, 7, check=False)
    value, gradient = ll.cross_entropy_value_and_grad(z, 7)
    same(trace.result, value)
    same(last(trace).value, gradient)
    for step in trace.steps:
        assert shape_of(step.value) in ((), (50_000,))
        assert len(step.substituted) < 400
        assert len(step.note) < 200
    assert len(last(trace).exact) == len(last(trace).labels) == 50_000
    assert "..." in last(trace).substituted


def test_many_rows_are_elided_in_the_text():
    trace = explain.cross_entropy(np.zeros((100, 3)), np.zeros(100, int), check=False)
    assert all(len(step.substituted) < 400 for step in trace.steps)
    assert len(last(trace).value) == 100


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_steps_on_the_way_are_numpys_and_the_librarys(dtype: Any):
    z = logits("worked example", dtype)
    m = z.max(-1, keepdims=True)
    e = np.exp(z - m)
    expected = {
        "logits": z,
        "maximum": m[:, 0],
        "exp of the differences": e,
        "their sum": e.sum(-1),
        "log-sum-exp": ll.logsumexp(z),
        "log-probabilities": ll.log_softmax(z),
        "those of the targets": ll.log_softmax(z)[[0, 1], [1, 2]],
        "negative: surprise": ll.cross_entropy(z, [1, 2], reduction="none"),
        "mean": ll.cross_entropy(z, [1, 2]),
    }
    steps = {step.name: step.value for step in explain.cross_entropy(z, [1, 2], check=False).steps}
    for name, value in expected.items():
        same(steps[name], value)


# Draws


@pytest.mark.parametrize("T", [0.0, 1e-6, 0.5, 1.0, 2.0, 1e6])
@pytest.mark.parametrize("name", [name for name in LOGITS if name != "no distribution"])
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_temperature_is_softmax_of_the_scaled_logits(name: str, T: float, dtype: Any):
    z = logits(name, dtype)
    trace = explain.temperature(z, T, check=False)
    is_well_formed(trace)
    same(trace.result, last(trace).value)
    if T == 0:
        same(np.argmax(trace.result, -1), ll.argmax(z))
        return
    with np.errstate(all="ignore"):
        wide = z.astype(np.float64)
        scaled = ((wide - wide.max(-1, keepdims=True)) / T).astype(dtype)
    same(trace.result, ll.softmax(scaled))
    if dtype is not np.float64 or T not in (0.5, 2.0):
        return
    with mpmath.workdps(DIGITS):
        rows = [[x / mpmath.mpf(T) for x in row] for row in mp_rows(z)]
        masses = [[mpmath.exp(x - max(row)) for x in row] for row in rows]
        expected = [x / mpmath.fsum(row) for row in masses for x in row]
        told = np.asarray(last(trace).exact, dtype=object).reshape(-1).tolist()
        assert all(close(a, b) for a, b in zip(told, expected, strict=True))


RULES: list[dict[str, Any]] = [
    {},
    {"top_k": 2},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"temperature": 0.7, "top_k": 3, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 2.0, "top_p": 0.7, "min_p": 0.3, "order": "llama.cpp"},
    {"temperature": 0.0, "top_k": 2},
    {"top_p": 0.0, "order": ("top_p", "temperature")},
    {"top_k": 0},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_what_truncation_leaves_is_what_categorical_draws_from(
    rng: np.random.Generator, rules: dict[str, Any], dtype: Any
):
    z = rng.normal(size=(5, 7)).astype(dtype)
    z[0, 1], z[1] = -INF, 0
    trace, draw = explain.truncate(z, **rules), ll.categorical(z, seed=3, **rules)
    is_well_formed(trace)
    p = np.asarray(trace.result)
    same(p, last(trace).value)
    np.testing.assert_array_equal((p > 0).sum(-1), draw.kept)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-14)
    mine = np.take_along_axis(p, draw.index[:, None], -1)[:, 0]
    np.testing.assert_allclose(np.log(mine), draw.sampled_logprob, rtol=2e-7, atol=1e-7)
    assert (np.asarray(last(trace).ulp) <= 8).all()


def test_top_p_adds_up_the_likeliest_first():
    step = next(
        each for each in explain.truncate([0.0, 3.0, 2.0, 3.0], top_p=0.5).steps if each.name == "cumulative sums"
    )
    assert step.labels == ("class 1", "class 3", "class 2", "class 0")
    np.testing.assert_allclose(step.value, np.cumsum(ll.softmax([3.0, 3.0, 2.0, 0.0])), rtol=1e-15)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_draw_is_the_class_where_the_uniform_falls(rng: np.random.Generator, rules: dict[str, Any]):
    z = rng.normal(size=(20, 5)).astype(np.float32)
    trace = explain.categorical(z, seed=11, step=2, **rules)
    is_well_formed(trace)
    same(trace.result, ll.categorical(z, seed=11, step=2, **rules).index)
    sums, u, index = (np.asarray(step.value) for step in trace.steps[-3:])
    same(index, trace.result)
    np.testing.assert_array_equal((sums > u[:, None]).argmax(-1), index)


def test_a_draw_without_a_seed_tells_which_it_was():
    trace = explain.categorical([0.0, 1.0, 2.0])
    assert explain.categorical([0.0, 1.0, 2.0], seed=trace.inputs["seed"]).result == trace.result


# PyTorch


CHECKED: list[Callable[[np.ndarray], Trace]] = [
    explain.softmax,
    explain.log_softmax,
    explain.logsumexp,
    explain.sigmoid,
    lambda z: explain.logit(ll.sigmoid(z)),
    lambda z: explain.temperature(z, 0.5),
    lambda z: explain.temperature(z, 0),
    lambda z: explain.entropy(logits=z),
    lambda z: explain.entropy(ll.softmax(z), unit="bits"),
    lambda z: explain.cross_entropy(z, targets(z)),
    lambda z: explain.cross_entropy(z, targets(z), unit="bits", reduction="sum"),
    lambda z: explain.cross_entropy(z, ll.softmax(z)),
    lambda z: explain.perplexity(z, targets(z)),
    lambda z: explain.nll_loss(ll.log_softmax(z), targets(z), reduction="none"),
]


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("traced", CHECKED)
def test_pytorch_agrees(traced: Any, dtype: Any):
    pytest.importorskip("torch")
    for name in ("three", "worked example", "ties"):
        trace = traced(logits(name, dtype))
        assert trace.agrees is True, (trace.pytorch, trace.result, trace.pytorch_value)
        assert shape_of(trace.pytorch_value) == shape_of(trace.result)


@pytest.mark.parametrize(("family", "data", "parameters", "more"), LIKELIHOODS, ids=str)
def test_pytorch_agrees_on_likelihoods(family: str, data: Any, parameters: Any, more: Any):
    pytest.importorskip("torch")
    if 0.0 not in np.ravel([np.ravel(each).tolist()[0] for each in parameters.values()]):  # torch clamps p = 0
        assert explain.likelihood(family, data, **parameters).agrees is True
    assert explain.mle(family, data, **more).agrees is True


def test_disagreement_is_told():
    pytest.importorskip("torch")
    z = np.float32([1.0, 2.0])
    line = pytorch.Line("F.softmax(input, dim=-1)", {"input": z})
    good = ll.softmax(z)
    assert pytorch.run(line, good)[1] is True
    assert pytorch.run(line, good + np.float32(1e-5))[1] is False
    assert pytorch.run(line, good[None])[1] is False
    assert pytorch.run(line, [math.nan, 0.3])[1] is False
    assert pytorch.run(pytorch.Line(), good) == (None, None)


def test_agreement_without_digits_is_told():
    pytest.importorskip("torch")
    lost, fine = (explain.cross_entropy(np.float32([0, margin]), 1) for margin in (20, 3))
    assert (lost.agrees, fine.agrees) == (True, True)
    assert lost.pytorch_value == 0
    assert "no digits" in lost.notes[-1]
    assert fine.notes == ()


def test_nothing_is_run_unless_asked():
    trace = explain.softmax([1.0, 2.0], check=False)
    assert (trace.pytorch, trace.pytorch_value, trace.agrees) == ("F.softmax(input, dim=-1)", None, None)
    code = (
        "import sys; from lastlayer import explain; explain.softmax([1, 2], check=False); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_tensors_are_taken():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        z = torch.tensor([[0.2, 0.5, -0.1], [-0.1, 0.1, 0.3]], dtype=dtype, requires_grad=True)
        trace = explain.cross_entropy(z, torch.tensor([1, 2]), check=False)
        assert trace.dtype == str(dtype).removeprefix("torch.")
        same(trace.steps[0].value, z.detach().double().numpy())
        same(trace.result, ll.cross_entropy(given.array("z", z), [1, 2]))


def test_integers_become_float64():
    trace = explain.softmax([1, 2], check=False)
    assert trace.dtype == "float64"
    same(trace.result, ll.softmax([1.0, 2.0]))


# Errors


WRONG: list[tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (explain.softmax, ll.softmax, (["a", "b"],), {}),
    (explain.softmax, ll.softmax, ([[1.0, 2.0], [3.0]],), {}),
    (explain.softmax, ll.softmax, ([True, False],), {}),
    (explain.cross_entropy, ll.cross_entropy, ([[1.0, 2.0]], [2]), {}),
    (explain.cross_entropy, ll.cross_entropy, ([[1.0, 2.0]], [0, 1]), {}),
    (explain.cross_entropy, ll.cross_entropy, ([[1.0, 2.0]], [0]), {"reduction": "median"}),
    (explain.cross_entropy, ll.cross_entropy, ([[1.0, 2.0]], [0]), {"label_smoothing": 2.0}),
    (explain.cross_entropy, ll.cross_entropy, ([[1.0, 2.0]], [0]), {"weight": [1.0]}),
    (explain.cross_entropy, ll.cross_entropy, ([[1.0, 2.0]], [[0.5, 1.5]]), {}),
    (explain.nll_loss, ll.nll_loss, ([[0.5, 0.5]], [0]), {}),
    (explain.perplexity, ll.perplexity, ([[1.0, 2.0]], [5]), {}),
    (explain.entropy, ll.entropy, ([0.5, 0.6],), {}),
    (explain.entropy, ll.entropy, (), {}),
    (explain.entropy, ll.entropy, ([0.5, 0.5],), {"unit": "bytes"}),
    (explain.kl_divergence, information.kl_divergence, ([0.5, 0.5], [1.0]), {}),
    (explain.cross_entropy_between, information.cross_entropy, ([0.5, 0.5], [-0.5, 1.5]), {}),
    (explain.truncate, ll.categorical, ([1.0, 2.0],), {"top_p": 1.5}),
    (explain.categorical, ll.categorical, ([-INF, -INF],), {}),
]


@pytest.mark.parametrize(("traced", "function", "arguments", "options"), WRONG)
def test_errors_are_the_librarys(traced: Any, function: Any, arguments: Any, options: Any):
    with pytest.raises((ValueError, TypeError, IndexError)) as expected:
        function(*arguments, **options)
    with pytest.raises(type(expected.value)) as found:
        traced(*arguments, **options)
    assert str(found.value) == str(expected.value)


def test_what_only_traces_refuse():
    for wrong, says in (
        (np.zeros((2, 2, 2)), "one row or several"),
        (np.zeros(0), "nothing to explain"),
        (1.0, "one row or several"),
        (np.zeros(given.LIMIT + 1), "pass fewer"),
        (np.zeros((10, given.LIMIT)), "pass 1 row"),
    ):
        with pytest.raises(ValueError, match=says):
            explain.softmax(wrong, check=False)
    with pytest.raises(ValueError, match="family = 'gamma' is not one of 'bernoulli'"):
        explain.likelihood("gamma", [1.0])
    with pytest.raises(ValueError, match="unit = 'bytes'"):
        explain.log_softmax([1.0], unit="bytes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature = -1"):
        explain.temperature([1.0, 2.0], -1)


def test_without_mpmath_one_line_says_what_to_install():
    code = "import sys; sys.modules['mpmath'] = None; import lastlayer.explain"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith("lastlayer.explain needs mpmath: pip install lastlayer[explain]")


def test_inputs_are_not_written_to():
    z = logits("worked example", np.float32)
    z.setflags(write=False)
    explain.cross_entropy(z, [1, 2], check=False)
    explain.categorical(z, seed=0, top_p=0.5)
    before = mpmath.mp.dps
    explain.softmax(z, check=False)
    assert mpmath.mp.dps == before
