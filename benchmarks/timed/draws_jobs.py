"""What is timed of draws: matrices out of the cache and in it, one row, and hidden states; each behind its gate."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import lastlayer.torch as F
from lastlayer import _draw_arguments
from lastlayer.demo import measure as demo
from timed import draws_exact, machine, rounds
from timed.draws_exact import Compared
from timed.draws_peers import LLAMA, OURS, Competitor, Operation, Rotation, competitors, of_lastlayer_numpy, operations
from timed.rounds import Effort, Jobs, Wrong

MAIN = (64, 128_256)
OTHERS = [(8_192, 1_000), (256, 32_000), (32, 262_144)]
ON_OTHERS = ("temperature", "top_k, top_p, min_p", "top_p")
ONE_ROW = 128_256
HEAD = (16, 1_024, 131_072)
QUICK_MAIN, QUICK_OTHERS, QUICK_ROW, QUICK_HEAD = (4, 600), [(8, 100)], 500, (4, 16, 700)

READ, PRODUCT = "read", "bare product"
BUDGET = 64 << 20
CACHES = 4  # the caches that the matrices of a rotation fill together
MOST_BYTES = 2 << 30  # of them
SEED = 20261122
SIGMAS = 6.0  # a peer's mean log-probability may be off by so many: one in 10^9

Results = dict[str, Any]


def random_matrices(rows: int, classes: int, count: int) -> list[Tensor]:
    """Return normal logits of standard deviation 5, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, classes, generator=generator).mul_(5) for _ in range(count)]


def enough(rows: int, classes: int) -> int:
    """Return how many matrices fill the last-level cache so often, the one in use not counted; bfloat16 too."""
    size = 2 * rows * classes
    return 1 + math.ceil(min(CACHES * machine.cache(), MOST_BYTES) / size)


def uniforms_of(seed: int, rows: int, samples: int) -> NDArray[np.float64]:
    """Return the uniforms that a call with this seed uses."""
    return _draw_arguments.read_uniforms(seed, None, 0, (rows,), samples)


def exact_rows(z: Tensor, operation: Operation, order: tuple[str, ...] = draws_exact.TRANSFORMERS) -> list[Any]:
    """Return the probabilities of each row in float64."""
    wide = z.double().numpy()
    if operation.source == "probabilities":
        return list(wide / wide.sum(-1, keepdims=True))
    return [
        draws_exact.distribution(row, draws_exact.of_row(operation.options, i), order) for i, row in enumerate(wide)
    ]


def check_ours(found: Any, q: list[Any], uniforms: NDArray[np.float64], replacement: bool, where: str) -> Compared:
    """Raise Wrong unless every class is the one that the uniforms say, and as many are kept as a sort keeps."""
    index = np.asarray(found if isinstance(found, Tensor) else found.index).reshape(uniforms.shape)
    compare = draws_exact.compare if replacement else draws_exact.compare_one_by_one
    total = sum((compare(*row) for row in zip(q, index, uniforms, strict=True)), Compared())
    if total.farthest > draws_exact.ROUNDING:
        raise Wrong(f"{where}: a draw lies {total.farthest:.1e} off its boundary")
    if hasattr(found, "kept"):
        kept = [int((row > 0).sum()) for row in q]
        if np.asarray(found.kept).reshape(-1).tolist() != kept:
            raise Wrong(f"{where}: kept {found.kept}, a sort keeps {kept}")
    return total


def objection(name: str, competitor: Competitor, z: Tensor, operation: Operation, q: list[Any]) -> str | None:
    """Return what is wrong with a peer, None if nothing is."""
    if name == LLAMA:
        q = exact_rows(z, operation, draws_exact.LLAMA)
    try:
        index = competitor.classes(z, 0)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    off = draws_exact.score(q, index[:, : None if operation.replacement else 1])
    return None if off <= SIGMAS else f"its log-probabilities are {off:.1f} standard deviations off"


