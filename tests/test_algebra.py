"""The specification against mpmath, and the laws of its states."""

from __future__ import annotations

import itertools
from typing import Any

import laws
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastlayer import _algebra
from lastlayer._algebra import IDENTITY, Coefficients, State, Statistics

mpmath.mp.dps = 200  # logs of nearly 1 cancel: what is left below 1e-150 is 0

finite = st.floats(-60, 60, allow_nan=False).map(lambda x: round(x, 3))
row = st.lists(st.one_of(finite, st.just(-np.inf)), min_size=1, max_size=12).filter(lambda r: max(r) > -np.inf)


def exact(z: list[float], target: int, weight: list[float]) -> list[Any]:
    """Return logsumexp, log p_y, entropy and cross by mpmath, straight from their definitions."""
    values = [mpmath.mpf(x) if x > -np.inf else mpmath.ninf for x in z]
    lse = mpmath.log(mpmath.fsum(mpmath.exp(x) for x in values))
    logs = [x - lse for x in values]
    entropy = -mpmath.fsum(mpmath.exp(x) * x for x in logs if x != mpmath.ninf)
    cross = mpmath.fsum(mpmath.mpf(u) * -x if u else 0 for u, x in zip(weight, logs, strict=True))
    return [
        value if abs(value) > mpmath.mpf("1e-150") else mpmath.mpf(0) for value in (lse, logs[target], entropy, cross)
    ]


@given(row, st.data())
@settings(deadline=None, max_examples=150)
def test_statistics_are_those_of_their_definitions(z: list[float], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(z) - 1))
    weight = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(z), max_size=len(z)))
    array = np.array([z])
    with np.errstate(all="ignore"):
        got = _algebra.finish(_algebra.fold(array, np.array(weight)), array[:, target])
    for name, value in zip(Statistics._fields[:4], exact(z, target, weight), strict=True):
        ulps = laws.ulp_error(getattr(got, name)[0], float(value), np.float64)
        size = max(abs(float(value)), abs(max(z))) if name == "logsumexp" else abs(float(value))
        allowed = 8 * size / max(abs(float(value)), 5e-324) if np.isfinite(size) and value else 8
        assert ulps <= allowed, (name, getattr(got, name)[0], value)


@given(st.lists(row, min_size=2, max_size=4), st.permutations(range(4)))
@settings(deadline=None, max_examples=100)
def test_merge_is_associative_and_commutative_with_identity(rows: list[list[float]], order: list[int]) -> None:
    weights = [np.linspace(0, 1, len(r)) for r in rows]
    with np.errstate(all="ignore"):
        states = [_algebra.fold(np.array([r]), u) for r, u in zip(rows, weights, strict=True)]
        whole = _algebra.fold(np.array([list(itertools.chain(*rows))]), np.concatenate(weights))
        left = laws.merge_all(states)
        right = _algebra.merge(states[0], laws.merge_all(states[1:]))
        shuffled = laws.merge_all([states[i] for i in order if i < len(states)])
        for other in (right, shuffled, whole):
            laws.states_agree(left, other, terms=4 * 12)
        nothing = _algebra.identity_like(left.max)
        for merged in (_algebra.merge(left, nothing), _algebra.merge(nothing, left)):
            assert merged == left
    assert State(*(float(x[0]) for x in nothing)) == IDENTITY


def test_merging_masked_blocks_gives_no_nan() -> None:
    with np.errstate(all="ignore"):
        masked = _algebra.fold(np.full((1, 3), -np.inf), np.zeros(3))
        some = _algebra.fold(np.array([[0.0, 0.0]]), np.ones(2))
        for merged in (_algebra.merge(masked, some), _algebra.merge(some, masked), _algebra.merge(masked, masked)):
            assert not np.isnan(merged.max)
            assert not np.isnan(merged.rest)
        assert _algebra.logsumexp(_algebra.merge(masked, masked))[0] == -np.inf
        np.testing.assert_allclose(_algebra.finish(_algebra.merge(masked, some)).entropy, np.log(2))


@given(st.integers(-3000, 3000), st.integers(0, 10**6))
@settings(deadline=None, max_examples=50)
def test_a_constant_added_to_a_row_changes_nothing(constant: int, seed: int) -> None:
    z = np.random.default_rng(seed).integers(-(2**12), 2**12, (2, 50)) / 2.0**8  # exact, and so is z + constant
    a, b = _algebra.fold(z, np.ones(50)), _algebra.fold(z + constant, np.ones(50))
    np.testing.assert_array_equal(a._replace(max=a.max + constant), b)
    np.testing.assert_array_equal(_algebra.log_softmax(z), _algebra.log_softmax(z + constant))


def test_permuting_classes_permutes_gradients(rng: np.random.Generator) -> None:
    z, order, target = rng.normal(size=(4, 9)), rng.permutation(9), np.array([0, 3, 8, 5])
    four, place = Coefficients(*rng.normal(size=(4, 4))), np.argsort(order)
    straight = _algebra.gradient(z, _algebra.fold(z), four, target)
    shuffled = _algebra.gradient(z[:, order], _algebra.fold(z[:, order]), four, place[target])
    np.testing.assert_allclose(shuffled, straight[:, order], rtol=1e3 * 2.0**-52)


def test_the_four_numbers_give_the_gradient_of_any_function_of_the_statistics(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    z = torch.tensor(rng.normal(size=(5, 7)) * 3, requires_grad=True)
    target, weight = torch.tensor([0, 6, 2, 2, 5]), torch.tensor(rng.random(7))
    upstream = Statistics(*torch.tensor(rng.normal(size=(4, 5))))
    state = _algebra.fold(z, weight)
    statistics = _algebra.finish(state, z.gather(1, target[:, None])[:, 0])
    (expected,) = torch.autograd.grad(sum((g * s).sum() for g, s in zip(upstream[:4], statistics[:4], strict=True)), z)
    four = _algebra.coefficients(statistics, state.mass, upstream)
    got = _algebra.gradient(z, state, four, target, weight).detach()
    np.testing.assert_allclose(got, expected, rtol=1e4 * 2.0**-52)

    def dense(z: Any) -> Any:  # the textbook's formulas, differentiated by torch, and by differences
        logs = torch.log_softmax(z, -1)
        chosen, entropy = logs.gather(1, target[:, None])[:, 0], -(logs.exp() * logs).sum(-1)
        parts = (torch.logsumexp(z, -1), chosen, entropy, -(logs * weight).sum(-1))
        return sum((g * s).sum() for g, s in zip(upstream[:4], parts, strict=True))

    (textbook,) = torch.autograd.grad(dense(z), z)
    np.testing.assert_allclose(got, textbook, rtol=1e4 * 2.0**-52)
    step = 2.0**-17
    for i, j in ((0, 0), (3, 2), (4, 6)):
        moved = torch.zeros_like(z)
        moved[i, j] = step
        slope = (dense(z + moved) - dense(z - moved)).item() / (2 * step)
        assert slope == pytest.approx(got[i, j].item(), rel=2.0**-26, abs=2.0**-26)  # step^2, and 2^-52 / step


def test_compensation_puts_back_the_rounding_of_the_difference() -> None:
    z, m = np.array([-0.1234567890123456789]), np.array([700.0])
    _, w = _algebra.exp_difference(z, m)
    truth = mpmath.exp(mpmath.mpf(float(z[0])) - 700)
    assert abs(w[0] - truth) <= 2 * np.spacing(float(truth))
    assert abs(np.exp(z - m)[0] - truth) > 20 * np.spacing(float(truth))  # what the correction is for
