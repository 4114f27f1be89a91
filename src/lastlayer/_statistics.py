"""The statistics of rows and their gradient, for both front ends, on logits and on the tiles of a linear head.

One target per row is the kernels' business. With K targets per row the classes are two sets, the targets S and the
others: log p_k of each k in S, and log(1 - P(S)), whose digits come from folding the others alone. Backwards the kernel
writes the others' gradients, and those of S are written over it one by one:

    dz_j = p_j (alpha + beta log p_j + g P / (1 - P)) + delta u_j      j not in S;  g: the gradient of log(1 - P)
    dz_k = p_k (alpha + beta log p_k - g) + gamma_k + delta u_k        k in S

The gradient of a row's maximum goes to the first class that attains it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lastlayer import _algebra, _backends
from lastlayer._algebra import Array, Coefficients, State, Statistics, namespace, times

COPIED = 1 << 17  # logits at a time, where targets must be masked in a copy

# Of P / (1 - P), in nats, by the type that a kernel computes in: beyond, the gradient of log(1 - P) fades to 0.
STEEPEST = {2: 80.0, 4: 80.0, 8: 700.0}


class Folded(NamedTuple):
    """What a pass over some classes leaves of each row; None for what was not asked for.

    Attributes:
        state: of these classes.
        chosen: the targets' logits, (N,) or (N, K), float64; -inf for a target that is not among these classes.
        others: the state of these classes but for the K targets.
        argmax: the first class with the largest logit.
        first: which rows have their first maximum on this rank; None: all.
    """

    state: State
    chosen: Array = None
    others: State | None = None
    argmax: Array = None
    first: Array = None

    def needed(self, moment: bool, weighted: bool) -> Folded:
        """Return this without the fields of states that nobody will read."""
        bare = State(self.state.max, self.state.rest, None, None, None)
        state = bare._replace(moment=self.state.moment) if moment else bare
        if weighted:
            state = state._replace(spread=self.state.spread, mass=self.state.mass)
        return self._replace(state=state, others=None if self.others is None else bare)

    def merge(self, later: Folded) -> Folded:
        """Join with what was folded of classes that come after these."""
        xp = namespace(self.state.max)
        return Folded(
            _algebra.merge(self.state, later.state),
            None if self.chosen is None else xp.maximum(self.chosen, later.chosen),
            None if self.others is None or later.others is None else _algebra.merge(self.others, later.others),
            None if self.argmax is None else xp.where(self.state.max < later.state.max, later.argmax, self.argmax),
        )


class Cotangents(NamedTuple):
    """The gradient of a loss by the statistics of some rows, ready for tiles: four numbers and two lists of classes."""

    numbers: Coefficients
    values: Array = None
    maximum: Array = None

    def scaled(self, factor: float) -> Cotangents:
        """Return them times a number."""
        if factor == 1.0:
            return self
        values, maximum = (None if field is None else field * factor for field in self[1:])
        return Cotangents(Coefficients(*(number * factor for number in self.numbers)), values, maximum)


def nothing(rows: Array, target: Array | None, argmax: bool) -> Folded:
    """Return what folding no classes leaves of these rows (float64)."""
    empty, chosen, others = _algebra.identity_like(rows), None, None
    if target is not None:
        chosen = namespace(rows).full_like(rows if target.ndim == 1 else rows[:, None] + 0.0 * target, -math.inf)
        others = None if target.ndim == 1 else empty
    return Folded(empty, chosen, others, _algebra.classes(rows[None]) * 0 if argmax else None)


def rows_of(z: Array) -> Array:
    """Return 0..N-1 as a column, where z lives."""
    return _algebra.classes(z.T)[:, None]


def pick(z: Array, index: Array) -> Array:
    """Return z[i, index[i]], or z[i, index[i, k]]."""
    return z[rows_of(z) if index.ndim == 2 else _algebra.classes(z.T), index]


def take(z: Array, index: Array) -> Array:
    """Return the same in float64."""
    return _algebra.double(pick(z, index))


def place(index: Array, z: Array, first_class: int) -> tuple[Array, Array]:
    """Return the columns of classes (N, K) in a tile, and which of them lie in it."""
    column = index - first_class
    return column, (column >= 0) & (column < z.shape[1])


def fold_tile(
    backend: Any,
    z: Array,
    target: Array | None,
    weight: Array | None,
    first_class: int = 0,
    moment: bool = False,
    argmax: bool = False,
) -> Folded:
    """Fold a tile that may be written to meanwhile: the targets' logits are -inf while the others are folded."""
    xp = namespace(z)
    state = backend.fold(z, weight, moment)
    top = xp.argmax(z, -1) + first_class if argmax else None
    if target is None:
        return Folded(state, None, None, top)
    column, inside = place(target if target.ndim == 2 else target[:, None], z, first_class)
    chosen = xp.where(inside, take(z, xp.where(inside, column, 0)), -math.inf)
    if target.ndim == 1:
        return Folded(state, chosen[:, 0], None, top)
    return Folded(state, chosen, fold_others(backend, z, column, inside), top)


