"""Assertions and inputs of the checks that run on a real device; numbers are judged by exact.py.

Who uses them: row_checks.py, head_checks.py, cuda_checks.py; what runs the checks is correct.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from on_gpu.clock import Bench
from on_gpu.exact import Pass
from on_gpu.floors import Shape

Check = Callable[[Bench], None]

CLASSES, TINY_CLASSES = (1, 2, 31, 1_000, 50_257, 128_256, 262_144), (1, 2, 31, 1_000)
ELEMENTS, TINY_ELEMENTS = 1 << 21, 1 << 12
IGNORED = -100
SEED = 20261122


class NotHereError(Exception):
    """What this device, or this installation, does not have."""


def within(error: float, what: str) -> None:
    """Fail unless an error keeps its budget."""
    if not error <= 1:
        raise AssertionError(f"{what}: the error is {error:.3g} times its budget")


def same(a: Tensor, b: Tensor, what: str) -> None:
    """Fail unless two tensors hold the same bits."""
    if a.shape != b.shape or not bool(((a == b) | (a.isnan() & b.isnan())).all()):
        differ = int((a != b).sum()) if a.shape == b.shape else -1
        raise AssertionError(f"{what}: {differ:,} of {a.numel():,} differ")


def named(dtype: torch.dtype) -> str:
    """Return the name of a type."""
    return str(dtype).removeprefix("torch.")


def layouts(z: Tensor) -> dict[str, Tensor]:
    """Return the same logits aligned, and in rows of which none begins at a multiple of 16 bytes as the last did."""
    N, V = z.shape
    odd = torch.full((N * (V + 1) + 1,), math.nan, dtype=z.dtype, device=z.device)[1:].view(N, V + 1)[:, :V]
    return {"": z, ", unaligned": odd.copy_(z)}


def matrices(bench: Bench, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield logits and targets of odd sizes: normal, then with a masked, a confident and an even row."""
    elements = TINY_ELEMENTS if bench.tiny else ELEMENTS
    for V in TINY_CLASSES if bench.tiny else CLASSES:
        N = min(289, max(5, elements // V))
        z, y = bench.normal(N, V, dtype=dtype, scale=3.0, seed=V), bench.classes(N, V)
        if V > 1:
            z[0, (V + 1) // 2 :], y[0] = -math.inf, 0
            z[1, y[1]] = 60.0
            z[2] = 7.0
        for name, each in layouts(z).items():
            yield f"{N} x {V:,}{name}", each, y


def some_ignored(y: Tensor) -> Tensor:
    """Return targets of which every fourth is ignored, not the first three."""
    rows = torch.arange(len(y), device=y.device)
    return y.masked_fill(rows % 4 == 3, IGNORED)


def inputs_of(bench: Bench, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, a weight that gives logits of standard deviation 2, targets and advantages."""
    h = bench.normal(shape.N, shape.D, dtype=dtype)
    W = bench.normal(shape.V, shape.D, dtype=dtype, scale=2 / math.sqrt(shape.D), seed=1)
    return h, W, bench.classes(shape.N, shape.V), bench.normal(shape.N, dtype=torch.float32, seed=2)


def passed(loss: Callable[[Tensor, Tensor], Tensor], h: Tensor, W: Tensor) -> Pass:
    """Return the loss and the gradients of one pass."""
    leaves = h.detach().requires_grad_(), W.detach().requires_grad_()
    value = loss(*leaves)
    return Pass(value.detach(), *torch.autograd.grad(value, leaves))
