"""Losses of a linear head for both front ends: what each row's statistics tell, over the two schedules of the stream.

A *rule* turns the statistics of a chunk into losses and cotangents: then gradients are formed in the forward pass, from
the tile that was just folded. Cross-entropy is the rule with three factors per row, known before any product:

    loss_i = -nll_i log p_{i, y_i} + cross_i sum_j u_ij (-log p_ij) + square_i lse_i^2

Class weights, label smoothing, class probabilities, z-loss, per-token weights, ignored rows and the reduction are all
in the three factors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lastlayer import _algebra, _validate
from lastlayer._algebra import Array, State, Statistics, Terms
from lastlayer._statistics import Cotangents, Folded, argmax_of, concatenate, cotangents, finish
from lastlayer._stream import Gradients, Stream

Rule = Callable[[slice, Statistics, Folded], tuple[Array, Cotangents | None]]


class Saved(NamedTuple):
    """What the recompute schedule keeps of the rows: float64 (N,), or (N, K) for K targets."""

    max: Array
    rest: Array
    mass: Array
    entropy: Array
    logprob: Array
    others: Array
    chosen: Array
    first: Array


def check_options(
    reduction: str, label_smoothing: float, z_loss: float, softcap: float | None, scale: float,
    memory_budget: int | None,
) -> None:  # fmt: skip
    """Check the arguments that are numbers or names, for both front ends."""
    _validate.check_reduction(reduction)
    _validate.check_label_smoothing(label_smoothing)
    _validate.check_finite("z_loss", z_loss)
    check_head(softcap, scale, memory_budget)


def check_head(softcap: float | None, scale: float, memory_budget: int | None) -> None:
    """Check what changes the logits, and the budget."""
    _validate.check_finite("scale", scale)
    if softcap is not None:
        _validate.check_positive("softcap", softcap)
    if memory_budget is not None:
        _validate.read_integer("memory_budget", memory_budget)


def slice_terms(terms: Terms, rows: slice) -> Terms:
    """Return the terms of a chunk."""
    return Terms(*(factor if factor is None or isinstance(factor, float) else factor[rows] for factor in terms))


def value_and_gradients(stream: Stream, rule: Rule, into: Gradients | None, entropy: bool = False) -> Array:
    """Gradient in the forward: return the losses (N,) and fill ``into`` with the gradient of their sum."""
    losses = stream.products.double(stream.rows)

    def work(rows: slice, folded: Folded) -> None:
        losses[rows], given = rule(rows, finish(folded, entropy), folded)
        if into is not None and given is not None:
            stream.push(rows, folded.state, given, into, folded.first)

    for rows in stream.chunks():
        folded = stream.fold(rows, entropy)
        stream.peers.attempt(lambda: work(rows, folded))  # noqa: B023  (called at once)
    stream.peers.close()
    return losses


def cross_entropy(stream: Stream, terms: Terms, into: Gradients | None) -> Array:
    """Return the losses (N,) of cross-entropy and fill ``into``; one kernel does it where a tile holds whole rows."""
    if stream.whole_rows and stream.peers.alone:
        losses = stream.products.double(stream.rows)
        for rows in stream.chunks():
            stream.visit(rows, slice_terms(terms, rows), losses[rows], into)
        return losses

    def rule(rows: slice, found: Statistics, folded: Folded) -> tuple[Array, Cotangents]:
        some = slice_terms(terms, rows)
        return _algebra.loss(found, some), Cotangents(_algebra.numbers_of(found, folded.state.mass, some))

    return value_and_gradients(stream, rule, into)


def statistics(
    stream: Stream, entropy: bool, rank: bool = False, argmax: bool = False
) -> tuple[Statistics, Saved, Array, Array]:
    """Forward of the recompute schedule: statistics of all rows, what the backward needs, rank - 1 and argmax."""
    parts, counts = [], []
    for rows in stream.chunks():
        folded = stream.fold(rows, entropy, argmax)
        parts.append((finish(folded, entropy), folded))
        counts.append(stream.rank(rows, folded.chosen) if rank else None)
    stream.peers.close()
    found, folded = (concatenate(each) for each in zip(*parts, strict=True))
    state = folded.state
    kept = (found.logprob, found.others, folded.chosen)
    saved = Saved(state.max, state.rest, state.mass, found.entropy, *kept, folded.first)
    return found, saved, concatenate(counts), argmax_of(found, folded)


def push_statistics(stream: Stream, saved: Saved, target_weight: Array, upstream: Statistics, into: Gradients) -> None:
    """Backward of the recompute schedule: fill ``into`` with the gradient of the statistics, times upstream."""
    for rows in stream.chunks():
        kept = Saved(*(None if field is None else field[rows] for field in saved))
        some = Statistics(*(None if g is None else g[rows] for g in upstream))
        folded = Folded(State(kept.max, kept.rest, None, None, kept.mass), kept.chosen)
        found = Statistics(None, kept.logprob, kept.entropy, None, kept.max, kept.others)
        u = None if target_weight is None else target_weight[rows]
        given = cotangents(found, folded, some, stream.products.dtype.itemsize, u, stream.head.softcap)
        stream.push(rows, folded.state, given, into, kept.first)
    stream.peers.close()


def allocate(
    stream: Stream, wanted: tuple[bool, ...], like_input: Callable[[], Array], exact: bool = False, weight: Array = None
) -> Gradients:
    """Return room for the wanted gradients; the weight's is written before it is read, the bias's starts at 0.

    A ``weight`` gradient that is given is added to.

    What several products add to is of the computing type, and rounded once at the end; what one writes need not be.
    """
    empty, (d_input, d_weight, d_bias) = stream.products.empty, wanted
    stream.adds = weight is not None
    if weight is None and d_weight:
        one = stream.plan.rows >= stream.rows and not exact
        weight = empty(stream.classes, stream.features, dtype=stream.products.operand if one else None)
    bias = empty(stream.classes) if d_bias else None
    into = Gradients(like_input() if d_input else None, weight, bias)
    unwritten = (bias,) if stream.rows else (into.input, None if stream.adds else weight, bias)
    for array in unwritten:
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
    total: Callable[[Array], Array] = lambda count: count,
) -> Terms:
    """Return the terms of the rows that count, for class indices or (soft) class probabilities.

    ``factor`` is that of each row, ``of_target`` its target's class weight; the mean divides by the ``total`` of their
    sums, over all that it is taken over.
    """
    count = total((factor if of_target is None else factor * of_target).sum()) if reduction == "mean" else 1.0
    share = factor / (count + (count == 0))  # over no rows the sum is 0, and so is the mean
    square = share * z_loss if z_loss else None
    if soft:
        return Terms(None, share, square)
    nll = share if of_target is None else share * of_target
    return Terms(nll * (1 - smoothing), share * (smoothing / classes) if smoothing else None, square)


def weights_of(
    soft: Array | None, class_weight: Array | None, smoothing: float, classes: int
) -> Callable[[slice, slice], Array] | None:
    """Return the stream's ``weights``: the class weights w, or (t (1 - e) + e / V) w for probabilities t."""
    if class_weight is None:
        return None
    if soft is None:
        return lambda rows, tile: class_weight[tile]
    share = smoothing / classes
    return lambda rows, tile: (
        (_algebra.cast(soft[rows, tile], class_weight) * (1 - smoothing) + share) * (class_weight[tile])
    )
