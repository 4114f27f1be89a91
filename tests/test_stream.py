"""The planner keeps its budget, and tile sizes never change a result beyond rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastlayer import _stream
from lastlayer._stream import Plan, plan, workspace_bytes
from lastlayer.linear import NumpyProducts, linear_cross_entropy_value_and_grad

sizes = st.integers(1, 300_000)


@given(
    sizes, sizes, st.integers(1, 8192), st.integers(0, 2**31), st.booleans(), st.booleans(), st.integers(1, 2),
    st.integers(0, 2**26), st.sampled_from([1, 16, 64]), st.booleans(),
)  # fmt: skip
@settings(deadline=None)
def test_the_plan_fits_its_budget_or_says_what_would(
    rows: int, classes: int, features: int, budget: int, converts: bool, scratch: bool, tiles: int, packing: int,
    align: int, sums: bool,
) -> None:  # fmt: skip
    scratch = scratch or converts
    kinds: Any = {"converts": converts, "scratch": scratch, "tiles": tiles, "align": align, "sums": sums}
    least = workspace_bytes(Plan(1, 1, 1 if scratch else classes), features, 4, **kinds)
    if budget < least:
        with pytest.raises(ValueError, match=f"memory_budget = {budget} bytes is too small: at least {least} are"):
            plan(rows, classes, features, budget, 4, packing=packing, **kinds)
        return
    made = plan(rows, classes, features, budget, 4, packing=packing, **kinds)
    left = max(budget - min(budget // 4, packing), least)
    assert workspace_bytes(made, features, 4, **kinds) <= left <= budget
    assert 1 <= made.rows <= rows
    assert 1 <= made.block <= max(made.classes, classes)
    assert made.classes <= classes


def test_whole_rows_where_32_of_them_fit() -> None:
    assert plan(8192, 131_072, 512, 64 * 2**20, 4, converts=False, scratch=False) == Plan(128, 131_072, 131_072)
    packed = plan(8192, 131_072, 512, 64 * 2**20, 4, converts=False, scratch=False, packing=12 * 2**20)
    assert packed == Plan(104, 131_072, 131_072)
    narrow = plan(8192, 131_072, 512, 2**20, 4, converts=False, scratch=False)
    assert narrow.rows > 32  # square tiles rather than chunks of a row or two
    assert narrow.classes < 131_072


@pytest.mark.parametrize("budget", [400, 2000, 9000, 40_000, 2**26])
def test_the_workspace_is_what_the_plan_says(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, budget: int
) -> None:
    taken = []

    class Counting(NumpyProducts):
        def empty(self, *shape: int, dtype: Any = None) -> np.ndarray:
            made = super().empty(*shape, dtype=dtype)
            taken.append(made.nbytes)
            return made

    h, w = rng.normal(size=(40, 6)).astype(np.float32), rng.normal(size=(70, 6)).astype(np.float32)
    head = _stream.Head(w)
    stream = _stream.Stream(Counting(h.dtype), h, head, None, lambda rows, tile: None, budget)
    assert 0 < sum(taken) <= budget
    assert stream.workspace.size == stream.plan.rows * stream.plan.classes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("budget", [1000, 5000, 20_000])
def test_tile_sizes_change_nothing_but_rounding(rng: np.random.Generator, dtype: type, budget: int) -> None:
    h, w = (rng.normal(size=(n, 8)).astype(dtype) for n in (23, 65))
    arguments = {
        "linear_bias": rng.normal(size=65).astype(dtype),
        "label_smoothing": 0.1,
        "z_loss": 1e-3,
        "softcap": 5.0,
    }
    target = rng.integers(0, 65, 23)
    whole, expected = linear_cross_entropy_value_and_grad(h, w, target, **arguments)
    tiled, got = linear_cross_entropy_value_and_grad(h, w, target, memory_budget=budget, **arguments)
    eps = np.finfo(dtype).eps
    assert float(tiled) == pytest.approx(float(whole), rel=float(8 * eps))
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a - b).max() <= 32 * eps * np.abs(b).max()
