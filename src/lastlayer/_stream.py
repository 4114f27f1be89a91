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
from typing import Any, NamedTuple, Protocol

from lastlayer import _algebra, _backends
from lastlayer._algebra import Array, Coefficients, State, Terms

DEFAULT_BUDGET = 64 * 2**20


class Products(Protocol):
    """What the driver asks of a framework, for arrays of one computing type (float32 or float64)."""

    dtype: Any
    adds_in_place: bool  # accumulate() needs no scratch for the product

    def empty(self, *shape: int) -> Any: ...
    def convert(self, array: Array, out: Array) -> Array: ...
    def product(self, a: Array, b: Array, out: Array) -> None: ...
    def accumulate(self, a: Array, b: Array, out: Array, scratch: Array | None, first: bool) -> None: ...
    def double(self, *shape: int) -> Any: ...
    def tanh(self, array: Array) -> None: ...


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


def workspace_bytes(plan: Plan, features: int, itemsize: int, converts: bool, scratch: bool, tiles: int = 1) -> int:
    """Return the workspace of a plan: itemsize * (tiles * rows * classes + extra * rows * D [+ block * D]).

    ``extra`` counts a chunk's converted input and its gradient; block * D is a converted or multiplied block of W.
    """
    extra = 2 * converts + (scratch and not converts)
    return itemsize * (
        (tiles * plan.classes + extra * features) * plan.rows + (plan.block * features if scratch else 0)
    )


def plan(
    rows: int, classes: int, features: int, budget: int, itemsize: int, *, converts: bool, scratch: bool, tiles: int = 1
) -> Plan:
    """Choose tile sizes within a budget in bytes: whole rows if at least 32 (or all) of them fit, else square tiles."""

    def cost(n: int, v: int, block: int) -> int:
        return workspace_bytes(Plan(n, v, block), features, itemsize, converts, scratch, tiles)

    def largest(high: int, fits: Callable[[int], bool]) -> int:
        low = 0
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low

    rows, classes = max(rows, 1), max(classes, 1)
    for share in (8, 4, 2):  # of the budget at most this part for blocks of the weight
        block = max(1, min(classes, budget // share // (itemsize * max(features, 1)))) if scratch else classes
        n = largest(rows, lambda n, block=block: cost(n, classes, block) <= budget)  # type: ignore[misc]
        if n >= min(rows, 32):
            return Plan(n, classes, block)
    side = largest(max(rows, classes), lambda s: cost(min(s, rows), min(s, classes), min(s, classes)) <= budget)
    if side == 0:
        raise ValueError(f"memory_budget = {budget} bytes is too small: at least {cost(1, 1, 1)} are needed here")
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
        target: class indices (N,), int64, or None.
        weights: weights(rows, classes) -> class weights of that tile, (V',) or (N', V'), or None.
        dense: whether ``weights`` makes a tile of its own, which the budget then counts.
        budget: bytes for the workspace.
    """

    def __init__(
        self,
        products: Products,
        input: Array,
        head: Head,
        target: Array | None,
        weights: Callable[[slice, slice], Array | None],
        budget: int,
        dense: bool = False,
    ) -> None:
        self.products, self.input, self.head, self.target, self.weights = products, input, head, target, weights
        self.rows, self.features = input.shape
        self.classes = head.weight.shape[0]
        self.converts = head.weight.dtype != products.dtype or input.dtype != products.dtype
        scratch = self.converts or not products.adds_in_place
        self.plan = plan(
            self.rows, self.classes, self.features, budget, products.dtype.itemsize,
            converts=self.converts, scratch=scratch, tiles=2 if dense else 1,
        )  # fmt: skip
        self.workspace = products.empty(self.plan.rows * self.plan.classes)
        self.scratch = products.empty(self.plan.block, self.features) if scratch else None
        self.converted = products.empty(2, self.plan.rows, self.features) if self.converts else None
        self.backend = _backends.choose(self.workspace)

    @property
    def whole_rows(self) -> bool:
        """Whether one tile holds all classes."""
        return bool(self.plan.classes == self.classes)

    def chunks(self) -> Iterator[slice]:
        """Yield the row chunks."""
        return spans(self.rows, self.plan.rows)

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

    def hidden(self, rows: slice) -> Array:
        """Return a chunk's hidden states in the computing type."""
        h = self.input[rows]
        return h if self.converted is None else self.products.convert(h, self.converted[0, : h.shape[0]])

    def logits(self, h: Array, tile: slice) -> Array:
        """Compute one tile of logits in the workspace."""
        n, v = h.shape[0], tile.stop - tile.start
        z = self.workspace[: n * v].reshape(n, v)
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

    def fold(self, rows: slice, moment: bool = False) -> tuple[State, Array | None]:
        """Fold one chunk; return its state and the targets' logits (float64)."""
        h, state, z_y = self.hidden(rows), None, None
        for tile in self.tiles():
            z = self.logits(h, tile)
            folded = self.backend.fold(z, self.weights(rows, tile), moment)
            state = folded if state is None else _algebra.merge(state, folded)
            if self.target is not None:
                z_y = self._pick(z, self.target[rows], tile, z_y)
        assert state is not None
        return state, z_y

    def _pick(self, z: Array, target: Array, tile: slice, found: Array | None) -> Array:
        xp = _algebra.namespace(z)
        column = target - tile.start
        inside = (column >= 0) & (column < z.shape[1])
        found = self.products.double(z.shape[0]) if found is None else found
        return xp.where(inside, z[_algebra.classes(z.T), xp.where(inside, column, 0)], found)

    def visit(self, rows: slice, terms: Terms, losses: Array, into: Gradients | None) -> None:
        """Where the workspace holds whole rows: one product, their losses and, by the same kernel, their gradient."""
        h, tile = self.hidden(rows), slice(0, self.classes)
        z, target = self.logits(h, tile), None if self.target is None else self.target[rows]
        self.backend.loss(
            z, terms, target, self.weights(rows, tile), scale=self.head.scale, softcap=self.head.softcap,
            losses=losses, out=None if into is None else z,
        )  # fmt: skip
        if into is not None:
            self._push_tile(rows, h, tile, z, into)

    def push(self, rows: slice, state: State, numbers: Coefficients, into: Gradients) -> None:
        """Turn a chunk's four numbers per row into gradients; its tiles of logits are computed (again)."""
        numbers = Coefficients(*(number * self.head.scale for number in numbers))
        target, h = None if self.target is None else self.target[rows], self.hidden(rows)
        for tile in self.tiles():
            z, weight = self.logits(h, tile), self.weights(rows, tile)
            self.backend.gradient(z, state, numbers, target, weight, tile.start, self.head.softcap, out=z)
            self._push_tile(rows, h, tile, z, into)

    def _push_tile(self, rows: slice, h: Array, tile: slice, dz: Array, into: Gradients) -> None:
        """dh = dz W, dW += dz' h, db += sum dz for one tile of a chunk."""
        dh = into.input
        if dh is not None:
            dh = dh[rows] if self.converted is None else self.converted[1, : h.shape[0]]
        for part, inside, block in self.blocks(tile):
            if dh is not None:
                self.products.accumulate(dz[:, inside], block, dh, None, part.start == 0)
            if into.weight is not None:
                self.products.accumulate(dz[:, inside].T, h, into.weight[part], self.scratch, rows.start == 0)
        if into.bias is not None:
            into.bias[tile] += dz.sum(0)
        if into.input is not None and self.converted is not None and tile.stop == self.classes:
            into.input[rows] = dh
