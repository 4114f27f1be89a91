"""What draws need of logits that come as tiles: one reading of all classes, then the rest of each draw.

``sweep`` reads the classes once and keeps of each row its state, the masses of its blocks, its largest logits. From the
masses ``by_blocks`` draws among all classes: it computes the logits of the chosen blocks again. From the largest logits
``by_candidates`` draws where truncation keeps no others; which rows those are is what ``certificate`` says.

Ranks that hold shards join what they found, and then hold the same bits. A block whose classes are spread over ranks is
``shared``: its logits are sent to all. Driver: _linear_draws.py; the specification of draws: _draws.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lastlayer import _algebra, _backends, _draws, _statistics
from lastlayer._algebra import Array, State, cast, double, finish, namespace
from lastlayer._draw_plans import Layout, Tiles, host, there
from lastlayer._draws import BLOCK, NEUTRAL, STEPS, Drawn, Rules, take
from lastlayer._statistics import Folded
from lastlayer._stream import Peers, spans

# What a total of float32 terms may be off, relative: a boundary of top_p nearer than that is in doubt.
MARGIN = 2.0**-20


@dataclass
class Swept:
    """What one reading of the logits of some rows leaves; None for what was not asked for."""

    folded: Folded
    kept: Array
    top: Array = None
    mass: Array = None
    edges: Array = None
    value: Array = None
    index: Array = None

    @property
    def state(self) -> State:
        """The rows' states, and how logits are turned into log-probabilities with them."""
        return self.folded.state


class Wanted(NamedTuple):
    """What to keep of some rows: T per row for masses, T per row for a second state, how many of the largest logits.

    ``kind`` is the type that logits are computed in.
    """

    masses: Array = None
    tempered: Array = None
    candidates: int = 0
    kind: str = "float64"


def zeros(like: Array, *shape: int, dtype: str = "float64") -> Array:
    """Return zeros where another array lives."""
    xp = namespace(like)
    return xp.zeros(shape, dtype=getattr(xp, dtype), **({} if xp is np else {"device": like.device}))


def sweep(tiles: Tiles, which: slice, wanted: Wanted, rows: Array) -> Swept:
    """Read all classes of some rows, tile by tile; ``rows`` are zeros, one per row."""
    layout, peers = tiles.layout, tiles.peers
    none = _algebra.identity_like(rows)
    found = Swept(Folded(none, None, None if wanted.tempered is None else none), zeros(rows, len(rows), dtype="int64"))
    if wanted.masses is not None:
        found.top, found.mass = (zeros(rows, len(rows), layout.blocks) for _ in range(2))
    found.value, found.index = zeros(rows, len(rows), 0), zeros(rows, len(rows), 0, dtype="int64")
    like = found.folded.needed(False, False)

    def read() -> None:
        logits = tiles.at(which)
        for tile in layout.tiles(tiles.step):
            z = logits(tile)
            found.kept = found.kept + _count(z)
            if wanted.candidates:
                _add_candidates(found, z, layout.first + tile.start, wanted.candidates)
            if wanted.masses is not None:
                _add_masses(found, z, tile, layout, wanted.masses)
            found.folded = found.folded.merge(_fold(z, wanted.tempered))  # the last: it writes to the tile

    if wanted.masses is not None and len(layout.shared):
        found.edges = zeros(rows, len(rows), len(layout.shared), BLOCK, dtype=wanted.kind)
    peers.attempt(read)
    found.folded = peers.join(lambda: found.folded, like)
    if not peers.alone:
        _join(found, layout, wanted, peers)
    return found


