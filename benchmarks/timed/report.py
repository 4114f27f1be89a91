"""The results as tables: the same cells as plain text and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from timed import bars, heads
from timed.bars import MIB, of, size
from timed.peers import LIMITS, PEERS

Results = dict[str, Any]

# Each operation, the limit it is measured by, and what it is.
OPERATIONS = [
    ("logsumexp", "read", "logsumexp"),
    ("forward", "read", "cross_entropy, mean, forward"),
    ("step", "clone", "cross_entropy, mean, forward and backward, fresh gradient"),
    ("gradient out=", "copy", "cross-entropy's gradient into touched memory, without autograd"),
    ("softmax", "clone", "softmax, fresh result"),
    ("log_softmax", "clone", "log_softmax, fresh result"),
    ("softmax out=", "copy", "softmax into touched memory"),
    ("log_softmax out=", "copy", "log_softmax into touched memory"),
    ("smoothed step", "clone", "label smoothing 0.1, forward and backward"),
    ("probabilities step", "clone", "class probabilities as targets, forward and backward"),
]
MEANING = {
    "read": "one read, `z.sum()`",
    "copy": "one copy into touched memory, `out.copy_(z)`",
    "clone": "one fresh copy, `z.clone()`",
}


class Table(NamedTuple):
    """A title, the names of the columns, and the cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def is_text(self, column: int) -> bool:
        """Return whether a column holds anything but numbers."""
        return any(not cells[column][:1].isdigit() and cells[column] != "-" for cells in self.rows)

    def markdown(self) -> str:
        """Return it for a document."""
        rule = ["---" if self.is_text(i) else "---:" for i in range(len(self.columns))]
        lines = [self.columns, rule, *self.rows]
        return "\n".join([f"### {self.title}", "", *(f"| {' | '.join(cells)} |" for cells in lines)])

    def plain(self) -> str:
        """Return it for a terminal."""
        columns = []
        for i, cells in enumerate(zip(self.columns, *self.rows, strict=True)):
            width = max(map(len, cells))
            columns.append([cell.ljust(width) if self.is_text(i) else cell.rjust(width) for cell in cells])
        lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
        return "\n  ".join([self.title.replace("`", ""), *lines])


def figure(value: float | None) -> str:
    """Return a number in two or three digits, a dash for none."""
    if value is None or value != value:
        return "-"
    if value < 0.1:
        return f"{value:.2g}"
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def over(value: float | None, unit: float) -> str:
    """Return a ratio."""
    return figure(None if value is None else value / unit)


def bars_table(results: Results) -> Table:
    """Return the promises and what became of them."""
    rows = []
    for bar in bars.judge(results):
        scale = MIB if bar.target == bars.BUDGET else 1
        unit = " MiB" if scale == MIB else ""
        target = f"{'<=' if bar.at_most else '>='} {bar.target / scale:g}{unit}"
        rows.append(
            [bar.promise, target, f"{figure(bar.figure / scale)}{unit}" if bar.where else "-", bar.verdict, bar.where]
        )
    return Table("Bars, each by its worst figure", ["bar", "target", "worst", "verdict", "where"], rows)


def limits_table(results: Results) -> Table:
    """Return the times of the limits."""
    rows = [
        [size(r), figure(r["bytes"] / 1e6), *(figure(r["seconds"]["limit"][name] * 1e3) for name in LIMITS)]
        for r in results["logits"]
    ]
    return Table("Limits: milliseconds", ["rows x classes", "MB", *LIMITS], rows)


def operation_tables(results: Results) -> Iterator[Table]:
    """Yield one table per operation on logits: multiples of its limit."""
    for operation, limit, what in OPERATIONS:
        timed = [r for r in results["logits"] if of(r, operation, "lastlayer")]
        names = [name for name in PEERS if any(of(r, operation, name) for r in timed)]
        rows = [
            [size(r), figure(r["bytes"] / 1e6)]
            + [over(of(r, operation, name), r["seconds"]["limit"][limit]) for name in names]
            for r in timed
        ]
        if rows:
            yield Table(f"{what}: multiples of {MEANING[limit]}", ["rows x classes", "MB", *names], rows)


