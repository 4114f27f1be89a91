"""A trace on a terminal: in colour by rich, or as plain text; at any width, long rows elided in the middle.

One block per step: its name and formula, the formula with the numbers put in and the result, the exact value where it
is another one in the digits shown, what it means. `plain` and `show` print the same text. Siblings: shown.py (digits),
notebook.py, page.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from lastlayer.explain import shown
from lastlayer.explain.trace import Numbers, Step, Trace

if TYPE_CHECKING:
    from rich.console import Console

INDENT = "    "
ROWS = 6  # of a table of numbers; the ones in the middle are left out
LINES = 3  # of a formula with the numbers put in
EXACT = 3  # exact values told per step

NUMBERED = re.compile(r"\D*(\d+)")
GLUE = "\0"  # a space at which no line ends

STYLES = {"title": "bold", "name": "bold cyan", "formula": "", "put in": "dim", "value": "bold", "exact": "yellow"}
STYLES |= {"note": "dim italic", "good": "green", "bad": "bold red", "": ""}


class Span(NamedTuple):
    """Text of one kind; the kinds are the keys of STYLES."""

    text: str
    kind: str = ""


Line = list[Span]


def plain(trace: Trace, width: int = 80) -> str:
    """Return the trace as plain text.

    Args:
        trace: what one of the functions of `lastlayer.explain` returned.
        width: no line is longer; at least 40.

    Returns:
        Lines without colours, joined by newlines, without one at the end.

    Example:
        >>> from lastlayer.explain.trace import Step
        >>> half = Step("divide", "p = e / s", "p = e / s", "1 / 2", 0.5, "0.5", 0.0, unit="probability")
        >>> print(plain(Trace("a half", "1 / 2", "float64", {}, (half,), 0.5, "probability")))
        a half (float64)
        1 / 2
        <BLANKLINE>
         1  divide   p = e / s
            1 / 2  =  0.5 probability
        <BLANKLINE>
        Result   0.5 probability
    """
    return "\n".join("".join(span.text for span in line).rstrip() for line in _lines(trace, max(width, 40)))


def show(trace: Trace, console: Console) -> None:
    """Print the trace in colour, as wide as the console; the console knows about NO_COLOR and about pipes.

    Example:
        >>> from rich.console import Console
        >>> show(Trace("nothing", "pass", "float64", {}, (), 1.0), Console(width=60))
        nothing (float64)
        pass
        <BLANKLINE>
        Result   1
    """
    from rich.text import Text

    for line in _lines(trace, max(console.width, 40)):
        parts = Text.assemble(*((span.text, STYLES[span.kind]) for span in line))
        console.print(parts, soft_wrap=True, highlight=False)


def _lines(trace: Trace, width: int) -> Iterator[Line]:
    for text in wrap(f"{trace.title} ({trace.dtype})", width):
        yield [Span(text, "title")]
    others = "".join(f", {name}{GLUE}={GLUE}{value}" for name, value in shown.others(trace).items())
    yield from _text(trace.call + others, width, "put in", "")
    yield []
    labels: tuple[str, ...] = ()
    for i, step in enumerate(trace.steps, 1):
        yield from _step(i, step, step.dtype or trace.dtype, width, step.labels != labels and _speaking(step.labels))
        labels = step.labels or labels
    if trace.steps:
        yield []
    yield from _end(trace, width)


def _speaking(labels: Sequence[str]) -> bool:
    # "class 0", "class 1", ... or "x_1", "x_2", ... tell no more than the order does.
    counts = (NUMBERED.fullmatch(label) for label in labels)
    return any(not count or int(count[1]) - i not in (0, 1) for i, count in enumerate(counts))


def _step(i: int, step: Step, dtype: str, width: int, with_labels: bool) -> Iterator[Line]:
    name = f"{i:>2}  {step.name}"
    if len(name) + 3 + len(step.formula) <= width:
        yield [Span(name, "name"), Span("   "), Span(step.formula, "formula")]
    else:
        yield from _text(name, width, "name", "", INDENT)
        yield from _text(step.formula, width, "formula")
    if with_labels and len(shown.rows(step.value)) > 1:
        yield [Span(INDENT), Span(shown.elided(step.labels, width - len(INDENT)), "put in")]
    yield from _result(step, dtype, width)
    yield from _exact(step, dtype, width)
    yield from _text(step.note, width, "note", lines=None)


def _result(step: Step, dtype: str, width: int) -> Iterator[Line]:
    """Yield the numbers put in and what comes out, on one line if they fit."""
    tables = shown.rows(step.value)
    unit = f" {step.unit}" if step.unit else ""
    put_in = "" if step.substituted == step.formula else " ".join(step.substituted.split())
    one = _one_line(step.value, dtype, width - len(INDENT) - 2 - len(unit), step.labels)
    if one is not None and put_in and len(INDENT + put_in + "  =  " + one + unit) <= width:
        yield [Span(INDENT), Span(put_in, "put in"), Span("  =  "), Span(one + unit, "value")]
        return
    for text in _formula(step.substituted if put_in else "", width - len(INDENT)):
        yield [Span(INDENT), Span(text, "put in")]
    if one is not None:
        yield [Span(INDENT + "= "), Span(one + unit, "value")]
        return
    yield from _table(tables, dtype, width, unit)


def _one_line(value: Numbers, dtype: str, width: int, labels: Sequence[str] = ()) -> str | None:
    """Return a number, a row, or short rows on one line; None if they need several."""
    tables = shown.rows(value)
    if len(tables) == 1 and len(labels) == len(tables[0]) and _speaking(labels):
        pairs = list(zip(labels, tables[0], strict=True))
        return shown.elided(pairs, width, lambda pair: f"{pair[0]}: {shown.number(pair[1], dtype)}")
    if len(tables) == 1:
        return shown.elided(tables[0], width, lambda x: shown.number(x, dtype))
    if len(tables) > ROWS or 3 * sum(map(len, tables)) > width + 2:  # no number is shorter than "0; "
        return None
    line = "; ".join("  ".join(shown.number(x, dtype) for x in row) for row in tables)
    return line if len(line) <= width else None


def _table(tables: list[list[float]], dtype: str, width: int, unit: str) -> Iterator[Line]:
    kept = shown.ends(len(tables), ROWS)
    room = width - len(INDENT) - 2 - len(unit)
    cut = {i: shown.ends(len(tables[i]), room // 2).shown for i in kept.shown}
    column = max((len(shown.number(tables[i][j], dtype)) for i in cut for j in cut[i]), default=0)
    for i in kept.shown:
        if kept.hidden and i == kept.last.start:
            yield [Span(f"{INDENT}  ... {kept.hidden:,} more rows ...", "put in")]
        row = shown.elided(tables[i], room, lambda x: shown.number(x, dtype).rjust(column))
        yield [Span(INDENT + ("= " if i == 0 else "  ")), Span(row + (unit if i == kept.shown[-1] else ""), "value")]


def _exact(step: Step, dtype: str, width: int) -> Iterator[Line]:
    off = shown.inexact(step, dtype)
    for each in off[:EXACT]:
        name = shown.place_name(each.place, step.labels)
        told = f"exact{f' ({name})' if name else ''}: {shown.number(each.exact)}"
        finite = each.value - each.value == 0
        yield from _text(f"{told}, {shown.distance(each.ulp)} away" if finite else told, width, "exact")
    if len(off) > EXACT:
        yield from _text(f"and {len(off) - EXACT:,} more that differ from the exact ones", width, "exact")


def _end(trace: Trace, width: int) -> Iterator[Line]:
    unit = f" {trace.unit}" if trace.unit else ""
    line = _one_line(trace.result, trace.result_dtype or trace.dtype, width - 9 - len(unit))
    if line is not None:
        yield [Span("Result   "), Span(line + unit, "value")]
    elif trace.steps and trace.steps[-1].value == trace.result:
        yield [Span("Result   "), Span("the last step")]
    else:
        yield [Span("Result")]
        yield from _table(shown.rows(trace.result), trace.result_dtype or trace.dtype, width, unit)
    yield from _pytorch(trace, width)
    for note in trace.notes:
        yield from _text(note, width, "note", "", lines=None)


def _pytorch(trace: Trace, width: int) -> Iterator[Line]:
    if not trace.pytorch:
        return
    first, *rest = _parts(trace.pytorch, width - 9, LINES)
    yield [Span("PyTorch  "), Span(first, "put in")]
    for text in rest:
        yield [Span(" " * 9), Span(text, "put in")]
    if trace.pytorch_value is None:
        yield [Span(" " * 9), Span("not compared", "note")]
        return
    said = "agrees" if trace.agrees else "differs"
    one = _one_line(trace.pytorch_value, trace.result_dtype or trace.dtype, width - 9 - len("= , differs"))
    if one is None:
        yield [Span(" " * 9), Span(said, "good" if trace.agrees else "bad")]
        return
    yield [Span(" " * 9 + "= "), Span(one, "value"), Span(", "), Span(said, "good" if trace.agrees else "bad")]


def _text(
    text: str, width: int, kind: str, indent: str = INDENT, hanging: str = "", lines: int | None = LINES
) -> Iterator[Line]:
    for i, part in enumerate(_parts(text, width - len(indent) - len(hanging), lines)):
        yield [Span(indent + (hanging if i else "")), Span(part, kind)]


def _formula(text: str, width: int) -> list[str]:
    """Return numbers put into a formula in lines: one for each row if that is few, broken between terms otherwise."""
    rows = text.replace("; ", ";\n").split("\n")
    if len(rows) <= LINES and all(len(row) <= width for row in rows):
        return rows if text else []
    glued = re.sub(r"(?<![,;+]) ", GLUE, text)
    too_long = max(map(len, re.split(r"[ \n]", glued))) > width
    return _parts(text if too_long else glued, width, LINES)


def _parts(text: str, width: int, lines: int | None) -> list[str]:
    return [line.replace(GLUE, " ") for line in _wrapped(text, width, lines)]


def _wrapped(text: str, width: int, lines: int | None) -> list[str]:
    """Return text in lines of this width; of too many, words in the middle are left out, so that numbers stay whole."""
    lines = lines or len(text)
    at_most = width * lines
    parts: list[str] = []
    if len(text) <= at_most:
        parts = [part for line in text.split("\n") for part in wrap(line, width, break_on_hyphens=False)]
        if len(parts) <= lines:
            return parts
    words = re.findall(r"\S+?(?:,|;|$|(?=\s))", text)
    for count in range(min(len(words) - 1, at_most // 2), 0, -1):
        kept = shown.ends(len(words), count)
        middle = [f"... {kept.hidden:,} more ..."]
        short = " ".join([*(words[i] for i in kept.first), *middle, *(words[i] for i in kept.last)])
        parts = wrap(short, width, break_on_hyphens=False)
        if len(parts) <= lines:
            break
    return parts
