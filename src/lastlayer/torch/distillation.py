r"""Divergences of a student from its teacher: of the teacher's top K log-probabilities, and of whole rows of logits.

The law: each sum is written so that all of its terms are >= 0. So no divergence is below 0, and the smallest ones keep
their digits. With r_j = log q_j - log p_j, and as p and q both sum to 1,

    KL(p || q) = sum_j p_j (exp(r_j) - 1 - r_j)

The plain sum of -p_j r_j cancels down to noise of either sign where p and q are close. What remains is the rounding of
r_j, about eps |log p_j|, and it enters squared, or times r_j. Equal arguments give exactly 0. A class of probability 0
under both counts 0; one that only the second argument of a KL rules out makes it inf.

``top_k_*`` are functions of the statistics of logits with K targets per row, the classes that the teacher named
(objectives/ has those with one): all other classes count as one, the remainder. They are losses for
``F.linear_loss``. The others take whole rows. Nothing is averaged, and gradients flow to teacher and student alike:
take the teacher's numbers under ``torch.no_grad()``.

Temperature T: both sides must have it *before* softmax. Take the student's statistics of z / T (on hidden states
``scale=1 / T``) and the teacher's top K of its own logits / T (from those at T = 1 they cannot be had); multiply the
result by T^2, which keeps the gradient's size (Hinton et al.).

Letters: p, q probabilities, t the teacher's, s the student's, R the remainder, K classes named; V classes.
Source: G. Hinton, O. Vinyals and J. Dean, "Distilling the knowledge in a neural network", arXiv:1503.02531 (2015),
except where a function names another.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lastlayer import _algebra
from lastlayer._algebra import LogitStatistics
from lastlayer._validate import check_shape, element, position, read_number
from lastlayer.torch.functional import log_softmax, require_one_device, require_tensors
from lastlayer.torch.objectives.arithmetic import SERIES, exp_excess
from lastlayer.torch.statistics import eager, wide

__all__ = ["forward_kl", "jsd", "reverse_kl", "top_k_forward_kl", "top_k_jsd", "top_k_reverse_kl"]

MOST = 1.1  # a larger sum of probabilities is no rounding, not even of bfloat16


def top_k_forward_kl(statistics: LogitStatistics, teacher_logprob: Tensor, *, remainder: bool = True) -> Tensor:
    """Return KL(teacher || student) over the K classes that the teacher named and the remainder.

    ::

        sum_k t_k log(t_k / s_k) + t_R log(t_R / s_R)        t_R = 1 - sum_k t_k

    Args:
        statistics: of the student, with K targets per row.
        teacher_logprob: log t_k of the same classes in the same order, (..., K); of all of the teacher's classes, not
            scaled to sum to 1.
        remainder: whether the last term counts. Without it the sum is no divergence: it may be below 0, and where it is
            least the K classes have all of the student's mass.

    Returns:
        The rows' shape. A lower bound of the KL over all classes. inf where a class with t > 0 is -inf for the student.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: the student has no K targets, shapes differ, the teacher's probabilities sum to more than 1.1.

    Note:
        1 - sum t is known to the rounding of the teacher's numbers. Where these sum to a little more than 1 they are
        scaled to 1 and leave no remainder. Where the student has no other classes (K = V), what the teacher leaves by
        rounding is not held against it.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import distillation
        >>> z, teacher = torch.tensor([[0.0, 2.0, 1.0, -1.0]]), torch.tensor([[0.5, 2.0, 0.0, -1.0]])
        >>> top = F.log_softmax(teacher, dim=1).topk(2)
        >>> distillation.top_k_forward_kl(F.logit_statistics(z, top.indices), top.values)
        tensor([0.0701])
        >>> distillation.forward_kl(z, teacher)
        tensor([0.0810])

    Source: the remainder as a class keeps the estimate from its bias towards the K classes, which A. Anshumann et al.,
    "Sparse logit sampling: accelerating knowledge distillation in LLMs", ACL 2025, describe.
    """
    if not remainder:
        t, s = _rounded_to_one(teacher_logprob), _student(statistics, teacher_logprob)[..., :-1]
        return -_where_possible(t, s - t).sum(-1)
    s = _student(statistics, teacher_logprob)
    return _kl(_teacher(teacher_logprob, s), s)


def top_k_reverse_kl(statistics: LogitStatistics, teacher_logprob: Tensor) -> Tensor:
    """Return KL(student || teacher) over the K classes that the teacher named and the remainder.

    ::

        sum_k s_k log(s_k / t_k) + s_R log(s_R / t_R)        t_R = 1 - sum_k t_k

    Args:
        statistics: of the student, with K targets per row.
        teacher_logprob: as in ``top_k_forward_kl``.

    Returns:
        The rows' shape. A lower bound of the KL over all classes.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: the student has no K targets, shapes differ, the teacher's probabilities sum to more than 1.1.

    Note:
        A teacher whose K probabilities sum to 1 or more, as rounding makes confident ones do, rules everything else
        out, and the divergence would be inf: its remainder then counts as one rounding, eps of its type.

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import distillation
        >>> z, teacher = torch.tensor([[0.0, 2.0, 1.0, -1.0]]), torch.tensor([[0.5, 2.0, 0.0, -1.0]])
        >>> top = F.log_softmax(teacher, dim=1).topk(2)
        >>> distillation.top_k_reverse_kl(F.logit_statistics(z, top.indices), top.values)
        tensor([0.0774])

    Source: Y. Gu et al., "MiniLLM: knowledge distillation of large language models", ICLR 2024, for the direction.
    """
    s = _student(statistics, teacher_logprob)
    t, least = _teacher(teacher_logprob, s), math.log(torch.finfo(teacher_logprob.dtype).eps)
    last = t[..., -1:]
    last = torch.where((last == -math.inf) & (s[..., -1:] > -math.inf), least, last)
    return _kl(s, torch.cat([t[..., :-1], last], -1))


def top_k_jsd(statistics: LogitStatistics, teacher_logprob: Tensor, *, beta: float = 0.5) -> Tensor:
    """Return the generalised Jensen-Shannon divergence over the K classes that the teacher named and the remainder.

    Args:
        statistics: of the student, with K targets per row.
        teacher_logprob: as in ``top_k_forward_kl``.
        beta: the teacher's share of the mixture, as in ``jsd``.

    Returns:
        The rows' shape; always finite. A lower bound of the divergence over all classes.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: the student has no K targets, shapes differ, the teacher's probabilities sum to more than 1.1, beta
            outside (0, 1).

    Example:
        >>> import torch
        >>> import lastlayer.torch as F
        >>> from lastlayer.torch import distillation
        >>> z, teacher = torch.tensor([[0.0, 2.0, 1.0, -1.0]]), torch.tensor([[0.5, 2.0, 0.0, -1.0]])
        >>> top = F.log_softmax(teacher, dim=1).topk(2)
        >>> distillation.top_k_jsd(F.logit_statistics(z, top.indices), top.values)
        tensor([0.0181])
    """
    s = _student(statistics, teacher_logprob)
    return _jsd(_teacher(teacher_logprob, s), s, _share(beta))


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return KL(teacher || student) of each pair of rows: the student must cover all that the teacher may say.

    ::

        sum_j t_j log(t_j / s_j)

    Args:
        student_logits: (..., V); float16, bfloat16, float32 or float64.
        teacher_logits: in the same shape; -inf rules a class out.

    Returns:
        (...): float32, or float64 if one argument is. >= 0; inf where a class that the teacher allows is -inf for the
        student.

    Raises:
        RuntimeError: dtypes or devices do not fit.
        TypeError: an argument is no tensor.
        ValueError: shapes differ, or there are no classes.

    Note:
        Holds several arrays of the logits' size. ``F.cross_entropy(student, t)`` with the teacher's probabilities is
        the same loss plus the teacher's entropy: less memory, the same gradient, but no zero.

    Example:
        >>> import torch
        >>> from lastlayer.torch import distillation
        >>> student = torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0]])
        >>> teacher = torch.tensor([[0.0, 2.0, 1.001], [-torch.inf, 2.0, 1.0]])
        >>> distillation.forward_kl(student, teacher)
        tensor([9.2453e-08, 9.4344e-02])
    """
    s, t = _distributions(student_logits, teacher_logits)
    return _kl(t, s)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return KL(student || teacher) of each pair of rows: the student must say only what the teacher may say.

    ::

        sum_j s_j log(s_j / t_j)

    Args:
        student_logits: (..., V); float16, bfloat16, float32 or float64.
        teacher_logits: in the same shape; -inf rules a class out.

    Returns:
        (...): float32, or float64 if one argument is. >= 0; inf where a class that the student allows is -inf for the
        teacher.

    Raises:
        RuntimeError: dtypes or devices do not fit.
        TypeError: an argument is no tensor.
        ValueError: shapes differ, or there are no classes.

    Example:
        >>> import torch
        >>> from lastlayer.torch import distillation
        >>> student = torch.tensor([[0.0, 2.0, 1.0], [-torch.inf, 2.0, 1.0]])
        >>> distillation.reverse_kl(student, torch.tensor([[0.0, 2.0, 1.001], [0.0, 2.0, 1.0]]))
        tensor([9.2438e-08, 9.4344e-02])

    Source: Y. Gu et al., "MiniLLM: knowledge distillation of large language models", ICLR 2024, for the direction.
    """
    s, t = _distributions(student_logits, teacher_logits)
    return _kl(s, t)


def jsd(student_logits: Tensor, teacher_logits: Tensor, *, beta: float = 0.5) -> Tensor:
    """Return the generalised Jensen-Shannon divergence of each pair of rows.

    ::

        beta KL(t || m) + (1 - beta) KL(s || m)        m = beta t + (1 - beta) s

    Args:
        student_logits: (..., V); float16, bfloat16, float32 or float64.
        teacher_logits: in the same shape; -inf rules a class out.
        beta: in (0, 1), the teacher's share of the mixture; 1/2 is the Jensen-Shannon divergence. Divided by beta, the
            limit towards 0 is ``forward_kl``; divided by 1 - beta, the limit towards 1 is ``reverse_kl``. TRL and Liger
            take beta as this does, and give those two for 0 and 1.

    Returns:
        (...): float32, or float64 if one argument is. >= 0, and at most ln 2; always finite.

    Raises:
        RuntimeError: dtypes or devices do not fit.
        TypeError: an argument is of the wrong kind.
        ValueError: shapes differ, there are no classes, beta outside (0, 1).

    Example:
        >>> import torch
        >>> from lastlayer.torch import distillation
        >>> student = torch.tensor([[0.0, 2.0, 1.0], [-torch.inf, 2.0, -torch.inf]])
        >>> distillation.jsd(student, torch.tensor([[0.0, 2.0, 1.001], [0.0, -torch.inf, 0.0]]))
        tensor([2.3111e-08, 6.9315e-01])

    Source: R. Agarwal et al., "On-policy distillation of language models: learning from self-generated mistakes", ICLR
    2024, equation 1.
    """
    share, (s, t) = _share(beta), _distributions(student_logits, teacher_logits)
    return _jsd(t, s, share)


def _kl(logp: Tensor, logq: Tensor) -> Tensor:
    """Return KL(p || q) over the last axis."""
    return _terms(logp, logq, _difference(logq, logp)).sum(-1)


def _jsd(logp: Tensor, logq: Tensor, beta: float) -> Tensor:
    """Return beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, over the last axis.

    Of p and q, log m is taken relative to the larger one, L: log(m / L) = log1p(share of the other (other / L - 1)).
    """
    r = _difference(logq, logp)
    lower, share = torch.where(r > 0, -r, r), torch.where(r > 0, torch.full_like(r, beta), 1 - beta)
    below = torch.log1p(share * torch.expm1(lower))
    logm = torch.where(r > 0, logq, logp) + below
    to_p, to_q = below + torch.where(r > 0, r, 0.0), below - torch.where(r > 0, 0.0, r)
    return (beta * _terms(logp, logm, to_p) + (1 - beta) * _terms(logq, logm, to_q)).sum(-1)


def _difference(logq: Tensor, logp: Tensor) -> Tensor:
    """Return log q - log p, 0 where both probabilities are 0."""
    return torch.where((logq == -math.inf) & (logp == -math.inf), 0.0, logq - logp)


def _terms(logp: Tensor, logq: Tensor, r: Tensor) -> Tensor:
    """Return p (exp(r) - 1 - r) with r = log q - log p; where p = 0 that is q."""
    p, near = torch.exp(logp), r.abs() < SERIES
    return torch.where(near, p * exp_excess(torch.where(near, r, 0.0)), torch.exp(logq) - p - _where_possible(logp, r))


def _where_possible(logp: Tensor, r: Tensor) -> Tensor:
    """Return p r, 0 where p = 0 in its type, however infinite r is."""
    p = torch.exp(logp)
    return p * torch.where(p > 0, r, 0.0)


def _distributions(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    require_tensors(student_logits=student, teacher_logits=teacher)
    for name, z in (("student_logits", student), ("teacher_logits", teacher)):
        if not z.is_floating_point():
            raise RuntimeError(f"{name} has dtype {z.dtype}, expected a floating type")
        if z.dim() < 1 or z.shape[-1] == 0:
            raise ValueError(f"{name} has shape {tuple(z.shape)}, expected (..., V) with at least one class")
    check_shape("teacher_logits", teacher, tuple(student.shape), ", that of student_logits")
    require_one_device(student, teacher_logits=teacher)
    return log_softmax(wide(student), -1), log_softmax(wide(teacher), -1)


def _student(statistics: LogitStatistics, teacher_logprob: Tensor) -> Tensor:
    """Return the student's log-probabilities of the K classes and of the remainder, (..., K + 1)."""
    if not isinstance(statistics, LogitStatistics):
        raise TypeError(f"statistics must be LogitStatistics, not {type(statistics).__name__}")
    require_tensors(teacher_logprob=teacher_logprob)
    logprob: Tensor | None = statistics.logprob
    if logprob is None or logprob.shape == statistics.logsumexp.shape:
        found = None if logprob is None else tuple(logprob.shape)
        raise ValueError(
            f"statistics.logprob is {found}, expected (..., K): pass target=teacher_index with K classes per row"
        )
    check_shape("teacher_logprob", teacher_logprob, tuple(logprob.shape), ", that of statistics.logprob")
    if not teacher_logprob.is_floating_point():
        raise RuntimeError(f"teacher_logprob has dtype {teacher_logprob.dtype}, expected a floating type")
    return torch.cat([logprob, statistics.remainder[..., None]], -1)


