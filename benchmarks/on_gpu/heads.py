"""Heads, hidden states to loss and gradients: beside the bare products, the peers, and the padded shape.

Each step is a forward and a backward pass with fresh gradients. The figure is a multiple of the faster of the bare
products, interleaved. Memory and errors of the weight's gradient are in budgets.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import lastlayer.torch as F
from on_gpu import peers
from on_gpu.clock import Bench, Job, Judge, Times, admitted, interleaved, measured, row_of
from on_gpu.exact import Losses, Pass, cross_entropy_of_rows, dense_head, exact_head, head_excess, with_entropy
from on_gpu.floors import SHAPES, TINY_SHAPES, Head, Shape, least
from on_gpu.table import Bar, Found, Row, best

OURS = "lastlayer"
OF_THREE, OF_FOUR = Bar(1.05), Bar(1.05)
OF_PADDED = Bar(1.05)
PUBLISHED = {1_024: 4.1e-3, 4_096: 16.7e-3, 8_192: 34.4e-3}  # seconds of the best peer on an H200, bfloat16
RECOMPUTED = [Shape(4_096, 4_096, 128_256), Shape(8_192, 4_096, 128_256)]
RAGGED, PADDED = Shape(5_003, 4_096, 50_257), Shape(5_120, 4_096, 50_304)
TINY_RAGGED, TINY_PADDED = Shape(23, 16, 199), Shape(24, 16, 200)
BONUS = 0.01

LossOfInputs = Callable[[Tensor, Tensor, Tensor], Tensor]


def step(head: Head, loss: LossOfInputs) -> Job:
    """Return a forward and a backward pass with fresh gradients."""

    def run(i: int) -> Pass:
        h, W = head.h.detach().requires_grad_(), head.W.detach().requires_grad_()
        value = loss(h, W, head.y)
        value.backward()  # type: ignore[no-untyped-call]
        assert h.grad is not None
        assert W.grad is not None
        return Pass(value.detach(), h.grad, W.grad)

    return run


def judge_of(head: Head, losses: Losses) -> Judge:
    """Return who compares a loss and its gradients with float64."""
    inputs = head.h, head.W, head.y, head.a
    exact, dense = exact_head(*inputs, losses), dense_head(*inputs, losses)
    return lambda got: head_excess(Pass(*got), exact, dense, len(head.W))


def ours(**options: Any) -> LossOfInputs:
    """Return our cross-entropy of a head."""
    return lambda h, W, y: F.linear_cross_entropy(h, W, y, **options)


def figures(where: str, times: dict[str, Times], floor: float | None, bar: Bar) -> list[Row]:
    """Return a row for each time as a multiple of the floor; ours have a bar."""
    return [
        row_of(where, name, each, floor and each.median / floor, bar=bar if name.startswith(OURS) else None)
        for name, each in times.items()
    ]


def published(bench: Bench, where: str, N: int, mine: Row) -> list[Row]:
    """Return the row that compares ours with what was published of an H200, on one."""
    if N not in PUBLISHED or mine.seconds is None or bench.tiny:
        return []
    if "H200" not in torch.cuda.get_device_name(bench.device):
        return [Row(where, f"{OURS} / published", note=f"{PUBLISHED[N] * 1e3:g} ms, of an H200: this is none")]
    ratio = mine.seconds[1] / PUBLISHED[N]
    return [Row(where, f"{OURS} / published", figure=ratio, bar=Bar(1.0), note=f"{PUBLISHED[N] * 1e3:g} ms")]


def linear_case(bench: Bench, shape: Shape) -> list[Row]:
    """Return the rows of one shape."""
    head, where, others = Head(bench, shape), str(shape), peers.found(bench, peers.HEADS)
    jobs = {OURS: step(head, ours())} | {name: step(head, peer) for name, peer in others.items()}
    floors = head.floors(3)
    times, failed = measured(bench, where, floors, jobs, judge_of(head, cross_entropy_of_rows))
    made = figures(where, times, least(times, floors), OF_THREE)
    mine = next(row for row in made if row.who == OURS)
    return [*made, *failed, *best(made, mine, others, where), *published(bench, where, shape.N, mine)]


def linear(bench: Bench) -> Found:
    """Return linear_cross_entropy beside three products and the peers."""
    rows: list[Row] = []
    for shape in TINY_SHAPES if bench.tiny else SHAPES:
        rows += linear_case(bench, shape)
        bench.tidy()
    return Found("linear_cross_entropy, forward and backward, bfloat16", "three products", rows)


def coupled(entropy: bool, a: Tensor) -> LossOfInputs:
    """Return a policy gradient, with an entropy bonus or without, by the schedule that computes logits again."""

    def loss(h: Tensor, W: Tensor, y: Tensor) -> Tensor:
        s = F.linear_logit_statistics(h, W, y, entropy=entropy)
        return (-a * s.logprob - BONUS * s.entropy).mean() if entropy else (-a * s.logprob).mean()

    return loss


def separable(a: Tensor) -> LossOfInputs:
    """Return the same by the schedule that forms gradients in the forward pass."""
    return lambda h, W, y: F.linear_loss(lambda s, a: -a * s.logprob - BONUS * s.entropy, h, W, y, a, entropy=True)


def dense(a: Tensor) -> LossOfInputs:
    """Return what everyone writes, on full logits."""
    return lambda h, W, y: with_entropy(torch.nn.functional.linear(h, W).float(), y, a, BONUS).mean()


def recompute_case(bench: Bench, shape: Shape) -> list[Row]:
    """Return the rows of one shape: linear_loss beside three products, statistics and peers beside four."""
    head, where = Head(bench, shape), str(shape)
    a, three, four = head.a, head.floors(3), head.floors(4)
    others = {peers.EAGER: lambda: dense(a), peers.COMPILED: lambda: peers.compiled(dense(a))}
    losses = {f"{OURS}, statistics": coupled(True, a), f"{OURS}, linear_loss": separable(a)}
    jobs = {name: step(head, loss) for name, loss in (losses | peers.found(bench, others)).items()}
    times, failed = measured(bench, where, three | four, jobs, judge_of(head, with_entropy))
    fast = {name: each for name, each in times.items() if name.endswith("linear_loss") or name in three}
    slow = {name: each for name, each in times.items() if name not in fast}
    return [
        *figures(f"{where}, three", fast, least(times, three), OF_THREE),
        *figures(f"{where}, four", slow, least(times, four), OF_FOUR),
        *failed,
    ]


def recompute(bench: Bench) -> Found:
    """Return a loss with entropy, by both schedules."""
    rows: list[Row] = []
    for shape in TINY_SHAPES if bench.tiny else RECOMPUTED:
        rows += recompute_case(bench, shape)
        bench.tidy()
    return Found("A loss with entropy, forward and backward, bfloat16", "three or four products", rows)


def ragged(bench: Bench) -> Found:
    """Return a ragged shape beside the padded one, each behind its gate, in turn."""
    shapes = (TINY_RAGGED, TINY_PADDED) if bench.tiny else (RAGGED, PADDED)
    heads = {name: Head(bench, shape) for name, shape in zip(("ragged", "padded"), shapes, strict=True)}
    jobs: dict[str, Job] = {}
    for name, head in heads.items():
        mine = {f"{OURS}, {name}": step(head, ours())}
        admitted(bench, mine, judge_of(head, cross_entropy_of_rows), str(head.shape))
        jobs |= mine | {f"{floor}, {name}": job for floor, job in head.floors(3).items()}
    times = {name: each for name, each in interleaved(bench, jobs).items() if isinstance(each, Times)}
    padded = times[f"{OURS}, padded"].median
    rows = []
    for name, each in times.items():
        where = str(heads[name.rpartition(", ")[2]].shape)
        bar = OF_PADDED if name == f"{OURS}, ragged" else None
        rows.append(row_of(where, name, each, each.median / padded, bar=bar))
    return Found("Ragged sizes, forward and backward, bfloat16", "of ours, padded", rows)
