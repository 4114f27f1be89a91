"""Time the vocabulary-sharded head beside its peers, and reckon what many ranks would do.

    python benchmarks/distributed.py [--quick] [--ranks 2] [--json bench-out/distributed.json]
                                     [--write docs/distributed.md] [--read JSON]
    torchrun --nproc-per-node 2 benchmarks/distributed.py [--quick] [--json ...]

Measured: one thread per rank; as many classes per rank whatever the number of ranks (weak scaling). In each round, one
rank works alone, then all of them together, and then each on a problem of its own, so that what the machine takes is
told from what is sent. A correctness gate comes first. Reckoned: the model in ``reckon``, from the latency, bandwidth
and rates measured here, and from assumed ones.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as T
from timed import heads, machine, rounds
from timed.report import Table, figure
from torch import Tensor

import lastlayer.torch.distributed as D
from lastlayer import _statistics
from lastlayer._stream import DEFAULT_BUDGET, plan
from lastlayer.demo.measure import Inputs, Pass, run_pass
from lastlayer.demo.options import Shape
from lastlayer.torch import shards

SHAPES = [Shape(1024, 256, 16_384), Shape(1024, 1024, 8192)]  # V: classes of one rank
QUICK = [Shape(64, 32, 512)]
ROUNDS, QUICK_ROUNDS = 9, 1

OURS, RECOMPUTED = "lastlayer", "lastlayer, recomputed"
FULL, LOSS_PARALLEL = "full local logits, 3 all-reduces", "torch loss_parallel"
GROUP = dist.ProcessGroup
Head = Callable[[Tensor, Tensor, Tensor], Tensor]


# Competitors


class Copied(torch.autograd.Function):
    """The same tensor on all ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: GROUP) -> Tensor:
        """Return it."""
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Sum."""
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class FullLogits(torch.autograd.Function):
    """The usual vocabulary-parallel cross-entropy of local logits: maximum, target's logit and sum are all-reduced."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor, group: GROUP) -> Tensor:
        """Return the mean loss."""
        top = z.amax(1)
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
        z = z - top[:, None]
        column = y - dist.get_rank(group) * z.shape[1]
        inside = (column >= 0) & (column < z.shape[1])
        row, column = torch.arange(len(y))[inside], column[inside]
        chosen = z.new_zeros(len(y))
        chosen[row] = z[row, column]
        dist.all_reduce(chosen, group=group)
        e = z.exp_()
        total = e.sum(1)
        dist.all_reduce(total, group=group)
        e /= total[:, None]
        ctx.save_for_backward(e, row, column)
        return (total.log() - chosen).mean()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """p - [j = y]."""
        e, row, column = ctx.saved_tensors
        e[row, column] -= 1
        return e.mul_(g / len(e)), None, None


