"""Laws of the likelihoods, run over one table of families.

``terms`` lists the summands of one observation's -log f in exact arithmetic (mpmath, 50 digits). Their sum over the
data is the reference, and the sum of their magnitudes is the scale of rounding: with N observations a float64 result
may be off by (8 + N) eps times that scale: N for the sum, 8 for the roundings within a term (a log-factorial takes 4).
"""

import dataclasses
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lastlayer import likelihood

EPS = float(np.finfo(np.float64).eps)
MAX = float(np.finfo(np.float64).max)
SMALLEST = 5e-324
V = 4
short = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def fifty_digits():
    with mp.workdps(50):
        yield


def xlog(x, y):
    return x * mp.log(y) if x else mp.mpf(0)


def log_factorial(k):
    return mp.loggamma(mp.mpf(k) + 1)


def bernoulli_terms(x, p):
    return [-xlog(x, p), -xlog(1 - x, 1 - mp.mpf(p))]


def binomial_terms(k, n, p):
    return [-log_factorial(n), log_factorial(k), log_factorial(n - k), -xlog(k, p), -xlog(n - k, 1 - mp.mpf(p))]


def categorical_terms(x, p):
    return [-mp.log(p[x])]


def multinomial_terms(k, p):
    each = [term for count, q in zip(k, p, strict=True) for term in (log_factorial(count), -xlog(count, q))]
    return [-log_factorial(sum(k)), *each]


def poisson_terms(k, rate):
    return [mp.mpf(rate), -xlog(k, rate), log_factorial(k)]


def normal_terms(x, loc, scale):
    return [((mp.mpf(x) - loc) / scale) ** 2 / 2, mp.log(scale), mp.log(2 * mp.pi) / 2]


def laplace_terms(x, loc, scale):
    return [abs(mp.mpf(x) - loc) / scale, mp.log(scale), mp.log(2)]


def huber_integral(delta):
    return mp.sqrt(2 * mp.pi) * mp.erf(delta / mp.sqrt(2)) + 2 / mp.mpf(delta) * mp.exp(-(mp.mpf(delta) ** 2) / 2)


def huber_terms(x, loc, scale, delta):
    r = abs(mp.mpf(x) - loc) / scale
    h = r**2 / 2 if r <= delta else delta * (r - mp.mpf(delta) / 2)
    return [h, mp.log(scale), mp.log(huber_integral(delta))]


def huber_logpdf(x, loc, scale, delta):
    h = scipy.special.huber(delta, (np.array(x) - loc) / scale)
    return -h - math.log(scale) - math.log(float(huber_integral(delta)))


class Family(NamedTuple):
    """How to draw data and parameters, and what is known about them elsewhere."""

    distribution: Any
    terms: Callable[..., list]
    observation: st.SearchStrategy
    parameters: st.SearchStrategy
    logpdf: Callable[..., Any]  # SciPy's, or made of SciPy's functions
    given: int = 0  # how many leading parameters mle is told instead of estimating them


real, positive = st.floats(-100, 100), st.floats(1e-3, 1e3)
share = st.floats(1e-6, 1 - 1e-6)
simplex = st.lists(st.integers(1, 1000), min_size=V, max_size=V).map(lambda w: np.array(w) / sum(w))
counts = st.lists(st.integers(0, 50), min_size=V, max_size=V)

