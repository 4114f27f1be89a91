"""The laws of truncation, on every backend: what is kept is what a float64 sort keeps, whichever stack is asked for.

Ties and ends are spelled out; rows of all kinds are tested against the models of sampling_models.py.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import laws
import numpy as np
import pytest
import sampling_models as models
import scipy.special
from draw_laws import LAST, draw, rows_of_all_kinds

from lastlayer import _backends
from lastlayer._draws import FINE, NEUTRAL, ORDERS, Rules

INF = math.inf
NEAR = 1e-12  # of a threshold: float64 sums of a few thousand terms may fall on either side
AIM = 2.0**-18  # a class of less probability is no target for a uniform: sums of float32 masses are 2^-20 off


@pytest.fixture
def backend(backend: Any) -> Any:
    """Each backend that draws."""
    if not hasattr(backend, "draw"):
        pytest.skip("no draw kernel")
    return backend


def kept_classes(backend: Any, row: Any, **numbers: Any) -> list[int]:
    """Return the classes kept of a row: all that come when one after the other is drawn."""
    z = np.asarray(row, np.float32)[None]
    count = int(draw(backend, z, [[0.5]], **numbers).kept[0])
    found = draw(backend, z, np.full((1, count), 0.5), replacement=False, **numbers)
    assert found.status[0] == FINE
    return sorted(found.index[0].tolist())


# What is kept: ties, plateaus, ends


ALL = list(range(10))
FLAT, TIED, ONE, MASKED = [0.0] * 10, [1.0, 2.0, 2.0, 2.0, 0.0], [-INF, -INF, 3.0, -INF], [-INF, 1.0, 2.0, 1.0, -INF]
KEPT = [
    (FLAT, {"top_k": 3}, [0, 1, 2]),
    (FLAT, {"top_k": 10}, ALL),
    (FLAT, {"top_k": 11}, ALL),
    (FLAT, {"top_k": INF}, ALL),
    (FLAT, {"top_p": 0.0}, [0]),
    (FLAT, {"top_p": 1e-300}, [0]),
    (FLAT, {"top_p": 0.5}, ALL[:5]),
    (FLAT, {"top_p": 0.5 + 1e-9}, ALL[:6]),
    (FLAT, {"top_p": 1 - 1e-7}, ALL),
    (FLAT, {"top_p": 1.0}, ALL),
    (FLAT, {"typical_p": 0.0}, [0]),
    (FLAT, {"typical_p": 0.25}, ALL[:3]),
    (FLAT, {"typical_p": 1.0}, ALL),
    (FLAT, {"min_p": 0.0}, ALL),
    (FLAT, {"min_p": 1.0}, ALL),
    (FLAT, {"epsilon_cutoff": 0.0}, ALL),
    (FLAT, {"epsilon_cutoff": 0.09}, ALL),
    (FLAT, {"epsilon_cutoff": 0.11}, ALL),  # no class has it: the likeliest stay, all of them
    (FLAT, {"epsilon_cutoff": 1.0}, ALL),
    (FLAT, {"eta_cutoff": 0.0}, ALL),
    (FLAT, {"eta_cutoff": 1.0}, ALL),
    (FLAT, {"top_n_sigma": 0.0}, ALL),
    (FLAT, {"top_k": 4, "top_p": 0.5}, [0, 1]),
    (FLAT, {"top_k": 4, "top_p": 0.5, "typical_p": 0.5}, [0]),
    (TIED, {"top_k": 1}, [1]),
    (TIED, {"top_k": 2}, [1, 2]),
    (TIED, {"top_k": 4}, [0, 1, 2, 3]),
    (TIED, {"top_p": 0.0}, [1]),
    (TIED, {"top_p": 0.5}, [1, 2]),
    (TIED, {"min_p": 1.0}, [1, 2, 3]),
    (TIED, {"epsilon_cutoff": 1.0}, [1, 2, 3]),
    (TIED, {"eta_cutoff": 1.0}, [1, 2, 3]),
    (TIED, {"top_n_sigma": 0.0}, [1, 2, 3]),
    (TIED, {"temperature": 0.0}, [1]),
    (TIED, {"temperature": 0.0, "top_k": 3, "top_p": 0.5}, [1]),
    (TIED, {"temperature": 1e-300}, [0, 1, 2, 3, 4]),
    (TIED, {"temperature": 1e-300, "top_p": 0.9}, [1, 2, 3]),
    (TIED, {"temperature": 1e-300, "min_p": 1e-300}, [1, 2, 3]),
    (TIED, {"temperature": 1e-300, "typical_p": 0.6}, [1, 2]),
    (TIED, {"temperature": 1e-300, "epsilon_cutoff": 0.3}, [1, 2, 3]),
    (TIED, {"temperature": 1e300, "top_p": 0.6}, [1, 2, 3]),
    (TIED, {"temperature": 1e300, "min_p": 1 - 1e-9}, [0, 1, 2, 3, 4]),
    (TIED, {"temperature": 1e300, "epsilon_cutoff": 0.19}, [0, 1, 2, 3, 4]),
    *((ONE, {name: value}, [2]) for name in Rules._fields[1:] for value in (0.5, getattr(NEUTRAL, name))),
    *((ONE, {"temperature": t, "top_p": 0.5, "top_n_sigma": 1.0}, [2]) for t in (0.0, 1e-300, 1.0, 1e300)),
    (MASKED, {"top_k": 4}, [1, 2, 3]),
    (MASKED, {"top_k": 2}, [1, 2]),
    (MASKED, {"top_p": LAST}, [1, 2, 3]),
    (MASKED, {"min_p": 0.0}, [1, 2, 3]),
    (MASKED, {"epsilon_cutoff": 1e-300}, [1, 2, 3]),
    (MASKED, {"top_n_sigma": 100.0}, [1, 2, 3]),
    (MASKED, {"typical_p": LAST}, [1, 2, 3]),
    *(([-7.0], {name: value}, [0]) for name in Rules._fields[2:] for value in (0.0, 0.5) if name != "top_k"),
    *(([-7.0], {"top_k": value}, [0]) for value in (1, 2, INF)),
    *(([-7.0], {"temperature": t}, [0]) for t in (0.0, 1e-300, 1e300)),
    ([-1e-17, 0.0, 0.0], {"epsilon_cutoff": 0.9}, [0, 1, 2]),  # e^-1e-17 is 1: just as likely
    ([-1e-17, 0.0, 0.0], {"min_p": 1.0}, [0, 1, 2]),
    ([1e8, 1e-9, 2e-9], {"top_k": 2}, [0, 2]),  # 1e8 less either is one number, and they are two
]  # fmt: skip


@pytest.mark.parametrize(("row", "numbers", "expected"), KEPT)
@pytest.mark.parametrize("order", ORDERS)
def test_what_is_kept_at_ties_and_ends(backend, row, numbers, expected, order):
    if order == "llama.cpp" and "temperature" in numbers and len(numbers) > 1:
        order = "transformers"  # there the temperature is last, and filters do not see it
    assert kept_classes(backend, row, order=order, **numbers) == expected


@pytest.mark.parametrize("seed", range(3))
def test_kept_where_a_rounding_of_the_total_decides(backend, seed):
    """p and epsilon just above and below what so many classes reach: nearer than float32 sums can tell."""
    rng = np.random.default_rng(seed)
    z = (rng.standard_normal(5000) * 4).astype(np.float32)
    mass = np.sort(np.exp(z.astype(np.float64) - z.max()))[::-1]
    share, probs = np.cumsum(mass) / mass.sum(), mass / mass.sum()
    near, many = 1e-12, np.arange(3, 300, 7)  # the roundings of sums of doubles are a hundredth of it
    cuts = [("top_p", share, many + 1, many + 2), ("epsilon_cutoff", probs, many, many + 1)]
    for name, reached, below, above in cuts:
        for factor, kept in ((1 - near, below), (1 + near, above)):
            values = reached[many] * factor
            kept = kept if name == "top_p" else (above if factor < 1 else below)
            found = draw(backend, np.tile(z, (len(many), 1)), np.full((len(many), 1), 0.5), **{name: values})
            assert np.array_equal(found.kept, kept), name


BETWEEN = {"top_k": 200, "top_p": 0.9, "min_p": 1e-3, "typical_p": 0.9, "epsilon_cutoff": 1e-5, "top_n_sigma": 3.0}


@pytest.mark.parametrize(("first", "then"), list(itertools.permutations(BETWEEN, 2)))
def test_the_temperature_may_come_between_filters(backend, first, then, rng):
    z = rows_of_all_kinds(rng, 12, 1500, ties=False)
    order = (first, "temperature", then, *(name for name in BETWEEN if name not in (first, then)), "eta_cutoff")
    some = {name: BETWEEN[name] for name in (first, then)}
    found, model = (
        draw(each, z, np.full((12, 1), 0.5), order=order, temperature=[0.4, 2.5] * 6, **some)
        for each in (backend, _backends.reference)
    )
    assert np.array_equal(found.kept, model.kept)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ties_in_several_blocks(backend, temperature):
    z = np.zeros((1, 4000), np.float32)
    z[0, [1500, 2047, 2048, 3999]] = 3
    found = draw(backend, z, [[0.9]], temperature=temperature, top_k=1)
    assert (found.index[0, 0], found.rank[0, 0], found.kept[0]) == (1500, 1, 1)


@pytest.mark.parametrize(("sigma", "kept"), [(0.0, 1), (1.0, 3)])
@pytest.mark.parametrize("order", [ORDERS["vllm"], (*ORDERS["vllm"][2:], "temperature", "min_p")])
def test_a_deviation_whose_squares_overflow(backend, sigma, kept, order):
    found = draw(backend, [[0.0, 1e200, -5.0]], [[0.5]], order=order, top_n_sigma=sigma, top_p=1 - 1e-9)
    found_alone = draw(backend, [[0.0, 1e200, -5.0]], [[0.5]], order=order, top_n_sigma=sigma)
    assert found.index[0, 0] == found_alone.index[0, 0] == 1
    assert (found.kept[0], found_alone.kept[0]) == (1, kept)


@pytest.mark.parametrize("classes", [2, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("p", [1 - 1e-7, 0.9999999, 0.5, 1e-3])
def test_top_p_keeps_at_least_p_and_not_one_class_more(backend, classes, p, rng):
    z = (rng.standard_normal((20, classes)) * 3).astype(np.float32)
    z[:, :: max(2, classes // 7)] = -INF
    found = draw(backend, z, np.full((20, 1), 0.5), top_p=p)
    expected = [models.top_p(row.astype(np.float64), p) for row in z]
    sure = np.array([each.margin > NEAR for each in expected])
    assert sure.mean() >= 0.9
    assert np.array_equal(found.kept[sure], np.array([len(each.classes) for each in expected])[sure])
    assert (
        found.kept_mass[sure] >= p * (1 - NEAR - (laws.spacing(np.float32) if backend is _backends.cpu else 0))
    ).all()


@pytest.mark.parametrize("k", [1, 2, 50, 1000, 1023, 1024, 1025])
def test_top_k_keeps_k_whatever_the_ties(backend, k, rng):
    z = np.round(rng.standard_normal((8, 1025)) * 2).astype(np.float32)
    found = draw(backend, z, rng.random((8, 400)), top_k=k)
    assert (found.kept == k).all()
    for row, index in zip(z, found.index, strict=True):
        assert np.isin(index, np.lexsort((np.arange(1025), -row))[:k]).all()
    one_by_one = draw(backend, z[:2, :100], rng.random((2, min(k, 100))), replacement=False, top_k=k)
    for row, index in zip(z[:2, :100], one_by_one.index, strict=True):
        assert np.array_equal(np.sort(index), np.sort(np.lexsort((np.arange(100), -row))[:k]))


# What is kept: the stacks


def random_settings(rng: np.random.Generator, count: int, names: tuple[str, ...]) -> list[dict[str, float]]:
    """Return as many settings, each of some of the steps."""
    ranges = {
        "temperature": lambda: float(np.exp(rng.uniform(-1.5, 1.0))),
        "top_k": lambda: int(rng.integers(1, 80)),
        "top_p": lambda: float(rng.uniform(0.05, 0.999)),
        "min_p": lambda: float(np.exp(rng.uniform(-9, -0.1))),
        "typical_p": lambda: float(rng.uniform(0.05, 0.99)),
        "epsilon_cutoff": lambda: float(np.exp(rng.uniform(-9, -1))),
        "eta_cutoff": lambda: float(4.0 ** -rng.integers(1, 7)),  # float32 has its root too
        "top_n_sigma": lambda: float(rng.uniform(0.2, 4.0)),
    }
    return [{name: ranges[name]() for name in names if rng.random() < 0.6} for _ in range(count)]


def assert_drawn_as(backend: Any, z: Any, order: str, settings: list[dict[str, float]], expected: list[Any]) -> None:
    """In the middle of each kept class's share of the uniforms that class is drawn, and no others are kept."""
    probs = np.stack([np.exp(each.logprobs) for each in expected])
    middle = np.clip(np.cumsum(probs, -1) - probs / 2, 0, LAST)
    numbers = {name: [setting.get(name, getattr(NEUTRAL, name)) for setting in settings] for name in Rules._fields}
    found = draw(backend, z, middle, order, **numbers)
    sure = np.array([each.margin > NEAR for each in expected])
    assert sure.mean() >= 0.9
    assert (found.status == FINE).all()
    assert np.array_equal(found.kept[sure], [len(each.classes) for each, s in zip(expected, sure, strict=True) if s])
    aimed = (probs > AIM) & sure[:, None]
    assert aimed.sum() > len(z)
    assert np.array_equal(found.index[aimed], np.nonzero(aimed)[1])
    exact = np.where(aimed, np.stack([each.logprobs for each in expected]), 0.0)
    laws.assert_within(np.where(aimed, found.sampled_logprob, 0.0), exact, exact, np.float32, terms=z.shape[1])
    model = scipy.special.softmax(z.astype(np.float64), -1)
    mass = np.array([row[each.classes].sum() for row, each in zip(model, expected, strict=True)])[sure, None]
    laws.assert_within(found.kept_mass[sure, None], mass, mass, np.float32, terms=z.shape[1])


