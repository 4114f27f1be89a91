"""Figures as data: bars, curves, heat maps and tables, each with a text that says what it shows.

Positions, axes and texts are decided here; static/figures.js draws them. The text alternative is made of the same
numbers, so it follows them. Values that are not finite travel as "inf", "-inf" and "nan": JSON has no other way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lastlayer.learn.notation import short, show

Figure: TypeAlias = dict[str, Any]
Row: TypeAlias = "Sequence[float] | NDArray[np.floating[Any]]"


class Series(NamedTuple):
    """Bars of one kind: a name, a value per label, and a tone ("accent", "plain", "quiet", "wrong")."""

    name: str
    values: Row
    tone: str = "plain"


class Line(NamedTuple):
    """A curve: a name, its points, and a tone; ``dashed`` for what is there to compare with."""

    name: str
    x: Row
    y: Row
    tone: str = "accent"
    dashed: bool = False


class Axis(NamedTuple):
    """An axis: its label, its ends, and optionally its ticks as (position, text)."""

    label: str
    min: float
    max: float
    ticks: Sequence[tuple[float, str]] | None = None


class Point(NamedTuple):
    """A point on a curve; if it names a field (and a place in it), dragging it sets the field.

    What it sets is the position, or with ``along="y"`` the height of the first curve there.
    """

    x: float
    y: float
    label: str
    field: str = ""
    place: int | None = None
    along: str = "x"


def bars(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    unit: str = "",
    span: tuple[float, float] | None = None,
    marked: Sequence[int] = (),
    reference: Series | None = None,
    drag: str = "",
    digits: int = 4,
) -> Figure:
    """Return groups of bars, one group per label.

    Args:
        title: what is shown.
        labels: one per group.
        series: one bar per group each.
        unit: of the values.
        span: the ends of the axis; by default those of the values and 0.
        marked: groups that are set off, such as the target's.
        reference: values drawn as lines across the bars, for what they should come to.
        drag: the field, a row, that the bars show and that dragging them sets.
        digits: decimals of the values.

    Returns:
        The figure.

    Example:
        >>> bars("Share", ["a", "b"], [Series("p", [0.25, 0.75])], span=(0, 1))["alt"]
        'Share. a: 0.2500; b: 0.7500.'
    """
    shown = [*series, *([reference] if reference else [])]
    low, high = span or _ends([value for each in shown for value in each.values])
    many = len(shown) > 1

    def told(each: Series, i: int) -> str:
        return f"{each.name + ' ' if many else ''}{show(float(each.values[i]), digits)}"

    alt = "; ".join(f"{label}: " + ", ".join(told(each, i) for each in shown) for i, label in enumerate(labels))
    return {
        "kind": "bars",
        "title": title,
        "alt": f"{title}. {alt}.",
        "labels": list(labels),
        "series": [_series(each, digits) for each in series],
        "reference": _series(reference, digits) if reference else None,
        "axis": _axis(Axis(unit, low, high)),
        "marked": list(marked),
        "drag": drag,
    }


def curve(
    title: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    *,
    points: Sequence[Point] = (),
    uprights: Sequence[tuple[float, str]] = (),
) -> Figure:
    """Return curves over one axis, with points on them and upright lines where something is to be seen.

    Example:
        >>> x = [0.0, 1.0]
        >>> curve("Line", Axis("x", 0, 1), Axis("y", 0, 1), [Line("y", x, x)], points=[Point(0.5, 0.5, "here")])["alt"]
        'Line. y over x from 0 to 1. here: x 0.5000, y 0.5000.'
    """
    names = ", ".join(line.name for line in lines)
    at = "".join(f" {p.label}: {x.label} {show(float(p.x))}, {y.label} {show(float(p.y))}." for p in points)
    also = "".join(f" {label} at {show(float(place))}." for place, label in uprights)
    return {
        "kind": "curve",
        "title": title,
        "alt": f"{title}. {names} over {x.label} from {short(x.min)} to {short(x.max)}.{at}{also}",
        "x": _axis(x),
        "y": _axis(y),
        "lines": [
            {"name": n, "points": [[finite(a), finite(b)] for a, b in zip(u, v, strict=True)], "tone": t, "dashed": d}
            for n, u, v, t, d in lines
        ],
        "points": [{**point._asdict(), "x": finite(point.x), "y": finite(point.y)} for point in points],
        "uprights": [{"x": finite(place), "label": label} for place, label in uprights],
    }


def heat(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Any,
    *,
    marked: Sequence[tuple[int, int]] = (),
    signed: bool = True,
) -> Figure:
    """Return a heat map of a matrix with its numbers written in.

    The colour goes by sign and size, or, if not ``signed``, from the smallest number to the largest.

    Example:
        >>> heat("Gradient", ["row 0"], ["a", "b"], [[-0.5, 0.5]])["alt"]
        'Gradient. row 0: a −0.5000, b 0.5000.'
    """
    numbers = np.asarray(values, dtype=np.float64)
    alt = "; ".join(
        f"{row}: " + ", ".join(f"{column} {show(float(v))}" for column, v in zip(columns, line, strict=True))
        for row, line in zip(rows, numbers, strict=True)
    )
    return {
        "kind": "heat",
        "title": title,
        "alt": f"{title}. {alt}.",
        "rows": list(rows),
        "columns": list(columns),
        "values": [[finite(v) for v in row] for row in numbers],
        "texts": [[show(float(v)) for v in row] for row in numbers],
        "shades": _shades(numbers, signed).tolist(),
        "marked": [list(place) for place in marked],
    }


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, marked: Sequence[int] = ()) -> Figure:
    """Return a table of texts; the first column names the row."""
    return {
        "kind": "table",
        "title": title,
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "marked": list(marked),
    }


def ticks(low: float, high: float, about: int = 5) -> list[tuple[float, str]]:
    """Return round positions between two ends, with their texts.

    Example:
        >>> ticks(0.0, 1.0)
        [(0.0, '0'), (0.2, '0.2'), (0.4, '0.4'), (0.6, '0.6'), (0.8, '0.8'), (1.0, '1')]
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(float(f"{i * step:.10g}"), short(float(f"{i * step:.10g}"))) for i in range(first, last + 1)]


