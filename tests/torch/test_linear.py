"""linear_cross_entropy for torch equals its dense definition, whatever is combined, and never stores N x V."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import laws  # noqa: E402
import torch.nn.functional as T  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import lastlayer.torch as F  # noqa: E402

needs_torchs_own = pytest.mark.skipif(not hasattr(T, "linear_cross_entropy"), reason="torch has it from 2.13 on")

TYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.bfloat16: np.float32, torch.float16: np.float32}


def dense(
    h: Any, w: Any, y: Any, *, linear_bias: Any = None, weight: Any = None, reduction: str = "mean",
    ignore_index: int = -100, label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float | None = None,
    scale: float = 1.0, token_weight: Any = None, dtype: Any = torch.float64,
) -> Any:  # fmt: skip
    """The definition, over full logits in the given precision."""
    h, w, b, u = (None if t is None else t.to(dtype) for t in (h, w, linear_bias, weight))
    z = T.linear(h, w, b) * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    logs, classes = torch.log_softmax(z, -1), w.shape[0]
    u = torch.ones(classes, dtype=dtype) if u is None else u
    if y.is_floating_point():
        keep = of_target = torch.ones(h.shape[:-1], dtype=dtype)
        loss = -((y.to(dtype) * (1 - label_smoothing) + label_smoothing / classes) * u * logs).sum(-1)
    else:
        keep = (y != ignore_index).to(dtype)
        inside = torch.where(y == ignore_index, 0, y)
        of_target = u[inside] * keep
        loss = -(1 - label_smoothing) * of_target * logs.gather(-1, inside[..., None])[..., 0]
        loss = loss - label_smoothing / classes * (logs * u).sum(-1) * keep
    token = torch.ones_like(keep) if token_weight is None else token_weight.to(dtype)
    loss = (loss + z_loss * torch.logsumexp(z, -1) ** 2 * keep) * token
    if reduction == "none":
        return loss
    total = (of_target * token).sum() if reduction == "mean" else torch.ones((), dtype=dtype)
    return loss.sum() / torch.where(total == 0, 1, total)


def assert_is_definition(h: Any, w: Any, y: Any, **arguments: Any) -> None:
    """Value and gradients, with an upstream gradient that differs by row, within the budget of the dense formula."""
    budget = arguments.pop("memory_budget", 2**26)
    inputs = [h, w] + ([arguments["linear_bias"]] if arguments.get("linear_bias") is not None else [])
    kind = torch.float64 if h.dtype == torch.float64 else torch.float32
    exact = dense(h, w, y, **arguments)
    plain = dense(h, w, y, dtype=kind, **arguments)
    got = F.linear_cross_entropy(h, w, y, memory_budget=budget, **arguments)
    assert got.dtype == kind
    upstream = torch.randn(exact.shape, dtype=torch.float64)
    laws.assert_within(got, exact, plain, TYPES[kind], "loss", terms=w.shape[0])
    gradients = (torch.autograd.grad(loss, inputs, upstream.to(loss.dtype)) for loss in (got, exact, plain))
    for name, a, b, c in zip(("input", "linear_weight", "linear_bias"), *gradients, strict=False):
        assert a.dtype == h.dtype
        rounding = (
            np.float64
            if h.dtype == torch.float64
            else {torch.bfloat16: "bfloat16", torch.float16: "float16"}.get(h.dtype, "float32")
        )
        if rounding == "bfloat16":
            import ml_dtypes

            rounding = ml_dtypes.bfloat16
        a, b, c = (t.double().flatten()[None] for t in (a, b, c))
        laws.assert_within(a, b, c, rounding, name, terms=h.shape[0] * w.shape[0])


def problem(dtype: Any, leading: tuple[int, ...] = (7,), features: int = 5, classes: int = 33) -> tuple[Any, Any, Any]:
    torch.manual_seed(20261122)
    h = torch.randn(*leading, features).to(dtype).requires_grad_()
    w = torch.randn(classes, features).to(dtype).requires_grad_()
    y = torch.randint(0, classes, leading)
    y.view(-1)[1] = -100
    return h, w, y


MANY = {"linear_bias": True, "weight": True, "label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 3.0, "scale": 0.5}
OPTIONS = [
    {},
    {"linear_bias": True},
    {"weight": True},
    {"label_smoothing": 0.1},
    {"z_loss": 1e-2},
    {"softcap": 3.0},
    {"scale": 0.5},
    {"token_weight": True},
    {"soft": True},
    {**MANY, "token_weight": True},
    {**MANY, "soft": True},
]


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "+".join(o) or "plain")
@pytest.mark.parametrize("budget", [2**26, 6000])
def test_it_is_its_definition(dtype: Any, reduction: str, options: dict[str, Any], budget: int) -> None:
    for leading in ((7,), (2, 4)):
        h, w, y = problem(dtype, leading)
        given = dict(options)
        if given.get("linear_bias"):
            given["linear_bias"] = torch.randn(33).to(dtype).requires_grad_()
        if given.get("weight"):
            given["weight"] = torch.rand(33)
        if given.get("token_weight"):
            given["token_weight"] = torch.rand(leading)
        if given.pop("soft", False):
            y = torch.rand(*leading, 33, dtype=torch.float64).softmax(-1)
        assert_is_definition(h, w, y, reduction=reduction, memory_budget=budget, **given)


@pytest.mark.parametrize(("rows", "classes"), list(itertools.product([1, 7, 289], [1, 2, 31, 33, 1025])))
def test_ragged_shapes(rows: int, classes: int) -> None:
    h, w, y = problem(torch.float32, (rows + 1,), 8, classes)
    assert_is_definition(h, w, y)
    with torch.no_grad():
        w *= 0.02  # small weights, where padding errors show
    assert_is_definition(h, w, y, reduction="none", memory_budget=3000)


def test_one_row_without_a_batch() -> None:
    h, w, _ = problem(torch.float64)
    got = F.linear_cross_entropy(h[0], w, torch.tensor(3))
    torch.testing.assert_close(got, T.cross_entropy(T.linear(h[0], w), torch.tensor(3)))


def test_ignored_rows_are_deleted_rows_nan_included() -> None:
    h, w, y = problem(torch.float32, (40,))
    y[::3] = -100
    with torch.no_grad():
        h[::3] = float("nan")
    for reduction in ("mean", "sum", "none"):
        loss = F.linear_cross_entropy(h, w, y, reduction=reduction)
        kept = F.linear_cross_entropy(h[y != -100], w, y[y != -100], reduction=reduction)
        torch.testing.assert_close(loss if reduction != "none" else loss[y != -100], kept, rtol=0, atol=0)
        dh, dw = torch.autograd.grad(loss.sum(), [h, w])
        kh, kw = torch.autograd.grad(kept.sum(), [h, w])
        assert torch.equal(dh, kh)
        assert torch.equal(dw, kw)
        assert not dh[::3].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_learn_from_is_zero_and_connected(reduction: str, rows: int) -> None:
    h, w = torch.randn(rows, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    b = torch.randn(5, requires_grad=True)
    loss = F.linear_cross_entropy(h, w, torch.full((rows,), -100), linear_bias=b, reduction=reduction).sum()
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, [h, w, b]):
        assert not gradient.any()


def test_retain_graph_and_a_second_backward() -> None:
    for reduction in ("mean", "none"):
        h, w, y = problem(torch.float32)
        loss = F.linear_cross_entropy(h, w, y, reduction=reduction).sum()
        first = torch.autograd.grad(loss, [h, w], retain_graph=True)
        again = torch.autograd.grad(3 * loss, [h, w])
        for a, b in zip(first, again, strict=True):
            torch.testing.assert_close(3 * a, b)


@pytest.mark.parametrize("budget", [None, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("same", [True, False])
def test_the_weights_gradient_is_added_where_it_is_asked_for(dtype: Any, budget: int | None, same: bool) -> None:
    h, w, y = problem(dtype, (40,))
    there = torch.randn(w.shape).to(dtype if same else torch.float32)
    into = there.clone()
    F.linear_cross_entropy(h, w, y, memory_budget=budget, weight_grad=into).backward()
    assert w.grad is None
    got_h, h.grad = h.grad, None
    F.linear_cross_entropy(h, w, y, memory_budget=budget).backward()
    torch.testing.assert_close(got_h, h.grad, rtol=0, atol=0)
    # One rounding of what autograd hands out, and one for each of at most 7 chunks that are added.
    eps = max(torch.finfo(dtype).eps, torch.finfo(into.dtype).eps)
    atol = 8 * eps * float((there.abs() + w.grad.abs()).max())
    torch.testing.assert_close(into, there + w.grad.to(into.dtype), rtol=0, atol=atol)
    untouched = into.clone()
    with torch.no_grad():
        F.linear_cross_entropy(h, w, y, weight_grad=into)
    torch.testing.assert_close(into, untouched, rtol=0, atol=0)


def test_what_was_added_cannot_be_scaled_nor_added_again() -> None:
    h, w, y = problem(torch.float32)
    with pytest.raises(RuntimeError, match=r"for an incoming gradient of 1, not 2\.0: put factors into token_weight"):
        (2 * F.linear_cross_entropy(h, w, y, weight_grad=torch.zeros_like(w))).backward()
    loss = F.linear_cross_entropy(h, w, y, weight_grad=torch.zeros_like(w))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward pass is not supported"):
        loss.backward()
    with pytest.raises(RuntimeError, match="not supported with reduction = 'none'"):
        F.linear_cross_entropy(h, w, y, reduction="none", weight_grad=torch.zeros_like(w))


def test_second_order_says_why_not() -> None:
    h, w, y = problem(torch.float32)
    for reduction in ("mean", "none"):
        (dh,) = torch.autograd.grad(F.linear_cross_entropy(h, w, y, reduction=reduction).sum(), h, create_graph=True)
        with pytest.raises(RuntimeError, match=r"no second derivative here: it would need the full N x V logits"):
            dh.sum().backward()


def test_gradients_only_where_asked() -> None:
    h, w, y = problem(torch.float32)
    F.linear_cross_entropy(h.detach(), w, y).backward()
    assert h.grad is None
    assert w.grad is not None
    assert not F.linear_cross_entropy(h.detach(), w.detach(), y).requires_grad
    with torch.no_grad():
        assert not F.linear_cross_entropy(h, w, y).requires_grad


def test_inputs_are_not_modified_and_strides_do_not_matter() -> None:
    h, w, y = problem(torch.float32, (6,))
    copies = [t.detach().clone() for t in (h, w, y)]
    loss = F.linear_cross_entropy(h, w, y)
    loss.backward()
    for tensor, copy in zip((h, w, y), copies, strict=True):
        assert torch.equal(tensor, copy)
    strided = F.linear_cross_entropy(h.detach().T.contiguous().T, w.detach().T.contiguous().T, y)
    torch.testing.assert_close(strided, loss.detach())


def test_confident_rows_keep_their_digits() -> None:
    w = torch.eye(2)
    for margin in (10, 30, 48, 60):
        h = torch.tensor([[float(margin), 0.0]], requires_grad=True)
        loss = F.linear_cross_entropy(h, w, torch.tensor([0]))
        assert loss.item() == pytest.approx(np.log1p(np.exp(-margin)), rel=1e-5, abs=0)
        loss.backward()
        assert h.grad[0, 0].item() == pytest.approx(-1 / (1 + np.exp(margin)), rel=1e-5, abs=0)


@needs_torchs_own
def test_bfloat16_gives_a_float32_loss_of_float32_logits() -> None:
    torch.manual_seed(0)
    h, w = torch.randn(64, 32).bfloat16(), torch.randn(1000, 32).bfloat16()
    y = torch.randint(0, 1000, (64,))
    exact = T.cross_entropy(h.double() @ w.double().T, y)
    got = F.linear_cross_entropy(h, w, y)
    assert got.dtype == torch.float32
    assert abs(got.item() - exact.item()) <= 1e-6 * exact.item()
    assert abs(T.linear_cross_entropy(h, w, y).item() - exact.item()) > 1e-4 * exact.item()  # what that avoids


def test_the_weight_gradient_of_bfloat16_does_not_depend_on_the_number_of_chunks() -> None:
    torch.manual_seed(0)
    h, w = torch.randn(512, 16).bfloat16(), torch.randn(50, 16).bfloat16().requires_grad_()
    y = torch.randint(0, 50, (512,))
    (exact,) = torch.autograd.grad(T.cross_entropy(h.double() @ w.double().T, y), w)
    one, many = (
        torch.autograd.grad(F.linear_cross_entropy(h, w, y, memory_budget=budget), w)[0] for budget in (2**26, 12_000)
    )
    assert torch.equal(one, many) or (one.double() - many.double()).abs().max() <= 2**-8 * exact.abs().max()


class Largest(TorchDispatchMode):
    """Remembers the most elements any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_array_of_n_times_v(reduction: str, dtype: Any) -> None:
    rows, classes, features, budget = 2000, 4000, 8, 2**20
    h = torch.randn(rows, features).to(dtype).requires_grad_()
    w = torch.randn(classes, features).to(dtype).requires_grad_()
    y = torch.randint(0, classes, (rows,))
    y[5] = -100
    with Largest() as seen:
        F.linear_cross_entropy(
            h, w, y, reduction=reduction, label_smoothing=0.1, z_loss=1e-4, memory_budget=budget
        ).sum().backward()
    assert seen.elements * 4 <= max(budget, 4 * classes * features)
    assert seen.elements > 0


