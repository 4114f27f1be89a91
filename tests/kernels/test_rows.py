"""What only the Triton kernels of rows have: streamed rows, words, results over logits, numbers on the device.

The laws of the backends run over them in tests/test_backends.py and tests/test_loss.py. Everything here runs in
Triton's interpreter; test_compiled.py looks at what a compiler makes of the same calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import laws
import ml_dtypes
import numpy as np
import pytest
from test_backends import logits, numbers
from test_loss import CASES, call

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import triton_backend  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from lastlayer._algebra import Coefficients, State, Terms  # noqa: E402

if not triton_backend.backend().takes(torch.zeros(1, 1)):
    pytest.skip("this run is not interpreted", allow_module_level=True)

from lastlayer._backends.triton import launch  # noqa: E402

TYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
TENSORS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FEW = launch.Limits(resident=16, lanes=64, tile=1024, each=8, warps=4)


@pytest.fixture(autouse=True)
def computing() -> Iterator[None]:
    """Compute without NumPy's warnings."""
    with triton_backend.interpreted():
        yield


@pytest.fixture(params=["resident", "streamed"])
def schedule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rows as they are, and rows of more than 16 classes streamed in blocks of 64."""
    if request.param == "streamed":
        monkeypatch.setattr(launch, "LIMITS", dict.fromkeys((2, 4, 8), FEW))
    return request.param


def some_rows(n: int, v: int, dtype: Any, seed: int = 0) -> Tensor:
    """Random logits; a confident row, a masked one, one with a tie."""
    z = torch.randn(n, v, generator=torch.Generator().manual_seed(seed)) * 4
    z[0, v // 2] += 40
    z[1, : v // 2] = -torch.inf
    z[2, -1] = z[2, 0] = z[2].max()
    return z.to(dtype)


def bits(*tensors: Tensor | None) -> list[bytes]:
    """Return the bits of tensors."""
    return [b"" if t is None else t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors]


def placed(z: Tensor, shift: int, step: int = 1, gap: int = 0) -> Tensor:
    """Return a copy that begins ``shift`` elements past a word, of this class stride, with a gap between rows."""
    n, v = z.shape
    row = v * step + gap
    memory = torch.full((shift + n * row + 32,), torch.nan, dtype=z.dtype)
    return memory[shift:].as_strided((n, v), (row, step)).copy_(z)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("classes", [17, 64, 65, 127, 200])
def test_streamed_rows_keep_the_laws(monkeypatch: Any, rng: np.random.Generator, classes: int, dtype: Any) -> None:
    monkeypatch.setattr(launch, "LIMITS", dict.fromkeys((2, 4, 8), FEW))
    backend, z = triton_backend.Backend(), logits(rng, 9, classes, dtype)
    laws.fold_is_exact(backend, z)
    laws.fold_is_exact(backend, z, rng.random(classes))
    for name in ("softmax", "log_softmax"):
        laws.rows_are_exact(backend, name, z)
    some = z[np.isfinite(z.astype(float).max(-1))]
    target = rng.integers(0, classes, len(some))
    laws.gradient_is_exact(backend, some, numbers(rng, len(some)), target, rng.random(classes))
    laws.gradient_is_exact(backend, some, numbers(rng, len(some)), target, rng.random(some.shape))


@pytest.mark.parametrize("dtype", TYPES[::3])
def test_streamed_losses_keep_the_law(monkeypatch: Any, rng: np.random.Generator, dtype: Any) -> None:
    monkeypatch.setattr(launch, "LIMITS", dict.fromkeys((2, 4, 8), FEW))
    for case in CASES.values():
        z, terms, target, weight = call(case, rng, 17, 150, dtype)
        laws.loss_is_exact(
            triton_backend.Backend(), z, terms, target, weight, ignored=case.ignored, scale=case.scale,
            softcap=case.softcap,
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["infinite", "infinite and NaN", "NaN", "lowest", "masked"])
def test_special_rows(schedule: str, kind: str) -> None:
    lowest = torch.finfo(torch.float32).min
    row = {
        "infinite": [torch.inf, 0.0] * 100, "infinite and NaN": [torch.inf] * 199 + [torch.nan],
        "NaN": [0.0] * 130 + [torch.nan] + [1.0] * 69, "lowest": [lowest] * 200, "masked": [-torch.inf] * 200,
    }[kind]  # fmt: skip
    z = torch.tensor([row, [1.0] * 200])
    backend = triton_backend.backend()
    found, state = backend.statistics(z, torch.tensor([3, 3]), None, True)
    expected = {
        "infinite": torch.inf, "infinite and NaN": torch.nan, "NaN": torch.nan, "lowest": lowest, "masked": -torch.inf,
    }[kind]  # fmt: skip
    np.testing.assert_array_equal(found.logsumexp[0], expected)
    if kind != "infinite":  # what is beside infinities is nobody's business
        rest = 199 if kind in ("lowest", "masked") else np.nan
        np.testing.assert_array_equal(state.rest[:2], [rest, 199])
    p = backend.softmax(z, out=torch.empty_like(z))
    assert bool(p[0].isnan().all()) is (kind != "lowest")
    laws.assert_within(p[1], np.full(200, 1 / 200), np.full(200, 1 / 200), np.float32)


@pytest.mark.parametrize("classes", [2, 300])
def test_float32_keeps_the_digits_of_small_terms(schedule: str, rng: np.random.Generator, classes: int) -> None:
    """As if each term were rounded once: the roundings of z - m and of its product with log2 e are put back."""
    z = rng.normal(size=(50, classes)).astype(np.float32)
    z[:, 0] = rng.uniform(40, 80, 50)
    exact = np.exp(laws.wide(z[:, 1:]) - laws.wide(z[:, :1])).sum(-1, keepdims=True)
    rest = triton_backend.Backend().fold(z).rest[:, None]
    laws.assert_within(rest, exact, exact.astype(np.float32), np.float32, "rest", classes)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("over", [0, 1])
def test_both_sides_of_the_limit(rng: np.random.Generator, dtype: Any, over: int) -> None:
    classes = launch.LIMITS[np.dtype(dtype).itemsize].resident + over
    z = logits(rng, 7, classes, dtype)[:5]
    backend, target = triton_backend.Backend(), rng.integers(0, classes, 5)
    assert bool(over) == launch.tile(triton_backend.tensor(z)).STREAMED
    laws.fold_is_exact(backend, z)
    laws.rows_are_exact(backend, "softmax", z)
    laws.gradient_is_exact(backend, z, numbers(rng, 5), target, np.ones(classes))
    laws.loss_is_exact(backend, z, Terms(1.0, None, None), target)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [5, 70, 203])
def test_where_rows_lie_changes_no_bit(schedule: str, dtype: Any, classes: int) -> None:
    """Alignment, strides, and the rows beside: of logits, weights, states and results."""
    if schedule == "streamed" and classes <= FEW.resident:
        pytest.skip("as resident")
    backend, z = triton_backend.backend(), some_rows(5, classes, dtype)
    y, u = torch.tensor([min(63, classes - 1), -100, 0, min(126, classes - 2), classes - 1]), torch.rand(5, classes)
    four = Coefficients(*torch.randn(4, 5, dtype=torch.float64))

    def everything(z: Tensor, rows: slice = slice(None), out: Any = torch.empty_like) -> list[bytes]:
        some, target = z[rows], y[rows]
        found, state = backend.statistics(some, target, u[rows], True)
        gradient, dz, p = out(some), out(some), out(some)
        parts = Coefficients(*(number[rows] for number in four))
        backend.gradient(some, state, parts, target, u[rows], out=gradient)
        losses = torch.empty(len(some), dtype=torch.float64)
        backend.loss(some, Terms(0.7, 0.2, 0.1), target, u[rows], ignored=-100, losses=losses, out=dz)
        return bits(*found[:5], *state, gradient, losses, dz, backend.log_softmax(some, out=p))

    expected = everything(z)
    for shift in (1, 2, 7):
        assert everything(placed(z, shift)) == expected, shift
    assert everything(placed(z, 3, gap=3)) == expected
    assert everything(placed(z, 1), out=lambda like: placed(like, 6)) == expected
    assert everything(placed(z, 1, step=2)) == expected
    assert everything(z.T.contiguous().T) == expected
    for row in (0, 3):
        alone, size = everything(placed(z, 1 + row), slice(row, row + 1)), [len(part) // 5 for part in expected]
        assert alone == [part[row * n : (row + 1) * n] for part, n in zip(expected, size, strict=True)], row


@pytest.mark.parametrize("dtype", TENSORS)
@pytest.mark.parametrize("classes", [3, 70, 203])
@pytest.mark.parametrize("shift", [0, 1, 5])
def test_nothing_is_written_beside(schedule: str, dtype: Any, classes: int, shift: int) -> None:
    backend, z = triton_backend.backend(), some_rows(4, classes, dtype)
    state, one = backend.fold(z), torch.ones(4, dtype=torch.float64)

    def write(name: str, out: Tensor) -> None:
        if name == "loss":
            backend.loss(z, Terms(1.0, None, None), torch.zeros(4, dtype=torch.int64), out=out)
        elif name == "gradient":
            backend.gradient(z, state, Coefficients(one, one, one, one), None, None, out=out)
        else:
            getattr(backend, name)(z, out=out)

    for name in ("loss", "gradient", "softmax", "log_softmax"):
        for gap, step in ((0, 1), (7, 1), (0, 2)):
            row = classes * step + gap
            memory = torch.full((shift + 4 * row + 40,), 77.0, dtype=dtype)
            out = memory[shift:].as_strided((4, classes), (row, step), 16 + shift).fill_(torch.nan)
            write(name, out)
            assert not bool(out.isnan().any()), (name, gap, step)
            out.fill_(77.0)
            assert bool((memory == 77.0).all()), (name, gap, step)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("classes", "room"), [(40, 40), (200, 200), (203, 208), (203, 203)])
def test_16_bit_gradients_lie_over_float32_logits(schedule: str, half: Any, classes: int, room: int) -> None:
    """In the second half of each row's own bytes, as the stream writes them."""
    backend, z = triton_backend.backend(), some_rows(4, classes, torch.float32)
    y, one = torch.tensor([classes // 2, 0, classes - 1, 3]), torch.ones(4, dtype=torch.float64)
    state = backend.fold(z)

    def write(name: str, z: Tensor, out: Tensor) -> None:
        if name == "loss":
            backend.loss(z, Terms(1.0, None, None), y, out=out)
        elif name == "gradient":
            backend.gradient(z, state, Coefficients(one, one, -one, one), y, out=out)
        else:
            backend.softmax(z, out=out)

    for name in ("loss", "gradient", "softmax"):
        expected = torch.full((4, classes), torch.nan, dtype=half)
        write(name, z, expected)
        memory = torch.full((4, room), torch.nan)
        memory[:, :classes] = z
        over = memory.view(half)[:, room : room + classes]
        called = launch.written(memory[:, :classes], over, launch.tile(memory[:, :classes]))
        assert called["BARRIER"]
        assert not launch.written(z, z, launch.tile(z))["BARRIER"]
        write(name, memory[:, :classes], over)
        assert bits(over) == bits(expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_and_scale_may_be_on_the_device(schedule: str, dtype: Any) -> None:
    backend, z, y = triton_backend.backend(), some_rows(5, 70, dtype), torch.tensor([0, 1, -100, 3, 69])
    u = torch.rand(70)

    def run(scale: Any, *factors: Any) -> list[bytes]:
        losses, dz = torch.full((5,), torch.nan, dtype=torch.float64), torch.full_like(z, torch.nan)
        total = backend.loss(z, Terms(*factors), y, u, ignored=-100, scale=scale, losses=losses, out=dz)
        assert total.shape == ()
        assert total.dtype == torch.float64
        np.testing.assert_array_equal(total, losses.sum())
        return bits(losses, dz)

    expected = run(0.3, 0.7, 0.2, 0.1)
    scalars = [torch.tensor(number, dtype=torch.float64) for number in (0.3, 0.7, 0.2, 0.1)]
    assert run(*scalars) == expected
    assert run(scalars[0], *(number.expand(5) for number in scalars[1:])) == expected
    assert (
        run(0.3, *(torch.full((5, 2), float(number), dtype=torch.float64)[:, 1] for number in scalars[1:])) == expected
    )
    assert run(0.3, None, None, None) == bits(torch.zeros(5, dtype=torch.float64), torch.zeros_like(z))
    z[0, 5], z[3, 69] = torch.nan, torch.inf
    assert run(0.0, 1.0, None, None)[1] == bits(torch.zeros_like(z))[0]


def test_offsets_past_two_to_the_31_elements(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import GridExecutor

    # After each launch the interpreter copies all storage onto itself: here 4 GiB that are only reserved.
    monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *given: None)
    memory = torch.empty(2**31 + 2**20, dtype=torch.float16)
    z = memory.as_strided((3, 50), (2**30, 1))  # the last row begins at element 2^31, the stride fits 32 bits
    z[:] = 0.0
    z[2, 7] = 4.0
    backend, y = triton_backend.backend(), torch.tensor([7, 7, 7])
    state = backend.fold(z)
    assert state.max.tolist() == [0, 0, 4]
    assert state.rest[:2].tolist() == [49, 49]
    near = z.clone()
    assert bits(backend.softmax(z, out=torch.empty_like(near))) == bits(
        backend.softmax(near, out=torch.empty_like(near))
    )
    dz = backend.loss(near, Terms(1.0, None, None), y, out=near)
    assert bits(backend.loss(z, Terms(1.0, None, None), y, out=z)) == bits(dz)
    assert bits(z) == bits(near)


@pytest.mark.parametrize("dtype", TENSORS)
def test_times(dtype: Any) -> None:
    backend, x = triton_backend.backend(), torch.randn(50, 3000).to(dtype)
    exact, name = laws.wide(x) * -1.5, str(dtype)[6:]
    for out in (x.clone(), x.T.clone().T, torch.zeros(50, 6000, dtype=dtype)[:, ::2].copy_(x)):
        backend.times_(out, torch.tensor(-1.5, dtype=torch.float64))
        laws.assert_within(out, exact, (x.float() * -1.5).to(dtype), np.dtype(name))
        before = bits(out)
        backend.times_(out, torch.tensor(1.0))
        assert bits(out) == before
    assert backend.times_(torch.empty(0, 5, dtype=dtype), torch.tensor(2.0)).shape == (0, 5)
    laws.assert_within(backend.times_(x.clone(), -1.5), exact, (x.float() * -1.5).to(dtype), np.dtype(name))
    assert bits(backend.times_(x.clone(), 1.0)) == bits(x)


def test_what_is_unscaled_stays_where_the_scale_is_1(schedule: str) -> None:
    backend, z, y = triton_backend.backend(), some_rows(4, 70, torch.float32), torch.tensor([0, 1, 2, 69])
    for scale in (1.0, 0.5):
        expected = backend.loss(z, Terms(1.0, None, None), y, scale=scale, out=(dz := torch.empty_like(z)))
        if scale == 1:
            dz.fill_(7.0)
        for given in (scale, torch.tensor(scale, dtype=torch.float64)):
            out = torch.full_like(z, 7.0)
            total = backend.loss(z, Terms(1.0, None, None), y, scale=given, out=out, unscaled=True)
            assert bits(out) == bits(dz)
            assert scale == 1 or bits(total) == bits(expected)


def test_of_no_rows_there_is_nothing() -> None:
    backend, z, none = triton_backend.backend(), torch.empty(0, 9), torch.empty(0, dtype=torch.float64)
    y = torch.empty(0, dtype=torch.int64)
    assert all(field.shape == (0,) for field in backend.fold(z, None, True))
    assert backend.statistics(z, y)[0].logprob.shape == (0,)
    assert backend.statistics(z, keep=False)[1] is None
    assert float(backend.loss(z, Terms(1.0, None, None), y, out=z)) == 0
    four = Coefficients(none, none, none, none)
    assert backend.gradient(z, State(none, none, none, none, none), four, out=z) is z
    assert backend.softmax(z, out=z) is z
    assert [int(x) for x in backend.check_targets(y, 9, -1)] == [-1, 0]


def test_what_is_taken() -> None:
    backend = triton_backend.backend()
    for dtype in TENSORS:
        assert backend.takes(torch.zeros(1, 2, dtype=dtype))
    assert not backend.takes(torch.zeros(1, 2, dtype=torch.int64))
    assert not backend.takes(torch.zeros(1, 2, device="meta"))
    assert not backend.takes(np.zeros((1, 2)))


class Waits(TorchDispatchMode):
    """Raises where the host would wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")
        assert not any(name == f"aten::{each}" for each in waits), name
        assert not (name.startswith("aten::index") and any(getattr(a, "dtype", 0) == torch.bool for a in args)), name
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_on_the_host(schedule: str) -> None:
    backend, z, y = triton_backend.backend(), some_rows(4, 70, torch.float32), torch.tensor([1, -100, 99, 3])
    u, one = torch.rand(70), torch.ones((), dtype=torch.float64)
    with Waits():
        found, state = backend.statistics(z, y, u, True)
        four = Coefficients(*(torch.ones(4, dtype=torch.float64) for _ in range(4)))
        backend.gradient(z, state, four, y, u, softcap=30.0, out=torch.empty_like(z))
        total = backend.loss(z, Terms(one, 0.1, None), y, u, ignored=-100, scale=one, out=z)
        backend.times_(backend.softmax(z, out=z), one)
        backend.log_softmax(z, out=z)
        first, ignored = backend.check_targets(y, 70, -100)
    assert (int(first), int(ignored), bool(total.isnan()), bool(found.logprob[2].isnan())) == (2, 1, True, True)


def test_too_many_classes_are_refused() -> None:
    z = torch.zeros(1, 1).expand(1, launch.MOST + 1)
    with pytest.raises(ValueError, match=rf"input has {launch.MOST + 1} classes, expected at most {launch.MOST}"):
        triton_backend.backend().fold(z)
