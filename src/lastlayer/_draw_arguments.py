"""How draws are asked for: the arguments of ``categorical`` and its kin, checked once and turned into arrays per row.

Both front ends use it: what is one number, or one per row, becomes a NumPy array (N,) wherever the logits live. The
arrays' meaning is in _draws.py; the randomness is in _philox.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, SupportsIndex, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from lastlayer import _backends
from lastlayer._arrays import Array, real, unmasked
from lastlayer._draws import HAS_INFINITY, HAS_NAN, HAS_NOTHING, ORDERS, STEPS, TOO_FEW, Drawn, Edits, Rules
from lastlayer._validate import element, position, read_integer

Numbers: TypeAlias = Any  # a number, or an array or tensor of one per row
Triples: TypeAlias = tuple[Any, Any, Any]
Shape: TypeAlias = tuple[int, ...]


class DrawOptions(TypedDict, total=False):
    """The keyword arguments that all draws from logits share; lastlayer.categorical says what they are."""

    temperature: Numbers
    top_k: Numbers | None
    top_p: Numbers | None
    min_p: Numbers | None
    typical_p: Numbers | None
    epsilon_cutoff: Numbers | None
    eta_cutoff: Numbers | None
    top_n_sigma: Numbers | None
    repetition_penalty: Numbers | None
    presence_penalty: Numbers | None
    frequency_penalty: Numbers | None
    token_ids: Any
    prompt_ids: Any
    logit_bias: Triples | None
    bans: tuple[Any, Any] | None
    order: str | tuple[str, ...]
    replacement: bool
    seed: Numbers | None
    offset: Numbers | None
    step: Numbers


class Changes(NamedTuple):
    """What changes single logits, checked but for what needs the number of classes."""

    rows: int
    penalties: dict[str, NDArray[np.float64] | None]
    ids: dict[str, Array | None]  # token_ids and prompt_ids (N, L)
    places: dict[str, tuple[Array, ...] | None]  # logit_bias: row, class, value; bans: row, class

    @property
    def some(self) -> bool:
        """Whether any logit changes."""
        return any(each is not None for each in (*self.ids.values(), *self.places.values()))


class Asked(NamedTuple):
    """A checked request, but for what needs the logits."""

    rules: Rules
    order: tuple[str, ...]
    uniforms: NDArray[np.float64]  # (N, S)
    replacement: bool
    changes: Changes


class Bound(NamedTuple):
    """What a number per row must be."""

    low: float
    high: float
    words: str


PROBABILITY = Bound(0.0, 1.0, "lie in [0, 1]")
BOUNDS = {
    "temperature": Bound(0.0, math.nextafter(math.inf, 0), "be a finite number >= 0"),
    "top_n_sigma": Bound(0.0, math.inf, "be a number >= 0"),
    "top_k": Bound(-1, math.inf, "be a number of classes, or 0 or -1 for all"),
    "top_p": PROBABILITY,
    "min_p": PROBABILITY,
    "typical_p": PROBABILITY,
    "epsilon_cutoff": PROBABILITY,
    "eta_cutoff": PROBABILITY,
    "repetition_penalty": Bound(math.nextafter(0, 1), math.nextafter(math.inf, 0), "be a finite number above 0"),
    "presence_penalty": Bound(-math.nextafter(math.inf, 0), math.nextafter(math.inf, 0), "be finite"),
    "frequency_penalty": Bound(-math.nextafter(math.inf, 0), math.nextafter(math.inf, 0), "be finite"),
}


def read(
    shape: Shape, num_samples: SupportsIndex | None, random_seed: Callable[[], int], options: DrawOptions
) -> Asked:
    """Check a request for draws from rows of this shape; ``random_seed`` makes a seed where none is given."""
    if not options.keys() <= NAMES:
        raise TypeError(f"unexpected argument {min(options.keys() - NAMES)!r}")
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if options.get("temperature", 1.0) is None:
        raise TypeError("temperature is None, expected a number or one per row")
    given.setdefault("temperature", 1.0)
    rules = Rules(**{name: per_row(name, given[name], shape) for name in Rules._fields if name in given})
    if rules.top_k is not None:
        rules = rules._replace(top_k=np.where(rules.top_k <= 0, math.inf, rules.top_k))
    samples = 1 if num_samples is None else read_count(num_samples)
    seed, step = given["seed"] if "seed" in given else random_seed(), options.get("step", 0)
    uniforms = read_uniforms(seed, given.get("offset"), step, shape, samples)
    order = read_order(options.get("order", STEPS))
    return Asked(rules, order, uniforms, bool(options.get("replacement", True)), read_changes(shape, given))


NAMES = frozenset(DrawOptions.__annotations__)


def read_count(num_samples: SupportsIndex) -> int:
    """Return the number of draws."""
    count = read_integer("num_samples", num_samples)
    if count < 1:
        raise ValueError(f"num_samples = {count} must be at least 1")
    return count


def read_order(order: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of all steps in the order asked for; those left out of a list come last."""
    if isinstance(order, str):
        if order not in ORDERS:
            raise ValueError(f"order = {order!r} is not one of {', '.join(map(repr, ORDERS))}, nor a list of steps")
        return ORDERS[order]
    if not isinstance(order, tuple | list):
        raise TypeError(
            f"order is {type(order).__name__}, expected one of {', '.join(map(repr, ORDERS))}, or a list of steps"
        )
    names = tuple(order)
    if names == STEPS:
        return STEPS
    for name in names:
        if name not in STEPS:
            raise ValueError(f"order names {name!r}, which is not one of {', '.join(map(repr, STEPS))}")
    if len(set(names)) < len(names):
        raise ValueError(f"order = {names} names a step twice")
    return (*names, *(name for name in STEPS if name not in names))


