"""TokenMean: exact and mergeable, so no split into batches and no order of merges changes a bit of it."""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
import pickle
import random
import subprocess
import sys
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lastlayer as ll
from lastlayer.token_mean import TokenMean

EPS = 2.0**-52
FINITE = st.floats(-1e290, 1e290)  # no sum of some hundred leaves float64; subnormals and both zeros included
ANY = st.one_of(FINITE, st.sampled_from([math.inf, -math.inf, math.nan]))
WEIGHT = st.one_of(st.just(0.0), st.floats(0, 1e15))


def fraction(parts: list[float]) -> Fraction:
    return sum(map(Fraction, parts), Fraction())


def split(values: list[Any], cuts: list[int]) -> list[list[Any]]:
    edges = [0, *sorted(cut % (len(values) + 1) for cut in cuts), len(values)]
    return [values[start:stop] for start, stop in itertools.pairwise(edges)]


def merge_as_a_tree(means: list[TokenMean], rng: random.Random) -> TokenMean:
    """Merge neighbours and strangers in a random order."""
    means = [TokenMean(), *means]
    while len(means) > 1:
        rng.shuffle(means)
        means.append(means.pop() + means.pop())
    return means[0]


# Laws


@settings(deadline=None)
@given(st.lists(ANY, max_size=40), st.lists(st.integers(0, 99), max_size=8), st.integers(0, 999))
def test_no_split_and_no_order_changes_a_bit(losses, cuts, seed):
    rng = random.Random(seed)
    whole = TokenMean.from_losses(losses)
    shuffled = rng.sample(losses, len(losses))
    merged = merge_as_a_tree([TokenMean.from_losses(part) for part in split(shuffled, cuts)], rng)
    assert merged.to_dict() == whole.to_dict()
    assert merged == whole
    assert repr(merged.mean) == repr(whole.mean)
    assert merged.count == len(losses)


@settings(deadline=None)
@given(st.lists(st.tuples(FINITE, WEIGHT), max_size=40), st.lists(st.integers(0, 99), max_size=8), st.integers(0, 999))
def test_nor_with_weights(tokens, cuts, seed):
    rng = random.Random(seed)
    shuffled = rng.sample(tokens, len(tokens))

    def read(pairs: list[tuple[float, float]]) -> TokenMean:
        return TokenMean.from_losses([x for x, _ in pairs], token_weight=[w for _, w in pairs])

    whole = read(tokens)
    assert merge_as_a_tree([read(part) for part in split(shuffled, cuts)], rng) == whole
    state = whole.to_dict()
    assert fraction(state["tokens"]) == fraction([w for _, w in tokens])
    if all(x == 0 or math.isfinite(x) for x in (x * w for x, w in tokens)):
        assert fraction(state["losses"]) == fraction([x * w for x, w in tokens])


@settings(deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=40))
def test_the_sum_is_exact_and_the_mean_rounds_twice(losses):
    seen = sum((TokenMean(x, 1) for x in losses), TokenMean())
    exact = fraction(losses)
    assert fraction(seen.to_dict()["losses"]) == exact
    assert seen.total == float(exact)
    assert abs(Fraction(seen.mean) - exact / len(losses)) <= Fraction(EPS) * abs(exact) / len(losses) + Fraction(5e-324)


@settings(deadline=None)
@given(st.lists(ANY, max_size=9), st.one_of(st.none(), st.integers(0, 2**80)))
def test_json_and_pickle_return_the_same_bits(losses, length):
    seen = TokenMean.from_losses(losses, bytes=length)
    again = TokenMean.from_dict(json.loads(json.dumps(seen.to_dict(), allow_nan=False)))
    for other in (again, pickle.loads(pickle.dumps(seen))):
        assert other == seen
        assert repr(other) == repr(seen)
        assert (other + seen) == (seen + seen)


def test_one_ulp_makes_a_difference():
    a, b = TokenMean(1.0, 1), TokenMean(math.nextafter(1.0, 2), 1)
    assert a != b
    assert TokenMean(1.0, 2) != a
    assert TokenMean(1.0, 1, bytes=3) != a
    assert a != 1.0
    assert TokenMean(2.0**60, 1) + TokenMean(2.0**-60, 1) != TokenMean(2.0**60, 2)


def test_counts_are_exact_integers_beyond_float64():
    seen = TokenMean(0.0, 2**53) + TokenMean(0.0, 1)
    assert seen.count == 2**53 + 1
    assert type(seen.count) is int
    assert TokenMean.from_dict(seen.to_dict()).count == 2**53 + 1
    assert (seen + TokenMean(0.0, 0.5)).count == 2.0**53 + 2


