"""The mean loss per token over batches, accumulation steps, ranks and files: a sum and a count, never a mean of means.

Law: however the tokens are split, and in whatever order the parts are merged, the result is the same to the bit,
because sums and counts are kept without rounding. Siblings: information.py (the perplexity of one batch of logits),
torch/accumulation.py (the same law for gradients).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from lastlayer._arrays import Array, real, unmasked
from lastlayer._validate import NATS_PER_UNIT, check_shape, element, position, read_integer, read_number

__all__ = ["TokenMean"]

Parts: TypeAlias = tuple[float, ...]  # their sum is meant, unrounded
State: TypeAlias = tuple[Parts, Parts, int | None]  # losses, tokens, bytes


class TokenMean:
    """The sum of some losses and the number of their tokens; ``+``, ``+=`` and ``sum`` merge without rounding.

    Args:
        total: the sum of the losses in nats, as ``reduction="sum"`` gives it: a number or a scalar tensor.
        count: the number of their tokens, or the sum of their weights.
        bytes: the length of their text, for ``bits_per_byte``. Unknown as soon as one part with tokens lacks it.

    Raises:
        ValueError: a count or a number of bytes below 0, a count that is not finite, a total over no tokens.
        TypeError: what is no number, or bytes that are no integer.
        OverflowError: a sum beyond the range of float64.

    Note:
        Immutable: ``+=`` makes a new one, so an error changes nothing. An infinite loss makes the mean infinite and a
        NaN makes it NaN, for good.

    Example:
        >>> long, short = TokenMean(12.0, 6), TokenMean(5.0, 1)
        >>> long + short
        TokenMean(mean=2.42857, perplexity=11.3427, count=7)
        >>> (long.mean + short.mean) / 2  # the mean of means
        3.5
        >>> seen = TokenMean()
        >>> for losses, target in [([1.0, 2.0], [7, 5]), ([3.0, 9.0], [7, -100])]:
        ...     seen += TokenMean.from_losses(losses, target)
        >>> print(seen.mean, seen.count)
        2.0 3
    """

    __slots__ = ("_state",)

    def __init__(self, total: Any = 0.0, count: Any = 0, *, bytes: int | None = None) -> None:
        self._state = _state([_number("total", total)], [_number("count", count)], bytes)

    @classmethod
    def from_losses(
        cls,
        losses: Any,
        target: Any = None,
        *,
        ignore_index: int = -100,
        token_weight: Any = None,
        bytes: int | None = None,
    ) -> TokenMean:
        """Return the TokenMean of one loss per token; each is converted to float64, then nothing is rounded.

        Args:
            losses: nats, an array or a tensor of any type, device and shape, but not a scalar.
            target: integers in the shape of losses: where it is ignore_index, the token does not count, NaN or not.
            ignore_index: the target of padding.
            token_weight: numbers >= 0, or booleans, in the shape of losses. The token counts that often, and its
                loss is multiplied in float64; with weight 0 it does not count, NaN or not.
            bytes: the length of the text of the tokens that count.

        Raises:
            ValueError: shapes that differ; a bad weight; a scalar, which is a loss that was reduced already.
            TypeError: losses or weights that are no real numbers, a target that holds no integers.

        Example:
            >>> TokenMean.from_losses([[1.0, 2.0], [3.0, float("nan")]], [[7, 5], [7, -100]], bytes=12)
            TokenMean(mean=2, perplexity=7.38906, count=3, bytes=12)
        """
        values = real("losses", _array("losses", losses)).astype(np.float64)
        if values.ndim == 0:
            raise ValueError("losses is a scalar, expected one loss per token: TokenMean(total, count) takes a sum")
        keep = _counted(target, read_integer("ignore_index", ignore_index), values.shape)
        if token_weight is None:
            return cls._of(_state(values[keep].tolist(), [float(keep.sum())], bytes))
        weight = _weight(token_weight, keep)
        keep &= weight != 0
        with np.errstate(all="ignore"):  # a product beyond the range of float64 is inf
            return cls._of(_state((weight[keep] * values[keep]).tolist(), weight[keep].tolist(), bytes))

    @classmethod
    def from_mean(cls, mean: Any, count: Any, *, bytes: int | None = None) -> TokenMean:
        """Return the TokenMean of a mean over this many tokens, as good as the mean; over no tokens it may be NaN.

        Example:
            >>> TokenMean.from_mean(5.0, 2) + TokenMean.from_mean(float("nan"), 0)
            TokenMean(mean=5, perplexity=148.413, count=2)
        """
        nats, tokens = _number("mean", mean), _number("count", count)
        return cls._of(_state([nats * tokens if tokens else 0.0], [tokens], bytes))

    @property
    def total(self) -> float:
        """The sum of the losses in nats, rounded once."""
        return self._state[0][0] if self._state[0] else 0.0

    @property
    def count(self) -> int | float:
        """The number of tokens, exact; a float, rounded once, if their weights do not add up to a whole number."""
        parts = self._state[1]
        return sum(map(int, parts)) if all(map(float.is_integer, parts)) else parts[0]

    @property
    def bytes(self) -> int | None:
        """The length of the text, None if it is not known for all tokens."""
        return self._state[2]

    @property
    def mean(self) -> float:
        """Nats per token; NaN if there is no token."""
        return self.total / self.count if self.count else math.nan

    @property
    def perplexity(self) -> float:
        """exp(mean); NaN if there is no token, inf above a mean of 709.78 nats."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf

    @property
    def bits_per_token(self) -> float:
        """The mean in bits; NaN if there is no token."""
        return self.mean / NATS_PER_UNIT["bits"]

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text; NaN if there is no text. ValueError if its length is not known."""
        if self.bytes is None:
            raise ValueError("bytes is None, expected a number: every part with tokens must be given its bytes")
        return self.total / NATS_PER_UNIT["bits"] / self.bytes if self.bytes else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold and ``from_dict`` reads back to the bit: sums as the numbers that add up to them.

        Example:
            >>> TokenMean(0.5, 4, bytes=9).to_dict()
            {'losses': [0.5], 'tokens': [4.0], 'bytes': 9}
        """
        losses, tokens, length = self._state
        return {"losses": [x if math.isfinite(x) else str(x) for x in losses], "tokens": [*tokens], "bytes": length}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> TokenMean:
        """Return the TokenMean of which this is ``to_dict``; ValueError or TypeError if it is of none."""
        if set(state) != {"losses", "tokens", "bytes"}:
            raise ValueError(f"state has the keys {sorted(state)}, expected losses, tokens and bytes")
        return cls._of(_state(_floats(state, "losses"), _floats(state, "tokens"), state["bytes"]))

    @classmethod
    def _of(cls, state: State) -> TokenMean:
        result = cls()
        result._state = state
        return result

    def __add__(self, other: TokenMean) -> TokenMean:
        if not isinstance(other, TokenMean):
            return NotImplemented
        (losses, tokens, length), (more_losses, more_tokens, more) = self._state, other._state
        both = None if length is None or more is None else length + more
        return self._of((_exact(losses + more_losses), _exact(tokens + more_tokens), both))

    def __radd__(self, other: int) -> TokenMean:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # sum() starts from 0

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, TokenMean) else NotImplemented

    def __repr__(self) -> str:
        length = f", bytes={self.bytes}" if self.bytes else ""
        return f"TokenMean(mean={self.mean:.6g}, perplexity={self.perplexity:.6g}, count={self.count}{length})"


