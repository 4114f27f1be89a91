"""The ranks of a test of draws over vocabulary shards: each compares with one process that has all classes.

    python ranks_draws.py WORLD FOLDER        as ranks.py, with the scenarios of this file

Hidden states and weights are small integers over powers of two: every product is exact, so that all see one set of
logits, and shards must draw what one process draws, bit for bit.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))  # laws.py

import ranks
from ranks_fail import fails, guilty, last, without
from ranks_problem import Scenario, mine, same_bits

import lastlayer.torch as F
import lastlayer.torch.distributed as D
from lastlayer import _draw_plans, _linear_draws, _tile_draws
from lastlayer.sampling import Sample
from lastlayer.torch.stream import TorchProducts

SCENES: dict[int, dict[str, Scenario]] = {2: {}, 3: {}}
SPLITS = {
    2: ((1000, 1048), (5, 3000), (2048, 1024), (0, 40)),
    3: ((1000, 24, 3000), (5, 1, 2), (700, 0, 3000), (300, 400, 500)),
}
ROWS, FEATURES = (3, 2), 4
ROOMY, TIGHT = 1 << 26, 400_000  # bytes: everything at once; chunks of rows, and tiles of the larger shards


def scenario(*worlds: int) -> Any:
    """Enter a scenario for some numbers of ranks."""

    def enter(run: Scenario) -> Scenario:
        for world in worlds:
            SCENES[world][run.__name__] = run
        return run

    return enter


def problem(classes: int, spread: float = 2.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, weight and bias whose logits are exact."""
    random = torch.Generator().manual_seed(classes)

    def eighths(*shape: int) -> Tensor:
        return torch.randint(-8, 9, shape, generator=random).to(dtype) / 8

    return eighths(*ROWS, FEATURES) * spread, eighths(classes, FEATURES), eighths(classes)


def equal(got: Sample, expected: Sample, what: Any) -> None:
    """Assert that integers are equal to the bit and numbers to the roundings of sums of float32 terms."""
    same_bits(*got)
    for name, a, b in zip(Sample._fields, got, expected, strict=True):
        assert a.shape == b.shape, (what, name)
        if a.is_floating_point():
            assert torch.allclose(a, b, rtol=2.0**-17, atol=2.0**-17), (what, name, a, b)
        else:
            assert torch.equal(a, b), (what, name, a, b)


COLD = torch.tensor([[0.0, 0.5], [1.0, 1.0], [2.0, 0.7]])
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several": {"num_samples": 5, "temperature": COLD},
    "top_k": {"top_k": 7, "temperature": 0.7},
    "mixed": {
        "top_k": torch.tensor([[0, 3], [50, 1], [0, 0]]), "top_p": torch.tensor([[0.5, 1.0], [0.9, 1.0], [0.3, 1.0]]),
    },
    "top_p and min_p": {"top_p": 0.8, "min_p": 0.01, "num_samples": 2, "temperature": 0.3},
    "llama.cpp": {"top_k": 40, "top_p": 0.9, "min_p": 0.02, "temperature": 1.5, "order": "llama.cpp"},
    "all logits": {"typical_p": 0.7, "num_samples": 2},
    "edits": {"bans": ([0, 1], [2, 0]), "logit_bias": ([2, 2], [1, 4], [3.0, -1.0])},
    "without replacement": {"num_samples": 4, "replacement": False},
    "greedy": {"temperature": 0.0},
}  # fmt: skip
ALWAYS = ("several", "mixed", "edits")  # with all sizes of shards; the others with the first


@scenario(2, 3)
def draws_equal_those_of_one_process() -> None:
    for i, sizes in enumerate(SPLITS[dist.get_world_size()]):
        h, W, b = problem(sum(sizes))
        here, z = mine(sizes), h @ W.T + b
        for name, options in OPTIONS.items():
            if i and name not in ALWAYS:
                continue
            expected = F.categorical(z, **options, seed=11)
            given = D.categorical(z[..., here], **options, seed=11)
            equal(given, expected, (sizes, name, "logits"))
            for budget in (ROOMY, 400_000):
                got = D.linear_categorical(h, W[here], linear_bias=b[here], memory_budget=budget, **options, seed=11)
                equal(got, expected, (sizes, name, budget))


