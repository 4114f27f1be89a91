"""Autograd's nodes of a linear head: a loss whose gradient is formed in the forward pass, and statistics of rows.

Which way a call takes is decided here: a node of autograd, or, under torch.compile, an operator (ops.py). What both
compute is in stream.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lastlayer import _backends
from lastlayer._algebra import Statistics, Terms
from lastlayer._linear import Saved
from lastlayer._stream import ALONE, Gradients
from lastlayer.torch import ops
from lastlayer.torch.later import require
from lastlayer.torch.statistics import eager
from lastlayer.torch.stream import Call, Run, Some, cross_entropy_run, fused, pull_back, rounded, statistics


class _SecondOrder(torch.autograd.Function):
    """The identity on a gradient of the stream; differentiating it again says why that is not possible."""

    @staticmethod
    def forward(gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(
            "a linear head has no second derivative here: it would need the full N x V logits. Differentiate "
            "cross_entropy(linear(input, linear_weight), target), or logit_statistics of these logits, twice instead"
        )


def _first_order(gradients: Some, *inputs: Tensor) -> Some:
    if not torch.is_grad_enabled():
        return gradients
    return tuple(None if g is None else _SecondOrder.apply(g, *inputs) for g in gradients)  # type: ignore[no-untyped-call]


class _Fused(torch.autograd.Function):
    """A sum of row losses; gradients, those of the losses' own row tensors included, are formed in the forward pass."""

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: Call,
        run: Run,
        wanted: tuple[bool, ...],
        *rows: Tensor,
    ) -> Some:
        return fused(input, weight, bias, call, run, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Some) -> None:
        input, weight, bias, ctx.call, ctx.run, ctx.wanted, *rows = inputs
        ctx.ready = output[1:]  # without a graph of their own, so no cycle; handed out by the first backward
        ctx.mark_non_differentiable(*(g for g in ctx.ready if g is not None))
        ctx.save_for_backward(input, weight, bias, *rows)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        g = upstream[0]
        if g is None:
            return (None,) * len(ctx.needs_input_grad)
        input, weight, bias, *rows = ctx.saved_tensors
        ready, ctx.ready = ctx.ready, None
        with torch.no_grad():
            if ctx.call.weight_grad is not None:
                _check_added(g, ready)
            if ready is None:
                ready = _Fused.forward(input, weight, bias, ctx.call, ctx.run, ctx.wanted, *rows)[1:]
            if not eager(g):
                ready = tuple(None if d is None else d * g.to(d.dtype) for d in ready)
            else:
                ready = tuple(None if d is None else _backends.choose(d).times_(d, g) for d in ready)
            ready = (*rounded(Gradients(*ready[:3]), input, weight, bias), *ready[3:])
        gradients = _first_order(ready, g, input, weight)
        return (*gradients[:3], None, None, None, *gradients[3:])


def _check_added(upstream: Tensor, ready: Some | None) -> None:
    """Raise unless what the weight's gradient was added with is what comes in: 1, once."""
    if ready is None:
        raise RuntimeError("weight_grad has the weight's gradient already: a second backward pass is not supported")
    require(
        upstream == 1,
        lambda _, value: RuntimeError(
            f"weight_grad has the weight's gradient for an incoming gradient of 1, not {value}: put factors into "
            "token_weight, or leave weight_grad away"
        ),
        upstream,
    )


class _Statistics(torch.autograd.Function):
    """The statistics of rows, float64; the backward computes the logits again (8 N D V operations)."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, wanted: tuple[bool, ...], asked: dict[str, bool]
    ) -> Some:
        return statistics(input, weight, bias, call, asked)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Some) -> None:
        input, weight, bias, ctx.call, ctx.wanted, _ = inputs
        constants = output[len(Statistics._fields) :]
        ctx.mark_non_differentiable(*(t for t in constants if t is not None))
        ctx.save_for_backward(input, weight, bias, *constants[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        given = Statistics(*upstream[: len(Statistics._fields)])
        if all(g is None for g in given):
            return (None,) * 6
        input, weight, bias, *saved = ctx.saved_tensors
        with torch.no_grad():
            gradients = pull_back(input, weight, bias, ctx.call, ctx.wanted, Saved(*saved), given)
        some = next(g for g in given if g is not None)
        return (*_first_order(gradients, some, input, weight), None, None, None)


def wanted(*tensors: Tensor | None) -> tuple[bool, ...]:
    """Tell of which tensors a gradient is wanted."""
    return tuple(t is not None and t.requires_grad and torch.is_grad_enabled() for t in tensors)


def cross_entropy_loss(input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, terms: Terms) -> Tensor:
    """Return the sum of the rows' cross-entropies, with its gradients formed on the way."""
    if torch.compiler.is_compiling() and call.peers is ALONE:
        return ops.cross_entropy_loss(input, weight, bias, call, terms, wanted(input, weight, bias))
    return fused_loss(input, weight, bias, call, cross_entropy_run(terms))  # type: ignore[no-any-return]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def fused_loss(
    input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, run: Run, rows: tuple[Tensor, ...] = ()
) -> Tensor:
    """Return the sum of losses that ``run`` makes of the stream; it also fills the gradients it is given room for."""
    tensors = (input, weight, bias, *rows)
    return _Fused.apply(input, weight, bias, call, run, wanted(*tensors), *rows)[0]  # type: ignore[no-any-return, no-untyped-call]


def linear_statistics(
    input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, **asked: bool
) -> tuple[Statistics, Tensor, Tensor | None, Tensor | None]:
    """Return statistics of the rows (float64), the sum of the weights u, rank - 1 and argmax."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError("torch.func transforms are not supported where the logits are computed a second time")
    find = ops.statistics if torch.compiler.is_compiling() and call.peers is ALONE else _eager_statistics
    out = find(input, weight, bias, call, wanted(input, weight, bias), asked)
    fields = len(Statistics._fields)
    saved = Saved(*out[fields + 2 :])
    return Statistics(*out[:fields]), saved.mass, out[fields], out[fields + 1]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _eager_statistics(*arguments: Any) -> Any:
    return _Statistics.apply(*arguments)  # type: ignore[no-untyped-call]


def autocast(input: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    """Return the tensors in the type that autocast multiplies in, if it is on."""
    device = input.device.type
    if not torch.is_autocast_enabled(device):
        return (input, *parameters)
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (input, *parameters))
