"""What the model learned: nats of every held-out token, the most surprising of them, and texts drawn from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import lastlayer.torch as F
from lastlayer.demo.corpus import Corpus
from lastlayer.demo.model import LanguageModel

TEMPERATURES = (0.5, 0.8, 1.0)
PROMPT_TOKENS = 8
SAMPLE_TOKENS = 160


class Score(NamedTuple):
    """Total nats over tokens that stand for so many bytes."""

    nats: float
    tokens: int
    bytes: int

    @property
    def nats_per_token(self) -> float:
        """The mean of -log p."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the nats per token."""
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """The length of the text in bits, coded with the model, per byte of UTF-8."""
        return self.nats / math.log(2) / self.bytes


def windows(length: int, context: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first, scored, end): of the inputs [first, end), those from ``scored`` on are scored, each exactly once.

    Half a window is repeated as context, so that no token but the first few has less than half a window before it.
    """
    scored = 0
    while scored < length:
        end = min(length, scored + (context - context // 2 if scored else context))
        yield max(0, end - context), scored, end
        scored = end


@torch.no_grad()
def token_nats(model: LanguageModel, tokens: Tensor, context: int) -> Tensor:
    """Return -log p of every token but the first given those before it, (len - 1,) in float64."""
    model.eval()
    nats = torch.empty(len(tokens) - 1, dtype=torch.float64)
    for first, scored, end in windows(len(nats), context):
        hidden = model(tokens[None, first:end])[0, scored - first :]
        nats[scored:end] = model.nats(hidden, tokens[scored + 1 : end + 1])
    return nats


def score(corpus: Corpus, nats: Tensor) -> Score:
    """Return the sum over the scored held-out tokens, in float64."""
    return Score(nats.double().sum().item(), len(nats), corpus.scored_bytes)


class Surprise(NamedTuple):
    """A held-out token that the model did not expect."""

    before: str
    token: str
    after: str
    bits: float
    in_training: int


def most_surprising(corpus: Corpus, nats: Tensor, number: int = 8, least: int = 0) -> list[Surprise]:
    """Return the held-out tokens of highest surprisal that occur ``least`` times in training, each kind once."""
    tokens, found = corpus.held_out, dict[int, int]()
    known = corpus.counts[corpus.scored] >= least
    for at in nats.argsort(descending=True, stable=True).tolist():
        if known[at] and len(found) < number:
            found.setdefault(int(tokens[at + 1]), at + 1)
    return [
        Surprise(
            before=corpus.decode(tokens[max(0, at - 16) : at]),
            token=corpus.decode(tokens[at : at + 1]),
            after=corpus.decode(tokens[at + 1 : at + 9]),
            bits=nats[at - 1].item() / math.log(2),
            in_training=int(corpus.counts[token]),
        )
        for token, at in found.items()
    ]


class Text(NamedTuple):
    """A drawn text."""

    temperature: float
    prompt: str
    text: str
    bits_per_token: float  # mean surprisal of what was drawn, to the model at temperature 1


@torch.no_grad()
def sample(model: LanguageModel, corpus: Corpus, context: int, temperature: float, seed: int) -> Text:
    """Draw a continuation of the first held-out tokens, one exact draw per token."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    tokens, logprobs = corpus.held_out[:PROMPT_TOKENS], []
    for _ in range(SAMPLE_TOKENS):
        logits = model.logits(model(tokens[None, -context:])[:, -1])
        drawn = F.categorical(logits, temperature=temperature, generator=generator)
        tokens = torch.cat([tokens, drawn.index])
        logprobs.append(drawn.logprob.item())
    prompt, text = corpus.decode(tokens[:PROMPT_TOKENS]), corpus.decode(tokens[PROMPT_TOKENS:])
    return Text(temperature, prompt, text, -math.fsum(logprobs) / len(logprobs) / math.log(2))