@scenario(2, 3)
def rows_that_candidates_do_not_decide_are_gathered() -> None:
    sizes = SPLITS[dist.get_world_size()][0]
    h, W, b = problem(sum(sizes), spread=0.25)
    here, seen = mine(sizes), []
    real = _linear_draws.by_rows

    def by_rows(request: Any, plan: Any, which: Any, drawn: Any) -> None:
        seen.append(len(which))
        real(request, plan, which, drawn)

    with mock.patch.object(_linear_draws, "by_rows", by_rows):
        got = D.linear_categorical(h, W[here], 3, linear_bias=b[here], top_p=0.95, seed=3)
    equal(got, F.categorical(h @ W.T + b, 3, top_p=0.95, seed=3), "flat")
    assert seen == [6]


@scenario(2, 3)
def scale_and_softcap_and_sixteen_bits() -> None:
    sizes = SPLITS[dist.get_world_size()][0]
    h, W, _ = problem(sum(sizes), dtype=torch.bfloat16)
    here, options = mine(sizes), {"scale": 0.5, "softcap": 4.0, "seed": 5, "top_k": 9}
    equal(D.linear_categorical(h, W[here], **options), F.linear_categorical(h, W, **options), "bfloat16")


@scenario(2, 3)
def the_largest_logits() -> None:
    for sizes in SPLITS[dist.get_world_size()]:
        h, W, b = problem(sum(sizes))
        b[::3] = -torch.inf
        for k in {1, min(6, sum(sizes)), sum(sizes)}:
            expected = F.linear_topk(h, W, k, linear_bias=b)
            got = D.linear_topk(h, W[mine(sizes)], k, linear_bias=b[mine(sizes)])
            same_bits(*got)
            assert torch.equal(got.index, expected.index), (sizes, k)
            assert torch.equal(got.value, expected.value), (sizes, k)
            assert torch.allclose(got.logprob, expected.logprob), (sizes, k)
            assert torch.allclose(got.logsumexp, expected.logsumexp), (sizes, k)


@scenario(2, 3)
def without_a_seed_the_first_rank_chooses() -> None:
    sizes = SPLITS[dist.get_world_size()][0]
    h, W, b = problem(sum(sizes))
    here, z = mine(sizes), h @ W.T + b
    generator = torch.Generator().manual_seed(7 + dist.get_rank())
    first = torch.Generator().manual_seed(7)
    for _ in range(2):
        expected = F.categorical(z, generator=first)
        equal(D.categorical(z[..., here], generator=generator), expected, "generator")
    same_bits(*D.linear_categorical(h, W[here], linear_bias=b[here]))


@scenario(2, 3)
def what_is_wrong_is_raised_on_all_ranks() -> None:
    sizes = SPLITS[dist.get_world_size()][0]
    h, W, b = problem(sum(sizes))
    here, z = mine(sizes), h @ W.T + b
    bad = z.clone()
    bad[1, 0, -1] = torch.nan
    fails(lambda: D.categorical(bad[..., here]), ValueError, "row[1, 0] of input has NaN")
    bad[1, 0] = -torch.inf
    fails(lambda: D.categorical(bad[..., here]), ValueError, "row[1, 0] of input has no logit above -inf")
    bad[1, 0, 0] = torch.inf
    fails(lambda: D.categorical(bad[..., here], top_k=3), ValueError, "row[1, 0] of input has +inf")
    nan = b.clone()
    nan[0] = torch.nan
    fails(lambda: D.linear_topk(h, W[here], 2, linear_bias=nan[here]), ValueError, "row[0, 0] of the logits has NaN")
    fails(lambda: D.linear_topk(h, W[here], sum(sizes) + 1), ValueError, "is outside [1, ")
    fails(lambda: D.categorical(z[..., here], bans=(0, 1 << 20)), IndexError, "is outside [0, ")
    fails(lambda: D.linear_categorical(h, W[here], memory_budget=3), ValueError, "memory_budget = 3 bytes is too small")
    fails(lambda: D.linear_categorical(h, W[:0]), ValueError, "no rank of the group has a class")


