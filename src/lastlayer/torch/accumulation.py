"""Gradient accumulation whose gradient is that of the one big batch, whatever the padding of its pieces.

Law: the gradient of the mean over all tokens of all pieces and ranks is the sum of the pieces' gradients, each of a
*sum* of losses divided by *all* tokens. A mean per piece, and then a mean of these, weighs a token by the padding
around it. Sibling: lastlayer.token_mean, the same law for the loss that is reported.

torch.distributed is touched only where a group is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from lastlayer._validate import read_integer, read_number
from lastlayer.token_mean import TokenMean

__all__ = ["Accumulation", "accumulation", "count_tokens", "merge_over_ranks"]

INTEGERS = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))


class Accumulation:
    """One optimizer step, made by ``accumulation``: it scales the loss sums of the pieces, in their order.

    Attributes:
        count: tokens (or weight) of all pieces on all ranks, by which every loss sum is divided.
        factor: by what it is multiplied besides: the number of ranks if their gradients get averaged, else 1.
    """

    def __init__(self, counts: list[float], count: float, factor: int) -> None:
        self.count, self.factor = count, factor
        self._counts = counts
        self._sums: list[Tensor] = []

    def scale(self, loss_sum: Tensor) -> Tensor:
        """Return loss_sum * factor / count, on which to call ``backward``; it counts as the next piece.

        Args:
            loss_sum: the sum of the piece's losses over the tokens that count, a tensor of one element; float32 or
                float64, for a float16 one overflows soon.

        Raises:
            RuntimeError: more pieces than were announced.
            TypeError, ValueError: loss_sum is no tensor, or has not one element.
        """
        if not isinstance(loss_sum, Tensor):
            raise TypeError(f"loss_sum must be a Tensor, not {type(loss_sum).__name__}")
        if loss_sum.numel() != 1:
            raise ValueError(f"loss_sum has shape {tuple(loss_sum.shape)}, expected a scalar: reduction='sum'")
        if len(self._sums) == len(self._counts):
            raise RuntimeError(f"piece {len(self._sums) + 1} was scaled, but {len(self._counts)} were announced")
        # A clone, read only when asked for: no wait for the device here, and a CUDA graph may overwrite the original.
        self._sums.append(loss_sum.detach().clone())
        return loss_sum / (self.count / self.factor) if self.count else loss_sum * 0.0

    def backward(self, loss_sum: Tensor) -> None:
        """Call ``scale(loss_sum).backward()``."""
        self.scale(loss_sum).backward()  # type: ignore[no-untyped-call]

    @property
    def loss(self) -> TokenMean:
        """The TokenMean of this rank's pieces so far; ``merge_over_ranks`` makes it that of all ranks."""
        return sum(map(TokenMean, self._sums, self._counts), TokenMean())

    def _finish(self) -> None:
        if len(self._sums) != len(self._counts):
            raise RuntimeError(f"{len(self._sums)} pieces were scaled, but {len(self._counts)} were announced")


@contextmanager
def accumulation(
    targets: Iterable[Tensor | float],
    *,
    ignore_index: int = -100,
    group: Any = None,
    gradient_reduction: Literal["mean", "sum"] = "mean",
) -> Iterator[Accumulation]:
    """Accumulate over pieces of unequal size the gradient of the mean loss over all their tokens.

    Args:
        targets: for each piece the targets as its loss takes them (a causal model's after the shift by one), or the
            number of tokens that count; the sum of their weights where losses are weighted.
        ignore_index: targets that do not count.
        group: the ``torch.distributed`` process group of the data-parallel ranks (``torch.distributed.group.WORLD``
            is the default one), of which every member must enter the context; None: this process alone. With NCCL,
            counts travel by the current CUDA device, so ``torch.cuda.set_device`` comes first.
        gradient_reduction: what happens to the gradients over the ranks: "mean", as DistributedDataParallel and FSDP
            do, which is then made up for by a factor of the number of ranks, or "sum". Nothing is reduced here.

    Yields:
        An ``Accumulation``: call ``backward(loss_sum)`` once per piece, or ``scale(loss_sum)`` and see to the backward
        pass yourself, as in ``scaler.scale(step.scale(loss_sum)).backward()``.

    Raises:
        RuntimeError: on leaving, unless an error is under way: another number of pieces than announced.
        ValueError, TypeError: a count below 0 or not finite, targets that hold no integers, an unknown reduction,
            a group of which this rank is no member.

    Note:
        Equal to the big batch up to the rounding of sums. Where no token counts, the gradient is 0. Do not divide once
        more: let a trainer's own number of accumulation steps be 1.

    Example:
        >>> import lastlayer.torch as F
        >>> z = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.5]], requires_grad=True)
        >>> pieces = [slice(0, 2), slice(2, 3)]
        >>> y = torch.tensor([0, -100, 1])
        >>> with accumulation([y[rows] for rows in pieces]) as step:
        ...     for rows in pieces:
        ...         step.backward(F.cross_entropy(z[rows], y[rows], reduction="sum"))
        >>> torch.equal(z.grad, torch.autograd.grad(F.cross_entropy(z, y), z)[0])
        True
        >>> step.loss
        TokenMean(mean=0.410038, perplexity=1.50687, count=2)
    """
    if gradient_reduction not in ("mean", "sum"):
        raise ValueError(f"gradient_reduction = {gradient_reduction!r} is not one of 'mean', 'sum'")
    if isinstance(targets, Tensor):
        raise TypeError("targets must hold one tensor or number per piece, not be a Tensor: [target] for one piece")
    ignored = read_integer("ignore_index", ignore_index)
    counts = [_count(f"targets[{i}]", piece, ignored) for i, piece in enumerate(targets)]
    everywhere = _gather(sum(counts), group)
    step = Accumulation(counts, sum(everywhere), len(everywhere) if gradient_reduction == "mean" else 1)
    yield step
    step._finish()


