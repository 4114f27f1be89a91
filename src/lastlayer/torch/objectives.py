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

import math
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lastlayer._algebra import LN2, LogitStatistics, log1mexp, times
from lastlayer._validate import check_finite, check_shape, position, read_number
from lastlayer.torch.functional import require_tensors
from lastlayer.torch.statistics import eager

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

Estimator: TypeAlias = Literal["k1", "k2", "k3"]

HINTS = {
    "logprob": "pass target",
    "remainder": "pass target",
    "entropy": "pass entropy=True",
    "mean_logprob": "take them from logit_statistics or linear_logit_statistics",
}
SERIES = 0.25  # below this size exp(x) - 1 - x is summed as a series, of as many terms as float64 has digits for
COSINE_SLACK = 0.01


def nll(statistics: LogitStatistics) -> Tensor:
    """Return the negative log-likelihood -log p of each row: cross-entropy.

    Args:
        statistics: of rows with one target.

    Returns:
        The rows' shape; > 0 while the logits are finite and the type can hold it.

    Raises:
        TypeError: statistics are none.
        ValueError: statistics lack the target, or have several per row.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> z, y = torch.tensor([[0.0, 2.0, 1.0], [30.0, 0.0, 1.0]]), torch.tensor([1, 0])
        >>> objectives.nll(F.logit_statistics(z, y))
        tensor([4.0761e-01, 3.4794e-13])
    """
    return -_of_target(statistics, "nll")


def label_smoothing(statistics: LogitStatistics, *, epsilon: float = 0.1) -> Tensor:
    """Return cross-entropy against a target that keeps 1 - epsilon and spreads epsilon over all classes.

    ::

        (1 - epsilon) (-log p) + epsilon sum_j u_j (-log p_j)        u_j = 1 / V

    As in torch, the target has its share of epsilon too.

    Args:
        statistics: of rows with one target. ``class_weights`` of the statistics are the smoothing distribution u here;
            in ``F.cross_entropy`` weights mean something else.
        epsilon: in [0, 1].

    Returns:
        The rows' shape; inf where a class has the logit -inf, but for one with class weight 0.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a field is missing, several targets per row, epsilon outside [0, 1].

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> z, y = torch.tensor([[0.0, 2.0, -torch.inf]]), torch.tensor([1])
        >>> objectives.label_smoothing(F.logit_statistics(z, y))
        tensor([inf])
        >>> objectives.label_smoothing(F.logit_statistics(z, y, class_weights=torch.tensor([1.0, 1.0, 0.0])))
        tensor([0.2269])

    Source: C. Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016.
    """
    epsilon = _number("epsilon", epsilon, 0.0, 1.0)
    logprob, mean = _of_target(statistics, "label_smoothing"), _field(statistics, "mean_logprob", "label_smoothing")
    return -_times(1.0 - epsilon, logprob) - _times(epsilon, mean)


def z_loss(statistics: LogitStatistics, *, factor: float = 1e-4) -> Tensor:
    """Return factor lse^2, a term to add to a loss: it keeps the logits from drifting, which the loss alone allows.

    Args:
        statistics: with or without a target.
        factor: finite.

    Returns:
        The rows' shape.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: factor is not finite.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> s = F.logit_statistics(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([1]))
        >>> objectives.nll(s) + objectives.z_loss(s, factor=0.01)
        tensor([0.4656])

    Source: B. de Brebisson and P. Vincent, "The Z-loss", arXiv:1604.08859 (2016), for the name; A. Chowdhery et al.,
    "PaLM", JMLR 24 (2023), section 5, for this form and its 1e-4.
    """
    return _number("factor", factor) * _field(statistics, "logsumexp", "z_loss") ** 2