@scenario(2, 3)
def ranks_that_disagree() -> None:
    sizes = SPLITS[dist.get_world_size()][0]
    h, W, _ = problem(sum(sizes))
    here, wrong = mine(sizes), guilty()
    for name, value, other in (
        ("temperature", 1.0, 0.5), ("top_k", None, 3), ("bans", (0, 1), (0, 2)), ("order", "vllm", "transformers"),
        ("scale", 1.0, 2.0), ("num_samples", None, 2), ("replacement", True, False), ("memory_budget", ROOMY, 1 << 20),
    ):  # fmt: skip
        options = {"seed": 1, name: other if wrong else value}
        fails(lambda: D.linear_categorical(h, W[here], **options), ValueError, f"{name} differs")  # noqa: B023
    seed = 1 if wrong else 2
    fails(lambda: D.linear_categorical(h, W[here], seed=seed), ValueError, "seed, offset or step differs")
    fails(lambda: D.linear_categorical(h, W[here], seed=1 if wrong else None), ValueError, "whether seed is given")
    fails(lambda: D.linear_topk(h, W[here], 1 + wrong), ValueError, "k differs between ranks 0 and")
    narrow = W[here][:, :3] if wrong else W[here]
    fails(lambda: D.linear_categorical(h, narrow, seed=1), RuntimeError, "got 4 and 3", last())
    cold = -1.0 if wrong else 1.0
    fails(lambda: D.linear_categorical(h, W[here], seed=1, temperature=cold), ValueError, "temperature = -1.0", last())


@scenario(2, 3)
def no_memory_on_one_rank() -> None:
    sizes = SPLITS[dist.get_world_size()][0]
    h, W, _ = problem(sum(sizes))
    W = W[mine(sizes)]
    for options in ({}, {"top_k": 3}, {"typical_p": 0.5}):
        call = lambda options=options: D.linear_categorical(h, W, seed=1, memory_budget=TIGHT, **options)  # noqa: E731
        without(TorchProducts, "empty", call)
        without(_draw_plans.OfHead, "at", call)
    without(_tile_draws, "_inside", lambda: D.linear_categorical(h, W, seed=1))
    without(_tile_draws, "_fold", lambda: D.linear_topk(h, W, 2))
    without(_tile_draws, "certificate", lambda: D.linear_categorical(h, W, seed=1, top_k=2))
    without(_linear_draws, "draw_rows", lambda: D.linear_categorical(h, W, seed=1, typical_p=0.5))


@scenario(2)
def a_dtensor() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh, (h, W, b) = init_device_mesh("cpu", (2,)), problem(2048)
    sharded, bias = (distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in (W, b))
    got = D.linear_categorical(h, sharded, linear_bias=bias, top_k=5, seed=2)
    equal(got, F.categorical(h @ W.T + b, top_k=5, seed=2), "DTensor")
    expected = F.linear_topk(h, W, 3, linear_bias=b)
    assert torch.equal(D.linear_topk(h, sharded, 3, linear_bias=bias).index, expected.index)


def run(rank: int, world: int, folder: Path) -> None:
    """Run the scenarios of this file."""
    ranks.SCENARIOS = SCENES
    ranks.run(rank, world, folder)


def main(world: str, folder: str) -> None:
    """Start the ranks."""
    start = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    processes = [start.Process(target=run, args=(rank, int(world), Path(folder))) for rank in range(int(world))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