FAMILIES = {
    "bernoulli": Family(
        likelihood.bernoulli, bernoulli_terms, st.integers(0, 1), st.tuples(share), scipy.stats.bernoulli.logpmf
    ),
    "binomial": Family(
        likelihood.binomial,
        binomial_terms,
        st.integers(0, 30),
        st.tuples(st.integers(30, 2000), share),
        scipy.stats.binom.logpmf,
        given=1,
    ),
    "categorical": Family(
        likelihood.categorical,
        categorical_terms,
        st.integers(0, V - 1),
        st.tuples(simplex),
        lambda x, p: scipy.stats.multinomial.logpmf(np.eye(V)[x], 1, p),
    ),
    "multinomial": Family(
        likelihood.multinomial,
        multinomial_terms,
        counts,
        st.tuples(simplex),
        lambda k, p: scipy.stats.multinomial.logpmf(k, np.sum(k, axis=-1), p),
    ),
    "poisson": Family(
        likelihood.poisson, poisson_terms, st.integers(0, 2000), st.tuples(positive), scipy.stats.poisson.logpmf
    ),
    "normal": Family(likelihood.normal, normal_terms, real, st.tuples(real, positive), scipy.stats.norm.logpdf),
    "laplace": Family(likelihood.laplace, laplace_terms, real, st.tuples(real, positive), scipy.stats.laplace.logpdf),
    "huber": Family(likelihood.huber, huber_terms, real, st.tuples(real, positive, st.floats(0.01, 100)), huber_logpdf),
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
every_estimated_family = pytest.mark.parametrize(
    "family", [f for name, f in FAMILIES.items() if name != "huber"], ids=[n for n in FAMILIES if n != "huber"]
)


def reference(family, data, parameters):
    """The exact nll and the error that float64 may make in it."""
    summands = [term for x in data for term in family.terms(x, *parameters)]
    return mp.fsum(summands), (8 + len(data)) * EPS * float(mp.fsum(map(abs, summands)))


def sample(draw, family, min_size=1):
    return draw(st.lists(family.observation, min_size=min_size, max_size=12))


@every_family
@short
@given(st.data())
def test_nll_is_the_exact_negative_log_of_the_likelihood(family, data):
    x, parameters = sample(data.draw, family), data.draw(family.parameters)
    exact, budget = reference(family, x, parameters)
    nll = family.distribution.nll(x, *parameters)
    assert type(nll) is float
    assert abs(nll - exact) <= budget
    assert abs(family.distribution.nll(x, *parameters, unit="bits") - exact / mp.log(2)) <= 2 * budget
    exact = mp.exp(-exact)
    error = exact * (mp.expm1(budget) + EPS) + SMALLEST
    assert abs(family.distribution.likelihood(x, *parameters) - exact) <= error


@every_family
@short
@given(st.data())
def test_nll_agrees_with_scipy(family, data):
    x, parameters = sample(data.draw, family), data.draw(family.parameters)
    _, budget = reference(family, x, parameters)
    logs = family.logpdf(x, *parameters)
    # SciPy's Laplace takes the logarithm of a density, which loses its digits where it is subnormal.
    assume(np.min(logs) > -700)
    assert abs(family.distribution.nll(x, *parameters) + np.sum(logs)) <= 2 * budget


@every_family
@short
@given(st.data())
def test_independent_data_multiply_in_any_order(family, data):
    x, y, parameters = sample(data.draw, family), sample(data.draw, family), data.draw(family.parameters)
    nll = family.distribution.nll
    _, budget = reference(family, x + y, parameters)
    assert abs(nll(x + y, *parameters) - (nll(x, *parameters) + nll(y, *parameters))) <= 2 * budget
    assert abs(nll((x + y)[::-1], *parameters) - nll(x + y, *parameters)) <= 2 * budget


@every_family
@given(st.data())
@settings(max_examples=5, deadline=None)
def test_the_likelihood_of_no_data_is_one(family, data):
    empty = np.zeros((0, V)) if family.distribution is likelihood.multinomial else []
    parameters = data.draw(family.parameters)
    assert family.distribution.nll(empty, *parameters) == 0
    assert family.distribution.likelihood(empty, *parameters) == 1


def rivals(draw, best):
    """Other parameters than the estimate: close by, where only a maximum wins, and anywhere."""
    near = draw(st.floats(-0.1, 0.1))
    if hasattr(best, "loc"):
        loc = draw(st.just(best.loc + near * best.scale) | real)
        return loc, draw(st.floats(0.9, 1.1).map(lambda t: t * best.scale) | positive)
    if hasattr(best, "rate"):
        return (draw(st.just((1 + near) * best.rate) | positive),)
    if np.ndim(best.probs) == 0:
        return (draw(st.just(min(1.0, (1 + near) * best.probs)) | share),)
    return (best.probs + abs(near) * (draw(simplex) - best.probs),)


@every_estimated_family
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_parameters_beat_the_estimate(family, data):
    x = sample(data.draw, family, min_size=2)
    assume(np.sum(x) != 0 or family.distribution is likelihood.categorical)
    assume(family.observation is not real or np.ptp(x) > 1e-3)
    known = data.draw(family.parameters)[: family.given]
    options = {"num_classes": V} if family.distribution is likelihood.categorical else {}
    best = family.distribution.mle(x, *known, **options)
    rival = rivals(data.draw, best)
    _, budget = reference(family, x, (*known, *rival))
    assert family.distribution.nll(x, *known, *best) <= family.distribution.nll(x, *known, *rival) + 2 * budget


# The estimates themselves


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), st.sampled_from([0.0, 1e9]), st.integers(-900, 900))
@short
def test_normal_estimate_is_mean_and_deviation_with_divisor_n(x, offset, exponent):
    x = [math.ldexp(v + offset, exponent) for v in x]
    loc, scale = likelihood.normal.mle(x)
    mean = mp.fsum(x) / len(x)
    assert abs(loc - mean) <= len(x) * EPS * max(map(abs, x))
    deviation = mp.sqrt(mp.fsum((v - mean) ** 2 for v in x) / len(x))
    # Differences of observations carry half an ulp each, and those of close ones none: no digits go to the offset.
    assert abs(scale - deviation) <= (8 + len(x)) * EPS * (max(x) - min(x)) + SMALLEST


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), st.integers(-900, 900))
@short
def test_laplace_estimate_is_median_and_mean_absolute_deviation(x, exponent):
    x = [math.ldexp(v, exponent) for v in x]
    loc, scale = likelihood.laplace.mle(x)
    ordered = sorted(x)
    median = (mp.mpf(ordered[(len(x) - 1) // 2]) + ordered[len(x) // 2]) / 2
    assert abs(loc - median) <= EPS * abs(median) + SMALLEST
    deviations = [abs(v - mp.mpf(loc)) for v in x]
    assert (
        abs(scale - mp.fsum(deviations) / len(x)) <= (2 + len(x)) * EPS * float(sum(deviations)) / len(x) + 2 * SMALLEST
    )


@pytest.mark.parametrize("distribution", [likelihood.normal, likelihood.laplace], ids=repr)
@pytest.mark.parametrize("n", [1, 2, 3, 36, 37, 300])
def test_estimates_of_the_largest_observations_stay_finite(distribution, n):
    loc, scale = distribution.mle([MAX, -MAX] * n)
    assert loc == 0
    assert (1 - 2 * n * EPS) * MAX <= scale <= MAX
    loc, scale = distribution.mle([-MAX] * n)
    assert -MAX <= loc <= -(1 - n * EPS) * MAX
    assert scale == 0


def test_estimate_of_equal_observations_has_no_spread():
    assert likelihood.normal.mle([0.1] * 3).scale == 0
    assert likelihood.laplace.mle([0.1] * 3) == (0.1, 0)
    with pytest.raises(ValueError, match=r"scale = 0 must be finite and > 0"):
        likelihood.normal.nll([0.1] * 3, *likelihood.normal.mle([0.1] * 3))


def test_normal_estimate_of_tiny_deviations_does_not_vanish():
    assert likelihood.normal.mle([-1e-200, 1e-200]) == (0, 1e-200)


def test_estimates_of_counts_are_shares_and_means():
    assert likelihood.bernoulli.mle([True, False, True, True]) == (0.75,)
    assert likelihood.binomial.mle([1, 2], [2, 6]) == (0.375,)
    assert likelihood.binomial.mle([[1], [2]], 4) == (0.375,)
    assert likelihood.poisson.mle([[1, 2], [3, 4]]) == (2.5,)
    np.testing.assert_array_equal(likelihood.categorical.mle([0, 2, 2, 1]).probs, [0.25, 0.25, 0.5])
    np.testing.assert_array_equal(likelihood.categorical.mle([[0, 0]], num_classes=3).probs, [1, 0, 0])
    for data in ([3, 1, 0], [[1, 1, 0], [2, 0, 0]], [[[3, 1, 0]]]):
        np.testing.assert_array_equal(likelihood.multinomial.mle(data).probs, [0.75, 0.25, 0])


# One formula, read two ways


@given(st.integers(1, 60), st.floats(0, 1))
@short
def test_binomial_is_a_probability_over_k_and_not_over_p(n, p):
    budget = (8 + n) * EPS * 8 * float(1 + log_factorial(n))
    over_k = math.fsum(likelihood.binomial.likelihood(k, n, p) for k in range(n + 1))
    # Each summand is off by its own budget, relative to itself: 4 log-factorials and logarithms below log n!.
    assert abs(over_k - 1) <= budget
    area, error = scipy.integrate.quad(lambda q: likelihood.binomial.likelihood(n // 2, n, q), 0, 1)
    assert abs(area - 1 / (n + 1)) <= error + budget


@given(st.integers(0, 1), share)
@short
def test_one_trial_is_a_bernoulli_trial(x, p):
    assert likelihood.binomial.nll(x, 1, p) == likelihood.bernoulli.nll(x, p)


@given(st.integers(0, 30), st.integers(0, 30), share)
@short
def test_two_classes_are_the_binomial(k, rest, p):
    _, budget = reference(FAMILIES["binomial"], [k], (k + rest, p))
    two = likelihood.multinomial.nll([k, rest], [p, 1 - p])
    # 1 - p is rounded on the way in, which costs eps / (1 - p) per use.
    assert abs(two - likelihood.binomial.nll(k, k + rest, p)) <= 2 * budget + rest * EPS / (1 - p)


@given(st.lists(st.integers(0, V - 1), min_size=1, max_size=20), simplex)
@short
def test_counting_categorical_data_adds_the_number_of_orders(x, p):
    k = [x.count(j) for j in range(V)]
    orders = math.factorial(len(x)) // math.prod(map(math.factorial, k))
    _, budget = reference(FAMILIES["multinomial"], [k], (p,))
    assert abs(likelihood.categorical.nll(x, p) - math.log(orders) - likelihood.multinomial.nll(k, p)) <= 2 * budget
    np.testing.assert_array_equal(
        likelihood.categorical.mle(x, num_classes=V).probs, likelihood.multinomial.mle(k).probs
    )


# The edges of the domains


def test_zero_log_zero_is_zero_and_the_impossible_has_likelihood_zero():
    certain = [
        (likelihood.bernoulli, ([0, 0], 0)),
        (likelihood.bernoulli, ([1, 1], 1)),
        (likelihood.binomial, ([0, 0], 3, 0.0)),
        (likelihood.binomial, (3, 3, 1.0)),
        (likelihood.binomial, (0, 0, 0.5)),
        (likelihood.categorical, ([1, 1], [0, 1, 0])),
        (likelihood.multinomial, ([0, 5], [0, 1])),
        (likelihood.multinomial, ([0, 0], [0.5, 0.5])),
        (likelihood.poisson, ([0, 0], 0)),
    ]
    for distribution, arguments in certain:
        assert str(distribution.nll(*arguments)) == "0.0", arguments
        assert distribution.likelihood(*arguments) == 1, arguments
    impossible = [
        (likelihood.bernoulli, ([0, 1], 0)),
        (likelihood.bernoulli, ([0, 1], 1)),
        (likelihood.binomial, (1, 3, 0.0)),
        (likelihood.binomial, (2, 3, 1.0)),
        (likelihood.categorical, ([0], [0, 1, 0])),
        (likelihood.multinomial, ([1, 4], [0, 1])),
        (likelihood.poisson, ([1], 0)),
    ]
    for distribution, arguments in impossible:
        assert distribution.nll(*arguments) == math.inf, arguments
        assert distribution.likelihood(*arguments) == 0, arguments


def test_small_probabilities_keep_their_digits():
    assert likelihood.bernoulli.nll([0], 1e-20) == 1e-20
    assert likelihood.binomial.nll(0, 10, 1e-20) == pytest.approx(1e-19, rel=4 * EPS)


def test_long_data_need_the_log():
    assert likelihood.bernoulli.likelihood([0, 1] * 1000, 0.5) == 0
    assert likelihood.bernoulli.nll([0, 1] * 1000, 0.5, unit="bits") == pytest.approx(2000, rel=2000 * EPS)
    assert likelihood.normal.likelihood(np.zeros(1000), 0, 1e-9) == math.inf


def test_values_beyond_float64_are_infinite_without_a_warning():
    assert likelihood.normal.nll(MAX, -MAX, 1.0) == math.inf
    assert likelihood.normal.nll([1e154] * 4, 0, 1.0) == math.inf
    assert likelihood.laplace.nll(1.0, 0, 5e-324) == math.inf
    assert likelihood.huber.nll(MAX, 0, 1, delta=10.0) == math.inf
    assert likelihood.mean_squared_error([MAX], [0]) == math.inf
    assert likelihood.mean_absolute_error([MAX], [-MAX]) == math.inf
    assert likelihood.mean_absolute_error([MAX, MAX], [0, 0], reduction="sum") == math.inf
    with pytest.raises(ValueError, match="data = inf must be finite"):
        likelihood.normal.nll(np.longdouble("1e400"), 0, 1)


# Shapes, types, immutability


def test_parameters_broadcast_to_the_data():
    x, p = [[0, 1, 1], [1, 0, 0]], [0.2, 0.5, 0.9]
    each = [likelihood.bernoulli.nll(x[i][j], p[j]) for i in range(2) for j in range(3)]
    assert likelihood.bernoulli.nll(x, p) == pytest.approx(math.fsum(each), rel=6 * EPS)
    rows = [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]
    by_row = likelihood.categorical.nll([2], rows[0]) + likelihood.categorical.nll([1], rows[1])
    assert likelihood.categorical.nll([2, 1], rows) == pytest.approx(by_row, rel=2 * EPS)
    by_row = likelihood.multinomial.nll([2, 1, 0], rows[0]) + likelihood.multinomial.nll([1, 1, 1], rows[1])
    assert likelihood.multinomial.nll([[2, 1, 0], [1, 1, 1]], rows) == pytest.approx(by_row, rel=8 * EPS)
    by_row = likelihood.huber.nll(1.0, 0.0, 1.0) + likelihood.huber.nll(2.0, 5.0, 2.0)
    assert likelihood.huber.nll([1.0, 2.0], [0.0, 5.0], [1.0, 2.0]) == pytest.approx(by_row, rel=4 * EPS)


def test_narrow_types_are_computed_in_float64():
    x = np.array([0.1, 300.0], dtype=np.float32)
    wide = x.astype(np.float64)
    assert likelihood.normal.nll(x, np.float16(0.5), np.float32(3)) == likelihood.normal.nll(wide, 0.5, 3)
    assert likelihood.mean_squared_error(x, -x) == float(np.mean((2 * wide) ** 2))
    assert likelihood.poisson.nll(np.array([200], dtype=np.uint8), 1) == likelihood.poisson.nll([200.0], 1)
    assert likelihood.bernoulli.nll([True, False], 0.25) == likelihood.bernoulli.nll([1, 0], 0.25)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=lambda t: t.__name__)
def test_rows_may_miss_one_by_the_rounding_of_their_type(dtype):
    tolerance = math.sqrt(float(np.spacing(np.ones((), dtype))))
    p = np.array([0.5, 0.5 * (1 + tolerance)], dtype=dtype)
    assert likelihood.categorical.nll([1], p) == -math.log(float(p[1]))
    with pytest.raises(ValueError, match=r"the sum of probs = [\d.]+ must be 1$"):
        likelihood.categorical.nll([0], np.array([0.5, 0.5 + 2 * tolerance], dtype=dtype))


def test_inputs_are_not_written_to():
    data, loc, p = np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]), np.array([0.25, 0.25, 0.25, 0.25])
    for array in (data, loc, p):
        array.flags.writeable = False
    likelihood.normal.nll(data, loc, loc), likelihood.normal.mle(data), likelihood.laplace.mle(data)
    likelihood.huber.nll(data, loc, 1), likelihood.poisson.nll(data, loc), likelihood.categorical.nll(data, p)
    losses = likelihood.huber_loss(data, loc, reduction="none")
    assert losses.flags.writeable
    np.testing.assert_array_equal(data, [3, 1, 2])


@every_family
def test_distributions_are_constants(family):
    distribution = family.distribution
    assert pickle.loads(pickle.dumps(distribution)) == distribution
    assert not vars(distribution)
    with pytest.raises(dataclasses.FrozenInstanceError):
        distribution.loc = 1


# Errors of regression are negative log-likelihoods

ERRORS = [likelihood.mean_squared_error, likelihood.mean_absolute_error, likelihood.huber_loss]
pairs = st.lists(st.tuples(real, real), min_size=1, max_size=12).map(lambda rows: tuple(zip(*rows, strict=True)))


@given(pairs, positive)
@short
def test_squared_error_is_a_normal_nll(rows, scale):
    prediction, target = rows
    n, mse = len(target), likelihood.mean_squared_error(prediction, target)
    from_error = n * mse / (2 * scale**2) + n / 2 * math.log(2 * math.pi * scale**2)
    nll = likelihood.normal.nll(target, loc=prediction, scale=scale)
    budget = (8 + n) * EPS * (n * mse / (2 * scale**2) + n * (abs(math.log(scale)) + 1))
    assert abs(nll - from_error) <= 2 * budget


@given(pairs, positive)
@short
def test_absolute_error_is_a_laplace_nll(rows, scale):
    prediction, target = rows
    n, mae = len(target), likelihood.mean_absolute_error(prediction, target)
    nll = likelihood.laplace.nll(target, loc=prediction, scale=scale)
    budget = (8 + n) * EPS * (n * mae / scale + n * (abs(math.log(scale)) + 1))
    assert abs(nll - (n * mae / scale + n * math.log(2 * scale))) <= 2 * budget


@given(pairs, positive, st.floats(0.01, 100))
@short
def test_huber_loss_is_a_huber_nll(rows, scale, delta):
    prediction, target = rows
    n, loss = len(target), likelihood.huber_loss(prediction, target, delta=delta * scale)
    constant = math.log(float(huber_integral(delta)))
    nll = likelihood.huber.nll(target, loc=prediction, scale=scale, delta=delta)
    budget = (8 + n) * EPS * (n * loss / scale**2 + n * (abs(math.log(scale)) + abs(constant)))
    assert abs(nll - (n * loss / scale**2 + n * math.log(scale) + n * constant)) <= 2 * budget
    plain = n * likelihood.huber_loss(prediction, target, delta=delta) + n * constant
    assert abs(likelihood.huber.nll(target, prediction, 1, delta) - plain) <= 2 * (8 + n) * EPS * plain


@pytest.mark.parametrize("delta", [0.05, 0.3, 1.0, 1.345, 4.0, 30.0])
@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (-3.0, 0.25)])
def test_hubers_density_integrates_to_one(delta, loc, scale):
    def density(x):
        return likelihood.huber.likelihood(x, loc, scale, delta)

    corners = [-math.inf, loc - delta * scale, loc, loc + delta * scale, math.inf]
    pieces = [scipy.integrate.quad(density, *ends) for ends in itertools.pairwise(corners)]
    assert abs(sum(area for area, _ in pieces) - 1) <= sum(error for _, error in pieces) + 16 * EPS


