"""Draws and the largest logits from hidden states, for NumPy: ``linear_categorical`` and ``linear_topk``.

What is drawn is what ``categorical`` draws from the logits; how they come and go is in _linear_draws.py;
torch/linear_sampling.py is the other front end.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, SupportsIndex, Unpack

import numpy as np
from numpy.typing import ArrayLike

from lastlayer import _draw_arguments, _linear, _linear_draws
from lastlayer._arrays import Array, round_to, statistics_type
from lastlayer._draw_arguments import DrawOptions, check_drawn
from lastlayer._draw_plans import OfHead
from lastlayer._draws import HAS_NAN
from lastlayer._linear_draws import Largest
from lastlayer._stream import Head
from lastlayer._validate import element, position, read_integer
from lastlayer.linear import NumpyProducts, read_head
from lastlayer.sampling import Generator, Sample, seed_of, spread

__all__ = ["LinearTopK", "linear_categorical", "linear_topk"]


class LinearTopK(NamedTuple):
    """The k largest logits of each row, largest first, of equal ones the lower class first.

    Attributes:
        value: the logits (..., k).
        index: their classes (..., k), int64.
        logprob: their log-probabilities under the softmax over all classes (..., k).
        logsumexp: of all logits (...).
    """

    value: Any
    index: Any
    logprob: Any
    logsumexp: Any


def linear_categorical(
    input: ArrayLike,
    linear_weight: ArrayLike,
    num_samples: int | None = None,
    *,
    linear_bias: ArrayLike | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    memory_budget: int | None = None,
    rng: Generator = None,
    **options: Unpack[DrawOptions],
) -> Sample:
    r"""Draw as ``categorical`` does from ``input @ linear_weight.T + linear_bias``, without storing its N x V logits.

    The logits of a row are z = softcap * tanh(scale * (W h + b) / softcap).

    Args:
        input: hidden states (..., D), a floating type.
        linear_weight: (V, D), a floating type.
        num_samples: draws per row, in a new last dimension; None for one draw and no such dimension.
        linear_bias: (V).
        scale: multiplies the logits.
        softcap: bounds the logits to (-softcap, softcap).
        memory_budget: bytes for the workspace.
        rng: instead of seed, a NumPy generator that a seed is drawn from, or a seed for one.
        **options: all that ``categorical`` takes: temperature, top_k, top_p, min_p and other filters, penalties,
            logit_bias and bans, order, replacement, seed, offset and step.

    Returns:
        ``Sample`` with fields of the leading shape, as ``categorical`` returns it. ``logprob``, ``rank`` and
        ``logsumexp`` are those of z.

    Raises:
        ValueError: as ``categorical``; shapes do not fit; softcap or scale is out of range; the budget is too small.
        IndexError, TypeError: as ``categorical``.

    Note:
        16-bit inputs are multiplied in float32. Where the budget holds all rows, or 32 of them, the products are those
        of the logits, 2 N D V operations. Else the logits come as tiles and are drawn from without ever forming a row:
        among all classes, which computes some of them a second time to count the rank; with top_k, top_p or min_p from
        the 1,024 largest of each row (or the largest top_k), if a certificate says that they decide. Rows that they do
        not decide, other filters, penalties, biases and draws without replacement need whole rows, as many as the
        budget holds. The class drawn is the same on all these ways where the logits are; a product that is cut
        otherwise may round them otherwise, and then a uniform at the boundary of two classes can fall to the other one.

    Example:
        >>> h, W = np.eye(2), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> draw = linear_categorical(h, W, temperature=0.5, top_k=2, seed=7)
        >>> draw.index, draw.logprob.round(4), draw.kept
        (array([2, 2]), array([-0.862, -0.862]), array([2, 2]))

    Source: L. Devroye, Non-Uniform Random Variate Generation (1986), III.2; of the filters: lastlayer/_draws.py.
    """
    source, shape, dtype = _read(input, linear_weight, linear_bias, scale, softcap, memory_budget)
    asked = _draw_arguments.read(shape, num_samples, seed_of(options.get("seed"), rng), options)
    with np.errstate(all="ignore"):
        found = _linear_draws.draw(source, asked, memory_budget)
    check_drawn(found, shape, asked.uniforms.shape[1])
    return spread(found, shape, num_samples is not None, dtype)


def linear_topk(
    input: ArrayLike,
    linear_weight: ArrayLike,
    k: SupportsIndex,
    *,
    linear_bias: ArrayLike | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    memory_budget: int | None = None,
) -> LinearTopK:
    r"""Find the k largest of ``input @ linear_weight.T + linear_bias`` in each row, without storing its N x V logits.

    Args:
        input: hidden states (..., D), a floating type.
        linear_weight: (V, D), a floating type.
        k: how many, at most V.
        linear_bias: (V).
        scale: multiplies the logits.
        softcap: bounds the logits to (-softcap, softcap).
        memory_budget: bytes for the workspace.

    Returns:
        ``LinearTopK(value, index, logprob, logsumexp)``: float32, or float64 for float64 input, and int64.

    Raises:
        ValueError: k is below 1 or above V; a row of logits holds NaN or +inf; shapes do not fit; softcap or scale is
            out of range; the budget is too small.
        TypeError: an argument has the wrong type.

    Note:
        One product: 2 N D V operations. In a row of -inf only, the log-probabilities are NaN.

    Example:
        >>> h, W = np.eye(2), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> best = linear_topk(h, W, 2)
        >>> best.index, best.logprob.round(4)
        (array([[0, 2],
               [1, 2]]), array([[-0.862, -0.862],
               [-0.862, -0.862]]))
    """
    source, shape, dtype = _read(input, linear_weight, linear_bias, scale, softcap, memory_budget)
    count = read_k(k, source.classes)
    with np.errstate(all="ignore"):
        found = _linear_draws.topk(source, count, memory_budget)
    check_rows(found, shape)
    fields = (found.value, found.index, found.logprob, found.logsumexp)
    kinds, last = (dtype, np.int64, dtype, dtype), ((count,), (count,), (count,), ())
    return LinearTopK(
        *(round_to(x, kind).reshape(shape + end)[()] for x, kind, end in zip(fields, kinds, last, strict=True))
    )


def _read(
    input: ArrayLike, linear_weight: ArrayLike, linear_bias: ArrayLike | None, scale: float, softcap: float | None,
    memory_budget: int | None,
) -> tuple[OfHead, tuple[int, ...], Any]:  # fmt: skip
    """Check the head; return where logits come from, the shape of the rows, and the type of statistics."""
    _linear.check_head(softcap, scale, memory_budget)
    states, weight, bias = read_head(input, linear_weight, linear_bias)
    shape: tuple[int, ...] = states.shape[:-1]
    hidden: Array = states.reshape(math.prod(shape), states.shape[-1])
    source = OfHead(NumpyProducts(states.dtype), hidden, Head(weight, bias, scale, softcap))
    return source, shape, statistics_type(states)


def read_k(k: SupportsIndex, classes: int) -> int:
    """Return how many of the largest logits are wanted."""
    count = read_integer("k", k)
    if not 1 <= count <= classes:
        raise ValueError(f"k = {count} is outside [1, {classes}], the number of classes")
    return count


def check_rows(found: Largest, shape: tuple[int, ...]) -> None:
    """Raise ValueError naming the first row of logits that cannot be put in order."""
    if not bool((found.status != 0).any()):
        return
    row = position(found.status != 0)[0]
    what = "NaN" if int(found.status[row]) == HAS_NAN else "+inf"
    index = tuple(int(i) for i in np.unravel_index(row, shape)) if shape else ()
    where = f"{element('row', index)} of the logits" if index else "the row of logits"
    raise ValueError(f"{where} has {what}: its largest logits have no probabilities")
