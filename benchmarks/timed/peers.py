"""Who is timed on logits: each competitor maps the same logits to its jobs by operation.

An operation that a library lacks is not in its table. What a peer needs to prepare (its own arrays, compilation) is
done before its jobs are timed. JAX and SciPy are imported when they are asked for: they need not be installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as T
from torch import Tensor

import lastlayer
import lastlayer.torch as F
from lastlayer import _backends
from lastlayer._algebra import Terms
from timed.rounds import Job

SMOOTHING = 0.1
MOST_CLASSES_OF_PROBABILITIES = 1000
LEAST_CLASSES_OF_BFLOAT16 = 32_000

LIMITS = ("read", "copy", "clone")


class Logits(NamedTuple):
    """What is computed on: logits z (N, V), targets y (N,), class probabilities p (N, V), touched memory (N, V)."""

    z: Tensor
    y: Tensor
    p: Tensor | None
    touched: Tensor


Peer = Callable[[Logits], dict[str, Job]]


def random_logits(rows: int, classes: int) -> Logits:
    """Return normal logits of standard deviation 5 and uniform targets, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, classes, generator=generator).mul_(5)
    y = torch.randint(classes, (rows,), generator=generator)
    some = classes <= MOST_CLASSES_OF_PROBABILITIES
    p = torch.rand(rows, classes, generator=generator).softmax(-1) if some else None
    return Logits(z, y, p, torch.zeros_like(z))


def step(loss: Callable[[Tensor], Tensor], z: Tensor) -> Job:
    """Return forward and backward, the gradient allocated afresh at each call as in a training loop."""
    w = z.detach().requires_grad_()

    def job() -> tuple[Tensor, Tensor | None]:
        w.grad = None
        value = loss(w)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach(), w.grad

    return job


def on_one_thread(job: Job) -> Job:
    """Return the same job on one thread."""
    every = torch.get_num_threads()

    def alone() -> Any:
        torch.set_num_threads(1)
        try:
            return job()
        finally:
            torch.set_num_threads(every)

    return alone


def with_names_of_torch(module: Any, rows: Any, logits: Logits) -> dict[str, Job]:
    """Return the jobs of a module with torch.nn.functional's losses, and of one with torch's softmax."""
    z, y, p, out = logits
    jobs: dict[str, Job] = {
        "logsumexp": lambda: rows.logsumexp(z, -1),
        "forward": lambda: module.cross_entropy(z, y),
        "step": step(lambda w: module.cross_entropy(w, y), z),
        "smoothed step": step(lambda w: module.cross_entropy(w, y, label_smoothing=SMOOTHING), z),
        "softmax": lambda: rows.softmax(z, -1),
        "log_softmax": lambda: rows.log_softmax(z, -1),
        "softmax out=": lambda: rows.softmax(z, -1, out=out),
        "log_softmax out=": lambda: rows.log_softmax(z, -1, out=out),
    }
    if p is not None:
        jobs["probabilities step"] = step(lambda w: module.cross_entropy(w, p), z)
    if z.shape[1] >= LEAST_CLASSES_OF_BFLOAT16 and z.dtype == torch.float32:
        short = z.bfloat16()
        jobs["logsumexp bfloat16"] = lambda: rows.logsumexp(short, -1)
        jobs["forward bfloat16"] = lambda: module.cross_entropy(short, y)
    return jobs


def of_pytorch(logits: Logits) -> dict[str, Job]:
    """PyTorch, eager."""
    return with_names_of_torch(T, torch, logits)


def gradient_into(logits: Logits) -> Job:
    """Return the kernel of the training step alone: loss and gradient of the mean into memory that is there."""
    out, terms, backend = logits.touched, Terms(1 / len(logits.z), None, None), _backends.choose(logits.z)
    return lambda: (torch.tensor(backend.loss(logits.z, terms, logits.y, out=out)), out)


def of_lastlayer(logits: Logits) -> dict[str, Job]:
    """Ours, the torch front end."""
    jobs = with_names_of_torch(F, F, logits)
    jobs["gradient out="] = gradient_into(logits)
    if len(logits.z) == 1:
        jobs |= {f"{name}, one thread": on_one_thread(jobs[name]) for name in ("logsumexp", "forward", "step")}
    return jobs


def of_lastlayer_numpy(logits: Logits) -> dict[str, Job]:
    """Ours, the NumPy front end."""
    z, y = logits.z.numpy(), logits.y.numpy()
    return {
        "logsumexp": lambda: lastlayer.logsumexp(z),
        "forward": lambda: lastlayer.cross_entropy(z, y),
        "step": lambda: lastlayer.cross_entropy_value_and_grad(z, y),
        "softmax": lambda: lastlayer.softmax(z),
        "log_softmax": lambda: lastlayer.log_softmax(z),
    }


def of_torch_compile(logits: Logits) -> dict[str, Job]:
    """PyTorch, compiled for this very shape."""
    z, y = logits.z, logits.y
    torch._dynamo.reset()
    logsumexp = torch.compile(lambda z: torch.logsumexp(z, -1), dynamic=False)
    forward = torch.compile(lambda z: T.cross_entropy(z, y), dynamic=False)
    return {"logsumexp": lambda: logsumexp(z), "forward": lambda: forward(z), "step": step(forward, z)}


def of_jax(logits: Logits) -> dict[str, Job]:
    """JAX and optax, jitted; its arrays share the logits' memory."""
    import jax
    import optax

    # XLA takes the number of its threads from there when it first computes.
    os.environ.setdefault("NPROC", str(torch.get_num_threads()))
    z, y = jax.dlpack.from_dlpack(logits.z), jax.dlpack.from_dlpack(logits.y.int())

    def loss(z: Any, y: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()

    def smoothed(z: Any, y: Any) -> Any:
        q = optax.smooth_labels(jax.nn.one_hot(y, z.shape[1]), SMOOTHING)
        return optax.softmax_cross_entropy(z, q).mean()

    def against(z: Any, p: Any) -> Any:
        return optax.softmax_cross_entropy(z, p).mean()

    def job(function: Callable[..., Any], *arguments: Any) -> Job:
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(*arguments))

    jobs = {
        "logsumexp": job(lambda z: jax.nn.logsumexp(z, axis=-1), z),
        "forward": job(loss, z, y),
        "step": job(jax.value_and_grad(loss), z, y),
        "smoothed step": job(jax.value_and_grad(smoothed), z, y),
        "softmax": job(jax.nn.softmax, z),
        "log_softmax": job(jax.nn.log_softmax, z),
    }
    if logits.p is not None:
        jobs["probabilities step"] = job(jax.value_and_grad(against), z, jax.dlpack.from_dlpack(logits.p))
    return jobs


def of_scipy(logits: Logits) -> dict[str, Job]:
    """SciPy."""
    import scipy.special

    z = logits.z.numpy()
    return {
        "logsumexp": lambda: scipy.special.logsumexp(z, axis=-1),
        "softmax": lambda: scipy.special.softmax(z, axis=-1),
        "log_softmax": lambda: scipy.special.log_softmax(z, axis=-1),
    }


PEERS: dict[str, Peer] = {
    "lastlayer": of_lastlayer,
    "PyTorch": of_pytorch,
    "torch.compile": of_torch_compile,
    "JAX": of_jax,
    "SciPy": of_scipy,
    "lastlayer (NumPy)": of_lastlayer_numpy,
}


def limits(logits: Logits) -> dict[str, Job]:
    """Return what memory allows: one read, one copy into touched memory, one into fresh memory."""
    z, out = logits.z, logits.touched
    return {"read": z.sum, "copy": lambda: out.copy_(z), "clone": z.clone}
