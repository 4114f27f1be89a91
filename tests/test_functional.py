"""The laws of the NumPy front end: golden numbers, digits, gradients, shapes, and what every malformed call raises."""

import copy
import itertools
import math
import re
import warnings

import laws
import ml_dtypes
import mpmath
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

import lastlayer as ll

TYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
EPS = laws.spacing(np.float64)

A = [[1, 2, 0.1], [1.2, 0.5, 0.3], [0.4, 1, 1.5]]
B = [[0.2, 0.5, -0.1], [-0.1, 0.1, 0.3]]


@pytest.fixture(params=["cpu", "reference"])
def backend(request, monkeypatch):
    if request.param == "cpu":
        pytest.importorskip("lastlayer._native")
    monkeypatch.setenv("LASTLAYER_BACKEND", request.param)
    return request.param


def statistic(dtype):
    return np.float64 if dtype == np.float64 else np.float32


def assert_decimals(value, expected, decimals):
    """The value is the printed one: right to half a unit of the last decimal."""
    error = np.max(np.abs(np.asarray(value, np.float64) - expected))
    assert error <= 0.5 * 10.0**-decimals * (1 + 1e-9), error


def exactly(name, z):
    """Return softmax, log_softmax or logsumexp of the last axis by arithmetic of 40 digits, rounded to float64."""
    if z.ndim > 1:
        return np.stack([exactly(name, row) for row in z])
    with mpmath.workdps(40):
        e = [mpmath.exp(float(x)) for x in z]
        total = mpmath.log(mpmath.fsum(e))
        rows = {"softmax": e, "log_softmax": z, "logsumexp": total}[name]
        if name == "logsumexp":
            return np.float64(total)
        return np.array([float(x / mpmath.exp(total) if name == "softmax" else float(x) - total) for x in rows])


def dense(name, z):
    """Return the same by the plain formula in z's own type."""
    with np.errstate(all="ignore"):
        m = z.max(-1, keepdims=True)
        e = np.exp(z - m)
        s = e.sum(-1, keepdims=True, dtype=z.dtype)
        return {"softmax": e / s, "log_softmax": z - m - np.log(s), "logsumexp": (m + np.log(s))[..., 0]}[name]


