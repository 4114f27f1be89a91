"""A trace: the steps from the numbers one has to the number one asked for, as plain data.

The functions of this package make traces; terminal.py, notebook.py and page.py show them and compute nothing.
Every value is what the library computes in the user's type, beside the exact one and the distance between the two.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

Numbers: TypeAlias = "float | list[Numbers]"  # one number, a row, or rows
Texts: TypeAlias = "str | list[Texts]"


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: what happens, such as "subtract the maximum".
        formula: the formula in plain text, such as "x_j = z_j - max z".
        latex: the same in LaTeX, without dollar signs.
        substituted: the formula with the numbers put in, in plain text; of a long row the ends.
        value: the result in the user's type, as Python floats.
        exact: the exact result, decimal strings of 17 significant digits ("inf", "-inf", "nan" for what is none).
        ulp: how far value is from exact, in units of the last place of the user's type; 0 where neither is finite.
        unit: "", "nats", "bits", "probability", "odds".
        note: a sentence about what it means, or ""; where a common mistake belongs here, what goes wrong.
        labels: names of the entries of a row, such as ["class 0", "class 1"], or () for a number.
        dtype: the type that value was computed in, "" for that of the trace.
    """

    name: str
    formula: str
    latex: str
    substituted: str
    value: Numbers
    exact: Texts
    ulp: Numbers
    unit: str = ""
    note: str = ""
    labels: tuple[str, ...] = ()
    dtype: str = ""


@dataclass(frozen=True)
class Trace:
    """The steps of one call.

    Attributes:
        title: what is computed, such as "cross-entropy of 2 rows of 3 classes".
        call: the call of this library whose number this is.
        dtype: the type computed in, "float32" for instance.
        inputs: the arguments by name, as Python numbers.
        steps: in order; the last one is the result, or follows from it, as a gradient does.
        result: what the call returns.
        unit: of the result.
        pytorch: the same as a line of PyTorch, "" where it has none.
        pytorch_value: what PyTorch says, None where it is not installed or has no such function.
        agrees: whether PyTorch's is the same up to roundings of its type; None where there is none.
        notes: sentences about the whole.
        result_dtype: the type of the result, "" for that of the trace.
    """

    title: str
    call: str
    dtype: str
    inputs: dict[str, Any]
    steps: tuple[Step, ...]
    result: Numbers
    unit: str = ""
    pytorch: str = ""
    pytorch_value: Numbers | None = None
    agrees: bool | None = None
    notes: tuple[str, ...] = ()
    result_dtype: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as dictionaries, lists, strings and numbers; not finite ones as "inf", "-inf", "nan"."""
        return _finite(asdict(self))  # type: ignore[no-any-return]

    def to_json(self, indent: int | None = None) -> str:
        """Return the trace as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __str__(self) -> str:
        from lastlayer.explain.terminal import plain

        return plain(self)

    def _repr_html_(self) -> str:
        from lastlayer.explain.notebook import html

        return html(self)

    def _repr_markdown_(self) -> str:
        from lastlayer.explain.notebook import markdown

        return markdown(self)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if value != value else "inf" if value > 0 else "-inf"
    return value
