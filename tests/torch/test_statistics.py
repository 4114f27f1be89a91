"""The two paths of statistics.py: when a gradient is formed, how often, and who owns it; results written to ``out``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import laws
import numpy as np
import pytest
import torch
import torch.nn.functional as T
from torch import Tensor

import lastlayer.torch as F
from lastlayer import _backends

HALVES = (torch.float16, torch.bfloat16)
LOSSES: dict[str, Callable[..., Tensor]] = {
    "mean": lambda f, z, y: f.cross_entropy(z, y),
    "sum": lambda f, z, y: f.cross_entropy(z, y, reduction="sum"),
    "none": lambda f, z, y: f.cross_entropy(z, y, reduction="none").sum(),
    "smooth": lambda f, z, y: f.cross_entropy(z, y, label_smoothing=0.1),
    "probabilities": lambda f, z, y: f.cross_entropy(z, T.one_hot(y, z.shape[1]).to(z.dtype)),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(2026)


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def gradient(loss: Tensor, z: Tensor, upstream: float = 1.0, **options: Any) -> Tensor:
    (dz,) = torch.autograd.grad(loss, z, torch.full_like(loss, upstream), **options)
    return dz


def problem(classes: int = 9) -> tuple[Tensor, Tensor]:
    return torch.randn(6, classes).mul_(3).requires_grad_(), torch.randint(classes, (6,))


@pytest.fixture
def formed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The calls of the backend's loss: whether each one forms a gradient."""
    calls: list[bool] = []
    backend = _backends.choose(torch.zeros(1, 1))
    loss = backend.loss

    def spy(*arguments: Any, out: Any = None, **options: Any) -> float:
        calls.append(out is not None)
        return loss(*arguments, out=out, **options)

    monkeypatch.setattr(backend, "loss", spy)
    return calls


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_out_receives_the_same_bits(name: str, dtype: torch.dtype) -> None:
    for shape, dim in (((5, 3), 1), ((4, 300), -1), ((3, 70, 4), 1), ((7,), 0)):
        z = torch.randn(shape).to(dtype)
        expected = getattr(F, name)(z, dim)
        gaps = torch.full((*shape[:-1], 2 * shape[-1]), torch.nan, dtype=dtype)
        for out in (torch.full_like(z, torch.nan), gaps[..., ::2]):
            assert getattr(F, name)(z, dim, out=out) is out
            assert torch.equal(out, expected)
        assert gaps[..., 1::2].isnan().all()


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize(
    "out", [torch.zeros(0), torch.zeros(2, 2), torch.zeros(4, 3).double(), torch.zeros(4, 3).int()]
)
def test_an_out_that_does_not_fit_is_torchs(name: str, out: Tensor) -> None:
    z, outcomes = torch.randn(4, 3), []
    for module in (F, torch):
        target = out.clone()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a tensor that is no longer empty is resized under protest
                result = getattr(module, name)(z, 1, out=target)
            outcomes.append((result is target, tuple(target.shape), target.dtype, None))
            torch.testing.assert_close(target, getattr(torch, name)(z, 1).to(target.dtype))
        except RuntimeError as error:
            outcomes.append((False, (), target.dtype, type(error)))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_out_has_no_gradient(name: str) -> None:
    function, z, out = getattr(F, name), torch.randn(2, 3), torch.empty(2, 3)
    for arguments in ((leaf(z), out), (z, leaf(out))):
        with pytest.raises(RuntimeError, match="not differentiable"):
            function(arguments[0], 1, out=arguments[1])
        with torch.no_grad():
            assert torch.equal(function(arguments[0], 1, out=arguments[1]), function(z, 1))


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "probabilities"])
@pytest.mark.parametrize("classes", [9, 90])
def test_a_target_with_gaps_is_its_copy(loss: str, classes: int) -> None:
    z = torch.randn(6, classes).requires_grad_()
    gaps = torch.randint(classes, (12,))
    gaps[1::2] = 0
    gaps[::2][3] = -100
    for y in (gaps[::2], gaps[::2].flip(0).view(2, 3).t().reshape(6), gaps.view(6, 2)[:, 0]):
        got, expected = (LOSSES[loss](F, z, target) for target in (y, y.clone(memory_format=torch.contiguous_format)))
        assert torch.equal(got, expected)
        assert torch.equal(gradient(got, z), gradient(expected, z))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("upstream", [1.0, 2.0, 0.3])
@pytest.mark.parametrize("classes", [9, 90])
def test_a_graph_gives_its_gradient_as_often_as_asked(loss: str, upstream: float, classes: int) -> None:
    z, y = problem(classes)
    graph = LOSSES[loss](F, z, y)
    first = gradient(graph, z, upstream, retain_graph=True).clone()
    for again in (upstream, 1.0, upstream):  # the one formed ahead has been handed out
        last = gradient(graph, z, again, retain_graph=True)
    assert torch.equal(last, first)
    x = leaf(z.double())
    factor = float(torch.tensor(upstream))
    exact = gradient(LOSSES[loss](T, x, y), x, factor)
    dense = gradient(LOSSES[loss](T, z, y), z, upstream)
    laws.assert_within(first, exact, dense, np.float32, loss, classes + 3, abs(factor) / (6 if loss == "mean" else 1))


def test_a_gradient_once_given_is_not_written_again() -> None:
    z, y = problem()
    loss = F.cross_entropy(z, y)
    loss.backward(retain_graph=True)
    assert z.grad is not None
    given, copy = z.grad, z.grad.clone()
    z.grad = None
    loss.backward(torch.tensor(0.3), retain_graph=True)
    assert torch.equal(given, copy)
    assert z.grad.data_ptr() != given.data_ptr()
    z.grad = None
    loss.backward()
    assert torch.equal(z.grad, copy)
    assert torch.equal(given, copy)


