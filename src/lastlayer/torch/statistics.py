"""What a loss needs to know of each row of logits, as differentiable torch operations.

Two paths compute the same mathematics. The *fused* one folds the rows with a backend's kernels and gives autograd one
node whose backward is the four numbers per row of _algebra.py. The *composite* one calls _algebra.py on the tensors
themselves, and torch differentiates, maps and compiles it. ``eager`` decides; functional.py is the public face.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lastlayer import _algebra, _backends, _statistics
from lastlayer._algebra import State, Statistics, Terms
from lastlayer._statistics import Folded
from lastlayer.torch import later, ops
from lastlayer.torch.later import far

if _backends.cpu is not None:
    _backends.cpu.share_threads(str(Path(torch.__file__).parent))

LARGE = 4 << 20  # bytes from which memory is worth a preparation
PLAIN = (Tensor, torch.nn.Parameter)


def eager(*tensors: Tensor | None) -> bool:
    """Tell whether these are plain tensors, computed now: then kernels can read memory, and Python look at values."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:  # symbols instead of values
        return False
    if torch._C._are_functorch_transforms_active():  # torch.func: vmap, grad, jvp and what is made of them
        return False
    if torch._C._len_torch_dispatch_stack() > 0:  # FakeTensorMode, make_fx, selective checkpoints: they see each op
        return False
    return all(t is None or _plain(t) for t in tensors)


def _plain(t: Tensor) -> bool:
    # Subclasses (FakeTensor, DTensor, the user's own) give torch's operations their own meaning; meta has no data.
    if type(t) not in PLAIN or not (t.is_cpu or t.is_cuda) or t.layout is not torch.strided:
        return False
    if torch._C._functorch.is_legacy_batchedtensor(t):  # a backward with is_grads_batched=True
        return False
    # Our Functions have no forward-mode derivative.
    return forward_ad._current_level < 0 or forward_ad.unpack_dual(t).tangent is None  # type: ignore[no-untyped-call]


def fused(z: Tensor, *constants: Tensor | None) -> bool:
    """Tell whether the kernels take this call: they differentiate by the logits only."""
    derived = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in constants)
    return not derived and eager(z, *constants)


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in the type that is computed in: float32 for 16-bit types, else its own."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def rows(input: Tensor, dim: int) -> Tensor:
    """Return the tensor as (N, V) with dimension dim as V: a view where strides allow one. It has elements."""
    if input.dim() != 2 or dim not in (1, -1):
        moved = input.movedim(dim, -1)
        input = moved.reshape(-1, moved.shape[-1])
    return input.resolve_neg()


def like_rows(result: Tensor, input: Tensor, dim: int) -> Tensor:
    """Undo ``rows``: return (N, V) in the input's shape."""
    return result.reshape(input.movedim(dim, -1).shape).movedim(-1, dim)


def composite(z: Tensor, target: Tensor | None, weight: Tensor | None, entropy: bool) -> Statistics:
    """Return the statistics as operations that torch differentiates; no step depends on a value."""
    state = _algebra.fold(z, weight)
    found = _algebra.finish(state)  # of the maximum itself: log p_y is gap below it
    found = found._replace(entropy=found.entropy if entropy else None, cross=None if weight is None else found.cross)
    if target is None:
        return found._replace(logprob=None)
    index = target if target.dim() == 2 else target[:, None]
    gap = state.max[:, None] - z.gather(-1, index)
    # Where the target is the maximum the gap is the constant 0: its two derivatives would cancel p's last digits.
    gap = torch.where(index == z.argmax(-1)[:, None], 0.0, gap)
    if target.dim() == 1:
        logprob = found.logprob - gap[:, 0]
        return found._replace(logprob=logprob, others=_algebra.log1mexp(logprob))
    chosen, others = z.gather(-1, index), z.scatter(-1, index, -math.inf)
    remainder = _algebra.log_others(_algebra.fold(chosen), _algebra.fold(others))
    return found._replace(logprob=found.logprob[:, None] - gap, others=remainder)


