"""Vocabulary shards: ranks of a process group as ``Peers`` of the stream, and who gets which gradient of the input.

The states of the ranks' classes are all-gathered and merged in the order of the ranks, so that all hold the same bits.
A rank on which something fails goes on taking part, with nothing to say, until all are told: nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lastlayer._algebra import State
from lastlayer._statistics import Folded, concatenate

Group = dist.ProcessGroup
T = TypeVar("T")


def agree(group: Group | None, value: Any, error: BaseException | None) -> list[Any]:
    """Return the values of all ranks; raise, on every rank, what one of them failed with."""
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    told: list[Any] = [None] * size
    message = None if error is None else f"{type(error).__name__}: {error}"
    dist.all_gather_object(told, (None if error else value, message), group=group)
    if error is not None:
        raise error
    for other, (_, failure) in enumerate(told):
        if failure is not None:
            raise RuntimeError(f"rank {other} of the group failed, so rank {rank} stops too: {failure}")
    return [value for value, _ in told]


def attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Return what the work made, or what it failed with."""
    try:
        return work(), None
    except Exception as error:
        return None, error


class Shards:
    """The ranks of a group, each with the classes that follow those of the rank before.

    Args:
        group: the process group; None is the default one.
        classes: how many classes each rank holds, in order.
        others: a second group (data-parallel) that learns of failures while a call is prepared.
    """

    alone = False

    def __init__(self, group: Group | None, classes: list[int], others: Group | None = None) -> None:
        self.group, self.others, self.rank, self.size = group, others, dist.get_rank(group), len(classes)
        self.first_class, self.classes, self.largest = sum(classes[: self.rank]), sum(classes), max(classes)
        self.error: Exception | None = None

    def ready(self, work: Callable[[], T]) -> T:
        """Return what the work made, once it has succeeded on every rank."""
        made, error = attempt(work)
        _, failure = attempt(lambda: agree(self.group, None, error))
        if self.others is not None:
            agree(self.others, None, failure)
        if failure is not None:
            raise failure
        return made  # type: ignore[return-value]

    def attempt(self, work: Callable[[], None]) -> None:
        """Do the work, unless something failed before; what fails is kept for ``close``."""
        if self.error is None:
            _, error = attempt(work)
            self.error = self.error or error  # what failed in an attempt within this one was kept

    def close(self) -> None:
        """Raise, on every rank, what one of them failed with."""
        error, self.error = self.error, None
        agree(self.group, None, error)

    def join(self, work: Callable[[], Folded], like: Folded) -> Folded:
        """Merge the folded classes of all ranks: one all-gather of the fields of ``like``."""
        folded = like
        if self.error is None:
            made, self.error = attempt(work)
            folded = like if made is None else made
        sent = pack(folded, like)
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(parts, sent, group=self.group)
        gathered = torch.stack(parts)
        total = unpack(gathered, like)
        while len(total.state.max) > 1:  # neighbours in pairs: log2 of the number of ranks
            total = pairs(total)
        winner = gathered[:, 0].argmax(0)
        joined: Folded = every(total, lambda field: field[0])
        return joined._replace(first=winner == self.rank)

    def add(self, work: Callable[[], Tensor], like: Tensor) -> Tensor:
        """Return the sum over the ranks."""
        total = like
        if self.error is None:
            made, self.error = attempt(work)
            total = like if made is None else made
        total = total.clone()
        dist.all_reduce(total, group=self.group)
        return total


def fields(folded: Folded) -> list[Tensor | None]:
    """Return what may be sent of folded classes, the maximum first."""
    others = (None, None) if folded.others is None else folded.others[:2]
    return [*folded.state, *others, folded.argmax, folded.chosen]


def pack(folded: Folded, like: Folded) -> Tensor:
    """Return the fields that ``like`` has as one tensor, a row each, float64."""
    needed = [field for field, wanted in zip(fields(folded), fields(like), strict=True) if wanted is not None]
    columns = [field[:, None] if field.dim() == 1 else field for field in needed if field is not None]
    return torch.cat([column.double() for column in columns], 1).T.contiguous()


def unpack(sent: Tensor, like: Folded) -> Folded:
    """Undo ``pack``, for all ranks: the fields as (R, N), or (R, N, K); those of states that were not sent are 0."""
    at = 0
    found: list[Tensor | None] = []
    for field in fields(like):
        if field is None:
            found.append(None)
            continue
        taken = 1 if field.dim() == 1 else field.shape[1]
        part = sent[:, at : at + taken]
        found.append(part[:, 0] if field.dim() == 1 else part.transpose(1, 2).contiguous())
        at += taken
    zero = torch.zeros_like(sent[:, 0])
    state = State(*(zero if field is None else field for field in found[:5]))
    others = None if like.others is None else State(found[5], found[6], zero, zero, zero)
    return Folded(state, found[8], others, None if found[7] is None else found[7].long())


def every(folded: Any, work: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to each field."""
    if folded is None or isinstance(folded, Tensor):
        return None if folded is None else work(folded)
    return type(folded)(*(every(field, work) for field in folded))


def pairs(folded: Folded) -> Folded:
    """Merge each rank with its neighbour; the last of an odd number stays as it is."""
    even = len(folded.state.max) // 2 * 2
    merged = every(folded, lambda field: field[0:even:2]).merge(every(folded, lambda field: field[1:even:2]))
    return concatenate([merged, every(folded, lambda field: field[even:])])  # type: ignore[no-any-return]


def unsharded(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor that is sharded along dimension 0, and any other tensor as it is."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(tensor, DTensor):
        return tensor
    if tensor.device_mesh.ndim != 1 or tuple(tensor.placements) != (Shard(0),):
        raise ValueError(
            f"a DTensor with placements {tuple(tensor.placements)} on a mesh of {tensor.device_mesh.ndim} dimensions: "
            "expected Shard(0), the vocabulary, on a mesh of one; redistribute it, or pass this rank's part"
        )
    return tensor.to_local(grad_placements=tensor.placements)


def mesh_of(tensor: Tensor) -> Group | None:
    """Return the group of a DTensor's mesh, if it has one dimension."""
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor) or tensor.device_mesh.ndim != 1:
        return None
    return tensor.device_mesh.get_group()


def float_of(tensor: Tensor) -> Tensor:
    """Return 16-bit values as float32: sums over ranks are rounded once."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class Replicated(torch.autograd.Function):
    """The same input on all ranks; each gets the sum of the gradients (all-reduce)."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, group: Group | None) -> Tensor:
        ctx.group, ctx.dtype = group, input.dtype
        return float_of(input).view_as(input)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total.to(ctx.dtype), None


class Gathered(torch.autograd.Function):
    """Each rank's part of the input along dimension 0, gathered; each gets its part of the gradients' sum."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, group: Group | None, sizes: list[int]) -> Tensor:
        ctx.group, ctx.dtype, ctx.sizes, ctx.rank = group, input.dtype, sizes, dist.get_rank(group)
        padded = input.new_zeros((max(sizes), *input.shape[1:]))
        padded[: len(input)] = input
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return float_of(torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        widest = max(ctx.sizes)
        parts = [part.contiguous() for part in torch.split(gradient, ctx.sizes)]
        padded = [torch.cat([part, part.new_zeros((widest - len(part), *part.shape[1:]))]) for part in parts]
        mine = torch.empty_like(padded[0])
        dist.reduce_scatter(mine, padded, group=ctx.group)
        return mine[: ctx.sizes[ctx.rank]].to(ctx.dtype), None, None
