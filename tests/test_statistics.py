"""logit_statistics for NumPy is its definition, and logit_statistics_vjp that definition's derivative."""

from __future__ import annotations

import math
from typing import Any

import laws
import ml_dtypes
import mpmath
import numpy as np
import pytest

from lastlayer import _algebra
from lastlayer.statistics import LogitStatistics, logit_statistics, logit_statistics_vjp

TYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
TARGETS = ["none", "one", "many"]
ASKED = {"entropy": True, "rank": True, "argmax": True}
SMOOTH = ("logsumexp", "logprob", "entropy", "mean_logit", "max", "mean_logprob", "remainder")
RELATIVE = 1e-12
INF, NAN = math.inf, math.nan


@pytest.fixture(params=["reference", "cpu"])
def front(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both backends, as a user chooses them."""
    if request.param == "cpu":
        pytest.importorskip("lastlayer._native")
    monkeypatch.setenv("LASTLAYER_BACKEND", request.param)


def definition(z: Any, y: Any = None, w: Any = None) -> LogitStatistics:
    """The definition over rows of logits, (N, V), in their own precision, for arrays and tensors; u = w / sum(w)."""
    xp = _algebra.namespace(z)
    u = xp.ones_like(z[0]) if w is None else w
    u, rows = u / u.sum(), np.arange(len(z))

    def logsumexp(z: Any) -> Any:
        m = xp.amax(z, -1)
        m = xp.where(xp.isfinite(m), m, xp.zeros_like(m))
        return m + xp.log(xp.exp(z - m[:, None]).sum(-1))

    lse, zero = logsumexp(z), xp.zeros_like(z)
    logp = z - lse[:, None]
    p, used = xp.exp(logp), u != 0
    found = LogitStatistics(
        lse,
        entropy=-(p * xp.where(p > 0, logp, zero)).sum(-1),
        mean_logit=(u * xp.where(used, z, zero)).sum(-1),
        max=xp.amax(z, -1),
        mean_logprob=(u * xp.where(used, logp, zero)).sum(-1),
        argmax=xp.argmax(z, -1),
    )
    if y is None:
        return found
    each = y if y.ndim == 2 else y[:, None]
    other = np.ones(tuple(z.shape), bool)
    other[rows[:, None], each] = False
    other = other if xp is np else xp.tensor(other)
    chosen = z[rows[:, None], each]
    above = 1 + (z[:, None] > chosen[..., None]).sum(-1)
    logprob = logp[rows[:, None], each]
    return found._replace(
        logprob=logprob if y.ndim == 2 else logprob[:, 0],
        remainder=logsumexp(xp.where(other, z, zero - INF)) - lse,
        rank=above if y.ndim == 2 else above[:, 0],
    )


def draw_targets(rng: np.random.Generator, kind: str, rows: int, classes: int) -> Any:
    """Return no targets, one per row or three."""
    if kind == "none":
        return None
    each = rng.permuted(np.tile(np.arange(classes), (rows, 1)), axis=1)[:, :3]
    return each[:, 0] if kind == "one" else each


def draw_cotangents(rng: np.random.Generator, like: LogitStatistics, *names: str) -> LogitStatistics:
    """Return cotangents that differ by row, of these statistics or of all."""
    fields = {
        name: rng.normal(size=np.shape(field)) if name in (names or SMOOTH) and field is not None else None
        for name, field in like._asdict().items()
    }
    return LogitStatistics(**fields)


def autograd(z: Any, g: LogitStatistics, y: Any = None, w: Any = None) -> Any:
    """Return the definition's gradient by torch, in z's own precision."""
    torch = pytest.importorskip("torch")
    x = torch.tensor(z, requires_grad=True)
    found = definition(x, y, None if w is None else torch.tensor(w.astype(z.dtype)))
    terms = [(f * torch.tensor(c.astype(z.dtype))).sum() for f, c in zip(found, g, strict=True) if c is not None]
    (dz,) = torch.autograd.grad(sum(terms), x)
    return dz.numpy()


def exactly(z: Any, g: LogitStatistics, y: Any = None, w: Any = None) -> Any:
    """Return the definition's gradient, its difference quotient in 120 digits."""
    u, step = np.ones(z.shape[1]) if w is None else w, mpmath.mpf(10) ** -40

    def value(i: int, row: list[Any]) -> Any:
        some = [k for k, x in enumerate(row) if x != -INF]
        total = lambda each: mpmath.log(mpmath.fsum(mpmath.exp(row[k]) for k in each))  # noqa: E731
        lse, chosen = total(some), [] if y is None else [int(k) for k in np.atleast_1d(y[i])]
        logp, v = {k: row[k] - lse for k in some}, {k: mpmath.mpf(u[k]) / mpmath.fsum(u) for k in some}
        found = {
            "logsumexp": lambda: lse,
            "logprob": lambda: [logp[k] for k in chosen],
            "entropy": lambda: -mpmath.fsum(mpmath.exp(logp[k]) * logp[k] for k in some),
            "mean_logit": lambda: mpmath.fsum(v[k] * row[k] for k in some),
            "max": lambda: max(row),
            "mean_logprob": lambda: mpmath.fsum(v[k] * logp[k] for k in some),
            "remainder": lambda: total([k for k in some if k not in chosen]) - lse,
        }
        terms = [(np.atleast_1d(c[i]), found[name]()) for name, c in g._asdict().items() if c is not None]
        return mpmath.fsum(mpmath.fdot(c, f if isinstance(f, list) else [f]) for c, f in terms)

    dz = np.zeros(z.shape)
    with mpmath.workdps(120):
        for i, k in np.argwhere(z != -INF):
            row = [mpmath.mpf(x) for x in z[i]]
            ends = [value(i, [*row[:k], row[k] + move, *row[k + 1 :]]) for move in (step, -step)]
            dz[i, k] = float((ends[0] - ends[1]) / (2 * step))
    return dz


def assert_close(got: Any, exact: Any, size: Any = 0.0) -> None:
    """Assert equality to 1e-12 of the row's largest entry, and to what autograd itself rounds away of sizes."""
    error, largest = (np.abs(array).max(-1, initial=0) for array in (got - exact, exact))
    assert (error <= RELATIVE * largest + 8 * laws.spacing(np.float64) * size).all(), error / largest


def size_of(g: LogitStatistics) -> Any:
    """Return the sum of a row's cotangents without their signs."""
    return sum(np.abs(field.reshape(len(field), -1)).sum(-1) for field in g if field is not None)


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [3, 40])
def test_it_is_its_definition(rng: np.random.Generator, dtype: Any, kind: str, weighted: bool, classes: int) -> None:
    z = (4 * rng.normal(size=(7, classes))).astype(dtype)
    y, w = draw_targets(rng, kind, 7, classes), rng.random(classes) if weighted else None
    wide = np.float64 if dtype is np.float64 else np.float32
    with np.errstate(divide="ignore"):  # three targets of three classes leave nothing
        exact = definition(z.astype(np.float64), y, w)
        plain = definition(z.astype(wide), y, None if w is None else w.astype(wide))
    got = logit_statistics(z, y, class_weights=w, **ASKED)
    for name in SMOOTH:
        field, truth = getattr(got, name), getattr(exact, name)
        if truth is None:
            assert field is None
            continue
        assert field.dtype == wide
        columns = (array.reshape(-1)[:, None] for array in (field, truth, getattr(plain, name)))
        laws.assert_within(*columns, wide, name, 8 * classes, size=np.abs(z.astype(float)).max())
    assert got.argmax.dtype == np.int64
    np.testing.assert_array_equal(got.argmax, exact.argmax)
    assert (got.rank is None) == (y is None)
    if y is not None:
        assert got.rank.dtype == np.int64
        np.testing.assert_array_equal(got.rank, exact.rank)


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_torchs(rng: np.random.Generator, kind: str, weighted: bool) -> None:
    torch = pytest.importorskip("torch")
    import lastlayer.torch as F

    z, y = rng.normal(size=(7, 20)).astype(np.float32), draw_targets(rng, kind, 7, 20)
    w = rng.random(20) if weighted else None
    w = None if w is None else w / w.max()
    tensors = [None if array is None else torch.tensor(array) for array in (y, w)]
    theirs = F.logit_statistics(torch.tensor(z), tensors[0], class_weights=tensors[1], **ASKED)
    ours = logit_statistics(z, y, class_weights=w, **ASKED)
    for name, got, expected in zip(ours._fields, ours, theirs, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            size = 2.0**-23 * np.abs(z).max()  # torch's front end divides by weights that were not rounded
            np.testing.assert_allclose(got, expected.numpy(), rtol=2.0**-23, atol=size if weighted else 0, err_msg=name)


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("names", [SMOOTH, *((name,) for name in SMOOTH)], ids=lambda names: "-".join(names)[:12])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_product_is_the_derivative(
    rng: np.random.Generator, names: tuple[str, ...], kind: str, weighted: bool, dtype: Any
) -> None:
    z = (4 * rng.normal(size=(7, 20))).astype(dtype)
    z[:, 3] += dtype(16)  # the rows are confident, and no two maxima tie
    y, w = draw_targets(rng, kind, 7, 20), rng.random(20) if weighted else None
    g = draw_cotangents(rng, definition(z.astype(float), y, w), *names)
    if all(field is None for field in g):
        return
    got = logit_statistics_vjp(z, g, y, class_weights=w)
    assert got.dtype == dtype
    exact = autograd(z.astype(np.float64), g, y, w)
    if dtype is np.float64:
        assert_close(got, exact, size_of(g))
        return
    plain = autograd(z.astype(np.float32), g, y, w)
    laws.assert_within(got, exact, plain, dtype, "gradient", 8 * 20, size_of(g))


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("kind", TARGETS)
def test_the_product_is_the_difference_quotient(rng: np.random.Generator, kind: str) -> None:
    z, w, step = rng.normal(size=(4, 5)), rng.random(5), 2.0**-16
    y = draw_targets(rng, kind, 4, 5)
    g = draw_cotangents(rng, definition(z, y, w))
    got = logit_statistics_vjp(z, g, y, class_weights=w)

    def value(z: Any) -> Any:
        found = logit_statistics(z, y, class_weights=w, entropy=True)
        return sum(np.sum(f * c) for f, c in zip(found, g, strict=True) if c is not None)

    for index in np.ndindex(z.shape):
        move = np.zeros_like(z)
        move[index] = step
        assert abs((value(z + move) - value(z - move)) / (2 * step) - got[index]) < 1e-8


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("kind", ["one", "many"])
@pytest.mark.parametrize("gap", [0.0, 20.0, 38.0, 60.0, 300.0])
@pytest.mark.parametrize("names", [("remainder",), ("remainder", "logsumexp"), SMOOTH])
def test_a_confident_row_keeps_its_digits(
    rng: np.random.Generator, kind: str, gap: float, names: tuple[str, ...]
) -> None:
    z = rng.normal(size=(3, 5))
    y = draw_targets(rng, kind, 3, 5)
    z[np.arange(3), y.reshape(3, -1)[:, 0]] += gap
    exact = definition(z, y)
    found = logit_statistics(z, y)
    for name in ("remainder", "logprob"):
        size = np.abs(z).max() if name == "logprob" else 0
        np.testing.assert_allclose(
            getattr(found, name), getattr(exact, name), rtol=RELATIVE, atol=RELATIVE * size, err_msg=name
        )
    g = draw_cotangents(rng, exact, *names)
    assert_close(logit_statistics_vjp(z, g, y), exactly(z, g, y))


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("gap", [20.0, 38.0, 60.0])
@pytest.mark.parametrize("focal", [False, True])
def test_a_gradient_that_vanishes_keeps_its_digits(rng: np.random.Generator, gap: float, focal: bool) -> None:
    z, y = rng.normal(size=(3, 5)), np.array([4, 0, 2])
    z[np.arange(3), y] += gap
    s = logit_statistics(z, y)
    q = np.exp(s.remainder)
    g = LogitStatistics(None, -(q**2), remainder=-2 * q**2 * s.logprob)
    y, g = (y, g) if focal else (y[:, None], LogitStatistics(None, np.ones((3, 1))))
    assert_close(logit_statistics_vjp(z, g, y), exactly(z, g, y))


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("gap", [690.0, 705.0, 715.0, 730.0, 744.0, 746.0, 800.0, 1e300, INF])
def test_the_gradient_of_a_remainder_below_all_numbers_fades_and_is_never_nan(many: bool, gap: float) -> None:
    z, y = np.array([[0.0, -gap, -gap]]), np.array([[0]] if many else [0])
    g = LogitStatistics(None, remainder=np.ones(1), logprob=np.zeros(y.shape))
    none = gap == INF or (gap > 745 and not many)  # log 0, a constant
    others = 0.5 * np.exp(min(0.0, 700.0 - gap)) if gap < 745 else 0.0  # by log 2 more: p_j is half of what is left
    dz, both = logit_statistics_vjp(z, g, y), logit_statistics_vjp(z, g._replace(logsumexp=np.ones(1)), y)
    assert dz[0, 0] == (0.0 if none else -1.0)
    assert both[0, 0] == (1.0 if none else 0.0)
    assert (dz[0, 1:] == both[0, 1:]).all()
    assert ((dz[0, 1:] >= 0.25 * others) & (dz[0, 1:] <= 0.5 * (1 + RELATIVE))).all()


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("kind", ["one", "many"])
@pytest.mark.parametrize("planted", [NAN, INF, -INF])
def test_an_ignored_row_is_a_deleted_row(rng: np.random.Generator, kind: str, planted: float) -> None:
    z, y = rng.normal(size=(9, 6)), draw_targets(rng, kind, 9, 6)
    z[::2], y[::2] = planted, -100
    g = draw_cotangents(rng, definition(np.zeros((9, 6)), np.where(y < 0, [0] if y.ndim == 1 else [0, 1, 2], y)))
    g.logsumexp[::4] = NAN
    got, kept = logit_statistics(z, y, **ASKED), logit_statistics(z[1::2], y[1::2], **ASKED)
    for name, field, expected in zip(got._fields, got, kept, strict=True):
        np.testing.assert_array_equal(field[1::2], expected, err_msg=name)
        assert (field[::2] == (-1 if name == "argmax" else 0)).all(), name
    dz = logit_statistics_vjp(z, g, y)
    some = LogitStatistics(*(None if field is None else field[1::2] for field in g))
    np.testing.assert_array_equal(dz[1::2], logit_statistics_vjp(z[1::2], some, y[1::2]))
    assert (dz[::2] == 0).all()


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("kind", TARGETS)
def test_a_row_whose_cotangents_are_0_has_no_gradient(rng: np.random.Generator, kind: str) -> None:
    z, y = np.array([[NAN, 0, 0, 1], [INF, 0, 0, 1], [-INF] * 4]), draw_targets(rng, kind, 3, 4)
    g = LogitStatistics(*(None if f is None else 0 * f for f in draw_cotangents(rng, definition(np.zeros((3, 4)), y))))
    assert (logit_statistics_vjp(z, g, y) == 0).all()
    assert (logit_statistics_vjp(z, LogitStatistics(None), y) == 0).all()
    ones = logit_statistics_vjp(z, g._replace(logsumexp=np.ones(3)), y)
    assert np.isnan(ones[:, 3]).all()


@pytest.mark.usefixtures("front")
@pytest.mark.parametrize("kind", TARGETS)
def test_a_masked_class_is_a_deleted_class(rng: np.random.Generator, kind: str) -> None:
    z, y = rng.normal(size=(5, 8)), draw_targets(rng, kind, 5, 6)
    z[:, 6:] = -INF
    w = np.array([1.0, 2, 3, 4, 5, 6, 0, 0])
    got, kept = (logit_statistics(*args, **ASKED) for args in ((z, y), (z[:, :6], y)))
    weighted = logit_statistics(z, y, class_weights=w)
    assert (got.mean_logit == -INF).all()
    assert (got.mean_logprob == -INF).all()
    expected = logit_statistics(z[:, :6], y, class_weights=w[:6])
    got, kept = (
        s._replace(mean_logit=m.mean_logit, mean_logprob=m.mean_logprob) for s, m in ((got, weighted), (kept, expected))
    )
    for name, field, truth in zip(got._fields, got, kept, strict=True):
        if truth is not None:
            np.testing.assert_allclose(field, truth, rtol=RELATIVE, atol=0, err_msg=name)
    g = draw_cotangents(rng, kept)
    dz = logit_statistics_vjp(z, g, y, class_weights=w)
    assert_close(dz[:, :6], logit_statistics_vjp(z[:, :6], g, y, class_weights=w[:6]))
    assert (dz[:, 6:] == 0).all()


def test_rows_without_a_distribution() -> None:
    z = np.array([[NAN, 0.0, 1.0], [INF, 0.0, 1.0], [-INF, -INF, -INF]])
    found = logit_statistics(z, [1, 1, 1], **ASKED)
    np.testing.assert_array_equal(found.logsumexp, [NAN, INF, -INF])
    np.testing.assert_array_equal(found.max[1:], [INF, -INF])
    for name in ("logprob", "entropy", "mean_logprob", "remainder"):
        assert np.isnan(getattr(found, name)).all(), name
    np.testing.assert_array_equal(found.argmax, [-1, 0, 0])
    np.testing.assert_array_equal(found.rank, [3, 3, 1])


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
@pytest.mark.parametrize("kind", TARGETS)
def test_any_axis_and_any_layout(rng: np.random.Generator, axis: int, kind: str) -> None:
    z, y = rng.normal(size=(4, 3, 5)), draw_targets(rng, kind, 12, 5)
    y = None if y is None else y.reshape(4, 3, *y.shape[1:])
    expected = logit_statistics(z, y, **ASKED)
    moved = np.moveaxis(z, -1, axis)
    g = draw_cotangents(rng, expected)
    dz = np.moveaxis(logit_statistics_vjp(z, g, y), -1, axis)
    for given in (moved, np.ascontiguousarray(moved), np.repeat(moved, 2, 0)[::2]):
        got = logit_statistics(given, y, axis=axis, **ASKED)
        for name, field, truth in zip(got._fields, got, expected, strict=True):
            np.testing.assert_array_equal(field, truth, err_msg=name)
        np.testing.assert_array_equal(logit_statistics_vjp(given, g, y, axis=axis), dz)


def test_one_row_gives_scalars() -> None:
    found = logit_statistics([1, 2, 4], 2, **ASKED)
    assert all(np.shape(field) == () for field in found)
    assert found.logprob.dtype == np.float64
    many = logit_statistics([1, 2, 4], [2, 0])
    assert many.logprob.shape == (2,)
    assert many.remainder.shape == ()
    dz = logit_statistics_vjp([1, 2, 4], LogitStatistics(1.0), 2)
    np.testing.assert_allclose(dz, np.exp([1, 2, 4] - found.logsumexp), rtol=RELATIVE)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
@pytest.mark.parametrize("more", [(), (2,)])
def test_no_rows(shape: tuple[int, ...], more: tuple[int, ...]) -> None:
    z, y = np.zeros((*shape, 4), np.float32), np.zeros((*shape, *more), np.int64)
    found = logit_statistics(z, y, **ASKED)
    for name, field in found._asdict().items():
        assert field.shape == ((*shape, *more) if name in ("logprob", "rank") else shape), name
    g = LogitStatistics(*(field for name, field in zip(found._fields, found, strict=True) if name in SMOOTH))
    assert logit_statistics_vjp(z, g, y).shape == z.shape


def test_nothing_is_written_to(rng: np.random.Generator) -> None:
    z, y, w = rng.normal(size=(9, 6)), draw_targets(rng, "many", 9, 6), rng.random(6)
    y[2] = -100
    g = draw_cotangents(rng, definition(z, np.abs(y) % 6, w))
    for array in (z, y, w, *(field for field in g if field is not None)):
        array.flags.writeable = False
    logit_statistics(z, y, class_weights=w, **ASKED)
    logit_statistics_vjp(z, g, y, class_weights=w)


def test_weights_matter_up_to_a_factor(rng: np.random.Generator) -> None:
    z, w = rng.normal(size=(4, 5)).astype(np.float32), rng.random(5)
    expected = logit_statistics(z, class_weights=w)
    for factor in (2.0**-500, 2.0**500):
        for field, truth in zip(logit_statistics(z, class_weights=factor * w), expected, strict=True):
            np.testing.assert_array_equal(field, truth)


def test_the_maximum_is_of_the_first_class_that_attains_it() -> None:
    dz = logit_statistics_vjp([[1.0, 3.0, 3.0], [-INF, -INF, -INF]], LogitStatistics(None, max=np.array([2.0, 0.0])))
    np.testing.assert_array_equal(dz, [[0, 2, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("cotangents", "target", "kind", "message"),
    [
        ((1.0,), None, TypeError, "cotangents is of type tuple, expected LogitStatistics"),
        (LogitStatistics(np.ones(3)), None, ValueError, r"cotangents.logsumexp has shape \(3,\), expected \(2,\)"),
        (LogitStatistics(1.0), None, ValueError, r"cotangents.logsumexp has shape \(\), expected \(2,\)"),
        (LogitStatistics(None, np.ones(2)), None, ValueError, "cotangents.logprob is given, but there is no target"),
        (LogitStatistics(None, remainder=np.ones(2)), None, ValueError, "cotangents.remainder is given, but there is"),
        (LogitStatistics(None, np.ones(2)), [[0, 1], [1, 2]], ValueError, r"logprob has shape \(2,\)"),
        (LogitStatistics(None, remainder=np.ones((2, 2))), [[0, 1], [1, 2]], ValueError, r"shape \(2, 2\)"),
        (LogitStatistics(None, rank=np.ones(2)), [0, 1], ValueError, "cotangents.rank is given"),
        (LogitStatistics(None, argmax=np.ones(2)), None, ValueError, "cotangents.argmax is given"),
        (LogitStatistics(np.ones(2) * 1j), None, TypeError, "cotangents.logsumexp has dtype complex128"),
    ],
)  # fmt: skip
def test_cotangents_that_do_not_fit_are_named(cotangents: Any, target: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        logit_statistics_vjp(np.zeros((2, 3)), cotangents, target)


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        ([0, 3], IndexError, r"target\[1\] = 3 is outside \[0, 3\)"),
        ([[0, 1], [2, -100]], IndexError, r"target\[1, 1\] = -100 is ignore_index beside classes"),
        ([[0, 1], [2, 2]], ValueError, r"target\[1\] names class 2 twice: K targets must be distinct"),
        (np.zeros((2, 0), np.int64), ValueError, r"target has shape \(2, 0\), expected \(2,\), or \(2, K\) with K > 0"),
        ([0, 1, 2], ValueError, r"target has shape \(3,\), expected \(2,\), or \(2, K\)"),
        ([0.0, 1.0], TypeError, "target has dtype float64, expected integers: class indices"),
    ],
)
def test_targets_that_do_not_fit_are_named(target: Any, kind: Any, message: str) -> None:
    for call in (logit_statistics, lambda z, y: logit_statistics_vjp(z, LogitStatistics(None), y)):
        with pytest.raises(kind, match=message):
            call(np.zeros((2, 3)), target)