def focal(statistics: LogitStatistics, *, gamma: float = 2.0) -> Tensor:
    """Return -(1 - p)^gamma log p: cross-entropy that turns away from what is already learnt.

    Args:
        statistics: of rows with one target.
        gamma: finite, >= 0; 0 is cross-entropy.

    Returns:
        The rows' shape. The paper's class weight alpha_t multiplies it: ``alpha[y] * focal(...)``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a field is missing, several targets per row, gamma below 0.

    Note:
        (1 - p)^gamma is exp(gamma log(1 - p)), whose gradient is finite at p = 1 for every gamma. This is the focal
        loss of softmax. The paper's, over sigmoids of single classes, is another.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> z, y = torch.tensor([[0.0, 2.0, 1.0], [30.0, 0.0, 1.0]]), torch.tensor([1, 0])
        >>> objectives.focal(F.logit_statistics(z, y), gamma=0.5)
        tensor([2.3583e-01, 2.0524e-19])

    Source: T.-Y. Lin et al., "Focal loss for dense object detection", ICCV 2017.
    """
    gamma = _number("gamma", gamma, 0.0)
    logprob, remainder = _of_target(statistics, "focal"), _field(statistics, "remainder", "focal")
    return -torch.exp(_times(gamma, remainder)) * logprob


def poly1(statistics: LogitStatistics, *, epsilon: float = 1.0) -> Tensor:
    """Return -log p + epsilon (1 - p): cross-entropy with another weight on the first term of its series in 1 - p.

    Args:
        statistics: of rows with one target.
        epsilon: finite, >= -1, so that the first term's weight 1 + epsilon is none below 0.

    Returns:
        The rows' shape.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a field is missing, several targets per row, epsilon below -1.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> z, y = torch.tensor([[0.0, 2.0, 1.0], [30.0, 0.0, 1.0]]), torch.tensor([1, 0])
        >>> objectives.poly1(F.logit_statistics(z, y), epsilon=2.0)
        tensor([1.0771e+00, 1.0438e-12])

    Source: Z. Leng et al., "PolyLoss: a polynomial expansion perspective of classification loss functions", ICLR 2022.
    """
    epsilon, logprob = _number("epsilon", epsilon, -1.0), _of_target(statistics, "poly1")
    # -log p = (p - 1 - log p) + (1 - p): no term below 0.
    return exp_excess(logprob) + (1 + epsilon) * _one_minus_exp(logprob)


def generalized_cross_entropy(statistics: LogitStatistics, *, q: float = 0.7) -> Tensor:
    """Return (1 - p^q) / q: between cross-entropy (q towards 0) and mean absolute error 1 - p (q = 1).

    Args:
        statistics: of rows with one target.
        q: in (0, 1].

    Returns:
        The rows' shape; at most 1 / q, which it is where p = 0.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a field is missing, several targets per row, q outside (0, 1].

    Note:
        The paper's L_q, without its truncation. The gradient, -p^q that of log p, keeps its digits as p^q vanishes.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> z, y = torch.tensor([[0.0, 2.0, 1.0], [-torch.inf, 0.0, 1.0]]), torch.tensor([1, 0])
        >>> objectives.generalized_cross_entropy(F.logit_statistics(z, y), q=0.5)
        tensor([0.3688, 2.0000])

    Source: Z. Zhang and M. R. Sabuncu, "Generalized cross entropy loss for training deep neural networks with noisy
    labels", NeurIPS 2018.
    """
    q = _number("q", q, 0.0, 1.0, above=True)
    return _one_minus_exp(q * _of_target(statistics, "generalized_cross_entropy")) / q


def unlikelihood(statistics: LogitStatistics) -> Tensor:
    """Return -log(1 - p), which makes the target less likely; with K targets per row, sum_k -log(1 - p_k).

    Args:
        statistics: whose targets are the negative candidates.

    Returns:
        The rows' shape; inf where p = 1. The paper adds it, times a weight, to the likelihood of the true target,
        which comes from statistics of its own.

    Raises:
        TypeError: statistics are none.
        ValueError: a field is missing.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> z, repeated = torch.tensor([[0.0, 2.0, 1.0], [-30.0, 0.0, 1.0]]), torch.tensor([1, 0])
        >>> objectives.unlikelihood(F.logit_statistics(z, repeated))
        tensor([1.0943e+00, 2.5167e-14])

    Source: S. Welleck et al., "Neural text generation with unlikelihood training", ICLR 2020, equation 3.
    """
    logprob, remainder = (_field(statistics, name, "unlikelihood") for name in ("logprob", "remainder"))
    return -remainder if logprob.shape == remainder.shape else -_log_one_minus(logprob).sum(-1)


