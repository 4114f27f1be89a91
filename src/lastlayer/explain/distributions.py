"""Traces of quantities of information: entropy, cross-entropy between distributions, divergence.

All three are means of surprises, each class counted as often as p says. Letters: p true, q believed probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lastlayer import information
from lastlayer._arrays import Array
from lastlayer._losses import times
from lastlayer._validate import Unit
from lastlayer.explain import exact, given
from lastlayer.explain.logits import begin, bits, in_bits
from lastlayer.explain.pytorch import Line
from lastlayer.explain.rows import Rows
from lastlayer.explain.sheet import Sheet
from lastlayer.explain.trace import Trace


def entropy(probs: Any = None, *, logits: Any = None, unit: Unit = "nats", check: bool = True) -> Trace:
    """Trace the entropy H = -sum_j p_j log p_j, the mean surprise of a draw.

    Args:
        probs: a distribution (V,), or rows of them (N, V).
        logits: logits instead.
        unit: "nats", or "bits" for one more step.
        check: run the line of PyTorch too, where torch is installed. Importing torch takes a second.

    Returns:
        The trace; its last step and its result are ``lastlayer.entropy(...)``.

    Raises:
        TypeError, ValueError: as ``lastlayer.entropy``; ValueError for other shapes.

    Example:
        >>> trace = entropy([0.5, 0.25, 0.25], unit="bits", check=False)
        >>> print(trace.steps[-2].substituted, "nats;", trace.result, "bits")
        0.3466 + 0.3466 + 0.3466 nats; 1.5 bits
    """
    p = None if probs is None else given.read("probs", probs)
    z = None if logits is None else given.read("logits", logits)
    value = information.entropy(p, logits=z, unit=unit)
    if p is not None:
        sheet, rounded, exactly = Sheet(p), np.atleast_2d(p), exact.numbers(np.atleast_2d(p))
        sheet.add("probabilities", "p", "p", rounded, exactly, unit="probability")
        exact_surprise, name, names = -exact.log(exactly), "probs", {"probs": p}
        line = Line(f"torch.special.entr(probs).sum(-1){bits(unit)}", {"probs": p})
        surprise = np.asarray(information.surprisal(rounded))
    else:
        assert z is not None
        rows, sheet = Rows(z), Sheet(z)
        begin(sheet, rows)
        rows.write_lse(sheet)
        rounded, exactly, exact_surprise = rows.p, rows.exact_p, -rows.exact_logp
        sheet.add("probabilities", "p_j = e_j / s", r"p_j = \frac{e_j}{s}", rounded, exactly, "", "probability")
        name, names = "logits", {"logits": z}
        line = Line(f"D.Categorical(logits=logits).entropy(){bits(unit)}", names, max(1.0, rows.spread))
        surprise = np.asarray(information.surprisal(logits=rows.z))
    sheet.add(
        "surprise of each class", "-log p_j", r"-\log p_j", surprise, exact_surprise,
        sheet.entries(rounded, lambda i, j: f"-log {sheet.number(rounded[i, j])}"), "nats",
        "0 for what is certain, without bound for the impossible.",
    )  # fmt: skip
    nats = information.entropy(p, logits=z)
    exact_nats = _write_mean(sheet, "entropy", "H = sum_j p_j (-log p_j)", r"H = -\sum_j p_j \log p_j", rounded,
                             surprise,
                             exactly, exact_surprise, nats,
                             "As often as a class comes, so much does it count.")  # fmt: skip
    if unit == "bits":
        in_bits(sheet, nats, exact_nats, value)
    argument = "probs" if name == "probs" else "logits=logits"
    told = f"lastlayer.entropy({argument}{_unit(unit)})"
    inputs = {key: given.plain(each) for key, each in names.items()}
    return sheet.trace(f"entropy of {sheet.of_rows()}", told, inputs, value, unit, line, check)


def cross_entropy_between(p: Any, q: Any, *, unit: Unit = "nats", check: bool = True) -> Trace:
    """Trace H(p, q) = -sum_j p_j log q_j, the mean surprise of who believes q where p is true.

    Args:
        p: the true distribution (V,), or rows of them (N, V).
        q: the believed one, in the shape of p.
        unit: "nats", or "bits" for one more step.
        check: run the line of PyTorch too.

    Returns:
        The trace; its last step and its result are ``lastlayer.information.cross_entropy(p, q)``.

    Raises:
        TypeError, ValueError: as ``lastlayer.information.cross_entropy``; ValueError for other shapes.

    Example:
        >>> round(cross_entropy_between([0.5, 0.5], [0.25, 0.75], unit="bits", check=False).result, 6)
        1.207519
    """
    a, b = given.read("p", p), given.read("q", q)
    value = information.cross_entropy(a, b, unit=unit)
    sheet, (p2, q2), (exact_p, exact_q) = _pair(a, b)
    surprise = np.asarray(information.surprisal(q2))
    sheet.add(
        "surprise of who believes q", "-log q_j", r"-\log q_j", surprise, -exact.log(exact_q),
        sheet.entries(q2, lambda i, j: f"-log {sheet.number(q2[i, j])}"), "nats",
    )  # fmt: skip
    nats = information.cross_entropy(a, b)
    least = f"Never below H(p) = {_numbers(sheet, information.entropy(a))}: nobody is surprised less than who knows p."
    exact_nats = _write_mean(sheet, "cross-entropy", "H(p, q) = sum_j p_j (-log q_j)",
                             r"H(p, q) = -\sum_j p_j \log q_j",
                             p2, surprise, exact_p, -exact.log(exact_q), nats, least)  # fmt: skip
    if unit == "bits":
        in_bits(sheet, nats, exact_nats, value)
    line = Line(f"-torch.xlogy(p, q).sum(-1){bits(unit)}", _alike(a, b), 1.0)
    return sheet.trace(
        f"cross-entropy between distributions, {sheet.of_rows()}",
        f"lastlayer.information.cross_entropy(p, q{_unit(unit)})",
        {"p": given.plain(a), "q": given.plain(b)}, value, unit, line, check,
    )  # fmt: skip


def kl_divergence(p: Any, q: Any, *, unit: Unit = "nats", check: bool = True) -> Trace:
    """Trace D(p || q) = sum_j p_j log(p_j / q_j), what believing q costs.

    Args:
        p: the true distribution (V,), or rows of them (N, V).
        q: the believed one, in the shape of p.
        unit: "nats", or "bits" for one more step.
        check: run the line of PyTorch too.

    Returns:
        The trace; its last step and its result are ``lastlayer.information.kl_divergence(p, q)``. Exactly it is the sum
        of p_j log(p_j / q_j) + q_j - p_j, which is the same where both sum to 1, as rounded probabilities nearly do.

    Raises:
        TypeError, ValueError: as ``lastlayer.information.kl_divergence``; ValueError for other shapes.

    Example:
        >>> trace = kl_divergence([0.5, 0.5], [0.25, 0.75], check=False)
        >>> print(trace.steps[-1].substituted, "=", round(trace.result, 4))
        0.3466 + (-0.2027) = 0.1438
    """
    a, b = given.read("p", p), given.read("q", q)
    value = information.kl_divergence(a, b, unit=unit)
    sheet, (p2, q2), (exact_p, exact_q) = _pair(a, b)
    with np.errstate(all="ignore"):
        extra = np.asarray(information.surprisal(q2) - information.surprisal(p2))
    exact_extra = np.asarray(exact.log(exact_p) - exact.log(exact_q))
    sheet.add(
        "extra surprise", "log(p_j / q_j) = -log q_j - (-log p_j)", r"\log\frac{p_j}{q_j}", extra, exact_extra,
        sheet.entries(q2, lambda i, j: f"log({sheet.number(p2[i, j])} / {sheet.number(q2[i, j])})"), "nats",
        "What q's surprise has over p's; below 0 where q promises more than comes.",
    )  # fmt: skip
    nats = information.kl_divergence(a, b)
    difference = f"{_numbers(sheet, information.cross_entropy(a, b))} - {_numbers(sheet, information.entropy(a))}"
    more = exact.total(exact_q - exact_p, -1)[:, 0]
    exact_nats = _write_mean(sheet, "divergence", "D = sum_j p_j log(p_j / q_j)", r"D = \sum_j p_j \log\frac{p_j}{q_j}",
                             p2, extra, exact_p, exact_extra, nats, f"H(p, q) - H(p) = {difference}; never below 0.",
                             more)  # fmt: skip
    if unit == "bits":
        in_bits(sheet, nats, exact_nats, value)
    line = Line(f"F.kl_div(q.log(), p, reduction='none').sum(-1){bits(unit)}", _alike(a, b), 1.0)
    return sheet.trace(
        f"divergence of {sheet.of_rows()}", f"lastlayer.information.kl_divergence(p, q{_unit(unit)})",
        {"p": given.plain(a), "q": given.plain(b)}, value, unit, line, check,
    )  # fmt: skip


def _pair(p: Array, q: Array) -> tuple[Sheet, tuple[Array, Array], tuple[Array, Array]]:
    """Return a sheet with both distributions on it, and both of them in rows, rounded and exact."""
    sheet, rows = Sheet(p), (np.atleast_2d(p), np.atleast_2d(q))
    exactly = exact.numbers(rows[0]), exact.numbers(rows[1])
    sheet.add("what is true", "p", "p", rows[0], exactly[0], unit="probability")
    sheet.add("what is believed", "q", "q", rows[1], exactly[1], unit="probability")
    return sheet, rows, exactly


def _write_mean(
    sheet: Sheet, name: str, formula: str, latex: str, p: Array, surprise: Array, exact_p: Array, exact_surprise: Array,
    value: Any, note: str, more: Any = 0,
) -> Any:  # fmt: skip
    """Write p_j times a surprise down, and the sum of that; return the sum exactly."""
    terms, exact_terms = (
        times(p.astype(np.float64), surprise).astype(surprise.dtype),
        exact.times(exact_p, exact_surprise),
    )
    sign, inside = "-" if r"-\sum" in latex else "", latex.partition(r"\sum_j ")[2]
    sheet.add(
        "times how often it comes", formula.partition("sum_j ")[2], sign + inside, terms, exact_terms,
        sheet.entries(p, lambda i, j: f"{sheet.number(p[i, j])} * {sheet.minus(surprise[i, j])}"), "nats",
    )  # fmt: skip
    exactly = exact.total(exact_terms, -1)[:, 0] + more
    sheet.add(name, formula, latex, np.atleast_1d(value), exactly, sheet.sums(terms), "nats", note)
    return exactly


def _numbers(sheet: Sheet, values: Any) -> str:
    return (
        sheet.number(values)
        if np.ndim(values) == 0
        else f"[{', '.join(sheet.number(x) for x in values[:3])}{', ...' * (len(values) > 3)}]"
    )


def _unit(unit: Unit) -> str:
    return ', unit="bits"' if unit == "bits" else ""


def _alike(p: Array, q: Array) -> dict[str, Array]:
    """Return both in one type, which PyTorch wants."""
    wider = p.dtype if p.dtype.itemsize >= q.dtype.itemsize else q.dtype
    return {"p": p.astype(wider), "q": q.astype(wider)}
