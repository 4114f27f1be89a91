"""Traces of softmax and its kin: from logits to probabilities and their logarithms, and back.

Letters as in rows.py; x a logit of one class against another, p its probability.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lastlayer import functional
from lastlayer._arrays import Array
from lastlayer._validate import Unit, read_unit
from lastlayer.explain import exact, given
from lastlayer.explain.pytorch import Line
from lastlayer.explain.rows import Rows
from lastlayer.explain.sheet import Sheet
from lastlayer.explain.trace import Trace


def softmax(input: Any, *, check: bool = True) -> Trace:
    """Trace the probabilities p_j = exp(z_j) / sum_k exp(z_k).

    Args:
        input: logits, (V,) or rows of them (N, V): lists, an array or a tensor of any floating type, or integers.
        check: run the line of PyTorch too, where torch is installed. Importing torch takes a second.

    Returns:
        The trace; its last step and its result are ``lastlayer.softmax(input)``.

    Raises:
        TypeError, ValueError: as ``lastlayer.softmax``; ValueError for other shapes, an empty input, or too long a one.

    Example:
        >>> trace = softmax([1.2, 2.5, 0.9], check=False)
        >>> [step.name for step in trace.steps]
        ['logits', 'maximum', 'exp of the differences', 'their sum', 'probabilities']
        >>> [round(p, 4) for p in trace.result]
        [0.1848, 0.6782, 0.1369]
        >>> trace.steps[-1].exact[1]
        '0.67822897357574...'
    """
    z = given.read("input", input)
    value = functional.softmax(z)
    sheet, rows = Sheet(z), Rows(z)
    begin(sheet, rows)
    sheet.add(
        "probabilities", "p_j = e_j / s", r"p_j = \frac{e_j}{s}", rows.p, rows.exact_p,
        sheet.entries(rows.e, lambda i, j: f"{sheet.number(rows.e[i, j])} / {sheet.number(rows.s[i, 0])}"),
        "probability", "They sum to 1; the ratio of two is exp of the difference of their logits.",
    )  # fmt: skip
    line = Line("F.softmax(input, dim=-1)", {"input": z}, max(1.0, rows.spread))
    return sheet.trace(
        f"softmax of {sheet.of_rows()}", "lastlayer.softmax(input)", {"input": given.plain(z)}, value, "probability",
        line, check,
    )  # fmt: skip


def log_softmax(input: Any, *, unit: Unit = "nats", check: bool = True) -> Trace:
    """Trace the log-probabilities log p_j = z_j - log sum_k exp(z_k), beside the logarithms of softmax.

    Args:
        input: logits, (V,) or (N, V).
        unit: "nats", or "bits" for one more step.
        check: run the line of PyTorch too.

    Returns:
        The trace; its last step and its result are ``lastlayer.log_softmax(input)``, in bits divided by log 2.

    Raises:
        TypeError, ValueError: as ``lastlayer.log_softmax``; ValueError for other shapes or an unknown unit.

    Example:
        >>> import numpy as np
        >>> trace = log_softmax(np.float32([0, 120]), check=False)
        >>> naive, right = trace.steps[-2:]
        >>> print(naive.name, naive.value)
        naive: log of softmax [-inf, 0.0]
        >>> print(right.name, right.value[0], right.exact)
        log-probabilities -120.0 ['-120.0', '-7.6676480737219996e-53']
    """
    read_unit(unit)
    z = given.read("input", input)
    value = functional.log_softmax(z)
    sheet, rows = Sheet(z), Rows(z)
    begin(sheet, rows)
    rows.write_lse(sheet, "A soft maximum: at least the largest logit, at most log V above it.")
    sheet.add(
        "naive: log of softmax", "log(e_j / s)", r"\log\frac{e_j}{s}", rows.naive(), rows.exact_logp,
        sheet.entries(rows.e, lambda i, j: f"log({sheet.number(rows.e[i, j])} / {sheet.number(rows.s[i, 0])})"), "nats",
        rows.digits_lost(sheet) or "Here it does as well; digits go where p rounds to 0 or to 1.",
    )  # fmt: skip
    rows.write_logp(sheet, "At the maximum it is -log1p(sum of the other e): no digits go.")
    if unit == "bits":
        value = in_bits(sheet, value, rows.exact_logp)
    line = Line(f"F.log_softmax(input, dim=-1){bits(unit)}", {"input": z}, max(1.0, rows.spread))
    return sheet.trace(
        f"log-softmax of {sheet.of_rows()}", f"lastlayer.log_softmax(input){bits(unit)}", {"input": given.plain(z)},
        value, unit, line, check,
    )  # fmt: skip


def logsumexp(input: Any, *, check: bool = True) -> Trace:
    """Trace log sum_j exp(z_j) = m + log sum_j exp(z_j - m).

    Args:
        input: logits, (V,) or (N, V).
        check: run the line of PyTorch too.

    Returns:
        The trace; its last step and its result are ``lastlayer.logsumexp(input)``: float32 for 16-bit logits.

    Raises:
        TypeError, ValueError: as ``lastlayer.logsumexp``; ValueError for other shapes.

    Example:
        >>> logsumexp([1000.0, 1000.0], check=False).result
        1000.6931471805599
    """
    z = given.read("input", input)
    value = functional.logsumexp(z)
    sheet, rows = Sheet(z), Rows(z)
    begin(sheet, rows)
    rows.write_lse(sheet, "A soft maximum: at least the largest logit, at most log V above it.")
    return sheet.trace(
        f"log-sum-exp of {sheet.of_rows()}", "lastlayer.logsumexp(input)", {"input": given.plain(z)}, value, "",
        Line("torch.logsumexp(input, dim=-1)", {"input": z}, max(1.0, rows.spread)), check,
    )  # fmt: skip


def sigmoid(input: Any, *, check: bool = True) -> Trace:
    """Trace the probability p = 1 / (1 + exp(-x)) whose log-odds are x.

    Args:
        input: log-odds: a number, (V,) or (N, V), each for itself.
        check: run the line of PyTorch too.

    Returns:
        The trace; its last step and its result are ``lastlayer.sigmoid(input)``.

    Raises:
        TypeError, ValueError: as ``lastlayer.sigmoid``; ValueError for more dimensions.

    Example:
        >>> for step in sigmoid(1.5, check=False).steps:
        ...     print(step.name, round(step.value, 6))
        log-odds 1.5
        odds 4.481689
        probability 0.817574
    """
    x = given.elements("input", input)
    value = functional.sigmoid(x)
    sheet, z, wide = _elementwise(x)
    sheet.add("log-odds", "x", "x", z, wide, note="For two classes a logit is the log of their odds.")
    with np.errstate(all="ignore"):
        odds = np.asarray(np.exp(z))
    sheet.add(
        "odds", "o = exp x", "o = e^x", odds, exact.exp(wide), _told(sheet, z, lambda v: f"exp({sheet.number(v)})"),
        "odds", "How many times as probable as its opposite: 4 means 4 to 1.",
    )  # fmt: skip
    sheet.add(
        "probability", "p = o / (1 + o) = 1 / (1 + exp(-x))", r"p = \frac{1}{1 + e^{-x}}",
        functional.sigmoid(z), _sigmoid(wide), _told(sheet, z, lambda v: f"1 / (1 + exp({sheet.number(-v)}))"),
        "probability", "Softmax of the two logits x and 0.",
    )  # fmt: skip
    return sheet.trace(
        f"sigmoid of {_count(x)}", "lastlayer.sigmoid(input)", {"input": given.plain(x)}, value, "probability",
        Line("torch.sigmoid(input)", {"input": x}), check,
    )  # fmt: skip


def logit(input: Any, *, check: bool = True) -> Trace:
    """Trace the log-odds log(p / (1 - p)) of probabilities.

    Args:
        input: probabilities: a number, (V,) or (N, V), each for itself.
        check: run the line of PyTorch too.

    Returns:
        The trace; its last step and its result are ``lastlayer.logit(input)``. What is no probability gives NaN.

    Raises:
        TypeError, ValueError: as ``lastlayer.logit``; ValueError for more dimensions.

    Example:
        >>> for step in logit(0.8, check=False).steps:
        ...     print(step.name, round(step.value, 6))
        probability 0.8
        odds 4.0
        log-odds 1.386294
    """
    p = given.elements("input", input)
    value = functional.logit(p)
    sheet, z, wide = _elementwise(p)
    inside = (z.astype(np.float64) >= 0) & (z.astype(np.float64) <= 1)
    wide = exact.where(inside, wide, exact.mp.nan)
    odds = exact.where(wide == 1, exact.mp.inf, wide / exact.where(wide == 1, exact.mp.one, exact.mp.one - wide))
    with np.errstate(all="ignore"):
        rounded = np.asarray(np.where(inside, z / (1 - z), np.nan).astype(z.dtype))
    sheet.add("probability", "p", "p", z, exact.numbers(z), unit="probability")
    sheet.add(
        "odds", "o = p / (1 - p)", r"o = \frac{p}{1 - p}", rounded, odds,
        _told(sheet, z, lambda v: f"{sheet.number(v)} / (1 - {sheet.minus(v)})"), "odds",
        "How many times as probable as its opposite: 4 means 4 to 1.",
    )  # fmt: skip
    sheet.add(
        "log-odds", "x = log o", r"x = \log o", functional.logit(z), exact.log(odds),
        _told(sheet, rounded, lambda v: f"log {sheet.number(v)}"), "", "The logit: sigmoid leads back to p.",
    )  # fmt: skip
    return sheet.trace(
        f"logit of {_count(p)}", "lastlayer.logit(input)", {"input": given.plain(p)}, value, "",
        Line("torch.logit(input)", {"input": p}, _size_of_logit(p)), check,
    )  # fmt: skip


def begin(sheet: Sheet, rows: Rows) -> None:
    """Write down what all functions of logits begin with."""
    rows.write_logits(sheet)
    rows.write_maximum(sheet)
    rows.write_exp(sheet)
    rows.write_sum(sheet)


def in_bits(sheet: Sheet, nats: Any, exactly: Any, value: Any = None) -> Any:
    """Write down the step from nats to bits, and return the bits; value is the library's where it has them."""
    with np.errstate(all="ignore"):
        found = np.asarray(nats) / np.asarray(nats).dtype.type(np.log(2.0)) if value is None else value
    step = sheet.steps[-1]
    rounded = np.asarray(found)
    as_rows = rounded[None] if sheet.single and np.ndim(exactly) == np.ndim(found) + 1 else rounded
    sheet.add(
        "in bits", f"{step.formula.partition(' = ')[0]} / log 2", rf"{step.latex.partition(' = ')[0]} / \log 2",
        as_rows, np.asarray(exactly) / exact.mp.log(2), "divided by 0.6931", "bits",
        "One bit is one answer to a yes-or-no question; 1 nat is 1.4427 bits.",
    )  # fmt: skip
    return found


