"""What only a GPU has, and ranks: graphs, streams, no waiting, errors that come later, compilation, process groups.

Eager results, which row_checks.py and head_checks.py judge, are the reference: to the bit where the kernels are the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

import lastlayer.torch as F
from on_gpu import laws
from on_gpu.clock import Bench
from on_gpu.exact import Pass, condition_of, cross_entropy_of_rows, dense_head, exact_head, gradient_excess, head_excess
from on_gpu.floors import Shape

SHAPE, TINY = Shape(289, 128, 2_049), Shape(7, 16, 129)

Step = Callable[[], tuple[Tensor, ...]]


def need_cuda(bench: Bench) -> None:
    """Say that a check is not for this device."""
    if not bench.cuda:
        raise laws.NotHereError("needs CUDA")


def problem(bench: Bench, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, a weight and targets, every fourth of them ignored."""
    shape = TINY if bench.tiny else SHAPE
    _, W, _, _ = laws.inputs_of(bench, shape, torch.bfloat16)
    h = bench.normal(shape.N, shape.D, seed=seed)
    return h, W, laws.some_ignored(bench.classes(shape.N, shape.V, seed=seed))


def steps(h: Tensor, W: Tensor, z: Tensor, y: Tensor) -> dict[str, Step]:
    """Return the forward and backward passes that training repeats, on tensors that stay where they are."""

    def on_logits() -> tuple[Tensor, ...]:
        loss = F.cross_entropy(z, y)
        return (loss.detach(), *torch.autograd.grad(loss, z))

    def on_hidden() -> tuple[Tensor, ...]:
        loss = F.linear_cross_entropy(h, W, y)
        return (loss.detach(), *torch.autograd.grad(loss, (h, W)))

    return {"cross_entropy": on_logits, "linear_cross_entropy": on_hidden}


