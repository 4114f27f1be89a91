"""linear_cross_entropy for torch: hidden states to loss and gradients without the N x V logits.

The mathematics is in lastlayer._linear, the driver in lastlayer._stream; here are torch's products, the autograd
Functions of the two schedules, and the public function with its checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lastlayer import _backends, _linear, _validate
from lastlayer._algebra import Terms
from lastlayer._linear import Saved
from lastlayer._stream import DEFAULT_BUDGET, Gradients, Head, Stream
from lastlayer.torch.functional import cross_entropy, require_one_device, require_tensors
from lastlayer.torch.statistics import eager


class TorchProducts:
    """torch.mm and addmm in float32 or float64: 16-bit inputs are converted, or each logit would be rounded."""

    adds_in_place = True

    def __init__(self, input: Tensor) -> None:
        self.device = input.device
        self.dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.backend = _backends.choose(input)

    def empty(self, *shape: int) -> Tensor:
        return self.backend.reserve(torch.empty(shape, dtype=self.dtype, device=self.device))  # type: ignore[no-any-return]

    def double(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=self.device)

    def convert(self, array: Tensor, out: Tensor) -> Tensor:
        return out.copy_(array)

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        torch.mm(a, b, out=out)

    def accumulate(self, a: Tensor, b: Tensor, out: Tensor, scratch: Tensor | None, first: bool) -> None:
        out.addmm_(a, b, beta=0 if first else 1)

    def tanh(self, array: Tensor) -> None:
        array.tanh_()


class Problem:
    """One call's constants: everything but the tensors that autograd must see."""

    def __init__(
        self,
        target: Tensor | None,
        terms: Terms,
        class_weight: Tensor | None,
        soft: Tensor | None,
        smoothing: float,
        scale: float,
        softcap: float | None,
        budget: int,
    ) -> None:
        self.target, self.terms, self.class_weight, self.soft = target, terms, class_weight, soft
        self.smoothing, self.scale, self.softcap, self.budget = smoothing, scale, softcap, budget

    def stream(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Stream:
        """Return the stream over detached tensors."""
        products, head = TorchProducts(input), Head(weight, bias, self.scale, self.softcap)
        u = weight.new_ones(weight.shape[0], dtype=torch.float64) if self.class_weight is None else self.class_weight
        weights = _linear.weights_of(self.terms, self.soft, u, self.smoothing, lambda array: array.to(products.dtype))
        return Stream(products, input, head, self.target, weights, self.budget, dense=self.soft is not None)


def _rounded(into: Gradients, input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(
        None if gradient is None or like is None else gradient.to(like.dtype)
        for gradient, like in zip(into, (input, weight, bias), strict=True)
    )


class _SecondOrder(torch.autograd.Function):
    """The identity on a fused gradient; differentiating it again says why that is not possible."""

    @staticmethod
    def forward(gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(
            "linear_cross_entropy has no second derivative: it would need the full N x V logits. Differentiate "
            "cross_entropy(linear(input, linear_weight), target) twice instead"
        )


def _first_order(gradients: tuple[Tensor | None, ...], *inputs: Tensor) -> tuple[Tensor | None, ...]:
    if not torch.is_grad_enabled():
        return gradients
    return tuple(None if g is None else _SecondOrder.apply(g, *inputs) for g in gradients)  # type: ignore[no-untyped-call]


class _Fused(torch.autograd.Function):
    """The sum of the row losses; gradients are formed in the forward pass (6 N D V operations)."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, ...]:
        stream = problem.stream(input, weight, bias)
        into = _linear.allocate(stream, wanted, lambda: torch.empty_like(input)) if any(wanted) else None
        loss = _linear.value_and_gradients(stream, problem.terms, into).sum()
        gradients = (None, None, None) if into is None else _rounded(into, input, weight, bias)
        return (loss.to(stream.products.dtype), *gradients)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        input, weight, bias, ctx.problem, ctx.wanted = inputs
        ctx.ready = output[1:]  # without a graph of their own, so no cycle; handed out by the first backward
        ctx.mark_non_differentiable(*(g for g in ctx.ready if g is not None))
        ctx.save_for_backward(input, weight, bias)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        g = upstream[0]
        if g is None:
            return (None,) * 5
        input, weight, bias = ctx.saved_tensors
        ready, ctx.ready = ctx.ready, None
        with torch.no_grad():
            gradients = _Fused.forward(input, weight, bias, ctx.problem, ctx.wanted)[1:] if ready is None else ready
            if not (eager(g) and g.is_cpu and g.item() == 1):
                gradients = tuple(None if d is None else d.mul_(g.to(d.dtype)) for d in gradients)
        return (*_first_order(gradients, g, input, weight), None, None)


class _Recomputed(torch.autograd.Function):
    """The row losses (N,); the backward computes the logits again (8 N D V operations)."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, ...]:
        stream = problem.stream(input, weight, bias)
        losses, saved = _linear.value_and_saved(stream, problem.terms)
        return (losses.to(stream.products.dtype), *saved)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, weight, bias, ctx.problem, ctx.wanted = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(input, weight, bias, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        input, weight, bias, *saved = ctx.saved_tensors
        g = upstream[0]
        if g is None:
            return (None,) * 5
        with torch.no_grad():
            stream = ctx.problem.stream(input, weight, bias)
            into = _linear.allocate(stream, ctx.wanted, lambda: torch.empty_like(input))
            _linear.gradients_of(stream, ctx.problem.terms, Saved(*saved), g.double(), into)
            gradients = _rounded(into, input, weight, bias)
        return (*_first_order(gradients, g, input, weight), None, None)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    scale: float = 1.0,
    token_weight: Tensor | None = None,
    memory_budget: int = DEFAULT_BUDGET,
) -> Tensor:
    r"""Compute the cross-entropy of ``linear(input, linear_weight, linear_bias)`` without storing its N x V logits.

    The logits of a token are z = softcap * tanh(scale * (W h + b) / softcap); its loss, with class weights w, smoothing
    e and log p = log_softmax(z), is::

        -(1 - e) w_y log p_y - (e / V) sum_j w_j log p_j + z_loss * logsumexp(z)^2

    ``"mean"`` and ``"sum"`` form the gradients during the forward pass; ``"none"`` computes the logits a second time in
    the backward pass.

    Args:
        input: hidden states (D), (N, D) or (B, T, D): any leading shape.
        linear_weight: (V, D), of the input's dtype. (V, d_1, ..., D) is computed through full logits, as torch does.
        target: class indices of the leading shape, int64 or uint8, or class probabilities of the leading shape and V
            (not checked, as in torch); where these require a gradient, the loss goes through full logits.
        linear_bias: (V).
        weight: class weights (V).
        reduction: ``"none"``, ``"mean"`` (over the weights of the targets that count) or ``"sum"``.
        ignore_index: a target value whose tokens count as absent, -100 unless given; they cost no product.
        label_smoothing: e, in [0, 1].
        options: accepted because torch's function has it; ``memory_budget`` decides here.
        z_loss: the factor of the squared logsumexp.
        softcap: bounds the logits to (-softcap, softcap).
        scale: multiplies the logits.
        token_weight: factors of the tokens' losses, in the leading shape; the mean divides by their weighted sum.
        memory_budget: bytes for the workspace, gradients not counted.

    Returns:
        The loss: float32, or float64 for float64 input, whatever the 16-bit type of the input. A scalar, or the
        leading shape for ``"none"``. 0, connected to the graph, where every target is ignored.

    Raises:
        IndexError: a target is neither a class nor ignored; the message names it.
        RuntimeError: shapes, dtypes or devices do not fit; or a second derivative is asked for (needs full logits).
        ValueError: reduction, label_smoothing, softcap or another factor is out of range; the budget is too small.

    Note:
        16-bit inputs are multiplied in float32. Differs from torch: 16-bit input gives a float32 loss, ignored rows
        cannot poison the gradient, and the mean over no tokens is 0, not NaN. ``torch.compile`` breaks its graph here;
        ``vmap`` and forward-mode differentiation are not supported.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> h, W = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> F.linear_cross_entropy(h, W, torch.tensor([0, 2]))
        tensor(0.8620)
        >>> F.linear_cross_entropy(h, W, torch.tensor([0, -100]), reduction="none")
        tensor([0.8620, 0.0000])
    """
    numbers = {"label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap, "scale": scale}
    _check_constants(numbers)
    _linear.check_options(reduction, label_smoothing, z_loss, softcap, scale, memory_budget)
    if ignore_index is not None:
        ignore_index = _validate.read_integer("ignore_index", ignore_index)
    require_tensors(
        input=input, linear_weight=linear_weight, target=target,
        linear_bias=linear_bias, weight=weight, token_weight=token_weight,
    )  # fmt: skip
    _check_shapes(input, linear_weight, linear_bias, weight)
    leading, classes = input.shape[:-1], linear_weight.shape[0]
    soft = tuple(target.shape) == (*leading, classes)
    if linear_weight.dim() > 2 or (soft and target.requires_grad):
        extras = {
            "z_loss": z_loss != 0,
            "softcap": softcap is not None,
            "scale": scale != 1,
            "token_weight": token_weight,
        }
        return _dense(
            input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, extras
        )
    if soft and ignore_index is not None:
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    require_one_device(input, target=target, token_weight=token_weight)
    _check_target(target, leading, classes, soft)
    _check_token_weight(token_weight, leading)
    tensors = _autocast(input, linear_weight, linear_bias)
    wanted = tuple(t is not None and t.requires_grad and torch.is_grad_enabled() for t in tensors)
    h, factor = tensors[0].reshape(-1, input.shape[-1]), None if token_weight is None else token_weight.reshape(-1)
    y, kept = target.detach().reshape(-1, classes) if soft else target.reshape(-1), None
    if not soft:
        kept = _rows_that_count(target, classes, -100 if ignore_index is None else ignore_index)
        if kept is not None:
            h, y, factor = h[kept], y[kept], None if factor is None else factor[kept]
    class_weight = None if weight is None else weight.detach().double()
    rows = torch.ones(y.shape[0], dtype=torch.float64, device=y.device) if factor is None else factor.double()
    of_target = None if class_weight is None or soft else class_weight[y.long()]
    terms = _linear.terms_of(rows, of_target, soft, reduction, label_smoothing, classes, z_loss)
    index = None if soft else y.to(torch.int64).contiguous()
    problem = Problem(index, terms, class_weight, y if soft else None, label_smoothing, scale, softcap, memory_budget)
    if reduction != "none":
        return _apply(_Fused, h, tensors[1], tensors[2], problem, wanted)
    losses = _apply(_Recomputed, h, tensors[1], tensors[2], problem, wanted)
    if kept is not None:
        losses = losses.new_zeros(leading.numel()).index_put((kept,), losses)
    return losses.reshape(leading)


def _rows_that_count(target: Tensor, classes: int, ignored: int) -> Tensor | None:
    """Check the targets; return the numbers of the rows that are not ignored, None if none is."""
    _validate.check_target(target, classes, ignored)
    keep = target.reshape(-1) != ignored
    return None if bool(keep.all()) else keep.nonzero()[:, 0]


def _run(schedule: Any, *arguments: Any) -> Tensor:
    return schedule.apply(*arguments)[0]  # type: ignore[no-any-return]


_apply: Callable[..., Tensor] = torch.compiler.disable(_run)  # type: ignore[no-untyped-call]


def _autocast(input: Tensor, *parameters: Tensor | None) -> tuple[Any, ...]:
    device = input.device.type
    if not torch.is_autocast_enabled(device):
        return (input, *parameters)
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (input, *parameters))


def _check_constants(numbers: dict[str, Any]) -> None:
    for name, value in numbers.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise RuntimeError(f"{name} requires a gradient, which linear_cross_entropy does not compute")


def _check_shapes(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, weight: Tensor | None) -> None:
    if input.dim() < 1:
        raise RuntimeError("expected input with dimensionality at least 1, got 0")
    if linear_weight.dim() < 2:
        raise RuntimeError(f"expected linear_weight with dimensionality at least 2, got {linear_weight.dim()}")
    if input.shape[-1] != linear_weight.shape[-1]:
        raise RuntimeError(
            "expected equal input and linear_weight last dimensions (in_features), "
            f"got {input.shape[-1]} and {linear_weight.shape[-1]}, respectively"
        )
    if linear_weight.shape[0] == 0:
        raise RuntimeError(f"linear_weight has shape {tuple(linear_weight.shape)}: expected at least one class")
    outputs = tuple(linear_weight.shape[:-1])
    if linear_bias is not None and tuple(linear_bias.shape) != outputs:
        raise RuntimeError(f"expected linear_bias shape {outputs}, got {tuple(linear_bias.shape)}")
    if weight is not None and tuple(weight.shape) != outputs[:1]:
        raise RuntimeError(f"expected weight (one per class) shape {outputs[:1]}, got {tuple(weight.shape)}")
    if not input.is_floating_point():
        raise RuntimeError(f"expected a floating point input, got {input.dtype}")
    require_one_device(input, linear_weight=linear_weight, linear_bias=linear_bias, weight=weight)
    mixed = not torch.is_autocast_enabled(input.device.type)
    for name, tensor in (("linear_weight", linear_weight), ("linear_bias", linear_bias), ("weight", weight)):
        if tensor is None:
            continue
        if not tensor.is_floating_point() or (mixed and name != "weight" and tensor.dtype != input.dtype):
            raise RuntimeError(f"{name} has dtype {tensor.dtype}, input {input.dtype}: expected the same floating type")
    if weight is not None and weight.requires_grad:
        raise RuntimeError("weight (class weights) requires a gradient, which linear_cross_entropy does not compute")


def _check_target(target: Tensor, leading: torch.Size, classes: int, soft: bool) -> None:
    if soft:
        if not target.is_floating_point():
            raise RuntimeError(f"target has dtype {target.dtype} and a shape of class probabilities: expected floats")
        return
    if target.shape != leading:
        expected = f"{tuple(leading)} (class indices) or {(*leading, classes)} (class probabilities)"
        raise RuntimeError(f"expected target of shape {expected}, got {tuple(target.shape)}")
    if target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(f"target has dtype {target.dtype}, expected class indices: int64 or uint8")


def _check_token_weight(token_weight: Tensor | None, leading: torch.Size) -> None:
    if token_weight is None:
        return
    _validate.check_shape("token_weight", token_weight, tuple(leading), ", one factor per token")
    if not token_weight.is_floating_point():
        raise TypeError(f"token_weight has dtype {token_weight.dtype}, expected a floating type")
    if token_weight.requires_grad:
        raise RuntimeError("token_weight requires a gradient: use reduction='none' and multiply the losses by it")
    bad = ~torch.isfinite(token_weight)
    if bool(bad.any()):
        at = _validate.position(bad)
        raise ValueError(f"{_validate.element('token_weight', at)} = {float(token_weight[at])} must be finite")


def _dense(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int | None,
    label_smoothing: float,
    extras: dict[str, Any],
) -> Tensor:
    """Through full logits, as torch does: K-dimensional heads (V, d_1, ..., D), and targets that require a gradient."""
    given = [name for name, value in extras.items() if value is not None and value is not False]
    if given:
        kind = "a K-dimensional linear_weight" if linear_weight.dim() > 2 else "a target that requires a gradient"
        raise RuntimeError(f"{', '.join(given)} cannot be combined with {kind}")
    if linear_weight.dim() == 2:
        flat = F.linear(input, linear_weight, linear_bias).reshape(-1, linear_weight.shape[0])
        loss = cross_entropy(
            flat, target.reshape(flat.shape), weight, reduction=reduction, label_smoothing=label_smoothing
        )
        return loss.reshape(input.shape[:-1]) if reduction == "none" else loss
    if input.dim() != 2:
        shapes = f"{tuple(linear_weight.shape)} requires batched input, (N, {input.shape[-1]}), got unbatched input"
        raise RuntimeError(
            f"K-dimensional loss defined by linear_weight shape {shapes} with shape {tuple(input.shape)}"
        )
    outputs = linear_weight.shape[:-1]
    bias = None if linear_bias is None else linear_bias.reshape(-1)
    logits = F.linear(input, linear_weight.reshape(-1, input.shape[-1]), bias).reshape(-1, *outputs)
    if target.shape == logits.shape and ignore_index is not None:
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    ignored = -100 if ignore_index is None else ignore_index
    return cross_entropy(
        logits, target, weight, ignore_index=ignored, reduction=reduction, label_smoothing=label_smoothing
    )
