"""What the demo says while it runs (stderr: a bar on a terminal, lines otherwise) and at its end (stdout)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from lastlayer.demo.report import clock, head_rows, one_line, score_rows, trained, visible
from lastlayer.demo.train import Watcher

LINES = 10  # lines of training progress where stderr is not a terminal


def note(text: str) -> None:
    """Say one thing on stderr."""
    print(text, file=sys.stderr, flush=True)


class Lines:
    """Progress as plain lines, one per tenth of the budget."""

    def __init__(self) -> None:
        self.said = 0

    def trained(self, step: int, fraction: float, nats: float, tokens_per_second: float, left: float) -> None:
        """Say where the training is, if another tenth is done."""
        if int(fraction * LINES) > self.said:
            self.said = int(fraction * LINES)
            note(f"step {step}  loss {nats:.3f}  {tokens_per_second:,.0f} tokens/s  {clock(left)} left")

    def evaluated(self, step: int, nats: float) -> None:
        """Say the held-out loss."""
        note(f"step {step}  held-out {nats:.3f} nats per token")


class Bar:
    """Progress as one bar, the held-out losses above it."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("training", total=1.0, told="")

    def trained(self, step: int, fraction: float, nats: float, tokens_per_second: float, left: float) -> None:
        """Move the bar."""
        told = f"loss {nats:.3f}  {tokens_per_second:,.0f} tokens/s  {clock(left)} left"
        self.progress.update(self.task, completed=fraction, told=told)

    def evaluated(self, step: int, nats: float) -> None:
        """Print the held-out loss above the bar."""
        self.progress.console.print(f"step {step}  held-out {nats:.3f} nats per token", highlight=False)


@contextmanager
def progress() -> Iterator[Watcher]:
    """Yield who is to be told about progress: a bar if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield Bar(bar)


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", header_style="")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _surprises(title: str, surprises: list[dict[str, Any]]) -> Table:
    columns = ("bits", "in training", "the token [in brackets] in its context")
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", header_style="")
    for column, justify in zip(columns, ("right", "right", "left"), strict=True):
        table.add_column(Text(column), justify=justify)  # type: ignore[arg-type]
    for s in surprises:
        before, token, after = (one_line(s[part]) for part in ("before", "token", "after"))
        table.add_row(f"{s['bits']:.1f}", str(s["in_training"]), Text(f"{before[-24:]}[{token}]{after[:16]}"))
    return table


def summary(results: dict[str, Any], out: Path) -> None:
    """Print the scores, the surprises, the texts and the measurements."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a drawn text can hold any character
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    held_out = results["held_out"]
    console.print(f"\n{trained(results)}")
    title = f"\nHeld out: {held_out['tokens']:,} tokens, {held_out['bytes']:,} bytes"
    console.print(_table(title, ("", "nats/token", "bits/byte", "perplexity"), score_rows(results)))
    console.print(_surprises("Most surprising held-out tokens", results["most_surprising"]))
    console.print(_surprises("Most surprising of those that occur in training", results["most_surprising_known"]))
    for s in results["samples"]:
        console.print(Text(f"Temperature {s['temperature']} ({s['bits_per_token']:.1f} bits per token)", style="bold"))
        console.print(Text.assemble((visible(s["prompt"]), "dim"), visible(s["text"])), "\n")
    for shape in results["head"]["shapes"]:
        N, D, V = shape["shape"].values()
        columns = ("forward + backward", "ms", "ratio", "extra MiB", "ratio")
        console.print(_table(f"N={N:,} D={D:,} V={V:,} ({shape['inputs']})", columns, head_rows(shape)))
    if results["head"]["shapes"]:
        console.print(f"Time: {results['head']['how_time']}.\nMemory: {results['head']['how_memory']}.")
    console.print(f"Wrote {out / 'report.html'}, results.json and samples.txt")
