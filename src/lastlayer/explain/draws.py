"""Traces of inference: temperature, truncation, and a draw from what is left.

Draws are computed in float64 whatever the type of the logits, so the steps after these are too. Letters as in rows.py,
T temperature, u uniform.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

import lastlayer
from lastlayer import _draw_arguments, functional
from lastlayer._arrays import Array
from lastlayer._draws import Rules
from lastlayer._draws import truncate as _truncate
from lastlayer.explain import exact, given
from lastlayer.explain.pytorch import Line
from lastlayer.explain.rows import Rows
from lastlayer.explain.sheet import Sheet
from lastlayer.explain.trace import Trace

FILTERS = {
    "top_k": ("keep the k largest", "the {} largest", "Of equal logits the lower class stays."),
    "top_p": ("keep the likeliest, together p", "as few as have together {}", "The one that reaches p stays too."),
    "min_p": ("keep those near the likeliest", "p_j >= {} * max p", "At least the likeliest stays."),
}  # fmt: skip


def temperature(input: Any, temperature: float, *, check: bool = True) -> Trace:
    """Trace softmax(z / T).

    Args:
        input: logits, (V,) or (N, V).
        temperature: T >= 0: below 1 it sharpens, above 1 it levels; 0 is argmax.
        check: run the line of PyTorch too, where torch is installed. Importing torch takes a second.

    Returns:
        The trace. Its last step and its result are ``lastlayer.softmax((z - max z) / T)``, z - max z over T rounded
        once; at T = 0 a row with 1 at ``lastlayer.argmax``.

    Raises:
        TypeError, ValueError: as ``lastlayer.softmax``, and as ``lastlayer.categorical`` for the temperature.

    Example:
        >>> [round(p, 4) for p in temperature([1.2, 2.5, 0.9], 0.5, check=False).result]
        [0.0666, 0.8968, 0.0366]
    """
    z = given.read("input", input)
    T = float(_draw_arguments.per_row("temperature", temperature, ())[0])
    sheet, rows = Sheet(z), Rows(z)
    inputs = {"input": given.plain(z), "temperature": T}
    rows.write_logits(sheet)
    title = f"softmax of {sheet.of_rows()} at temperature {sheet.number(T)}"
    if T == 0:
        top = functional.argmax(z)
        hot = (np.arange(z.shape[-1]) == np.asarray(top)[..., None]).astype(z.dtype)
        sheet.add(
            "largest",
            "argmax_j z_j",
            r"\mathrm{argmax}_j\, z_j",
            np.atleast_1d(top),
            None,
            note="Of several the first.",
        )
        sheet.add("everything to it", "p_j = [j = argmax z]", r"p_j = [j = \mathrm{argmax}\, z]", np.atleast_2d(hot),
                  exact.numbers(np.atleast_2d(hot)), "", "probability",
                  "What softmax comes to as T goes to 0.")  # fmt: skip
        line = Line(f"F.one_hot(input.argmax(-1), {z.shape[-1]})", {"input": z})
        return sheet.trace(title, "lastlayer.argmax(input)", inputs, hot, "probability", line, check)
    rows.write_maximum(sheet)
    with np.errstate(all="ignore"):
        cooled = ((rows.z.astype(np.float64) - rows.m.astype(np.float64)) / T).astype(z.dtype)
    after = Rows(cooled)
    after.exact_z = np.asarray(rows.exact_d / exact.mp.mpf(T))
    after.exact_m = np.asarray(
        exact.where(rows.exact_d != rows.exact_d, exact.mp.nan, exact.mp.zero).max(-1, keepdims=True)
    )
    sheet.add(
        "divided by the temperature", "x_j = (z_j - m) / T", r"x_j = \frac{z_j - m}{T}", cooled, after.exact_z,
        sheet.entries(rows.z, lambda i,
        j: f"({sheet.number(rows.z[i, j])} - {sheet.minus(rows.m[i, 0])}) / {sheet.number(T)}"),
        "", _about(T),
    )  # fmt: skip
    sheet.add(
        "exp", "e_j = exp x_j", r"e_j = e^{x_j}", after.e, after.exact_e,
        sheet.entries(cooled, lambda i, j: f"exp({sheet.number(cooled[i, j])})"),
    )  # fmt: skip
    after.write_sum(sheet)
    sheet.add(
        "probabilities", "p_j = e_j / s", r"p_j = \frac{e_j}{s}", after.p, after.exact_p,
        sheet.entries(after.e, lambda i, j: f"{sheet.number(after.e[i, j])} / {sheet.number(after.s[i, 0])}"),
        "probability", "The order of the classes is that of the logits, whatever T is.",
    )  # fmt: skip
    line = Line(f"F.softmax(input / {T!r}, dim=-1)", {"input": z}, max(1.0, rows.spread / T, _largest(z) / T))
    call = f"lastlayer.softmax((input - input.max(-1, keepdims=True)) / {T!r})"
    return sheet.trace(title, call, inputs, sheet.shaped(after.p), "probability", line, check)


def truncate(
    input: Any,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    order: str | tuple[str, ...] = "transformers",
    check: bool = True,
) -> Trace:
    """Trace what temperature and truncation leave of a distribution, one filter after the other.

    Args:
        input: logits, (V,) or (N, V).
        temperature: T >= 0.
        top_k: keep the k largest logits; 0 or -1 for all.
        top_p: keep the likeliest classes, as few as have together a probability of at least p.
        min_p: keep the classes at least min_p times as likely as the likeliest.
        order: as in ``lastlayer.categorical``.
        check: of no effect: PyTorch has no such function.

    Returns:
        The trace. Its last step and its result are the probabilities, in float64, from which ``lastlayer.categorical``
        draws: ``lastlayer.softmax((z - max z) / T, where=kept)``.

    Raises:
        TypeError, ValueError: as ``lastlayer.categorical``.

    Example:
        >>> trace = truncate([0.0, 3.0, 2.0, 1.0], top_k=3, top_p=0.8)
        >>> for step in trace.steps[1:]:
        ...     print(step.name, [round(p, 2) for p in step.value])
        softmax at T = 1 [0.03, 0.64, 0.24, 0.09]
        keep the k largest [0.0, 0.67, 0.24, 0.09]
        cumulative sums [0.67, 0.91, 1.0, 1.0]
        keep the likeliest, together p [0.0, 0.73, 0.27, 0.0]
    """
    z = given.read("input", input)
    options: dict[str, Any] = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "order": order,
    }  # fmt: skip
    lastlayer.categorical(z, seed=0, **options)  # its checks, before anything else
    sheet = Sheet(z.astype(np.float64))
    probabilities = _write_truncated(sheet, z, options)[0]
    inputs = {"input": given.plain(z)} | _asked(options)
    return sheet.trace(
        f"what is left of {sheet.of_rows()}",
        "lastlayer.softmax((input - input.max(-1, keepdims=True)) / T, where=kept)",
        inputs, sheet.shaped(probabilities), "probability", None, check,
    )  # fmt: skip


def categorical(
    input: Any,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    order: str | tuple[str, ...] = "transformers",
    seed: int | None = None,
    offset: int | None = None,
    step: int = 0,
    check: bool = True,
) -> Trace:
    """Trace a draw per row: the probabilities, their cumulative sums, a uniform number, the class where it falls.

    Args:
        input: logits, (V,) or (N, V).
        temperature: T >= 0.
        top_k: keep the k largest logits; 0 or -1 for all.
        top_p: keep the likeliest classes, as few as have together a probability of at least p.
        min_p: keep the classes at least min_p times as likely as the likeliest.
        order: as in ``lastlayer.categorical``.
        seed: an integer; without it one from the system, which the trace's inputs tell.
        offset: what row it is, as in ``lastlayer.categorical``.
        step: the number of the draw in a sequence.
        check: of no effect: PyTorch's draws come from other random numbers.

    Returns:
        The trace; its last step and its result are ``lastlayer.categorical(...).index``.

    Raises:
        TypeError, ValueError: as ``lastlayer.categorical``.

    Example:
        >>> trace = categorical([0.0, -float("inf"), 2.0, 1.0], seed=5)
        >>> print([round(c, 4) for c in trace.steps[-3].value], round(trace.steps[-2].value, 4), trace.result)
        [0.09, 0.09, 0.7553, 1.0] 0.0697 0
    """
    z = given.read("input", input)
    seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
    options: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "order": order,
    }
    place: dict[str, Any] = {"seed": seed, "offset": offset, "step": step}
    draw = lastlayer.categorical(z, **options, **place)
    u = _draw_arguments.read_uniforms(seed, offset, step, z.shape[:-1], 1)[:, 0]
    sheet = Sheet(z.astype(np.float64))
    p, exact_p = _write_truncated(sheet, z, options)
    sums, exact_sums = np.cumsum(p, -1), np.add.accumulate(exact_p, -1)
    sheet.add(
        "cumulative sums", "c_j = p_1 + ... + p_j", r"c_j = \sum_{i \le j} p_i", sums, exact_sums, "", "probability",
        "Each class owns a stretch from 0 to 1 as long as it is probable.",
    )  # fmt: skip
    sheet.add(
        "a uniform number", "u", "u", u, exact.numbers(u), f"from seed {seed}", "",
        "53 random bits; the same seed gives the same again.",
    )  # fmt: skip
    index = np.atleast_1d(draw.index)
    sheet.add(
        "the class where it falls", "y = first j with c_j > u", r"y = \min\{j : c_j > u\}", index, None,
        sheet.each_row(lambda i: f"{sheet.number(sums[i, index[i]])} > {sheet.number(u[i])}"), "",
        f"log p_y is {_several(sheet, draw.sampled_logprob)} in what is drawn from, "
        f"{_several(sheet, draw.logprob)} in the model.",
    )  # fmt: skip
    inputs = {"input": given.plain(z)} | _asked(options | place)
    return sheet.trace(
        f"a draw from {sheet.of_rows()}", "lastlayer.categorical(input, ...).index", inputs, draw.index, "", None, check
    )


def _write_truncated(sheet: Sheet, z: Array, options: dict[str, Any]) -> tuple[Array, Array]:
    """Write each filter's probabilities down; return the last ones, and those exactly."""
    rows = Rows(z.astype(np.float64))
    shape, order = z.shape[:-1], _draw_arguments.read_order(options["order"])
    rules = {
        name: _draw_arguments.per_row(name, options[name], shape)
        for name in ("temperature", *FILTERS)
        if options[name] is not None
    }
    if "top_k" in rules:
        rules["top_k"] = np.where(rules["top_k"] <= 0, np.inf, rules["top_k"])
    rows.write_logits(sheet)
    asked = [name for name in order if name == "temperature" or name in rules]
    p, exact_p = _after(rows, Rules(np.ones(sheet.rows)), ())
    if asked[0] != "temperature":
        sheet.add("softmax", "p_j = exp(z_j - m) / sum", r"p_j = \frac{e^{z_j - m}}{\sum_k e^{z_k - m}}", p, exact_p,
                  "",
                  "probability", "The temperature comes later in this order.")  # fmt: skip
    used: dict[str, Array] = {"temperature": np.ones(sheet.rows)}
    for position, name in enumerate(asked):
        used[name] = rules[name]
        if name == "top_p":
            _write_cumulated(sheet, p, exact_p)
        greedy = bool((used["temperature"] == 0).any())
        p, exact_p = _after(rows, Rules(**used), tuple(asked[: position + 1]))
        if name == "temperature":
            told = _one(sheet, rules[name])
            sheet.add(f"softmax at T = {told}", "p_j = exp((z_j - m) / T) / sum",
                      r"p_j = \frac{e^{(z_j - m) / T}}{\sum_k e^{(z_k - m) / T}}",
                      p, exact_p, "", "probability",
                      "At T = 0 the first largest takes everything." if greedy else "")  # fmt: skip
        else:
            title, rule, note = FILTERS[name]
            sheet.add(title, f"{name}: the others get 0",
                      r"p_j \leftarrow \frac{p_j [j \text{ kept}]}{\sum_k p_k [k \text{ kept}]}",
                      p, exact_p, rule.format(_one(sheet, rules[name])), "probability", _kept(p, note))  # fmt: skip
    return p, exact_p


