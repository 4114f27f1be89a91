"""The specification of draws: truncation and the inverse CDF, as float64 array code for NumPy and PyTorch alike.

A draw is the first class whose cumulative mass exceeds u times the total, in the order of the classes, for a uniform u
in [0, 1). Masses exp((z_j - max) / T) are taken relative to the largest; a class of mass 0 does not raise the sum. So
at both ends a class of probability 0 is never drawn, and no tail is cut.

Truncation is a list of filters, each applied to what the ones before it kept, with the temperature among them. A
filter keeps classes above a threshold (``min_p``, ``epsilon_cutoff``, ``eta_cutoff``, ``top_n_sigma``: equal logits
share their fate, and at least the largest stays) or the shortest beginning of an order (``top_k``, ``top_p``,
``typical_p``: of equal logits the lower class comes first, and at least one class stays).

Letters: z logits, y a drawn class, u uniform, T temperature; N rows, V classes, S draws per row.
The native twin is native/draws.cpp. Sources: L. Devroye, Non-Uniform Random Variate Generation (1986), III.2; top-p:
A. Holtzman et al., ICLR 2020; typical_p: C. Meister et al., TACL 2023; epsilon and eta: J. Hewitt et al., EMNLP 2022;
min_p: M. Nguyen et al., ICLR 2025; top_n_sigma: C. Tang et al., ACL 2025.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from lastlayer._algebra import Array, State, classes, double, finish, fold, namespace

MOST = math.nextafter(math.inf, 0)
BLOCK = 1024  # classes whose mass is summed together; the blocks of a row begin at multiples of it

ORDERS = {
    "transformers": (
        "temperature", "top_n_sigma", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
    ),
    "vllm": (
        "temperature", "min_p", "top_k", "top_p", "top_n_sigma", "typical_p", "epsilon_cutoff", "eta_cutoff",
    ),
    "llama.cpp": (
        "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "epsilon_cutoff", "eta_cutoff", "temperature",
    ),
}  # fmt: skip
STEPS = ORDERS["transformers"]  # a step's place here is its code in the kernels


class Rules(NamedTuple):
    """Numbers per row, float64 (N,); None for a filter that no row uses, neutral values in rows that do not.

    Neutral are: temperature 1, top_n_sigma inf, top_k inf, top_p 1, min_p 0, typical_p 1, cutoffs 0.
    """

    temperature: Array
    top_n_sigma: Array = None
    top_k: Array = None
    top_p: Array = None
    min_p: Array = None
    typical_p: Array = None
    epsilon_cutoff: Array = None
    eta_cutoff: Array = None

    @property
    def truncates(self) -> bool:
        """Whether there is a filter."""
        return any(rule is not None for rule in self[1:])


NEUTRAL = Rules(1.0, math.inf, math.inf, 1.0, 0.0, 1.0, 0.0, 0.0)


class Edits(NamedTuple):
    """Logits to use instead of a row's own: those of row i are start[i] .. start[i + 1], by ascending class."""

    start: Array  # int64 (N + 1,)
    index: Array  # int64 (M,)
    value: Array  # float64 (M,)


class Drawn(NamedTuple):
    """What a backend returns: per draw (N, S), then per row (N,)."""

    index: Array  # int64
    logprob: Array  # float64, like all that are not integers
    sampled_logprob: Array
    rank: Array  # int64
    kept: Array  # int64
    kept_mass: Array
    logsumexp: Array
    status: Array  # one of the numbers below


FINE, HAS_NAN, HAS_INFINITY, HAS_NOTHING, TOO_FEW = range(5)  # of weights, HAS_NAN is anything but a number >= 0


