"""What the ranks of a test have in common: the problem, whose numbers each of them makes alike, and the laws.

Siblings: ranks_agree.py, what the ranks must compute; ranks_fail.py, how they fail; ranks.py, which runs both.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

import lastlayer.torch as F
import lastlayer.torch.distributed as D

TIMEOUT = 8.0  # of a collective; only what is broken waits for it
SOON = 5.0  # seconds within which a failure on one rank has reached all
STALLED = 1.5  # the timeout of the group of which one rank never comes

WORLDS = (2, 3, 4)
SPLITS = {2: ((20, 17), (0, 37)), 3: ((20, 17, 0), (5, 0, 32)), 4: ((9, 9, 9, 10),)}
FEATURES, LEADING = 8, (6, 5)
ROOMY, TIGHT = 1 << 26, 3000  # bytes: everything at once; several chunks of rows and tiles of classes

Scenario = Callable[[], None]
SCENARIOS: dict[int, dict[str, Scenario]] = {world: {} for world in WORLDS}


def scenario(*worlds: int) -> Callable[[Scenario], Scenario]:
    """Enter a scenario for some numbers of ranks."""

    def enter(run: Scenario) -> Scenario:
        for world in worlds:
            SCENARIOS[world][run.__name__] = run
        return run

    return enter


class Problem:
    """Hidden states, a head, targets of every kind; the last three targets of a seventh row are another story."""

    def __init__(self, classes: int, dtype: torch.dtype = torch.float64, leading: tuple[int, ...] = LEADING) -> None:
        random = torch.Generator().manual_seed(2026)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

        self.h, self.W, self.b = normal(*leading, FEATURES), normal(classes, FEATURES), normal(classes)
        self.u = torch.rand(classes, generator=random, dtype=torch.float64)
        self.y = torch.randint(classes, leading, generator=random)
        if self.y.numel():
            self.y[0, 1] = self.y[-1, 0] = -100
        self.many = torch.rand(*leading, classes, generator=random).topk(min(3, classes)).indices
        self.soft = torch.rand(*leading, classes, generator=random, dtype=torch.float64).softmax(-1).to(dtype)
        self.row = torch.rand(*leading, generator=random, dtype=torch.float64) + 0.5
        self.logits = (self.h.double() @ self.W.double().T + self.b.double()).to(dtype)


def mine(sizes: tuple[int, ...]) -> slice:
    """Return this rank's part."""
    begin = sum(sizes[: dist.get_rank()])
    return slice(begin, begin + sizes[dist.get_rank()])


def leaf(tensor: Tensor) -> Tensor:
    """Return a copy that wants a gradient."""
    return tensor.detach().clone().requires_grad_()


def splits() -> tuple[tuple[int, ...], ...]:
    """Return the shard sizes to try: uneven, and with empty shards."""
    return SPLITS[dist.get_world_size()]


def equal(got: Tensor, expected: Tensor, what: str = "", relative: float = 1e-12) -> None:
    """Assert equality to a few float64 roundings of the largest entry."""
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    error = (got.detach() - expected.detach()).abs()
    allowed = relative * float(expected.detach().abs().max()) if expected.numel() else 0.0
    assert got.numel() == 0 or float(error.max()) <= allowed, f"{what}: off by {float(error.max()):.3g} > {allowed:.3g}"


def bits(tensor: Tensor) -> bytes:
    """Return a tensor's bits; NumPy has no bfloat16, but float32 holds it."""
    tensor = tensor.detach().contiguous()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().tobytes()


def same_bits(*tensors: Tensor | None) -> None:
    """Assert that all ranks hold the same bits."""
    held = [None if t is None else bits(t) for t in tensors]
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, held)
    assert all(each == told[0] for each in told), "ranks hold different bits"


def cross_entropies(
    p: Problem, sizes: tuple[int, ...], target: Tensor, reduction: str = "mean", weighted: bool = False, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Return loss and gradients by input, weight and bias: of one process, cut to this rank's classes, and of ranks."""
    here, budget = mine(sizes), options.pop("memory_budget", ROOMY)
    one, many = (
        [leaf(p.h), leaf(p.W), leaf(p.b)],
        [leaf(p.h), leaf(p.W[here]), leaf(p.b[here])],
    )
    part = target[..., here] if target.is_floating_point() else target
    u = (p.u, p.u[here]) if weighted else (None, None)
    A = F.linear_cross_entropy(one[0], one[1], target, linear_bias=one[2], weight=u[0], reduction=reduction, **options)
    B = D.linear_cross_entropy(
        many[0], many[1], part, linear_bias=many[2], weight=u[1], reduction=reduction, memory_budget=budget, **options
    )
    g = torch.linspace(0.5, 2, A.numel(), dtype=A.dtype).reshape(A.shape)
    A.backward(g)
    B.backward(g)
    same_bits(B, many[0].grad)
    expected = [A.detach(), one[0].grad, one[1].grad[here], one[2].grad[here]]
    return expected, [B.detach(), *(tensor.grad for tensor in many)]


def raised(call: Callable[[], Any]) -> BaseException:
    """Return what a call raises."""
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def usable() -> None:
    """Assert that the group still computes what is right."""
    sizes = splits()[0]
    expected, got = cross_entropies(p := Problem(sum(sizes)), sizes, p.y, memory_budget=TIGHT)
    for a, b in zip(expected, got, strict=True):
        equal(b, a)


@contextmanager
def sent() -> Iterator[Counter[str]]:
    """Count the bytes that this rank puts into collectives of tensors, by their name."""
    count: Counter[str] = Counter()

    def counted(name: str, tensors: Callable[..., list[Tensor]]) -> Any:
        real = getattr(dist, name)

        def call(*arguments: Any, **options: Any) -> Any:
            count[name] += sum(t.numel() * t.element_size() for t in tensors(*arguments))
            count[f"{name} calls"] += 1
            return real(*arguments, **options)

        return mock.patch.object(dist, name, call)

    with (
        counted("all_gather", lambda parts, tensor: [tensor]),
        counted("all_reduce", lambda tensor: [tensor]),
        counted("reduce_scatter", lambda tensor, parts: parts),
    ):
        yield count


def columns(tensor_parallel: int) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """Return this rank's tensor-parallel group, ranks in a row, and its data-parallel group, ranks across the rows."""
    size, rank, found = dist.get_world_size(), dist.get_rank(), {}
    soon = datetime.timedelta(seconds=TIMEOUT)
    rows = [list(range(i, i + tensor_parallel)) for i in range(0, size, tensor_parallel)]
    across = [list(range(i, size, tensor_parallel)) for i in range(tensor_parallel)]
    for kind, lists in (("tensor", rows), ("data", across)):
        for ranks in lists:
            group = dist.new_group(ranks, timeout=soon)
            if rank in ranks:
                found[kind] = group
    return found["tensor"], found["data"]
