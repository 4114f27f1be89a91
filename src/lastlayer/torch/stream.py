"""Hidden states to statistics or losses for torch: the framework's products, and what a call asks of the stream.

``fused`` forms the gradients during the forward pass (6 N D V operations); ``statistics`` leaves them to ``pull_back``,
which computes the logits once more (8 N D V). Who holds the other classes is the call's ``peers``. nodes.py makes
autograd's nodes of these functions, ops.py operators that torch.compile takes as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lastlayer import _backends, _linear
from lastlayer._algebra import Statistics, Terms
from lastlayer._linear import Saved
from lastlayer._statistics import place
from lastlayer._stream import ALONE, DEFAULT_BUDGET, Gradients, Head, Peers, Stream, padded
from lastlayer.torch.later import far

Run = Callable[[Stream, Gradients | None], tuple[Tensor, tuple[Tensor | None, ...]]]
Some = tuple[Tensor | None, ...]


HALVES = (torch.float16, torch.bfloat16)
ROWS = 4096  # of logits that a GPU's default budget holds: enough to keep its matrix units busy


class TorchProducts:
    """torch.mm and addmm, summed in float32 or float64.

    A GPU multiplies 16-bit operands as they are and sums in float32. A CPU converts them: its own 16-bit products would
    round each logit.
    """

    adds_in_place = True

    def __init__(self, input: Tensor) -> None:
        self.device = input.device
        self.dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.far = far(input)
        self.operand = input.dtype if self.far and input.dtype in HALVES else self.dtype
        self.align = 64 if self.far else 1  # 16 bytes would do; with 128, no cache line has parts of two rows
        self.backend = _backends.choose(input)
        self.packing = 0 if self.far else (6 << 20) * torch.get_num_threads()  # measured of MKL, per thread

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.backend.reserve(torch.empty(shape, dtype=dtype or self.dtype, device=self.device))  # type: ignore[no-any-return]

    def double(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=self.device)

    def convert(self, array: Tensor, out: Tensor) -> Tensor:
        return out.copy_(array)

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        if out.dtype == a.dtype:
            torch.mm(a, b, out=out)
        else:
            torch.ops.aten.mm.dtype_out(a, b, out.dtype, out=out)

    def accumulate(
        self, a: Tensor, b: Tensor, out: Tensor, scratch: Tensor | None, first: bool, factor: float = 1.0
    ) -> None:
        beta = 0 if first else 1
        if out.dtype == a.dtype:
            out.addmm_(a, b, beta=beta, alpha=factor)
        else:
            torch.ops.aten.addmm.dtype_out(out, a, b, out.dtype, beta=beta, alpha=factor, out=out)

    def tanh(self, array: Tensor) -> None:
        array.tanh_()

    def budget(self, rows: int, classes: int, features: int) -> int:
        if not self.far:
            return DEFAULT_BUDGET
        numbers = padded(classes, self.align) + 2 * features  # of a row: logits, hidden states, their gradient
        return max(DEFAULT_BUDGET, min(rows, ROWS) * numbers * self.dtype.itemsize)


class Call(NamedTuple):
    """One call's constants: everything but the tensors that autograd must see."""

    target: Tensor | None
    class_weight: Tensor | None  # None: nobody asks for sums over all classes
    scale: float
    softcap: float | None
    budget: int | None
    probabilities: Tensor | None = None  # of the classes, instead of a target
    smoothing: float = 0.0  # of the probabilities
    peers: Peers = ALONE
    weight_grad: Tensor | None = None  # what the weight's gradient is added to, instead of being returned

    @property
    def weights(self) -> Callable[[slice, slice], Tensor] | None:
        """Return what gives the class weights of a tile, if there are any."""
        classes = 0 if self.class_weight is None else self.peers.classes or len(self.class_weight)
        return _linear.weights_of(self.probabilities, self.class_weight, self.smoothing, classes)

    def begin(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...], exact: bool = False
    ) -> tuple[Stream, Gradients | None]:
        """Return the stream over detached tensors, and room for the gradients if one is wanted.

        ``exact`` gradients are not yet rounded to the input's type, of which float16 does not hold small ones.
        """

        def work() -> tuple[Stream, Gradients | None]:
            head, products = Head(weight, bias, self.scale, self.softcap), TorchProducts(input)
            dense = self.probabilities is not None
            stream = Stream(products, input, head, self.target, self.weights, self.budget, dense, self.peers)
            kind = products.dtype if exact else input.dtype
            like = lambda: torch.empty_like(input, dtype=kind)  # noqa: E731
            into = self.weight_grad
            into = into if into is not None and into.dtype == products.dtype and wanted[1] else None
            return stream, _linear.allocate(stream, wanted, like, exact, into) if any(wanted) else None

        return self.peers.ready(work)

    def target_weight(self, classes: int) -> Tensor | None:
        """Return the weights of the targets, of those among these classes; None without weights."""
        if self.target is None or self.class_weight is None or not classes:
            return None
        column, inside = place(self.target, self.class_weight[None], self.peers.first_class)
        return self.class_weight[torch.where(inside, column, 0)].double()


def rounded(into: Gradients, input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients in the types of what they are gradients of."""
    return tuple(
        None if gradient is None or like is None else gradient.to(like.dtype)
        for gradient, like in zip(into, (input, weight, bias), strict=True)
    )


def cross_entropy_run(terms: Terms) -> Run:
    """Return what makes the sum of cross-entropies of a stream."""
    return lambda stream, into: (_linear.cross_entropy(stream, terms, into).sum(), ())


def fused(input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, run: Run, wanted: tuple[bool, ...]) -> Some:
    """Return the loss that ``run`` makes of the stream, its gradients by the head's tensors, and by the rows' own.

    Gradients of float16 tensors stay in float32 until they are multiplied by what comes in: a share of a mean over many
    rows is below what float16 holds.
    """
    small, own = input.dtype == torch.float16, call.weight_grad
    if own is not None and torch.is_grad_enabled():
        wanted = (wanted[0], True, *wanted[2:])
    stream, into = call.begin(input, weight, bias, wanted[:3], exact=small)
    if stream.products.operand == torch.float16:
        stream.lift = 2.0 ** min(12, stream.rows.bit_length())
    loss, of_rows = run(stream, into)
    if own is not None and into is not None:
        if not stream.adds:
            own.add_(into.weight)  # type: ignore[arg-type]
        into = into._replace(weight=None)
    gradients = (None, None, None) if into is None else tuple(into) if small else rounded(into, input, weight, bias)
    return (loss.to(stream.products.dtype), *gradients, *of_rows)


def statistics(input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, asked: dict[str, bool]) -> Some:
    """Return statistics of the rows (float64), rank - 1, argmax, and what ``pull_back`` needs; no tensor twice."""
    found, saved, rank, argmax = _linear.statistics(call.begin(input, weight, bias, ())[0], **asked)
    return (*found, rank, argmax, *(None if kept is None else kept.clone() for kept in saved))


def pull_back(
    input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, wanted: tuple[bool, ...], saved: Saved,
    upstream: Statistics,
) -> Some:  # fmt: skip
    """Return the gradients of the statistics, times upstream, by the head's tensors."""
    stream, into = call.begin(input, weight, bias, wanted)
    assert into is not None
    _linear.push_statistics(stream, saved, call.target_weight(stream.classes), upstream, into)
    return rounded(into, input, weight, bias)