class _RowStatistics(torch.autograd.Function):
    """The fused path: fold forwards, four numbers per row backwards, float64 statistics."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, target: Tensor | None, weight: Tensor | None, entropy: bool) -> Any:
        found, folded = _statistics.of_logits(z, target, weight, entropy)
        m, rest, mass = folded.state.max, folded.state.rest, folded.state.mass
        more = (found.logprob, found.others, folded.chosen)
        ctx.save_for_backward(z, target, weight, m, rest, mass, found.entropy, *more)
        ctx.set_materialize_grads(False)
        return tuple(found._replace(max=m.clone()))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        z, target, weight, m, rest, mass, entropy, logprob, others, chosen = ctx.saved_tensors
        given = Statistics(*upstream)
        if torch.is_grad_enabled():
            return _second_order(z, target, weight, m, rest, given), None, None, None
        folded = Folded(State(m, rest, None, None, mass), chosen)
        u = None
        if weight is not None and chosen is not None:
            u = (weight[target] if weight.dim() == 1 else _statistics.pick(weight, target)).double()
        numbers = _statistics.cotangents(
            Statistics(None, logprob, entropy, None, m, others), folded, given, z.dtype.itemsize, u
        )
        target = None if given.logprob is None and given.others is None else target
        weight = None if given.cross is None else weight
        if not eager(*upstream):  # several at once, by vmap
            return _statistics.dense(z.double(), folded.state, numbers, target, weight).to(z.dtype), None, None, None
        out = like(z)
        _statistics.write(_backends.choose(z), z, folded.state, numbers, target, weight, out=out)
        return out, None, None, None


def _second_order(
    z: Tensor, target: Tensor | None, weight: Tensor | None, m: Tensor, rest: Tensor, cotangents: Statistics
) -> Tensor:
    """Return dz as a differentiable function of z and the cotangents: the statistics are computed again, in float64."""
    given = [g for g in cotangents if g is not None]
    unused = torch.stack([(g == 0).reshape(len(z), -1).all(1) for g in given]).all(0)
    dead = unused & ~(torch.isfinite(m) & torch.isfinite(rest))  # else 0 * NaN
    found = composite(torch.where(dead[:, None], 0.0, z.double()), target, weight, cotangents.entropy is not None)
    outputs = [f for f, g in zip(found, cotangents, strict=True) if g is not None]
    (dz,) = torch.autograd.grad(outputs, z, given, create_graph=True)
    return dz


def row_statistics(
    z: Tensor, target: Tensor | None = None, weight: Tensor | None = None, *, entropy: bool = False
) -> Statistics:
    """Return logsumexp, log p_target, entropy, -sum_j u_j log p_j and the maximum of each row; None: not asked for.

    Args:
        z: logits (N, V), V > 0; float16, bfloat16, float32 or float64, any strides.
        target: int64 (N) or (N, K), every value in [0, V), those of a row distinct; logprob is None without it.
        weight: u, (V) or (N, V); cross is None without it.
        entropy: whether entropy is asked for.

    Returns:
        Vectors of N: float64 on the fused path, z's own type but at least float32 on the composite one.
    """
    if fused(z, target, weight):
        index = None if target is None else target.contiguous()
        if not (torch.is_grad_enabled() and z.requires_grad):
            return _statistics.of_logits(z, index, weight, entropy)[0]
        return Statistics(*apply(_RowStatistics, z, index, weight, entropy))
    return composite(wide(z), target, weight, entropy)


def row_logsumexp(z: Tensor) -> Tensor:
    """Return the logsumexp of each row alone."""
    if fused(z) and not (torch.is_grad_enabled() and z.requires_grad):
        found: Tensor = _backends.choose(z).statistics(z, keep=False)[0].logsumexp
        return found
    alone: Tensor = row_statistics(z).logsumexp
    return alone


def operator(z: Tensor, *constants: Tensor | None) -> bool:
    """Tell whether a compiler should take the kernels as they are: on a GPU, where they need the fewest passes."""
    derived = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in constants)
    return torch.compiler.is_compiling() and not derived and later.is_far(z)


def composite_loss(z: Tensor, target: Tensor | None, weight: Tensor | None, terms: Terms, ignored: int) -> Tensor:
    """Return the losses of the rows as operations that torch differentiates; no step depends on a value."""
    skip = None
    if target is not None:
        skip = target == ignored
        # Differentiating through NaN gives NaN even times 0; the kernels instead leave rows out that do not count.
        z, target = torch.where(skip[:, None], 0.0, z), target.masked_fill(skip, 0)
    losses: Tensor = _algebra.loss(composite(z, target, weight, False), terms)
    return losses if skip is None else torch.where(skip, 0.0, losses)


class _RowLoss(torch.autograd.Function):
    """The fused path of losses: one visit of each row gives its loss and, where the slope is known, its gradient.

    For a sum the gradient is formed at once, with an incoming gradient of 1, and handed out at the first backward. For
    another incoming gradient, a second backward, or losses row by row, rows are visited again.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, target: Tensor | None, u: Tensor | None, terms: Terms, ignored: int, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(z, target, u)
        ctx.terms, ctx.ignored = terms, ignored
        ctx.ready = None if _offloads() else like(z)
        return total_loss(z, target, u, terms, ignored, dtype, ctx.ready)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        ready, ctx.ready = ctx.ready, None
        plain = eager(upstream) and not torch.is_grad_enabled()
        if plain and ready is not None and not far(upstream) and upstream.item() == 1:
            return ready, None, None, None, None, None
        z, target, u = ctx.saved_tensors
        if not plain:
            return _derived(z, target, u, ctx.terms, ctx.ignored, upstream.expand(z.shape[0])), *[None] * 5
        out = like(z) if ready is None else ready
        _backends.choose(z).loss(
            z, ctx.terms, target, u, ignored=ctx.ignored, scale=upstream, out=out, unscaled=ready is not None
        )
        return out, None, None, None, None, None


