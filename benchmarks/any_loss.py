"""Time any loss on hidden states: the statistics of rows with and without entropy, the two schedules, and peers.

    python benchmarks/any_loss.py [--quick] [--memory] [--json bench-out/any_loss.json] [--write docs/speed.md]

The loss is a policy gradient with an entropy bonus, -A log p_y - 0.01 H (without entropy: -A log p_y). Losses and
gradients pass a float64 gate first; all take turns; figures are medians, and ratios within this run. ``--memory`` adds
what one pass takes in a fresh process, at a size where the logits alone are 4.3 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as T
from timed import heads, machine, rounds
from timed.report import Table, figure
from timed.rounds import Effort, Jobs
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import lastlayer.torch as F
from lastlayer.demo import measure as demo
from lastlayer.demo.options import Shape

SHAPES = [Shape(1024, 256, 32_768), Shape(1024, 1024, 32_768), Shape(1024, 512, 131_072)]
LOGITS = [(4096, 1000), (1024, 32_768), (512, 131_072)]
BIG = Shape(8192, 512, 131_072)
QUICK_SHAPES, QUICK_LOGITS = [Shape(64, 32, 1024)], [(64, 100)]
BONUS, ROWS = 0.01, 256  # rows that the chunked peer holds at a time

Losses = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def plain(s: Any, a: Tensor) -> Tensor:
    """The loss without entropy."""
    return -a * s.logprob


def bonus(s: Any, a: Tensor) -> Tensor:
    """The loss with entropy."""
    return -a * s.logprob - BONUS * s.entropy


def dense(z: Tensor, y: Tensor, a: Tensor, entropy: bool) -> Tensor:
    """What everyone writes on full logits."""
    logp = T.log_softmax(z, -1)
    losses = -a * logp.gather(-1, y[:, None])[:, 0]
    return losses + BONUS * (logp.exp() * logp).sum(-1) if entropy else losses


def checkpointed(h: Tensor, W: Tensor, y: Tensor, a: Tensor, entropy: bool) -> Tensor:
    """What trainers do to save memory: some rows at a time, computed once more in the backward pass."""

    def some(h: Tensor, y: Tensor, a: Tensor) -> Tensor:
        return dense(h @ W.T, y, a, entropy)

    parts = zip(h.split(ROWS), y.split(ROWS), a.split(ROWS), strict=True)
    return torch.cat([checkpoint(some, *part, use_reentrant=False) for part in parts]).mean()


def heads_of(entropy: bool) -> dict[str, Losses]:
    """Return the competitors: hidden states to a loss."""
    loss = bonus if entropy else plain
    return {
        "lastlayer, statistics": lambda h, W, y, a: loss(F.linear_logit_statistics(h, W, y, entropy=entropy), a).mean(),
        "lastlayer, linear_loss": lambda h, W, y, a: F.linear_loss(loss, h, W, y, a, entropy=entropy),
        "full logits": lambda h, W, y, a: dense(h @ W.T, y, a, entropy).mean(),
        "checkpointed rows": lambda h, W, y, a: checkpointed(h, W, y, a, entropy),
    }


def step(head: Losses, inputs: demo.Inputs, a: Tensor) -> tuple[Tensor, ...]:
    """One forward and backward pass, with fresh gradients."""
    h, W = inputs.h.detach().requires_grad_(), inputs.W.detach().requires_grad_()
    loss = head(h, W, inputs.y, a)
    loss.backward()
    assert h.grad is not None
    assert W.grad is not None
    return loss.detach(), h.grad, W.grad


def reference(inputs: demo.Inputs, a: Tensor, entropy: bool) -> tuple[Tensor, ...]:
    """The same in float64, a few rows at a time."""
    wide = demo.Inputs(inputs.h.double(), inputs.W.double(), inputs.y)
    return step(lambda h, W, y, a: checkpointed(h, W, y, a, entropy), wide, a.double())


def measure_heads(shape: Shape, effort: Effort, left_out: list[str]) -> dict[str, Any]:
    """Return medians of each competitor with and without entropy, of the forward passes, and of the bare products."""
    inputs, where = demo.random_inputs(shape), f"N {shape.N}, D {shape.D}, V {shape.V}"
    a = torch.randn(shape.N, generator=torch.Generator().manual_seed(0))
    jobs: Jobs = {
        name: {key: lambda head=head: step(head, inputs, a) for key, head in heads_of(entropy).items()}
        for name, entropy in (("with entropy", True), ("without", False))
    }
    expected = {name: lambda e=e: reference(inputs, a, e) for name, e in (("with entropy", True), ("without", False))}
    jobs = rounds.gate(jobs, expected, 60.0, where, left_out)
    jobs["products"] = {"three": heads.products(inputs, 3), "four": heads.products(inputs, 4)}

    def forward(entropy: bool) -> Tensor:
        with torch.no_grad():
            return F.linear_logit_statistics(inputs.h, inputs.W, inputs.y, entropy=entropy).logprob

    jobs["forward"] = {"with entropy": lambda: forward(True), "without": lambda: forward(False)}
    return {"shape": shape._asdict(), "seconds": rounds.interleaved(jobs, effort)}


def measure_logits(N: int, V: int, effort: Effort, left_out: list[str]) -> dict[str, Any]:
    """Return medians on given logits."""
    generator = torch.Generator().manual_seed(0)
    z, a = 5 * torch.randn(N, V, generator=generator), torch.randn(N, generator=generator)
    y = torch.randint(V, (N,), generator=generator)

    def ours(entropy: bool, z: Tensor = z) -> tuple[Tensor, ...]:
        leaf = z.detach().requires_grad_()
        loss = (bonus if entropy else plain)(F.logit_statistics(leaf, y, entropy=entropy), a).mean()
        loss.backward()
        assert leaf.grad is not None
        return loss.detach(), leaf.grad

    def peer(entropy: bool, z: Tensor = z) -> tuple[Tensor, ...]:
        leaf = z.detach().requires_grad_()
        loss = dense(leaf, y, a.to(z.dtype), entropy).mean()
        loss.backward()
        assert leaf.grad is not None
        return loss.detach(), leaf.grad

    def forward(entropy: bool) -> Tensor:
        with torch.no_grad():
            return F.logit_statistics(z, y, entropy=entropy).logprob

    cases = {"with entropy": True, "without": False}
    jobs: Jobs = {
        name: {"lastlayer": lambda e=e: ours(e), "log_softmax": lambda e=e: peer(e)} for name, e in cases.items()
    }
    expected = {name: lambda e=e: peer(e, z.double()) for name, e in cases.items()}
    jobs = rounds.gate(jobs, expected, 10.0, f"{N} x {V}", left_out)
    jobs["forward"] = {name: lambda e=e: forward(e) for name, e in cases.items()}
    return {"shape": [N, V], "seconds": rounds.interleaved(jobs, effort)}


def extra(name: str, shape: Shape) -> int:
    """Return the bytes that one pass takes beyond its gradients; for a fresh process."""
    inputs, a = demo.random_inputs(shape), torch.randn(shape.N)
    head = heads_of(True)[name]
    step(head, demo.random_inputs(Shape(64, 8, 16)), torch.randn(64))
    return demo.rise(lambda: step(head, inputs, a)) - 4 * shape.D * (shape.N + shape.V)


def measured_extra(name: str, shape: Shape) -> int | None:
    """Return the bytes, measured in a fresh process; None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    code = "import sys, json; import any_loss; any_loss.child(*map(json.loads, sys.argv[1:]))"
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    command = [sys.executable, "-c", code, *map(json.dumps, (name, list(shape)))]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, stdout=subprocess.PIPE, text=True, check=False
    )
    return int(done.stdout) if done.returncode == 0 else None


