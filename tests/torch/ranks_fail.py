"""How a vocabulary-sharded last layer fails: on every rank, within seconds, and the group is usable afterwards.

The last rank is the guilty one. Where it does not answer at all, the others raise when the group notices.
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

import lastlayer.torch.distributed as D
from lastlayer import _statistics, _stream
from lastlayer.torch import linear
from lastlayer.torch.stream import TorchProducts

sys.path.insert(0, str(Path(__file__).parent))

from ranks_problem import ROOMY, SOON, STALLED, TIGHT, Problem, columns, leaf, mine, raised, scenario, splits, usable

Kinds = type[BaseException] | tuple[type[BaseException], ...]


def fails(call: Callable[[], Any], kind: Kinds, text: str, culprit: int | None = None) -> None:
    """Assert that a call raises soon: on the culprit what failed there, elsewhere who it was; on all if it is None."""
    begin = time.monotonic()
    error = raised(call)
    seconds = time.monotonic() - begin
    assert seconds < SOON, f"{seconds:.1f} s: {error}"
    said = f"{type(error).__name__}: {error}"
    assert text in said, said
    if culprit is None or dist.get_rank() == culprit:
        assert type(error) in (kind if isinstance(kind, tuple) else (kind,)), said
    else:
        assert type(error) is RuntimeError, said
        assert f"rank {culprit} of the group failed" in said, said
        assert getattr(kind, "__name__", "") in said, said
    usable()


def last() -> int:
    """Return the rank on which things go wrong."""
    return dist.get_world_size() - 1


def guilty() -> bool:
    """Return whether this is it."""
    return dist.get_rank() == last()


def parts() -> tuple[Problem, slice]:
    """Return the problem and this rank's classes."""
    sizes = splits()[0]
    return Problem(sum(sizes)), mine(sizes)


@scenario(2, 3)
def a_bad_target() -> None:
    p, here = parts()
    y = p.y.clone()
    y[2, 3] = 99
    z = p.logits[..., here]
    for call in (
        lambda: D.linear_cross_entropy(p.h, p.W[here], y),
        lambda: D.linear_logit_statistics(p.h, p.W[here], y),
        lambda: D.linear_loss(lambda s: -s.logprob, p.h, p.W[here], y),
        lambda: D.logit_statistics(z, y),
        lambda: D.cross_entropy(z, y),
    ):
        fails(call, IndexError, "99")


@scenario(2, 3)
def bad_arguments_on_one_rank() -> None:
    p, here = parts()
    W, y = p.W[here], p.y
    narrow, wrong = W[:, :7] if guilty() else W, y.float() if guilty() else y
    fails(lambda: D.linear_cross_entropy(p.h, narrow, y), RuntimeError, "got 8 and 7", last())
    fails(lambda: D.linear_cross_entropy(p.h, W.float() if guilty() else W, y), RuntimeError, "torch.float32", last())
    bias = p.b if guilty() else p.b[here]
    fails(lambda: D.linear_cross_entropy(p.h, W, y, linear_bias=bias), RuntimeError, "linear_bias shape", last())
    weight = p.u if guilty() else p.u[here]
    fails(lambda: D.linear_cross_entropy(p.h, W, y, weight=weight), RuntimeError, "weight (one per class)", last())
    row = p.row[:2] if guilty() else p.row
    fails(lambda: D.linear_cross_entropy(p.h, W, y, token_weight=row), ValueError, "token_weight", last())
    fails(lambda: D.linear_cross_entropy(p.h, W, wrong), ValueError, "target differs")
    fails(lambda: D.linear_cross_entropy(p.h, [] if guilty() else W, y), TypeError, "linear_weight", last())


@scenario(2, 3)
def disagreements() -> None:
    p, here = parts()
    W, y, z, bad = p.W[here], p.y, p.logits[..., here], guilty()
    other = (y + (y == 3) if bad else y).clone()
    other[3, 3] = int(bad)
    fails(lambda: D.linear_cross_entropy(p.h, W, other), ValueError, "target differs between ranks 0 and ")
    fails(lambda: D.cross_entropy(z, other), ValueError, "target differs")
    fails(lambda: D.linear_cross_entropy(p.h[:5] if bad else p.h, W, y), ValueError, "input differs")
    kind = torch.float32 if bad else torch.float64
    fails(lambda: D.linear_cross_entropy(p.h.to(kind), W.to(kind), y), ValueError, "dtype differs")
    fails(lambda: D.logit_statistics(z.to(kind), y), ValueError, "dtype differs")
    fails(lambda: D.logit_statistics(z[:5] if bad else z, y[:5] if bad else y), ValueError, "leading shape differs")
    for name, (here_, there) in {
        "reduction": ("mean", "sum"), "ignore_index": (None, -100), "label_smoothing": (0.0, 0.1),
        "z_loss": (0.0, 0.1), "softcap": (None, 3.0), "scale": (1.0, 2.0), "memory_budget": (ROOMY, TIGHT),
        "input_gradient": ("all_reduce", "partial"),
    }.items():  # fmt: skip
        options = {name: there if bad else here_}
        fails(lambda: D.linear_cross_entropy(p.h, W, y, **options), ValueError, f"{name} differs")  # noqa: B023
    for asked in ("entropy", "rank", "argmax"):
        options = {asked: bad}
        fails(lambda: D.linear_logit_statistics(p.h, W, y, **options), ValueError, "asked differs")  # noqa: B023
        fails(lambda: D.logit_statistics(z, y, **options), ValueError, "constants differs")  # noqa: B023