# What counts


def batches() -> tuple[np.ndarray, np.ndarray]:
    """Logits (3, 7, 11) and targets of three batches with 7, 2 and 0 tokens that count."""
    rng = np.random.default_rng(0)
    z, y = 3 * rng.standard_normal((3, 7, 11)), rng.integers(0, 11, (3, 7))
    z[1] /= 9  # an easier batch
    y[1, 2:] = y[2] = -100
    return z, y


def test_the_mean_of_means_is_wrong_and_ours_is_the_big_batch():
    z, y = batches()
    losses = ll.cross_entropy(z, y, reduction="none")
    seen = TokenMean()
    for row, target in zip(losses, y, strict=True):
        seen += TokenMean.from_losses(row, target)
    exact = fraction(losses.ravel().tolist()) / 9
    assert seen.count == 9
    assert abs(Fraction(seen.mean) - exact) <= Fraction(EPS) * exact
    assert abs(seen.mean - ll.cross_entropy(z, y)) <= 9 * EPS * seen.mean
    assert abs(seen.perplexity / ll.perplexity(z, y) - 1) <= (9 * seen.mean + 2) * EPS
    means = [losses[i][y[i] != -100].mean() for i in (0, 1)]
    assert abs(np.mean(means) - seen.mean) > 0.1


def test_ignored_positions_do_not_count_whatever_they_hold():
    losses, target = np.array([[1.0, np.nan], [np.inf, 4.0]]), np.array([[0, -100], [-100, 2]])
    expected = TokenMean(5.0, 2)
    assert TokenMean.from_losses(losses, target) == expected
    assert TokenMean.from_losses(losses, np.where(target < 0, 7, target), ignore_index=7) == expected
    assert TokenMean.from_losses(losses, token_weight=target >= 0) == expected
    assert TokenMean.from_losses(losses, target, token_weight=np.where(target < 0, np.nan, 1.0)) == expected
    assert TokenMean.from_losses(losses, np.full((2, 2), -100)) == TokenMean()
    assert math.isnan(TokenMean.from_losses(losses).mean)
    assert TokenMean.from_losses(np.float32([1, 2]), np.uint8([156, 3])).count == 2  # 156 is -100 modulo 256


def test_weights_count_by_their_sum():
    seen = TokenMean.from_losses([1.0, 3.0, 9.0], [1, 1, -100], token_weight=[0.5, 0.25, 8.0])
    assert (seen.total, seen.count) == (1.25, 0.75)
    assert TokenMean.from_losses([3.0, 5.0], token_weight=[2, 0]) == TokenMean(6.0, 2)
    assert TokenMean.from_losses([3.0, math.nan], token_weight=[2, 0]) == TokenMean(6.0, 2)
    assert TokenMean.from_losses([1e300], token_weight=[1e300]).mean == math.inf


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_any_type_is_summed_in_float64(kind, dtype):
    rng = np.random.default_rng(3)
    losses = (9 * rng.random((32, 64))).astype(getattr(ml_dtypes, dtype, None) or dtype)
    exact = fraction(losses.astype(np.float64).ravel().tolist())
    given = losses
    if kind == "torch":
        torch = pytest.importorskip("torch")
        given = torch.tensor(losses.astype(np.float64)).to(getattr(torch, dtype))
        given = given.requires_grad_() if given.is_floating_point() else given
    seen = TokenMean.from_losses(given)
    assert fraction(seen.to_dict()["losses"]) == exact
    assert seen.count == losses.size
    if dtype == "bfloat16":
        one_by_one = functools.reduce(operator.add, losses.ravel())
        assert abs(float(one_by_one) - seen.total) > 30


def test_targets_weights_and_sums_may_be_tensors():
    torch = pytest.importorskip("torch")
    losses = torch.tensor([1.0, 2.0, math.nan], dtype=torch.bfloat16)
    target, weight = torch.tensor([5, 0, -100]), torch.tensor([2.0, 1.0, 1.0], requires_grad=True)
    assert TokenMean.from_losses(losses, target) == TokenMean(3.0, 2)
    assert TokenMean.from_losses(losses, target, token_weight=weight) == TokenMean(4.0, 3)
    assert TokenMean.from_losses(losses, token_weight=target >= 0) == TokenMean(3.0, 2)
    total = torch.tensor(3.0, requires_grad=True) * 1
    assert TokenMean(total, torch.tensor(2), bytes=torch.tensor(6)) == TokenMean(3.0, 2, bytes=6)
    assert TokenMean.from_mean(total, 2) == TokenMean(6.0, 2)