def _join(found: Swept, layout: Layout, wanted: Wanted, peers: Peers) -> None:
    """Join what the ranks found of their classes; each block and each logit is zero but on one rank."""
    xp = namespace(found.kept)
    found.kept = peers.add(lambda: found.kept, found.kept)
    if wanted.masses is not None:
        found.top, found.mass = peers.add(lambda: xp.stack([found.top, found.mass]), xp.stack([found.top, found.mass]))
    if found.edges is not None:
        found.edges = peers.add(lambda: found.edges, found.edges)
        for i, block in enumerate(layout.shared):
            some = slice(int(block), int(block) + 1)
            z = found.edges[:, i, : layout.width(int(block))]
            found.top[:, some], found.mass[:, some] = _backends.choose(z).masses(z, wanted.masses)
    if wanted.candidates:
        _join_candidates(found, layout, wanted.candidates, peers)


def _join_candidates(found: Swept, layout: Layout, count: int, peers: Peers) -> None:
    """Let all ranks have the largest of all logits; ranks that have fewer than asked for fill up with no class."""
    n, here = found.value.shape
    value = zeros(found.value, n, peers.size, count)
    index = zeros(found.value, n, peers.size, count, dtype="int64")
    value[:, peers.rank], index[:, peers.rank] = -math.inf, layout.total
    here = min(here, count)
    value[:, peers.rank, :here], index[:, peers.rank, :here] = found.value[:, :here], found.index[:, :here]
    value, index = (peers.add(lambda each=each: each, each).reshape(n, -1) for each in (value, index))  # type: ignore[misc]
    order = index.argsort(-1)
    found.value, found.index = largest(take(value, order), take(index, order), min(count, layout.total))


def _count(z: Array) -> Any:
    """Return how many logits of each row are above -inf; NaN is not."""
    lowest = namespace(z).amin(z, -1)
    return z.shape[1] if bool((lowest > -math.inf).all()) else (z > -math.inf).sum(-1)


def _fold(z: Array, temperature: Array | None) -> Folded:
    """Return the state of a tile and, which overwrites the tile, that of its logits over T."""
    backend, xp = _backends.choose(z), namespace(z)
    state = backend.fold(z)
    if temperature is None:
        return Folded(state)
    z -= cast(xp.where(xp.isfinite(state.max), state.max, 0.0), z)[:, None]  # first, so that no T overflows
    z /= cast(xp.clip(temperature, 1e-37, None), z)[:, None]
    return Folded(state, None, backend.fold(z)._replace(max=state.max / temperature))


def _add_masses(found: Swept, z: Array, tile: slice, layout: Layout, temperature: Array) -> None:
    """Keep the masses of a tile's whole blocks, and the logits of those that are spread over ranks."""
    blocks, columns = layout.complete(tile)
    if blocks.start < blocks.stop:
        found.top[:, blocks], found.mass[:, blocks] = _backends.choose(z).masses(z[:, columns], temperature)
    for i, inside, part in layout.pieces(tile):
        found.edges[:, i, inside] = z[:, part]


def _add_candidates(found: Swept, z: Array, first_class: int, count: int) -> None:
    """Keep the largest logits of what was kept and a tile, largest first, of equal ones the lower class first."""
    value, index = _backends.choose(z).topk(z, min(count, z.shape[1]))
    xp = namespace(z)
    value = xp.concatenate([found.value, double(value)], -1)
    index = xp.concatenate([found.index, index + first_class], -1)
    found.value, found.index = largest(value, index, count)


def largest(value: Array, index: Array, count: int) -> tuple[Array, Array]:
    """Return the largest of some logits and their classes; equal ones are in the order of the classes, and stay so."""
    top, place = _backends.choose(value).topk(value, min(count, value.shape[1]))
    return top, take(index, place)


def is_bad(found: Swept) -> Array:
    """Tell of which rows there is no distribution to draw from."""
    return ~namespace(found.kept).isfinite(finish(found.state).logsumexp)


