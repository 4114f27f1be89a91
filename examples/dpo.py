"""Direct preference optimisation on hidden states: sums of log-probabilities, and of pairs of them, without logits.

    python examples/dpo.py [steps]

The preferred answer to the first words of a paragraph is how it goes on; the rejected one has the same words in random
order. DPO couples all words of both answers, so it is no `linear_loss`: `linear_logit_statistics` gives the
log-probability of each word, and whatever is made of these is differentiable.
"""

from __future__ import annotations

import copy
import random
import sys

import torch
from tiny import IGNORED, Tiny, pad, paragraphs, pretrain
from torch import Tensor

import lastlayer.torch as F
from lastlayer.torch import objectives

PROMPT, LENGTH, PAIRS, BETA = 4, 20, 16, 0.1


def batch(choice: random.Random, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of the preferred answers, then of the rejected ones, (2 PAIRS, T)."""
    chosen = [row[:LENGTH] for row in choice.sample(texts, PAIRS)]
    rejected = [row[:PROMPT] + choice.sample(row[PROMPT:], len(row) - PROMPT) for row in chosen]
    return pad(chosen + rejected, PROMPT)


def answers(model: Tiny, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the preferred and of the rejected answers, (PAIRS) each."""
    s = F.linear_logit_statistics(model(inputs), model.head.weight, target)
    chosen, rejected = objectives.sequence_logprob(s.logprob, target != IGNORED).chunk(2)
    return chosen, rejected


def pairs(model: Tiny, reference: Tiny, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each pair, and by how much more than the reference the model prefers the better answer."""
    chosen, rejected = answers(model, inputs, target)
    with torch.no_grad():
        before_chosen, before_rejected = answers(reference, inputs, target)
    margin = BETA * ((chosen - before_chosen) - (rejected - before_rejected)).detach()
    return objectives.dpo(chosen, rejected, before_chosen, before_rejected, beta=BETA), margin


def main(steps: int = 60) -> None:
    """Pretrain a little, keep a copy as the reference, and train on pairs."""
    torch.manual_seed(0)
    choice, (texts, words) = random.Random(0), paragraphs(2000)
    training, held_out = texts[:-128], texts[-128:]
    model = Tiny(len(words))
    pretrain(model, training, 40)
    reference, unseen = copy.deepcopy(model), batch(random.Random(1), held_out)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    print("step    loss  margin  held-out margin  preferred")
    for step in range(steps + 1):
        loss, margin = pairs(model, reference, *batch(choice, training))
        if step % max(steps // 5, 1) == 0:
            with torch.no_grad():
                _, apart = pairs(model, reference, *unseen)
            right = f"{int((apart > 0).sum())} of {PAIRS}"
            print(f"{step:4} {loss.mean():7.4f} {margin.mean():7.3f} {apart.mean():16.3f}  {right}")
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
