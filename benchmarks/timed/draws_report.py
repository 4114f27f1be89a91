"""What was timed of draws as bars, tables and a picture; and how a part of a document is replaced."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from timed import draws_jobs
from timed.bars import MIB, Bar, Figures, at_least, at_most, size
from timed.draws_exact import ROUNDING, Compared
from timed.draws_peers import OURS, OURS_NUMPY, PEERS, SOFTMAX, SORT
from timed.report import Table, figure

Results = dict[str, Any]

WHAT = {
    "T = 1": "T = 1",
    "temperature": "T = 0.8",
    "top_k, top_p, min_p": "T = 0.8, top_k 50, top_p 0.9, min_p 0.02",
    "top_p": "T = 0.8, top_p 0.9",
    "min_p": "T = 0.8, min_p 0.02",
    "all of them per row": "all four, a number for each row",
    "16 draws": "T = 0.8, 16 draws per row",
    "16 without replacement": "T = 0.8, 16 without replacement",
    "bfloat16": "T = 0.8, bfloat16 logits",
    "multinomial": "multinomial, from probabilities",
}
ORDER = (OURS, OURS_NUMPY, *PEERS)


def seconds_of(result: Results | None, operation: str, name: str) -> float | None:
    """Return one median, None if that was not timed."""
    return result["seconds"].get(operation, {}).get(name) if result else None


def ratio(result: Results | None, over: tuple[str, str], under: tuple[str, str], where: str) -> Figures:
    """Return one time over another, nothing if either is missing."""
    a, b = seconds_of(result, *over), seconds_of(result, *under)
    return [(a / b, where)] if a and b else []


def judge(results: Results) -> list[Bar]:
    """Return the bars with what was measured."""
    cold, row, head = results["cold"][0], results["row"], results["head"]
    read, where = ("limit", draws_jobs.READ), f"{size(cold)}, out of the cache"
    heat, chain = "temperature", "top_k, top_p, min_p"
    taken = [(b, name) for name, b in (head or {}).get("extra_bytes", {}).items() if b is not None]
    one = [(s * 1e6, name) for name in (OURS, OURS_NUMPY) if (s := seconds_of(row, heat, name))]
    product = ratio(head, ("draw", OURS), ("limit", draws_jobs.PRODUCT), "draw")
    return [
        at_most("T = 0.8, log-probabilities included: reads", 1.5, ratio(cold, (heat, OURS), read, where)),
        at_least(
            "the same: times faster than softmax + multinomial", 60, ratio(cold, (heat, SOFTMAX), (heat, OURS), where)
        ),
        at_most("top_k, top_p, min_p: reads", 3.0, ratio(cold, (chain, OURS), read, where)),
        at_least("the same: times faster than PyTorch's sort", 60, ratio(cold, (chain, SORT), (chain, OURS), where)),
        at_most("one row, T = 0.8: microseconds", 60, one),
        at_most("linear_categorical: of the bare product", 1.1, product),
        at_most("linear_categorical, linear_topk: bytes", draws_jobs.BUDGET, taken),
    ]


def bars_table(results: Results) -> Table:
    """Return the promises and what became of them."""
    rows = []
    for bar in judge(results):
        scale, unit = (MIB, " MiB") if bar.target == draws_jobs.BUDGET else (1, "")
        target = f"{'<=' if bar.at_most else '>='} {bar.target / scale:g}{unit}"
        measured = f"{figure(bar.figure / scale)}{unit}" if bar.where else "-"
        rows.append([bar.promise, target, measured, bar.verdict, bar.where or "-"])
    return Table("Bars", ["what", "bar", "measured", "", "where"], rows)


def multiples(result: Results, title: str) -> Table:
    """Return the times by operation and competitor in multiples of one read."""
    seconds = result["seconds"]
    read = seconds["limit"][draws_jobs.READ]
    names = [name for name in ORDER if any(name in group for group in seconds.values())]
    rows = [
        [WHAT[operation], *(figure(group[name] / read if name in group else None) for name in names)]
        for operation, group in seconds.items()
        if operation != "limit"
    ]
    took = f"one read takes {figure(read * 1e3)} ms"
    return Table(f"{title}: multiples of one read of float32 logits, `z.sum()` ({took})", ["", *names], rows)


def row_table(result: Results) -> Table:
    """Return microseconds per call on one row."""
    seconds = result["seconds"]
    names = [name for name in ORDER if any(name in group for group in seconds.values())]
    rows = [
        [WHAT[operation], *(figure(group[name] * 1e6 if name in group else None) for name in names)]
        for operation, group in seconds.items()
        if operation != "limit"
    ]
    read = figure(seconds["limit"][draws_jobs.READ] * 1e6)
    return Table(
        f"One row of {result['classes']:,} in the cache: microseconds per call (`z.sum()`: {read})", ["", *names], rows
    )


def head_table(result: Results) -> Table:
    """Return multiples of the bare product, and memory."""
    bare = result["seconds"]["limit"][draws_jobs.PRODUCT]
    rows = [
        [
            WHAT.get(operation, {"draw": WHAT["temperature"]}.get(operation, operation)),
            name,
            figure(seconds / bare),
            figure(
                taken / MIB if name == OURS and (taken := result["extra_bytes"].get(operation)) is not None else None
            ),
        ]
        for operation, group in result["seconds"].items()
        if operation != "limit"
        for name, seconds in group.items()
    ]
    N, D, V = result["shape"]
    title = f"From hidden states, N {N:,}, D {D:,}, V {V:,}: multiples of the bare product ({figure(bare * 1e3)} ms)"
    return Table(title, ["", "by", "products", "MiB at the peak"], rows)


def compared(results: Results) -> Compared:
    """Return how the draws of the gate compare with float64 cumulative sums."""
    found = [*results["cold"], results["hot"], results["row"], results["head"]]
    return sum((Compared(*each["compared"]) for each in found if each), Compared())


def tables(results: Results) -> Iterator[Table]:
    """Yield all tables that have something to show."""
    yield bars_table(results)
    for result in results["cold"]:
        yield multiples(result, f"{size(result)}, out of the cache ({result['matrices']} matrices in turn)")
    if results["hot"]:
        yield multiples(results["hot"], f"{size(results['hot'])}, the same matrix again and again")
    if results["row"]:
        yield row_table(results["row"])
    if results["head"]:
        yield head_table(results["head"])


def setting(results: Results) -> list[str]:
    """Return the machine, the gate and who was left out, a line each."""
    m, gate = results["machine"], compared(results)
    cache = f"last-level cache {m['cache_bytes'] // MIB} MiB"
    return [
        f"{m['processor']}, {m['cores']} cores, {m['instruction_set']}, {cache}.",
        f"{m['versions']}.",
        f"Threads: {m['threads']}.",
        f"Gate: {gate.draws:,} of our draws beside float64 sums of the same uniforms: {gate.differ:,} differ, by at "
        f"most {figure(gate.farthest) if gate.differ else 0} of the mass (allowed: {figure(ROUNDING)}).",
        *(f"Left out: {reason}." for reason in results["left_out"]),
    ]


def plain(lines: Iterable[str], made: Iterable[Table]) -> str:
    """Return lines and tables for a terminal."""
    return "\n\n".join(["\n".join(lines), *(table.plain() for table in made)])


def markdown(lines: Iterable[str], made: Iterable[Table]) -> str:
    """Return lines and tables for a document."""
    return "\n\n".join(["\n".join(f"- {line}" for line in lines), *(table.markdown() for table in made)])


def write(document: Path, name: str, new: str) -> None:
    """Replace what stands between <!-- name --> and <!-- end of name -->; ValueError if nothing does."""
    old = document.read_text(encoding="utf-8")
    pattern = f"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    replaced, count = re.subn(pattern, lambda m: f"{m[1]}{new}\n{m[2]}", old, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{document} has {count} places between <!-- {name} --> and <!-- /{name} -->, expected 1")
    document.write_text(replaced, encoding="utf-8")


# From Okabe and Ito's palette, told apart by any eye; markers tell them apart without colour.
MARKS = dict(
    zip(
        (OURS, *PEERS),
        [
            ("#0072B2", "o"), ("#D55E00", "s"), ("#D55E00", "D"), ("#D55E00", "^"), ("#E69F00", "v"), ("#009E73", "P"),
            ("#7B4FA3", "<"), ("#7B4FA3", ">"), ("#555555", "X"),
        ],
        strict=True,
    )
)  # fmt: skip


def draw_picture(result: Results, path: Path) -> None:
    """Write the picture: a line per operation, a mark per competitor, multiples of one read."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    read = result["seconds"]["limit"][draws_jobs.READ]
    operations = [name for name in result["seconds"] if name != "limit"]
    with pyplot.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        chart, axes = pyplot.subplots(figsize=(8, 4.4), layout="constrained")
        for name, (color, marker) in MARKS.items():
            group = [(i, result["seconds"][each].get(name)) for i, each in enumerate(operations)]
            points = [(seconds / read, i) for i, seconds in group if seconds]
            if points:
                high = {"s": 64, "zorder": 5} if name == OURS else {"s": 34, "zorder": 4}
                x, y = zip(*points, strict=True)
                axes.scatter(x, y, c=color, marker=marker, label=name, edgecolors="white", linewidths=0.5, **high)
        axes.axvline(1, color="#333333", lw=1, ls="--", zorder=1)
        axes.set_xscale("log")
        axes.set_yticks(range(len(operations)), [WHAT[name] for name in operations])
        axes.invert_yaxis()
        axes.grid(axis="both", color="#e4e4e4", lw=0.6, zorder=0)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g} x")
        axes.set_xlabel(f"time of a call on {size(result)} logits; 1 x = one read of them, z.sum()")
        chart.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        chart.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})
        pyplot.close(chart)
