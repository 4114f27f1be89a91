"""Which code computes a tile: the one visible place where that is decided, and how it is told.

A backend is a module with functions on tiles of logits (N, V), NumPy or torch, any strides:

    fold(z, weight, moment) -> State                                gradient(z, state, numbers, ..., out) -> out
    statistics(z, target, weight, entropy) -> Statistics, State     softmax(z, out), log_softmax(z, out) -> out
    loss(z, terms, target, weight, ..., losses, out) -> total       times_(out, factor) -> out, in place
    draw(z, uniforms, rules, order, edits, replacement) -> Drawn    uniforms(seed, offset, step, samples) -> (N, S)
    multinomial(p, uniforms, replacement) -> index, status          masses, choose, inside, topk: draws from tiles
    reserve(out) -> out, before a large new array is written        check_targets(target, classes, ignored)
``cpu`` is the C++ of native/, ``triton`` kernels for a GPU, ``reference`` the specification itself in float64. They
never import each other. What ``triton`` returns stays on the device: a total, or a count, is a tensor that nobody has
waited for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from lastlayer._backends import reference
from lastlayer._backends.threads import numpy_threads

try:
    from lastlayer._backends import cpu
except ImportError as error:
    cpu = None  # type: ignore[assignment]
    built = importlib.util.find_spec("lastlayer._native") is not None
    missing = str(error) if built else "this installation was built without the native module"

__all__ = ["choose", "cpu", "gpu", "host", "numpy_threads", "reference", "requested"]
NAMES = ("cpu", "triton", "reference")


@cache
def gpu() -> ModuleType | None:
    """Return the Triton backend, imported when it is first asked for; None where triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("lastlayer._backends.triton")


def requested() -> str | None:
    """Return the backend named by the environment variable LASTLAYER_BACKEND, checked."""
    name = os.environ.get("LASTLAYER_BACKEND") or None
    if name is not None and name not in NAMES:
        raise ValueError(f"LASTLAYER_BACKEND = {name!r}: expected one of {', '.join(NAMES)}")
    if name == "cpu" and cpu is None:
        raise RuntimeError(f"LASTLAYER_BACKEND = 'cpu', which is not there: {missing}")
    if name == "triton" and gpu() is None:
        raise RuntimeError("LASTLAYER_BACKEND = 'triton', which is not there: triton is not installed")
    if cpu is not None:
        cpu.check_setting()
    return name


def choose(z: Any) -> ModuleType:
    """Return the backend for this array: the one named by the user, else the fastest that takes it."""
    if cpu is not None and cpu.unset() and cpu.takes(z):
        return cpu
    name = requested()
    if name == "reference":
        return reference
    if name is None:
        fits = (backend for backend in (cpu, None if isinstance(z, np.ndarray) or z.is_cpu else gpu()) if backend)
        return next((backend for backend in fits if backend.takes(z)), reference)
    named: Any = cpu if name == "cpu" else gpu()
    if not named.takes(z):
        where = "a NumPy array" if isinstance(z, np.ndarray) else f"a tensor on {z.device}"
        raise RuntimeError(f"LASTLAYER_BACKEND = {name!r} does not take {where} of {z.dtype}")
    return named  # type: ignore[no-any-return]


def host() -> ModuleType:
    """Return the backend for numbers in this process's memory."""
    return reference if cpu is None or requested() == "reference" else cpu
