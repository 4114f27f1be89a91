"""Threads, and outputs too large for a cache, change no bit of a result."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import laws
import ml_dtypes
import numpy as np
import pytest

from lastlayer import _backends
from lastlayer._algebra import Coefficients, Terms

pytestmark = pytest.mark.skipif(_backends.cpu is None, reason="the native module is not built")
LONG = [(1, 200_000), (3, 140_000), (2, 131_072)]  # rows whose segments are shared out
SHAPES = [*LONG, (40, 9000), (700, 500), (20_000, 10)]
TERMS = Terms(1.0, 0.25, 0.5)
THREADS = (1, 2, 3)
SEGMENT = 1 << 16


def problem(rng: np.random.Generator, rows: int, classes: int, dtype: Any = np.float32) -> tuple[Any, Any, Any]:
    """Return logits, class weights and targets: the ends of segments among them."""
    z = (rng.normal(size=(rows, classes)) * 4).astype(dtype)
    ends = np.array([SEGMENT, SEGMENT - 1, classes - 1])
    target = np.where(np.arange(rows) < 3, ends[np.arange(rows) % 3], np.arange(rows)) % classes
    return z, rng.random(classes).astype(np.float32), target


def results(z: Any, weight: Any, target: Any) -> dict[str, Any]:
    """Return everything that the kernels make of these rows, as float64."""
    cpu, losses = _backends.cpu, z[:, 0].astype(np.float64) if isinstance(z, np.ndarray) else z[:, 0].double()
    dz = z + 0
    total = cpu.loss(z, TERMS, target, weight, losses=losses, out=dz, scale=0.5)
    state, (found, kept) = cpu.fold(z, weight, True), cpu.statistics(z, target, weight, True)
    numbers = Coefficients(state.rest, state.moment, state.max, state.mass)  # any four
    made = {
        **{f"fold: {name}": value for name, value in state._asdict().items()},
        **{f"statistics: {name}": value for name, value in found._asdict().items() if value is not None},
        **{f"statistics: {name}": getattr(kept, name) for name in ("max", "rest", "mass")},
        **{"losses": losses, "their sum": total, "their gradient": dz},
        "fold alone": cpu.fold(z).rest,
        "gradient": cpu.gradient(z, state, numbers, target, weight, out=z + 0),
        "softmax": cpu.softmax(z, out=z + 0),
        "log_softmax": cpu.log_softmax(z, out=z + 0),
    }
    return {name: laws.wide(value) for name, value in made.items()}


def agree(some: dict[str, Any], others: dict[str, Any]) -> None:
    for name, value in some.items():
        np.testing.assert_array_equal(others[name], value, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_change_no_bit_of_an_array(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    given, found = problem(rng, *shape), []
    for threads in THREADS:
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        found.append(results(*given))
    agree(found[0], found[1])
    agree(found[0], found[2])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads_change_no_bit_of_a_tensor(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    import lastlayer.torch  # noqa: F401  (from here on kernels work in torch's threads)

    given, found, before = [torch.from_numpy(array) for array in problem(rng, *shape)], [], torch.get_num_threads()
    for threads in THREADS:
        torch.set_num_threads(threads)
        try:
            found.append(results(*given))
        finally:
            torch.set_num_threads(before)
    agree(found[0], found[1])
    agree(found[0], found[2])


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_long_row_alone_is_the_row_among_others(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, threads: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    z, weight, target = problem(rng, 40, 140_000)
    together = results(z, weight, target)
    for i in (0, 1, 2, 39):
        alone = results(z[i : i + 1], weight, target[i : i + 1])
        agree({n: v for n, v in alone.items() if v.ndim}, {n: v[i : i + 1] for n, v in together.items() if v.ndim})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_long_rows_are_exact(
    monkeypatch: pytest.MonkeyPatch, backend: Any, rng: np.random.Generator, dtype: Any
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    z, weight, target = problem(rng, 3, 140_000, dtype)
    z[1, SEGMENT + 3], z[2, -1] = z.max() + 9, z.max() + 9  # in the second segment, and at its end
    laws.fold_is_exact(backend, z, weight)
    laws.gradient_is_exact(backend, z, Coefficients(*rng.normal(size=(4, 3))), target, weight)
    laws.rows_are_exact(backend, "softmax", z)
    laws.rows_are_exact(backend, "log_softmax", z)
    laws.loss_is_exact(backend, z, Terms(1.0, 0.25, None), target, weight)


def test_infinities_in_segments(backend: Any) -> None:
    z = np.zeros((4, 2 * SEGMENT), np.float32)
    z[0, :SEGMENT], z[1, SEGMENT:], z[2], z[3, -1] = -np.inf, -np.inf, -np.inf, np.inf
    state = backend.fold(z, None, True)
    np.testing.assert_array_equal(state.max, [0, 0, -np.inf, np.inf])
    np.testing.assert_array_equal(state.rest[:2], SEGMENT - 1)
    np.testing.assert_array_equal(state.moment[:2], 0)
    softmax = backend.softmax(z, out=np.full_like(z, -1))
    np.testing.assert_array_equal(softmax[:2], np.where(np.isinf(z[:2]), 0, np.float32(1 / SEGMENT)))
    assert np.isnan(softmax[2:]).all()


def cache() -> int:
    """Return how large an output must be for the kernels to write it around the caches: what sysconf says."""
    try:
        said = subprocess.run(["getconf", "LEVEL3_CACHE_SIZE"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        said = ""
    return int(said) if said.strip().isdigit() and int(said) > 0 else 32 << 20


@pytest.mark.skipif(cache() > 400 << 20, reason="would take more memory than a test should")
@pytest.mark.parametrize(
    ("dtype", "name"), [(np.float32, "softmax"), (ml_dtypes.bfloat16, "loss"), (np.float32, "loss")]
)
def test_an_output_too_large_for_a_cache(rng: np.random.Generator, dtype: Any, name: str) -> None:
    classes = 131_101  # odd: rows begin anywhere in a vector
    row = (rng.normal(size=(1, classes)) * 4).astype(dtype)
    make: dict[str, Callable[[Any, Any], Any]] = {
        "softmax": lambda z, out: _backends.cpu.softmax(z, out=out),
        "loss": lambda z, out: _backends.cpu.loss(z, Terms(1.0, None, None), np.full(len(z), 7), out=out),
    }
    small = np.full_like(row, np.nan)
    make[name](row, small)
    rows = cache() // row.nbytes + 2
    out = np.empty((rows, classes), dtype)  # its last row ends where the memory does
    make[name](np.broadcast_to(row, out.shape), out)
    words = np.dtype(f"u{row.itemsize}")
    for written in out.view(words):
        assert written.tobytes() == small.tobytes()
