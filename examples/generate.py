"""Exact, seeded draws in generate() of the transformers library, with the log-probabilities they were drawn with.

    python examples/generate.py [tokens]

The model has random weights. A sequence is the same whatever else is in its batch, and what the draws report is what
the model's own logits say.
"""

from __future__ import annotations

import sys
import warnings

import torch

import lastlayer.torch as F
from lastlayer.torch.generation import ExactSampling

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its import
    from transformers import GPT2Config, GPT2LMHeadModel

WORDS, PAD, END = 500, 0, 1
PROMPTS = {11: [5, 6, 7, 8], 12: [9, 10], 13: [20, 21, 22]}  # by seed


def small() -> GPT2LMHeadModel:
    """Return a model of random weights."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS, n_positions=128, n_embd=48, n_layer=2, n_head=4, initializer_range=0.3,
        bos_token_id=END, eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def generate(model: GPT2LMHeadModel, seeds: list[int], tokens: int) -> F.Sample:
    """Return the draws that go on with the prompts of these seeds."""
    rows = [PROMPTS[seed] for seed in seeds]
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    sampling = ExactSampling(seed=seeds)
    model.generate(
        input_ids=ids, attention_mask=(ids != PAD).long(), max_new_tokens=tokens, custom_generate=sampling,
        do_sample=True, temperature=0.8, top_k=50, top_p=0.95, repetition_penalty=1.1,
    )  # fmt: skip
    return sampling.sample


@torch.no_grad()
def main(tokens: int = 12) -> None:
    """Print what was drawn, how likely it was, and that the batch does not matter."""
    model, seeds = small(), list(PROMPTS)
    together = generate(model, seeds, tokens)
    print("seed   tokens   log p of the model   of what was drawn from   kept   first tokens")
    for i, seed in enumerate(seeds):
        alive = together.index[i] >= 0
        model_sum, drawn_sum = together.logprob[i].sum(), together.sampled_logprob[i].sum()
        kept = together.kept[i][alive].double().mean()
        first = together.index[i][alive][:6].tolist()
        print(f"{seed:4} {alive.sum():8} {model_sum:21.4f} {drawn_sum:24.4f} {kept:6.1f}   {first}")
    for i, seed in enumerate(seeds):
        alone = generate(model, [seed], tokens).index[0]
        assert torch.equal(alone, together.index[i][: len(alone)])
    print("each alone, in a batch of its own: the same tokens")
    sequence = torch.tensor([PROMPTS[seeds[0]] + [word for word in together.index[0].tolist() if word >= 0]])
    prompt = len(PROMPTS[seeds[0]])
    nll = F.cross_entropy(model(sequence).logits[0, prompt - 1 : -1], sequence[0, prompt:], reduction="sum")
    print(f"cross-entropy of the first by a forward pass {nll:.4f}, by the draws {-together.logprob[0].sum():.4f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
