"""Each objective is its paper's formula, to the digits of the statistics, and its gradient is finite where it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import exact
import pytest
import torch
from exact import times
from torch import Tensor

import lastlayer.torch as F
from lastlayer.torch import objectives
from lastlayer.torch.objectives.arithmetic import exp_excess

INF = math.inf
CLASSES = 6
SCALE = 16.0


class Case(NamedTuple):
    """An objective with keywords, and its definition; for statistics, the target's logit is the definition's first.

    ``cancels``: the target's gradient is the difference of two numbers of size 1 / (1 - p_y), alpha p_y and -gamma.
    """

    loss: Callable[..., Tensor]
    define: Callable[..., Any]
    rows: str = "logits"
    more: tuple[str, ...] = ()
    targets: int = 0
    cancels: bool = False


def smoothed(m: Any, z: Any, e: float) -> Any:
    logp = m.log_softmax(z)
    return -(1 - e) * logp[0] - e * sum(logp) / len(z)


def focal(m: Any, z: Any, gamma: float) -> Any:
    logp = m.log_softmax(z)[0]
    return -((1 - m.exp(logp)) ** gamma) * logp


def poly1(m: Any, z: Any, epsilon: float) -> Any:
    logp = m.log_softmax(z)[0]
    return -logp + epsilon * (1 - m.exp(logp))


def noisy(m: Any, z: Any, q: float) -> Any:
    return (1 - m.exp(m.log_softmax(z)[0]) ** q) / q


def unlikelihood(m: Any, z: Any, candidates: int = 1) -> Any:
    return sum(-m.log(1 - m.exp(logp)) for logp in m.log_softmax(z)[:candidates])


def entropy(m: Any, z: Any) -> Any:
    return -sum(times(m.exp(logp), logp) for logp in m.log_softmax(z))


def cosface(m: Any, z: Any, margin: float, scale: float) -> Any:
    return -m.log_softmax([scale * (z[0] / scale - margin), *z[1:]])[0]


def arcface(m: Any, z: Any, margin: float) -> Any:
    angle = m.acos(z[0] / SCALE)
    straight = z[0] / SCALE - margin * math.sin(margin)
    return -m.log_softmax([SCALE * m.where(angle + margin < math.pi, m.cos(angle + margin), straight), *z[1:]])[0]


def clipped(m: Any, rho: Any, low: float, high: float) -> Any:
    return m.where(rho < 1 - low, 0 * rho + (1 - low), m.where(rho > 1 + high, 0 * rho + (1 + high), rho))


def surrogate(m: Any, z: Any, gain: Any, old: Any, low: float = 0.2, high: float = 0.2, dual: float = INF) -> Any:
    rho = m.exp(m.log_softmax(z)[0] - old)
    least = m.minimum(rho * gain, clipped(m, rho, low, high) * gain)
    return least * -1 if dual == INF else m.where((gain < 0) & (least < dual * gain), -dual * gain, -least)


def k1(m: Any, z: Any, reference: Any) -> Any:
    return m.log_softmax(z)[0] - reference


def k2(m: Any, z: Any, reference: Any) -> Any:
    return (reference - m.log_softmax(z)[0]) ** 2 / 2


def k3(m: Any, z: Any, reference: Any) -> Any:
    log_r = reference - m.log_softmax(z)[0]
    return (m.exp(log_r) - 1) - log_r


def log_sigmoid(m: Any, x: Any) -> Any:
    return m.log(1 / (1 + m.exp(-x)))


def dpo(m: Any, x: Any, reference: Any, e: float = 0.0) -> Any:
    h = 0.3 * ((x[0] - reference[0]) - (x[1] - reference[1]))
    return -(1 - e) * log_sigmoid(m, h) - e * log_sigmoid(m, -h)


def kto(m: Any, x: Any, desirable: Any, reference: Any, point: Any) -> Any:
    h = 0.3 * (x[0] - reference[0] - m.where(point > 0, point, 0 * point))
    good, bad = 1.5 * (1 - 1 / (1 + m.exp(-h))), 0.5 * (1 - 1 / (1 + m.exp(h)))
    return m.where(desirable, good, bad)


def orpo(m: Any, x: Any, weight: float) -> Any:
    odds = [m.exp(each) / (1 - m.exp(each)) for each in x]
    return -x[0] - weight * log_sigmoid(m, m.log(odds[0] / odds[1]))


def pairs(loss: Callable[..., Tensor], x: Tensor, *more: Tensor) -> Tensor:
    return loss(*x.unbind(1), *more)


o = objectives
CASES: dict[str, Case] = {
    "nll": Case(o.nll, lambda m, z: -m.log_softmax(z)[0]),
    "label_smoothing": Case(partial(o.label_smoothing, epsilon=0.2), partial(smoothed, e=0.2)),
    "label_smoothing of 0": Case(partial(o.label_smoothing, epsilon=0), lambda m, z: -m.log_softmax(z)[0]),
    "label_smoothing of 1": Case(
        partial(o.label_smoothing, epsilon=1), lambda m, z: -sum(m.log_softmax(z)) / len(z)
    ),
    "z_loss": Case(partial(o.z_loss, factor=0.01), lambda m, z: 0.01 * m.logsumexp(z) ** 2),
    "focal": Case(o.focal, partial(focal, gamma=2)),
    "focal of 0": Case(partial(o.focal, gamma=0), lambda m, z: -m.log_softmax(z)[0]),
    "focal of 1/2": Case(partial(o.focal, gamma=0.5), partial(focal, gamma=0.5)),
    "poly1": Case(partial(o.poly1, epsilon=2), partial(poly1, epsilon=2)),
    "poly1 of -1": Case(partial(o.poly1, epsilon=-1), partial(poly1, epsilon=-1)),
    "generalized_cross_entropy": Case(o.generalized_cross_entropy, partial(noisy, q=0.7)),
    "generalized_cross_entropy of 1": Case(partial(o.generalized_cross_entropy, q=1), partial(noisy, q=1)),
    "unlikelihood": Case(o.unlikelihood, unlikelihood),
    "unlikelihood of 3": Case(o.unlikelihood, partial(unlikelihood, candidates=3), targets=3, cancels=True),
    "entropy_bonus": Case(partial(o.entropy_bonus, factor=0.5), lambda m, z: -0.5 * entropy(m, z)),
    "confidence_penalty": Case(
        partial(o.confidence_penalty, beta=0.25), lambda m, z: -m.log_softmax(z)[0] - 0.25 * entropy(m, z), cancels=True
    ),
    "cosface": Case(partial(o.cosface, scale=SCALE), partial(cosface, margin=0.35, scale=SCALE), "cosines"),
    "cosface of any logits": Case(
        partial(o.cosface, margin=2.5, scale=1), partial(cosface, margin=2.5, scale=1)
    ),
    "arcface": Case(partial(o.arcface, scale=SCALE), partial(arcface, margin=0.5), "cosines"),
    "arcface of 0": Case(partial(o.arcface, margin=0, scale=SCALE), lambda m, z: -m.log_softmax(z)[0], "cosines"),
    "reinforce": Case(o.reinforce, lambda m, z, gain: -gain * m.log_softmax(z)[0], more=("gain",)),
    "ppo_clip": Case(o.ppo_clip, surrogate, more=("gain", "old")),
    "ppo_clip of other bounds": Case(
        partial(o.ppo_clip, clip_low=0.1, clip_high=0.6, dual_clip=1.5),
        partial(surrogate, low=0.1, high=0.6, dual=1.5),
        more=("gain", "old"),
    ),
    "kl k1": Case(partial(o.kl, estimator="k1"), k1, more=("old",)),
    "kl k2": Case(partial(o.kl, estimator="k2"), k2, more=("old",)),
    "kl k3": Case(o.kl, k3, more=("old",)),
    "grpo": Case(o.grpo, lambda m, z, *given: surrogate(m, z, *given), more=("gain", "old")),
    "grpo with a reference": Case(
        partial(o.grpo, beta=0.3),
        lambda m, z, gain, old, reference: surrogate(m, z, gain, old) + 0.3 * k3(m, z, reference),
        more=("gain", "old", "reference"),
    ),
    "sequence_logprob": Case(
        lambda x, mask: o.sequence_logprob(x, mask),
        lambda m, x, mask: sum(m.where(some, each, 0 * each) for each, some in zip(x, mask, strict=True)),
        "tokens",
        ("mask",),
    ),
    "sequence_logprob, average": Case(
        lambda x, mask: o.sequence_logprob(x, mask, average=True),
        lambda m, x, mask: sum(m.where(some, each, 0 * each) for each, some in zip(x, mask, strict=True)) / sum(mask),
        "tokens",
        ("mask",),
    ),
    "dpo": Case(
        lambda x, reference: pairs(partial(o.dpo, beta=0.3), x, *reference.unbind(1)), dpo, "pairs", ("pairs",)
    ),
    "dpo with wrong labels": Case(
        lambda x, reference: pairs(partial(o.dpo, beta=0.3, label_smoothing=0.2), x, *reference.unbind(1)),
        partial(dpo, e=0.2),
        "pairs",
        ("pairs",),
    ),
    "simpo": Case(
        lambda x: pairs(partial(o.simpo, beta=0.3, margin=0.7), x),
        lambda m, x: -log_sigmoid(m, 0.3 * (x[0] - x[1]) - 0.7),
        "pairs",
    ),
    "kto": Case(
        lambda x, desirable, reference, point: o.kto(
            x[:, 0], reference[:, 0], desirable, point, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5
        ),
        kto,
        "pairs",
        ("desirable", "pairs", "gain"),
    ),
    "orpo": Case(lambda x: pairs(partial(o.orpo, weight=0.4), x), partial(orpo, weight=0.4), "means"),
}  # fmt: skip
OF_STATISTICS = [name for name, case in CASES.items() if case.rows in ("logits", "cosines")]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(2026)


def logits(case: Case) -> tuple[Tensor, Tensor]:
    """Return rows of every kind and their targets: random, at an offset, confident and right, or wrong, masked."""
    if case.rows == "cosines":
        z = SCALE * (2 * torch.rand(12, CLASSES).double() - 1)
        y = torch.randint(CLASSES, (12,))
        z[torch.arange(7), y[:7]] = SCALE * torch.tensor([0.98, 0.9, 0.3, -0.8, -0.95, -0.98, 0.0]).double()
        return z, y
    kinds = [3 * torch.randn(4, CLASSES).double() for _ in range(5)]
    kinds[1] += 3000
    y = torch.randint(CLASSES, (4 * len(kinds),))
    column = torch.arange(4)
    kinds[2][column, y[8:12]] += torch.tensor([10.0, 20.0, 40.0, 60.0])
    kinds[3][column, (y[12:16] + 1) % CLASSES] += torch.tensor([10.0, 20.0, 40.0, 60.0])
    kinds[4][column, (y[16:] + 1) % CLASSES] = -INF
    kinds[4][2:, :3] = torch.where(torch.arange(3) == y[18:, None], kinds[4][2:, :3], -INF)
    return torch.cat(kinds), y


def rows_of(case: Case) -> tuple[Tensor, Tensor | None]:
    if case.rows in ("logits", "cosines"):
        z, y = logits(case)
        return z, torch.stack([(y + k) % CLASSES for k in range(case.targets)], 1) if case.targets else y
    if case.rows == "means":
        return -torch.tensor(
            [[0.3, 2.0], [1e-9, 1.0], [1.0, 1e-12], [50.0, 0.1], [1e-3, 30.0], [0.7, 0.6]]
        ).double(), None
    x = -30 * torch.rand(10, 4 if case.rows == "tokens" else 2).double()
    x[8:] *= 8
    return x, None


def more_of(case: Case, x: Tensor, y: Tensor | None) -> list[Tensor]:
    n = len(x)
    near = 0.0 if y is None or y.dim() > 1 else torch.log_softmax(x, 1).gather(1, y[:, None])[:, 0]
    kinds: dict[str, Callable[[], Tensor]] = {
        "gain": lambda: torch.randn(n).double() * (torch.arange(n) % 5 > 0),
        "old": lambda: near + 0.5 * torch.randn(n).double(),
        "reference": lambda: near + torch.randn(n).double(),
        "pairs": lambda: -30 * torch.rand(n, 2).double(),
        "mask": lambda: (torch.rand(n, x.shape[1]) > 0.1 * torch.arange(n)[:, None]) | (torch.arange(x.shape[1]) == 1),
        "desirable": lambda: torch.arange(n) % 2 == 0,
    }
    return [kinds[kind]() for kind in case.more]


def loss_of(case: Case, y: Tensor | None, more: list[Tensor]) -> Callable[[Tensor], Tensor]:
    if y is None:
        return lambda x: case.loss(x, *more)
    return lambda z: case.loss(F.logit_statistics(z, y, entropy=True), *more)


def target_first(x: Tensor, y: Tensor | None) -> Tensor | None:
    if y is None:
        return None
    chosen = torch.zeros(x.shape, dtype=torch.bool).scatter(1, y.reshape(len(y), -1), True)
    rest = (~chosen).nonzero()[:, 1].reshape(len(x), -1)
    return torch.cat([y.reshape(len(y), -1), rest], 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_the_definitions(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    x, y = rows_of(case)
    x = x.to(dtype)
    more = [each if each.dtype == torch.bool else each.to(dtype) for each in more_of(case, x.double(), y)]
    rounded = 1 + more[case.more.index("old")].abs().numpy() if "old" in case.more else 1.0  # log p, in the ratio
    floor = 0.0 if y is None or not case.cancels else 1e-15 / F.logit_statistics(x, y).remainder.exp().double().numpy()
    order = target_first(x, y)
    exact.is_exact(case.define, loss_of(case, y, more), x, *more, order=order, rounded=rounded, floor=floor)


def test_every_objective_has_its_definition() -> None:
    assert {name.split()[0].rstrip(",") for name in CASES} == set(objectives.__all__)
    assert sorted(objectives.__all__) == objectives.__all__


def test_on_policy_the_ratio_is_one_and_its_gradient_is_reinforces() -> None:
    z, y = 3 * torch.randn(5, CLASSES).double(), torch.randint(CLASSES, (5,))
    gain = torch.randn(5).double()
    value, gradient = exact.value_and_gradient(lambda z: o.ppo_clip(F.logit_statistics(z, y), gain), z)
    _, expected = exact.value_and_gradient(lambda z: o.reinforce(F.logit_statistics(z, y), gain), z)
    torch.testing.assert_close(value, -gain, rtol=0, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=0)


EXTREMES = {
    "certain": [0.0, -INF, -INF, -INF, -INF, -INF],
    "certain by a margin": [1000.0, 0.0, 0.0, 0.0, 0.0, -INF],
    "nearly certain": [90.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    "impossible": [-INF, 0.0, 1.0, 2.0, 0.0, 0.0],
    "hopeless": [-1000.0, 0.0, 1.0, 2.0, 0.0, 0.0],
    "even": [0.0, 0.0, 0.0, -INF, -INF, -INF],
    "one half": [0.0, 0.0, -INF, -INF, -INF, -INF],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("row", EXTREMES)
@pytest.mark.parametrize("name", OF_STATISTICS)
def test_a_finite_loss_has_a_finite_gradient(name: str, row: str, dtype: torch.dtype) -> None:
    case, z = CASES[name], torch.tensor([EXTREMES[row]] * 3, dtype=dtype)
    if case.rows == "cosines":
        z = torch.where(z.isinf(), z, z.clamp(-SCALE, SCALE))  # the target's cosine is 1, -1 or 0
    y = torch.tensor([[0, 1, 2]] * 3) if case.targets else torch.zeros(3, dtype=torch.long)
    for old in (-90.0, -1.0, 0.0):
        values = {"gain": torch.tensor([1.0, 0.0, -1.0])}
        more = [values.get(kind, torch.full((3,), old)).to(dtype) for kind in case.more]
        value, gradient = exact.value_and_gradient(loss_of(case, y, more), z)
        assert not value.isnan().any()
        assert gradient[value.isfinite()].isfinite().all()


def test_finite_where_the_plain_formula_is_not() -> None:
    z = torch.tensor([[200.0, 0.0, -INF]])
    y, gain = torch.tensor([0]), torch.tensor([1.0])
    plain_z = z.clone().requires_grad_()
    plain = torch.log_softmax(plain_z, 1)[:, 0]
    old = torch.tensor([-100.0])
    pairs = [
        (((1 - plain.exp()) ** 0.5 * -plain), partial(o.focal, gamma=0.5)),
        (-torch.minimum((plain - old).exp() * gain, 1.2 * gain), lambda s: o.ppo_clip(s, gain, old)),
        (-(plain_z.log_softmax(1) * plain_z.softmax(1)).sum(1), partial(o.entropy_bonus, factor=-1.0)),
    ]
    for naive, loss in pairs:
        (bad,) = torch.autograd.grad(naive.sum(), plain_z, retain_graph=True)
        assert not bad.isfinite().all()
        value, gradient = exact.value_and_gradient(lambda z, loss=loss: loss(F.logit_statistics(z, y, entropy=True)), z)
        assert value.isfinite().all()
        assert gradient.isfinite().all()


def test_what_a_margin_and_a_certain_pair_do_at_the_edges() -> None:
    zero = torch.zeros(1, requires_grad=True)
    tie = o.orpo(zero, torch.zeros(1), weight=1.0)
    torch.testing.assert_close(tie.detach(), torch.tensor([math.log(2)]))
    assert torch.autograd.grad(tie, zero)[0].item() == -1
    won = o.orpo(zero, torch.tensor([-1.0]), weight=1.0)
    assert won.item() == 0
    assert torch.autograd.grad(won, zero)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_k3_keeps_its_digits_and_its_sign_where_the_models_agree(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 1e-12, -1e-7, 1e-3, -0.2499, 0.2499, 0.2501, -0.2501, -3.0, 5.0, -700.0], dtype=dtype)[
        :, None
    ]
    exact.is_exact(lambda m, x: m.exp(x[0]) - 1 - x[0], lambda x: exp_excess(x[:, 0]), x[1:].double())
    assert (exp_excess(x) >= 0).all()
    assert exp_excess(x[0]) == 0
    plain = torch.expm1(x[3]) - x[3]
    truth = float(exp_excess(x[3].double()))
    got = float(exp_excess(x[3]))
    assert abs(got - truth) <= truth * torch.finfo(dtype).eps <= abs(float(plain) - truth) + truth


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
def test_the_excess_takes_every_transform() -> None:
    x = torch.tensor([-2.0, -1e-3, 0.1, 1.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(exp_excess, x)
    assert torch.autograd.gradgradcheck(exp_excess, x)
    one = torch.func.vmap(torch.func.grad(lambda x: exp_excess(x)))(x.detach())
    torch.testing.assert_close(one, torch.expm1(x.detach()))
    forward = torch.func.jvp(exp_excess, (x.detach(),), (torch.ones(4).double(),))[1]
    torch.testing.assert_close(forward, one)


@pytest.mark.parametrize("name", ["focal", "poly1", "cosface of any logits", "grpo with a reference"])
def test_compiles_as_one_graph(name: str) -> None:
    case = CASES[name]
    z, y = logits(case)
    z, y = z[:8], y[:8]
    loss = loss_of(case, y, more_of(case, z, y))
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for got, expected in zip(exact.value_and_gradient(compiled, z), exact.value_and_gradient(loss, z), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


def test_rows_keep_their_shape_and_ignored_ones_get_no_gradient() -> None:
    z, y = torch.randn(2, 3, CLASSES).double(), torch.randint(CLASSES, (2, 3))
    y[1, 2] = -100
    for name in OF_STATISTICS:
        case = CASES[name]
        if case.targets or case.rows == "cosines":
            continue
        more = [torch.randn(2, 3).double() for _ in case.more]
        value, gradient = exact.value_and_gradient(loss_of(case, y, more), z)
        assert value.shape == (2, 3)
        assert (gradient[1, 2] == 0).all()


def test_what_counts_as_constant_gets_no_gradient() -> None:
    s = F.logit_statistics(torch.randn(3, CLASSES, requires_grad=True), torch.randint(CLASSES, (3,)))
    gain, old, reference = (torch.randn(3, requires_grad=True) for _ in range(3))
    o.grpo(s, gain, old, reference).sum().backward()
    assert gain.grad is None
    assert old.grad is None
    assert reference.grad is None


STATISTICS = F.logit_statistics(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long), entropy=True)
BARE = F.logit_statistics(torch.zeros(3, 4))
MANY = F.logit_statistics(torch.zeros(3, 4), torch.tensor([[0, 1]] * 3))
ROW, YES = torch.zeros(3), torch.ones(3, dtype=torch.bool)
MALFORMED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no statistics": (lambda: o.nll(ROW), TypeError, "statistics must be LogitStatistics, not Tensor"),  # type: ignore[arg-type]
    "no target": (lambda: o.nll(BARE), ValueError, "nll needs statistics.logprob, which is None: pass target"),
    "no target for focal": (lambda: o.focal(BARE), ValueError, "focal needs statistics.logprob"),
    "no target for unlikelihood": (lambda: o.unlikelihood(BARE), ValueError, "pass target"),
    "no entropy": (lambda: o.entropy_bonus(BARE), ValueError, "entropy_bonus needs .* pass entropy=True"),
    "no entropy to punish": (
        lambda: o.confidence_penalty(STATISTICS._replace(entropy=None)), ValueError, "pass entropy=True",
    ),
    "several targets": (lambda: o.nll(MANY), ValueError, r"\(3, 2\), expected \(3,\): nll takes one target per row"),
    "several targets for arcface": (lambda: o.arcface(MANY), ValueError, "one target per row"),
    "epsilon": (lambda: o.label_smoothing(STATISTICS, epsilon=1.1), ValueError, "epsilon = 1.1 must be .* at most 1"),
    "epsilon below 0": (lambda: o.label_smoothing(STATISTICS, epsilon=-0.1), ValueError, "at least 0"),
    "epsilon of NaN": (lambda: o.label_smoothing(STATISTICS, epsilon=math.nan), ValueError, "must be finite"),
    "epsilon of poly1": (lambda: o.poly1(STATISTICS, epsilon=-1.5), ValueError, "at least -1"),
    "factor": (lambda: o.z_loss(STATISTICS, factor=INF), ValueError, "factor = inf must be finite"),
    "factor of the bonus": (lambda: o.entropy_bonus(STATISTICS, factor="1"), TypeError, "factor = '1' must be"),  # type: ignore[arg-type]
    "beta of the penalty": (lambda: o.confidence_penalty(STATISTICS, beta=INF), ValueError, "beta"),
    "gamma": (lambda: o.focal(STATISTICS, gamma=-1.0), ValueError, "gamma = -1 must be at least 0"),
    "a learnt gamma": (lambda: o.focal(STATISTICS, gamma=torch.ones((), requires_grad=True)), TypeError, "gamma"),  # type: ignore[arg-type]
    "q": (lambda: o.generalized_cross_entropy(STATISTICS, q=0.0), ValueError, "q = 0 must be above 0 and at most 1"),
    "q above 1": (lambda: o.generalized_cross_entropy(STATISTICS, q=1.5), ValueError, "q = 1.5"),
    "scale": (lambda: o.cosface(STATISTICS, scale=0.0), ValueError, "scale = 0 must be above 0"),
    "margin": (lambda: o.arcface(STATISTICS, margin=3.2), ValueError, "margin = 3.2 must be below pi"),
    "margin below 0": (lambda: o.arcface(STATISTICS, margin=-0.1), ValueError, "margin"),
    "no cosines": (
        lambda: o.arcface(F.logit_statistics(torch.eye(2) * 9, torch.tensor([0, 1])), scale=4.0),
        ValueError,
        r"logit 9 lies outside \[-4, 4\]",
    ),
    "no advantage": (lambda: o.reinforce(STATISTICS, 1.0), TypeError, "advantage must be a Tensor"),  # type: ignore[arg-type]
    "an advantage to broadcast": (
        lambda: o.reinforce(STATISTICS, ROW[:, None]), ValueError, r"advantage has shape \(3, 1\), expected \(3,\)",
    ),
    "an old one too short": (lambda: o.ppo_clip(STATISTICS, ROW, ROW[:2]), ValueError, "old_logprob has shape"),
    "clip_low": (lambda: o.ppo_clip(STATISTICS, ROW, clip_low=1.0), ValueError, "clip_low = 1.0 must be below 1"),
    "clip_high": (lambda: o.ppo_clip(STATISTICS, ROW, clip_high=-0.1), ValueError, "clip_high"),
    "dual_clip": (lambda: o.ppo_clip(STATISTICS, ROW, dual_clip=1.0), ValueError, "dual_clip = 1 must be above 1"),
    "estimator": (lambda: o.kl(STATISTICS, ROW, estimator="k4"), ValueError, "'k4' is not one of 'k1', 'k2', 'k3'"),  # type: ignore[arg-type]
    "no reference": (lambda: o.kl(STATISTICS, None), TypeError, "reference_logprob must be a Tensor"),  # type: ignore[arg-type]
    "beta of grpo": (lambda: o.grpo(STATISTICS, ROW, beta=-1.0), ValueError, "beta = -1 must be at least 0"),
    "reference of grpo": (lambda: o.grpo(STATISTICS, ROW, ROW, ROW[:1]), ValueError, "reference_logprob"),
    "mask": (lambda: o.sequence_logprob(ROW, ROW), RuntimeError, "mask has dtype torch.float32, expected bool"),
    "mask's shape": (lambda: o.sequence_logprob(ROW, YES[:2]), ValueError, r"mask has shape \(2,\)"),
    "rejected": (lambda: o.dpo(ROW, ROW[:1], ROW, ROW), ValueError, "rejected has shape .* that of chosen"),
    "reference_chosen": (lambda: o.dpo(ROW, ROW, ROW[:1], ROW), ValueError, "reference_chosen .* that of chosen"),
    "beta of dpo": (lambda: o.dpo(ROW, ROW, ROW, ROW, beta=0.0), ValueError, "beta = 0 must be above 0"),
    "wrong labels": (lambda: o.dpo(ROW, ROW, ROW, ROW, label_smoothing=0.5), ValueError, "must be below 0.5"),
    "rejected of simpo": (lambda: o.simpo(ROW, ROW[None]), ValueError, "rejected has shape"),
    "margin of simpo": (lambda: o.simpo(ROW, ROW, margin=INF), ValueError, "margin = inf"),
    "desirable": (lambda: o.kto(ROW, ROW, ROW, ROW), RuntimeError, "desirable has dtype"),
    "desirable's shape": (lambda: o.kto(ROW, ROW, YES[:1], ROW), ValueError, "desirable has shape"),
    "reference_point": (lambda: o.kto(ROW, ROW, YES, ROW[:1]), ValueError, "one number, or one per answer"),
    "undesirable_weight": (
        lambda: o.kto(ROW, ROW, YES, ROW, undesirable_weight=-1.0), ValueError, "undesirable_weight = -1",
    ),
    "weight": (lambda: o.orpo(ROW, ROW, weight=-0.1), ValueError, "weight = -0.1 must be at least 0"),
}  # fmt: skip


@pytest.mark.parametrize("defect", MALFORMED)
def test_a_malformed_call_is_refused_by_name(defect: str) -> None:
    call, kind, message = MALFORMED[defect]
    with pytest.raises(kind, match=message):
        call()


def test_weights_of_classes_are_the_smoothing_distribution() -> None:
    z, y = 3 * torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 0, 1])
    z[:, 3] = -INF
    w = torch.tensor([1.0, 2.0, 1.0, 0.0]).double()
    s = F.logit_statistics(z, y, class_weights=w)
    logp = torch.log_softmax(z, 1)[:, :3]
    expected = -0.9 * logp.gather(1, y[:, None])[:, 0] - 0.1 * (logp * w[:3] / 4).sum(1)
    torch.testing.assert_close(o.label_smoothing(s), expected, rtol=1e-12, atol=0)


def test_a_sequence_without_tokens_has_0() -> None:
    none = torch.zeros(2, 3, dtype=torch.bool)
    for average in (False, True):
        assert (o.sequence_logprob(torch.full((2, 3), -INF), none, average=average) == 0).all()