@pytest.mark.parametrize("delta", [5e-324, 1e-300, 1e-9, 0.1, 1.0, 6.0, 40.0, 1e160, MAX])
def test_hubers_constant_is_right_for_every_delta(delta):
    exact = mp.log(huber_integral(delta))
    assert abs(likelihood.huber.nll(0.0, 0.0, 1.0, delta) - exact) <= 4 * EPS * exact


@given(st.lists(real, min_size=1, max_size=12), real, positive)
@short
def test_huber_lies_between_normal_and_laplace(x, loc, scale):
    n = len(x)
    far = 1e6 + max(abs(v - loc) / scale for v in x)
    _, budget = reference(FAMILIES["normal"], x, (loc, scale))
    assert abs(likelihood.huber.nll(x, loc, scale, far) - likelihood.normal.nll(x, loc, scale)) <= 2 * budget
    # h lies below delta |r| by at most delta^2 / 2, and log Z above log(2 / delta) by at most delta^2 / 2.
    delta = 1e-4
    _, budget = reference(FAMILIES["laplace"], x, (loc, scale / delta))
    difference = likelihood.huber.nll(x, loc, scale, delta) - likelihood.laplace.nll(x, loc, scale / delta)
    assert abs(difference) <= n * delta**2 / 2 + 4 * budget


