"""Count digits: the worst error in units in the last place (ulp) over an adversarial corpus, against mpmath.

    python benchmarks/accuracy.py [--write docs/accuracy.md]

Ours beside PyTorch and SciPy, per type and function, and per regime. With --write the tables between the markers in
that document are replaced. Exits 1 if a promised bound is exceeded.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import scipy.special
import torch

import lastlayer
import lastlayer.torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import corpus

FUNCTIONS = ("softmax", "log_softmax", "logsumexp", "cross_entropy")
TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float64": np.float64}
KINDS = (*TYPES, "bfloat16 to float32", "float16 to float32")
BOUNDS = {
    "float32": 4.0,
    "bfloat16 to float32": 4.0,
    "float16 to float32": 4.0,
    "bfloat16": 0.55,
    "float16": 0.55,
    "float64": 16.0,
    ("float64", "logsumexp"): 4.0,
}
Results = dict[tuple[str, str, str, str], float]


def bound(kind: str, function: str) -> float:
    """Return the promised bound in ulp."""
    return BOUNDS.get((kind, function), BOUNDS[kind])  # type: ignore[call-overload, no-any-return]


def as_tensor(row: Any, kind: str) -> torch.Tensor:
    """Return a row as a tensor of the same type."""
    if kind == "bfloat16":
        return torch.from_numpy(row.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(row.copy())


def of_torch(module: Any, logsumexp: Callable[..., Any]) -> Callable[[Any, str], dict[str, Any]]:
    """Return a function that computes all four with a module that has torch.nn.functional's names."""

    def compute(row: Any, kind: str) -> dict[str, Any]:
        z = as_tensor(row, kind)
        every = z.expand(len(row), -1)
        results = {
            "softmax": module.softmax(z, -1),
            "log_softmax": module.log_softmax(z, -1),
            "logsumexp": logsumexp(z, -1),
            "cross_entropy": module.cross_entropy(every, torch.arange(len(row)), reduction="none"),
        }
        return {name: value.double().numpy() for name, value in results.items()}

    return compute


def of_lastlayer(row: Any, kind: str) -> dict[str, Any]:
    """Compute all four with the NumPy front end."""
    every = np.broadcast_to(row, (len(row), len(row)))
    return {
        "softmax": lastlayer.softmax(row),
        "log_softmax": lastlayer.log_softmax(row),
        "logsumexp": lastlayer.logsumexp(row),
        "cross_entropy": lastlayer.cross_entropy(every, np.arange(len(row)), reduction="none"),
    }


def of_scipy(row: Any, kind: str) -> dict[str, Any]:
    """Compute with SciPy, which has no 16-bit types of its own to speak of."""
    if kind not in ("float32", "float64"):
        return {}
    with np.errstate(all="ignore"):
        logs = scipy.special.log_softmax(row)
        return {
            "softmax": scipy.special.softmax(row),
            "log_softmax": logs,
            "logsumexp": scipy.special.logsumexp(row),
            "cross_entropy": -logs,
        }


LIBRARIES: dict[str, Callable[[Any, str], dict[str, Any]]] = {
    "lastlayer": of_lastlayer,
    "lastlayer.torch": of_torch(lastlayer.torch, lastlayer.torch.logsumexp),
    f"torch {torch.__version__.split('+')[0]}": of_torch(torch.nn.functional, torch.logsumexp),
    f"SciPy {scipy.__version__}": of_scipy,
}


def measure(libraries: dict[str, Callable[[Any, str], dict[str, Any]]], kinds: Any = tuple(TYPES)) -> Results:
    """Return the worst ulp by (library, type, function, regime)."""
    worst: Results = {}
    for kind in kinds:
        for regime, row in corpus.rows(TYPES[kind]):
            exact = corpus.exact(row)
            truth = {"softmax": exact.softmax, "log_softmax": exact.log_softmax, "logsumexp": exact.logsumexp}
            truth["cross_entropy"] = -exact.log_softmax
            for name, compute in libraries.items():
                for function, got in compute(row, kind).items():
                    # A statistic of 16-bit logits is float32 in the NumPy front end: its own row, judged as that.
                    of_result = "float32" if np.asarray(got).dtype == np.float32 else kind
                    key = (name, kind if of_result == kind else f"{kind} to float32", function, regime)
                    error = float(np.max(corpus.ulps(got, truth[function], TYPES[of_result])))
                    worst[key] = max(worst.get(key, 0.0), error)
    return worst


def over_regimes(worst: Results, name: str, kind: str, function: str) -> float | None:
    """Return the worst over all regimes, None if the library was not asked."""
    values = [value for key, value in worst.items() if key[:3] == (name, kind, function)]
    return max(values) if values else None


def text(value: float | None) -> str:
    """Return a figure as the tables show it."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 1000 else "inf" if np.isinf(value) else f"{value:.0e}"


def tables(worst: Results) -> str:
    """Return the two tables as Markdown."""
    names = list(LIBRARIES)
    lines = [f"| type | function | bound | {' | '.join(names)} |", "|---|---|---|" + "---|" * len(names)]
    for kind in KINDS:
        for function in FUNCTIONS:
            figures = [text(over_regimes(worst, name, kind, function)) for name in names]
            if set(figures) == {"-"}:
                continue
            lines.append(f"| {kind} | {function} | {bound(kind, function):g} | {' | '.join(figures)} |")
    regimes = sorted({key[3] for key in worst})
    lines += ["", "`lastlayer.torch` by regime, the worst of the four functions:", ""]
    lines += [f"| type | {' | '.join(regimes)} |", "|---|" + "---|" * len(regimes)]
    for kind in TYPES:
        row = [max(worst["lastlayer.torch", kind, f, regime] for f in FUNCTIONS) for regime in regimes]
        lines.append(f"| {kind} | {' | '.join(map(text, row))} |")
    lines += ["", f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}."]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="replace the tables in this document")
    arguments = parser.parse_args()
    worst = measure(LIBRARIES)
    report = tables(worst)
    print(report)
    if arguments.write:
        old = arguments.write.read_text()
        new = re.sub(r"(<!-- tables -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{report}\n{m[2]}", old, flags=re.S)
        arguments.write.write_text(new)
    broken = [key for key, value in worst.items() if key[0].startswith("lastlayer") and value > bound(key[1], key[2])]
    for key in broken:
        print(f"bound exceeded: {' '.join(key)}: {worst[key]:.3g} ulp > {bound(key[1], key[2]):g}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