def draw(
    z: Array, uniforms: Array, rules: Rules, order: tuple[str, ...] = STEPS, edits: Edits | None = None,
    replacement: bool = True,
) -> Drawn:  # fmt: skip
    """Draw from each row of logits z (N, V) with its uniforms (N, S); rows whose status is not FINE have no result."""
    xp, raw = namespace(z), double(z)
    edited = raw if edits is None else replaced(raw, edits)
    state = fold(raw)
    fine, status = _status(raw, edited)
    safe = xp.where(fine[:, None], edited, xp.zeros_like(edited))
    kept, temperature = truncate(safe, rules, order)
    if not replacement:
        status = xp.where((status == FINE) & (kept.sum(-1) < uniforms.shape[1]), TOO_FEW, status)
    scaled = xp.where(kept, _scaled(safe, temperature), -math.inf)
    index, sampled = _inverse(scaled, uniforms) if replacement else _one_by_one(safe, kept, temperature, uniforms)
    z_y = take(raw, index)
    logprob = _logprob(state, z_y)
    rank = 1 + raw.shape[1] - count_not_above(xp.sort(raw) if xp is np else raw.sort(-1).values, z_y)
    share = xp.exp(_logprob(state, raw))
    mass = xp.where(kept.all(-1), 1.0, xp.where(kept, share, 0.0).sum(-1))
    return Drawn(index, logprob, sampled, rank, kept.sum(-1), mass, finish(state).logsumexp, status)


def replaced(z: Array, edits: Edits) -> Array:
    """Return z with the edits."""
    xp = namespace(z)
    out = z.copy() if xp is np else z.clone()
    counts = np.diff(np.asarray(edits.start))
    rows = np.repeat(np.arange(len(counts)), counts)
    if xp is np:
        out[rows, edits.index] = edits.value
    else:
        index, value = (xp.as_tensor(each, device=z.device) for each in (edits.index, edits.value))
        out[xp.as_tensor(rows, device=z.device), index] = value
    return out


def _status(raw: Array, edited: Array) -> tuple[Array, Array]:
    """Return which rows have a distribution, and the status of all."""
    xp = namespace(raw)
    nan, infinite = (xp.isnan(raw) | xp.isnan(edited)).any(-1), ((raw == math.inf) | (edited == math.inf)).any(-1)
    status = xp.where((edited == -math.inf).all(-1), HAS_NOTHING, FINE)
    status = xp.where(nan, HAS_NAN, xp.where(infinite, HAS_INFINITY, status))
    return status == FINE, status


def _scaled(z: Array, temperature: Array) -> Array:
    """Return (z - max) / T, the difference formed first, so that no T overflows."""
    return (z - namespace(z).amax(z, -1)[:, None]) / temperature[:, None]


