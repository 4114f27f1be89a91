"""The C++ kernels of native/ as a backend for NumPy arrays and torch CPU tensors: addresses and strides, no copies.

Sibling of reference.py, whose results it is tested against.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lastlayer import _native
from lastlayer._algebra import Array, Coefficients, State, Statistics, Terms
from lastlayer._backends.threads import numpy_threads
from lastlayer._draws import BLOCK, STEPS, Drawn, Edits, Rules

CODES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}  # enum DType of native/rows.h

LARGE = 4 << 20  # bytes; two huge pages

SETTING = os.environ.get("LASTLAYER_INSTRUCTION_SET") or None  # read once: kernels do not change during a run
if SETTING in _native.instruction_sets():
    _native.use_instruction_set(SETTING)


def check_setting() -> None:
    """Raise ValueError if LASTLAYER_INSTRUCTION_SET names none that is there."""
    if SETTING is not None and SETTING not in _native.instruction_sets():
        known = ", ".join(_native.instruction_sets())
        raise ValueError(f"LASTLAYER_INSTRUCTION_SET = {SETTING!r}: expected one of {known}")


def share_threads(directory: str) -> bool:
    """Work in the threads of the OpenMP runtime that was loaded from this directory, if there is one."""
    return _native.share_threads(directory)


def unset() -> bool:
    """Tell whether no setting asks for a backend or an instruction set that would have to be checked."""
    return SETTING is None and not _native.environment("LASTLAYER_BACKEND")


def instruction_sets() -> tuple[list[str], str]:
    """Return the instruction sets of this build and processor, the one in use first, and why it is in use."""
    used = _native.instruction_set()
    others = [name for name in _native.instruction_sets() if name != used]
    return [used, *others], "LASTLAYER_INSTRUCTION_SET" if SETTING else "the best"


_codes: dict[Any, int | None] = {}  # of the types met so far, NumPy's and torch's


def _code(z: Array) -> int | None:
    dtype = z.dtype
    if dtype not in _codes:
        _codes[dtype] = CODES.get(dtype.name if isinstance(dtype, np.dtype) else str(dtype)[6:])
    return _codes[dtype]


def takes(z: Array) -> bool:
    """Tell whether the kernels read this array: a floating type they know, in this process's memory."""
    return _code(z) is not None and (isinstance(z, np.ndarray) or z.is_cpu)


def _address(array: Array) -> int:
    if isinstance(array, np.ndarray):
        return int(array.__array_interface__["data"][0])
    return array.data_ptr()  # type: ignore[no-any-return]


