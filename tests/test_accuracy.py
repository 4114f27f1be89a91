"""The promised digits by regime of the adversarial corpus: the code that prints the tables of docs/accuracy.md."""

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
    assert {key[3] for key in worst} == set(accuracy.REGIMES) - ({"offset 1e6"} if kind == "float16" else set())
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


@pytest.mark.parametrize(("dtype", "logit"), [(np.float16, -16.0), (np.float32, -100.0), (np.float64, -743.0)])
def test_the_ruler_measures_subnormal_probabilities_by_their_own_spacing(
    accuracy: ModuleType, dtype: type, logit: float
) -> None:
    exact = accuracy.corpus.exact(np.array([0.0, logit], dtype)).softmax[1]
    least = np.finfo(dtype).smallest_subnormal
    nearest = dtype(exact[0])
    assert accuracy.corpus.ulps(nearest, exact, dtype) <= 0.5
    assert 0.5 <= accuracy.corpus.ulps(nearest + least, exact, dtype) <= 1.5
    assert accuracy.corpus.ulps(dtype(0), exact, dtype) == pytest.approx(exact[0] / float(least), rel=0.5)


def test_the_exact_gradient_sums_to_zero_and_keeps_a_confident_row(accuracy: ModuleType) -> None:
    exact = accuracy.corpus.exact(np.array([60.0, 0.0, 1.0], np.float64))
    assert exact.gradient(1)[:, 0].sum() == pytest.approx(0, abs=1e-15)
    assert exact.gradient(0)[0, 0] == pytest.approx(-np.exp(-60) * (1 + np.e), rel=1e-15)
    assert exact.entropy[0] > 0
