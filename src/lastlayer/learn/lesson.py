"""What a lesson is: fields that the reader changes, and one function from their values to an answer.

Everything the page shows is in these records; adding a lesson is one file under lessons/. A field's value is a number,
a row or rows, and its default says which. Siblings: notation.py (texts), figures.py (pictures), api.py (both to JSON).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from lastlayer.learn.notation import short, show

State: TypeAlias = Mapping[str, Any]


class Mistake(ValueError):
    """What is wrong with a value, and where: the page shows it at that field.

    Attributes:
        field: the name of the field, "" if it is none in particular.
        index: the place in a row, or the row and the column; () for a number.
    """

    def __init__(self, message: str, field: str = "", index: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.field = field
        self.index = index


@dataclass(frozen=True)
class Numbers:
    """A number, a row of them, or rows, each with a slider and a field to type in.

    Attributes:
        name: in the state and in links.
        label: what the reader sees.
        default: the value to begin with; its nesting is the shape.
        min: where the slider begins.
        max: where it ends.
        step: of the slider.
        low: the least value that may be typed; min if None.
        high: the largest.
        whole: whether only whole numbers are taken.
        columns: names of the entries of a row.
        rows: names of the rows.
        when: values of other fields for which it is shown.
    """

    name: str
    label: str
    default: Any
    min: float
    max: float
    step: float
    low: float | None = None
    high: float | None = None
    whole: bool = False
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    when: tuple[tuple[str, str], ...] = ()

    def read(self, value: Any) -> Any:
        """Return what was typed as numbers in the shape of the default, or raise Mistake."""
        return self._read(value, self.default, ())

    def _read(self, value: Any, default: Any, index: tuple[int, ...]) -> Any:
        if not isinstance(default, tuple):
            return self._number(value, index)
        if not isinstance(value, list) or len(value) != len(default):
            size = f"a list of {len(value)}" if isinstance(value, list) else f"{value!r:.40}"
            raise Mistake(f"{self._where(index)}: expected {len(default)} numbers, got {size}", self.name, index)
        pairs = zip(value, default, strict=True)
        return [self._read(each, like, (*index, place)) for place, (each, like) in enumerate(pairs)]

    def _number(self, value: Any, index: tuple[int, ...]) -> float | int:
        low, high = self.min if self.low is None else self.low, self.max if self.high is None else self.high
        kind = "a whole number" if self.whole else "a number"
        expected = f"expected {kind} from {short(low)} to {short(high)}"
        number = _parse(value)
        if number is None:
            got = "nothing" if value is None or value == "" else f"{str(value)!r:.40}"
            raise Mistake(f"{self._where(index)}: {expected}, got {got}", self.name, index)
        if not low <= number <= high or (self.whole and number != int(number)):
            raise Mistake(f"{self._where(index)}: {expected}, got {short(number)}", self.name, index)
        return int(number) if self.whole else number

    def _where(self, index: tuple[int, ...]) -> str:
        return self.name + "".join(f"[{place}]" for place in index)


@dataclass(frozen=True)
class Choice:
    """One of several named options.

    Attributes:
        name: in the state and in links.
        label: what the reader sees.
        default: the option to begin with.
        options: what each one is called.
        when: values of other fields for which it is shown.
    """

    name: str
    label: str
    default: str
    options: Mapping[str, str]
    when: tuple[tuple[str, str], ...] = ()

    def read(self, value: Any) -> str:
        """Return the option, or raise Mistake."""
        if not isinstance(value, str) or value not in self.options:
            raise Mistake(f"{self.name}: expected one of {', '.join(self.options)}, got {str(value)!r:.40}", self.name)
        return value


Field: TypeAlias = Numbers | Choice


@dataclass(frozen=True)
class Result:
    """A number of the answer: what it is called, its value, its unit, and how it is meant.

    A tone is "accent" for the one that the lesson is about, "wrong" for one that comes of a mistake, else "".
    """

    label: str
    value: float | str
    unit: str = ""
    tone: str = ""

    @property
    def text(self) -> str:
        """The value as the page prints it."""
        return self.value if isinstance(self.value, str) else show(self.value)


@dataclass(frozen=True)
class Step:
    """A step of the arithmetic: what happens, and the formula with the numbers put in."""

    name: str
    latex: str


@dataclass(frozen=True)
class Answer:
    """What follows from a state.

    Attributes:
        numbers: the results; the first one is read aloud when something changes.
        figures: what figures.py returns.
        steps: the formulas with the reader's numbers in them.
        says: sentences about these numbers.
    """

    numbers: tuple[Result, ...]
    figures: tuple[dict[str, Any], ...]
    steps: tuple[Step, ...] = ()
    says: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """A lesson.

    Attributes:
        slug: its name in links.
        title: a few words.
        question: what a reader comes with.
        prose: paragraphs before the figures.
        formula: LaTeX lines.
        fields: what can be changed.
        answer: from the fields' values to what is shown.
        notes: paragraphs after the figures, as (heading, text).
        tries: states worth a look, as (label, values that differ from the defaults).
    """

    slug: str
    title: str
    question: str
    prose: tuple[str, ...]
    formula: tuple[str, ...]
    fields: tuple[Field, ...]
    answer: Callable[[State], Answer]
    notes: tuple[tuple[str, str], ...] = ()
    tries: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of every field, the default where none is given; raise Mistake for what does not fit."""
        known = {field.name: field for field in self.fields}
        for name in given:
            if name not in known:
                raise Mistake(f"{name!r:.40} is no field of the lesson {self.slug}, which has {', '.join(known)}")
        return {name: each.read(given.get(name, plain(each.default))) for name, each in known.items()}


def plain(value: Any) -> Any:
    """Return a default as what JSON would have brought: lists for tuples."""
    return [plain(each) for each in value] if isinstance(value, tuple) else value


def _parse(value: Any) -> float | None:
    """Return a number or a text as a float; None for what is neither, and for NaN and what float() takes oddly."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and (len(value) > 40 or "_" in value):
        return None
    try:
        number = float(value.replace("−", "-") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number
