"""The promised digits, over the whole adversarial corpus: the same code that prints the table in docs/accuracy.md."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torch")

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "accuracy.py"


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accuracy", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["accuracy"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "float64"])
def test_worst_error_in_ulp_is_within_the_promise(accuracy: ModuleType, kind: str) -> None:
    ours = {name: compute for name, compute in accuracy.LIBRARIES.items() if name.startswith("lastlayer")}
    worst = accuracy.measure(ours, [kind])
    assert {key[2] for key in worst} == set(accuracy.FUNCTIONS)
    for (name, of, function, regime), error in worst.items():
        assert error <= accuracy.bound(of, function), (name, function, regime)


def test_the_ruler_measures_ulps(accuracy: ModuleType) -> None:
    row = np.array([0.0, 48.0], np.float32)
    exact = accuracy.corpus.exact(row)
    one = np.float32(exact.softmax[0, 0])
    assert accuracy.corpus.ulps(one, exact.softmax[0], np.float32) <= 0.5
    assert 0.5 <= accuracy.corpus.ulps(np.nextafter(one, np.float32(1)), exact.softmax[0], np.float32) <= 1.5
    assert accuracy.corpus.ulps(np.float32(0), exact.log_softmax[1], np.float32) > 1e6  # a loss that vanished
    assert accuracy.corpus.ulps(np.float32("nan"), exact.softmax[0], np.float32) == np.inf