def of_torch(group: GROUP) -> Head:
    """Return torch's loss_parallel over logits that are a DTensor."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.parallel import loss_parallel

    mesh = DeviceMesh.from_group(group, "cpu")

    def head(h: Tensor, W: Tensor, y: Tensor) -> Tensor:
        replicated = [Replicate()]
        z = DTensor.from_local(h, mesh, replicated) @ DTensor.from_local(W, mesh, [Shard(0)]).T
        with loss_parallel():
            loss = T.cross_entropy(z, DTensor.from_local(y, mesh, replicated))
            loss.backward()  # which must happen in here
        return loss.to_local().detach().requires_grad_()

    return head


def competitors(group: GROUP) -> dict[str, Head]:
    """Return all heads of a group of ranks."""
    return {
        OURS: lambda h, W, y: D.linear_cross_entropy(h, W, y, group=group),
        RECOMPUTED: lambda h, W, y: D.linear_cross_entropy(h, W, y, group=group, reduction="none").mean(),
        FULL: lambda h, W, y: FullLogits.apply(T.linear(Copied.apply(h, group), W), y, group),
        LOSS_PARALLEL: of_torch(group),
    }


# What is sent, and how long that takes


class Ledger:
    """Bytes that this rank puts into collectives of tensors, calls of messages, and the seconds in both."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.seconds = 0.0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Count what happens inside."""
        with self._counted("all_gather", 1), self._counted("all_reduce", 0), self._counted("all_gather_object", None):
            yield

    def _counted(self, name: str, argument: int | None) -> Any:
        real = getattr(dist, name)

        def call(*arguments: Any, **options: Any) -> Any:
            sent = 1 if argument is None else arguments[argument].numel() * arguments[argument].element_size()
            self.bytes[name] += sent
            begin = time.perf_counter()
            try:
                return real(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - begin

        return mock.patch.object(dist, name, call)


# One rank's part


class Setting(NamedTuple):
    """Some ranks at work on one problem: this rank's inputs and heads, None on a rank that only waits."""

    ranks: int
    inputs: Inputs | None
    heads: dict[str, Head]


def problem(shape: Shape, ranks: int) -> Inputs:
    """Return hidden states, the head of all ranks, and targets: the same on every rank."""
    from lastlayer.demo.measure import random_inputs

    return random_inputs(Shape(shape.N, shape.D, shape.V * ranks))


def settle(shape: Shape, ranks: int, group: GROUP | None) -> Setting:
    """Return a setting whose heads give what one process gives in float64."""
    if group is None:
        return Setting(ranks, None, {})
    whole = problem(shape, ranks)
    part = slice(dist.get_rank(group) * shape.V, (dist.get_rank(group) + 1) * shape.V)
    loss, dh, dW = heads.reference(whole)
    expected = Pass(loss, dh, dW[part])
    inputs = Inputs(whole.h, whole.W[part].clone(), whole.y)
    kept = competitors(group)
    for name, head in list(kept.items()):
        error = rounds.difference(rounds.parts(tuple(run_pass(head, inputs))), rounds.parts(tuple(expected)))
        if not error <= rounds.agreement(name, "step"):
            raise rounds.Wrong(f"{name}, {ranks} ranks: differs from float64 by {error:.1e}")
    return Setting(ranks, inputs, kept)


def slowest(seconds: float) -> float:
    """Return the largest of all ranks' times."""
    told = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return float(told)


def clocked(job: Callable[[], Any]) -> float:
    """Return the seconds until the last rank has done its job, all of them having begun together."""
    dist.barrier()
    begin = time.perf_counter()
    job()
    return slowest(time.perf_counter() - begin)


def part_of(setting: Setting, name: str, ledger: Ledger) -> Callable[[], Any]:
    """Return this rank's job: a forward and backward pass, or to wait."""

    def job() -> None:
        if setting.inputs is not None:
            with ledger.open():
                run_pass(setting.heads[name], setting.inputs)

    return job


def weak_scaling(shape: Shape, turns: int) -> dict[str, Any]:
    """Return medians of seconds, and of ratios within a round, by setting and head; shares of collectives; bytes."""
    world = dist.get_world_size()
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in range(1, world + 1) if world % ranks == 0}
    alone = [dist.new_group([rank]) for rank in range(world)][dist.get_rank()]
    settings = {
        f"{ranks} ranks": settle(shape, ranks, group if dist.get_rank() < ranks else None)
        for ranks, group in groups.items()
    }
    settings["side by side"] = settle(shape, 1, alone)
    names = (OURS, RECOMPUTED, FULL, LOSS_PARALLEL)
    seconds = {where: {name: list[float]() for name in names} for where in settings}
    shares = {where: {name: list[float]() for name in names} for where in settings}
    sent: dict[str, Any] = {}
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for where, setting in settings.items():
                ledger = Ledger()
                taken = clocked(part_of(setting, name, ledger))
                seconds[where][name].append(taken)
                shares[where][name].append(ledger.seconds / taken)
                if setting.ranks == world:
                    sent[name] = {
                        key: value / (1 if "object" in key else shape.N) for key, value in ledger.bytes.items()
                    }
    middle = {where: {n: statistics.median(t) for n, t in by.items()} for where, by in seconds.items()}
    share = {where: {n: statistics.median(t) for n, t in by.items()} for where, by in shares.items()}
    whole = seconds[f"{world} ranks"]
    ratios = {
        where: {n: statistics.median(a / b for a, b in zip(by[n], whole[n], strict=True)) for n in names}
        for where, by in seconds.items()
    }
    ours = {n: statistics.median(a / b for a, b in zip(whole[n], whole[OURS], strict=True)) for n in names}
    return {
        "shape": shape._asdict(), "seconds": middle, "ratios": ratios, "of_ours": ours, "in_collectives": share,
        "sent": sent,
    }  # fmt: skip


def median_of(job: Callable[[], Any], times: int) -> float:
    """Return the median seconds of a job that all ranks do together."""
    job()
    return statistics.median(clocked(job) for _ in range(times))


