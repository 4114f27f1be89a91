"""The same arithmetic, told step by step: each function returns a ``Trace`` of what the library's function computes.

Every step has its formula, the formula with the numbers put in, the result in the user's type beside the exact one
(mpmath), and the distance between the two in units of the last place. Traces print themselves, and show themselves in
a notebook. NumPy arrays, lists and tensors are taken, one row or several with the classes along the last dimension.

Where torch is installed, the same line of PyTorch is run and compared; importing torch takes a second, check=False
saves it. Needs ``pip install lastlayer[explain]``; importing ``lastlayer`` does not import this.

Example:
    >>> from lastlayer import explain
    >>> trace = explain.cross_entropy([[0.2, 0.5, -0.1], [-0.1, 0.1, 0.3]], [1, 2], check=False)
    >>> for step in trace.steps[-3:-1]:
    ...     print(step.name, step.value)
    negative: surprise [0.82839..., 0.91190...]
    mean 0.87014...
"""

from lastlayer.explain.distributions import cross_entropy_between, entropy, kl_divergence
from lastlayer.explain.draws import categorical, temperature, truncate
from lastlayer.explain.likelihoods import likelihood, mle
from lastlayer.explain.logits import log_softmax, logit, logsumexp, sigmoid, softmax
from lastlayer.explain.losses import cross_entropy, nll_loss, perplexity
from lastlayer.explain.trace import Step, Trace

__all__ = [
    "Step",
    "Trace",
    "categorical",
    "cross_entropy",
    "cross_entropy_between",
    "entropy",
    "kl_divergence",
    "likelihood",
    "log_softmax",
    "logit",
    "logsumexp",
    "mle",
    "nll_loss",
    "perplexity",
    "sigmoid",
    "softmax",
    "temperature",
    "truncate",
]
