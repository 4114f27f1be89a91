"""The steps of a cross-entropy, from the logits to the loss of each row, their mean, and the gradient.

Every loss of a row is a sum over classes, l = sum_j u_j (-log p_j): u is 1 at the target and 0 elsewhere, or what
smoothing, class weights or a target distribution make of that; the gradient is c (p_j sum_k u_k - u_j), c = 1 / N for
the mean. Letters as in rows.py and reduction.py, and t target distribution, e label smoothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lastlayer import functional, information
from lastlayer._arrays import Array, real
from lastlayer._losses import times
from lastlayer.explain import exact
from lastlayer.explain.logits import begin
from lastlayer.explain.reduction import SURPRISE, Targets, of_rows, products, write_sum
from lastlayer.explain.rows import Rows
from lastlayer.explain.sheet import Sheet


@dataclass
class Case:
    """What a cross-entropy is asked about."""

    sheet: Sheet
    rows: Rows
    target: Array
    weight: Array | None
    ignore_index: int
    reduction: str
    smoothing: float

    def losses(self, weight: Array | None, smoothing: float) -> Array:
        """Return the library's losses of the rows."""
        z, loss = self.rows.given, functional.cross_entropy
        return of_rows(loss, z, self.target, weight, self.ignore_index, label_smoothing=smoothing)

    @property
    def exact_w(self) -> Array:
        """The class weights."""
        classes = self.rows.z.shape[1]
        return exact.numbers(np.ones(classes) if self.weight is None else real("weight", self.weight))


def write_loss(case: Case, value: Any) -> tuple[Any, Array, Any]:
    """Write all steps down to the loss; return c, u and the loss, exactly."""
    begin(case.sheet, case.rows)
    case.rows.write_lse(case.sheet)
    case.rows.write_logp(case.sheet, case.rows.digits_lost(case.sheet))
    return (_write_indices if case.target.dtype.kind in "iu" else _write_probabilities)(case, value)


def _write_indices(case: Case, value: Any) -> tuple[Any, Array, Any]:
    sheet, rows, e = case.sheet, case.rows, exact.mp.mpf(case.smoothing)
    targets = Targets(sheet, np.atleast_1d(case.target), case.ignore_index, case.weight, case.reduction)
    targets.write_gathered(rows.logp, rows.exact_logp)
    plain = case.losses(None, 0.0)
    losses, exactly = targets.write_surprise(plain, rows.exact_logp, _naive_loss(targets, rows) or SURPRISE)
    shares = targets.exact_weights
    if case.weight is not None:
        targets.write_weights()
        exactly = exact.times(shares, exactly)
    if case.smoothing:
        spread = _write_mean_surprise(case, targets)
        exactly = exact.times(exact.mp.one - e, exactly) + exact.times(e, spread)
    if case.weight is not None or case.smoothing:
        losses = case.losses(case.weight, case.smoothing)
        _write_row_losses(case, targets, plain, losses, exactly)
    reduced = targets.write_reduced(value, losses, exactly)
    hot = (np.arange(rows.z.shape[1]) == targets.safe[:, None]) & targets.keep[:, None]
    u = exact.where(hot, ((exact.mp.one - e) * shares)[:, None], exact.mp.zero)
    if case.smoothing:
        u = u + exact.where(targets.keep[:, None], e * case.exact_w / rows.z.shape[1], exact.mp.zero)
    return _slope(case, targets.exact_total), u, reduced


def _naive_loss(targets: Targets, rows: Rows) -> str:
    """Say what logsumexp(z) - z_y would have given where that is worst."""
    with np.errstate(all="ignore"):
        naive = rows.lse[:, 0] - targets.gather(rows.z, 0).astype(rows.lse.dtype)
    lost = np.where(targets.keep, exact.ulp(naive, -targets.gather(rows.exact_logp, exact.mp.zero)), 0)
    i = int(np.argmax(lost))
    if lost[i] < 8:
        return ""
    sheet = targets.sheet
    return f"logsumexp(z) - z_y gives {sheet.number(naive[i])}{'' if sheet.single else f' in row {i}'}: digits lost."


def _write_mean_surprise(case: Case, targets: Targets) -> Array:
    """Write down what smoothing adds: the mean surprise over all classes; return it exactly."""
    sheet, rows, classes = case.sheet, case.rows, case.rows.z.shape[1]
    weighted = case.weight is not None
    terms = exact.times(case.exact_w, -rows.exact_logp)
    exactly = exact.where(targets.keep, exact.total(terms, -1)[:, 0] / classes, exact.mp.zero)

    def told(i: int) -> str:
        if not targets.keep[i]:
            return "ignored"
        w = [f"{sheet.number(x)} * " if weighted else "" for x in case.exact_w]
        entries = [w[j] + sheet.minus(-rows.logp[i, j]) for j in range(min(classes, 6))]
        return f"({' + '.join(entries)}{' + ...' if classes > 6 else ''}) / {classes:,}"

    sheet.add(
        "mean surprise of all classes", f"v = sum_j {'w_j ' * weighted}(-log p_j) / V",
        rf"v = -\frac{{1}}{{V}} \sum_j {'w_j ' * weighted}\log p_j", case.losses(case.weight, 1.0), exactly,
        sheet.each_row(told), "nats",
        "What label smoothing mixes in: the loss if every class were as true as any other.",
    )  # fmt: skip
    return exactly


