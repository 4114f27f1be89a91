"""The categorical distribution as an object, in the manner of torch.distributions: from logits, or from hidden states.

The law: whatever a distribution tells is a statistic of a row of logits (logits.py, linear_statistics.py), so
``log_prob`` and ``entropy`` keep the digits of confident rows, and a sample is an exact draw (sampling.py). From hidden
states nothing of the size N x V is stored.

Letters: z logits, y value, p and q probabilities, H entropy; N rows, V classes, D features, S values per row.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Distribution, constraints
from torch.distributions.kl import register_kl
from torch.distributions.utils import lazy_property
from torch.types import _size

from lastlayer import _linear
from lastlayer._algebra import LogitStatistics
from lastlayer._validate import element, position
from lastlayer.torch.distillation import forward_kl
from lastlayer.torch.functional import log_softmax, require_tensors, softmax
from lastlayer.torch.linear import check_constants, check_shapes
from lastlayer.torch.linear_statistics import linear_logit_statistics
from lastlayer.torch.logits import check_logits, logit_statistics
from lastlayer.torch.sampling import categorical
from lastlayer.torch.statistics import eager, row_logsumexp, wide

__all__ = ["Categorical", "LinearCategorical"]

NEVER = -(1 << 62)  # an ignore_index that no value has
ONE = torch.Size()


class _Rows(Distribution):
    """What follows from the statistics of each row, wherever its logits come from."""

    _num_events: int
    _param: Tensor  # of the result's device, and with float64 of the result's type

    def _statistics(self, target: Tensor | None = None, **asked: Any) -> LogitStatistics:
        raise NotImplementedError

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Return classes (*batch_shape, count)."""
        raise NotImplementedError

    @property
    def param_shape(self) -> torch.Size:
        """The shape of the logits."""
        return torch.Size((*self.batch_shape, self._num_events))

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The integers from 0 to V - 1."""
        return constraints.integer_interval(0, self._num_events - 1)  # type: ignore[no-untyped-call]

    @property
    def mean(self) -> Tensor:
        """NaN: classes are names, not numbers."""
        kind = torch.float64 if self._param.dtype == torch.float64 else torch.float32
        return torch.full(self.batch_shape, math.nan, dtype=kind, device=self._param.device)

    @property
    def variance(self) -> Tensor:
        """NaN, as the mean."""
        return self.mean

    @property
    def mode(self) -> Tensor:
        """The most likely class, of equally likely ones the lowest."""
        with torch.no_grad():
            mode: Tensor = self._statistics(argmax=True).argmax
            return mode

    def entropy(self) -> Tensor:
        """Return H = -sum_j p_j log p_j of each row, in nats."""
        entropy: Tensor = self._statistics(entropy=True).entropy
        return entropy

    def perplexity(self) -> Tensor:
        """Return exp(H) of each row: a draw is as uncertain as one of so many equally likely classes."""
        return torch.exp(self.entropy())

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p_y of values y, which broadcast against the batch: (..., *batch_shape) in general."""
        require_tensors(value=value)
        shape = _broadcast(value, self.batch_shape)
        if self._validate_args:
            self._validate_sample(value)
        batch = shape[len(shape) - len(self.batch_shape) :]
        if 0 in shape:
            return self.mean.new_zeros(shape)
        rows = self if batch == self.batch_shape else self.expand(batch)
        y = value.long().expand(shape)
        if shape == batch:
            logprob: Tensor = rows._statistics(y).logprob
            return logprob
        target, place = _distinct(y.reshape(-1, *batch).movedim(0, -1), self._num_events)
        chosen: Tensor = rows._statistics(target).logprob.gather(-1, place)
        return chosen.movedim(-1, 0).reshape(shape)

    def sample(self, sample_shape: _size = ONE, *, generator: torch.Generator | None = None) -> Tensor:
        """Return classes (*sample_shape, *batch_shape), int64, by exact draws; ``generator`` makes the seed."""
        shape = self._extended_shape(sample_shape)
        if 0 in shape:
            return torch.empty(shape, dtype=torch.int64, device=self._param.device)
        return self._draw(math.prod(sample_shape), generator).movedim(-1, 0).reshape(shape)

    def _validate_sample(self, value: Tensor) -> None:
        bad = (value.long() != value) | (value < 0) | (value >= self._num_events)
        _refuse("value", value, bad, f"is not in the support, the integers in [0, {self._num_events})")