def fold_others(backend: Any, z: Array, column: Array, inside: Array) -> State:
    """Fold all classes of a tile but these."""
    row, column = (rows_of(z) + 0 * column)[inside], column[inside]
    kept = z[row, column]
    z[row, column] = -math.inf
    others: State = backend.fold(z)
    z[row, column] = kept
    return others


def fold_logits(
    z: Array,
    target: Array | None,
    weight: Array | None,
    first_class: int = 0,
    moment: bool = False,
    argmax: bool = False,
) -> Folded:
    """Fold the caller's logits: for the others of K targets, through a copy of a few rows at a time."""
    backend, step = _backends.choose(z), max(1, COPIED // max(1, z.shape[1]))
    if not z.shape[1]:
        return nothing(_algebra.double(z.sum(-1)), target, argmax)
    if target is None or target.ndim == 1:
        return fold_tile(backend, z, target, weight, first_class, moment, argmax)
    parts = []
    for i in range(0, max(1, len(z)), step):
        some = slice(i, i + step)
        u = weight if weight is None or weight.ndim == 1 else weight[some]
        parts.append(fold_tile(backend, z[some] + 0, target[some], u, first_class, moment, argmax))
    return concatenate(parts)  # type: ignore[no-any-return]


def concatenate(parts: Any) -> Any:
    """Join arrays, or tuples of them, of consecutive rows."""
    if parts[0] is None:
        return None
    if isinstance(parts[0], tuple):
        return type(parts[0])(*(concatenate(each) for each in zip(*parts, strict=True)))
    return namespace(parts[0]).concatenate(parts)


def of_targets(folded: Folded) -> tuple[Array, Array]:
    """Return the log-probabilities of K targets per row, and of all classes but these."""
    assert folded.others is not None
    m, s = folded.state.max[:, None], _algebra.log_sum(folded.state)[:, None]
    return -((m - folded.chosen) + s), _algebra.log_others(_algebra.fold(folded.chosen), folded.others)


def argmax_of(found: Statistics, folded: Folded) -> Array | None:
    """Return the argmax that was folded, -1 in rows that hold NaN."""
    xp = namespace(folded.state.max)
    return None if folded.argmax is None else xp.where(xp.isnan(found.logsumexp), -1, folded.argmax)


def finish(folded: Folded, entropy: bool = False) -> Statistics:
    """Turn what was folded into statistics; the log-probability is None without a target."""
    many = folded.chosen is not None and folded.chosen.ndim == 2
    found = _algebra.finish(folded.state, None if many else folded.chosen)
    found = found._replace(entropy=found.entropy if entropy else None)
    if folded.chosen is None:
        return found._replace(logprob=None)
    logprob, others = of_targets(folded) if many else (found.logprob, _algebra.log1mexp(found.logprob))
    return found._replace(logprob=logprob, others=others)


def cotangents(
    found: Statistics,
    folded: Folded,
    upstream: Statistics,
    itemsize: int,
    target_weight: Array | None = None,
    softcap: float | None = None,
) -> Cotangents:
    """Turn the incoming gradients of the statistics (None: 0) into what ``write`` needs, for logits of ``itemsize``.

    ``target_weight`` is u at the targets, (N,) or (N, K). One target is one of K where the others have a gradient: as
    p_y nears 1, log(1 - p_y) grows so steep in log p_y that all other terms would lose their digits beside it.
    """
    mass, m, logp = folded.state.mass, folded.state.max, found.logprob
    g_each, g_others, g_max = upstream.logprob, upstream.others, upstream.max
    if g_max is not None and softcap is not None:
        g_max = g_max * (1 - (m / softcap) ** 2)
    if g_others is None and (g_each is None or g_each.ndim == 1):
        return Cotangents(_algebra.coefficients(found, mass, upstream), None, g_max)
    xp, (logp, g_each, u, chosen) = namespace(m), map(_columns, (logp, g_each, target_weight, folded.chosen))
    g_each = xp.zeros_like(logp) if g_each is None else g_each
    g_others = xp.zeros_like(m) if g_others is None else xp.where(found.others == -math.inf, 0.0, g_others)
    rest = _algebra.coefficients(found, mass, upstream._replace(logprob=None))
    alpha, beta, _, delta = (number[:, None] for number in rest)
    total, p = g_each.sum(-1)[:, None], xp.exp(logp)
    # g_k - p_k sum(g), where p > 1/2 by way of 1 - p
    own = xp.where(p > 0.5, (g_each - total) - times(total, xp.expm1(logp)), g_each - times(total, p))
    values = times((alpha - g_others[:, None]) + times(beta, logp), p) + own
    if u is not None:
        values = values + delta * u
    if softcap is not None and chosen is not None:
        values = times(values, 1 - (chosen / softcap) ** 2)
    odds = _algebra.logsumexp(_algebra.fold(logp)) - xp.where(g_others != 0, found.others, 0.0)  # log P / (1 - P)
    odds = xp.where(odds < STEEPEST[itemsize], odds, STEEPEST[itemsize])
    alpha = (rest.alpha - total[:, 0]) + times(g_others, xp.exp(odds))
    return Cotangents(rest._replace(alpha=alpha, gamma=xp.zeros_like(m)), values, g_max)


def _columns(array: Array | None) -> Array | None:
    return array if array is None or array.ndim == 2 else array[:, None]


def _single(target: Array | None, given: Cotangents) -> Array | None:
    """Return the target that is the kernel's business: one per row, whose gradient is not written apart."""
    return target if target is not None and target.ndim == 1 and given.values is None else None


def write(
    backend: Any,
    z: Array,
    state: State,
    given: Cotangents,
    target: Array,
    weight: Array | None,
    first_class: int = 0,
    softcap: float | None = None,
    pending: Array | None = None,
    *,
    out: Array,
) -> None:
    """Write the gradient of a tile into out, which may be z; rows still ``pending`` have their maximum yet to come."""
    top = hit = None
    if given.maximum is not None:
        top = namespace(z).argmax(z, -1)
        hit = take(z, top[:, None])[:, 0] == state.max
        if pending is not None:
            hit = hit & pending
            pending &= ~hit
    many = given.values is not None
    backend.gradient(z, state, given.numbers, _single(target, given), weight, first_class, softcap, out=out)
    if many:
        put(out, *place(_columns(target), z, first_class), given.values)
    if top is not None:
        assert hit is not None
        column, inside = top[:, None], hit[:, None]
        put(out, column, inside, take(out, column) + given.maximum[:, None])


def put(out: Array, column: Array, inside: Array, values: Array) -> None:
    """Write values[i, k] to out[i, column[i, k]] where that is inside."""
    row, values = rows_of(out) + 0 * column, _algebra.cast(values, out)
    if column.shape[1] > 1:
        out[row[inside], column[inside]] = values[inside]
        return
    xp = namespace(out)  # all rows, some with what is there: to look up which are inside would wait for a GPU
    column = xp.where(inside, column, 0)
    out[row, column] = xp.where(inside, values, out[row, column])


def dense(z: Array, state: State, given: Cotangents, target: Array | None, weight: Array | None) -> Array:
    """Return what ``write`` writes for whole rows, by functions that map over several cotangents at once."""
    xp, many = namespace(z), given.values is not None
    dz = _algebra.gradient(z, state, given.numbers, _single(target, given), weight)
    if many:
        index = _columns(target)
        for k in range(index.shape[1]):  # type: ignore[union-attr]
            value = given.values if index.shape[1] == 1 else given.values[..., k : k + 1]  # type: ignore[union-attr]
            dz = xp.where(_algebra.classes(z) == index[:, k : k + 1], value, dz)  # type: ignore[index]
    if given.maximum is not None:
        dz = dz + xp.where(_algebra.apart(z), given.maximum[..., None], 0.0)
    return dz


def rank(z: Array, chosen: Array) -> Array:
    """Count the logits above the chosen one, or each of K; NaN is above all."""
    step, parts = max(1, COPIED // max(1, z.shape[1])), []
    for i in range(0, max(1, len(z)), step):
        some, level = z[i : i + step], _algebra.cast(chosen[i : i + step], z)
        each = [level] if level.ndim == 1 else list(level.T)
        counts = [(~(some <= column[:, None])).sum(-1) for column in each]
        parts.append(counts[0] if level.ndim == 1 else namespace(z).stack(counts, -1))
    return namespace(z).concatenate(parts)


def of_logits(z: Array, target: Array | None, weight: Array | None, entropy: bool) -> tuple[Statistics, Folded]:
    """Return the statistics of rows of logits, and what their gradient needs."""
    if target is not None and target.ndim == 2:
        folded = fold_logits(z, target, weight, moment=entropy)
        found = finish(folded, entropy)
        return found._replace(cross=None if weight is None else found.cross), folded
    found, state = _backends.choose(z).statistics(z, target, weight, entropy)
    if target is None:
        return found, Folded(state)
    chosen = found.logprob + found.logsumexp
    return found._replace(others=_algebra.log1mexp(found.logprob)), Folded(state, chosen)