@pytest.mark.parametrize("seed", range(3))
def test_kept_as_transformers_keeps(backend, seed):
    pytest.importorskip("transformers")
    rng = np.random.default_rng(seed)
    z = rows_of_all_kinds(rng, 150, 120, ties=False)
    names = tuple(name for name in ORDERS["transformers"] if name != "top_n_sigma")
    settings = random_settings(rng, len(z), names)
    expected = [models.transformers(row.astype(np.float64), setting) for row, setting in zip(z, settings, strict=True)]
    assert_drawn_as(backend, z, "transformers", settings, expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("order", "model", "filters"),
    [("vllm", models.vllm, models.VLLM), ("llama.cpp", models.llama_cpp, models.LLAMA_CPP)],
)
def test_kept_as_other_stacks_keep(backend, seed, order, model, filters):
    rng = np.random.default_rng(seed)
    z = rows_of_all_kinds(rng, 300, 120, ties=True)
    settings = random_settings(rng, len(z), tuple(name for name, _ in filters))
    expected = [model(row.astype(np.float64), setting) for row, setting in zip(z, settings, strict=True)]
    assert_drawn_as(backend, z, order, settings, expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(2))
def test_kept_in_the_order_named(backend, order, seed):
    """All steps at once, in each of the orders: what a stack does not have is where the documents put it."""
    rng = np.random.default_rng(seed)
    z = rows_of_all_kinds(rng, 150, 120, ties=False)
    settings = random_settings(rng, len(z), ORDERS[order])
    filters = [(name, models.EVERY[name]) for name in ORDERS[order]]
    expected = [
        models.chain(filters, row.astype(np.float64), setting) for row, setting in zip(z, settings, strict=True)
    ]
    assert_drawn_as(backend, z, order, settings, expected)


def test_the_orders_differ(backend, rng):
    """Temperature last keeps what temperature first drops: or a test of order would test nothing."""
    z = (rng.standard_normal((50, 100)) * 3).astype(np.float32)
    numbers = {"temperature": 2.5, "top_k": 20, "top_p": 0.7, "min_p": 0.1}
    kept = {order: draw(backend, z, np.full((50, 1), 0.5), order, **numbers).kept for order in ORDERS}
    assert (kept["transformers"] > kept["llama.cpp"]).all()
    assert (kept["transformers"] != kept["vllm"]).any()
