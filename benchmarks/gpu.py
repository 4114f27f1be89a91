"""Check lastlayer on a GPU, then time it beside PyTorch and others: correctness gates, floors, peers in turn, bars.

    python benchmarks/gpu.py --part correct        the laws on this device; the exit code counts failures
    python benchmarks/gpu.py [--part linear draws ...] [--json bench-out/gpu.json] [--write docs/gpu.md]
    python benchmarks/gpu.py --device cpu --tiny   the logic, on any machine: its times say nothing

bfloat16, normal hidden states and logits, uniform targets. Figures are ratios within one run; the settings of the card
are recorded and never changed. What is measured is in benchmarks/on_gpu, what the figures mean in docs/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from on_gpu import budgets, correct, draws, floors, heads, logits, table
from on_gpu.clock import Bench, Effort
from on_gpu.table import Found
from timed.machine import versions
from timed.rounds import Wrong

PARTS: dict[str, Callable[[Bench], Found]] = {
    "bandwidth": floors.bandwidth,
    "products": floors.products,
    "linear": heads.linear,
    "cross_entropy": logits.cross_entropy,
    "rows": logits.rowwise,
    "draws": draws.draws,
    "recompute": heads.recompute,
    "ragged": heads.ragged,
    "memory": budgets.memory,
    "error": budgets.error,
    "budgets": budgets.budgets,
    "linear_draws": draws.linear_draws,
}
CORRECT = "correct"
FULL, TINY = Effort(rounds=9, seconds=6.0, block=2e-3), Effort(rounds=2, seconds=1.0, block=1e-9)
SECONDS = 480.0  # after which no further part begins
PACKAGES = ("torch", "triton", "numpy", "liger-kernel", "cut-cross-entropy", "quack-kernels", "flashinfer-python")
ASKED = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,power.draw,temperature.gpu"


def card(bench: Bench) -> list[str]:
    """Return what the card says of itself, now."""
    program = shutil.which("nvidia-smi")
    if not bench.cuda or program is None:
        return []
    command = [program, f"--query-gpu={ASKED}", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return [f"{ASKED.replace(',', ', ')}: {line}" for line in answer.stdout.splitlines()]


def describe(bench: Bench) -> dict[str, Any]:
    """Return where it runs."""
    name = torch.cuda.get_device_name(bench.device) if bench.cuda else "CPU: toy sizes, no speed"
    return {"device": name, "versions": versions(PACKAGES), "card": card(bench)}


def keep(path: Path | None, results: dict[str, Any]) -> None:
    """Write what is known so far: a run that is cut off leaves it behind."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1))


def measure(bench: Bench, parts: list[str], path: Path | None, most: float) -> dict[str, Any]:
    """Return the tables of the parts that were asked for, as far as the time allows."""
    results: dict[str, Any] = {
        "machine": describe(bench), "left_out": bench.left_out, "not_run": [], "seconds": {}, "tables": {},
    }  # fmt: skip
    begin = time.perf_counter()
    for part in parts:
        started = time.perf_counter()
        if started - begin > most:
            results["not_run"].append(part)
            continue
        print(part, file=sys.stderr, flush=True)
        results["tables"][part] = PARTS[part](bench).plain()
        results["seconds"][part] = time.perf_counter() - started
        bench.tidy()
        keep(path, results)
    results["machine"]["card"] += card(bench)
    keep(path, results)
    return results


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--tiny", action="store_true", help="toy sizes and few rounds: does it run?")
    parser.add_argument("--part", nargs="+", choices=[CORRECT, *PARTS], help="what to run; all tables if not given")
    parser.add_argument("--only", default="", metavar="CHECK", help='of the part "correct", the checks that begin so')
    parser.add_argument("--without", nargs="+", default=[], metavar="PEER", help="peers to leave out")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="begin no further part after so many")
    parser.add_argument("--read", type=Path, metavar="JSON", help="time nothing: report what an earlier run wrote")
    parser.add_argument("--json", type=Path, help="write the figures there, after every part")
    parser.add_argument("--write", type=Path, help="replace the tables in this document")
    options = parser.parse_args(argv)
    if options.device.startswith("cpu") and not (options.tiny or options.read):
        parser.error("a CPU takes toy sizes only: --tiny")
    if options.part and CORRECT in options.part and len(options.part) > 1:
        parser.error(f"--part {CORRECT} stands alone: its exit code counts failures")
    return options


def report(results: dict[str, Any], document: Path | None) -> int:
    """Print the tables, and write them where they are wanted."""
    print(table.plain(results))
    if document:
        table.write(document, results)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run and report; return 1 if a result of ours is wrong, or, for the part "correct", the number of failures."""
    options = parse(argv)
    if options.read:
        return report(json.loads(options.read.read_text()), options.write)
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    bench = Bench(device, options.tiny, TINY if options.tiny else FULL, options.without)
    if options.part == [CORRECT]:
        return correct.run(bench, partial(print, flush=True), options.only)
    try:
        return report(measure(bench, options.part or list(PARTS), options.json, options.seconds), options.write)
    except Wrong as error:
        print(f"wrong: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