def status_of(tiles: Tiles, which: slice, bad: Array) -> Array:
    """Return the status of rows, of which some have no distribution: the logits once more."""
    xp = namespace(bad)
    seen = zeros(bad, 2, len(bad), dtype="int64")

    def look() -> None:
        logits = tiles.at(which)
        for tile in tiles.layout.tiles(tiles.step):
            z = logits(tile)
            seen[0] += xp.isnan(z).sum(-1)
            seen[1] += (z == math.inf).sum(-1)

    tiles.peers.attempt(look)
    nan, infinite = tiles.peers.add(lambda: seen, seen) > 0
    status = xp.where(infinite, _draws.HAS_INFINITY, xp.where(bad, _draws.HAS_NOTHING, _draws.FINE))
    return xp.where(nan, _draws.HAS_NAN, status)


def logprob_of(state: State, z_y: Array) -> Array:
    """Return log p_y for several y per row; a logit that was computed again cannot be above the largest."""
    wide = State(*(field[:, None] for field in state))
    return finish(wide, namespace(z_y).minimum(z_y, wide.max)).logprob + 0.0


def by_blocks(
    tiles: Tiles, rows: NDArray[np.int64], found: Swept, temperature: NDArray[np.float64], uniforms: NDArray[np.float64]
) -> Drawn:
    """Draw among all classes of these rows, whose masses were found: a block each, then a class of it."""
    peers, t = tiles.peers, there(temperature, found.top)
    u = there(uniforms, found.top)
    index, z_y = zeros(u, *u.shape, dtype="int64"), zeros(u, *u.shape)

    def work() -> None:
        block, fraction = _backends.choose(found.top).choose(found.top, found.mass, t, u)
        _inside(tiles, rows, found, temperature, host(block), fraction, index, z_y)

    peers.attempt(work)
    index, z_y = peers.add(lambda: index, index), peers.add(lambda: z_y, z_y)
    above = zeros(u, *u.shape, dtype="int64")
    peers.attempt(lambda: _count_above(tiles, rows, found.top, index, z_y, above))
    above = peers.add(lambda: above, above)
    state, tempered = found.state, found.folded.others
    logprob = logprob_of(state, z_y)
    sampled = logprob if tempered is None else logprob_of(tempered, z_y / t[:, None])
    one = zeros(u, len(rows)) + 1
    lse = finish(state).logsumexp
    return Drawn(index, logprob, sampled, 1 + above, found.kept, one, lse, zeros(u, len(rows), dtype="int64"))


