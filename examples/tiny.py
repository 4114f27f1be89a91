"""What the examples share: words of real text, paragraphs as batches, and a causal language model of a few lines.

The text is the language reference that comes with Python, every paragraph once.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

import lastlayer.torch as F

IGNORED = -100


def paragraphs(words: int = 4000) -> tuple[list[list[int]], list[str]]:
    """Return the text's paragraphs of 12 words and more in random order, and the words; the rarest are all word 0."""
    found = dict.fromkeys(p for name in sorted(topics) for p in re.split(r"\n\s*\n", topics[name]))
    cut = [re.findall(r"\w+|[^\w\s]", p) for p in found]
    cut = [p for p in cut if len(p) >= 12]
    vocabulary = ["?", *(word for word, _ in Counter(w for p in cut for w in p).most_common(words - 1))]
    number = {word: i for i, word in enumerate(vocabulary)}
    random.Random(0).shuffle(cut)
    return [[number.get(word, 0) for word in p] for p in cut], vocabulary


def pad(rows: list[list[int]], prompt: int = 0) -> tuple[Tensor, Tensor]:
    """Return inputs and targets (B, T), shifted by one; padding and the first words, the prompt, are not predicted."""
    longest = max(map(len, rows))
    words = torch.tensor([row + [IGNORED] * (longest - len(row)) for row in rows])
    target = words[:, 1:].clone()
    target[:, : max(prompt - 1, 0)] = IGNORED
    return words[:, :-1].clamp(min=0), target


class Tiny(nn.Module):
    """Embedding, one recurrent layer, head. The model returns hidden states; its head is left to the loss."""

    def __init__(self, words: int, features: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, features)
        self.body = nn.GRU(features, features, batch_first=True)
        self.head = nn.Linear(features, words, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, words: Tensor) -> Tensor:
        """Return hidden states (B, T, D)."""
        states: Tensor = self.body(self.embedding(words))[0]
        return states


def pretrain(model: Tiny, texts: list[list[int]], steps: int, seed: int = 0) -> float:
    """Train on the next word of some paragraphs, cut to 32 words; return the last loss."""
    choice, optimizer = random.Random(seed), torch.optim.Adam(model.parameters(), lr=5e-3)
    loss = torch.tensor(float("nan"))
    for _ in range(steps):
        inputs, target = pad([row[:32] for row in choice.sample(texts, 32)])
        loss = F.linear_cross_entropy(model(inputs), model.head.weight, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