def count_tokens(target: Tensor | Iterable[Tensor], *, ignore_index: int = -100, group: Any = None) -> int:
    """Return how many targets are not ignore_index, over all tensors given and all ranks of the group.

    Args:
        target: integers of any shape, or several such tensors.
        ignore_index: targets that do not count.
        group: a ``torch.distributed`` process group of which every member makes this call; None: this process alone.

    Raises:
        TypeError: a target that holds no integers; a group of which this rank is no member.

    Example:
        >>> count_tokens([torch.tensor([[3, 1], [4, -100]]), torch.tensor([-100, 5])])
        4
    """
    ignored = read_integer("ignore_index", ignore_index)
    if isinstance(target, Tensor):
        local = _tokens("target", target, ignored)
    else:
        pieces = _pieces("target", target)
        local = sum(_tokens(f"target[{i}]", piece, ignored) for i, piece in enumerate(pieces))
    return sum(_gather(local, group))


def merge_over_ranks(mean: TokenMean, group: Any = None) -> TokenMean:
    """Return the merged TokenMean of all ranks of the group, on every rank the same to the bit.

    Every member of the group must make this call; without a group the argument comes back.

    Example:
        >>> merge_over_ranks(TokenMean(12.0, 6))
        TokenMean(mean=2, perplexity=7.38906, count=6)
    """
    if not isinstance(mean, TokenMean):
        raise TypeError(f"mean must be a TokenMean, not {type(mean).__name__}")
    return sum(map(TokenMean.from_dict, _gather(mean.to_dict(), group)), TokenMean())


def _pieces(name: str, value: Any) -> list[Any]:
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{name} is {type(value).__name__}, expected a Tensor, or several") from None


def _tokens(name: str, target: Any, ignore_index: int) -> int:
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} must be a Tensor, not {type(target).__name__}")
    if target.dtype not in INTEGERS:
        raise TypeError(f"{name} has dtype {target.dtype}, expected integers")
    return int((target.long() != ignore_index).sum())  # or torch wraps -100 to the 156 of a uint8


def _count(name: str, piece: Any, ignore_index: int) -> float:
    """Return the tokens of a piece, given by its targets or by their number, which a tensor never is."""
    if isinstance(piece, Tensor):
        if piece.dim() == 0:
            raise ValueError(f"{name} is a scalar tensor, expected targets (N,) or their number as a Python number")
        return _tokens(name, piece, ignore_index)
    if not 0 <= read_number(name, piece) < math.inf:
        raise ValueError(f"{name} = {piece} must be a finite number of tokens, 0 or above")
    return read_number(name, piece)


def _gather(value: Any, group: Any) -> list[Any]:
    """Return the value of every rank, in their order; the group's backend decides on which device they travel."""
    if group is None:
        return [value]
    import torch.distributed as dist

    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group = {group!r} must be a torch.distributed.ProcessGroup of which this rank is a member")
    values = [None] * group.size()
    dist.all_gather_object(values, value, group=group)
    return values