def _rounded_to_one(teacher_logprob: Tensor) -> Tensor:
    """Return the teacher's log-probabilities, scaled to sum to 1 where they sum to more."""
    t = wide(teacher_logprob)
    total: Tensor = _algebra.logsumexp(_algebra.fold(t))
    if eager(t) and bool((total > math.log(MOST)).any()):
        at = position(total > math.log(MOST))
        raise ValueError(
            f"the probabilities of {element('teacher_logprob', at)} sum to {math.exp(min(float(total[at]), 700)):.4g}, "
            "expected at most 1: pass log-probabilities, not logits or probabilities"
        )
    return t - total.clamp(min=0)[..., None]


def _teacher(teacher_logprob: Tensor, student: Tensor) -> Tensor:
    """Return the teacher's log-probabilities of the K classes and of the remainder, (..., K + 1)."""
    t = _rounded_to_one(teacher_logprob)
    total = _algebra.logsumexp(_algebra.fold(t)).clamp(max=0)
    rounding = math.sqrt(torch.finfo(teacher_logprob.dtype).eps)
    nobody = (student[..., -1] == -math.inf) & (total > -rounding)
    left = torch.where(nobody, -math.inf, _algebra.log1mexp(total))
    return torch.cat([t, left[..., None]], -1)


def _share(beta: float) -> float:
    share = float(read_number("beta", beta))
    if not 0 < share < 1:
        raise ValueError(f"beta = {beta} must be above 0 and below 1: those are forward_kl and reverse_kl")
    return share
