"""Operations on logits (N, V), float32: sizes, and the time of each competitor beside the limits that memory sets."""

from __future__ import annotations

from typing import Any

from timed import peers, rounds
from timed.rounds import Effort, Jobs

SIZES = [
    *((1_000_000, 2), (100_000, 10), (65_536, 64), (8_192, 1_000), (512, 32_000)),
    *((256, 128_256), (64, 262_144), (1, 1_000_000)),
]
# The same class counts, about 256 MB each: larger than any cache.
LARGE = [(65_536, 1_000), (2_048, 32_000), (512, 128_256), (256, 262_144), (64, 1_000_000)]
LARGE_FEW_CLASSES = [(33_554_432, 2), (6_710_886, 10), (1_048_576, 64)]
QUICK = [(2_000, 2), (1, 100_000)]

# Not timed on the large sizes, which take long enough.
ONLY_ON_SIZES = ("SciPy", "lastlayer (NumPy)")


def sizes(quick: bool, full: bool) -> list[tuple[int, int]]:
    """Return rows and classes of what is timed."""
    if quick:
        return QUICK
    return SIZES + LARGE + (LARGE_FEW_CLASSES if full else [])


def by_operation(logits: peers.Logits, names: list[str], left_out: list[str]) -> Jobs:
    """Return the jobs of the competitors that are installed."""
    jobs: Jobs = {}
    for name in names:
        try:
            of = peers.PEERS[name](logits)
        except ImportError as error:
            left_out.append(f"{name}: not installed ({error})")
            continue
        for operation, job in of.items():
            jobs.setdefault(operation, {})[name] = job
    return jobs


def references(logits: peers.Logits, operations: list[str]) -> dict[str, Any]:
    """Return what each operation must give: PyTorch's in float64."""
    z, y, p, touched = logits
    precise = peers.Logits(z.double(), y, None if p is None else p.double(), touched.double())
    of = peers.of_pytorch(precise)
    same = {"gradient out=": "step"}
    plain = [operation.removesuffix(", one thread").removesuffix(" bfloat16") for operation in operations]
    expected = {o: of[same.get(name, name)] for o, name in zip(operations, plain, strict=True)}
    if any("bfloat16" in operation for operation in operations):
        rounded = peers.of_pytorch(precise._replace(z=z.bfloat16().double()))
        expected |= {o: rounded[name] for o, name in zip(operations, plain, strict=True) if "bfloat16" in o}
    return expected


def measure(rows: int, classes: int, names: list[str], effort: Effort, left_out: list[str]) -> dict[str, Any]:
    """Return the median seconds by operation and competitor, for one size."""
    logits = peers.random_logits(rows, classes)
    if (rows, classes) in LARGE + LARGE_FEW_CLASSES:
        names = [name for name in names if name not in ONLY_ON_SIZES]
    jobs = by_operation(logits, names, left_out)
    where = f"{rows:,} x {classes:,}"
    passed = rounds.gate(jobs, references(logits, list(jobs)), effort.patience, where, left_out)
    seconds = rounds.interleaved({"limit": peers.limits(logits), **passed}, effort)
    return {"rows": rows, "classes": classes, "bytes": 4 * rows * classes, "seconds": seconds}
