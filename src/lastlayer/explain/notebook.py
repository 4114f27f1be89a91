"""A trace in a notebook: a piece of HTML that takes the notebook's colours, or Markdown with LaTeX.

`body` is also what page.py puts on a page of its own. Siblings: shown.py (digits), mathml.py (formulas), terminal.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from lastlayer.explain import shown
from lastlayer.explain.mathml import formula
from lastlayer.explain.trace import Step, Trace

ROWS = 8  # shown of a table; those in the middle are left out
COLUMNS = 12
EXACT = 12  # rows of the table of exact values
WORDS = 60  # of a formula with the numbers put in

STYLE = """
.lastlayer { line-height: 1.5; max-width: 46rem; }
.lastlayer ol { list-style: none; margin: 0; padding: 0; }
.lastlayer li { padding: .9rem 0; border-top: 1px solid color-mix(in srgb, currentColor 18%, transparent); }
.lastlayer h2, .lastlayer h3 { line-height: 1.25; margin: 0 0 .3rem; } .lastlayer h3 { font-size: 1.02em; }
.lastlayer .step { opacity: .65; font-weight: 400; font-variant-numeric: tabular-nums; padding-right: .6em; }
.lastlayer p { margin: .3rem 0; overflow-wrap: anywhere; }
.lastlayer code { font-family: ui-monospace, monospace; font-size: .875em; background: none; color: inherit; }
.lastlayer .formula { overflow-x: auto; overflow-y: hidden; padding: .15rem 0; } .lastlayer math { font-size: 1.1em; }
.lastlayer .numbers { overflow-x: auto; display: flex; align-items: flex-end; }
.lastlayer .numbers .note { padding-bottom: .55rem; }
.lastlayer table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .3rem 0; }
.lastlayer th, .lastlayer td { padding: .15rem .8rem .15rem 0; text-align: right; font-weight: 400; border: 0;
  background: none; white-space: nowrap; }
