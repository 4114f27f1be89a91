"""Time draws beside PyTorch, JAX, NumPy and llama.cpp: a correctness gate first, then all of them in turn, medians.

    python benchmarks/draws.py [--quick] [--only cold hot row head] [--without JAX] [--json bench-out/draws.json]
                               [--write docs/draws.md] [--picture docs/images/draws.png]

float32, normal logits of standard deviation 5. Cold: so many matrices in turn that none is in a cache when it is
needed. Figures are multiples, within this run, of one read or of the bare matrix product. What a draw must be is in
benchmarks/timed/draws_exact.py, who draws in draws_peers.py, what is timed in draws_jobs.py.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timed import draws_jobs, draws_report, machine
from timed.draws_peers import LIBRARIES
from timed.rounds import Effort, Wrong

PARTS = ("cold", "hot", "row", "head")
QUICK, LONG, SHORT = Effort(rounds=3, seconds=1.0), Effort(rounds=9, seconds=240.0), Effort(rounds=9, seconds=60.0)


def measure(quick: bool, only: list[str], without: list[str]) -> dict[str, Any]:
    """Return the results of everything that was asked for."""
    left_out = [f"{name}: not asked for" for name in without]
    main = draws_jobs.QUICK_MAIN if quick else draws_jobs.MAIN
    others = draws_jobs.QUICK_OTHERS if quick else draws_jobs.OTHERS
    long, short = (QUICK, QUICK) if quick else (LONG, SHORT)

    def matrices(size: tuple[int, int], count: int, names: tuple[str, ...] | None, effort: Effort) -> dict[str, Any]:
        print(f"{size[0]:,} x {size[1]:,}, {count} in turn", file=sys.stderr, flush=True)
        return draws_jobs.measure_matrices(*size, count, names, without, effort, left_out)

    # The bars need the first one.
    cold = [matrices(main, 2 if quick else draws_jobs.enough(*main), None, long)]
    if "cold" in only:
        more = [(size, 2 if quick else draws_jobs.enough(*size)) for size in others]
        cold += [matrices(size, count, draws_jobs.ON_OTHERS, short) for size, count in more]
    row = draws_jobs.QUICK_ROW if quick else draws_jobs.ONE_ROW
    head = draws_jobs.QUICK_HEAD if quick else draws_jobs.HEAD
    results: dict[str, Any] = {
        "cold": cold,
        "hot": matrices(main, 1, draws_jobs.ON_OTHERS, short) if "hot" in only else None,
        "row": draws_jobs.measure_row(row, without, short, left_out) if "row" in only else None,
        "head": draws_jobs.measure_head(*head, short, left_out) if "head" in only else None,
    }
    return {"machine": where_it_ran(), "left_out": list(dict.fromkeys(left_out)), **results}


def where_it_ran() -> dict[str, Any]:
    """Return the machine, with the threads of those who draw."""
    found = machine.describe(["JAX"])
    threads = torch.get_num_threads()
    found["threads"] = f"PyTorch, lastlayer: {threads}; JAX: {os.environ.get('NPROC', threads)}; NumPy, llama.cpp: 1"
    with suppress(importlib.metadata.PackageNotFoundError):
        found["versions"] += f", llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds: does it run?")
    parser.add_argument("--read", type=Path, metavar="JSON", help="time nothing: report what an earlier run wrote")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run, beside the main size")
    parser.add_argument("--without", nargs="+", choices=list(LIBRARIES)[1:], default=[], help="peers to leave out")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument(
        "--write", type=Path, help="replace the tables in this document, and images/draws.png beside it"
    )
    parser.add_argument("--picture", type=Path, help="write the picture there (needs matplotlib)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run, report, and return 1 if a result of ours is wrong."""
    options = parse(argv)
    try:
        results = (
            json.loads(options.read.read_text())
            if options.read
            else measure(options.quick, options.only, options.without)
        )
    except Wrong as error:
        print(f"wrong: {error}", file=sys.stderr)
        return 1
    lines, made = draws_report.setting(results), list(draws_report.tables(results))
    print(draws_report.plain(lines, made))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1))
    if options.write:
        draws_report.write(options.write, "speed", draws_report.markdown(lines, made))
    path = options.picture or (options.write and options.write.parent / "images" / "draws.png")
    if path and find_spec("matplotlib") is None:
        print("no picture: matplotlib is not installed", file=sys.stderr)
    elif path:
        path.parent.mkdir(parents=True, exist_ok=True)
        draws_report.draw_picture(results["cold"][0], path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
