"""Any loss on hidden states, for NumPy: the statistics of each row's logits, and their gradient, without N x V logits.

The arguments and the chain rule are those of statistics.py, the mathematics is in _linear.py, the driver in _stream.py,
the twin in torch/linear_statistics.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lastlayer import _algebra, _linear
from lastlayer._algebra import LogitStatistics
from lastlayer._arrays import Array, round_to, statistics_type
from lastlayer._stream import Head, Stream
from lastlayer.linear import Floats, LinearGradients, NumpyProducts, gradients_like, read_head
from lastlayer.statistics import (
    read_class_weights,
    read_cotangents,
    read_targets,
    spread,
    unnamed,
    weighted,
)

__all__ = ["linear_logit_statistics", "linear_logit_statistics_vjp"]


def linear_logit_statistics(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike | None = None,
    *,
    linear_bias: ArrayLike | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    rank: bool = False,
    argmax: bool = False,
    class_weights: ArrayLike | None = None,
    ignore_index: int = -100,
    memory_budget: int | None = None,
) -> LogitStatistics:
    r"""Return ``logit_statistics`` of ``input @ linear_weight.T + linear_bias`` without storing its N x V logits.

    The logits of a row are z = softcap * tanh(scale * (W h + b) / softcap).

    Args:
        input: hidden states (..., D), a floating type.
        linear_weight: (V, D), a floating type.
        target: class indices (...), an integer type, or K distinct ones per row (..., K).
        linear_bias: (V).
        scale: multiplies the logits.
        softcap: bounds the logits to (-softcap, softcap).
        entropy: whether to compute it.
        rank: whether to compute the target's: 1 + the number of classes with a larger logit. Where the budget does not
            hold 32 whole rows, that costs the products once more.
        argmax: whether to compute the first class with the largest logit.
        class_weights: w (V), >= 0, for ``mean_logit`` and ``mean_logprob``; without it all classes weigh the same.
        ignore_index: a target whose row counts as absent (with K targets: all of them) and costs no product: its
            statistics are 0, its rank is 0, its argmax -1.
        memory_budget: bytes for the workspace.

    Returns:
        ``LogitStatistics``: float32, or float64 for float64 input, each of the leading shape (``logprob`` and ``rank``
        with K targets: (..., K)). ``None`` for what was not asked for, or needs a target.

    Raises:
        IndexError: a target is neither a class nor ignored; the message names it.
        TypeError: an argument has the wrong type.
        ValueError: shapes do not fit; softcap, scale or class weights are out of range; a row names a class twice; the
            budget is too small.

    Note:
        16-bit inputs are multiplied in float32. One forward product: 2 N D V operations.

    Example:
        >>> h, W = np.eye(2), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> s = linear_logit_statistics(h, W, [0, 2], entropy=True)
        >>> s.logprob.round(4), s.entropy.round(4)
        (array([-0.862, -0.862]), array([1.0174, 1.0174]))

    Source: docs/mathematics.md.
    """
    given = _read(input, linear_weight, target, linear_bias, scale, softcap, class_weights, ignore_index, memory_budget)
    with np.errstate(all="ignore"):
        found, saved, below, top = _linear.statistics(
            given.stream(given.target, given.weights), entropy, rank and given.target is not None, argmax
        )
        dtype = statistics_type(given.input)
        named = _algebra.logit_statistics(found, saved.mass, lambda field: round_to(field, dtype))
    named = named._replace(rank=None if below is None else below + 1, argmax=top)
    return spread(named, given.rows, given.kept)


def linear_logit_statistics_vjp(
    input: ArrayLike,
    linear_weight: ArrayLike,
    cotangents: LogitStatistics,
    target: ArrayLike | None = None,
    *,
    linear_bias: ArrayLike | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    class_weights: ArrayLike | None = None,
    ignore_index: int = -100,
    memory_budget: int | None = None,
) -> LinearGradients:
    """Return the gradients of a loss that is a function of ``linear_logit_statistics``, from its cotangents.

    With the gradient dz by the logits, as ``logit_statistics_vjp`` has it, and dr = scale dz (1 - (z / softcap)^2)::

        input: dr W        linear_weight: dr' h        linear_bias: sum of dr over the rows

    Args:
        input: as in ``linear_logit_statistics``, like all that is not listed here.
        linear_weight: (V, D).
        cotangents: ``LogitStatistics`` whose fields are None (no derivative: 0) or real numbers in the shape of the
            statistic. ``rank`` and ``argmax`` must be None.
        target: class indices, needed for ``logprob`` and ``remainder``.
        linear_bias: (V).
        scale: multiplies the logits.
        softcap: bounds the logits.
        class_weights: w (V), for ``mean_logit`` and ``mean_logprob``.
        ignore_index: the target of rows that do not count; they reach no gradient, whatever their cotangents.
        memory_budget: bytes for the workspace; the gradients themselves come on top.

    Returns:
        ``LinearGradients(input, linear_weight, linear_bias)`` in the types of the arguments.

    Raises:
        IndexError, TypeError, ValueError: as ``linear_logit_statistics``; TypeError for cotangents that are no
            ``LogitStatistics``; ValueError for one of another shape, of ``rank`` or ``argmax``, or that needs a target.

    Note:
        The logits are computed to fold them and once more to push their gradient back: 8 N D V operations, or 6 where
        the budget holds them all. Gradients are accumulated in float32 (float64 for float64 input) and rounded once.

    Example:
        The gradient of the mean log-probability of the targets:

        >>> h, W, y = np.eye(2), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), [0, 2]
        >>> mean = LogitStatistics(logsumexp=None, logprob=np.full(2, 0.5))
        >>> linear_logit_statistics_vjp(h, W, mean, y).input.round(4)
        array([[ 0.0777, -0.2888],
               [ 0.2112,  0.0777]])

    Source: docs/mathematics.md.
    """
    given = _read(input, linear_weight, target, linear_bias, scale, softcap, class_weights, ignore_index, memory_budget)
    upstream = read_cotangents(cotangents, given.rows, given.target)
    if given.kept is not None:
        upstream = LogitStatistics(*(None if g is None else g[given.kept] for g in upstream))
    index = given.target
    u = given.weights if weighted(upstream) else None
    of_target = None if u is None or index is None else u[index]
    stream = given.stream(index, u)
    into = _linear.allocate(stream, (True, True, given.bias is not None), lambda: np.empty_like(given.hidden))
    with np.errstate(all="ignore"):
        _, saved, *_ = _linear.statistics(stream, upstream.entropy is not None)
        _linear.push_statistics(stream, saved, of_target, unnamed(upstream, saved.mass), into)
        return gradients_like(into, given.kept, given.input, given.weight, given.bias)


class _Given(NamedTuple):
    """The checked arguments of a call; ``hidden`` and ``target`` are those of the rows that count."""

    input: Floats
    weight: Floats
    bias: Floats | None
    hidden: Floats
    rows: tuple[int, ...]
    target: NDArray[np.int64] | None
    kept: NDArray[np.bool_] | None
    weights: NDArray[np.float64]
    head: Head
    budget: int | None

    def stream(self, target: Array | None, weights: Array | None) -> Stream:
        """Return the driver over the rows that count."""
        products = NumpyProducts(self.input.dtype)
        u = None if weights is None else weights.astype(products.dtype)
        of_tile = lambda rows, tile: None if u is None else u[tile]  # noqa: E731
        return Stream(products, self.hidden, self.head, target, of_tile, self.budget)


def _read(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike | None,
    linear_bias: ArrayLike | None,
    scale: float,
    softcap: float | None,
    class_weights: ArrayLike | None,
    ignore_index: int,
    memory_budget: int | None,
) -> _Given:
    _linear.check_head(softcap, scale, memory_budget)
    states, weight, bias = read_head(input, linear_weight, linear_bias)
    rows, (classes, features) = states.shape[:-1], weight.shape
    weights = read_class_weights(class_weights, classes)
    index, kept = read_targets(target, rows, classes, ignore_index)
    hidden = states.reshape(math.prod(rows), features)
    if kept is not None and index is not None:
        hidden, index = hidden[kept], index[kept]
    head = Head(weight, bias, scale, softcap)
    return _Given(states, weight, bias, hidden, rows, index, kept, weights, head, memory_budget)