def finite(value: float) -> float | str:
    """Return a number as JSON can hold it."""
    number = float(value)
    if math.isnan(number):
        return "nan"
    return number if math.isfinite(number) else "inf" if number > 0 else "-inf"


def _shades(numbers: NDArray[np.float64], signed: bool) -> NDArray[np.float64]:
    """Return how strong each colour is, from -1 to 1; 0 for what is not finite."""
    known = numbers[np.isfinite(numbers)]
    if known.size == 0:
        return np.zeros_like(numbers)
    low, high = (0.0, float(np.abs(known).max())) if signed else (float(known.min()), float(known.max()))
    return np.where(np.isfinite(numbers), (numbers - low) / ((high - low) or 1.0), 0.0)


def _series(series: Series, digits: int) -> dict[str, Any]:
    values = [float(value) for value in series.values]
    texts = [show(value, digits) for value in values]
    return {"name": series.name, "values": [finite(v) for v in values], "texts": texts, "tone": series.tone}


def _axis(axis: Axis) -> dict[str, Any]:
    low, high = float(axis.min), float(axis.max)
    marks = ticks(low, high) if axis.ticks is None else axis.ticks
    return {"label": axis.label, "min": low, "max": high, "ticks": [list(mark) for mark in marks]}


def _ends(values: Sequence[float]) -> tuple[float, float]:
    known = [float(value) for value in values if math.isfinite(value)]
    low, high = min([0.0, *known]), max([0.0, *known])
    return (low, high) if high > low else (0.0, 1.0)