def bits(unit: Unit) -> str:
    """Return what is appended to a line of code to convert its nats."""
    return " / math.log(2)" if unit == "bits" else ""


def _elementwise(x: Array) -> tuple[Sheet, Array, Array]:
    """Return a sheet for numbers that are each for themselves, the numbers, and their exact values."""
    z = np.asarray(x if x.ndim == 0 else np.atleast_2d(x))
    sheet = Sheet(x, [f"entry {j}" for j in range(x.shape[-1])] if x.ndim else [])
    return sheet, z, exact.numbers(z)


def _told(sheet: Sheet, values: Array, tell: Any) -> str:
    if values.ndim == 0:
        return str(tell(values))
    return sheet.entries(values, lambda i, j: tell(values[i, j]))


def _count(x: Array) -> str:
    return "a number" if x.ndim == 0 else f"{x.size:,} number{'s' * (x.size > 1)}"


def _sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), by the exponential that is below 1."""
    small = exact.exp(exact.where(x > 0, -x, x))
    return np.asarray(exact.where(x > 0, exact.mp.one, small) / (small + exact.mp.one))


def _size_of_logit(p: Array) -> float:
    """Return by how much a rounding of 1 - p is magnified in log(1 - p)."""
    q = 1 - p.astype(np.float64)
    return float((1 / q[(q > 0) & (q <= 1)]).max(initial=1.0))
