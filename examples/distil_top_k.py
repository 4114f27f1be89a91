"""Distillation from a teacher's top K: K numbers and K words per position instead of a row of probabilities.

    python examples/distil_top_k.py [steps]

The student learns from hidden states, without its logits: `linear_loss` with K targets per position gives it the
log-probabilities of the teacher's words, and of all others together, the remainder. The KL divergence over these K + 1
is never above the full one, which is printed beside it for held-out text.
"""

from __future__ import annotations

import random
import sys

import torch
from tiny import IGNORED, Tiny, pad, paragraphs, pretrain
from torch import Tensor

import lastlayer.torch as F
from lastlayer.torch import distillation

K = 32


def top(teacher: Tiny, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the teacher's K words and their log-probabilities, (B, T, K): all that has to be stored of it."""
    with torch.no_grad():
        found = F.log_softmax(teacher.head(teacher(inputs)), dim=-1).topk(K)
    return found.indices, found.values


def batch(choice: random.Random, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return inputs and which positions count."""
    inputs, target = pad([row[:32] for row in choice.sample(texts, 32)])
    return inputs, target != IGNORED


def top_k_loss(student: Tiny, teacher: Tiny, inputs: Tensor, counts: Tensor) -> Tensor:
    """Return the mean KL over the K words and the remainder; a position that does not count has K times -100."""
    index, logprob = top(teacher, inputs)
    index = index.masked_fill(~counts[..., None], IGNORED)
    return F.linear_loss(distillation.top_k_forward_kl, student(inputs), student.head.weight, index, logprob)


def full_kl(student: Tiny, teacher: Tiny, inputs: Tensor, counts: Tensor) -> Tensor:
    """Return the mean KL over all words, which needs both models' logits."""
    both = (model.head(model(inputs)[counts]) for model in (student, teacher))
    return distillation.forward_kl(*both).mean()


def main(steps: int = 100) -> None:
    """Train a teacher, then a student of a third of its width on the teacher's top K."""
    torch.manual_seed(0)
    choice, (texts, words) = random.Random(0), paragraphs(1500)
    training, held_out = texts[:-128], texts[-128:]
    teacher, student = Tiny(len(words), 96), Tiny(len(words), 32)
    pretrain(teacher, training, 80)
    unseen = batch(random.Random(1), held_out)
    mass = top(teacher, unseen[0])[1].exp().sum(-1)[unseen[1]].mean()
    print(f"of {len(words)} words the teacher names {K}, which have {mass:.0%} of its probability")
    print("step   top-K KL   held out: top-K   all words   (nats)")
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for step in range(steps + 1):
        loss = top_k_loss(student, teacher, *batch(choice, training))
        if step % max(steps // 5, 1) == 0:
            with torch.no_grad():
                some, everything = top_k_loss(student, teacher, *unseen), full_kl(student, teacher, *unseen)
            print(f"{step:4} {loss:10.4f} {some:17.4f} {everything:11.4f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