def as_array(name: str, value: Any) -> Array:
    """Return a number, a sequence, an array or a tensor of any device as a NumPy array."""
    if hasattr(value, "detach"):
        if value.is_meta:
            raise RuntimeError(f"{name} is on meta, where tensors have no values to draw from")
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    return unmasked(name, value)


def per_row(name: str, value: Numbers, shape: Shape) -> NDArray[np.float64]:
    """Return one number per row, checked."""
    rows, (low, high, words) = math.prod(shape), BOUNDS[name]
    if type(value) in (float, int) and low <= value <= high:
        if name == "top_k" and type(value) is float:
            raise TypeError(f"top_k = {value} must be an integer")
        return np.full(rows, float(value))
    given = as_array(name, value)
    if name == "top_k" and given.dtype.kind not in "iu":
        raise TypeError(f"top_k has dtype {given.dtype}, expected integers")
    array = real(name, given).astype(np.float64)
    bad = ~((array >= low) & (array <= high))
    if bad.any():
        index = position(bad)
        raise ValueError(f"{element(name, index)} = {given[index]} must {words}")
    return np.array(broadcast(name, array, shape)).reshape(rows)


def broadcast(name: str, array: Array, shape: Shape) -> Array:
    """Return the array in the shape of the rows."""
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {array.shape}, which does not broadcast to the rows, {shape}") from None


def integers(name: str, value: Any) -> Array:
    """Return an array of integers, as it came."""
    array = as_array(name, value)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        exact = np.array(value, dtype=object) if isinstance(value, int | list | tuple) else array
        if exact.dtype == object and all(type(each) is int for each in exact.reshape(-1)):
            if all(-(1 << 63) <= each < 1 << 64 for each in exact.reshape(-1)):
                wrapped: Array = np.vectorize(lambda each: each % (1 << 64), otypes=[np.uint64])(exact)
                return wrapped
            raise ValueError(f"{name} does not fit in 64 bits")
        raise TypeError(f"{name} has dtype {array.dtype}, expected integers")
    return array


def words_of(name: str, value: Numbers, shape: Shape, bits: int = 64) -> NDArray[np.uint64]:
    """Return one unsigned word per row; negative numbers wrap around, as in two's complement, if there are 64 bits."""
    if type(value) is int and 0 <= value < 1 << bits:
        return np.full(math.prod(shape), value, np.uint64)
    array = integers(name, value)
    if bits < 64 and ((array < 0) | (array >> bits > 0)).any():
        index = position((array < 0) | (array >> bits > 0))
        raise ValueError(f"{element(name, index)} = {array[index]} must lie in [0, 2**{bits})")
    return broadcast(name, array.astype(np.uint64), shape).reshape(math.prod(shape))