class Categorical(_Rows, TorchCategorical):
    """The distribution over classes with p = softmax(z), or p in proportion to weights.

    In place of ``torch.distributions.Categorical``, of which it is a subclass: same arguments, attributes and shapes.

    Args:
        probs: weights >= 0, (..., V), which are divided by their sum; instead of logits.
        logits: z, (..., V); float16, bfloat16, float32 or float64. -inf is a class of probability 0.
        validate_args: whether to check that each row has a distribution, and later that values are classes. None:
            torch's default, which is yes until the first torch.compile. The check reads the logits once.

    Attributes:
        probs: softmax(z), (..., V).
        logits: log p, (..., V): as in torch normalised, whatever was given.
        mode: the most likely class; of several, the lowest.
        batch_shape, event_shape, param_shape, support, mean, variance: as in torch; mean and variance are NaN.

    Raises:
        RuntimeError: what is not a floating tensor's dtype.
        TypeError: what is no tensor.
        ValueError: both or neither of probs and logits; no dimension, no classes; with ``validate_args`` a row that has
            no distribution, and in ``log_prob`` a value that is no class.

    Note:
        ``log_prob``, ``entropy`` and ``perplexity`` are float32, or float64 for float64 input, differentiable twice,
        and come of one read of the logits, without a copy of them. They keep all their digits in confident rows, where
        torch's are 0; the entropy is finite where logits are -inf. ``probs`` and ``logits`` are of the same type, made
        and kept when they are first asked for.

        ``kl_divergence`` takes two of these, or one of these and one of torch's, whose batches broadcast; no term of it
        is below 0, so near 0 it has digits left (distillation.py). A probability of exactly 0 in ``probs`` gets no
        gradient; its log-probability is -inf, where torch has log eps.

        ``sample`` draws with 53 bits, never a class of probability 0; its stream is not torch's.

    Example:
        >>> import torch
        >>> from lastlayer.torch.distributions import Categorical
        >>> d = Categorical(logits=torch.tensor([[0.0, 20.0, -torch.inf], [1.0, 1.0, 1.0]]))
        >>> d.log_prob(torch.tensor([1, 0])), d.perplexity(), d.mode
        (tensor([-2.0612e-09, -1.0986e+00]), tensor([1., 3.]), tensor([1, 0]))
        >>> d.sample((4,), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([4, 2])
        >>> d.log_prob(torch.tensor([[0], [1]]))
        tensor([[-2.0000e+01, -1.0986e+00],
                [-2.0612e-09, -1.0986e+00]])
        >>> torch.distributions.kl_divergence(d, Categorical(probs=torch.tensor([0.5, 0.25, 0.25])))
        tensor([1.3863, 0.0566])
    """

    has_enumerate_support = True

    def __init__(
        self, probs: Tensor | None = None, logits: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        if (probs is None) == (logits is None):
            given = "neither" if probs is None else "both"
            raise ValueError(f"expected one of `probs` and `logits`, got {given}")
        validate = self._validate_args if validate_args is None else validate_args
        if logits is not None:
            _check("logits", logits)
            self._param = logits
        elif probs is not None:
            _check("probs", probs)
            if validate:
                _check_weights(probs)
            self.probs = wide(probs) / wide(probs).sum(-1, keepdim=True)
            possible = self.probs > 0
            # Where p = 0 the slope of log p is infinite, and 0 times it NaN.
            self._param = torch.where(possible, torch.log(torch.where(possible, self.probs, 1.0)), -math.inf)
        if validate and logits is not None:
            _check_rows(logits)
        self._num_events = self._param.shape[-1]
        Distribution.__init__(self, self._param.shape[:-1], validate_args=False)
        self._validate_args = validate

    def __repr__(self) -> str:
        name = "probs" if "probs" in vars(self) else "logits"
        return f"{type(self).__name__}({name}: {self.param_shape})"

    def expand(self, batch_shape: _size, _instance: Distribution | None = None) -> Categorical:
        """Return the distribution with its batch expanded to this shape, without a copy of the logits."""
        new: Categorical = self._get_checked_instance(Categorical, _instance)  # type: ignore[no-untyped-call]
        shape = torch.Size((*batch_shape, self._num_events))
        if "probs" in vars(self):
            new.probs = self.probs.expand(shape)
        new._param, new._num_events = self._param.expand(shape), self._num_events
        Distribution.__init__(new, shape[:-1], validate_args=False)
        new._validate_args = self._validate_args
        return new

    @lazy_property
    def logits(self) -> Tensor:
        """The log-probabilities of all classes."""
        return log_softmax(wide(self._param), -1)

    @lazy_property
    def probs(self) -> Tensor:
        """The probabilities of all classes."""
        return softmax(wide(self._param), -1)

    def _statistics(self, target: Tensor | None = None, **asked: Any) -> LogitStatistics:
        return logit_statistics(self._param, target, ignore_index=NEVER, **asked)

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        drawn: Tensor = categorical(self._param, count, generator=generator).index
        return drawn


class LinearCategorical(_Rows):
    """The distribution over classes with z = softcap * tanh(scale * (W h + b) / softcap), without storing N x V logits.

    Args:
        input: hidden states h, (..., D); float16, bfloat16, float32 or float64.
        linear_weight: W, (V, D), of the input's dtype.
        linear_bias: b, (V).
        scale: multiplies the logits; 1 / T is a temperature T.
        softcap: bounds the logits to (-softcap, softcap).
        memory_budget: bytes for the workspace of each call.
        validate_args: whether to check that the hidden states are numbers (the weight is not read), and later that
            values are classes. None: torch's default, which is yes.

    Attributes:
        mode: the most likely class; of several, the lowest.
        probs, logits: of all classes, (..., V). Not kept: each use is ``dense()``.
        batch_shape, event_shape, param_shape, support, mean, variance: as in torch; mean and variance are NaN.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit; or a second derivative is asked for.
        TypeError: what is no tensor, or no number.
        ValueError: a softcap, a scale or a budget out of range; a hidden state that is NaN or infinite; in ``log_prob``
            a value that is no class.

    Note:
        ``log_prob``, ``entropy`` and ``mode`` go through the classes once each: if you need several,
        ``linear_logit_statistics`` has them all for one product. They are float32, or float64 for float64 input, and
        differentiable by input, weight and bias. Several values per row share the product. A row whose logits overflow
        has no distribution: NaN.

        ``kl_divergence`` raises: all of a row's terms p_j log(p_j / q_j) together are no statistic of it. The message
        says what to do instead.

    Example:
        >>> import torch
        >>> from lastlayer.torch.distributions import LinearCategorical
        >>> h, W = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> d = LinearCategorical(h, W, scale=2.0)
        >>> d.log_prob(torch.tensor([0, 1])), d.entropy(), d.mode
        (tensor([-0.7586, -0.7586]), tensor([0.8854, 0.8854]), tensor([0, 1]))
        >>> torch.distributions.kl_divergence(d.dense(), LinearCategorical(h, W).dense())
        tensor([0.0400, 0.0400])
    """

    arg_constraints = {"input": constraints.real_vector, "linear_weight": constraints.dependent}  # noqa: RUF012

    def __init__(
        self,
        input: Tensor,
        linear_weight: Tensor,
        *,
        linear_bias: Tensor | None = None,
        scale: float = 1.0,
        softcap: float | None = None,
        memory_budget: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        require_tensors(input=input, linear_weight=linear_weight, linear_bias=linear_bias)
        check_constants({"scale": scale, "softcap": softcap})
        _linear.check_head(softcap, scale, memory_budget)
        if linear_weight.dim() != 2:
            raise ValueError(f"linear_weight has shape {tuple(linear_weight.shape)}, expected (V, D)")
        check_shapes(input, linear_weight, linear_bias, None)
        validate = self._validate_args if validate_args is None else validate_args
        if validate and eager(input):
            _refuse("input", input, ~torch.isfinite(input), "must be finite")
        head = {"linear_bias": linear_bias, "scale": scale, "softcap": softcap, "memory_budget": memory_budget}
        self._take(input, linear_weight, head, validate)

    def _take(self, input: Tensor, linear_weight: Tensor, head: dict[str, Any], validate: bool) -> None:
        self.input, self.linear_weight, self._head = input, linear_weight, head
        self._param, self._num_events = input, linear_weight.shape[0]
        super().__init__(input.shape[:-1], validate_args=False)
        self._validate_args = validate

    def expand(self, batch_shape: _size, _instance: Distribution | None = None) -> LinearCategorical:
        """Return the distribution with its batch expanded to this shape; repeated rows are computed repeatedly."""
        new: LinearCategorical = self._get_checked_instance(LinearCategorical, _instance)  # type: ignore[no-untyped-call]
        input = self.input.expand(*batch_shape, self.input.shape[-1])
        new._take(input, self.linear_weight, self._head, self._validate_args)
        return new

    def dense(self) -> Categorical:
        """Return the same distribution with its N x V logits in memory: for KL divergences, or a second derivative."""
        bias, scale, softcap = self._head["linear_bias"], self._head["scale"], self._head["softcap"]
        b = None if bias is None else wide(bias)
        z = torch.nn.functional.linear(wide(self.input), wide(self.linear_weight), b) * scale
        if softcap is not None:
            z = softcap * torch.tanh(z / softcap)
        return Categorical(logits=z, validate_args=self._validate_args)

    @property
    def logits(self) -> Tensor:
        """The log-probabilities of all classes, (..., V)."""
        return self.dense().logits

    @property
    def probs(self) -> Tensor:
        """The probabilities of all classes, (..., V)."""
        return self.dense().probs

    def _statistics(self, target: Tensor | None = None, **asked: Any) -> LogitStatistics:
        options = {**self._head, **asked, "ignore_index": NEVER}
        return linear_logit_statistics(self.input, self.linear_weight, target, **options)

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        from lastlayer.torch.linear_sampling import linear_categorical

        drawn = linear_categorical(self.input, self.linear_weight, count, generator=generator, **self._head)
        index: Tensor = drawn.index
        return index


def _kl(p: TorchCategorical, q: TorchCategorical) -> Tensor:
    """Return KL(p || q) of each pair of rows."""
    if p._num_events != q._num_events:
        raise ValueError(f"p has {p._num_events} classes, q {q._num_events}: expected the same")
    z_p, z_q = torch.broadcast_tensors(_logits_of(p), _logits_of(q))  # type: ignore[no-untyped-call]
    return forward_kl(z_q, z_p)


def _no_kl(p: Distribution, q: Distribution) -> Tensor:
    raise NotImplementedError(
        f"KL({type(p).__name__} || {type(q).__name__}) needs all classes of both at once, which a linear head does not "
        "store. With N x V logits: kl_divergence of LinearCategorical.dense(). As a loss for q: "
        "linear_cross_entropy with p.probs as target, the same gradient. As an estimate: the mean of "
        "p.log_prob(x) - q.log_prob(x) over x = p.sample((S,))"
    )


for ours, divergence in ((Categorical, _kl), (LinearCategorical, _no_kl)):
    for pair in ((ours, ours), (ours, TorchCategorical), (TorchCategorical, ours)):
        register_kl(*pair)(divergence)  # type: ignore[no-untyped-call]


def _logits_of(d: TorchCategorical) -> Tensor:
    """Return logits; of torch's distribution, which holds log eps for a probability of 0, with -inf there."""
    if isinstance(d, Categorical):
        return d._param
    least = 2 * math.log(torch.finfo(d.logits.dtype).eps)  # a logit that underflowed to p = 0 is far below this
    return torch.where((d.probs == 0) & (d.logits > least), -math.inf, d.logits)


def _broadcast(value: Tensor, batch: torch.Size) -> torch.Size:
    try:
        return torch.Size(torch.broadcast_shapes(value.shape, batch))  # type: ignore[no-untyped-call]
    except RuntimeError:
        expected = f"{tuple(batch)}, the batch's"
        raise ValueError(f"value has shape {tuple(value.shape)}, which does not broadcast with {expected}") from None


def _distinct(y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return K distinct classes (..., K) for each row of values (..., S), all of them among these, and their places.

    K = min(S, V) whatever the values. What repeated values leave over is filled with the lowest other classes: of the
    first K classes at most as many are taken as there are different values.
    """
    k = min(y.shape[-1], classes)
    ordered, order = y.sort(-1)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    rank = new.cumsum(-1) - 1
    place = torch.empty_like(y).scatter_(-1, order, rank)
    there = y.new_zeros((*y.shape[:-1], k + 1), dtype=torch.bool).scatter_(-1, y.clamp(max=k), True)
    others = there[..., :k].sort(dim=-1, stable=True).indices
    column = torch.arange(k, device=y.device) - (rank[..., -1:] + 1)
    return others.gather(-1, column.clamp(min=0)).scatter(-1, place, y), place


def _check(name: str, tensor: Tensor) -> None:
    """Raise unless this is a floating tensor (..., V)."""
    require_tensors(**{name: tensor})
    if tensor.dim() < 1:
        raise ValueError(f"`{name}` parameter must be at least one-dimensional: it has no dimensions")
    check_logits(tensor)


def _check_rows(z: Tensor) -> None:
    """Raise for a row that has no distribution."""
    if not eager(z) or z.numel() == 0:
        return
    with torch.no_grad():
        bad = ~torch.isfinite(row_logsumexp(z.reshape(-1, z.shape[-1]))).reshape(z.shape[:-1])
    if bool(bad.any()):
        _refuse("logits", z, z.isnan() | (z == math.inf), "must be a number below inf")
        row = element("logits", position(bad))
        raise ValueError(f"{row} has nothing but -inf: expected a class that is possible")


def _check_weights(p: Tensor) -> None:
    """Raise for a weight that is none, and for a row of zeros."""
    if not eager(p):
        return
    _refuse("probs", p, ~((p >= 0) & (p < math.inf)), "must be a finite number >= 0")
    nothing = (p == 0).all(-1)
    if bool(nothing.any()):
        raise ValueError(f"{element('probs', position(nothing))} is all 0: expected a class that is possible")


def _refuse(name: str, tensor: Tensor, bad: Tensor, why: str) -> None:
    """Raise ValueError with the first bad element and why it is bad."""
    if bool(bad.any()):
        at = position(bad)
        raise ValueError(f"{element(name, at)} = {tensor[at].item()} {why}")
