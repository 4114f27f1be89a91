"""What softmax and the losses share: rows of logits, step by step, as plain NumPy computes them and exactly.

Exactly, the first largest entry of a row stays apart from the sum of the others, r:

    log sum exp z = m + log1p(r)      log p_j = (z_j - m) - log1p(r)      p_j = exp(z_j - m) / (1 + r)

so that nothing nearly equal is subtracted and sixty digits are enough for any row.

Letters as in functional.py, and m maximum, d = z - m, e = exp d, s sum of e.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from lastlayer import functional
from lastlayer._arrays import Array
from lastlayer.explain import exact
from lastlayer.explain.sheet import Sheet


class Rows:
    """Rows of logits (N, V); ``exact_`` names are exact, the others what their type makes of them."""

    def __init__(self, z: Array) -> None:
        self.given = z
        self.z = np.atleast_2d(z)

    @cached_property
    def m(self) -> Array:
        return np.asarray(self.z.max(-1, keepdims=True))

    @cached_property
    def d(self) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(self.z - self.m)

    @cached_property
    def e(self) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(np.exp(self.d))

    @cached_property
    def s(self) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(self.e.sum(-1, keepdims=True))

    @cached_property
    def lse(self) -> Array:
        return np.asarray(functional.logsumexp(self.z, keepdims=True))

    @cached_property
    def logp(self) -> Array:
        return np.asarray(functional.log_softmax(self.z))

    @cached_property
    def p(self) -> Array:
        return np.asarray(functional.softmax(self.z))

    @cached_property
    def is_top(self) -> Any:
        first = np.argmax(self.z.astype(np.float64), -1)[:, None]
        return np.arange(self.z.shape[1]) == first

    @cached_property
    def exact_z(self) -> Array:
        return exact.numbers(self.z)

    @cached_property
    def exact_m(self) -> Array:
        return exact.numbers(self.m)

    @cached_property
    def exact_d(self) -> Array:
        return np.asarray(self.exact_z - self.exact_m)

    @cached_property
    def exact_e(self) -> Array:
        return exact.exp(self.exact_d)

    @cached_property
    def rest(self) -> Array:
        """The sum of e over all but the first largest entry."""
        nan = exact.where(self.exact_d != self.exact_d, exact.mp.nan, exact.mp.zero)
        return exact.total(exact.where(self.is_top, nan, self.exact_e), -1)

    @cached_property
    def exact_s(self) -> Array:
        return np.asarray(self.rest + exact.mp.one)

    @cached_property
    def exact_log_s(self) -> Array:
        return exact.log1p(self.rest)

    @cached_property
    def exact_lse(self) -> Array:
        # The maximum of a row of nothing but -inf, or with +inf, is its log-sum-exp, though it has no probabilities.
        infinite = np.isinf(self.m.astype(np.float64))
        return exact.where(infinite, self.exact_m, self.exact_m + self.exact_log_s)

    @cached_property
    def exact_logp(self) -> Array:
        return np.asarray(self.exact_d - self.exact_log_s)

    @cached_property
    def exact_p(self) -> Array:
        return np.asarray(self.exact_e / self.exact_s)

    @cached_property
    def exact_q(self) -> Array:
        """1 - p_j, from the sum of the others."""
        return np.asarray(exact.where(self.is_top, self.rest, self.exact_s - self.exact_e) / self.exact_s)

    @cached_property
    def spread(self) -> float:
        """The largest difference between logits of a row that are finite, for the size of roundings."""
        d = self.d.astype(np.float64)
        return float(np.abs(d[np.isfinite(d)]).max(initial=0.0))

    def naive(self) -> Array:
        """Return log(softmax(z)) in the type of z."""
        with np.errstate(all="ignore"):
            return np.asarray(np.log(self.p))

    def digits_lost(self, sheet: Sheet) -> str:
        """Say what log(softmax(z)) would have given where that is worst."""
        naive = self.naive()
        lost = exact.ulp(naive, self.exact_logp)
        i, j = (int(each) for each in np.unravel_index(int(np.argmax(lost)), lost.shape))
        if lost[i, j] < 2:
            return ""
        told = sheet.number(float(naive[i, j]))
        return f"log(softmax(z)) gives {told} for {sheet.place(i, j)}, {_far(lost[i, j], sheet.dtype)}."

    def write_logits(self, sheet: Sheet) -> None:
        """Write the logits down."""
        sheet.add(
            "logits", "z", "z", self.z, self.exact_z, "", "",
            "Scores without a unit: only their differences mean something.",
        )  # fmt: skip

    def write_maximum(self, sheet: Sheet) -> None:
        """Write the maximum of each row down."""
        sheet.add(
            "maximum", "m = max_j z_j", r"m = \max_j z_j", self.m[:, 0], self.exact_m[:, 0],
            sheet.each_row(lambda i: f"max({_list(sheet, self.z[i : i + 1])})"), "", self._why_shift(sheet),
        )  # fmt: skip

    def write_exp(self, sheet: Sheet) -> None:
        """Write the exponentials of the differences down."""
        sheet.add(
            "exp of the differences", "e_j = exp(z_j - m)", r"e_j = e^{z_j - m}", self.e, self.exact_e,
            sheet.entries(self.z, lambda i, j: f"exp({sheet.number(self.z[i, j])} - {sheet.minus(self.m[i, 0])})"),
        )  # fmt: skip

    def write_sum(self, sheet: Sheet) -> None:
        """Write their sum down."""
        sheet.add("their sum", "s = sum_j e_j", r"s = \sum_j e_j", self.s[:, 0], self.exact_s[:, 0], sheet.sums(self.e))

    def write_lse(self, sheet: Sheet, note: str = "") -> None:
        """Write the log-sum-exp down."""
        sheet.add(
            "log-sum-exp", "L = m + log s", r"L = m + \log s", self.lse[:, 0], self.exact_lse[:, 0],
            sheet.each_row(lambda i: f"{sheet.number(self.m[i, 0])} + log {sheet.number(self.s[i, 0])}"), "", note,
        )  # fmt: skip

    def write_logp(self, sheet: Sheet, note: str = "") -> None:
        """Write the log-probabilities down."""
        sheet.add(
            "log-probabilities", "log p_j = z_j - L", r"\log p_j = z_j - L", self.logp, self.exact_logp,
            sheet.entries(self.z, lambda i, j: f"{sheet.number(self.z[i, j])} - {sheet.minus(self.lse[i, 0])}"), "nats",
            note,
        )  # fmt: skip

    def _why_shift(self, sheet: Sheet) -> str:
        """Say why the maximum is subtracted, and what happens to this row without."""
        with np.errstate(all="ignore"):
            sums = np.exp(self.z).sum(-1, dtype=self.z.dtype).astype(np.float64)
        fine = np.isfinite(self.m[:, 0].astype(np.float64))
        if (fine & ~np.isfinite(sums)).any():
            top = sheet.number(self.m[fine & ~np.isfinite(sums), 0][0])
            return f"It is subtracted first: the sum of exp z, exp({top}) included, is beyond {sheet.dtype}."
        if (fine & (sums == 0)).any():
            return f"It is subtracted first: without that, every exp z of a row is 0 in {sheet.dtype}."
        return "It is subtracted first: p stays the same, and exp cannot overflow."


def _list(sheet: Sheet, row: Array) -> str:
    kept = [sheet.number(x) for x in row[0, : 3 if row.shape[1] > 6 else 6]]
    return ", ".join([*kept, *(["..."] if row.shape[1] > 6 else [])])


def _far(ulp: float, dtype: str) -> str:
    if not np.isfinite(ulp):
        return "infinitely far off"
    return f"{ulp:,.0f} ulp off" if ulp < 2.0 ** (exact.FORMATS[dtype][0] - 1) else "with no digit right"