@given(pairs, st.floats(0.01, 100))
@short
def test_errors_agree_with_torch(rows, delta):
    functional = pytest.importorskip("torch.nn.functional")
    torch = pytest.importorskip("torch")
    ours, theirs = [np.array(row) for row in rows], [torch.tensor(row, dtype=torch.float64) for row in rows]
    for reduction in ("mean", "sum", "none"):
        for function, other, options in (
            (likelihood.mean_squared_error, functional.mse_loss, {}),
            (likelihood.mean_absolute_error, functional.l1_loss, {}),
            (likelihood.huber_loss, functional.huber_loss, {"delta": delta}),
        ):
            got = function(*ours, reduction=reduction, **options)
            assert type(got) is (np.ndarray if reduction == "none" else float)
            want = other(*theirs, reduction=reduction, **options).numpy()
            # delta (|r| - delta / 2) is computed with three roundings on either side, a sum with N.
            np.testing.assert_allclose(got, want, rtol=(8 + len(rows[0])) * EPS)


@pytest.mark.parametrize("function", ERRORS)
def test_errors_of_nothing(function):
    assert function([], [], reduction="sum") == 0
    assert function([], [], reduction="none").shape == (0,)
    with pytest.raises(ValueError, match="input is empty: the mean of no errors is undefined"):
        function([], [])