@scenario(2, 3)
def no_classes_at_all() -> None:
    p, _ = parts()
    fails(lambda: D.linear_cross_entropy(p.h, p.W[:0], p.y), ValueError, "no rank of the group has a class")


@scenario(2, 3)
def one_rank_names_an_option_that_is_none() -> None:
    """A wrong name or number on one rank alone is raised on all."""
    p, here = parts()
    reduction, how = ("median", "both") if guilty() else ("mean", "all_reduce")
    fails(lambda: D.linear_cross_entropy(p.h, p.W[here], p.y, reduction=reduction), ValueError, "reduction differs")
    fails(lambda: D.linear_cross_entropy(p.h, p.W[here], p.y, input_gradient=how), ValueError, "'both'", last())


@scenario(2, 3)
def one_rank_names_a_reduction_of_logits_that_is_none() -> None:
    p, here = parts()
    reduction = "median" if guilty() else "mean"
    either = ValueError, RuntimeError  # it may be found when options are checked, or when they are compared
    fails(lambda: D.cross_entropy(p.logits[..., here], p.y, reduction=reduction), either, "median")


@scenario(2, 3)
def one_rank_has_class_weights_and_the_others_have_none() -> None:
    p, here = parts()
    u = p.u[here] if guilty() else None
    fails(lambda: D.linear_cross_entropy(p.h, p.W[here], p.y, weight=u), ValueError, "weight")


@scenario(2, 3)
def one_rank_has_a_row_tensor_of_another_shape() -> None:
    p, here = parts()
    row = p.row[:2] if guilty() else p.row
    fails(
        lambda: D.linear_loss(lambda s, a: -a * s.logprob, p.h, p.W[here], p.y, row), ValueError, "row_tensors", last()
    )


@scenario(2, 3)
def dtensors_of_another_placement() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh, p = init_device_mesh("cpu", (dist.get_world_size(),)), Problem(36)
    for placement in (Shard(1), Replicate()):
        W = distribute_tensor(p.W, mesh, [placement])
        fails(lambda: D.linear_cross_entropy(p.h, W, p.y), ValueError, "expected Shard(0)")  # noqa: B023


@scenario(2, 3)
def one_rank_has_a_dtensor_of_another_placement() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh, (p, here) = init_device_mesh("cpu", (dist.get_world_size(),)), parts()
    placement = Replicate() if guilty() else Shard(0)
    W = DTensor.from_local(p.W[here], mesh, [placement], run_check=False)
    fails(lambda: D.linear_cross_entropy(p.h, W, p.y), ValueError, "expected Shard(0)", last())


@scenario(2, 3)
def the_loss_raises_amid_the_chunks() -> None:
    p, here = parts()
    number = torch.arange(p.y.numel()).reshape(p.y.shape)

    def loss_fn(s: Any, i: Tensor) -> Tensor:
        if guilty() and int(i[0]) > 0:
            raise KeyError("boom")
        return -s.logprob

    def call() -> Tensor:
        return D.linear_loss(loss_fn, leaf(p.h), leaf(p.W[here]), p.y, number, memory_budget=TIGHT)

    fails(call, KeyError, "boom", last())


@scenario(2, 3)
def the_loss_raises_in_the_backward_pass() -> None:
    p, here = parts()
    armed = False

    def loss_fn(s: Any) -> Tensor:
        if armed and guilty():
            raise ZeroDivisionError("late")
        return -s.logprob

    loss = D.linear_loss(loss_fn, leaf(p.h), leaf(p.W[here]), p.y, memory_budget=TIGHT)
    loss.backward(retain_graph=True)
    armed = True
    fails(loss.backward, ZeroDivisionError, "late", last())


@contextmanager
def no_memory(owner: Any, name: str, after: int = 0) -> Iterator[None]:
    """On the guilty rank, let a function fail for want of memory, after some calls."""
    real, calls = getattr(owner, name), iter(range(1 << 30))

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls) >= after:
            raise MemoryError(f"in {name}")
        return real(*arguments, **options)

    if guilty():
        with mock.patch.object(owner, name, call):
            yield
    else:
        yield


def without(owner: Any, name: str, call: Callable[[], Any], after: int = 0) -> None:
    """Assert that all ranks raise where a function fails on the guilty one for want of memory."""

    def limited() -> None:
        with no_memory(owner, name, after):
            call()

    fails(limited, MemoryError, f"in {name}", last())