def random_logits(shape, dtype=np.float64, seed=0, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


# Golden numbers


def test_softmax_of_three_logits():
    assert_decimals(ll.softmax([1.2, 2.5, 0.9]), [0.1848, 0.6782, 0.1369], 4)
    assert ll.argmax([1.2, 2.5, 0.9]) == 1


def test_nll_of_log_probabilities():
    logs = [[-0.5, -1, -2], [-0.1, -2, -0.9], [-1.5, -0.2, -1.3], [-0.3, -0.8, -0.5]]
    assert_decimals(ll.nll_loss(logs, [0, 2, 1, 0]), 0.475, 12)
    assert ll.nll_loss(logs, [0, 2, 1, 0], reduction="none").tolist() == [0.5, 0.9, 0.2, 0.3]


def test_three_rows_from_logits_to_loss(backend):
    softmax = [[0.2424, 0.6590, 0.0986], [0.5254, 0.2609, 0.2136], [0.1716, 0.3127, 0.5156]]
    log_softmax = [[-1.4170, -0.4170, -2.3170], [-0.6435, -1.3435, -1.5435], [-1.7624, -1.1624, -0.6624]]
    target = [2, 0, 1]
    assert_decimals(ll.softmax(A), softmax, 4)
    assert_decimals(ll.log_softmax(A), log_softmax, 4)
    assert_decimals(ll.cross_entropy(A, target), 1.3743, 4)
    assert_decimals(ll.nll_loss(ll.log_softmax(A), target), 1.3743, 4)
    with pytest.raises(ValueError, match=r"above 0.*probabilities were passed.*call cross_entropy on the logits"):
        ll.nll_loss(ll.softmax(A), target)
    assert_decimals(ll.nll_loss(ll.softmax(A), target, validate=False), -0.3123, 4)


def test_two_rows_with_gradient(backend):
    losses = ll.cross_entropy(B, [1, 2], reduction="none")
    assert_decimals(losses, [0.8284, 0.9119], 4)
    value, gradient = ll.cross_entropy_value_and_grad(B, [1, 2])
    assert_decimals(value, 0.8701458, 7)
    onehot = [[0, 1, 0], [0, 0, 1]]
    expected = (scipy.special.softmax(B, -1) - onehot) / 2
    laws.assert_within(gradient, expected, expected, np.float64, terms=3)


@pytest.mark.parametrize("shape", [(2, 4, 8), (2, 3, 4)])
def test_the_last_axis_sums_to_one(shape, backend):
    sums = ll.softmax(random_logits(shape)).sum(-1)
    assert sums.shape == shape[:-1]
    assert np.abs(sums - 1).max() <= shape[-1] * laws.spacing(np.float64)


# Digits


def test_a_loss_of_1e_21_in_float32(backend):
    loss = ll.cross_entropy(np.float32([48, 0]), 0)
    assert loss.dtype == np.float32
    assert abs(float(loss) / math.log1p(math.exp(-48)) - 1) < 1e-5
    assert_decimals(float(loss) * 1e21, 1.4252, 4)


@pytest.mark.parametrize("offset", [0, 3, -300, 3000])
@pytest.mark.parametrize("margin", range(0, 61, 4))
def test_confident_rows_of_a_thousand_classes(margin, offset, backend):
    z = random_logits((4, 1000), np.float32, seed=margin, scale=1.0)
    y = np.arange(4) * 250
    z[np.arange(4), y] = z.max(-1) + margin
    z = (z + np.float32(offset)).astype(np.float32)
    losses, gradient = ll.cross_entropy_value_and_grad(z, y, reduction="none")
    wide = z.astype(np.float64)
    for i in range(4):
        others = np.delete(wide[i], y[i]) - wide[i, y[i]]
        odds = math.fsum(np.exp(others))
        assert abs(losses[i] / math.log1p(odds) - 1) < 1e-5
        assert abs(-gradient[i, y[i]] / (odds / (1 + odds)) - 1) < 1e-5


def test_the_largest_log_probability_keeps_its_digits(backend):
    exact = -math.log1p(math.exp(-20))
    assert abs(float(ll.log_softmax(np.float32([20, 0]))[0]) / exact - 1) <= laws.spacing(np.float32)
    assert abs(ll.log_softmax([20.0, 0.0])[0] / exact - 1) <= laws.spacing(np.float64)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_a_row_is_right_to_a_rounding(name, dtype, offset, backend):
    z = (random_logits((7, 33)) + offset).astype(dtype)
    got = getattr(ll, name)(z)
    assert got.dtype == (statistic(dtype) if name == "logsumexp" else dtype)
    laws.assert_within(got, exactly(name, z), dense(name, z.astype(got.dtype)), got.dtype, name, terms=33)


@pytest.mark.parametrize("dtype", TYPES)
def test_losses_are_float32_or_better(dtype, backend):
    z = random_logits((1024, 17), dtype)
    y = np.arange(1024) % 17
    exact = -exactly("log_softmax", z)[np.arange(1024), y]
    plain = -dense("log_softmax", z.astype(statistic(dtype)))[np.arange(1024), y]
    for reduction, reduce in [("none", np.copy), ("sum", np.sum), ("mean", np.mean)]:
        got = ll.cross_entropy(z, y, reduction=reduction)
        assert got.dtype == statistic(dtype)
        laws.assert_within(got, reduce(exact), reduce(plain), got.dtype, reduction, terms=17)


def test_a_float16_mean_of_many_tokens_is_finite():
    z = np.zeros((20_000, 8), np.float16)
    z[:, 0] = 12
    assert_decimals(ll.cross_entropy(z, np.ones(20_000, int)), 12 + math.log1p(7 * math.exp(-12)), 5)


def test_an_offset_common_to_all_logits_changes_nothing(backend):
    z = np.round(random_logits((5, 11)) * 8) / 8
    y = np.arange(5)
    for c in (1000.0, -(2.0**40)):
        assert np.array_equal(ll.softmax(z + c), ll.softmax(z))
        assert ll.cross_entropy(z + c, y) == ll.cross_entropy(z, y)


@settings(deadline=None)
@given(st.floats(1e-300, 1 - 2**-53))
def test_sigmoid_and_logit_are_inverse_to_the_last_digits(p):
    x = float(ll.logit(p))
    with mpmath.workdps(40):
        exact = mpmath.log(mpmath.mpf(p) / (1 - mpmath.mpf(p)))
        # Three operations, each right to a rounding or two; sigmoid then inherits that of its argument.
        assert abs(x - exact) <= 4 * EPS * abs(exact)
        s = 1 / (1 + mpmath.exp(-mpmath.mpf(x)))
        assert abs(float(ll.sigmoid(x)) - s) <= 4 * EPS * s
    conditioning = 1 + abs(x) * (1 - p)
    assert abs(float(ll.sigmoid(x)) - p) <= 4 * EPS * p * conditioning


@pytest.mark.parametrize("p", [1e-300, 2.0**-53, 0.25, 0.5 - 2**-54, 0.5, 0.5 + 2**-53, 0.75, 1 - 2**-30, 1 - 2**-53])
def test_logit_at_the_seams(p):
    with mpmath.workdps(40):
        exact = mpmath.log(mpmath.mpf(p) / (1 - mpmath.mpf(p)))
        assert abs(float(ll.logit(p)) - exact) <= 4 * EPS * abs(exact)


def test_one_minus_2_to_the_53_comes_back():
    assert ll.sigmoid(ll.logit(1 - 2.0**-53)) == 1 - 2.0**-53


def test_the_ends_of_sigmoid_and_logit():
    ends = [-np.inf, -1e308, -745.0, 0, 1e308, np.inf]
    assert ll.sigmoid(ends).tolist() == [0, 0, 5e-324, 0.5, 1, 1]
    assert ll.log_sigmoid(ends).tolist() == [-np.inf, -1e308, -745.0, -math.log(2), 0, 0]
    assert ll.logit([0, 1]).tolist() == [-np.inf, np.inf]
    assert np.isnan(ll.logit([-0.5, 1.5, np.nan])).all()
    assert np.isnan(ll.sigmoid(np.nan))


EXACTLY = {
    ll.sigmoid: lambda x: 1 / (1 + mpmath.exp(-x)),
    ll.log_sigmoid: lambda x: -mpmath.log1p(mpmath.exp(-x)),
    ll.logit: lambda p: mpmath.log(p / (1 - p)),
}


@pytest.mark.parametrize("function", EXACTLY)
@pytest.mark.parametrize("dtype", TYPES)
def test_elementwise_functions_keep_their_type(function, dtype):
    x = np.array([[0.125, 0.5, 0.875]], dtype)
    assert function(x).dtype == dtype
    assert function(x).shape == (1, 3)
    assert function([0, 1]).dtype == np.float64
    with mpmath.workdps(40):
        exact = [[float(EXACTLY[function](mpmath.mpf(float(v)))) for v in x[0]]]
    # One rounding to the type, and in float64 those of the four operations before it.
    assert (laws.ulp_error(function(x), exact, dtype) <= (4 if dtype == np.float64 else 0.5)).all()


def test_binary_cross_entropy_is_not_clipped():
    exact = [120 + math.log1p(math.exp(-120)), math.exp(-50)]
    assert ll.binary_cross_entropy_with_logits([120.0, -50.0], [0, 0], reduction="none").tolist() == exact
    z = [60.69, -60.69]
    assert_decimals(ll.binary_cross_entropy_with_logits(z, [0, 1]), 60.69, 10)
    infinite = [-np.inf, np.inf, np.inf]
    assert ll.binary_cross_entropy_with_logits(infinite, [0, 1, 0], reduction="none").tolist() == [0, 0, np.inf]
    gradient = ll.binary_cross_entropy_with_logits_value_and_grad(infinite, [False, True, False], reduction="sum")[1]
    assert gradient.tolist() == [0, 0, 1]


# Shapes and layouts

LAYOUTS = {
    "contiguous": lambda z: np.ascontiguousarray(z),
    "fortran": lambda z: np.asfortranarray(z),
    "strided": lambda z: np.repeat(z, 3, -1)[..., ::3],
    "reversed": lambda z: np.ascontiguousarray(z[..., ::-1])[..., ::-1],
    "swapped bytes": lambda z: z.astype(z.dtype.newbyteorder()),
    "unaligned": lambda z: np.frombuffer(b"\0" + z.tobytes(), z.dtype, offset=1).reshape(z.shape),
}


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_axes_and_layouts_do_not_matter(axis, layout, dtype, backend):
    z = random_logits((3, 4, 5), dtype)
    moved = np.ascontiguousarray(np.moveaxis(z, axis, -1))
    y = np.random.default_rng(0).integers(0, moved.shape[-1], moved.shape[:-1])
    some = LAYOUTS[layout](z)
    for f in (ll.softmax, ll.log_softmax):
        assert np.array_equal(np.moveaxis(f(some, axis), axis, -1), f(moved))
    assert np.array_equal(ll.logsumexp(some, axis), ll.logsumexp(moved))
    assert ll.logsumexp(some, axis, keepdims=True).shape == tuple(
        1 if i == axis % 3 else n for i, n in enumerate((3, 4, 5))
    )
    assert np.array_equal(ll.argmax(some, axis), np.argmax(z, axis))
    assert ll.argmax(some, axis, keepdims=True).shape == np.argmax(z, axis, keepdims=True).shape
    for f in (ll.cross_entropy_value_and_grad, ll.nll_loss_value_and_grad):
        kwargs = {"validate": False} if f is ll.nll_loss_value_and_grad else {}
        for reduction in ("mean", "none"):
            value, gradient = f(some, y, axis=axis, reduction=reduction, **kwargs)
            expected, slope = f(moved, y, reduction=reduction, **kwargs)
            assert np.array_equal(value, expected)
            assert np.array_equal(np.moveaxis(gradient, axis, -1), slope)
    soft = ll.softmax(random_logits((3, 4, 5), seed=1), axis)
    value, gradient = ll.cross_entropy_value_and_grad(some, LAYOUTS[layout](soft), axis=axis)
    expected, slope = ll.cross_entropy_value_and_grad(moved, np.moveaxis(soft, axis, -1))
    assert value == expected
    assert np.array_equal(np.moveaxis(gradient, axis, -1), slope)


@pytest.mark.parametrize("axis", [None, (0, 1), (-1, 0), (1,), 0])
def test_several_axes_as_in_scipy(axis, backend):
    z = random_logits((3, 4, 5))
    for ours, scipys, options in [
        (ll.softmax, scipy.special.softmax, {}),
        (ll.log_softmax, scipy.special.log_softmax, {}),
        (ll.logsumexp, scipy.special.logsumexp, {}),
        (ll.logsumexp, scipy.special.logsumexp, {"keepdims": True}),
    ]:
        got, theirs = ours(z, axis, **options), scipys(z, axis, **options)
        assert np.shape(got) == np.shape(theirs)
        assert np.allclose(got, theirs)  # which axes, not which digits: those are tested on rows


def test_one_row_is_a_scalar():
    z = [1.0, 2.0]
    for value in (ll.logsumexp(z), ll.cross_entropy(z, 0, reduction="none"), ll.cross_entropy(z, 0), ll.argmax(z)):
        assert np.ndim(value) == 0
    assert ll.cross_entropy_value_and_grad(z, 0)[1].shape == (2,)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3), (0, 0)])
