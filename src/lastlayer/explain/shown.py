"""How the numbers of a trace are shown: how many digits, which entries of a long row, where the exact value is told.

The law: a number shown is a number of the trace, rounded to the digits shown. Nothing else is computed here.
Siblings: terminal.py, notebook.py and page.py, which lay out what this file returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from lastlayer.explain.trace import Numbers, Step, Texts, Trace

PLACES = 4  # decimals of an ordinary number, as in most textbooks
BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}  # of a significand
# Arguments that nobody thinks of who did not pass them.
DEFAULTS = {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0, "temperature": 1.0, "unit": "nats"}


class Entry(NamedTuple):
    """One number of a step, with where it stands in it."""

    place: tuple[int, ...]
    value: float
    exact: str
    ulp: float


def number(value: float | str, dtype: str = "", places: int = PLACES) -> str:
    """Return a number with about four decimals, without the zeros that its type does not need.

    Args:
        value: a number, or a decimal string.
        dtype: the type that the number has: 0.2 of float32 is 0.200000003, and is shown as 0.2.
        places: decimals; fewer for large numbers, more for small ones.

    Returns:
        Text that reads back as the number, rounded.

    Example:
        >>> [number(x) for x in (0.5, 0.87009578, 1000.69314718, 2.0611536e-09, float("-inf"), 49996)]
        ['0.5', '0.8701', '1000.69', '2.0612e-9', '-inf', '49996']
        >>> number(0.20000000298023224, "float32")
        '0.2'
    """
    if isinstance(value, int):  # a class, a count
        return str(int(value))
    exact = Decimal(value)
    if not exact.is_finite():
        return "nan" if exact.is_nan() else "inf" if exact > 0 else "-inf"
    if exact == 0:
        return "0"
    near = _half_ulp(float(value), dtype)
    for fewer in range(places):
        short = _rounded(exact, fewer)
        if abs(Decimal(short) - exact) <= near:
            return short
    return _rounded(exact, places)


def _half_ulp(value: float, dtype: str) -> Decimal:
    """Return half the distance to the next number of the type, or of the wider one that value is kept in."""
    if dtype not in BITS:
        return Decimal(0)
    part, exponent = math.frexp(value)
    bits = next(each for each in (BITS[dtype], 24, 53) if (part * 2.0**each).is_integer())
    return Decimal(math.ldexp(1.0, exponent - bits - 1))


def _rounded(exact: Decimal, places: int) -> str:
    size = exact.adjusted()
    if not -4 < size < 6:
        return f"{exact:.{places}e}".replace("e+", "e")
    # At least three digits of a small number, about six of a large one.
    places = min(max(places, 2 - size) if places == PLACES else places, max(0, 5 - size))
    return f"{exact:.{places}f}"


def differs(value: float | str, exact: str, ulp: float | str, dtype: str = "") -> bool:
    """Tell whether the exact value is another one in the digits shown.

    Example:
        >>> differs(0.0, "2.0611536181902037e-9", 1.4e36, "float32"), differs(0.1, "0.10000000000000001", 0.1)
        (True, False)
    """
    if isinstance(value, int):
        return Decimal(value) != Decimal(exact)
    if _five_digits(float(value)) == _five_digits(float(exact)) or number(value) == number(exact):
        return False
    shown = number(value, dtype)
    point = shown.partition("e")[0].partition(".")[2]
    # The shortest text of a correctly rounded value has fewer digits than the exact one: that is no difference.
    rounded_well = float(value) != 0 and float(ulp) <= 0.5
    return not (rounded_well and number(exact, places=len(point)) == shown)


def _five_digits(value: float) -> str:
    # Decimal is slow, and rows are long: most entries end here.
    return f"{value:.4f} {value:.4e}"


def rows(value: Any) -> list[list[Any]]:
    """Return numbers, or texts, as rows: a number is a row of one, more dimensions are rows one after another."""
    if not isinstance(value, list | tuple):
        return [[value]]
    if not any(isinstance(each, list | tuple) for each in value):
        return [list(value)]
    return [row for each in value for row in rows(each)]


def entries(step: Step) -> Iterator[Entry]:
    """Yield the numbers of a step one after another, with the exact value and the distance of each."""
    yield from _entries((), step.value, step.exact, step.ulp)


def _entries(place: tuple[int, ...], value: Numbers, exact: Texts, ulp: Numbers) -> Iterator[Entry]:
    if not isinstance(value, list | tuple):
        yield Entry(place, value, str(exact), ulp if not isinstance(ulp, list | tuple) else 0.0)
        return
    for i, each in enumerate(value):
        yield from _entries((*place, i), each, exact[i], ulp[i])  # type: ignore[index]


def inexact(step: Step, dtype: str) -> list[Entry]:
    """Return the numbers of a step whose exact value is another one in the digits shown, the worst first."""
    off = [each for each in entries(step) if differs(each.value, each.exact, each.ulp, dtype)]
    return sorted(off, key=lambda each: -each.ulp)


def place_name(place: tuple[int, ...], labels: Sequence[str]) -> str:
    """Return the name of an entry: its label where there is one.

    Example:
        >>> place_name((1, 2), ("red", "green", "blue")), place_name((3,), ()), place_name((), ())
        ('row 1, blue', 'entry 3', '')
    """
    if not place:
        return ""
    last = labels[place[-1]] if place[-1] < len(labels) else f"entry {place[-1]}"
    return ", ".join([*(f"row {i}" for i in place[:-1]), last])


def distance(ulp: float | str) -> str:
    """Return a distance in units of the last place, in two digits.

    Example:
        >>> distance(0.4321), distance(123456.0), distance(2e-51)
        ('0.43 ulp', '1.2e5 ulp', 'less than 0.01 ulp')
    """
    if float(ulp) < 0.01:  # what is too small for its type: how much smaller it is tells nothing
        return "less than 0.01 ulp"
    return f"{float(ulp):.2g} ulp".replace("e+0", "e").replace("e+", "e")


def others(trace: Trace) -> dict[str, str]:
    """Return the arguments that the first step does not show and that are not the usual ones, each on a short line."""
    first = trace.steps[0].value if trace.steps else None
    told = {name: value for name, value in trace.inputs.items() if value != first and value != DEFAULTS.get(name)}
    return {name: inline(value, trace.dtype) for name, value in told.items() if value is not None}


def inline(value: Any, dtype: str, unit: str = "", at_most: int = 8, width: int = 60) -> str:
    """Return numbers in a line of text: rows are separated by semicolons.

    Example:
        >>> inline([[0.5, 1.0], [0.25, 2.0]], "float64", "nats")
        '0.5  1; 0.25  2 nats'
    """
    if isinstance(value, str):
        return value
    tables = rows(value)
    kept = ends(len(tables), at_most)
    texts = [elided(tables[i], width, lambda x: number(x, dtype)) for i in kept.shown]
    if kept.hidden:
        texts.insert(len(kept.first), f"... {kept.hidden:,} more rows ...")
    return "; ".join(texts) + (f" {unit}" if unit else "")


class Ends(NamedTuple):
    """What is shown of a long sequence: the first ones, how many are left out, the last ones."""

    first: range
    hidden: int
    last: range

    @property
    def shown(self) -> list[int]:
        """The indices shown."""
        return [*self.first, *self.last]


def ends(count: int, at_most: int) -> Ends:
    """Return which of so many entries are shown, if at most so many may be.

    Example:
        >>> ends(10, 5)
        Ends(first=range(0, 3), hidden=5, last=range(8, 10))
        >>> ends(4, 5).shown
        [0, 1, 2, 3]
    """
    if count <= at_most:
        return Ends(range(count), 0, range(count, count))
    last = at_most // 2
    return Ends(range(at_most - last), count - at_most, range(count - last, count))


def elided(row: Sequence[Any], width: int, text: Callable[[Any], str] = str) -> str:
    """Return a row on one line of this width, entries in the middle left out where they do not fit.

    Example:
        >>> print(elided([0.5] * 50_000, 42))
        0.5  0.5  ... 49,996 more ...  0.5  0.5
        >>> print(elided([1, 2, 3], 42))
        1  2  3
    """
    for at_most in range(min(len(row), width // 2), -1, -1):
        kept = ends(len(row), at_most)
        middle = [f"... {kept.hidden:,} more ..."] if kept.hidden else []
        line = "  ".join([*(text(row[i]) for i in kept.first), *middle, *(text(row[i]) for i in kept.last)])
        if len(line) <= width:
            return line
    return line
