"""Every statistic of a row of logits is its definition, value and gradient, and keeps its digits where that is hard."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import corpus
import laws
import ml_dtypes
import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import lastlayer.torch as F
from lastlayer.torch import LogitStatistics

INF, NAN, LN2 = math.inf, math.nan, math.log(2.0)
TYPES = {
    torch.float64: np.float64, torch.float32: np.float32, torch.bfloat16: ml_dtypes.bfloat16, torch.float16: np.float16,
}  # fmt: skip
SMOOTH = ("logsumexp", "logprob", "entropy", "mean_logit", "mean_logprob", "remainder")
FIELDS = (*SMOOTH, "max")
SHIFTLESS = ("logprob", "entropy", "mean_logprob", "remainder")  # a constant added to the row changes nothing
TARGETS = ("none", "one", "one in a list", "three")

# torch's forward-mode AD itself imports what is deprecated; so does its compiler.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]


@pytest.fixture(autouse=True)
def memory_starts_as_nan() -> Iterator[None]:
    """What is allocated holds NaN until it is written."""
    torch.manual_seed(20261122)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def definition(z: Tensor, y: Tensor | None = None, w: Tensor | None = None, ignored: int = -100) -> dict[str, Tensor]:
    """The statistics of rows (..., V) by the plain formulas, in z's own precision; of an ignored row all are 0."""
    leading, classes = z.shape[:-1], z.shape[-1]
    z = z.reshape(leading.numel(), classes)
    w = torch.ones(classes, dtype=z.dtype) if w is None else w.to(z.dtype)
    u, logp = w / w.sum(), torch.log_softmax(z, -1)
    finite = torch.where(logp.isinf(), 0.0, logp)
    found = {
        "logsumexp": torch.logsumexp(z, -1),
        "entropy": -(logp.exp() * finite).sum(-1),
        "mean_logit": torch.where(u == 0, 0.0, u * z).sum(-1),
        "mean_logprob": torch.where(u == 0, 0.0, u * logp).sum(-1),
        "max": z.gather(-1, z.argmax(-1, keepdim=True))[:, 0],
    }
    if y is not None:
        shape = y.shape
        many = by_row(y.long(), leading.numel())
        silent = (many == ignored).all(-1)
        many = many.masked_fill(silent[:, None], 0)
        others = torch.logsumexp(z.scatter(-1, many, -INF), -1)
        found |= {"logprob": logp.gather(-1, many), "remainder": others - found["logsumexp"]}
        found = {k: torch.where(silent[:, None] if f.dim() == 2 else silent, 0.0, f) for k, f in found.items()}
        found["logprob"] = found["logprob"].reshape(shape)
    return {k: f.reshape(leading) if k != "logprob" else f for k, f in found.items()}


def problem(
    dtype: torch.dtype, leading: tuple[int, ...], classes: int, kind: str = "one", spread: float = 2.0
) -> tuple[Tensor, Tensor | None]:
    """Return logits that want a gradient, and targets."""
    z = (torch.randn(*leading, classes) * spread).to(dtype).requires_grad_()
    order = torch.rand(*leading, classes).argsort(-1)
    return z, {
        "none": None, "one": order[..., 0], "one in a list": order[..., :1], "three": order[..., :3], "all": order,
    }[kind]  # fmt: skip


def fields_of(found: Any) -> dict[str, Tensor]:
    """Return the differentiable fields that are there."""
    return {name: getattr(found, name) for name in FIELDS if getattr(found, name) is not None}


