"""Exact draws from a softmax (``categorical``) and from weights (``multinomial``).

A draw is the first class whose cumulative weight, in float64, exceeds u times the total, for a uniform u in [0, 1) of
53 bits. Weights are scaled so that the largest is 1: then u * total is below the total for every such u; and a class
of weight 0 does not raise the sum. So the law holds at both ends: a class of probability 0 is never drawn, and the
tails are not cut. Without replacement an exponential race decides: class j arrives at time E_j / p_j, and the first
arrivals are the draws, in order.

The functions on tiles work on NumPy arrays and on torch tensors; torch/sampling.py is their other front end.

Letters: z logits, p weights, u uniforms, T temperature; N rows, V classes, S draws per row.
Sources: L. Devroye, Non-Uniform Random Variate Generation (1986), III.2; P. S. Efraimidis, P. G. Spirakis, "Weighted
random sampling with a reservoir", Inf. Process. Lett. 97 (2006).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lastlayer import _backends
from lastlayer._algebra import Array, State, classes, finish, namespace
from lastlayer._arrays import class_axis, real, round_to, row_shape, statistics_type, tile
from lastlayer._validate import element, position, read_integer

__all__ = ["Sample", "categorical", "multinomial"]

CHUNK_BYTES = 32 << 20  # what the float64 temporaries of a chunk of rows may take; one row is the least there is
TEMPORARIES = 8
UNIT = 2.0**-53

Generator: TypeAlias = "int | np.random.Generator | np.random.BitGenerator | np.random.SeedSequence | None"


class Sample(NamedTuple):
    """Draws: the classes, their log-probabilities under the model, and under the distribution they were drawn from."""

    index: Any
    logprob: Any
    sampled_logprob: Any


def categorical(
    input: ArrayLike,
    num_samples: int | None = None,
    *,
    axis: SupportsIndex = -1,
    temperature: ArrayLike = 1.0,
    rng: Generator = None,
) -> Sample:
    """Draw classes from softmax(z / T), with replacement.

    Args:
        input: logits, with V classes along axis. -inf is a class that cannot be drawn.
        num_samples: draws per row, in a new last dimension; None for one draw and no such dimension.
        axis: the axis of the classes.
        temperature: T >= 0, one for all or one per row. At 0 the largest logit is taken, of several the first.
        rng: a NumPy generator, or a seed for one; None for one seeded by the system.

    Returns:
        Sample(index, logprob, sampled_logprob) in the shape of the rows (and num_samples): int64, and twice float32 for
        16- and 32-bit input, else float64. ``logprob`` is that of the model, T = 1; ``sampled_logprob`` that of the
        tempered distribution, 0 at T = 0.

    Raises:
        ValueError: a row without a distribution (NaN, +inf, nothing but -inf, no classes); a temperature that is
            negative or not finite, or does not broadcast to the rows; num_samples below 1.
        TypeError: input or temperature that are not real numbers; num_samples that is no integer.

    Note:
        One uniform of 53 bits per draw, in the order of the rows. (z - max) / T is formed in float64, so that no T
        overflows. Memory beyond the result: 32 MiB, or eight float64 rows if that is more.

    Example:
        >>> draw = categorical([0.0, -np.inf, 2.0], temperature=0.0)
        >>> print(draw.index, draw.logprob.round(4), draw.sampled_logprob)
        2 -0.1269 0.0
        >>> categorical([0.0, -np.inf, 0.0], 8, rng=0).index
        array([2, 0, 0, 0, 2, 2, 2, 2])
    """
    z = real("input", input)
    axes = class_axis(axis, z.ndim)
    shape = row_shape(z.shape, axes)
    times = read_temperature(np.asarray(real("temperature", temperature), np.float64), shape)
    draws = 1 if num_samples is None else read_count(num_samples)
    uniforms = np.random.default_rng(rng).random((int(np.prod(shape, dtype=np.int64)), draws))
    sample = from_logits(tile(z, axes), times.reshape(-1), uniforms, shape)
    result = shape if num_samples is None else (*shape, draws)
    kinds = (np.int64, statistics_type(z), statistics_type(z))
    return Sample(*(round_to(x.reshape(result), kind) for x, kind in zip(sample, kinds, strict=True)))


def multinomial(
    input: ArrayLike, num_samples: int, replacement: bool = False, *, rng: Generator = None
) -> NDArray[np.int64]:
    """Draw classes from rows of probabilities, or of any weights >= 0: torch.multinomial for NumPy, without its limits.

    Args:
        input: weights, (V,) or (N, V); rows need not sum to one.
        num_samples: draws per row.
        replacement: whether a class may be drawn again. If not, the draws are those of taking one class after the other
            out of the row, and come in that order.
        rng: a NumPy generator, or a seed for one; None for one seeded by the system.

    Returns:
        int64 (S,) or (N, S).

    Raises:
        ValueError: input of other than 1 or 2 dimensions; a weight that is negative, infinite or NaN; a row of zeros;
            num_samples below 1 or, without replacement, above the number of classes that have a weight.
        TypeError: input that is not real numbers; num_samples that is no integer.

    Note:
        A class of weight 0 is never drawn. The number of classes is not limited. With replacement one uniform per draw;
        without, two per class, for arrival times with all their digits near 0. Memory beyond the result as
        ``categorical``.

    Example:
        >>> multinomial([0.0, 3.0, 0.0, 1.0], 2, rng=0)
        array([3, 1])
    """
    p = real("input", input)
    draws = check_multinomial(p, num_samples, bool(replacement), ValueError)
    random = np.random.default_rng(rng).random
    index: NDArray[np.int64] = from_weights(p.reshape(-1, p.shape[-1]), draws, bool(replacement), random, ValueError)
    return index.reshape(*p.shape[:-1], draws)


def read_count(num_samples: SupportsIndex) -> int:
    """Return the number of draws."""
    count = read_integer("num_samples", num_samples)
    if count < 1:
        raise ValueError(f"num_samples = {count} must be at least 1")
    return count


def read_temperature(temperature: Array, shape: tuple[int, ...]) -> Array:
    """Return one temperature per row."""
    xp = namespace(temperature)
    bad = ~((temperature >= 0) & xp.isfinite(temperature))
    if bool(bad.any()):
        index = position(bad)
        value = float(temperature[index])
        raise ValueError(f"{element('temperature', index)} = {value} must be a finite number >= 0")
    try:
        return xp.broadcast_to(temperature, shape)
    except (ValueError, RuntimeError):
        given = tuple(temperature.shape)
        raise ValueError(f"temperature has shape {given}, which does not broadcast to the rows, {shape}") from None


def from_logits(z: Array, temperature: Array, uniforms: Array, shape: tuple[int, ...]) -> Sample:
    """Draw from each row of z (N, V) with its own uniforms (N, S); shape is that of the rows in messages."""
    xp = namespace(z)
    sample = Sample(xp.zeros_like(uniforms, dtype=xp.int64), xp.zeros_like(uniforms), xp.zeros_like(uniforms))
    for rows in chunks(*z.shape):
        state = _state(z[rows], rows.start, shape)
        drawn = _draw_tempered(z[rows], state, temperature[rows], uniforms[rows])
        for field, value in zip(sample, drawn, strict=True):
            field[rows] = value
    return sample


def from_weights(
    p: Array, draws: int, replacement: bool, random: Callable[[tuple[int, ...]], Array], error: type[Exception]
) -> Array:
    """Draw from each row of weights p (N, V); the uniforms come from random(shape)."""
    xp = namespace(p)
    shape = (len(p), draws)
    index = np.zeros(shape, np.int64) if xp is np else p.new_zeros(shape, dtype=xp.int64)
    uniforms = random(shape) if replacement else None
    for rows in chunks(*p.shape):
        weights = _weights(p[rows], draws, replacement, rows.start, error)
        if uniforms is not None:
            index[rows] = draw(weights, uniforms[rows])
        else:
            index[rows] = race(weights, random((len(weights), 2, p.shape[1])), draws)
    return index


def chunks(rows: int, classes: int) -> Iterator[slice]:
    """Yield the rows in pieces whose temporaries fit."""
    step = max(1, CHUNK_BYTES // (8 * TEMPORARIES * max(classes, 1)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


@np.errstate(all="ignore")
def draw(weights: Array, uniforms: Array) -> Array:
    """Return, for each uniform, the first class of its row whose cumulative weight exceeds u * total >= u."""
    cumulative = _cumulate(weights)
    return _count_not_above(cumulative, uniforms * cumulative[:, -1:])


@np.errstate(all="ignore")
def race(weights: Array, uniforms: Array, draws: int) -> Array:
    """Return the first arrivals, in order, of classes that come at times E_j / p_j; uniforms are (N, 2, V).

    The second uniform continues the digits of the first, so that E is exact near 0, where unlikely classes win.
    Logarithms of the times are compared, so that no weight underflows; weight 0 never comes.
    """
    xp = namespace(weights)
    u = uniforms[:, 0] + UNIT * uniforms[:, 1]
    arrival = xp.log(-xp.log1p(-xp.clip(u, 0.0, 1 - UNIT)))
    key = xp.where(weights > 0, arrival - xp.log(weights), xp.inf)
    if xp is not np:
        return xp.topk(key, draws, largest=False, sorted=True).indices
    first = np.argpartition(key, draws - 1, -1)[:, :draws]
    order = np.argsort(np.take_along_axis(key, first, -1), -1, kind="stable")
    return np.take_along_axis(first, order, -1)


def check_multinomial(p: Array, num_samples: SupportsIndex, replacement: bool, error: type[Exception]) -> int:
    """Return the number of draws; torch's conditions, and where torch has words for them its words."""
    if p.ndim not in (1, 2):
        raise error(f"prob_dist must be 1 or 2 dim, but input has shape {tuple(p.shape)}")
    draws = read_integer("num_samples", num_samples)
    if draws <= 0:
        raise error(f"cannot sample n_sample <= 0 samples: num_samples = {draws}")
    if not replacement and draws > p.shape[-1]:
        raise error(
            f"cannot sample n_sample > prob_dist.size(-1) samples without replacement: num_samples = {draws}, "
            f"{p.shape[-1]} classes"
        )
    if p.shape[-1] == 0:
        raise error(f"invalid multinomial distribution (sum of probabilities <= 0): input has shape {tuple(p.shape)}")
    return draws


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if isinstance(array, np.ndarray) else array.double()


