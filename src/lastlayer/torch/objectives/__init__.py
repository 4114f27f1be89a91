r"""Training objectives as functions of the statistics of rows: ``F.logit_statistics`` and its twin on hidden states.

What is here is published, widely used, and a function of a row's statistics; whatever needs the whole row is not (see
distillation.py). The law: each function is its paper's formula, to the digits of the statistics, also where p rounds to
1 or to 0, and its gradient is finite wherever it is.

Per-token functions take ``LogitStatistics``, then tensors of the rows' shape, then keywords, and return one value per
row: ``functools.partial(focal, gamma=1.5)`` is a loss for ``F.linear_loss``. Those of whole sequences (dpo, simpo, kto,
orpo) take what ``sequence_logprob`` returns. Advantages, old and reference log-probabilities count as constants.

Nothing is averaged here. Divide the sum over the tokens that count by their number (token mean), average each sequence
first (sequence mean), or divide by a constant (Dr. GRPO). Where ``target`` is ignored the statistics are 0: so is the
gradient, but not each loss; leave such rows out of the sum: ``loss[mask].sum() / mask.sum()``.

Letters: z logits, y target, p = p_y its probability, d = log((1 - p) / p) the log-odds of "not the target", H entropy,
lse LogSumExp; A advantage, rho ratio of new to old probability; V classes.
"""

from __future__ import annotations

from lastlayer.torch.objectives.sequences import dpo, kto, orpo, sequence_logprob, simpo
from lastlayer.torch.objectives.tokens import (
    arcface,
    confidence_penalty,
    cosface,
    entropy_bonus,
    focal,
    generalized_cross_entropy,
    grpo,
    kl,
    label_smoothing,
    nll,
    poly1,
    ppo_clip,
    reinforce,
    unlikelihood,
    z_loss,
)

__all__ = [
    "arcface",
    "confidence_penalty",
    "cosface",
    "dpo",
    "entropy_bonus",
    "focal",
    "generalized_cross_entropy",
    "grpo",
    "kl",
    "kto",
    "label_smoothing",
    "nll",
    "orpo",
    "poly1",
    "ppo_clip",
    "reinforce",
    "sequence_logprob",
    "simpo",
    "unlikelihood",
    "z_loss",
]
