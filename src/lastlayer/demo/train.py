"""The training loop: a budget of seconds or of steps, a learning rate that follows it, and Ctrl-C as an early end.

With a budget of steps nothing here depends on the clock: the same seed gives the same numbers to the bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from lastlayer.demo.corpus import Corpus
from lastlayer.demo.model import LanguageModel
from lastlayer.demo.options import Options

EVALUATIONS = 8
WARM_UP = 30  # steps


class Watcher(Protocol):
    """Who is told about progress."""

    def trained(self, step: int, fraction: float, nats: float, tokens_per_second: float, left: float) -> None: ...
    def evaluated(self, step: int, nats: float) -> None: ...


@dataclass
class Training:
    """What a training run leaves behind, beside the model."""

    nats: list[float] = field(default_factory=list)  # loss of each step's batch
    held_out: list[tuple[int, float]] = field(default_factory=list)  # (step, nats per token)
    seconds: float = 0.0  # evaluations not counted
    interrupted: bool = False

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.nats)


class Budget:
    """How much of the training is done, from 0 to 1: a function of the step alone where steps were asked for."""

    def __init__(self, options: Options) -> None:
        self.steps, self.seconds = options.steps, options.seconds

    def spent(self, training: Training) -> float:
        """Return the fraction."""
        if self.steps is not None:
            return training.steps / self.steps
        return min(1.0, training.seconds / self.seconds)

    def left(self, training: Training) -> float:
        """Return an estimate of the seconds left."""
        if self.steps is None:
            return max(0.0, self.seconds - training.seconds)
        return training.seconds / max(1, training.steps) * (self.steps - training.steps)


class Optimizers:
    """Muon for the matrices inside the body, AdamW for the embedding (which is also the head) and the vectors."""

    def __init__(self, model: LanguageModel) -> None:
        matrices = [p for p in model.blocks.parameters() if p.dim() == 2 and min(p.shape) > 2]
        inside = set(map(id, matrices))
        vectors = [p for p in model.parameters() if p is not model.weight and id(p) not in inside]
        groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=0.03, weight_decay=0.1),
            torch.optim.AdamW(groups, lr=0.003, betas=(0.9, 0.95)),
        )
        self.peaks = [group["lr"] for part in self.parts for group in part.param_groups]

    def step(self, scale: float) -> None:
        """Update the parameters at ``scale`` times the peak learning rates, and forget the gradients."""
        groups = (group for part in self.parts for group in part.param_groups)
        for group, peak in zip(groups, self.peaks, strict=True):
            group["lr"] = peak * scale
        for part in self.parts:
            part.step()
            part.zero_grad()


def learning_rate(step: int, spent: float) -> float:
    """Return the factor of the peak rate: up over the first steps, then straight down."""
    return min(1.0, (step + 1) / WARM_UP) * max(0.02, 1.0 - spent)


def batch(tokens: Tensor, options: Options, generator: torch.Generator) -> Tensor:
    """Return windows (B, T + 1) from random places."""
    start = torch.randint(len(tokens) - options.context, (options.batch_size, 1), generator=generator)
    return tokens[start + torch.arange(options.context + 1)]


def train_step(model: LanguageModel, optimizers: Optimizers, window: Tensor, scale: float) -> float:
    """Take one step; return the loss before it, in nats per token."""
    loss = model.nats(model(window[:, :-1]), window[:, 1:], reduction="mean")
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizers.step(scale)
    return loss.item()


def train(
    model: LanguageModel, corpus: Corpus, options: Options, evaluate: Callable[[], float], watcher: Watcher
) -> Training:
    """Train until the budget is spent or Ctrl-C; ``evaluate`` returns the held-out nats per token on the way."""
    training, budget, optimizers = Training(), Budget(options), Optimizers(model)
    generator = torch.Generator().manual_seed(options.seed)
    tokens_per_step = options.batch_size * options.context
    try:
        while (spent := budget.spent(training)) < 1:
            if spent * EVALUATIONS >= len(training.held_out):
                training.held_out.append((training.steps, evaluate()))
                watcher.evaluated(*training.held_out[-1])
            model.train()
            start = time.perf_counter()
            window = batch(corpus.training, options, generator)
            nats = train_step(model, optimizers, window, learning_rate(training.steps, spent))
            training.seconds += time.perf_counter() - start
            training.nats.append(nats)
            rate = training.steps * tokens_per_step / training.seconds
            watcher.trained(training.steps, budget.spent(training), nats, rate, budget.left(training))
    except KeyboardInterrupt:
        training.interrupted = True
    return training


def smoothed(nats: list[float], points: int = 200) -> list[tuple[float, float]]:
    """Return at most ``points`` (middle step, mean loss) of equal runs of steps: a curve that can be drawn."""
    size = max(1, math.ceil(len(nats) / points))
    runs = [nats[i : i + size] for i in range(0, len(nats), size)]
    return [(i * size + (len(run) + 1) / 2, math.fsum(run) / len(run)) for i, run in enumerate(runs)]
