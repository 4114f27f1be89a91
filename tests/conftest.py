"""Fixtures shared by all tests: the table of backends, and reproducible randomness."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: one thread for each of several workers
os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: kernels for a GPU run where there is none
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its default, said so that triton does not warn of it

import numpy as np
import pytest
from hypothesis import settings

from lastlayer import _backends

sys.path.insert(0, str(Path(__file__).parent))  # laws.py

settings.register_profile("ci", derandomize=True)  # the same examples at every run; new ones are for developers
if os.environ.get("CI"):
    settings.load_profile("ci")

BACKENDS = ["reference"]
if _backends.cpu is not None:
    from lastlayer import _native

    BACKENDS += [f"cpu-{name}" for name in _native.instruction_sets()]
if importlib.util.find_spec("triton") is not None and os.environ["TRITON_INTERPRET"] == "1":
    BACKENDS.append("triton")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what would take too long in Triton's interpreter."""
    if "triton" in BACKENDS:
        import triton_backend

        items[:] = [item for item in items if triton_backend.runs(item)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each backend in turn; the native one with each instruction set that this machine has."""
    if request.param == "reference":
        yield _backends.reference
        return
    if request.param == "triton":
        import triton_backend

        yield triton_backend.Backend()
        return
    before = _native.instruction_set()
    _native.use_instruction_set(request.param.removeprefix("cpu-"))
    yield _backends.cpu
    _native.use_instruction_set(before)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20261122)
