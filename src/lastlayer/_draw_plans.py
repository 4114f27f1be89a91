"""Where the logits of draws come from, how many of them at a time, and who has which classes.

A source gives tiles of logits, each in the place of the one before: of a linear head (``OfHead``) or copied from logits
that are there (``Given``). ``rows_plan`` and ``tiles_plan`` choose the tiles' sizes within a budget in bytes. Blocks of
classes begin at multiples of BLOCK of the vocabulary's class numbers (``Layout``), whatever shards and tiles are.
Siblings: _linear_draws.py, which draws; _stream.py, the products and their workspace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lastlayer._algebra import Array, namespace
from lastlayer._draw_arguments import Asked
from lastlayer._draws import BLOCK, Rules
from lastlayer._stream import ALONE, Head, Peers, Plan, Products, Stream, padded

PREFIXES = ("top_k", "top_p", "min_p")  # what they keep begins with the largest logit and ends somewhere

Logits = Callable[[slice], Array]  # some rows' logits of these classes, an array that may be written to


class Layout(NamedTuple):
    """Which classes of the vocabulary are here, and which blocks of it are spread over several ranks."""

    first: int
    size: int
    total: int
    shared: NDArray[np.int64]

    @property
    def blocks(self) -> int:
        """How many blocks the vocabulary has."""
        return -(-self.total // BLOCK)

    def width(self, block: int) -> int:
        """Return the number of classes of a block."""
        return min(BLOCK, self.total - block * BLOCK)

    def tiles(self, step: int) -> Iterator[slice]:
        """Yield the classes here in tiles of at most ``step`` that begin, but for the first, where a block begins."""
        start, step = 0, -(-step // BLOCK) * BLOCK
        while start < self.size:
            stop = min(self.size, (self.first + start) // BLOCK * BLOCK + step - self.first)
            yield slice(start, stop)
            start = stop

    def complete(self, tile: slice) -> tuple[slice, slice]:
        """Return the blocks of a tile that are here as a whole, and their columns."""
        begin, end = self.first + tile.start, self.first + tile.stop
        low, high = begin // BLOCK, -(-end // BLOCK)
        low += int(low in self.shared)
        high -= int(high > low and high - 1 in self.shared)
        high = max(low, high)
        return slice(low, high), slice(
            max(low * BLOCK, begin) - begin, max(min(high * BLOCK, end), low * BLOCK) - begin
        )

    def pieces(self, tile: slice) -> Iterator[tuple[int, slice, slice]]:
        """Yield of each shared block in a tile its number among them, and where the piece is in block and tile."""
        begin, end = self.first + tile.start, self.first + tile.stop
        for i, block in enumerate(self.shared):
            low, high = max(begin, int(block) * BLOCK), min(end, int(block) * BLOCK + BLOCK)
            if low < high:
                yield i, slice(low - int(block) * BLOCK, high - int(block) * BLOCK), slice(low - begin, high - begin)

    def holds(self, block: int, rank: int) -> bool:
        """Whether this rank has to finish draws from a block."""
        if block in self.shared:
            return rank == 0
        return self.first <= block * BLOCK < self.first + self.size


class Tiles(NamedTuple):
    """Where some rows' logits come from, tile by tile, and who has the rest."""

    at: Callable[[Any], Logits]  # of rows by their numbers
    layout: Layout
    step: int
    most: int  # rows at a time
    peers: Peers

    def block(self, rows: NDArray[np.int64], block: int) -> Array:
        """Return the logits of one block, which is here as a whole."""
        first = block * BLOCK - self.layout.first
        return self.at(rows)(slice(first, first + self.layout.width(block)))


class Source(Protocol):
    """Where logits come from."""

    products: Products
    rows: int
    classes: int
    features: int
    converts: bool
    copies: int  # of a tile, beside the workspace

    def open(self, plan: Plan) -> None:
        """Make room for tiles of this size, and let go of what was there."""
        ...

    def at(self, rows: Any) -> Logits:
        """Return what gives these rows' logits, a tile at a time, each in the place of the one before."""
        ...


class OfHead:
    """The logits of hidden states (N, D)."""

    copies = 0

    def __init__(self, products: Products, input: Array, head: Head) -> None:
        self.products, self.input, self.head = products, input, head
        (self.rows, self.features), self.classes = input.shape, head.weight.shape[0]
        self.converts = not head.weight.dtype == input.dtype == products.operand
        self.stream: Stream | None = None

    def open(self, plan: Plan) -> None:
        """Make the stream's workspace."""
        self.stream = None
        self.stream = Stream(self.products, self.input, self.head, None, None, 0, made=plan)

    def at(self, rows: Any) -> Logits:
        """Return the stream's products for these rows."""
        stream = self.stream
        assert stream is not None
        h = stream.hidden(rows if isinstance(rows, slice) else there(rows, self.input))
        return lambda tile: stream.compute(h, tile)


