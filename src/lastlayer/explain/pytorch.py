"""The line of PyTorch that computes the same, run to see whether it agrees.

What is shown is what is run. torch is imported when a line is run and not before; where it is not installed, or
cannot compute the line in this type, there is no value and nothing to agree with.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lastlayer._arrays import Array

ROUNDINGS = 8  # how many roundings of its type, at the size of the largest number on the way, torch may be off


@dataclass(frozen=True)
class Line:
    """A line of code, the arrays that it names, and the size of what is rounded on the way.

    ``F`` is torch.nn.functional and ``D`` torch.distributions in it.
    """

    code: str = ""
    names: dict[str, Array] = field(default_factory=dict)
    size: float = 1.0


def run(line: Line, ours: Any) -> tuple[Any, bool | None]:
    """Return what torch says, and whether it is ours up to roundings of its type; None, None where it says nothing."""
    if not line.code or importlib.util.find_spec("torch") is None:
        return None, None
    import torch

    names = {name: torch.tensor(array.tolist(), dtype=_type(torch, array)) for name, array in line.names.items()}
    known = {"torch": torch, "F": torch.nn.functional, "D": torch.distributions, "math": math}
    try:
        found = eval(line.code, known | names)
    except (
        RuntimeError,
        ValueError,
        IndexError,
    ):  # a type that torch has no kernel for, a value that its checks refuse
        return None, None
    eps = torch.finfo(found.dtype).eps if found.dtype.is_floating_point else 0.0
    return found.tolist(), _agrees(found, torch.as_tensor(np.asarray(ours, np.float64)).to(found.dtype), eps, line.size)


def digits_lost(theirs: Any, ours: Any) -> str:
    """Say so where torch, though it agrees, has no right digit of a number left."""
    a, b = np.asarray(theirs, np.float64), np.asarray(ours, np.float64)
    with np.errstate(all="ignore"):
        lost = np.isfinite(a) & (np.abs(a - b) > np.abs(b) / 2)
    if not lost.any():
        return ""
    return "PyTorch agrees up to roundings of the largest numbers on the way, which leave a small one no digits."


def _type(torch: Any, array: Array) -> Any:
    return torch.int64 if array.dtype.kind in "iu" else getattr(torch, array.dtype.name)


def _agrees(theirs: Any, ours: Any, eps: float, size: float) -> bool:
    a, b = (each.double().numpy() for each in (theirs, ours))
    finite = np.abs(b[np.isfinite(b)])
    size = max(size, float(finite.max(initial=0.0)))
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=0.0, atol=ROUNDINGS * eps * size, equal_nan=True))