def test_nothing_in_nothing_out(shape, backend):
    z = np.zeros(shape, np.float32)
    rows = shape[:-1]
    assert ll.softmax(z).shape == shape
    assert ll.log_softmax(z).shape == shape
    assert np.array_equal(ll.logsumexp(z), np.full(rows, -np.inf))
    y = np.full(rows, -100)
    for f in (ll.cross_entropy_value_and_grad, ll.nll_loss_value_and_grad):
        value, gradient = f(z, y)
        assert np.isnan(value)
        assert gradient.shape == shape
        assert f(z, y, reduction="sum")[0] == 0
        assert f(z, y, reduction="none")[0].shape == rows
    assert np.isnan(ll.binary_cross_entropy_with_logits(z, z))
    assert np.isnan(ll.kl_div(z, z))
    if shape[-1]:
        assert ll.argmax(z).shape == rows


def test_an_empty_list_of_targets_is_an_empty_batch():
    assert np.isnan(ll.cross_entropy(np.zeros((0, 3)), []))


def test_arguments_are_not_written_to(backend):
    z = random_logits((6, 5), np.float32)
    z.setflags(write=False)
    y, w, p = np.array([0, 1, 2, 3, 4, -100]), np.arange(5.0), ll.softmax(random_logits((6, 5), seed=2))
    where = z > 0
    where[:, 0] = True
    saved = copy.deepcopy((z, y, w, p, where))
    for f in (ll.softmax, ll.log_softmax, ll.logsumexp, ll.argmax):
        f(z, where=where)
    ll.cross_entropy_value_and_grad(z, y, w, label_smoothing=0.1)
    ll.cross_entropy_value_and_grad(z, p, w, label_smoothing=0.1)
    ll.nll_loss_value_and_grad(ll.log_softmax(z), y, w)
    ll.binary_cross_entropy_with_logits_value_and_grad(z, p, w, pos_weight=w)
    ll.kl_div_value_and_grad(ll.log_softmax(z), p)
    for f in (ll.sigmoid, ll.log_sigmoid, ll.logit):
        f(z)
    assert all(np.array_equal(a, b) for a, b in zip((z, y, w, p, where), saved, strict=True))


