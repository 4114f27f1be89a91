"""Who draws: each competitor prepares a matrix of its own once, and then draws from it; a call takes a seed.

Ours first. Of the peers, PyTorch's chains are those that people write: the mask of a sorted row, and the softmax of
the top k. JAX and llama.cpp are imported when they are asked for: they need not be installed.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import lastlayer
import lastlayer.torch as F
from timed.rounds import Job

OURS, OURS_NUMPY = "lastlayer", "lastlayer (NumPy)"
SOFTMAX = "PyTorch softmax + multinomial"
SORT = "PyTorch sort"
TOP_K = "PyTorch top-k"
RACE = "PyTorch exponential race"
JAX, GUMBEL, SUMS, LLAMA = "JAX", "NumPy Gumbel-max", "NumPy cumulative sums", "llama.cpp"
PEERS = (SOFTMAX, SORT, TOP_K, RACE, JAX, GUMBEL, SUMS, LLAMA)

Options = dict[str, Any]
Draw = Callable[[Any, int], Any]


class Competitor(NamedTuple):
    """How a matrix (N, V) becomes what is drawn from, how it is drawn from, and how the classes are read off."""

    draw: Draw
    prepare: Callable[[Tensor], Any] = lambda z: z
    numpy: Callable[[Any], Any] = np.asarray

    def classes(self, z: Tensor, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the draws (N, S)."""
        return np.asarray(self.numpy(self.draw(self.prepare(z), seed))).reshape(len(z), -1)


class Operation(NamedTuple):
    """What is drawn: the options of ``categorical``, how many per row, and from what."""

    options: Options
    samples: int = 1
    replacement: bool = True
    source: str = "float32"  # or "bfloat16", or "probabilities"

    @property
    def truncates(self) -> bool:
        return bool(self.options.keys() & {"top_k", "top_p", "min_p"})


def operations(rows: int) -> dict[str, Operation]:
    """Return what is timed on matrices of so many rows."""
    warm: Options = {"temperature": 0.8}
    each = torch.arange(rows)
    per_row: Options = {
        "temperature": 0.6 + 0.4 * each / rows,
        "top_k": 20 + each % 64,
        "top_p": 0.85 + 0.1 * each / rows,
        "min_p": 0.01 + 0.02 * each / rows,
    }
    return {
        "T = 1": Operation({}),
        "temperature": Operation(warm),
        "top_k, top_p, min_p": Operation(warm | {"top_k": 50, "top_p": 0.9, "min_p": 0.02}),
        "top_p": Operation(warm | {"top_p": 0.9}),
        "min_p": Operation(warm | {"min_p": 0.02}),
        "all of them per row": Operation(per_row),
        "16 draws": Operation(warm, 16),
        "16 without replacement": Operation(warm, 16, replacement=False),
        "bfloat16": Operation(warm, source="bfloat16"),
        "multinomial": Operation({}, source="probabilities"),
    }


def of_lastlayer(operation: Operation) -> dict[str, Competitor]:
    """Ours: all seven fields of a Sample."""
    options, samples, replacement, source = operation
    if source == "probabilities":
        return {OURS: Competitor(lambda p, seed: F.multinomial(p, samples, True, seed=seed))}
    rest: Options = {} if replacement else {"replacement": False}
    count = None if samples == 1 else samples
    return {OURS: Competitor(lambda z, seed: F.categorical(z, count, seed=seed, **options, **rest), numpy=_index)}


def of_lastlayer_numpy(operation: Operation) -> dict[str, Competitor]:
    """Ours, the NumPy front end."""
    options = operation.options
    draw: Draw = lambda z, seed: lastlayer.categorical(z, seed=seed, **options)  # noqa: E731
    return {OURS_NUMPY: Competitor(draw, Tensor.numpy, _index)}


def _index(sample: Any) -> Any:
    return sample.index


def column(value: Any) -> Any:
    """Return a number per row as a column."""
    return value[:, None] if isinstance(value, Tensor) else value


def tempered(z: Tensor, options: Options) -> Tensor:
    """Return the logits over the temperature, in float32."""
    return z.float() / column(options["temperature"]) if "temperature" in options else z


def sorted_mask(z: Tensor, options: Options) -> Tensor:
    """Return -inf for what the filters cut: rows are sorted, cut, and put back."""
    if options.keys() & {"top_k", "top_p"}:
        high, order = z.sort(-1, descending=True)
        p = high.softmax(-1)
        cut = torch.zeros_like(p, dtype=torch.bool)
        if "top_k" in options:
            cut |= torch.arange(z.shape[-1]) >= column(options["top_k"])
            p = p.masked_fill(cut, 0)
            p = p / p.sum(-1, keepdim=True)
        if "top_p" in options:
            cut |= p.cumsum(-1) - p >= column(options["top_p"])
        z = torch.empty_like(z).scatter_(-1, order, high.masked_fill(cut, -torch.inf))
    if "min_p" in options:
        p = z.softmax(-1)
        z = z.masked_fill(p < column(options["min_p"]) * p.amax(-1, keepdim=True), -torch.inf)
    return z