def _write_row_losses(case: Case, targets: Targets, plain: Array, losses: Array, exactly: Array) -> None:
    """Write the losses of the rows down, weights and smoothing included."""
    sheet, e, weighted = case.sheet, case.smoothing, case.weight is not None
    if not e:
        told = products(sheet, targets.weights, plain)
        sheet.add("losses of the rows", "w_y l", "w_y l", losses, exactly, told, "nats")
        return
    spread, kept = case.losses(case.weight, 1.0), sheet.number(1 - e)

    def row(i: int) -> str:
        w = f" * {sheet.number(targets.weights[i])}" if weighted else ""
        return f"{kept}{w} * {sheet.minus(plain[i])} + {sheet.number(e)} * {sheet.minus(spread[i])}"

    formula = f"(1 - e) {'w_y ' * weighted}l + e v"
    sheet.add(
        "losses of the rows", formula, formula.replace("e", r"\varepsilon"), losses, exactly, sheet.each_row(row),
        "nats",
        f"Label smoothing e = {sheet.number(e)}.",
    )  # fmt: skip


def _write_probabilities(case: Case, value: Any) -> tuple[Any, Array, Any]:
    sheet, rows, e = case.sheet, case.rows, exact.mp.mpf(case.smoothing)
    t = np.atleast_2d(real("target", case.target))
    u, exact_u = t, exact.numbers(t)
    sheet.add("target distribution", "t", "t", t, exact_u, "", "probability", "")
    if case.weight is not None or case.smoothing:
        w, classes = real("weight", np.ones(t.shape[1]) if case.weight is None else case.weight), t.shape[1]
        u = (1 - case.smoothing) * w.astype(np.float64) * t + case.smoothing / classes * w.astype(np.float64)
        exact_u = np.asarray(case.exact_w * ((exact.mp.one - e) * exact_u + e / classes))
        sheet.add(
            "with smoothing and weights", "u_j = w_j ((1 - e) t_j + e / V)",
            r"u_j = w_j \left((1 - \varepsilon) t_j + \frac{\varepsilon}{V}\right)", u, exact_u,
        )  # fmt: skip
    surprise = np.asarray(information.surprisal(logits=rows.z))
    sheet.add("surprise of each class", "-log p_j", r"-\log p_j", surprise, -rows.exact_logp, "", "nats", SURPRISE)
    terms, exact_terms = (
        times(u.astype(np.float64), surprise).astype(surprise.dtype),
        exact.times(exact_u, -rows.exact_logp),
    )
    sheet.add(
        "times what is true", "u_j (-log p_j)", r"-u_j \log p_j", terms, exact_terms,
        sheet.entries(u, lambda i, j: f"{sheet.number(u[i, j])} * {sheet.minus(surprise[i, j])}"), "nats",
        "A class that the target rules out counts for nothing.",
    )  # fmt: skip
    losses, exactly = case.losses(case.weight, case.smoothing), exact.total(exact_terms, -1)[:, 0]
    sheet.add(
        "losses of the rows", "l = sum_j u_j (-log p_j)", r"l = -\sum_j u_j \log p_j", losses, exactly,
        sheet.sums(terms),
        "nats", "",
    )  # fmt: skip
    count = exact.mp.mpf(len(exactly))
    if case.reduction == "sum":
        return exact.mp.one, exact_u, write_sum(sheet, value, losses, exactly)
    if case.reduction == "none":
        return exact.mp.one, exact_u, exactly
    mean = exact.total(exactly)[()] / count
    if not sheet.single:
        sheet.add(
            "mean", "sum_i l_i / N", r"\frac{1}{N} \sum_i l_i", value, mean,
            f"({sheet.total(losses)}) / {len(exactly):,}", "nats",
            "Over the number of rows, whatever their weights." if case.weight is not None else "",
        )  # fmt: skip
    return exact.mp.one / count, exact_u, mean


def _slope(case: Case, total: Any) -> Any:
    """Return the derivative of the result by the loss of a row; of a mean over no rows it is 0, as the library's."""
    if case.reduction != "mean":
        return exact.mp.one
    return exact.mp.one / total if total else exact.mp.zero


def write_gradient(case: Case, value: Array, slope: Any, u: Array) -> None:
    """Write c (p_j sum_k u_k - u_j) down; exactly, with 1 - p_j from the others, so that no digits go."""
    sheet, rows = case.sheet, case.rows
    all_u, hot = exact.total(u, -1), np.nonzero(u)
    exactly = exact.times(slope * all_u, rows.exact_p)
    less = exact.times((all_u - u)[hot], rows.exact_p[hot]) - u[hot] * rows.exact_q[hot]
    exactly[hot] = exact.times(slope, less)
    plain = case.weight is None and not case.smoothing
    formula, latex = ("p_j - y_j", "p_j - y_j") if plain else ("p_j sum_k u_k - u_j", r"p_j \sum_k u_k - u_j")

    def told(i: int, j: int) -> str:
        p, y = sheet.number(rows.p[i, j]), sheet.minus(u[i, j])
        difference = f"{p} - {y}" if plain else f"{p} * {sheet.number(all_u[i, 0])} - {y}"
        return difference if slope == 1 else f"({difference}) / {sheet.number(1 / slope)}" if slope else "0"

    divided = case.reduction == "mean" and not (sheet.single and case.weight is None)
    below = "N" if case.weight is None or case.target.dtype.kind not in "iu" else "sum_i w_y"
    sheet.add(
        "gradient", f"({formula}) / {below}" if divided else formula,
        rf"\frac{{{latex}}}{{{_latex(below)}}}" if divided else latex,
        np.atleast_2d(value), exactly, sheet.entries(rows.z, told), "",
        "Probability minus truth: a step against it raises the target's logit and lowers the others."
        if plain else "u is 1 at the target, or what smoothing, weights or a distribution make of it.",
    )  # fmt: skip


def _latex(below: str) -> str:
    return below.replace("sum_i w_y", r"\sum_i w_{y_i}")
