"""Likelihoods: how probable the data are under given parameters, and the parameters that make them most probable.

Each distribution is one stateless object with the same verbs; ``data`` come first, the parameters after them:

    nll         -log L = -sum_i log f(x_i; parameters), for independent observations x_1..x_N
    likelihood  L = exp(-nll)
    mle         the parameters that maximise L, as a named tuple in the order in which ``nll`` takes them

The law: nll(data, *mle(data)) <= nll(data, any other parameters). Names are those of ``torch.distributions``. Where f
is a density (normal, Laplace, Huber) L may exceed 1. A parameter is a scalar or broadcasts to the shape of the data,
never the other way round: an observation is counted once. Everything is computed in float64, whatever the input's
type; NaN and infinite data are refused. Each class documents its arguments once, for all of its verbs.

Mean squared, mean absolute and Huber error close the page: they are such nll with the constants left out. The loss of
a classifier, which takes logits, is in ``functional.py``; bits and surprisal are explained in ``information.py``.

Letters: x data, k counts, n trials, p probability, lam rate, mu loc, sigma scale, r = (x - mu) / sigma residual;
N observations, V classes.
Sources: R. A. Fisher, "On the mathematical foundations of theoretical statistics", Phil. Trans. A 222 (1922), for the
likelihood; G. Casella and R. L. Berger, Statistical Inference, 2nd ed. (2002), chapters 3 and 4 for the distributions
and section 7.2.2 for the estimates, except where a class names another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lastlayer._arrays import unmasked
from lastlayer._validate import Unit, check_reduction, element, position, read_unit

__all__ = [
    "LocScale",
    "Probabilities",
    "Probability",
    "Rate",
    "bernoulli",
    "binomial",
    "categorical",
    "huber",
    "huber_loss",
    "laplace",
    "mean_absolute_error",
    "mean_squared_error",
    "multinomial",
    "normal",
    "poisson",
]

Array: TypeAlias = NDArray[np.float64]

LOG_2 = math.log(2.0)
LOG_2PI = math.log(2.0 * math.pi)
FLOAT64_MAX = float(np.finfo(np.float64).max)


class Probability(NamedTuple):
    """The estimate of a Bernoulli or binomial distribution."""

    probs: float


class Probabilities(NamedTuple):
    """The estimate of a categorical or multinomial distribution: float64 of shape (V,)."""

    probs: Array


class LocScale(NamedTuple):
    """The estimate of a normal or Laplace distribution."""

    loc: float
    scale: float


class Rate(NamedTuple):
    """The estimate of a Poisson distribution."""

    rate: float


@dataclass(frozen=True)
class Bernoulli:
    """One trial with success probability p: f(x; p) = p^x (1 - p)^(1 - x), x in {0, 1}.

    The estimate is the share of successes, mean(x). Outcomes of probability 0 give nll = inf; 0 log 0 = 0.

    Args:
        data: 0/1 or booleans, any shape.
        probs: p in [0, 1], broadcastable to the shape of data.
        unit: "nats" or "bits".

    Raises:
        ValueError: data other than 0 and 1; probs outside [0, 1]; shapes that do not fit; for mle, no data.
        TypeError: data or probs that do not hold real numbers.

    Note:
        1 - p is never formed, so that small p keep their digits: log(1 - p) is log1p(-p).

    Example:
        >>> data = [1, 0, 1, 1]
        >>> bernoulli.likelihood(data, 0.5)
        0.0625
        >>> bernoulli.nll(data, 0.5, unit="bits")
        4.0
        >>> bernoulli.mle(data)
        Probability(probs=0.75)
    """

    def nll(self, data: ArrayLike, probs: ArrayLike, *, unit: Unit = "nats") -> float:
        """Return -sum_i [x_i log p + (1 - x_i) log(1 - p)]."""
        x = _read("data", data, _BINARY)
        p = _read("probs", probs, _PROBABILITY, x.shape)
        return _total(-_xlogy(x, p) - _xlog1py(1 - x, -p), unit)

    def likelihood(self, data: ArrayLike, probs: ArrayLike) -> float:
        """Return exp(-nll), a probability; it underflows to 0 for long data."""
        return _exp(-self.nll(data, probs))

    def mle(self, data: ArrayLike) -> Probability:
        """Return probs = mean(x)."""
        return Probability(float(np.mean(_sample(data, _BINARY))))


@dataclass(frozen=True)
class Binomial:
    """Successes in n trials: f(k; n, p) = C(n, k) p^k (1 - p)^(n - k), k in 0..n.

    Read as a function of k at fixed p, f is a probability and sums to 1. Read as a function of p at fixed k, it is a
    likelihood: its integral over p is 1 / (n + 1). The estimate is sum(k) / sum(n).

    Args:
        data: whole numbers k in [0, total_count], any shape.
        total_count: whole numbers n in [0, 2**53], broadcastable to the shape of data.
        probs: p in [0, 1], broadcastable to the shape of data.
        unit: "nats" or "bits".

    Raises:
        ValueError: a count that is not whole, negative or above total_count; probs outside [0, 1]; shapes that do not
            fit; for mle, no data or no trials.
        TypeError: arguments that do not hold real numbers.

    Note:
        log n! is ``math.lgamma(n + 1)``, good to 4 ulp. The log-factorials cancel in part, so an observation's
        absolute error is at most about 4 eps log n!: 5e-12 at n = 1000 and 1e-8 at n = 1e6 (eps = 2.2e-16).

    Example:
        >>> round(binomial.likelihood(7, 10, 0.5), 12)
        0.1171875
        >>> binomial.mle([7, 5], 10)
        Probability(probs=0.6)
    """

    def nll(self, data: ArrayLike, total_count: ArrayLike, probs: ArrayLike, *, unit: Unit = "nats") -> float:
        """Return -sum_i [log C(n, k_i) + k_i log p + (n - k_i) log(1 - p)]."""
        k, n = _read_trials(data, total_count)
        p = _read("probs", probs, _PROBABILITY, k.shape)
        log_choices = _log_factorial(n) - _log_factorial(k) - _log_factorial(n - k)
        return _total(-log_choices - _xlogy(k, p) - _xlog1py(n - k, -p), unit)

    def likelihood(self, data: ArrayLike, total_count: ArrayLike, probs: ArrayLike) -> float:
        """Return exp(-nll), a probability; it underflows to 0 for long data."""
        return _exp(-self.nll(data, total_count, probs))

    def mle(self, data: ArrayLike, total_count: ArrayLike) -> Probability:
        """Return probs = sum(k) / sum(n)."""
        k, n = _read_trials(data, total_count)
        trials = float(np.sum(n))
        if trials == 0:
            raise ValueError("total_count sums to 0: an estimate needs at least one trial")
        return Probability(float(np.sum(k)) / trials)


@dataclass(frozen=True)
class Categorical:
    """One draw among V classes: f(x; p) = p_x, x in 0..V-1.

    With one row of probabilities per observation, nll is the loss of a classifier, summed over the batch. The estimate
    is the share of each class, count_j / N.

    Args:
        data: class indices in [0, V), any shape.
        probs: (..., V), each row >= 0 with sum 1; without its last axis, broadcastable to the shape of data.
        unit: "nats" or "bits".
        num_classes: V, for mle only; by default 1 + the largest index, which misses classes that come later.

    Raises:
        ValueError: an index outside [0, V); probs outside [0, 1] or rows whose sum is off 1 by more than sqrt(eps) of
            their type (the rule of ``numpy.random.Generator.choice``); shapes that do not fit; for mle, no data.
        TypeError: arguments that do not hold real numbers.

    Note:
        Rows are used as given, not divided by their sum. From logits, call ``lastlayer.cross_entropy``, which keeps
        the digits that a probability near 0 or 1 has already lost.

    Example:
        >>> categorical.nll([0, 2, 2], [0.25, 0.25, 0.5], unit="bits")
        4.0
        >>> categorical.mle([0, 2, 2, 2], num_classes=4)
        Probabilities(probs=array([0.25, 0.  , 0.75, 0.  ]))
    """

    def nll(self, data: ArrayLike, probs: ArrayLike, *, unit: Unit = "nats") -> float:
        """Return -sum_i log p[x_i]."""
        p = _read_simplex(probs)
        x = _read("data", data, _class_below(p.shape[-1])).astype(np.intp)
        rows = _spread("probs", p, (*x.shape, p.shape[-1]))
        return _total(-_log(np.take_along_axis(rows, x[..., None], axis=-1)), unit)

    def likelihood(self, data: ArrayLike, probs: ArrayLike) -> float:
        """Return exp(-nll), a probability; it underflows to 0 for long data."""
        return _exp(-self.nll(data, probs))

    def mle(self, data: ArrayLike, *, num_classes: int | None = None) -> Probabilities:
        """Return probs[j] = (number of x equal to j) / N."""
        x = _sample(data, _COUNT if num_classes is None else _class_below(num_classes)).astype(np.intp)
        return Probabilities(np.bincount(x.ravel(), minlength=num_classes or 0) / x.size)


@dataclass(frozen=True)
class Multinomial:
    """Counts of n draws among V classes: f(k; p) = n! / (k_1! ... k_V!) p_1^k_1 ... p_V^k_V, n = sum_j k_j.

    Categorical data that have been counted: the same estimate, sum of counts / total, and the same nll but for the
    number of orders, n! / (k_1! ... k_V!), which does not depend on p. With V = 2 it is the binomial.

    Args:
        data: whole numbers, (..., V); each row along the last axis is one observation.
        probs: (..., V), each row >= 0 with sum 1, broadcastable to the shape of data, V included.
        unit: "nats" or "bits".

    Raises:
        ValueError: a count that is negative or not whole; probs as for ``categorical``; shapes that do not fit; for
            mle, no data or counts that are all 0.
        TypeError: arguments that do not hold real numbers.

    Note:
        Accuracy as for ``binomial``: at most about 4 eps log n! per observation. Rows of probs are used as given.

    Example:
        >>> round(multinomial.likelihood([2, 1, 1], [0.5, 0.25, 0.25]), 12)
        0.1875
        >>> multinomial.mle([[2, 1, 1], [3, 1, 0]])
        Probabilities(probs=array([0.625, 0.25 , 0.125]))
    """

    def nll(self, data: ArrayLike, probs: ArrayLike, *, unit: Unit = "nats") -> float:
        """Return -sum_i [log n_i! - sum_j log k_ij! + sum_j k_ij log p_j]."""
        k, p = _read_counts(data), _read_simplex(probs)
        if p.shape[-1] != k.shape[-1]:
            raise ValueError(f"probs has {p.shape[-1]} classes and data {k.shape[-1]}: they must be as many")
        p = _spread("probs", p, k.shape)
        log_orders = _log_factorial(np.sum(k, axis=-1)) - np.sum(_log_factorial(k), axis=-1)
        return _total(-log_orders - np.sum(_xlogy(k, p), axis=-1), unit)

    def likelihood(self, data: ArrayLike, probs: ArrayLike) -> float:
        """Return exp(-nll), a probability; it underflows to 0 for long data."""
        return _exp(-self.nll(data, probs))

    def mle(self, data: ArrayLike) -> Probabilities:
        """Return probs[j] = (sum of class j's counts) / (sum of all counts)."""
        k = _read_counts(data)
        totals = np.sum(k, axis=tuple(range(k.ndim - 1)))
        if not totals.any():
            raise ValueError("data holds no counts above 0: an estimate needs at least one observation")
        return Probabilities(totals / totals.sum())


@dataclass(frozen=True)
class Poisson:
    """Events counted at a given mean: f(k; rate) = rate^k exp(-rate) / k!, k = 0, 1, 2, ...

    The estimate is the mean count. A rate of 0 is legal and puts all probability on k = 0.

    Args:
        data: whole numbers in [0, 2**53], any shape.
        rate: finite and >= 0, broadcastable to the shape of data.
        unit: "nats" or "bits".

    Raises:
        ValueError: a count that is negative or not whole; a rate that is negative or not finite; shapes that do not
            fit; for mle, no data.
        TypeError: arguments that do not hold real numbers.

    Note:
        log k! is ``math.lgamma(k + 1)``, good to 4 ulp. The three terms cancel in part, so an observation's absolute
        error is at most about 4 eps (log k! + k |log rate| + rate): 1e-11 at k = rate = 1000.

    Example:
        >>> round(poisson.nll([2, 0, 1], 1.0), 6)
        3.693147
        >>> poisson.mle([2, 0, 1])
        Rate(rate=1.0)
    """

    def nll(self, data: ArrayLike, rate: ArrayLike, *, unit: Unit = "nats") -> float:
        """Return sum_i [rate - k_i log rate + log k_i!]."""
        k = _read("data", data, _COUNT)
        lam = _read("rate", rate, _NOT_NEGATIVE, k.shape)
        return _total(lam - _xlogy(k, lam) + _log_factorial(k), unit)

    def likelihood(self, data: ArrayLike, rate: ArrayLike) -> float:
        """Return exp(-nll), a probability; it underflows to 0 for long data."""
        return _exp(-self.nll(data, rate))

    def mle(self, data: ArrayLike) -> Rate:
        """Return rate = mean(k)."""
        return Rate(float(np.mean(_sample(data, _COUNT))))


@dataclass(frozen=True)
class Normal:
    """The normal (Gaussian) density: f(x; loc, scale) = exp(-r^2 / 2) / (scale sqrt(2 pi)), r = (x - loc) / scale.

    The estimate is the mean and the standard deviation with divisor N. The latter is biased: on average scale^2 is too
    small by the factor (N - 1) / N; divisor N - 1 removes the bias and no longer maximises L. Observations that are
    all equal give scale = 0, which ``nll`` refuses: there L grows without bound.

    Args:
        data: finite, any shape.
        loc: finite, broadcastable to the shape of data.
        scale: standard deviation, finite and > 0, broadcastable to the shape of data.
        unit: "nats" or "bits".

    Raises:
        ValueError: data or loc not finite; scale not > 0; shapes that do not fit; for mle, no data.
        TypeError: arguments that do not hold real numbers.

    Note:
        nll is inf where r^2 leaves float64 (|r| > 1.3e154). The estimate neither overflows nor vanishes for any
        finite data, and its scale does not lose digits to a large common offset.

    Example:
        >>> round(normal.nll([-1.0, 0.0, 1.0], loc=0.0, scale=1.0), 6)
        3.756816
        >>> normal.mle([1.0, 3.0])
        LocScale(loc=2.0, scale=1.0)
    """

    def nll(self, data: ArrayLike, loc: ArrayLike, scale: ArrayLike, *, unit: Unit = "nats") -> float:
        """Return sum_i [r_i^2 / 2 + log scale + log(2 pi) / 2]."""
        r, log_scale = _standardize(data, loc, scale)
        return _total(_square(r) / 2 + log_scale + LOG_2PI / 2, unit)

    def likelihood(self, data: ArrayLike, loc: ArrayLike, scale: ArrayLike) -> float:
        """Return exp(-nll), a density; it underflows to 0, or overflows to inf, for long data."""
        return _exp(-self.nll(data, loc, scale))

    def mle(self, data: ArrayLike) -> LocScale:
        """Return loc = mean(x) and scale = sqrt(mean((x - loc)^2))."""
        x, exponent = _to_unit(_sample(data, _FINITE))
        # Close observations have exact differences, so the first one is subtracted before the mean is.
        return LocScale(_from_unit(np.mean(x), exponent), _from_unit(np.std(x - x.flat[0]), exponent))


@dataclass(frozen=True)
class Laplace:
    """The Laplace density: f(x; loc, scale) = exp(-|r|) / (2 scale), r = (x - loc) / scale.

    The estimate is the median and the mean absolute deviation from it. For an even number of observations every point
    between the two middle ones maximises L; loc is their midpoint. Observations that are all equal give scale = 0,
    which ``nll`` refuses: there L grows without bound.

    Args:
        data: finite, any shape.
        loc: finite, broadcastable to the shape of data.
        scale: mean absolute deviation, finite and > 0, broadcastable to the shape of data.
        unit: "nats" or "bits".

    Raises:
        ValueError: data or loc not finite; scale not > 0; shapes that do not fit; for mle, no data.
        TypeError: arguments that do not hold real numbers.

    Note:
        nll is inf where |r| leaves float64. The estimate does not overflow for any finite data. Source of the
        estimate: R. M. Norton, "The double exponential distribution: using calculus to find a maximum likelihood
        estimator", The American Statistician 38 (1984), 135-136.

    Example:
        >>> round(laplace.nll([-1.0, 0.0, 1.0], loc=0.0, scale=1.0), 6)
        4.079442
        >>> laplace.mle([1.0, 2.0, 6.0, 7.0])
        LocScale(loc=4.0, scale=2.5)
    """

    def nll(self, data: ArrayLike, loc: ArrayLike, scale: ArrayLike, *, unit: Unit = "nats") -> float:
        """Return sum_i [|r_i| + log scale + log 2]."""
        r, log_scale = _standardize(data, loc, scale)
        return _total(np.abs(r) + log_scale + LOG_2, unit)

    def likelihood(self, data: ArrayLike, loc: ArrayLike, scale: ArrayLike) -> float:
        """Return exp(-nll), a density; it underflows to 0, or overflows to inf, for long data."""
        return _exp(-self.nll(data, loc, scale))

    def mle(self, data: ArrayLike) -> LocScale:
        """Return loc = median(x) and scale = mean(|x - loc|)."""
        # Halves, because the sum or difference of two large observations may leave float64.
        x = _sample(data, _FINITE) / 2
        loc = np.median(x)
        deviation, exponent = _to_unit(np.abs(x - loc))
        return LocScale(float(2 * loc), _from_unit(np.mean(deviation), exponent + 1))


@dataclass(frozen=True)
class Huber:
    """Huber's density, normal in the middle with Laplace tails: f(x; loc, scale, delta) = exp(-h(r)) / (scale Z).

        h(r) = r^2 / 2 if |r| <= delta, else delta (|r| - delta / 2)             r = (x - loc) / scale
        Z    = sqrt(2 pi) erf(delta / sqrt 2) + (2 / delta) exp(-delta^2 / 2)    the integral of exp(-h)

    As delta grows it becomes the normal density; as delta shrinks it approaches a Laplace density of scale
    scale / delta. The estimate has no closed form, and there is no ``mle``: minimise nll numerically.

    Args:
        data: finite, any shape.
        loc: finite, broadcastable to the shape of data.
        scale: finite and > 0, broadcastable to the shape of data.
        delta: where the tails begin, in units of scale: one number, finite and > 0.
        unit: "nats" or "bits".

    Raises:
        ValueError: data or loc not finite; scale or delta not > 0; shapes that do not fit.
        TypeError: arguments that do not hold real numbers.

    Note:
        log Z is formed from the logarithms of its two terms, so no delta overflows it. Source: P. J. Huber, "Robust
        estimation of a location parameter", Annals of Mathematical Statistics 35 (1964), 73-101.

    Example:
        >>> round(huber.nll([-1.0, 0.0, 1.0], loc=0.0, scale=1.0, delta=100.0), 6)
        3.756816
        >>> round(huber.nll([-1.0, 0.0, 1.0], loc=0.0, scale=1.0, delta=1.0), 6)
        4.219176
    """

    def nll(
        self, data: ArrayLike, loc: ArrayLike, scale: ArrayLike, delta: float = 1.0, *, unit: Unit = "nats"
    ) -> float:
        """Return sum_i [h(r_i) + log scale + log Z]."""
        r, log_scale = _standardize(data, loc, scale)
        delta = _read_delta(delta)
        return _total(_huber(r, delta) + log_scale + _log_huber_integral(delta), unit)

    def likelihood(self, data: ArrayLike, loc: ArrayLike, scale: ArrayLike, delta: float = 1.0) -> float:
        """Return exp(-nll), a density; it underflows to 0, or overflows to inf, for long data."""
        return _exp(-self.nll(data, loc, scale, delta))


bernoulli = Bernoulli()
binomial = Binomial()
categorical = Categorical()
multinomial = Multinomial()
poisson = Poisson()
normal = Normal()
laplace = Laplace()
huber = Huber()


@overload
def mean_squared_error(input: ArrayLike, target: ArrayLike, *, reduction: Literal["mean", "sum"] = "mean") -> float: ...
@overload
def mean_squared_error(input: ArrayLike, target: ArrayLike, *, reduction: Literal["none"]) -> Array: ...
def mean_squared_error(input: ArrayLike, target: ArrayLike, *, reduction: str = "mean") -> float | Array:
    """Return the mean of (input - target)^2: a normal negative log-likelihood without its constants.

    For N targets with one known scale,

        normal.nll(target, loc=input, scale=scale) = N mse / (2 scale^2) + (N / 2) log(2 pi scale^2)

    Dropped are the factor N / (2 scale^2) and the summand (N / 2) log(2 pi scale^2). Neither depends on the input, so
    minimising the mean squared error *is* maximum likelihood under normal noise of constant scale.

    Args:
        input: predictions, finite, any shape.
        target: finite, the same shape; nothing is broadcast.
        reduction: "mean", "sum" or "none".

    Returns:
        A float, or for "none" the float64 array of squared errors, in the shape of the input.

    Raises:
        ValueError: different shapes; a value that is not finite; the mean of no errors; an unknown reduction.
        TypeError: arguments that do not hold real numbers.

    Note:
        Computed in float64. Squares beyond its range are inf, and below it 0.

    Example:
        >>> mean_squared_error([1.0, 2.0, 3.0], [1.0, 4.0, 7.0], reduction="sum")
        20.0
    """
    return _reduce(_square(_residuals(input, target)), reduction)


@overload
def mean_absolute_error(
    input: ArrayLike, target: ArrayLike, *, reduction: Literal["mean", "sum"] = "mean"
) -> float: ...
@overload
def mean_absolute_error(input: ArrayLike, target: ArrayLike, *, reduction: Literal["none"]) -> Array: ...
def mean_absolute_error(input: ArrayLike, target: ArrayLike, *, reduction: str = "mean") -> float | Array:
    """Return the mean of |input - target|: a Laplace negative log-likelihood without its constants.

    For N targets with one known scale,

        laplace.nll(target, loc=input, scale=scale) = N mae / scale + N log(2 scale)

    Dropped are the factor N / scale and the summand N log(2 scale). Neither depends on the input, so minimising the
    mean absolute error *is* maximum likelihood under Laplace noise of constant scale.

    Args:
        input: predictions, finite, any shape.
        target: finite, the same shape; nothing is broadcast.
        reduction: "mean", "sum" or "none".

    Returns:
        A float, or for "none" the float64 array of absolute errors, in the shape of the input.

    Raises:
        ValueError: different shapes; a value that is not finite; the mean of no errors; an unknown reduction.
        TypeError: arguments that do not hold real numbers.

    Note:
        Computed in float64. Sums beyond its range are inf.

    Example:
        >>> mean_absolute_error([1.0, 2.0, 3.0], [1.0, 4.0, 7.0])
        2.0
    """
    return _reduce(np.abs(_residuals(input, target)), reduction)


@overload
def huber_loss(
    input: ArrayLike, target: ArrayLike, *, delta: float = 1.0, reduction: Literal["mean", "sum"] = "mean"
) -> float: ...
@overload
def huber_loss(input: ArrayLike, target: ArrayLike, *, delta: float = 1.0, reduction: Literal["none"]) -> Array: ...
def huber_loss(input: ArrayLike, target: ArrayLike, *, delta: float = 1.0, reduction: str = "mean") -> float | Array:
    """Return the mean of Huber's h(input - target): the negative log-likelihood of ``huber`` without its constants.

    h(r) = r^2 / 2 if |r| <= delta, else delta (|r| - delta / 2). For N targets with one known scale,

        huber.nll(target, loc=input, scale=scale, delta=delta)
            = N huber_loss(input, target, delta=delta * scale) / scale^2 + N log(scale Z)

    with Z as in ``huber``. Dropped are the factor N / scale^2, which is N at scale 1, and the summand N log(scale Z).
    Neither depends on the input, so minimising the loss *is* maximum likelihood under noise of Huber's density.

    Args:
        input: predictions, finite, any shape.
        target: finite, the same shape; nothing is broadcast.
        delta: the |input - target| at which the parabola becomes a line: one number, finite and > 0.
        reduction: "mean", "sum" or "none".

    Returns:
        A float, or for "none" the float64 array of losses, in the shape of the input.

    Raises:
        ValueError: different shapes; a value that is not finite; delta not > 0; the mean of no errors; an unknown
            reduction.
        TypeError: arguments that do not hold real numbers.

    Note:
        Computed in float64. delta and reduction are keywords only: torch has them in the other order.

    Example:
        >>> huber_loss([0.0, 0.0], [0.5, 3.0], reduction="none")
        array([0.125, 2.5  ])
    """
    return _reduce(_huber(_residuals(input, target), _read_delta(delta)), reduction)


def _total(terms: Array, unit: Unit) -> float:
    """Sum the observations' -log f and convert."""
    nats = read_unit(unit)
    with np.errstate(over="ignore"):
        return float(np.sum(terms)) / nats


def _reduce(losses: Array, reduction: str) -> float | Array:
    check_reduction(reduction)
    if reduction == "none":
        return losses
    if reduction == "mean" and losses.size == 0:
        raise ValueError("input is empty: the mean of no errors is undefined (reduction='sum' gives 0)")
    with np.errstate(over="ignore"):
        return float(np.sum(losses) if reduction == "sum" else np.mean(losses))


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def _log(x: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.log(x)


def _xlogy(x: Array, y: Array) -> Array:
    """Return x log y with 0 log 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(x == 0, 0.0, x * np.log(y))


def _xlog1py(x: Array, y: Array) -> Array:
    """Return x log(1 + y) with 0 log 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(x == 0, 0.0, x * np.log1p(y))


def _square(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x * x


def _huber(r: Array, delta: float) -> Array:
    """Both branches of h at once: c (|r| - c / 2) with c = min(|r|, delta)."""
    size = np.abs(r)
    clipped = np.minimum(size, delta)
    with np.errstate(over="ignore"):
        return clipped * (size - clipped / 2)


def _log_huber_integral(delta: float) -> float:
    """Return log Z, Z = sqrt(2 pi) erf(delta / sqrt 2) + (2 / delta) exp(-delta^2 / 2)."""
    middle = LOG_2PI / 2 + math.log(math.erf(delta / math.sqrt(2.0)))
    tails = LOG_2 - math.log(delta) - delta * delta / 2
    return float(np.logaddexp(middle, tails))


_lgamma = np.frompyfunc(math.lgamma, 1, 1)


def _log_factorial(k: Array) -> Array:
    """Return log k! to 4 ulp, exactly 0 for k = 0 and k = 1."""
    return np.asarray(_lgamma(k + 1.0), dtype=np.float64)


def _to_unit(x: Array) -> tuple[Array, int]:
    """Return y and e with x = y 2^e and |y| <= 1: sums and squares of y stay within float64."""
    exponent = int(np.frexp(np.max(np.abs(x)))[1])
    return np.ldexp(x, -exponent), exponent


def _from_unit(y: np.floating[Any], exponent: int) -> float:
    """Return y 2^e for a mean, which is at most the largest float64 where rounding has carried it past."""
    with np.errstate(over="ignore"):
        return float(np.clip(np.ldexp(y, exponent), -FLOAT64_MAX, FLOAT64_MAX))


class _Domain(NamedTuple):
    """The values an argument may take. ``contains`` is false for NaN."""

    expectation: str
    contains: Callable[[Array], NDArray[np.bool_]]


_FINITE = _Domain("finite", np.isfinite)
_POSITIVE = _Domain("finite and > 0", lambda x: np.isfinite(x) & (x > 0))
_NOT_NEGATIVE = _Domain("finite and >= 0", lambda x: np.isfinite(x) & (x >= 0))
_PROBABILITY = _Domain("in [0, 1]", lambda x: (x >= 0) & (x <= 1))
_BINARY = _Domain("0 or 1", lambda x: (x == 0) | (x == 1))
# Above 2**53 float64 skips whole numbers.
_COUNT = _Domain("a whole number >= 0, at most 2**53", lambda x: (x >= 0) & (x <= 2.0**53) & (x == np.floor(x)))


def _class_below(classes: int) -> _Domain:
    return _Domain(f"a class index in [0, {classes})", lambda x: (x >= 0) & (x < classes) & (x == np.floor(x)))


def _require(name: str, x: Array, valid: NDArray[np.bool_], expectation: str, bound: Array | None = None) -> None:
    """Name the first element of x that is not valid, its position and, where it has one, its bound."""
    if np.all(valid):
        return
    index = position(~valid)
    found, limit = (str(float(v[index])).removesuffix(".0") for v in (x, x if bound is None else bound))
    raise ValueError(f"{element(name, index)} = {found} must be {expectation}{'' if bound is None else limit}")


def _numbers(name: str, value: ArrayLike) -> NDArray[Any]:
    x = unmasked(name, value)
    if not np.can_cast(x.dtype, np.float64, "same_kind"):
        raise TypeError(f"{name} must hold real numbers, not {x.dtype}")
    return x


def _read(name: str, value: ArrayLike, domain: _Domain, shape: tuple[int, ...] | None = None) -> Array:
    """Return the value as float64, each element checked, broadcast to the shape of the data if one is given."""
    with np.errstate(over="ignore"):
        x = _numbers(name, value).astype(np.float64)
    _require(name, x, domain.contains(x), domain.expectation)
    return x if shape is None else _spread(name, x, shape)


def _spread(name: str, x: Array, shape: tuple[int, ...]) -> Array:
    try:
        return np.broadcast_to(x, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {x.shape}, which does not broadcast to {shape}") from None


def _sample(data: ArrayLike, domain: _Domain) -> Array:
    x = _read("data", data, domain)
    if x.size == 0:
        raise ValueError("data is empty: an estimate needs at least one observation")
    return x


def _standardize(data: ArrayLike, loc: ArrayLike, scale: ArrayLike) -> tuple[Array, Array]:
    """Return r = (x - loc) / scale and log(scale), one of each per observation."""
    x = _read("data", data, _FINITE)
    mu = _read("loc", loc, _FINITE, x.shape)
    sigma = _read("scale", scale, _POSITIVE, x.shape)
    with np.errstate(over="ignore"):
        return (x - mu) / sigma, np.log(sigma)


def _residuals(input: ArrayLike, target: ArrayLike) -> Array:
    x, y = _read("input", input, _FINITE), _read("target", target, _FINITE)
    if x.shape != y.shape:
        raise ValueError(f"input has shape {x.shape} and target {y.shape}: they must be the same")
    with np.errstate(over="ignore"):
        return x - y


def _read_delta(delta: float) -> float:
    return float(_read("delta", delta, _POSITIVE, ()))


def _read_trials(data: ArrayLike, total_count: ArrayLike) -> tuple[Array, Array]:
    k = _read("data", data, _COUNT)
    n = _read("total_count", total_count, _COUNT, k.shape)
    _require("data", k, k <= n, "at most total_count = ", n)
    return k, n


def _read_counts(data: ArrayLike) -> Array:
    k = _read("data", data, _COUNT)
    if k.ndim == 0:
        raise ValueError("data is one number: multinomial data have one count per class along the last axis")
    return k


def _read_simplex(probs: ArrayLike) -> Array:
    p = _read("probs", probs, _PROBABILITY)
    if p.ndim == 0:
        raise ValueError("probs is one number: it must have one probability per class along the last axis")
    given = _numbers("probs", probs).dtype
    one = np.ones((), np.float64 if given.kind in "biu" else given)
    tolerance = math.sqrt(float(np.spacing(one)))
    totals = np.asarray(np.sum(p, axis=-1))
    _require("the sum of probs", totals, np.abs(totals - 1) <= tolerance, "1")
    return p
