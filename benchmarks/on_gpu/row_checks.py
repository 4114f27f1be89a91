"""Functions of logits on a real device: against float64, for all types and odd sizes, and the laws of rows.

Softmax and the like, cross-entropy, entropy; in place; a row alone; more than 2^31 elements. Heads and draws are in
head_checks.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import lastlayer.torch as F
from lastlayer import _algebra, _backends
from on_gpu.clock import Bench
from on_gpu.exact import (
    computing,
    dense_losses_of,
    excess,
    gradient_excess,
    losses_of,
    rows_excess,
    slices,
)
from on_gpu.laws import IGNORED, SEED, Check, NotHereError, matrices, same, some_ignored, within

HUGE = (17_000, 128_256)  # more than 2^31 elements


def backend(bench: Bench) -> None:
    """The kernels for this device are what computes."""
    chosen = _backends.choose(bench.normal(2, 3)).__name__
    if bench.cuda and "triton" not in chosen:
        raise AssertionError(f"{chosen} computes")


def rowwise(bench: Bench, name: str, dtype: torch.dtype) -> None:
    """softmax, log_softmax and logsumexp against float64."""
    for where, z, _ in matrices(bench, dtype):
        bench.poison(1 << 24)
        within(rows_excess(name, z, getattr(F, name)(z, -1)), where)


def in_place(bench: Bench, dtype: torch.dtype) -> None:
    """Softmax written over its own input."""
    for where, z, _ in matrices(bench, dtype):
        expected = F.softmax(z, -1)
        same(F.softmax(z, -1, out=z), expected, where)


def cross_entropy(bench: Bench, dtype: torch.dtype) -> None:
    """Losses, their mean, and gradients with upstream factors that differ by row; ignored rows hold NaN."""
    for where, z, y in matrices(bench, dtype):
        target = some_ignored(y)
        z = z.masked_fill((target == IGNORED)[:, None], math.nan)
        clean = z.nan_to_num(0.0, posinf=None, neginf=-math.inf)
        bench.poison(1 << 24)
        leaf, g = z.detach().requires_grad_(), bench.normal(len(y), dtype=computing(dtype), seed=5)
        losses = F.cross_entropy(leaf, target, reduction="none")
        (losses * g.to(losses.dtype)).sum().backward()  # type: ignore[no-untyped-call]
        exact, dense = losses_of(clean, target), dense_losses_of(clean, target)
        within(excess(losses.detach()[:, None], exact[:, None], dense[:, None], 8 * z.shape[1]), f"{where}, losses")
        assert leaf.grad is not None
        factors = g.to(losses.dtype).double()
        within(gradient_excess(clean, target, leaf.grad, factors, IGNORED), f"{where}, gradient")
        count = int((target != IGNORED).sum())
        leaf.grad = None
        mean = F.cross_entropy(leaf, target)
        mean.backward()  # type: ignore[no-untyped-call]
        within(excess(mean.detach(), exact.sum() / count, dense.sum() / count, z.numel()), f"{where}, mean")
        within(gradient_excess(clean, target, leaf.grad, 1 / count, IGNORED), f"{where}, gradient of the mean")


def weighted(bench: Bench, dtype: torch.dtype) -> None:
    """Cross-entropy with class weights and label smoothing, and with class probabilities, against float64."""
    for V in (2, 31, 1_000) if bench.tiny else (2, 31, 1_000, 50_257):
        z, y = bench.normal(9, V, dtype=dtype, scale=3.0), bench.classes(9, V)
        u, t = bench.normal(V, dtype=dtype, seed=3).abs(), torch.softmax(bench.normal(9, V, dtype=dtype, seed=4), -1)

        def of(kind: torch.dtype, function: Callable[..., Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
            leaf = z.to(kind, copy=True).requires_grad_()  # noqa: B023
            given = target.to(kind) if target.is_floating_point() else target
            loss = function(leaf, given, u.to(kind), label_smoothing=0.1)  # noqa: B023
            return loss.detach(), torch.autograd.grad(loss, leaf)[0]

        torchs = torch.nn.functional.cross_entropy
        for what, target in (("index", y), ("probabilities", t)):
            got = of(dtype, F.cross_entropy, target)
            exact, dense = of(torch.float64, torchs, target), of(computing(dtype), torchs, target)
            for part, g, e, d in zip(("loss", "gradient"), got, exact, dense, strict=True):
                within(excess(g, e, d, 8 * V, e.abs().max()), f"V {V:,}, {what}, {part}")


def entropies(bench: Bench, dtype: torch.dtype) -> None:
    """The entropy of logit_statistics against float64, masked and confident rows included."""
    for where, z, y in matrices(bench, dtype):
        got = F.logit_statistics(z, y, entropy=True)
        for s in slices(*z.shape):
            exact = _algebra.finish(_algebra.fold(z[s].double())).entropy
            p = torch.softmax(z[s].to(computing(dtype)), -1)
            dense = -torch.xlogy(p, p).sum(-1)
            within(excess(got.entropy[s, None], exact[:, None], dense[:, None], 8 * z.shape[1]), where)


def gradient_of(z: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the sum of cross-entropies."""
    leaf = z.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(leaf, y, reduction="sum"), leaf)[0]