def _after(rows: Rows, rules: Rules, order: tuple[str, ...]) -> tuple[Array, Array]:
    """Return the probabilities that are left after these steps, rounded and exact."""
    kept, T = _truncate(rows.z, rules, order)
    with np.errstate(all="ignore"):
        scaled = rows.d / T[:, None]
    masses = exact.where(kept, exact.exp(rows.exact_d / exact.numbers(T)[:, None]), exact.mp.zero)
    return functional.softmax(scaled, where=kept), np.asarray(masses / exact.total(masses, -1))


def _write_cumulated(sheet: Sheet, p: Array, exact_p: Array) -> None:
    """Write the sums that top_p looks at down, the likeliest class first."""
    order = np.argsort(-p, -1, kind="stable")
    sums = np.cumsum(np.take_along_axis(p, order, -1), -1)
    exact_sums = np.add.accumulate(np.take_along_axis(exact_p, order, -1), -1)
    labels = [sheet.classes[j] for j in order[0]] if sheet.single else [f"place {j + 1}" for j in range(p.shape[1])]
    sheet.add(
        "cumulative sums", "of p, likeliest class first", r"\sum_{k \le j} p_{(k)}", sums, exact_sums, "",
        "probability", "",
        labels,
    )  # fmt: skip


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are not at their defaults."""
    defaults = {"temperature": 1.0, "order": "transformers", "step": 0}
    return {
        name: given.plain(each) for name, each in options.items() if each is not None and each != defaults.get(name)
    }


def _kept(p: Array, note: str) -> str:
    kept = (p > 0).sum(-1)
    told = f"{int(kept[0]):,}" if (kept == kept[0]).all() else f"{int(kept.min()):,} to {int(kept.max()):,}"
    return f"Left: {told} of {p.shape[1]:,}. {note}"


def _one(sheet: Sheet, rule: Array) -> str:
    """Return one number for all rows, or the first few."""
    if (rule == rule[0]).all():
        return sheet.number(rule[0])
    return f"[{', '.join(sheet.number(each) for each in rule[:3])}{', ...' * (len(rule) > 3)}]"


def _several(sheet: Sheet, values: Any) -> str:
    return _one(sheet, np.atleast_1d(values))


def _about(T: float) -> str:
    if T == 1:
        return "1 changes nothing."
    return "Below 1 it sharpens." if T < 1 else "Above 1 it levels."


def _largest(z: Array) -> float:
    wide = np.abs(z.astype(np.float64))
    return float(wide[np.isfinite(wide)].max(initial=0.0))
