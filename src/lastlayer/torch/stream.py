"""Hidden states to statistics or losses for torch: the framework's products, and the autograd nodes of two schedules.

``fused_loss`` forms the gradients during the forward pass (6 N D V operations), ``linear_statistics`` computes the
logits once more in the backward pass (8 N D V). Who holds the other classes is the call's ``peers``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lastlayer import _backends, _linear
from lastlayer._algebra import Statistics
from lastlayer._linear import Saved
from lastlayer._statistics import place
from lastlayer._stream import ALONE, Gradients, Head, Peers, Stream
from lastlayer.torch.statistics import eager

Run = Callable[[Stream, Gradients | None], tuple[Tensor, tuple[Tensor | None, ...]]]


class TorchProducts:
    """torch.mm and addmm in float32 or float64: 16-bit inputs are converted, or each logit would be rounded."""

    adds_in_place = True

    def __init__(self, input: Tensor) -> None:
        self.device = input.device
        self.dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.backend = _backends.choose(input)
        self.packing = (6 << 20) * torch.get_num_threads() if input.is_cpu else 0  # measured of MKL, per thread

    def empty(self, *shape: int) -> Tensor:
        return self.backend.reserve(torch.empty(shape, dtype=self.dtype, device=self.device))  # type: ignore[no-any-return]

    def double(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=self.device)

    def convert(self, array: Tensor, out: Tensor) -> Tensor:
        return out.copy_(array)

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        torch.mm(a, b, out=out)

    def accumulate(self, a: Tensor, b: Tensor, out: Tensor, scratch: Tensor | None, first: bool) -> None:
        out.addmm_(a, b, beta=0 if first else 1)

    def tanh(self, array: Tensor) -> None:
        array.tanh_()


@dataclass(frozen=True)
class Call:
    """One call's constants: everything but the tensors that autograd must see."""

    target: Tensor | None
    weights: Callable[[slice, slice], Tensor] | None
    scale: float
    softcap: float | None
    budget: int
    dense: bool = False
    peers: Peers = ALONE

    def begin(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...]
    ) -> tuple[Stream, Gradients | None]:
        """Return the stream over detached tensors, and room for the gradients if one is wanted."""

        def work() -> tuple[Stream, Gradients | None]:
            head, products = Head(weight, bias, self.scale, self.softcap), TorchProducts(input)
            stream = Stream(products, input, head, self.target, self.weights, self.budget, self.dense, self.peers)
            room = any(wanted)
            return stream, _linear.allocate(stream, wanted, lambda: torch.empty_like(input)) if room else None

        return self.peers.ready(work)

    def target_weight(self, classes: int) -> Tensor | None:
        """Return the weights of the targets, of those among these classes; None without weights."""
        if self.target is None or self.weights is None or not classes:
            return None
        u = self.weights(slice(0, len(self.target)), slice(0, classes))
        column, inside = place(self.target, u[None], self.peers.first_class)
        return u[torch.where(inside, column, 0)].double()


def rounded(into: Gradients, input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients in the types of what they are gradients of."""
    return tuple(
        None if gradient is None or like is None else gradient.to(like.dtype)
        for gradient, like in zip(into, (input, weight, bias), strict=True)
    )


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


def _first_order(gradients: tuple[Tensor | None, ...], *inputs: Tensor) -> tuple[Tensor | None, ...]:
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
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        stream, into = call.begin(input, weight, bias, wanted[:3])
        loss, of_rows = run(stream, into)
        gradients = (None, None, None) if into is None else rounded(into, input, weight, bias)
        return (loss.to(stream.products.dtype), *gradients, *of_rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
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
            if ready is None:
                ready = _Fused.forward(input, weight, bias, ctx.call, ctx.run, ctx.wanted, *rows)[1:]
            if not (eager(g) and g.is_cpu and g.item() == 1):
                ready = tuple(None if d is None else d.mul_(g.to(d.dtype)) for d in ready)
        gradients = _first_order(ready, g, input, weight)
        return (*gradients[:3], None, None, None, *gradients[3:])


class _Statistics(torch.autograd.Function):
    """The statistics of rows, float64; the backward computes the logits again (8 N D V operations)."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, wanted: tuple[bool, ...], asked: dict[str, bool]
    ) -> tuple[Tensor | None, ...]:
        found, saved, rank, argmax = _linear.statistics(call.begin(input, weight, bias, ())[0], **asked)
        # No tensor twice: what is kept has no gradient, the statistics have.
        return (*found, rank, argmax, *(None if kept is None else kept.clone() for kept in saved))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
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
            stream, into = ctx.call.begin(input, weight, bias, ctx.wanted)
            of_target = ctx.call.target_weight(stream.classes)
            _linear.push_statistics(stream, Saved(*saved), of_target, given, into)
            gradients = rounded(into, input, weight, bias)
        some = next(g for g in given if g is not None)
        return (*_first_order(gradients, some, input, weight), None, None, None)


def wanted(*tensors: Tensor | None) -> tuple[bool, ...]:
    """Tell of which tensors a gradient is wanted."""
    return tuple(t is not None and t.requires_grad and torch.is_grad_enabled() for t in tensors)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def fused_loss(
    input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, run: Run, rows: tuple[Tensor, ...] = ()
) -> Tensor:
    """Return the sum of losses that ``run`` makes of the stream; it also fills the gradients it is given room for."""
    tensors = (input, weight, bias, *rows)
    return _Fused.apply(input, weight, bias, call, run, wanted(*tensors), *rows)[0]  # type: ignore[no-any-return, no-untyped-call]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def linear_statistics(
    input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, **asked: bool
) -> tuple[Statistics, Tensor, Tensor | None, Tensor | None]:
    """Return statistics of the rows (float64), the sum of the weights u, rank - 1 and argmax."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError("torch.func transforms are not supported where the logits are computed a second time")
    out = _Statistics.apply(input, weight, bias, call, wanted(input, weight, bias), asked)  # type: ignore[no-untyped-call]
    fields = len(Statistics._fields)
    saved = Saved(*out[fields + 2 :])
    return Statistics(*out[:fields]), saved.mass, out[fields], out[fields + 1]


def autocast(input: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    """Return the tensors in the type that autocast multiplies in, if it is on."""
    device = input.device.type
    if not torch.is_autocast_enabled(device):
        return (input, *parameters)
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (input, *parameters))
