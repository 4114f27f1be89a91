"""What the device benchmark measures, as data: rows that say met or missed, and the report made of them.

A row is one competitor in one case; a bar belongs to rows of ours, and to what compares them with the best peer. The
timing is in clock.py, the command line in gpu.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from timed.report import Table, figure

Results = dict[str, Any]


class Bar(NamedTuple):
    """A bound that a figure keeps or misses."""

    value: float
    at_most: bool = True

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.value:g}"

    def verdict(self, measured: float | None) -> str:
        """Return met or missed, or that there is no figure."""
        if measured is None:
            return "not measured"
        return "met" if (measured <= self.value if self.at_most else measured >= self.value) else "missed"


class Row(NamedTuple):
    """One competitor in one case: seconds (least, median, most), a figure in the table's unit, and its bar."""

    case: str
    who: str
    seconds: tuple[float, float, float] | None = None
    figure: float | None = None
    bar: Bar | None = None
    note: str = ""
    call: float | None = None  # seconds of a call as its caller waits for it

    def plain(self) -> Results:
        """Return it for JSON, verdict included."""
        bar = None if self.bar is None else list(self.bar)
        return self._asdict() | {"bar": bar, "verdict": self.bar.verdict(self.figure) if self.bar else ""}


class Found(NamedTuple):
    """One table: what it is, the unit of its figures, and its rows."""

    title: str
    unit: str
    rows: Sequence[Row]

    def plain(self) -> Results:
        """Return it for JSON."""
        return {"title": self.title, "unit": self.unit, "rows": [row.plain() for row in self.rows]}


def milliseconds(seconds: Sequence[float] | None) -> list[str]:
    """Return the median and the spread as cells."""
    if seconds is None:
        return ["-", "-"]
    least, median, most = (figure(1e3 * each) for each in seconds)
    return [median, f"{least} to {most}"]


def table_of(found: Results) -> Table:
    """Return one table; a column that no row fills is not there."""
    columns = ["case", "who", "ms", "least to most", "ms, called", found["unit"], "bar", "verdict", "note"]
    rows = [
        [
            row["case"], row["who"], *milliseconds(row["seconds"]), figure(row["call"] and 1e3 * row["call"]),
            figure(row["figure"]), str(Bar(*row["bar"])) if row["bar"] else "", row["verdict"], row["note"],
        ]
        for row in found["rows"]
    ]  # fmt: skip
    kept = [i for i in range(len(columns)) if i < 2 or any(cells[i] not in ("", "-") for cells in rows)]
    return Table(found["title"], [columns[i] for i in kept], [[cells[i] for i in kept] for cells in rows])


def judged(results: Results) -> Table:
    """Return every bar with its figure, the missed ones first."""
    rows = [
        [found["title"], row["case"], row["who"], str(Bar(*row["bar"])), figure(row["figure"]), row["verdict"]]
        for found in results["tables"].values()
        for row in found["rows"]
        if row["bar"]
    ]
    rows.sort(key=lambda cells: ("missed", "not measured", "met").index(cells[-1]))
    return Table("Bars", ["table", "case", "who", "bar", "measured", "verdict"], rows)


def tables(results: Results) -> list[Table]:
    """Return all tables that have rows."""
    made = [judged(results), *(table_of(found) for found in results["tables"].values())]
    return [table for table in made if table.rows]


def setting(results: Results) -> list[str]:
    """Return where it ran and who is not there, a line each."""
    machine = results["machine"]
    lines = [f"{machine['device']}. {machine['versions']}.", *(f"{line}." for line in machine["card"])]
    lines += [f"Not run: {', '.join(results['not_run'])}: the time was up."] if results["not_run"] else []
    return lines + [f"Not there: {reason}." for reason in results["left_out"]]


def plain(results: Results) -> str:
    """Return the report for a terminal."""
    return "\n\n".join(["\n".join(setting(results)), *(table.plain() for table in tables(results))])


def markdown(results: Results) -> str:
    """Return the report for a document."""
    lines = "\n".join(f"- {line}" for line in setting(results))
    return "\n\n".join([lines, *(table.markdown() for table in tables(results))])


def write(document: Path, results: Results, name: str = "gpu") -> None:
    """Replace what stands between <!-- gpu --> and <!-- /gpu -->; ValueError unless there is one such place."""
    old, new = document.read_text(encoding="utf-8"), markdown(results)
    pattern = f"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    replaced, count = re.subn(pattern, lambda m: f"{m[1]}{new}\n{m[2]}", old, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{document} has {count} places between <!-- {name} --> and <!-- /{name} -->, expected 1")
    document.write_text(replaced, encoding="utf-8")


def best(rows: Iterable[Row], ours: Row, others: Iterable[str], case: str) -> list[Row]:
    """Return the row that compares ours with the fastest of the others; none where none of them was timed."""
    names = set(others)
    timed = [row for row in rows if row.who in names and row.seconds is not None]
    if ours.seconds is None or not timed:
        return []
    first = min(timed, key=lambda row: row.seconds[1])  # type: ignore[index]
    ratio = ours.seconds[1] / first.seconds[1]  # type: ignore[index]
    return [Row(case, f"{ours.who} / best peer", figure=ratio, bar=Bar(1.0), note=f"best: {first.who}")]
