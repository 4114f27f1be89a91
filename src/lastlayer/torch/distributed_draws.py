"""Draws, and the largest logits, where each rank holds a shard of the vocabulary: part of lastlayer.torch.distributed.

The draws are those of one process with all classes. Sent are, of each row: the masses of blocks of 1,024 classes (16
bytes each) and the logits of blocks that are spread over ranks; or, with top_k, top_p or min_p, as many of each rank's
largest logits as can matter; and its state. Rows that this does not decide are gathered, some at a time, and drawn from
on every rank. The arithmetic is in lastlayer/_linear_draws.py, the ranks in shards.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, SupportsIndex, Unpack

import numpy as np
import torch
from torch import Tensor

from lastlayer import _draw_arguments, _linear, _linear_draws
from lastlayer._draw_arguments import Asked, DrawOptions
from lastlayer._draw_plans import Given, Source
from lastlayer.linear_sampling import LinearTopK, check_rows, read_k
from lastlayer.sampling import Sample
from lastlayer.torch.linear_sampling import check_head, source_of, topk_of
from lastlayer.torch.sampling import check_input, checked, seed_of, spread
from lastlayer.torch.shards import Group, Shards, agree, attempt, mesh_of, unsharded
from lastlayer.torch.stream import TorchProducts

OWN = ("classes", "random seed")  # what may differ between ranks


@torch.compiler.disable  # type: ignore[untyped-decorator]  # ranks tell each other values
@torch.no_grad()
def categorical(
    input: Tensor,
    num_samples: int | None = None,
    *,
    group: Group | None = None,
    memory_budget: int | None = None,
    generator: torch.Generator | None = None,
    **options: Unpack[DrawOptions],
) -> Sample:
    """Draw as ``lastlayer.torch.categorical`` from logits whose classes are spread over the ranks of a group.

    Args:
        input: the logits of this rank's classes (..., V_r).
        num_samples: draws per row, in a new last dimension; None for one draw and no such dimension.
        group: the ranks that share the vocabulary.
        memory_budget: bytes for this rank's workspace.
        generator: instead of seed, a generator that a seed is drawn from; that of the group's first rank counts.
        **options: all that ``lastlayer.torch.categorical`` takes, the same on all ranks; classes are those of the
            whole vocabulary.

    Returns:
        ``Sample``, the same bits on all ranks, with classes numbered over all ranks: what one process would draw.

    Raises:
        ValueError, IndexError, TypeError: as ``lastlayer.torch.categorical``; something differs between ranks; the
            budget is too small.
        RuntimeError: another rank failed: its message is given.
    """
    constants = {"num_samples": num_samples, "memory_budget": memory_budget}

    def describe() -> dict[str, Any]:
        check_input(input)
        _linear.check_head(None, 1.0, memory_budget)
        same = {"leading shape": tuple(input.shape[:-1]), "dtype": str(input.dtype)}
        return {"classes": input.shape[-1]} | same | constants

    shards, asked = _meet(describe, input, group, num_samples, generator, options)
    rows = len(asked.uniforms)
    source = Given(TorchProducts(input), input.detach().reshape(rows, input.shape[-1]))
    return _drawn(source, asked, memory_budget, shards, input, num_samples)


@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.no_grad()
def linear_categorical(
    input: Tensor,
    linear_weight: Tensor,
    num_samples: int | None = None,
    *,
    group: Group | None = None,
    linear_bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    memory_budget: int | None = None,
    generator: torch.Generator | None = None,
    **options: Unpack[DrawOptions],
) -> Sample:
    """Draw as ``lastlayer.torch.linear_categorical`` from a head whose classes are spread over the ranks of a group.

    Args:
        input: hidden states (..., D), the same on all ranks.
        linear_weight: this rank's classes (V_r, D), V_r >= 0; or a ``DTensor`` with placements ``[Shard(0)]``.
        num_samples: draws per row, in a new last dimension; None for one draw and no such dimension.
        group: the ranks that share the vocabulary; None: a DTensor's mesh, else all ranks.
        linear_bias: of this rank's classes (V_r).
        scale: multiplies the logits.
        softcap: bounds the logits.
        memory_budget: bytes for this rank's workspace.
        generator: instead of seed, a generator that a seed is drawn from; that of the group's first rank counts.
        **options: all that ``lastlayer.torch.categorical`` takes, the same on all ranks; classes are those of the
            whole vocabulary.

    Returns:
        ``Sample``, the same bits on all ranks, with classes numbered over all ranks: what one process would draw.

    Raises:
        ValueError, IndexError, TypeError: as ``lastlayer.torch.linear_categorical``; something differs between ranks.
        RuntimeError: dtypes or devices do not fit, or another rank failed: its message is given.
    """
    parts = _parts(linear_weight, linear_bias)
    describe = _head(input, parts, scale, softcap, memory_budget, {"num_samples": num_samples})
    group = mesh_of(linear_weight) if group is None else group
    shards, asked = _meet(describe, input, group, num_samples, generator, options)
    source = shards.ready(lambda: source_of(input, *parts(), scale, softcap))
    return _drawn(source, asked, memory_budget, shards, input, num_samples)


@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.no_grad()
def linear_topk(
    input: Tensor,
    linear_weight: Tensor,
    k: SupportsIndex,
    *,
    group: Group | None = None,
    linear_bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    memory_budget: int | None = None,
) -> LinearTopK:
    """Find the k largest logits of each row, as ``lastlayer.torch.linear_topk``, over the shards of a group's ranks.

    Args:
        input: hidden states (..., D), the same on all ranks.
        linear_weight: this rank's classes (V_r, D), V_r >= 0; or a ``DTensor`` with placements ``[Shard(0)]``.
        k: how many, at most the classes of all ranks.
        group: the ranks that share the vocabulary; None: a DTensor's mesh, else all ranks.
        linear_bias: of this rank's classes (V_r).
        scale: multiplies the logits.
        softcap: bounds the logits.
        memory_budget: bytes for this rank's workspace.

    Returns:
        ``LinearTopK``, the same bits on all ranks, with classes numbered over all ranks.

    Raises:
        ValueError, TypeError: as ``lastlayer.torch.linear_topk``; something differs between ranks.
        RuntimeError: dtypes or devices do not fit, or another rank failed: its message is given.
    """
    parts = _parts(linear_weight, linear_bias)
    describe = _head(input, parts, scale, softcap, memory_budget, {"k": k})
    shards = _compared(*attempt(describe), mesh_of(linear_weight) if group is None else group)[0]
    source = shards.ready(lambda: source_of(input, *parts(), scale, softcap))
    count = read_k(k, shards.classes)
    found = _linear_draws.topk(source, count, memory_budget, shards)
    check_rows(found, tuple(input.shape[:-1]))
    return topk_of(found, input)


def _drawn(
    source: Source, asked: Asked, memory_budget: int | None, shards: Shards, input: Tensor, num_samples: int | None
) -> Sample:
    """Draw, and return what was drawn in the shape of the rows; all ranks see the same rows without a distribution."""
    shape = tuple(input.shape[:-1])
    found = _linear_draws.draw(source, asked, memory_budget, shards)
    return spread(checked(found, asked, shape), shape, num_samples is not None, input.dtype)


def _parts(linear_weight: Tensor, linear_bias: Tensor | None) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """Return what gives this rank's parts of what may be DTensors."""
    return lambda: (unsharded(linear_weight), None if linear_bias is None else unsharded(linear_bias))


