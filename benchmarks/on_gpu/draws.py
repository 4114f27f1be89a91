"""Draws beside one read of the logits, and draws from hidden states beside the bare product.

Inputs take turns, so that no cache holds them. The first rows of every draw of ours are compared with float64 sums of
the same uniforms (timed/draws_exact.py); a peer's uniforms are not known: its classes must be possible ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from timed import draws_exact
from torch import Tensor

import lastlayer.torch as F
from lastlayer import _draw_arguments
from on_gpu import peers
from on_gpu.clock import Bench, Job, measured, row_of
from on_gpu.exact import excess, product
from on_gpu.floors import Head, Shape, kinds, least, multiply
from on_gpu.table import Bar, Found, Row, best

OURS = "lastlayer"
ROWS, CLASSES = (64, 256), 128_256
TINY_ROWS, TINY_CLASSES = (6,), 600
SPREAD, SEED = 5.0, 20261122
PLAIN: dict[str, float] = {}
CHAIN: dict[str, float] = {
    "temperature": peers.TEMPERATURE, "top_k": peers.TOP_K, "top_p": peers.TOP_P, "min_p": peers.MIN_P,
}  # fmt: skip
OF_READ = {"T = 1": Bar(1.3), "T = 0.8, top_k 50, top_p 0.9, min_p 0.02": Bar(2.5)}
OPTIONS = dict(zip(OF_READ, (PLAIN, CHAIN), strict=True))
PEERS = dict(zip(OF_READ, (peers.DRAWS, peers.CHAINS), strict=True))
READS: dict[str, Callable[[Tensor], Tensor]] = {"read, z.amax()": Tensor.amax, "read, z.amax(-1)": lambda z: z.amax(-1)}
JUDGED = 4  # rows that are judged against float64
HEADS = [Shape(64, 4_096, 128_256), Shape(256, 4_096, 128_256)]
TINY_HEADS = [Shape(6, 16, 600)]


def classes_of(drawn: Any) -> Tensor:
    """Return the classes of a draw of ours, or of a peer."""
    return drawn if isinstance(drawn, Tensor) else drawn.index  # type: ignore[no-any-return]


def boundary_error(z: Tensor, drawn: Any, options: dict[str, float]) -> float:
    """Return how far our draws are off their boundaries, in units of what is allowed; infinity if impossible."""
    uniforms = _draw_arguments.read_uniforms(SEED, None, 0, (len(z),), 1)
    worst = 0.0
    for row in range(min(JUDGED, len(z))):
        q = draws_exact.distribution(z[row].double().cpu().numpy(), options)
        index = classes_of(drawn)[row : row + 1].cpu().numpy()
        if int(drawn.kept[row]) != int((q > 0).sum()):
            return math.inf
        worst = max(worst, draws_exact.compare(q, index, uniforms[row]).farthest / draws_exact.ROUNDING)
    return worst


def possible(z: Tensor, drawn: Any, options: dict[str, float]) -> float:
    """Return 0 if the classes can be drawn, whoever of equal logits is kept, else infinity."""
    index = classes_of(drawn).long()
    if index.shape != (len(z),) or not bool(((index >= 0) & (index < z.shape[1])).all()):
        return math.inf
    for row in range(min(JUDGED, len(z))):
        logits = z[row].double().cpu().numpy()
        if logits[int(index[row])] < logits[draws_exact.distribution(logits, options) > 0].min():
            return math.inf
    return 0.0


def of_case(bench: Bench, name: str, given: list[Tensor]) -> list[Row]:
    """Return the rows of one way to draw, on some inputs in turn."""
    z, options = given[0], OPTIONS[name]
    kind = str(z.dtype).removeprefix("torch.")
    where = f"{z.shape[0]} x {z.shape[1]:,}, {kind}, {name}"
    others = peers.found(bench, PEERS[name])

    def judge(drawn: Any) -> float:
        return (possible if isinstance(drawn, Tensor) else boundary_error)(z, drawn, options)

    def turn(f: Callable[[Tensor], Any]) -> Job:
        return lambda i: f(given[i % len(given)])

    jobs = {OURS: turn(lambda z: F.categorical(z, seed=SEED, **options))}  # type: ignore[arg-type]
    jobs |= {who: turn(peer) for who, peer in others.items()}
    limits = {who: turn(read) for who, read in READS.items()}
    times, failed = measured(bench, where, limits, jobs, judge)
    read = least(times, limits)
    rows = [
        row_of(where, who, each, read and each.median / read, bar=OF_READ[name] if who == OURS else None)
        for who, each in times.items()
    ]
    return rows + failed + best(rows, next(row for row in rows if row.who == OURS), others, where)


def draws(bench: Bench) -> Found:
    """Return categorical, with filters and without."""
    rows: list[Row] = []
    V = TINY_CLASSES if bench.tiny else CLASSES
    for N in TINY_ROWS if bench.tiny else ROWS:
        for dtype in (torch.bfloat16, torch.float32):
            count = bench.copies(N * V * dtype.itemsize)
            given = [bench.normal(N, V, dtype=dtype, scale=SPREAD, seed=i) for i in range(count)]
            for name in OPTIONS:
                rows += of_case(bench, name, given)
            del given
            bench.tidy()
    return Found("categorical", "reads of the logits", rows)


def head_error(head: Head, sample: Any) -> float:
    """Return the error of the log-probabilities of the classes drawn, in budgets; 0 for a peer that returns none."""
    if isinstance(sample, Tensor):
        return 0.0
    z = head.h.double() @ head.W.double().T
    index = sample.index[:, None]
    exact = torch.log_softmax(z, -1).gather(1, index)
    dense = torch.log_softmax(product(head.h, head.W.T, torch.float32), -1).gather(1, index)
    return excess(sample.logprob[:, None], exact, dense, head.shape.V)


def linear_case(bench: Bench, shape: Shape) -> list[Row]:
    """Return the rows of one shape."""
    head, where = Head(bench, shape), str(shape)
    out = {name: head.empty(shape.N, shape.V, dtype) for name, dtype in kinds(bench).items()}
    limits: dict[str, Job] = {
        f"product, {name}": (lambda i, z=z: multiply(head.h, head.W.T, z)) for name, z in out.items()
    }
    jobs: dict[str, Job] = {
        OURS: lambda i: F.linear_categorical(head.h, head.W, seed=SEED),
        "full logits, exponential race": lambda i: peers.race(head.h @ head.W.T),
    }
    with torch.no_grad():
        times, failed = measured(bench, where, limits, jobs, lambda got: head_error(head, got))
    floor = least(times, limits)
    return [row_of(where, who, each, floor and each.median / floor) for who, each in times.items()] + failed


def linear_draws(bench: Bench) -> Found:
    """Return linear_categorical beside the bare product and full logits."""
    rows: list[Row] = []
    for shape in TINY_HEADS if bench.tiny else HEADS:
        rows += linear_case(bench, shape)
        bench.tidy()
    return Found("linear_categorical", "bare products", rows)
