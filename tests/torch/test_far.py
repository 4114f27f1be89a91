"""Tensors on a GPU, played by tensors of the CPU: Triton's interpreter computes, and their values count as far away.

Nothing may look at a value on the way; errors come later; 16-bit operands are multiplied as they are. What only a
device can show is in benchmarks/gpu.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import laws
import ml_dtypes  # noqa: F401  (NumPy learns of bfloat16)
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import torch.nn.functional as T  # noqa: E402
from torch import Tensor  # noqa: E402
from triton_backend import interpreted  # noqa: E402

import lastlayer.torch as F  # noqa: E402
from lastlayer import _backends  # noqa: E402
from lastlayer._stream import Head, Stream, padded  # noqa: E402
from lastlayer.torch import functional, later  # noqa: E402
from lastlayer.torch.stream import ROWS, TorchProducts  # noqa: E402

# What would wait for a device, or ask it how large a result is.
LOOKS = {f"aten::{name}" for name in ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "allclose")}
N, V, D = 9, 70, 16


class Event:
    """An event of a device that gets there when it is told to."""

    done = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = True


MULTIPLIED: list[Any] = []  # the types of operands


def multiply(a: Tensor, b: Tensor, kind: Any, *, out: Tensor) -> Tensor:
    """mm with 16-bit operands and a float32 result, which torch has for CUDA."""
    MULTIPLIED.extend((a.dtype, b.dtype))
    return out.copy_(a.to(kind) @ b.to(kind))


def multiply_and_add(
    c: Tensor, a: Tensor, b: Tensor, kind: Any, *, beta: float = 1, alpha: float = 1, out: Tensor
) -> Tensor:  # fmt: skip
    """addmm of the same kind."""
    product = alpha * (a.to(kind) @ b.to(kind))
    return out.copy_(product if beta == 0 else product + beta * c)


@pytest.fixture(scope="module", autouse=True)
def _products() -> Iterator[None]:
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("mm.dtype_out", multiply, "CPU")
        library.impl("addmm.dtype_out", multiply_and_add, "CPU")
        yield


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Event]]:
    """The device; its events, in the order in which they were recorded."""
    recorded: list[Event] = []

    def bring(values: Tensor) -> tuple[Tensor, Event]:
        recorded.append(Event())
        return values.clone(), recorded[-1]

    monkeypatch.setenv("LASTLAYER_BACKEND", "triton")
    monkeypatch.setattr(later, "is_far", lambda tensor: True)
    monkeypatch.setattr(later, "_bring", bring)
    with interpreted():
        yield recorded
    later._waiting.clear()


def numbers(*shape: int, dtype: Any = torch.float32, seed: int = 0) -> Tensor:
    """Random tensors that want a gradient."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def targets(*ignored: int) -> Tensor:
    """Classes, some of them -100."""
    y = torch.arange(N) * 37 % V
    return y.index_fill(0, torch.tensor(ignored, dtype=torch.int64), -100)


NONE_COUNTS = targets(*range(N))


def head(dtype: Any) -> list[Tensor]:
    """Hidden states, weight and bias."""
    return [numbers(N, D, dtype=dtype), numbers(V, D, dtype=dtype, seed=1), numbers(V, dtype=dtype, seed=2)]


