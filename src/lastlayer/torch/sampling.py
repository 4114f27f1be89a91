"""Exact draws for tensors: ``categorical`` from logits, ``multinomial`` in place of torch.multinomial.

The draws themselves, and the law they keep, are those of lastlayer/sampling.py, of which this is the other front end;
here are PyTorch's dialect and its generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lastlayer import _draw_arguments
from lastlayer._draw_arguments import Asked, DrawOptions, Numbers, check_drawn, undrawable
from lastlayer._draws import Drawn
from lastlayer._validate import ArgumentError
from lastlayer.sampling import PER_ROW, Sample, check_multinomial, drawn, from_weights
from lastlayer.torch.later import far, require

__all__ = ["Sample", "categorical", "multinomial"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def categorical(
    input: Tensor,
    num_samples: int | None = None,
    *,
    temperature: Numbers = 1.0,
    top_k: Numbers | None = None,
    top_p: Numbers | None = None,
    min_p: Numbers | None = None,
    typical_p: Numbers | None = None,
    epsilon_cutoff: Numbers | None = None,
    eta_cutoff: Numbers | None = None,
    top_n_sigma: Numbers | None = None,
    repetition_penalty: Numbers | None = None,
    presence_penalty: Numbers | None = None,
    frequency_penalty: Numbers | None = None,
    token_ids: Any = None,
    prompt_ids: Any = None,
    logit_bias: tuple[Any, Any, Any] | None = None,
    bans: tuple[Any, Any] | None = None,
    order: str | tuple[str, ...] = "transformers",
    replacement: bool = True,
    seed: Numbers | None = None,
    offset: Numbers | None = None,
    step: Numbers = 0,
    generator: torch.Generator | None = None,
) -> Sample:
    """Draw classes from softmax(z / T), all of it or what truncation keeps, with their log-probabilities.

    First single logits change, in this order: ``logit_bias`` is added; for the classes in ``token_ids`` or
    ``prompt_ids`` a positive logit is divided by ``repetition_penalty``, another multiplied; from those that are c
    times in ``token_ids``, c ``frequency_penalty`` and ``presence_penalty`` are taken off; ``bans`` become -inf. Then
    the temperature and the filters follow in ``order``, each working on what is left by those before it.

    Args:
        input: logits (..., V), floating point. -inf is a class that cannot be drawn.
        num_samples: draws per row, in a new last dimension; None for one draw and no such dimension.
        temperature: T >= 0. At 0 the largest logit is taken, of several the first, and the filters do nothing.
        top_k: keep the k largest logits; 0 or -1 for all.
        top_p: keep the most likely classes, as few as have together a probability of at least p; 1 for all.
        min_p: keep the classes at least min_p times as likely as the likeliest.
        typical_p: keep the classes whose surprise is nearest the entropy, as few as have together p; 1 for all.
        epsilon_cutoff: keep the classes that have at least this probability; if none has, the likeliest.
        eta_cutoff: as epsilon_cutoff, with the smaller of eta and sqrt(eta) exp(-entropy).
        top_n_sigma: keep the logits within so many standard deviations below the largest.
        repetition_penalty: above 1, classes that were there become less likely.
        presence_penalty: taken off the logits of classes that were there.
        frequency_penalty: taken off as often as they were there.
        token_ids: classes that were there, integers (..., L); negative ones are padding.
        prompt_ids: more of them, for the repetition penalty alone.
        logit_bias: (row, class, value), arrays that broadcast together; rows are counted through all dimensions.
        bans: (row, class), likewise.
        order: "transformers": temperature, top_n_sigma, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff.
            "vllm": temperature, min_p, top_k, top_p, and the rest. "llama.cpp": top_n_sigma, top_k, typical_p, top_p,
            min_p, the cutoffs, temperature. Or names in the order wanted; those not named come after them.
        replacement: whether a class may be drawn again. If not, draws are taken out one after the other.
        seed: an integer of 64 bits: draws are then a function of seed, offset, step and the row's logits.
        offset: what row it is: an integer of 64 bits. Without it a row's index if there is one seed, 0 if each has its
            own.
        step: the number of the draw in a sequence, such as the token's position: an integer of 32 bits.
        generator: instead of seed, a generator that a seed is drawn from; None for PyTorch's default one.

    All numbers but num_samples can be one for all or one per row; where the logits are on another device, what is asked
    for may stay on the CPU.

    Returns:
        ``Sample``. index, logprob, sampled_logprob and rank in the shape of the rows (and num_samples); kept, kept_mass
        and logsumexp in the shape of the rows. Integers are int64, the others float32 for 16- and 32-bit input, else
        float64, in nats. Nothing is differentiable: for gradients of a log-probability pass the index to a loss.

    Raises:
        ValueError: input without dimensions; a row without a distribution (NaN, +inf, nothing but -inf, no classes) or,
            without replacement, with fewer classes than draws; a number out of range, or that does not broadcast to the
            rows.
        IndexError: a class or a row that is not there.
        TypeError: what is not of the kind named above.
        RuntimeError: a tensor on the meta device, which has no values.

    Note:
        One uniform of 53 bits per draw, by Philox 4x32-10 from (seed, offset, step, number of the sample): no draw
        depends on the rows beside it, on threads, or on whether NumPy or PyTorch holds the logits. Of equal logits the
        lower class is kept first by top_k, top_p and typical_p. A class of probability 0 is never drawn.

    Example:
        >>> draw = categorical(torch.tensor([0.0, -torch.inf, 2.0, 1.0]), temperature=0.7, top_p=0.9, seed=5)
        >>> draw.index.item(), round(draw.logprob.item(), 4), round(draw.sampled_logprob.item(), 4), draw.kept.item()
        (2, -0.4076, -0.2148, 2)
        >>> categorical(torch.zeros(2, 3), 4, generator=torch.Generator().manual_seed(0)).index.shape
        torch.Size([2, 4])

    Source: L. Devroye, Non-Uniform Random Variate Generation (1986), III.2; of the filters: lastlayer/_draws.py.
    """
    check_input(input)
    shape = tuple(input.shape[:-1])
    options: DrawOptions = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p,
        "epsilon_cutoff": epsilon_cutoff, "eta_cutoff": eta_cutoff, "top_n_sigma": top_n_sigma,
        "repetition_penalty": repetition_penalty, "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty, "token_ids": token_ids, "prompt_ids": prompt_ids,
        "logit_bias": logit_bias, "bans": bans, "order": order, "replacement": replacement, "seed": seed,
        "offset": offset, "step": step,
    }  # fmt: skip
    asked = _draw_arguments.read(shape, num_samples, seed_of(seed, generator, input.device), options)
    z = input.detach().reshape(math.prod(shape), input.shape[-1])
    if z.shape[1] == 0 and len(z):
        raise ValueError(f"input has no classes to draw from in {len(z)} rows")
    return spread(checked(drawn(z, asked), asked, shape), shape, num_samples is not None, input.dtype)


@torch.no_grad()
def multinomial(
    input: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
    seed: Numbers | None = None,
    offset: Numbers | None = None,
    step: Numbers = 0,
) -> Tensor:
    """Draw classes from rows of probabilities, or of any weights >= 0: torch.multinomial, same call and shapes.

    Args:
        input: weights, floating point, (V,) or (N, V); rows need not sum to one.
        num_samples: draws per row.
        replacement: whether a class may be drawn again. If not, the draws are those of taking one class after the other
            out of the row, and come in that order.
        generator: a generator on the device of input; None for that device's default one.
        out: an int64 tensor for the result.
        seed: instead of generator, as in ``categorical``, like offset and step.
        offset: what row it is.
        step: the number of the draw in a sequence.

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
        should. One uniform of 53 bits per draw.

    Example:
        >>> multinomial(torch.tensor([0.0, 3.0, 0.0, 0.0]), 3, replacement=True)
        tensor([1, 1, 1])

    Source: L. Devroye, Non-Uniform Random Variate Generation (1986), III.2.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"input is {_kind(input)}, expected a tensor")
    _require_values("input", input)
    if input.dim() in (1, 2) and input.dtype not in FLOATS:
        raise ArgumentError(f"multinomial only supports floating-point dtypes for input, got: {_kind(input)}")
    if out is not None and out.dtype != torch.int64:
        raise ArgumentError(f"multinomial expects Long tensor out, got: {_kind(out)}")
    draws = check_multinomial(input, num_samples, replacement, ArgumentError)
    shape = tuple(input.shape[:-1])
    make = seed_of(seed, generator, input.device)
    given = make() if seed is None else seed
    uniforms = _draw_arguments.read_uniforms(given, offset, step, shape, draws)
    index = from_weights(input.detach().reshape(-1, input.shape[-1]), uniforms, replacement, ArgumentError)
    index = index.reshape(*shape, draws)
    return index if out is None else out.resize_(index.shape).copy_(index)


