"""Supervised fine-tuning: only the answer's words count, and a batch that does not fit goes in pieces.

    python examples/sft_loss.py [steps]

The first eight words of a paragraph are the prompt (target -100: no loss, no product), the rest is the answer. A batch
is cut into four pieces, sorted by length, so that their numbers of words differ much; `accumulation` gives the gradient
of the one big batch all the same. The perplexity is that of all held-out words, by TokenMean: never a mean of means.
"""

from __future__ import annotations

import copy
import random
import sys

import torch
from tiny import IGNORED, Tiny, pad, paragraphs
from torch import Tensor

import lastlayer.torch as F

PROMPT, BATCH, PIECES, BUDGET = 8, 32, 4, 2**20


def loss_sum(model: Tiny, inputs: Tensor, target: Tensor) -> Tensor:
    """Return the sum of the losses of the words that count, without their logits."""
    return F.linear_cross_entropy(model(inputs), model.head.weight, target, reduction="sum", memory_budget=BUDGET)


def accumulate(model: Tiny, rows: list[list[int]]) -> F.TokenMean:
    """Leave in the parameters the gradient of the mean over all words of some paragraphs; return that mean."""
    ordered, size = sorted(rows, key=len), len(rows) // PIECES
    pieces = [pad(ordered[i : i + size], PROMPT) for i in range(0, len(rows), size)]
    with F.accumulation([target for _, target in pieces]) as step:
        for inputs, target in pieces:
            step.backward(loss_sum(model, inputs, target))
    return step.loss


def evaluate(model: Tiny, texts: list[list[int]]) -> F.TokenMean:
    """Return the mean over all answers' words of some paragraphs, in batches."""
    seen = F.TokenMean()
    with torch.no_grad():
        for i in range(0, len(texts), BATCH):
            inputs, target = pad(texts[i : i + BATCH], PROMPT)
            seen += F.TokenMean(loss_sum(model, inputs, target), F.count_tokens(target))
    return seen


def compare(model: Tiny, rows: list[list[int]]) -> None:
    """Print how far loss and gradient are from those of one big batch with all its logits in float64."""
    dense = copy.deepcopy(model).double()
    inputs, target = pad(rows, PROMPT)
    logits = dense.head(dense(inputs))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED)
    expected.backward()
    found = accumulate(model, rows)
    pairs = zip(model.parameters(), dense.parameters(), strict=True)
    apart = max(float((p.grad - q.grad).abs().max() / q.grad.abs().max()) for p, q in pairs)
    model.zero_grad()
    print(f"one batch      {found.count} words of {target.numel()} positions count")
    print(
        f"the dense way  loss {expected.item():.6f}, ours {found.mean:.6f}; gradients differ by {apart:.0e}, relatively"
    )
    mib = target.numel() * logits.shape[-1] * 4 / 2**20  # in float32
    print(f"its logits     {mib:.1f} MiB, and as much for their gradient; our workspace {BUDGET / 2**20:.0f} MiB")


def main(steps: int = 60) -> None:
    """Compare once, then train."""
    torch.manual_seed(0)
    choice, (texts, words) = random.Random(0), paragraphs()
    texts = [text[:96] for text in texts]
    training, held_out = texts[:-128], texts[-128:]
    model = Tiny(len(words))
    compare(model, training[:BATCH])
    print(f"held out       before {evaluate(model, held_out)}")
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = accumulate(model, choice.sample(training, BATCH))
        optimizer.step()
        if step % max(steps // 4, 1) == 0:
            print(f"step {step:4}      loss {loss.mean:.4f}")
    print(f"held out       after  {evaluate(model, held_out)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