def _take(array: Array, index: Array) -> Array:
    """Return array[i, index[i, k]]."""
    return np.take_along_axis(array, index, -1) if isinstance(array, np.ndarray) else array.gather(-1, index)


def _cumulate(weights: Array) -> Array:
    """Return cumulative sums that never fall and stand still at weight 0.

    One after the other on a CPU, sums do; a GPU adds in a tree, whose roundings can make a later sum the smaller one.
    """
    sums = namespace(weights).cumsum(weights, -1)
    if isinstance(sums, np.ndarray) or sums.device.type == "cpu":
        return sums
    return sums.where(weights > 0, 0.0).cummax(-1).values


def _count_not_above(cumulative: Array, threshold: Array) -> Array:
    """Return how many entries of its row are <= each threshold, by bisection: the first ``found`` of them are."""
    xp, classes = namespace(cumulative), cumulative.shape[1]
    found = xp.zeros_like(threshold, dtype=xp.int64)
    step = 1 << (classes.bit_length() - 1)
    while step:
        probe = found + step
        below = _take(cumulative, xp.clip(probe, 1, classes) - 1) <= threshold
        found = xp.where((probe <= classes) & below, probe, found)
        step //= 2
    return found


def _state(z: Array, start: int, shape: tuple[int, ...]) -> State:
    """Fold the rows and refuse those without a distribution, by name."""
    xp = namespace(z)
    if z.shape[1] == 0:
        raise ValueError(f"input has no classes to draw from in {len(z)} rows")
    state = State(*_backends.choose(z).fold(z))
    nan = xp.isnan(state.max) | xp.isnan(state.rest)
    bad = nan | ~xp.isfinite(state.max)
    if bool(bad.any()):
        row = position(bad)[0]
        index = tuple(int(i) for i in np.unravel_index(start + row, shape)) if shape else ()
        where = f"{element('row', index) if index else 'the row'} of input"
        what = "NaN" if bool(nan[row]) else "+inf" if float(state.max[row]) > 0 else "no logit above -inf"
        raise ValueError(f"{where} has {what}: there is no distribution to draw from")
    return state