def read_uniforms(
    seed: Numbers, offset: Numbers | None, step: Numbers, shape: Shape, samples: int, second: bool = False
) -> NDArray[np.float64]:
    """Return the uniforms (N, S) of rows of this shape."""
    rows, backend = math.prod(shape), _backends.host()
    if type(seed) is int and type(step) is int and offset is None and 0 <= seed < 1 << 64 and 0 <= step < 1 << 32:
        return backend.uniforms_of_rows(seed, step, rows, samples, second=second)  # type: ignore[no-any-return]
    seeds = words_of("seed", seed, shape)
    if offset is not None:
        offsets = words_of("offset", offset, shape)
    else:
        one_seed = type(seed) is int or np.ndim(as_array("seed", seed)) == 0
        offsets = np.arange(rows, dtype=np.uint64) if one_seed else np.zeros(rows, np.uint64)
    return backend.uniforms(  # type: ignore[no-any-return]
        seeds, offsets, words_of("step", step, shape, 32), samples, second=second
    )


CHANGES = (
    "repetition_penalty", "presence_penalty", "frequency_penalty", "token_ids", "prompt_ids", "logit_bias", "bans",
)  # fmt: skip


def read_changes(shape: Shape, options: dict[str, Any]) -> Changes:
    """Check what changes single logits."""
    if options.keys().isdisjoint(CHANGES):
        return Changes(math.prod(shape), {}, {}, {})
    penalties = {name: per_row(name, options[name], shape) if name in options else None for name in CHANGES[:3]}
    ids = {name: read_ids(name, options.get(name), shape) for name in ("token_ids", "prompt_ids")}
    for name, value in penalties.items():
        there = ids["token_ids"] is not None or (ids["prompt_ids"] is not None and name == "repetition_penalty")
        if value is not None and not there:
            raise ValueError(f"{name} needs token_ids: the classes that it is for")
    places = {
        "logit_bias": read_list("logit_bias", options.get("logit_bias"), ("row", "class", "value")),
        "bans": read_list("bans", options.get("bans"), ("row", "class")),
    }
    return Changes(math.prod(shape), penalties, ids, places)


@np.errstate(over="ignore", invalid="ignore")
def edits_of(
    changes: Changes, classes: int, gather: Callable[[Array, Array], Array], rows: slice | None = None
) -> Edits | None:
    """Return the logits to use instead of their own in these rows; gather(row, class) reads logits of these rows.

    It returns them in the type that statistics have, and the new ones are rounded to that type.
    """
    if not changes.some:
        return None
    first, last = (0, changes.rows) if rows is None else (rows.start, rows.stop)
    pairs = {name: _pairs_of_ids(name, ids, classes) for name, ids in changes.ids.items()}
    pairs |= {name: _pairs_of_list(name, some, changes.rows, classes) for name, some in changes.places.items()}
    keys = np.unique(np.concatenate(list(pairs.values())))
    keys = keys[np.searchsorted(keys, first * classes) : np.searchsorted(keys, last * classes)]
    row, index = np.divmod(keys, classes)
    raw = gather(row - first, index)
    value = raw.astype(np.float64)

    def per_key(name: str, weight: Array | None = None) -> Array:
        inside = (pairs[name] >= first * classes) & (pairs[name] < last * classes)
        some = np.searchsorted(keys, pairs[name][inside])
        return np.bincount(some, None if weight is None else weight[inside], len(keys))

    bias, tokens = changes.places["logit_bias"], per_key("token_ids")
    if bias is not None:
        value = value + per_key("logit_bias", bias[2])
    repetition, presence, frequency = (None if each is None else each[row] for each in changes.penalties.values())
    if repetition is not None:
        penalized = np.where(value > 0, value / repetition, value * repetition)
        value = np.where(tokens + per_key("prompt_ids") > 0, penalized, value)
    if frequency is not None:
        value = value - tokens * frequency
    if presence is not None:
        value = value - (tokens > 0) * presence
    value = np.where(per_key("bans") > 0, -math.inf, value).astype(raw.dtype).astype(np.float64)
    bad = ~(value < math.inf) & np.isfinite(raw)
    if bad.any():
        k = position(bad)[0]
        raise ValueError(
            f"what penalties and biases make of the logit of class {index[k]} in row {row[k]} is {value[k]}"
        )
    return Edits(np.searchsorted(keys, np.arange(first, last + 1) * classes), index, value)


