"""The driver for linear heads: row chunks x vocabulary blocks through one bounded workspace, never N x V.

    z = softcap * tanh(scale * (h W' + b) / softcap)          h (N, D), W (V, D), b (V)

Each row chunk is folded (product, tile kernel ``fold``, ``merge`` over blocks), its loss tells the four numbers per
row, and the gradient tiles are pushed back through the products. Where a chunk's workspace holds all classes they
are still there for the gradient (6 N D V operations: "gradient in the forward"); else they are made again (8 N D V).
The products are the framework's own BLAS (``Products``); statistics and accumulated gradients are float32 or better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from lastlayer import _backends
from lastlayer._algebra import Array, State, Terms
from lastlayer._statistics import Cotangents, Folded, fold_tile, nothing, rank, write

DEFAULT_BUDGET = 64 * 2**20

T = TypeVar("T")


class Products(Protocol):
    """What the driver asks of a framework, for arrays of one computing type (float32 or float64)."""

    dtype: Any
    operand: Any  # the type of what is multiplied: dtype, or a 16-bit type whose products are summed in dtype
    align: int  # rows of a tile begin at multiples of so many elements
    adds_in_place: bool  # accumulate() needs no scratch for the product
    packing: int  # bytes that the framework's BLAS keeps for operands rearranged in blocks

    def empty(self, *shape: int, dtype: Any = None) -> Any: ...
    def convert(self, array: Array, out: Array) -> Array: ...
    def product(self, a: Array, b: Array, out: Array) -> None: ...
    def accumulate(
        self, a: Array, b: Array, out: Array, scratch: Array | None, first: bool, factor: float = 1.0
    ) -> None: ...
    def double(self, *shape: int) -> Any: ...
    def tanh(self, array: Array) -> None: ...
    def budget(self, rows: int, classes: int, features: int) -> int: ...  # in bytes, where the caller names none


class Peers(Protocol):
    """Who holds the other classes: nobody, or the ranks of a group, each a shard of the vocabulary.

    All of them call the same methods in the same order, whatever fails on one of them: what fails in ``join``, ``add``
    or ``attempt`` is kept, and ``close`` raises on all. ``ready`` raises at once.
    """

    alone: bool
    rank: int
    size: int
    first_class: int

    @property
    def classes(self) -> int | None:
        """How many classes there are in all; None: as many as here."""
        ...

    @property
    def largest(self) -> int | None:
        """How many classes the largest shard has."""
        ...

    def ready(self, work: Callable[[], T]) -> T:
        """Return the result of the work, once it has succeeded everywhere."""
        ...

    def join(self, work: Callable[[], Folded], like: Folded) -> Folded:
        """Merge what was folded here and elsewhere; ``like`` has the fields that are needed, and their shapes."""
        ...

    def add(self, work: Callable[[], Array], like: Array) -> Array:
        """Return the sum over all of what was computed here; ``like`` has its shape and type."""
        ...

    def attempt(self, work: Callable[[], None]) -> None:
        """Do what the others do without."""
        ...

    def close(self) -> None:
        """Raise, on all, what failed on one."""
        ...


class Alone:
    """All classes are here."""

    alone: bool = True
    rank: int = 0
    size: int = 1
    first_class: int = 0
    classes: int | None = None
    largest: int | None = None

    def ready(self, work: Callable[[], T]) -> T:
        """Return what the work made."""
        return work()

    def join(self, work: Callable[[], Folded], like: Folded) -> Folded:
        """Return what the work folded."""
        return work()

    def add(self, work: Callable[[], Array], like: Array) -> Array:
        """Return what the work counted."""
        return work()

    def attempt(self, work: Callable[[], None]) -> None:
        """Do the work."""
        work()

    def close(self) -> None:
        """Nobody waits."""


ALONE = Alone()


@dataclass(frozen=True)
class Head:
    """A linear head and what follows it; softcap None is none."""

    weight: Array
    bias: Array | None = None
    scale: float = 1.0
    softcap: float | None = None


class Plan(NamedTuple):
    """Tile sizes: a workspace of rows x classes logits, worked on in blocks of classes where a block must be copied."""

    rows: int
    classes: int
    block: int


class Gradients(NamedTuple):
    """Gradients of the head's inputs, None where not asked for."""

    input: Array | None
    weight: Array | None
    bias: Array | None


