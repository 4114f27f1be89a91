"""Heads and draws on a real device: losses of hidden states against float64, both schedules, and draws class for class.

Draws are compared with those of this process's memory. Functions of logits are in row_checks.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import lastlayer.torch as F
from on_gpu.clock import Bench
from on_gpu.exact import (
    Losses,
    Pass,
    condition_of,
    cross_entropy_of_rows,
    dense_head,
    exact_head,
    head_excess,
    with_entropy,
)
from on_gpu.floors import Shape
from on_gpu.laws import IGNORED, SEED, Check, inputs_of, passed, same, some_ignored, within
from on_gpu.row_checks import gradient_of

HEADS = [Shape(1, 5, 31), Shape(7, 64, 1_000), Shape(289, 128, 50_257), Shape(1_000, 96, 2_049)]
TINY_HEADS = [Shape(1, 5, 31), Shape(7, 16, 129)]
OPTIONS = {"scale": 0.7, "softcap": 20.0, "label_smoothing": 0.1, "z_loss": 1e-3}
FILTERS: list[dict[str, float]] = [
    {}, {"temperature": 0.7}, {"temperature": 0.0}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02}, {"typical_p": 0.9}, {"top_n_sigma": 1.0},
]  # fmt: skip


def capped(z: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """What scale 0.7, softcap 20, smoothing 0.1 and z_loss 1e-3 make of logits."""
    z = 20.0 * torch.tanh(0.7 * z / 20.0)
    smoothed = torch.nn.functional.cross_entropy(z, y, reduction="none", label_smoothing=0.1)
    return smoothed + 1e-3 * torch.logsumexp(z, -1) ** 2


def ways(y: Tensor, a: Tensor) -> dict[str, tuple[Losses, Callable[[Tensor, Tensor], Tensor]]]:
    """Return the formulas of losses on logits beside the functions that compute them from hidden states."""

    def statistics(h: Tensor, W: Tensor) -> Tensor:
        s = F.linear_logit_statistics(h, W, y, entropy=True)
        return (-a * s.logprob - 0.01 * s.entropy).mean()

    def any_loss(h: Tensor, W: Tensor) -> Tensor:
        return F.linear_loss(lambda s, a: -a * s.logprob - 0.01 * s.entropy, h, W, y, a, entropy=True)

    plain = cross_entropy_of_rows
    return {
        "mean": (plain, lambda h, W: F.linear_cross_entropy(h, W, y)),
        "none": (plain, lambda h, W: F.linear_cross_entropy(h, W, y, reduction="none").mean()),
        "small budget": (plain, lambda h, W: F.linear_cross_entropy(h, W, y, memory_budget=1 << 21)),
        "options": (capped, lambda h, W: F.linear_cross_entropy(h, W, y, **OPTIONS)),
        "linear_logit_statistics": (with_entropy, statistics),
        "linear_loss": (with_entropy, any_loss),
    }


def heads(bench: Bench, dtype: torch.dtype) -> None:
    """Losses of hidden states and their gradients against float64, both schedules, odd sizes."""
    for shape in TINY_HEADS if bench.tiny else HEADS:
        h, W, y, a = inputs_of(bench, shape, dtype)
        truth: dict[Losses, tuple[Pass, Pass]] = {}
        for name, (losses, loss) in ways(y, a).items():
            if losses not in truth:
                truth[losses] = exact_head(h, W, y, a, losses), dense_head(h, W, y, a, losses)
            bench.poison(1 << 24)
            error = head_excess(passed(loss, h, W), *truth[losses], shape.V, condition_of(h, W))
            within(error, f"{shape}, {name}")


def ignored_rows(bench: Bench, dtype: torch.dtype) -> None:
    """A head's ignored rows, NaN among them, act as deleted ones."""
    h, W, y, a = inputs_of(bench, TINY_HEADS[1] if bench.tiny else HEADS[3], dtype)
    target = some_ignored(y)
    live = target != IGNORED
    poisoned = h.masked_fill(~live[:, None], math.nan)
    got = passed(lambda h, W: F.linear_cross_entropy(h, W, target), poisoned, W)
    given = h[live], W, y[live], a[live], cross_entropy_of_rows
    if bool(got.dh[~live].any()):
        raise AssertionError("the gradient of an ignored row is not 0")
    truth = exact_head(*given), dense_head(*given)
    error = head_excess(got._replace(dh=got.dh[live]), *truth, len(W), condition_of(h[live], W))
    within(error, f"{tuple(h.shape)}")


