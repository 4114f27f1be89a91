"""Exact draws from a softmax (``categorical``) and from weights (``multinomial``), for NumPy.

What is drawn is specified in _draws.py, how it is asked for in _draw_arguments.py, the randomness in _philox.py;
torch/sampling.py is the other front end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lastlayer import _backends, _draw_arguments
from lastlayer._algebra import Array, namespace
from lastlayer._arrays import class_axis, real, round_to, row_shape, statistics_type, tile
from lastlayer._draw_arguments import Asked, DrawOptions, check_drawn, edits_of
from lastlayer._draws import FINE, HAS_NAN, HAS_NOTHING, Drawn, Edits, Rules
from lastlayer._validate import position, read_integer

__all__ = ["Sample", "categorical", "multinomial"]

CHUNK_BYTES = 32 << 20  # what float64 temporaries of a chunk of rows may take where a backend makes them
TEMPORARIES = 8

Generator: TypeAlias = "int | np.random.Generator | np.random.BitGenerator | np.random.SeedSequence | None"


class Sample(NamedTuple):
    """Draws of classes y from rows of logits, and what evaluation and training ask about them, in nats.

    Attributes:
        index: the classes drawn.
        logprob: log p_y under the model, softmax of the logits as they were passed, before everything else.
        sampled_logprob: log p_y under the distribution drawn from; without replacement, given the draws before.
        kept: how many classes could be drawn.
        kept_mass: the probability that the model gives to them.
        rank: 1 + the number of classes that the model finds more likely than the one drawn.
        logsumexp: of the logits as they were passed.
    """

    index: Any
    logprob: Any
    sampled_logprob: Any
    kept: Any
    kept_mass: Any
    rank: Any
    logsumexp: Any


PER_ROW = {"kept", "kept_mass", "logsumexp"}


def categorical(
    input: ArrayLike,
    num_samples: int | None = None,
    *,
    axis: SupportsIndex = -1,
    temperature: ArrayLike = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    min_p: ArrayLike | None = None,
    typical_p: ArrayLike | None = None,
    epsilon_cutoff: ArrayLike | None = None,
    eta_cutoff: ArrayLike | None = None,
    top_n_sigma: ArrayLike | None = None,
    repetition_penalty: ArrayLike | None = None,
    presence_penalty: ArrayLike | None = None,
    frequency_penalty: ArrayLike | None = None,
    token_ids: ArrayLike | None = None,
    prompt_ids: ArrayLike | None = None,
    logit_bias: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    bans: tuple[ArrayLike, ArrayLike] | None = None,
    order: str | tuple[str, ...] = "transformers",
    replacement: bool = True,
    seed: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    step: ArrayLike = 0,
    rng: Generator = None,
) -> Sample:
    """Draw classes from softmax(z / T), all of it or what truncation keeps, with their log-probabilities.

    First single logits change, in this order: ``logit_bias`` is added; for the classes in ``token_ids`` or
    ``prompt_ids`` a positive logit is divided by ``repetition_penalty``, another multiplied; from those that are c
    times in ``token_ids``, c ``frequency_penalty`` and ``presence_penalty`` are taken off; ``bans`` become -inf. Then
    the temperature and the filters follow in ``order``, each working on what is left by those before it.

    Args:
        input: logits, with V classes along axis. -inf is a class that cannot be drawn.
        num_samples: draws per row, in a new last dimension; None for one draw and no such dimension.
        axis: the axis of the classes.
        temperature: T >= 0. At 0 the largest logit is taken, of several the first, and the filters do nothing.
        top_k: keep the k largest logits; 0 or -1 for all.
        top_p: keep the most likely classes, as few as have together a probability of at least p; 1 for all.
        min_p: keep the classes at least min_p times as likely as the likeliest.
        typical_p: keep the classes whose surprise is nearest the entropy, as few as have together p; 1 for all.
        epsilon_cutoff: keep the classes that have at least this probability; if none has, the likeliest.
        eta_cutoff: as epsilon_cutoff, with the smaller of eta and sqrt(eta) exp(-entropy).
        top_n_sigma: keep the logits within so many standard deviations below the largest.
        repetition_penalty: above 1, classes that were there become less likely.
        presence_penalty: taken off the logits of classes that were there.
        frequency_penalty: taken off as often as they were there.
        token_ids: classes that were there, integers (..., L); negative ones are padding.
        prompt_ids: more of them, for the repetition penalty alone.
        logit_bias: (row, class, value), arrays that broadcast together; rows are counted through all dimensions.
        bans: (row, class), likewise.
        order: "transformers": temperature, top_n_sigma, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff.
            "vllm": temperature, min_p, top_k, top_p, and the rest. "llama.cpp": top_n_sigma, top_k, typical_p, top_p,
            min_p, the cutoffs, temperature. Or names in the order wanted; those not named come after them.
        replacement: whether a class may be drawn again. If not, draws are taken out one after the other.
        seed: an integer of 64 bits: draws are then a function of seed, offset, step and the row's logits.
        offset: what row it is: an integer of 64 bits. Without it a row's index if there is one seed, 0 if each has its
            own.
        step: the number of the draw in a sequence, such as the token's position: an integer of 32 bits.
        rng: instead of seed, a NumPy generator that a seed is drawn from, or a seed for one; None for a seed from the
            system.

    All numbers but num_samples, axis and rng can be one for all or one per row.

    Returns:
        ``Sample``. index, logprob, sampled_logprob and rank in the shape of the rows (and num_samples); kept, kept_mass
        and logsumexp in the shape of the rows. Integers are int64, the others float32 for 16- and 32-bit input, else
        float64, in nats.

    Raises:
        ValueError: a row without a distribution (NaN, +inf, nothing but -inf, no classes) or, without replacement, with
            fewer classes than draws; a number out of range, or that does not broadcast to the rows.
        IndexError: a class or a row that is not there.
        TypeError: what is not of the kind named above.

    Note:
        One uniform of 53 bits per draw, by Philox 4x32-10 from (seed, offset, step, number of the sample): no draw
        depends on the rows beside it, on threads, or on whether NumPy or PyTorch holds the logits. Of equal logits the
        lower class is kept first by top_k, top_p and typical_p. A class of probability 0 is never drawn.

    Example:
        >>> draw = categorical([0.0, -np.inf, 2.0, 1.0], temperature=0.7, top_p=0.9, seed=5)
        >>> print(draw.index, draw.logprob.round(4), draw.sampled_logprob.round(4), draw.kept, draw.kept_mass.round(4))
        2 -0.4076 -0.2148 2 0.91
        >>> categorical([0.0, -np.inf, 0.0], 8, seed=0).index
        array([2, 0, 2, 2, 2, 2, 2, 0])
    """
    z = real("input", input)
    axes = class_axis(axis, z.ndim)
    shape = row_shape(z.shape, axes)
    options: DrawOptions = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p,
        "epsilon_cutoff": epsilon_cutoff, "eta_cutoff": eta_cutoff, "top_n_sigma": top_n_sigma,
        "repetition_penalty": repetition_penalty, "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty, "token_ids": token_ids, "prompt_ids": prompt_ids,
        "logit_bias": logit_bias, "bans": bans, "order": order, "replacement": replacement, "seed": seed,
        "offset": offset, "step": step,
    }  # fmt: skip
    asked = _draw_arguments.read(shape, num_samples, seed_of(seed, rng), options)
    tiled = tile(z, axes)
    if tiled.shape[1] == 0 and len(tiled):
        raise ValueError(f"input has no classes to draw from in {len(tiled)} rows")
    found = drawn(tiled, asked)
    check_drawn(found, shape, asked.uniforms.shape[1])
    return spread(found, shape, num_samples is not None, statistics_type(z))


def multinomial(
    input: ArrayLike,
    num_samples: int,
    replacement: bool = False,
    *,
    seed: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    step: ArrayLike = 0,
    rng: Generator = None,
) -> NDArray[np.int64]:
    """Draw classes from rows of probabilities, or of any weights >= 0: torch.multinomial for NumPy, without its limits.

    Args:
        input: weights, (V,) or (N, V); rows need not sum to one.
        num_samples: draws per row.
        replacement: whether a class may be drawn again. If not, the draws are those of taking one class after the other
            out of the row, and come in that order.
        seed: as in ``categorical``, like offset, step and rng.
        offset: what row it is.
        step: the number of the draw in a sequence.
        rng: instead of seed, a NumPy generator or a seed for one.

    Returns:
        int64 (S,) or (N, S).

    Raises:
        ValueError: input of other than 1 or 2 dimensions; a weight that is negative, infinite or NaN; a row of zeros;
            num_samples below 1 or, without replacement, above the number of classes that have a weight.
        TypeError: input that is not real numbers; num_samples that is no integer.

    Note:
        A class of weight 0 is never drawn. The number of classes is not limited. One uniform of 53 bits per draw.

    Example:
        >>> multinomial([0.0, 3.0, 0.0, 1.0], 2, seed=0)
        array([3, 1])
    """
    p = real("input", input)
    draws = check_multinomial(p, num_samples, bool(replacement), ValueError)
    shape = p.shape[:-1]
    make = seed_of(seed, rng)
    given = make() if seed is None else seed
    uniforms = _draw_arguments.read_uniforms(given, offset, step, shape, draws)
    index = from_weights(p.reshape(-1, p.shape[-1]), uniforms, bool(replacement), ValueError)
    return index.reshape(*shape, draws)  # type: ignore[no-any-return]


def seed_of(seed: Any, rng: Generator) -> Callable[[], int]:
    """Return what makes a seed where none is given, out of the generator; there can be only one of the two."""
    if seed is not None and rng is not None:
        raise ValueError("seed and rng are both given: one of them decides the draws")
    if rng is None:
        return lambda: int.from_bytes(os.urandom(8), "little")
    return lambda: int(np.random.default_rng(rng).integers(1 << 64, dtype=np.uint64))


def drawn(z: Array, asked: Asked) -> Drawn:
    """Draw from each row of z (N, V); ``check_drawn`` says which cannot be drawn from."""
    backend = _backends.choose(z)
    edits = edits_of(asked.changes, z.shape[1], lambda rows, index: numbers_at(z, rows, index))
    if backend is _backends.reference:
        return in_chunks(z, asked, edits)
    found: Drawn = backend.draw(z, asked.uniforms, asked.rules, asked.order, edits, asked.replacement)
    return found


def in_chunks(z: Array, asked: Asked, edits: Edits | None) -> Drawn:
    """Draw as the specification does, some rows at a time."""
    parts = []
    for rows in chunks(*z.shape):
        rules = Rules(*(None if rule is None else rule[rows] for rule in asked.rules))
        some = None
        if edits is not None:
            start = edits.start[rows.start : rows.stop + 1]
            places = slice(int(start[0]), int(start[-1]))
            some = Edits(start - start[0], edits.index[places], edits.value[places])
        backend = _backends.reference
        parts.append(backend.draw(z[rows], asked.uniforms[rows], rules, asked.order, some, asked.replacement))
    xp = namespace(z)
    return Drawn(*(xp.concatenate(fields) for fields in zip(*parts, strict=True)))


def numbers_at(z: Array, rows: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[Any]:
    """Return single logits, float32 or float64."""
    if isinstance(z, np.ndarray):
        return z[rows, index].astype(statistics_type(z))
    xp = namespace(z)
    found = z[xp.as_tensor(rows, device=z.device), xp.as_tensor(index, device=z.device)]
    return (found if found.dtype == xp.float64 else found.float()).cpu().numpy()  # type: ignore[no-any-return]


def spread(found: Drawn, shape: tuple[int, ...], several: bool, dtype: Any) -> Sample:
    """Return what was drawn in the shape of the rows."""
    draws = (*shape, found.index.shape[1]) if several else shape

    def of(field: Any, rows: bool) -> Any:
        field = field.reshape(shape if rows else draws)
        return field[()] if field.dtype in (dtype, np.int64) else round_to(field, dtype)

    return Sample(*(of(getattr(found, name), name in PER_ROW) for name in Sample._fields))


def from_weights(p: Array, uniforms: Array, replacement: bool, error: type[Exception]) -> Array:
    """Draw from each row of weights p (N, V) with its uniforms (N, S)."""
    backend, xp = _backends.choose(p), namespace(p)
    parts = list(chunks(*p.shape)) if backend is _backends.reference else [slice(0, len(p))]
    found = [backend.multinomial(p[rows], uniforms[rows], replacement) for rows in parts]
    if not found:
        return np.zeros(uniforms.shape, np.int64) if xp is np else p.new_zeros(uniforms.shape, dtype=xp.int64)
    index, status = (xp.concatenate(each) for each in zip(*found, strict=True))
    if bool(status.any()):
        row = position(status != FINE)[0]
        explain(p[row], row, int(status[row]), uniforms.shape[1], error)
    return index


def explain(p: Array, row: int, status: int, draws: int, error: type[Exception]) -> None:
    """Raise what is wrong with a row of weights; torch's conditions in torch's words."""
    if status == HAS_NAN:
        (j,) = position(~((p >= 0) & namespace(p).isfinite(p)))
        raise error(
            "invalid multinomial distribution: probability tensor contains either `inf`, `nan` or element < 0: "
            f"{float(p[j])} in row {row}, class {j}"
        )
    if status == HAS_NOTHING:
        raise error(f"invalid multinomial distribution (sum of probabilities <= 0): row {row} has no weight above 0")
    raise error(
        "invalid multinomial distribution (with replacement=False, not enough non-negative category to sample): "
        f"row {row} has {int((p > 0).sum())} weights above 0, num_samples = {draws}"
    )


def chunks(rows: int, classes: int) -> Iterator[slice]:
    """Yield the rows in pieces whose temporaries fit; of no rows, one that is empty."""
    step = max(1, CHUNK_BYTES // (8 * TEMPORARIES * max(classes, 1)))
    for start in range(0, max(rows, 1), step):
        yield slice(start, min(start + step, rows))


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
