"""The picture: multiples of the limit by class count, forward beside forward and backward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timed.bars import of

PANELS = [
    ("forward", "read", "Forward", "one read, z.sum()"),
    ("step", "clone", "Forward and backward", "one fresh copy, z.clone()"),
]
# From Okabe and Ito's palette, told apart by any eye; markers tell them apart without colour.
LINES = {
    "lastlayer": ("#0072B2", "o", 2.6),
    "PyTorch": ("#D55E00", "s", 1.5),
    "torch.compile": ("#009E73", "^", 1.5),
    "JAX": ("#7B4FA3", "D", 1.5),
}
CLASSES = {2: "2", 10: "10", 64: "64", 1000: "1,000", 32_000: "32,000", 262_144: "262,144"}
MULTIPLES = (0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500)


def largest(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one result per class count, of the largest array, by class count."""
    by_size = sorted(results, key=lambda r: r["bytes"])
    return [r for _, r in sorted({r["classes"]: r for r in by_size}.items())]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Write the picture of the results on logits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chosen = largest(results)
    with pyplot.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        chart, panels = pyplot.subplots(1, 2, figsize=(8, 3.7), sharey=True, layout="constrained")
        for axes, (operation, limit, title, what) in zip(panels, PANELS, strict=True):
            for name, (color, marker, width) in LINES.items():
                times = [(r["classes"], of(r, operation, name), r["seconds"]["limit"][limit]) for r in chosen]
                points = [(classes, seconds / unit) for classes, seconds, unit in times if seconds]
                if points:
                    style = {"color": color, "marker": marker, "lw": width, "zorder": width + 2}
                    axes.plot(*zip(*points, strict=True), ms=4, label=name, **style)
            axes.axhline(1, color="#333333", lw=1, ls="--")
            axes.set(xscale="log", yscale="log", xlabel="classes")
            axes.set_title(f"{title} (1 = {what})", fontsize=9)
            axes.set_xticks(list(CLASSES), list(CLASSES.values()), fontsize=8)
            axes.minorticks_off()
            axes.grid(axis="y", color="#dddddd", lw=0.6)
        low, high = panels[0].get_ylim()
        marks = [mark for mark in MULTIPLES if low <= mark <= high]
        panels[0].set_yticks(marks, [f"{mark:g} x" for mark in marks])
        panels[0].set_ylabel("time, in multiples of the limit")
        handles, labels = panels[0].get_legend_handles_labels()
        chart.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)), frameon=False)
        chart.savefig(path, dpi=200, facecolor="white", metadata={"Software": None})
        pyplot.close(chart)