def values_of(compute: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Return a loss and its gradients."""
    loss = compute(*tensors)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), tensors)]


def exactly(compute: Callable[..., Tensor], tensors: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return the same by the specification, in float64, near."""
    with monkeypatch.context() as near:
        near.setenv("LASTLAYER_BACKEND", "reference")
        near.setattr(later, "is_far", lambda tensor: False)
        return values_of(compute, [t.detach().double().requires_grad_() for t in tensors])


HEADS: dict[str, Callable[..., Tensor]] = {
    "mean": lambda h, w, b, **o: F.linear_cross_entropy(h, w, targets(2), linear_bias=b, **o),
    "sum": lambda h, w, b, **o: F.linear_cross_entropy(h, w, targets(), linear_bias=b, reduction="sum", **o),
    "none": lambda h, w, b, **o: F.linear_cross_entropy(h, w, targets(0, 8), linear_bias=b, reduction="none", **o),
    "all terms": lambda h, w, b, **o: F.linear_cross_entropy(
        h, w, targets(3), linear_bias=b, label_smoothing=0.1, z_loss=1e-2, softcap=4.0, scale=1.5,
        weight=torch.linspace(0.5, 2, V).to(h.dtype), token_weight=torch.linspace(0, 1, N).to(h.dtype), **o,
    ),
    "none ignored": lambda h, w, b, **o: F.linear_cross_entropy(h, w, NONE_COUNTS, linear_bias=b, **o),
    "statistics": lambda h, w, b, **o: _all_fields(
        F.linear_logit_statistics(h, w, targets(2), linear_bias=b, entropy=True, rank=True, argmax=True, **o)
    ),
    "any loss": lambda h, w, b, **o: F.linear_loss(
        lambda s, a: a * (1 - s.logprob * s.entropy), h, w, targets(2), torch.arange(1.0, N + 1).to(h.dtype),
        linear_bias=b, entropy=True, **o,
    ),
}  # fmt: skip


def _all_fields(found: F.LogitStatistics) -> Tensor:
    rank, argmax = found.rank, found.argmax
    assert rank is not None
    assert argmax is not None
    counts = (rank + argmax).double()
    return sum((f.double() * (i + 1) for i, f in enumerate(found[:7]) if f is not None), counts)


@pytest.mark.parametrize("budget", [None, 3000, 9000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HEADS)
def test_heads_are_those_of_the_specification(
    name: str, dtype: Any, budget: int | None, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(*tensors: Tensor) -> Tensor:
        return HEADS[name](*tensors, memory_budget=budget)

    tensors = head(dtype)
    exact = exactly(compute, tensors, monkeypatch)
    with monkeypatch.context() as near:  # the same kind of rounding: float32 statistics, gradients of 16-bit products
        near.setenv("LASTLAYER_BACKEND", "cpu")
        near.setattr(later, "is_far", lambda tensor: False)
        dense = values_of(compute, tensors)
    got = values_of(compute, tensors)
    assert got[0].dtype == torch.float32 or name == "statistics"
    laws.assert_within(got[0].reshape(1, -1), exact[0].reshape(1, -1), dense[0].reshape(1, -1), "float32", terms=V)
    for each, truth, other, like in zip(got[1:], exact[1:], dense[1:], tensors, strict=True):
        assert each.dtype == dtype
        kind = str(like.dtype).removeprefix("torch.")
        laws.assert_within(each.reshape(1, -1), truth.reshape(1, -1), other.reshape(1, -1), kind, terms=V)


LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "cross_entropy": lambda z: F.cross_entropy(z, targets(2)),
    "cross_entropy none": lambda z: F.cross_entropy(z, targets(2), reduction="none"),
    "cross_entropy all ignored": lambda z: F.cross_entropy(z, NONE_COUNTS),
    "cross_entropy weights": lambda z: F.cross_entropy(
        z, targets(1), torch.linspace(0.5, 2, V).to(z.dtype), label_smoothing=0.1
    ),
    "cross_entropy probabilities": lambda z: F.cross_entropy(
        z, torch.softmax(torch.arange(N * V).reshape(N, V) % 7 * 0.5, 1).to(z.dtype)
    ),
    "nll_loss": lambda z: F.nll_loss(F.log_softmax(z, 1), targets(2)),
    "softmax": lambda z: F.softmax(z, 1).double().square(),
    "log_softmax": lambda z: F.log_softmax(z, 1),
    "logsumexp": lambda z: F.logsumexp(z, 1),
    "logit_statistics": lambda z: _all_fields(
        F.logit_statistics(z, targets(2), entropy=True, rank=True, argmax=True)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*LOGITS, *HEADS])
def test_nothing_looks_at_a_value(name: str, events: list[Event]) -> None:
    compute, tensors = (LOGITS[name], [numbers(N, V)]) if name in LOGITS else (HEADS[name], head(torch.bfloat16))
    assert not looked(lambda: values_of(compute, tensors))


DRAWS: dict[str, Callable[[], F.Sample]] = {
    "all classes": lambda: F.categorical(numbers(N, V).detach(), 3, temperature=0.7, seed=1),
    "top_k first": lambda: F.categorical(numbers(N, V).detach(), top_k=5, top_p=0.9, min_p=0.01, seed=1),
    "hidden states": lambda: F.linear_categorical(*(t.detach() for t in head(torch.bfloat16)[:2]), seed=1),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_with_a_seed_look_at_no_value(name: str, events: list[Event]) -> None:
    assert not looked(DRAWS[name])


def looked(compute: Callable[[], Any]) -> set[str]:
    """Return what looked at a value while something was computed."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as seen:
        compute()
    asked = {event.name for event in seen.events() or ()}
    assert "aten::empty" in asked
    return asked & LOOKS


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_those_of_the_specification(name: str, events: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [numbers(N, V)]
    exact, got = exactly(LOGITS[name], tensors, monkeypatch), values_of(LOGITS[name], tensors)
    with monkeypatch.context() as near:
        near.setenv("LASTLAYER_BACKEND", "cpu")
        near.setattr(later, "is_far", lambda tensor: False)
        dense = values_of(LOGITS[name], tensors)
    for each, truth, other in zip(got, exact, dense, strict=True):
        laws.assert_within(each.reshape(1, -1), truth.reshape(1, -1), other.reshape(1, -1), "float32", terms=V)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's compiler's own imports
@pytest.mark.parametrize("name", LOGITS)
def test_one_graph_has_the_same_kernels(name: str, events: list[Event]) -> None:
    torch._dynamo.reset()
    z = numbers(N, V)
    compiled = torch.compile(LOGITS[name], fullgraph=True, backend="aot_eager")
    got, expected = ([t.float() for t in values_of(f, [z])] for f in (compiled, LOGITS[name]))
    torch.testing.assert_close(got, expected, equal_nan=True)


def test_a_scaled_loss_of_float16_keeps_its_small_gradients(events: list[Event]) -> None:
    """A share of a mean over many rows underflows in float16, unless the loss was scaled up before."""
    rows = 2048
    z = numbers(rows, 5, dtype=torch.float16)
    (got,) = torch.autograd.grad(2.0**15 * F.cross_entropy(z, torch.arange(rows) % 5).float(), z)
    exact = z.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(2.0**15 * T.cross_entropy(exact, torch.arange(rows) % 5), exact)
    torch.testing.assert_close(got.double(), expected, rtol=2.0**-10, atol=2.0**-14)


def outside() -> Tensor:
    """Targets, of which the one of row 4 is no class."""
    return targets(2).index_fill(0, torch.tensor([4]), V)


BAD = rf"target\[4\] = {V} is outside \[0, {V}\)"
CHECKED: dict[str, Callable[[Tensor], Any]] = {
    "cross_entropy": lambda y: F.cross_entropy(numbers(N, V), y),
    "nll_loss": lambda y: F.nll_loss(numbers(N, V), y),
    "logit_statistics": lambda y: F.logit_statistics(numbers(N, V), y).logsumexp,
    "linear_cross_entropy": lambda y: F.linear_cross_entropy(*head(torch.float32)[:2], y),
    "linear_logit_statistics": lambda y: F.linear_logit_statistics(*head(torch.float32)[:2], y).logsumexp,
    "linear_loss": lambda y: F.linear_loss(lambda s: -s.logprob, *head(torch.float32)[:2], y),
}


@pytest.mark.parametrize("name", CHECKED)
def test_a_target_that_is_no_class_is_an_error_later(name: str, events: list[Event]) -> None:
    found = CHECKED[name](outside())
    if "statistics" not in name and name != "linear_loss":
        assert found.isnan().all()
    assert events
    CHECKED[name](targets())  # what is under way says nothing yet
    for event in events:
        event.done = True
    with pytest.raises(IndexError, match=BAD):
        CHECKED[name](targets())
    F.check_errors()  # said once


def test_check_errors_waits(events: list[Event]) -> None:
    F.cross_entropy(numbers(N, V), targets(2))
    F.check_errors()
    F.cross_entropy(numbers(N, V), outside())
    with pytest.raises(IndexError, match=BAD):
        F.check_errors()
    assert all(event.done for event in events)


def test_validate_says_when(events: list[Event]) -> None:
    z = numbers(N, V)
    for loss in (F.cross_entropy, F.nll_loss):
        with pytest.raises(IndexError, match=BAD):
            loss(z, outside(), validate=True)
        posted = len(events)
        assert loss(z, outside(), validate=False).isnan()
        assert len(events) == posted


def test_what_is_under_way_is_bounded(events: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later, "MOST", 3)
    for target in (outside(), targets(), targets()):
        F.cross_entropy(numbers(N, V), target)
    with pytest.raises(IndexError, match=BAD):
        F.cross_entropy(numbers(N, V), targets())


def test_rows_that_cannot_be_drawn_from_are_an_error_later(events: list[Event]) -> None:
    z = numbers(3, V).detach()
    z[1] = -math.inf
    F.categorical(z, seed=1)
    with pytest.raises(ValueError, match=r"row\[1\] of input has no logit above -inf"):
        F.check_errors()


def test_capturing_a_graph_asks_nothing(events: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (later, functional):
        monkeypatch.setattr(module, "capturing", lambda tensor: True)
    for name in CHECKED:
        CHECKED[name](outside())
    assert not events


def test_operands_of_16_bits_are_multiplied_as_they_are(events: list[Event]) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        MULTIPLIED.clear()
        values_of(HEADS["mean"], head(dtype))
        assert set(MULTIPLIED) == {dtype}


def test_gradients_of_16_bits_lie_over_the_second_half_of_each_row(events: list[Event]) -> None:
    h, w, _ = (t.detach() for t in head(torch.bfloat16))
    stream = Stream(TorchProducts(h), h, Head(w), None, None, None)
    z = stream.compute(h, slice(0, V))
    dz = stream.gradient_room(z)
    assert dz.shape == z.shape
    assert dz.dtype == torch.bfloat16
    row = 4 * z.stride(0)
    assert row == 2 * dz.stride(0)
    assert dz.data_ptr() - z.data_ptr() == row // 2


def test_the_default_budget_holds_rows_enough_for_matrix_units(events: list[Event]) -> None:
    products = TorchProducts(torch.empty(0, dtype=torch.bfloat16))
    step = padded(50_257, products.align)
    assert step * 4 % 128 == 0
    assert products.budget(10**6, 50_257, 768) == ROWS * (step + 2 * 768) * 4
    assert products.budget(100, 1000, 768) == 64 * 2**20  # never less than on a CPU


def test_the_backend_named_takes_tensors_only(events: list[Event]) -> None:
    assert _backends.choose(torch.empty(1, 2)) is _backends.gpu()
    with pytest.raises(RuntimeError, match="'triton' does not take a NumPy array of float32"):
        _backends.choose(numbers(1, 2).detach().numpy())
