"""Reinforcement learning on hidden states: GRPO with a rule as the reward, and no logits of the whole batch.

    python examples/grpo_step.py [steps]

A tiny language model writes twelve words after a prompt, or fewer if it writes a full stop. The reward is a rule: the
share of words of at most three letters. Of each prompt's eight answers the advantages are normalised within the group.
The entropy and the old log-probabilities come from one pass without gradient; the loss is one call of `linear_loss`.
"""

from __future__ import annotations

import copy
import random
import sys

import torch
from tiny import IGNORED, Tiny, paragraphs, pretrain
from torch import Tensor

import lastlayer.torch as F
from lastlayer.torch import objectives

PROMPTS, GROUP, PROMPT, ANSWER, UPDATES = 8, 8, 4, 12, 2


def write(model: Tiny, prompts: Tensor, stop: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw answers; return inputs and targets (B, T), where what is no answer is ignored."""
    text = prompts
    for _ in range(ANSWER):
        draw = F.categorical(model.head(model(text)[:, -1]), generator=generator)
        text = torch.cat([text, draw.index[:, None]], 1)
    target = text[:, 1:].clone()
    target[:, : PROMPT - 1] = IGNORED
    stopped = (target == stop).cumsum(1) - (target == stop).long()  # full stops before this word
    return text[:, :-1], target.masked_fill(stopped > 0, IGNORED)


def statistics(model: Tiny, inputs: Tensor, target: Tensor) -> F.LogitStatistics:
    """Return log-probabilities and entropies of the answers' words as they are now: constants."""
    with torch.no_grad():
        return F.linear_logit_statistics(model(inputs), model.head.weight, target, entropy=True)


def update(model: Tiny, inputs: Tensor, target: Tensor, advantage: Tensor, old: Tensor, reference: Tensor) -> Tensor:
    """Return GRPO's loss, the mean over each answer's words and then over answers, with its gradient formed."""
    share = 1 / ((target != IGNORED).sum(1, keepdim=True) * len(target))

    def loss(s: F.LogitStatistics, share: Tensor, *constants: Tensor) -> Tensor:
        return share * objectives.grpo(s, *constants, beta=0.02)

    constants = (share.expand(target.shape), advantage[:, None].expand(target.shape), old, reference)
    return F.linear_loss(loss, model(inputs), model.head.weight, target, *constants, reduction="sum")


def main(steps: int = 40) -> None:
    """Let a model learn to write like the text, then reward it."""
    torch.manual_seed(0)
    choice, generator, (texts, words) = random.Random(0), torch.Generator().manual_seed(0), paragraphs(1500)
    model, stop = Tiny(len(words)), words.index(".")
    pretrain(model, texts, 80)
    reference = copy.deepcopy(model)
    short = torch.tensor([0.0] + [float(len(word) <= 3) for word in words[1:]])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    print("step  reward  entropy  KL to the model before  (nats per word)")
    for step in range(steps + 1):
        prompts = torch.tensor([row[:PROMPT] for row in choice.sample(texts, PROMPTS)]).repeat_interleave(GROUP, 0)
        inputs, target = write(model, prompts, stop, generator)
        mask = target != IGNORED
        reward = (short[target.clamp(min=0)] * mask).sum(1) / mask.sum(1)
        group = reward.view(PROMPTS, GROUP)
        advantage = ((group - group.mean(1, keepdim=True)) / (group.std(1, keepdim=True) + 1e-4)).flatten()
        old, before = statistics(model, inputs, target), statistics(reference, inputs, target)
        if step % max(steps // 5, 1) == 0:
            entropy, kl = old.entropy[mask].mean(), objectives.kl(old, before.logprob)[mask].mean()
            print(f"{step:4} {reward.mean():7.3f} {entropy:8.3f} {kl:8.3f}")
        for _ in range(UPDATES):
            optimizer.zero_grad()
            update(model, inputs, target, advantage, old.logprob, before.logprob).backward()
            optimizer.step()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