def _tile(z: Array) -> tuple[int, int, int, int, int]:
    n, v = z.shape
    if isinstance(z, np.ndarray):
        rows, classes = (stride // z.itemsize for stride in z.strides)
        return (_address(z), n, v, rows, classes)
    rows, classes = z.stride()
    return (z.data_ptr(), n, v, rows, classes)


def _threads(z: Array) -> int:
    if isinstance(z, np.ndarray):
        return numpy_threads()[0]
    return sys.modules["torch"].get_num_threads()  # type: ignore[no-any-return]


def _empty(z: Array, fields: int) -> Any:
    if isinstance(z, np.ndarray):
        return np.empty((fields, z.shape[0]))
    return z.new_empty((fields, z.shape[0]), dtype=sys.modules["torch"].float64)


def reserve(out: Array) -> Array:
    """Return a new, contiguous array after asking for huge pages behind it: its first touch then costs a third."""
    if out.nbytes >= LARGE and not isinstance(out, np.ndarray):  # NumPy asks by itself
        _native.reserve(_address(out), out.nbytes)
    return out


def _weight(z: Array, weight: Array | None) -> tuple[Any, tuple[int, int]]:
    """Return weights of the statistics' type with classes side by side (and keep them alive), and their description."""
    if weight is None:
        return None, (0, 0)
    double = _code(z) == CODES["float64"]
    if isinstance(weight, np.ndarray):
        weight = np.asarray(weight, np.float64 if double else np.float32)
        step = weight.strides[-1] == weight.itemsize or weight.shape[-1] == 1
        weight = weight if step else np.ascontiguousarray(weight)
        return weight, (_address(weight), weight.strides[0] // weight.itemsize if weight.ndim == 2 else 0)
    torch = sys.modules["torch"]
    weight = weight.to(torch.float64 if double else torch.float32)
    weight = weight if weight.stride(-1) == 1 else weight.contiguous()
    return weight, (_address(weight), weight.stride(0) if weight.dim() == 2 else 0)


def fold(z: Array, weight: Array | None = None, moment: bool = False) -> State:
    """Return the state of each row of z (N, V), in float64; moment is 0 unless asked for."""
    kept, described = _weight(z, weight)
    state = _empty(z, 5)
    if not moment:
        state[2] = 0
    if kept is None:
        state[3:] = 0
    _native.fold(_code(z), _tile(z), described, _address(state), moment, _threads(z))
    return State(*state)


def statistics(
    z: Array, target: Array | None = None, weight: Array | None = None, entropy: bool = False, keep: bool = True
) -> tuple[Statistics, State | None]:
    """Fold and finish in one pass: the statistics asked for (else None); to keep, of the state max, rest and mass."""
    kept, described = _weight(z, weight)
    state: Any = _empty(z, 3) if keep else None
    out = _empty(z, 4)
    at = 0 if target is None else _address(target)
    if keep and kept is None:
        state[2] = 0
    kept_at = _address(state) if keep else 0
    _native.statistics(_code(z), _tile(z), described, at, kept_at, _address(out), entropy, _threads(z))
    asked = (True, target is not None, entropy, kept is not None)
    found = Statistics(*(out[i] if wanted else None for i, wanted in enumerate(asked)))
    if not keep:
        return found, None
    return found._replace(max=state[0]), State(state[0], state[1], None, None, state[2])


def _block(z: Array, numbers: Coefficients) -> Any:
    if isinstance(z, np.ndarray):
        return np.stack([np.asarray(number, np.float64) for number in numbers])
    torch = sys.modules["torch"]
    return torch.stack([number.double() for number in numbers])


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
    """Write the gradient of the tile z into out, which may be z itself; target is int64 and contiguous."""
    kept, described = _weight(z, weight)
    block = _block(z, numbers)
    _native.gradient(
        _code(z),
        _tile(z),
        _tile(out),
        _address(state.max),
        _address(state.rest),
        _address(block),
        0 if target is None else _address(target),
        first_class,
        described,
        0.0 if softcap is None else 1.0 / softcap,
        _threads(z),
    )
    del kept
    return out


NOWHERE = (0, 0, 0, 0, 0)
NO_FACTOR = (0.0, 0)


def _factor(factor: Array | float | None) -> tuple[float, int]:
    """Describe a factor of the rows: one number, or where the rows' own are (float64, contiguous)."""
    if factor is None:
        return NO_FACTOR
    return (factor, 0) if isinstance(factor, float) else (1.0, _address(factor))


def loss(
    z: Array,
    terms: Terms,
    target: Array | None = None,
    weight: Array | None = None,
    *,
    ignored: int = -1,
    scale: Array | float = 1.0,
    softcap: float | None = None,
    losses: Array | None = None,
    out: Array | None = None,
    unscaled: bool = False,
) -> float:
    """Return the sum of the rows' losses, with each in ``losses`` and the gradient, times scale, in ``out``.

    ``unscaled``, that out holds the gradient times 1 already, is for who cannot look at the scale before calling.

    One visit of each row: folded, finished and, while it is in a cache, turned into its gradient. The sum does not
    depend on the number of threads. ``target`` is int64 and contiguous; rows whose target is ``ignored`` are absent.
    """
    kept, described = _weight(z, weight)
    nll, cross, square = terms
    total = _native.loss(
        _code(z),
        _tile(z),
        NOWHERE if out is None else _tile(out),
        described,
        0 if target is None else _address(target),
        ignored,
        _factor(nll),
        NO_FACTOR if cross is None else _factor(cross),
        NO_FACTOR if square is None else _factor(square),
        float(scale),
        0.0 if softcap is None else 1.0 / softcap,
        0 if losses is None else _address(losses),
        _threads(z),
    )
    del kept
    return total


def times_(out: Array, factor: Array | float) -> Array:
    """Multiply an array in place by one number; by 1, not at all."""
    factor = float(factor)
    if factor != 1.0:
        out *= factor
    return out


def check_targets(target: Array, classes: int, ignored: int) -> tuple[int, int]:
    """Return the first row whose target is neither a class nor ignored (-1: none), and how many are ignored.

    ``target`` is int64 and contiguous.
    """
    return _native.check_targets(_address(target), target.shape[0], classes, ignored, _threads(target))


def softmax(z: Array, *, out: Array) -> Array:
    """Write the softmax of each row into out."""
    _native.softmax(_code(z), _tile(z), _tile(out), False, _threads(z))
    return out


def log_softmax(z: Array, *, out: Array) -> Array:
    """Write the log-softmax of each row into out."""
    _native.softmax(_code(z), _tile(z), _tile(out), True, _threads(z))
    return out


def _like(z: Array, *arrays: Any) -> Any:
    """Return NumPy arrays as the kind of z, which is in this process's memory."""
    return arrays if isinstance(z, np.ndarray) else tuple(map(sys.modules["torch"].from_numpy, arrays))


def _numbers(array: Any) -> NDArray[np.float64]:
    """Return numbers per row, NumPy's or a tensor, as the kernels read them."""
    return np.ascontiguousarray(array, np.float64)


def uniforms(
    seed: NDArray[np.uint64],
    offset: NDArray[np.uint64],
    step: NDArray[np.uint64],
    samples: int,
    *,
    second: bool = False,
) -> NDArray[np.float64]:
    """Return the uniforms of _philox.py (N, S)."""
    a, b, c = (np.ascontiguousarray(word) for word in (seed, offset, step))
    out = np.empty((len(a), samples))
    address = _native.address
    _native.uniforms(address(a), address(b), address(c), False, len(a), samples, second, address(out))
    return out


def uniforms_of_rows(seed: int, step: int, rows: int, samples: int, *, second: bool = False) -> NDArray[np.float64]:
    """Return the uniforms of rows 0..N-1 under one seed and step."""
    words = np.array((seed, step), np.uint64)
    out, at = np.empty((rows, samples)), _native.address(words)
    _native.uniforms(at, 0, at + 8, True, rows, samples, second, _native.address(out))
    return out


CODES_OF_STEPS = list(range(len(STEPS)))


def draw(
    z: Array, uniforms: Any, rules: Rules, order: tuple[str, ...], edits: Edits | None, replacement: bool
) -> Drawn:
    """Draw from each row in one pass; the numbers per row are NumPy's, the result is of the kind of z.

    What has no integers is of the type of statistics: rounded once, all together.
    """
    u = _numbers(uniforms)
    n, samples = u.shape
    given = [None if rule is None else _numbers(rule) for rule in rules]
    address = _native.address
    changed = [] if edits is None else [np.ascontiguousarray(each) for each in edits]
    size = n * samples
    whole, real = np.empty(2 * size + 2 * n, np.int64), np.empty(2 * size + 2 * n)
    at, real_at = address(whole), address(real)
    _native.draw(
        _code(z), _tile(z), address(u), samples, [0 if rule is None else address(rule) for rule in given],
        CODES_OF_STEPS if order == STEPS else [STEPS.index(name) for name in order],
        [address(each) for each in changed], replacement,
        [at, at + 8 * size, real_at, real_at + 8 * size, at + 16 * size, at + 16 * size + 8 * n, real_at + 16 * size,
         real_at + 16 * size + 8 * n],
        _threads(z),
    )  # fmt: skip
    real = real if _code(z) == CODES["float64"] else real.astype(np.float32)
    index, rank, kept, status = _parts(whole, n, samples)
    logprob, sampled, mass, logsumexp = _parts(real, n, samples)
    return Drawn(*_like(z, index, logprob, sampled, rank, kept, mass, logsumexp, status))


def _parts(block: Any, n: int, samples: int) -> tuple[Any, Any, Any, Any]:
    """Return two fields per draw and two per row."""
    size = n * samples
    a, b = block[: 2 * size].reshape(2, n, samples)
    return a, b, block[2 * size : 2 * size + n], block[2 * size + n :]


def tempered(z: Array, rules: Rules, order: tuple[str, ...]) -> Array:
    """Return (z - max) / T of the classes kept, -inf of the others, float64 (N, V)."""
    given = [None if rule is None else _numbers(rule) for rule in rules]
    scaled = np.empty(z.shape)
    _native.tempered(
        _code(z), _tile(z), [0 if rule is None else _native.address(rule) for rule in given],
        [STEPS.index(name) for name in order], _native.address(scaled), _threads(z),
    )  # fmt: skip
    return _like(z, scaled)[0]


def multinomial(p: Array, uniforms: Any, replacement: bool) -> tuple[Array, Array]:
    """Draw from each row of weights: the classes, and the status of the rows."""
    u = _numbers(uniforms)
    index, status = np.zeros(u.shape, np.int64), np.empty(len(u), np.int64)
    _native.multinomial(
        _code(p),
        _tile(p),
        _native.address(u),
        u.shape[1],
        replacement,
        _native.address(index),
        _native.address(status),
        _threads(p),
    )
    found: tuple[Array, Array] = _like(p, index, status)
    return found


def masses(z: Array, temperature: Any) -> tuple[Array, Array]:
    """Return the maximum and the mass of each block of classes."""
    t = _numbers(temperature)
    top, mass = np.empty((2, len(t), -(-z.shape[1] // BLOCK)))
    _native.masses(_code(z), _tile(z), _native.address(t), _native.address(top), _native.address(mass), _threads(z))
    found: tuple[Array, Array] = _like(z, top, mass)
    return found


def choose(top: Array, mass: Array, temperature: Any, uniforms: Any) -> tuple[Array, Array]:
    """Return the block of each draw, and the share of its mass that lies before it."""
    given = [_numbers(each) for each in (top, mass, temperature, uniforms)]
    (n, blocks), samples = given[0].shape, given[3].shape[1]
    chosen, fraction = np.empty((n, samples), np.int64), np.empty((n, samples))
    at = [_native.address(each) for each in given]
    _native.choose(
        at[0],
        at[1],
        n,
        blocks,
        at[2],
        at[3],
        samples,
        _native.address(chosen),
        _native.address(fraction),
        _threads(top),
    )
    found: tuple[Array, Array] = _like(top, chosen, fraction)
    return found


def inside(z: Array, temperature: Any, fraction: Any) -> Array:
    """Return the class within a block."""
    t, share = _numbers(temperature), _numbers(fraction)
    index = np.empty(len(t), np.int64)
    _native.inside(_code(z), _tile(z), _native.address(t), _native.address(share), _native.address(index), _threads(z))
    return _like(z, index)[0]


def topk(z: Array, k: int) -> tuple[Array, Array]:
    """Return the k largest logits of each row, in the type of statistics, and their classes."""
    value, index = np.empty((len(z), k)), np.empty((len(z), k), np.int64)
    _native.topk(_code(z), _tile(z), k, _native.address(value), _native.address(index), _threads(z))
    double = _code(z) == CODES["float64"]
    found: tuple[Array, Array] = _like(z, value if double else value.astype(np.float32), index)
    return found
