"""linear_cross_entropy for NumPy: hidden states to loss and gradients without the N x V logits.

The mathematics is in lastlayer._linear, the driver in lastlayer._stream, the twin in lastlayer.torch.linear.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lastlayer import _linear, _validate
from lastlayer._arrays import real, unmasked
from lastlayer._backends import numpy_threads
from lastlayer._losses import read_probabilities, read_weight
from lastlayer._stream import DEFAULT_BUDGET, Gradients, Head, Stream

Floats = NDArray[Any]


class LinearGradients(NamedTuple):
    """Gradients of a loss of a linear head; ``linear_bias`` is None if there was no bias."""

    input: Floats
    linear_weight: Floats
    linear_bias: Floats | None


class NumpyProducts:
    """numpy.matmul in float32 or float64; it cannot add to its output: sums over chunks go through a scratch block."""

    adds_in_place = False
    align = 1

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = self.operand = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        self.packing = (16 << 20) * numpy_threads()[0]  # measured of OpenBLAS, per thread

    def empty(self, *shape: int, dtype: Any = None) -> Floats:
        return np.empty(shape, self.dtype if dtype is None else dtype)

    def double(self, *shape: int) -> Floats:
        return np.empty(shape)

    def convert(self, array: Floats, out: Floats) -> Floats:
        out[...] = array
        return out

    def product(self, a: Floats, b: Floats, out: Floats) -> None:
        np.matmul(a, b, out=out)

    def accumulate(
        self, a: Floats, b: Floats, out: Floats, scratch: Floats | None, first: bool, factor: float = 1.0
    ) -> None:
        if first:
            np.matmul(a, b, out=out)
        else:
            out += np.matmul(a, b, out=None if scratch is None else scratch[: out.shape[0]])

    def tanh(self, array: Floats) -> None:
        np.tanh(array, out=array)

    def budget(self, rows: int, classes: int, features: int) -> int:
        return DEFAULT_BUDGET


def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    scale: float = 1.0,
    token_weight: ArrayLike | None = None,
    memory_budget: int | None = None,
) -> Any:
    r"""Compute the cross-entropy of ``input @ linear_weight.T + linear_bias`` without storing its N x V logits.

    With z = softcap * tanh(scale * (W h + b) / softcap), class weights w, smoothing e and log p = log_softmax(z), the
    loss of a token is::

        -(1 - e) w_y log p_y - (e / V) sum_j w_j log p_j + z_loss * logsumexp(z)^2

    Args:
        input: hidden states (..., D), a floating type.
        linear_weight: (V, D), a floating type.
        target: class indices (...), an integer type, or class probabilities (..., V), a floating type.
        linear_bias: (V).
        weight: class weights (V), >= 0.
        reduction: ``"none"``, ``"mean"`` (over the weights of the targets that count) or ``"sum"``.
        ignore_index: a target value whose tokens count as absent; they cost no product. None: no such value.
        label_smoothing: e, in [0, 1].
        z_loss: the factor of the squared logsumexp.
        softcap: bounds the logits to (-softcap, softcap).
        scale: multiplies the logits.
        token_weight: factors of the tokens' losses (...); the mean divides by their (class-weighted) sum.
        memory_budget: bytes for the workspace.

    Returns:
        The loss in nats, float32 (float64 for float64 input): a scalar, or an array (...) for ``"none"``. The mean over
        no tokens is 0.

    Raises:
        IndexError: a target is neither a class nor ignored; the message names it.
        TypeError: an argument has the wrong type.
        ValueError: shapes do not fit, or a factor or the budget is out of range.

    Example:
        >>> import numpy as np
        >>> import lastlayer
        >>> h, W = np.eye(2), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> print(round(lastlayer.linear_cross_entropy(h, W, [0, 2]), 4))
        0.862
    """
    call = _Call(
        input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, z_loss,
        softcap, scale, token_weight, memory_budget,
    )  # fmt: skip
    return call.reduced(call.losses(None))


def linear_cross_entropy_value_and_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    reduction: str = "mean",
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    scale: float = 1.0,
    token_weight: ArrayLike | None = None,
    memory_budget: int | None = None,
) -> tuple[Any, LinearGradients]:
    """Return ``linear_cross_entropy`` and its gradients, formed in one pass (6 N D V operations).

    Args:
        input: as ``linear_cross_entropy``, and so are the others.
        linear_weight: see there.
        target: see there.
        linear_bias: see there.
        weight: see there.
        reduction: see there; for ``"none"`` the gradients are those of the sum.
        ignore_index: see there.
        label_smoothing: see there.
        z_loss: see there.
        softcap: see there.
        scale: see there.
        token_weight: see there.
        memory_budget: bytes for the workspace; the gradients themselves come on top.

    Returns:
        The loss, and ``LinearGradients(input, linear_weight, linear_bias)`` in the types of the arguments. Ignored
        tokens have the gradient 0.

    Raises:
        IndexError, TypeError, ValueError: as ``linear_cross_entropy``.

    Example:
        >>> import numpy as np
        >>> import lastlayer
        >>> h, W = np.eye(2), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> value, grad = lastlayer.linear_cross_entropy_value_and_grad(h, W, [0, 2])
        >>> grad.input.round(4)
        array([[-0.0777,  0.2888],
               [-0.2112, -0.0777]])
    """
    call = _Call(
        input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing, z_loss,
        softcap, scale, token_weight, memory_budget,
    )  # fmt: skip
    into = _linear.allocate(call.stream, (True, True, call.bias is not None), lambda: np.empty_like(call.hidden))
    losses = call.losses(into)
    return call.reduced(losses), call.gradients(into)


class _Call:
    """One call: its checked arguments, the rows that count, the terms of their losses and the stream over them."""

    def __init__(
        self, input: ArrayLike, linear_weight: ArrayLike, target: ArrayLike, linear_bias: ArrayLike | None,
        weight: ArrayLike | None, reduction: str, ignore_index: int | None, label_smoothing: float, z_loss: float,
        softcap: float | None, scale: float, token_weight: ArrayLike | None, memory_budget: int | None,
    ) -> None:  # fmt: skip
        self.input, self.weight, self.bias = read_head(input, linear_weight, linear_bias)
        _linear.check_options(reduction, label_smoothing, z_loss, softcap, scale, memory_budget)
        ignore_index = None if ignore_index is None else _validate.read_integer("ignore_index", ignore_index)
        self.leading, (classes, features) = self.input.shape[:-1], self.weight.shape
        class_weight, y = read_weight(weight, classes), unmasked("target", target)
        self.soft = y.dtype.kind == "f" or y.dtype.name == "bfloat16"
        self._check_target(y, classes)
        factor: Floats = np.ones(self.leading)
        if token_weight is not None:
            factor = _read_token_weight(token_weight, self.leading)
        y, factor = (y.reshape(-1, classes) if self.soft else y.reshape(-1)), factor.reshape(-1)
        self.kept = np.ones(factor.shape, bool)
        if not self.soft:
            _validate.check_target(y.reshape(self.leading), classes, ignore_index)
            self.kept = y != ignore_index if ignore_index is not None else self.kept
        rows = self.input.reshape(-1, features)
        whole = bool(self.kept.all())
        self.hidden = rows if whole else rows[self.kept]
        y, factor = (y, factor) if whole else (y[self.kept], factor[self.kept])
        self.reduction, self.out = reduction, np.float64 if self.input.dtype == np.float64 else np.float32
        self._make_stream(y, factor, class_weight, label_smoothing, z_loss, softcap, scale, memory_budget)

    def _check_target(self, y: NDArray[Any], classes: int) -> None:
        if not self.soft and y.dtype.kind not in "iu" and y.size:
            raise TypeError(f"target has dtype {y.dtype}, expected integers (classes) or floats (class probabilities)")
        expected = (*self.leading, classes) if self.soft else self.leading
        kind = "class probabilities" if self.soft else "class indices"
        _validate.check_shape("target", y, expected, f" for {kind}")
        if self.soft:
            read_probabilities("target", y)

    def _make_stream(
        self, y: NDArray[Any], factor: Floats, class_weight: Floats | None, smoothing: float, z_loss: float,
        softcap: float | None, scale: float, budget: int | None,
    ) -> None:  # fmt: skip
        classes = self.weight.shape[0]
        index = None if self.soft else y.astype(np.int64)
        of_target = None if index is None or class_weight is None else class_weight[index]
        self.terms = _linear.terms_of(factor, of_target, self.soft, self.reduction, smoothing, classes, z_loss)
        products, u = NumpyProducts(self.input.dtype), np.ones(classes) if class_weight is None else class_weight
        soft = y if self.soft else None
        asked = u.astype(products.dtype) if self.soft else u if smoothing else None
        weights = _linear.weights_of(soft, asked, smoothing, classes)
        head = Head(self.weight, self.bias, scale, softcap)
        self.stream = Stream(products, self.hidden, head, index, weights, budget, dense=self.soft)

    def losses(self, into: Gradients | None) -> Floats:
        with np.errstate(all="ignore"):
            return _linear.cross_entropy(self.stream, self.terms, into)  # type: ignore[no-any-return]

    def reduced(self, losses: Floats) -> Any:
        if self.reduction != "none":
            return self.out(losses.sum())
        every = np.zeros(self.kept.shape, self.out)
        every[self.kept] = losses
        return every.reshape(self.leading)[()]

    def gradients(self, into: Gradients) -> LinearGradients:
        kept = None if self.kept.all() else self.kept
        return gradients_like(into, kept, self.input, self.weight, self.bias)


def read_head(
    input: ArrayLike, linear_weight: ArrayLike, linear_bias: ArrayLike | None
) -> tuple[Floats, Floats, Floats | None]:
    """Return hidden states (..., D), weight (V, D) and bias (V) or None, checked."""
    hidden, weight = real("input", input), real("linear_weight", linear_weight)
    if hidden.ndim < 1 or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        shapes = f"{hidden.shape} and {weight.shape}"
        raise ValueError(f"input and linear_weight have shapes {shapes}, expected (..., D) and (V, D)")
    if weight.shape[0] == 0:
        raise ValueError(f"linear_weight has shape {weight.shape}: expected at least one class")
    bias = None if linear_bias is None else real("linear_bias", linear_bias)
    if bias is not None:
        _validate.check_shape("linear_bias", bias, weight.shape[:1], ": one per class")
    return hidden, weight, bias


def gradients_like(
    into: Gradients, kept: NDArray[np.bool_] | None, input: Floats, weight: Floats, bias: Floats | None
) -> LinearGradients:
    """Return the gradients in the types and shapes of these; that of the input is 0 in rows that were not kept."""
    assert into.input is not None
    assert into.weight is not None
    every = into.input
    if kept is not None:
        every = np.zeros((kept.size, input.shape[-1]), input.dtype)
        every[kept] = into.input
    of_bias = None if into.bias is None or bias is None else into.bias.astype(bias.dtype)
    return LinearGradients(every.reshape(input.shape), into.weight.astype(weight.dtype, copy=False), of_bias)


def _read_token_weight(token_weight: ArrayLike, leading: tuple[int, ...]) -> NDArray[np.float64]:
    factor = real("token_weight", token_weight).astype(np.float64)
    _validate.check_shape("token_weight", factor, leading, ", one factor per token")
    bad = ~np.isfinite(factor)
    if bad.any():
        at = _validate.position(bad)
        raise ValueError(f"{_validate.element('token_weight', at)} = {factor[at]} must be finite")
    return factor