def seed_of(seed: Any, generator: torch.Generator | None, device: torch.device) -> Callable[[], int]:
    """Return what makes a seed where none is given, out of the generator; there can be only one of the two."""
    if seed is not None and generator is not None:
        raise ValueError("seed and generator are both given: one of them decides the draws")
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator is {type(generator).__name__}, expected a torch.Generator or None")
    where = device if generator is None else generator.device
    return lambda: int(torch.empty((), dtype=torch.int64, device=where).random_(generator=generator))


def checked(found: Drawn, asked: Asked, shape: tuple[int, ...]) -> Drawn:
    """Return what was drawn; raise ValueError for a row that could not be drawn from, now or when that is known."""
    samples = asked.uniforms.shape[1]
    if far(found.status):
        status = found.status.reshape(shape)
        require(status == 0, lambda index, what: undrawable(index, what, samples), status)
    else:
        check_drawn(found, shape, samples)
    return found


def check_input(input: Tensor) -> None:
    """Raise unless input can be logits."""
    if not isinstance(input, Tensor) or input.dtype not in FLOATS:
        raise TypeError(f"input is {_kind(input)}, expected a tensor of float16, bfloat16, float32 or float64")
    _require_values("input", input)
    if input.dim() == 0:
        raise ValueError("input has no dimensions, expected (..., V)")


def spread(found: Drawn, shape: tuple[int, ...], several: bool, dtype: torch.dtype) -> Sample:
    """Return what was drawn in the shape of the rows."""
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    draws = (*shape, found.index.shape[1]) if several else shape

    def of(field: Tensor, rows: bool) -> Tensor:
        wanted = shape if rows else draws
        field = field if field.shape == wanted else field.reshape(wanted)
        return field if field.dtype in (kind, torch.int64) else field.to(kind)

    return Sample(*(of(getattr(found, name), name in PER_ROW) for name in Sample._fields))


def _require_values(name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise RuntimeError(f"{name} is on meta, where tensors have no values to draw from")


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
