"""The bars: what the library promises of its speed and memory, and whether this run reached it.

A bar holds if its worst figure does. Figures are ratios within one run, except for bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from timed import heads
from timed.rounds import is_ours

OURS = "lastlayer"
FORWARD = ("logsumexp", "forward")
SOFTMAXES = ("softmax", "log_softmax")
FEW = (2, 10, 64)
PEERS_OF_HEADS = (heads.UNFUSED, heads.FUSED, heads.CHUNKED)
MIB = 1 << 20
BUDGET = 64 * MIB

Figures = Iterable[tuple[float, str]]
Results = dict[str, Any]
Chosen = Callable[[Results], bool]


class Bar(NamedTuple):
    """A promise, and the worst figure found; NaN and nowhere if nothing was measured."""

    promise: str
    target: float
    at_most: bool
    figure: float
    where: str

    @property
    def verdict(self) -> str:
        """Return reached, missed, or that nothing was measured."""
        if not self.where:
            return "not measured"
        reached = self.figure <= self.target if self.at_most else self.figure >= self.target
        return "reached" if reached else "missed"


def at_most(promise: str, target: float, figures: Figures) -> Bar:
    """Return the bar that no figure may exceed."""
    return Bar(promise, target, True, *max(figures, default=(float("nan"), "")))


def at_least(promise: str, target: float, figures: Figures) -> Bar:
    """Return the bar that every figure must reach."""
    return Bar(promise, target, False, *min(figures, default=(float("nan"), "")))


def size(result: Results) -> str:
    """Return a size as the tables show it."""
    return f"{result['rows']:,} x {result['classes']:,}"


def of(result: Results, operation: str, name: str) -> float | None:
    """Return one median, None if that was not timed."""
    return result["seconds"].get(operation, {}).get(name)  # type: ignore[no-any-return]


def over_limit(results: Results, chosen: Chosen, operations: Iterable[str], limit: str) -> Iterator[tuple[float, str]]:
    """Yield our multiples of a limit."""
    for result in filter(chosen, results["logits"]):
        for operation in operations:
            if ours := of(result, operation, OURS):
                yield ours / result["seconds"]["limit"][limit], f"{operation}, {size(result)}"


def ahead(
    results: Results, chosen: Chosen, operations: Iterable[str], peers: Iterable[str] = ()
) -> Iterator[tuple[float, str]]:
    """Yield by how many times we are faster than peers: those named, or all."""
    for result in filter(chosen, results["logits"]):
        for operation in operations:
            ours = of(result, operation, OURS)
            for name, theirs in result["seconds"].get(operation, {}).items():
                if ours and not is_ours(name) and (not peers or name in peers):
                    yield theirs / ours, f"{name}, {operation}, {size(result)}"


def against_itself(
    results: Results, chosen: Chosen, operations: Iterable[str], other: str
) -> Iterator[tuple[float, str]]:
    """Yield the time of another way of ours, per time of the operation."""
    for result in filter(chosen, results["logits"]):
        for operation in operations:
            ours, theirs = (of(result, name, OURS) for name in (operation, operation + other))
            if ours and theirs:
                yield theirs / ours, f"{operation}, {size(result)}"


def head_ratios(results: Results, name: str, others: Iterable[str]) -> Iterator[tuple[float, str]]:
    """Yield the time of one head per time of others."""
    for result in results["heads"]:
        where = ", ".join(f"{letter} {value:,}" for letter, value in result["shape"].items())
        for other in others:
            if other in result["seconds"]:
                yield result["seconds"][name] / result["seconds"][other], f"{other}, {where}"


def extra_bytes(results: Results, names: Iterable[str]) -> Iterator[tuple[float, str]]:
    """Yield what heads take beyond their gradients."""
    for result in results["heads"]:
        where = ", ".join(f"{letter} {value:,}" for letter, value in result["shape"].items())
        for name in names:
            if (taken := result["extra_bytes"].get(name)) is not None:
                yield taken, f"{name}, {where}"


def judge(results: Results) -> list[Bar]:
    """Return every bar with its worst figure."""
    cache = results["machine"]["cache_bytes"]

    def many(result: Results) -> bool:
        return bool(result["classes"] >= 1000)

    def outside(result: Results) -> bool:
        return many(result) and bool(result["bytes"] > cache)

    def few(result: Results) -> bool:
        return result["classes"] in FEW

    def long(result: Results) -> bool:
        return bool(result["classes"] >= 32_000)

    def one_row(result: Results) -> bool:
        return bool(result["rows"] == 1)

    def any_size(result: Results) -> bool:
        return True

    compilers, out = ("torch.compile", "JAX"), tuple(f"{name} out=" for name in SOFTMAXES)
    inverse = ((1 / ratio, where) for ratio, where in head_ratios(results, heads.OURS, PEERS_OF_HEADS))
    return [
        at_most(
            "logsumexp, forward: reads (V >= 1,000, beyond the cache)",
            1.3,
            over_limit(results, outside, FORWARD, "read"),
        ),
        at_least("logsumexp, forward: times faster than any peer", 1.0, ahead(results, any_size, FORWARD)),
        at_most("step: clones (V >= 1,000, beyond the cache)", 0.8, over_limit(results, outside, ["step"], "clone")),
        at_most("step: clones (V >= 1,000, every size)", 0.8, over_limit(results, many, ["step"], "clone")),
        at_least("step: times faster than PyTorch (V >= 1,000)", 4.0, ahead(results, many, ["step"], ["PyTorch"])),
        at_least("step: times faster than compilers (V >= 1,000)", 1.0, ahead(results, many, ["step"], compilers)),
        at_most(
            "gradient out=: copies (V >= 1,000, beyond the cache)",
            1.5,
            over_limit(results, outside, ["gradient out="], "copy"),
        ),
        at_most(
            "softmax, log_softmax out=: copies (V >= 1,000, beyond the cache)",
            1.4,
            over_limit(results, outside, out, "copy"),
        ),
        at_most(
            "softmax, log_softmax: clones (V >= 1,000, beyond the cache)",
            0.8,
            over_limit(results, outside, SOFTMAXES, "clone"),
        ),
        at_least(
            "forward, step: times faster than PyTorch (V = 2, 10, 64)",
            10.0,
            ahead(results, few, ["forward", "step"], ["PyTorch"]),
        ),
        at_least(
            "one row: times faster than on one thread",
            1.6,
            against_itself(results, one_row, ["logsumexp", "forward", "step"], ", one thread"),
        ),
        at_least(
            "bfloat16: elements per second, of float32's (V >= 32,000)",
            1.0,
            ((1 / r, w) for r, w in against_itself(results, long, FORWARD, " bfloat16")),
        ),
        at_most("linear_cross_entropy: of three products", 1.1, head_ratios(results, heads.OURS, [heads.THREE])),
        at_most(
            "linear_cross_entropy, recomputed: of four products",
            1.1,
            head_ratios(results, heads.RECOMPUTED, [heads.FOUR]),
        ),
        at_least("linear_cross_entropy: times faster than PyTorch's heads", 1.0, inverse),
        at_most(
            "linear_cross_entropy: bytes beyond the gradients",
            BUDGET,
            extra_bytes(results, [heads.OURS, heads.RECOMPUTED]),
        ),
    ]
