"""The last layer against PyTorch's: time of a forward and backward pass, and the memory it takes beyond its inputs.

First the gate: every head must give the loss and the gradients of ``cross_entropy(linear(h, W), y)``. Then time, heads
in turn within each round, medians over the rounds. Memory is that of the whole process, so nothing a head allocates by
whatever means escapes: a fresh process per head makes the inputs, warms up, has Linux reset its high-water mark of
resident memory (VmHWM), runs one pass, and reads how far the mark rose. Gradients are counted, for every head.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional
from torch import Tensor

import lastlayer.torch as F
from lastlayer.demo.options import Shape

Head = Callable[[Tensor, Tensor, Tensor], Tensor]

BASELINE = "cross_entropy(linear(h, W), y)"
OURS = "lastlayer linear_cross_entropy"

# Two right float32 results differ by about 1e-6 of the gradient's norm at these sizes, a wrong one by far more.
AGREEMENT = 1e-5

PATIENCE = 20.0  # seconds after which no further round begins,
LEAST_ROUNDS = 3  # once there are these

HOW_TIME = "forward and backward pass, heads in turn within each round, median of the rounds"
HOW_MEMORY = (
    "rise of the resident memory's high-water mark (VmHWM, reset before the pass) of a fresh process per head, "
    "gradients included, inputs not"
)


def heads() -> dict[str, Head]:
    """Return the heads by name: each maps h (N, D), W (V, D), y (N,) to the mean loss."""
    table: dict[str, Head] = {
        OURS: F.linear_cross_entropy,
        BASELINE: lambda h, W, y: torch.nn.functional.cross_entropy(torch.nn.functional.linear(h, W), y),
    }
    # PyTorch 2.13 and later.
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        peer = torch.nn.functional.linear_cross_entropy
        chunked = torch.nn.LinearCrossEntropyOptions()
        table["torch linear_cross_entropy"] = peer
        table["torch linear_cross_entropy, chunked"] = lambda h, W, y: peer(h, W, y, options=chunked)
    return table


class Inputs(NamedTuple):
    """What a head is given."""

    h: Tensor
    W: Tensor
    y: Tensor


class Pass(NamedTuple):
    """Loss and gradients of one forward and backward pass."""

    loss: Tensor
    dh: Tensor
    dW: Tensor


def run_pass(head: Head, inputs: Inputs) -> Pass:
    """Run one head forward and backward."""
    h, W = inputs.h.detach().requires_grad_(), inputs.W.detach().requires_grad_()
    loss = head(h, W, inputs.y)
    loss.backward()  # type: ignore[no-untyped-call]
    assert h.grad is not None
    assert W.grad is not None
    return Pass(loss.detach(), h.grad, W.grad)


def random_inputs(shape: Shape) -> Inputs:
    """Return h of standard normal features, W of standard deviation 0.02, and uniform targets, from a fixed seed."""
    N, D, V = shape
    generator = torch.Generator().manual_seed(0)
    h, W = torch.randn(N, D, generator=generator), torch.randn(V, D, generator=generator) * 0.02
    return Inputs(h, W, torch.randint(V, (N,), generator=generator))


def difference(ours: Pass, theirs: Pass) -> float:
    """Return the largest of ||a - b|| / ||b|| over loss and gradients."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def milliseconds(table: dict[str, Head], inputs: Inputs, repeats: int) -> dict[str, list[float]]:
    """Return the times of ``repeats`` rounds, fewer if they are long; the head that begins changes with the round."""
    names, times, begin = list(table), {name: list[float]() for name in table}, time.perf_counter()
    for turn in range(repeats):
        if turn >= LEAST_ROUNDS and time.perf_counter() - begin > PATIENCE:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            run_pass(table[name], inputs)
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def high_water_mark() -> int:
    """Return the largest resident memory of this process since the mark was reset, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


def reset_high_water_mark() -> None:
    """Set the mark to the present resident memory (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def rise(work: Callable[[], object]) -> int:
    """Return by how much a piece of work raises this process's resident memory at its highest, in bytes."""
    reset_high_water_mark()
    before = high_water_mark()
    result = work()
    after = high_water_mark()
    del result
    return after - before


def peak_here(name: str, shape: Shape) -> int:
    """Return the rise during one pass of a head; for a fresh process."""
    head, inputs = heads()[name], random_inputs(shape)
    # Threads, BLAS and autograd set themselves up once.
    run_pass(head, random_inputs(Shape(8, 8, 16)))
    return rise(lambda: run_pass(head, inputs))


def peak(name: str, shape: Shape) -> int | None:
    """Return the rise measured in a fresh process, None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    code = "import sys; from lastlayer.demo import measure; measure.child(sys.argv[1], sys.argv[2])"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, name, json.dumps(shape)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def child(name: str, shape: str) -> None:
    """What the fresh process does."""
    print(peak_here(name, Shape(*json.loads(shape))))


def compare(inputs: Inputs, repeats: int, what: str) -> dict[str, Any]:
    """Return agreement, times and memory of all heads on one shape; a head that disagrees is not timed."""
    N, D = inputs.h.shape
    shape = Shape(N, D, V := len(inputs.W))
    table = heads()
    expected = run_pass(table[BASELINE], inputs)
    differences = {name: difference(run_pass(head, inputs), expected) for name, head in table.items()}
    del expected
    agreeing = {name: head for name, head in table.items() if differences[name] <= AGREEMENT}
    times = milliseconds(agreeing, inputs, repeats)
    median = {name: statistics.median(t) for name, t in times.items()}
    peaks = {name: peak(name, shape) for name in agreeing}
    base = peaks[BASELINE]
    rows = [
        {
            "name": name,
            "agrees": name in agreeing,
            "difference": differences[name],
            "milliseconds": times.get(name, []),
            "median_milliseconds": median.get(name),
            "time_ratio": median[name] / median[BASELINE] if name in median else None,
            "peak_bytes": peaks.get(name),
            "memory_ratio": taken / base if (taken := peaks.get(name)) is not None and base else None,
        }
        for name in table
    ]
    size = inputs.W.element_size()
    bytes_ = {"logits_bytes": N * V * size, "gradient_bytes": (N + V) * D * size}
    return {"shape": {"N": N, "D": D, "V": V}, "inputs": what, **bytes_, "heads": rows}
