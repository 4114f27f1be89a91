"""Where it ran: processor, caches, versions, and how many threads each competitor used."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lastlayer import _backends, cli

PACKAGES = ("torch", "jax", "optax", "scipy", "numpy")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
CACHE_WHERE_NOBODY_TELLS = 32 << 20


def processor() -> str:
    """Return the processor's name."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cache() -> int:
    """Return the size of the last-level cache in bytes."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    known = [int(size[:-1]) * UNITS[size[-1]] for size in sizes if size[-1:] in UNITS]
    return max(known, default=CACHE_WHERE_NOBODY_TELLS)


def versions(packages: Sequence[str] = PACKAGES) -> str:
    """Return the versions of what is installed of these packages."""
    said = [f"Python {platform.python_version()}"]
    for name in packages:
        try:
            said.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(said)


def instruction_set() -> str:
    """Return what ``lastlayer info`` says of the instruction set in use, less its reasons."""
    line = next((line for line in cli.info().splitlines() if line.startswith("instruction set")), "")
    return line.removeprefix("instruction set").partition("(")[0].strip() or "none (reference backend)"


def threads(names: Sequence[str]) -> str:
    """Return how many threads each competitor uses."""
    torch_threads = torch.get_num_threads()
    said = [f"PyTorch, torch.compile, lastlayer: {torch_threads}"]
    if "JAX" in names:
        said.append(f"JAX: {os.environ.get('NPROC', torch_threads)}")
    said.append(f"lastlayer (NumPy): {_backends.numpy_threads()[0]}")
    return "; ".join([*said, "SciPy: 1"])


def describe(names: Sequence[str]) -> dict[str, Any]:
    """Return the machine and the setting."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": processor(),
        "cores": affinity,
        "cache_bytes": cache(),
        "instruction_set": instruction_set(),
        "versions": versions(),
        "threads": threads(names),
    }