def child(name: str, shape: list[int]) -> None:
    """What the fresh process does."""
    print(extra(name, Shape(*shape)))


def measure(quick: bool, memory: bool) -> dict[str, Any]:
    """Return the results of everything that was asked for."""
    left_out: list[str] = []
    effort = Effort(rounds=3, seconds=1.0) if quick else Effort(rounds=7, seconds=60.0)
    results: dict[str, Any] = {"machine": machine.describe([]), "left_out": left_out}
    results["heads"] = [measure_heads(s, effort, left_out) for s in (QUICK_SHAPES if quick else SHAPES)]
    results["logits"] = [measure_logits(*s, effort, left_out) for s in (QUICK_LOGITS if quick else LOGITS)]
    big = QUICK_SHAPES[0] if quick else BIG
    names = ("lastlayer, statistics", "lastlayer, linear_loss", "checkpointed rows")
    results["memory"] = {name: measured_extra(name, big) for name in names} if memory else {}
    results["big"] = list(big)
    return results


def tables(results: dict[str, Any]) -> list[Table]:
    """Return all tables."""
    rows, steps = [], []
    for found in results["heads"]:
        shape, seconds = [f"{n:,}" for n in found["shape"].values()], found["seconds"]
        three, base = seconds["products"]["three"], seconds["without"]["lastlayer, statistics"]
        ours, fast = (seconds["with entropy"][f"lastlayer, {name}"] for name in ("statistics", "linear_loss"))
        rows.append([
            *shape, figure(seconds["forward"]["with entropy"] / seconds["forward"]["without"]), figure(ours / base),
            figure(fast / ours), figure(seconds["without"]["lastlayer, linear_loss"] / base),
        ])  # fmt: skip
        names = list(heads_of(True))
        given = [seconds["with entropy"].get(name) for name in names]
        four = seconds["products"]["four"] / three
        steps.append([*shape, figure(three * 1e3), figure(four), *(figure(t and t / three) for t in given)])
    on_logits = []
    for found in results["logits"]:
        seconds = found["seconds"]
        ours = {name: seconds[name]["lastlayer"] for name in ("with entropy", "without")}
        peer, forward = seconds["with entropy"].get("log_softmax"), seconds["forward"]
        on_logits.append([
            *(f"{n:,}" for n in found["shape"]), figure(forward["with entropy"] / forward["without"]),
            figure(ours["with entropy"] / ours["without"]), figure(peer and peer / ours["with entropy"]),
        ])  # fmt: skip
    made = [
        Table(
            "Statistics of hidden states: ratios of times",
            ["N", "D", "V", "entropy, forward", "entropy, step", "linear_loss / statistics", "the same, no entropy"],
            rows,
        ),
        Table(
            "A loss with entropy, forward and backward: multiples of the three bare products",
            ["N", "D", "V", "three, ms", "four products", *heads_of(True)],
            steps,
        ),
        Table(
            "Statistics of logits: ratios of times",
            ["N", "V", "entropy, forward", "entropy, step", "log_softmax and autograd / ours"],
            on_logits,
        ),
    ]
    if results["memory"]:
        size = "N {:,}, D {:,}, V {:,}".format(*results["big"])
        cells = [[name, figure(bytes_ and bytes_ / 2**20)] for name, bytes_ in results["memory"].items()]
        made.append(Table(f"MiB at the peak beyond the gradients: {size}", ["", "MiB"], cells))
    return made


