"""Objectives of whole sequences, of pairs or one by one: functions of what ``sequence_logprob`` returns."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lastlayer._validate import check_shape
from lastlayer.torch.functional import require_tensors
from lastlayer.torch.objectives.arguments import bounded, constant_like
from lastlayer.torch.objectives.arithmetic import log_one_minus


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
    beta, wrong = bounded("beta", beta, 0.0, above=True), bounded("label_smoothing", label_smoothing, 0.0)
    if wrong >= 0.5:
        raise ValueError(f"label_smoothing = {wrong} must be below 0.5")
    _same_shape(chosen=chosen, rejected=rejected)
    preferred = chosen - constant_like("reference_chosen", reference_chosen, chosen, "chosen")
    h = beta * (preferred - (rejected - constant_like("reference_rejected", reference_rejected, chosen, "chosen")))
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
    beta, margin = bounded("beta", beta, 0.0, above=True), bounded("margin", margin)
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
    beta = bounded("beta", beta, 0.0, above=True)
    weights = (
        bounded("desirable_weight", desirable_weight, 0.0), bounded("undesirable_weight", undesirable_weight, 0.0),
    )  # fmt: skip
    _same_shape(logprob=logprob, desirable=desirable)
    _require_bool("desirable", desirable)
    require_tensors(reference_point=reference_point)
    if reference_point.dim() > 0:
        check_shape("reference_point", reference_point, tuple(logprob.shape), ": one number, or one per answer")
    r = logprob - constant_like("reference_logprob", reference_logprob, logprob)
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
    weight = bounded("weight", weight, 0.0)
    _same_shape(chosen=chosen, rejected=rejected)
    ratio = (chosen - log_one_minus(chosen)) - (rejected - log_one_minus(rejected))
    ratio = torch.where((chosen == 0) & (rejected == 0), 0.0, ratio)  # inf - inf
    return -chosen - weight * logsigmoid(ratio)


def _same_shape(**tensors: Tensor) -> None:
    require_tensors(**tensors)
    (first, one), (second, other) = tensors.items()
    check_shape(second, other, tuple(one.shape), f", that of {first}")


def _require_bool(name: str, value: Tensor) -> None:
    if value.dtype != torch.bool:
        raise RuntimeError(f"{name} has dtype {value.dtype}, expected bool")