def bfloat16_table(results: Results) -> Table:
    """Return elements per second in both types."""
    columns, rows = ["10^9 elements per second", "MB in float32"], []
    for operation in bars.FORWARD:
        columns += [f"{operation} float32", "bfloat16", "PyTorch bfloat16"]
    for r in results["logits"]:
        if not of(r, "forward bfloat16", "lastlayer"):
            continue
        cells = [size(r), figure(r["bytes"] / 1e6)]
        for o in bars.FORWARD:
            times = of(r, o, "lastlayer"), of(r, f"{o} bfloat16", "lastlayer"), of(r, f"{o} bfloat16", "PyTorch")
            cells += [figure(r["rows"] * r["classes"] / t / 1e9 if t else None) for t in times]
        rows.append(cells)
    return Table("bfloat16 beside float32", columns, rows)


def threads_table(results: Results) -> Table:
    """Return what more threads bring to a single row."""
    rows = []
    for r in results["logits"]:
        for operation in ("logsumexp", "forward", "step"):
            one, all_ = of(r, f"{operation}, one thread", "lastlayer"), of(r, operation, "lastlayer")
            if one and all_:
                rows.append([f"{size(r)}, {operation}", figure(all_ * 1e6), figure(one * 1e6), figure(one / all_)])
    return Table("One row: microseconds", ["", "all threads", "one thread", "ratio"], rows)


def small_table(small: Results) -> Table:
    """Return times per call."""
    rows = []
    for operation, times in small["seconds"].items():
        ours, theirs = times["lastlayer"], times["PyTorch"]
        rows.append([operation, figure(ours * 1e6), figure(theirs * 1e6), figure(theirs / ours)])
    return Table(f"Small calls, {size(small)}: microseconds", ["", "lastlayer", "PyTorch", "ratio"], rows)


def shape_of(result: Results) -> list[str]:
    """Return the sizes of a head as cells."""
    return [f"{value:,}" for value in result["shape"].values()]


def heads_tables(results: Results) -> Iterator[Table]:
    """Yield time and memory of the heads."""
    names = [*heads.HEADS, heads.CHUNKED]
    rows = [
        [*shape_of(r), figure(r["seconds"][heads.THREE] * 1e3)]
        + [over(r["seconds"].get(name), r["seconds"][heads.THREE]) for name in (heads.FOUR, *names)]
        + [r["setting"] or "-"]
        for r in results["heads"]
    ]
    columns = ["N", "D", "V", "three products, ms", heads.FOUR, *names, "chunked by"]
    yield Table("Heads, forward and backward: multiples of the three bare products", columns, rows)
    taken = [[*shape_of(r), *(over(r["extra_bytes"].get(n), MIB) for n in names)] for r in results["heads"]]
    yield Table("Heads: MiB at the peak beyond the gradients", ["N", "D", "V", *names], taken)


def tables(results: Results) -> list[Table]:
    """Return all tables that have something to show."""
    found = [bars_table(results)]
    if results["logits"]:
        found += [*operation_tables(results), bfloat16_table(results), threads_table(results), limits_table(results)]
    found += map(small_table, results["small"])
    if results["heads"]:
        found += heads_tables(results)
    return [table for table in found if table.rows]


def setting(results: Results) -> list[str]:
    """Return the machine and who was left out, a line each."""
    m = results["machine"]
    cache = f"last-level cache {m['cache_bytes'] // MIB} MiB"
    lines = [
        f"{m['processor']}, {m['cores']} cores, {m['instruction_set']}, {cache}.",
        f"{m['versions']}.",
        f"Threads: {m['threads']}.",
    ]
    return lines + [f"Left out: {reason}." for reason in results["left_out"]]


def plain(results: Results) -> str:
    """Return the report as text."""
    return "\n\n".join(["\n".join(setting(results)), *(table.plain() for table in tables(results))])


def markdown(results: Results) -> str:
    """Return the report for a document."""
    lines = "\n".join(f"- {line}" for line in setting(results))
    return "\n\n".join([lines, *(table.markdown() for table in tables(results))])


def write(results: Results, document: Path) -> None:
    """Replace the tables in a document."""
    old, new = document.read_text(encoding="utf-8"), markdown(results)
    replaced = re.sub(r"(<!-- tables -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{new}\n{m[2]}", old, flags=re.S)
    document.write_text(replaced, encoding="utf-8")
