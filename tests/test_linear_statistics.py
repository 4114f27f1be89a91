"""linear_logit_statistics for NumPy is logit_statistics of the logits, and its gradient follows by the chain rule."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import laws
import ml_dtypes
import numpy as np
import pytest

from lastlayer import _backends
from lastlayer.linear_statistics import linear_logit_statistics, linear_logit_statistics_vjp
from lastlayer.statistics import LogitStatistics, logit_statistics, logit_statistics_vjp

TYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
TARGETS = ["none", "one", "many"]
ASKED = {"entropy": True, "rank": True, "argmax": True}
SMOOTH = ("logsumexp", "logprob", "entropy", "mean_logit", "max", "mean_logprob", "remainder")
HEADS: list[dict[str, Any]] = [{}, {"scale": 0.5}, {"softcap": 3.0}, {"scale": -0.7, "softcap": 4.0}]
BUDGETS = [2**26, 12000, 1000]  # all logits at once; of float64, chunks of whole rows; tiles of some classes
RELATIVE = 1e-12
INF, NAN = math.inf, math.nan


@pytest.fixture(params=["reference", "cpu"])
def front(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both backends, as a user chooses them."""
    if request.param == "cpu":
        pytest.importorskip("lastlayer._native")
    monkeypatch.setenv("LASTLAYER_BACKEND", request.param)


def draw(rng: np.random.Generator, kind: str, dtype: Any = np.float64) -> tuple[Any, Any, Any, Any]:
    """Return hidden states (3, 20, 5), a head (33, 5), its bias, and targets: none, one per row or three."""
    h, W, b = (rng.normal(size=shape).astype(dtype) for shape in ((3, 20, 5), (33, 5), (33,)))
    each = rng.permuted(np.tile(np.arange(33), (3, 20, 1)), axis=-1)[..., :3]
    return h, W, b, {"none": None, "one": each[..., 0], "many": each}[kind]


def logits(h: Any, W: Any, b: Any, scale: float = 1.0, softcap: float | None = None, dtype: Any = np.float64) -> Any:
    """Return the logits in the given precision."""
    h, W, b = (np.asarray(array).astype(dtype) for array in (h, W, b))
    z = (h @ W.T + b) * dtype(scale)
    return z if softcap is None else dtype(softcap) * np.tanh(z / dtype(softcap))


def draw_cotangents(rng: np.random.Generator, like: LogitStatistics, *names: str) -> LogitStatistics:
    """Return cotangents that differ by row, of these statistics or of all."""
    fields = {
        name: rng.normal(size=np.shape(field)) if name in (names or SMOOTH) and field is not None else None
        for name, field in like._asdict().items()
    }
    return LogitStatistics(**fields)