@pytest.mark.parametrize("function", ERRORS)
def test_errors_compare_equal_shapes_only(function):
    with pytest.raises(ValueError, match=r"input has shape \(3, 1\) and target \(3,\): they must be the same"):
        function(np.zeros((3, 1)), np.zeros(3))


# What is refused, and how it is named

b, bi, c, m = likelihood.bernoulli, likelihood.binomial, likelihood.categorical, likelihood.multinomial
po, no, la, hu = likelihood.poisson, likelihood.normal, likelihood.laplace, likelihood.huber
COUNT = "must be a whole number >= 0, at most 2**53"
REFUSED = [
    (lambda: b.nll([0, 1, 2], 0.5), "data[2] = 2 must be 0 or 1"),
    (lambda: b.nll([0, math.nan], 0.5), "data[1] = nan must be 0 or 1"),
    (lambda: b.nll([0, 1], [0.5, -0.25]), "probs[1] = -0.25 must be in [0, 1]"),
    (lambda: b.nll([0, 1], 1.5), "probs = 1.5 must be in [0, 1]"),
    (lambda: b.nll([0, 1], math.nan), "probs = nan must be in [0, 1]"),
    (lambda: b.nll([0, 1], [0.5] * 3), "probs has shape (3,), which does not broadcast to (2,)"),
    (lambda: b.nll(1, [0.25, 0.5]), "probs has shape (2,), which does not broadcast to ()"),
    (lambda: b.nll([0], 0.5, unit="dits"), "unit = 'dits' is not one of 'nats', 'bits'"),
    (lambda: b.nll([[0, 1], [1]], 0.5), "data must be rectangular: its rows differ in length"),
    (lambda: b.mle([0, 1, 0.5]), "data[2] = 0.5 must be 0 or 1"),
    (lambda: b.mle([]), "data is empty: an estimate needs at least one observation"),
    (lambda: bi.nll([1, 4], 3, 0.5), "data[1] = 4 must be at most total_count = 3"),
    (lambda: bi.mle([1, 4], [3, 3]), "data[1] = 4 must be at most total_count = 3"),
    (lambda: bi.nll([1, -1], 3, 0.5), f"data[1] = -1 {COUNT}"),
    (lambda: bi.nll([1], 2.5, 0.5), f"total_count = 2.5 {COUNT}"),
    (lambda: bi.nll([1], 3, 2), "probs = 2 must be in [0, 1]"),
    (lambda: bi.nll([1], [3, 4], 0.5), "total_count has shape (2,), which does not broadcast to (1,)"),
    (lambda: bi.mle([], 3), "total_count sums to 0: an estimate needs at least one trial"),
    (lambda: bi.mle([0, 0], 0), "total_count sums to 0: an estimate needs at least one trial"),
    (lambda: c.nll([0, 3], [0.5, 0.25, 0.25]), "data[1] = 3 must be a class index in [0, 3)"),
    (lambda: c.nll([[0, -1]], [0.5, 0.5]), "data[0, 1] = -1 must be a class index in [0, 2)"),
    (lambda: c.nll([0.5], [0.5, 0.5]), "data[0] = 0.5 must be a class index in [0, 2)"),
    (lambda: c.nll([0], [0.5, 0.25]), "the sum of probs = 0.75 must be 1"),
    (lambda: c.nll([0, 0], [[0.5, 0.5], [0.5, 0.75]]), "the sum of probs[1] = 1.25 must be 1"),
    (lambda: c.nll([0], [1.5, -0.5]), "probs[0] = 1.5 must be in [0, 1]"),
    (lambda: c.nll([0], 1.0), "probs is one number: it must have one probability per class along the last axis"),
    (lambda: c.nll([0] * 3, [[1, 0]] * 2), "probs has shape (2, 2), which does not broadcast to (3, 2)"),
    (lambda: c.mle([0, 5], num_classes=3), "data[1] = 5 must be a class index in [0, 3)"),
    (lambda: c.mle([0, -2]), f"data[1] = -2 {COUNT}"),
    (lambda: c.mle([]), "data is empty: an estimate needs at least one observation"),
    (lambda: m.nll([1, 2], [1.0]), "probs has 1 classes and data 2: they must be as many"),
    (lambda: m.nll([1, -2], [0.5, 0.5]), f"data[1] = -2 {COUNT}"),
    (lambda: m.nll([1, 2], [0.5, 0.25]), "the sum of probs = 0.75 must be 1"),
    (lambda: m.nll(3, [1.0]), "data is one number: multinomial data have one count per class along the last axis"),
    (lambda: m.nll([[1, 2]] * 3, [[1, 0]] * 2), "probs has shape (2, 2), which does not broadcast to (3, 2)"),
    (lambda: m.mle([[0, 0]]), "data holds no counts above 0: an estimate needs at least one observation"),
    (lambda: m.mle([]), "data holds no counts above 0: an estimate needs at least one observation"),
    (lambda: po.nll([0, 2, 7, -1, -1], 1.0), f"data[3] = -1 {COUNT}"),
    (lambda: po.nll([0.5], 1.0), f"data[0] = 0.5 {COUNT}"),
    (lambda: po.nll([1e300], 1.0), f"data[0] = 1e+300 {COUNT}"),
    (lambda: po.nll([1], -1.0), "rate = -1 must be finite and >= 0"),
    (lambda: po.nll([1], math.inf), "rate = inf must be finite and >= 0"),
    (lambda: po.nll([1, 1], [1, math.nan]), "rate[1] = nan must be finite and >= 0"),
    (lambda: po.mle([]), "data is empty: an estimate needs at least one observation"),
    (lambda: no.nll([1.0, math.nan], 0, 1), "data[1] = nan must be finite"),
    (lambda: no.nll([1.0], math.inf, 1), "loc = inf must be finite"),
    (lambda: no.nll([1.0], 0, 0.0), "scale = 0 must be finite and > 0"),
    (lambda: no.nll([1.0], 0, math.inf), "scale = inf must be finite and > 0"),
    (lambda: no.nll([1.0], [[0.0], [1.0]], 1), "loc has shape (2, 1), which does not broadcast to (1,)"),
    (lambda: no.nll([1.0], 0, [1, 1]), "scale has shape (2,), which does not broadcast to (1,)"),
    (lambda: no.mle([1.0, -math.inf]), "data[1] = -inf must be finite"),
    (lambda: no.mle([]), "data is empty: an estimate needs at least one observation"),
    (lambda: la.nll([1.0], 0, [-1.0]), "scale[0] = -1 must be finite and > 0"),
    (lambda: la.mle([]), "data is empty: an estimate needs at least one observation"),
    (lambda: hu.nll([1.0], 0, 1, 0), "delta = 0 must be finite and > 0"),
    (lambda: hu.nll([1.0], 0, 1, [1.0, 2.0]), "delta has shape (2,), which does not broadcast to ()"),
    (lambda: likelihood.huber_loss([1], [0], delta=math.inf), "delta = inf must be finite and > 0"),
    (lambda: likelihood.mean_squared_error([[1.0, math.nan]], [[1, 1]]), "input[0, 1] = nan must be finite"),
    (lambda: likelihood.mean_absolute_error([1.0], [math.inf]), "target[0] = inf must be finite"),
    (lambda: likelihood.mean_squared_error([1], [1], reduction="max"), "reduction = 'max' is not one of"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused_values_are_named(call, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared below)
        call()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("value", [[1 + 0j], ["1"], "1", [None], np.array(["2020-01-01"], dtype="M8[D]"), [10**400]])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("data", lambda v: likelihood.normal.nll(v, 0, 1)),
        ("probs", lambda v: likelihood.bernoulli.nll([1], v)),
        ("data", lambda v: likelihood.poisson.mle(v)),
        ("probs", lambda v: likelihood.categorical.nll([0], v)),
        ("target", lambda v: likelihood.mean_squared_error([1], v)),
    ],
)
def test_what_is_not_a_real_number_is_refused(name, call, value):
    with pytest.raises(TypeError, match=f"^{name} must hold real numbers, not "):
        call(value)


def test_masks_are_not_dropped():
    with pytest.raises(TypeError, match="data is a masked array"):
        likelihood.normal.mle(np.ma.masked_invalid([1.0, math.nan]))
