"""The judge of the device benchmark: float64 on the device, in slices, and the budget that an error may not exceed.

The budget is that of tests/laws.py: twice the error of the plain formula in the type that is computed in (float32 for
16-bit types), a pairwise sum's roundings of the row's largest entry, and one rounding of each entry to the type of the
result. Errors are returned in budgets: 1 is the most that is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lastlayer import _algebra

SLICE = 1 << 26  # elements of a float64 slice

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]  # of rows: logits, targets, advantages


class Pass(NamedTuple):
    """A loss and the gradients of a head's inputs."""

    loss: Tensor
    dh: Tensor
    dW: Tensor


def computing(dtype: torch.dtype) -> torch.dtype:
    """Return the type that statistics are promised in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def excess(
    got: Tensor, exact: Tensor, dense: Tensor, terms: int = 1, size: Tensor | float = 0.0, condition: float = 1.0
) -> float:
    """Return the largest error in budgets, over the rows of the last axis; infinity where NaN and inf do not agree.

    ``size`` is what is rounded where the result is a small difference of larger numbers; ``condition``: how many
    roundings of the result one rounding of what it is computed from makes.
    """
    if got.shape != exact.shape:
        return math.inf
    info, kind = torch.finfo(got.dtype), torch.finfo(computing(got.dtype))
    if got.numel() == 0:
        return 0.0
    same_precision = got.dtype == torch.float64
    got, exact, dense = (each.double().reshape(-1, each.shape[-1] if each.dim() else 1) for each in (got, exact, dense))
    beyond = exact.abs() > info.max  # of float16
    special = ~torch.isfinite(exact) | beyond
    agrees = (got == exact) | (torch.isnan(got) & torch.isnan(exact)) | (beyond & torch.isinf(got))
    if bool((special & ~agrees).any()) or bool((~special & ~torch.isfinite(got)).any()):
        return math.inf
    exact, got = exact.masked_fill(special, 0), got.masked_fill(special, 0)
    lost = (dense.masked_fill(special, 0) - exact).nan_to_num(0.0, 0.0, 0.0).abs().amax(-1, keepdim=True)
    largest_of_row = torch.maximum(exact.abs().amax(-1, keepdim=True), torch.as_tensor(size).to(exact))
    sums = kind.eps * (1 + math.log2(terms)) * condition * largest_of_row
    if same_precision:
        sums = 2 * sums  # what is called exact here has as many roundings
    allowed = 2 * lost + sums + info.eps * exact.abs() + info.smallest_normal * info.eps
    return float(((got - exact).abs() / allowed).max())


def slices(rows: int, classes: int) -> list[slice]:
    """Return slices of rows of which each has a bearable number of elements."""
    step = max(1, SLICE // max(1, classes))
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def excess_in_slices(got: Tensor, exact: Tensor, dense: Tensor, terms: int, condition: float) -> float:
    """Return the same of matrices, some rows at a time."""
    if got.shape != exact.shape:
        return math.inf
    parts = (excess(got[s], exact[s], dense[s], terms, 0.0, condition) for s in slices(*exact.shape))
    return max(parts, default=0.0)


def rows_excess(name: str, z: Tensor, got: Tensor, some: list[slice] | None = None) -> float:
    """Return the error of softmax, log_softmax or logsumexp of rows z (N, V), or of some of them."""
    plain = {"softmax": torch.softmax, "log_softmax": torch.log_softmax, "logsumexp": torch.logsumexp}[name]
    worst = 0.0
    for s in slices(*z.shape) if some is None else some:
        wide, size = z[s].double(), torch.zeros(())
        if name == "logsumexp":
            state = _algebra.fold(wide)
            exact, size = _algebra.logsumexp(state)[:, None], finite(state.max.abs() + torch.log1p(state.rest))[:, None]
        else:
            exact = getattr(_algebra, name)(wide)
        dense = plain(z[s].to(computing(z.dtype)), -1).reshape(exact.shape)
        worst = max(worst, excess(got[s].reshape(exact.shape), exact, dense, z.shape[1], size))
    return worst


def finite(size: Tensor) -> Tensor:
    """Return 0 where a size is not finite."""
    return torch.where(torch.isfinite(size), size, 0.0)


def ends(rows: int, classes: int) -> list[slice]:
    """Return the first and the last slice: what is judged of a large array that was timed."""
    return [slices(rows, classes)[i] for i in (0, -1)]


def gradient_excess(
    z: Tensor, y: Tensor, dz: Tensor, factor: Tensor | float, ignored: int = -100, some: list[slice] | None = None
) -> float:
    """Return the error of cross-entropy's gradient factor * (p - [j = y]), 0 for ignored rows; one factor or many."""
    worst, factors = 0.0, torch.as_tensor(factor, dtype=torch.float64, device=z.device).expand(len(z))
    for s in slices(*z.shape) if some is None else some:
        live = (y[s] != ignored)[:, None]
        hit = torch.zeros_like(z[s], dtype=torch.bool).scatter_(1, y[s].clamp_min(0)[:, None], True)
        state = _algebra.fold(z[s].double())
        g = factors[s]
        numbers = _algebra.Coefficients(g, 0 * g, -g, 0 * g)
        exact = torch.where(live, _algebra.gradient(z[s].double(), state, numbers, y[s].clamp_min(0)), 0.0)
        kind = computing(z.dtype)
        dense = torch.where(live, (torch.softmax(z[s].to(kind), -1) - hit.to(kind)) * g[:, None].to(kind), 0.0)
        worst = max(worst, excess(dz[s], exact, dense, z.shape[1] + 3))
    return worst


