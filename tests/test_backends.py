"""Laws of the tile kernels, over backend x type x shape."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import laws
import ml_dtypes
import numpy as np
import pytest

from lastlayer import _algebra, _backends
from lastlayer._algebra import Coefficients, Statistics

TYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
CLASSES = [1, 2, 31, 33, 1023, 1024, 1025, 2049]
ROWS = [0, 1, 7, 289]


def logits(rng: np.random.Generator, rows: int, classes: int, dtype: Any, scale: float = 5.0) -> Any:
    """Random rows; the first few are confident, masked, equal, tiny, far off."""
    z = rng.normal(size=(rows, classes)) * scale
    if rows >= 7:
        z[0, classes // 2] += 60
        z[1, : classes // 2] = -np.inf
        z[2] = 0.25
        z[3] *= 0.02 / scale
        z[4] += 300
        z[5] = -np.inf
        z[6, -1] = z[6].max()
    return z.astype(dtype)


def same(got: Any, expected: Any) -> None:
    """Bit for bit, NaN included."""
    np.testing.assert_array_equal(laws.wide(got), laws.wide(expected))


def numbers(rng: np.random.Generator, rows: int) -> Coefficients:
    """Four numbers per row, different in each row."""
    return Coefficients(*rng.normal(size=(4, rows)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("rows", ROWS)
def test_fold_gradient_and_rows(backend: Any, rng: np.random.Generator, rows: int, classes: int, dtype: Any) -> None:
    z = logits(rng, rows, classes, dtype)
    laws.fold_is_exact(backend, z)
    laws.fold_is_exact(backend, z, rng.random(classes))
    for name in ("softmax", "log_softmax"):
        laws.rows_are_exact(backend, name, z)
    some = z[np.isfinite(z.astype(float).max(-1, initial=-np.inf))]
    target = rng.integers(0, classes, len(some))
    laws.gradient_is_exact(backend, some, numbers(rng, len(some)), target, rng.random(classes))


@pytest.mark.parametrize("dtype", TYPES)
def test_weights_by_row(backend: Any, rng: np.random.Generator, dtype: Any) -> None:
    z = logits(rng, 7, 1025, dtype)
    weight = rng.random((7, 1025)) * (rng.random((7, 1025)) > 0.5)
    weight[1] = np.where(np.isinf(z[1].astype(float)), 0, weight[1])  # weight 0 on -inf: 0, not NaN
    laws.fold_is_exact(backend, z[:5], weight[:5])
    assert np.isfinite(backend.fold(z[:5], weight[:5]).spread).all()
    laws.gradient_is_exact(backend, z[:5], numbers(rng, 5), np.arange(5), weight[:5])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", ["transposed", "every other class", "every other row", "reversed"])
def test_strides_do_not_matter(backend: Any, rng: np.random.Generator, dtype: Any, layout: str) -> None:
    whole = logits(rng, 66, 66, dtype)
    z = {
        "transposed": whole.T,
        "every other class": whole[:, ::2],
        "every other row": whole[::2],
        "reversed": whole[:, ::-1],
    }[layout]
    copy = z.copy()
    for x, y in zip(backend.fold(z, None, True), backend.fold(copy, None, True), strict=True):
        same(x, y)
    for name in ("softmax", "log_softmax"):
        out = np.full((66, 132), np.nan).astype(dtype)[: z.shape[0], : 2 * z.shape[1] : 2]
        expected = getattr(backend, name)(copy, out=np.empty_like(copy))
        same(getattr(backend, name)(z, out=out), expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_alone_is_the_row_in_its_batch(backend: Any, rng: np.random.Generator, dtype: Any) -> None:
    z = logits(rng, 9, 1500, dtype)
    together = backend.fold(z, None, True)
    softmax = backend.softmax(z, out=np.empty_like(z))
    for i in range(9):
        alone = backend.fold(z[i : i + 1], None, True)
        same([x[0] for x in alone], [x[i] for x in together])
        same(backend.softmax(z[i : i + 1], out=np.empty_like(z[:1]))[0], softmax[i])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("copies", [1, 30])
def test_silent_rows_have_gradient_zero_whatever_they_hold(backend: Any, dtype: Any, copies: int) -> None:
    z = np.tile([[np.nan, 1, 2], [-np.inf] * 3, [np.inf, 0, 0], [1, 2, 3]], copies).astype(dtype)
    zero = np.zeros(4)
    state = backend.fold(z)
    out = backend.gradient(
        z, state, Coefficients(zero, zero, zero, zero), np.zeros(4, np.int64), out=np.full_like(z, np.nan)
    )
    np.testing.assert_array_equal(out.astype(float), np.zeros((4, 3 * copies)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("at", "classes"), [(0, 1030), (5, 1030), (1029, 1030), (0, 9), (8, 9)])
def test_nan_anywhere_makes_its_row_nan_and_no_other(
    backend: Any, rng: np.random.Generator, dtype: Any, at: int, classes: int
) -> None:
    z = logits(rng, 3, classes, dtype)
    z[1, at] = np.nan
    state = backend.fold(z)
    with np.errstate(invalid="ignore"):
        assert np.isnan(_algebra.logsumexp(state))[1]
        assert np.isfinite(_algebra.logsumexp(state))[[0, 2]].all()
    for name in ("softmax", "log_softmax"):
        nan = np.isnan(getattr(backend, name)(z, out=np.zeros_like(z)).astype(float))
        assert nan[1].all()
        assert not nan[[0, 2]].any()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("half", [20, 3])
def test_infinite_rows(backend: Any, dtype: Any, half: int) -> None:
    z = np.array([[-np.inf] * 2 * half, [0] * (2 * half - 1) + [np.inf], [np.inf, -np.inf] * half]).astype(dtype)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(_algebra.logsumexp(backend.fold(z)), [-np.inf, np.inf, np.inf])
    assert np.isnan(backend.softmax(z, out=np.zeros_like(z)).astype(float)).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("classes", [1, 2, 9, 70, 1500])
def test_nan_beside_an_infinite_maximum_is_not_lost(backend: Any, dtype: Any, classes: int) -> None:
    z = np.full((3, classes), -np.inf)
    z[:2, -1] = np.nan
    z[1, 0], z[2] = np.inf if classes > 1 else np.nan, np.nan
    with np.errstate(invalid="ignore"):
        assert np.isnan(_algebra.logsumexp(backend.fold(z.astype(dtype)))).all()
    assert np.isnan(laws.wide(backend.statistics(z.astype(dtype))[0].logsumexp)).all()


@pytest.mark.parametrize("masked", [7, 1024, 1500])
def test_masked_classes_without_weight_add_nothing(backend: Any, masked: int) -> None:
    z, weight = np.zeros((1, 2000), np.float32), np.ones(2000, np.float32)
    z[:, :masked], weight[:masked] = -np.inf, 0
    state = backend.fold(z, weight, True)
    assert [float(field[0]) for field in state] == [0, 1999 - masked, 0, 0, 2000 - masked]


def test_small_terms_are_not_lost_beside_large_ones(backend: Any) -> None:
    z = np.full((1, 60_000), -39.0)  # e^-39 is lost when it is added to 1, 60,000 of them are not
    z[:, :256] = -0.001
    z[:, 0] = 0
    laws.fold_is_exact(backend, z)


@pytest.mark.parametrize("rows", [1, 5, 100_000])
def test_targets_are_checked(backend: Any, rng: np.random.Generator, rows: int) -> None:
    y = rng.integers(0, 10, rows)
    assert backend.check_targets(y, 10, -100) == (-1, 0)
    y[rows // 2 :] = -100
    assert backend.check_targets(y, 10, -100) == (-1, rows - rows // 2)
    for bad in (10, -1, -100, 2**62):
        y[rows // 3] = y[-1] = bad
        found, ignored = backend.check_targets(y, 10, -1 if bad == -100 else -100)
        assert found == rows // 3
        assert ignored == (0 if bad == -100 else (y == -100).sum())


@pytest.mark.parametrize("margin", range(0, 61, 4))
@pytest.mark.parametrize("offset", [0, 1000, 3000])
def test_confident_rows_keep_their_digits(backend: Any, rng: np.random.Generator, margin: int, offset: int) -> None:
    z = np.round(rng.normal(size=(4, 1000)), 2)
    z[:, 17] = z.max() + margin
    z = (z + offset).astype(np.float32)
    state = backend.fold(z, None, True)
    exact = np.exp(z.astype(float) - z[:, 17:18].astype(float))
    exact[:, 17] = 0
    log_sum = np.log1p(exact.sum(-1))
    got = _algebra.finish(state, z[:, 17].astype(float))
    np.testing.assert_allclose(-got.logprob, log_sum, rtol=1e-5)  # the bound that is promised
    entropy = log_sum + (exact * (z[:, 17:18].astype(float) - z)).sum(-1) / (1 + exact.sum(-1))
    np.testing.assert_allclose(got.entropy, entropy, rtol=1e-5)
    nll = _algebra.coefficients(got, state.mass, Statistics(None, np.full(4, -1.0), None, None))
    dz = backend.gradient(z, state, nll, np.full(4, 17), out=np.full_like(z, np.nan))
    q = exact.sum(-1) / (1 + exact.sum(-1))
    np.testing.assert_allclose(dz[:, 17], -q, rtol=1e-5)
    certain = np.zeros_like(z)
    certain[:, 17] = 1  # the same target as a distribution
    state, one = backend.fold(z, certain), np.ones(4)
    soft = _algebra.coefficients(got, state.mass, Statistics(None, None, None, one))
    dz = backend.gradient(z, state, soft, None, certain, out=np.full_like(z, np.nan))
    np.testing.assert_allclose(dz[:, 17], -q, rtol=1e-5)
    np.testing.assert_allclose(_algebra.finish(state).cross, log_sum, rtol=1e-5)


@pytest.mark.parametrize("margin", [0, 20, 48, 60])
def test_confident_rows_of_few_classes_too(backend: Any, margin: int) -> None:
    z, certain = np.array([[0.5, margin + 1.0, 1.0]], np.float32), np.array([[0, 1, 0]], np.float32)
    rest = np.exp(-margin) + np.exp(-margin - 0.5)
    state, one, zero = backend.fold(z, certain), np.ones(1), np.zeros(1)
    np.testing.assert_allclose(_algebra.finish(state, z[:, 1].astype(float)).logprob, -np.log1p(rest), rtol=1e-5)
    index, soft = Coefficients(one, zero, -one, zero), Coefficients(one, zero, zero, -one)
    for four, target in ((index, np.ones(1, np.int64)), (soft, None)):
        dz = backend.gradient(z, state, four, target, certain, out=np.full_like(z, np.nan))
        np.testing.assert_allclose(dz[0, 1], -rest / (1 + rest), rtol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_statistics_are_fold_and_finish(backend: Any, rng: np.random.Generator, dtype: Any, weighted: bool) -> None:
    z = logits(rng, 7, 1030, dtype)
    target, weight = rng.integers(0, 1030, 7), rng.random(1030) if weighted else None
    folded = backend.fold(z, weight, True)
    with np.errstate(all="ignore"):
        expected = _algebra.finish(folded, z[np.arange(7), target].astype(float))
    got, state = backend.statistics(z, target, weight, True)
    for name in ("max", "rest", "mass"):
        same(getattr(state, name), getattr(folded, name))
    for name, value in expected._asdict().items():
        if value is None or (name == "cross" and not weighted):
            assert getattr(got, name) is None
        else:
            np.testing.assert_allclose(getattr(got, name), value, rtol=4 * 2.0**-52, err_msg=name)
    assert backend.statistics(z)[0]._replace(logsumexp=None, max=None) == (None,) * 6


@pytest.mark.parametrize("classes", [5, 37, 200])
def test_a_gradient_scales_with_what_comes_in(backend: Any, rng: np.random.Generator, classes: int) -> None:
    # By powers of 2, down to where the results themselves leave the type; one row of the group only.
    z, target = rng.normal(size=(7, classes)).astype(np.float32), rng.integers(0, classes, 7)
    state, alpha, zero = _algebra.fold(z.astype(float)), rng.normal(size=7), np.zeros(7)
    unit = backend.gradient(z, state, Coefficients(alpha, zero, -alpha, zero), target, out=np.full_like(z, np.nan))
    for k in (40, 58, 64, 80, 100):
        alpha[3] *= 2.0**-k
        small = backend.gradient(z, state, Coefficients(alpha, zero, -alpha, zero), target, out=np.full_like(z, np.nan))
        alpha[3] *= 2.0**k
        np.testing.assert_allclose(small[3] * 2.0**k, unit[3], rtol=4 * 2.0**-23, err_msg=f"2^-{k}")
        np.testing.assert_array_equal(np.delete(small, 3, 0), np.delete(unit, 3, 0))


@pytest.mark.parametrize("classes", [5, 37])
def test_softcap_is_one_factor(backend: Any, rng: np.random.Generator, classes: int) -> None:
    raw = rng.normal(size=(5, classes)) * 4
    z = 3.0 * np.tanh(raw / 3.0)
    state, target, four = backend.fold(z), np.arange(5), numbers(rng, 5)
    plain = backend.gradient(z, state, four, target, out=np.empty_like(z))
    capped = backend.gradient(z, state, four, target, softcap=3.0, out=np.empty_like(z))
    np.testing.assert_allclose(capped, plain * (1 - np.tanh(raw / 3.0) ** 2), rtol=1e-12)


@pytest.mark.parametrize("width", [3, 60, 90])
def test_first_class_shifts_the_target(backend: Any, rng: np.random.Generator, width: int) -> None:
    z, four, end = rng.normal(size=(6, width + 40)), numbers(rng, 6), 4 + width
    target, state = np.array([0, 3, 4, 6, end - 1, end]), backend.fold(z)
    whole = backend.gradient(z, state, four, target, out=np.empty_like(z))
    part = backend.gradient(z[:, 4:end], state, four, target, first_class=4, out=np.full((6, width), np.nan))
    np.testing.assert_allclose(part, whole[:, 4:end], rtol=16 * 2.0**-52)


needs_native = pytest.mark.skipif(_backends.cpu is None, reason="the native module is not built")


@needs_native
@pytest.mark.parametrize("threads", ["1", "2", "3", "7"])
def test_thread_count_changes_no_bit(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, threads: str) -> None:
    z = rng.normal(size=(37, 40_000)).astype(np.float32)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    state, softmax = _backends.cpu.fold(z, None, True), _backends.cpu.softmax(z, out=np.empty_like(z))
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert _backends.numpy_threads()[0] == int(threads)
    np.testing.assert_array_equal(_backends.cpu.fold(z, None, True), state)
    np.testing.assert_array_equal(_backends.cpu.softmax(z, out=np.full_like(z, np.nan)), softmax)


FORK = """
import os, numpy as np, torch
import lastlayer.torch
from lastlayer._algebra import Terms
from lastlayer._backends import cpu
torch.set_num_threads(3)
rng = np.random.default_rng(0)
arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((512, 4096), (1, 400_000))]
tensors = [torch.from_numpy(array) for array in arrays]