def entropy_bonus(statistics: LogitStatistics, *, factor: float = 0.01) -> Tensor:
    """Return -factor H, a term to add to a loss: it rewards a policy that still explores. A factor below 0 punishes.

    Args:
        statistics: with the entropy; a target is not needed.
        factor: finite.

    Returns:
        The rows' shape.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: the entropy is missing, factor is not finite.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> z = torch.tensor([[0.0, 0.0, -torch.inf]])
        >>> objectives.entropy_bonus(F.logit_statistics(z, entropy=True), factor=1.0)
        tensor([-0.6931])

    Source: V. Mnih et al., "Asynchronous methods for deep reinforcement learning", ICML 2016, section 4; R. J. Williams
    and J. Peng, Connection Science 3 (1991).
    """
    return -_number("factor", factor) * _field(statistics, "entropy", "entropy_bonus")


def confidence_penalty(statistics: LogitStatistics, *, beta: float = 0.1) -> Tensor:
    """Return -log p - beta H: cross-entropy that punishes a row of low entropy.

    Args:
        statistics: of rows with one target, with the entropy.
        beta: finite.

    Returns:
        The rows' shape.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a field is missing, several targets per row, beta is not finite.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> s = F.logit_statistics(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([1]), entropy=True)
        >>> objectives.confidence_penalty(s)
        tensor([0.3244])

    Source: G. Pereyra et al., "Regularizing neural networks by penalizing confident output distributions", ICLR 2017
    workshop.
    """
    beta = _number("beta", beta)
    return -_of_target(statistics, "confidence_penalty") - beta * _field(statistics, "entropy", "confidence_penalty")


def cosface(statistics: LogitStatistics, *, margin: float = 0.35, scale: float = 64.0) -> Tensor:
    """Return the large margin cosine loss: cross-entropy after the target's cosine is lowered by a margin.

    ::

        -log (exp(s (c_y - m)) / (exp(s (c_y - m)) + sum_{j != y} exp(s c_j))) = softplus(d + s m)

    Args:
        statistics: of logits z_j = s c_j, scale times cosines, with one target.
        margin: m, finite.
        scale: s > 0, that of the logits. With 1 the margin is in units of the logits, and these need be no cosines.

    Returns:
        The rows' shape.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a field is missing, several targets per row, a number out of range.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> cosines, y = torch.tensor([[0.3, 0.9, -0.2]]), torch.tensor([1])
        >>> objectives.cosface(F.logit_statistics(64 * cosines, y))
        tensor([1.1254e-07])

    Source: H. Wang et al., "CosFace: large margin cosine loss for deep face recognition", CVPR 2018; the same, as
    AM-Softmax: F. Wang et al., IEEE Signal Processing Letters 25 (2018).
    """
    margin, scale = _number("margin", margin), _number("scale", scale, 0.0, above=True)
    return -logsigmoid(-(_log_odds(statistics, "cosface") + scale * margin))


def arcface(statistics: LogitStatistics, *, margin: float = 0.5, scale: float = 64.0) -> Tensor:
    """Return the additive angular margin loss: cross-entropy after the angle to the target is widened by a margin.

    ::

        z_y = s cos(theta) becomes s cos(theta + m), and the loss softplus(d + s (cos(theta) - cos(theta + m)))

    Args:
        statistics: of logits z_j = s cos(theta_j), with one target.
        margin: m in radians, in [0, pi).
        scale: s > 0, that of the logits.

    Returns:
        The rows' shape.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a field is missing, several targets per row, a number out of range, a target's logit beyond +-s.

    Note:
        The paper leaves theta + m > pi open. There the authors' code, and this function, put cos(theta) - m sin(m) for
        cos(theta + m), which keeps falling (``easy_margin=False``). The slope of the margin by the cosine has no bound
        as theta goes to 0; at 0 itself the gradient is the one for a constant sin(theta).

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> cosines, y = torch.tensor([[0.3, 0.9, -0.2]]), torch.tensor([1])
        >>> objectives.arcface(F.logit_statistics(64 * cosines, y))
        tensor([1.5627e-08])

    Source: J. Deng et al., "ArcFace: additive angular margin loss for deep face recognition", CVPR 2019.
    """
    margin, scale = _number("margin", margin, 0.0), _number("scale", scale, 0.0, above=True)
    if margin >= math.pi:
        raise ValueError(f"margin = {margin} must be below pi")
    cosine = _cosine(_of_target(statistics, "arcface") + statistics.logsumexp, scale)
    square = (1 - cosine) * (1 + cosine)
    sine = torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    widened = torch.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))
    return -logsigmoid(-(_log_odds(statistics, "arcface") + scale * (cosine - widened)))


