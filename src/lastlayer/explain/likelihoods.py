"""Traces of likelihoods, and of the estimates that maximise them.

A family is its formula and its exact log f, one observation after the other; every value is that of
``lastlayer.likelihood``. Letters as there: x data, k counts, n trials, p probability, r = (x - loc) / scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lastlayer import likelihood as families
from lastlayer._arrays import Array
from lastlayer._validate import Unit, read_unit
from lastlayer.explain import exact, given
from lastlayer.explain.logits import in_bits
from lastlayer.explain.pytorch import Line
from lastlayer.explain.sheet import Sheet
from lastlayer.explain.trace import Trace

LIMIT = 10_000  # observations


@dataclass(frozen=True)
class Family:
    """A formula for one observation, in plain text, in LaTeX, with numbers put in, and its exact logarithm."""

    formula: str
    latex: str
    parameters: tuple[str, ...]
    density: bool
    tell: Callable[..., str]
    log: Callable[..., Any]
    torch: str


def likelihood(family: str, data: Any, *, unit: Unit = "nats", check: bool = True, **parameters: Any) -> Trace:
    """Trace the likelihood of independent observations: of each, and of all.

    Args:
        family: "bernoulli", "binomial", "categorical", "poisson", "normal" or "laplace".
        data: the observations, one or several.
        unit: of the negative log-likelihood: "nats", or "bits" for one more step.
        check: run the line of PyTorch too, where torch is installed. Importing torch takes a second.
        parameters: those of the family's ``likelihood`` in ``lastlayer.likelihood``, by name.

    Returns:
        The trace; its last step and its result are the ``likelihood`` of the family.

    Raises:
        ValueError: an unknown family, no data or too many; and as the family's functions, like TypeError.

    Example:
        >>> trace = likelihood("binomial", 7, total_count=10, probs=0.7, check=False)
        >>> print(trace.steps[1].substituted, "=", round(trace.result, 4))
        C(10, 7) * 0.7^7 * (1 - 0.7)^3 = 0.2668
    """
    read_unit(unit)
    kind, ours = _family(family), getattr(families, family)
    x = given.array("data", data)
    arrays = {name: given.array(name, each) for name, each in parameters.items()}
    value = ours.likelihood(x, **arrays)
    sheet, wide = _begin(x)
    shaped = {name: _per_observation(some, x, family == "categorical") for name, some in arrays.items()}
    each = [({name: some[i] for name, some in shaped.items()}, wide[i]) for i in range(len(wide))]
    f = np.array([ours.likelihood(k, **some) for some, k in each])
    losses = np.array([ours.nll(k, **some) for some, k in each])
    log_f = [kind.log(_exactly(k), **{name: _exactly(one) for name, one in some.items()}) for some, k in each]
    exact_log_f = np.array([*log_f, None], dtype=object)[:-1]
    sheet.add(
        "density of each" if kind.density else "probability of each", kind.formula, kind.latex, f[None],
        exact.exp(exact_log_f)[None],
        sheet.entries(f[None], lambda i, j: kind.tell(sheet.minus, each[j][1], **each[j][0])),
        "" if kind.density else "probability",
        "A density may exceed 1, and depends on the unit of measurement." if kind.density else "",
    )  # fmt: skip
    sheet.add("its negative logarithm", "-log f", r"-\log f", losses[None], -exact_log_f[None],
              sheet.entries(f[None], lambda i, j: f"-log {sheet.number(f[j])}"), "nats",
              "Products become sums.")  # fmt: skip
    total = exact.total(exact_log_f)[()]
    nll = ours.nll(x, **arrays)
    sheet.add("negative log-likelihood", "-log L = sum_i (-log f_i)", r"-\log L = -\sum_i \log f_i", nll, -total,
              sheet.total(losses), "nats", "What training makes small.")  # fmt: skip
    if unit == "bits":
        in_bits(sheet, nll, -total, ours.nll(x, unit="bits", **arrays))
    sheet.add("likelihood", "L = exp(-nll), the product of all f", r"L = \prod_i f_i = e^{-\mathrm{nll}}", value,
              exact.exp(total),
              f"exp({sheet.number(-nll)})", "" if kind.density else "probability",
              "As a function of the parameters it compares them; no probability that they are right.")  # fmt: skip
    line = _line(kind, x, arrays, value, nll)
    told = "".join(f", {name}={name}" for name in parameters)
    return sheet.trace(
        f"{family} likelihood of {_count(wide)}", f"lastlayer.likelihood.{family}.likelihood(data{told})",
        {"data": given.plain(x)} | {name: given.plain(some) for name, some in arrays.items()}, value,
        "" if kind.density else "probability", line, check,
    )  # fmt: skip


def mle(
    family: str, data: Any, *, total_count: Any = None, num_classes: int | None = None, check: bool = True
) -> Trace:
    """Trace the parameters that make the data most probable.

    Args:
        family: "bernoulli", "binomial", "categorical", "poisson", "normal" or "laplace".
        data: the observations.
        total_count: for "binomial", the trials of each.
        num_classes: for "categorical", by default 1 + the largest index.
        check: run the line of PyTorch too.

    Returns:
        The trace; its last step and its result are the ``mle`` of the family in ``lastlayer.likelihood``.

    Raises:
        ValueError: an unknown family, too many observations; and as the family's ``mle``, like TypeError.

    Example:
        >>> trace = mle("normal", [1.0, 2.0, 6.0], check=False)
        >>> print(trace.steps[-1].labels, trace.result)
        ('loc', 'scale') [3.0, 2.160246899469287]
    """
    _family(family)
    more = {"total_count": total_count, "num_classes": num_classes}
    told = {name: each for name, each in more.items() if each is not None}
    x = given.array("data", data)
    if total_count is not None:
        told["total_count"] = given.array("total_count", total_count)
    found = getattr(families, family).mle(x, **told)
    sheet, wide = _begin(x)
    code, note = ESTIMATES[family](sheet, wide, found, told)
    result = np.concatenate([np.atleast_1d(each) for each in found])
    several = len(found) > 1 or np.ndim(found[0])
    names = {"data": x.astype(np.int64 if family == "categorical" else np.float64)}
    if total_count is not None:
        names["total_count"] = np.broadcast_to(told["total_count"], x.shape).astype(np.float64)
    arguments = "".join(f", {name}={name}" for name in told)
    return sheet.trace(
        f"{family} maximum-likelihood estimate from {_count(wide)}",
        f"lastlayer.likelihood.{family}.mle(data{arguments})",
        {"data": given.plain(x)} | {name: given.plain(each) for name, each in told.items()},
        result if several else result[0], "probability" if family in ("bernoulli", "binomial", "categorical") else "",
        Line(code, names, float(np.abs(wide).max(initial=1.0))), check, [note],
    )  # fmt: skip


def _share(sheet: Sheet, x: Array, found: Any, told: dict[str, Any]) -> tuple[str, str]:
    """The estimate of bernoulli and binomial: successes over trials."""
    n = np.broadcast_to(np.asarray(told.get("total_count", 1.0), np.float64).reshape(-1), x.shape)
    k, trials = x.sum(), n.sum()
    sheet.add("successes", "sum_i k_i", r"\sum_i k_i", k, exact.numbers(k), sheet.total(x))
    sheet.add("trials", "sum_i n_i", r"\sum_i n_i", trials, exact.numbers(trials), sheet.total(n))
    sheet.add("estimate", "p = sum k / sum n", r"\hat p = \frac{\sum_i k_i}{\sum_i n_i}", found.probs,
              exact.numbers(k) / exact.numbers(trials), f"{sheet.number(k)} / {sheet.number(trials)}",
              "probability")  # fmt: skip
    code = "data.sum() / total_count.sum()" if "total_count" in told else "data.mean()"
    return code, "At the maximum the slope of k log p + (n - k) log(1 - p) is 0: k / p = (n - k) / (1 - p)."


def _shares(sheet: Sheet, x: Array, found: Any, told: dict[str, Any]) -> tuple[str, str]:
    """The estimate of categorical: the share of each class."""
    counts = np.bincount(x.astype(np.int64), minlength=told.get("num_classes") or 0)
    names = [f"class {j}" for j in range(len(counts))]
    sheet.add("how often each class came", "N_j", "N_j", counts[None], None, labels=names)
    sheet.add("estimate", "p_j = N_j / N", r"\hat p_j = \frac{N_j}{N}", found.probs[None],
              exact.numbers(counts[None].astype(np.float64)) / len(x),
              sheet.entries(counts[None], lambda i, j: f"{counts[j]} / {len(x)}"), "probability",
              labels=names)  # fmt: skip
    return f"torch.bincount(data.flatten(), minlength={len(counts)}) / data.numel()", "A class that never came gets 0."


def _rate(sheet: Sheet, x: Array, found: Any, told: dict[str, Any]) -> tuple[str, str]:
    """The estimate of poisson: the mean."""
    sheet.add("estimate", "rate = sum_i k_i / N", r"\hat\lambda = \frac{1}{N} \sum_i k_i", found.rate,
              exact.total(exact.numbers(x))[()] / len(x), f"({sheet.total(x)}) / {len(x):,}")  # fmt: skip
    return "data.mean()", "At the maximum the slope of sum_i (k_i log rate - rate) is 0."


def _mean_and_deviation(sheet: Sheet, x: Array, found: Any, told: dict[str, Any]) -> tuple[str, str]:
    """The estimate of normal: the mean, and the standard deviation with divisor N."""
    wide = exact.numbers(x)
    mean = exact.total(wide)[()] / len(x)
    squares = (wide - mean) ** 2
    sheet.add(
        "mean",
        "loc = sum_i x_i / N",
        r"\hat\mu = \frac{1}{N} \sum_i x_i",
        found.loc,
        mean,
        f"({sheet.total(x)}) / {len(x):,}",
    )
    with np.errstate(all="ignore"):
        rounded = np.square(x - found.loc)
    sheet.add("squared deviations", "(x_i - loc)^2", r"(x_i - \hat\mu)^2", rounded[None], squares[None],
              sheet.entries(x[None], lambda i, j: f"({sheet.number(x[j])} - {sheet.minus(found.loc)})^2"))  # fmt: skip
    deviation = exact.sqrt(exact.total(squares)[()] / len(x))
    _write_estimate(sheet, found, [mean, deviation[()]], "scale = sqrt of their mean",
                    r"\hat\sigma = \sqrt{\frac{1}{N} \sum_i (x_i - \hat\mu)^2}",
                    f"{sheet.number(found.loc)}, sqrt(({sheet.total(rounded)}) / {len(x):,})")  # fmt: skip
    code = "torch.stack([data.mean(), data.std(correction=0)])"
    return code, "Divisor N maximises the likelihood; N - 1 removes the bias and does not."


def _median_and_deviation(sheet: Sheet, x: Array, found: Any, told: dict[str, Any]) -> tuple[str, str]:
    """The estimate of laplace: the median, and the mean absolute deviation from it."""
    wide = exact.numbers(np.sort(x))
    middle = (wide[(len(x) - 1) // 2] + wide[len(x) // 2]) / 2
    sizes = np.abs(exact.numbers(x) - middle)
    sheet.add(
        "median",
        "loc = median of x",
        r"\hat\mu = \mathrm{median}(x)",
        found.loc,
        middle,
        f"median of {sheet.total(x).replace(' + ', ', ')}",
    )
    with np.errstate(all="ignore"):
        rounded = np.abs(x - found.loc)
    sheet.add("absolute deviations", "|x_i - loc|", r"|x_i - \hat\mu|", rounded[None], sizes[None],
              sheet.entries(x[None], lambda i, j: f"|{sheet.number(x[j])} - {sheet.minus(found.loc)}|"))  # fmt: skip
    deviation = exact.total(sizes)[()] / len(x)
    _write_estimate(sheet, found, [middle, deviation], "scale = their mean",
                    r"\hat b = \frac{1}{N} \sum_i |x_i - \hat\mu|",
                    f"{sheet.number(found.loc)}, ({sheet.total(rounded)}) / {len(x):,}")  # fmt: skip
    code = "torch.stack([torch.quantile(data, 0.5), (data - torch.quantile(data, 0.5)).abs().mean()])"
    return code, "For an even number every point between the two in the middle is as good; loc is halfway."


def _write_estimate(sheet: Sheet, found: Any, exactly: list[Any], formula: str, latex: str, told: str) -> None:
    sheet.add(
        "estimate",
        f"loc; {formula}",
        latex,
        np.array([found])[:, :2],
        np.array([exactly], dtype=object),
        told,
        "",
        "",
        ["loc", "scale"],
    )


ESTIMATES = {
    "bernoulli": _share, "binomial": _share, "categorical": _shares, "poisson": _rate, "normal": _mean_and_deviation,
    "laplace": _median_and_deviation,
}  # fmt: skip


def _xlog(x: Any, p: Any) -> Any:
    return exact.times(x, exact.log(p))[()]


def _bernoulli(x: Any, probs: Any) -> Any:
    return _xlog(x, probs) + _xlog(1 - x, 1 - probs)


def _binomial(x: Any, total_count: Any, probs: Any) -> Any:
    choices = (exact.log_factorial(each)[()] for each in (total_count, x, total_count - x))
    n, k, rest = choices
    return n - k - rest + _xlog(x, probs) + _xlog(total_count - x, 1 - probs)


def _categorical(x: Any, probs: Any) -> Any:
    return exact.log(probs[int(x)])[()]


def _poisson(x: Any, rate: Any) -> Any:
    return _xlog(x, rate) - rate - exact.log_factorial(x)[()]


def _normal(x: Any, loc: Any, scale: Any) -> Any:
    return -(((x - loc) / scale) ** 2) / 2 - exact.mp.log(scale) - exact.mp.log(2 * exact.mp.pi) / 2


def _laplace(x: Any, loc: Any, scale: Any) -> Any:
    return -abs((x - loc) / scale) - exact.mp.log(2 * scale)


FAMILIES = {
    "bernoulli": Family(
        "f = p if x = 1, else 1 - p", r"f = p^x (1 - p)^{1 - x}", ("probs",), False,
        lambda n, x, probs: n(probs) if x else f"1 - {n(probs)}", _bernoulli, "D.Bernoulli(probs)",
    ),
    "binomial": Family(
        "f = C(n, k) p^k (1 - p)^(n - k)", r"f = \binom{n}{k} p^k (1 - p)^{n - k}", ("total_count", "probs"), False,
        lambda n, x, total_count,
        probs: f"C({n(total_count)}, {n(x)}) * {n(probs)}^{n(x)} * (1 - {n(probs)})^{n(total_count - x)}",
        _binomial, "D.Binomial(total_count, probs)",
    ),
    "categorical": Family(
        "f = p_x", "f = p_x", ("probs",), False, lambda n, x, probs: f"p_{int(x)}", _categorical,
        "D.Categorical(probs=probs)",
    ),
    "poisson": Family(
        "f = rate^k exp(-rate) / k!", r"f = \frac{\lambda^k e^{-\lambda}}{k!}", ("rate",), False,
        lambda n, x, rate: f"{n(rate)}^{n(x)} * exp(-{n(rate)}) / {n(x)}!", _poisson, "D.Poisson(rate)",
    ),
    "normal": Family(
        "f = exp(-r^2 / 2) / (scale sqrt(2 pi)), r = (x - loc) / scale",
        r"f = \frac{e^{-r^2 / 2}}{\sigma \sqrt{2 \pi}},\ r = \frac{x - \mu}{\sigma}", ("loc", "scale"), True,
        lambda n, x, loc, scale: f"exp(-(({n(x)} - {n(loc)}) / {n(scale)})^2 / 2) / ({n(scale)} * 2.5066)", _normal,
        "D.Normal(loc, scale)",
    ),
    "laplace": Family(
        "f = exp(-|r|) / (2 scale), r = (x - loc) / scale",
        r"f = \frac{e^{-|r|}}{2 b},\ r = \frac{x - \mu}{b}", ("loc", "scale"), True,
        lambda n, x, loc, scale: f"exp(-|{n(x)} - {n(loc)}| / {n(scale)}) / (2 * {n(scale)})", _laplace,
        "D.Laplace(loc, scale)",
    ),
}  # fmt: skip


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ValueError(f"family = {name!r} is not one of {', '.join(map(repr, FAMILIES))}")
    return FAMILIES[name]


def _begin(x: Array) -> tuple[Sheet, Array]:
    """Return a sheet with the observations on it, and them in float64, (N,)."""
    wide = x.astype(np.float64).reshape(-1)
    if not 1 <= len(wide) <= LIMIT:
        raise ValueError(f"data has {len(wide):,} observations, expected 1 to {LIMIT:,}")
    sheet = Sheet(wide, [f"x_{i}" for i in range(len(wide))])
    sheet.add("observations", "x", "x", wide[None], exact.numbers(wide[None]))
    return sheet, wide


def _per_observation(value: Array, x: Array, of_classes: bool) -> Array:
    """Return a parameter for each observation; if it is one of classes, a row of them."""
    wide = value.astype(np.float64)
    more = wide.shape[-1:] if of_classes else ()
    return np.broadcast_to(wide, (*x.shape, *more)).reshape(x.size, *more)


def _exactly(value: Any) -> Any:
    return exact.numbers(value)[()] if np.ndim(value) == 0 else exact.numbers(value)


def _count(x: Array) -> str:
    return f"{len(x):,} observation{'s' * (len(x) > 1)}"


def _line(kind: Family, x: Array, arrays: dict[str, Array], value: float, nll: float) -> Line:
    names = {"data": x} | arrays
    size = value * max(1.0, abs(nll)) if math.isfinite(value * nll) else 1.0
    return Line(
        f"{kind.torch}.log_prob(data).sum().exp()",
        {name: each.astype(np.float64) for name, each in names.items()},
        size,
    )