class _RowLosses(torch.autograd.Function):
    """The same, row by row."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, target: Tensor | None, u: Tensor | None, terms: Terms, ignored: int, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(z, target, u)
        ctx.terms, ctx.ignored = terms, ignored
        return each_loss(z, target, u, terms, ignored, dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        z, target, u = ctx.saved_tensors
        if not eager(upstream) or torch.is_grad_enabled():
            return _derived(z, target, u, ctx.terms, ctx.ignored, upstream), *[None] * 5
        slope = upstream.double()
        scaled = Terms(*(None if f is None else f * slope for f in ctx.terms))
        out = like(z)
        _backends.choose(z).loss(z, scaled, target, u, ignored=ctx.ignored, out=out)
        return out, None, None, None, None, None


def like(z: Tensor, layout: torch.memory_format = torch.preserve_format) -> Tensor:
    out = torch.empty_like(z) if layout is torch.preserve_format else torch.empty_like(z, memory_format=layout)
    return out if out.nbytes < LARGE else _backends.choose(z).reserve(out)


def _offloads() -> bool:
    """Tell whether hooks want to hold what a backward needs (to move it elsewhere, or to compute it again)."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def total_loss(
    z: Tensor,
    target: Tensor | None,
    weight: Tensor | None,
    terms: Terms,
    ignored: int,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """Return the sum of the rows' losses, rounded once, and write its gradient to out."""
    total = _backends.choose(z).loss(z, terms, target, weight, ignored=ignored, out=out)
    return total.to(dtype) if isinstance(total, Tensor) else torch.scalar_tensor(total, dtype=dtype)


def each_loss(
    z: Tensor, target: Tensor | None, weight: Tensor | None, terms: Terms, ignored: int, dtype: torch.dtype
) -> Tensor:
    """Return the rows' losses, rounded once."""
    losses = z.new_empty(z.shape[0], dtype=torch.float64)
    _backends.choose(z).loss(z, terms, target, weight, ignored=ignored, losses=losses)
    return losses.to(dtype)


def _derived(
    z: Tensor, target: Tensor | None, weight: Tensor | None, terms: Terms, ignored: int, upstream: Tensor
) -> Tensor:
    """Return dz as a differentiable function of z and the incoming gradient: computed again, in float64."""
    skip = z.new_zeros(z.shape[0], dtype=torch.bool) if target is None else target == ignored
    index = None if target is None else target.masked_fill(skip, 0)
    slope = torch.where(skip, 0.0, upstream.double())
    scaled = Terms(*(None if f is None else f * slope for f in terms))
    given: list[Any] = [f for f in scaled if f is not None]
    silent = torch.stack([f == 0 for f in given]).all(0)
    wide_z = z.double()
    if not torch.is_grad_enabled():
        state = _algebra.fold(wide_z, weight)
        statistics = _algebra.finish(state, None if index is None else wide_z.gather(1, index[:, None])[:, 0])
        numbers = _algebra.numbers_of(statistics, state.mass, scaled)
        dense: Tensor = _algebra.gradient(wide_z, state, numbers, index, weight).to(z.dtype)
        return dense
    dead = silent & ~torch.isfinite(wide_z.amax(1))  # else 0 * NaN
    wide_z = torch.where(dead[:, None], 0.0, wide_z)
    found = composite(wide_z, index, weight, False)
    losses = _algebra.loss(found, Terms(*(None if f is None else torch.where(skip, 0.0, f) for f in terms)))
    (dz,) = torch.autograd.grad(losses, z, slope, create_graph=True)
    return dz


def apply(schedule: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Function.apply without asking again what ``eager`` has asked: a microsecond less."""
    return super(torch.autograd.Function, schedule).apply(*arguments)  # type: ignore[misc]


def row_loss(
    z: Tensor,
    target: Tensor | None,
    weight: Tensor | None,
    terms: Terms,
    *,
    ignored: int,
    total: bool,
    dtype: torch.dtype,
    use_kernels: bool,
) -> Tensor:
    """Return nll (-log p_y) + cross sum_j u_j (-log p_j) + square lse^2 of each row of z, or the sum of them.

    Args:
        z: logits (N, V), V > 0; float16, bfloat16, float32 or float64, any strides.
        target: int64 (N), contiguous.
        weight: u, (V) or (N, V).
        terms: the three factors: numbers, or float64 (N) each.
        ignored: a target whose row counts as absent.
        total: whether the sum is asked for.
        dtype: of the result, which is rounded once.
        use_kernels: what ``fused`` said of all the tensors here.
    """
    if not use_kernels:
        if operator(z, target, weight):
            losses = ops.row_losses(z, target, weight, terms, ignored)
        else:
            losses = composite_loss(wide(z), target, weight, terms, ignored)
        return (losses.sum() if total else losses).to(dtype)
    if torch.is_grad_enabled() and z.requires_grad:
        schedule = _RowLoss if total else _RowLosses
        return apply(schedule, z, target, weight, terms, ignored, dtype)  # type: ignore[no-any-return]
    return (total_loss if total else each_loss)(z, target, weight, terms, ignored, dtype)
