"""Statistics and losses of a linear head are those of its logits, by either schedule and in any tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import laws
import ml_dtypes
import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as T
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import lastlayer.torch as F
from lastlayer._stream import Plan, Stream
from lastlayer.torch import LogitStatistics

INF, NAN, LN2 = math.inf, math.nan, math.log(2.0)
TYPES = {
    torch.float64: np.float64, torch.float32: np.float32, torch.bfloat16: ml_dtypes.bfloat16, torch.float16: np.float16,
}  # fmt: skip
FIELDS = ("logsumexp", "logprob", "entropy", "mean_logit", "max", "mean_logprob", "remainder")
KINDS = ("none", "one", "one in a list", "three")
Seen = list[tuple[Plan, Stream]]

# torch's compiler imports what is deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture(autouse=True)
def memory_starts_as_nan() -> Iterator[None]:
    """What is allocated holds NaN until it is written."""
    torch.manual_seed(20261122)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The plans of the streams that were made."""
    seen: Seen = []

    class Recorded(Stream):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            seen.append((self.plan, self))

    monkeypatch.setattr("lastlayer.torch.stream.Stream", Recorded)
    return seen


def definition(
    h: Tensor, w: Tensor, y: Tensor | None = None, *, dtype: torch.dtype = torch.float64, linear_bias: Any = None,
    scale: float = 1.0, softcap: float | None = None, class_weights: Any = None, entropy: bool = True,
) -> LogitStatistics:  # fmt: skip
    """The plain formulas over full logits, in the given precision; no row is ignored."""
    h, w, b, u = (None if t is None else t.to(dtype) for t in (h, w, linear_bias, class_weights))
    z = T.linear(h, w, b) * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    u = torch.ones(w.shape[0], dtype=dtype) if u is None else u
    u, logp, lse = u / u.sum(), torch.log_softmax(z, -1), torch.logsumexp(z, -1)
    logprob = remainder = None
    if y is not None:
        many = y if y.dim() == z.dim() else y[..., None]
        logprob = logp.gather(-1, many).reshape(y.shape)
        remainder = torch.logsumexp(z.scatter(-1, many, -INF), -1) - lse
    return LogitStatistics(
        logsumexp=lse,
        logprob=logprob,
        entropy=-(logp.exp() * logp).sum(-1) if entropy else None,
        mean_logit=(u * z).sum(-1),
        max=z.gather(-1, z.argmax(-1, keepdim=True))[..., 0],
        mean_logprob=(u * logp).sum(-1),
        remainder=remainder,
    )


def problem(
    dtype: torch.dtype = torch.float32, leading: tuple[int, ...] = (7,), classes: int = 33, kind: str = "one",
    features: int = 5,
) -> tuple[Tensor, Tensor, Any]:  # fmt: skip
    """Return hidden states and a head that want gradients, and targets."""
    h = torch.randn(*leading, features).to(dtype).requires_grad_()
    w = torch.randn(classes, features).to(dtype).requires_grad_()
    order = torch.rand(*leading, classes).argsort(-1)
    targets = {"none": None, "one": order[..., 0], "one in a list": order[..., :1], "three": order[..., :3]}
    return h, w, targets[kind]


def fields_of(found: Any) -> dict[str, Tensor]:
    """Return the differentiable fields that are there."""
    return {name: getattr(found, name) for name in FIELDS if getattr(found, name) is not None}


def is_near(got: Tensor, exact: Tensor, plain: Tensor, what: str, terms: int, size: Any = 0.0) -> None:
    """Within the budget of the type, largest error of all; for float64 to 1e-12 of the largest number."""
    dtype = got.dtype
    if dtype != torch.float64:
        flat = (t.double().reshape(1, -1) for t in (got, exact, plain))
        laws.assert_within(*flat, TYPES[dtype], what, max(terms, 1), size)
        return
    error = (got - exact).abs().max().item() if got.numel() else 0.0
    assert error <= 1e-12 * max(exact.abs().max().item() if got.numel() else 0.0, size), f"{what}: {error}"


def mixed(found: Any, upstream: dict[str, Tensor], names: Any) -> Tensor:
    """Return a sum of fields with factors that differ by row."""
    return sum((getattr(found, name) * upstream[name].to(getattr(found, name).dtype)).sum() for name in names)


