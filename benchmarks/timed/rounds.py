"""First right, then fast: the gate that every result must pass, and the rounds in which all competitors take turns.

Jobs are grouped by operation: operation -> competitor -> job. Ours are the competitors whose name begins with
"lastlayer": a wrong result of theirs is an error. A peer that is wrong, fails or is too slow is left out and named.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Job = Callable[[], Any]
Jobs = dict[str, dict[str, Job]]
Seconds = dict[str, dict[str, float]]

# Of ours in float32; of peers, which lose digits in long sums; and of bfloat16, which has 8 bits.
AGREEMENT = 1e-5
AGREEMENT_OF_PEERS = 1e-3
AGREEMENT_BFLOAT16 = 2**-7

BLOCK = 0.02  # seconds that one timing takes at least: a short job is called often
LEAST_ROUNDS = 3
ELEMENTS = 1 << 20  # compared at a time


class Wrong(Exception):
    """A result of ours that differs from the reference."""


class Effort(NamedTuple):
    """How much time to spend: rounds, seconds after which no further round begins, seconds a peer's call may take."""

    rounds: int = 9
    seconds: float = 12.0
    patience: float = 2.0


def is_ours(name: str) -> bool:
    """Return whether a competitor is this library."""
    return name.startswith("lastlayer")


def tensor(value: Any) -> Tensor:
    """Return a result of any library as a tensor, flat."""
    if not isinstance(value, Tensor):
        value = torch.from_dlpack(value) if hasattr(value, "__dlpack__") else torch.as_tensor(value)
    return value.detach().reshape(-1)  # type: ignore[no-any-return]


def parts(result: Any) -> tuple[Tensor, ...]:
    """Return what a job gave, a loss or loss and gradient, as flat tensors."""
    return tuple(map(tensor, result if isinstance(result, tuple) else (result,)))


def distance(a: Tensor, b: Tensor) -> float:
    """Return the larger of ||a - b|| / ||b|| and max|a - b| / max|b|; infinity where they cannot be compared."""
    if len(a) != len(b):
        return math.inf
    norms, highest = list[float](), list[float]()
    for x, y in zip(a.split(ELEMENTS), b.split(ELEMENTS), strict=True):
        error = x.double() - y
        norms.append(float(error.norm()))
        highest.append(float(error.abs().max()))
    norm = math.hypot(*norms) / float(b.norm())
    return max(norm, max(highest) / float(b.abs().max())) if math.isfinite(norm) else math.inf


def difference(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Return the largest distance over the parts."""
    return max(distance(a, b) for a, b in zip(got, expected, strict=True))


def timed(job: Job, calls: int = 1) -> float:
    """Return the seconds per call."""
    begin = time.perf_counter()
    for _ in range(calls):
        job()
    return (time.perf_counter() - begin) / calls


def agreement(name: str, operation: str) -> float:
    """Return how far from the reference a result may be."""
    if "bfloat16" in operation:
        return AGREEMENT_BFLOAT16
    return AGREEMENT if is_ours(name) else AGREEMENT_OF_PEERS


def objection(name: str, job: Job, expected: tuple[Tensor, ...], most: float, patience: float) -> str | None:
    """Return what is wrong with a job, None if nothing is."""
    begin = time.perf_counter()
    result = job()
    seconds = time.perf_counter() - begin
    error = difference(parts(result), expected)
    if not error <= most:
        return f"differs from float64 by {error:.1e}"
    # The first call may have compiled: a second one tells.
    if is_ours(name) or seconds <= patience or (seconds := timed(job)) <= patience:
        return None
    return f"takes {seconds:.1f} s"


def gate(jobs: Jobs, expected: Mapping[str, Job], patience: float, where: str, left_out: list[str]) -> Jobs:
    """Return the jobs that give what the float64 reference gives, and soon enough; name the others."""
    kept: Jobs = {operation: {} for operation in jobs}
    for operation, competitors in jobs.items():
        truth = parts(expected[operation]())
        for name, job in competitors.items():
            try:
                reason = objection(name, job, truth, agreement(name, operation), patience)
            except Exception as error:
                if is_ours(name):
                    raise
                reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            if reason is None:
                kept[operation][name] = job
            elif is_ours(name):
                raise Wrong(f"{name}, {operation}, {where}: {reason}")
            else:
                left_out.append(f"{name}, {operation}, {where}: {reason}")
    return kept


def block(job: Job) -> int:
    """Return how many calls make one timing; this is the round that warms up."""
    seconds = timed(job)
    if seconds < BLOCK:
        seconds = timed(job)
    return max(1, math.ceil(BLOCK / seconds))


def interleaved(jobs: Jobs, effort: Effort) -> Seconds:
    """Return each job's median over the rounds. The first round warms up; who begins changes with the round."""
    times = {operation: {name: list[float]() for name in competitors} for operation, competitors in jobs.items()}
    calls = {operation: {name: block(job) for name, job in group.items()} for operation, group in jobs.items()}
    gc.collect()
    gc.disable()
    begin = time.perf_counter()
    for turn in range(effort.rounds):
        if turn >= LEAST_ROUNDS and time.perf_counter() - begin > effort.seconds:
            break
        for operation, competitors in jobs.items():
            names = list(competitors)
            first = turn % max(1, len(names))
            for name in names[first:] + names[:first]:
                times[operation][name].append(timed(competitors[name], calls[operation][name]))
    gc.enable()
    return {o: {name: statistics.median(t) for name, t in group.items()} for o, group in times.items()}