def admitted(
    found: dict[str, Competitor], z: Tensor, operation: Operation, where: str, left_out: list[str]
) -> tuple[dict[str, Competitor], Compared]:
    """Return the competitors that draw what they should, and how ours compare with the reference."""
    q, counted, kept = exact_rows(z, operation), Compared(), {}
    uniforms = uniforms_of(SEED, len(z), operation.samples)
    for name, competitor in found.items():
        if rounds.is_ours(name):
            drawn = competitor.draw(competitor.prepare(z), SEED)
            counted += check_ours(drawn, q, uniforms, operation.replacement, f"{name}, {where}")
        elif reason := objection(name, competitor, z, operation, q):
            left_out.append(f"{name}, {where}: {reason}")
            continue
        kept[name] = competitor
    return kept, counted


def sources(matrices: list[Tensor], names: set[str]) -> dict[str, list[Tensor]]:
    """Return the same logits in the forms that are asked for."""
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "float32": lambda z: z,
        "bfloat16": Tensor.bfloat16,
        "probabilities": lambda z: z.softmax(-1),
    }
    return {name: [forms[name](z) for z in matrices] for name in names}


def measure_matrices(
    rows: int, classes: int, count: int, names: tuple[str, ...] | None, without: list[str], effort: Effort,
    left_out: list[str],
) -> Results:  # fmt: skip
    """Return the median seconds by operation and competitor, and of one read."""
    chosen = {name: each for name, each in operations(rows).items() if names is None or name in names}
    given = sources(random_matrices(rows, classes, count), {"float32", *(each.source for each in chosen.values())})
    rotation, counted = Rotation(), Compared()
    jobs: Jobs = {"limit": {READ: rotation.job(Competitor(lambda z, seed: z.sum()), given["float32"])}}
    for name, operation in chosen.items():
        where, matrices = f"{name}, {rows:,} x {classes:,}", given[operation.source]
        who = competitors(operation, without, left_out)
        who, compared = admitted(who, matrices[0], operation, where, left_out)
        counted += compared
        jobs[name] = {each: rotation.job(competitor, matrices) for each, competitor in who.items()}
    seconds = rounds.interleaved(jobs, effort)
    return {"rows": rows, "classes": classes, "matrices": count, "seconds": seconds, "compared": list(counted)}


def measure_row(classes: int, without: list[str], effort: Effort, left_out: list[str]) -> Results:
    """Return the median seconds of a draw from one row that stays in the cache."""
    rotation, counted, jobs = Rotation(), Compared(), Jobs()
    z = random_matrices(1, classes, 1)
    jobs["limit"] = {READ: rotation.job(Competitor(lambda z, seed: z.sum()), z)}
    every = operations(1)
    for name in ("temperature", "top_k, top_p, min_p"):
        who = competitors(every[name], without, left_out) | of_lastlayer_numpy(every[name])
        who, compared = admitted(who, z[0], every[name], f"{name}, one row", left_out)
        counted += compared
        jobs[name] = {each: rotation.job(competitor, z) for each, competitor in who.items()}
    seconds = rounds.interleaved(jobs, effort)
    return {"rows": 1, "classes": classes, "seconds": seconds, "compared": list(counted)}


