"""A sheet on which the steps of a trace are written, one after the other.

Arrays come as the mathematics has them: rows (N, V), one number per row (N,), or one number for all (). The sheet knows
whether one row was given or several, and writes down what its reader will see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lastlayer._arrays import Array
from lastlayer.explain import exact as _exact
from lastlayer.explain import pytorch
from lastlayer.explain.shown import ends, number
from lastlayer.explain.trace import Step, Trace

ROWS, CLASSES = 4, 6  # of longer ones the ends are put into a formula


class Sheet:
    """The steps of one trace.

    Attributes:
        single: whether one row was given.
        dtype: the type of the numbers given.
        classes: names of the entries of a row.
        rows: how many rows there are.
    """

    def __init__(self, z: Array, classes: Sequence[str] | None = None) -> None:
        self.single = z.ndim < 2
        self.dtype = z.dtype.name
        self.rows = 1 if self.single else len(z)
        size = z.shape[-1] if z.ndim else 0
        self.classes = tuple(classes) if classes else tuple(f"class {j}" for j in range(size))
        self.steps: list[Step] = []

    def add(
        self,
        name: str,
        formula: str,
        latex: str,
        value: Any,
        exact: Any,
        put_in: str = "",
        unit: str = "",
        note: str = "",
        labels: Sequence[str] | None = None,
    ) -> None:
        """Write a step down. ``exact`` is None where value is an index or a count, which nothing rounds."""
        value = np.asarray(value)
        if exact is None:
            told, ulp = np.vectorize(str, otypes=[object])(value), np.zeros(value.shape)
        else:
            exact = np.asarray(exact, dtype=object)
            told, ulp = np.asarray(_texts(exact), dtype=object), _exact.ulp(value, exact)
        numbers = value if value.dtype.kind in "iu" else value.astype(np.float64)
        lists = [self._lists(each) for each in (numbers, told, ulp)]
        names = self._labels(value, labels)
        self.steps.append(
            Step(name, formula, latex, put_in, lists[0], lists[1], lists[2], unit, note, names, _kind(value))
        )

    def trace(
        self,
        title: str,
        call: str,
        inputs: dict[str, Any],
        result: Any,
        unit: str = "",
        line: pytorch.Line | None = None,
        check: bool = True,
        notes: Sequence[str] = (),
    ) -> Trace:
        """Return the trace of what is on the sheet."""
        result = np.asarray(result)
        plain = result if result.dtype.kind in "iu" else result.astype(np.float64)
        line = line or pytorch.Line()
        theirs, agrees = pytorch.run(line, plain) if check else (None, None)
        notes = [*notes, pytorch.digits_lost(theirs, plain) if agrees else ""]
        return Trace(
            title, call, self.dtype, inputs, tuple(self.steps), plain.tolist(), unit, line.code, theirs, agrees,
            tuple(note for note in notes if note), _kind(result),
        )  # fmt: skip

    def number(self, x: Any) -> str:
        """Return a number as formulas show it."""
        return number(float(x), _kind(np.asarray(x)) if isinstance(x, np.generic) else self.dtype)

    def minus(self, x: Any) -> str:
        """Return a number as it stands after a minus or a times sign."""
        told = self.number(x)
        return f"({told})" if told.startswith("-") else told

    def entries(self, values: Array, tell: Callable[[int, int], str], joint: str = ", ") -> str:
        """Put each entry of rows into a formula."""
        return self.each_row(lambda i: _joined(values.shape[1], CLASSES, lambda j: tell(i, j), joint))

    def sums(self, values: Array) -> str:
        """Write each row as a sum."""
        return self.entries(values, lambda i, j: self.minus(values[i, j]), " + ")

    def each_row(self, tell: Callable[[int], str]) -> str:
        """Put each row into a formula."""
        return _joined(self.rows, ROWS, tell, "; ")

    def total(self, values: Array) -> str:
        """Write one number per row as a sum."""
        return _joined(len(values), CLASSES, lambda i: self.minus(values[i]), " + ")

    def of_rows(self) -> str:
        """Return "3 classes" or "2 rows of 3 classes"."""
        classes = f"{len(self.classes):,} class{'es' * (len(self.classes) > 1)}"
        return classes if self.single else f"{self.rows:,} row{'s' * (self.rows > 1)} of {classes}"

    def place(self, i: int, j: int) -> str:
        """Return the name of an entry."""
        return self.classes[j] if self.single else f"row {i}, {self.classes[j]}"

    def shaped(self, array: Any) -> Any:
        """Return what was computed for rows in the shape of what was given."""
        return array[0] if self.single and np.ndim(array) else array

    def _lists(self, array: Any) -> Any:
        found = self.shaped(np.asarray(array))
        return found.tolist() if isinstance(found, np.ndarray | np.generic) else found

    def _labels(self, value: Array, labels: Sequence[str] | None) -> tuple[str, ...]:
        if labels is not None:
            return tuple(labels)
        if value.ndim == 2:
            return self.classes
        return tuple(f"row {i}" for i in range(len(value))) if value.ndim and not self.single else ()


def _texts(exact: Array) -> Any:
    # np.asarray would take a list of strings for characters; an array of objects keeps their nesting.
    out = np.empty(exact.shape, dtype=object)
    out[...] = _exact.text(exact)
    return out


def _joined(count: int, at_most: int, tell: Callable[[int], str], joint: str) -> str:
    kept = ends(count, at_most)
    middle = ["..."] if kept.hidden else []
    return joint.join([*map(tell, kept.first), *middle, *map(tell, kept.last)])


def _kind(value: Array) -> str:
    """Return the name of a floating type, "" of others."""
    return "" if value.dtype.kind in "iubO" else str(value.dtype.name)