def alone(bench: Bench, dtype: torch.dtype) -> None:
    """A row alone gives the bits that it gives in its batch."""
    for where, z, y in matrices(bench, dtype):
        functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "softmax": lambda z, y: F.softmax(z, -1),
            "log_softmax": lambda z, y: F.log_softmax(z, -1),
            "logsumexp": lambda z, y: F.logsumexp(z, -1),
            "cross_entropy": lambda z, y: F.cross_entropy(z, y, reduction="none"),
        }
        for name, function in functions.items():
            whole = function(z, y)
            for i in {0, 1, len(z) // 2, len(z) - 1}:
                same(function(z[i : i + 1], y[i : i + 1])[0], whole[i], f"{name}, {where}, row {i}")
        slope = gradient_of(z, y)
        for i in {0, len(z) - 1}:
            same(gradient_of(z[i : i + 1], y[i : i + 1])[0], slope[i], f"gradient, {where}, row {i}")


def huge(bench: Bench) -> None:
    """More than 2^31 elements: the first and the last rows, and a row alone."""
    if not bench.cuda or bench.tiny:
        raise NotHereError("needs a GPU's memory")
    z, y = bench.normal(*HUGE, scale=3.0), bench.classes(*HUGE)
    some = [slice(0, 4), slice(HUGE[0] - 4, HUGE[0])]
    within(rows_excess("softmax", z, F.softmax(z, -1), some), "softmax")
    within(rows_excess("logsumexp", z, F.logsumexp(z, -1), some), "logsumexp")
    same(F.logsumexp(z[-1:], -1)[0], F.logsumexp(z, -1)[-1], "logsumexp of the last row alone")
    within(gradient_excess(z, y, gradient_of(z, y), 1.0, some=some), "gradient of cross_entropy")
    exact, dense = losses_of(z, y).mean(), dense_losses_of(z, y).mean()
    within(excess(F.cross_entropy(z, y), exact, dense, z.numel()), "mean of cross_entropy")
    same(
        F.categorical(z, seed=SEED).index[-4:],
        F.categorical(z[-4:], seed=SEED, offset=list(range(len(z) - 4, len(z)))).index,
        "categorical",
    )


CHECKS: dict[str, Check] = {"backend": backend, "more than 2^31 elements": huge}
BY_TYPE: dict[str, Callable[[Bench, torch.dtype], None]] = {
    "softmax": partial(rowwise, name="softmax"),
    "log_softmax": partial(rowwise, name="log_softmax"),
    "logsumexp": partial(rowwise, name="logsumexp"),
    "softmax in place": in_place,
    "cross_entropy": cross_entropy,
    "cross_entropy, weights and smoothing": weighted,
    "entropy": entropies,
    "a row alone": alone,
}