def padded(classes: int, align: int) -> int:
    """Return the number of elements from one row of a tile to the next."""
    return -(-classes // align) * align


def workspace_bytes(
    plan: Plan, features: int, itemsize: int, converts: bool, scratch: bool, tiles: int = 1, align: int = 1,
    sums: bool = False,
) -> int:  # fmt: skip
    """Return the workspace of a plan: itemsize * (tiles * rows * classes + extra * rows * D [+ block * D]).

    ``extra`` counts a chunk's converted input and its gradient (``sums``: the latter alone); block * D is a converted
    or multiplied block of W.
    """
    extra = 2 * converts + (not converts and (scratch or sums))
    return itemsize * (
        (tiles * padded(plan.classes, align) + extra * features) * plan.rows + (plan.block * features if scratch else 0)
    )


def plan(
    rows: int, classes: int, features: int, budget: int, itemsize: int, *, converts: bool, scratch: bool,
    tiles: int = 1, packing: int = 0, align: int = 1, sums: bool = False,
) -> Plan:  # fmt: skip
    """Choose tile sizes within a budget in bytes: whole rows if at least 32 (or all) of them fit, else square tiles.

    ``packing`` is what the products take for themselves; at most a quarter of the budget is left to them.
    """

    def cost(n: int, v: int, block: int) -> int:
        return workspace_bytes(Plan(n, v, block), features, itemsize, converts, scratch, tiles, align, sums)

    def largest(high: int, fits: Callable[[int], bool]) -> int:
        low = 0
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low

    rows, classes = max(rows, 1), max(classes, 1)
    given, least = budget, cost(1, 1, 1)
    budget = max(budget - min(budget // 4, packing), min(budget, least))
    for share in (8, 4, 2):  # of the budget at most this part for blocks of the weight
        block = max(1, min(classes, budget // share // (itemsize * max(features, 1)))) if scratch else classes
        n = largest(rows, lambda n, block=block: cost(n, classes, block) <= budget)  # type: ignore[misc]
        if n >= min(rows, 32):
            return Plan(n, classes, block)
    side = largest(max(rows, classes), lambda s: cost(min(s, rows), min(s, classes), min(s, classes)) <= budget)
    if side == 0:
        raise ValueError(f"memory_budget = {given} bytes is too small: at least {least} are needed here")
    tile = Plan(min(side, rows), min(side, classes), min(side, classes))
    wider = largest(classes, lambda v: cost(tile.rows, v, min(v, tile.block)) <= budget)
    return tile._replace(classes=max(wider, 1))


def spans(size: int, step: int, start: int = 0) -> Iterator[slice]:
    """Yield slices of at most ``step`` that cover start..size."""
    for begin in range(start, size, step):
        yield slice(begin, min(begin + step, size))


class Stream:
    """One pass of a head over its rows; holds the workspace and nothing that outlives the call.

    Args:
        products: the framework's products.
        input: hidden states (N, D), any floating type.
        head: the linear head.
        target: class indices (N,) or (N, K), int64, or None.
        weights: weights(rows, classes) -> class weights of that tile, (V',) or (N', V'); None: none.
        dense: whether ``weights`` makes a tile of its own, which the budget then counts.
        budget: bytes for the workspace; None: as the products say.
        peers: who holds the other classes.
        made: the tile sizes of a caller that only wants logits, and has counted them against its budget.
    """

    def __init__(
        self,
        products: Products,
        input: Array,
        head: Head,
        target: Array | None,
        weights: Callable[[slice, slice], Array] | None,
        budget: int | None,
        dense: bool = False,
        peers: Peers = ALONE,
        made: Plan | None = None,
    ) -> None:
        self.products, self.input, self.head, self.target, self._weights = products, input, head, target, weights
        self.rows, self.features = input.shape
        self.classes, self.peers = head.weight.shape[0], peers
        self.converts = not head.weight.dtype == input.dtype == products.operand
        size = self.rows, peers.largest or self.classes, self.features
        scratch, empty = self.converts or not (products.adds_in_place or made), products.empty
        self.plan = made or plan(
            *size, products.budget(*size) if budget is None else budget, products.dtype.itemsize,
            converts=self.converts, scratch=scratch, tiles=2 if dense else 1, packing=products.packing,
            align=products.align, sums=products.operand != products.dtype,
        )  # fmt: skip
        self.workspace = empty(self.plan.rows * padded(min(self.plan.classes, self.classes), products.align))
        self.scratch = empty(self.plan.block, self.features, dtype=products.operand) if scratch else None
        self.states = empty(self.plan.rows, self.features, dtype=products.operand) if self.converts else None
        self.sums: Array = None  # of a chunk's input gradient, where its own place is not of the computing type
        self.adds = False  # to a weight's gradient that has something in it
        self.lift = 1.0  # a power of two that gradients of logits are multiplied by, so that they fit in their type
        self.backend = _backends.choose(self.workspace)
        self.held: slice | None = None  # the rows whose logits, of all classes, the workspace holds

    @property
    def whole_rows(self) -> bool:
        """Whether one tile holds all classes."""
        return bool(self.plan.classes >= self.classes)

    def chunks(self) -> Iterator[slice]:
        """Yield the row chunks; of no rows, one that is empty."""
        return spans(self.rows, self.plan.rows) if self.rows else iter((slice(0, 0),))

    def tiles(self) -> Iterator[slice]:
        """Yield the vocabulary blocks of which the workspace holds one at a time."""
        return spans(self.classes, self.plan.classes)

    def blocks(self, tile: slice) -> Iterator[tuple[slice, slice, Array]]:
        """Yield parts of a tile: where they are in the vocabulary, where in the tile, and their weight, converted."""
        for part in spans(tile.stop, self.plan.block, tile.start):
            weight = self.head.weight[part]
            if self.converts:
                assert self.scratch is not None
                weight = self.products.convert(weight, self.scratch[: part.stop - part.start])
            yield part, slice(part.start - tile.start, part.stop - tile.start), weight

    def weights(self, rows: slice, tile: slice) -> Array | None:
        """Return the class weights of a tile, if there are any."""
        return None if self._weights is None else self._weights(rows, tile)

    def hidden(self, rows: slice) -> Array:
        """Return a chunk's hidden states in the computing type."""
        h = self.input[rows]
        return h if self.states is None else self.products.convert(h, self.states[: h.shape[0]])

    def logits(self, rows: slice, h: Array, tile: slice) -> Array:
        """Return one tile of logits in the workspace; what is still there is not computed again."""
        if self.held == rows:
            return self._room(h, tile)
        z = self.compute(h, tile)
        self.held = rows if self.whole_rows else None
        return z

    def _room(self, h: Array, tile: slice) -> Array:
        n, v = h.shape[0], tile.stop - tile.start
        step = padded(v, self.products.align)
        return self.workspace[: n * step].reshape(n, step)[:, :v]

    def gradient_room(self, z: Array) -> Array:
        """Return where the gradient of a tile goes: over the tile, or over the second half of each row's bytes."""
        if self.products.operand == self.products.dtype:
            return z
        (n, v), step = z.shape, padded(z.shape[1], self.products.align)
        return self.workspace.view(self.products.operand)[: n * 2 * step].reshape(n, 2 * step)[:, step : step + v]

    def compute(self, h: Array, tile: slice) -> Array:
        """Return one tile of logits in the workspace, computed now."""
        z, self.held = self._room(h, tile), None
        for part, inside, weight in self.blocks(tile):
            self.products.product(h, weight.T, z[:, inside])
            if self.head.bias is not None:
                z[:, inside] += self.head.bias[part]
        cap = self.head.softcap
        factor = self.head.scale / (1.0 if cap is None else cap)
        if factor != 1.0:
            z *= factor
        if cap is not None:
            self.products.tanh(z)
            z *= cap
        return z

    def fold(self, rows: slice, moment: bool = False, argmax: bool = False) -> Folded:
        """Fold one chunk over all classes, those of the peers included."""
        target = None if self.target is None else self.target[rows]
        none = nothing(self.products.double(rows.stop - rows.start), target, argmax)
        needed = none.needed(moment, self._weights is not None)
        return self.peers.join(lambda: self._fold(rows, none, moment, argmax), needed)

    def _fold(self, rows: slice, found: Folded, moment: bool, argmax: bool) -> Folded:
        h, target = self.hidden(rows), None if self.target is None else self.target[rows]
        for tile in self.tiles():
            z, first = self.logits(rows, h, tile), tile.start + self.peers.first_class
            here = fold_tile(self.backend, z, target, self.weights(rows, tile), first, moment, argmax)
            found = here if tile.start == 0 else found.merge(here)
        return found

    def rank(self, rows: slice, chosen: Array) -> Array:
        """Count the classes of a chunk above the chosen logits: the products once more, unless held."""
        like = (chosen == 0) * 0

        def count() -> Array:
            h, total = self.hidden(rows), like
            for tile in self.tiles():
                total = total + rank(self.logits(rows, h, tile), chosen)
            return total

        return self.peers.add(count, like)

    def visit(self, rows: slice, terms: Terms, losses: Array, into: Gradients | None) -> None:
        """Where the workspace holds whole rows: one product, their losses and, by the same kernel, their gradient."""
        h, tile = self.hidden(rows), slice(0, self.classes)
        z, target = self.logits(rows, h, tile), None if self.target is None else self.target[rows]
        dz = None if into is None else self.gradient_room(z)
        self.backend.loss(
            z, terms, target, self.weights(rows, tile), scale=self.head.scale * self.lift, softcap=self.head.softcap,
            losses=losses, out=dz,
        )  # fmt: skip
        self.held = None
        if into is not None:
            self._push_tile(rows, h, tile, dz, into)

    def push(self, rows: slice, state: State, given: Cotangents, into: Gradients, first: Array = None) -> None:
        """Turn a chunk's cotangents into gradients; its tiles of logits are computed again, unless held."""
        self.peers.attempt(lambda: self._push(rows, state, given.scaled(self.head.scale * self.lift), into, first))

    def _push(self, rows: slice, state: State, given: Cotangents, into: Gradients, first: Array) -> None:
        target, h = None if self.target is None else self.target[rows], self.hidden(rows)
        pending = None if given.maximum is None else state.max == state.max if first is None else first & True
        for tile in self.tiles():
            z, weight, start = self.logits(rows, h, tile), self.weights(rows, tile), tile.start + self.peers.first_class
            dz = self.gradient_room(z)
            write(self.backend, z, state, given, target, weight, start, self.head.softcap, pending, out=dz)
            self.held = None
            self._push_tile(rows, h, tile, dz, into)
        if not self.classes and into.input is not None:
            into.input[rows] = 0

    def _sums(self, into: Array, rows: slice) -> Array:
        """Return where a chunk's input gradient is summed: in its own place if that loses nothing."""
        products, own = self.products, into[rows]
        one_product = not self.converts and self.whole_rows and own.dtype == products.operand
        if own.dtype == products.dtype or one_product:
            return own
        if self.sums is None:
            self.sums = products.empty(self.plan.rows, self.features)
        return self.sums[: len(own)]

    def _push_tile(self, rows: slice, h: Array, tile: slice, dz: Array, into: Gradients) -> None:
        """dh = dz W, dW += dz' h, db += sum dz for one tile of a chunk."""
        add, factor = self.products.accumulate, 1 / self.lift
        dh = None if into.input is None else self._sums(into.input, rows)
        for part, inside, block in self.blocks(tile):
            if dh is not None:
                add(dz[:, inside], block, dh, None, part.start == 0, factor)
            if into.weight is not None:
                first = rows.start == 0 and not self.adds
                add(dz[:, inside].T, h, into.weight[part], self.scratch, first, factor)
        if into.bias is not None:
            into.bias[tile] += dz.sum(0, dtype=into.bias.dtype) * factor
        if into.input is not None and dh.dtype != into.input.dtype and tile.stop == self.classes:  # type: ignore[union-attr]
            into.input[rows] = dh
