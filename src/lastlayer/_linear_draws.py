"""Draws from logits that are never all there: those of a linear head, or of ranks that hold shards of the vocabulary.

Where the budget holds whole rows, a chunk of them is computed and drawn from by the kernel that draws from any logits.
Else logits come as tiles of rows and classes, which are read once (_tile_draws.py):

    no filter                  each block's mass is kept; a draw chooses a block, whose logits are computed again
    top_k, top_p, min_p, T = 0 the largest logits of each row are kept. What a filter cuts among them needs no others
                               but in the total; a certificate says of which rows that is so

Rows without the certificate, and draws that need all logits (of single logits that change, by other filters, without
replacement), are of whole rows, as many at a time as the budget holds. The classes drawn are those that the logits
say, however they are cut into tiles or shards: blocks begin at multiples of BLOCK of the vocabulary's class numbers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lastlayer import _backends, sampling
from lastlayer._algebra import Array, cast, finish
from lastlayer._draw_arguments import Asked, Changes, edits_of
from lastlayer._draw_plans import PREFIXES, Layout, Request, Source, Tiles, host, rows_plan, there, tiles_plan
from lastlayer._draws import BLOCK, NEUTRAL, STEPS, Drawn, Rules
from lastlayer._stream import ALONE, Peers, Plan, spans
from lastlayer._tile_draws import (
    Swept,
    Wanted,
    by_blocks,
    by_candidates,
    is_bad,
    logprob_of,
    status_of,
    sweep,
    zeros,
)

MOST = 1024  # candidates of a row; where truncation keeps more, whole rows are drawn from
ENOUGH = 32  # whole rows at a time: with fewer, products over tiles of more rows are the faster ones


def simplified(asked: Asked) -> Asked:
    """Return the request without filters that do nothing in any row."""
    rules = asked.rules
    used = {
        name: rule
        for name, rule in zip(Rules._fields, rules, strict=True)
        if name == "temperature" or (rule is not None and bool((rule != getattr(NEUTRAL, name)).any()))
    }
    return asked._replace(rules=Rules(**used))


def draw(source: Source, asked: Asked, budget: int | None, peers: Peers = ALONE) -> Drawn:
    """Draw from each row; rows whose status is not FINE, and where there are any all rows, have no result."""
    request = Request(source, simplified(asked), within(source, budget), peers)
    plan, by_tiles = peers.ready(lambda: opened(request, choose_plan(request)))
    if not by_tiles:
        drawn = blank(source, *asked.uniforms.shape)
        by_rows(request, plan, None, drawn)
        peers.close()
        return drawn
    drawn, left = tiled(request, plan)
    peers.close()
    if len(left):
        again, _ = peers.ready(lambda: opened(request, (rows_plan(request), False)))
        by_rows(request, again, left, drawn)
        peers.close()
    return drawn


def within(source: Source, budget: int | None) -> int:
    """Return the budget in bytes, by default what the products say."""
    return source.products.budget(source.rows, source.classes, source.features) if budget is None else budget


def opened(request: Request, chosen: tuple[Plan, bool]) -> tuple[Plan, bool]:
    """Make room for a plan."""
    request.source.open(chosen[0])
    return chosen


def choose_plan(request: Request) -> tuple[Plan, bool]:
    """Return the plan to begin with, and whether it is one of tiles: they are of more rows than whole ones fit."""
    tiles = None if request.whole else tiles_plan(request, candidates_of(request))
    if tiles is None:
        return rows_plan(request), False
    if not request.peers.alone:
        return tiles, True
    try:
        rows = rows_plan(request)
    except ValueError:
        return tiles, True
    enough = rows.rows >= min(max(request.source.rows, 1), ENOUGH) or rows.rows >= tiles.rows
    return (rows, False) if enough else (tiles, True)


def blank(source: Source, rows: int, samples: int) -> Drawn:
    """Return room for draws."""
    like, n = source.products.double(0), rows
    of_draws = (zeros(like, n, samples, dtype=kind) for kind in ("int64", "float64", "float64", "int64"))
    of_rows = (zeros(like, n, dtype=kind) for kind in ("int64", "float64", "float64", "int64"))
    return Drawn(*of_draws, *of_rows)


def put(drawn: Drawn, rows: Any, part: Drawn) -> None:
    """Write the draws of some rows."""
    for all_rows, some in zip(drawn, part, strict=True):
        all_rows[rows if isinstance(rows, slice) else there(rows, all_rows)] = cast(some, all_rows)


def by_rows(request: Request, plan: Plan, which: NDArray[np.int64] | None, drawn: Drawn) -> None:
    """Draw from whole rows, all or those of these numbers."""
    source, peers, count = request.source, request.peers, request.source.rows if which is None else len(which)
    n = 0 if peers.alone else plan.rows * request.total
    joined = peers.ready(lambda: source.products.empty(n))
    for part in list(spans(count, plan.rows)) or [slice(0, 0)]:
        rows = part if which is None else which[part]

        def work(z: Array, rows: Any = rows) -> None:
            put(drawn, rows, draw_rows(request, z, rows))

        if peers.alone:
            work(source.at(rows)(slice(0, source.classes)))
        else:
            shape = (part.stop - part.start, request.total)
            gathered = gather(request, rows, joined[: math.prod(shape)].reshape(shape))
            peers.attempt(lambda: work(gathered))  # noqa: B023  (called at once)


def gather(request: Request, rows: Any, z: Array) -> Array:
    """Return whole rows of logits whose classes are spread over ranks."""
    source, first = request.source, request.peers.first_class
    z[...] = 0

    def own() -> Array:
        if source.classes:
            z[:, first : first + source.classes] = source.at(rows)(slice(0, source.classes))
        return z

    return request.peers.add(own, z)


def draw_rows(request: Request, z: Array, rows: Any) -> Drawn:
    """Draw from the logits of these rows."""
    asked = request.asked
    some = asked._replace(
        rules=Rules(*(None if rule is None else rule[rows] for rule in asked.rules)), uniforms=asked.uniforms[rows]
    )
    edits = None
    if isinstance(rows, slice):
        edits = edits_of(asked.changes, z.shape[1], lambda i, j: sampling.numbers_at(z, i, j), rows)
    backend = _backends.choose(z)
    if backend is _backends.reference:
        return sampling.in_chunks(z, some, edits)
    return backend.draw(z, some.uniforms, some.rules, some.order, edits, some.replacement)  # type: ignore[no-any-return]


def narrow_rows(rules: Rules) -> NDArray[np.bool_]:
    """Tell which rows are truncated, or take the largest logit."""
    narrow = np.asarray(rules.temperature == 0)
    for name in PREFIXES:
        rule = getattr(rules, name)
        if rule is not None:
            narrow = narrow | (rule != getattr(NEUTRAL, name))
    return narrow


def candidates_of(request: Request) -> int:
    """Return how many of the largest logits must be kept: as many as top_k, where it cuts first in all rows."""
    rules = request.asked.rules
    greedy, narrow = rules.temperature == 0, narrow_rows(rules)
    if not narrow.any():
        return 0
    k = math.inf * np.ones(len(narrow)) if rules.top_k is None else rules.top_k
    order = [name for name in request.asked.order if name in PREFIXES and name != "min_p"]
    if order.index("top_k") > order.index("top_p") and rules.top_p is not None:
        k = np.where(rules.top_p != NEUTRAL.top_p, math.inf, k)
    most = float(np.where(greedy, 1, k)[narrow].max())
    return int(min(most, MOST, request.total))


def tiled(request: Request, plan: Plan) -> tuple[Drawn, NDArray[np.int64]]:
    """Draw from all rows by tiles; return also the numbers of those whose draws are still open."""
    source, peers = request.source, request.peers
    drawn, open_rows = blank(source, *request.asked.uniforms.shape), [np.empty(0, np.int64)]
    tiles = Tiles(source.at, layout_of(request), plan.classes, plan.rows, peers)
    for rows in spans(source.rows, plan.rows):
        numbers = np.arange(rows.start, rows.stop)
        rules = Rules(*(None if rule is None else rule[rows] for rule in request.asked.rules))
        narrow = narrow_rows(rules)
        found = sweep(tiles, rows, *wanted(request, rules, narrow))
        bad = is_bad(found)
        if bool(bad.any()):
            peers.close()  # what failed on a rank looks like this too
            drawn.status[rows] = status_of(tiles, rows, bad)
            return drawn, open_rows[0]
        if not narrow.all():
            part, some = chosen(found, rules, np.nonzero(~narrow)[0])
            uniforms = request.asked.uniforms[rows][~narrow]
            put(drawn, numbers[~narrow], by_blocks(tiles, numbers[~narrow], part, some.temperature, uniforms))
        if narrow.any():
            peers.attempt(lambda: open_rows.append(truncated(request, found, rules, narrow, numbers, drawn)))  # noqa: B023
    return drawn, np.concatenate(open_rows)


def truncated(
    request: Request, found: Swept, rules: Rules, narrow: NDArray[np.bool_], numbers: NDArray[np.int64], drawn: Drawn
) -> NDArray[np.int64]:
    """Draw from the rows of a chunk that are truncated; return the numbers of those whose draws are still open."""
    part, some = chosen(found, rules, np.nonzero(narrow)[0])
    uniforms = request.asked.uniforms[numbers[narrow]]
    result, sure = by_candidates(part, some, request.asked.order, uniforms, request.total)
    put(drawn, numbers[narrow], result)
    return numbers[narrow][~sure]


def wanted(request: Request, rules: Rules, narrow: NDArray[np.bool_]) -> tuple[Wanted, Array]:
    """Return what to keep of these rows, and zeros, one per row."""
    like = zeros(request.source.products.double(0), len(narrow))
    t = np.where(rules.temperature == 0, 1.0, rules.temperature)
    t_there = there(t, like)
    tempered, candidates = bool((t != 1).any()), candidates_of(request) if narrow.any() else 0
    masses = None if narrow.all() else t_there
    return Wanted(masses, t_there if tempered else None, candidates, kind_of(request.source)), like


def kind_of(source: Source) -> str:
    """Return the name of the type that logits are computed in."""
    return str(source.products.dtype).removeprefix("torch.")


def chosen(found: Swept, rules: Rules, some: NDArray[np.int64]) -> tuple[Swept, Rules]:
    """Return what was found of some of the rows, and their rules."""
    if len(some) == len(found.kept):
        return found, rules
    at = there(some, found.kept)

    def pick(field: Any) -> Any:
        if isinstance(field, tuple):
            return type(field)(*map(pick, field))
        return None if field is None else field[at]

    part = Swept(*(pick(getattr(found, name)) for name in Swept.__dataclass_fields__))
    return part, Rules(*(None if rule is None else rule[some] for rule in rules))


def layout_of(request: Request) -> Layout:
    """Return which classes are where: the ranks tell each other which blocks they have a part of."""
    size, first = request.source.classes, request.peers.first_class
    layout = Layout(first, size, request.total, np.empty(0, np.int64))
    if request.peers.alone:
        return layout
    holders = zeros(request.source.products.double(0), layout.blocks, dtype="int64")
    if size:
        holders[first // BLOCK : -(-(first + size) // BLOCK)] = 1
    holders = host(request.peers.add(lambda: holders, holders))
    return layout._replace(shared=np.nonzero(holders > 1)[0])


class Largest(NamedTuple):
    """The k largest logits of each row, their classes and log-probabilities (N, k), and the rows' logsumexp (N,)."""

    value: Array
    index: Array
    logprob: Array
    logsumexp: Array
    status: Array


