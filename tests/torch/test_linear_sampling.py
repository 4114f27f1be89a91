"""Draws from hidden states, with tensors: those of the logits and of NumPy; and what is PyTorch's own around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lastlayer
import lastlayer.torch as F
from lastlayer import _backends, _linear_draws
from lastlayer.sampling import Sample

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LEADING, FEATURES, CLASSES = (4, 3), 4, 3000
ROOMY = 1 << 26
BUDGETS = [ROOMY, 130_000, 60_000]  # all rows at once; tiles, or chunks of whole rows where they are needed
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several": {"num_samples": 5, "temperature": torch.tensor([[0.0], [0.5], [1.0], [2.0]])},
    "top_k": {"top_k": 7, "temperature": 0.7, "num_samples": 3},
    "per row": {"top_k": torch.tensor([0, 3, 50]), "top_p": torch.tensor([0.5, 1.0, 0.9])},
    "vllm": {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "temperature": 0.8, "order": "vllm"},
    "typical_p": {"typical_p": 0.7, "num_samples": 2},
    "penalties and bans": {"token_ids": torch.tensor([3, 5, 5]), "presence_penalty": 1.5, "bans": ([0, 11], [2, 0])},
    "without replacement": {"num_samples": 4, "replacement": False},
}  # fmt: skip


def problem(dtype: Any, classes: int = CLASSES, spread: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, weight and bias whose logits are exact."""
    random = torch.Generator().manual_seed(classes)

    def eighths(*shape: int) -> Tensor:
        return (torch.randint(-8, 9, shape, generator=random) / 8).to(dtype)

    return eighths(*LEADING, FEATURES) * spread, eighths(classes, FEATURES), eighths(classes)


def logits(h: Tensor, w: Tensor, b: Tensor | float = 0.0) -> Tensor:
    """Return the logits in the type that they are computed in."""
    kind = torch.float64 if h.dtype == torch.float64 else torch.float32
    return h.to(kind) @ w.to(kind).T + (b.to(kind) if isinstance(b, Tensor) else b)


def assert_same(got: Sample, expected: Sample) -> None:
    """Integers are equal; numbers to the roundings of two sums of float32 terms."""
    for name, a, b in zip(Sample._fields, got, expected, strict=True):
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        allowed = 2 * (2 + CLASSES.bit_length()) * 2.0**-23 if a.is_floating_point() else 0.0
        torch.testing.assert_close(a, b, rtol=allowed, atol=allowed, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_draws_are_those_of_the_logits(dtype: Any, budget: int, options: dict[str, Any]) -> None:
    h, w, b = problem(dtype)
    expected = F.categorical(logits(h, w, b), **options, seed=5)
    assert_same(F.linear_categorical(h, w, linear_bias=b, memory_budget=budget, **options, seed=5), expected)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9, "temperature": 0.5}], ids=str)
def test_draws_are_those_of_numpy(budget: int, options: dict[str, Any]) -> None:
    h, w, b = problem(torch.float32)
    head = {"softcap": 6.0, "scale": 0.5, "memory_budget": budget}
    got = F.linear_categorical(h, w, 3, linear_bias=b, seed=1, **head, **options)
    expected = lastlayer.linear_categorical(h.numpy(), w.numpy(), 3, linear_bias=b.numpy(), seed=1, **head, **options)
    np.testing.assert_array_equal(got.kept.numpy(), expected.kept)
    same = got.index.numpy() == expected.index
    assert same.mean() > 0.9  # tanh is not the same to the last bit


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("k", [1, 7, 1500])
@pytest.mark.parametrize("budget", [ROOMY, 800_000])
def test_the_largest_logits_are_those_of_a_stable_sort(dtype: Any, k: int, budget: int) -> None:
    h, w, b = problem(dtype)
    b[::5] = -torch.inf
    z = logits(h, w, b).double()
    value, index = (each[..., :k] for each in z.sort(dim=-1, descending=True, stable=True))
    got = F.linear_topk(h, w, k, linear_bias=b, memory_budget=budget)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    assert got.value.dtype == got.logprob.dtype == got.logsumexp.dtype == kind
    assert torch.equal(got.index, index)
    assert torch.equal(got.value.double(), value)
    exact = z.log_softmax(-1).gather(-1, index)
    allowed = (1 + CLASSES.bit_length()) * torch.finfo(kind).eps
    torch.testing.assert_close(got.logprob.double(), exact, rtol=allowed, atol=allowed)
    torch.testing.assert_close(got.logsumexp.double(), z.logsumexp(-1), rtol=allowed, atol=allowed)


