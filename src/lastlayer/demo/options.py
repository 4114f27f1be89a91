"""What `lastlayer demo` was asked to do: the parsed command line, and the one error type that reaches the user."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn


class DemoError(Exception):
    """A mistake of the user's, told in one line."""


class Shape(NamedTuple):
    """Sizes of a head: rows, features, classes; prints as on the command line."""

    N: int
    D: int
    V: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


LARGER = Shape(2048, 256, 32768)


@dataclass(frozen=True)
class Options:
    """The settings of one run."""

    text: Path | None = None
    out: Path = Path("demo-out")
    seconds: float = 60.0
    steps: int | None = None
    seed: int = 0
    vocab_size: int = 8192
    batch_size: int = 4
    context: int = 128
    width: int = 128
    layers: int = 3
    measure: bool = True
    measure_shape: Shape = LARGER
    repeats: int = 5


class _Parser(argparse.ArgumentParser):
    """argparse, its errors raised as DemoError instead of usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise DemoError(f"{message} (lastlayer demo --help lists the options)")


def _count(least: int) -> Any:
    def parse(text: str) -> int:
        value = int(text) if text.isdecimal() else least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return value

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return value


def _shape(text: str) -> Shape:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected N,D,V, three positive whole numbers, got {text!r}")
    return Shape(*map(int, parts))


def parse(argv: list[str]) -> Options:
    """Return the options of a command line; DemoError if they make no sense, SystemExit(0) after --help."""
    default = Options()
    parser = _Parser(
        prog="lastlayer demo",
        description="Train a small next-token model on real text with this library's last layer, score it on held-out "
        "text, draw from it, and measure the layer against PyTorch's. Writes report.html, results.json and samples.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--text", type=Path, metavar="FILE", help="UTF-8 text to learn (default: CPython's pydoc_data.topics)")
    add("--out", type=Path, metavar="DIR", help="where to write (default: demo-out)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=_seconds, metavar="S", help="training time (default: 60)")
    budget.add_argument("--steps", type=_count(1), metavar="N", help="training steps instead; repeatable to the bit")
    add("--seed", type=_count(0), metavar="N", help="of the weights, batches and draws (default: 0)")
    add("--vocab-size", type=_count(257), metavar="V", help=f"byte-pair tokens (default: {default.vocab_size})")
    add("--batch-size", type=_count(1), metavar="B", help=f"windows per step (default: {default.batch_size})")
    add("--context", type=_count(2), metavar="T", help=f"tokens per window (default: {default.context})")
    add("--width", type=_count(8), metavar="D", help=f"features, a multiple of 8 (default: {default.width})")
    add("--layers", type=_count(1), metavar="L", help=f"blocks of the body (default: {default.layers})")
    add("--no-measure", dest="measure", action="store_false", help="skip timing and memory of the heads")
    add("--measure-shape", type=_shape, metavar="N,D,V", help=f"the larger shape (default: {default.measure_shape})")
    add("--repeats", type=_count(1), metavar="N", help=f"timed rounds per shape, at most (default: {default.repeats})")
    parser.set_defaults(**vars(default))
    options = Options(**vars(parser.parse_args(argv)))
    if options.width % 8:
        raise DemoError(f"--width {options.width}: expected a multiple of 8")
    if options.seed >= 2**63:
        raise DemoError(f"--seed {options.seed}: expected less than 2**63")
    return options