def topk(source: Source, k: int, budget: int | None, peers: Peers = ALONE) -> Largest:
    """Find the k largest logits of each row, by tiles."""
    nothing = Asked(Rules(np.ones(0)), STEPS, np.zeros((0, 1)), True, Changes(0, {}, {}, {}))
    request = Request(source, nothing, within(source, budget), peers)
    plan, _ = peers.ready(lambda: opened(request, (tiles_plan(request, k) or rows_plan(request), True)))
    tiles = Tiles(source.at, layout_of(request), plan.classes, plan.rows, peers)
    like = source.products.empty(0)
    value, logprob = (zeros(like, source.rows, k, dtype=kind_of(source)) for _ in range(2))
    index, lse = zeros(like, source.rows, k, dtype="int64"), zeros(like, source.rows)
    status = zeros(like, source.rows, dtype="int64")
    for rows in spans(source.rows, plan.rows):
        found = sweep(tiles, rows, Wanted(candidates=k), zeros(like, rows.stop - rows.start))
        lse[rows] = finish(found.state).logsumexp
        bad = is_bad(found) & (lse[rows] != -math.inf)
        if bool(bad.any()):
            peers.close()
            status[rows] = status_of(tiles, rows, bad)
        value[rows], index[rows] = cast(found.value, value), found.index
        logprob[rows] = cast(logprob_of(found.state, found.value), logprob)
    peers.close()
    return Largest(value, index, logprob, lse, status)