.lastlayer th { opacity: .75; font-size: .875em; } .lastlayer td { font-weight: 600; }
.lastlayer th[scope=row] { text-align: left; }
.lastlayer td.part { background: linear-gradient(color-mix(in srgb, var(--mark, #3b76c4) 60%, transparent) 0 0)
  left bottom / var(--part) 3px no-repeat; padding-bottom: .35rem; min-width: 4.5rem; }
.lastlayer .gap { opacity: .75; font-weight: 400; }
.lastlayer .note, .lastlayer summary { opacity: .8; font-size: .9375em; }
.lastlayer summary { cursor: pointer; }
.lastlayer .result { font-size: 1.15em; font-weight: 600; }
.lastlayer details table { font-size: .8125em; } .lastlayer details td { font-weight: 400; }
.lastlayer .off { font-weight: 600; }
"""


def html(trace: Trace) -> str:
    """Return the trace as a piece of HTML for a notebook's cell.

    Example:
        >>> print(html(Trace("p < q", "pass", "float64", {}, (), 1.0)))
        <style>
        ...
        <h2>p &lt; q</h2>
        ...
        </section>
    """
    return f"<style>{STYLE}</style>\n{body(trace, 'h2')}"


def body(trace: Trace, heading: str) -> str:
    """Return the trace as one `section` of HTML, under a heading of this level."""
    steps = "\n".join(f"<li>{_step(i, step, step.dtype or trace.dtype)}</li>" for i, step in enumerate(trace.steps, 1))
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in trace.notes)
    return (
        f'<section class="lastlayer">\n<{heading}>{escape(trace.title)}</{heading}>\n'
        f"<p><code>{escape(_short(trace.call))}</code>{escape(_where(trace))}</p>\n"
        f"{f'<ol>{steps}</ol>' if steps else ''}\n"
        f'<div class="end">{_result(trace)}{_pytorch(trace)}{notes}</div>\n</section>'
    )


def markdown(trace: Trace) -> str:
    """Return the trace as Markdown, formulas as LaTeX between dollar signs.

    Example:
        >>> print(markdown(Trace("nothing", "pass", "float64", {}, (), 0.5, "nats")))
        ## nothing
        <BLANKLINE>
        `pass`, in float64
        <BLANKLINE>
        **Result: 0.5 nats**
        <BLANKLINE>
    """
    parts = [f"## {_quoted(trace.title)}", _code(_short(trace.call)) + _quoted(_where(trace))]
    for i, step in enumerate(trace.steps, 1):
        parts += _markdown_step(i, step, step.dtype or trace.dtype)
    parts.append(f"**Result: {_quoted(shown.inline(trace.result, trace.result_dtype or trace.dtype, trace.unit))}**")
    if trace.pytorch:
        parts.append(f"PyTorch: {_code(_short(trace.pytorch))}{_compared(trace)}")
    parts += [_quoted(note) for note in trace.notes]
    return "\n\n".join(parts) + "\n"


def _step(i: int, step: Step, dtype: str) -> str:
    parts = [f'<h3><span class="step">{i}</span>{escape(step.name)}</h3>']
    if step.formula:
        parts.append(f'<p class="formula">{formula(step.latex, step.formula)}</p>')
    if step.substituted and step.substituted != step.formula:
        parts.append(f"<p><code>{escape(_short(step.substituted))}</code></p>")
    parts.append(_numbers(step.value, step.labels, dtype, step.unit))
    off = shown.inexact(step, dtype)
    if off:
        parts.append(_exact(off, step.labels))
    if step.note:
        parts.append(f'<p class="note">{escape(step.note)}</p>')
    return "\n".join(parts)


def _numbers(value: Any, labels: Sequence[str], dtype: str, unit: str) -> str:
    """Return numbers as a table, one row for each row, long ones without their middle."""
    told = f' <span class="note">{escape(unit)}</span>' if unit else ""
    if not isinstance(value, list | tuple):
        return f'<p class="result">= {escape(shown.number(value, dtype))}{told}</p>'
    tables = shown.rows(value)
    columns = shown.ends(max(map(len, tables), default=0), COLUMNS)
    lines = [_head(labels, columns, len(tables) > 1)] if len(labels) >= columns.first.stop + columns.hidden else []
    kept = shown.ends(len(tables), ROWS)
    for i in kept.shown:
        if kept.hidden and i == kept.last.start:
            lines.append(f'<tr><td class="gap" colspan="99">… {kept.hidden:,} more rows …</td></tr>')
        name = f'<th scope="row">row {i}</th>' if len(tables) > 1 else ""
        lines.append(f"<tr>{name}{''.join(_cells(tables[i], columns, dtype, unit))}</tr>")
    rows = "".join(lines)
    # A table that may be wider than a phone can be scrolled with the keys.
    keys = ' tabindex="0"' if len(columns.shown) > 4 else ""
    return f'<div class="numbers"{keys}><table>{rows}</table>{told}</div>'


def _head(labels: Sequence[str], columns: shown.Ends, with_names: bool) -> str:
    cells = [f'<th scope="col">{escape(labels[j])}</th>' for j in columns.shown]
    if columns.hidden:
        cells.insert(len(columns.first), "<td></td>")
    return f"<tr>{'<td></td>' * with_names}{''.join(cells)}</tr>"


def _cells(row: Sequence[Any], columns: shown.Ends, dtype: str, unit: str) -> Iterator[str]:
    for j in columns.shown:
        if columns.hidden and j == columns.last.start:
            yield f'<td class="gap">… {columns.hidden:,} more …</td>'
        text = escape(shown.number(row[j], dtype))
        if unit == "probability" and 0 <= row[j] <= 1:
            yield f'<td class="part" style="--part:{100 * row[j]:.2f}%">{text}</td>'
        else:
            yield f"<td>{text}</td>"


def _exact(off: list[shown.Entry], labels: Sequence[str]) -> str:
    """Return the entries whose exact value is another one in the digits shown."""
    lines = ['<tr><td></td><th scope="col">here</th><th scope="col">exact</th><th scope="col">apart</th></tr>']
    for each in off[:EXACT]:
        name = shown.place_name(each.place, labels) or "value"
        away = shown.distance(each.ulp) if each.value - each.value == 0 else ""
        cells = (repr(each.value), each.exact, away)
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{values}</tr>')
    count = f"{len(off):,} number{'s' * (len(off) > 1)}"
    more = f"<p>… {len(off) - EXACT:,} more …</p>" if len(off) > EXACT else ""
    return (
        f'<details open="open"><summary class="off">The exact value of {count} is another one</summary>'
        f'<div class="numbers" tabindex="0"><table>{"".join(lines)}</table></div>{more}</details>'
    )


def _result(trace: Trace) -> str:
    dtype = trace.result_dtype or trace.dtype
    if not isinstance(trace.result, list | tuple):
        return f'<p class="result">Result: {escape(shown.inline(trace.result, dtype, trace.unit))}</p>'
    if trace.steps and trace.steps[-1].value == trace.result and len(shown.rows(trace.result)) > 1:
        return '<p class="result">Result: the last step</p>'
    return f'<p class="result">Result</p>{_numbers(trace.result, (), dtype, trace.unit)}'


def _pytorch(trace: Trace) -> str:
    if not trace.pytorch:
        return ""
    return f"<p>PyTorch: <code>{escape(_short(trace.pytorch))}</code>{escape(_compared(trace))}</p>"


def _where(trace: Trace) -> str:
    """Say what else was given, and the type."""
    return "".join(f", {name} = {value}" for name, value in shown.others(trace).items()) + f", in {trace.dtype}"


def _compared(trace: Trace) -> str:
    if trace.pytorch_value is None:
        return " (not compared)"
    said = "agrees" if trace.agrees else "differs"
    if isinstance(trace.pytorch_value, list | tuple) and trace.agrees:
        return f", {said}"
    return f" = {shown.inline(trace.pytorch_value, trace.result_dtype or trace.dtype)}, {said}"


def _markdown_step(i: int, step: Step, dtype: str) -> Iterator[str]:
    yield f"### {i}. {_quoted(step.name)}"
    if step.latex:
        yield f"$${step.latex}$$"
    elif step.formula:
        yield _code(step.formula)
    if step.substituted and step.substituted != step.formula:
        yield _code(_short(step.substituted))
    yield _markdown_table(step, dtype)
    off = shown.inexact(step, dtype)
    for each in off[:3]:
        name = shown.place_name(each.place, step.labels)
        away = f", {shown.distance(each.ulp)} away" if each.value - each.value == 0 else ""
        yield f"Exact{f' ({_quoted(name)})' if name else ''}: {each.exact}{away}"
    if len(off) > 3:
        yield f"{len(off) - 3:,} more differ from the exact ones."
    if step.note:
        yield f"*{_quoted(step.note)}*"


def _markdown_table(step: Step, dtype: str) -> str:
    if not isinstance(step.value, list | tuple):
        return f"= **{_quoted(shown.inline(step.value, dtype, step.unit))}**"
    tables = shown.rows(step.value)
    columns = shown.ends(max(map(len, tables), default=0), COLUMNS)
    labelled = len(step.labels) >= columns.first.stop + columns.hidden
    lines = [[step.unit, *_with_gap([step.labels[j] if labelled else str(j) for j in columns.shown], columns, "…")]]
    lines.append(["---:"] * len(lines[0]))
    kept = shown.ends(len(tables), ROWS)
    for i in kept.shown:
        if kept.hidden and i == kept.last.start:
            lines.append([f"… {kept.hidden:,} more rows …", *[""] * (len(lines[0]) - 1)])
        texts = [shown.number(tables[i][j], dtype) for j in columns.shown]
        gap = f"… {columns.hidden:,} more …"
        lines.append([f"row {i}" if len(tables) > 1 else "", *_with_gap(texts, columns, gap)])
    return "\n".join(f"| {' | '.join(map(_quoted, line))} |" for line in lines)


def _with_gap(cells: list[str], columns: shown.Ends, gap: str) -> list[str]:
    at = len(columns.first)
    return [*cells[:at], gap, *cells[at:]] if columns.hidden else cells


def _short(text: str) -> str:
    """Return text without its middle if it has very many words, so that numbers stay whole."""
    words = text.split()
    kept = shown.ends(len(words), WORDS)
    middle = [f"... {kept.hidden:,} more ..."] if kept.hidden else []
    return " ".join([*(words[i] for i in kept.first), *middle, *(words[i] for i in kept.last)])


def _quoted(text: str) -> str:
    """Return text whose signs mean nothing to Markdown."""
    return re.sub(r"([\\`*_|<>$\[\]#])", r"\\\1", text)


def _code(text: str) -> str:
    return f"``{text}``" if "`" in text else f"`{text}`"
