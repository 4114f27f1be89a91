"""Figures as data: axes that fit, and values that JSON can hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lastlayer.learn.figures import Axis, Line, Point, Series, bars, curve, finite, heat, ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low, size):
    high = low + size
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return  # nothing between the ends that six digits could tell apart
    marks = [position for position, _ in ticks(low, high)]
    # Steps of 1, 2 or 5 powers of ten, the next above a fifth of the range: at least every half of it, so 1 to 6 marks.
    assert 1 <= len(marks) <= 6
    slack = 1e-8 * size + 1e-9 * max(abs(low), abs(high))
    assert all(low - slack <= mark <= high + slack for mark in marks)


def test_bars_begin_at_zero_and_survive_infinity():
    figure = bars("t", ["a", "b"], [Series("s", [math.inf, 2.0])])
    assert (figure["axis"]["min"], figure["axis"]["max"]) == (0, 2)
    assert figure["series"][0]["values"] == ["inf", 2.0]
    assert figure["alt"] == "t. a: ∞; b: 2.0000."
    only = bars("t", ["a"], [Series("s", [math.nan])])
    assert (only["axis"]["min"], only["axis"]["max"]) == (0, 1)


def test_a_heat_map_shades_by_sign_or_by_rank():
    values = [[-2.0, 1.0, -math.inf]]
    assert heat("t", ["r"], ["a", "b", "c"], values)["shades"] == [[-1.0, 0.5, 0.0]]
    assert heat("t", ["r"], ["a", "b", "c"], values, signed=False)["shades"] == [[0.0, 1.0, 0.0]]
    assert heat("t", ["r"], ["a"], [[math.nan]])["shades"] == [[0.0]]


def test_a_curve_tells_its_points_and_lines():
    figure = curve(
        "t", Axis("x", 0, 2), Axis("y", 0, 1), [Line("f", [0, 2], [math.inf, 1])],
        points=[Point(1, 0.5, "here", "p")], uprights=[(2.0, "end")],
    )  # fmt: skip
    assert figure["alt"] == "t. f over x from 0 to 2. here: x 1.0000, y 0.5000. end at 2.0000."
    assert figure["lines"][0]["points"] == [[0.0, "inf"], [2.0, 1.0]]
    assert figure["points"][0] == {"x": 1.0, "y": 0.5, "label": "here", "field": "p", "place": None, "along": "x"}


@pytest.mark.parametrize(("value", "held"), [(1.5, 1.5), (math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")])
def test_json_has_no_infinity(value, held):
    assert finite(value) == held