def truncate(
    z: Array, rules: Rules, order: tuple[str, ...], outside: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """Return which classes are kept (N, V), and the T (N,) that they are drawn at; at T = 0 the first largest is.

    ``outside`` is for rows of which only the largest logits are here: the others' sums of exp((z_j - max) / T), at
    T = 1 and at the rules' T. The total includes them until a filter cuts; ``top_k`` and ``top_p`` and ``min_p`` then
    do as with all classes, if what they keep is here.
    """
    xp = namespace(z)
    kept = z > -math.inf
    greedy = rules.temperature == 0
    now = xp.ones_like(rules.temperature)
    beyond, uncut = 0.0 if outside is None else outside[0], 1.0
    for name in order:
        value = getattr(rules, name)
        if name == "temperature":
            now = xp.where(greedy, 1.0, rules.temperature)
            beyond = 0.0 if outside is None else outside[1]
        elif value is not None:
            neutral = value == getattr(NEUTRAL, name)
            before, kept = kept, kept & (neutral[:, None] | _filter(name, z, kept, now, value, uncut * beyond))
            if outside is not None:
                cut = (kept != before).any(-1) | ((name == "top_k") & (value <= z.shape[1]))
                uncut = xp.where(cut, 0.0, uncut)
    first = classes(z) == xp.argmax(z, -1)[:, None]
    return xp.where(greedy[:, None], first, kept), now


def tempered(z: Array, rules: Rules, order: tuple[str, ...]) -> Array:
    """Return (z - max) / T of the classes kept of z (N, V), -inf for the others."""
    kept, temperature = truncate(z, rules, order)
    return _scaled(namespace(z).where(kept, z, -math.inf), temperature)


def _filter(name: str, z: Array, kept: Array, temperature: Array, value: Array, beyond: Array | float = 0.0) -> Array:
    """Return which classes one filter keeps of those kept before it; ``beyond`` is the mass of those not here."""
    xp = namespace(z)
    left = xp.where(kept, z, -math.inf)
    gap, x = xp.amax(left, -1)[:, None] - left, _scaled(left, temperature)
    mass = xp.exp(x)
    total = mass.sum(-1) + beyond
    if name == "top_k":
        return shortest(-left, kept * 1.0, value)
    if name == "top_p":
        return shortest(-left, mass, value * total)
    if name == "min_p":
        return kept & (mass >= value[:, None])
    if name == "top_n_sigma":  # whatever the temperature
        return kept & (gap <= (value * _deviation(gap, kept))[:, None])
    entropy = xp.log(total) - xp.where(mass > 0, mass * xp.where(mass > 0, x, 0.0), 0.0).sum(-1) / total
    if name == "typical_p":
        surprise = xp.where(kept, xp.log(total)[:, None] - x, math.inf)
        return shortest(xp.abs(surprise - entropy[:, None]), mass, value * total)
    least = value if name == "epsilon_cutoff" else xp.minimum(value, xp.sqrt(value) * xp.exp(-entropy))
    return kept & (mass >= xp.clip(least * total, None, 1.0)[:, None])


def _deviation(x: Array, kept: Array) -> Array:
    """Return the standard deviation of what is kept of each row."""
    xp = namespace(x)
    count = kept.sum(-1)
    mean = xp.where(kept, x, 0.0).sum(-1) / count
    deviation = xp.sqrt((xp.where(kept, x - mean[:, None], 0.0) ** 2).sum(-1) / count)
    return xp.where(deviation < MOST, deviation, MOST)  # so that 0 times it is 0, where squares overflow too


def shortest(key: Array, weight: Array, target: Array) -> Array:
    """Return the shortest beginning of each row, by ascending key and then class, whose weight reaches the target."""
    xp = namespace(key)
    order = np.argsort(key, -1, kind="stable") if xp is np else xp.argsort(key, dim=-1, stable=True)
    sums = take(weight, order).cumsum(-1)
    chosen = xp.concatenate([xp.ones_like(sums[:, :1], dtype=bool), sums[:, :-1] < target[:, None]], -1)
    return take(chosen, xp.argsort(order, -1)) & (weight > 0)


def _inverse(scaled: Array, uniforms: Array) -> tuple[Array, Array]:
    """Return the classes drawn with replacement, and their log-probabilities."""
    xp = namespace(scaled)
    index = draw_masses(xp.exp(scaled - xp.amax(scaled, -1)[:, None]), uniforms)
    return index, _logprob(fold(scaled), take(scaled, index))


def _one_by_one(z: Array, kept: Array, temperature: Array, uniforms: Array) -> tuple[Array, Array]:
    """Return the classes drawn without replacement, and their log-probabilities given those drawn before."""
    xp = namespace(z)
    found = []
    for column in range(uniforms.shape[1]):
        left = xp.where(kept, z, -math.inf)
        left = xp.where(kept.any(-1)[:, None], left, z)  # of rows without so many classes, which have no result
        found.append(_inverse(_scaled(left, temperature), uniforms[:, column : column + 1]))
        kept = kept & (classes(z) != found[-1][0])
    index, logprob = (xp.concatenate(parts, -1) for parts in zip(*found, strict=True))
    return index, logprob


def draw_weights(p: Array, uniforms: Array, replacement: bool) -> tuple[Array, Array]:
    """Draw from rows of weights (N, V) with uniforms (N, S): classes, and the status of the rows."""
    xp, weights = namespace(p), double(p)
    bad, counts = ~((weights >= 0) & (weights < math.inf)).all(-1), (weights > 0).sum(-1)
    status = xp.where(counts < (1 if replacement else uniforms.shape[1]), TOO_FEW, FINE)
    status = xp.where(bad, HAS_NAN, xp.where(counts == 0, HAS_NOTHING, status))
    masses = xp.where((status == FINE)[:, None], weights, 1.0)
    if replacement:
        return draw_masses(masses / xp.amax(masses, -1)[:, None], uniforms), status
    found = []
    for column in range(uniforms.shape[1]):
        masses = masses / xp.amax(masses, -1)[:, None]
        found.append(draw_masses(masses, uniforms[:, column : column + 1]))
        masses = xp.where(classes(masses) == found[-1], 0.0, masses)
    return xp.concatenate(found, -1), status


def draw_masses(masses: Array, uniforms: Array) -> Array:
    """Return, for each uniform, the first class of its row whose cumulative mass exceeds u * total."""
    cumulative = _cumulate(masses)
    return count_not_above(cumulative, uniforms * cumulative[:, -1:])


def masses(z: Array, temperature: Array) -> tuple[Array, Array]:
    """Return, for each block of BLOCK classes of z (N, V), its maximum and sum exp((z - maximum) / T), (N, B) each.

    What ``choose`` needs to know of classes that are elsewhere, or no longer there. A block of -inf has the mass 0.
    """
    xp, rows = namespace(z), z.shape[0]
    blocks = -(-z.shape[1] // BLOCK)
    padded = xp.full((rows, blocks * BLOCK), -math.inf, dtype=xp.float64, **_where(z))
    padded[:, : z.shape[1]] = double(z)
    padded = padded.reshape(rows, blocks, BLOCK)
    top = xp.amax(padded, -1) if blocks else padded.sum(-1)
    finite = xp.where(xp.isfinite(top), top, 0.0)
    return top, xp.exp((padded - finite[:, :, None]) / temperature[:, None, None]).sum(-1)


def choose(top: Array, mass: Array, temperature: Array, uniforms: Array) -> tuple[Array, Array]:
    """Return the block of each draw, from what ``masses`` returned, and the share of its mass that lies before it.

    Both (N, S): with ``inside`` they make the inverse CDF in two steps.
    """
    xp = namespace(top)
    highest = xp.amax(top, -1)[:, None]
    scaled = xp.where(mass > 0, xp.exp((top - highest) / temperature[:, None]) * mass, 0.0)
    cumulative = _cumulate(scaled)
    threshold = uniforms * cumulative[:, -1:]
    block = xp.clip(count_not_above(cumulative, threshold), 0, top.shape[1] - 1)
    before = xp.where(block > 0, take(cumulative, xp.clip(block - 1, 0, None)), 0.0)
    return block, (threshold - before) / take(scaled, block)


def inside(z: Array, temperature: Array, fraction: Array) -> Array:
    """Return the class of one block of logits z (N, at most BLOCK) where this share (N,) of the mass lies before it."""
    xp = namespace(z)
    mass = xp.exp(_scaled(double(z), temperature))
    index = draw_masses(mass, fraction[:, None])[:, 0]
    last = xp.where(mass > 0, classes(z), 0).max(-1)
    return xp.minimum(index, last if xp is np else last.values)


def topk(z: Array, k: int) -> tuple[Array, Array]:
    """Return the k largest logits of each row and their classes, largest first, of equal ones the lower class first."""
    xp = namespace(z)
    order = np.argsort(-z, -1, kind="stable") if xp is np else xp.argsort(z, dim=-1, descending=True, stable=True)
    return take(z, order[:, :k]), order[:, :k]


def _where(z: Array) -> dict[str, Any]:
    return {} if isinstance(z, np.ndarray) else {"device": z.device}


def take(array: Array, index: Array) -> Array:
    """Return array[i, index[i, k]]."""
    return np.take_along_axis(array, index, -1) if isinstance(array, np.ndarray) else array.gather(-1, index)


def _cumulate(weights: Array) -> Array:
    """Return cumulative sums that never fall and stand still at weight 0.

    One after the other on a CPU, sums do; a GPU adds in a tree, whose roundings can make a later sum the smaller one.
    """
    sums = namespace(weights).cumsum(weights, -1)
    if isinstance(sums, np.ndarray) or sums.device.type == "cpu":
        return sums
    return sums.where(weights > 0, 0.0).cummax(-1).values


def count_not_above(ascending: Array, threshold: Array) -> Array:
    """Return how many entries of its row are <= each threshold, by bisection: the first ``found`` of them are."""
    xp, size = namespace(ascending), ascending.shape[1]
    found = xp.zeros_like(threshold, dtype=xp.int64)
    step = 1 << (size.bit_length() - 1)
    while step:
        probe = found + step
        below = take(ascending, xp.clip(probe, 1, size) - 1) <= threshold
        found = xp.where((probe <= size) & below, probe, found)
        step //= 2
    return found


def _logprob(state: State, z_y: Array) -> Array:
    """Return log p_y for several y per row."""
    return finish(State(*(field[:, None] for field in state)), z_y).logprob + 0.0
