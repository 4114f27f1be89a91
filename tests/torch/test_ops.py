"""The operators that torch.compile takes: torch's own check of each, and whole graphs equal to the eager functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

import lastlayer.torch as F  # noqa: E402
from lastlayer.torch import later, ops, row_softmax  # noqa: E402

# torch's compiler imports what is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

N, V, D = 7, 11, 5


@pytest.fixture(autouse=True)
def _no_graphs_of_others() -> None:
    torch._dynamo.reset()


def numbers(*shape: int, dtype: Any = torch.float32, seed: int = 0) -> Tensor:
    """Random tensors that want a gradient."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def targets(*ignored: int) -> Tensor:
    """Classes, some of them -100."""
    y = torch.arange(N) * 3 % V
    return y.index_fill(0, torch.tensor(ignored, dtype=torch.int64), -100)


def head(dtype: Any = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and bias."""
    return numbers(N, D, dtype=dtype), numbers(V, D, dtype=dtype, seed=1), numbers(V, dtype=dtype, seed=2)


def share(*rows: int) -> Tensor:
    """Factors of the rows, 0 in some."""
    return torch.full((N,), 1 / N, dtype=torch.float64).index_fill(0, torch.tensor(rows, dtype=torch.int64), 0.0)


U, SOFT = torch.rand(V, dtype=torch.float64), torch.softmax(torch.randn(N, V), 1)
OPERATORS: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "linear_cross_entropy": lambda: (
        ops._linear_cross_entropy,
        (*head(), targets(), U, None, share(), share(2), share(), 1.5, 20.0, None, 0.1, [True, True, True]),
    ),
    "linear_cross_entropy[soft, no gradient of the weight]": lambda: (
        ops._linear_cross_entropy,
        (*head()[:2], None, None, U.float(), SOFT, None, share(), None, 1.0, None, 4000, 0.1, [True, False, False]),
    ),
    "linear_cross_entropy[float16]": lambda: (
        ops._linear_cross_entropy,
        (*head(torch.float16), targets(), None, None, share(), None, None, 1.0, None, None, 0.0, [True, True, True]),
    ),
    "linear_statistics": lambda: (
        ops._linear_statistics,
        (*head(), targets(), U.float(), 1.0, None, None, True, True, True, [True, True, True]),
    ),
    "linear_statistics[K targets]": lambda: (
        ops._linear_statistics,
        (
            *head()[:2], None, torch.stack([targets(), (targets() + 1) % V], 1), None, 1.0, None, None, False, True,
            False, [True, True, False],
        ),
    ),
    "linear_statistics[no target]": lambda: (
        ops._linear_statistics,
        (*head()[:2], None, None, U.float(), 1.0, None, None, True, False, True, [True, True, False]),
    ),
    "row_losses": lambda: (
        ops._row_losses,
        (numbers(N, V), targets(2), torch.rand(V), [1.0, 0.5, math.nan], [share(2), None, None], -100),
    ),
    "softmax": lambda: (row_softmax._operator, (numbers(N, V), 1, False)),
    "log_softmax": lambda: (row_softmax._operator, (numbers(N, V), 0, True)),
    "check_classes": lambda: (later._checked, (targets(2), targets(2) == -100, V)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str) -> None:
    operator, arguments = OPERATORS[name]()
    found = torch.library.opcheck(operator, arguments)
    assert set(found.values()) == {"SUCCESS"}


def test_a_target_that_is_no_class_is_an_error_of_the_graph_too() -> None:
    compiled = torch.compile(F.linear_cross_entropy, backend="aot_eager", fullgraph=True)
    h, w, _ = head()
    compiled(h, w, targets(2))
    with pytest.raises(IndexError, match=r"target\[3\] = 11 is outside \[0, 11\)"):
        compiled(h, w, targets().index_fill(0, torch.tensor([3]), V))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "mean": lambda h, w, b, y: F.linear_cross_entropy(h, w, y, linear_bias=b, label_smoothing=0.1, z_loss=1e-3),
    "sum": lambda h, w, b, y: F.linear_cross_entropy(h, w, y, linear_bias=b, reduction="sum", softcap=3.0, scale=2.0),
    "none": lambda h, w, b, y: F.linear_cross_entropy(h, w, y, linear_bias=b, reduction="none").square().sum(),
    "weights": lambda h, w, b, y: F.linear_cross_entropy(h, w, y, linear_bias=b, weight=U.to(h.dtype)),
    "tokens": lambda h, w, b, y: F.linear_cross_entropy(h, w, y, linear_bias=b, token_weight=share(1).to(h.dtype)),
    "probabilities": lambda h, w, b, y: F.linear_cross_entropy(h, w, SOFT.to(h.dtype), linear_bias=b),
    "budget": lambda h, w, b, y: F.linear_cross_entropy(h, w, y, linear_bias=b, memory_budget=1000),
    "statistics": lambda h, w, b, y: sum(
        (field * (i + 1)).sum()
        for i, field in enumerate(F.linear_logit_statistics(h, w, y, linear_bias=b, entropy=True, rank=True))
        if field is not None
    ),
    "any loss": lambda h, w, b, y: F.linear_loss(
        lambda s, a: -a * s.logprob * s.entropy, h, w, y, torch.arange(1.0, N + 1), linear_bias=b, entropy=True
    ),
}


@pytest.mark.parametrize("ignored", [(), (2, 5), tuple(range(N))])
@pytest.mark.parametrize("name", LOSSES)
def test_one_graph_gives_the_eager_values_and_gradients(name: str, ignored: tuple[int, ...]) -> None:
    tensors, y = head(), targets(*ignored)
    compiled = torch.compile(LOSSES[name], backend="aot_eager", fullgraph=True)
    got, expected = compiled(*tensors, y), LOSSES[name](*tensors, y)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(3.0 * loss, tensors) for loss in (got, expected)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_graph_of_16_bits(dtype: Any) -> None:
    tensors = head(dtype)
    compiled = torch.compile(LOSSES["mean"], backend="aot_eager", fullgraph=True)
    for loss in (compiled(*tensors, targets(1)), LOSSES["mean"](*tensors, targets(1))):
        assert loss.dtype == torch.float32
        got = torch.autograd.grad(loss, tensors)
        assert {g.dtype for g in got} == {dtype}
    torch.testing.assert_close(got, torch.autograd.grad(compiled(*tensors, targets(1)), tensors))


def test_small_gradients_of_float16_reach_a_scaled_loss() -> None:
    """A share of a mean over many rows underflows in float16: it must be rounded after it was scaled up."""
    rows = 4096
    h, w = numbers(rows, D, dtype=torch.float16), numbers(V, D, dtype=torch.float16, seed=1)
    y = torch.arange(rows) % V
    exact = [t.detach().double().requires_grad_() for t in (h, w)]
    expected = torch.autograd.grad(65536.0 * F.linear_cross_entropy(*exact, y), exact)
    got = torch.autograd.grad(65536.0 * F.linear_cross_entropy(h, w, y), [h, w])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2.0**-10, atol=2.0**-20)