def setting(results: dict[str, Any]) -> list[str]:
    """Return where, a line each."""
    m = results["machine"]
    lines = [f"{m['processor']}, {m['cores']} cores, {m['instruction_set']}. {m['versions']}."]
    return [*lines, *(f"Left out: {reason}." for reason in results["left_out"])]


def write(results: dict[str, Any], document: Path) -> None:
    """Replace the tables in a document."""
    new = "\n\n".join(["\n".join(f"- {line}" for line in setting(results)), *(t.markdown() for t in tables(results))])
    old, begin, end = document.read_text(encoding="utf-8"), "<!-- statistics -->\n", "<!-- end of statistics -->"
    replaced = re.sub(f"({begin}).*?({end})", lambda m: f"{m[1]}{new}\n{m[2]}", old, flags=re.S)
    document.write_text(replaced, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run, report, and return 1 if a result of ours is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--memory", action="store_true", help="also measure the memory of fresh processes: two minutes")
    parser.add_argument("--read", type=Path, metavar="JSON", help="time nothing: report what an earlier run wrote")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--write", type=Path, help="replace the tables in this document")
    options = parser.parse_args(argv)
    try:
        results = json.loads(options.read.read_text()) if options.read else measure(options.quick, options.memory)
    except rounds.Wrong as error:
        print(f"wrong: {error}", file=sys.stderr)
        return 1
    print("\n\n".join(["\n".join(setting(results)), *(table.plain() for table in tables(results))]))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1))
    if options.write:
        write(results, options.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
