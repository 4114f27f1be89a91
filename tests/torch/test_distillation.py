"""Each divergence is its definition, none is below 0, and none loses its digits where student and teacher are close."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import exact
import mpmath
import pytest
import torch
from exact import times
from torch import Tensor

import lastlayer.torch as F
from lastlayer.torch import distillation

INF = math.inf
CLASSES, K = 6, 3
ROUNDED = 60.0  # log-probabilities have this size, their differences 1


class Case(NamedTuple):
    """A divergence, and its definition of two lists of log-probabilities: the student's and the teacher's."""

    loss: Callable[..., Tensor]
    define: Callable[..., Any]


def divergence(m: Any, p: Any, q: Any) -> Any:
    return sum(times(m.exp(a), a - b) for a, b in zip(p, q, strict=True))


def forward(m: Any, s: Any, t: Any) -> Any:
    return divergence(m, t, s)


def mixture(m: Any, s: Any, t: Any, beta: float) -> Any:
    beta = mpmath.mpf(beta) if m is exact.Exact else beta  # so that 1 - beta is exact, too
    both = [m.log(beta * m.exp(b) + (1 - beta) * m.exp(a)) for a, b in zip(s, t, strict=True)]
    return beta * divergence(m, t, both) + (1 - beta) * divergence(m, s, both)


def on_logits(define: Callable[..., Any]) -> Callable[..., Any]:
    return lambda m, z, teacher: define(m, m.log_softmax(z), m.log_softmax(teacher))


def on_top(define: Callable[..., Any], remainder: bool = True) -> Callable[..., Any]:
    """The definition over the first K classes and the remainder; the teacher gives log-probabilities of the K."""

    def reduced(m: Any, z: Any, teacher: Any) -> Any:
        logp = m.log_softmax(z)
        if not remainder:
            return define(m, logp[:K], teacher)
        left = m.log(sum(m.exp(each) for each in logp[K:]))
        return define(m, [*logp[:K], left], [*teacher, m.log(1 - sum(m.exp(each) for each in teacher))])

    return reduced


d = distillation
CASES: dict[str, Case] = {
    "forward_kl": Case(d.forward_kl, on_logits(forward)),
    "reverse_kl": Case(d.reverse_kl, on_logits(divergence)),
    "jsd": Case(d.jsd, on_logits(partial(mixture, beta=0.5))),
    "jsd of 0.1": Case(partial(d.jsd, beta=0.1), on_logits(partial(mixture, beta=0.1))),
    "top_k_forward_kl": Case(d.top_k_forward_kl, on_top(forward)),
    "top_k_forward_kl, truncated": Case(
        partial(d.top_k_forward_kl, remainder=False), on_top(forward, remainder=False)
    ),
    "top_k_reverse_kl": Case(d.top_k_reverse_kl, on_top(divergence)),
    "top_k_jsd": Case(d.top_k_jsd, on_top(partial(mixture, beta=0.5))),
    "top_k_jsd of 0.9": Case(partial(d.top_k_jsd, beta=0.9), on_top(partial(mixture, beta=0.9))),
}  # fmt: skip
WHOLE = [name for name in CASES if not name.startswith("top_k")]
TOP = [name for name in CASES if name.startswith("top_k")]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(2026)


def pair() -> tuple[Tensor, Tensor]:
    """Return student's and teacher's logits: random, at an offset, confident in the same or another class, masked."""
    student, teacher = 3 * torch.randn(16, CLASSES).double(), 3 * torch.randn(16, CLASSES).double()
    student[3:6] += 3000
    student[6:10, 0] += torch.tensor([5.0, 10.0, 30.0, 60.0])
    teacher[6:10, 0] += torch.tensor([60.0, 9.0, 31.0, 30.0])
    teacher[10:12, 1] += 30
    student[12:14, 4], teacher[12:14, 4] = -INF, -INF
    teacher[14, 5] = -INF
    return student, teacher


def top_of(teacher: Tensor) -> tuple[Tensor, Tensor]:
    top = F.log_softmax(teacher, 1).topk(K)
    return top.indices, top.values


def loss_of(case: Case, index: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda student, teacher: case.loss(F.logit_statistics(student, index), teacher)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_rows_have_the_divergence_of_the_definition(name: str, dtype: torch.dtype) -> None:
    case, (student, teacher) = CASES[name], pair()
    student, teacher = student.to(dtype), teacher.to(dtype)
    floor = 1e-15 * case.loss(student, teacher).numpy()  # two confident rows: the largest class's part cancels
    exact.is_exact(case.define, lambda z: case.loss(z, teacher), student, teacher, rounded=ROUNDED, floor=floor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TOP)
def test_top_k_is_the_divergence_of_k_classes_and_the_rest(name: str, dtype: torch.dtype) -> None:
    case, (student, teacher) = CASES[name], pair()
    calm = torch.tensor([0, 1, 2, 3, 4, 5, 12, 13, 15])  # elsewhere 1 - sum t is what rounding left
    student, (index, values) = student[calm].to(dtype), top_of(teacher[calm])
    values = values.to(dtype)
    chosen = torch.zeros(student.shape, dtype=torch.bool).scatter(1, index, True)
    order = torch.cat([index, (~chosen).nonzero()[:, 1].reshape(len(index), -1)], 1)
    loss = loss_of(case, index)
    exact.is_exact(case.define, lambda z: loss(z, values), student, values, order=order, rounded=ROUNDED)


def test_every_divergence_has_its_definition() -> None:
    assert {name.split()[0].rstrip(",") for name in CASES} == set(distillation.__all__)
    assert sorted(distillation.__all__) == distillation.__all__


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_a_small_divergence_keeps_its_digits(name: str, size: float) -> None:
    """The plain formula has none left at 1e-6: its rounding alone is 1e-16."""
    student = 3 * torch.randn(8, CLASSES).double()
    teacher = student + size * torch.randn(8, CLASSES).double()
    truth, slope = exact.exactly(CASES[name].define, student, teacher)
    value, gradient = exact.value_and_gradient(lambda z: CASES[name].loss(z, teacher), student)
    budget = 64 * 2.0**-52 / size  # of r, which is a difference of log-probabilities
    torch.testing.assert_close(value, torch.tensor(truth), rtol=budget, atol=0)
    worst = torch.tensor(slope).abs().amax(1, keepdim=True).expand_as(gradient)
    torch.testing.assert_close(gradient / worst, torch.tensor(slope) / worst, rtol=0, atol=budget)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_no_divergence_is_below_0_and_equal_rows_have_0(name: str, dtype: torch.dtype) -> None:
    if "truncated" in name:
        return
    case = CASES[name]
    student = (8 * torch.randn(2000, CLASSES)).to(dtype)
    student[::5, 2] = -INF
    for size in (0.0, 1e-8, 1e-5, 1e-2):
        teacher = (student.double() * (1 + size)).to(dtype)
        if name in WHOLE:
            value = case.loss(student, teacher)
            assert size > 0 or (value == 0).all()
        else:
            value = loss_of(case, top_of(teacher.float())[0])(student, top_of(teacher.float())[1])
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert (value >= 0).all()


def test_top_k_does_not_exceed_the_whole_and_k_of_all_classes_is_the_whole() -> None:
    student, teacher = 2 * torch.randn(2, 50, CLASSES).double()
    for name in ("forward_kl", "reverse_kl", "jsd"):
        whole = CASES[name].loss(student, teacher)
        loss = getattr(distillation, f"top_k_{name}")
        index, values = top_of(teacher)
        assert (loss(F.logit_statistics(student, index), values) <= whole * (1 + 1e-12)).all()
        everything = torch.arange(CLASSES).expand(50, CLASSES)
        full = loss(F.logit_statistics(student, everything), F.log_softmax(teacher, 1))
        torch.testing.assert_close(full, whole, rtol=1e-12, atol=1e-15)


def test_a_class_that_one_side_rules_out() -> None:
    student, teacher = torch.tensor([[0.0, 0.0, -INF]]), torch.tensor([[0.0, -INF, -INF]])
    ln2 = torch.tensor([math.log(2)])
    for loss, expected in ((d.forward_kl, ln2), (d.reverse_kl, torch.tensor([INF]))):
        torch.testing.assert_close(loss(student, teacher), expected)
        value, gradient = exact.value_and_gradient(lambda z, loss=loss: loss(z, teacher), student)
        assert gradient[value.isfinite()].isfinite().all()
    apart = d.jsd(torch.tensor([[0.0, -INF]]), torch.tensor([[-INF, 0.0]]))
    torch.testing.assert_close(apart, ln2)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_far_apart_has_a_value_and_a_gradient(beta: float) -> None:
    student = torch.tensor([[0.0, -INF, 500.0, -500.0], [1e4, 0.0, 0.0, -INF], [0.0, 0.0, 0.0, 0.0]])
    teacher = torch.tensor([[-INF, 0.0, -500.0, 500.0], [0.0, 1e4, -INF, -INF], [0.0, -INF, -1e4, 9.0]])
    for a, b in ((student, teacher), (teacher, student)):
        value, gradient = exact.value_and_gradient(lambda z, b=b: d.jsd(z, b, beta=beta), a)
        assert ((value >= 0) & (value <= math.log(2) + 1e-6)).all()
        assert gradient.isfinite().all()


def test_a_teacher_that_sums_to_a_little_more_than_1() -> None:
    student = torch.randn(4, CLASSES, dtype=torch.float64)
    index = torch.tensor([[0, 1]] * 4)
    s = F.logit_statistics(student.float(), index)
    teacher = torch.log(torch.tensor([[0.7, 0.3]])).expand(4, 2) + 1e-6
    for loss in (d.top_k_forward_kl, d.top_k_reverse_kl, d.top_k_jsd, partial(d.top_k_forward_kl, remainder=False)):
        value = loss(s, teacher)
        assert value.isfinite().all()
        assert (value >= 0).all()
        if loss is not d.top_k_reverse_kl:  # whose remainder's logarithm is what rounding left
            assert (value - loss(s, teacher - 2e-6)).abs().max() < 1e-4


def test_one_certain_class_is_cross_entropy() -> None:
    student = torch.tensor([[30.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    s = F.logit_statistics(student, torch.tensor([[0], [0]]))
    value = d.top_k_forward_kl(s, torch.zeros(2, 1))
    torch.testing.assert_close(
        value, F.cross_entropy(student, torch.tensor([0, 0]), reduction="none"), rtol=1e-6, atol=0
    )


def test_a_confident_teacher_keeps_its_remainder() -> None:
    """log t = -1e-12 says that 1e-12 is left, which 1 - t in float32 cannot."""
    s = F.logit_statistics(torch.tensor([[0.0, 0.0]]), torch.tensor([[0]]))
    value = d.top_k_reverse_kl(s, torch.tensor([[-1e-12]]))
    t = mpmath.mpf(torch.tensor(-1e-12).item())
    truth = -mpmath.log(2) - (t + mpmath.log(-mpmath.expm1(t))) / 2
    assert value.item() == pytest.approx(float(truth), rel=1e-6)


def test_gradients_reach_both_sides() -> None:
    student, teacher = (torch.randn(3, CLASSES, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for loss in (d.forward_kl, d.reverse_kl, d.jsd):
        assert torch.autograd.gradcheck(loss, (student, teacher))
        assert torch.autograd.gradgradcheck(loss, (student, teacher))


@pytest.mark.parametrize("name", ["jsd", "top_k_forward_kl"])
def test_compiles_as_one_graph(name: str) -> None:
    case, (student, teacher) = CASES[name], pair()
    student, teacher = student[:4], teacher[:4]
    if name in TOP:
        index, teacher = top_of(teacher)
        loss = loss_of(case, index)
    else:
        loss = case.loss
    torch._dynamo.reset()
    compiled = torch.compile(lambda z: loss(z, teacher), backend="aot_eager", fullgraph=True)
    expected = exact.value_and_gradient(lambda z: loss(z, teacher), student)
    for got, wanted in zip(exact.value_and_gradient(compiled, student), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-14)


Z = torch.zeros(3, 4)
ONE = F.logit_statistics(Z, torch.zeros(3, dtype=torch.long))
TWO = F.logit_statistics(Z, torch.tensor([[0, 1]] * 3))
T = torch.full((3, 2), -2.0)
MALFORMED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no statistics": (lambda: d.top_k_jsd(Z, T), TypeError, "statistics must be LogitStatistics"),  # type: ignore[arg-type]
    "one target": (lambda: d.top_k_forward_kl(ONE, T), ValueError, r"is \(3,\), expected \(..., K\): pass target="),
    "no target": (lambda: d.top_k_reverse_kl(F.logit_statistics(Z), T), ValueError, "is None, expected"),
    "another K": (lambda: d.top_k_jsd(TWO, T[:, :1]), ValueError, r"has shape \(3, 1\), expected \(3, 2\)"),
    "no tensor": (lambda: d.top_k_jsd(TWO, [0.0]), TypeError, "teacher_logprob must be a Tensor"),  # type: ignore[arg-type]
    "integers": (lambda: d.top_k_jsd(TWO, T.long()), RuntimeError, "teacher_logprob has dtype torch.int64"),
    "probabilities": (lambda: d.top_k_forward_kl(TWO, T.exp()), ValueError, r"teacher_logprob\[0\] sum to 2.29"),
    "logits": (lambda: d.top_k_reverse_kl(TWO, -500 * T), ValueError, "pass log-probabilities, not logits"),
    "truncated logits": (lambda: d.top_k_forward_kl(TWO, -T, remainder=False), ValueError, "at most 1"),
    "beta of 0": (lambda: d.jsd(Z, Z, beta=0.0), ValueError, "beta = 0.0 must be above 0 and below 1"),
    "beta of 1": (lambda: d.top_k_jsd(TWO, T, beta=1), ValueError, "beta = 1 must be"),
    "beta of NaN": (lambda: d.jsd(Z, Z, beta=math.nan), ValueError, "beta = nan"),
    "beta no number": (lambda: d.jsd(Z, Z, beta=None), TypeError, "beta = None"),  # type: ignore[arg-type]
    "shapes": (lambda: d.forward_kl(Z, Z[:1]), ValueError, r"teacher_logits has shape \(1, 4\), expected \(3, 4\)"),
    "integer logits": (lambda: d.reverse_kl(Z.long(), Z), RuntimeError, "student_logits has dtype torch.int64"),
    "no classes": (lambda: d.jsd(Z[:, :0], Z[:, :0]), ValueError, "at least one class"),
    "no teacher": (lambda: d.forward_kl(Z, None), TypeError, "teacher_logits must be a Tensor"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("defect", MALFORMED)
def test_a_malformed_call_is_refused_by_name(defect: str) -> None:
    call, kind, message = MALFORMED[defect]
    with pytest.raises(kind, match=message):
        call()


def test_shapes_and_empty_batches() -> None:
    for loss in (d.forward_kl, d.reverse_kl, d.jsd):
        assert loss(torch.randn(2, 3, 5), torch.randn(2, 3, 5)).shape == (2, 3)
        assert loss(torch.randn(5), torch.randn(5)).shape == ()
        assert loss(torch.randn(0, 5), torch.randn(0, 5)).shape == (0,)
        mixed = loss(torch.randn(2, 5).bfloat16(), torch.randn(2, 5).double())
        assert mixed.dtype == torch.float64
