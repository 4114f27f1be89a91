"""Checks shared by the public functions of both front ends; a message names argument, expectation and value.

Nothing here is called twice for one argument: public functions check, private ones trust.
"""

from __future__ import annotations

import math
import operator
from typing import Any, Literal, TypeAlias

import numpy as np

from lastlayer._algebra import Array, namespace

Unit: TypeAlias = Literal["nats", "bits"]

REDUCTIONS = ("none", "mean", "sum")
NATS_PER_UNIT = {"nats": 1.0, "bits": math.log(2.0)}


class NotLogProbabilityWarning(UserWarning):
    """A value above 0 was passed where a log-probability belongs: probably probabilities or raw logits."""


class ArgumentError(ValueError, RuntimeError):
    """A value or a shape that does not fit: ValueError is Python's word for it, RuntimeError is what torch raises."""


def position(mask: Array) -> tuple[int, ...]:
    """Return the index of the first true element."""
    flat = np.asarray(mask).reshape(-1) if isinstance(mask, np.ndarray | np.generic) else mask.reshape(-1).cpu().numpy()
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(flat)), tuple(mask.shape)))


def element(name: str, index: tuple[int, ...]) -> str:
    """Return ``name[i, j]``, or the bare name of a scalar."""
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def read_integer(name: str, value: Any) -> int:
    """Return value as an int; TypeError for what is no integer, True and 1.0 included."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} = {value!r} must be an integer, not {type(value).__name__}")


def read_number(name: str, value: Any) -> float:
    """Return value as a float; TypeError for what is no real number. A scalar array or tensor is one."""
    if isinstance(value, int | float):  # torch.compile may have put a symbol here, and lets nothing else be asked of it
        return value
    if getattr(value, "requires_grad", False):
        raise TypeError(f"{name} requires a gradient, expected a constant")
    if not isinstance(value, str | bytes | complex):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TypeError(f"{name} = {value!r} must be a number, not {type(value).__name__}")


def read_unit(unit: Unit) -> float:
    """Return how many nats the unit is; ValueError for what is no unit."""
    if not isinstance(unit, str) or unit not in NATS_PER_UNIT:
        raise ValueError(f"unit = {unit!r} is not one of {', '.join(map(repr, NATS_PER_UNIT))}")
    return NATS_PER_UNIT[unit]


def check_target(target: Array, classes: int, ignore_index: int | None, name: str = "target") -> None:
    """Raise IndexError naming the first target that is neither a class nor ignored."""
    bad = (target < 0) | (target >= classes)
    if ignore_index is not None:
        bad = bad & (target != ignore_index)
    if bool(bad.any()):
        index = position(bad)
        value = int(target[index]) if index else int(target)
        raise IndexError(f"{element(name, index)} = {value} is outside [0, {classes})")


def check_reduction(reduction: str, names: tuple[str, ...] = REDUCTIONS) -> None:
    """Raise ValueError unless reduction is one of these, by default torch's three."""
    if reduction not in names:
        raise ValueError(f"reduction = {reduction!r} is not one of {', '.join(map(repr, names))}")


def check_label_smoothing(label_smoothing: float) -> None:
    """Raise ArgumentError unless label_smoothing lies in [0, 1]; NaN does not."""
    if not 0.0 <= read_number("label_smoothing", label_smoothing) <= 1.0:
        raise ArgumentError(f"label_smoothing = {label_smoothing} must be between 0.0 and 1.0")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless value is finite and above 0."""
    if not (math.isfinite(read_number(name, value)) and value > 0):
        raise ValueError(f"{name} = {value} must be a finite number above 0")


def check_finite(name: str, value: float) -> None:
    """Raise ValueError unless value is a finite number."""
    if not math.isfinite(read_number(name, value)):
        raise ValueError(f"{name} = {value} must be finite")


def check_shape(name: str, array: Array, expected: tuple[int, ...], why: str = "") -> None:
    """Raise ValueError unless the array has exactly this shape."""
    if tuple(array.shape) != expected:
        raise ValueError(f"{name} has shape {tuple(array.shape)}, expected {expected}{why}")


def not_log_probability(gathered: Array, name: str = "input") -> str | None:
    """Return what to say if a gathered value is above 0 and so cannot be a log-probability, else None."""
    bad = gathered > 0
    if not bool(bad.any()):
        return None
    index = position(bad)
    value: Any = float(gathered[index]) if index else float(gathered)
    low, high = float(namespace(gathered).amin(gathered)), float(namespace(gathered).amax(gathered))
    kind = "probabilities" if low >= 0 and high <= 1 else "raw logits"
    call = "their logarithm" if kind == "probabilities" else "log_softmax of them"
    return (
        f"the value of {name} at the target of {element('row', index)} is {value:.6g}, above 0, so it is no "
        f"log-probability: {kind} were passed? Pass {call}, or call cross_entropy on the logits"
    )