def constants(quick: bool) -> dict[str, float]:
    """Return what the model needs of this machine."""
    others, times = max(1, dist.get_world_size() - 1), 3 if quick else 30
    small, large = torch.zeros(1), torch.zeros(1 << (16 if quick else 21))

    def gather(tensor: Tensor) -> Callable[[], Any]:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        return lambda: dist.all_gather(parts, tensor)

    latency, whole = median_of(gather(small), times), median_of(gather(large), max(3, times // 3))
    shape = QUICK[0] if quick else SHAPES[0]
    products = median_of(heads.products(problem(shape, 1), 3), max(3, times // 6))

    def merge(count: int) -> float:
        rows, target = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.int64)
        folded = _statistics.nothing(rows, target, False).needed(False, False)
        states = shards.unpack(torch.stack([shards.pack(folded, folded)] * 2), folded)
        return median_of(lambda: shards.pairs(states), times)

    few, many = merge(16), merge(1 << 16)
    return {
        "latency": latency / others,
        "bandwidth": 4 * len(large) * others / max(whole - latency, 1e-9),
        "flops": 6 * shape.N * shape.D * shape.V / products,
        "merge": few,
        "state": max(many - few, 1e-9) / (1 << 16),
        "agreement": median_of(lambda: shards.agree(None, None, None), times),
    }


def measure(quick: bool) -> dict[str, Any]:
    """Return what this run found; every rank takes part."""
    torch.set_num_threads(1)
    return {
        "machine": machine.describe([]),
        "ranks": dist.get_world_size(),
        "constants": constants(quick),
        "weak": [weak_scaling(shape, QUICK_ROUNDS if quick else ROUNDS) for shape in (QUICK if quick else SHAPES)],
    }


# The model


class Cluster(NamedTuple):
    """Seconds per step of a collective, bytes and operations per second, seconds per merge and per merged state."""

    latency: float
    bandwidth: float
    flops: float
    merge: float
    state: float


ASSUMED = Cluster(10e-6, 50e9, 50e12, 100e-6, 0.5e-9)
RANKS = (8, 64, 256, 1024)
TOKENS, FEATURES, CLASSES_EACH, CLASSES_ALL = 8192, 4096, 16_384, 262_144
SCHEDULES = {"fused": (6, 4), "recomputed": (8, 6)}  # products, and agreements per forward and backward pass


class Step(NamedTuple):
    """Bytes that a rank receives for states and for the input's gradient, and the seconds of one step's parts."""

    state_bytes: float
    gradient_bytes: float
    states: float
    gradient: float
    messages: float
    merges: float
    compute: float

    @property
    def efficiency(self) -> float:
        """Return the part of the time in which it computes."""
        return self.compute / sum(self[2:])


def reckon(ranks: int, N: int, features: int, classes: int, schedule: str, cluster: Cluster) -> Step:
    """Return one step of a rank with that many classes; collectives are rings, and nothing overlaps."""
    products, agreements = SCHEDULES[schedule]
    rows = plan(N, classes, features, DEFAULT_BUDGET, 4, converts=False, scratch=False).rows
    chunks, others = -(-N // rows), ranks - 1
    state_bytes, gradient_bytes = 24 * N * others, 2 * others / ranks * 4 * N * features
    return Step(
        state_bytes,
        gradient_bytes,
        chunks * others * cluster.latency + state_bytes / cluster.bandwidth,
        2 * others * cluster.latency + gradient_bytes / cluster.bandwidth,
        agreements * 2 * others * cluster.latency,
        chunks * (ranks - 1).bit_length() * cluster.merge + N * others * cluster.state,
        products * N * features * classes / cluster.flops,
    )


# The report


def percent(share: float) -> str:
    """Return a share."""
    return f"{100 * share:.0f} %"


def weak_tables(results: dict[str, Any]) -> Iterator[Table]:
    """Yield times and what is sent."""
    ranks = results["ranks"]
    for found in results["weak"]:
        N, features, classes = found["shape"].values()
        seconds, where = found["seconds"], f"N {N:,}, D {features:,}, {classes:,} classes per rank"
        one, many, beside = seconds["1 ranks"], seconds[f"{ranks} ranks"], seconds["side by side"]
        rows = []
        for name in one:
            sent = found["sent"].get(name, {})
            known = name != LOSS_PARALLEL
            rows.append([
                name, figure(one[name] * 1e3), figure(beside[name] * 1e3), figure(many[name] * 1e3),
                figure(found["ratios"]["1 ranks"][name]), figure(found["ratios"]["side by side"][name]),
                figure(found["of_ours"][name]),
                percent(found["in_collectives"][f"{ranks} ranks"][name]) if known else "-",
                *(figure(sent.get(kind, 0)) if known else "-" for kind in ("all_gather", "all_reduce")),
            ])  # fmt: skip
        columns = [
            "", "1 rank, ms", f"{ranks} alone, ms", f"{ranks} ranks, ms", "efficiency", "of alone", "time / ours",
            "in collectives", "gathered, bytes", "reduced, bytes",
        ]  # fmt: skip
        yield Table(f"Measured: {where}, forward and backward", columns, rows)


def model_tables(results: dict[str, Any]) -> Iterator[Table]:
    """Yield the model's steps."""
    here = Cluster(*(results["constants"][name] for name in Cluster._fields))
    columns = [
        "ranks", "classes each", "schedule", "states, MB", "states, ms", "gradient, MB", "gradient, ms", "messages, ms",
        "merges, ms", "compute, ms", "efficiency",
    ]  # fmt: skip
    for title, cluster in (("assumed cluster", ASSUMED), ("constants of this machine", here)):
        for what, each in (
            (f"{CLASSES_EACH:,} classes per rank", lambda ranks: CLASSES_EACH),
            (f"{CLASSES_ALL:,} classes in all", lambda ranks: CLASSES_ALL // ranks),
        ):
            rows = []
            for ranks in RANKS:
                for schedule in SCHEDULES:
                    step = reckon(ranks, TOKENS, FEATURES, each(ranks), schedule, cluster)
                    times = [figure(seconds * 1e3) for seconds in (step.messages, step.merges, step.compute)]
                    rows.append([
                        f"{ranks:,}", f"{each(ranks):,}", schedule, figure(step.state_bytes / 1e6),
                        figure(step.states * 1e3), figure(step.gradient_bytes / 1e6), figure(step.gradient * 1e3),
                        *times, percent(step.efficiency),
                    ])  # fmt: skip
            yield Table(f"Reckoned, {title}: {what}", columns, rows)


def rates(cluster: Cluster) -> str:
    """Return a cluster's constants in words."""
    return (
        f"latency a = {figure(cluster.latency * 1e6)} us, bandwidth b = {figure(cluster.bandwidth / 1e9)} GB/s per "
        f"rank, F = {figure(cluster.flops / 1e9)} GFLOP/s, merge m = {figure(cluster.merge * 1e6)} us and "
        f"e = {figure(cluster.state * 1e9)} ns per state"
    )


def setting(results: dict[str, Any]) -> list[str]:
    """Return where and how, a line each."""
    m, found = results["machine"], results["constants"]
    here = Cluster(*(found[name] for name in Cluster._fields))
    return [
        f"{m['processor']}, {m['cores']} cores, {m['instruction_set']}; gloo over the loopback device.",
        f"{m['versions']}.",
        f"Measured here with {results['ranks']} ranks of one thread: {rates(here)}; one agreement "
        f"{figure(found['agreement'] * 1e6)} us.",
        f"Assumed of a cluster, not measured: {rates(ASSUMED)} (float32 products, {TOKENS:,} tokens, D {FEATURES:,}).",
    ]


def tables(results: dict[str, Any]) -> list[Table]:
    """Return all tables."""
    return [*weak_tables(results), *model_tables(results)]


def write(results: dict[str, Any], document: Path) -> None:
    """Replace the tables in a document."""
    new = "\n\n".join(["\n".join(f"- {line}" for line in setting(results)), *(t.markdown() for t in tables(results))])
    old = document.read_text(encoding="utf-8")
    replaced = re.sub(r"(<!-- tables -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{new}\n{m[2]}", old, flags=re.S)
    document.write_text(replaced, encoding="utf-8")


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print, and write what was asked for."""
    print("\n\n".join(["\n".join(setting(results)), *(table.plain() for table in tables(results))]))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1))
    if options.write:
        write(results, options.write)


def launched(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return what the ranks of a torchrun found, None if they failed."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "found.json"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(options.ranks),
        ]
        command += [__file__, "--json", str(figures), *(["--quick"] if options.quick else [])]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
        return json.loads(figures.read_text()) if done.returncode == 0 else None


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--ranks", type=int, default=2, help="how many to start (without torchrun)")
    parser.add_argument("--read", type=Path, metavar="JSON", help="time nothing: report what an earlier run wrote")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--write", type=Path, help="replace the tables in this document")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run, report, and return 1 if something failed."""
    options = parse(argv)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        found = measure(options.quick)
        if dist.get_rank() == 0:
            report(found, options)
        dist.destroy_process_group()
        return 0
    results = json.loads(options.read.read_text()) if options.read else launched(options)
    if results is None:
        return 1
    report(results, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