def reinforce(statistics: LogitStatistics, advantage: Tensor) -> Tensor:
    """Return -A log p: its gradient is that of the expected reward, turned round, if y was drawn from p.

    Args:
        statistics: of rows with one target, the action or token drawn.
        advantage: A, the reward less a baseline, of the rows' shape; a constant.

    Returns:
        The rows' shape.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a field is missing, several targets per row, shapes differ.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> s = F.logit_statistics(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([1]))
        >>> objectives.reinforce(s, torch.tensor([-0.5]))
        tensor([-0.2038])

    Source: R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    Machine Learning 8 (1992).
    """
    logprob = _of_target(statistics, "reinforce")
    return -_times(_constant("advantage", advantage, logprob), logprob)


def ppo_clip(
    statistics: LogitStatistics,
    advantage: Tensor,
    old_logprob: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """Return PPO's clipped surrogate, as a loss.

    ::

        -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)        rho = p / p_old

    Args:
        statistics: of rows with one target, the action or token drawn.
        advantage: A, of the rows' shape; a constant.
        old_logprob: log p_old, of the rows' shape; a constant. Without it that of the statistics themselves: rho = 1,
            and the gradient is that of ``reinforce``.
        clip_low: in [0, 1).
        clip_high: >= 0; above clip_low it is DAPO's "clip higher".
        dual_clip: c > 1, which bounds the loss by -c A where A < 0 (Ye et al.; verl's default is 3). None: no bound, as
            in the paper and in TRL.

    Returns:
        The rows' shape.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a field is missing, several targets per row, shapes differ, a number out of range.

    Note:
        For A >= 0 only the upper bound can be active and for A < 0 only the lower one, so the *logarithm* of rho is
        bounded: a ratio that overflows is infinite only where the loss is. verl bounds log rho by +-20 besides; this
        does not.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> z, y = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0]]), torch.tensor([1, 1])
        >>> objectives.ppo_clip(F.logit_statistics(z, y), torch.tensor([1.0, -1.0]), torch.tensor([-1.0, -1.0]))
        tensor([-1.2000,  1.8083])

    Source: J. Schulman et al., "Proximal policy optimization algorithms", arXiv:1707.06347 (2017); D. Ye et al.,
    "Mastering complex control in MOBA games with deep reinforcement learning", AAAI 2020; Q. Yu et al., "DAPO",
    arXiv:2503.14476 (2025).
    """
    clip_low, clip_high = _number("clip_low", clip_low, 0.0), _number("clip_high", clip_high, 0.0)
    if clip_low >= 1:
        raise ValueError(f"clip_low = {clip_low} must be below 1")
    logprob = _of_target(statistics, "ppo_clip")
    log_rho = logprob - _constant("old_logprob", logprob if old_logprob is None else old_logprob, logprob)
    gain = _constant("advantage", advantage, logprob)
    most = math.inf if dual_clip is None else math.log(_number("dual_clip", dual_clip, 1.0, above=True))
    rising, falling = log_rho.clamp(max=math.log1p(clip_high)), log_rho.clamp(math.log1p(-clip_low), most)
    return -gain * torch.exp(torch.where(gain < 0, falling, rising))


def kl(statistics: LogitStatistics, reference_logprob: Tensor, *, estimator: Estimator = "k3") -> Tensor:
    """Return an estimate of KL(p || p_ref) from the one class y that was drawn from p.

    ::

        k1 = -log r        k2 = (log r)^2 / 2        k3 = (r - 1) - log r        r = p_ref / p

    k1 is unbiased and may be below 0; k2 is >= 0 and biased; k3 is both unbiased and >= 0.

    Args:
        statistics: of rows with one target.
        reference_logprob: log p_ref of the same classes, of the rows' shape; a constant.
        estimator: "k1", "k2" or "k3".

    Returns:
        The rows' shape. Its mean over draws from p is what the estimate is of.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a field is missing, several targets per row, shapes differ, an unknown estimator.

    Note:
        That is about values. As a *loss*, under draws from p: the mean gradient of k1 is 0, that of k2 is the gradient
        of KL(p || p_ref), that of k3 is the gradient of KL(p_ref || p). To follow KL(p || p_ref) with k1, take it off
        the reward. Near r = 1 k3 is summed as a series, so that it keeps its digits and is never below 0. verl bounds
        log r by +-20 and k3 by 10, beyond which it has no gradient; this does not.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> z, y = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0]]), torch.tensor([0, 1])
        >>> reference = torch.tensor([-2.0, -0.4077])
        >>> objectives.kl(F.logit_statistics(z, y), reference, estimator="k1")
        tensor([-4.0761e-01,  9.4056e-05])
        >>> objectives.kl(F.logit_statistics(z, y), reference)
        tensor([9.5609e-02, 4.4231e-09])

    Source: J. Schulman, "Approximating KL divergence", joschu.net (2020).
    """
    if estimator not in get_args(Estimator):
        raise ValueError(f"estimator = {estimator!r} is not one of {', '.join(map(repr, get_args(Estimator)))}")
    logprob = _of_target(statistics, "kl")
    log_r = _constant("reference_logprob", reference_logprob, logprob) - logprob
    if estimator == "k1":
        return -log_r
    return log_r**2 / 2 if estimator == "k2" else exp_excess(log_r)


def grpo(
    statistics: LogitStatistics,
    advantage: Tensor,
    old_logprob: Tensor | None = None,
    reference_logprob: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    beta: float = 0.04,
    estimator: Estimator = "k3",
) -> Tensor:
    """Return the loss of each token under GRPO: ``ppo_clip`` + beta ``kl``.

    Args:
        statistics: of rows with one target, the token drawn.
        advantage: of the rows' shape; a constant. In GRPO that of a token is its answer's: the reward less the mean of
            its group, over the group's standard deviation (without it in Dr. GRPO).
        old_logprob: as in ``ppo_clip``.
        reference_logprob: log-probabilities under the reference model, of the rows' shape; a constant. Without it there
            is no KL term, as in DAPO and Dr. GRPO.
        clip_low: as in ``ppo_clip``.
        clip_high: as in ``ppo_clip``.
        dual_clip: as in ``ppo_clip``.
        beta: >= 0, the weight of the KL term: 0.04 in the paper, 0 in TRL's and 0.001 in verl's configuration.
        estimator: of ``kl``; the paper's is "k3".

    Returns:
        The rows' shape (B, T). GRPO averages over each answer's tokens, then over answers:
        ``((loss * mask).sum(1) / mask.sum(1)).mean()``. DAPO averages over all tokens: ``(loss * mask).sum() /
        mask.sum()``. Dr. GRPO divides by a constant, the longest answer allowed: ``(loss * mask).sum(1).mean() / L``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a field is missing, several targets per row, shapes differ, a number out of range.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import objectives
        >>> reward = torch.tensor([1.0, 0.0, 0.0, 1.0])  # of one group of four answers
        >>> advantage = (reward - reward.mean()) / reward.std()
        >>> z, y = torch.tensor([[0.0, 2.0, 1.0]]).expand(4, 3), torch.tensor([1, 0, 2, 1])
        >>> s = F.logit_statistics(z, y)
        >>> old = s.logprob.detach() + torch.tensor([0.1, 0.0, -0.3, 0.0])
        >>> objectives.grpo(s, advantage, old, old)
        tensor([-0.7834,  0.8660,  1.1706, -0.8660])

    Source: Z. Shao et al., "DeepSeekMath", arXiv:2402.03300 (2024), equations 3 and 4; Z. Liu et al., "Understanding
    R1-Zero-like training: a critical perspective", arXiv:2503.20783 (2025), for Dr. GRPO.
    """
    beta = _number("beta", beta, 0.0)
    loss = ppo_clip(
        statistics, advantage, old_logprob, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )  # fmt: skip
    if reference_logprob is None or beta == 0:
        return loss
    return loss + beta * kl(statistics, reference_logprob, estimator=estimator)


def sequence_logprob(logprob: Tensor, mask: Tensor, *, average: bool = False) -> Tensor:
    """Return the log-probability of each sequence: the sum, or the mean, over its tokens that count.

    Args:
        logprob: of tokens (..., T), ``statistics.logprob``.
        mask: which tokens count, (..., T), bool.
        average: whether to divide by their number, as SimPO and ORPO do.

    Returns:
        (...). A sequence without tokens has 0.

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: mask is not bool.
        ValueError: shapes differ.

    Example:
        >>> import torch
        >>> from lastlayer.torch import objectives
        >>> logprob = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -torch.inf, 0.0]])
        >>> mask = torch.tensor([[True, True, True], [True, False, False]])
        >>> objectives.sequence_logprob(logprob, mask), objectives.sequence_logprob(logprob, mask, average=True)
        (tensor([-6.0000, -0.5000]), tensor([-2.0000, -0.5000]))
    """
    require_tensors(logprob=logprob, mask=mask)
    check_shape("mask", mask, tuple(logprob.shape), ", that of logprob")
    _require_bool("mask", mask)
    total = torch.where(mask, logprob, 0.0).sum(-1)
    return total / mask.sum(-1).clamp(min=1) if average else total


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the loss of direct preference optimisation of each pair.

    ::

        -log sigmoid(h)        h = beta ((chosen - reference_chosen) - (rejected - reference_rejected))

    Args:
        chosen: log-probabilities of the answers preferred, sums over their tokens; any shape.
        rejected: of the others, in the same shape.
        reference_chosen: under the reference model, in the same shape; a constant.
        reference_rejected: likewise.
        beta: > 0.
        label_smoothing: e in [0, 0.5), the share of labels that are wrong: -(1 - e) log sigmoid(h) - e log sigmoid(-h),
            "conservative DPO", as in TRL. 0 is the paper's.

    Returns:
        The shape of the arguments.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes differ, a number out of range.

    Example:
        >>> import torch
        >>> from lastlayer.torch import objectives
        >>> chosen, rejected = torch.tensor([-12.0, -40.0]), torch.tensor([-15.0, -30.0])
        >>> objectives.dpo(chosen, rejected, torch.tensor([-13.0, -35.0]), torch.tensor([-14.0, -33.0]))
        tensor([0.5981, 1.1711])

    Source: R. Rafailov et al., "Direct preference optimization: your language model is secretly a reward model",
    NeurIPS 2023, equation 7; E. Mitchell, "A note on DPO with noisy preferences" (2023), for e.
    """
    beta, wrong = _number("beta", beta, 0.0, above=True), _number("label_smoothing", label_smoothing, 0.0)
    if wrong >= 0.5:
        raise ValueError(f"label_smoothing = {wrong} must be below 0.5")
    _same_shape(chosen=chosen, rejected=rejected)
    preferred = chosen - _constant("reference_chosen", reference_chosen, chosen, "chosen")
    h = beta * (preferred - (rejected - _constant("reference_rejected", reference_rejected, chosen, "chosen")))
    return -(1 - wrong) * logsigmoid(h) - wrong * logsigmoid(-h)


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float = 2.0, margin: float = 1.0) -> Tensor:
    """Return the loss of simple preference optimisation of each pair: no reference model, and a margin.

    ::

        -log sigmoid(beta (chosen - rejected) - margin)

    Args:
        chosen: log-probabilities of the answers preferred, *means* over their tokens; any shape.
        rejected: of the others, in the same shape.
        beta: > 0; the paper's best lie between 2 and 10.
        margin: gamma, finite. TRL and the authors' code name gamma / beta or compute beta (difference - gamma / beta),
            which is the same number.

    Returns:
        The shape of the arguments.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes differ, a number out of range.

    Example:
        >>> import torch
        >>> from lastlayer.torch import objectives
        >>> objectives.simpo(torch.tensor([-0.8, -1.5]), torch.tensor([-1.2, -0.9]))
        tensor([0.7981, 2.3051])

    Source: Y. Meng, M. Xia and D. Chen, "SimPO: simple preference optimization with a reference-free reward", NeurIPS
    2024, equation 6.
    """
    beta, margin = _number("beta", beta, 0.0, above=True), _number("margin", margin)
    _same_shape(chosen=chosen, rejected=rejected)
    return -logsigmoid(beta * (chosen - rejected) - margin)


def kto(
    logprob: Tensor,
    reference_logprob: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Return the loss of Kahneman-Tversky optimisation of each answer, which is desirable or is not.

    ::

        w_D (1 - sigmoid(beta (r - z0)))   if desirable, else   w_U (1 - sigmoid(beta (z0 - r)))

        r = logprob - reference_logprob        z0 = max(reference_point, 0)

    Args:
        logprob: of answers, sums over their tokens; any shape.
        reference_logprob: under the reference model, in the same shape; a constant.
        desirable: which ones are, bool, in the same shape.
        reference_point: z0, the mean over the batch (over all ranks) of r of mismatched pairs, each prompt with another
            one's answer; one number, or one per answer; a constant. Below 0 it counts as 0.
        beta: > 0.
        desirable_weight: w_D >= 0.
        undesirable_weight: w_U >= 0.

    Returns:
        The shape of logprob. This is the paper's lambda_y - v(x, y); TRL's "kto" is the same.

    Raises:
        TypeError: an argument is of the wrong kind.
        RuntimeError: desirable is not bool.
        ValueError: shapes differ, a number out of range.

    Note:
        1 - sigmoid(x) is computed as exp(log sigmoid(-x)), which keeps its digits and those of its slope.

    Example:
        >>> import torch
        >>> from lastlayer.torch import objectives
        >>> logprob, reference = torch.tensor([-12.0, -40.0]), torch.tensor([-13.0, -45.0])
        >>> objectives.kto(logprob, reference, torch.tensor([True, False]), torch.tensor(2.0))
        tensor([0.5250, 0.5744])

    Source: K. Ethayarajh et al., "KTO: model alignment as prospect theoretic optimization", ICML 2024, equation 8.
    """
    beta = _number("beta", beta, 0.0, above=True)
    weights = (
        _number("desirable_weight", desirable_weight, 0.0), _number("undesirable_weight", undesirable_weight, 0.0),
    )  # fmt: skip
    _same_shape(logprob=logprob, desirable=desirable)
    _require_bool("desirable", desirable)
    require_tensors(reference_point=reference_point)
    if reference_point.dim() > 0:
        check_shape("reference_point", reference_point, tuple(logprob.shape), ": one number, or one per answer")
    r = logprob - _constant("reference_logprob", reference_logprob, logprob)
    h = beta * (r - reference_point.detach().clamp(min=0))
    return torch.where(desirable, torch.full_like(h, weights[0]), weights[1]) * torch.exp(
        logsigmoid(torch.where(desirable, -h, h))
    )


def orpo(chosen: Tensor, rejected: Tensor, *, weight: float = 0.1) -> Tensor:
    """Return the loss of odds ratio preference optimisation of each pair: no reference model, and no second stage.

    ::

        -chosen - weight log sigmoid(log odds(chosen) - log odds(rejected))        log odds(x) = x - log(1 - exp(x))

    Args:
        chosen: log-probabilities of the answers preferred, *means* over their tokens; any shape.
        rejected: of the others, in the same shape.
        weight: lambda >= 0, which TRL calls beta.

    Returns:
        The shape of the arguments. The first term is the mean over the answer's tokens, as in the paper; TRL's runs
        over all tokens of the batch, the prompt's included. Two answers that are both certain have equal odds.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes differ, a number out of range.

    Example:
        >>> import torch
        >>> from lastlayer.torch import objectives
        >>> objectives.orpo(torch.tensor([-0.8, -1.5]), torch.tensor([-1.2, -0.9]))
        tensor([0.8424, 1.6219])

    Source: J. Hong, N. Lee and J. Thorne, "ORPO: monolithic preference optimization without reference model", EMNLP
    2024, equations 4 to 7.
    """
    weight = _number("weight", weight, 0.0)
    _same_shape(chosen=chosen, rejected=rejected)
    ratio = (chosen - _log_one_minus(chosen)) - (rejected - _log_one_minus(rejected))
    ratio = torch.where((chosen == 0) & (rejected == 0), 0.0, ratio)  # inf - inf
    return -chosen - weight * logsigmoid(ratio)


class _ExpExcess(torch.autograd.Function):
    """exp(x) - 1 - x as one node: autograd through the series would keep each of its terms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _exp_excess(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return upstream * torch.expm1(x)


def _exp_excess(x: Tensor) -> Tensor:
    near, tail = torch.where(x.abs() < SERIES, x, 0.0), torch.ones_like(x)
    for k in range(13, 2, -1):
        tail = 1 + near / k * tail
    # Beyond 1000 the exponential is inf, and must not meet an infinite x.
    return torch.where(x.abs() < SERIES, near * near / 2 * tail, torch.expm1(x) - x.clamp(max=1000.0))


def exp_excess(x: Tensor) -> Tensor:
    """Return exp(x) - 1 - x with all its digits: >= 0, and of slope expm1(x)."""
    return _ExpExcess.apply(x) if eager(x) else _exp_excess(x)  # type: ignore[no-untyped-call]


def _one_minus_exp(x: Tensor) -> Tensor:
    """Return 1 - exp(x) for x <= 0; expm1 alone would lose the digits of the slope -exp(x) far below 0."""
    return torch.where(x > -LN2, -torch.expm1(x), 1 - torch.exp(x))


def _log_one_minus(logprob: Tensor) -> Tensor:
    log: Tensor = log1mexp(logprob)
    return log


def _times(factor: float | Tensor, value: Tensor) -> Tensor:
    product: Tensor = times(factor, value)
    return product


def _log_odds(statistics: LogitStatistics, name: str) -> Tensor:
    return _field(statistics, "remainder", name) - _of_target(statistics, name)


def _cosine(logit: Tensor, scale: float) -> Tensor:
    cosine = logit / scale
    beyond = torch.isfinite(cosine) & (cosine.abs() > 1 + COSINE_SLACK)
    if eager(logit) and bool(beyond.any()):
        raise ValueError(
            f"the target's logit {float(logit[position(beyond)]):.6g} lies outside [-{scale:g}, {scale:g}], "
            "expected logits that are scale times cosines"
        )
    return cosine.clamp(-1.0, 1.0)


def _field(statistics: LogitStatistics, name: str, objective: str) -> Tensor:
    """Return a field that the objective needs."""
    if not isinstance(statistics, LogitStatistics):
        raise TypeError(f"statistics must be LogitStatistics, not {type(statistics).__name__}")
    value: Tensor | None = getattr(statistics, name)
    if value is None:
        raise ValueError(f"{objective} needs statistics.{name}, which is None: {HINTS[name]}")
    return value


def _of_target(statistics: LogitStatistics, objective: str) -> Tensor:
    """Return log p of the one target per row."""
    logprob = _field(statistics, "logprob", objective)
    rows = tuple(statistics.logsumexp.shape)
    check_shape("statistics.logprob", logprob, rows, f": {objective} takes one target per row")
    return logprob


def _constant(name: str, value: Tensor, like: Tensor, of: str = "logprob") -> Tensor:
    """Return a tensor that gets no gradient; it must have the shape of ``like``, which broadcasting would hide."""
    require_tensors(**{name: value})
    check_shape(name, value, tuple(like.shape), f", that of {of}: expand it")
    return value.detach()


def _same_shape(**tensors: Tensor) -> None:
    require_tensors(**tensors)
    (first, one), (second, other) = tensors.items()
    check_shape(second, other, tuple(one.shape), f", that of {first}")


def _require_bool(name: str, value: Tensor) -> None:
    if value.dtype != torch.bool:
        raise RuntimeError(f"{name} has dtype {value.dtype}, expected bool")


def _number(name: str, value: float, least: float = -math.inf, most: float = math.inf, *, above: bool = False) -> float:
    """Return a hyper-parameter as a finite float in [least, most], or in (least, most]."""
    check_finite(name, value)
    number = float(read_number(name, value))
    if number < least or number > most or (above and number == least):
        bounds = f"{'above' if above else 'at least'} {least:g}" + (f" and at most {most:g}" if most < math.inf else "")
        raise ValueError(f"{name} = {number:g} must be {bounds}")
    return number
