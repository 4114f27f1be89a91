"""Accumulated gradients equal those of the one big batch, over pieces and over ranks.

Run as a script, this file is one rank of the test with two processes.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lastlayer.torch as F
from lastlayer.token_mean import TokenMean
from lastlayer.torch.accumulation import accumulation, count_tokens, merge_over_ranks

EPS = 2.0**-52
V, D, T = 13, 5, 16
COUNTING = ((16, 16, 1), (3,), (), (0, 2))  # tokens that count in each row of T tokens of each piece

Data = tuple[list[Tensor], list[Tensor], Tensor]


def problem() -> Data:
    """Hidden states (B, T, D) and targets (B, T) of the pieces, and a head (V, D): easier the less a piece counts."""
    random = torch.Generator().manual_seed(2026)
    hidden, targets = [], []
    for counting in COUNTING:
        y = torch.randint(V, (len(counting), T), generator=random)
        for row, n in enumerate(counting):
            y[row, n:] = -100
        hidden.append(torch.randn(*y.shape, D, generator=random, dtype=torch.float64) * (1 + sum(counting)) / 8)
        targets.append(y)
    return hidden, targets, torch.randn(V, D, generator=random, dtype=torch.float64)


def dense(h: Tensor, weight: Tensor, y: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy((h @ weight.T).reshape(-1, V), y.reshape(-1), **options)


def linear(h: Tensor, weight: Tensor, y: Tensor, **options: Any) -> Tensor:
    return F.linear_cross_entropy(h, weight, y, **options)


LOSSES = {"cross_entropy": dense, "linear_cross_entropy": linear}


def big_batch(loss: Callable[..., Tensor], data: Data) -> tuple[Tensor, Tensor]:
    """Return the mean loss over all tokens, and its gradient by the head."""
    hidden, targets, weight = data
    weight = weight.clone().requires_grad_()
    value = loss(torch.cat(hidden), weight, torch.cat(targets))
    return value.detach(), torch.autograd.grad(value, weight)[0]


def budget(gradient: Tensor) -> float:
    """Sums of as many terms in another order, each rounded a few times."""
    return float(4 * sum(map(sum, COUNTING)) * EPS * gradient.abs().max())


def assert_equal_gradients(got: Tensor, expected: Tensor) -> None:
    assert budget(expected) < 1e-12
    assert float((got - expected).abs().max()) <= budget(expected)


# The law


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("how", ["backward", "scale", "numbers"])
def test_the_gradient_of_unequal_pieces_is_that_of_the_big_batch(loss, how):
    hidden, targets, weight = data = problem()
    value, expected = big_batch(loss, data)
    weight.requires_grad_()
    with accumulation([sum(n) for n in COUNTING] if how == "numbers" else targets) as step:
        for h, y in zip(hidden, targets, strict=True):
            loss_sum = loss(h, weight, y, reduction="sum")
            if how == "scale":
                (step.scale(loss_sum) * 1024).backward()  # as GradScaler does
            else:
                step.backward(loss_sum)
    assert (step.count, step.factor) == (38, 1)
    assert_equal_gradients(weight.grad / (1024 if how == "scale" else 1), expected)
    assert step.loss.count == 38
    assert abs(step.loss.mean - value) <= 38 * EPS * value


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_mean_of_means_is_another_gradient(loss):
    hidden, targets, weight = data = problem()
    value, expected = big_batch(loss, data)
    weight.requires_grad_()
    live = [i for i, y in enumerate(targets) if (y != -100).any()]
    means = [loss(hidden[i], weight, targets[i]) / len(live) for i in live]
    sum(means).backward()
    assert abs(sum(means) - value) > 0.1 * value
    assert (weight.grad - expected).abs().max() > 0.1 * expected.abs().max()


def test_weights_count_by_their_sum():
    hidden, targets, weight = problem()
    token_weight = [torch.rand(y.shape, dtype=torch.float64) for y in targets]
    counts = [float(w[y != -100].sum()) for w, y in zip(token_weight, targets, strict=True)]
    one = weight.clone().requires_grad_()
    value = linear(torch.cat(hidden), one, torch.cat(targets), token_weight=torch.cat(token_weight))
    weight.requires_grad_()
    with accumulation(counts) as step:
        for h, y, w in zip(hidden, targets, token_weight, strict=True):
            step.backward(linear(h, weight, y, token_weight=w, reduction="sum"))
    assert_equal_gradients(weight.grad, torch.autograd.grad(value, one)[0])
    assert abs(step.loss.mean - value.item()) <= 2 * 38 * EPS * value


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_step_of_nothing_but_padding_has_gradient_0(loss):
    hidden, targets, weight = problem()
    weight.requires_grad_()
    with accumulation([torch.full_like(y, -100) for y in targets]) as step:
        for h, y in zip(hidden, targets, strict=True):
            step.backward(loss(h, weight, torch.full_like(y, -100), reduction="sum"))
    assert step.count == 0
    assert step.loss == TokenMean()
    assert (weight.grad == 0).all()


def test_another_ignore_index():
    _, targets, _ = problem()
    targets = [torch.where(y == -100, 7, y) for y in targets]
    count = sum(int((y != 7).sum()) for y in targets)
    assert count_tokens(targets, ignore_index=7) == count
    assert count_tokens(torch.cat(targets), ignore_index=7) == count
    assert count_tokens(targets) == torch.cat(targets).numel()
    loss = torch.ones(1, requires_grad=True)
    with accumulation([torch.cat(targets)], ignore_index=7) as step:
        step.backward(loss)
    assert loss.grad == 1 / count


def test_the_loss_is_that_of_the_pieces_so_far():
    with accumulation([2, 3]) as step:
        assert step.loss == TokenMean()
        total = torch.tensor(3.0, requires_grad=True).clone()
        step.backward(total)
        total.detach().zero_()  # as the next replay of a CUDA graph would
        assert step.loss == TokenMean(3.0, 2)
        step.backward(torch.tensor(1.5, requires_grad=True))
        assert step.loss == TokenMean(4.5, 5)
    assert merge_over_ranks(step.loss) == step.loss


def test_counts_alone():
    assert count_tokens(torch.tensor([[1, -100], [2, 3]])) == 3
    assert count_tokens([]) == 0
    assert count_tokens(torch.tensor([156, 0], dtype=torch.uint8)) == 2  # 156 is -100 modulo 256
    assert type(count_tokens(torch.tensor([1]))) is int


# The number of pieces


def run(announced: int, given: int) -> Iterator[None]:
    loss = torch.ones((), requires_grad=True)
    with accumulation([1] * announced) as step:
        for _ in range(given):
            step.backward(loss)


@pytest.mark.parametrize(
    ("announced", "given", "match"),
    [
        (3, 2, "2 pieces were scaled, but 3 were announced"),
        (1, 0, "0 pieces were scaled, but 1 were announced"),
        (2, 3, "piece 3 was scaled, but 2 were announced"),
        (0, 1, "piece 1 was scaled, but 0 were announced"),
    ],
)
def test_another_number_of_pieces_raises(announced, given, match):
    with pytest.raises(RuntimeError, match=match):
        run(announced, given)


def test_the_announced_number_of_pieces_does_not():
    run(0, 0)
    run(2, 2)


def test_an_error_inside_is_not_masked():
    with pytest.raises(ZeroDivisionError), accumulation([1, 1]):
        raise ZeroDivisionError


# Malformed calls


def enter(*args: Any, **kwargs: Any) -> None:
    with accumulation(*args, **kwargs):
        pass


def scale(loss_sum: Any) -> None:
    with accumulation([1]) as step:
        step.scale(loss_sum)


Y = torch.tensor([1, -100])
MALFORMED = [
    (enter, (Y,), {}, TypeError, "targets must hold one tensor or number per piece, not be a Tensor"),
    (enter, ([Y, Y.double()],), {}, TypeError, r"targets\[1\] has dtype torch.float64, expected integers"),
    (enter, ([Y != -100],), {}, TypeError, r"targets\[0\] has dtype torch.bool"),
    (enter, ([Y, Y[0]],), {}, ValueError, r"targets\[1\] is a scalar tensor"),
    (enter, ([1, -1],), {}, ValueError, r"targets\[1\] = -1 must be a finite number of tokens, 0 or above"),
    (enter, ([float("nan")],), {}, ValueError, r"targets\[0\] = nan"),
    (enter, ([float("inf")],), {}, ValueError, r"targets\[0\] = inf"),
    (enter, (["1"],), {}, TypeError, r"targets\[0\] = '1' must be a number"),
    (enter, ([Y],), {"ignore_index": 0.5}, TypeError, "ignore_index = 0.5"),
    (enter, ([Y],), {"gradient_reduction": "none"}, ValueError, "gradient_reduction = 'none' is not one of 'mean', 's"),
    (enter, ([Y],), {"group": True}, TypeError, "group = True must be a torch.distributed.ProcessGroup"),
    (scale, (1.0,), {}, TypeError, "loss_sum must be a Tensor, not float"),
    (scale, (torch.ones(3),), {}, ValueError, r"loss_sum has shape \(3,\), expected a scalar: reduction='sum'"),
    (count_tokens, ([Y, [1]],), {}, TypeError, r"target\[1\] must be a Tensor, not list"),
    (count_tokens, (Y.float(),), {}, TypeError, "target has dtype torch.float32, expected integers"),
    (count_tokens, (Y,), {"ignore_index": None}, TypeError, "ignore_index = None"),
    (count_tokens, (Y,), {"group": "world"}, TypeError, "group = 'world'"),
    (merge_over_ranks, (1.0,), {}, TypeError, "mean must be a TokenMean, not float"),
    (merge_over_ranks, (TokenMean(),), {"group": 0}, TypeError, "group = 0"),
]


@pytest.mark.parametrize(("f", "args", "kwargs", "error", "match"), MALFORMED)
def test_malformed_calls_raise(f, args, kwargs, error, match):
    with pytest.raises(error, match=match):
        f(*args, **kwargs)


def test_a_refused_piece_does_not_count():
    with accumulation([1]) as step:
        with pytest.raises(ValueError, match="loss_sum"):
            step.scale(torch.ones(2))
        step.scale(torch.ones(1))
    assert step.loss == TokenMean(1.0, 1)


# Two ranks


class Head(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return F.linear_cross_entropy(h, self.weight, y, reduction="sum")


def rank_of_two(rank: int, folder: Path) -> None:
    """Rank 0 has the first piece, rank 1 all others; what it finds is written as JSON."""
    import torch.distributed as dist

    soon = datetime.timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=soon)
    world, alone = dist.group.WORLD, dist.new_group([0], timeout=soon)
    hidden, targets, weight = problem()
    mine = slice(0, 1) if rank == 0 else slice(1, None)
    found: dict[str, Any] = {"count": count_tokens(targets[mine], group=world)}

    averaged = nn.parallel.DistributedDataParallel(Head(weight))
    with accumulation(targets[mine], group=world) as step, averaged.no_sync():
        for h, y in zip(hidden[mine], targets[mine], strict=True):
            step.backward(averaged(h, y))
    gradient = averaged.module.weight.grad
    dist.all_reduce(gradient)
    found["averaged"] = (gradient / 2).tolist()

    averaged.zero_grad()  # the same, averaged by DistributedDataParallel itself, of one piece per rank
    h, y = torch.cat([h.reshape(-1, D) for h in hidden[mine]]), torch.cat([y.reshape(-1) for y in targets[mine]])
    with accumulation([y], group=world) as step:
        step.backward(averaged(h, y))
    found["ddp"] = averaged.module.weight.grad.tolist()
    found["local"], found["merged"] = step.loss.to_dict(), merge_over_ranks(step.loss, world).to_dict()

    summed = Head(weight)
    with accumulation(targets[mine], group=world, gradient_reduction="sum") as step:
        for h, y in zip(hidden[mine], targets[mine], strict=True):
            step.backward(summed(h, y))
    gradient = summed.weight.grad
    dist.all_reduce(gradient)
    found["summed"] = gradient.tolist()

    if rank == 0:
        found["alone"] = count_tokens(targets[mine], group=alone)
    else:
        with pytest.raises(TypeError, match="of which this rank is a member"):
            count_tokens(targets[mine], group=alone)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch was built without gloo")
def test_two_ranks_equal_the_big_batch(tmp_path):
    command = [sys.executable, __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)], **options) for rank in range(2)]
    try:
        output = [rank.communicate(timeout=60)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(output)
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    value, expected = big_batch(linear, problem())
    assert zero["count"] == one["count"] == 38
    assert zero["alone"] == sum(COUNTING[0])
    for name in ("averaged", "ddp", "summed"):
        assert_equal_gradients(torch.tensor(zero[name], dtype=torch.float64), expected)
        assert zero[name] == one[name]
    assert zero["merged"] == one["merged"]
    merged, parts = TokenMean.from_dict(zero["merged"]), [TokenMean.from_dict(rank["local"]) for rank in (zero, one)]
    assert [part.count for part in parts] == [33, 5]
    assert merged == sum(parts)
    assert abs(merged.mean - value) <= 38 * EPS * value


if __name__ == "__main__":
    rank_of_two(int(sys.argv[1]), Path(sys.argv[2]))