def leaves(bench: Bench, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, weight and logits that want gradients, and targets."""
    h, W, y = problem(bench, seed)
    z = (h @ W.T).detach()
    return h.requires_grad_(), W.requires_grad_(), z.requires_grad_(), y


def warmed(bench: Bench, step: Step) -> tuple[Tensor, ...]:
    """Return the result of a step that ran before: kernels are compiled, cuBLAS has its workspace."""
    for _ in range(3):
        result = step()
    bench.wait()
    F.check_errors()
    return result


def graph(bench: Bench, name: str) -> None:
    """A captured step, replayed on other data with other ignored rows, gives the bits of the eager one."""
    need_cuda(bench)
    held = leaves(bench)
    step, stream = steps(*held)[name], torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        warmed(bench, step)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = step()
    for seed in (0, 1, 2):
        with torch.no_grad():
            for tensor, new in zip(held, leaves(bench, seed), strict=True):
                tensor.copy_(new.roll(seed, 0) if new.dtype == torch.int64 else new)
        captured.replay()
        got = tuple(tensor.clone() for tensor in result)
        for a, b in zip(got, step(), strict=True):
            laws.same(a, b, f"replay {seed}")


@contextmanager
def no_waiting() -> Iterator[None]:
    """Make whatever waits for the device an error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def no_synchronisation(bench: Bench, name: str) -> None:
    """A step of training waits for nothing."""
    need_cuda(bench)
    step = steps(*leaves(bench))[name]
    warmed(bench, step)
    with no_waiting():
        step()


def rows_wait_for_nothing(bench: Bench) -> None:
    """softmax, log_softmax, logsumexp and statistics wait for nothing."""
    need_cuda(bench)
    _, _, z, y = leaves(bench)
    z = z.detach()

    def step() -> tuple[Tensor, ...]:
        found = F.logit_statistics(z, y, entropy=True)
        return F.softmax(z, -1), F.log_softmax(z, -1), F.logsumexp(z, -1), found.entropy

    warmed(bench, step)
    with no_waiting():
        step()


def late_error(bench: Bench, linear: bool) -> None:
    """A target that is no class becomes an IndexError, here or later, and the device goes on."""
    h, W, y = problem(bench)
    z, bad = (h @ W.T).detach(), y.clone()
    bad[2] = len(W) + 5

    def call(target: Tensor) -> Tensor:
        return F.linear_cross_entropy(h, W, target) if linear else F.cross_entropy(z, target)

    expected = call(y)
    bench.wait()
    try:
        call(bad)
        F.check_errors()
    except IndexError as error:
        if f"target[2] = {len(W) + 5}" not in str(error):
            raise AssertionError(f"the message does not name the target: {error}") from error
    else:
        raise AssertionError("no IndexError")
    bench.wait()
    laws.same(call(y), expected, "afterwards")


def side_stream(bench: Bench, name: str) -> None:
    """A step on a stream of its own gives the same bits."""
    need_cuda(bench)
    h, W, z, y = leaves(bench)
    step = steps(h, W, z, y)[name]
    expected, stream, right = warmed(bench, step), torch.cuda.Stream(), (h.detach().clone(), z.detach().clone())
    with torch.no_grad():
        for tensor in (h, z):
            tensor.fill_(torch.nan)
    bench.wait()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # a kernel on another stream would read NaN meanwhile
        with torch.no_grad():
            for tensor, values in zip((h, z), right, strict=True):
                tensor.copy_(values)
        got = step()
    torch.cuda.current_stream().wait_stream(stream)
    for a, b in zip(got, expected, strict=True):
        laws.same(a, b, "on a side stream")


def compiled(bench: Bench, name: str) -> None:
    """torch.compile makes one graph of it, with the right result."""
    need_cuda(bench)
    h, W, y = problem(bench)
    z = (h @ W.T).detach()
    if name == "cross_entropy":
        function = torch.compile(lambda z: F.cross_entropy(z, y, validate=False), fullgraph=True)
        leaf = z.requires_grad_()
        loss = function(leaf)
        (dz,) = torch.autograd.grad(loss, leaf)
        count = int((y != laws.IGNORED).sum())
        laws.within(gradient_excess(z.detach(), y, dz, 1 / count, laws.IGNORED), "gradient")
        return
    function = torch.compile(lambda h, W: F.linear_cross_entropy(h, W, y), fullgraph=True)
    judge_head(h, W, y, laws.passed(function, h, W))


def judge_head(h: Tensor, W: Tensor, y: Tensor, got: Pass) -> None:
    """Fail unless a pass over the rows that count is right."""
    live = y != laws.IGNORED
    given = h[live], W, y[live], torch.ones(int(live.sum()), device=h.device), cross_entropy_of_rows
    truth = exact_head(*given), dense_head(*given)
    error = head_excess(got._replace(dh=got.dh[live]), *truth, len(W), condition_of(h[live], W))
    laws.within(error, "loss and gradients")


def autocast(bench: Bench) -> None:
    """Under autocast a float32 head is that of its 16-bit copies, with float32 gradients."""
    h, W, y = (each.float() if each.is_floating_point() else each for each in problem(bench))

    def loss(h: Tensor, W: Tensor) -> Tensor:
        return F.linear_cross_entropy(h, W, y)

    with torch.autocast(bench.device.type, torch.bfloat16):
        got = laws.passed(loss, h, W)
    if got.dW.dtype != torch.float32 or got.dh.dtype != torch.float32:
        raise AssertionError(f"gradients in {got.dW.dtype} and {got.dh.dtype}")
    expected = laws.passed(loss, h.bfloat16(), W.bfloat16())
    laws.same(got.loss, expected.loss, "loss")
    laws.same(got.dW.bfloat16(), expected.dW, "gradient of the weight")


def ranks(bench: Bench, backend: str) -> None:
    """A process group of one holds all classes: the same results as without."""
    if not dist.is_available() or (backend == "nccl" and not (bench.cuda and dist.is_nccl_available())):
        raise laws.NotHereError(f"no {backend}")
    import lastlayer.torch.distributed as D

    h, W, y = problem(bench)
    z = (h @ W.T).detach()
    own = torch.device(bench.device) if backend == "nccl" else None
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=own)
    try:
        judge_head(h, W, y, laws.passed(lambda h, W: D.linear_cross_entropy(h, W, y), h, W))
        mine, theirs = F.logit_statistics(z, y, entropy=True), D.logit_statistics(z, y, entropy=True)
        laws.same(theirs.entropy, mine.entropy, "entropy")
        one, other = (f(z, top_k=20, seed=laws.SEED).index for f in (F.categorical, D.categorical))
        laws.same(other, one, "categorical")
    finally:
        dist.destroy_process_group()


BOTH = ("cross_entropy", "linear_cross_entropy")
CHECKS: dict[str, laws.Check] = {
    **{f"CUDA graph, {name}": partial(graph, name=name) for name in BOTH},
    **{f"no synchronisation, {name}": partial(no_synchronisation, name=name) for name in BOTH},
    "no synchronisation, rows": rows_wait_for_nothing,
    "late IndexError, cross_entropy": partial(late_error, linear=False),
    "late IndexError, linear_cross_entropy": partial(late_error, linear=True),
    **{f"side stream, {name}": partial(side_stream, name=name) for name in BOTH},
    **{f"torch.compile(fullgraph=True), {name}": partial(compiled, name=name) for name in BOTH},
    "autocast": autocast,
    "ranks, nccl": partial(ranks, backend="nccl"),
    "ranks, gloo": partial(ranks, backend="gloo"),
}
