"""What the ranks of a vocabulary-sharded last layer compute: what one process does, and the same bits on all of them.

Each rank computes the whole problem alone with lastlayer.torch, and compares its part. Sibling: ranks_fail.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import lastlayer.torch as F
import lastlayer.torch.distributed as D
from lastlayer import _stream

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))  # laws.py

from laws import assert_within
from ranks_problem import (
    FEATURES,
    LEADING,
    ROOMY,
    TIGHT,
    Problem,
    columns,
    cross_entropies,
    equal,
    leaf,
    mine,
    same_bits,
    scenario,
    sent,
    splits,
)

NAMES = ("loss", "gradient of input", "gradient of weight", "gradient of bias")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.01},
    "softcap and scale": {"softcap": 3.0, "scale": 0.7},
    "class weights": {"weighted": True},
    "everything": {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0, "scale": 0.7, "weighted": True},
}


@scenario(2, 3)
def cross_entropy_of_hidden_states() -> None:
    for sizes in splits():
        p = Problem(sum(sizes))
        tiles = _stream.plan(p.y.numel(), max(sizes), FEATURES, TIGHT, 8, converts=False, scratch=False)
        assert tiles.rows < p.y.numel()
        assert tiles.classes < max(sizes)
        for name, options in OPTIONS.items():
            for reduction in ("mean", "sum", "none"):
                for budget in (ROOMY, TIGHT):
                    weights = {"token_weight": p.row} if reduction != "sum" else {}
                    expected, got = cross_entropies(
                        p, sizes, p.y, reduction, memory_budget=budget, **weights, **options
                    )
                    for what, a, b in zip(NAMES, expected, got, strict=True):
                        equal(b, a, f"{what}, {name}, {reduction}, {budget}, {sizes}")


@scenario(2, 3)
def class_probabilities() -> None:
    for sizes in splits():
        p = Problem(sum(sizes))
        for name, options in OPTIONS.items():
            for reduction, budget in (("mean", ROOMY), ("none", TIGHT)):
                expected, got = cross_entropies(p, sizes, p.soft, reduction, memory_budget=budget, **options)
                for what, a, b in zip(NAMES, expected, got, strict=True):
                    equal(b, a, f"{what}, {name}, {reduction}, {sizes}")


KINDS = {torch.bfloat16: ml_dtypes.bfloat16, torch.float16: np.float16, torch.float32: np.float32}


@scenario(2, 3)
def sixteen_bits_and_single_precision() -> None:
    for dtype in KINDS:
        for sizes in splits():
            p, wide = Problem(sum(sizes), dtype), Problem(sum(sizes), dtype)
            wide.h, wide.W, wide.b = wide.h.double(), wide.W.double(), wide.b.double()
            for reduction, budget in (("mean", ROOMY), ("mean", TIGHT), ("none", TIGHT)):
                options: dict[str, Any] = {"label_smoothing": 0.1, "softcap": 3.0, "memory_budget": budget}
                exact, _ = cross_entropies(wide, sizes, p.y, reduction, **options)
                one, got = cross_entropies(p, sizes, p.y, reduction, **options)
                for what, a, b, c in zip(NAMES, got, exact, one, strict=True):
                    assert a.dtype == (torch.float32 if what == "loss" else dtype)
                    rows = (each.reshape(1, -1) for each in (a, b, c))
                    assert_within(*rows, KINDS[a.dtype], f"{what}, {dtype}", terms=sum(sizes))


def statistics_agree(A: Any, B: Any, *leaves: tuple[Tensor, Tensor, Any]) -> None:
    """All fields agree, and so do the gradients of some function of them, by pairs of leaves: of one, of a rank."""
    losses = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
    for name, a, b in zip(A._fields, A, B, strict=True):
        assert (a is None) == (b is None), name
        if a is None:
            continue
        same_bits(b)
        if name in ("rank", "argmax"):
            assert torch.equal(a, b), name
            continue
        equal(b, a, name)
        weight = torch.linspace(-1, 1, a.numel(), dtype=torch.float64).reshape(a.shape)
        losses = [loss + (field.sin() * weight).sum() for loss, field in zip(losses, (a, b), strict=True)]
    for loss in losses:
        loss.backward()
    for one, many, part in leaves:
        equal(many.grad, one.grad[part], f"gradient of {tuple(one.shape)}")


@scenario(2, 3)
def statistics_of_hidden_states() -> None:
    asked = {"entropy": True, "rank": True, "argmax": True}
    for sizes in splits():
        p, here = Problem(sum(sizes)), mine(sizes)
        for target in (p.y, p.many, None):
            for budget in (ROOMY, TIGHT):
                for u, changed in ((None, {}), (p.u, {"softcap": 3.0, "scale": 0.7})):
                    one, many = [leaf(p.h), leaf(p.W)], [leaf(p.h), leaf(p.W[here])]
                    A = F.linear_logit_statistics(*one, target, linear_bias=p.b, class_weights=u, **asked, **changed)
                    B = D.linear_logit_statistics(
                        *many, target, linear_bias=p.b[here], class_weights=None if u is None else u[here],
                        memory_budget=budget, **asked, **changed,
                    )  # fmt: skip
                    statistics_agree(A, B, (one[0], many[0], ...), (one[1], many[1], here))


@scenario(2, 3)
def statistics_and_cross_entropy_of_logits() -> None:
    for sizes in splits():
        p, here = Problem(sum(sizes)), mine(sizes)
        for target in (p.y, p.many, None):
            for u in (None, p.u):
                one, many = leaf(p.logits), leaf(p.logits[..., here])
                asked = {"entropy": True, "rank": True, "argmax": True}
                A = F.logit_statistics(one, target, class_weights=u, **asked)
                B = D.logit_statistics(many, target, class_weights=None if u is None else u[here], **asked)
                statistics_agree(A, B, (one, many, (..., here)))
        for reduction in ("mean", "sum", "none"):
            for u in (None, p.u):
                for options in ({}, {"label_smoothing": 0.1}):
                    one, many = leaf(p.logits), leaf(p.logits[..., here])
                    a = F.cross_entropy(one.flatten(0, 1), p.y.flatten(), u, reduction=reduction, **options)
                    b = D.cross_entropy(many, p.y, None if u is None else u[here], reduction=reduction, **options)
                    equal(b, a.reshape(b.shape), f"{reduction} {options}")
                    a.exp().sum().backward()
                    b.exp().sum().backward()
                    equal(many.grad, one.grad[..., here], f"gradient of logits, {reduction} {options}")
                    same_bits(b)


def some_loss(s: Any, row: Tensor) -> Tensor:
    """A loss that uses most of what there is."""
    return -s.logprob * row - 0.1 * s.entropy + 0.01 * s.max + 0.2 * s.logsumexp**2 * row


def k_losses(s: Any, row: Tensor) -> Tensor:
    """A loss of K targets."""
    return -(s.logprob * torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)).sum(-1) * row - s.remainder


@scenario(2, 3)
def any_loss_and_its_row_tensors() -> None:
    for sizes in splits():
        p, here = Problem(sum(sizes)), mine(sizes)
        for loss_fn, target in ((some_loss, p.y), (k_losses, p.many)):
            for budget in (ROOMY, TIGHT):
                one, many = [leaf(p.h), leaf(p.W), leaf(p.row)], [leaf(p.h), leaf(p.W[here]), leaf(p.row)]
                a = F.linear_loss(loss_fn, one[0], one[1], target, one[2], entropy=True)
                b = D.linear_loss(loss_fn, many[0], many[1], target, many[2], entropy=True, memory_budget=budget)
                a.backward()
                b.backward()
                equal(b, a, "loss")
                for x, y, part in zip(one, many, (..., here, ...), strict=True):
                    equal(y.grad, x.grad[part], f"gradient of {tuple(x.shape)}")
                same_bits(b, many[0].grad, many[2].grad)


@scenario(2, 3)
def ties_go_to_the_first_class() -> None:
    """All logits are equal: argmax and the gradient of the maximum belong to class 0, whoever holds it."""
    for sizes in splits():
        here = mine(sizes)
        one, many = torch.zeros(2, sum(sizes)), torch.zeros(2, sizes[dist.get_rank()])
        A = F.logit_statistics(one.requires_grad_(), argmax=True)
        B = D.logit_statistics(many.requires_grad_(), argmax=True)
        assert torch.equal(A.argmax, B.argmax)
        A.max.sum().backward()
        B.max.sum().backward()
        assert torch.equal(many.grad, one.grad[:, here])
        assert float(one.grad[:, 0].sum()) == 2


@scenario(2, 3)
def ignored_rows_are_as_if_deleted() -> None:
    for sizes in splits():
        p, here = Problem(sum(sizes)), mine(sizes)
        kept = p.y != -100
        p.h[~kept] = torch.nan
        for reduction in ("mean", "none"):
            h, W = leaf(p.h), leaf(p.W[here])
            loss = D.linear_cross_entropy(h, W, p.y, reduction=reduction, label_smoothing=0.1, memory_budget=TIGHT)
            loss.sum().backward()
            one, whole = leaf(p.h[kept]), leaf(p.W)
            alone = F.linear_cross_entropy(one, whole, p.y[kept], reduction=reduction, label_smoothing=0.1)
            alone.sum().backward()
            equal(loss if reduction == "mean" else loss[kept], alone, reduction)
            equal(h.grad[kept], one.grad)
            equal(W.grad, whole.grad[here])
            assert (h.grad[~kept] == 0).all()
        z = p.logits.clone()
        z[~kept] = torch.nan
        for options in ({}, {"label_smoothing": 0.1}):
            many, few = leaf(z[..., here]), leaf(z[kept])
            b = D.cross_entropy(many, p.y, **options)
            a = F.cross_entropy(few, p.y[kept], **options)
            a.backward()
            b.backward()
            equal(b, a)
            equal(many.grad[kept], few.grad[:, here])
            assert (many.grad[~kept] == 0).all()


@scenario(2, 3)
def a_z_loss_of_logits_ignores_rows_too() -> None:
    for sizes in splits():
        p, here = Problem(sum(sizes)), mine(sizes)
        kept = p.y != -100
        p.logits[~kept] = torch.nan
        many, few = leaf(p.logits[..., here]), leaf(p.logits[kept])
        b = D.cross_entropy(many, p.y, z_loss=0.01)
        a = F.cross_entropy(few, p.y[kept]) + 0.01 * few.logsumexp(-1).square().mean()
        a.backward()
        b.backward()
        equal(b, a)
        equal(many.grad[kept], few.grad[:, here])
        assert (many.grad[~kept] == 0).all()


@scenario(2, 3)
def no_rows_and_all_rows_ignored() -> None:
    for sizes in splits():
        here = mine(sizes)
        for p in (Problem(sum(sizes)), Problem(sum(sizes), leading=(0, 5))):
            y = torch.full_like(p.y, -100)
            for how in ("all_reduce", "reduce_scatter", "partial"):
                rows = slice(None)
                if how == "reduce_scatter":
                    last = dist.get_rank() == dist.get_world_size() - 1
                    rows = slice(0, None if last else 0)  # all of them are on the last rank
                h, W = leaf(p.h[rows]), leaf(p.W[here])
                loss = D.linear_cross_entropy(h, W, y, input_gradient=how, label_smoothing=0.1)
                loss.backward()
                assert loss == 0
                assert h.grad.shape == h.shape
                assert W.grad.shape == W.shape
                assert (h.grad == 0).all()
                assert (W.grad == 0).all()
            h, W = leaf(p.h), leaf(p.W[here])
            (
                D.linear_cross_entropy(h, W, y, reduction="none").sum()
                + D.linear_loss(some_loss, h, W, y, p.row, entropy=True)
            ).backward()
            assert (h.grad == 0).all()
            assert (W.grad == 0).all()
            z = leaf(p.logits[..., here])
            loss = D.cross_entropy(z, y)
            loss.backward()
            assert loss == 0
            assert (z.grad == 0).all()
            for s in (
                D.linear_logit_statistics(h, W, y, rank=True, argmax=True),
                D.logit_statistics(z, y, rank=True, argmax=True),
            ):
                assert s.logprob.shape == p.y.shape
                assert (s.logprob == 0).all()
                assert (s.rank == 0).all()
                assert (s.argmax == -1).all()


@scenario(2, 3)
def who_gets_which_gradient_of_the_input() -> None:
    for sizes in splits():
        p, here = Problem(sum(sizes)), mine(sizes)
        one, W = leaf(p.h), leaf(p.W)
        F.linear_cross_entropy(one, W, p.y).backward()
        for parts in ((4, 2), (0, 6)) if dist.get_world_size() == 2 else ((3, 2, 1), (6, 0, 0)):
            rows = mine(parts)
            for reduction in ("mean", "none"):
                h, part = leaf(p.h[rows]), leaf(p.W[here])
                loss = D.linear_cross_entropy(
                    h, part, p.y, input_gradient="reduce_scatter", reduction=reduction, memory_budget=TIGHT
                )
                (loss.sum() / (1 if reduction == "mean" else int((p.y != -100).sum()))).backward()
                equal(h.grad, one.grad[rows], f"reduce_scatter {parts}")
                equal(part.grad, W.grad[here])
        h, part = leaf(p.h), leaf(p.W[here])
        D.linear_cross_entropy(h, part, p.y, input_gradient="partial").backward()
        total = h.grad.clone()
        dist.all_reduce(total)
        equal(total, one.grad, "partial")
        equal(part.grad, W.grad[here])


@scenario(2, 3)
def the_graph_may_be_kept() -> None:
    """A second backward pass gives the same again; of the fused schedule it computes everything again."""
    sizes = splits()[0]
    p, here = Problem(sum(sizes)), mine(sizes)
    for how in ("all_reduce", "reduce_scatter"):
        rows = slice(None) if how == "all_reduce" else mine((4, 2, 0)[: dist.get_world_size()])
        for make in (
            lambda h, W: D.linear_cross_entropy(h, W, p.y, input_gradient=how, memory_budget=TIGHT),  # noqa: B023
            lambda h, W: D.linear_cross_entropy(h, W, p.y, input_gradient=how, reduction="none").sum(),  # noqa: B023
            lambda h, W: D.linear_loss(some_loss, h, W, p.y, p.row, entropy=True, input_gradient=how),  # noqa: B023
        ):
            h, W = leaf(p.h[rows]), leaf(p.W[here])
            loss = make(h, W)
            loss.backward(retain_graph=True)
            once = h.grad.clone(), W.grad.clone()
            (2 * loss).backward()
            equal(h.grad, 3 * once[0])
            equal(W.grad, 3 * once[1])


@scenario(2, 3)
def nothing_is_asked_of_frozen_tensors() -> None:
    """Without a gradient of the input, or of anything, the rest is as before, and nothing is sent back."""
    sizes = splits()[0]
    p, here = Problem(sum(sizes)), mine(sizes)
    one = leaf(p.W)
    F.linear_cross_entropy(p.h, one, p.y).backward()
    W = leaf(p.W[here])
    with sent() as bytes_by:
        D.linear_cross_entropy(p.h, W, p.y).backward()
    assert bytes_by["all_reduce"] == 0
    equal(W.grad, one.grad[here])
    with torch.no_grad():
        equal(D.linear_cross_entropy(p.h, p.W[here], p.y), F.linear_cross_entropy(p.h, p.W, p.y))


@scenario(2, 3)
def bytes_per_token() -> None:
    sizes = splits()[0]
    p, here = Problem(sum(sizes)), mine(sizes)
    p.y[p.y == -100] = 0
    N, u = p.y.numel(), torch.ones(sizes[dist.get_rank()])
    head = p.h, p.W[here]
    loss = {"h": leaf(p.h), "W": leaf(p.W[here])}
    calls: list[tuple[int, int, Callable[[], Any]]] = [
        (24, 0, lambda: D.linear_cross_entropy(*head, p.y)),
        (24, 0, lambda: D.linear_cross_entropy(*head, p.y, reduction="none")),
        (24, 0, lambda: D.linear_cross_entropy(*head, p.y, z_loss=0.1, memory_budget=TIGHT)),
        (24, 8, lambda: D.linear_cross_entropy(*head, p.y, weight=u)),
        (40, 0, lambda: D.linear_cross_entropy(*head, p.y, label_smoothing=0.1)),
        (32, 0, lambda: D.linear_cross_entropy(*head, p.soft[..., here])),
        (40, 0, lambda: D.linear_logit_statistics(*head, p.y)),
        (48, 0, lambda: D.linear_logit_statistics(*head, p.y, entropy=True)),
        (48, 0, lambda: D.linear_logit_statistics(*head, p.y, argmax=True)),
        (40, 8, lambda: D.linear_logit_statistics(*head, p.y, rank=True)),
        (32, 0, lambda: D.linear_logit_statistics(*head)),
        (32 + 16 + 24, 0, lambda: D.linear_logit_statistics(*head, p.many)),
        (32 + 16 + 24, 24, lambda: D.linear_logit_statistics(*head, p.many, rank=True)),
        (40, 0, lambda: D.linear_loss(lambda s: -s.logprob, *head, p.y)),
        (40, 0, lambda: D.cross_entropy(p.logits[..., here], p.y)),
    ]
    for i, (states, added, call) in enumerate(calls):
        with sent() as count:
            call()
        assert count["all_gather"] == states * N, f"call {i}: {count}"
        assert count["all_reduce"] == added * N, f"call {i}: {count}"
    rows = _stream.plan(N, max(sizes), FEATURES, TIGHT, 8, converts=False, scratch=False).rows
    with sent() as count:
        D.linear_cross_entropy(*head, p.y, memory_budget=TIGHT)
    assert count["all_gather calls"] == -(-N // rows) > 1
    for reduction, how, gathered, reduced, scattered in (
        ("mean", "all_reduce", 24, 64, 0), ("none", "all_reduce", 24, 64, 0), ("mean", "partial", 24, 0, 0),
    ):  # fmt: skip
        with sent() as count:
            D.linear_cross_entropy(loss["h"], loss["W"], p.y, input_gradient=how, reduction=reduction).sum().backward()
        assert [count["all_gather"], count["all_reduce"], count["reduce_scatter"]] == [
            gathered * N, reduced * N, scattered * N,
        ], f"{reduction} {how}: {count}"  # fmt: skip
    parts = (4, 2) if dist.get_world_size() == 2 else (2, 2, 2)
    with sent() as count:
        D.linear_cross_entropy(leaf(p.h[mine(parts)]), leaf(p.W[here]), p.y, input_gradient="reduce_scatter").backward()
    part, row = max(parts) * LEADING[1], 8 * FEATURES
    assert count["all_gather"] == 24 * N + part * row
    assert count["reduce_scatter"] == len(parts) * part * row
    assert count["all_reduce"] == 0


@scenario(2, 4)
def data_parallel_groups_equal_the_big_batch() -> None:
    across = 1 if dist.get_world_size() == 2 else 2
    tensor, data = columns(across)
    p = Problem(37, leading=(7, 5))
    p.y[1:3] = -100  # unequal counts
    batch = slice(0, 4) if dist.get_rank(data) == 0 else slice(4, 7)
    sizes = (37,) if across == 1 else (20, 17)
    begin = sum(sizes[: dist.get_rank(tensor)])
    here = slice(begin, begin + sizes[dist.get_rank(tensor)])
    losses: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
        "cross-entropy": (
            lambda h, W, y, row: F.linear_cross_entropy(h, W, y),
            lambda h, W, y, row: D.linear_cross_entropy(h, W, y, group=tensor, data_group=data),
        ),
        "weighted": (
            lambda h, W, y, row: F.linear_cross_entropy(h, W, y, weight=p.u, token_weight=row, label_smoothing=0.1),
            lambda h, W, y, row: D.linear_cross_entropy(
                h, W, y, weight=p.u[here], token_weight=row, label_smoothing=0.1, group=tensor, data_group=data
            ),
        ),
        "any": (
            lambda h, W, y, row: F.linear_loss(some_loss, h, W, y, row, entropy=True),
            lambda h, W, y, row: D.linear_loss(
                some_loss, h, W, y, row, entropy=True, group=tensor, data_group=data, memory_budget=TIGHT
            ),
        ),
        "logits": (
            lambda h, W, y, row: F.cross_entropy((h @ W.T).flatten(0, 1), y.flatten()),
            lambda h, W, y, row: D.cross_entropy(shared(h) @ W.T, y, group=tensor, data_group=data),
        ),
    }
    shared = lambda h: Copied.apply(h, tensor)  # noqa: E731
    for name, (whole, of_ranks) in losses.items():
        one, many = [leaf(p.h), leaf(p.W)], [leaf(p.h[batch]), leaf(p.W[here])]
        a = whole(*one, p.y, p.row)
        b = of_ranks(*many, p.y[batch], p.row[batch])
        a.backward()
        b.backward()
        ranks = dist.get_world_size(data)
        value, gradient = b.detach().clone(), many[1].grad.clone()
        dist.all_reduce(value, group=data)
        dist.all_reduce(gradient, group=data)
        equal(value / ranks, a, f"loss, {name}")
        equal(gradient / ranks, one[1].grad[here], f"gradient of weight, {name}")
        equal(many[0].grad / ranks, one[0].grad[batch], f"gradient of input, {name}")


class Copied(torch.autograd.Function):
    """The same tensor on all ranks; its gradient is the sum of theirs: what a tensor-parallel layer begins with."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


