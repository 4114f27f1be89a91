"""Train a language model's head with its vocabulary spread over the ranks, beside the same head in one piece.

    torchrun --nproc-per-node 2 examples/sharded_head.py

A word is predicted from the two before it: their embeddings, averaged, are the hidden states; every rank has all of
these, and a part of the head. The text is the reference that comes with Python.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter

import torch
import torch.distributed as dist

import lastlayer.torch as F
import lastlayer.torch.distributed as D

D_MODEL, WORDS, BATCH, STEPS = 64, 4000, 1024, 40


def corpus() -> torch.Tensor:
    """Return the text as word numbers, the rarest words all as 0."""
    from pydoc_data.topics import topics

    words = re.findall(r"\w+|[^\w\s]", " ".join(topics[name] for name in sorted(topics)))
    number = {word: i for i, (word, _) in enumerate(Counter(words).most_common(WORDS - 1), start=1)}
    return torch.tensor([number.get(word, 0) for word in words])


def hidden_states(embedding: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return (N, D) from (N, 2) words."""
    return embedding[tokens].mean(1)


def main() -> None:
    """Train both heads on the same batches and compare."""
    if "RANK" not in os.environ:
        sys.exit("start it with: torchrun --nproc-per-node 2 examples/sharded_head.py")
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    text = corpus()
    torch.manual_seed(0)  # the same numbers on every rank
    embedding, head = torch.randn(WORDS, D_MODEL), torch.zeros(WORDS, D_MODEL)

    mine = head.tensor_split(ranks)[rank].clone().requires_grad_()  # this rank's words
    sharded = [embedding.clone().requires_grad_(), mine]
    whole = [embedding.clone().requires_grad_(), head.clone().requires_grad_()]
    optimizers = [torch.optim.Adam(parameters, lr=0.02) for parameters in (sharded, whole)]

    if rank == 0:
        print(f"{len(text):,} words, {WORDS:,} different ones; ranks hold {[len(h) for h in head.tensor_split(ranks)]}")
        print("step   sharded     whole   (nats per word)")
    for step in range(STEPS):
        at = torch.randint(2, len(text), (BATCH,))
        before, target = torch.stack([text[at - 2], text[at - 1]], 1), text[at]
        losses = (
            D.linear_cross_entropy(hidden_states(sharded[0], before), sharded[1], target),
            F.linear_cross_entropy(hidden_states(whole[0], before), whole[1], target),
        )
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if rank == 0 and (step % 10 == 0 or step == STEPS - 1):
            print(f"{step:4} {losses[0]:9.5f} {losses[1]:9.5f}")

    apart = (mine - whole[1].tensor_split(ranks)[rank]).abs().max().detach()
    dist.all_reduce(apart, dist.ReduceOp.MAX)
    if rank == 0:
        print(f"the weights of the two heads differ by {apart:.1e} at most")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
