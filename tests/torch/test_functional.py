"""lastlayer.torch's functions: torch's numbers where torch is right, the digits and the rows that torch loses."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as T
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lastlayer.torch as F
from lastlayer import _backends
from lastlayer.torch import functional
from lastlayer.torch.statistics import row_statistics

INF, NAN = math.inf, math.nan
LOGITS = torch.tensor([[1.0, 2.0, 0.1], [1.2, 0.5, 0.3], [0.4, 1.0, 1.5]])
LABELS = torch.tensor([2, 0, 1])
HALVES = (torch.float16, torch.bfloat16)
REDUCTIONS = ("none", "mean", "sum")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(2026)


def grad(loss: Tensor, *tensors: Tensor, upstream: Tensor | None = None) -> Any:
    """Return the gradient of a loss by one tensor, or by several."""
    got = torch.autograd.grad(loss, tensors, torch.ones_like(loss) if upstream is None else upstream)
    return got[0] if len(got) == 1 else got


def leaf(tensor: Tensor) -> Tensor:
    """Return a copy that requires a gradient."""
    return tensor.detach().clone().requires_grad_()


def eps(dtype: torch.dtype) -> float:
    """Return the relative spacing of a type."""
    return torch.finfo(dtype).eps


def exact_row(z: list[float], y: int) -> tuple[Any, list[Any]]:
    """Return -log p_y and its gradient in mpmath, from differences only."""
    with mpmath.workdps(60):
        w = [mpmath.exp(mpmath.mpf(v) - mpmath.mpf(z[y])) for v in z]
        rest = mpmath.fsum(w[:y] + w[y + 1 :])
        gradient = [v / (1 + rest) for v in w]
        gradient[y] = -rest / (1 + rest)
        return mpmath.log1p(rest), gradient


# What the issue this project began with asks for


def test_the_numbers_of_the_issue() -> None:
    assert round(F.cross_entropy(LOGITS, LABELS).item(), 4) == 1.3743
    assert round(F.nll_loss(F.log_softmax(LOGITS, dim=1), LABELS).item(), 4) == 1.3743
    z, y = leaf(torch.tensor([[0.2, 0.5, -0.1], [-0.1, 0.1, 0.3]])), torch.tensor([1, 2])
    each = F.cross_entropy(z, y, reduction="none")
    assert [round(v, 4) for v in each.tolist()] == [0.8284, 0.9119]
    mean = F.cross_entropy(z, y)
    assert round(mean.item(), 7) == 0.8701458
    expected = (T.softmax(z.double(), 1) - T.one_hot(y, 3)) / 2
    torch.testing.assert_close(grad(mean, z), expected.float())


def test_softmax_sums_to_one_in_each_row() -> None:
    p = F.softmax(torch.randn(2, 4, 8), dim=-1)
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 4))
    assert p.sum(-1).numel() == 8


def test_probabilities_in_nll_loss_are_reported() -> None:
    p = F.softmax(LOGITS, dim=1)
    with pytest.warns(
        F.NotLogProbabilityWarning, match=r"row\[0\] is .*probabilities were passed.*cross_entropy"
    ) as seen:
        loss = F.nll_loss(p, LABELS)
    assert round(loss.item(), 4) == -0.3123
    assert seen[0].filename == __file__
    with pytest.warns(F.NotLogProbabilityWarning, match=r"row\[1\] is 1.2, above 0.*raw logits were passed"):
        F.nll_loss(LOGITS, torch.tensor([-100, 0, 1]))
    assert round(F.nll_loss(p, LABELS, validate=False).item(), 4) == -0.3123


def test_a_bad_target_is_named() -> None:
    z = torch.zeros(5, 50257)
    for function in (F.cross_entropy, F.nll_loss):
        with pytest.raises(IndexError, match=r"^target\[3\] = 50257 is outside \[0, 50257\)$"):
            function(z, torch.tensor([0, 1, 2, 50257, -100]))
    with pytest.raises(IndexError, match=r"^target\[1, 0\] = -1 is outside"):
        F.cross_entropy(torch.zeros(2, 3, 4), torch.tensor([[0, 1, 2, 0], [-1, 0, 0, 0]]))
    with pytest.raises(IndexError, match=r"^target = 7 is outside"):
        F.cross_entropy(torch.zeros(3), torch.tensor(7))


# Digits


@pytest.mark.parametrize("offset", [0.0, 30.0, 3000.0])
@pytest.mark.parametrize("through", ["cross_entropy", "nll_loss of log_softmax"])
def test_confident_rows_keep_their_digits(offset: float, through: str) -> None:
    margins = torch.arange(0.0, 61.0, 4.0)
    z = torch.randn(len(margins), 1000)
    z[:, 7] = z.amax(1) + margins
    z = leaf(z + offset)
    y = torch.full((len(margins),), 7)
    y[-3:] = torch.tensor([0, 7, 999])
    if through == "cross_entropy":
        loss = F.cross_entropy(z, y, reduction="none")
    else:
        loss = F.nll_loss(F.log_softmax(z, dim=1), y, reduction="none")
    dz = grad(loss, z)
    for row in range(len(margins)):
        exact, gradient = exact_row(z[row].tolist(), int(y[row]))
        assert abs(loss[row].item() / float(exact) - 1) < 1e-5  # the issue's bound
        for j in (int(y[row]), 7, 500):
            assert abs(dz[row, j].item() / float(gradient[j]) - 1) < 1e-5


def test_a_loss_of_1e_minus_21() -> None:
    z = leaf(torch.tensor([48.0, 0.0]))
    exact = math.exp(-48)  # -log p is log1p(exp(-48)), one part in 1e21 less
    for loss in (
        F.cross_entropy(z, torch.tensor(0)),
        F.cross_entropy(z, torch.tensor([1.0, 0.0])),
        F.nll_loss(F.log_softmax(z, 0), torch.tensor(0)),
    ):
        torch.testing.assert_close(loss, torch.tensor(exact), rtol=4 * eps(torch.float32), atol=0)
        dz = torch.tensor([-exact, exact])
        torch.testing.assert_close(grad(loss, z), dz, rtol=4 * eps(torch.float32), atol=0)
    assert T.cross_entropy(z, torch.tensor(0)).item() == 0


def test_the_composite_path_keeps_the_same_digits() -> None:
    z = torch.tensor([48.0, 0.0])

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(z, torch.tensor(0))

    exact = math.exp(-48)
    for function in (loss, lambda z: -F.log_softmax(z, 0)[0], lambda z: F.cross_entropy(z, torch.tensor([1.0, 0.0]))):
        dz, value = torch.func.grad_and_value(function)(z)
        torch.testing.assert_close(value, torch.tensor(exact), rtol=4 * eps(torch.float32), atol=0)
        torch.testing.assert_close(dz, torch.tensor([-exact, exact]), rtol=4 * eps(torch.float32), atol=0)


def test_a_common_offset_changes_nothing() -> None:
    z = torch.randint(-8, 8, (7, 100)).float()  # sums with the offset are exact
    y = torch.randint(100, (7,))
    for offset in (1000.0, -(2.0**20)):
        assert torch.equal(F.cross_entropy(z + offset, y), F.cross_entropy(z, y))
        assert torch.equal(F.softmax(z + offset, 1), F.softmax(z, 1))
        assert torch.equal(F.log_softmax(z + offset, 1), F.log_softmax(z, 1))


def test_log_softmax_of_the_maximum_is_not_zero() -> None:
    got = F.log_softmax(torch.tensor([20.0, 0.0]), 0)[0].item()
    assert abs(got / -math.log1p(math.exp(-20)) - 1) < 4 * eps(torch.float32)
    got = F.logsumexp(torch.tensor([0.0, -48.0]), 0).item()
    assert abs(got / math.exp(-48) - 1) < 4 * eps(torch.float32)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["index", "smooth", "probabilities", "nll_loss", "binary", "kl_div"])
def test_16_bit_losses_are_rounded_once(dtype: torch.dtype, kind: str) -> None:
    n, classes = 20_000, 5
    z = (torch.randn(n, classes) * 3).to(dtype)
    y, t = torch.randint(classes, (n,)), torch.rand(n, classes).softmax(1).to(dtype)
    if kind == "nll_loss":
        z = F.log_softmax(z, dim=1)
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "index": lambda z, t: F.cross_entropy(z, y),
        "smooth": lambda z, t: F.cross_entropy(z, y, label_smoothing=0.1),
        "probabilities": F.cross_entropy,
        "nll_loss": lambda z, t: F.nll_loss(z, y),
        "binary": F.binary_cross_entropy_with_logits,
        "kl_div": lambda z, t: F.kl_div(z, t, reduction="batchmean"),
    }
    got, exact = functions[kind](z, t), functions[kind](z.double(), t.double())
    assert got.dtype == dtype
    assert got.isfinite()
    # Half a unit in the last place, and the roundings of a float32 sum of 100,000 terms for the elementwise losses.
    assert abs(got.double() - exact) <= (eps(dtype) / 2 + 20 * eps(torch.float32)) * exact.abs()


def test_sums_over_many_tokens_are_rounded_once() -> None:
    z, y = F.log_softmax(torch.randn(100_000, 3), 1), torch.randint(3, (100_000,))
    exact = -z.double().gather(1, y[:, None]).sum()
    assert F.nll_loss(z, y, reduction="sum") == exact.float()
    assert F.nll_loss(z, y) == (exact / 100_000).float()


def test_half_means_over_many_tokens_are_finite() -> None:
    z, y = torch.zeros(20_000, 1000, dtype=torch.float16), torch.zeros(20_000, dtype=torch.long)
    assert T.cross_entropy(z, y).isinf()
    assert F.cross_entropy(z, y) == torch.tensor(math.log(1000), dtype=torch.float16)


def test_binary_cross_entropy_keeps_its_digits() -> None:
    z = leaf(torch.tensor([-20.0, 20.0, -60.0, 120.0]))
    t = torch.tensor([0.0, 1.0, 0.0, 0.0])
    loss = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    exact = torch.tensor([math.log1p(math.exp(-20))] * 2 + [math.exp(-60), 120.0])
    torch.testing.assert_close(loss, exact, rtol=4 * eps(torch.float32), atol=0)
    assert T.binary_cross_entropy_with_logits(z, t, reduction="none")[0] == 0
    slope = torch.tensor([math.exp(-20) / (1 + math.exp(-20)), -math.exp(-20) / (1 + math.exp(-20)), math.exp(-60), 1])
    torch.testing.assert_close(grad(loss, z), slope, rtol=4 * eps(torch.float32), atol=0)


@given(st.floats(0, 1, width=32))
@settings(deadline=None, max_examples=200)
def test_logit_is_exact(p: float) -> None:
    got = F.logit(torch.tensor(p)).item()
    if p in (0, 1):
        assert got == (INF if p else -INF)
        return
    with mpmath.workdps(60):
        exact = float(mpmath.log(mpmath.mpf(p)) - mpmath.log1p(-mpmath.mpf(p)))
    assert abs(got - exact) <= 8 * eps(torch.float32) * abs(exact)


def test_logit_has_torchs_gradient_and_edges() -> None:
    x = leaf(torch.tensor([-1.0, 0.0, 0.05, 0.3, 0.5, 0.74, 1.0, 2.0]))
    for edge in (None, 0.1, 0.4):
        torch.testing.assert_close(F.logit(x, edge), torch.logit(x, edge), equal_nan=True)
        torch.testing.assert_close(grad(F.logit(x, edge), x), grad(torch.logit(x, edge), x), equal_nan=True)


# Rows that torch makes NaN of


@pytest.mark.parametrize("planted", [NAN, INF, -INF])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("composite", [False, True])
def test_ignoring_a_row_is_deleting_it(
    planted: float, weighted: bool, smoothing: float, reduction: str, composite: bool
) -> None:
    z, y = torch.randn(6, 4), torch.tensor([1, -100, 3, 0, -100, 2])
    z[1], z[4, 2] = planted, planted
    weight = torch.rand(4) if weighted else None
    keep = y != -100
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y, weight, **options)

    def derivative(z: Tensor, y: Tensor) -> Tensor:
        z = leaf(z)
        return torch.func.grad(lambda z: loss(z, y).sum())(z) if composite else grad(loss(z, y), z)

    value, deleted = loss(z, y), loss(z[keep], y[keep])
    assert torch.equal(value[keep] if reduction == "none" else value, deleted)
    if reduction == "none":
        assert (value[~keep] == 0).all()
    dz = derivative(z, y)
    assert torch.equal(dz[keep], derivative(z[keep], y[keep]))
    assert (dz[~keep] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_ignored_rows_of_nll_loss_and_log_softmax_are_silent(dtype: torch.dtype) -> None:
    z, y = torch.randn(4, 3, dtype=dtype), torch.tensor([1, -100, 0, -100])
    z[1], z[3, 0] = NAN, INF
    keep = y != -100
    for reduction in REDUCTIONS:
        x = leaf(z)
        loss = F.nll_loss(F.log_softmax(x, dim=1), y, reduction=reduction)
        deleted = F.nll_loss(F.log_softmax(z[keep], dim=1), y[keep], reduction=reduction)
        assert torch.equal(loss[keep] if reduction == "none" else loss, deleted)
        dz = grad(loss, x)
        assert (dz[~keep] == 0).all()
        assert dz[keep].isfinite().all()


def test_ignored_rows_are_silent_in_the_second_derivative() -> None:
    z, y = torch.randn(3, 4, dtype=torch.float64), torch.tensor([1, -100, 2])
    z[1] = NAN
    x, kept = leaf(z), leaf(z[y != -100])
    for tensor, target in ((x, y), (kept, y[y != -100])):
        (dz,) = torch.autograd.grad(F.cross_entropy(tensor, target), tensor, create_graph=True)
        tensor.grad = grad((dz[dz != 0] ** 2).sum(), tensor)
    assert x.grad is not None
    assert (x.grad[1] == 0).all()
    torch.testing.assert_close(x.grad[y != -100], kept.grad)


def test_a_second_derivative_where_the_first_upstream_is_zero() -> None:
    # The derivative by an upstream gradient does not vanish where that gradient is 0: no shortcut may drop it.
    z, y = leaf(torch.randn(3, 4, dtype=torch.float64)), torch.tensor([1, 0, 2])
    v, tangent = torch.zeros(3, dtype=torch.float64, requires_grad=True), torch.randn_like(z)
    products = []
    for module in (F, T):
        (dz,) = torch.autograd.grad(module.cross_entropy(z, y, reduction="none"), z, v, create_graph=True)
        products.append(grad((dz * tangent).sum(), v))
    torch.testing.assert_close(*products)
    assert (products[0] != 0).all()


@pytest.mark.parametrize("function", [F.cross_entropy, F.nll_loss])
def test_all_rows_ignored(function: Callable[..., Tensor]) -> None:
    z, y = leaf(T.log_softmax(torch.randn(3, 4), 1)), torch.full((3,), -100)
    mean = function(z, y)
    assert mean.isnan()  # as torch: 0/0
    assert (grad(mean, z) == 0).all()
    assert function(z, y, reduction="sum") == 0
    assert (function(z, y, reduction="none") == 0).all()


def test_a_probability_of_zero_on_a_logit_of_minus_infinity_counts_nothing() -> None:
    z, t = torch.tensor([[0.0, 0.0, -INF]], requires_grad=True), torch.tensor([[0.5, 0.5, 0.0]])
    loss = F.cross_entropy(z, t)
    assert T.cross_entropy(z, t).isnan()
    torch.testing.assert_close(loss, torch.tensor(math.log(2)))
    torch.testing.assert_close(grad(loss, z), torch.zeros(1, 3))
    assert F.cross_entropy(z, torch.tensor([[0.5, 0.4, 0.1]])) == INF
    y = torch.tensor([2])
    assert F.cross_entropy(z, y) == INF
    assert F.cross_entropy(z, y, torch.tensor([1.0, 1.0, 0.0]), reduction="sum") == 0
    assert F.nll_loss(z, y, torch.tensor([1.0, 1.0, 0.0]), reduction="sum") == 0


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_smoothing_spreads_to_masked_classes(smoothing: float) -> None:
    z = torch.tensor([[0.0, 0.0, -INF]])
    for target in (torch.tensor([0]), torch.tensor([2]), torch.tensor([[1.0, 0.0, 0.0]])):
        assert F.cross_entropy(z, target, label_smoothing=smoothing) == INF


def test_matching_infinite_binary_logits_cost_nothing() -> None:
    z, t = leaf(torch.tensor([INF, -INF, INF, -INF])), torch.tensor([1.0, 0.0, 0.0, 1.0])
    loss = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    assert loss.tolist() == [0, 0, INF, INF]
    assert T.binary_cross_entropy_with_logits(z, t, reduction="none").isnan().any()
    assert grad(loss, z).tolist() == [0, 0, 1, -1]
    weighted = F.binary_cross_entropy_with_logits(z, t, torch.tensor([1.0, 1.0, 0.0, 0.0]), reduction="sum")
    assert weighted == 0


def test_absent_classes_diverge_by_nothing() -> None:
    logp = leaf(torch.tensor([-INF, math.log(0.5)]))
    loss = F.kl_div(logp, torch.tensor([0.0, 0.5]), reduction="none")
    assert loss.tolist() == [0, 0]
    assert grad(loss, logp).tolist() == [0, -0.5]
    logt = leaf(torch.tensor([-INF, -INF]))
    loss = F.kl_div(torch.tensor([-INF, 0.0]), logt, reduction="none", log_target=True)
    assert loss.tolist() == [0, 0]
    assert grad(loss, logt).tolist() == [0, 0]
    assert F.kl_div(torch.tensor([-INF]), torch.tensor([0.5]), reduction="sum") == INF


ROWS = ([INF, 1.0], [-INF, -INF], [INF, -INF], [NAN, 1.0], [1.0, NAN], [INF, INF], [0.0, -INF], [-INF, 0.0])


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("wide", [False, True])
def test_rows_without_a_distribution_are_torchs(row: list[float], dtype: torch.dtype, wide: bool) -> None:
    x = torch.tensor(row, dtype=dtype)
    x = torch.cat([x, torch.full((3000,), -INF, dtype=dtype)]) if wide else x
    for ours, theirs in ((F.softmax, T.softmax), (F.log_softmax, T.log_softmax), (F.logsumexp, torch.logsumexp)):
        torch.testing.assert_close(ours(x, 0), theirs(x, 0), equal_nan=True)
        mapped = torch.vmap(lambda x, f=ours: f(x, 0))(x[None])[0]
        torch.testing.assert_close(mapped, theirs(x, 0), equal_nan=True)
    for y in (torch.tensor(0), torch.tensor(1)):
        torch.testing.assert_close(F.cross_entropy(x, y), T.cross_entropy(x, y), equal_nan=True)


# Shapes, types, arguments


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 5, 4), (2, 5, 3, 2), (2, 5, 3, 2, 2), (1, 1), (4, 1)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_any_number_of_dimensions(shape: tuple[int, ...], reduction: str, weighted: bool, smoothing: float) -> None:
    axis = min(len(shape) - 1, 1)
    z = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(shape[axis], dtype=torch.float64) + 0.1 if weighted else None
    places = (shape[0], *shape[2:]) if len(shape) > 1 else ()
    y = torch.randint(shape[axis], places)
    if y.dim() > 0:
        y.view(-1)[-1] = 100  # ignored
    upstream = torch.randn(places if reduction == "none" else (), dtype=torch.float64)
    options: dict[str, Any] = {"reduction": reduction}
    targets = [(y, {"ignore_index": 100}), (torch.rand(shape, dtype=torch.float64), {})]
    for target, more in targets:
        ours, theirs = (
            f.cross_entropy(z, target, weight, label_smoothing=smoothing, **options, **more) for f in (F, T)
        )
        torch.testing.assert_close(ours, theirs, equal_nan=True)
        torch.testing.assert_close(grad(ours, z, upstream=upstream), grad(theirs, z, upstream=upstream))
    logp = leaf(T.log_softmax(z, axis))
    ours, theirs = (f.nll_loss(logp, y, weight, ignore_index=100, **options) for f in (F, T))
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    torch.testing.assert_close(grad(ours, logp, upstream=upstream), grad(theirs, logp, upstream=upstream))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 5), (2, 5, 0), (0, 5, 3, 2), (2, 0)], ids=str)
def test_empty_batches_are_torchs(shape: tuple[int, ...], reduction: str) -> None:
    z = torch.zeros(shape, requires_grad=True)
    y = torch.full((shape[0], *shape[2:]), -100)
    for target in (y, torch.zeros(shape)):
        ours, theirs = (f.cross_entropy(z, target, reduction=reduction) for f in (F, T))
        torch.testing.assert_close(ours, theirs, equal_nan=True)
        assert grad(ours, z).shape == shape
    ours, theirs = (f.nll_loss(z, y, reduction=reduction) for f in (F, T))
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    for name in ("softmax", "log_softmax"):
        assert getattr(F, name)(z, 1).shape == shape
    torch.testing.assert_close(F.logsumexp(z, 0), torch.logsumexp(z, 0))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1, -2, -4])
def test_row_functions_along_any_dimension(name: str, dim: int) -> None:
    z = leaf(torch.randn(2, 3, 4, 5)).to(memory_format=torch.channels_last)
    ours, theirs = getattr(F, name)(z, dim), getattr(T, name)(z, dim)
    torch.testing.assert_close(ours, theirs)
    assert ours.stride() == theirs.stride()
    upstream = torch.randn_like(z)
    torch.testing.assert_close(grad(ours, z, upstream=upstream), grad(theirs, z, upstream=upstream))


@pytest.mark.parametrize("dim", [1, (0,), (0, 2), [-1, 0], (0, 1, 2)], ids=str)
@pytest.mark.parametrize("keepdim", [False, True])
def test_logsumexp_over_any_dimensions(dim: Any, keepdim: bool) -> None:
    z = leaf(torch.randn(2, 3, 4))
    ours, theirs = F.logsumexp(z, dim, keepdim), torch.logsumexp(z, dim, keepdim)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grad(ours, z), grad(theirs, z))
    out = torch.empty(theirs.shape, dtype=torch.float64)
    assert F.logsumexp(z.detach(), dim, keepdim, out=out) is out
    torch.testing.assert_close(out, torch.logsumexp(z.detach().double(), dim, keepdim))


def test_what_is_not_ours_goes_to_torch() -> None:
    for z in (torch.tensor([1, 2]), torch.tensor([True, False]), torch.tensor([1 + 1j, 2])):
        torch.testing.assert_close(F.logsumexp(z, 0), torch.logsumexp(z, 0))
    assert torch.equal(F.softmax(torch.tensor([1, 2]), 0, dtype=torch.float32), T.softmax(torch.tensor([1.0, 2.0]), 0))
    assert F.softmax(torch.zeros(3, dtype=torch.float16), 0, dtype=torch.float32).dtype == torch.float32
    torch.testing.assert_close(F.logit(torch.tensor([0, 1])), torch.tensor([-INF, INF]))
    assert F.softmax(torch.tensor(3.0), 0) == 1
    assert F.log_softmax(torch.tensor(3.0), -1) == 0


def test_targets_may_be_bytes() -> None:
    z, y = torch.randn(3, 5), torch.tensor([1, 2, 3])
    assert torch.equal(F.cross_entropy(z, y.byte()), F.cross_entropy(z, y))
    assert torch.equal(F.cross_entropy(z[..., None, None], y.byte()[:, None, None]), F.cross_entropy(z, y))
    with pytest.raises(IndexError, match="156"):  # 156 is -100 modulo 256, and not to be taken for it
        F.cross_entropy(z, torch.tensor([1, 156, 2], dtype=torch.uint8))


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, NAN])
def test_smoothing_is_a_share(smoothing: float) -> None:
    for target in (LABELS, LOGITS.softmax(1)):
        for kind in (ValueError, RuntimeError):
            with pytest.raises(kind, match="label_smoothing"):
                F.cross_entropy(LOGITS, target, label_smoothing=smoothing)


def test_smoothing_is_a_constant() -> None:
    smoothing = torch.tensor(0.1, dtype=torch.float64)
    expected = F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    assert torch.equal(F.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing), expected)
    with pytest.raises(TypeError, match="label_smoothing requires a gradient"):
        F.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing.requires_grad_())


MIRRORED = ("softmax", "log_softmax", "nll_loss", "cross_entropy", "binary_cross_entropy_with_logits", "kl_div")


@pytest.mark.parametrize("name", MIRRORED)
def test_signatures_are_torchs(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (F, T))
    added = list(ours)[len(theirs) :]
    assert [(p.name, p.default, p.kind) for p in ours.values() if p.name not in added] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]
    assert all(ours[p].kind is inspect.Parameter.KEYWORD_ONLY for p in added)


@pytest.mark.parametrize(
    ("average", "reduce"), [(True, None), (False, None), (None, False), (None, True), (False, True)]
)
def test_former_arguments(average: bool | None, reduce: bool | None) -> None:
    t = T.softmax(LOGITS, 1)
    calls = [
        ("cross_entropy", (LOGITS, LABELS, None, average, -100, reduce)),
        ("nll_loss", (T.log_softmax(LOGITS, 1), LABELS, None, average, -100, reduce)),
        ("binary_cross_entropy_with_logits", (LOGITS, t, None, average, reduce)),
        ("kl_div", (T.log_softmax(LOGITS, 1), t, average, reduce, "batchmean")),
    ]
    for name, arguments in calls:
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            theirs = getattr(T, name)(*arguments)
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            ours = getattr(F, name)(*arguments)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4)], ids=str)
def test_an_implicit_dimension_is_torchs_guess(shape: tuple[int, ...]) -> None:
    z = torch.randn(shape)
    for name in ("softmax", "log_softmax"):
        with pytest.warns(UserWarning, match=f"Implicit dimension choice for {name}") as seen:
            ours = getattr(F, name)(z)
        assert seen[0].filename == __file__
        with pytest.warns(UserWarning, match="Implicit dimension"):
            theirs = getattr(T, name)(z)
        torch.testing.assert_close(ours, theirs)


def test_mean_of_kl_div_warns_as_torch_does() -> None:
    with pytest.warns(UserWarning, match="batchmean") as seen:
        F.kl_div(T.log_softmax(LOGITS, 1), T.softmax(LOGITS, 1))
    assert seen[0].filename == __file__


def test_every_other_name_is_torchs() -> None:
    for name in (name for name in dir(T) if not name.startswith("__")):
        assert hasattr(F, name), name
        assert name in dir(F), name
    assert F.relu is T.relu
    with pytest.raises(AttributeError, match="nor has torch"):
        _ = F.no_such_function
    assert F.log_sigmoid is F.logsigmoid


def test_index_and_one_hot_forms_agree_in_the_sum() -> None:
    z, y, w = torch.randn(4, 5), torch.tensor([0, 4, 2, 2]), torch.rand(5)
    soft = T.one_hot(y, 5).float()
    index, one_hot = F.cross_entropy(z, y, w, reduction="sum"), F.cross_entropy(z, soft, w, reduction="sum")
    torch.testing.assert_close(index, one_hot)


def test_weights_and_probabilities_are_differentiable() -> None:
    z, w = leaf(torch.randn(3, 4, dtype=torch.float64)), leaf(torch.rand(4, dtype=torch.float64))
    y, t = torch.tensor([0, 3, -100]), torch.rand(3, 4, dtype=torch.float64)
    t[0, 1:] = 0  # the derivative there is -log p, not 0
    t.requires_grad_()

    def index(z: Tensor, w: Tensor) -> Tensor:
        return F.cross_entropy(z, y, w, label_smoothing=0.1)

    assert torch.autograd.gradcheck(index, (z, w))
    assert torch.autograd.gradcheck(lambda z, w: F.nll_loss(z - 9, y, w), (z, w))
    for smoothing in (0.0, 0.1):
        ours, theirs = (grad(f.cross_entropy(z, t, w, label_smoothing=smoothing), z, t, w) for f in (F, T))
        for got, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(got, expected)


# Memory, order, repetition


def inputs_of(z: Tensor) -> dict[str, Tensor]:
    """Return equal tensors of other strides."""
    n, v = z.shape
    gaps = torch.full((2 * n, 3 * v), NAN, dtype=z.dtype)
    gaps[::2, ::3] = z
    return {
        "transposed": z.t().contiguous().t(),
        "strided": gaps[::2, ::3],
        "offset": torch.cat([torch.full((1,), NAN, dtype=z.dtype), z.reshape(-1)])[1:].reshape(n, v),
        "negated view": torch.complex(z.double(), -z.double()).conj().imag.to(z.dtype),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("classes", [1, 5, 33, 2049])
def test_strides_change_no_bit(dtype: torch.dtype, classes: int) -> None:
    z, y = torch.randn(7, classes).to(dtype), torch.randint(classes, (7,))
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "cross_entropy": lambda z: F.cross_entropy(z, y),
        "smooth": lambda z: F.cross_entropy(z, y, label_smoothing=0.1),
        "softmax": lambda z: F.softmax(z, 1),
        "log_softmax": lambda z: F.log_softmax(z, 1),
        "logsumexp": lambda z: F.logsumexp(z, 1),
    }
    for name, function in functions.items():
        x = leaf(z)
        expected = function(x)
        upstream = torch.randn_like(expected)
        gradient = grad(expected, x, upstream=upstream)
        for layout, other in inputs_of(z).items():
            other = other.requires_grad_()
            got = function(other)
            assert torch.equal(got, expected), f"{name}, {layout}"
            assert torch.equal(grad(got, other, upstream=upstream), gradient), f"{name}, {layout}"


def test_an_expanded_row_equals_its_copies() -> None:
    row, y = torch.randn(1, 9), torch.randint(9, (5,))
    assert torch.equal(F.cross_entropy(row.expand(5, 9), y), F.cross_entropy(row.repeat(5, 1), y))
    x, column = leaf(row), leaf(row[:, :1])
    dx = grad(F.cross_entropy(x.expand(5, 9), y), x)
    torch.testing.assert_close(dx, grad(T.cross_entropy(x.expand(5, 9), y), x))
    assert torch.equal(F.softmax(column.expand(1, 8), 1), torch.full((1, 8), 0.125))
    torch.testing.assert_close(grad(F.cross_entropy(column.expand(5, 9), y), column), torch.zeros(1, 1))


def test_a_row_does_not_depend_on_its_batch() -> None:
    z, y = torch.randn(9, 1030), torch.randint(1030, (9,))
    x = leaf(z)
    loss = F.cross_entropy(x, y, reduction="none")
    together, p, logp = grad(loss, x), F.softmax(z, 1), F.log_softmax(z, 1)
    for i in range(9):
        alone = leaf(z[i : i + 1])
        one = F.cross_entropy(alone, y[i : i + 1], reduction="none")
        assert torch.equal(one, loss[i : i + 1])
        assert torch.equal(grad(one, alone), together[i : i + 1])
        assert torch.equal(F.softmax(alone, 1)[0], p[i])
        assert torch.equal(F.log_softmax(alone, 1)[0], logp[i])
        assert torch.equal(F.cross_entropy(z[i], y[i]), loss[i])


def test_upstream_gradients_that_differ_by_row() -> None:
    z, y, v = leaf(torch.randn(6, 50)), torch.randint(50, (6,)), torch.randn(6)
    v[2] = 0
    exact = grad(T.cross_entropy(z.double(), y, reduction="none"), z, upstream=v.double())
    torch.testing.assert_close(grad(F.cross_entropy(z, y, reduction="none"), z, upstream=v), exact)
    exact = grad(torch.logsumexp(z.double(), 1), z, upstream=v.double())
    torch.testing.assert_close(grad(F.logsumexp(z, 1), z, upstream=v), exact)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_backward_twice_through_one_graph(smoothing: float) -> None:
    z, y = leaf(torch.randn(4, 6)), torch.randint(6, (4,))
    loss = F.cross_entropy(z, y, label_smoothing=smoothing)
    first = torch.autograd.grad(loss, z, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, z, retain_graph=True)[0], first)
    loss.backward()
    assert torch.equal(z.grad, first)
    F.cross_entropy(z, y, label_smoothing=smoothing).backward()
    assert torch.equal(z.grad, 2 * first)  # accumulated
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_the_second_derivative_is_the_covariance() -> None:
    z, y = leaf(torch.randn(5, dtype=torch.float64)), torch.tensor(3)
    p = T.softmax(z.detach(), 0)
    expected = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(torch.autograd.functional.hessian(lambda z: F.cross_entropy(z, y), z), expected)
    torch.testing.assert_close(torch.autograd.functional.hessian(lambda z: F.logsumexp(z, 0), z), expected)
    tied = torch.zeros(5, dtype=torch.float64)  # every class attains the maximum
    got = torch.autograd.functional.hessian(lambda z: F.cross_entropy(z, y), tied)
    torch.testing.assert_close(got, torch.eye(5, dtype=torch.float64) / 5 - 1 / 25)


def test_batched_backward() -> None:
    z, y = leaf(torch.randn(3, 4)), torch.randint(4, (3,))
    for ours, theirs in (
        (F.cross_entropy(z, y, reduction="none"), T.cross_entropy(z, y, reduction="none")),
        (F.log_softmax(z, 1)[:, 0], T.log_softmax(z, 1)[:, 0]),
    ):
        basis = torch.eye(3)
        got = torch.autograd.grad(ours, z, basis, is_grads_batched=True)[0]
        torch.testing.assert_close(got, torch.autograd.grad(theirs, z, basis, is_grads_batched=True)[0])


def test_inputs_are_not_modified_and_outputs_are_written_in_full() -> None:
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    try:
        z, y = leaf(torch.randn(5, 40)), torch.tensor([0, 39, -100, 7, 7])
        t, w = torch.rand(5, 40), torch.rand(40)
        before = [tensor.clone() for tensor in (z, y, t, w)]
        for result in (
            F.cross_entropy(z, y, w, label_smoothing=0.1),
            F.cross_entropy(z, t, w, label_smoothing=0.1),
            F.nll_loss(F.log_softmax(z, 1), y, w),
            F.softmax(z, 1).square(),
            F.softmax(z, 0),
            F.logsumexp(z, (0, 1)),
            F.binary_cross_entropy_with_logits(z, t, w, pos_weight=w),
            F.kl_div(z, t, reduction="batchmean"),
            F.logit(z.sigmoid()),
        ):
            assert result.isfinite().all()
            assert grad(result, z).isfinite().all()
        for now, then in zip((z, y, t, w), before, strict=True):
            assert torch.equal(now, then)
    finally:
        torch.use_deterministic_algorithms(False)


def test_logits_overwritten_before_backward_change_no_gradient() -> None:
    leaf_z, y = leaf(torch.randn(3, 4)), torch.tensor([0, 1, 2])
    F.cross_entropy(leaf_z, y).backward()
    expected, leaf_z.grad = leaf_z.grad, None
    z = leaf_z.clone()
    loss = F.cross_entropy(z, y)
    z.mul_(2)
    loss.backward()  # the gradient was formed with the loss
    assert torch.equal(leaf_z.grad, expected)
    for again in (lambda z: 2 * F.cross_entropy(z, y), lambda z: F.cross_entropy(z, y, reduction="none").sum()):
        z = leaf_z.clone()
        loss = again(z)
        z.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_threads_change_no_bit() -> None:
    z, y = leaf(torch.randn(300, 700)), torch.randint(700, (300,))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            loss = F.cross_entropy(z, y, reduction="none")
            results.append((loss, grad(loss, z)))
        finally:
            torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


@pytest.mark.skipif(_backends.cpu is None, reason="there is only one backend")
def test_a_backend_named_by_the_user_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = leaf(torch.randn(3, 40)), torch.tensor([0, 1, -100])
    native = F.cross_entropy(z, y, label_smoothing=0.1)
    native_gradient = grad(native, z)
    monkeypatch.setenv("LASTLAYER_BACKEND", "reference")

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the native backend was called")

    for name in ("fold", "gradient", "softmax", "log_softmax"):
        monkeypatch.setattr(_backends.cpu, name, refuse)
    got = F.cross_entropy(z, y, label_smoothing=0.1)
    torch.testing.assert_close(got, native)
    torch.testing.assert_close(grad(got, z), native_gradient)
    torch.testing.assert_close(F.softmax(z, 1), T.softmax(z, 1))
    torch.testing.assert_close(grad(F.log_softmax(z, 1), z), grad(T.log_softmax(z, 1), z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_statistics_against_their_definitions(dtype: torch.dtype) -> None:
    z, y, u = leaf(torch.randn(5, 300).to(dtype)), torch.randint(300, (5,)), torch.rand(300).double()
    gappy = torch.stack([y, y + 300], 1)[:, 0]
    got = row_statistics(z, gappy, u.to(dtype), entropy=True)
    x = leaf(z.double())
    logp = T.log_softmax(x, 1)
    exact = (
        torch.logsumexp(x, 1),
        logp.gather(1, y[:, None])[:, 0],
        -(logp.exp() * logp).sum(1),
        -(u.to(dtype).double() * logp).sum(1),
    )
    # float32 statistics of 300 classes: the rounding of each term and of a pairwise sum of them.
    rtol = (2 + math.log2(300)) * eps(torch.float64 if dtype == torch.float64 else torch.float32)
    for name, value, expected in zip(got._fields[:4], got[:4], exact, strict=True):
        assert value.dtype == torch.float64, name
        torch.testing.assert_close(value, expected, rtol=rtol, atol=0, msg=lambda text, name=name: f"{name}: {text}")
    factors = torch.randn(4, 5, dtype=torch.float64)
    dz = grad(sum((v * f).sum() for v, f in zip(got[:4], factors, strict=True)), z)
    dx = grad(sum((v * f).sum() for v, f in zip(exact, factors, strict=True)), x)
    torch.testing.assert_close(dz, dx.to(dtype))
    assert row_statistics(z)[1:4] == (None, None, None)


def test_no_warning_for_log_probabilities() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F.nll_loss(F.log_softmax(LOGITS, 1), LABELS)
        F.nll_loss(torch.tensor([[0.0, -INF]]), torch.tensor([0]))  # a certain class
        F.nll_loss(torch.tensor([[5.0, -1.0], [-1.0, -1.0]]), torch.tensor([-100, 0]))  # an ignored row


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_layouts_that_are_torchs_stay_torchs() -> None:
    parts = [torch.zeros(2, 4), torch.zeros(3, 4)]
    for layout in (torch.strided, torch.jagged):
        p = F.softmax(torch.nested.nested_tensor(parts, layout=layout), -1)
        assert p.is_nested
        assert all((part == 0.25).all() for part in p.unbind())
    assert (F.softmax(parts[0].to_mkldnn(), 1).to_dense() == 0.25).all()


def test_inference_mode() -> None:
    with torch.inference_mode():
        torch.testing.assert_close(F.cross_entropy(LOGITS, LABELS), T.cross_entropy(LOGITS, LABELS))
        torch.testing.assert_close(F.log_softmax(LOGITS, 1), T.log_softmax(LOGITS, 1))


def test_capturing_a_graph_looks_at_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "capturing", lambda input: True)
    bad = torch.tensor([0, 1, 3])
    with pytest.raises(RuntimeError, match="out of bounds"):  # the gather's own check, not ours
        F.nll_loss(LOGITS, bad)
    assert F.cross_entropy(LOGITS, bad, reduction="none").isnan().tolist() == [False, False, True]
    F.nll_loss(LOGITS, LABELS)


def test_the_numpy_front_end_sends_tensors_here() -> None:
    import lastlayer

    calls = [
        lambda: lastlayer.softmax(LOGITS),
        lambda: lastlayer.cross_entropy(LOGITS.numpy(), LABELS),
        lambda: lastlayer.linear_cross_entropy(LOGITS, LOGITS.numpy(), LABELS.numpy()),
        lambda: lastlayer.categorical(LOGITS),
        lambda: lastlayer.entropy(logits=LOGITS),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"is a torch.Tensor, expected a NumPy array: lastlayer.torch has"):
            call()