@np.errstate(all="ignore")
def _draw_tempered(z: Array, state: State, temperature: Array, uniforms: Array) -> Sample:
    xp, t = namespace(z), temperature[:, None]
    x = _wide(z) - state.max[:, None]
    if bool((temperature == 0).any()):
        greedy = xp.where(classes(z) == xp.argmax(z, -1)[:, None], 0.0, -xp.inf)
        tempered = xp.where(t > 0, x / xp.where(t > 0, t, 1.0), greedy)
    else:
        tempered = x / t
    index = draw(xp.exp(tempered), uniforms)
    logprob = _logprob(state, _take(z, index))
    if bool((temperature == 1).all()):
        return Sample(index, logprob, logprob)
    sampled = _logprob(State(*_backends.choose(tempered).fold(tempered)), _take(tempered, index))
    return Sample(index, logprob, xp.where(t == 1, logprob, sampled))


def _logprob(state: State, z_y: Array) -> Array:
    """Return log p_y for several y per row."""
    return finish(State(*(field[:, None] for field in state)), _wide(z_y)).logprob + 0.0


def _weights(p: Array, draws: int, replacement: bool, start: int, error: type[Exception]) -> Array:
    """Return the rows in float64, largest weight 1, so that no sum overflows; torch's conditions in torch's words."""
    xp = namespace(p)
    bad = ~((p >= 0) & xp.isfinite(p))
    if bool(bad.any()):
        row, j = position(bad)
        raise error(
            "invalid multinomial distribution: probability tensor contains either `inf`, `nan` or element < 0: "
            f"{float(p[row, j])} in row {start + row}, class {j}"
        )
    count = xp.count_nonzero(p, -1)
    if bool((count == 0).any()):
        row = start + position(count == 0)[0]
        raise error(f"invalid multinomial distribution (sum of probabilities <= 0): row {row} has no weight above 0")
    if not replacement and bool((count < draws).any()):
        row = position(count < draws)[0]
        raise error(
            "invalid multinomial distribution (with replacement=False, not enough non-negative category to sample): "
            f"row {start + row} has {int(count[row])} weights above 0, num_samples = {draws}"
        )
    w = _wide(p)
    return w / xp.amax(w, -1)[:, None]
