"""The torch front end: ``import lastlayer.torch as F`` in place of ``import torch.nn.functional as F``.

What concerns the last layer is ours (functional.py, linear.py, sampling.py, modules.py); every other name of
torch.nn.functional is torch's. torch.compile and torch.export take these functions, torch.jit.script does not.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as _functional

from lastlayer._algebra import LogitStatistics
from lastlayer._validate import NotLogProbabilityWarning
from lastlayer.token_mean import TokenMean
from lastlayer.torch import distillation, distributions, objectives
from lastlayer.torch.accumulation import accumulation, count_tokens, merge_over_ranks
from lastlayer.torch.functional import (
    argmax,
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    log_sigmoid,
    log_softmax,
    logit,
    logsigmoid,
    logsumexp,
    nll_loss,
    sigmoid,
    softmax,
)
from lastlayer.torch.later import check_errors
from lastlayer.torch.linear import linear_cross_entropy
from lastlayer.torch.linear_sampling import LinearTopK, linear_categorical, linear_topk
from lastlayer.torch.linear_statistics import linear_logit_statistics, linear_loss
from lastlayer.torch.logits import logit_statistics
from lastlayer.torch.modules import CrossEntropyLoss, LinearCrossEntropyLoss, LogSoftmax, NLLLoss, Softmax
from lastlayer.torch.sampling import Sample, categorical, multinomial
from lastlayer.torch.speculative import SpeculativeSample, speculative_sample

__all__ = [
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "LinearTopK",
    "LogSoftmax",
    "LogitStatistics",
    "NLLLoss",
    "NotLogProbabilityWarning",
    "Sample",
    "Softmax",
    "SpeculativeSample",
    "TokenMean",
    "accumulation",
    "argmax",
    "binary_cross_entropy_with_logits",
    "categorical",
    "check_errors",
    "count_tokens",
    "cross_entropy",
    "distillation",
    "distributions",
    "kl_div",
    "linear_categorical",
    "linear_cross_entropy",
    "linear_logit_statistics",
    "linear_loss",
    "linear_topk",
    "log_sigmoid",
    "log_softmax",
    "logit",
    "logit_statistics",
    "logsigmoid",
    "logsumexp",
    "merge_over_ranks",
    "multinomial",
    "nll_loss",
    "objectives",
    "sigmoid",
    "softmax",
    "speculative_sample",
]


def __getattr__(name: str) -> Any:
    if name.startswith("__") or not hasattr(_functional, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}, nor has torch.nn.functional")
    return getattr(_functional, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_functional)})