def is_its_definition(h: Tensor, w: Tensor, y: Any, *, budget: int = 2**26, alone: bool = True, **options: Any) -> None:
    """Values; the gradient of each field alone, and of all mixed; and the same by ``linear_loss``."""
    kind = torch.float64 if h.dtype == torch.float64 else torch.float32
    got = F.linear_logit_statistics(h, w, y, entropy=True, memory_budget=budget, **options)
    exact, plain = definition(h, w, y, **options), definition(h, w, y, dtype=kind, **options)
    found, terms = fields_of(got), w.shape[0] * w.shape[1]
    inputs = [h, w] + ([options["linear_bias"]] if options.get("linear_bias") is not None else [])
    largest = exact.max.abs().max().item() if h.numel() else 0.0
    upstream = {}
    for name, field in found.items():
        assert field.dtype == kind, name
        assert field.shape == getattr(exact, name).shape, name
        is_near(field, getattr(exact, name), getattr(plain, name), name, terms, largest)
        upstream[name] = torch.randn(field.shape, dtype=torch.float64).to(kind)
    rows = tuple(upstream.values())

    def row_loss(s: Any, *factors: Tensor) -> Tensor:
        parts = (getattr(s, name) * factor for name, factor in zip(found, factors, strict=True))
        return sum(part.sum(-1) if part.dim() == 2 else part for part in parts)

    loss = F.linear_loss(
        row_loss, h, w, y, *rows, entropy=True, reduction="sum", memory_budget=budget, **options
    )  # fmt: skip
    total = sum(float((getattr(exact, name).detach() * upstream[name]).abs().sum()) for name in found)
    is_near(loss, mixed(exact, upstream, found), mixed(plain, upstream, found), "linear_loss", terms, total)
    fused = torch.autograd.grad(loss, inputs)
    sizes = [
        float(sum(u.abs().sum() for u in rows)) * float(t.detach().abs().max() if t.numel() else 0) for t in (w, h)
    ]
    for names in (*(((name,) for name in found) if alone else ()), tuple(found)):
        gradients = [
            torch.autograd.grad(mixed(of, upstream, names), inputs, retain_graph=True) for of in (got, exact, plain)
        ]
        for i, (a, b, c) in enumerate(zip(*gradients, strict=True)):
            assert a.dtype == h.dtype
            size = 0.0 if i > 1 or len(names) == 1 else sizes[i] / max(len(h.reshape(-1, h.shape[-1])), 1)
            is_near(a, b, c, f"gradient {i} of {names}", 8 * terms, size)
            if len(names) > 1:
                is_near(fused[i], b, c, f"gradient {i} of linear_loss", 8 * terms, size)


BUDGETS = [2**26, 5000, 400]
HEADS: list[dict[str, Any]] = [
    {},
    {"linear_bias": True, "class_weights": True},
    {"softcap": 3.0, "scale": 0.5},
    {"linear_bias": True, "class_weights": True, "softcap": 2.0, "scale": -1.5},
]


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS, ids=lambda o: "+".join(o) or "plain")
@pytest.mark.parametrize("budget", BUDGETS)
def test_they_are_their_definition(dtype: torch.dtype, kind: str, head: dict[str, Any], budget: int) -> None:
    h, w, y = problem(dtype, (7,) if budget != 5000 else (2, 4), 33, kind)
    options = dict(head)
    if options.get("linear_bias"):
        options["linear_bias"] = torch.randn(33).to(dtype).requires_grad_()
    if options.get("class_weights"):
        options["class_weights"] = torch.rand(33) * (torch.rand(33) > 0.3)
    is_its_definition(h, w, y, budget=budget, alone=kind in ("one", "three"), **options)


@pytest.mark.parametrize(("rows", "classes"), list(itertools.product([0, 1, 7, 289], [2, 31, 33, 2049])))
def test_ragged_shapes(rows: int, classes: int) -> None:
    kind = "three" if classes > 2 and rows != 7 else "one"
    h, w, y = problem(torch.float32, (rows,), classes, kind, 8)
    with torch.no_grad():
        w *= 0.02 if rows == 7 else 1.0  # small weights, where padding errors show
    is_its_definition(h, w, y, budget=4 * 9000, alone=False)


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("kind", ["one", "three"])
def test_around_the_edge_of_a_block(extra: int, kind: str, streams: Seen) -> None:
    # 40 rows of which 8 fit at a time; the classes fill one block of 8, or one less, or one more.
    h, w, y = problem(torch.float64, (40,), 8 + extra, kind)
    is_its_definition(h, w, y, budget=8 * 8 * 8)
    plans = {plan for plan, _ in streams}
    assert {plan.classes for plan in plans} == {min(8 + extra, 8) if extra != 1 else 8} or extra == 0
    assert any(not stream.whole_rows for _, stream in streams) == (extra == 1)


