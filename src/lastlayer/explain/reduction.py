"""What the losses share: the target's entries, class weights, and from the losses of the rows to one number.

Letters: l loss of a row, w_y weight of its target; N rows, those that are ignored left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lastlayer._arrays import Array, real
from lastlayer.explain import exact
from lastlayer.explain.sheet import Sheet

SURPRISE = "The surprise: 0 for what was certain, without bound for the impossible."


@dataclass
class Targets:
    """Class indices y (N,), and what the mean does with their rows."""

    sheet: Sheet
    y: Array
    ignore_index: int
    weight: Array | None
    reduction: str

    @cached_property
    def keep(self) -> Array:
        return np.asarray(self.y != self.ignore_index)

    @cached_property
    def safe(self) -> Array:
        return np.where(self.keep, self.y, 0)

    @cached_property
    def weights(self) -> Array:
        """Each row's weight, 0 where it is ignored."""
        return np.asarray(np.where(self.keep, self._w[self.safe], 0).astype(self._w.dtype))

    @cached_property
    def exact_weights(self) -> Array:
        return exact.numbers(self.weights) if self.weight is not None else exact.numbers(self.keep.astype(np.float64))

    @cached_property
    def exact_total(self) -> Any:
        """What the mean divides by."""
        return exact.total(self.exact_weights)[()]

    @property
    def _w(self) -> Array:
        assert self.weight is not None
        return real("weight", self.weight)

    def gather(self, rows: Array, other: Any) -> Array:
        """Return each row's entry at its target, and something other where it is ignored."""
        found = rows[np.arange(len(rows)), self.safe]
        return np.asarray(np.where(self.keep, found, np.asarray(other, dtype=rows.dtype)))

    def write_gathered(self, logp: Array, exact_logp: Array) -> None:
        """Write the targets' log-probabilities down."""
        self.sheet.add(
            "those of the targets", "log p_y", r"\log p_y", self.gather(logp, 0),
            self.gather(exact_logp, exact.mp.zero),
            self.sheet.each_row(lambda i: f"log p_{self.y[i]}" if self.keep[i] else "ignored"), "nats", self.ignored(),
        )  # fmt: skip

    def write_surprise(self, losses: Array, exact_logp: Array, note: str) -> tuple[Array, Array]:
        """Write the negatives of these down, which the library computes anew; return them, rounded and exact."""
        exactly = np.asarray(-self.gather(exact_logp, exact.mp.zero))
        self.sheet.add(
            "negative: surprise", "l = -log p_y", r"l = -\log p_y", losses, exactly,
            self.sheet.each_row(lambda i: f"-{self.sheet.minus(-losses[i])}" if self.keep[i] else "ignored"), "nats",
            note,
        )  # fmt: skip
        return losses, exactly

    def ignored(self) -> str:
        """Say which rows are ignored."""
        rows = np.flatnonzero(~self.keep)
        if not len(rows):
            return ""
        if self.sheet.single:
            return f"The target is {self.ignore_index}, which is ignored: no row counts."
        told = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        return f"Ignored, so they count for nothing: row{'s' * (len(rows) > 1)} {told} (target {self.ignore_index})."

    def write_weights(self) -> None:
        """Write the weights of the targets down."""
        self.sheet.add(
            "weights of the targets", "w_y", "w_y", self.weights, self.exact_weights,
            self.sheet.each_row(lambda i: f"w_{self.y[i]}" if self.keep[i] else "ignored"), "",
            "How much a row counts, by the class of its target.",
        )  # fmt: skip

    def write_reduced(self, value: Any, losses: Array, exactly: Array) -> Any:
        """Write the mean or the sum of the losses of rows down, unless nothing is left to do; return it exactly."""
        if self.reduction == "none":
            return exactly
        if self.reduction == "sum":
            return write_sum(self.sheet, value, losses, exactly)
        total = exact.total(exactly)[()]
        mean = total / self.exact_total if self.exact_total else exact.mp.nan
        if self.sheet.single and self.weight is None and self.keep.all():
            return mean
        counted = int(self.keep.sum())
        if self.weight is None:
            told, over = f"{counted:,}", f"Over the {counted:,} row{'s' * (counted != 1)} that count"
            over = f"{over}; padding does not." if counted < len(self.keep) else ""
        else:
            told, over = self.sheet.number(self.exact_total), "Over the sum of the weights, not the number of rows."
        over = over if counted else "Over no rows: 0 / 0 is not a number."
        name = "mean" if self.weight is None else "weighted mean"
        below = "N" if self.weight is None else r"\sum_i w_{y_i}"
        self.sheet.add(
            name, "sum_i l_i / N" if self.weight is None else "sum_i l_i / sum_i w_y",
            rf"\frac{{\sum_i l_i}}{{{below}}}",
            value, mean, f"({self.sheet.total(losses)}) / {told}", "nats", over,
        )  # fmt: skip
        return mean


def write_sum(sheet: Sheet, value: Any, losses: Array, exactly: Array) -> Any:
    """Write the sum of the losses of rows down, unless there is one row; return it exactly."""
    total = exact.total(exactly)[()]
    if not sheet.single:
        sheet.add("sum", "sum_i l_i", r"\sum_i l_i", value, total, sheet.total(losses), "nats")
    return total


def arguments(**options: Any) -> str:
    """Return keyword arguments as code, those left out that have their default."""
    defaults = {"weight": None, "ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0}
    told = (
        f", {name}={'weight' if name == 'weight' else repr(value)}"
        for name, value in options.items()
        if value is not defaults[name] and (name == "weight" or value != defaults[name])
    )
    return "".join(told)


def half(sheet: Sheet) -> str:
    """Say what type losses of 16-bit numbers have."""
    return f"Losses of {sheet.dtype} numbers are kept in float32." if sheet.dtype in ("float16", "bfloat16") else ""


def of_rows(loss: Any, x: Array, target: Array, weight: Array | None, ignore_index: int, **more: Any) -> Array:
    """Return the library's losses of the rows, (N,)."""
    return np.atleast_1d(loss(x, target, weight, ignore_index=ignore_index, reduction="none", **more))


def products(sheet: Sheet, weights: Array, losses: Array) -> str:
    return sheet.each_row(lambda i: f"{sheet.number(weights[i])} * {sheet.minus(losses[i])}")
