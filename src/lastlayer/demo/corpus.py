"""Text to tokens: reading, splitting off the held-out tenth, byte-pair tokens, and the unigram baseline.

Of a hundred equal stretches every tenth is held out. The tokens are learned from the other ninety alone, so what is
scored was seen by nothing: not by the model, not by the tokenizer, not by the baseline.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from lastlayer.demo.options import DemoError, Options

STRETCHES = 100
HELD_OUT_TOKENS = 16384  # scored at most: keeps the evaluation of a long text within seconds


@dataclass(frozen=True)
class Corpus:
    """One text as tokens (int64) and what is needed to go back to bytes."""

    name: str
    bytes: int
    tokenizer: Tokenizer
    training: Tensor  # (n,)
    held_out: Tensor  # (k,); the first token is context only
    token_bytes: Tensor  # (V,) length of each token in bytes of UTF-8
    counts: Tensor  # (V,) occurrences in training

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.counts)

    @property
    def scored(self) -> Tensor:
        """The held-out tokens that are predicted, (k - 1,)."""
        return self.held_out[1:]

    @property
    def scored_bytes(self) -> int:
        """Bytes of UTF-8 in ``scored``."""
        return int(self.token_bytes[self.scored].sum())

    def unigram(self) -> Tensor:
        """Return log((count + 1) / (n + V)), (V,) in float64: training frequencies with add-one smoothing."""
        n, V = len(self.training), self.vocab_size
        return ((self.counts + 1).double() / (n + V)).log()

    def decode(self, tokens: Tensor) -> str:
        """Return the text of some tokens; bytes that are no UTF-8 become U+FFFD."""
        return str(self.tokenizer.decode(tokens.tolist(), skip_special_tokens=False))


def reference_text() -> str:
    """Return the topics of CPython's reference, each paragraph once: topics quote one another at length.

    Without that a held-out paragraph would often be in the training part as well, word for word.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DemoError("this Python comes without pydoc_data.topics; name a text with --text FILE") from None
    once = dict[str, str]()
    for _, topic in sorted(topics.items()):
        for paragraph in re.split(r"\n\s*\n", topic):
            once.setdefault(" ".join(paragraph.split()), paragraph)
    return "\n\n".join(once.values())


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, its newlines untouched."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DemoError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DemoError(f"{path} is not UTF-8 text (byte 0x{byte:02x} at offset {error.start})") from None


def _cut(text: str, here: int, there: int) -> int:
    newline = text.find("\n", here, there)
    return here if newline < 0 else newline + 1


def split(text: str) -> tuple[list[str], list[str]]:
    """Return the stretches to train on and those held out; a cut falls behind the first newline after its place."""
    places = [len(text) * i // STRETCHES for i in range(1, STRETCHES + 1)]
    cuts = [0, *(_cut(text, here, there) for here, there in pairwise(places)), len(text)]
    stretches = [text[here:there] for here, there in pairwise(cuts)]
    return [s for i, s in enumerate(stretches) if i % 10 != 9], stretches[9::10]


def byte_pairs(texts: list[str], vocab_size: int) -> Tokenizer:
    """Return byte-level byte-pair tokens learned from some texts: any text can be written in them, byte for byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load(options: Options) -> Corpus:
    """Read, split and tokenize the text that the options name."""
    if options.text is None:
        name, text = f"reference text of Python {platform.python_version()} (pydoc_data.topics)", reference_text()
    else:
        name, text = options.text.name, read_text(options.text)
    if not text.strip():
        raise DemoError(f"{name} is empty")
    training, held_out = split(text)
    tokenizer = byte_pairs(training, options.vocab_size)
    tokens = [
        torch.tensor([token for s in stretches for token in tokenizer.encode(s).ids], dtype=torch.int64)
        for stretches in (training, held_out)
    ]
    for part, ids in zip(("training", "held-out"), tokens, strict=True):
        if len(ids) <= options.context:
            needed = f"more than {options.context} needed (--context)"
            raise DemoError(f"{name} is too short: {len(ids)} {part} tokens, {needed}")
    # In the byte-level alphabet one character stands for one byte.
    lengths = {token: len(spelled) for spelled, token in tokenizer.get_vocab().items()}
    token_bytes = torch.tensor([lengths[token] for token in range(len(lengths))])
    return Corpus(
        name=name,
        bytes=len(text.encode()),
        tokenizer=tokenizer,
        training=tokens[0],
        held_out=tokens[1][: HELD_OUT_TOKENS + 1],
        token_bytes=token_bytes,
        counts=torch.bincount(tokens[0], minlength=len(lengths)),
    )