# Masks


def test_where_equals_minus_infinity(backend):
    z = random_logits((6, 9))
    where = random_logits((6, 9), seed=1) > -2
    masked = np.where(where, z, -np.inf)
    for f in (ll.softmax, ll.log_softmax, ll.logsumexp):
        assert np.array_equal(f(z, where=where), f(masked))
    poisoned = np.where(where, z, np.nan)
    assert np.array_equal(ll.softmax(poisoned, where=where), ll.softmax(masked))
    assert ll.softmax(z, where=False).shape == z.shape
    assert np.isnan(ll.softmax(z, where=False)).all()
    assert np.isnan(ll.log_softmax(z, where=False)).all()
    assert (ll.logsumexp(z, where=False) == -np.inf).all()


def test_argmax():
    assert ll.argmax([[1, 3, 3], [5, 5, 5]]).tolist() == [1, 0]
    assert ll.argmax([1.0, np.nan, 7.0, np.nan]) == 1
    assert ll.argmax([9.0, 3.0, 3.0], where=[False, True, True]) == 1
    assert ll.argmax([-np.inf, -np.inf], where=[False, True]) == 1
    assert ll.argmax([np.nan, 1.0, 2.0], where=[False, True, True]) == 2
    assert ll.argmax([4.0, np.nan, 2.0], where=[True, True, True]) == 1
    assert ll.argmax([[1, 2], [9, 0]], None) == 2
    assert ll.argmax(np.array([1, 3], ml_dtypes.bfloat16)).dtype == np.int64