# Results


def test_nats_and_bits():
    seen = TokenMean(8 * math.log(2), 4, bytes=16)
    assert abs(seen.mean - 2 * math.log(2)) <= EPS * seen.mean
    assert abs(seen.bits_per_token - 2) <= 2 * EPS * 2
    assert abs(seen.bits_per_byte - 0.5) <= 2 * EPS * 0.5
    assert abs(seen.perplexity - 4) <= 4 * EPS * 4
    assert abs(ll.surprisal(logits=[0.0] * 4, unit="bits")[0] - seen.bits_per_token) <= 4 * EPS * 2


def test_no_token_has_no_mean():
    for empty in (
        TokenMean(),
        TokenMean.from_losses([]),
        TokenMean.from_losses(np.zeros((0, 3)), np.zeros((0, 3), int)),
    ):
        assert empty == TokenMean(0.0, 0) == sum([]) + TokenMean()
        assert (empty.total, empty.count, empty.bytes) == (0.0, 0, 0)
        for value in (empty.mean, empty.perplexity, empty.bits_per_token, empty.bits_per_byte):
            assert math.isnan(value)
        assert empty + TokenMean(3.0, 2, bytes=4) == TokenMean(3.0, 2, bytes=4)
    assert TokenMean.from_mean(math.nan, 0) == TokenMean()


def test_infinite_losses_and_overflow():
    assert TokenMean(710.0, 1).perplexity == math.inf
    assert TokenMean(709.0, 1).perplexity == math.exp(709)
    assert (TokenMean(math.inf, 1) + TokenMean(1.0, 1)).mean == math.inf
    assert TokenMean(math.inf, 1).perplexity == math.inf
    assert math.isnan((TokenMean(math.inf, 1) + TokenMean(-math.inf, 1)).mean)
    assert math.isnan((TokenMean(math.nan, 1) + TokenMean(math.inf, 1)).perplexity)
    with pytest.raises(OverflowError, match="the sum leaves the range of float64"):
        TokenMean(1.5e308, 1) + TokenMean(1.5e308, 1)


def test_the_length_is_known_if_all_parts_with_tokens_have_one():
    known, unknown = TokenMean(1.0, 1, bytes=4), TokenMean(2.0, 1)
    assert (known + known).bytes == 8
    for merged in (known + unknown, unknown + known, unknown + TokenMean(bytes=4)):
        assert merged.bytes is None
        with pytest.raises(ValueError, match="bytes is None"):
            _ = merged.bits_per_byte
    padding = TokenMean.from_losses([5.0], [-100])
    assert (known + padding).bytes == 4
    assert TokenMean.from_losses([1.0, 2.0], [1, 1], bytes=4).bytes == 4
    assert TokenMean.from_mean(1.0, 1, bytes=4) == known


def test_merging_makes_a_new_one():
    seen = before = TokenMean(1.0, 1)
    seen += TokenMean(2.0, 1)
    assert before == TokenMean(1.0, 1)
    assert seen == TokenMean(3.0, 2)
    for name in ("total", "count", "bytes", "mean"):
        with pytest.raises(AttributeError):
            setattr(seen, name, 0)


def test_repr():
    assert repr(TokenMean()) == "TokenMean(mean=nan, perplexity=nan, count=0)"
    assert repr(TokenMean(4.0, 2)) == "TokenMean(mean=2, perplexity=7.38906, count=2)"
    assert repr(TokenMean(1.0, 12345678, bytes=9)).endswith("count=12345678, bytes=9)")
    assert repr(TokenMean(1.0, 0.5)) == "TokenMean(mean=2, perplexity=7.38906, count=0.5)"


