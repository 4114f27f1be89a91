"""The specification of speculative decoding: which drafted tokens stand, and which token follows them.

A draft of K tokens x_1 .. x_K, each drawn from a cheap distribution q_k, is checked against the distributions p_k of
the model that counts, k = 1 .. K + 1. Token k is accepted with probability min(1, p_k(x_k) / q_k(x_k)). The first one
that is not is replaced by a draw from max(p_k - q_k, 0), normalised, and ends the chain; if all are accepted, a draw
from p_{K+1} follows. What comes out of place k then has the distribution p_k, whatever q_k is; the two sums are one
number:

    q min(1, p / q) + (1 - sum min(p, q)) max(p - q, 0) / sum max(p - q, 0) = min(p, q) + max(p - q, 0) = p

p and q are what is drawn from: tempered, truncated, in float64. Array code for NumPy and PyTorch alike.

Letters: z logits, x drafted tokens, u uniforms; N chains, K drafted tokens in each, V classes.
Sources: Y. Leviathan, M. Kalman, Y. Matias, ICML 2023; C. Chen et al., "Accelerating large language model decoding with
speculative sampling", 2023.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lastlayer import _backends
from lastlayer._algebra import Array, classes, double, finish, fold, namespace
from lastlayer._draws import Rules, draw_masses, take


class Words(NamedTuple):
    """Uniforms of a chain's places, (N, K + 1) each but ``follow``, (N,)."""

    accept: Array  # whether a drafted token stands
    replace: Array  # which token takes its place; not the words that may have drawn it
    follow: Array  # which token follows when all stand: the words of a plain draw at that place


class Verified(NamedTuple):
    """What comes out of N chains; a place after the last token has the token -1 and zeros."""

    tokens: Array  # int64 (N, K + 1)
    accepted: Array  # int64 (N,)
    logprob: Array  # float64 (N, K + 1), log-probability under softmax(z)
    sampled_logprob: Array  # float64 (N, K + 1), under p
    acceptance: Array  # float64 (N, K), min(1, p / q) of each drafted token; NaN where q is 0


def verify(
    z: Array, draft: Array | None, x: Array, words: Words,
    rules: tuple[Rules, Rules], orders: tuple[tuple[str, ...], tuple[str, ...]],
) -> Verified:  # fmt: skip
    """Check drafted tokens x (N, K) with logits z (N, K + 1, V) and the draft's (N, K, V).

    The rules are one per place: (N (K + 1),) for z, (N K,) for the draft. Where ``draft`` is None, or its temperature
    0, the tokens were not drawn at random: q is 1 at each.
    """
    xp, drafted = namespace(z), x.shape[1]
    scaled = tempered(z, rules[0], orders[0])
    masses = xp.exp(scaled)
    p = masses / masses.sum(-1)[:, :, None]
    q = double(classes(z) == x[:, :, None])
    if draft is not None:
        drawn = xp.exp(tempered(draft, rules[1], orders[1]))
        greedy = (rules[1].temperature == 0).reshape(x.shape)[:, :, None]
        q = xp.where(greedy, q, drawn / drawn.sum(-1)[:, :, None])
    p_x, q_x = at(p[:, :drafted], x), at(q, x)
    accept = (p_x >= q_x) | (words.accept[:, :drafted] * q_x < p_x)  # for u < 1 near 1 the product can round to q
    last = xp.cumprod(accept * 1, -1).sum(-1)[:, None]
    final = draw_masses(*ending(p, q, masses, words, last))
    place = classes(words.accept)
    tokens = xp.where(place < last, xp.concatenate([x, final], -1), xp.where(place == last, final, -1))
    logprob, sampled = (log_softmax_at(each, tokens) for each in (double(z), scaled))
    acceptance = xp.where(q_x > 0, xp.clip(p_x / q_x, None, 1.0), math.nan)
    return Verified(tokens, last[:, 0], logprob, sampled, acceptance)


def ending(p: Array, q: Array, masses: Array, words: Words, last: Array) -> tuple[Array, Array]:
    """Return the weights (N, V) and the uniforms (N, 1) of each chain's last token, at its place ``last`` (N, 1)."""
    xp, drafted, here = namespace(p), q.shape[1], (classes(words.follow), last[:, 0])
    if drafted == 0:
        return masses[here], words.follow[:, None]
    rest = xp.clip(p[here] - q[here[0], xp.clip(here[1], None, drafted - 1)], 0.0, None)
    # where p is q but for roundings nothing may be left, and one chain in 1e16 comes here: then p serves
    nothing = rest.sum(-1)[:, None] == 0
    uniforms = xp.where(last == drafted, words.follow[:, None], take(words.replace, last))
    return xp.where((last == drafted) | nothing, masses[here], rest), uniforms


def tempered(z: Array, rules: Rules, order: tuple[str, ...]) -> Array:
    """Return (z - max) / T of the classes kept of z (N, K, V), -inf for the others."""
    flat = z.reshape(-1, z.shape[2])
    scaled: Array = _backends.choose(flat).tempered(flat, rules, order)
    return scaled.reshape(z.shape)


def log_softmax_at(z: Array, y: Array) -> Array:
    """Return log softmax of z (N, K, V) at classes y (N, K), 0 where y is negative."""
    xp, flat = namespace(z), z.reshape(-1, z.shape[2])
    index = xp.clip(y, 0, None).reshape(-1, 1)
    logprob = finish(fold(flat), take(flat, index)[:, 0]).logprob.reshape(y.shape)
    return xp.where(y < 0, 0.0, logprob + 0.0)


def at(array: Array, index: Array) -> Array:
    """Return array[i, k, index[i, k]]."""
    return take(array.reshape(-1, array.shape[2]), index.reshape(-1, 1)).reshape(index.shape)
