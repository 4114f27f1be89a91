"""Draws and the largest logits from hidden states, for tensors: ``linear_categorical`` and ``linear_topk``.

What is drawn is what ``categorical`` draws from the logits; how they come and go is in lastlayer/_linear_draws.py;
lastlayer/linear_sampling.py is the other front end.
"""

from __future__ import annotations

from typing import SupportsIndex, Unpack

import torch
from torch import Tensor

from lastlayer import _draw_arguments, _linear, _linear_draws
from lastlayer._draw_arguments import DrawOptions
from lastlayer._draw_plans import OfHead
from lastlayer._linear_draws import Largest
from lastlayer._stream import Head
from lastlayer.linear_sampling import LinearTopK, check_rows, read_k
from lastlayer.sampling import Sample
from lastlayer.torch.functional import require_tensors
from lastlayer.torch.linear import check_constants, check_shapes
from lastlayer.torch.nodes import autocast
from lastlayer.torch.sampling import checked, seed_of, spread
from lastlayer.torch.stream import TorchProducts

__all__ = ["LinearTopK", "linear_categorical", "linear_topk"]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it looks at values
@torch.no_grad()
def linear_categorical(
    input: Tensor,
    linear_weight: Tensor,
    num_samples: int | None = None,
    *,
    linear_bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    memory_budget: int | None = None,
    generator: torch.Generator | None = None,
    **options: Unpack[DrawOptions],
) -> Sample:
    r"""Draw as ``categorical`` does from ``linear(input, linear_weight, linear_bias)``, without its N x V logits.

    The logits of a row are z = softcap * tanh(scale * (W h + b) / softcap).

    Args:
        input: hidden states (..., D), any leading shape.
        linear_weight: (V, D), of the input's dtype.
        num_samples: draws per row, in a new last dimension; None for one draw and no such dimension.
        linear_bias: (V).
        scale: multiplies the logits.
        softcap: bounds the logits to (-softcap, softcap).
        memory_budget: bytes for the workspace.
        generator: instead of seed, a generator that a seed is drawn from; None for PyTorch's default one.
        **options: all that ``categorical`` takes: temperature, top_k, top_p, min_p and other filters, penalties,
            logit_bias and bans, order, replacement, seed, offset and step.

    Returns:
        ``Sample`` with fields of the leading shape, as ``categorical`` returns it. ``logprob``, ``rank`` and
        ``logsumexp`` are those of z. Nothing is differentiable.

    Raises:
        ValueError: as ``categorical``; softcap or scale is out of range; the budget is too small.
        RuntimeError: shapes, dtypes or devices do not fit; a tensor on the meta device, which has no values.
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
        >>> import torch
        >>> import lastlayer.torch as F
        >>> h, W = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> draw = F.linear_categorical(h, W, temperature=0.5, top_k=2, seed=7)
        >>> draw.index, draw.logprob, draw.kept
        (tensor([2, 2]), tensor([-0.8620, -0.8620]), tensor([2, 2]))

    Source: L. Devroye, Non-Uniform Random Variate Generation (1986), III.2; of the filters: lastlayer/_draws.py.
    """
    check_head(input, linear_weight, linear_bias, scale, softcap, memory_budget)
    shape = tuple(input.shape[:-1])
    make = seed_of(options.get("seed"), generator, input.device)
    asked = _draw_arguments.read(shape, num_samples, make, options)
    found = _linear_draws.draw(source_of(input, linear_weight, linear_bias, scale, softcap), asked, memory_budget)
    return spread(checked(found, asked, shape), shape, num_samples is not None, input.dtype)


@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.no_grad()
def linear_topk(
    input: Tensor,
    linear_weight: Tensor,
    k: SupportsIndex,
    *,
    linear_bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    memory_budget: int | None = None,
) -> LinearTopK:
    r"""Find the k largest of ``linear(input, linear_weight, linear_bias)`` in each row, without its N x V logits.

    Args:
        input: hidden states (..., D), any leading shape.
        linear_weight: (V, D), of the input's dtype.
        k: how many, at most V.
        linear_bias: (V).
        scale: multiplies the logits.
        softcap: bounds the logits to (-softcap, softcap).
        memory_budget: bytes for the workspace.

    Returns:
        ``LinearTopK(value, index, logprob, logsumexp)``: float32, or float64 for float64 input, and int64. Nothing is
        differentiable.

    Raises:
        ValueError: k is below 1 or above V; a row of logits holds NaN or +inf; softcap or scale is out of range; the
            budget is too small.
        RuntimeError: shapes, dtypes or devices do not fit; a tensor on the meta device, which has no values.
        TypeError: an argument has the wrong type.

    Note:
        One product: 2 N D V operations. In a row of -inf only, the log-probabilities are NaN.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> h, W = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> F.linear_topk(h, W, 2).index
        tensor([[0, 2],
                [1, 2]])
    """
    check_head(input, linear_weight, linear_bias, scale, softcap, memory_budget)
    source = source_of(input, linear_weight, linear_bias, scale, softcap)
    found = _linear_draws.topk(source, read_k(k, source.classes), memory_budget)
    check_rows(found, tuple(input.shape[:-1]))
    return topk_of(found, input)


def check_head(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, scale: float, softcap: float | None,
    memory_budget: int | None, alone: bool = True,
) -> None:  # fmt: skip
    """Check the tensors of a linear head and what changes its logits."""
    check_constants({"scale": scale, "softcap": softcap})
    _linear.check_head(softcap, scale, memory_budget)
    require_tensors(input=input, linear_weight=linear_weight, linear_bias=linear_bias)
    for name, tensor in (("input", input), ("linear_weight", linear_weight)):
        if tensor.is_meta:
            raise RuntimeError(f"{name} is on meta, where tensors have no values to draw from")
    if linear_weight.dim() != 2:
        raise ValueError(f"linear_weight has shape {tuple(linear_weight.shape)}, expected (V, D)")
    check_shapes(input, linear_weight, linear_bias, None, alone)


def source_of(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, scale: float, softcap: float | None
) -> OfHead:
    """Return where the logits of a checked head come from."""
    h, W, b = autocast(input.detach(), linear_weight.detach(), None if linear_bias is None else linear_bias.detach())
    return OfHead(TorchProducts(h), h.reshape(input.shape[:-1].numel(), h.shape[-1]), Head(W, b, scale, softcap))


def topk_of(found: Largest, input: Tensor) -> LinearTopK:
    """Return what was found in the shape of the rows and the type of statistics."""
    kind = torch.float64 if input.dtype == torch.float64 else torch.float32
    shape, k = tuple(input.shape[:-1]), found.index.shape[1]
    value, logprob = (field.reshape(*shape, k).to(kind) for field in (found.value, found.logprob))
    return LinearTopK(value, found.index.reshape(*shape, k), logprob, found.logsumexp.reshape(shape).to(kind))
