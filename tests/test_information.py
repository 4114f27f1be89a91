"""The laws of information: Gibbs' inequality, units, digits from logits, and what is no distribution."""

import math

import laws
import ml_dtypes
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lastlayer as ll
from lastlayer import information

EPS = laws.spacing(np.float64)
TYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SWEETS = {"red": 0.1, "green": 0.2, "blue": 0.3, "yellow": 0.25, "brown": 0.15}
P = list(SWEETS.values())


def statistic(dtype):
    return np.float64 if dtype == np.float64 else np.float32


def exact_entropy(z):
    """Return the entropy of a row of logits by arithmetic of 60 digits."""
    with mpmath.workdps(60):
        e = [mpmath.exp(mpmath.mpf(float(x))) for x in z if x != -np.inf]
        s = mpmath.fsum(e)
        return float(-mpmath.fsum(x / s * mpmath.log(x / s) for x in e))


def distributions(size):
    weights = st.lists(st.floats(0, 1), min_size=size, max_size=size).filter(lambda w: sum(w) > 1e-3)
    return weights.map(lambda w: np.array(w) / math.fsum(w))


# Golden numbers


def test_sweets():
    green, yellow = SWEETS["green"], SWEETS["yellow"]
    assert [round(float(ll.surprisal(green, unit=unit)), 4) for unit in ("nats", "bits")] == [1.6094, 2.3219]
    assert round(float(ll.surprisal(yellow)), 4) == 1.3863
    assert ll.surprisal(yellow, unit="bits") == 2
    exact = -math.fsum(p * math.log(p) for p in P)
    assert abs(ll.entropy(P) - exact) <= len(P) * EPS * exact
    assert abs(ll.entropy(P, unit="bits") - exact / math.log(2)) <= len(P) * EPS * exact / math.log(2)
    assert abs(np.dot(P, ll.surprisal(P)) - ll.entropy(P)) <= len(P) * EPS * exact


def test_the_entropy_of_two_equal_classes_and_a_masked_one():
    for z in ([0.0, 0.0, -np.inf], [-np.inf, 7.0, 7.0]):
        assert ll.entropy(logits=z) == math.log(2)
    assert ll.entropy([0.5, 0.5, 0.0]) == math.log(2)
    assert ll.entropy(logits=[0.0, 0.0, 9.0], where=[True, True, False]) == math.log(2)
    assert ll.entropy([0.5, 0.5, 0.3], where=[True, True, False]) == math.log(2)
    assert ll.entropy([0.25] * 4, unit="bits") == 2


def test_perplexity_of_a_gap_of_120():
    got = ll.perplexity(np.float32([[0, 120]]), [0])
    assert got.dtype == np.float64
    assert abs(got / math.exp(120) - 1) <= 120 * EPS
    assert ll.perplexity([[0.0, 1000.0]], [0]) == np.inf
    assert ll.perplexity([[0.0, 1000.0]], [1]) == 1


def test_perplexity_counts_tokens_not_batches():
    z = np.random.default_rng(0).standard_normal((3, 7, 11)).astype(np.float32)
    y = np.random.default_rng(1).integers(0, 11, (3, 7))
    y[1, 2:] = -100
    losses = ll.cross_entropy(z.astype(np.float64), y, reduction="none")
    exact = math.exp(losses.sum() / (y != -100).sum())
    assert abs(ll.perplexity(z, y) / exact - 1) <= laws.spacing(np.float32)
    assert ll.perplexity(np.moveaxis(z, -1, 1), y, axis=1) == ll.perplexity(z, y)
    assert abs(ll.perplexity(np.zeros((5, 8)), np.arange(5)) - 8) <= 8 * 4 * EPS
    assert np.isnan(ll.perplexity(z[:1], np.full((1, 7), -100)))


# Laws


@settings(deadline=None)
@given(distributions(6), distributions(6))
def test_believing_q_costs(p, q):
    crossed, own, divergence = information.cross_entropy(p, q), ll.entropy(p), information.kl_divergence(p, q)
    rounding = 8 * EPS * (1 + abs(own))
    assert crossed >= own - rounding
    assert divergence >= 0
    assert information.kl_divergence(p, p) == 0
    assert abs(information.cross_entropy(p, p) - own) <= rounding
    if np.isfinite(crossed):
        assert abs(crossed - own - divergence) <= 8 * EPS * (1 + crossed)
    else:
        assert divergence == np.inf


@settings(deadline=None)
@given(distributions(5), st.floats(1e-12, 0.5), st.integers(0, 4), st.integers(0, 4))
def test_the_divergence_of_near_neighbours_keeps_its_digits(p, share, i, j):
    q = p.copy()
    moved = p[i] * share
    q[i] -= moved
    q[j] += moved
    with mpmath.workdps(60):
        pairs = [(mpmath.mpf(float(a)), mpmath.mpf(float(b))) for a, b in zip(p, q, strict=True)]
        exact = mpmath.fsum((a * mpmath.log(a / b) if a else 0) - a + b for a, b in pairs)
        # The differences q - p are exact to a rounding of themselves; the series and the sum add a few more.
        assert abs(float(information.kl_divergence(p, q)) - exact) <= 32 * EPS * exact + 1e-300


def test_divergence_at_the_edges():
    assert information.kl_divergence([1.0, 0.0], [0.5, 0.5]) == math.log(2)
    assert information.kl_divergence([0.5, 0.5], [1.0, 0.0]) == np.inf
    assert information.cross_entropy([0.5, 0.5], [1.0, 0.0]) == np.inf
    assert information.cross_entropy([0.0, 1.0], [0.0, 1.0]) == 0
    assert information.kl_divergence([5e-324, 1.0], [0.5, 0.5]) == math.log(2)
    assert ll.surprisal([0.0, 1.0]).tolist() == [np.inf, 0.0]
    assert not np.signbit(ll.surprisal(1.0))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("margin", [0, 10, 40, 60])
