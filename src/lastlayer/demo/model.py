"""The body: a small causal transformer in plain torch, and the last layer on top of it, which is this library's.

tokens (B, T) -> body -> hidden states (B, T, D) -> linear_cross_entropy with the tied embedding (V, D) as weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional
from torch import Tensor, nn

import lastlayer.torch as F

DROPOUT = 0.1
HEAD_DROPOUT = 0.2  # of the hidden states that the last layer sees


def rotate(x: Tensor) -> Tensor:
    """Turn feature pairs of (..., T, d) by angles that grow with the position: rotary position embedding."""
    T, d = x.shape[-2:]
    angle = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, d, 2) / d)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def delayed(x: Tensor, steps: int) -> Tensor:
    """Return x (B, T, D) moved later in time, zeros entering."""
    return torch.nn.functional.pad(x, (0, 0, steps, -steps))


class Block(nn.Module):
    """The two tokens before mixed in, attention, and a two-layer perceptron, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.Parameter(torch.zeros(2, width))
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attended = nn.Linear(width, width, bias=False)
        self.perceptron_norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(DROPOUT)
        nn.init.zeros_(self.attended.weight)
        nn.init.zeros_(self.down.weight)

    def attention(self, x: Tensor) -> Tensor:
        """Causal multi-head attention over (B, T, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.attended(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        for steps, factor in enumerate(self.before, start=1):
            x = x + delayed(x, steps) * factor
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.down(self.up(self.perceptron_norm(x)).relu().square()))  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """Next-token model; the head's weight is the embedding, its bias starts as the unigram log-probabilities."""

    def __init__(self, unigram: Tensor, width: int, layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(len(unigram), width).normal_(std=0.02))
        self.bias = nn.Parameter(unigram.float())
        self.embedding_norm = nn.LayerNorm(width, bias=False)
        self.blocks = nn.Sequential(*(Block(width, heads=4) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        self.dropout = nn.Dropout(DROPOUT)
        self.head_dropout = nn.Dropout(HEAD_DROPOUT)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the hidden states (B, T, D) that predict the token after each of ``tokens`` (B, T)."""
        # Not self.weight[tokens]: its gradient is summed by several threads in whatever order they come.
        x = self.dropout(self.embedding_norm(torch.nn.functional.embedding(tokens, self.weight)))
        return self.head_dropout(self.norm(self.blocks(x)))  # type: ignore[no-any-return]

    def nats(self, hidden: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
        """Return -log p of each target given its hidden state, or their mean: the last layer, no logits kept."""
        return F.linear_cross_entropy(hidden, self.weight, target, linear_bias=self.bias, reduction=reduction)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V), which drawing needs."""
        return torch.nn.functional.linear(hidden, self.weight, self.bias)
