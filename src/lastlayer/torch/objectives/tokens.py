"""Objectives of single tokens: functions of ``LogitStatistics`` that return one value per row (see __init__.py)."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lastlayer._algebra import LogitStatistics
from lastlayer._validate import position
from lastlayer.torch.objectives.arguments import bounded, constant_like, field_of, logprob_of
from lastlayer.torch.objectives.arithmetic import exp_excess, log_one_minus, one_minus_exp, product
from lastlayer.torch.statistics import eager

Estimator: TypeAlias = Literal["k1", "k2", "k3"]

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
    return -logprob_of(statistics, "nll")


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
    epsilon = bounded("epsilon", epsilon, 0.0, 1.0)
    logprob, mean = logprob_of(statistics, "label_smoothing"), field_of(statistics, "mean_logprob", "label_smoothing")
    return -product(1.0 - epsilon, logprob) - product(epsilon, mean)


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
    return bounded("factor", factor) * field_of(statistics, "logsumexp", "z_loss") ** 2


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
    gamma = bounded("gamma", gamma, 0.0)
    logprob, remainder = logprob_of(statistics, "focal"), field_of(statistics, "remainder", "focal")
    return -torch.exp(product(gamma, remainder)) * logprob


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
    epsilon, logprob = bounded("epsilon", epsilon, -1.0), logprob_of(statistics, "poly1")
    # -log p = (p - 1 - log p) + (1 - p): no term below 0.
    return exp_excess(logprob) + (1 + epsilon) * one_minus_exp(logprob)


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
    q = bounded("q", q, 0.0, 1.0, above=True)
    return one_minus_exp(q * logprob_of(statistics, "generalized_cross_entropy")) / q


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
    logprob, remainder = (field_of(statistics, name, "unlikelihood") for name in ("logprob", "remainder"))
    return -remainder if logprob.shape == remainder.shape else -log_one_minus(logprob).sum(-1)


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
    return -bounded("factor", factor) * field_of(statistics, "entropy", "entropy_bonus")


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
    beta = bounded("beta", beta)
    return -logprob_of(statistics, "confidence_penalty") - beta * field_of(statistics, "entropy", "confidence_penalty")


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
    margin, scale = bounded("margin", margin), bounded("scale", scale, 0.0, above=True)
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
    margin, scale = bounded("margin", margin, 0.0), bounded("scale", scale, 0.0, above=True)
    if margin >= math.pi:
        raise ValueError(f"margin = {margin} must be below pi")
    cosine = _cosine(logprob_of(statistics, "arcface") + statistics.logsumexp, scale)
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
    logprob = logprob_of(statistics, "reinforce")
    return -product(constant_like("advantage", advantage, logprob), logprob)


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
    clip_low, clip_high = bounded("clip_low", clip_low, 0.0), bounded("clip_high", clip_high, 0.0)
    if clip_low >= 1:
        raise ValueError(f"clip_low = {clip_low} must be below 1")
    logprob = logprob_of(statistics, "ppo_clip")
    log_rho = logprob - constant_like("old_logprob", logprob if old_logprob is None else old_logprob, logprob)
    gain = constant_like("advantage", advantage, logprob)
    most = math.inf if dual_clip is None else math.log(bounded("dual_clip", dual_clip, 1.0, above=True))
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
    logprob = logprob_of(statistics, "kl")
    log_r = constant_like("reference_logprob", reference_logprob, logprob) - logprob
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
    beta = bounded("beta", beta, 0.0)
    loss = ppo_clip(
        statistics, advantage, old_logprob, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )  # fmt: skip
    if reference_logprob is None or beta == 0:
        return loss
    return loss + beta * kl(statistics, reference_logprob, estimator=estimator)


def _log_odds(statistics: LogitStatistics, name: str) -> Tensor:
    return field_of(statistics, "remainder", name) - logprob_of(statistics, name)


def _cosine(logit: Tensor, scale: float) -> Tensor:
    cosine = logit / scale
    beyond = torch.isfinite(cosine) & (cosine.abs() > 1 + COSINE_SLACK)
    if eager(logit) and bool(beyond.any()):
        raise ValueError(
            f"the target's logit {float(logit[position(beyond)]):.6g} lies outside [-{scale:g}, {scale:g}], "
            "expected logits that are scale times cosines"
        )
    return cosine.clamp(-1.0, 1.0)