def test_numpy_alone_is_enough():
    code = (
        "import sys, numpy as np; from lastlayer.token_mean import TokenMean;"
        "TokenMean.from_losses(np.ones(3), np.ones(3, int)); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "False"


# Malformed calls

STATE = {"losses": [1.0], "tokens": [1.0], "bytes": None}
FROM = TokenMean.from_losses
MALFORMED = [
    (TokenMean, (1.0, -1), {}, ValueError, r"count = -1.0 must be a finite number, 0 or above"),
    (TokenMean, (1.0, math.nan), {}, ValueError, "count = nan"),
    (TokenMean, (1.0, math.inf), {}, ValueError, "count = inf"),
    (TokenMean, (1.0, 0), {}, ValueError, "total = 1.0 over no tokens"),
    (TokenMean, (math.nan,), {}, ValueError, "total = nan over no tokens"),
    (TokenMean, ("1", 1), {}, TypeError, "total = '1' must be a number, not str"),
    (TokenMean, (None, 1), {}, TypeError, "total = None"),
    (TokenMean, (1.0, "1"), {}, TypeError, "count = '1'"),
    (TokenMean, (np.ones(3), 3), {}, TypeError, "total = .* must be a number"),
    (TokenMean, (1.0, 1), {"bytes": -1}, ValueError, "bytes = -1 must be 0 or above"),
    (TokenMean, (1.0, 1), {"bytes": 1.5}, TypeError, "bytes = 1.5 must be an integer"),
    (TokenMean.from_mean, ("1", 1), {}, TypeError, "mean = '1'"),
    (TokenMean.from_mean, (1.0, -1), {}, ValueError, "count = -1.0"),
    (FROM, (1.0,), {}, ValueError, r"losses is a scalar, expected one loss per token: TokenMean\(total, count\)"),
    (FROM, (["a"],), {}, TypeError, "losses has dtype <U1"),
    (FROM, ([True],), {}, TypeError, "losses has dtype bool"),
    (FROM, ([1j],), {}, TypeError, "losses has dtype complex128"),
    (FROM, ([[1.0], [1.0, 2.0]],), {}, ValueError, "losses must be rectangular"),
    (FROM, (np.ma.array([1.0], mask=[True]),), {}, TypeError, "losses is a masked array"),
    (FROM, ([1.0, 2.0], [1]), {}, ValueError, r"target has shape \(1,\), expected \(2,\), that of losses"),
    (FROM, ([1.0, 2.0], [[1], [1]]), {}, ValueError, r"target has shape \(2, 1\)"),
    (FROM, ([1.0], [0.5]), {}, TypeError, "target has dtype float64, expected integers"),
    (FROM, ([1.0], [True]), {}, TypeError, "target has dtype bool"),
    (FROM, ([1.0], [1]), {"ignore_index": 0.5}, TypeError, "ignore_index = 0.5"),
    (FROM, ([1.0],), {"token_weight": [1.0, 2.0]}, ValueError, r"token_weight has shape \(2,\), expected \(1,\)"),
    (FROM, ([1.0],), {"token_weight": 2.0}, ValueError, r"token_weight has shape \(\)"),
    (FROM, ([1.0],), {"token_weight": ["a"]}, TypeError, "token_weight has dtype <U1"),
    *(
        (FROM, ([[1.0, 2.0]],), {"token_weight": [[1.0, bad]]}, ValueError, rf"token_weight\[0, 1\] = {bad} must be")
        for bad in (-0.5, math.nan, math.inf)
    ),
    (FROM, ([1.0],), {"bytes": -1}, ValueError, "bytes = -1"),
    (TokenMean.from_dict, ({"losses": []},), {}, ValueError, r"keys \['losses'\], expected losses, tokens and bytes"),
    (TokenMean.from_dict, (STATE | {"more": 1},), {}, ValueError, "expected losses, tokens and bytes"),
    (TokenMean.from_dict, (STATE | {"losses": 1.0},), {}, ValueError, r"state\['losses'\] = 1.0 must be a list"),
    (TokenMean.from_dict, (STATE | {"tokens": ["x"]},), {}, ValueError, r"state\['tokens'\] = \['x'\]"),
    (TokenMean.from_dict, (STATE | {"tokens": [-1.0]},), {}, ValueError, "count = -1.0"),
    (TokenMean.from_dict, (STATE | {"tokens": []},), {}, ValueError, "total = 1.0 over no tokens"),
    (TokenMean.from_dict, (STATE | {"bytes": "3"},), {}, TypeError, "bytes = '3'"),
    (operator.add, (TokenMean(), 1.0), {}, TypeError, "unsupported operand"),
    (operator.add, (1, TokenMean()), {}, TypeError, "unsupported operand"),
]


@pytest.mark.parametrize(("f", "args", "kwargs", "error", "match"), MALFORMED)
def test_malformed_calls_raise(f, args, kwargs, error, match):
    with pytest.raises(error, match=match):
        f(*args, **kwargs)