def read_ids(name: str, value: Any, shape: Shape) -> Array | None:
    """Return token ids (N, L); negative ones are padding."""
    if value is None:
        return None
    ids = integers(name, value).astype(np.int64)
    if ids.ndim == 0:
        raise ValueError(f"{name} has no dimensions, expected (..., L): the ids of each row")
    try:
        return np.broadcast_to(ids, (*shape, ids.shape[-1])).reshape(math.prod(shape), ids.shape[-1])
    except ValueError:
        raise ValueError(
            f"{name} has shape {ids.shape}, which does not broadcast to the rows, {shape}, of ids"
        ) from None


def read_list(name: str, value: Any, fields: tuple[str, ...]) -> tuple[Array, ...] | None:
    """Return a list of places as flat arrays: row, class and, for a bias, value."""
    if value is None:
        return None
    if not isinstance(value, tuple | list) or len(value) != len(fields):
        kind = f"{len(value)} of them" if isinstance(value, tuple | list) else type(value).__name__
        raise TypeError(f"{name} must be a tuple of {len(fields)} arrays, {', '.join(fields)}, not {kind}")
    arrays = [integers(f"the {field} of {name}", each) for field, each in zip(fields[:2], value[:2], strict=True)]
    arrays += [real(f"the value of {name}", as_array(name, each)).astype(np.float64) for each in value[2:]]
    try:
        arrays = [np.array(each).reshape(-1) for each in np.broadcast_arrays(*arrays)]
    except ValueError:
        shapes = ", ".join(str(each.shape) for each in arrays)
        raise ValueError(f"{name} has arrays of shapes {shapes}, which do not broadcast") from None
    if len(arrays) == 3 and not (arrays[2] < math.inf).all():
        at = position(~(arrays[2] < math.inf))
        raise ValueError(f"the value of {name} at {at[0]} is {arrays[2][at]}, expected a number below inf")
    return tuple(arrays)


def _inside(name: str, index: Array, size: int) -> Array:
    bad = (index < 0) | (index >= size)
    if bad.any():
        at = position(bad)
        raise IndexError(f"{element(name, at)} = {index[at]} is outside [0, {size})")
    return index.astype(np.int64)


def _pairs_of_ids(name: str, ids: Array | None, classes: int) -> Array:
    if ids is None:
        return np.empty(0, np.int64)
    _inside(name, np.maximum(ids, 0), classes)
    row, _ = np.nonzero(ids >= 0)
    return row * classes + ids[ids >= 0]


def _pairs_of_list(name: str, places: tuple[Array, ...] | None, rows: int, classes: int) -> Array:
    if places is None:
        return np.empty(0, np.int64)
    row = _inside(f"the row of {name}", places[0], rows)
    return row * classes + _inside(f"the class of {name}", places[1], classes)


def check_drawn(drawn: Drawn, shape: Shape, samples: int) -> None:
    """Raise ValueError naming the first row that could not be drawn from."""
    if bool(drawn.status.any()):
        row = position(drawn.status != 0)[0]
        index = tuple(int(i) for i in np.unravel_index(row, shape)) if shape else ()
        raise undrawable(index, int(drawn.status[row]), samples)


def undrawable(index: tuple[int, ...], status: float, samples: int) -> Exception:
    """Return what to raise for a row of this status."""
    where = f"{element('row', index) if index else 'the row'} of input"
    if status == TOO_FEW:
        return ValueError(
            f"{where} has fewer classes that can be drawn than num_samples = {samples}, without replacement"
        )
    what = {HAS_NAN: "NaN", HAS_INFINITY: "+inf", HAS_NOTHING: "no logit above -inf"}[int(status)]
    return ValueError(f"{where} has {what}: there is no distribution to draw from")
