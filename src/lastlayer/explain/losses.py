"""Traces of the losses of a classifier: nll_loss, cross_entropy, and perplexity, which is exp of its mean.

The steps of a cross-entropy are written in loss_steps.py, those that all losses share in reduction.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lastlayer import functional, information
from lastlayer._arrays import Array
from lastlayer._validate import Unit, read_unit
from lastlayer.explain import exact, given
from lastlayer.explain.logits import bits, in_bits
from lastlayer.explain.loss_steps import Case, write_gradient, write_loss
from lastlayer.explain.pytorch import Line
from lastlayer.explain.reduction import SURPRISE, Targets, arguments, half, of_rows, products
from lastlayer.explain.rows import Rows
from lastlayer.explain.sheet import Sheet
from lastlayer.explain.trace import Trace


def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    unit: Unit = "nats",
    check: bool = True,
) -> Trace:
    """Trace the negative log-likelihood of log-probabilities: -w_y log p_y.

    Args:
        input: log-probabilities, (V,) or (N, V): what ``log_softmax`` returns.
        target: class indices, an integer or (N,).
        weight: one weight per class.
        ignore_index: rows with this target do not count.
        reduction: "mean", "sum" or "none".
        unit: "nats", or "bits" for one more step.
        check: run the line of PyTorch too, where torch is installed. Importing torch takes a second.

    Returns:
        The trace; its last step and its result are ``lastlayer.nll_loss(...)``, in bits divided by log 2.

    Raises:
        IndexError, ValueError, TypeError: as ``lastlayer.nll_loss``; ValueError for other shapes or an unknown unit.

    Example:
        >>> trace = nll_loss([[-0.5, -1.0], [-2.0, -0.25]], [0, 1], check=False)
        >>> print(trace.steps[-1].name, trace.steps[-1].substituted, trace.result)
        mean (0.5 + 0.25) / 2 0.375
    """
    read_unit(unit)
    x, y, w = given.read("input", input), given.array("target", target), _weight(weight)
    value = functional.nll_loss(x, y, w, ignore_index=ignore_index, reduction=reduction)
    options: dict[str, Any] = {"ignore_index": int(ignore_index), "reduction": reduction}
    sheet, exactly = Sheet(x), exact.numbers(np.atleast_2d(x))
    targets = Targets(sheet, np.atleast_1d(y), ignore_index, w, reduction)
    sheet.add(
        "log-probabilities", "log p", r"\log p", np.atleast_2d(x), exactly, "", "nats", "What log_softmax returns."
    )
    targets.write_gathered(np.atleast_2d(x), exactly)
    losses, exact_losses = targets.write_surprise(
        of_rows(functional.nll_loss, x, y, None, ignore_index), exactly, SURPRISE
    )
    if w is not None:
        targets.write_weights()
        weighted = of_rows(functional.nll_loss, x, y, w, ignore_index)
        exact_losses = exact.times(targets.exact_weights, exact_losses)
        told = products(sheet, targets.weights, losses)
        sheet.add(
            "losses of the rows", "l = w_y * (-log p_y)", r"l = -w_y \log p_y", weighted, exact_losses, told, "nats"
        )
        losses = weighted
    reduced = targets.write_reduced(value, losses, exact_losses)
    if unit == "bits":
        value = in_bits(sheet, value, reduced)
    code = f"nll_loss(input, target{arguments(weight=w, **options)}){bits(unit)}"
    return sheet.trace(
        f"negative log-likelihood of {sheet.of_rows()}", f"lastlayer.{code}", _inputs(x, y, w, options), value, unit,
        _line(f"F.{code}", x, y, w, 1.0), check, [half(sheet)],
    )  # fmt: skip


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    unit: Unit = "nats",
    gradient: bool = True,
    check: bool = True,
) -> Trace:
    """Trace the cross-entropy of logits, -log softmax(z)_y, and its gradient, p - y.

    Args:
        input: logits, (V,) or (N, V).
        target: class indices, an integer or (N,); or class probabilities (floating point) in the shape of input.
        weight: one weight per class.
        ignore_index: rows with this target do not count.
        reduction: "mean", "sum" or "none".
        label_smoothing: e in [0, 1].
        unit: "nats", or "bits" for one more step. The gradient is that of nats.
        gradient: whether the gradient follows as a last step.
        check: run the line of PyTorch too, where torch is installed. Importing torch takes a second.

    Returns:
        The trace. Its result is ``lastlayer.cross_entropy(...)``, in bits divided by log 2, and the value of its last
        step but for the gradient, which is that of ``lastlayer.cross_entropy_value_and_grad(...)``.

    Raises:
        IndexError, ValueError, TypeError: as ``lastlayer.cross_entropy``; ValueError for other shapes or an unknown
            unit.

    Example:
        >>> trace = cross_entropy([[0.2, 0.5, -0.1], [-0.1, 0.1, 0.3]], [1, 2], check=False)
        >>> for step in trace.steps[-3:-1]:
        ...     print(step.name, "|", step.substituted)
        negative: surprise | -(-0.8284); -(-0.9119)
        mean | (0.8284 + 0.9119) / 2
        >>> round(trace.result, 4)
        0.8701
    """
    read_unit(unit)
    z, t, w = given.read("input", input), given.array("target", target), _weight(weight)
    value = functional.cross_entropy(
        z, t, w, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
    options: dict[str, Any] = {
        "ignore_index": int(ignore_index), "reduction": reduction, "label_smoothing": float(label_smoothing),
    }  # fmt: skip
    case = Case(Sheet(z), Rows(z), t, w, ignore_index, reduction, float(label_smoothing))
    slope, exact_u, reduced = write_loss(case, value)
    result = in_bits(case.sheet, value, reduced) if unit == "bits" else value
    if gradient:
        write_gradient(case, functional.cross_entropy_value_and_grad(z, t, w, **options)[1], slope, exact_u)
    code = f"cross_entropy(input, target{arguments(weight=w, **options)}){bits(unit)}"
    return case.sheet.trace(
        f"cross-entropy of {case.sheet.of_rows()}", f"lastlayer.{code}", _inputs(z, t, w, options), result, unit,
        _line(f"F.{code}", z, t, w, max(1.0, case.rows.spread)), check,
        [half(case.sheet), "The gradient is that of the loss in nats." if gradient and unit == "bits" else ""],
    )  # fmt: skip


def perplexity(input: Any, target: Any, *, ignore_index: int = -100, check: bool = True) -> Trace:
    """Trace exp of the mean surprise: among how many equally probable classes the model hesitates, on average.

    Args:
        input: logits, (V,) or (N, V).
        target: class indices, an integer or (N,); or class probabilities in the shape of input.
        ignore_index: rows with this target do not count.
        check: run the line of PyTorch too.

    Returns:
        The trace; its last step and its result are ``lastlayer.perplexity(...)``, a float64.

    Raises:
        IndexError, ValueError, TypeError: as ``lastlayer.perplexity``; ValueError for other shapes.

    Example:
        >>> perplexity([[0.0, 0.0, 0.0, 0.0]], [2], check=False).result
        4.0
    """
    z, t = given.read("input", input), given.array("target", target)
    value = information.perplexity(z, t, ignore_index=ignore_index)
    case = Case(Sheet(z), Rows(z), t, None, ignore_index, "mean", 0.0)
    loss = functional.cross_entropy(z, t, ignore_index=ignore_index)
    reduced = write_loss(case, loss)[2]
    case.sheet.add(
        "perplexity", "exp(mean)", r"e^{\text{mean}}", value, exact.exp(reduced), f"exp({case.sheet.number(loss)})", "",
        "As many classes, equally probable, would surprise as much. From the mean in float64.",
    )  # fmt: skip
    options: dict[str, Any] = {"ignore_index": int(ignore_index)}
    code, size = arguments(**options), max(case.rows.spread, 1.0)
    line = _line(f"torch.exp(F.cross_entropy(input, target{code}))", z, t, None, size * _finite(value))
    return case.sheet.trace(
        f"perplexity of {case.sheet.of_rows()}", f"lastlayer.perplexity(input, target{code})",
        _inputs(z, t, None, options), value, "", line, check,
    )  # fmt: skip


def _weight(weight: Any) -> Array | None:
    return None if weight is None else given.array("weight", weight)


def _inputs(x: Array, target: Array, weight: Array | None, options: dict[str, Any]) -> dict[str, Any]:
    inputs = {"input": given.plain(x), "target": given.plain(target)}
    return inputs | ({} if weight is None else {"weight": given.plain(weight)}) | options


def _line(code: str, x: Array, target: Array, weight: Array | None, size: float) -> Line:
    """Return the line of PyTorch, which wants one type for all that is floating."""
    names = {"input": x, "target": target, "weight": weight}
    return Line(
        code,
        {
            name: each if each.dtype.kind in "iu" and name == "target" else each.astype(x.dtype)
            for name, each in names.items()
            if each is not None
        },
        size,
    )


def _finite(value: Any) -> float:
    return float(value) if np.isfinite(value) else 1.0