def test_a_gradient_is_formed_with_the_loss_of_a_sum(formed: list[bool]) -> None:
    z, y = problem()
    loss = F.cross_entropy(z, y)
    assert formed == [True]
    gradient(loss, z, retain_graph=True)
    assert formed == [True]  # handed out
    gradient(loss, z)
    assert formed == [True, True]
    formed.clear()
    gradient(F.cross_entropy(z, y, reduction="none").sum(), z)
    assert formed == [False, True]
    formed.clear()
    with torch.no_grad():
        F.cross_entropy(z, y)
    F.cross_entropy(z.detach(), y)
    assert formed == [False, False]


@pytest.mark.parametrize("hooks", ["to another place", "packed"])
def test_no_gradient_is_formed_ahead_of_hooks_that_hold_what_is_saved(formed: list[bool], hooks: str) -> None:
    z, y = problem()
    expected = gradient(F.cross_entropy(z, y), z)
    formed.clear()
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor)
        return len(packed) - 1

    graph = torch.autograd.graph
    with graph.save_on_cpu() if hooks != "packed" else graph.saved_tensors_hooks(pack, packed.__getitem__):
        loss = F.cross_entropy(z, y)
    assert formed == [False]
    assert torch.equal(gradient(loss, z), expected)
    assert formed == [False, True]
    assert bool(packed) == (hooks == "packed")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("upstream", [1.0, 0.3])
def test_a_linear_head_gives_its_gradients_as_often_as_asked(reduction: str, upstream: float) -> None:
    h, w, b = torch.randn(7, 5).requires_grad_(), torch.randn(33, 5).requires_grad_(), torch.randn(33).requires_grad_()
    y = torch.randint(33, (7,))
    y[2] = -100
    loss = F.linear_cross_entropy(h, w, y, linear_bias=b, reduction=reduction).sum()
    factor = torch.tensor(upstream)
    first = [dx.clone() for dx in torch.autograd.grad(loss, (h, w, b), factor, retain_graph=True)]
    for again in (1.0, upstream):
        last = torch.autograd.grad(loss, (h, w, b), torch.tensor(again), retain_graph=True)
    exact = [leaf(t.double()) for t in (h, w, b)]
    truth = T.cross_entropy(T.linear(exact[0], exact[1], exact[2]), y, reduction=reduction).sum()
    dense = T.cross_entropy(T.linear(h, w, b), y, reduction=reduction).sum()
    truths = torch.autograd.grad(truth, exact, factor.double())
    for one, two, value, plain in zip(first, last, truths, torch.autograd.grad(dense, (h, w, b), factor), strict=True):
        assert torch.equal(one, two)
        laws.assert_within(*(t.flatten()[None] for t in (one, value, plain)), np.float32, reduction, terms=7 * 33)
    loss.backward(factor, retain_graph=True)
    given = [t.grad for t in (h, w, b)]
    h.grad = w.grad = b.grad = None
    loss.backward(torch.tensor(2.0))
    for before, dx in zip(given, first, strict=True):
        assert torch.equal(before, dx)


@pytest.mark.parametrize("budget", [2**26, 4000])
def test_a_token_without_weight_is_silent_whatever_the_budget(budget: int) -> None:
    h, w = torch.tensor([[1e30], [1.0]], requires_grad=True), torch.zeros(4000, 1)
    w[0], w[2] = 1e10, 1  # the first token's logsumexp is infinite, its factor 0
    w.requires_grad_()
    factor, y = torch.tensor([0.0, 1.0]), torch.tensor([1, 2])
    options = {"z_loss": 0.1, "token_weight": factor, "reduction": "sum", "memory_budget": budget}
    F.linear_cross_entropy(h, w, y, **options).backward()
    assert h.grad is not None
    assert w.grad is not None
    assert h.grad[0] == 0
    assert w.grad.isfinite().all()


@pytest.mark.parametrize("budget", [2**26, 4000])
def test_the_square_of_an_infinite_logsumexp_is_infinite_whatever_the_budget(budget: int) -> None:
    h, w, weight = torch.tensor([[1e30]]), torch.zeros(4000, 1), torch.ones(4000)
    w[0], weight[1] = 1e10, 0  # only z_loss is left of the loss, and the specification's inf^2 is inf
    options = {"weight": weight, "z_loss": 0.1, "reduction": "sum", "memory_budget": budget}
    assert F.linear_cross_entropy(h, w, torch.tensor([1]), **options) == torch.inf


def test_threads_are_shared_only_where_there_is_a_runtime() -> None:
    native = pytest.importorskip("lastlayer._native")
    assert native.share_threads("/nowhere") is False


def test_out_may_overlap_the_input() -> None:
    memory = torch.randn(7, 70)
    for z, out in ((memory[:6], memory[1:]), (memory, memory), (memory[:, :60], memory[:, 10:])):
        start = memory.clone()
        expected = F.softmax(z.clone(), -1)
        assert torch.equal(F.softmax(z, -1, out=out), expected)
        memory.copy_(start)
    with pytest.raises(RuntimeError, match="single memory location"):
        F.softmax(torch.randn(3, 4), -1, out=torch.empty(1, 4).expand(3, 4))


def test_what_is_no_tensor_is_a_type_error() -> None:
    for input in (None, [[0.0, 1.0]]):
        with pytest.raises(TypeError, match="input must be a Tensor"):
            F.cross_entropy(input, torch.tensor([0]))  # type: ignore[arg-type]
