"""Exact values, by mpmath, and how far a rounded one is from them.

An array of exact values is a NumPy array of mpmath's numbers, so that a formula reads the same for both. A context of
our own holds the digits: nothing here depends on, or changes, those of ``mpmath.mp``. Sixty digits are enough because
the formulas of this package never subtract what is nearly equal, however far apart the logits are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lastlayer._arrays import Array

try:
    from mpmath import libmp  # type: ignore[import-untyped]
    from mpmath.ctx_mp import MPContext  # type: ignore[import-untyped]
except ModuleNotFoundError:
    raise ModuleNotFoundError("lastlayer.explain needs mpmath: pip install lastlayer[explain]") from None

DIGITS = 60
SHOWN = 17  # digits of a text: enough to tell any two float64 apart

mp: Any = MPContext()
mp.dps = DIGITS

# type: bits of the significand, exponent of the smallest normal number
FORMATS = {"float16": (11, -14), "bfloat16": (8, -126), "float32": (24, -126), "float64": (53, -1022)}


def numbers(values: Any) -> Array:
    """Return the exact values of floating-point numbers, or of Python's integers.

    Example:
        >>> print(text(numbers(0.1)))
        0.10000000000000001
    """
    array = np.asarray(values)
    return _array(_each(_number, array if array.dtype == object else array.astype(np.float64).astype(object)))


def exp(x: Any) -> Array:
    """Return e^x."""
    return _array(_each(mp.exp, x))


def log(x: Any) -> Array:
    """Return the natural logarithm; -inf of 0."""
    return _array(_each(mp.log, x))


def log1p(x: Any) -> Array:
    """Return log(1 + x), with all digits for the smallest x."""
    return _array(_each(mp.log1p, x))


def sqrt(x: Any) -> Array:
    """Return the square root."""
    return _array(_each(mp.sqrt, x))


def log_factorial(k: Any) -> Array:
    """Return log k! of whole numbers."""
    return _array(_each(mp.loggamma, k + mp.one))


def total(x: Array, axis: int | None = None) -> Array:
    """Return the sum along an axis, which stays, or of all."""
    if axis is None:
        return _array(np.add.reduce(x.reshape(-1), initial=mp.zero))
    return _array(np.add.reduce(x, axis=axis, keepdims=True, initial=mp.zero))


def times(factor: Any, value: Any) -> Array:
    """Return factor * value, where a factor of 0 silences any value."""
    return _array(_each(_times, factor, value))


def where(condition: Any, a: Any, b: Any) -> Array:
    """Return a where the condition holds, else b."""
    return _array(np.where(condition, a, b))


def text(x: Any) -> Any:
    """Return numbers as decimal strings of 17 significant digits, in lists as they are nested."""
    return _array(_each(_text, x)).tolist()


def ulp(value: Any, exact: Array) -> Array:
    """Return |value - exact| in units of the last place of value's type, at the size of exact.

    0 where neither is finite, inf where one of them is.

    Example:
        >>> print(ulp(np.float32([0.1, 1.0]), numbers([0.1, 1.0 + 2**-24])))
        [0.2 0.5]
    """
    bits, smallest = FORMATS[np.asarray(value).dtype.name]
    wide = np.asarray(value, np.float64)
    with np.errstate(all="ignore"):
        high, low, is_finite = _each(_parts, exact, returns=3)
        high, low = np.asarray(high, np.float64), np.asarray(low, np.float64)
        exponent = np.where(high == 0, smallest, np.maximum(np.frexp(high + low)[1] - 1, smallest))
        # The difference of neighbours is exact, so that what the first part lacks, low, still counts.
        apart = np.abs(np.ldexp((wide - high) - low, bits - 1 - exponent))
        both, either = np.isfinite(wide) & np.isfinite(high), np.isfinite(wide) | np.asarray(is_finite, bool)
        return np.asarray(np.where(both, apart, np.where(either, np.inf, 0.0)))


def _array(x: Any) -> Array:
    """Return an array of objects; what ufuncs make of one element is no array."""
    if isinstance(x, np.ndarray):
        return x
    out = np.empty((), dtype=object)
    out[()] = x
    return out


def _each(f: Callable[..., Any], *arrays: Any, returns: int = 1) -> Any:
    """Apply f to each element; NaN and infinity are results here, not something to warn of."""
    with np.errstate(all="ignore"):
        return np.frompyfunc(f, len(arrays), returns)(*arrays)


def _times(factor: Any, value: Any) -> Any:
    return mp.zero if factor == 0 else factor * value


def _number(x: Any) -> Any:
    return mp.make_mpf(libmp.from_float(x)) if type(x) is float else mp.mpf(x)


def _text(x: Any) -> str:
    return str(libmp.to_str(x._mpf_, SHOWN)).lstrip("+")


def _parts(x: Any) -> tuple[float, float, bool]:
    """Return x as the sum of two float64, its first 53 bits and the rest, and whether it is finite.

    What is too large for them is inf, too small 0.
    """
    sign, digits, exponent, bits = x._mpf_
    if not digits or bits + exponent > 1024:
        return float(x), 0.0, bool(mp.isfinite(x))
    more = max(bits - 53, 0)
    first = digits >> more
    high, low = math.ldexp(first, exponent + more), math.ldexp(digits - (first << more), exponent)
    return (-high, -low, True) if sign else (high, low, True)
