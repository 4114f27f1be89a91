"""Cross-entropy of a linear head for both front ends: terms per row, then one of the two schedules of the stream.

    loss_i = -nll_i log p_{i, y_i} + cross_i sum_j u_ij (-log p_ij) + square_i lse_i^2

Class weights, label smoothing, class probabilities, z-loss, per-token weights, ignored rows and the reduction are all
in the three factors per row, known before any product; so the gradient can be formed in the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lastlayer import _validate
from lastlayer._algebra import Array, State, Statistics, Terms, finish, loss, numbers_of
from lastlayer._stream import Gradients, Stream


class Saved(NamedTuple):
    """What the recompute schedule keeps of the forward pass, float64 (N,) each."""

    max: Array
    rest: Array
    mass: Array
    logsumexp: Array


def check_options(
    reduction: str, label_smoothing: float, z_loss: float, softcap: float | None, scale: float, memory_budget: int
) -> None:
    """Check the arguments that are numbers or names, for both front ends."""
    _validate.check_reduction(reduction)
    _validate.check_label_smoothing(label_smoothing)
    _validate.check_finite("z_loss", z_loss)
    _validate.check_finite("scale", scale)
    if softcap is not None:
        _validate.check_positive("softcap", softcap)
    _validate.read_integer("memory_budget", memory_budget)


def slice_terms(terms: Terms, rows: slice) -> Terms:
    """Return the terms of a chunk."""
    return Terms(*(factor if factor is None or isinstance(factor, float) else factor[rows] for factor in terms))


def value_and_gradients(stream: Stream, terms: Terms, into: Gradients | None) -> Array:
    """Gradient in the forward: return the losses (N,) and fill ``into`` with the gradient of their sum."""
    losses = stream.products.double(stream.rows)
    for rows in stream.chunks():
        some = slice_terms(terms, rows)
        if stream.whole_rows:
            stream.visit(rows, some, losses[rows], into)
            continue
        state, z_y = stream.fold(rows)
        statistics = finish(state, z_y)
        losses[rows] = loss(statistics, some)
        if into is not None:
            stream.push(rows, state, numbers_of(statistics, state.mass, some), into)
    return losses


def value_and_saved(stream: Stream, terms: Terms) -> tuple[Array, Saved]:
    """Forward of the recompute schedule: return the losses (N,) and what the backward needs."""
    losses = stream.products.double(stream.rows)
    saved = Saved(*(stream.products.double(stream.rows) for _ in Saved._fields))
    for rows in stream.chunks():
        state, z_y = stream.fold(rows)
        statistics = finish(state, z_y)
        losses[rows] = loss(statistics, slice_terms(terms, rows))
        kept = Saved(state.max, state.rest, state.mass, statistics.logsumexp)
        for field, value in zip(saved, kept, strict=True):
            field[rows] = value
    return losses, saved


def gradients_of(stream: Stream, terms: Terms, saved: Saved, upstream: Array, into: Gradients) -> None:
    """Backward of the recompute schedule: fill ``into`` with the gradient of sum(upstream * losses)."""
    for rows in stream.chunks():
        kept = Saved(*(field[rows] for field in saved))
        found = Statistics(kept.logsumexp, None, None, None)
        numbers = numbers_of(found, kept.mass, slice_terms(terms, rows), upstream[rows])
        stream.push(rows, State(kept.max, kept.rest, None, None, kept.mass), numbers, into)


def allocate(stream: Stream, wanted: tuple[bool, bool, bool], like_input: Callable[[], Array]) -> Gradients:
    """Return room for the wanted gradients; the weight's is written before it is read, the bias's starts at 0."""
    empty, (d_input, d_weight, d_bias) = stream.products.empty, wanted
    weight = empty(stream.classes, stream.features) if d_weight else None
    bias = empty(stream.classes) if d_bias else None
    into = Gradients(like_input() if d_input else None, weight, bias)
    for array in into[0 if not stream.rows else 2 :]:
        if array is not None:
            array[...] = 0
    return into


def terms_of(
    factor: Array,
    of_target: Array | None,
    soft: bool,
    reduction: str,
    smoothing: float,
    classes: int,
    z_loss: float,
) -> Terms:
    """Return the terms of the rows that count, for class indices or (soft) class probabilities.

    ``factor`` is that of each row, ``of_target`` its target's class weight; the mean divides by the sum of both.
    """
    total = (factor if of_target is None else factor * of_target).sum() if reduction == "mean" else 1.0
    share = factor / (total + (total == 0))  # over no rows the sum is 0, and so is the mean
    square = share * z_loss if z_loss else None
    if soft:
        return Terms(None, share, square)
    nll = share if of_target is None else share * of_target
    return Terms(nll * (1 - smoothing), share * (smoothing / classes) if smoothing else None, square)


def weights_of(
    terms: Terms, soft: Array | None, class_weight: Array, smoothing: float, cast: Callable[[Array], Array]
) -> Callable[[slice, slice], Array | None]:
    """Return the stream's ``weights``: w where ``cross`` is asked for, (t (1 - e) + e / V) w for probabilities t."""
    if soft is not None:
        share = smoothing / class_weight.shape[0]
        return lambda rows, tile: (cast(soft[rows, tile]) * (1 - smoothing) + share) * cast(class_weight[tile])
    if terms.cross is None:
        return lambda rows, tile: None
    return lambda rows, tile: class_weight[tile]
