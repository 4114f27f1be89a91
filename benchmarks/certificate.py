"""Certify draws: each law of ``categorical`` and ``multinomial`` as a number that anyone can print again.

    python benchmarks/certificate.py [--quick] [--json bench-out/certificate.json] [--write docs/draws.md]

Exits 1 if a law fails. Whole, it takes half a minute with the native kernels; --quick only shows that it runs, and
starts no processes. The reference (float64 sorts and cumulative sums, in NumPy) is benchmarks/timed/draws_exact.py,
the row of many decades draws_mass.py, what must not matter draws_ways.py, the processes draws_shards.py.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from timed import draws_exact, draws_mass, draws_report, draws_ways, machine
from timed.draws_exact import ROUNDING, Compared
from timed.draws_jobs import SEED, uniforms_of
from timed.report import Table, figure

import lastlayer
import lastlayer.torch as F
from lastlayer import _backends, _draws

CHAIN = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02}
LAST = 1 - 2.0**-53  # the largest uniform


class Law(NamedTuple):
    """What must hold, whether it does, and what was found."""

    words: str
    holds: bool
    found: str


Section = tuple[list[Law], list[Table]]
Row = NDArray[np.float32]


def yes(holds: bool) -> str:
    """Return yes or NO."""
    return "yes" if holds else "NO"


# The same uniforms


def kinds_of_rows(rows: int, classes: int) -> dict[str, Row]:
    """Return rows of four kinds."""
    rng = np.random.default_rng(classes)
    normal = rng.standard_normal((rows, classes)).astype(np.float32)
    confident = normal.copy()
    confident[:, classes // 3] = math.log(classes) + 14
    holes = np.where(rng.random((rows, classes)) < 0.25, -math.inf, np.round(4 * normal) / 2).astype(np.float32)
    holes[:, [0, -1]] = -math.inf
    return {
        "normal, sd 5": 5 * normal,
        "flat, sd 0.1": np.float32(0.1) * normal,
        "one near 1": confident,
        "ties and -inf": holes,
    }


def against_sums(z: Row, samples: int, options: dict[str, Any]) -> tuple[Compared, bool]:
    """Return how draws compare with float64 sums of the same uniforms, and whether as many classes are kept."""
    drawn = lastlayer.categorical(z, samples, seed=SEED, **options)
    uniforms, total, same = uniforms_of(SEED, len(z), samples), Compared(), True
    for i, row in enumerate(z.astype(np.float64)):
        q = draws_exact.distribution(row, options)
        total += draws_exact.compare(q, drawn.index[i], uniforms[i])
        same = same and drawn.kept[i] == (q > 0).sum()
    return total, bool(same)


def same_uniforms(quick: bool) -> Section:
    """Draws beside the classes that float64 cumulative sums say."""
    rows, samples = (2, 200) if quick else (4, 25_000)
    cells, totals, kept = [], Compared(), True
    for classes in (1_000, 2_100) if quick else (1_000, 32_000, 128_256, 262_144):
        for kind, z in kinds_of_rows(rows, classes).items():
            plain, whole = against_sums(z, samples, {"temperature": 0.8})
            cut, same = against_sums(z, samples, CHAIN)
            totals, kept = totals + plain + cut, kept and whole and same
            differ = [f"{each.differ:,} ({figure(each.farthest)})" if each.differ else "0" for each in (plain, cut)]
            cells.append([f"{classes:,}", kind, f"{plain.draws:,}", differ[0], f"{cut.draws:,}", differ[1], yes(same)])
    columns = ["V", "rows", "draws", "differ (by)", "draws with filters", "differ (by)", "as many kept"]
    title = "The same uniforms in float64 cumulative sums: draws that differ, and their largest |u - boundary|"
    found = f"{totals.differ:,} of {totals.draws:,} differ, by at most {figure(totals.farthest)}"
    return [
        Law(f"same class as float64 sums, unless u is within {figure(ROUNDING)}", totals.farthest <= ROUNDING, found),
        Law("as many classes kept as by float64 sorts", kept, f"{len(cells)} matrices of {rows} rows"),
    ], [Table(title, columns, cells)]


# Frequencies


def frequencies(quick: bool) -> Section:
    """Observed and expected draws by decade of p, and chi-square over the head, beside peers."""
    row, draws = draws_mass.make_row(20 if quick else 1), 30_000 if quick else 10_000_000
    ours, theirs = draws_mass.counts_of_ours(row, draws), draws_mass.counts_of_multinomial(row, draws)
    seen = [draws_mass.by_decade(row, each) for each in (ours, theirs)] + [draws_mass.gumbel_by_decade(row, draws)]
    expected = draws_mass.by_decade(row, row.p * draws)
    low, high = draws_mass.interval(expected)
    inside = (seen[0] >= low) & (seen[0] <= high)
    classes = np.bincount(row.decade, minlength=len(expected))
    cells = []
    for k, due in enumerate(expected):
        shown = [f"{int(each[k]):,}{'' if low[k] <= each[k] <= high[k] else ' !'}" for each in seen]
        bounds = f"{int(low[k]):,} to {int(high[k]):,}"
        cells.append([f"1e-{k + 1} to {f'1e-{k}' if k else 1}", f"{classes[k]:,}", f"{due:,.1f}", bounds, *shown])
    p, head = draws_mass.chi_square(row, ours)
    peer, _ = draws_mass.chi_square(row, theirs)
    cells.append(
        [
            f"chi-square, {head:,} classes",
            "",
            "",
            f"p > {draws_mass.UNLIKELY:g}",
            f"p = {p:.2g}",
            f"p = {peer:.2g}",
            "-",
        ]
    )
    columns = ["p", "classes", "expected", "interval", "lastlayer", "torch.multinomial", "float32 Gumbel-max"]
    title = (
        f"{draws:,} draws from one row of {len(row.z):,} classes, likeliest first: observed by decade of p (!: outside)"
    )
    return [
        Law(f"chi-square over {head:,} classes: p > {draws_mass.UNLIKELY:g}", p > draws_mass.UNLIKELY, f"p = {p:.2g}"),
        Law(
            "draws per decade of p, down to 1e-10, within their Poisson interval",
            bool(inside.all()),
            f"{inside.sum()} of {len(inside)} decades",
        ),
    ], [Table(title, columns, cells)]


# What can never be drawn


def forbidden(quick: bool) -> Section:
    """Count draws of classes that are masked, banned, or have a mass of 0."""
    calls, rows, samples, classes = (2, 20, 100, 64) if quick else (90, 250, 4_000, 64)
    rng, hits, drawn = np.random.default_rng(0), 0, 0
    allowed = np.zeros(classes, bool)
    allowed[8:24] = True
    for call in range(calls):
        z = rng.standard_normal((rows, classes), np.float32) * 3
        z[:, :8], z[:, -8:] = -math.inf, -math.inf
        z[:, 24:40] = -3000  # exp(-3000) is 0 in float64
        banned = (np.arange(rows)[:, None], np.arange(40, 56))
        index = lastlayer.categorical(z, samples, seed=SEED, step=call, bans=banned).index
        hits, drawn = hits + int((~allowed[index]).sum()), drawn + index.size
    for call in range(max(1, calls // 9)):
        p = np.where(allowed, rng.random((rows, classes)), 0)
        index = lastlayer.multinomial(p, samples, True, seed=SEED, step=call)
        hits, drawn = hits + int((~allowed[index]).sum()), drawn + index.size
    return [
        Law("classes that are -inf, banned or of mass 0 are never drawn", hits == 0, f"{hits:,} in {drawn:,} draws"),
        Law("nor at u = 0 and u = 1 - 2^-53, behind masked ends", ends(), "4 rows, weights and logits"),
    ], []


def ends() -> bool:
    """Return whether both ends of the uniforms give the first and the last class that can be drawn."""
    z = np.full((2, 3000), -math.inf, np.float32)
    z[:, 1100:2100] = np.random.default_rng(0).standard_normal((2, 1000))
    u = np.array([[0.0], [LAST]])
    rules, backend = _draws.Rules(np.ones(2)), _backends.choose(z)
    if not hasattr(backend, "draw"):
        backend = _backends.reference
    index = backend.draw(z, u, rules, _draws.STEPS, None, True).index
    weights, _ = backend.multinomial(np.exp(z.astype(np.float64)), u, True)
    return bool(index.tolist() == weights.tolist() == [[1100], [2099]])


# What a draw may not depend on


def invariances(quick: bool) -> Section:
    """Compare indices bit by bit."""
    rng = np.random.default_rng(0)
    z = (rng.standard_normal((12, 300) if quick else (32, 20_000)) * 5).astype(np.float32)
    settings: list[dict[str, Any]] = [{"temperature": 0.8}, CHAIN]
    found = {
        name: all(draws_ways.same(z, options, other, **asked) for options in settings)
        for name, asked, other in draws_ways.ways(z)
    }
    found |= dict(draws_ways.tiles(2_000 if quick else 40_000))
    found |= dict(draws_ways.shards(z, settings, () if quick else (2, 3)))
    table = Table(
        f"Indices bit by bit, {len(z)} rows of {z.shape[1]:,}, 4 draws each, with and without filters",
        ["what must not matter", "same"],
        [[name, yes(holds)] for name, holds in found.items()],
    )
    return [Law("same indices whatever else is different", all(found.values()), f"{len(found)} ways")], [table]


# Kept sets


def small_rows() -> dict[str, Row]:
    """Return rows that are hard to cut."""
    rng = np.random.default_rng(0)
    one, normal = np.full(7, -math.inf), rng.standard_normal(40) * 2
    one[4] = 3.0
    rows = {
        "normal": normal,
        "ties": np.round(normal),
        "plateau": np.zeros(10),
        "two plateaus": np.repeat([1.0, 0.0], [3, 30]),
        "masked ends": np.concatenate([[-math.inf] * 3, normal, [-math.inf]]),
        "all -inf but one": one,
        "V = 1": np.zeros(1),
        "long tail": -np.log(np.arange(1.0, 400.0)),
        "across blocks": rng.standard_normal(2500),
    }
    return {name: row.astype(np.float32) for name, row in rows.items()}


VALUES: dict[str, tuple[float, ...]] = {
    "top_k": (1, 3, 7, 5_000, 0, -1),
    "top_p": (0.0, 0.3, 0.5, 0.9, 1 - 1e-7, 1.0),
    "min_p": (0.0, 0.1, 0.5, 1.0),
    "typical_p": (0.0, 0.2, 0.9, 1 - 1e-7, 1.0),
    "epsilon_cutoff": (0.0, 1e-3, 0.2, 1.0),
    "eta_cutoff": (0.0, 1e-3, 0.3, 1.0),
    "top_n_sigma": (0.0, 0.5, 1.0, math.inf),
}
SEVERAL: tuple[dict[str, Any], ...] = (
    CHAIN,
    {"temperature": 1.7, "top_k": 20, "top_p": 1 - 1e-7, "min_p": 0.01, "typical_p": 0.95},
    {"temperature": 0.5, "top_n_sigma": 2.0, "epsilon_cutoff": 3e-3, "eta_cutoff": 1e-2},
)


def is_kept_set(z: Row, options: dict[str, Any], order: str) -> bool:
    """Return whether what is drawn, one after the other until nothing is left, is what a float64 sort keeps."""
    steps = {"transformers": draws_exact.TRANSFORMERS, "llama.cpp": draws_exact.LLAMA}[order]
    expected = np.flatnonzero(draws_exact.distribution(z.astype(np.float64), options, steps))
    asked = {"replacement": False, "seed": SEED, "order": order, **options}
    kept = int(lastlayer.categorical(z, seed=SEED, order=order, **options).kept)
    if kept != len(expected):
        return False
    return np.array_equal(np.sort(lastlayer.categorical(z, kept, **asked).index), expected)


def kept_sets(quick: bool) -> Section:
    """Compare kept sets with a float64 sort's."""
    settings = [({name: value}, "transformers") for name, values in VALUES.items() for value in values]
    settings += [(options, order) for options in SEVERAL for order in ("transformers", "llama.cpp")]
    cells, equal, total = [], 0, 0
    for name, z in small_rows().items():
        wrong = [f"{options}, {order}" for options, order in settings if not is_kept_set(z, options, order)]
        cells.append([name, f"{len(z):,}", f"{len(settings) - len(wrong)} of {len(settings)}", "; ".join(wrong) or "-"])
        equal, total = equal + len(settings) - len(wrong), total + len(settings)
    table = Table("Kept sets beside a float64 sort's, drawn until nothing is left", ["row", "V", "equal", "not"], cells)
    law = Law(
        "kept sets are a float64 sort's (ties, plateaus, k > V, p = 0, 1 - 1e-7, 1)",
        equal == total,
        f"{equal} of {total}",
    )
    return [law], [table]