def _exact(values: list[float] | Parts) -> Parts:
    """Return the float64 nearest to the exact sum, then the one nearest to what it misses, and so on.

    The parts are a function of the sum alone, whatever it was the sum of: that is why the law holds to the bit.
    """
    parts: list[float] = []
    try:
        while rest := math.fsum(chain(values, (-part for part in parts))):
            if not math.isfinite(rest):
                return (rest,)
            parts.append(rest)
    except ValueError:  # inf and -inf
        return (math.nan,)
    except OverflowError:
        raise OverflowError("the sum leaves the range of float64") from None
    return tuple(parts)


def _state(nats: list[float], tokens: list[float], bytes: int | None) -> State:
    losses, count = _exact(nats), _exact(tokens)
    if count and not 0 < count[0] < math.inf:
        raise ValueError(f"count = {count[0]} must be a finite number, 0 or above")
    if losses and not count:
        raise ValueError(f"total = {losses[0]} over no tokens: expected 0, or a count above 0")
    if bytes is not None and read_integer("bytes", bytes) < 0:
        raise ValueError(f"bytes = {bytes} must be 0 or above")
    return losses, count, read_integer("bytes", bytes) if bytes is not None else None if count else 0


def _number(name: str, value: Any) -> float:
    return float(read_number(name, value.detach() if hasattr(value, "detach") else value))


def _array(name: str, value: Any) -> Array:
    """Return an array on the host; a tensor is widened first, for NumPy has no bfloat16."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    return unmasked(name, value)


def _counted(target: Any, ignore_index: int, shape: tuple[int, ...]) -> Array:
    if target is None:
        return np.ones(shape, np.bool_)
    indices = _array("target", target)
    check_shape("target", indices, shape, ", that of losses")
    if indices.dtype.kind not in "iu" and indices.size:
        raise TypeError(f"target has dtype {indices.dtype}, expected integers")
    return np.asarray(indices != ignore_index)


def _weight(token_weight: Any, keep: Array) -> Array:
    """Return the weights as float64, those of tokens that do not count unchecked."""
    given = _array("token_weight", token_weight)
    weight = real("token_weight", given.astype(np.uint8) if given.dtype == np.bool_ else given).astype(np.float64)
    check_shape("token_weight", weight, keep.shape, ", that of losses")
    bad = keep & ~((weight >= 0) & (weight < math.inf))
    if bad.any():
        index = position(bad)
        raise ValueError(f"{element('token_weight', index)} = {weight[index]} must be a finite number, 0 or above")
    return weight


def _floats(state: Mapping[str, Any], name: str) -> list[float]:
    try:
        return [float(part) for part in state[name]]
    except (TypeError, ValueError):
        raise ValueError(f"state[{name!r}] = {state[name]!r} must be a list of numbers") from None
