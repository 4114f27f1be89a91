"""softmax and log-softmax of rows as differentiable torch operations: kernels, an operator for a compiler, or formulas.

Sibling of statistics.py, whose ``eager`` and ``operator`` decide.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lastlayer import _algebra, _backends
from lastlayer.torch.later import far
from lastlayer.torch.statistics import apply, eager, like, like_rows, operator, rows, wide


class _RowSoftmax(torch.autograd.Function):
    """softmax or log-softmax along one dimension; like torch's, the result is contiguous and is what is saved."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, dim: int, log: bool) -> Tensor:
        out = write_softmax(input, dim, log, _empty_result(input))
        ctx.save_for_backward(out)
        ctx.dim, ctx.log = dim, log
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (out,) = ctx.saved_tensors
        if ctx.log and not torch.is_grad_enabled() and eager(upstream):
            return _log_softmax_gradient(out, upstream, ctx.dim), None, None
        aten = torch.ops.aten
        derivative = aten._log_softmax_backward_data if ctx.log else aten._softmax_backward_data
        return derivative(upstream, out, ctx.dim, out.dtype), None, None


def _log_softmax_gradient(logp: Tensor, upstream: Tensor, dim: int) -> Tensor:
    """Return g_j - p_j sum(g); where p > 1/2 as (g - sum(g)) + q sum(g), q = 1 - p, which keeps the digits of q.

    A row whose upstream gradient is 0 has the gradient 0, even where it has no distribution.
    """
    dz: Tensor = torch.ops.aten._log_softmax_backward_data(upstream, logp, dim, logp.dtype)
    top, k = logp.max(dim, keepdim=True)
    total = upstream.sum(dim, keepdim=True, dtype=torch.float64)
    exact = (upstream.gather(dim, k) - total) - torch.expm1(top.double()) * total
    dz.scatter_(dim, k, torch.where(top > math.log(0.5), exact.to(dz.dtype), dz.gather(dim, k)))
    broken = ~torch.isfinite(top)
    if far(logp) or not eager(logp) or bool(broken.any()):
        dz.masked_fill_(broken & ~upstream.any(dim, keepdim=True), 0)
    return dz


def _empty_result(input: Tensor) -> Tensor:
    return like(input) if input.is_contiguous() else like(input, torch.contiguous_format)


def write_softmax(input: Tensor, dim: int, log: bool, out: Tensor) -> Tensor:
    """Write softmax or log-softmax along dim into out, of the same shape and dtype; not differentiable."""
    backend = _backends.choose(input)
    write = backend.log_softmax if log else backend.softmax
    tile = rows(out, dim)
    write(rows(input, dim), out=tile)
    if tile is not out and tile.data_ptr() != out.data_ptr():
        out.copy_(like_rows(tile, out, dim))
    return out


@torch.library.custom_op("lastlayer::softmax", mutates_args=())
def _operator(input: Tensor, dim: int, log: bool) -> Tensor:
    """Return softmax or log-softmax along dim, contiguous."""
    return write_softmax(input, dim, log, _empty_result(input))


@_operator.register_fake
def _(input: Tensor, dim: int, log: bool) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.dim, ctx.log = inputs
    ctx.save_for_backward(output)


def _derive(ctx: Any, upstream: Tensor) -> Any:
    (out,) = ctx.saved_tensors
    if ctx.log:
        return _log_softmax_gradient(out, upstream, ctx.dim), None, None
    return torch.ops.aten._softmax_backward_data(upstream, out, ctx.dim, out.dtype), None, None


_operator.register_autograd(_derive, setup_context=_keep)


def softmax(input: Tensor, dim: int, *, log: bool = False) -> Tensor:
    """Return softmax or log-softmax along dim of a floating tensor with dimensions and elements, in its own type."""
    if eager(input):
        if torch.is_grad_enabled() and input.requires_grad:
            return apply(_RowSoftmax, input, dim, log)  # type: ignore[no-any-return]
        return write_softmax(input, dim, log, _empty_result(input))
    if operator(input):
        return _operator(input, dim % input.dim(), log)  # type: ignore[no-any-return]
    z = wide(input.movedim(dim, -1))
    result: Tensor = _algebra.log_softmax(z) if log else _algebra.softmax(z)
    return result.to(input.dtype).movedim(-1, dim)
