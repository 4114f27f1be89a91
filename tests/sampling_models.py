"""What three popular stacks keep of a row of logits, in float64 with a full sort: models to test truncation against.

Each model takes one row and one setting, and returns the row as it is drawn from: -inf where a class is dropped, and
divided by the temperature. ``transformers`` runs that library's own classes. ``vllm`` and ``llama_cpp`` are written
after the published behaviour: vLLM's v1 sampler (temperature, min_p, then top_k and top_p together; penalties and bias
before) and the default chain of llama.cpp (top_n_sigma, top_k, typical, top_p, min_p, temperature). What a stack does
not have is not in its model. Which of several equal logits go is left open by all
three: here the higher classes do. ``EVERY`` has the filters one by one, for orders of our own.

A model also says how near it came to deciding otherwise, ``margin``: the least distance, relative to what is compared,
between a value and its threshold. Where that is within rounding, nobody can be told to be right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

Row = np.ndarray[Any, Any]


class Kept(NamedTuple):
    """A truncated row of logits at its temperature, and the least distance to another decision."""

    logits: Row
    margin: float = math.inf

    @property
    def classes(self) -> Row:
        return np.flatnonzero(self.logits > -math.inf)

    @property
    def logprobs(self) -> Row:
        return log_softmax(self.logits)


def log_softmax(z: Row) -> Row:
    top = z.argmax()
    rest = math.fsum(np.delete(np.exp(z - z[top]), top))  # a confident row's own class keeps its digits
    return (z - z[top]) - math.log1p(rest)


def gap(values: Row, threshold: float) -> float:
    """Return the distance of the nearest value to the threshold, relative to the threshold."""
    finite = values[np.isfinite(values)]
    return float(np.min(np.abs(finite - threshold), initial=math.inf)) / max(abs(threshold), 1e-300)


def drop(z: Row, classes: Row) -> Row:
    out = z.copy()
    out[classes] = -math.inf
    return out


def descending(z: Row) -> Row:
    return np.lexsort((np.arange(len(z)), -z))


def shortest(z: Row, order: Row, p: float) -> Kept:
    """Keep the first classes of an order, as few as have together the probability p."""
    sums = np.cumsum(np.exp(log_softmax(z))[order].astype(np.longdouble))
    count = int((sums < p).sum()) + 1
    return Kept(drop(z, order[count:]), gap(sums.astype(np.float64), p))


# One filter of one stack each


def temperature(z: Row, t: float) -> Kept:
    return Kept(z / t)


def top_k(z: Row, k: int) -> Kept:
    return Kept(drop(z, descending(z)[k:]))


def top_p(z: Row, p: float) -> Kept:
    return shortest(z, descending(z), p)


def top_p_from_below(z: Row, p: float) -> Kept:
    """Drop from the least likely on, while what is dropped has together no more than 1 - p; never the last one."""
    order = descending(z)[::-1]
    sums = np.cumsum(np.exp(log_softmax(z))[order].astype(np.longdouble))
    dropped = order[:-1][sums[:-1] <= 1 - np.longdouble(p)]
    return Kept(drop(z, dropped), gap(1 - sums.astype(np.float64), p))


def min_p(z: Row, p: float) -> Kept:
    shares = np.exp(z - z.max())
    return Kept(drop(z, np.flatnonzero(shares < p)), gap(shares, p))


def min_p_of_logits(z: Row, p: float) -> Kept:
    least = z.max() + math.log(p)
    return Kept(drop(z, np.flatnonzero(z < least)), gap(np.exp(z - z.max()), p))


def typical_p(z: Row, p: float) -> Kept:
    logp = log_softmax(z)
    live = np.flatnonzero(logp > -math.inf)
    entropy = -math.fsum(np.exp(logp[live]) * logp[live])
    distance = np.where(logp > -math.inf, np.abs(-logp - entropy), math.inf)
    order = np.lexsort((np.arange(len(z)), distance))
    found = shortest(z, order, p)
    apart = np.diff(np.sort(np.unique(distance[live])))  # different logits at the same distance are another margin
    return found._replace(margin=min(found.margin, float(np.min(apart, initial=math.inf))))


def top_n_sigma(z: Row, n: float) -> Kept:
    live = z[z > -math.inf]
    if len(live) == 1:
        return Kept(z)
    mean = math.fsum(live) / len(live)
    least = z.max() - n * math.sqrt(math.fsum((live - mean) ** 2) / len(live))
    return Kept(drop(z, np.flatnonzero(z < least)), gap(live - z.max(), least - z.max()))


def epsilon_cutoff(z: Row, epsilon: float) -> Kept:
    p = np.exp(log_softmax(z))
    return Kept(drop(z, np.flatnonzero((p < epsilon) & (z < z.max()))), gap(p, epsilon))


def eta_cutoff(z: Row, eta: float) -> Kept:
    logp = log_softmax(z)
    live = logp[logp > -math.inf]
    entropy = -math.fsum(np.exp(live) * live)
    return epsilon_cutoff(z, min(eta, math.sqrt(eta) * math.exp(-entropy)))


EVERY = {
    "temperature": temperature,
    "top_n_sigma": top_n_sigma,
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
    "epsilon_cutoff": epsilon_cutoff,
    "eta_cutoff": eta_cutoff,
}
VLLM = [("temperature", temperature), ("min_p", min_p), ("top_k", top_k), ("top_p", top_p_from_below)]
LLAMA_CPP = [
    ("top_n_sigma", top_n_sigma),
    ("top_k", top_k),
    ("typical_p", typical_p),
    ("top_p", top_p),
    ("min_p", min_p_of_logits),
    ("temperature", temperature),
]


def chain(filters: Iterable[tuple[str, Any]], z: Row, setting: dict[str, float]) -> Kept:
    found = Kept(z)
    for name, apply in filters:
        if name in setting:
            after = apply(found.logits, setting[name])
            found = after._replace(margin=min(found.margin, after.margin))
    return found


def vllm(z: Row, setting: dict[str, float]) -> Kept:
    return chain(VLLM, z, setting)


def llama_cpp(z: Row, setting: dict[str, float]) -> Kept:
    return chain(LLAMA_CPP, z, setting)


def transformers(z: Row, setting: dict[str, float]) -> Kept:
    """Run the warpers of transformers in the order in which generate() puts them; torch and transformers are needed."""
    import torch
    from transformers.generation import logits_process as hf

    warpers = {
        "temperature": hf.TemperatureLogitsWarper,
        "top_k": hf.TopKLogitsWarper,
        "top_p": hf.TopPLogitsWarper,
        "min_p": hf.MinPLogitsWarper,
        "typical_p": hf.TypicalLogitsWarper,
        "epsilon_cutoff": hf.EpsilonLogitsWarper,
        "eta_cutoff": hf.EtaLogitsWarper,
    }
    scores = torch.tensor(z, dtype=torch.float64)[None]
    for name, warper in warpers.items():
        if name in setting:
            scores = warper(setting[name])(torch.zeros(1, 1, dtype=torch.int64), scores)
    return Kept(scores[0].numpy())


def edited(
    z: Row,
    *,
    bias: Iterable[tuple[int, float]] = (),
    tokens: Iterable[int] = (),
    prompt: Iterable[int] = (),
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
    bans: Iterable[int] = (),
) -> Row:
    """Return a row with bias, then penalties as vLLM documents them, then bans, one class at a time.

    Negative ids are padding.
    """
    out = [float(value) for value in z]
    for j, value in bias:
        out[j] += value
    generated = [j for j in tokens if j >= 0]
    for j in {*generated, *(j for j in prompt if j >= 0)}:
        out[j] = out[j] / repetition if out[j] > 0 else out[j] * repetition
    for j in generated:
        out[j] -= frequency
    for j in set(generated):
        out[j] -= presence
    for j in bans:
        out[j] = -math.inf
    return np.array(out)