def _inside(
    tiles: Tiles, rows: NDArray[np.int64], found: Swept, temperature: NDArray[np.float64], block: NDArray[np.int64],
    fraction: Array, index: Array, z_y: Array,
) -> None:  # fmt: skip
    """Write the classes of the draws whose blocks are here, and their logits."""
    samples, flat = block.shape[1], block.reshape(-1)
    order = np.argsort(flat, kind="stable")
    present, start = np.unique(flat[order], return_index=True)
    for b, pairs in zip(present.tolist(), np.split(order, start[1:]), strict=True):
        if not tiles.layout.holds(b, tiles.peers.rank):
            continue
        own, of = np.unique(pairs // samples, return_inverse=True)
        if b in tiles.layout.shared:
            i = int(np.searchsorted(tiles.layout.shared, b))
            z = found.edges[:, i, : tiles.layout.width(b)][there(own, index)]
        else:
            z = tiles.block(rows[own], b)
        for part in spans(len(pairs), tiles.most):
            row, column = (there(each, index) for each in np.divmod(pairs[part], samples))
            some = z if len(own) == len(pairs) else z[there(of[part], z)]
            t = there(temperature[pairs[part] // samples], z)
            found_here = _backends.choose(some).inside(some, t, fraction[row, column])
            index[row, column] = found_here + b * BLOCK
            z_y[row, column] = double(take(some, found_here[:, None])[:, 0])


def _count_above(tiles: Tiles, rows: NDArray[np.int64], top: Array, index: Array, z_y: Array, above: Array) -> None:
    """Count the classes here with a larger logit than those drawn; tiles that have none in any row are not computed."""
    level, logits = namespace(z_y).amin(z_y, -1)[:, None], None
    for tile in tiles.layout.tiles(tiles.step):
        first = tiles.layout.first + tile.start
        blocks = slice(first // BLOCK, -(-(tiles.layout.first + tile.stop) // BLOCK))
        if not bool((top[:, blocks] > level).any()):
            continue
        logits = logits or tiles.at(rows)
        z = logits(tile)
        above += _statistics.rank(z, z_y)
        column, here = _statistics.place(index, z, first)
        own = take(z, namespace(z).where(here, column, 0))
        above -= (here & (double(own) > z_y)) + 0  # the class itself, computed in another product


def certificate(
    value: Array, rules: Rules, order: tuple[str, ...], complete: Array, totals: tuple[Array, Array]
) -> Array:
    """Tell in which rows the first filter that cuts does so among the largest logits (N, K), largest first.

    ``totals`` are the sums over all classes of exp((z_j - max) / T), at T = 1 and at the rules' T; ``complete`` rows
    have no classes but these. A filter that keeps all of these leaves open what it keeps of the others: no total is
    known after it, but filters that count or compare with the largest may still cut.
    """
    xp, size = namespace(value), value.shape[1]
    now, total = xp.ones_like(rules.temperature), totals[0]
    sure, known = complete | (rules.temperature == 0), ~xp.isnan(now)
    lost = ~known
    for name in order:
        p = getattr(rules, name)
        if name == "temperature":
            now, total = xp.where(rules.temperature == 0, 1.0, rules.temperature), totals[1]
        elif p is not None:
            active = (p != getattr(NEUTRAL, name)) & ~sure
            mass = xp.exp((value - value[:, :1]) / now[:, None])
            doubtful = lost & ~lost
            if name == "top_k":
                cuts = p <= size
            elif name == "min_p":
                cuts = mass[:, -1] < p
            else:
                target = (p * total)[:, None]
                sums = mass.cumsum(-1)
                doubtful = ~known | (xp.abs(sums - target) <= MARGIN * target).any(-1)
                cuts = (sums[:, :-1] >= target).any(-1)
            lost = lost | (active & doubtful)
            sure = sure | (active & cuts & ~lost)
            known = known & ~active
    return sure


def by_candidates(
    found: Swept, rules: Rules, order: tuple[str, ...], uniforms: NDArray[np.float64], total_classes: int
) -> tuple[Drawn, NDArray[np.bool_]]:
    """Draw from rows whose largest logits were found, and tell of which of them the draws are those of all classes."""
    xp, size = namespace(found.value), found.value.shape[1]
    on_device = Rules(*(None if rule is None else there(rule, found.value) for rule in rules))
    complete = (found.value[:, -1] == -math.inf) | (size >= total_classes)
    state, tempered = found.state, found.folded.others or found.state
    totals = 1 + state.rest, 1 + tempered.rest
    sure = certificate(found.value, on_device, order, complete, totals)
    places = xp.argsort(found.index, -1)
    value, index = take(found.value, places), take(found.index, places)
    t = xp.where(on_device.temperature == 0, 1.0, on_device.temperature)
    outside = tuple(
        xp.where(complete, 0.0, xp.clip(total - xp.exp((value - found.value[:, :1]) / now).sum(-1), 0.0, None))
        for total, now in zip(totals, (1.0, t[:, None]), strict=True)
    )
    kept, _ = _draws.truncate(value, on_device, order, outside)
    masked = xp.where(kept, value, -math.inf)
    drawn = _backends.choose(masked).draw(masked, uniforms, Rules(rules.temperature), STEPS, None, True)
    z_y, count = take(value, drawn.index), kept.sum(-1)
    ascending = xp.flip(found.value, (1,))
    share = xp.where(kept, xp.exp(logprob_of(state, value)), 0.0).sum(-1)
    made = Drawn(
        take(index, drawn.index),
        logprob_of(state, z_y),
        drawn.sampled_logprob,
        1 + size - _draws.count_not_above(ascending, z_y),
        count,
        xp.where(count == total_classes, 1.0, share),
        finish(state).logsumexp,
        drawn.status,
    )
    return made, host(sure)