# Errors


def errors(quick: bool) -> Section:
    """Ask for draws where there is no distribution."""
    rows = {"NaN": [0.0, math.nan], "+inf": [0.0, math.inf], "nothing but -inf": [-math.inf] * 2}
    weights = {"NaN": [0.5, math.nan], "a negative weight": [0.5, -0.5], "zeros": [0.0, 0.0]}
    asked: list[tuple[str, Any]] = [
        (f"{n}, logits", lambda a=r: lastlayer.categorical(a, seed=0)) for n, r in rows.items()
    ]
    asked += [(f"{n}, tensor", lambda a=r: F.categorical(torch.tensor(a), seed=0)) for n, r in rows.items()]
    asked += [(f"{n}, weights", lambda a=r: lastlayer.multinomial(a, 1, seed=0)) for n, r in weights.items()]
    silent = []
    for name, call in asked:
        try:
            call()
            silent.append(name)
        except ValueError:
            continue
    found = f"no error for {', '.join(silent)}" if silent else f"{len(asked)} of {len(asked)}"
    return [Law("NaN, +inf, nothing but -inf, bad weights: ValueError", not silent, found)], []


SECTIONS = (same_uniforms, frequencies, forbidden, invariances, kept_sets, errors)


def certify(quick: bool) -> Section:
    """Return all laws and tables."""
    laws: list[Law] = []
    tables: list[Table] = []
    for section in SECTIONS:
        begin = time.perf_counter()
        some, made = section(quick)
        laws, tables = laws + some, tables + made
        print(f"{section.__name__}: {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
    return laws, [Table("Laws", ["law", "holds", "found"], [[w, yes(h), f] for w, h, f in laws]), *tables]


def main(argv: list[str] | None = None) -> int:
    """Print the certificate; return 1 if a law fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small rows and few draws: does it run?")
    parser.add_argument("--json", type=Path, help="write the laws there")
    parser.add_argument("--write", type=Path, help="replace the certificate in this document")
    options = parser.parse_args(argv)
    laws, tables = certify(options.quick)
    lines = [f"{machine.processor()}, {machine.instruction_set()}. {machine.versions()}."]
    print(draws_report.plain(lines, tables))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([law._asdict() for law in laws], indent=1))
    if options.write:
        draws_report.write(options.write, "certificate", draws_report.markdown(lines, tables))
    return 0 if all(law.holds for law in laws) else 1


if __name__ == "__main__":
    sys.exit(main())
