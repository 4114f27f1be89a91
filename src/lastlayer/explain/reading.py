"""Numbers as they are typed, piped or stored: text, .npy, .npz and .safetensors, as arrays of the wanted type.

Only the shape of the text is checked here; what the numbers may be is checked by the library's functions. Every error
is one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lastlayer._arrays import Array

DTYPES = ("float16", "bfloat16", "float32", "float64")


def numbers(text: str, name: str = "numbers") -> list[list[str]]:
    """Return the rows of a text, not yet read as numbers, all of one length.

    Args:
        text: numbers with spaces or commas between them; a semicolon or a new line ends a row. Brackets, as Python
            prints them, may stand around rows.
        name: what to call the numbers in an error.

    Raises:
        ValueError: no numbers, or rows of different lengths.

    Example:
        >>> numbers("0.2 0.5 -0.1; -0.1 0.1 0.3")
        [['0.2', '0.5', '-0.1'], ['-0.1', '0.1', '0.3']]
        >>> numbers("[[1, 2], [3, 4]]")
        [['1', '2'], ['3', '4']]
    """
    lines = re.split(r"[;\n]|\]\s*,?\s*\[", text)
    found = [row for row in (re.sub(r"[\[\](),]", " ", line).split() for line in lines) if row]
    if not found:
        raise ValueError(f"no {name} given")
    for i, row in enumerate(found):
        if len(row) != len(found[0]):
            raise ValueError(f"{name}: row {i} has {len(row)} numbers, row 0 has {len(found[0])}; expected as many")
    return found


def floats(rows: list[list[str]], dtype: str, name: str = "numbers") -> Array:
    """Return rows of text as floats: (V,) for one row, else (N, V).

    Example:
        >>> floats([["1.5", "-inf"]], "float32")
        array([ 1.5, -inf], dtype=float32)
    """
    values = [[_float(word, name) for word in row] for row in rows]
    return as_type(np.array(values[0] if len(values) == 1 else values), dtype, name)


def classes(text: str, rows: list[list[str]]) -> Any:
    """Return targets: whole numbers are class indices, anything else rows of probabilities.

    The way they are written decides, not their values: "1" is a class, "1.0" a probability.

    Example:
        >>> classes("--target", [["1", "2"]])
        array([1, 2])
        >>> classes("--target", [["0.9", "0.1"]])
        array([0.9, 0.1])
    """
    if not all(re.fullmatch(r"[+-]?\d+", word) for row in rows for word in row):
        return floats(rows, "float64", text)
    if len(rows) > 1 and len(rows[0]) > 1:
        raise ValueError(f"{text}: expected one class for each row, or probabilities such as 1.0; got {len(rows)} rows")
    found = [int(word) for row in rows for word in row]
    if any(abs(each) >= 2**63 for each in found):
        raise ValueError(f"{text}: {max(found, key=abs)} is not a class")
    return np.array(found)


def as_type(values: Array, dtype: str, name: str = "numbers") -> Array:
    """Return values in a floating type; ValueError if one of them is beyond it."""
    if dtype == "bfloat16":
        try:
            from ml_dtypes import bfloat16
        except ModuleNotFoundError:
            raise ValueError("bfloat16 needs ml_dtypes: pip install ml-dtypes") from None
        wanted: Any = bfloat16
    else:
        wanted = np.dtype(dtype)
    with np.errstate(over="ignore"):
        found = values.astype(wanted)
    beyond = np.isinf(found) & np.isfinite(values)
    if beyond.any():
        raise ValueError(f"{name}: {float(values[beyond].flat[0])!r} is beyond {dtype}")
    return found


def stored(path: str, name: str | None, rows: str | None, targets: bool = False) -> Array:
    """Return an array of a file, or some of its rows; of an array of more than two dimensions, all rows in order.

    Args:
        path: an .npy, .npz or .safetensors file.
        name: which of its arrays; None if there is only one.
        rows: such as "0:3", "-2:" or "5"; None for all.
        targets: integers are class indices, each a row of its own.

    Raises:
        ValueError: another kind of file, an array or rows that are not there.
        OSError: a file that cannot be read.
    """
    kind = Path(path).suffix.lower()
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}
    if kind not in readers:
        raise ValueError(f"{path}: expected a file named .npy, .npz or .safetensors")
    with open(path, "rb"):  # says in one line what is wrong with a path, where the readers tell their own story
        pass
    return readers[kind](path, name, rows, targets)


def _npy(path: str, name: str | None, rows: str | None, targets: bool) -> Array:
    if name is not None:
        raise ValueError(f"{path}: an .npy file has one array without a name, not {name!r}")
    try:
        # Mapped, not read: of a large file only the rows asked for are touched.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, ValueError):  # whose advice to load pickled objects is none
        raise ValueError(f"{path}: not an .npy file of numbers") from None
    return _rows(path, found, found.shape, targets and found.dtype.kind in "iu", rows)


def _npz(path: str, name: str | None, rows: str | None, targets: bool) -> Array:
    from zipfile import BadZipFile, is_zipfile

    if not is_zipfile(path):
        raise ValueError(f"{path}: not an .npz file")
    with np.load(path, allow_pickle=False) as archive:
        wanted = _name(path, list(archive.files), name)
        try:
            found = np.asarray(archive[wanted])
        except (BadZipFile, EOFError, ValueError):
            raise ValueError(f"{path}: {wanted} is not an array of numbers") from None
    return _rows(path, found, found.shape, targets and found.dtype.kind in "iu", rows)


def _safetensors(path: str, name: str | None, rows: str | None, targets: bool) -> Array:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise ValueError("reading .safetensors needs safetensors: pip install safetensors") from None
    try:
        with safe_open(path, framework="numpy") as file:
            part = file.get_slice(_name(path, list(file.keys()), name))
            return _rows(path, part, part.get_shape(), targets and part.get_dtype()[0] in "IU", rows)
    except (SafetensorError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _name(path: str, names: list[str], name: str | None) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name in names:
        return str(name)
    told = ", ".join(names[:10]) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")
    if name is None:
        raise ValueError(f"{path} has {len(names)} arrays, name one of them: {told}")
    raise ValueError(f"{path} has no array {name!r}, only {told}")


def _rows(path: str, part: Any, shape: Sequence[int], each: bool, rows: str | None) -> Array:
    """Return rows of what can be sliced along its first axis; each says that every number is a row of its own."""
    if not shape:
        return np.asarray(part[...])
    inner = prod(shape[1:] if each else shape[1:-1])  # rows for each index of the first axis
    count = shape[0] * inner
    start, stop = (0, count) if rows is None else _bounds(path, rows, count)
    first = start // max(inner, 1)
    found = np.asarray(part[first : -(-stop // max(inner, 1))])
    flat = found.reshape(-1) if each or len(shape) == 1 else found.reshape(-1, shape[-1])
    return flat[start - first * inner : stop - first * inner]


def _bounds(path: str, rows: str, count: int) -> tuple[int, int]:
    match = re.fullmatch(r"(-?\d+)?(:)?(-?\d+)?", rows.strip())
    if not match or not (match[1] or match[2]):
        raise ValueError(f"rows {rows!r}: expected such as 0:3, -2: or 5")
    start, stop = (int(each) if each else None for each in (match[1], match[3]))
    if not match[2] and start is not None:
        stop = start + 1 if start != -1 else None
    first, last, _ = slice(start, stop).indices(count)
    if first >= last:
        raise ValueError(f"{path}: no rows {rows.strip()!r}, there are {count:,}")
    return first, last


def _float(word: str, name: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{name}: {word!r} is not a number") from None
