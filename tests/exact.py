"""Formulas written as a paper has them, evaluated exactly by mpmath, and by torch as anybody would write them.

A definition is a function of ``m``, which offers exp, log and the like, of a list of numbers x (a row of logits, target
first, or what else the loss is differentiated by) and of further numbers. With ``Exact`` they are mpmath's, a row
at a time, and the gradient is a central difference at so many digits that it is exact; with ``Plain`` they are tensors
over the rows, and the digits are those that the plain formula keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import laws
import mpmath
import numpy as np
import torch
from torch import Tensor

DIGITS, STEP = 110, mpmath.mpf(10) ** -30  # 1 - p of a row with margin 60 has 26 digits fewer, its cube 78
RELATIVE = 1e-12
TINY = 2.0**-60  # below this size a float32 kernel's gradient has an absolute error

Definition = Callable[..., Any]


class Exact:
    """The mathematics of one row."""

    exp, log, sqrt, cos, acos = mpmath.exp, mpmath.log, mpmath.sqrt, mpmath.cos, mpmath.acos

    @staticmethod
    def where(condition: Any, a: Any, b: Any) -> Any:
        return a if condition else b

    @classmethod
    def minimum(cls, a: Any, b: Any) -> Any:
        return min(a, b)

    @classmethod
    def log_softmax(cls, z: Sequence[Any]) -> list[Any]:
        total = cls.logsumexp(z)
        return [x - total for x in z]

    @classmethod
    def logsumexp(cls, z: Sequence[Any]) -> Any:
        return mpmath.log(sum(mpmath.exp(x) for x in z))


class Plain:
    """The same of many rows, as torch does it."""

    exp, log, sqrt, cos, acos, minimum = torch.exp, torch.log, torch.sqrt, torch.cos, torch.acos, torch.minimum
    where = torch.where

    @staticmethod
    def log_softmax(z: Sequence[Tensor]) -> list[Tensor]:
        return list(torch.log_softmax(torch.stack(list(z), -1), -1).unbind(-1))

    @staticmethod
    def logsumexp(z: Sequence[Tensor]) -> Tensor:
        return torch.logsumexp(torch.stack(list(z), -1), -1)


def times(p: Any, x: Any) -> Any:
    """Return p x, where a number p = 0 is stronger than an infinite x."""
    return mpmath.mpf(0) if not isinstance(p, Tensor) and p == 0 else p * x


def exactly(define: Definition, x: Tensor, *more: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the definition's value for each row of x, and its gradient by x, in float64."""
    values, gradients = [], np.zeros(tuple(x.shape))
    with mpmath.workdps(DIGITS):
        for i, row in enumerate(x.tolist()):
            z = [mpmath.mpf(value) for value in row]
            given = [_numbers(other[i].tolist()) for other in more]
            values.append(float(define(Exact, z, *given)))
            if not np.isfinite(values[-1]):
                continue
            for j in range(len(z)):
                if mpmath.isfinite(z[j]):  # a masked class has the gradient 0
                    up, down = (define(Exact, [*z[:j], z[j] + step, *z[j + 1 :]], *given) for step in (STEP, -STEP))
                    gradients[i, j] = float((up - down) / (2 * STEP))
    return np.array(values), gradients


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    return value if isinstance(value, bool) else mpmath.mpf(value)


def plainly(define: Definition, x: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same in torch's arithmetic, in x's own type."""
    x = x.detach().clone().requires_grad_()
    given = [list(other.unbind(-1)) if other.dim() > 1 else other for other in more]
    values = define(Plain, list(x.unbind(-1)), *given)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), gradient


def value_and_gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the library computes; row by row, so that an infinite one does not reach the others."""
    x = x.detach().clone().requires_grad_()
    values = loss(x)
    (gradient,) = torch.autograd.grad(values, x, torch.isfinite(values).to(values.dtype))
    return values.detach(), gradient


def is_exact(
    define: Definition,
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    *more: Tensor,
    order: Tensor | None = None,
    rounded: Any = 1.0,
    floor: Any = 0.0,
) -> None:
    """The loss and its gradient are the definition's: in float64 to 1e-12, in float32 within the budget.

    ``order`` sorts each row of x as the definition wants it, (N, V). ``rounded`` is by how much a row's result is
    smaller than what is rounded on the way, ``floor`` an absolute error of a row's gradient that is excused.
    """
    order = torch.arange(x.shape[1]).expand(x.shape) if order is None else order
    exact, slope = exactly(define, x.gather(1, order), *more)
    value, gradient = value_and_gradient(loss, x)
    finite = np.isfinite(exact)
    slope, got = slope[finite], gradient.gather(1, order).numpy().astype(np.float64)[finite]
    assert value.dtype == x.dtype
    assert value.shape == exact.shape
    size, floor = np.abs(slope).max(-1), np.broadcast_to(floor, finite.shape)[finite]
    if x.dtype == torch.float64:
        np.testing.assert_allclose(value.numpy(), exact, rtol=RELATIVE, atol=0)
        error = np.abs(got - slope).max(-1)
        assert (error <= RELATIVE * size + floor).all(), f"gradient: {error}, size {size}"
        return
    plain, plain_slope = (laws.wide(each) for each in plainly(define, x.gather(1, order), *more))
    plain = np.where(np.isfinite(plain), plain, exact)  # where the plain formula has no number, it excuses nothing
    plain_slope = np.where(np.isfinite(plain_slope[finite]), plain_slope[finite], slope)
    terms, rounded = 8 * x.shape[1], np.broadcast_to(rounded, finite.shape)
    columns = (_without_tiny(array)[:, None] for array in (value, exact, plain))
    laws.assert_within(*columns, np.float32, "value", terms, rounded * np.abs(np.where(finite, exact, 0)))
    rows = (_without_tiny(array) for array in (got, slope, plain_slope))
    most = rounded[finite] * size + floor / laws.spacing(np.float32)
    laws.assert_within(*rows, np.float32, "gradient", terms, most)


def _without_tiny(array: Any) -> np.ndarray:
    return np.where(np.abs(laws.wide(array)) < TINY, 0.0, laws.wide(array))
