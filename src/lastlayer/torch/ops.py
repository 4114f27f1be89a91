"""Operators that torch.compile takes as they are: no graph breaks, no second copy of the mathematics.

Each is a function of stream.py, or a kernel, behind a schema, with a fake that tells shapes and a derivative that is an
operator again. Operators return no None: what is not there is a tensor without elements.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lastlayer import _backends
from lastlayer._algebra import Statistics, Terms
from lastlayer._linear import Saved
from lastlayer.torch.stream import Call, Some, cross_entropy_run, fused, pull_back
from lastlayer.torch.stream import statistics as statistics_of

FIELDS = len(Statistics._fields)


def _absent(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _whole(tensors: Some, like: Tensor) -> list[Tensor]:
    return [_absent(like) if tensor is None else tensor for tensor in tensors]


def _kind(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _gradients_like(tensors: Some, wanted: list[bool], kind: torch.dtype | None = None) -> list[Tensor]:
    pairs = zip(tensors, wanted, strict=True)
    return [
        torch.empty_like(t, dtype=kind or t.dtype) if want and t is not None else _absent(tensors[0])  # type: ignore[arg-type]
        for t, want in pairs
    ]


@torch.library.custom_op("lastlayer::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, class_weight: Tensor | None,
    probabilities: Tensor | None, nll: Tensor | None, cross: Tensor | None, square: Tensor | None, scale: float,
    softcap: float | None, budget: int | None, smoothing: float, wanted: list[bool],
) -> list[Tensor]:  # fmt: skip
    """Return the sum of the rows' losses, and its gradients by the head's tensors."""
    call = Call(target, class_weight, scale, softcap, budget, probabilities, smoothing)
    return _whole(fused(input, weight, bias, call, cross_entropy_run(Terms(nll, cross, square)), tuple(wanted)), input)


@_linear_cross_entropy.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> list[Tensor]:
    kind = torch.float32 if input.dtype == torch.float16 else None
    gradients = _gradients_like((input, weight, bias), rest[-1], kind)
    return [input.new_empty((), dtype=_kind(input)), *gradients]


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.wanted, ctx.kinds = inputs[-1], [None if t is None else t.dtype for t in inputs[:3]]
    ctx.save_for_backward(*output[1:])


def _hand_out(ctx: Any, upstream: list[Tensor]) -> tuple[Tensor | None, ...]:
    tensors = zip(ctx.saved_tensors, ctx.wanted, ctx.kinds, strict=True)
    given = [(d * upstream[0].to(d.dtype)).to(kind) if want else None for d, want, kind in tensors]
    return (*given, *[None] * 11)


_linear_cross_entropy.register_autograd(_hand_out, setup_context=_keep_gradients)


def cross_entropy_loss(
    input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, terms: Terms, wanted: tuple[bool, ...]
) -> Tensor:
    """Return the sum of the rows' cross-entropies."""
    loss, *_ = _linear_cross_entropy(
        input, weight, bias, call.target, call.class_weight, call.probabilities, *terms, call.scale, call.softcap,
        call.budget, call.smoothing, list(wanted),
    )  # fmt: skip
    return loss  # type: ignore[no-any-return]


@torch.library.custom_op("lastlayer::linear_statistics", mutates_args=())
def _linear_statistics(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, class_weight: Tensor | None,
    scale: float, softcap: float | None, budget: int | None, entropy: bool, rank: bool, argmax: bool,
    wanted: list[bool],
) -> list[Tensor]:  # fmt: skip
    """Return what stream.statistics does."""
    call = Call(target, class_weight, scale, softcap, budget)
    asked = {"entropy": entropy, "rank": rank, "argmax": argmax}
    return _whole(statistics_of(input, weight, bias, call, asked), input)


def _there(target: Tensor | None, entropy: bool, rank: bool, argmax: bool) -> list[bool]:
    """Tell which of the operator's results are there."""
    targets = target is not None
    found = Statistics(True, targets, entropy, True, True, targets)
    saved = Saved(True, True, True, entropy, targets, targets, targets, False)
    return [*found, rank, argmax, *saved]


@_linear_statistics.register_fake
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, class_weight: Tensor | None,
    scale: float, softcap: float | None, budget: int | None, entropy: bool, rank: bool, argmax: bool,
    wanted: list[bool],
) -> list[Tensor]:  # fmt: skip
    there = _there(target, entropy, rank, argmax)
    row = input.new_empty(input.shape[0], dtype=torch.float64)
    each = row if target is None else target.new_empty(target.shape, dtype=torch.float64)
    shapes = Statistics(row, each, row, row, row, row)
    saved = Saved(row, row, row, row, each, row, each, row)
    integers = (each.to(torch.int64), row.to(torch.int64))
    made = (*shapes, *integers, *saved)
    return [torch.empty_like(t) if here else _absent(input) for t, here in zip(made, there, strict=True)]


