"""What is given: arrays, lists and tensors as NumPy arrays of the user's type, in rows.

The library's functions check values, as they do for everybody; here is only what a trace cannot do.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lastlayer._arrays import Array, real, unmasked

LIMIT = 250_000  # each number of a trace is computed to 60 digits; this many take about ten seconds


def array(name: str, value: Any) -> Array:
    """Return a list, an array or a tensor of any device as a NumPy array of its own type."""
    if not hasattr(value, "detach"):
        return unmasked(name, value)
    tensor = value.detach().cpu()
    if str(tensor.dtype) != "torch.bfloat16":
        return np.asarray(tensor.numpy())
    return np.asarray(tensor.float().numpy()).astype(_bfloat16())


def read(name: str, value: Any, most: int = 2) -> Array:
    """Return value as floats with 1 or 2 dimensions; with most = 2, as rows side by side."""
    given = real(name, array(name, value))
    if not 1 <= given.ndim <= most:
        raise ValueError(f"{name} has shape {given.shape}, expected (V,) or (N, V): one row or several")
    if given.size == 0:
        raise ValueError(f"{name} has shape {given.shape}: there is nothing to explain")
    _check_size(name, given)
    return given


def elements(name: str, value: Any) -> Array:
    """Return value as floats with 0, 1 or 2 dimensions."""
    given = real(name, array(name, value))
    if given.ndim > 2:
        raise ValueError(f"{name} has shape {given.shape}, expected at most 2 dimensions")
    if given.size == 0:
        raise ValueError(f"{name} has shape {given.shape}: there is nothing to explain")
    _check_size(name, given)
    return given


def plain(value: Any) -> Any:
    """Return an argument as Python numbers, in lists as they are nested."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, tuple | list) and value and all(isinstance(each, str) for each in value):
        return list(value)
    found = array("value", value)
    return (found if found.dtype.kind in "iub" else found.astype(np.float64)).tolist()


def _check_size(name: str, given: Array) -> None:
    if given.size > LIMIT:
        rows = max(1, LIMIT // given.shape[-1])
        advice = f"pass {rows} row{'s' * (rows > 1)}" if math.prod(given.shape[:-1]) > 1 else "pass fewer"
        raise ValueError(f"{name} has {given.size:,} numbers, at most {LIMIT:,} are explained: {advice}")


def _bfloat16() -> Any:
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        raise ModuleNotFoundError("explaining bfloat16 needs ml_dtypes: pip install ml-dtypes") from None
    return ml_dtypes.bfloat16