def _head(
    input: Tensor, parts: Callable[[], tuple[Tensor, Tensor | None]], scale: float, softcap: float | None,
    memory_budget: int | None, constants: dict[str, Any],
) -> Callable[[], dict[str, Any]]:  # fmt: skip
    """Return what checks this rank's part of a head and tells what the others must know of it."""

    def describe() -> dict[str, Any]:
        W, b = parts()
        check_head(input, W, b, scale, softcap, memory_budget, alone=False)
        if W.dtype != input.dtype and not torch.is_autocast_enabled(input.device.type):
            raise RuntimeError(f"linear_weight has dtype {W.dtype}, input {input.dtype}: expected the same")
        same = {"scale": scale, "softcap": softcap, "memory_budget": memory_budget, "dtype": str(input.dtype)}
        bias = {"whether linear_bias is given": b is not None}
        return {"classes": len(W), "input": tuple(input.shape)} | same | bias | constants

    return describe


def _meet(
    describe: Callable[[], dict[str, Any]], input: Tensor, group: Group | None, num_samples: int | None,
    generator: torch.Generator | None, options: DrawOptions,
) -> tuple[Shards, Asked]:  # fmt: skip
    """Return the ranks as peers and the request; where no seed is given, the first rank's is everybody's."""
    given = options.get("seed")

    def tell() -> dict[str, Any]:
        about, make = describe(), seed_of(given, generator, input.device)
        asked = _draw_arguments.read(tuple(input.shape[:-1]), num_samples, lambda: 0, options)
        seeds = {"whether seed is given": given is not None, "random seed": make()}
        return about | seeds | _digests(asked)

    shards, told = _compared(*attempt(tell), group)
    seed = told[0]["random seed"]
    return shards, _draw_arguments.read(tuple(input.shape[:-1]), num_samples, lambda: seed, options)


def _compared(
    about: dict[str, Any] | None, error: Exception | None, group: Group | None
) -> tuple[Shards, list[dict[str, Any]]]:
    """Return the ranks as peers and what they told, if all that should be the same is."""
    told = agree(group, about, error)
    for rank, each in enumerate(told):
        for name in (key for key in each if key not in OWN):
            if repr(each[name]) != repr(told[0][name]):
                values = "" if isinstance(each[name], bytes) else f": {told[0][name]} and {each[name]}"
                raise ValueError(f"{name} differs between ranks 0 and {rank} of the group{values}")
    if sum(each["classes"] for each in told) == 0:
        raise ValueError("no rank of the group has a class: expected at least one")
    return Shards(group, [each["classes"] for each in told]), told


def _digests(asked: Asked) -> dict[str, Any]:
    """Return what tells requests apart, by the names of the arguments."""
    changes = asked.changes
    named = asked.rules._asdict() | changes.penalties | changes.ids | changes.places
    digests = {name: _digest(value) for name, value in named.items()}
    rest = {"order": asked.order, "replacement": asked.replacement}
    return digests | {"seed, offset or step": _digest(asked.uniforms)} | rest


def _digest(value: Any) -> bytes:
    """Return what tells arrays apart, one or several, or none."""
    arrays = value if isinstance(value, tuple) else () if value is None else (value,)
    said = hashlib.blake2b(digest_size=8)
    for array in arrays:
        said.update(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return said.digest()
