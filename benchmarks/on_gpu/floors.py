"""What nothing can be faster than: bandwidth of a copy and of a read, and the bare products of a head.

``Shape`` and ``Head`` are here too: a head's inputs, and its products h W', dz W and dz' h with 16-bit operands, each
with a 16-bit result and, where torch has ``out_dtype``, with one in float32. Those who are compared with these floors
are in logits.py and heads.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from timed.rounds import Wrong
from torch import Tensor

import lastlayer.torch as F
from on_gpu.clock import Bench, Job, Times, interleaved, row_of
from on_gpu.exact import rows_excess
from on_gpu.table import Found, Row

COPIED = (8_192, 131_072)  # bfloat16: 2.1 GB
TINY_COPIED = (64, 96)


class Shape(NamedTuple):
    """Sizes of a head: rows, features, classes."""

    N: int
    D: int
    V: int

    def __str__(self) -> str:
        return f"N {self.N:,}, D {self.D:,}, V {self.V:,}"


SHAPES = [Shape(N, 4_096, 128_256) for N in (1_024, 4_096, 8_192, 16_384)]
TINY_SHAPES = [Shape(24, 16, 200)]


@dataclass
class Head:
    """The inputs of a head and room for its bare products; logits have a standard deviation of about 1.3."""

    bench: Bench
    shape: Shape

    @cached_property
    def h(self) -> Tensor:
        """Hidden states (N, D)."""
        return self.bench.normal(self.shape.N, self.shape.D)

    @cached_property
    def W(self) -> Tensor:
        """The weight (V, D)."""
        return self.bench.normal(self.shape.V, self.shape.D, scale=0.02, seed=1)

    @cached_property
    def y(self) -> Tensor:
        """Targets (N)."""
        return self.bench.classes(self.shape.N, self.shape.V)

    @cached_property
    def a(self) -> Tensor:
        """Advantages (N)."""
        return self.bench.normal(self.shape.N, dtype=torch.float32, seed=2)

    @cached_property
    def dz(self) -> Tensor:
        """What stands for the gradient of the logits: random, since zeros draw less power and run faster."""
        return self.bench.normal(self.shape.N, self.shape.V, scale=1e-3, seed=3)

    def empty(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return room for a product."""
        return torch.empty(rows, columns, dtype=dtype, device=self.bench.device)

    def products(self, dtype: torch.dtype) -> dict[str, Job]:
        """Return the three products, each into room of its own, with results of a type (dz W always of 16 bits)."""
        N, D, V = self.shape
        z, dh, dW = self.empty(N, V, dtype), self.empty(N, D, self.h.dtype), self.empty(V, D, dtype)
        return {
            "h W'": lambda i: multiply(self.h, self.W.T, z),
            "dz W": lambda i: multiply(self.dz, self.W, dh),
            "dz' h": lambda i: multiply(self.dz.T, self.h, dW),
        }

    def floors(self, count: int = 3) -> dict[str, Job]:
        """Return three or four products as one job, in each type of result that this torch can make."""
        found = {}
        for name, dtype in kinds(self.bench).items():
            first, second, third = self.products(dtype).values()
            jobs = [first] * (count - 2) + [second, third]
            found[f"{('three', 'four')[count - 3]} products, {name}"] = in_a_row(jobs)
        return found


def kinds(bench: Bench) -> dict[str, torch.dtype]:
    """Return the types of results that this torch can make here of 16-bit operands."""
    found = {"bf16 out": torch.bfloat16}
    return found | ({"float32 out": torch.float32} if bench.cuda and hasattr(torch.ops.aten.mm, "dtype_out") else {})


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write a b."""
    if out.dtype == a.dtype:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


def in_a_row(jobs: list[Job]) -> Job:
    """Return all of them as one job."""

    def run(i: int) -> None:
        for job in jobs:
            job(i)

    return run


def least(times: dict[str, Times], floors: dict[str, Job]) -> float | None:
    """Return the seconds of the fastest floor."""
    return min((times[name].median for name in floors if name in times), default=None)


def bandwidth(bench: Bench) -> Found:
    """Return the rates of a copy, of torch's reduction and of our logsumexp, on an array larger than any cache."""
    N, V = TINY_COPIED if bench.tiny else COPIED
    z = bench.normal(N, V)
    size = z.numel() * z.element_size()
    with torch.no_grad():
        jobs: dict[str, Job] = {
            "copy, z.clone()": lambda i: z.clone(),
            "read, z.amax(-1)": lambda i: z.amax(-1),
            "read, z.amax()": lambda i: z.amax(),
            "lastlayer logsumexp": lambda i: F.logsumexp(z, -1),
        }
        if not (error := rows_excess("logsumexp", z, jobs["lastlayer logsumexp"](0))) <= 1:
            raise Wrong(f"logsumexp of {N:,} x {V:,}: the error is {error:.3g} times its budget")
        found = interleaved(bench, jobs)
    rows = []
    for name, times in found.items():
        moved = 2 * size if name.startswith("copy") else size
        if isinstance(times, str):
            rows.append(Row(f"{size / 1e9:.3g} GB", name, note=times))
        else:
            rows.append(row_of(f"{size / 1e9:.3g} GB", name, times, moved / times.median / 1e9))
    return Found("Bandwidth: bytes read and written", "GB/s", rows)


def products(bench: Bench) -> Found:
    """Return the bare products one by one: rates in 10^12 operations per second."""
    rows: list[Row] = []
    for shape in TINY_SHAPES if bench.tiny else SHAPES:
        head = Head(bench, shape)
        jobs: dict[str, Job] = {}
        for label, dtype in kinds(bench).items():
            jobs |= {f"{name}, {label}": job for name, job in head.products(dtype).items()}
        jobs.pop("dz W, float32 out", None)  # the same job as with a 16-bit result
        operations = 2.0 * shape.N * shape.D * shape.V
        for name, times in interleaved(bench, jobs).items():
            if isinstance(times, str):
                rows.append(Row(str(shape), name, note=times))
            else:
                rows.append(row_of(str(shape), name, times, operations / times.median / 1e12))
        del head, jobs
        bench.tidy()
    return Found("Bare products", "10^12 operations per second", rows)