def by_row(field: Tensor, rows: int) -> Tensor:
    """Return a field of any leading shape as (rows, K), K = 1 for what is one per row."""
    return field.reshape(rows, field.numel() // rows if rows else 1)


def is_near(
    got: Tensor, exact: Tensor, plain: Tensor, dtype: torch.dtype, what: str, terms: int, size: Any = 0
) -> None:
    """Within the budget; for float64 to 1e-12 of the largest number of the row."""
    if dtype != torch.float64:
        laws.assert_within(got, exact, plain, TYPES[dtype], what, terms, size)
        return
    got, exact = laws.wide(got), laws.wide(exact)
    special = ~np.isfinite(exact)
    np.testing.assert_array_equal(got[special], exact[special], err_msg=what)
    worst = np.where(special, 0, np.abs(exact)).max(-1, initial=0.0)
    error = np.where(special, 0, np.abs(got - np.where(special, 0, exact))).max(-1, initial=0.0)
    assert (error <= 1e-12 * np.maximum(worst, size)).all(), f"{what}: {error.max()}"


def is_its_definition(
    z: Tensor, y: Tensor | None, w: Tensor | None = None, entropy: bool = True, compute: Any = F.logit_statistics
) -> None:
    """Each field, its gradient alone with an upstream that differs by row, and all gradients mixed."""
    kind, classes = torch.float64 if z.dtype == torch.float64 else torch.float32, z.shape[-1]
    got = compute(z, y, class_weights=w, entropy=entropy)
    found = fields_of(got)
    assert set(found) == {*FIELDS} - (set() if entropy else {"entropy"}) - (
        {"logprob", "remainder"} if y is None else set()
    )
    exact, plain = (definition(z.to(t), y, None if w is None else w.to(t)) for t in (torch.float64, kind))
    size = laws.wide(z.abs().reshape(-1, classes).amax(1)) if z.numel() else np.zeros(0)
    upstream = {}
    for name, field in found.items():
        assert field.dtype == kind, name
        assert field.shape == exact[name].shape, name
        values = (by_row(t, len(size)) for t in (field, exact[name], plain[name]))
        is_near(*values, kind, name, classes, size if name == "mean_logit" else 0)
        upstream[name] = torch.randn(field.shape, dtype=torch.float64).to(kind)
    for names in (*((name,) for name in found), tuple(found)):
        gradients = [
            torch.autograd.grad(
                [of[name] for name in names],
                z,
                [upstream[name].to(of[name].dtype) for name in names],
                retain_graph=True,
            )[0].reshape(-1, classes)
            for of in (found, exact, plain)
        ]
        assert gradients[0].dtype == z.dtype
        added: Any = 0.0
        if len(names) > 1 or names[0] in (
            "entropy",
            "mean_logit",
            "mean_logprob",
        ):  # a sum of terms that may nearly cancel
            parts = [by_row(upstream[name], len(size)).abs().sum(-1) for name in names]
            term = {("entropy",): laws.wide(exact["entropy"].reshape(-1)), ("mean_logprob",): 1 / classes}
            added = laws.wide(sum(parts)) * term.get(names, 1.0)
        is_near(*gradients, z.dtype, f"gradient of {names}", 8 * classes, added)


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("leading", [(), (7,), (2, 3)])
def test_it_is_its_definition(dtype: torch.dtype, kind: str, weighted: bool, leading: tuple[int, ...]) -> None:
    z, y = problem(dtype, leading, 33, kind)
    w = torch.rand(33) * (torch.rand(33) > 0.2) if weighted else None
    is_its_definition(z, y, w, entropy=weighted or leading == (7,))


@pytest.mark.parametrize(("rows", "classes"), list(itertools.product([0, 1, 7, 289], [1, 2, 31, 33, 2049])))
@pytest.mark.parametrize("kind", ["one", "three"])
def test_ragged_shapes(rows: int, classes: int, kind: str) -> None:
    if classes < 4 and kind == "three":
        return
    z, y = problem(torch.float32, (rows,), classes, kind, 0.02 if rows == 7 else 2.0)
    if classes > 1:
        is_its_definition(z, y)
    else:
        s = F.logit_statistics(z, y, entropy=True)
        assert torch.equal(s.logsumexp, z[:, 0])
        assert not s.logprob.any()
        assert not s.entropy.any()
        assert s.remainder.isneginf().all()


@pytest.mark.parametrize("kind", ["one", "one in a list", "three", "all"])
def test_a_constant_added_to_a_row_changes_no_shiftless_statistic(kind: str) -> None:
    for classes in (1, 5) if kind in ("one", "one in a list", "all") else (5,):
        z, y = problem(torch.float64, (6,), classes, kind)
        s = F.logit_statistics(z, y, entropy=True)
        for name in SHIFTLESS:
            (dz,) = torch.autograd.grad(getattr(s, name).sum(), z, retain_graph=True)
            what = f"{name}, {classes} classes: {dz.sum(1)}"
            assert (dz.sum(1).abs() <= 1e-14 * dz.abs().sum(1)).all(), what


def test_targets_in_either_form_are_one() -> None:
    z, y = problem(torch.float32, (9,), 50)
    assert y is not None
    one, listed = (F.logit_statistics(z, t, entropy=True, rank=True) for t in (y, y[:, None]))
    assert torch.equal(one.rank, listed.rank[:, 0])
    for name, field in fields_of(one).items():
        other = getattr(listed, name)
        torch.testing.assert_close(field, other[:, 0] if name == "logprob" else other, rtol=2**-23, atol=0)


# Digits.


def exact_row(row: list[float], chosen: list[int]) -> dict[str, Any]:
    """Return the statistics and, for those that a confident row threatens, their gradients by mpmath."""
    with mpmath.workdps(120):
        z = [mpmath.mpf(x) for x in row]
        w = [mpmath.exp(x - z[0]) for x in z]
        total, mass = mpmath.fsum(w), mpmath.fsum(w[k] for k in chosen)
        others = mpmath.fsum(x for k, x in enumerate(w) if k not in chosen)
        p = [x / total for x in w]
        h = -mpmath.fsum(x * mpmath.log(x) for x in p)
        of_logprob = [(1 if j == chosen[0] else 0) - x for j, x in enumerate(p)]
        of_remainder = [-x if j in chosen else x * mass / others for j, x in enumerate(p)]
        of_entropy = [-x * (mpmath.log(x) + h) for x in p]
        return {
            "logsumexp": float(z[0] + mpmath.log(total)),
            "logprob": float(mpmath.log(p[chosen[0]])),
            "entropy": float(h),
            "remainder": float(mpmath.log(others / total)),
            "d logprob": np.array([float(x) for x in of_logprob]),
            "d remainder": np.array([float(x) for x in of_remainder]),
            "d entropy": np.array([float(x) for x in of_entropy]),
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("listed", [0, 1, 3])
@pytest.mark.parametrize("margin", [-60.0, -40.0, -20.0, -5.0, 0.0, 5.0, 20.0, 40.0, 60.0])
def test_digits_of_confident_rows(margin: float, listed: int, dtype: torch.dtype) -> None:
    # p of the target or targets goes to 1 or to 0; what is small has the digits of its type all the same.
    for offset in (0.0, 3000.0):
        row = torch.tensor([0.25, 0.0, -1.5, 0.5, -2.0, 1.0, 0.125], dtype=dtype)
        chosen = [2] if listed < 2 else [2, 0, 4]
        row[chosen] += margin
        row = row + offset
        z = row[None].clone().requires_grad_()
        y = torch.tensor([chosen]) if listed else torch.tensor(chosen)
        s, exact = F.logit_statistics(z, y, entropy=True), exact_row(row.tolist(), chosen)
        rounding = 1e-12 if dtype == torch.float64 else 8 * laws.spacing(np.float32)
        first = {"logsumexp": s.logsumexp, "entropy": s.entropy, "remainder": s.remainder}
        first["logprob"] = s.logprob[..., 0] if listed else s.logprob
        for name, field in first.items():
            assert abs(field.item() - exact[name]) <= rounding * abs(exact[name]), name
            if name == "logsumexp":
                continue
            (dz,) = torch.autograd.grad(field.sum(), z, retain_graph=True)
            error = np.abs(laws.wide(dz)[0] - exact[f"d {name}"])
            size = np.abs(exact[f"d {name}"]).max()
            assert (error <= rounding * size).all(), (name, error / size)


@pytest.mark.parametrize("margin", [5.0, 20.0, 40.0, 60.0])
def test_digits_of_confident_rows_on_the_composite_path(margin: float) -> None:
    for listed, dtype in itertools.product((False, True), (torch.float32, torch.float64)):
        z = torch.tensor([0.25, 0.0, -1.5, 0.5, -2.0, 1.0, 0.125], dtype=dtype)
        z[2] += margin
        y, exact = torch.tensor([2] if listed else 2), exact_row(z.tolist(), [2])
        rounding = 1e-12 if dtype == torch.float64 else 8 * laws.spacing(np.float32)
        for name in ("logprob", "entropy"):

            def compute(z: Tensor, name: str = name, y: Tensor = y) -> Tensor:
                return getattr(F.logit_statistics(z, y, entropy=True), name).sum()

            dz, value = torch.func.grad_and_value(compute)(z)
            assert abs(value.item() - exact[name]) <= rounding * abs(exact[name]), name
            error, size = np.abs(laws.wide(dz) - exact[f"d {name}"]), np.abs(exact[f"d {name}"]).max()
            assert (error <= rounding * size).all(), (name, listed, dtype, error / size)


def test_digits_of_the_corpus() -> None:
    worst: dict[str, float] = {}
    for _, row in corpus.rows(np.float32):
        if len(row) > 100 or not np.isfinite(row).all():
            continue
        z, exact, k = torch.tensor(row), corpus.exact(row), int(row.argmax())
        s = F.logit_statistics(z, torch.tensor(k), entropy=True)
        for name, pair in (("logprob", exact.log_softmax[k]), ("entropy", exact.entropy)):
            value = laws.wide(getattr(s, name))
            tiny = abs(pair[0]) < np.finfo(np.float32).tiny
            error = 0.0 if tiny else abs(float(value) - pair[0]) / abs(pair[0])
            worst[name] = max(worst.get(name, 0.0), error)
    assert worst["logprob"] <= 1e-5
    assert worst["entropy"] <= 1e-5


def test_what_all_others_hold_where_float64_underflows() -> None:
    z = torch.tensor([[0.0, -800.0, -801.0]])
    expected = torch.tensor([-800.0 + math.log1p(math.exp(-1.0))])
    torch.testing.assert_close(F.logit_statistics(z, torch.tensor([[0]])).remainder, expected)
    assert F.logit_statistics(z, torch.tensor([0])).remainder.item() == -INF  # of one target: by its probability


def test_sixteen_bit_logits_have_float32_statistics() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        z, y = problem(dtype, (5,), 1000)
        half, single = (F.logit_statistics(x, y, entropy=True) for x in (z, z.float()))
        for name, field in fields_of(half).items():
            torch.testing.assert_close(field, getattr(single, name), rtol=2**-20, atol=0)


# Masks, infinities, NaN, ignored rows.

ODD = torch.tensor([[0.0, NAN, 1.0], [0.0, INF, 1.0], [-INF, -INF, -INF]])


@pytest.mark.parametrize("dtype", list(TYPES))
def test_masked_classes(dtype: torch.dtype) -> None:
    z = torch.tensor([[0.0, 0.0, -INF], [-INF, 3.0, -INF], [0.5, -INF, -1.0]]).to(dtype).requires_grad_()
    w = torch.tensor([1.0, 2.0, 0.0])
    for y in (torch.tensor([0, 1, 2]), torch.tensor([1, 2, 1]), torch.tensor([[0, 2], [1, 0], [0, 1]])):
        for weights in (None, w):
            got = F.logit_statistics(z, y, entropy=True, class_weights=weights)
            exact = definition(z.double(), y, weights)
            for name, field in fields_of(got).items():
                torch.testing.assert_close(field.double(), exact[name], rtol=1e-6, atol=0, msg=name)
                (dz,) = torch.autograd.grad(field.masked_fill(field.isinf(), 0).sum(), z, retain_graph=True)
                assert dz.isfinite().all(), name
    s = F.logit_statistics(z, entropy=True)
    assert s.entropy[0].item() == pytest.approx(LN2, rel=1e-7)
    (dz,) = torch.autograd.grad(s.entropy.sum(), z)
    assert dz.isfinite().all()
    assert not dz[:, 2][:2].any()


@pytest.mark.parametrize("kind", ["none", "one", "two", "all"])
def test_rows_without_a_distribution(kind: str) -> None:
    y = {"none": None, "one": torch.tensor([0, 1, 0]), "two": torch.tensor([[0, 1], [1, 2], [0, 1]])}.get(
        kind, torch.tensor([[0, 1, 2]] * 3)
    )
    s = F.logit_statistics(ODD, y, entropy=True)
    np.testing.assert_array_equal(s.logsumexp, [NAN, INF, -INF])
    for name in ("entropy", "mean_logprob", "mean_logit", *(("logprob", "remainder") if y is not None else ())):
        assert getattr(s, name).isnan().all(), name


def test_max_rank_and_argmax_are_torchs() -> None:
    z = torch.tensor([[1.0, 3.0, 3.0, -INF], [2.0, NAN, 5.0, NAN], [-INF] * 4, [0.0, INF, 1.0, INF], [7.0] * 4])
    y = torch.tensor([2, 2, 1, 3, 3])
    for dtype in TYPES:
        s = F.logit_statistics(z.to(dtype), y, rank=True, argmax=True)
        assert torch.equal(s.max[[0, 2, 3, 4]].double(), z.amax(1)[[0, 2, 3, 4]].double())
        assert torch.equal(s.argmax, torch.where(z.isnan().any(1), -1, z.argmax(1)))
        assert s.rank.tolist() == [1, 3, 1, 1, 1]  # NaN is above all
        assert s.rank.dtype == s.argmax.dtype == torch.int64
    several = F.logit_statistics(z[:1], torch.tensor([[0, 3, 1]]), rank=True)
    assert several.rank.tolist() == [[3, 4, 1]]
    assert F.logit_statistics(z, rank=True).rank is None


def test_both_paths_agree_on_the_maximum_of_a_row_with_nan() -> None:
    for z in (torch.tensor([[0.0, NAN, 1.0]]), torch.tensor([[NAN, 0.0, 1.0]]), torch.tensor([[NAN] * 3])):
        composite = torch.vmap(lambda z: F.logit_statistics(z).max)(z)
        np.testing.assert_array_equal(F.logit_statistics(z).max, composite)


def test_rank_counts_the_classes_above() -> None:
    for dtype, kind in itertools.product(TYPES, ("one", "three")):
        z, y = problem(dtype, (40,), 300, kind)
        assert y is not None
        z = z.detach().mul(4).round()  # ties
        s = F.logit_statistics(z, y, rank=True, argmax=True)
        chosen = z.gather(1, y.reshape(40, -1))
        expected = 1 + (z[:, None] > chosen[..., None]).sum(-1)
        assert torch.equal(s.rank, expected.reshape(y.shape))
        assert torch.equal(s.argmax, torch.where(z.isnan().any(1), -1, z.argmax(1)))


def test_the_gradient_of_the_maximum_goes_to_the_first() -> None:
    z = torch.tensor([[1.0, 3.0, 3.0], [-INF] * 3, [2.0, 2.0, 2.0]], requires_grad=True)
    for y in (None, torch.tensor([0, 0, 0]), torch.tensor([[0, 1]] * 3), torch.tensor([[1, 2]] * 3)):
        s = F.logit_statistics(z, y)
        (dz,) = torch.autograd.grad(s.max, z, torch.tensor([2.0, 3.0, 5.0]))
        assert dz.tolist() == [[0, 2, 0], [3, 0, 0], [5, 0, 0]]


@pytest.mark.parametrize("kind", ["one", "three"])
@pytest.mark.parametrize("planted", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize("path", ["fused", "composite"])
def test_an_ignored_row_is_a_deleted_row(kind: str, planted: float, path: str) -> None:
    z, y = problem(torch.float32, (12,), 33, kind)
    assert y is not None
    dead = torch.arange(12) % 3 == 1
    with torch.no_grad():
        z[dead] = planted
        y[dead] = -7
    w = torch.rand(33)

    def compute(z: Tensor, y: Tensor) -> Any:
        return F.logit_statistics(z, y, entropy=True, rank=True, argmax=True, class_weights=w, ignore_index=-7)

    def mapped(z: Tensor, y: Tensor) -> Any:
        return torch.vmap(compute)(z[None], y[None])

    s = compute(z, y) if path == "fused" else mapped(z, y)
    alive = compute(z[~dead], y[~dead])
    for name, field in s._asdict().items():
        field = field if path == "fused" else field[0]
        value, kept = {"rank": 0, "argmax": -1}.get(name, 0), getattr(alive, name)
        assert (field[dead] == value).all(), name
        if path == "fused" or not field.is_floating_point():
            assert torch.equal(field[~dead], kept), name
        if not field.is_floating_point():
            continue
        upstream = torch.randn(field.shape)
        (dz,) = torch.autograd.grad(field, z, upstream, retain_graph=True)
        (expected,) = torch.autograd.grad(kept, z, upstream[~dead], retain_graph=True)
        assert not dz[dead].any(), f"gradient of {name}"
        torch.testing.assert_close(dz, expected, rtol=0 if path == "fused" else 1e-4, atol=1e-7 * (path != "fused"))


def test_all_rows_ignored() -> None:
    for y in (torch.full((3,), -100), torch.full((3, 2), -100)):
        z = torch.full((3, 4), NAN, requires_grad=True)
        s = F.logit_statistics(z, y, entropy=True, rank=True, argmax=True)
        for name, field in s._asdict().items():
            assert (field == {"argmax": -1}.get(name, 0)).all()
            if field.is_floating_point():
                (dz,) = torch.autograd.grad(field.sum(), z, retain_graph=True)
                assert not dz.any(), name


def test_targets_of_uint8_are_not_wrapped() -> None:
    z = torch.randn(3, 200, requires_grad=True)
    y = torch.tensor([156, 0, 199])  # 156 = -100 + 256
    for target in (y, y[:, None]):
        wide, narrow = (F.logit_statistics(z, t, rank=True, argmax=True) for t in (target, target.to(torch.uint8)))
        for a, b in zip(wide, narrow, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
        assert (narrow.rank > 0).all()
    s = F.logit_statistics(z, y.to(torch.uint8), ignore_index=156, rank=True)
    assert (s.rank == 0).tolist() == [True, False, False]


# Autograd.


@pytest.mark.parametrize("kind", TARGETS)
def test_each_field_has_a_backward_of_its_own(kind: str) -> None:
    z, y = problem(torch.float32, (4,), 6, kind)
    failed = []
    for name, field in fields_of(F.logit_statistics(z, y, entropy=True)).items():
        try:
            torch.autograd.grad(field.sum(), z, retain_graph=True)
        except TypeError as error:
            failed.append((name, error))
    assert failed == []


@pytest.mark.parametrize("kind", TARGETS)
def test_gradients_and_second_gradients(kind: str) -> None:
    z, y = problem(torch.float64, (3,), 5, kind)
    w = torch.rand(5, dtype=torch.float64).requires_grad_()

    def fields(z: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return tuple(fields_of(F.logit_statistics(z, y, entropy=True, class_weights=w)).values())

    assert torch.autograd.gradcheck(lambda z: fields(z, w.detach()), z)
    assert torch.autograd.gradgradcheck(lambda z: fields(z, w.detach()), z)
    assert torch.autograd.gradcheck(fields, (z, w))


@pytest.mark.parametrize("kind", TARGETS)
def test_a_second_backward_gives_the_same(kind: str) -> None:
    z, y = problem(torch.float32, (5,), 40, kind)
    s = fields_of(F.logit_statistics(z, y, entropy=True))
    loss = sum((k + 1) * f.square().sum() for k, f in enumerate(s.values()))
    first, again = (torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, z)[0], 3 * first)


@pytest.mark.parametrize("kind", TARGETS)
def test_several_upstream_gradients_at_once(kind: str) -> None:
    z, y = problem(torch.float64, (4,), 6, kind)
    for field in fields_of(F.logit_statistics(z, y, entropy=True)).values():
        many = torch.randn(3, *field.shape, dtype=torch.float64)
        got = torch.autograd.grad(field, z, many, is_grads_batched=True, retain_graph=True)[0]
        expected = torch.stack([torch.autograd.grad(field, z, g, retain_graph=True)[0] for g in many])
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["logsumexp", "logprob", "entropy"])
def test_a_gradient_scales_with_what_comes_in(name: str) -> None:
    # By powers of 2, and down to where the results themselves leave the type: the bits are the same.
    z = torch.tensor([[0.0, -1.0, 0.5, -2.0]], requires_grad=True)
    s = F.logit_statistics(z, torch.tensor([0]), entropy=True)
    (unit,) = torch.autograd.grad(getattr(s, name), z, torch.ones(1), retain_graph=True)
    for k in range(0, 120, 8):
        (dz,) = torch.autograd.grad(getattr(s, name), z, torch.full((1,), 2.0**-k), retain_graph=True)
        torch.testing.assert_close(dz * 2.0**k, unit, rtol=2**-22, atol=0, msg=f"upstream 2^-{k}: {dz} for {unit}")


def test_transforms() -> None:
    for kind in ("one", "three"):
        z, y = problem(torch.float64, (5,), 7, kind)

        def total(z: Tensor, y: Any = y) -> Tensor:
            return sum(
                (k + 1) * f.sum() for k, f in enumerate(fields_of(F.logit_statistics(z, y, entropy=True)).values())
            )

        def plain(z: Tensor, y: Any = y) -> Tensor:
            found = definition(z, y)
            return sum((k + 1) * found[name].sum() for k, name in enumerate(FIELDS))

        (expected,) = torch.autograd.grad(plain(z), z)
        z = z.detach()
        torch.testing.assert_close(torch.func.grad(total)(z), expected)
        torch.testing.assert_close(torch.func.hessian(total)(z), torch.func.hessian(plain)(z))
        tangent = torch.randn_like(z)
        torch.testing.assert_close(torch.func.jvp(total, (z,), (tangent,))[1], (expected * tangent).sum())


@pytest.mark.parametrize("kind", TARGETS)
def test_checkpoint(kind: str) -> None:
    z, y = problem(torch.float32, (5,), 40, kind)

    def total(z: Tensor) -> Tensor:
        s = F.logit_statistics(z, y, entropy=True)
        return s.logsumexp.square().sum() + s.entropy.sum() + (0 if y is None else s.logprob.sum())

    (expected,) = torch.autograd.grad(total(z), z)
    (got,) = torch.autograd.grad(checkpoint(total, z, use_reentrant=False), z)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", ["one", "three"])
def test_compiles_as_one_graph(kind: str) -> None:
    def compute(z: Tensor, y: Any) -> Any:
        return F.logit_statistics(z, y, entropy=True, rank=True, argmax=True)

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    z, y = problem(torch.float32, (5,), 40, kind)
    assert y is not None
    y[1] = -100
    with torch.no_grad():
        z[1] = NAN
    s, eager = compiled(z, y), compute(z, y)
    assert torch.equal(s.rank, eager.rank)
    assert torch.equal(s.argmax, eager.argmax)
    plain, exact = (definition(z.to(t), y) for t in (torch.float32, torch.float64))
    for name, field in fields_of(s).items():
        columns = (by_row(t, 5) for t in (field, exact[name], plain[name]))
        laws.assert_within(*columns, np.float32, name, 40, size=8.0 if name == "mean_logit" else 0.0)
        (dz,) = torch.autograd.grad(field.sum(), z, retain_graph=True)
        assert not dz[1].any(), name
        assert dz.isfinite().all(), name


@pytest.mark.parametrize("kind", TARGETS)
def test_the_composite_path_is_its_definition(kind: str) -> None:
    for dtype in (torch.float64, torch.float32):
        z, y = problem(dtype, (7,), 33, kind)

        def mapped(z: Tensor, y: Any, **options: Any) -> Any:
            def compute(z: Tensor, y: Any) -> Any:
                return fields_of(F.logit_statistics(z, y, **options))

            found = torch.vmap(compute, in_dims=(0, None if y is None else 0))(z[None], None if y is None else y[None])
            return LogitStatistics(**{name: field[0] for name, field in found.items()})

        is_its_definition(z, y, torch.rand(33), compute=mapped)


# The rest of the world.


def test_inputs_are_not_modified_and_strides_do_not_matter() -> None:
    for kind in TARGETS:
        z, y = problem(torch.float32, (6,), 35, kind)
        version, copy = z._version, z.detach().clone()
        s = fields_of(F.logit_statistics(z, y, entropy=True))
        gradient = torch.autograd.grad(sum(f.sum() for f in s.values()), z)[0]
        assert z._version == version
        assert torch.equal(z, copy)
        gaps = torch.full((6, 70), NAN)
        gaps[:, ::2] = z.detach()
        for other in (gaps[:, ::2], z.detach().T.contiguous().T, z.detach().flip(0).flip(0)):
            other = other.requires_grad_()
            wide = None if y is None else torch.stack([y, y], -1)[..., 0]
            again = fields_of(F.logit_statistics(other, wide, entropy=True))
            for name, field in s.items():
                assert torch.equal(field, again[name]), name
            assert torch.equal(torch.autograd.grad(sum(f.sum() for f in again.values()), other)[0], gradient)


@pytest.mark.parametrize("kind", TARGETS)
def test_the_same_bits_for_any_threads_and_any_batch(kind: str) -> None:
    z, y = problem(torch.float32, (300,), 1500, kind)
    threads, rows = torch.get_num_threads(), slice(17, 20)

    def bits(rows: slice) -> list[Tensor]:
        x = z.detach()[rows].requires_grad_()
        s = F.logit_statistics(x, None if y is None else y[rows], entropy=True, rank=True, argmax=True)
        total = sum(f.sum() for f in fields_of(s).values())
        return [f for f in s if f is not None] + [torch.autograd.grad(total, x)[0]]

    try:
        torch.set_num_threads(1)
        alone = bits(slice(None))
        for few in (2, 5):
            torch.set_num_threads(few)
            assert all(map(torch.equal, bits(slice(None)), alone))
    finally:
        torch.set_num_threads(threads)
    for part, whole in zip(bits(rows), alone, strict=True):
        assert torch.equal(part, whole[rows])


def test_without_a_gradient() -> None:
    z, y = problem(torch.float32, (4,), 9, "three")
    with torch.no_grad():
        s = F.logit_statistics(z, y, entropy=True)
    assert not any(f is not None and f.requires_grad for f in s)
    assert not any(f is not None and f.requires_grad for f in F.logit_statistics(z.detach(), y))
    with torch.inference_mode():
        F.logit_statistics(z, y, entropy=True)
    wanted = F.logit_statistics(z, y, rank=True, argmax=True)
    assert not wanted.rank.requires_grad
    assert not wanted.argmax.requires_grad


def test_autocast_changes_nothing() -> None:
    z, y = problem(torch.float32, (4,), 9)
    with torch.autocast("cpu", torch.bfloat16):
        got = F.logit_statistics(z, y, entropy=True)
    for a, b in zip(got, F.logit_statistics(z, y, entropy=True), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
