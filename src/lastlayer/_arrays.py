"""NumPy arguments as the kernels want them: real floating numbers, and rows with the classes side by side.

Values are checked in _validate.py; here are types and shapes. A view is taken wherever strides allow one, and nothing
here or after it writes to what the caller passed.
"""

from __future__ import annotations

import math
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lastlayer._validate import read_integer

Array: TypeAlias = NDArray[Any]
Axis: TypeAlias = SupportsIndex | tuple[SupportsIndex, ...] | None

FLOATS = ("float16", "bfloat16", "float32", "float64")


def real(name: str, value: ArrayLike) -> Array:
    """Return value as an array of one of FLOATS; integers become float64, everything else is a TypeError."""
    array = unmasked(name, value)
    if array.dtype.kind in "iu":
        return array.astype(np.float64)
    if array.dtype.name not in FLOATS:
        raise TypeError(f"{name} has dtype {array.dtype}, expected one of {', '.join(FLOATS)}, or integers")
    return native(array)


def unmasked(name: str, value: ArrayLike) -> Array:
    """Return value as an array, but never drop the mask of a masked one, or a tensor's kind, in silence."""
    if type(value).__module__.partition(".")[0] == "torch":
        raise TypeError(
            f"{name} is a torch.Tensor, expected a NumPy array: lastlayer.torch has these functions for tensors"
        )
    if hasattr(value, "mask") and hasattr(value, "filled"):
        raise TypeError(f"{name} is a masked array, expected a plain one: pass its data, and where= if there is one")
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be rectangular: its rows differ in length") from None


def native(array: Array) -> Array:
    """Return the array in this machine's byte order, aligned, with strides of whole elements: what kernels can read."""
    if array.dtype.isnative and array.flags.aligned and all(s % array.itemsize == 0 for s in array.strides):
        return array
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def statistics_type(*arrays: Array) -> np.dtype[Any]:
    """Return the type of losses and statistics: float64 if an argument is, else float32."""
    return np.dtype(np.float64 if any(array.dtype == np.float64 for array in arrays) else np.float32)


@np.errstate(all="ignore")
def round_to(values: Any, dtype: Any) -> Any:
    """Round once, in silence; what has no dimensions becomes a scalar."""
    return np.asarray(values).astype(dtype, copy=False)[()]


def axes_of(axis: Axis, ndim: int) -> tuple[int, ...]:
    """Return axis as sorted non-negative numbers; None is all of them."""
    given = tuple(range(ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = sorted({class_axis(a, ndim)[0] for a in given})
    if len(axes) < len(given):
        raise ValueError(f"axis = {axis} names one axis twice")
    return tuple(axes)


def class_axis(axis: SupportsIndex, ndim: int) -> tuple[int]:
    """Return the one axis that holds the classes, as a non-negative number."""
    index = read_integer("axis", axis)
    if not -ndim <= index < ndim:
        raise np.exceptions.AxisError(index, ndim)
    return (index % ndim,)


def row_shape(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool = False) -> tuple[int, ...]:
    """Return the shape that is left when the axes are reduced."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape) if keepdims or i not in axes)


def last(array: Array, axes: tuple[int, ...]) -> Array:
    """Return a view with the axes at the end."""
    return np.moveaxis(array, axes, range(-len(axes), 0))


def tile(array: Array, axes: tuple[int, ...]) -> Array:
    """Return the array as (N, V): a view where strides allow it, else a copy."""
    n = array.ndim - len(axes)
    moved = array if axes == tuple(range(n, array.ndim)) else last(array, axes)
    return moved.reshape(math.prod(moved.shape[:n]), math.prod(moved.shape[n:]))


def fill(out: Array, axes: tuple[int, ...], tiled: Array) -> Array:
    """Put a tile of out back where it belongs, unless it is a view and lies there already."""
    if not np.may_share_memory(out, tiled):
        moved = last(out, axes)
        moved[...] = tiled.reshape(moved.shape)
    return out


def included(where: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return where, checked and broadcast."""
    keep = unmasked("where", where)
    if keep.dtype != np.bool_:
        raise TypeError(f"where has dtype {keep.dtype}, expected bool")
    try:
        return np.broadcast_to(keep, shape)
    except ValueError:
        raise ValueError(f"where has shape {keep.shape}, which does not broadcast to {shape}") from None


def mask(z: Array, where: ArrayLike | None, value: float = -math.inf) -> Array:
    """Return z with the value for what is not in where; z itself if there is no where."""
    if where is None:
        return z
    keep, result = included(where, z.shape), z.copy()
    result[~keep] = value
    return result
