"""Speculative decoding for NumPy: which drafted tokens stand, and the token that follows them, exactly.

The mathematics is in _speculative.py; torch/speculative.py is the other front end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lastlayer import _draw_arguments, _speculative
from lastlayer._algebra import namespace
from lastlayer._arrays import Array, real, statistics_type, unmasked
from lastlayer._draw_arguments import DrawOptions, Numbers, Shape
from lastlayer._draws import Rules
from lastlayer._speculative import Verified, Words
from lastlayer._validate import check_shape, check_target, element, position
from lastlayer.sampling import Generator, chunks, seed_of

__all__ = ["SpeculativeSample", "speculative_sample"]


class SpeculativeSample(NamedTuple):
    """What comes out of drafts of K tokens; places behind the last token hold the token -1 and log-probabilities 0.

    Attributes:
        tokens: (..., K + 1), the accepted tokens and the one that follows them.
        num_accepted: (...), how many drafted tokens stand, 0 to K; one token more comes out.
        logprob: (..., K + 1), log-probability under the model, softmax of ``target_logits`` as they were passed.
        sampled_logprob: (..., K + 1), under the distribution drawn from, tempered and truncated.
        acceptance: (..., K), min(1, p / q): with what probability each drafted token stands if those before it do.
    """

    tokens: Any
    num_accepted: Any
    logprob: Any
    sampled_logprob: Any
    acceptance: Any


class Checked(NamedTuple):
    """A checked request; everything but the logits and tokens is NumPy's."""

    words: Words
    rules: tuple[Rules, Rules]
    orders: tuple[tuple[str, ...], tuple[str, ...]]


