"""What a draw may not depend on: ways of asking for the same draws, each beside the plain one, bit by bit."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import lastlayer
import lastlayer.torch as F
from lastlayer import _backends, _draws
from timed import draws_shards
from timed.draws_jobs import SEED, uniforms_of

Row = NDArray[np.float32]


def same(z: Row, options: dict[str, Any], other: Callable[..., Any], **asked: Any) -> bool:
    """Return whether another way of asking gives the same draws of several rows."""
    return bool(np.array_equal(lastlayer.categorical(z, 4, **asked, **options).index, other(**options)))


def rows_alone(z: Row, **per_row: Any) -> Callable[..., Any]:
    """Return draws from each row alone, given its own seed or offset."""

    def draw(**options: Any) -> Any:
        each = [{name: value[i] for name, value in per_row.items()} for i in range(len(z))]
        return np.stack([lastlayer.categorical(z[i], 4, **asked, **options).index for i, asked in enumerate(each)])

    return draw


def on_threads(z: Row, count: int) -> Callable[..., Any]:
    """Return draws on so many threads."""

    def draw(**options: Any) -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return F.categorical(torch.from_numpy(z), 4, seed=SEED, **options).index.numpy()
        finally:
            torch.set_num_threads(before)

    return draw


def by_the_reference(z: Row, **options: Any) -> Any:
    """Return draws by the float64 specification."""
    rules = _draws.Rules(*(np.full(len(z), float(options[f])) if f in options else None for f in _draws.Rules._fields))
    u = uniforms_of(SEED, len(z), 4)
    return _backends.reference.draw(z, u, rules, _draws.STEPS, None, True).index


def ways(z: Row) -> Iterator[tuple[str, dict[str, Any], Callable[..., Any]]]:
    """Yield what must not matter: its name, how the rows are asked for together, and the other way."""
    n, one = len(z), dict[str, Any](seed=SEED)
    rng = np.random.default_rng(1)
    seeds, order = rng.integers(1 << 63, size=n), rng.permutation(n)

    def pieces(size: int) -> Callable[..., Any]:
        def draw(**options: Any) -> Any:
            cuts = [np.arange(i, min(i + size, n)) for i in range(0, n, size)]
            return np.concatenate([lastlayer.categorical(z[i], 4, offset=i, **one, **options).index for i in cuts])

        return draw

    def permuted(**options: Any) -> Any:
        back = np.argsort(order)
        return lastlayer.categorical(z[order], 4, offset=order, **one, **options).index[back]

    def prefix(**options: Any) -> Any:
        return lastlayer.categorical(z, 9, **one, **options).index[:, :4]

    def transposed(**options: Any) -> Any:
        return lastlayer.categorical(np.asfortranarray(z).T, 4, axis=0, **one, **options).index

    yield "a seed per row: each row alone", {"seed": seeds}, rows_alone(z, seed=seeds)
    yield "the batch: each row alone, with its offset", one, rows_alone(z, seed=[SEED] * n, offset=range(n))
    yield "the order of the rows", one, permuted
    for size in (1, 3, 7):
        yield f"rows in calls of {size}", one, pieces(size)
    for count in (1, 2, 3, 4):
        yield f"threads: {count}", one, on_threads(z, count)
    yield "NumPy or PyTorch", one, lambda **o: F.categorical(torch.from_numpy(z), 4, seed=SEED, **o).index.numpy()
    yield "strides and axis", one, transposed
    yield "the number of draws: the first 4 of 9", one, prefix
    yield "the backend: the float64 reference", one, lambda **options: by_the_reference(z, **options)
    if _backends.cpu is not None:
        for name in _native().instruction_sets():
            yield f"the instruction set: {name}", one, with_instruction_set(z, name)


def _native() -> Any:
    return importlib.import_module("lastlayer._native")


def with_instruction_set(z: Row, name: str) -> Callable[..., Any]:
    """Return draws by the kernels of one instruction set."""

    def draw(**options: Any) -> Any:
        before = _native().instruction_set()
        _native().use_instruction_set(name)
        try:
            return lastlayer.categorical(z, 4, seed=SEED, **options).index
        finally:
            _native().use_instruction_set(before)

    return draw


def tiles(classes: int) -> Iterator[tuple[str, bool]]:
    """Yield whether draws from hidden states depend on the workspace, and with it on the tiles."""
    if not hasattr(F, "linear_categorical"):
        return
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(8, 64, generator=generator)
    W = torch.randn(classes, 64, generator=generator)
    first = F.linear_categorical(h, W, seed=SEED).index
    for mebibytes in (1, 4, 16):
        found = F.linear_categorical(h, W, seed=SEED, memory_budget=mebibytes << 20).index
        yield f"linear_categorical: tiles of {mebibytes} MiB", bool((found == first).all())


def shards(z: Row, settings: list[dict[str, Any]], worlds: tuple[int, ...]) -> Iterator[tuple[str, bool]]:
    """Yield whether draws depend on how many processes share the classes."""
    whole = np.stack([lastlayer.categorical(z, 4, seed=SEED, **options).index for options in settings])
    for ranks in worlds:
        found = draws_shards.drawn(z, [options | {"seed": SEED} for options in settings], ranks)
        yield f"one process or {ranks}, each with a shard of the classes", bool(np.array_equal(found, whole))