@pytest.mark.parametrize("row", [[np.nan, 1, 2], [np.inf, 1, 2], [-np.inf] * 3, [np.inf, np.inf, 0], [np.nan] * 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_without_a_distribution_is_nan(row, dtype, backend):
    z = np.array([row, [0, 1, 2]], dtype)
    for f in (ll.softmax, ll.log_softmax):
        got = f(z)
        assert np.isnan(got[0]).all()
        assert np.array_equal(got[1], f(z[1]))
    losses, gradient = ll.cross_entropy_value_and_grad(z, [1, 1], reduction="none")
    assert np.isnan(losses[0])
    assert np.isfinite(losses[1])
    assert np.isnan(gradient[0]).all()
    assert np.isfinite(gradient[1]).all()
    expected = np.nan if np.isnan(row).any() else max(row)
    assert np.array_equal(ll.logsumexp(z)[0], expected, equal_nan=True)


def test_masked_targets(backend):
    z = [[0.0, -np.inf, 1.0], [0.0, -np.inf, 1.0]]
    losses, gradient = ll.cross_entropy_value_and_grad(z, [1, 0], reduction="none")
    assert losses[0] == np.inf
    assert np.array_equal(gradient[0], ll.softmax(z[0]) - [0, 1, 0])
    soft, slope = ll.cross_entropy_value_and_grad(z, [[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]], reduction="none")
    assert np.isfinite(soft).all()
    assert np.isfinite(slope).all()
    assert soft[1] == losses[1]
    assert ll.cross_entropy(z, [0, 0], label_smoothing=0.1) == np.inf
    assert np.isfinite(ll.cross_entropy(z, [0, 0], [1.0, 0.0, 1.0], label_smoothing=0.1))
    assert ll.kl_div([0.0, -np.inf], [1.0, 0.0], reduction="sum") == 0
    assert ll.kl_div([0.0, -np.inf], [0.0, -np.inf], reduction="sum", log_target=True) == 0


# Ignored rows, weights, smoothing


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("planted", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_ignored_row_acts_as_a_deleted_one(reduction, planted, weighted, smoothing, backend):
    z = random_logits((6, 5))
    y = np.array([0, -100, 2, 3, -100, 1])
    z[y == -100] = planted
    w = np.arange(1.0, 6.0) if weighted else None
    keep = y != -100
    value, gradient = ll.cross_entropy_value_and_grad(z, y, w, reduction=reduction, label_smoothing=smoothing)
    expected, slope = ll.cross_entropy_value_and_grad(
        z[keep], y[keep], w, reduction=reduction, label_smoothing=smoothing
    )
    assert np.array_equal(value[keep] if reduction == "none" else value, expected)
    assert np.array_equal(gradient[keep], slope)
    assert (gradient[~keep] == 0).all()
    if reduction == "none":
        assert (value[~keep] == 0).all()
    logs = ll.log_softmax(z)
    value, gradient = ll.nll_loss_value_and_grad(logs, y, w, reduction=reduction)
    expected, slope = ll.nll_loss_value_and_grad(logs[keep], y[keep], w, reduction=reduction)
    assert np.array_equal(value[keep] if reduction == "none" else value, expected)
    assert np.array_equal(gradient[keep], slope)
    assert (gradient[~keep] == 0).all()


def test_all_ignored():
    for f in (ll.cross_entropy_value_and_grad, ll.nll_loss_value_and_grad):
        value, gradient = f(-np.ones((2, 3)), [-100, -100])
        assert np.isnan(value)
        assert (gradient == 0).all()
        assert f(-np.ones((2, 3)), [-100, -100], reduction="sum")[0] == 0


def test_ignore_index_may_be_a_class():
    assert ll.cross_entropy(A, [2, 0, 1], ignore_index=0) == ll.cross_entropy([A[0], A[2]], [2, 1])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_targets_of_any_integer_type(dtype):
    assert ll.cross_entropy(A, np.array([2, 0, 1], dtype)) == ll.cross_entropy(A, [2, 0, 1])


def test_an_index_is_a_onehot_row(backend):
    z = random_logits((6, 5), np.float32)
    z[0, 0] = 60
    y = np.array([0, 1, 2, 3, 4, 0])
    onehot = np.eye(5, dtype=np.float32)[y]
    for smoothing in (0.0, 0.1):
        hard = ll.cross_entropy_value_and_grad(z, y, label_smoothing=smoothing, reduction="none")
        soft = ll.cross_entropy_value_and_grad(z, onehot, label_smoothing=smoothing, reduction="none")
        for a, b in zip(hard, soft, strict=True):
            assert np.abs(a - b).max() <= 4 * laws.spacing(np.float32) * np.abs(a).max()
    assert soft[0].dtype == np.float32


def test_the_two_forms_of_a_weighted_mean_differ_as_in_torch():
    w = np.array([1.0, 2.0, 5.0])
    y = np.array([2, 0, 1])
    losses = ll.cross_entropy(A, y, w, reduction="none")
    assert ll.cross_entropy(A, y, w) == losses.sum() / w[y].sum()
    soft = ll.cross_entropy(A, np.eye(3)[y], w)
    assert abs(soft - losses.mean()) <= 4 * EPS


def test_a_weight_of_zero_silences_a_class(backend):
    z = np.array([[0.0, -np.inf], [0.0, 1.0]])
    assert ll.cross_entropy(z, [1, 0], [1.0, 0.0]) == ll.cross_entropy(z[1], 0)
    assert ll.nll_loss(ll.log_softmax(z), [1, 0], [1.0, 0.0]) == ll.cross_entropy(z[1], 0)


# Gradients


def central(f, z):
    """Return df/dz by central differences at steps h and 2h, and from their difference a budget."""
    h = EPS ** (1 / 3)
    slopes = []
    for step in (h, 2 * h):
        slope = np.empty_like(z)
        for index in np.ndindex(*z.shape):
            up, down = z.copy(), z.copy()
            up[index] += step
            down[index] -= step
            slope[index] = (f(up) - f(down)) / (2 * step)
        slopes.append(slope)
    return slopes[0], np.abs(slopes[0] - slopes[1]).max() + 4 * EPS * max(1.0, abs(f(z))) / h


W = np.array([0.5, 1.0, 0.0, 2.0])
Y = np.array([[0, 1, -100], [3, 2, 1]])
SOFT = scipy.special.softmax(random_logits((2, 3, 4), seed=5), -1)
GRADIENTS = [
    *(
        pytest.param("cross_entropy", (target, weight), {"label_smoothing": smoothing, "reduction": reduction})
        for target, weight, smoothing, reduction in itertools.product(
            (Y, SOFT), (None, W), (0.0, 0.2, 1.0), ("mean", "sum", "none")
        )
    ),
    *(
        pytest.param("nll_loss", (Y, weight), {"reduction": reduction, "validate": False})
        for weight, reduction in itertools.product((None, W), ("mean", "sum", "none"))
    ),
    *(
        pytest.param("binary_cross_entropy_with_logits", (SOFT, weight), {"reduction": reduction, "pos_weight": weight})
        for weight, reduction in itertools.product((None, W), ("mean", "sum", "none"))
    ),
    *(
        pytest.param("kl_div", (target,), {"reduction": reduction, "log_target": target is not SOFT})
        for target, reduction in itertools.product((SOFT, np.log(SOFT)), ("mean", "sum", "batchmean", "none"))
    ),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), GRADIENTS)
def test_gradients_against_differences_and_torch(name, args, kwargs, backend):
    torch = pytest.importorskip("torch")
    z = random_logits((2, 3, 4), seed=7, scale=2.0)
    value_and_grad, loss = getattr(ll, name + "_value_and_grad"), getattr(ll, name)
    shape = np.shape(loss(z, *args, **kwargs))
    upstream = np.random.default_rng(3).standard_normal(shape)
    if kwargs["reduction"] == "none":
        value, gradient = value_and_grad(z, *args, **kwargs, cotangent=upstream)
        plain = value_and_grad(z, *args, **kwargs)[1]
        ones = value_and_grad(z, *args, **kwargs, cotangent=np.ones(shape))[1]
        assert np.array_equal(plain, ones)
    else:
        upstream = np.float64(1.0)
        value, gradient = value_and_grad(z, *args, **kwargs)
    assert np.array_equal(value, loss(z, *args, **kwargs))
    slope, budget = central(lambda x: np.sum(upstream * loss(x, *args, **kwargs)), z)
    assert np.abs(gradient - slope).max() <= budget

    t = torch.tensor(z, requires_grad=True)
    others = [None if a is None else torch.tensor(a) for a in args]
    kwargs = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in kwargs.items() if k != "validate"}
    classes_first = name in ("cross_entropy", "nll_loss")
    x = t.movedim(-1, 1) if classes_first else t
    if classes_first and others[0].is_floating_point():
        others[0] = others[0].movedim(-1, 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "reduction: 'mean' divides", UserWarning)
        theirs = getattr(torch.nn.functional, name)(x, *others, **kwargs)
    (theirs * torch.tensor(upstream)).sum().backward()
    assert np.abs(np.asarray(value) - theirs.detach().numpy()).max() <= 16 * EPS * max(1, np.abs(value).max())
    assert np.abs(gradient - t.grad.numpy()).max() <= 16 * EPS * max(1, np.abs(gradient).max())


@pytest.mark.parametrize("dtype", TYPES)
def test_gradients_have_the_type_of_the_input(dtype, backend):
    z = random_logits((4, 6), dtype)
    y = [0, 5, -100, 3]
    exact = ll.cross_entropy_value_and_grad(z.astype(np.float64), y)[1]
    gradient = ll.cross_entropy_value_and_grad(z, y)[1]
    assert gradient.dtype == dtype
    laws.assert_within(gradient, exact, exact, dtype, terms=6)
    logs = ll.log_softmax(z)
    assert ll.nll_loss_value_and_grad(logs, y)[1].dtype == dtype
    assert ll.kl_div_value_and_grad(logs, ll.softmax(z))[1].dtype == dtype
    assert ll.binary_cross_entropy_with_logits_value_and_grad(z, np.ones((4, 6)))[1].dtype == dtype


# Malformed calls

Z = np.zeros((4, 3))
P = np.full((4, 3), 1 / 3)
T = [0, 1, 2, 0]
NAN, INF = np.nan, np.inf
BAD_ARRAYS = [np.zeros((4, 3), complex), np.zeros((4, 3), object), np.full((4, 3), "a"), np.zeros((4, 3), bool)]
BAD_ARRAYS += [np.zeros((4, 3), np.longdouble), np.ma.zeros((4, 3)), np.zeros((4, 3), "datetime64[s]")]
BINARY = ll.binary_cross_entropy_with_logits

MALFORMED = [
    *(
        (f, (bad, *rest), {}, TypeError, "input")
        for bad in BAD_ARRAYS
        for f, rest in [
            *((f, ()) for f in (ll.softmax, ll.log_softmax, ll.logsumexp, ll.argmax, ll.sigmoid, ll.logit)),
            *((f, ()) for f in (ll.log_sigmoid,)),
            *((f, (T,)) for f in (ll.cross_entropy, ll.nll_loss)),
            *((f, (P,)) for f in (BINARY, ll.kl_div)),
        ]
    ),
    *((f, ([[1.0, 2.0], [3.0]],), {}, ValueError, "input must be rectangular") for f in (ll.softmax, ll.logit)),
    *((f, (Z, 2), {}, ValueError, "axis 2 is out of bounds") for f in (ll.softmax, ll.log_softmax, ll.logsumexp)),
    *((f, (1.0,), {}, ValueError, "axis -1 is out of bounds") for f in (ll.softmax, ll.logsumexp, ll.argmax)),
    (ll.softmax, (Z, (0, -2)), {}, ValueError, "names one axis twice"),
    (ll.softmax, (Z, 1.5), {}, TypeError, "float"),
    (ll.argmax, (Z, (0, 1)), {}, TypeError, "tuple"),
    *((f, (Z,), {"where": P}, TypeError, "where has dtype float64") for f in (ll.softmax, ll.logsumexp, ll.argmax)),
    (ll.softmax, (Z,), {"where": [True, False]}, ValueError, r"where has shape \(2,\).*broadcast to \(4, 3\)"),
    (ll.argmax, (Z,), {"where": False}, ValueError, r"no class to choose in row\[0\]"),
    (ll.argmax, (np.zeros((2, 0)),), {}, ValueError, "no class to choose"),
    *(
        case
        for f in (ll.cross_entropy, ll.nll_loss)
        for case in [
            (f, (Z, [0, 1, 2, 3]), {}, IndexError, r"target\[3\] = 3 is outside \[0, 3\)"),
            (f, (Z, [0, -1, 2, 0]), {}, IndexError, r"target\[1\] = -1 is outside \[0, 3\)"),
            (f, (Z, [0, -100, 2, 0]), {"ignore_index": -1}, IndexError, r"target\[1\] = -100"),
            (f, (Z[0], 7), {}, IndexError, r"target = 7 is outside"),
            (f, (Z.reshape(2, 2, 3), [[0, 0], [9, 0]]), {}, IndexError, r"target\[1, 0\] = 9"),
            (f, (Z, np.array([0, 2**63, 0, 0], np.uint64)), {}, IndexError, r"target\[1\] = 9223372036854775808"),
            (f, (np.zeros((2, 0)), [0, 0]), {}, IndexError, r"target\[0\] = 0 is outside \[0, 0\)"),
            (f, (Z, [0, 1, 2]), {}, ValueError, r"target has shape \(3,\), expected \(4,\)"),
            (f, (Z, np.eye(3, dtype=int)[T]), {}, ValueError, r"target has shape \(4, 3\), expected \(4,\)"),
            (f, (Z, [True, False, True, True]), {}, TypeError, "target has dtype bool"),
            (f, (Z, ["a", "b", "c", "d"]), {}, TypeError, "target has dtype <U1"),
            (f, (Z, [0.0, 1.0, 2.0, 0.0]), {}, TypeError, "target has dtype float64"),
            (f, (Z, [None] * 4), {}, TypeError, "target has dtype object"),
            (f, (Z, T, [1.0, 1.0]), {}, ValueError, r"weight has shape \(2,\), expected \(3,\)"),
            (f, (Z, T, 1.0), {}, ValueError, r"weight has shape \(\), expected \(3,\)"),
            (f, (Z, T, [1.0, -1.0, 1.0]), {}, ValueError, r"weight\[1\] = -1.0"),
            (f, (Z, T, [1.0, 1.0, NAN]), {}, ValueError, r"weight\[2\] = nan"),
            (f, (Z, T, [INF, 1.0, 1.0]), {}, ValueError, r"weight\[0\] = inf"),
            (f, (Z, T, [1j, 1.0, 1.0]), {}, TypeError, "weight has dtype complex128"),
            (f, (Z, T), {"reduction": "average"}, ValueError, "reduction = 'average'"),
            (f, (Z, T), {"reduction": "batchmean"}, ValueError, "reduction = 'batchmean'"),
            (f, (Z, T), {"reduction": None}, ValueError, "reduction = None"),
            (f, (Z, T), {"ignore_index": 1.5}, TypeError, "float"),
            (f, (Z, T), {"ignore_index": None}, TypeError, "NoneType"),
            (f, (Z, T), {"axis": 2}, ValueError, "axis 2"),
            (f, (Z, T), {"axis": None}, TypeError, "NoneType"),
            (f, (1.0, 0), {}, ValueError, "axis -1"),
        ]
    ),
    *((ll.cross_entropy, (Z, T), {"label_smoothing": e}, ValueError, "label_smoothing") for e in (-0.1, 1.1, NAN, INF)),
    (ll.cross_entropy, (Z, T), {"label_smoothing": "a"}, TypeError, "label_smoothing = 'a'"),
    (ll.cross_entropy, (Z, P[:, :2]), {}, ValueError, r"target has shape \(4, 2\), expected \(4, 3\)"),
    (ll.cross_entropy, (Z, P), {"ignore_index": 0}, ValueError, "ignore_index = 0 has no meaning"),
    (ll.cross_entropy, (Z, -P), {}, ValueError, r"target\[0, 0\] = -0.33"),
    (ll.cross_entropy, (Z, P + 1), {}, ValueError, r"target\[0, 0\] = 1.33"),
    (ll.cross_entropy, (Z, P * NAN), {}, ValueError, r"target\[0, 0\] = nan"),
    (ll.nll_loss, (Z + 3, T), {}, ValueError, r"the value of input at the target of row\[0\] is 3.*raw logits"),
    (BINARY, (Z, P[0]), {}, ValueError, r"target has shape \(3,\), expected \(4, 3\)"),
    (BINARY, (Z, P + 1), {}, ValueError, r"target\[0, 0\]"),
    (BINARY, (Z, P * NAN), {}, ValueError, r"target\[0, 0\] = nan"),
    (BINARY, (Z, P.astype(complex)), {}, TypeError, "target has dtype complex128"),
    (BINARY, (Z, P, [1.0, 2.0]), {}, ValueError, r"weight has shape \(2,\)"),
    (BINARY, (Z, P, -1.0), {}, ValueError, "weight = -1.0"),
    (BINARY, (Z, P), {"pos_weight": [1.0, NAN, 1.0]}, ValueError, r"pos_weight\[1\] = nan"),
    (BINARY, (Z, P), {"reduction": "all"}, ValueError, "reduction = 'all'"),
    (ll.kl_div, (Z, P[0]), {}, ValueError, r"target has shape \(3,\), expected \(4, 3\)"),
    (ll.kl_div, (Z, P - 1), {}, ValueError, r"target\[0, 0\]"),
    (ll.kl_div, (Z, P), {"reduction": "all"}, ValueError, "reduction = 'all' is not one of.*batchmean"),
    *(
        (f, (Z, T), {"cotangent": [1.0] * 4}, ValueError, "cotangent is for reduction = 'none'")
        for f in (ll.cross_entropy_value_and_grad, ll.nll_loss_value_and_grad)
    ),
    (
        ll.cross_entropy_value_and_grad,
        (Z, T),
        {"cotangent": [1.0], "reduction": "none"},
        ValueError,
        r"cotangent has shape \(1,\), expected \(4,\)",
    ),
]


@pytest.mark.parametrize(("f", "args", "kwargs", "error", "match"), MALFORMED)
def test_malformed_calls_raise(f, args, kwargs, error, match):
    with pytest.raises(error, match=match):
        f(*args, **kwargs)
    twin = getattr(ll, f.__name__ + "_value_and_grad", None)
    if twin:
        with pytest.raises(error, match=match):
            twin(*args, **kwargs)


def test_the_message_of_the_design():
    with pytest.raises(IndexError, match=re.escape("target[3] = 50257 is outside [0, 50257)")):
        ll.cross_entropy(np.zeros((4, 50257), np.float32), [0, 1, 2, 50257])
