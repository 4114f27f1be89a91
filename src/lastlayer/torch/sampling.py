"""Exact draws for tensors: ``categorical`` from logits, ``multinomial`` in place of torch.multinomial.

The draws themselves, and the law they keep, are those of lastlayer/sampling.py, of which this is the other front end;
here are PyTorch's dialect and its generator. Nothing is differentiable: for gradients of the log-probability of a draw
pass its index to a loss.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lastlayer._arrays import real
from lastlayer._validate import ArgumentError
from lastlayer.sampling import (
    Sample,
    check_multinomial,
    from_logits,
    from_weights,
    read_count,
    read_temperature,
)

__all__ = ["Sample", "categorical", "multinomial"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.no_grad()
def categorical(
    input: Tensor,
    num_samples: int | None = None,
    *,
    temperature: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
) -> Sample:
    """Draw classes from softmax(z / T), with replacement.

    Args:
        input: logits (..., V), floating point. -inf is a class that cannot be drawn.
        num_samples: draws per row, in a new last dimension; None for one draw and no such dimension.
        temperature: T >= 0, one for all or one per row. At 0 the largest logit is taken, of several the first.
        generator: a generator on the device of input; None for that device's default one.

    Returns:
        Sample(index, logprob, sampled_logprob) in the shape of the rows (and num_samples), on the device of input:
        int64, and twice float32 for 16- and 32-bit input, else float64. ``logprob`` is that of the model, T = 1;
        ``sampled_logprob`` that of the tempered distribution, 0 at T = 0.

    Raises:
        ValueError: a row without a distribution (NaN, +inf, nothing but -inf, no classes); input without dimensions; a
            temperature that is negative or not finite, or does not broadcast to the rows; num_samples below 1.
        TypeError: input that is no tensor of a floating type; a temperature that is not real; num_samples that is no
            integer.
        RuntimeError: a tensor on the meta device, which has no values.

    Note:
        One uniform of 53 bits per draw, in the order of the rows; (z - max) / T and the cumulative sums are float64 on
        any device. Memory beyond the result: 32 MiB, or eight float64 rows if that is more.

    Example:
        >>> draw = categorical(torch.tensor([0.0, -torch.inf, 2.0]), temperature=0.0)
        >>> draw.index.item(), round(draw.logprob.item(), 4), draw.sampled_logprob.item()
        (2, -0.1269, 0.0)
        >>> categorical(torch.zeros(2, 3), 4, generator=torch.Generator().manual_seed(0)).index.shape
        torch.Size([2, 4])

    Source: L. Devroye, Non-Uniform Random Variate Generation (1986), III.2.
    """
    if not isinstance(input, Tensor) or input.dtype not in FLOATS:
        raise TypeError(f"input is {_kind(input)}, expected a tensor of float16, bfloat16, float32 or float64")
    _require_values("input", input)
    if input.dim() == 0:
        raise ValueError("input has no dimensions, expected (..., V)")
    shape, draws = input.shape[:-1], 1 if num_samples is None else read_count(num_samples)
    times = read_temperature(_temperature(temperature, input.device), tuple(shape)).reshape(-1)
    uniforms = _uniforms(input, (shape.numel(), draws), generator)
    sample = from_logits(input.detach().reshape(shape.numel(), input.shape[-1]), times, uniforms, tuple(shape))
    result = shape if num_samples is None else (*shape, draws)
    kind = torch.float64 if input.dtype == torch.float64 else torch.float32
    return Sample(sample[0].reshape(result), *(x.reshape(result).to(kind) for x in sample[1:]))


@torch.no_grad()
def multinomial(
    input: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Draw classes from rows of probabilities, or of any weights >= 0: torch.multinomial, same call and shapes.

    Args:
        input: weights, floating point, (V,) or (N, V); rows need not sum to one.
        num_samples: draws per row.
        replacement: whether a class may be drawn again. If not, the draws are those of taking one class after the other
            out of the row, and come in that order.
        generator: a generator on the device of input; None for that device's default one.
        out: an int64 tensor for the result.

    Returns:
        int64 (S,) or (N, S), on the device of input.

    Raises:
        RuntimeError: torch's conditions (the exception is a ValueError too): input of other than 1 or 2 dimensions or
            not floating point; a weight that is negative, infinite or NaN; a row of zeros; num_samples below 1, or
            above V without replacement; out that is not int64. Beyond them: without replacement, fewer weights above 0
            than num_samples, where torch returns classes of probability 0; input on the meta device.
        TypeError: num_samples that is no integer.

    Note:
        The stream of draws is not torch's: the same seed gives other classes. What differs on purpose: a class of
        weight 0 is never drawn, 2^24 classes are no limit, and classes of small weight are drawn as often as they
        should. With replacement one float64 uniform per draw; without, two per class.

    Example:
        >>> multinomial(torch.tensor([0.0, 3.0, 0.0, 0.0]), 3, replacement=True)
        tensor([1, 1, 1])

    Source: P. S. Efraimidis, P. G. Spirakis, "Weighted random sampling with a reservoir", Inf. Process. Lett. 97
    (2006).
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"input is {_kind(input)}, expected a tensor")
    _require_values("input", input)
    if input.dim() in (1, 2) and input.dtype not in FLOATS:
        raise ArgumentError(f"multinomial only supports floating-point dtypes for input, got: {_kind(input)}")
    if out is not None and out.dtype != torch.int64:
        raise ArgumentError(f"multinomial expects Long tensor out, got: {_kind(out)}")
    draws = check_multinomial(input, num_samples, replacement, ArgumentError)
    index = from_weights(
        input.detach().reshape(-1, input.shape[-1]),
        draws,
        replacement,
        lambda shape: _uniforms(input, shape, generator),
        ArgumentError,
    ).reshape(*input.shape[:-1], draws)
    return index if out is None else out.resize_(index.shape).copy_(index)


def _temperature(value: float | Tensor, device: torch.device) -> Tensor:
    """Return temperatures in float64 on this device."""
    if not isinstance(value, Tensor):
        return torch.tensor(np.float64(real("temperature", value)), device=device)
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"temperature has dtype {value.dtype}, expected real numbers")
    _require_values("temperature", value)
    return value.to(device, torch.float64)


def _require_values(name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise RuntimeError(f"{name} is on meta, where tensors have no values to draw from")


def _uniforms(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, device=like.device, generator=generator)


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
