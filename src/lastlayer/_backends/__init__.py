"""Which code computes a tile: the one visible place where that is decided, and how it is told.

A backend is a module with four functions on tiles of logits (N, V), NumPy or torch, any strides:

    fold(z, weight, moment) -> State            gradient(z, state, numbers, ..., out) -> out
    softmax(z, out) -> out                      log_softmax(z, out) -> out

``cpu`` is the C++ of native/, ``reference`` the specification itself in float64. They never import each other.
"""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType
from typing import Any

import numpy as np

from lastlayer._backends import reference

try:
    from lastlayer._backends import cpu
except ImportError as error:
    cpu = None  # type: ignore[assignment]
    built = importlib.util.find_spec("lastlayer._native") is not None
    missing = str(error) if built else "this installation was built without the native module"

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
    name = requested()
    if name == "reference" or cpu is None:
        return reference
    if name == "cpu" or cpu.takes(z):
        return cpu
    return reference


def numpy_threads() -> tuple[int, str]:
    """Return how many threads work on NumPy arrays, and why."""
    setting = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if setting.isdigit() and int(setting) > 0:
        return int(setting), "OMP_NUM_THREADS"
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)), "the processors this process may use"
    return os.cpu_count() or 1, "the processors of this machine"


def is_numpy(z: Any) -> bool:
    """Tell NumPy arrays from torch tensors."""
    return isinstance(z, np.ndarray)