def test_a_budget_too_small_names_the_least_that_works() -> None:
    h, w, y = problem(torch.float32)
    with pytest.raises(ValueError, match="memory_budget = 3 bytes is too small: at least"):
        F.linear_cross_entropy(h, w, y, memory_budget=3)


@needs_torchs_own
def test_torchs_own_samples_and_errors() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("expecttest")
        from torch.testing._internal.common_methods_invocations import op_db
    entry = next(op for op in op_db if op.name == "nn.functional.linear_cross_entropy" and not op.variant_test_name)
    count = 0
    for dtype in (torch.float32, torch.float64):
        for sample in entry.sample_inputs("cpu", dtype, requires_grad=True):
            theirs = T.linear_cross_entropy(sample.input, *sample.args, **sample.kwargs)
            ours = F.linear_cross_entropy(sample.input, *sample.args, **sample.kwargs)
            nothing = theirs.isnan() & (ours == 0)  # the mean over no tokens: documented to be 0 here
            torch.testing.assert_close(torch.where(nothing, 0, ours), torch.where(nothing, 0, theirs), equal_nan=True)
            if not nothing.any():
                upstream = torch.randn_like(theirs)
                a, b = (torch.autograd.grad(x, [sample.input, sample.args[0]], upstream) for x in (ours, theirs))
                torch.testing.assert_close(a, b, equal_nan=True)
            count += 1
    assert count > 50
    for error in entry.error_inputs("cpu"):
        sample = error.sample_input
        if error.error_regex.startswith("expected input with dimensionality 1 or 2"):
            continue  # leading shapes of any length are what is added here; its target does not fit, which is said:
        with pytest.raises(error.error_type, match=error.error_regex):
            F.linear_cross_entropy(sample.input, *sample.args, **sample.kwargs)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target": torch.tensor([0, 1, 9, -1])}, IndexError, r"target\[2\] = 9 is outside \[0, 5\)"),
    ({"target": torch.tensor([0, 1, 2, -1])}, IndexError, r"target\[3\] = -1 is outside \[0, 5\)"),
    ({"target": torch.tensor([0, 1, 2])}, RuntimeError, r"expected target of shape \(4,\) .* got \(3,\)"),
    ({"target": torch.tensor([0.0, 1, 2, 3])}, RuntimeError, "dtype torch.float32, expected class indices"),
    ({"target": torch.tensor([True] * 4)}, RuntimeError, "dtype torch.bool, expected class indices"),
    ({"target": torch.ones(4, 5, dtype=torch.int64)}, RuntimeError, "class probabilities: expected floats"),
    (
        {"target": torch.ones(4, dtype=torch.int32)},
        RuntimeError,
        "dtype torch.int32, expected class indices: int64 or uint8",
    ),
    ({"linear_weight": torch.randn(5, 3, dtype=torch.float64)}, RuntimeError, "linear_weight has dtype torch.float64"),
    ({"linear_weight": torch.randn(5, 3, device="meta")}, RuntimeError, "linear_weight is on meta, input on cpu"),
    ({"linear_weight": torch.randn(0, 3)}, RuntimeError, "at least one class"),
    ({"input": torch.ones(4, 3, dtype=torch.int64)}, RuntimeError, "floating point input, got torch.int64"),
    ({"linear_bias": torch.randn(4)}, RuntimeError, r"linear_bias shape \(5,\), got \(4,\)"),
    ({"weight": torch.rand(3)}, RuntimeError, r"shape \(5,\), got \(3,\)"),
    ({"weight": torch.rand(5, requires_grad=True)}, RuntimeError, "requires a gradient"),
    ({"reduction": "avg"}, ValueError, "reduction = 'avg'"),
    ({"scale": torch.ones((), requires_grad=True)}, RuntimeError, "scale requires a gradient"),
    ({"softcap": torch.ones((), requires_grad=True)}, RuntimeError, "softcap requires a gradient"),
    ({"label_smoothing": -0.1}, ValueError, "label_smoothing = -0.1"),
    ({"label_smoothing": float("nan")}, ValueError, "label_smoothing = nan"),
    ({"softcap": 0.0}, ValueError, "softcap = 0.0"),
    ({"scale": float("inf")}, ValueError, "scale = inf"),
    ({"z_loss": float("nan")}, ValueError, "z_loss = nan"),
    ({"weight_grad": torch.zeros(5, 2)}, ValueError, r"weight_grad has shape \(5, 2\), expected \(5, 3\)"),
    ({"weight_grad": torch.zeros(5, 3, requires_grad=True)}, RuntimeError, "weight_grad must be a floating tensor"),
    ({"weight_grad": [0.0]}, TypeError, "weight_grad must be a Tensor, not list"),
    ({"token_weight": torch.rand(3)}, ValueError, r"token_weight has shape \(3,\), expected \(4,\)"),
    ({"token_weight": torch.tensor([1.0, 1, float("nan"), 1])}, ValueError, r"token_weight\[2\] = nan"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=lambda x: x if isinstance(x, str) else None)
def test_bad_input_is_named(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    good = {"input": torch.randn(4, 3), "linear_weight": torch.randn(5, 3), "target": torch.tensor([0, 1, 2, 3])}
    F.linear_cross_entropy(**good)
    with pytest.raises(kind, match=message):
        F.linear_cross_entropy(**{**good, **change})


def test_autocast_multiplies_what_autocast_gives_and_returns_float32() -> None:
    h, w, y = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.linear_cross_entropy(h, w, y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.linear_cross_entropy(h.bfloat16(), w.bfloat16(), y))
    dh, dw = torch.autograd.grad(loss, [h, w])
    assert dh.dtype == dw.dtype == torch.float32


def test_torch_func_grad() -> None:
    h, w, y = problem(torch.float64)
    expected = torch.autograd.grad(F.linear_cross_entropy(h, w, y), [h, w])
    got = torch.func.grad(lambda a, b: F.linear_cross_entropy(a, b, y), argnums=(0, 1))(h.detach(), w.detach())
    torch.testing.assert_close(got, expected)