@scenario(2, 3)
def dtensor_weights() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for classes in (36, 37, dist.get_world_size() - 1):
        p = Problem(classes)
        y = p.y % classes
        one = [leaf(p.W), leaf(p.b)]
        F.linear_cross_entropy(p.h, one[0], y, linear_bias=one[1]).backward()
        W, b = (nn.Parameter(distribute_tensor(t, mesh, [Shard(0)])) for t in (p.W, p.b))
        D.linear_cross_entropy(p.h, W, y, linear_bias=b).backward()
        equal(W.grad.full_tensor(), one[0].grad, f"gradient of weight, V {classes}")
        equal(b.grad.full_tensor(), one[1].grad, f"gradient of bias, V {classes}")
        s = D.linear_logit_statistics(p.h, W, y, linear_bias=b, rank=True)
        assert torch.equal(s.rank, F.linear_logit_statistics(p.h, p.W, y, linear_bias=p.b, rank=True).rank)
        equal(
            D.linear_loss(lambda s: -s.logprob, p.h, W, y, linear_bias=b),
            F.linear_cross_entropy(p.h, p.W, y, linear_bias=p.b),
        )


class Model(nn.Module):
    """A body and a head whose forward pass is the loss."""

    def __init__(self, p: Problem) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(FEATURES, FEATURES).double(), nn.Linear(FEATURES, len(p.W)).double()
        with torch.no_grad():
            self.body.weight.copy_(torch.eye(FEATURES) + 0.1 * p.W[:FEATURES])
            self.body.bias.copy_(p.b[:FEATURES])
            self.head.weight.copy_(p.W)
            self.head.bias.copy_(p.b)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        h = self.body(h).tanh()
        return F.linear_cross_entropy(h, self.head.weight, y, linear_bias=self.head.bias, reduction="sum")


@scenario(2, 3)
def plain_heads_under_fsdp_and_ddp() -> None:
    """A gathered weight is a plain tensor, and takes the plain function; gradients are those of the big batch."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    size, p = dist.get_world_size(), Problem(37)
    rows = mine((5, 1) if size == 2 else (3, 2, 1))
    one = Model(p)
    (one(p.h, p.y) / int((p.y != -100).sum())).backward()
    sharded = Model(p)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (size,)))
    for model in (sharded, nn.parallel.DistributedDataParallel(Model(p))):
        (model(p.h[rows], p.y[rows]) * (size / int((p.y != -100).sum()))).backward()
        for (name, a), b in zip(one.named_parameters(), model.parameters(), strict=True):
            whole = b.grad.full_tensor() if hasattr(b.grad, "full_tensor") else b.grad
            equal(whole, a.grad, f"{type(model).__name__}, {name}")
