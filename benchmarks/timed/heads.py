"""Heads: hidden states (N, D) and weights (V, D) to loss and gradients, beside the same BLAS's bare matrix products.

Time: forward and backward pass, fresh gradients. Memory: how far one pass raises the high-water mark of a fresh
process's resident memory, less the gradients; lastlayer.demo.measure does the measuring.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as T
from torch import Tensor

import lastlayer.torch as F
from lastlayer.demo import measure as demo
from lastlayer.demo.options import Shape
from timed import rounds
from timed.rounds import Effort, Job, Jobs

SIZES = [
    *(Shape(1024, 256, 8192), Shape(4096, 2048, 8192), Shape(1024, 1024, 32_768)),
    *(Shape(1024, 256, 131_072), Shape(1024, 1024, 131_072)),
]
FULL = [Shape(N, D, V) for V in (8192, 32_768, 131_072) for D in (256, 1024, 2048) for N in (1024, 4096)]
QUICK = [Shape(64, 32, 1024)]

OURS, RECOMPUTED = "lastlayer", "lastlayer, recomputed"
UNFUSED, FUSED, CHUNKED = "PyTorch, full logits", "PyTorch linear_cross_entropy", "PyTorch, chunked"
THREE, FOUR = "three products", "four products"

COPIES_OF_LOGITS = 4  # that the unfused peer may need at a time
PATIENCE = 60.0  # seconds for a peer's pass
ROWS = 256  # of the float64 reference at a time


def sizes(quick: bool, full: bool) -> list[Shape]:
    """Return what is timed."""
    return QUICK if quick else FULL if full else SIZES


def recomputed(h: Tensor, W: Tensor, y: Tensor) -> Tensor:
    """Our schedule that keeps no gradients: the backward pass computes the logits again."""
    return F.linear_cross_entropy(h, W, y, reduction="none").mean()


def unfused(h: Tensor, W: Tensor, y: Tensor) -> Tensor:
    """What everyone writes."""
    return T.cross_entropy(T.linear(h, W), y)


HEADS: dict[str, demo.Head] = {
    OURS: F.linear_cross_entropy,
    RECOMPUTED: recomputed,
    UNFUSED: unfused,
    FUSED: lambda h, W, y: T.linear_cross_entropy(h, W, y),
}


def settings(N: int) -> dict[str, Any]:
    """Return the settings of PyTorch's linear_cross_entropy from which the fastest is taken (PyTorch 2.13)."""
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return {}
    options = torch.nn.LinearCrossEntropyOptions
    return {
        "defaults": options(),
        "256 rows": options(batch_chunk_size=256),
        f"{N} rows": options(batch_chunk_size=N),
    }


def chunked(setting: Any) -> demo.Head:
    """Return PyTorch's linear_cross_entropy in one setting."""
    return lambda h, W, y: T.linear_cross_entropy(h, W, y, options=setting)


def reference(inputs: demo.Inputs) -> demo.Pass:
    """Return loss and gradients in float64, a few rows at a time."""
    h, W = inputs.h.double(), inputs.W.double()
    loss, dh, dW = torch.zeros((), dtype=torch.float64), torch.empty_like(h), torch.zeros_like(W)
    for some in torch.arange(len(h)).split(ROWS):
        part = demo.run_pass(lambda h, W, y: unfused(h, W, y), demo.Inputs(h[some], W, inputs.y[some]))
        share = len(some) / len(h)
        loss += part.loss * share
        dh[some] = part.dh * share
        dW.add_(part.dW, alpha=share)
    return demo.Pass(loss, dh, dW)


def products(inputs: demo.Inputs, count: int) -> Job:
    """Return the bare products of a forward and backward pass, into memory that is there."""
    h, W, _ = inputs
    z, dh, dW = h.new_zeros(len(h), len(W)), torch.zeros_like(h), torch.zeros_like(W)

    def job() -> None:
        for _ in range(count - 2):
            torch.mm(h, W.T, out=z)
        torch.mm(z, W, out=dh)
        torch.mm(z.T, h, out=dW)

    return job


def available() -> int:
    """Return the memory that is free for use, in bytes; very much where the system does not tell."""
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if table.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 1 << 60)


def extra(name: str, setting: str, shape: Shape) -> int:
    """Return the bytes that one pass takes beyond its gradients; for a fresh process."""
    head = chunked(settings(shape.N)[setting]) if name == CHUNKED else HEADS[name]
    inputs = demo.random_inputs(shape)
    # Threads, autograd and the BLAS set themselves up once.
    demo.run_pass(head, demo.random_inputs(Shape(64, 8, 16)))
    torch.mm(torch.randn(512, shape.D), torch.randn(shape.D, 512))
    return demo.rise(lambda: demo.run_pass(head, inputs)) - 4 * shape.D * (shape.N + shape.V)


def measured_extra(name: str, setting: str, shape: Shape) -> int | None:
    """Return the bytes, measured in a fresh process; None where the system does not tell, or the process fails."""
    if not sys.platform.startswith("linux"):
        return None
    code = "import sys, json; from timed import heads; heads.child(*map(json.loads, sys.argv[1:]))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, *map(json.dumps, (name, setting, shape))]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def child(name: str, setting: str, shape: list[int]) -> None:
    """What the fresh process does."""
    print(extra(name, setting, Shape(*shape)))


def fastest(jobs: dict[str, Job]) -> str | None:
    """Return the name of the fastest job by one call each, all of them having run before; None of none."""
    times = {name: rounds.timed(job) for name, job in jobs.items()}
    return min(times, key=times.__getitem__, default=None)


def job(head: demo.Head, inputs: demo.Inputs) -> Job:
    """Return one pass as a job."""
    return lambda: demo.run_pass(head, inputs)


def admitted(jobs: Jobs, inputs: demo.Inputs, where: str, left_out: list[str]) -> Jobs:
    """Return the jobs whose loss and gradients are right."""
    expected = reference(inputs)
    return rounds.gate(jobs, dict.fromkeys(jobs, lambda: expected), PATIENCE, where, left_out)


def measure(shape: Shape, effort: Effort, left_out: list[str]) -> dict[str, Any]:
    """Return the median seconds and the extra bytes by competitor, for one size."""
    inputs, where = demo.random_inputs(shape), f"N {shape.N}, D {shape.D}, V {shape.V}"
    candidates = dict(HEADS)
    if available() < COPIES_OF_LOGITS * 4 * shape.N * shape.V:
        for name in (UNFUSED, FUSED):
            del candidates[name]
            left_out.append(f"{name}, {where}: the logits do not fit")
    jobs: Jobs = {
        "step": {name: job(head, inputs) for name, head in candidates.items()},
        "setting": {name: job(chunked(setting), inputs) for name, setting in settings(shape.N).items()},
    }
    passed = admitted(jobs, inputs, where, left_out)
    best = fastest(passed["setting"])
    steps = passed["step"] | ({CHUNKED: passed["setting"][best]} if best else {})
    limits = {THREE: products(inputs, 3), FOUR: products(inputs, 4)}
    seconds = rounds.interleaved({"step": limits | steps}, effort)["step"]
    memory = {name: measured_extra(name, best or "", shape) for name in steps}
    return {"shape": shape._asdict(), "seconds": seconds, "extra_bytes": memory, "setting": best}