class Given:
    """Logits (N, V) that are there."""

    features, converts, copies = 0, False, 1

    def __init__(self, products: Products, input: Array) -> None:
        self.products, self.input = products, input
        self.rows, self.classes = input.shape
        self.room: Array = None

    def open(self, plan: Plan) -> None:
        """Make room for copies of tiles."""
        self.room = None
        self.room = self.products.empty(plan.rows * min(plan.classes, self.classes))

    def at(self, rows: Any) -> Logits:
        """Return what copies tiles of these rows."""
        rows = rows if isinstance(rows, slice) else there(rows, self.input)

        def copy(tile: slice) -> Array:
            z = self.input[:, tile][rows]
            return self.products.convert(z, self.room[: z.shape[0] * z.shape[1]].reshape(z.shape))

        return copy


class Request(NamedTuple):
    """Draws from a source: what is asked for, within what budget, and who holds the other classes."""

    source: Source
    asked: Asked
    budget: int
    peers: Peers = ALONE

    @property
    def total(self) -> int:
        """How many classes there are in all."""
        return self.peers.classes or self.source.classes

    @property
    def own(self) -> int:
        """How many classes the one who has most of them has."""
        return self.peers.largest or self.source.classes

    @property
    def whole(self) -> bool:
        """Whether the draws need whole rows whatever the logits are."""
        rules, asked = self.asked.rules, self.asked
        others = (getattr(rules, name) for name in Rules._fields[1:] if name not in PREFIXES)
        several = asked.uniforms.shape[1] > 1
        return asked.changes.some or (several and not asked.replacement) or any(rule is not None for rule in others)


def room(request: Request, each: int) -> tuple[int, int, int]:
    """Return how many rows of this many bytes fit, the classes of a block of weights, and the least that one row needs.

    Blocks of the weight are converted to the type that is multiplied in; at most a quarter is left to the products.
    """
    source, budget = request.source, request.budget
    of_class = source.products.dtype.itemsize * source.features if source.converts else 0
    least = each + of_class
    left = max(budget - min(budget // 4, source.products.packing), min(budget, least))
    block = max(1, min(request.own, left // 8 // of_class)) if of_class else request.own
    block = block if left - block * of_class >= each or not of_class else 1
    return min(max(left - block * of_class, 0) // each, max(source.rows, 1)), block, least


def of_hidden(source: Source) -> int:
    """Return how many numbers a row's hidden states take: converted, its spare room, and gathered from their rows."""
    return source.features * (3 if source.converts else 1)


def rows_plan(request: Request) -> Plan:
    """Return as many whole rows as the budget holds; on shards a gathered row lies there twice, beside its parts."""
    source = request.source
    own = padded(request.own, source.products.align)
    numbers = own * (1 + source.copies) + (0 if request.peers.alone else 2 * request.total) + of_hidden(source)
    rows, block, least = room(request, source.products.dtype.itemsize * max(numbers, 1))
    if rows < 1:
        raise ValueError(f"memory_budget = {request.budget} bytes is too small: at least {least} are needed here")
    return Plan(rows, request.own, block)


def tiles_plan(request: Request, candidates: int) -> Plan | None:
    """Return tiles of whole blocks, about as many rows as classes; None if the budget does not hold one row of them."""
    source, alone, size = request.source, request.peers.alone, request.peers.size
    samples, blocks = request.asked.uniforms.shape[1], -(-request.total // BLOCK)
    kept = 16 * blocks * (1 if alone else 3) + 96 * candidates + 64 * samples
    kept += 0 if alone else 16 * min(size, blocks) * BLOCK + 64 * size * candidates
    best = None
    for step in range(BLOCK, request.own + BLOCK, BLOCK):
        classes = min(step, request.own)
        numbers = padded(classes, source.products.align) * (1 + source.copies)
        numbers += min(BLOCK, request.own) + of_hidden(source)
        rows, block, _ = room(request, source.products.dtype.itemsize * numbers + kept)
        if rows < 1 or (best is not None and rows < best.rows and min(rows, step) <= min(best.rows, best.classes)):
            break
        best = Plan(rows, classes, min(block, classes))
    return best


def there(array: Any, like: Array) -> Any:
    """Return a NumPy array where another array lives."""
    if isinstance(like, np.ndarray):
        return array
    return namespace(like).as_tensor(np.require(array, requirements="W"), device=like.device)  # torch warns of others


def host(array: Array) -> NDArray[Any]:
    """Return an array as a NumPy array."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()
