"""Functions of logits beside the bandwidth that was measured in the same rounds: cross_entropy, softmax and the like.

A figure is bytes that must move over the time, as a part of what a copy of the same array moves. Draws are in
draws.py, the judge in exact.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import lastlayer.torch as F
from on_gpu import peers
from on_gpu.clock import Bench, Job, Times, measured, row_of
from on_gpu.exact import dense_losses_of, ends, excess, gradient_excess, losses_of, rows_excess
from on_gpu.table import Bar, Found, Row, best

OURS = "lastlayer"
COPY = "copy, z.clone()"
OF_COPY, OF_COPY_ROWS = Bar(0.9, at_most=False), Bar(0.85, at_most=False)
LOGITS, TINY_LOGITS = (8_192, 128_256), (24, 200)
CLASSES = (1_000, 4_096, 32_000, 50_257, 128_256, 262_144)
ELEMENTS = 1 << 29  # 1 GiB of bfloat16
TINY_CLASSES, TINY_ELEMENTS = (2, 1_000), 1 << 14
SPREAD = 3.0  # standard deviation of the logits


def rate(times: Times, moved: float, copied: float, copy: Times) -> float:
    """Return bytes per second as a part of a copy's."""
    return (moved / times.median) / (copied / copy.median)


def step(z: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Job:
    """Return a forward and a backward pass with a fresh gradient."""

    def run(i: int) -> tuple[Tensor, Tensor]:
        leaf = z.detach().requires_grad_()
        value = loss(leaf, y)
        value.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return value.detach(), leaf.grad

    return run


def spared(z: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Job:
    """Return the step of a peer that writes over its logits: on a copy of its own, restored where it is judged."""
    own = z.clone()
    inner = step(own, y, loss)

    def run(i: int) -> Any:
        if i == 0:
            own.copy_(z)
        return inner(i)

    return run


def cross_entropy(bench: Bench) -> Found:
    """Return cross_entropy on logits: read once, its gradient written once."""
    N, V = TINY_LOGITS if bench.tiny else LOGITS
    z, y, where = bench.normal(N, V, scale=SPREAD), bench.classes(N, V), f"{N:,} x {V:,}"
    exact, plain = losses_of(z, y).mean(), dense_losses_of(z, y).mean()

    def judge(got: tuple[Tensor, Tensor]) -> float:
        return max(excess(got[0], exact, plain, V * N), gradient_excess(z, y, got[1], 1 / N))

    others = peers.found(bench, peers.LOSSES)
    jobs = {OURS: step(z, y, F.cross_entropy)}
    jobs |= {
        name: (spared if name in peers.WRITES_OVER_ITS_INPUT else step)(z, y, peer) for name, peer in others.items()
    }
    times, failed = measured(bench, where, {COPY: lambda i: z.clone()}, jobs, judge)
    moved = 2.0 * z.numel() * z.element_size()
    rows = [
        row_of(
            where, name, each, rate(each, moved, moved, times[COPY]), bar=OF_COPY if name == OURS else None
        )
        for name, each in times.items()
    ]  # fmt: skip
    rows += failed + best(rows, next(row for row in rows if row.who == OURS), others, where)
    return Found("cross_entropy on logits, forward and backward, bfloat16", "of the copy's bandwidth", rows)


def of_rows(bench: Bench, name: str, z: Tensor) -> list[Row]:
    """Return the rows of one function on one array."""
    where = f"{name}, {z.shape[0]:,} x {z.shape[1]:,}"
    others = peers.found(bench, peers.rowwise(name))
    functions = {OURS: lambda z: getattr(F, name)(z, -1)} | others
    jobs: dict[str, Job] = {who: (lambda i, f=f: f(z)) for who, f in functions.items()}
    with torch.no_grad():
        judged = lambda got: rows_excess(name, z, got, ends(*z.shape))  # noqa: E731
        times, failed = measured(bench, where, {COPY: lambda i: z.clone()}, jobs, judged)
    size = float(z.numel() * z.element_size())
    moved = size if name == "logsumexp" else 2 * size
    rows = [
        row_of(
            where, who, each, rate(each, moved if who != COPY else 2 * size, 2 * size, times[COPY]),
            bar=OF_COPY_ROWS if who == OURS else None,
        )
        for who, each in times.items()
    ]  # fmt: skip
    return rows + failed + best(rows, next(row for row in rows if row.who == OURS), others, where)


def rowwise(bench: Bench) -> Found:
    """Return softmax, log_softmax and logsumexp, from few classes to many."""
    classes, elements = (TINY_CLASSES, TINY_ELEMENTS) if bench.tiny else (CLASSES, ELEMENTS)
    rows: list[Row] = []
    for V in classes:
        z = bench.normal(elements // V, V, scale=SPREAD)
        for name in ("softmax", "log_softmax", "logsumexp"):
            rows += of_rows(bench, name, z)
        del z
        bench.tidy()
    return Found("softmax, log_softmax, logsumexp, bfloat16", "of the copy's bandwidth", rows)