def test_one_class() -> None:
    h, w, _ = problem(torch.float32, (3,), 1)
    for y in (torch.zeros(3, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64)):
        s = F.linear_logit_statistics(h, w, y, entropy=True, rank=True, argmax=True)
        assert not s.logprob.any()
        assert not s.entropy.any()
        assert s.remainder.isneginf().all()
        assert (s.rank == 1).all()
        (dh,) = torch.autograd.grad(s.logprob.sum() + s.entropy.sum(), h)
        assert not dh.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_they_are_the_statistics_of_the_logits(kind: str, budget: int, streams: Seen) -> None:
    h, w, y = problem(torch.float64, (7,), 33, kind)
    z = T.linear(h, w)
    asked = {"entropy": True, "rank": True, "argmax": True}
    for a, b in zip(
        F.linear_logit_statistics(h, w, y, memory_budget=budget, **asked),
        F.logit_statistics(z, y, **asked),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert streams[0][1].whole_rows == (budget > 400)


# Digits.


def split_form(z: list[float], target: int) -> tuple[float, float]:
    """Return -logprob and entropy by mpmath."""
    with mpmath.workdps(60):
        w = [mpmath.exp(mpmath.mpf(x) - mpmath.mpf(z[target])) for x in z]
        total = mpmath.fsum(w)
        p = [x / total for x in w]
        return float(mpmath.log(total)), float(-mpmath.fsum(x * mpmath.log(x) for x in p if x))


def test_confident_rows_over_eleven_blocks_keep_their_digits(streams: Seen) -> None:
    # The head picks columns, so that the logits are exact in float32.
    classes, margins = 44, [0.0, 0.5, 3.0, 10.0, 30.0, 45.0, 60.0]
    for offset, target in itertools.product([0.0, -100.0, 3000.0], [0, 21, 43]):
        h = (torch.randn(len(margins), classes) * 64).round() / 64
        h[:, target] = h.amax(1) + torch.tensor(margins)
        h = h + offset
        y = torch.full((len(margins),), target)
        streams.clear()
        s = F.linear_logit_statistics(h, torch.eye(classes), y, entropy=True, memory_budget=4 * 4 * 4)
        stream = streams[0][1]
        assert len(list(stream.tiles())) == 11
        for row, (logprob, entropy) in enumerate(zip(s.logprob.tolist(), s.entropy.tolist(), strict=True)):
            loss, exact = split_form(h[row].tolist(), target)
            assert abs(-logprob - loss) <= 1e-5 * loss, (offset, target, row)
            assert abs(entropy - exact) <= 1e-5 * exact, (offset, target, row)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("margin", [-60.0, -30.0, -10.0, 10.0, 30.0, 60.0])
def test_what_is_left_keeps_its_digits_in_either_schedule(margin: float, listed: bool) -> None:
    z = torch.tensor([[0.25, 0.0, -1.5, 0.5, 1.0]], dtype=torch.float64)
    z[0, 2] += margin
    y, w = torch.tensor([[2]] if listed else [2]), torch.eye(5, dtype=torch.float64)
    with mpmath.workdps(100):
        e = [mpmath.exp(x) for x in z[0].tolist()]
        others = mpmath.fsum(e) - e[2]
        p = [x / mpmath.fsum(e) for x in e]
        expected = float(mpmath.log(others / mpmath.fsum(e)))
        slope = [float(-p[2] if j == 2 else x * e[2] / others) for j, x in enumerate(p)]
        of_logprob = [float(others / mpmath.fsum(e)) if j == 2 else float(-x) for j, x in enumerate(p)]
    for budget in (2**20, 16):
        h = z.clone().requires_grad_()
        s = F.linear_logit_statistics(h, w, y, memory_budget=budget)
        assert s.remainder.item() == pytest.approx(expected, rel=1e-12, abs=0)
        logprob = s.logprob.sum()
        lost = F.linear_loss(lambda s: s.remainder, h, w, y, memory_budget=budget)
        for scalar, exact in ((s.remainder.sum(), slope), (lost, slope), (logprob, of_logprob)):
            (dh,) = torch.autograd.grad(scalar, h, retain_graph=True)
            error = np.abs(dh[0].numpy() - exact).max()
            assert error <= 1e-12 * np.abs(exact).max(), (budget, dh[0].tolist(), exact)


def test_a_bfloat16_head_of_32_000_classes() -> None:
    h, w, y = problem(torch.bfloat16, (24,), 32_000, "one", 16)
    exact = definition(h, w, y)
    for budget in (2**22, 2**18):
        s = F.linear_logit_statistics(h, w, y, entropy=True, memory_budget=budget)
        assert s.logprob.dtype == torch.float32
        for name in ("logprob", "entropy", "logsumexp"):
            torch.testing.assert_close(getattr(s, name).double(), getattr(exact, name), rtol=1e-4, atol=0)
        loss = F.linear_loss(lambda s: -s.logprob, h, w, y, memory_budget=budget)
        torch.testing.assert_close(loss.double(), -exact.logprob.mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("schedule", ["recompute", "forward"])
def test_the_weight_gradient_of_bfloat16_does_not_depend_on_the_number_of_chunks(schedule: str, streams: Seen) -> None:
    # Accumulated in float32, rounded once: every entry within one rounding of the exact one, but for float32's errors.
    h, w, y = problem(torch.bfloat16, (512,), 50, "one", 16)
    wide = w.detach().double().requires_grad_()
    (full,) = torch.autograd.grad(-definition(h, wide, y).logprob.sum(), wide)
    largest, chunks, errors = full.abs().max().item(), [], []
    for budget in (2**26, 60_000, 12_000, 3_000):
        streams.clear()
        if schedule == "recompute":
            loss = -F.linear_logit_statistics(h, w, y, memory_budget=budget).logprob.sum()
        else:
            loss = F.linear_loss(lambda s: -s.logprob, h, w, y, reduction="sum", memory_budget=budget)
        (dw,) = torch.autograd.grad(loss, w)
        chunks.append(len(list(streams[-1][1].chunks())))
        rounding = 2.0**-8 * full.abs()  # bfloat16 keeps 8 bits: half a unit in the last place
        assert ((dw.double() - full).abs() <= rounding + 2.0**-23 * 512 * largest).all(), budget
        errors.append((dw.double() - full).abs().max().item())
    assert chunks[0] == 1
    assert chunks[-1] > 16
    assert max(errors) <= 1.5 * (full.bfloat16() - full).abs().max().item()  # of the exact one, rounded once


# Masks, infinities, NaN, ignored rows.


@pytest.mark.parametrize("budget", [2**20, 32])
def test_masked_classes(budget: int) -> None:
    z = torch.tensor([[0.0, 0.0, -INF], [-INF, 3.0, -INF], [0.5, -INF, -1.0]])
    weights = torch.tensor([1.0, 2.0, 0.0])
    for row, u in itertools.product(range(3), (None, weights)):
        for y in (torch.tensor([0]), torch.tensor([2]), torch.tensor([[0, 2]]), torch.tensor([[1, 0]])):
            b, h, w = z[row].clone().requires_grad_(), torch.ones(1, 1, requires_grad=True), torch.zeros(3, 1)
            w.requires_grad_()
            asked = {"entropy": True, "rank": True, "argmax": True, "class_weights": u}
            s = F.linear_logit_statistics(h, w, y, linear_bias=b, memory_budget=budget, **asked)
            dense = F.logit_statistics(z[row : row + 1], y, **asked)
            for name, field in s._asdict().items():
                torch.testing.assert_close(field, getattr(dense, name), rtol=1e-6, atol=0, msg=name)
            for name, field in fields_of(s).items():
                finite = field.masked_fill(field.isinf(), 0).sum()
                for g in torch.autograd.grad(finite, [h, w, b], retain_graph=True):
                    assert g.isfinite().all(), (name, y, g)
    b = torch.tensor([0.0, 0.0, -INF])
    s = F.linear_logit_statistics(
        torch.ones(1, 1), torch.zeros(3, 1), linear_bias=b, entropy=True, memory_budget=budget
    )
    assert s.entropy.item() == pytest.approx(LN2, rel=1e-7)


@pytest.mark.parametrize("budget", [2**20, 32, 4])
@pytest.mark.parametrize("y", [None, [1], [[1]], [[0, 1]], [[0, 1, 2]]], ids=str)
def test_rows_without_a_distribution(budget: int, y: Any) -> None:
    target = None if y is None else torch.tensor(y)
    for row, lse in (([0.0, NAN, 1.0], NAN), ([0.0, INF, 1.0], INF), ([-INF] * 3, -INF)):
        bias = torch.tensor(row)
        s = F.linear_logit_statistics(
            torch.ones(1, 1), torch.zeros(3, 1), target, linear_bias=bias, entropy=True, memory_budget=budget
        )
        np.testing.assert_array_equal(s.logsumexp, [lse])
        for name in set(fields_of(s)) - {"logsumexp", "max"}:
            assert getattr(s, name).isnan().all(), (name, row)
        if not bias.isnan().any():
            assert s.max.item() == bias.max().item()


@pytest.mark.parametrize("budget", [2**20, 400, 32])
def test_rank_and_argmax_across_tiles(budget: int) -> None:
    z = torch.randn(9, 40).mul(3).round()  # ties
    z[3, 7] = NAN
    z[4, [0, 39]] = NAN
    z[5] = -INF
    z[6, [3, 30]] = INF
    for y in (torch.arange(9) * 4, torch.rand(9, 40).argsort(-1)[:, :3]):
        for i in range(9):
            s = F.linear_logit_statistics(
                torch.ones(1, 1), torch.zeros(40, 1), y[i : i + 1], linear_bias=z[i], rank=True, argmax=True,
                memory_budget=budget,
            )  # fmt: skip
            dense = F.logit_statistics(z[i : i + 1], y[i : i + 1], rank=True, argmax=True)
            assert torch.equal(s.rank, dense.rank), (i, budget)
            assert torch.equal(s.argmax, dense.argmax), (i, budget)
    assert F.linear_logit_statistics(torch.ones(1, 1), torch.zeros(4, 1), rank=True).rank is None


@pytest.mark.parametrize("kind", ["none", "one", "three"])
@pytest.mark.parametrize("budget", [2**20, 64, 16])
def test_the_gradient_of_the_maximum_goes_to_the_first_of_all_tiles(kind: str, budget: int) -> None:
    z = torch.tensor([[1.0, 3, 3, 0, 3, 2, 2, 1], [2.0] * 8, [0, 0, 0, 0, 0, 0, 9, 9], [5, 0, 0, 5, 0, 0, 5, 0]])
    y = {
        "none": None,
        "one": torch.tensor([0, 0, 6, 3]),
        "three": torch.tensor([[1, 2, 3], [0, 5, 7], [6, 7, 0], [0, 3, 6]]),
    }
    g = torch.tensor([2.0, 3.0, 5.0, 7.0])
    expected = torch.zeros(4, 8)
    expected[range(4), [1, 0, 6, 0]] = g
    h = z.clone().requires_grad_()
    s = F.linear_logit_statistics(h, torch.eye(8), y[kind], memory_budget=budget)
    assert torch.equal(torch.autograd.grad(s.max, h, g)[0], expected)
    loss = F.linear_loss(lambda s, g: g * s.max, h, torch.eye(8), y[kind], g, reduction="sum", memory_budget=budget)
    assert torch.equal(torch.autograd.grad(loss, h)[0], expected)


@pytest.mark.parametrize("kind", ["one", "three"])
@pytest.mark.parametrize("budget", [2**20, 600])
def test_an_ignored_row_is_a_deleted_row(kind: str, budget: int) -> None:
    h, w, y = problem(torch.float32, (4, 5), 33, kind)
    dead = (torch.arange(20) % 3 == 1).reshape(4, 5)
    with torch.no_grad():
        h[dead] = NAN
        y[dead] = -100
    factor = torch.rand(4, 5).masked_fill(dead, NAN).requires_grad_()
    options = {"entropy": True, "memory_budget": budget}
    asked = {"rank": True, "argmax": True, **options}
    s, alive = (F.linear_logit_statistics(a, w, t, **asked) for a, t in ((h, y), (h[~dead], y[~dead])))
    for name, field in s._asdict().items():
        assert torch.equal(field[~dead], getattr(alive, name)), name
        assert (field[dead] == {"argmax": -1}.get(name, 0)).all(), name
    for name, field in fields_of(s).items():
        upstream = torch.randn(field.shape)
        dh, dw = torch.autograd.grad(field, [h, w], upstream, retain_graph=True)
        kh, kw = torch.autograd.grad(getattr(alive, name), [h, w], upstream[~dead], retain_graph=True)
        assert torch.equal(dh, kh), name
        assert torch.equal(dw, kw), name
        assert not dh[dead].any(), name

    def loss(s: Any, a: Tensor) -> Tensor:
        return a * (s.entropy - (s.logprob if s.logprob.dim() == 1 else s.logprob.sum(-1)) + s.remainder)

    for reduction in ("mean", "sum"):
        one, other = (
            F.linear_loss(loss, a, w, t, b, reduction=reduction, **options)
            for a, t, b in ((h, y, factor), (h[~dead], y[~dead], factor[~dead]))
        )
        assert torch.equal(one, other)
        for a, b in zip(*(torch.autograd.grad(x, [h, w, factor]) for x in (one, other)), strict=True):
            assert torch.equal(a, b)
            assert a.isfinite().all()


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("shape", [(), (2,)])
def test_nothing_to_learn_from_is_zero_and_connected(rows: int, shape: tuple[int, ...]) -> None:
    h, w, b = torch.full((rows, 4), NAN, requires_grad=True), *(torch.randn(s, requires_grad=True) for s in ((5, 4), 5))
    factor, y = torch.rand(rows, requires_grad=True), torch.full((rows, *shape), -100)
    s = F.linear_logit_statistics(h, w, y, linear_bias=b, entropy=True, rank=True, argmax=True)
    for field in fields_of(s).values():
        assert not field.any()
        for gradient in torch.autograd.grad(field.sum(), [h, w, b], retain_graph=True):
            assert not gradient.any()
    assert (s.argmax == -1).all()
    for reduction in ("mean", "sum"):
        loss = F.linear_loss(
            lambda s, a: a * s.logsumexp, h, w, y, factor, linear_bias=b, reduction=reduction
        )  # fmt: skip
        assert loss.item() == 0
        for gradient in torch.autograd.grad(loss, [h, w, b, factor]):
            assert not gradient.any()


def test_targets_of_uint8_are_not_wrapped() -> None:
    h, w, _ = problem(torch.float32, (3,), 200)
    y = torch.tensor([156, 0, 199])  # 156 = -100 + 256
    for target in (y, y[:, None]):
        wide, narrow = (F.linear_logit_statistics(h, w, t, rank=True) for t in (target, target.to(torch.uint8)))
        assert torch.equal(wide.logprob, narrow.logprob)
        assert (narrow.rank > 0).all()
    one, other = (F.linear_loss(lambda s: -s.logprob, h, w, t) for t in (y, y.to(torch.uint8)))
    assert torch.equal(one, other)


# Autograd.


def one_loss(s: Any) -> Tensor:
    """Return a loss per row of statistics with targets of any kind."""
    logprob = 0 if s.logprob is None else s.logprob.reshape(len(s.max), -1).sum(-1)
    return s.entropy + s.logsumexp.square() - logprob


def recomputed(h: Tensor, w: Tensor, y: Any, budget: int = 2**20) -> Tensor:
    """Return the sum of the losses by the recompute schedule."""
    return one_loss(F.linear_logit_statistics(h, w, y, entropy=True, memory_budget=budget)).sum()


def formed_ahead(h: Tensor, w: Tensor, y: Any, budget: int = 2**20) -> Tensor:
    """Return the same with the gradient formed in the forward pass."""
    return F.linear_loss(one_loss, h, w, y, entropy=True, reduction="sum", memory_budget=budget)


def losses(h: Tensor, w: Tensor, y: Any, budget: int = 2**20) -> dict[str, Tensor]:
    """Return one loss by both schedules."""
    return {"recompute": recomputed(h, w, y, budget), "forward": formed_ahead(h, w, y, budget)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", ["recompute", "forward"])
def test_retain_graph_and_a_second_backward(kind: str, schedule: str) -> None:
    h, w, y = problem(torch.float32, kind=kind)
    for budget in (2**20, 300):
        loss = losses(h, w, y, budget)[schedule]
        first = torch.autograd.grad(loss, [h, w], retain_graph=True)
        copies = [t.clone() for t in first]
        again = torch.autograd.grad(loss, [h, w], retain_graph=True)
        for a, b, c in zip(first, again, copies, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)
        for a, b in zip(torch.autograd.grad(3 * loss, [h, w]), copies, strict=True):
            torch.testing.assert_close(a, 3 * b)


@pytest.mark.parametrize("schedule", ["recompute", "forward"])
def test_second_order_says_why_not(schedule: str) -> None:
    h, w, y = problem()
    (dh,) = torch.autograd.grad(losses(h, w, y)[schedule], h, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative here: it would need the full N x V logits"):
        dh.sum().backward()


@pytest.mark.parametrize("schedule", ["recompute", "forward"])
@pytest.mark.parametrize("kind", ["one", "three"])
def test_gradients_only_where_asked(schedule: str, kind: str) -> None:
    h, w, y = problem(kind=kind)
    dh, dw = torch.autograd.grad(losses(h, w, y)[schedule], [h, w])
    assert torch.equal(torch.autograd.grad(losses(h.detach(), w, y)[schedule], w)[0], dw)
    assert torch.equal(torch.autograd.grad(losses(h, w.detach(), y)[schedule], h)[0], dh)
    assert not losses(h.detach(), w.detach(), y)[schedule].requires_grad
    expected = losses(h, w, y)[schedule].item()
    with torch.no_grad():
        loss = losses(h, w, y)[schedule]
    assert not loss.requires_grad
    assert loss.item() == expected


def test_a_captured_parameter_is_no_matter_where_no_gradient_is_formed() -> None:
    h, w, y = problem()
    p, factor = torch.nn.Parameter(torch.ones(())), torch.rand(7, requires_grad=True)
    with torch.no_grad():
        F.linear_loss(lambda s, a: -p * a * s.logprob, h, w, y, factor)


def test_inputs_are_not_modified_and_strides_do_not_matter() -> None:
    for kind, budget in itertools.product(KINDS, (2**20, 300)):
        h, w, y = problem(kind=kind)
        copies = [t if t is None else t.detach().clone() for t in (h, w, y)]
        found = losses(h, w, y, budget)
        gradients = {name: torch.autograd.grad(loss, [h, w]) for name, loss in found.items()}
        for tensor, copy in zip((h, w, y), copies, strict=True):
            assert tensor is None or (torch.equal(tensor, copy) and tensor._version == 0)
        a, b = (t.detach().T.contiguous().T.requires_grad_() for t in (h, w))
        y = None if y is None else torch.stack([y, y], -1)[..., 0]
        for name, loss in losses(a, b, y, budget).items():
            torch.testing.assert_close(loss, found[name])
            torch.testing.assert_close(torch.autograd.grad(loss, [a, b]), gradients[name])


@pytest.mark.parametrize("kind", ["one", "three"])
def test_torch_func_grad(kind: str) -> None:
    h, w, y = problem(torch.float64, kind=kind)
    expected = torch.autograd.grad(losses(h, w, y)["forward"], [h, w])
    got = torch.func.grad(lambda a, b: formed_ahead(a, b, y), argnums=(0, 1))(h.detach(), w.detach())
    torch.testing.assert_close(got, expected)
    with pytest.raises(RuntimeError, match=r"torch\.func transforms are not supported where the logits are computed"):
        torch.func.grad(lambda a: recomputed(a, w.detach(), y))(h.detach())


@pytest.mark.parametrize("wanted", [False, True])
def test_torch_func_grad_by_a_row_tensor(wanted: bool) -> None:
    h, w, y = (t.detach().requires_grad_(wanted) if t.is_floating_point() else t for t in problem(torch.float64))
    factor = torch.rand(7, dtype=torch.float64)
    got = torch.func.grad(lambda a: F.linear_loss(lambda s, a: a * a * s.logprob, h, w, y, a))(factor)
    torch.testing.assert_close(got, 2 * factor * F.linear_logit_statistics(h, w, y).logprob / 7)


def test_checkpoint() -> None:
    for kind, name in itertools.product(KINDS, ("recompute", "forward")):
        h, w, y = problem(kind=kind)
        expected = torch.autograd.grad(losses(h, w, y)[name], [h, w])
        got = torch.autograd.grad(
            checkpoint(lambda a, b, n=name, t=y: losses(a, b, t)[n], h, w, use_reentrant=False), [h, w]
        )
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_compiles_as_one_graph() -> None:
    def both(h: Tensor, w: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        s = F.linear_logit_statistics(h, w, y, entropy=True, rank=True, argmax=True)
        return s.logprob, s.entropy, s.rank, s.argmax, F.linear_loss(lambda s: -s.logprob, h, w, y)

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    h, w, y = problem()
    for target in (y, y.index_fill(0, torch.tensor([2]), -100)):
        got, expected = compiled(h, w, target), both(h, w, target)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(x[0].sum() + x[1].sum() + x[4], [h, w]) for x in (got, expected))
        )
    with pytest.raises(IndexError, match=r"target\[1\] = 33 is outside \[0, 33\)"):
        compiled(h, w, y.index_fill(0, torch.tensor([1]), 33))


def test_autocast_multiplies_what_autocast_gives() -> None:
    h, w, y = problem()
    with torch.autocast("cpu", torch.bfloat16):
        s, loss = F.linear_logit_statistics(h, w, y), F.linear_loss(lambda s: -s.logprob, h, w, y)
    low = F.linear_logit_statistics(h.bfloat16(), w.bfloat16(), y)
    assert s.logprob.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(s.logprob, low.logprob)
    torch.testing.assert_close(loss, -low.logprob.mean())
    for scalar in (s.logprob.sum(), loss):
        dh, dw = torch.autograd.grad(scalar, [h, w])
        assert dh.dtype == dw.dtype == torch.float32


# linear_loss and its function.


COUPLED: dict[str, Callable[..., Tensor]] = {
    "centred": lambda s, a: -(a - a.mean()) * s.logprob,
    "normalised": lambda s, a: -a * s.logprob / len(a),
    "softmax over rows": lambda s, a: -a.softmax(0) * s.logprob,
    "batch's baseline": lambda s, a: (s.entropy - s.entropy.mean()) * a,
    "next row": lambda s, a: -a.roll(-1) * s.logprob,
    "all": lambda s, a: -a.sum() * s.logprob,
}


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("rows", [2, 3, 9, 64])
@pytest.mark.parametrize("budget", [2**20, 4 * 33 * 8])
def test_a_loss_that_couples_rows_is_refused(name: str, rows: int, budget: int) -> None:
    h, w, y = problem(torch.float32, (rows,))
    with pytest.raises(ValueError, match=r"loss_fn couples rows: .* Use linear_logit_statistics"):
        F.linear_loss(COUPLED[name], h, w, y, torch.randn(rows), entropy=True, memory_budget=budget)


def test_what_does_not_couple_is_taken() -> None:
    for rows in (1, 2, 3, 9):
        h, w, y = problem(torch.float32, (rows,))
        for scale in (1e-30, 1.0, 1e30):
            F.linear_loss(lambda s, a: a * s.logprob.exp(), h, w, y, torch.randn(rows) * scale).backward()
        F.linear_loss(lambda s: torch.where(s.logprob < -3, INF, s.logprob), h, w, y)
        F.linear_loss(lambda s: s.logprob * NAN, h, w, y)


WRONG: list[tuple[Any, type[Exception], str]] = [
    (
        lambda s: s.logprob.sum(),
        ValueError,
        r"loss_fn returned .* of shape \(\) for 7 rows, expected .* one loss per row",
    ),
    (lambda s: s.logprob[:, None], ValueError, r"loss_fn returned .* of shape \(7, 1\) for 7 rows"),
    (lambda s: s.logprob[1:], ValueError, r"loss_fn returned .* of shape \(6,\) for 7 rows"),
    (lambda s: 1.0, ValueError, r"loss_fn returned 1.0 for 7 rows"),
    (lambda s: None, ValueError, r"loss_fn returned None for 7 rows"),
    (
        lambda s: s.logprob * torch.nn.Parameter(torch.ones(())),
        RuntimeError,
        r"loss_fn uses a tensor of shape \(\) that",
    ),
    (lambda s: s.logprob * CAPTURED[: len(s.logprob)], RuntimeError, r"loss_fn uses a tensor of shape \(64,\) that"),
    (lambda s: s.logprob * torch.ones(7), ValueError, "loss_fn"),  # N numbers that are no row tensor
    (lambda s: s.logprob.long(), (TypeError, ValueError), "loss_fn"),
    ("abc", (TypeError, ValueError), "loss_fn"),
    (None, (TypeError, ValueError), "loss_fn"),
]
CAPTURED = torch.ones(64, requires_grad=True)


@pytest.mark.parametrize(("loss_fn", "kind", "message"), WRONG, ids=range(len(WRONG)))
def test_a_function_that_does_not_fit_is_named(loss_fn: Any, kind: Any, message: str) -> None:
    h, w, y = problem()
    with pytest.raises(kind, match=message):
        F.linear_loss(loss_fn, h, w, y)


def test_numbers_of_all_rows_that_were_captured_are_refused() -> None:
    for rows in (2, 3, 6, 40):
        h, w, y = problem(torch.float32, (rows,))
        captured = torch.rand(rows)
        with pytest.raises(ValueError, match="loss_fn"):
            F.linear_loss(lambda s, c=captured: -c * s.logprob, h, w, y)


def test_what_the_function_raises_comes_through_and_nothing_is_left() -> None:
    h, w, y = problem()

    def broken(s: Any) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        F.linear_loss(broken, h, w, y)
    assert h.grad is None
    F.linear_loss(lambda s: -s.logprob, h, w, y).backward()


@pytest.mark.parametrize("budget", [2**20, 300])
@pytest.mark.parametrize("kind", ["none", "one", "three"])
def test_row_tensors(budget: int, kind: str) -> None:
    h, w, y = problem(torch.float64, (2, 4), 33, kind)
    a = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    b = torch.rand(2, 4, 3, dtype=torch.float64, requires_grad=True)
    steps, mask, low = torch.arange(8).reshape(2, 4), torch.rand(2, 4) > 0.4, torch.rand(2, 4).half().requires_grad_()
    dtypes = []

    def loss(s: Any, a: Tensor, b: Tensor, steps: Tensor, mask: Tensor, low: Tensor) -> Tensor:
        dtypes.append((steps.dtype, mask.dtype, low.dtype))
        first = s.entropy if s.logprob is None else s.logprob.reshape(*a.shape, -1).sum(-1)
        return torch.where(mask, a * first + (b.square().sum(-1) * steps) * s.logsumexp, b[..., 0]) + low * a

    options = {"entropy": True, "memory_budget": budget}
    got = F.linear_loss(loss, h, w, y, a, b, steps, mask, low, reduction="sum", **options)
    expected = loss(F.linear_logit_statistics(h, w, y, **options), a, b, steps, mask, low).sum()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    assert set(dtypes) == {(torch.int64, torch.bool, torch.float16)}
    for upstream in (1.0, 0.3):
        pairs = [
            torch.autograd.grad(x, [h, w, a, b, low], torch.tensor(upstream, dtype=x.dtype), retain_graph=True)
            for x in (got, expected)
        ]
        for x, exact in zip(*pairs, strict=True):
            assert x.shape == exact.shape
            assert x.dtype == exact.dtype
            torch.testing.assert_close(x, exact, rtol=2**-9 if x.dtype == torch.float16 else 1e-11, atol=1e-12)
    half = F.linear_loss(loss, h, w, y, a.detach(), b, steps, mask, low.detach(), **options)
    torch.testing.assert_close(
        torch.autograd.grad(half, b)[0] * 8, pairs[1][3] / torch.tensor(0.3, dtype=torch.float64)
    )


def test_the_same_row_tensor_twice_and_the_hidden_states_as_one() -> None:
    h, w, y = problem(torch.float64)
    a = torch.rand(7, dtype=torch.float64, requires_grad=True)
    got = F.linear_loss(lambda s, a, b, h: a * b * s.logprob + h.sum(-1), h, w, y, a, a, h, reduction="sum")
    expected = (a * a * F.linear_logit_statistics(h, w, y).logprob + h.sum(-1)).sum()
    for x, exact in zip(*(torch.autograd.grad(loss, [h, w, a]) for loss in (got, expected)), strict=True):
        torch.testing.assert_close(x, exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("budget", [2**20, 300])
def test_a_loss_that_ignores_the_statistics_has_gradient_zero(budget: int) -> None:
    h, w, y = problem()
    b, a, constant = torch.randn(33, requires_grad=True), torch.rand(7, requires_grad=True), torch.rand(7)
    loss = F.linear_loss(lambda s, a: a, h, w, y, a, linear_bias=b, memory_budget=budget)
    dh, dw, db, da = torch.autograd.grad(loss, [h, w, b, a])
    assert not any(g.any() for g in (dh, dw, db))
    torch.testing.assert_close(da, torch.full((7,), 1 / 7))
    for loss_fn in (lambda s, c: c, lambda s, c: s.logprob.detach() * c):  # nothing to differentiate by at all
        loss = F.linear_loss(loss_fn, h, w, y, constant, linear_bias=b, memory_budget=budget)
        for gradient in torch.autograd.grad(loss, [h, w, b]):
            assert not gradient.any(), gradient


@pytest.mark.parametrize("first", [True, False])
def test_a_loss_that_needs_the_statistics_of_some_chunks_only(first: bool, streams: Seen) -> None:
    h, w, y = problem(torch.float64, (64,))
    a = (torch.arange(64) < 32 if first else torch.arange(64) >= 32).double()
    weight = F.linear_loss(lambda s, a: -a * s.logprob, h, w, y, a, memory_budget=8 * 33 * 43)
    assert len(list(streams[-1][1].chunks())) == 2
    skipping = F.linear_loss(
        lambda s, a: -a * s.logprob if bool(a.any()) else a, h, w, y, a, memory_budget=8 * 33 * 43
    )  # fmt: skip
    for x, exact in zip(*(torch.autograd.grad(loss, [h, w]) for loss in (skipping, weight)), strict=True):
        assert torch.equal(x, exact)


class Largest(TorchDispatchMode):
    """Remembers the most bytes any operation returned in memory of its own, those inside our own nodes included."""

    bytes = 0
    what = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() > self.bytes:
                self.bytes, self.what = tensor.untyped_storage().nbytes(), str(func)
        return out


@pytest.mark.parametrize("kind", ["none", "one", "three"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2500, 20_000])
def test_no_array_of_n_times_v_nor_beyond_the_budget(
    kind: str, dtype: torch.dtype, classes: int, streams: Seen
) -> None:
    rows, features, budget = 700, 4, 2**20
    h, w, y = problem(dtype, (rows,), 10, kind, features)
    w = torch.randn(classes, features).to(dtype).requires_grad_()
    with Largest() as seen:
        s = F.linear_logit_statistics(h, w, y, entropy=True, rank=True, argmax=True, memory_budget=budget)
        sum(f.sum() for f in fields_of(s).values()).backward()
        F.linear_loss(
            lambda s: s.entropy + s.max + (0 if s.logprob is None else s.remainder),
            h, w, y, entropy=True, memory_budget=budget,
        ).backward()  # fmt: skip
    assert 0 < seen.bytes <= max(budget, 4 * classes * features), seen.what
    assert any(stream.whole_rows for _, stream in streams) == (classes == 2500)


def test_a_budget_too_small_names_the_least_that_works() -> None:
    h, w, y = problem()
    for call in (F.linear_logit_statistics, lambda *a, **k: F.linear_loss(lambda s: -s.logprob, *a, **k)):
        with pytest.raises(ValueError, match="memory_budget = 3 bytes is too small: at least 4"):
            call(h, w, y, memory_budget=3)
        call(h, w, y, memory_budget=4)
