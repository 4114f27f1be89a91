"""Count digits: the worst error in units in the last place (ulp) by type, function and regime, against mpmath.

    python benchmarks/accuracy.py [--write docs/accuracy.md]

Ours beside PyTorch and SciPy, over the rows of tests/corpus.py. With --write the tables between the markers in that
document are replaced. Exits 1 if a promised bound is exceeded.
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
from lastlayer.torch.statistics import row_statistics

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import corpus

FUNCTIONS = ("softmax", "log_softmax", "logsumexp", "cross_entropy", "entropy", "gradient")
TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float64": np.float64}
KINDS = (*TYPES, "bfloat16 to float32", "float16 to float32")
REGIMES = (
    "diffuse", "peaked", "confident", "offset 1e4", "offset 1e6", "subnormal tails", "masked", "near tie",
)  # fmt: skip
PEER = f"torch {torch.__version__.split('+')[0]}"
# A power of two at least 1.5 times the worst that any instruction set shows; 16-bit types are rounded once.
BOUNDS = {
    "float32": 4.0,
    "bfloat16 to float32": 4.0,
    "float16 to float32": 4.0,
    "bfloat16": 0.55,
    "float16": 0.55,
    "float64": 8.0,
    ("float64", "logsumexp"): 4.0,
}
Compute = Callable[[Any, str, Any], dict[str, Any]]
Results = dict[tuple[str, str, str, str], float]


def bound(kind: str, function: str) -> float:
    """Return the promised bound in ulp, the same in every regime."""
    return BOUNDS.get((kind, function), BOUNDS[kind])  # type: ignore[call-overload, no-any-return]


def targets_of(row: Any) -> Any:
    """Return the targets whose losses are judged, at most 100; the gradient is of the first three."""
    z = row.astype(np.float64)
    classes = np.random.default_rng(len(z)).permutation(len(z))[:98]
    return np.append([z.argmax(), z.argmin()], classes)


def as_tensor(row: Any, kind: str) -> torch.Tensor:
    """Return a row as a tensor of the same type."""
    if kind == "bfloat16":
        return torch.from_numpy(row.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(row.copy())


def of_torch(module: Any, logsumexp: Callable[..., Any], entropy: Callable[..., Any]) -> Compute:
    """Return a function that computes everything with a module that has torch.nn.functional's names."""

    def compute(row: Any, kind: str, targets: Any) -> dict[str, Any]:
        z, y = as_tensor(row, kind), torch.from_numpy(targets)
        leaf = z.expand(3, -1).clone().requires_grad_()
        module.cross_entropy(leaf, y[:3], reduction="sum").backward()  # each row's gradient as of a mean over one row
        results = {
            "softmax": module.softmax(z, -1),
            "log_softmax": module.log_softmax(z, -1),
            "logsumexp": logsumexp(z, -1),
            "cross_entropy": module.cross_entropy(z.expand(len(y), -1), y, reduction="none"),
            "entropy": entropy(z),
            "gradient": leaf.grad,
        }
        return {name: value.double().numpy() for name, value in results.items()}

    return compute


def entropy_of_torch(z: torch.Tensor) -> torch.Tensor:
    """Compute as torch does."""
    return torch.distributions.Categorical(logits=z, validate_args=False).entropy()


def entropy_of_lastlayer_torch(z: torch.Tensor) -> torch.Tensor:
    """Round our statistic to the type: it has no public name in lastlayer.torch, as it has none in torch."""
    return row_statistics(z[None], entropy=True).entropy[0].to(z.dtype)  # type: ignore[no-any-return]


def of_lastlayer(row: Any, kind: str, targets: Any) -> dict[str, Any]:
    """Compute everything with the NumPy front end."""
    every = np.broadcast_to(row, (len(targets), len(row)))
    return {
        "softmax": lastlayer.softmax(row),
        "log_softmax": lastlayer.log_softmax(row),
        "logsumexp": lastlayer.logsumexp(row),
        "cross_entropy": lastlayer.cross_entropy(every, targets, reduction="none"),
        "entropy": lastlayer.entropy(logits=row),
        "gradient": lastlayer.cross_entropy_value_and_grad(every[:3], targets[:3], reduction="sum")[1],
    }


def of_scipy(row: Any, kind: str, targets: Any) -> dict[str, Any]:
    """Compute with SciPy, which has no 16-bit types of its own to speak of."""
    if kind not in ("float32", "float64"):
        return {}
    with np.errstate(all="ignore"):
        logs = scipy.special.log_softmax(row)
        return {
            "softmax": scipy.special.softmax(row),
            "log_softmax": logs,
            "logsumexp": scipy.special.logsumexp(row),
            "cross_entropy": -logs[targets],
        }


LIBRARIES: dict[str, Compute] = {
    "lastlayer": of_lastlayer,
    "lastlayer.torch": of_torch(lastlayer.torch, lastlayer.torch.logsumexp, entropy_of_lastlayer_torch),
    PEER: of_torch(torch.nn.functional, torch.logsumexp, entropy_of_torch),
    f"SciPy {scipy.__version__}": of_scipy,
}


def measure(libraries: dict[str, Compute], kinds: Any = tuple(TYPES)) -> Results:
    """Return the worst ulp by (library, type, function, regime)."""
    worst: Results = {}
    for kind in kinds:
        for regime, row in corpus.rows(TYPES[kind]):
            exact, targets = corpus.exact(row), targets_of(row)
            truth = exact._asdict()
            truth["cross_entropy"] = -exact.log_softmax[targets]
            truth["gradient"] = np.stack([exact.gradient(y) for y in targets[:3]])
            for name, compute in libraries.items():
                for function, got in compute(row, kind, targets).items():
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


def by_function(worst: Results) -> list[str]:
    """Return the table of types and functions, the worst of all regimes."""
    names = list(LIBRARIES)
    lines = [f"| type | function | bound | {' | '.join(names)} |", "|---|---|---|" + "---|" * len(names)]
    for kind in KINDS:
        for function in FUNCTIONS:
            figures = [text(over_regimes(worst, name, kind, function)) for name in names]
            if set(figures) != {"-"}:
                lines.append(f"| {kind} | {function} | {bound(kind, function):g} | {' | '.join(figures)} |")
    return lines


def by_regime(worst: Results) -> list[str]:
    """Return the table of types and regimes: ours / torch's."""
    lines = [f"| type | regime | {' | '.join(FUNCTIONS)} |", "|---|---|" + "---|" * len(FUNCTIONS)]
    for kind in TYPES:
        for regime in REGIMES:
            pairs = [[worst.get((n, kind, f, regime)) for n in ("lastlayer.torch", PEER)] for f in FUNCTIONS]
            if pairs[0] != [None, None]:
                lines.append(f"| {kind} | {regime} | {' | '.join(' / '.join(map(text, pair)) for pair in pairs)} |")
    return lines


def tables(worst: Results) -> str:
    """Return both tables as Markdown."""
    return "\n".join(
        [
            "The worst of all regimes:",
            "",
            *by_function(worst),
            "",
            f"By regime, `lastlayer.torch` / {PEER}:",
            "",
            *by_regime(worst),
            "",
            f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}.",
        ]
    )


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
