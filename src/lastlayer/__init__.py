"""The last layer of classifiers and language models, for NumPy arrays: softmax, losses and their gradients, draws.

``lastlayer.torch`` is the same in PyTorch's dialect. Importing this package imports NumPy and nothing heavier.
"""

from lastlayer import functional, information, likelihood, sampling
from lastlayer._validate import NotLogProbabilityWarning
from lastlayer.functional import (
    argmax,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_value_and_grad,
    cross_entropy,
    cross_entropy_value_and_grad,
    kl_div,
    kl_div_value_and_grad,
    log_sigmoid,
    log_softmax,
    logit,
    logsumexp,
    nll_loss,
    nll_loss_value_and_grad,
    sigmoid,
    softmax,
)
from lastlayer.information import entropy, perplexity, surprisal
from lastlayer.linear import linear_cross_entropy, linear_cross_entropy_value_and_grad
from lastlayer.linear_sampling import LinearTopK, linear_categorical, linear_topk
from lastlayer.linear_statistics import linear_logit_statistics, linear_logit_statistics_vjp
from lastlayer.sampling import Sample, categorical, multinomial
from lastlayer.speculative import SpeculativeSample, speculative_sample
from lastlayer.statistics import LogitStatistics, logit_statistics, logit_statistics_vjp
from lastlayer.token_mean import TokenMean

__version__ = "0.1.0"

__all__ = [
    "LinearTopK",
    "LogitStatistics",
    "NotLogProbabilityWarning",
    "Sample",
    "SpeculativeSample",
    "TokenMean",
    "argmax",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_value_and_grad",
    "categorical",
    "cross_entropy",
    "cross_entropy_value_and_grad",
    "entropy",
    "functional",
    "information",
    "kl_div",
    "kl_div_value_and_grad",
    "likelihood",
    "linear_categorical",
    "linear_cross_entropy",
    "linear_cross_entropy_value_and_grad",
    "linear_logit_statistics",
    "linear_logit_statistics_vjp",
    "linear_topk",
    "log_sigmoid",
    "log_softmax",
    "logit",
    "logit_statistics",
    "logit_statistics_vjp",
    "logsumexp",
    "multinomial",
    "nll_loss",
    "nll_loss_value_and_grad",
    "perplexity",
    "sampling",
    "sigmoid",
    "softmax",
    "speculative_sample",
    "surprisal",
]