def losses_of(z: Tensor, y: Tensor, ignored: int = -100) -> Tensor:
    """Return -log p_y of each row in float64, 0 for ignored rows, some rows at a time."""
    found = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    for s in slices(*z.shape):
        wide, target = z[s].double(), y[s].clamp_min(0)
        statistics = _algebra.finish(_algebra.fold(wide), wide.gather(1, target[:, None])[:, 0])
        found[s] = torch.where(y[s] != ignored, -statistics.logprob, 0.0)
    return found


def dense_losses_of(z: Tensor, y: Tensor, ignored: int = -100) -> Tensor:
    """Return the same by torch's formula in the computing type."""
    parts = [
        torch.nn.functional.cross_entropy(z[s].to(computing(z.dtype)), y[s], ignore_index=ignored, reduction="none")
        for s in slices(*z.shape)
    ]
    return torch.cat(parts)


def cross_entropy_of_rows(z: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """The loss of each row: a cross-entropy."""
    return torch.nn.functional.cross_entropy(z, y, reduction="none")


def with_entropy(z: Tensor, y: Tensor, a: Tensor, bonus: float = 0.01) -> Tensor:
    """The loss of each row: a policy gradient with an entropy bonus."""
    logp = torch.log_softmax(z, -1)
    return -a * logp.gather(1, y[:, None])[:, 0] + bonus * (logp.exp() * logp).sum(-1)


def product(a: Tensor, b: Tensor, kind: torch.dtype) -> Tensor:
    """Return a b with a sum and a result in float32 or float64."""
    if a.dtype == kind:
        return a @ b
    return torch.mm(a, b, out_dtype=kind) if a.is_cuda else a.to(kind) @ b.to(kind)


def slopes(z: Tensor, y: Tensor, a: Tensor, losses: Losses, rows: int) -> tuple[Tensor, Tensor]:
    """Return the mean's share of these rows, and its gradient."""
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        share = losses(z, y, a).sum() / rows
    return share.detach(), torch.autograd.grad(share, z)[0]


def exact_head(h: Tensor, W: Tensor, y: Tensor, a: Tensor, losses: Losses) -> Pass:
    """Return the mean loss and its gradients in float64."""
    wide, loss = W.double(), torch.zeros((), dtype=torch.float64, device=h.device)
    dh, dW = torch.empty_like(h, dtype=torch.float64), torch.zeros_like(wide)
    for s in slices(len(h), 4 * len(W)):
        share, dz = slopes(h[s].double() @ wide.T, y[s], a[s].double(), losses, len(h))
        loss += share
        torch.mm(dz, wide, out=dh[s])
        dW.addmm_(dz.T, h[s].double())
    return Pass(loss, dh, dW)


def dense_head(h: Tensor, W: Tensor, y: Tensor, a: Tensor, losses: Losses) -> Pass:
    """Return the same by the plain formulas: float32 logits, their gradient rounded once, three whole products."""
    kind = computing(h.dtype)
    loss, slope = torch.zeros((), dtype=kind, device=h.device), h.new_empty(len(h), len(W))
    for s in slices(len(h), 4 * len(W)):
        share, dz = slopes(product(h[s], W.T, kind), y[s], a[s].to(kind), losses, len(h))
        loss += share
        slope[s] = dz
    return Pass(loss, product(slope, W, kind), product(slope.T, h, kind))


def condition_of(h: Tensor, W: Tensor) -> float:
    """Return how many roundings of a probability one of the products of its logit makes: sum |h| |W| at the most."""
    return 1 + float((h.abs().float() @ W.abs().float().T).max())


def head_excess(got: Pass, exact: Pass, dense: Pass, classes: int, condition: float = 1.0) -> float:
    """Return the largest error of a loss and its gradients."""
    loss = excess(got.loss, exact.loss, dense.loss, classes * len(exact.dh), 0.0, condition)
    triples = zip(got[1:], exact[1:], dense[1:], strict=True)
    return max(loss, *(excess_in_slices(*triple, classes, condition) for triple in triples))
