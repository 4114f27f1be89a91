"""The arguments of objectives, checked: statistics that are there, row tensors that fit, numbers within bounds."""

from __future__ import annotations

import math

from torch import Tensor

from lastlayer._algebra import LogitStatistics
from lastlayer._validate import check_finite, check_shape, read_number
from lastlayer.torch.functional import require_tensors

HINTS = {
    "logprob": "pass target",
    "remainder": "pass target",
    "entropy": "pass entropy=True",
    "mean_logprob": "take them from logit_statistics or linear_logit_statistics",
}


def field_of(statistics: LogitStatistics, name: str, objective: str) -> Tensor:
    """Return a field that the objective needs."""
    if not isinstance(statistics, LogitStatistics):
        raise TypeError(f"statistics must be LogitStatistics, not {type(statistics).__name__}")
    value: Tensor | None = getattr(statistics, name)
    if value is None:
        raise ValueError(f"{objective} needs statistics.{name}, which is None: {HINTS[name]}")
    return value


def logprob_of(statistics: LogitStatistics, objective: str) -> Tensor:
    """Return log p of the one target per row."""
    logprob = field_of(statistics, "logprob", objective)
    rows = tuple(statistics.logsumexp.shape)
    check_shape("statistics.logprob", logprob, rows, f": {objective} takes one target per row")
    return logprob


def constant_like(name: str, value: Tensor, like: Tensor, of: str = "logprob") -> Tensor:
    """Return a tensor that gets no gradient; it must have the shape of ``like``, which broadcasting would hide."""
    require_tensors(**{name: value})
    check_shape(name, value, tuple(like.shape), f", that of {of}: expand it")
    return value.detach()


def bounded(name: str, value: float, least: float = -math.inf, most: float = math.inf, *, above: bool = False) -> float:
    """Return a hyper-parameter as a finite float in [least, most], or in (least, most]."""
    check_finite(name, value)
    number = float(read_number(name, value))
    if number < least or number > most or (above and number == least):
        bounds = f"{'above' if above else 'at least'} {least:g}" + (f" and at most {most:g}" if most < math.inf else "")
        raise ValueError(f"{name} = {number:g} must be {bounds}")
    return number