def chained(h: Any, W: Any, b: Any, g: LogitStatistics, y: Any, w: Any, dtype: Any = np.float64, **head: Any) -> Any:
    """Return the gradients by the full logits, in the given precision."""
    z = logits(h, W, b, dtype=dtype, **head)
    dz = logit_statistics_vjp(z, g, y, class_weights=w) * dtype(head.get("scale", 1.0))
    if head.get("softcap") is not None:
        dz = dz * (1 - (z / dtype(head["softcap"])) ** 2)
    flat = dz.reshape(-1, len(W))
    h, W = h.astype(dtype), W.astype(dtype)
    return dz @ W, flat.T @ h.reshape(len(flat), -1), flat.sum(0)


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("budget", BUDGETS)
def test_it_is_that_of_the_logits(
    rng: np.random.Generator, dtype: Any, kind: str, head: dict[str, Any], budget: int
) -> None:
    (h, W, b, y), w = draw(rng, kind, dtype), rng.random(33)
    wide = np.float64 if dtype is np.float64 else np.float32
    exact, plain = (
        logit_statistics(logits(h, W, b, dtype=d, **head), y, class_weights=w, **ASKED) for d in (np.float64, wide)
    )
    got = linear_logit_statistics(h, W, y, linear_bias=b, class_weights=w, memory_budget=budget, **head, **ASKED)
    for name in SMOOTH:
        field, truth = getattr(got, name), getattr(exact, name)
        if truth is None:
            assert field is None
            continue
        assert field.dtype == wide
        columns = (array.reshape(-1)[:, None] for array in (field, truth, getattr(plain, name)))
        laws.assert_within(*columns, wide, name, 8 * 33, size=np.abs(exact.max).max() + np.abs(exact.logsumexp).max())
    for name in ("rank", "argmax"):
        field, truth = getattr(got, name), getattr(exact, name)
        assert (field is None) == (truth is None)
        if truth is not None:
            assert field.dtype == np.int64
            np.testing.assert_array_equal(field, truth)


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("names", [SMOOTH, *((name,) for name in SMOOTH)], ids=lambda names: "-".join(names)[:12])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("head", [HEADS[0], HEADS[3]], ids=str)
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_product_is_the_chain_rule(
    rng: np.random.Generator, names: tuple[str, ...], kind: str, head: dict[str, Any], budget: int
) -> None:
    (h, W, b, y), w = draw(rng, kind), rng.random(33)
    g = draw_cotangents(rng, logit_statistics(logits(h, W, b), y, entropy=True), *names)
    got = linear_logit_statistics_vjp(h, W, g, y, linear_bias=b, class_weights=w, memory_budget=budget, **head)
    for field, exact in zip(got, chained(h, W, b, g, y, w, **head), strict=True):
        np.testing.assert_allclose(field, exact, rtol=0, atol=RELATIVE * np.abs(exact).max())
    without = linear_logit_statistics_vjp(h, W, g, y, class_weights=w, memory_budget=budget, **head)
    assert without.linear_bias is None
    exact, *_ = chained(h, W, 0, g, y, w, **head)
    np.testing.assert_allclose(without.input, exact, rtol=0, atol=RELATIVE * np.abs(exact).max())


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_gradients_are_rounded_once(rng: np.random.Generator, dtype: Any, kind: str, budget: int) -> None:
    (h, W, b, y), w = draw(rng, kind, dtype), rng.random(33)
    g = draw_cotangents(rng, logit_statistics(logits(h, W, b), y, entropy=True))
    wide = np.float64 if dtype is np.float64 else np.float32
    got = linear_logit_statistics_vjp(h, W, g, y, linear_bias=b, class_weights=w, memory_budget=budget, softcap=3.0)
    exact, plain = (chained(h, W, b, g, y, w, d, softcap=3.0) for d in (np.float64, wide))
    for field, truth, other in zip(got, exact, plain, strict=True):
        assert field.dtype == dtype
        size = np.abs(truth).max() * laws.spacing(wide) / laws.spacing(dtype)  # of the sums, in the type of these
        laws.assert_within(field.reshape(1, -1), truth.reshape(1, -1), other.reshape(1, -1), dtype, "", 8, 33 * size)


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("head", [HEADS[0], HEADS[3]], ids=str)
def test_the_product_is_torchs_derivative(rng: np.random.Generator, kind: str, head: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    import lastlayer.torch as F

    (h, W, b, y), w = draw(rng, kind), rng.random(33)
    ours = linear_logit_statistics(h, W, y, linear_bias=b, class_weights=w, **head, **ASKED)
    g = draw_cotangents(rng, ours)
    got = linear_logit_statistics_vjp(h, W, g, y, linear_bias=b, class_weights=w, **head)
    leaves = [torch.tensor(array, requires_grad=True) for array in (h, W, b)]
    index = None if y is None else torch.tensor(y)
    found = F.linear_logit_statistics(
        *leaves[:2], index, linear_bias=leaves[2], class_weights=torch.tensor(w), **head, **ASKED
    )
    for name, field, theirs in zip(ours._fields, ours, found, strict=True):
        assert (field is None) == (theirs is None)
        if theirs is not None:
            np.testing.assert_allclose(field, theirs.detach().numpy(), rtol=RELATIVE, atol=RELATIVE, err_msg=name)
    loss = sum((f * torch.tensor(c)).sum() for f, c in zip(found, g, strict=True) if c is not None)
    for field, theirs in zip(got, torch.autograd.grad(loss, leaves), strict=True):
        np.testing.assert_allclose(field, theirs.numpy(), rtol=0, atol=RELATIVE * float(theirs.abs().max()))


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("budget", [2**26, 1000])
def test_the_product_is_the_difference_quotient(rng: np.random.Generator, kind: str, budget: int) -> None:
    (h, W, b, y), w, step = draw(rng, kind), rng.random(33), 2.0**-16
    options = {"class_weights": w, "softcap": 3.0, "scale": 0.7, "memory_budget": budget}
    g = draw_cotangents(rng, linear_logit_statistics(h, W, y, entropy=True))
    got = linear_logit_statistics_vjp(h, W, g, y, linear_bias=b, **options)

    def value(*moved: Any) -> Any:
        found = linear_logit_statistics(moved[0], moved[1], y, linear_bias=moved[2], entropy=True, **options)
        return sum(np.sum(f * c) for f, c in zip(found, g, strict=True) if c is not None)

    for i, field in enumerate(got):
        for index in [tuple(rng.integers(0, n) for n in field.shape) for _ in range(8)]:
            ends = []
            for move in (step, -step):
                moved = [h.copy(), W.copy(), b.copy()]
                moved[i][index] += move
                ends.append(value(*moved))
            assert abs((ends[0] - ends[1]) / (2 * step) - field[index]) < 1e-7


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("kind", ["one", "many"])
@pytest.mark.parametrize("planted", [NAN, INF])
@pytest.mark.parametrize("budget", [2**26, 1000])
def test_an_ignored_row_is_a_deleted_row(rng: np.random.Generator, kind: str, planted: float, budget: int) -> None:
    h, W, b, y = draw(rng, kind)
    g = draw_cotangents(rng, linear_logit_statistics(h, W, y, entropy=True))
    h[1], y[1] = planted, -100
    g.logsumexp[1] = NAN
    options = {"linear_bias": b, "memory_budget": budget}
    got, kept = (linear_logit_statistics(*args, **options, **ASKED) for args in ((h, W, y), (h[::2], W, y[::2])))
    for name, field, expected in zip(got._fields, got, kept, strict=True):
        np.testing.assert_array_equal(field[::2], expected, err_msg=name)
        assert (field[1] == (-1 if name == "argmax" else 0)).all(), name
    some = LogitStatistics(*(None if field is None else field[::2] for field in g))
    gradients = linear_logit_statistics_vjp(h, W, g, y, **options)
    expected = linear_logit_statistics_vjp(h[::2], W, some, y[::2], **options)
    np.testing.assert_array_equal(gradients.input[::2], expected.input)
    assert (gradients.input[1] == 0).all()
    for field, truth in zip(gradients[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(field, truth)


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("budget", [2**26, 1000])
def test_a_masked_class_is_a_deleted_class(rng: np.random.Generator, kind: str, budget: int) -> None:
    h, W, b, y = draw(rng, kind)
    y = None if y is None else np.argsort(np.argsort(y, -1), -1) if kind == "many" else y % 20
    b[20:] = -INF
    w = np.where(np.arange(33) < 20, 1.0, 0.0)
    got = linear_logit_statistics(h, W, y, linear_bias=b, class_weights=w, memory_budget=budget, **ASKED)
    kept = linear_logit_statistics(h, W[:20], y, linear_bias=b[:20], **ASKED)
    for name, field, truth in zip(got._fields, got, kept, strict=True):
        if truth is not None:
            np.testing.assert_allclose(field, truth, rtol=RELATIVE, atol=RELATIVE, err_msg=name)
    g = draw_cotangents(rng, kept)
    options = {"class_weights": w, "linear_bias": b}
    gradients = linear_logit_statistics_vjp(h, W, g, y, memory_budget=budget, **options)
    expected = linear_logit_statistics_vjp(h, W[:20], g, y, linear_bias=b[:20])
    np.testing.assert_allclose(gradients.input, expected.input, rtol=0, atol=RELATIVE)
    np.testing.assert_allclose(gradients.linear_weight[:20], expected.linear_weight, rtol=0, atol=RELATIVE)
    assert (gradients.linear_weight[20:] == 0).all()


@pytest.mark.parametrize("shape", [(0,), (2, 0), (3,)])
@pytest.mark.parametrize("more", [(), (2,)])
def test_nothing_to_learn_from_is_zero(shape: tuple[int, ...], more: tuple[int, ...]) -> None:
    h, W, y = np.ones((*shape, 4), np.float32), np.ones((5, 4), np.float32), np.full((*shape, *more), -100)
    found = linear_logit_statistics(h, W, y, linear_bias=np.ones(5), **ASKED)
    for name, field in found._asdict().items():
        assert field.shape == ((*shape, *more) if name in ("logprob", "rank") else shape), name
        assert (field == (-1 if name == "argmax" else 0)).all()
    g = LogitStatistics(*(field for name, field in zip(found._fields, found, strict=True) if name in SMOOTH))
    gradients = linear_logit_statistics_vjp(h, W, g, y, linear_bias=np.ones(5))
    for field, like in zip(gradients, (h, W, np.ones(5)), strict=True):
        assert field.shape == like.shape
        assert field.dtype == like.dtype
        assert not field.any()


def test_nothing_is_written_to(rng: np.random.Generator) -> None:
    (h, W, b, y), w = draw(rng, "many"), rng.random(33)
    g = draw_cotangents(rng, linear_logit_statistics(h, W, y, entropy=True))
    for array in (h, W, b, y, w, *(field for field in g if field is not None)):
        array.flags.writeable = False
    for budget in BUDGETS:
        options = {"linear_bias": b, "class_weights": w, "softcap": 3.0, "scale": 2.0, "memory_budget": budget}
        linear_logit_statistics(h, W, y, **options, **ASKED)
        linear_logit_statistics_vjp(h, W, g, y, **options)


def test_one_row_gives_scalars() -> None:
    W = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = linear_logit_statistics([1.0, 2.0], W, 2, **ASKED)
    assert all(np.shape(field) == () for field in found)
    gradients = linear_logit_statistics_vjp([1.0, 2.0], W, LogitStatistics(1.0), 2)
    assert gradients.input.shape == (2,)


@pytest.mark.skipif(
    _backends.choose(np.zeros((1, 1))) is _backends.reference, reason="the reference makes float64 copies of a tile"
)
@pytest.mark.parametrize("kind", ["one", "many"])
def test_the_budget_is_kept(rng: np.random.Generator, kind: str) -> None:
    rows, classes, features, budget = 3000, 5000, 16, 2**21
    h, W = (rng.normal(size=(n, features)).astype(np.float32) for n in (rows, classes))
    y = rng.integers(0, classes, rows) if kind == "one" else rng.integers(0, 1000, rows)[:, None] + [0, 1000, 2000]
    g = LogitStatistics(np.ones(rows), logprob=np.ones(y.shape), entropy=np.ones(rows), remainder=np.ones(rows))
    linear_logit_statistics_vjp(h[:5], W, LogitStatistics(*(None if f is None else f[:5] for f in g)), y[:5])
    tracemalloc.start()
    linear_logit_statistics_vjp(h, W, g, y, memory_budget=budget)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    gradients, per_row = 4 * features * (rows + classes), 8 * 60 * rows
    assert peak <= budget + gradients + per_row
    assert peak < 4 * rows * classes / 10


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target": [0, 1, 9, -1]}, IndexError, r"target\[2\] = 9 is outside \[0, 5\)"),
    ({"target": [[0, 1]] * 3 + [[2, 2]]}, ValueError, r"target\[3\] names class 2 twice"),
    ({"target": [0, 1, 2]}, ValueError, r"target has shape \(3,\), expected \(4,\), or \(4, K\) with K > 0"),
    ({"target": [0.0, 1, 2, 3]}, TypeError, "target has dtype float64"),
    ({"input": np.ones((4, 2))}, ValueError, r"shapes \(4, 2\) and \(5, 3\), expected \(..., D\) and \(V, D\)"),
    ({"linear_weight": np.ones((0, 3))}, ValueError, "at least one class"),
    ({"linear_bias": np.ones(4)}, ValueError, r"linear_bias has shape \(4,\), expected \(5,\)"),
    ({"class_weights": [1, 1, 1, 1]}, ValueError, r"class_weights has shape \(4,\), expected \(5,\)"),
    ({"class_weights": [1, 1, np.nan, 1, 1]}, ValueError, r"class_weights\[2\] = nan must be a finite number >= 0"),
    ({"class_weights": [0, 0, 0, 0, 0]}, ValueError, "class_weights are all 0"),
    ({"softcap": -1.0}, ValueError, "softcap = -1.0"),
    ({"scale": np.nan}, ValueError, "scale = nan"),
    ({"memory_budget": 3}, ValueError, "memory_budget = 3 bytes is too small: at least"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=lambda x: x if isinstance(x, str) else None)
def test_bad_input_is_named(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    good = {"input": np.ones((4, 3)), "linear_weight": np.ones((5, 3)), "target": [0, 1, 2, 3]}
    given = {**good, **change}
    with pytest.raises(kind, match=message):
        linear_logit_statistics(**given)
    with pytest.raises(kind, match=message):
        linear_logit_statistics_vjp(**given, cotangents=LogitStatistics(None))


def test_cotangents_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"cotangents.entropy has shape \(2,\), expected \(1,\), the shape of entropy"):
        linear_logit_statistics_vjp(np.ones((1, 2)), np.ones((3, 2)), LogitStatistics(None, entropy=np.ones(2)))
