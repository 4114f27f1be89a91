"""Which code computes a tile: the one visible place where that is decided, and how it is told.

A backend is a module with functions on tiles of logits (N, V), NumPy or torch, any strides:

    fold(z, weight, moment) -> State                                gradient(z, state, numbers, ..., out) -> out
    statistics(z, target, weight, entropy) -> Statistics, State     softmax(z, out), log_softmax(z, out) -> out
    draw(z, uniforms, rules, order, edits, replacement) -> Drawn    uniforms(seed, offset, step, samples) -> (N, S)
    multinomial(p, uniforms, replacement) -> index, status          masses, choose, inside, topk: draws from tiles
    reserve(out) -> out, before a large new array is written
``cpu`` is the C++ of native/, ``reference`` the specification itself in float64. They never import each other.
"""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType
from typing import Any

from lastlayer._backends import reference
from lastlayer._backends.threads import numpy_threads

try:
    from lastlayer._backends import cpu
except ImportError as error:
    cpu = None  # type: ignore[assignment]
    built = importlib.util.find_spec("lastlayer._native") is not None
    missing = str(error) if built else "this installation was built without the native module"

__all__ = ["choose", "cpu", "numpy_threads", "reference", "requested"]
NAMES = ("cpu", "reference")


def requested() -> str | None:
    """Return the backend named by the environment variable LASTLAYER_BACKEND, checked."""
    name = os.environ.get("LASTLAYER_BACKEND") or None
    if name is not None and name not in NAMES:
        raise ValueError(f"LASTLAYER_BACKEND = {name!r}: expected one of {', '.join(NAMES)}")
    if name == "cpu" and cpu is None:
        raise RuntimeError(f"LASTLAYER_BACKEND = 'cpu', which is not there: {missing}")
    if cpu is not None:
        cpu.check_setting()
    return name


def choose(z: Any) -> ModuleType:
    """Return the backend for this array: the one named by the user, else the fastest that takes it."""
    if cpu is None:
        requested()
        return reference
    if cpu.unset() and cpu.takes(z):
        return cpu
    name = requested()
    return cpu if name == "cpu" or (name is None and cpu.takes(z)) else reference
