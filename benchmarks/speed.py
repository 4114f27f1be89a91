"""Time the last layer beside its peers: a correctness gate first, then all of them in turn, medians and ratios.

    python benchmarks/speed.py [--quick | --full] [--only logits small heads] [--without JAX torch.compile]
                               [--json bench-out/speed.json] [--write docs/speed.md] [--picture docs/images/speed.png]

float32, normal logits of standard deviation 5, uniform targets. Figures are ratios within this run to what memory or
the BLAS allow; absolute times say little on a shared machine. The parts are in benchmarks/timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from timed import heads, logits, machine, picture, report, small
from timed.peers import PEERS
from timed.rounds import Effort, Wrong

PARTS = ("logits", "small", "heads")
QUICK = Effort(rounds=3, seconds=1.0)
EFFORT = {"logits": Effort(), "small": Effort(rounds=15), "heads": Effort(rounds=5)}


def said(label: str) -> None:
    """Say one thing beside the report."""
    print(label, file=sys.stderr, flush=True)


@contextmanager
def progress(total: int) -> Iterator[Any]:
    """Yield who is told what comes next: a bar if stderr is a terminal, lines otherwise."""
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield said
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=-1)
        yield lambda label: bar.update(task, description=label, advance=1)
        bar.update(task, description="done", advance=1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the results of everything that was asked for."""
    names = [name for name in PEERS if name not in options.without]
    effort = dict.fromkeys(PARTS, QUICK) if options.quick else EFFORT
    left_out = [f"{name}: not asked for" for name in options.without]
    plan: list[tuple[str, str, Any]] = [
        *(("logits", f"{n:,} x {v:,}", (n, v, names)) for n, v in logits.sizes(options.quick, options.full)),
        ("small", "small calls", ()),
        *(("heads", f"head {shape}", (shape,)) for shape in heads.sizes(options.quick, options.full)),
    ]
    plan = [task for task in plan if task[0] in options.only]
    measures = {"logits": logits.measure, "small": small.measure, "heads": heads.measure}
    found: dict[str, list[Any]] = {part: [] for part in PARTS}
    with progress(len(plan)) as tell:
        for part, label, arguments in plan:
            tell(label)
            found[part].append(measures[part](*arguments, effort[part], left_out))  # type: ignore[operator]
    return {"machine": machine.describe(names), "left_out": list(dict.fromkeys(left_out)), **found}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="tiny sizes and few rounds: does it run?")
    effort.add_argument("--full", action="store_true", help="every size: an hour")
    effort.add_argument("--read", type=Path, metavar="JSON", help="time nothing: report what an earlier run wrote")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--without", nargs="+", choices=list(PEERS)[1:], default=[], help="competitors to leave out")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument(
        "--write", type=Path, help="replace the tables in this document, and images/speed.png beside it"
    )
    parser.add_argument("--picture", type=Path, help="write the picture there (needs matplotlib)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run, report, and return 1 if a result of ours is wrong."""
    options = parse(argv)
    try:
        results = json.loads(options.read.read_text()) if options.read else measure(options)
    except Wrong as error:
        said(f"wrong: {error}")
        return 1
    print(report.plain(results))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1))
    if options.write:
        report.write(results, options.write)
    path = options.picture or (options.write and options.write.parent / "images" / "speed.png")
    if path and results["logits"]:
        if find_spec("matplotlib") is None:
            said("no picture: matplotlib is not installed")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.draw(results["logits"], path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