def results():  # of ours only: torch's own operations do not survive a fork
    for z in (*arrays, *tensors):
        dz, y = np.empty(z.shape, np.float32), np.zeros(len(z), np.int64)
        if torch.is_tensor(z):
            dz, y = torch.from_numpy(dz), torch.from_numpy(y)
        total = cpu.loss(z, Terms(1.0, None, None), y, out=dz)
        yield from (np.asarray(x) for x in (*cpu.fold(z, None, True), dz, total))

tensors[0].sum(); before = list(results())  # threads ran in the parent: ours and torch's, of one runtime
child = os.fork()
if child == 0:
    os._exit(0 if all((a == b).all() for a, b in zip(results(), before, strict=True)) else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_worker_works() -> None:
    pytest.importorskip("torch")
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    assert subprocess.run([sys.executable, "-c", FORK], timeout=60, env=environment).returncode == 0


def test_a_backend_asked_for_by_name_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    z = np.zeros((1, 2), np.float32)
    monkeypatch.setenv("LASTLAYER_BACKEND", "reference")
    assert _backends.choose(z) is _backends.reference
    monkeypatch.setenv("LASTLAYER_BACKEND", "gpu")
    with pytest.raises(ValueError, match=r"'gpu': expected one of cpu, triton, reference"):
        _backends.choose(z)
    monkeypatch.setenv("LASTLAYER_BACKEND", "cpu")
    monkeypatch.setattr(_backends, "cpu", None)
    monkeypatch.setattr(_backends, "missing", "not built", raising=False)
    with pytest.raises(RuntimeError, match="not built"):
        _backends.choose(z)


class Broken:
    """The reference with one defect, to see the laws fail."""

    def __init__(self, defect: str) -> None:
        self.defect = defect

    def fold(self, z: Any, weight: Any = None, moment: bool = False) -> Any:
        state = _backends.reference.fold(z, weight, moment)
        if self.defect == "tail":  # the last class is not read
            return _backends.reference.fold(z[:, :-1], None if weight is None else weight[..., :-1], moment)
        if self.defect == "moment":
            return state._replace(moment=-state.moment)
        if self.defect == "apart":  # the maximum is counted with the rest
            return state._replace(rest=(1 + state.rest) - 1)
        return state

    def gradient(self, z: Any, state: Any, four: Any, target: Any = None, weight: Any = None, *, out: Any) -> Any:
        if self.defect == "beta":
            four = four._replace(beta=-four.beta)
        if self.defect == "target":
            target = target + 1
        if self.defect == "delta":
            weight = None
        if self.defect == "overwrites":  # reads the tile after it was written
            out[...] = 0
        return _backends.reference.gradient(z, state, four, target, weight, out=out)


@pytest.mark.parametrize("defect", ["none", "tail", "moment", "apart", "beta", "target", "delta", "overwrites"])
def test_the_laws_catch_a_broken_backend(rng: np.random.Generator, defect: str) -> None:
    z = logits(rng, 7, 33, np.float64)[:5]
    z[0, 1] = z[0].max() + 40

    def check() -> None:
        laws.fold_is_exact(Broken(defect), z, np.ones(33))
        laws.gradient_is_exact(Broken(defect), z, numbers(np.random.default_rng(1), 5), np.arange(5), np.ones(33))

    if defect == "none":
        check()
    else:
        with pytest.raises(AssertionError):
            check()


@needs_native
def test_offsets_past_two_to_the_31_elements() -> None:
    zeros = np.zeros(2**31 + 2**20, np.float16)  # pages of zeros that are only reserved
    rows = np.lib.stride_tricks.as_strided(zeros, (3, 50), (2**31, 2))  # the last row starts at element 2^31
    rows[2, 7] = 4.0
    state = _backends.cpu.fold(rows)
    np.testing.assert_array_equal(state.max, [0, 0, 4])
    np.testing.assert_array_equal(state.rest[:2], 49)
    out = np.zeros(zeros.shape, zeros.dtype)
    written = np.lib.stride_tricks.as_strided(out, (3, 50), (2**31, 2))
    _backends.cpu.softmax(rows, out=written)
    np.testing.assert_allclose(written.astype(float).sum(-1), 1, atol=50 * 2.0**-12)


def test_no_code_is_shared_between_instruction_sets() -> None:
    """A function that the linker may take from another build, perhaps with instructions the processor lacks."""
    objects = list(Path(__file__).parents[1].glob("build/*/CMakeFiles/kernels_*.dir/native/*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("no object files here, or nothing to list them")
    for path in objects:
        listed = subprocess.run(["nm", "--format=posix", str(path)], capture_output=True, text=True, check=True).stdout
        shared = [line.split()[0] for line in listed.splitlines() if line.split()[1] == "W"]
        assert not shared, (path.parent.parent.name, shared)
