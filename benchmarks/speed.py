"""Time the last layer beside its peers: a correctness gate first, then all of them interleaved, medians and ratios.

    python benchmarks/speed.py [--quick] [--json bench-out/speed.json]

Logits: multiples of the time to read them once (``z.sum()``) or to copy them (``z.clone()``). Heads: multiples of the
three bare matrix products by the same BLAS. float32, normal logits of scale 5, random targets. Ratios are within this
run; absolute times say little on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as T

import lastlayer.torch as F
from lastlayer import cli

SHAPES = [(1_000_000, 2), (100_000, 10), (65_536, 64), (8_192, 1_000), (512, 32_000), (256, 128_256), (1, 1_000_000)]
HEADS = [(1024, 256, 8192), (2048, 512, 32_768)]
Job = Callable[[], Any]


def interleaved(jobs: dict[str, Job], rounds: int) -> dict[str, float]:
    """Return the median seconds of each job, all of them run in turn after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            begin = time.perf_counter()
            job()
            if turn:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def backward(loss: Callable[[], torch.Tensor], *inputs: torch.Tensor) -> Job:
    """Return a training step: fresh gradients at each call, as a training loop has them."""

    def job() -> None:
        for tensor in inputs:
            tensor.grad = None
        loss().backward()

    return job


def agree(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Stop unless two results agree: nothing wrong is worth timing."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=lambda text: f"{name}: {text}")


def logits(rows: int, classes: int, rounds: int) -> dict[str, Any]:
    """Time everything that takes logits."""
    torch.manual_seed(0)
    z = torch.randn(rows, classes).mul_(5)
    y = torch.randint(0, classes, (rows,))
    w = z.clone().requires_grad_()
    agree("cross_entropy", F.cross_entropy(z, y), T.cross_entropy(z.double(), y).float())
    agree("softmax", F.softmax(z, -1), T.softmax(z, -1))
    gradients = []
    for module in (F, T):
        backward(lambda module=module: module.cross_entropy(w, y), w)()  # type: ignore[misc]
        gradients.append(w.grad)
    agree("gradient", *gradients)  # type: ignore[arg-type]
    jobs: dict[str, Job] = {"read": z.sum, "copy": z.clone}
    for label, module in (("lastlayer", F), ("torch", T)):
        lse = F.logsumexp if module is F else torch.logsumexp
        jobs[f"logsumexp {label}"] = lambda lse=lse: lse(z, -1)  # type: ignore[misc]
        jobs[f"softmax {label}"] = lambda module=module: module.softmax(z, -1)  # type: ignore[misc]
        jobs[f"forward {label}"] = lambda module=module: module.cross_entropy(z, y)  # type: ignore[misc]
        jobs[f"step {label}"] = backward(lambda module=module: module.cross_entropy(w, y), w)  # type: ignore[misc]
    return {"rows": rows, "classes": classes, "seconds": interleaved(jobs, rounds)}


def head(rows: int, features: int, classes: int, rounds: int) -> dict[str, Any]:
    """Time everything that takes hidden states, forward and backward."""
    torch.manual_seed(0)
    h = torch.randn(rows, features, requires_grad=True)
    w = (torch.randn(classes, features) * 0.05).requires_grad_()
    y = torch.randint(0, classes, (rows,))
    chunked = torch.nn.LinearCrossEntropyOptions()
    losses: dict[str, Callable[[], torch.Tensor]] = {
        "lastlayer": lambda: F.linear_cross_entropy(h, w, y),
        "lastlayer, recomputed": lambda: F.linear_cross_entropy(h, w, y, reduction="none").mean(),
        "torch, full logits": lambda: T.cross_entropy(T.linear(h, w), y),
        "torch, linear_cross_entropy": lambda: T.linear_cross_entropy(h, w, y),
        "torch, chunked": lambda: T.linear_cross_entropy(h, w, y, options=chunked),
    }
    results = {}
    for name, loss in losses.items():
        backward(loss, h, w)()
        results[name] = (loss().detach(), h.grad, w.grad)
    for name, result in results.items():
        for ours, theirs in zip(result, results["torch, full logits"], strict=True):
            agree(name, ours, theirs)  # type: ignore[arg-type]

    def products() -> None:
        with torch.no_grad():
            z = h @ w.T
            z @ w
            z.T @ h

    jobs: dict[str, Job] = {"three products": products, **{name: backward(loss, h, w) for name, loss in losses.items()}}
    return {"rows": rows, "features": features, "classes": classes, "seconds": interleaved(jobs, rounds)}


def table(results: dict[str, Any]) -> str:
    """Return the report as text."""
    lines = [
        "Logits, float32: multiples of one read (logsumexp, forward) or of one copy (softmax, step); lastlayer | torch"
    ]
    lines.append(
        f"{'rows x classes':>20} {'read ms':>8} {'logsumexp':>15} {'forward':>15} {'softmax':>15} {'step':>15}"
    )
    for r in results["logits"]:
        s, cells = r["seconds"], []
        for what, unit in (("logsumexp", "read"), ("forward", "read"), ("softmax", "copy"), ("step", "copy")):
            ours, theirs = (s[f"{what} {name}"] / s[unit] for name in ("lastlayer", "torch"))
            cells.append(f"{ours:7.1f}|{theirs:7.1f}")
        lines.append(f"{r['rows']:>10} x {r['classes']:<7} {s['read'] * 1e3:8.2f} " + " ".join(cells))
    lines += ["", "Heads, float32, forward and backward: multiples of the three bare products"]
    for r in results["heads"]:
        s = r["seconds"]
        lines.append(f"N {r['rows']}, D {r['features']}, V {r['classes']}: products {s['three products'] * 1e3:.0f} ms")
        lines += [f"    {name:<28} {t / s['three products']:6.2f}" for name, t in s.items() if name != "three products"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds: does it run?")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else 7
    print(cli.info())
    results: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "setting": cli.info().split("\n")}
    shapes = [(n, v) for n, v in SHAPES if not arguments.quick or n * v < 10**6 + 1]
    heads = [(256, 64, 1024)] if arguments.quick else HEADS
    results["logits"] = [logits(n, v, rounds) for n, v in shapes]
    results["heads"] = [head(n, d, v, min(rounds, 3)) for n, d, v in heads]
    assert all(math.isfinite(t) for r in results["logits"] + results["heads"] for t in r["seconds"].values())
    print(table(results))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