def head() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return a call of each schedule."""
    p, here = parts()
    h, W = leaf(p.h), leaf(p.W[here])

    def fused() -> Tensor:
        return D.linear_cross_entropy(h, W, p.y, memory_budget=TIGHT)

    def recomputed() -> Tensor:
        return D.linear_logit_statistics(h, W, p.y, rank=True, memory_budget=TIGHT).logprob.sum()

    return fused, recomputed


@scenario(2, 3)
def no_memory_forwards() -> None:
    for call in head():
        without(TorchProducts, "empty", call)
        without(_stream.Stream, "hidden", call)
        without(_stream.Stream, "_fold", call, after=1)  # in the second chunk
    if dist.get_world_size() == 2:  # with three, the last rank has no classes, and so no tiles
        for call in head():
            without(_stream, "fold_tile", call)
        without(_stream, "rank", head()[1])


@scenario(2, 3)
def no_memory_when_the_fused_schedule_forms_its_gradients() -> None:
    without(_stream.Stream, "_push", head()[0])
    without(_stream.Stream, "_push", head()[0], after=1)  # in the last chunk


@scenario(2, 3)
def no_memory_in_the_backward_pass() -> None:
    without(TorchProducts, "empty", head()[1]().backward)
    without(_stream.Stream, "_push", head()[1]().backward)
    without(_stream.Stream, "_push", head()[1]().backward, after=1)


@scenario(2)
def no_memory_for_what_logits_need() -> None:
    p, here = parts()
    z = p.logits[..., here]
    without(linear, "place", lambda: D.linear_cross_entropy(p.h, p.W[here], p.y, weight=p.u[here]))
    without(_statistics, "fold_logits", lambda: D.logit_statistics(z, p.y))
    without(_statistics, "rank", lambda: D.logit_statistics(z, p.y, rank=True))


@scenario(2, 3)
def class_weights_that_are_all_0() -> None:
    p, here = parts()
    u = 0 * p.u[here]
    fails(
        lambda: D.linear_logit_statistics(p.h, p.W[here], p.y, class_weights=u), ValueError, "class_weights are all 0"
    )


@scenario(2, 3)
def several_targets_per_row_have_no_cross_entropy() -> None:
    p, here = parts()
    fails(lambda: D.cross_entropy(p.logits[..., here], p.many), ValueError, "target has shape")


@scenario(4)
def a_failure_in_one_tensor_parallel_group_reaches_the_other() -> None:
    tensor, data = columns(2)
    p = Problem(37)
    here = slice(0, 20) if dist.get_rank(tensor) == 0 else slice(20, 37)
    y = p.y.clone()
    if dist.get_rank() >= 2:  # both ranks of the second group
        y[2, 3] = 99
    begin = time.monotonic()
    error = raised(lambda: D.linear_cross_entropy(p.h, p.W[here], y, group=tensor, data_group=data))
    assert time.monotonic() - begin < SOON
    assert type(error) is (RuntimeError if dist.get_rank() < 2 else IndexError)
    assert "99" in str(error)


@scenario(4)
def a_disagreement_in_one_tensor_parallel_group_reaches_the_other() -> None:
    """What is found when the ranks of a group compare what they were given concerns the data-parallel ranks too."""
    tensor, data = columns(2)
    p = Problem(37)
    here = slice(0, 20) if dist.get_rank(tensor) == 0 else slice(20, 37)
    y = p.y.clone()
    if dist.get_rank() == 3:
        y[2, 3] = (y[2, 3] + 1) % 37
    begin = time.monotonic()
    error = raised(lambda: D.linear_cross_entropy(p.h, p.W[here], y, group=tensor, data_group=data))
    seconds = time.monotonic() - begin
    assert seconds < SOON, f"{seconds:.1f} s: {error}"
    assert "target differs" in str(error)


# A rank that does not answer: each of these ends the group, so they have three ranks of their own


def a_stalled_rank() -> dict[str, Any]:
    """Rank 2 never comes: the others raise when the timeout of their group has passed."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=STALLED))
    p, here = parts()
    if guilty():
        return {}
    begin = time.monotonic()
    error = raised(lambda: D.linear_cross_entropy(leaf(p.h), leaf(p.W[here]), p.y, group=group))
    return {"error": str(error), "seconds": time.monotonic() - begin}


def a_killed_rank() -> dict[str, Any]:
    """Rank 2 is killed in the midst of a call: the others raise."""
    p, here = parts()
    number = torch.arange(p.y.numel()).reshape(p.y.shape)

    def loss_fn(s: Any, i: Tensor) -> Tensor:
        if guilty() and int(i[0]) > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return -s.logprob

    begin = time.monotonic()
    error = raised(
        lambda: D.linear_loss(loss_fn, leaf(p.h), leaf(p.W[here]), p.y, number, memory_budget=TIGHT).backward()
    )
    return {"error": str(error), "seconds": time.monotonic() - begin}


ENDINGS: dict[str, Callable[[], dict[str, Any]]] = {"stalled": a_stalled_rank, "killed": a_killed_rank}