def draws(bench: Bench, dtype: torch.dtype) -> None:
    """Draws are those of this process's memory, class for class, and the same classes are kept."""
    for V in (31, 1_000) if bench.tiny else (31, 1_000, 50_257, 128_256):
        z = bench.normal(16, V, dtype=dtype, scale=4.0, seed=V)
        z[0, : V // 2] = -math.inf
        for options in FILTERS:
            got = F.categorical(z, 3, seed=SEED, step=7, **options)  # type: ignore[arg-type]
            expected = F.categorical(z.cpu(), 3, seed=SEED, step=7, **options)  # type: ignore[arg-type]
            for field in ("index", "kept", "rank"):
                same(getattr(got, field).cpu(), getattr(expected, field), f"V {V:,}, {options}, {field}")


def without_replacement(bench: Bench, dtype: torch.dtype) -> None:
    """Draws without replacement, and from weights, are those of this process's memory."""
    z = bench.normal(16, 1_000, dtype=dtype, scale=4.0)
    got, expected = (F.categorical(each, 5, seed=SEED, replacement=False) for each in (z, z.cpu()))
    same(got.index.cpu(), expected.index, "categorical")
    p = torch.softmax(z, -1)
    for replacement in (True, False):
        same(
            F.multinomial(p, 5, replacement, seed=SEED).cpu(), F.multinomial(p.cpu(), 5, replacement, seed=SEED),
            f"multinomial, replacement {replacement}",
        )  # fmt: skip


def linear_draws(bench: Bench, dtype: torch.dtype) -> None:
    """linear_categorical draws what categorical draws from the logits; in float64, where products hardly differ."""
    h, W, _, _ = inputs_of(bench, TINY_HEADS[1] if bench.tiny else Shape(16, 96, 50_257), dtype)
    z = h @ W.T
    for options in ({}, {"top_k": 20, "top_p": 0.9}):
        got = F.linear_categorical(h, W, 2, seed=SEED, **options)  # type: ignore[arg-type]
        same(got.index, F.categorical(z, 2, seed=SEED, **options).index, str(options))  # type: ignore[arg-type]


def repeated(bench: Bench, dtype: torch.dtype) -> None:
    """Three times the same call, three times the same bits."""
    h, W, y, a = inputs_of(bench, TINY_HEADS[1] if bench.tiny else HEADS[2], dtype)
    z = (h @ W.T).detach()
    calls: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "softmax": lambda: (F.softmax(z, -1),),
        "cross_entropy": lambda: (F.cross_entropy(z, y), gradient_of(z, y)),
        "categorical": lambda: tuple(F.categorical(z, 2, seed=SEED, top_p=0.9)),
    }
    calls |= {name: partial(passed, loss, h, W) for name, (_, loss) in ways(y, a).items()}
    for name, call in calls.items():
        first = call()
        for _ in range(2):
            bench.poison(1 << 24)
            for got, expected in zip(call(), first, strict=True):
                same(got, expected, name)


CHECKS: dict[str, Check] = {"linear_categorical float64": partial(linear_draws, dtype=torch.float64)}
BY_TYPE: dict[str, Callable[[Bench, torch.dtype], None]] = {
    "linear losses": heads,
    "ignored rows of a head": ignored_rows,
    "categorical": draws,
    "draws without replacement": without_replacement,
    "repeatability": repeated,
}