class Largest(TorchDispatchMode):  # type: ignore[misc]
    """Remembers the most elements any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.skipif(
    _backends.choose(np.zeros((1, 1))) is _backends.reference, reason="the reference makes float64 copies of a tile"
)
@pytest.mark.parametrize("options", [{}, {"top_k": 50}, {"typical_p": 0.9}, {"top_p": 0.9}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_array_of_n_times_v(options: dict[str, Any], dtype: Any) -> None:
    rows, classes, features, budget = 2000, 4000, 8, 2**20
    h, w = torch.randn(rows, features).to(dtype), torch.randn(classes, features).to(dtype)
    with Largest() as seen:
        F.linear_categorical(h, w, memory_budget=budget, seed=1, **options)
        F.linear_topk(h, w, 3, memory_budget=budget)
    assert 0 < seen.elements * 4 <= budget


def test_a_generator_makes_the_seed_and_nothing_wants_a_gradient() -> None:
    h, w, b = (tensor.requires_grad_() for tensor in problem(torch.float32))
    one, two = (torch.Generator().manual_seed(7) for _ in range(2))
    for budget in BUDGETS:
        got = F.linear_categorical(h, w, 4, linear_bias=b, generator=one, memory_budget=budget)
        expected = F.categorical(logits(h, w, b), 4, generator=two)
        assert_same(got, expected)
        assert not any(field.requires_grad for field in got)
    assert not F.linear_topk(h, w, 2, linear_bias=b).logprob.requires_grad
    torch.manual_seed(3)
    got = F.linear_categorical(h, w)
    torch.manual_seed(3)
    assert torch.equal(got.index, F.categorical(logits(h, w)).index)


def test_the_default_generators_draws_differ() -> None:
    h, w, _ = problem(torch.float32)
    assert not torch.equal(F.linear_categorical(h, w, 9).index, F.linear_categorical(h, w, 9).index)


def test_autocast_multiplies_what_it_would_have_multiplied() -> None:
    h, w, b = problem(torch.float32)
    h = h + torch.rand(h.shape, generator=torch.Generator().manual_seed(1)) / 8  # bfloat16 rounds it
    with torch.autocast("cpu", torch.bfloat16):
        got = F.linear_categorical(h, w, linear_bias=b, seed=2)
        best = F.linear_topk(h, w, 3, linear_bias=b)
    rounded = logits(h.bfloat16(), w.bfloat16(), b.bfloat16())
    assert torch.equal(got.index, F.categorical(rounded, seed=2).index)
    assert torch.equal(best.index, rounded.sort(dim=-1, descending=True, stable=True).indices[..., :3])


def test_inputs_of_any_strides() -> None:
    h, w, b = problem(torch.float32)
    expected = F.linear_categorical(h, w, linear_bias=b, seed=2, top_k=9)
    apart, across = torch.stack([h, h], -1)[..., 0], w.T.contiguous().T
    for budget in BUDGETS:
        got = F.linear_categorical(apart, across, linear_bias=b, seed=2, top_k=9, memory_budget=budget)
        assert_same(got, expected)


def test_torch_compile_calls_it() -> None:
    h, w, _ = problem(torch.float32)
    call = torch.compile(lambda h: F.linear_categorical(h * 2, w, seed=1).index + 1, backend="eager")
    assert torch.equal(call(h), F.linear_categorical(h * 2, w, seed=1).index + 1)


ONES, FIVE = torch.ones(4, 3), torch.ones(5, 3)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": torch.ones(4, 2)}, RuntimeError, "got 2 and 3"),
    ({"input": [1.0]}, TypeError, "input"),
    ({"input": torch.ones(4, 3, dtype=torch.int64)}, RuntimeError, "floating point"),
    ({"input": ONES.double()}, RuntimeError, "linear_weight has dtype"),
    ({"linear_weight": torch.ones(0, 3)}, RuntimeError, "at least one class"),
    ({"linear_weight": torch.ones(5, 3, 1)}, ValueError, r"expected \(V, D\)"),
    ({"linear_weight": FIVE.to("meta")}, RuntimeError, "meta"),
    ({"linear_bias": torch.ones(4)}, RuntimeError, "expected linear_bias shape"),
    ({"softcap": -1.0}, ValueError, "softcap = -1.0"),
    ({"memory_budget": 3}, ValueError, "memory_budget = 3 bytes is too small: at least"),
]
OF_DRAWS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"temperature": -1.0}, ValueError, "temperature = -1.0"),
    ({"seed": 1, "generator": torch.Generator()}, ValueError, "seed and generator are both given"),
    ({"top": 3}, TypeError, "unexpected argument 'top'"),
    ({"linear_bias": torch.tensor([0.0, torch.nan, 0, 0, 0])}, ValueError, r"row\[0\] of input has NaN"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD + OF_DRAWS, ids=lambda x: x if isinstance(x, str) else None)
def test_bad_input_of_draws_is_named(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        F.linear_categorical(**{"input": ONES, "linear_weight": FIVE, **change})


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=lambda x: x if isinstance(x, str) else None)
def test_bad_input_of_topk_is_named(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        F.linear_topk(**{"input": ONES, "linear_weight": FIVE, "k": 2, **change})


def test_k_is_checked() -> None:
    with pytest.raises(ValueError, match=r"k = 6 is outside \[1, 5\]"):
        F.linear_topk(ONES, FIVE, 6)


def test_these_budgets_make_tiles() -> None:
    h, w, _ = problem(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        real = _linear_draws.tiled
        patch.setattr(_linear_draws, "tiled", lambda request, plan: (seen.append(plan), real(request, plan))[1])
        for budget in BUDGETS:
            F.linear_categorical(h, w, seed=1, memory_budget=budget)
    assert len(seen) == 2
    assert all(plan.classes < CLASSES for plan in seen)
