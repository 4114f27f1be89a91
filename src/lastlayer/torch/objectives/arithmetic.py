"""What objectives are made of, with all digits at both ends: exp(x) - 1 - x, 1 - exp(x), log(1 - exp(x))."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lastlayer._algebra import LN2, log1mexp, times
from lastlayer.torch.statistics import eager

SERIES = 0.25  # below this size exp(x) - 1 - x is summed as a series, of as many terms as float64 has digits for


class _ExpExcess(torch.autograd.Function):
    """exp(x) - 1 - x as one node: autograd through the series would keep each of its terms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _exp_excess(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return upstream * torch.expm1(x)


def _exp_excess(x: Tensor) -> Tensor:
    near, tail = torch.where(x.abs() < SERIES, x, 0.0), torch.ones_like(x)
    for k in range(13, 2, -1):
        tail = 1 + near / k * tail
    # Beyond 1000 the exponential is inf, and must not meet an infinite x.
    return torch.where(x.abs() < SERIES, near * near / 2 * tail, torch.expm1(x) - x.clamp(max=1000.0))


def exp_excess(x: Tensor) -> Tensor:
    """Return exp(x) - 1 - x with all its digits: >= 0, and of slope expm1(x)."""
    return _ExpExcess.apply(x) if eager(x) else _exp_excess(x)  # type: ignore[no-untyped-call]


def one_minus_exp(x: Tensor) -> Tensor:
    """Return 1 - exp(x) for x <= 0; expm1 alone would lose the digits of the slope -exp(x) far below 0."""
    return torch.where(x > -LN2, -torch.expm1(x), 1 - torch.exp(x))


def log_one_minus(logprob: Tensor) -> Tensor:
    log: Tensor = log1mexp(logprob)
    return log


def product(factor: float | Tensor, value: Tensor) -> Tensor:
    product: Tensor = times(factor, value)
    return product
