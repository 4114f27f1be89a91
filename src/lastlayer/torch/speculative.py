"""Speculative decoding for tensors: which drafted tokens stand, and the token that follows them, exactly.

The mathematics is in lastlayer/_speculative.py, the checks in lastlayer/speculative.py, of which this is the other
front end; here are PyTorch's dialect and its generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lastlayer import _draw_arguments
from lastlayer._draw_arguments import DrawOptions, Numbers
from lastlayer.speculative import SpeculativeSample, check, read, tokens_of, verified
from lastlayer.torch.sampling import FLOATS, seed_of

__all__ = ["SpeculativeSample", "speculative_sample"]


@torch.no_grad()
def speculative_sample(
    target_logits: Tensor,
    draft_logits: Tensor | None,
    draft_tokens: Any,
    *,
    temperature: Numbers = 1.0,
    top_k: Numbers | None = None,
    top_p: Numbers | None = None,
    min_p: Numbers | None = None,
    typical_p: Numbers | None = None,
    epsilon_cutoff: Numbers | None = None,
    eta_cutoff: Numbers | None = None,
    top_n_sigma: Numbers | None = None,
    order: str | tuple[str, ...] = "transformers",
    draft_options: Mapping[str, Any] | None = None,
    seed: Numbers | None = None,
    offset: Numbers | None = None,
    step: Numbers = 0,
    generator: torch.Generator | None = None,
) -> SpeculativeSample:
    """Accept drafted tokens as far as they go and draw the one that follows, exactly as if the target had drawn all.

    With p and q the distributions of target and draft, tempered and truncated, token x stands with probability
    min(1, p(x) / q(x)); the first that does not is replaced by a draw from max(p - q, 0), normalised. If all K stand,
    a draw from p at place K + 1 follows.

    Args:
        target_logits: (..., K + 1, V), floating point: logits at the places of the drafted tokens, and after the last.
        draft_logits: (..., K, V), what the tokens were drawn from. None for tokens that were not drawn at random, such
            as words looked up in the prompt: q is 1 at each.
        draft_tokens: integers (..., K).
        temperature: T >= 0 of the target. At 0 a token stands if it is the largest logit, of several the first.
        top_k: as in ``categorical``, like the options up to order; all are one for all or one per chain (...).
        top_p: keep the most likely classes that have together p.
        min_p: keep the classes at least min_p times as likely as the likeliest.
        typical_p: keep the classes whose surprise is nearest the entropy.
        epsilon_cutoff: keep the classes that have at least this probability.
        eta_cutoff: as epsilon_cutoff, lower where the entropy is high.
        top_n_sigma: keep the logits within so many standard deviations below the largest.
        order: of temperature and filters.
        draft_options: a dictionary of such options, with which the tokens were drawn; what it does not name was not
            done. None for those of the target. A draft at temperature 0 is taken as not random, whatever its tokens.
        seed: an integer of 64 bits: the result is then a function of seed, offset, step and the chain's arguments.
        offset: what chain it is, as in ``categorical``.
        step: the place of the first token in its sequence. Place k has the words of step + k; the next chain begins at
            step + num_accepted + 1.
        generator: instead of seed, a generator that a seed is drawn from; None for PyTorch's default one.

    Returns:
        ``SpeculativeSample``: integers int64; the others float32 for 16- and 32-bit target_logits, else float64.
            Nothing is differentiable.

    Raises:
        ValueError: shapes that do not fit; logits without a distribution (NaN, +inf, nothing but -inf, no classes); a
            drafted token that its draft gives the probability 0 (it was not drawn from this q, and the result would not
            have the distribution p); a number out of range.
        IndexError: a drafted token that is no class.
        TypeError: what is not of the kind named above.

    Note:
        The tokens may have been drawn by ``categorical`` with the same seed, offset and steps, one sample each: what is
        drawn here uses other words of these counters, except the token after K accepted ones, which is the one that
        ``categorical`` would draw there. Penalties and biases depend on the tokens before, so they are for the caller
        to apply to both logits. Works in float64 on some chains at a time: about 16 arrays of their target_logits' size
        in 64 MiB, or what one chain takes.

    Example:
        >>> z = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]]).log()
        >>> found = speculative_sample(z, torch.zeros(1, 1, 3), torch.tensor([[2]]), seed=2)
        >>> found.tokens, found.num_accepted, found.acceptance
        (tensor([[2, 1]]), tensor([1]), tensor([[0.6000]]))

    Source: Y. Leviathan, M. Kalman, Y. Matias, ICML 2023; C. Chen et al., 2023, arXiv 2302.01318.
    """
    check_kind("target_logits", target_logits)
    if draft_logits is not None:
        check_kind("draft_logits", draft_logits)
    x = torch.as_tensor(tokens_of(_draw_arguments.as_array("draft_tokens", draft_tokens)), device=target_logits.device)
    options: DrawOptions = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p,
        "epsilon_cutoff": epsilon_cutoff, "eta_cutoff": eta_cutoff, "top_n_sigma": top_n_sigma, "order": order,
    }  # fmt: skip
    check(target_logits, draft_logits, x)
    make = seed_of(seed, generator, target_logits.device)
    asked = read(tuple(target_logits.shape[:-2]), x.shape[-1], options, draft_options, make, seed, offset, step)
    found = verified(target_logits.detach(), draft_logits, x, asked)
    kind = torch.float64 if target_logits.dtype == torch.float64 else torch.float32
    return SpeculativeSample(*(each.to(kind) if each.is_floating_point() else each for each in found))


def check_kind(name: str, logits: Tensor) -> None:
    """Raise unless this is a tensor of floating-point numbers that are there."""
    if not isinstance(logits, Tensor) or logits.dtype not in FLOATS:
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"{name} is {kind}, expected a tensor of float16, bfloat16, float32 or float64")
    if logits.is_meta:
        raise RuntimeError(f"{name} is on meta, where tensors have no values to draw from")