@torch.library.custom_op("lastlayer::linear_statistics_backward", mutates_args=())
def _linear_statistics_backward(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor | None, class_weight: Tensor | None,
    scale: float, softcap: float | None, budget: int | None, wanted: list[bool], saved: list[Tensor | None],
    upstream: list[Tensor | None],
) -> list[Tensor]:  # fmt: skip
    """Return what stream.pull_back does."""
    call = Call(target, class_weight, scale, softcap, budget)
    gradients = pull_back(input, weight, bias, call, tuple(wanted), Saved(*saved), Statistics(*upstream))
    return _whole(gradients, input)


@_linear_statistics_backward.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> list[Tensor]:
    return _gradients_like((input, weight, bias), rest[5])


def _keep_statistics(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, ctx.scale, ctx.softcap, ctx.budget, entropy, rank, argmax, ctx.wanted = inputs
    ctx.there = _there(tensors[3], entropy, rank, argmax)
    ctx.save_for_backward(*tensors, *output[FIELDS + 2 :])


def _pull_back(ctx: Any, upstream: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    tensors, saved = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
    kept = [t if here else None for t, here in zip(saved, ctx.there[FIELDS + 2 :], strict=True)]
    given = [g if here else None for g, here in zip(upstream[:FIELDS], ctx.there, strict=False)]
    gradients = _linear_statistics_backward(*tensors, ctx.scale, ctx.softcap, ctx.budget, ctx.wanted, kept, given)
    return (*(d if want else None for d, want in zip(gradients, ctx.wanted, strict=True)), *[None] * 9)


_linear_statistics.register_autograd(_pull_back, setup_context=_keep_statistics)


def statistics(
    input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, wanted: tuple[bool, ...], asked: dict[str, bool]
) -> Some:
    """Return what stream.statistics does, None for what is not there."""
    flags = [asked.get(name, False) for name in ("entropy", "rank", "argmax")]
    made = _linear_statistics(
        input, weight, bias, call.target, call.class_weight, call.scale, call.softcap, call.budget, *flags, list(wanted)
    )
    there = _there(call.target, *flags)
    return tuple(t if here else None for t, here in zip(made, there, strict=True))


@torch.library.custom_op("lastlayer::row_losses", mutates_args=())
def _row_losses(
    z: Tensor, target: Tensor | None, weight: Tensor | None, numbers: list[float], factors: list[Tensor | None],
    ignored: int,
) -> Tensor:  # fmt: skip
    """Return the rows' losses, float64; a term is a number times a factor, and absent where the number is NaN."""
    losses = z.new_empty(z.shape[0], dtype=torch.float64)
    _backends.choose(z).loss(z, _terms(numbers, factors), target, weight, ignored=ignored, losses=losses)
    return losses


def _terms(numbers: list[float], factors: list[Tensor | None]) -> Terms:
    pairs = zip(numbers, factors, strict=True)
    return Terms(*(None if number != number else number if f is None else number * f for number, f in pairs))


@_row_losses.register_fake
def _(z: Tensor, *rest: Any) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.float64)


@torch.library.custom_op("lastlayer::row_losses_backward", mutates_args=())
def _row_losses_backward(
    upstream: Tensor, z: Tensor, target: Tensor | None, weight: Tensor | None, numbers: list[float],
    factors: list[Tensor | None], ignored: int,
) -> Tensor:  # fmt: skip
    """Return the gradient of the rows' losses, times upstream."""
    scaled = Terms(*(None if f is None else f * upstream for f in _terms(numbers, factors)))
    out = torch.empty_like(z)
    _backends.choose(z).loss(z, scaled, target, weight, ignored=ignored, out=out)
    return out


@_row_losses_backward.register_fake
def _(upstream: Tensor, z: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(z)


def _keep_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, target, weight, ctx.numbers, factors, ctx.ignored = inputs
    ctx.save_for_backward(z, target, weight, *factors)


def _of_rows(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    z, target, weight, *factors = ctx.saved_tensors
    dz = _row_losses_backward(upstream, z, target, weight, ctx.numbers, factors, ctx.ignored)
    return dz, None, None, None, None, None


_row_losses.register_autograd(_of_rows, setup_context=_keep_rows)


def row_losses(z: Tensor, target: Tensor | None, weight: Tensor | None, terms: Terms, ignored: int) -> Tensor:
    """Return the rows' losses (N,), float64."""
    numbers = [float("nan") if f is None else 1.0 if isinstance(f, Tensor) else f for f in terms]
    factors = [f.double().expand(z.shape[0]).contiguous() if isinstance(f, Tensor) else None for f in terms]
    return _row_losses(z, target, weight, numbers, factors, ignored)  # type: ignore[no-any-return]