def random_head(rows: int, features: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return hidden states and weights whose logits have the standard deviation 5."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(rows, features, generator=generator)
    return h, torch.randn(classes, features, generator=generator).mul_(5 / math.sqrt(features))


HEADS: dict[str, Callable[[Tensor, Tensor, int], Any]] = {
    "draw": lambda h, W, seed: F.linear_categorical(h, W, temperature=0.8, seed=seed, memory_budget=BUDGET),
    "top_k, top_p, min_p": lambda h, W, seed: F.linear_categorical(
        h, W, temperature=0.8, top_k=50, top_p=0.9, min_p=0.02, seed=seed, memory_budget=BUDGET
    ),
    "top 50": lambda h, W, seed: F.linear_topk(h, W, 50, memory_budget=BUDGET),
}


def rounding_of(z: Tensor, exact: Tensor) -> float:
    """Return how far logits may be from exact ones: twice what the bare product's are, as sums may be in any order."""
    return 2 * float((z - exact).abs().max())


def check_head(name: str, h: Tensor, W: Tensor, z: Tensor) -> Compared:
    """Raise Wrong unless draws from hidden states are those from exact logits, but for the product's own rounding."""
    operation, exact = operations(len(h))[{"draw": "temperature"}.get(name, name)], h.double() @ W.double().T
    found, uniforms = HEADS[name](h, W, SEED), uniforms_of(SEED, len(h), 1)
    total = Compared()
    for i, q in enumerate(exact_rows(exact, operation)):
        # Where rounding decides what is kept, the draws are of two distributions.
        if int(found.kept[i]) == int((q > 0).sum()):
            total += draws_exact.compare(q, found.index[i : i + 1].numpy(), uniforms[i])
    # Logits off by d move a boundary F by 2 d F (1 - F) / T, by half of d / T at the most.
    slack = rounding_of(z, exact) / 2 / operation.options["temperature"] + draws_exact.ROUNDING
    if total.farthest > slack or 2 * total.draws < len(h):
        raise Wrong(f"linear_categorical, {name}: {total} in {len(h)} rows, beyond {slack:.1e}")
    return total


def check_topk(h: Tensor, W: Tensor, z: Tensor) -> None:
    """Raise Wrong unless the largest logits are those of float64, but for the product's own rounding."""
    exact = h.double() @ W.double().T
    found = HEADS["top 50"](h, W, SEED)
    off = float((exact.gather(-1, found.index) - exact.topk(50).values).abs().max())
    if off > rounding_of(z, exact):
        raise Wrong(f"linear_topk: {off:.1e} off, beyond {rounding_of(z, exact):.1e}")


def measure_head(rows: int, features: int, classes: int, effort: Effort, left_out: list[str]) -> Results:
    """Return the median seconds of draws from hidden states beside the bare product, and what they take of memory."""
    h, W = random_head(rows, features, classes)
    z, rotation = h.new_zeros(rows, classes), Rotation()
    matrix: list[Tensor] = [h]

    def product() -> Tensor:
        return torch.mm(h, W.T, out=z)

    product()
    jobs: Jobs = {"limit": {PRODUCT: product}, "draw": {}, "top 50": {}}
    ready = {
        name: head
        for name, head in HEADS.items()
        if hasattr(F, "linear_topk" if name == "top 50" else "linear_categorical")
    }
    left_out += [f"{OURS}, {name} of hidden states: not there yet" for name in HEADS if name not in ready]
    compared = sum((check_head(name, h, W, z) for name in ready if name != "top 50"), Compared())
    if "top 50" in ready:
        check_topk(h, W, z)
    for name, head in ready.items():
        draw: Callable[[Any, int], Any] = lambda h, seed, head=head: head(h, W, seed)  # noqa: E731
        jobs.setdefault(name, {})[OURS] = rotation.job(Competitor(draw), matrix)
    jobs["draw"]["product, softmax, multinomial"] = lambda: torch.multinomial((product() / 0.8).softmax(-1), 1)
    jobs["draw"]["product, lastlayer"] = lambda: F.categorical(product(), temperature=0.8, seed=SEED)
    jobs["top 50"]["product, topk"] = lambda: product().topk(50)
    seconds = rounds.interleaved(jobs, effort)
    memory = {name: measured_extra(name, rows, features, classes) for name in ready}
    return {
        "shape": [rows, features, classes], "seconds": seconds, "extra_bytes": memory, "budget": BUDGET,
        "compared": list(compared),
    }  # fmt: skip


def extra(name: str, rows: int, features: int, classes: int) -> int:
    """Return the bytes that one call takes; for a fresh process."""
    h, W = random_head(rows, features, classes)
    HEADS[name](*random_head(4, 8, 512), 0)
    torch.mm(torch.randn(512, features), torch.randn(features, 512))  # the BLAS sets itself up once
    return demo.rise(lambda: HEADS[name](h, W, 0))


def measured_extra(name: str, *shape: int) -> int | None:
    """Return the bytes, measured in a fresh process; None where the system does not tell, or the process fails."""
    if not sys.platform.startswith("linux"):
        return None
    code = "import sys, json; from timed import draws_jobs; draws_jobs.child(*map(json.loads, sys.argv[1:]))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, *map(json.dumps, (name, *shape))]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def child(name: str, *shape: int) -> None:
    """What the fresh process does."""
    print(extra(name, *shape))