def speculative_sample(
    target_logits: ArrayLike,
    draft_logits: ArrayLike | None,
    draft_tokens: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    min_p: ArrayLike | None = None,
    typical_p: ArrayLike | None = None,
    epsilon_cutoff: ArrayLike | None = None,
    eta_cutoff: ArrayLike | None = None,
    top_n_sigma: ArrayLike | None = None,
    order: str | tuple[str, ...] = "transformers",
    draft_options: Mapping[str, Any] | None = None,
    seed: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    step: ArrayLike = 0,
    rng: Generator = None,
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
        rng: instead of seed, a NumPy generator that a seed is drawn from, or a seed for one.

    Returns:
        ``SpeculativeSample``: integers int64; the others float32 for 16- and 32-bit target_logits, else float64.

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
        >>> z = np.log([[[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]])
        >>> found = speculative_sample(z, [[[0.0, 0.0, 0.0]]], [[2]], seed=2)
        >>> found.tokens, found.num_accepted, found.acceptance
        (array([[2, 1]]), array([1]), array([[0.6]]))

    Source: Y. Leviathan, M. Kalman, Y. Matias, ICML 2023; C. Chen et al., 2023, arXiv 2302.01318.
    """
    z, draft = (
        real("target_logits", target_logits),
        None if draft_logits is None else real("draft_logits", draft_logits),
    )
    x = tokens_of(unmasked("draft_tokens", draft_tokens))
    options: DrawOptions = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p,
        "epsilon_cutoff": epsilon_cutoff, "eta_cutoff": eta_cutoff, "top_n_sigma": top_n_sigma, "order": order,
    }  # fmt: skip
    check(z, draft, x)
    asked = read(z.shape[:-2], x.shape[-1], options, draft_options, seed_of(seed, rng), seed, offset, step)
    found = verified(z, draft, x, asked)
    kind = statistics_type(z)
    return SpeculativeSample(*(each.astype(np.int64 if each.dtype.kind == "i" else kind)[()] for each in found))


def tokens_of(x: Array) -> Array:
    """Return drafted tokens as int64; an empty list of them has no type."""
    if x.dtype.kind not in "iu" and x.size:
        raise TypeError(f"draft_tokens has dtype {x.dtype}, expected integers")
    return x.astype(np.int64)


def check(z: Any, draft: Any, x: Any) -> None:
    """Raise what is wrong with logits and drafted tokens, NumPy's or torch's."""
    if z.ndim < 2:
        raise ValueError(f"target_logits has shape {tuple(z.shape)}, expected (..., K + 1, V)")
    *shape, places, size = tuple(z.shape)
    if places < 1 or size < 1:
        raise ValueError(f"target_logits has shape {tuple(z.shape)}: there must be a place and a class")
    why = f", for target_logits of shape {tuple(z.shape)}"
    check_shape("draft_tokens", x, (*shape, places - 1), why)
    if draft is not None:
        check_shape("draft_logits", draft, (*shape, places - 1, size), why)
    check_target(x, size, None, "draft_tokens")
    for name, logits in [("target_logits", z), ("draft_logits", draft)]:
        if logits is not None:
            check_logits(name, logits)


def check_logits(name: str, z: Any) -> None:
    """Raise unless each row has a distribution: its largest logit is neither NaN, nor infinite."""
    xp = namespace(z)
    top = xp.amax(z, -1)
    bad = ~xp.isfinite(top)
    if bool(bad.any()):
        index = position(bad)
        raise ValueError(
            f"{element(name, index)} has the largest logit {float(top[index])}, expected a finite one: "
            "there is no distribution to draw from"
        )


def read(
    shape: Shape, drafted: int, options: DrawOptions, draft_options: Mapping[str, Any] | None,
    random_seed: Callable[[], int], seed: Numbers | None, offset: Numbers | None, step: Numbers,
) -> Checked:  # fmt: skip
    """Check how the tokens of chains of this shape are to be drawn, and were."""
    both = [_draw_arguments.read(shape, None, lambda: 0, options)] * 2
    if draft_options is not None:
        unknown = set(draft_options) - {*Rules._fields, "order"}
        if unknown:
            raise TypeError(f"draft_options has an unexpected key {min(unknown)!r}, expected names of filters")
        whole = {"temperature": 1.0, **draft_options}
        both[1] = _draw_arguments.read(shape, None, lambda: 0, DrawOptions(**whole))  # type: ignore[typeddict-item]
    first = _draw_arguments.words_of("step", step, shape, 32).reshape(shape).astype(np.int64)
    given = random_seed() if seed is None else seed

    def words(samples: int, second: bool = False) -> NDArray[np.float64]:
        places = [
            _draw_arguments.read_uniforms(given, offset, first + k, shape, samples, second) for k in range(drafted + 1)
        ]
        return np.stack(places, 1)[:, :, -1]

    # sample 0 of a place may have drawn the drafted token: only its other two words, and sample 1, are fresh
    return Checked(
        Words(words(1, second=True), words(2), words(1)[:, -1]),
        (both[0].rules, both[1].rules),
        (both[0].order, both[1].order),
    )


def verified(z: Any, draft: Any, x: Any, asked: Checked) -> Verified:
    """Check chains of any shape, some at a time; raise if a token was not drawn from its draft."""
    *shape, places, size = tuple(z.shape)
    count = math.prod(shape)
    z, x = z.reshape(count, places, size), x.reshape(count, places - 1)
    draft = None if draft is None else draft.reshape(count, places - 1, size)
    parts = [
        _some(z[rows], None if draft is None else draft[rows], x[rows], asked, rows)
        for rows in chunks(count, places * size)
    ]
    xp = namespace(z)
    found = Verified(*(xp.concatenate(each) for each in zip(*parts, strict=True)))
    found = Verified(*(each.reshape((*shape, *each.shape[1:])) for each in found))
    never = xp.isnan(found.acceptance)
    if bool(never.any()):
        index = position(never)
        token = int(x.reshape((*shape, places - 1))[index])
        raise ValueError(
            f"{element('draft_tokens', index)} = {token} has the probability 0 under draft_logits and draft_options, "
            "expected a token drawn from them"
        )
    return found


def _some(z: Any, draft: Any, x: Any, asked: Checked, rows: slice) -> Verified:
    """Check some chains: the numbers of the request move to where the logits are."""
    xp = namespace(z)

    def like(array: Any) -> Any:
        return array if xp is np else xp.as_tensor(array, device=z.device)

    rules = [
        Rules(*(None if rule is None else like(np.repeat(rule[rows], places)) for rule in each))
        for each, places in zip(asked.rules, (z.shape[1], x.shape[1]), strict=True)
    ]
    words = Words(*(like(word[rows]) for word in asked.words))
    with np.errstate(all="ignore"):
        return _speculative.verify(z, draft, x, words, (rules[0], rules[1]), asked.orders)