@pytest.mark.parametrize("offset", [0, 300])
def test_the_entropy_of_logits_keeps_its_digits(dtype, margin, offset):
    z = np.random.default_rng(margin).standard_normal((5, 40))
    z[np.arange(5), np.arange(5)] += margin
    z[:, 30] = -np.inf
    z = (z + offset).astype(dtype)
    exact = np.array([exact_entropy(row) for row in z])
    got = ll.entropy(logits=z)
    assert got.dtype == statistic(dtype)
    # Beside the dense formula, which returns nothing at all here: the roundings of 40 terms, each right to four.
    budget = (4 + math.log2(40)) * laws.spacing(got.dtype)
    assert (np.abs(got - exact) <= budget * exact).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_types_axes_and_shapes(dtype):
    z = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(dtype)
    p = ll.softmax(z, axis=1)
    kind = statistic(dtype)
    for value, shape in [
        (ll.entropy(logits=z, axis=1), (3, 5)),
        (ll.entropy(p, axis=1), (3, 5)),
        (ll.entropy(p, axis=1, keepdims=True), (3, 1, 5)),
        (ll.entropy(logits=z, axis=1, keepdims=True), (3, 1, 5)),
        (ll.surprisal(p), (3, 4, 5)),
        (ll.surprisal(logits=z, axis=1), (3, 4, 5)),
        (information.cross_entropy(p, p, axis=1), (3, 5)),
        (information.kl_divergence(p, p, axis=1), (3, 5)),
    ]:
        assert value.dtype == kind
        assert value.shape == shape
    bits = ll.surprisal(logits=z, axis=1, unit="bits")
    exact = ll.surprisal(logits=z.astype(np.float64), axis=1) / math.log(2)
    laws.assert_within(bits, exact, exact, kind, terms=4)


def test_integers_are_float64():
    assert ll.entropy([1, 0]).dtype == np.float64
    assert ll.entropy([1, 0]) == 0


@pytest.mark.parametrize("z", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf], []])
def test_logits_without_a_distribution_have_no_entropy(z):
    assert np.isnan(ll.entropy(logits=z))


def test_empty_batches():
    assert ll.entropy(logits=np.zeros((0, 3))).shape == (0,)
    assert ll.entropy(np.zeros((0, 3))).shape == (0,)
    assert ll.surprisal(np.zeros((0, 3))).shape == (0, 3)


# Malformed calls

H = [0.5, 0.5]
MALFORMED = [
    *((f, (), {}, TypeError, "expected one of probs and logits, got neither") for f in (ll.entropy, ll.surprisal)),
    *((f, (H,), {"logits": H}, TypeError, "got both") for f in (ll.entropy, ll.surprisal)),
    *((f, (H,), {"unit": "bans"}, ValueError, "unit = 'bans'") for f in (ll.entropy, ll.surprisal)),
    *(
        (f, ([0.5, bad],), {}, ValueError, rf"probs\[1\] = {bad} is not a probability")
        for f in (ll.entropy, ll.surprisal)
        for bad in (-0.25, 1.5, np.nan, np.inf)
    ),
    (ll.entropy, ([H, [0.5, 0.25]],), {}, ValueError, r"row\[1\] of probs sums to 0.75, expected 1 to within 1.5e-08"),
    (ll.entropy, (np.float32([0.5, 0.25]),), {}, ValueError, "the row of probs sums to 0.75, .* 0.00035"),
    (ll.entropy, ([0.3, 0.7, 0.0],), {"where": [True, False, True]}, ValueError, "sums to 0.3"),
    (ll.entropy, (H,), {"where": [1, 0]}, TypeError, "where has dtype int64"),
    (ll.entropy, ([],), {}, ValueError, "the row of probs sums to 0"),
    (ll.entropy, (H,), {"axis": 1}, ValueError, "axis 1 is out of bounds"),
    (ll.entropy, (0.5,), {}, ValueError, "axis -1 is out of bounds"),
    (ll.entropy, ([0.5j, 0.5],), {}, TypeError, "probs has dtype complex128"),
    (ll.entropy, (), {"logits": ["a"]}, TypeError, "logits has dtype <U1"),
    *(
        case
        for f in (information.cross_entropy, information.kl_divergence)
        for case in [
            (f, (H, [0.5, 0.25, 0.25]), {}, ValueError, r"q has shape \(3,\), expected \(2,\), that of p"),
            (f, (H, [0.5, 0.6]), {}, ValueError, "the row of q sums to 1.1"),
            (f, ([0.5, 0.4], H), {}, ValueError, "the row of p sums to 0.9"),
            (f, ([1.5, -0.5], H), {}, ValueError, r"p\[0\] = 1.5"),
            (f, (H, [True, False]), {}, TypeError, "q has dtype bool"),
            (f, (H, H), {"unit": "bit"}, ValueError, "unit = 'bit'"),
        ]
    ),
    (ll.perplexity, ([H], [2]), {}, IndexError, r"target\[0\] = 2 is outside \[0, 2\)"),
]


@pytest.mark.parametrize(("f", "args", "kwargs", "error", "match"), MALFORMED)
def test_malformed_calls_raise(f, args, kwargs, error, match):
    with pytest.raises(error, match=match):
        f(*args, **kwargs)


def test_validation_can_be_switched_off():
    assert ll.entropy([0.5, 0.25], validate=False) == math.log(2)
    assert ll.surprisal(2.0, validate=False) == -math.log(2)
    assert information.kl_divergence([0.5, 0.5], [0.5, 0.5 + 1e-4], validate=False) >= 0
