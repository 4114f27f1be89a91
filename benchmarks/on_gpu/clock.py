"""Seconds on a device: CUDA events, inputs in turn so that no cache holds them, all competitors in turn in each round.

A job is a function of the number of its input. First the gate, into memory full of NaN: a result of ours that exceeds
the budget of exact.py ends the run, a peer that fails or is far off becomes a row that says so. Then the rounds;
the launches of a timing hide behind a pause of the device, so that a timing is the device's, and a ``call`` is the
caller's. On a CPU, for tests of the logic, a wall clock takes the place of the events.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from timed.rounds import Wrong, is_ours
from torch import Tensor

from on_gpu.table import Row

Job = Callable[[int], Any]
Judge = Callable[[Any], float]  # the error of a result, in budgets: at most 1 is right

FAR = 100.0  # budgets, of 2^-8 of a 16-bit result: beyond that a peer computes something else
CYCLES = 2_000_000_000  # per second, about: a pause that is longer than asked for does no harm
LONGEST_PAUSE = 0.01  # seconds
MOST_CALLS = 50  # of a timing, so that the device's queue of launches holds them
CACHE = 64 << 20  # bytes of the largest cache that inputs must not fit into


class Effort(NamedTuple):
    """Rounds, seconds after which no further one begins, and seconds that one timing takes at least."""

    rounds: int
    seconds: float
    block: float


class Times(NamedTuple):
    """Seconds of a job by the device's clock (least, median, most), and of a call by the caller's."""

    seconds: tuple[float, float, float]
    call: float
    note: str = ""

    @property
    def median(self) -> float:
        """The figure that ratios are made of."""
        return self.seconds[1]


@dataclass
class Bench:
    """Where and how hard to measure, and who is not there."""

    device: torch.device
    tiny: bool
    effort: Effort
    without: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def cuda(self) -> bool:
        """Whether there are events, streams and counters of memory."""
        return self.device.type == "cuda"

    def generator(self, seed: int = 0) -> torch.Generator:
        """Return a generator on the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0, seed: int = 0) -> Tensor:
        """Return normal numbers on the device."""
        given = torch.empty(shape, dtype=dtype, device=self.device)
        return given.normal_(0.0, scale, generator=self.generator(seed))

    def classes(self, rows: int, classes: int, seed: int = 0) -> Tensor:
        """Return uniform targets on the device."""
        return torch.randint(classes, (rows,), device=self.device, generator=self.generator(seed))

    def copies(self, size: int) -> int:
        """Return how many inputs of so many bytes, taken in turn, no cache holds."""
        return 1 if size >= 4 * CACHE or self.tiny else 1 + math.ceil(4 * CACHE / size)

    def wait(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def tidy(self) -> None:
        """Give unused memory back."""
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()

    def poison(self, size: int = 1 << 30) -> None:
        """Fill memory that is free with NaN: what a kernel forgets to write is then not right by chance."""
        whole = torch.full((min(size, 1 << 20 if self.tiny else size) // 4,), math.nan, device=self.device)
        parts = [torch.full((1 << n,), math.nan, device=self.device) for n in range(6, 18)]
        self.wait()
        del whole, parts


def timed(bench: Bench, job: Job, first: int, calls: int, pause: float) -> float:
    """Return the device's seconds per call."""
    if not bench.cuda:
        return called(bench, job, first, calls)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    bench.wait()
    if pause:
        torch.cuda._sleep(int(pause * CYCLES))
    start.record()
    for i in range(calls):
        job(first + i)
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) * 1e-3 / calls


def called(bench: Bench, job: Job, first: int, calls: int) -> float:
    """Return the caller's seconds per call, the device's answer included."""
    bench.wait()
    begin = time.perf_counter()
    for i in range(calls):
        job(first + i)
    bench.wait()
    return (time.perf_counter() - begin) / calls


def warmed(bench: Bench, job: Job) -> tuple[int, float]:
    """Return how many calls make one timing, and for how long the device must pause while they are launched."""
    job(0)
    seconds = called(bench, job, 1, 1)
    calls = min(MOST_CALLS, max(1, math.ceil(bench.effort.block / seconds)))
    bench.wait()
    begin = time.perf_counter()
    for i in range(calls):
        job(i)
    launches = time.perf_counter() - begin
    bench.wait()
    return calls, min(1.5 * launches, LONGEST_PAUSE)


def reason_of(error: Exception) -> str:
    """Return what went wrong, in one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep Python's collector of garbage out of the timings."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def interleaved(bench: Bench, jobs: dict[str, Job]) -> dict[str, Times | str]:
    """Return the times of each job, or why it has none; who begins changes with the round."""
    found: dict[str, Times | str] = {}
    ready: dict[str, tuple[int, float]] = {}
    for name, job in jobs.items():
        try:
            ready[name] = warmed(bench, job)
        except Exception as error:
            if is_ours(name):
                raise
            found[name] = reason_of(error)
            bench.tidy()
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    calls: dict[str, list[float]] = {name: [] for name in ready}
    begin, names = time.perf_counter(), list(ready)
    with without_collector():
        for turn in range(bench.effort.rounds):
            if turn >= 3 and time.perf_counter() - begin > bench.effort.seconds:
                break
            for i in range(len(names)):
                name = names[(turn + i) % len(names)]
                count, pause = ready[name]
                seconds[name].append(timed(bench, jobs[name], turn * count, count, pause))
                calls[name].append(called(bench, jobs[name], turn * count + 1, count))
    for name, each in seconds.items():
        found[name] = Times((min(each), statistics.median(each), max(each)), statistics.median(calls[name]))
    return {name: found[name] for name in jobs}


def admitted(bench: Bench, jobs: dict[str, Job], judge: Judge, where: str) -> tuple[dict[str, Job], dict[str, str]]:
    """Return the jobs whose results are right, and what is to be said of each, those left out included."""
    kept, said = {}, {}
    for name, job in jobs.items():
        try:
            bench.poison()
            error = judge(job(0))
        except Exception as failure:
            if is_ours(name):
                raise
            said[name] = reason_of(failure)
            bench.tidy()
            continue
        said[name] = f"error: {error:.2g} budgets"
        if is_ours(name) and not error <= 1:
            raise Wrong(f"{name}, {where}: the error is {error:.3g} times its budget")
        if error <= (1 if is_ours(name) else FAR):
            kept[name] = job
    return kept, said


def measured(
    bench: Bench, where: str, limits: dict[str, Job], jobs: dict[str, Job], judge: Judge
) -> tuple[dict[str, Times], list[Row]]:
    """Pass the gate, time all of them in turn; return the times, and rows without figures for who has none."""
    kept, said = admitted(bench, jobs, judge, where)
    found = interleaved(bench, limits | kept)
    times = {name: each._replace(note=said.get(name, "")) for name, each in found.items() if isinstance(each, Times)}
    said |= {name: each for name, each in found.items() if isinstance(each, str)}
    return times, [Row(where, name, note=note) for name, note in said.items() if name not in times]


def row_of(where: str, who: str, times: Times, figure: float | None = None, **more: Any) -> Row:
    """Return the row of one competitor."""
    return Row(where, who, times.seconds, figure, call=times.call, note=times.note, **more)
