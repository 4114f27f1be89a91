"""The specification as a backend: _algebra in float64, rounded once at the end. Slow, exact, runs anywhere.

Sibling of cpu.py, which is tested against it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lastlayer import _algebra
from lastlayer._algebra import Array, Coefficients, State, Statistics

QUIET = {"invalid": "ignore", "over": "ignore", "under": "ignore", "divide": "ignore"}


def _wide(array: Array | None) -> Any:
    if array is None:
        return None
    return array.astype(np.float64) if isinstance(array, np.ndarray) else array.double()


def _write(out: Array, value: Array) -> Array:
    out[...] = value.astype(out.dtype) if isinstance(out, np.ndarray) else value.to(out.dtype)
    return out


def reserve(out: Array) -> Array:
    """Return the array; there is nothing to prepare."""
    return out


def fold(z: Array, weight: Array | None = None, moment: bool = False) -> State:
    """Return the state of each row of z (N, V), in float64. ``moment`` is always there."""
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _algebra.fold(_wide(z), _wide(weight))


def statistics(
    z: Array, target: Array | None = None, weight: Array | None = None, entropy: bool = False
) -> tuple[Statistics, State]:
    """Fold and finish: the statistics asked for (else None), and the state."""
    wide = _wide(z)
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        state = _algebra.fold(wide, _wide(weight))
        chosen = None if target is None else _pick(wide, target)
        found = _algebra.finish(state, chosen)
    return found._replace(
        logprob=None if target is None else found.logprob,
        entropy=found.entropy if entropy else None,
        cross=None if weight is None else found.cross,
    ), state


def _pick(z: Array, target: Array) -> Array:
    """Return z at the targets, NaN for one that is no class."""
    xp = _algebra.namespace(z)
    inside = (target >= 0) & (target < z.shape[1])
    return xp.where(inside, z[_algebra.classes(z.T), xp.where(inside, target, 0)], float("nan"))


def gradient(
    z: Array,
    state: State,
    numbers: Coefficients,
    target: Array | None = None,
    weight: Array | None = None,
    first_class: int = 0,
    softcap: float | None = None,
    *,
    out: Array,
) -> Array:
    """Write the gradient of the tile z into out, which may be z itself."""
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _write(out, _algebra.gradient(_wide(z), state, numbers, target, _wide(weight), first_class, softcap))


def softmax(z: Array, *, out: Array) -> Array:
    """Write the softmax of each row into out."""
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _write(out, _algebra.softmax(_wide(z)))


def log_softmax(z: Array, *, out: Array) -> Array:
    """Write the log-softmax of each row into out."""
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _write(out, _algebra.log_softmax(_wide(z)))