def of_pytorch(operation: Operation) -> dict[str, Competitor]:
    """PyTorch, eager."""
    options, samples, replacement, source = operation
    if source == "probabilities":
        return {SOFTMAX: Competitor(lambda p, seed: torch.multinomial(p, samples, replacement))}

    def softmax(z: Tensor, seed: int) -> Tensor:
        return torch.multinomial(tempered(z, options).float().softmax(-1), samples, samples > 1 and replacement)

    def race(z: Tensor, seed: int) -> Tensor:
        p = tempered(z, options).softmax(-1)
        return (p / torch.empty_like(p).exponential_()).argmax(-1)

    def masked(z: Tensor, seed: int) -> Tensor:
        return torch.multinomial(sorted_mask(tempered(z, options), options).softmax(-1), samples)

    def top_k(z: Tensor, seed: int) -> Tensor:
        high, order = z.topk(options["top_k"])
        p = tempered(high, options).softmax(-1)
        cut = p.cumsum(-1) - p >= options["top_p"]
        p = p.masked_fill(cut | (p < options["min_p"] * p[:, :1]), 0)
        return order.gather(-1, torch.multinomial(p, samples))

    if not operation.truncates:
        return {SOFTMAX: Competitor(softmax)} | ({RACE: Competitor(race)} if samples == 1 else {})
    return {SORT: Competitor(masked)} | ({TOP_K: Competitor(top_k)} if is_chain(operation) else {})


def is_chain(operation: Operation) -> bool:
    """Return whether it is top_k, top_p and min_p with one number for all rows."""
    return isinstance(operation.options.get("top_k"), int)


def of_jax(operation: Operation) -> dict[str, Competitor]:
    """JAX, jitted, the key made of the seed inside; its arrays share the logits' memory."""
    import jax

    options, samples, replacement, source = operation
    if source != "float32" or not replacement or (operation.truncates and not is_chain(operation)):
        return {}
    T = options.get("temperature", 1.0)

    def plain(z: Any, seed: Any) -> Any:
        return jax.random.categorical(jax.random.key(seed), z / T, shape=(samples, len(z))).T

    def chain(z: Any, seed: Any) -> Any:
        high, order = jax.lax.top_k(z, options["top_k"])
        p = jax.nn.softmax(high / T)
        cut = p.cumsum(-1) - p >= options["top_p"]
        logits = jax.numpy.where(cut | (p < options["min_p"] * p[:, :1]), -jax.numpy.inf, high / T)
        place = jax.random.categorical(jax.random.key(seed), logits)
        return jax.numpy.take_along_axis(order, place[:, None], -1)

    compiled = jax.jit(chain if operation.truncates else plain)
    return {JAX: Competitor(lambda z, seed: jax.block_until_ready(compiled(z, seed)), jax.dlpack.from_dlpack)}


def of_numpy(operation: Operation) -> dict[str, Competitor]:
    """NumPy, float32 but for the sums."""
    options, samples, replacement, source = operation
    if source != "float32" or not replacement or samples > 1 or operation.truncates:
        return {}
    T, rng = np.float32(options.get("temperature", 1.0)), np.random.default_rng(0)

    def gumbel(z: Any, seed: int) -> Any:
        with np.errstate(divide="ignore"):  # a uniform may be 0; that class then loses
            return (z / T - np.log(-np.log(rng.random(z.shape, np.float32)))).argmax(-1)

    def sums(z: Any, seed: int) -> Any:
        cumulative = np.exp((z - z.max(-1, keepdims=True)) / T).cumsum(-1, np.float64)
        thresholds = rng.random(len(z)) * cumulative[:, -1]
        return [row.searchsorted(u, side="right") for row, u in zip(cumulative, thresholds, strict=True)]

    return {GUMBEL: Competitor(gumbel, Tensor.numpy), SUMS: Competitor(sums, Tensor.numpy)}


def of_llama(operation: Operation) -> dict[str, Competitor]:
    """llama.cpp's chain of samplers, row by row; a row's candidates are written in one go by NumPy."""
    import llama_cpp as c

    options, samples, replacement, source = operation
    if source != "float32" or not replacement or samples > 1 or not (is_chain(operation) or len(options) <= 1):
        return {}
    chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
    if operation.truncates:
        c.llama_sampler_chain_add(chain, c.llama_sampler_init_top_k(options["top_k"]))
        c.llama_sampler_chain_add(chain, c.llama_sampler_init_top_p(options["top_p"], 1))
        c.llama_sampler_chain_add(chain, c.llama_sampler_init_min_p(options["min_p"], 1))
    c.llama_sampler_chain_add(chain, c.llama_sampler_init_temp(options.get("temperature", 1.0)))
    c.llama_sampler_chain_add(chain, c.llama_sampler_init_dist(0))
    place = ctypes.POINTER(c.llama_token_data)
    kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

    def one(row: Any, candidates: Any) -> int:
        candidates["id"], candidates["logit"] = np.arange(len(row)), row
        table = c.llama_token_data_array(candidates.ctypes.data_as(place), len(row), -1, False)
        c.llama_sampler_apply(chain, ctypes.byref(table))
        return int(table.data[table.selected].id)

    def draw(z: Any, seed: int) -> Any:
        candidates = np.empty(z.shape[-1], kind)
        return [one(row, candidates) for row in z]

    return {LLAMA: Competitor(draw, Tensor.numpy)}


LIBRARIES = {
    "lastlayer": of_lastlayer,
    "PyTorch": of_pytorch,
    "JAX": of_jax,
    "NumPy": of_numpy,
    "llama.cpp": of_llama,
}


def competitors(operation: Operation, without: list[str], left_out: list[str]) -> dict[str, Competitor]:
    """Return who can do an operation; name who is not installed."""
    found: dict[str, Competitor] = {}
    for name, of in LIBRARIES.items():
        if name in without:
            continue
        try:
            found |= of(operation)
        except ImportError:
            left_out.append(f"{name}: not installed")
    return found


class Rotation:
    """The number of the call, counted over all jobs, so that each finds the matrix that was used longest ago."""

    def __init__(self) -> None:
        self.numbers: Iterator[int] = itertools.count()

    def job(self, competitor: Competitor, matrices: list[Tensor]) -> Job:
        """Return a draw from the next matrix."""
        given = [competitor.prepare(z) for z in matrices]

        def job() -> Any:
            turn = next(self.numbers)
            return competitor.draw(given[turn % len(given)], turn)

        return job
