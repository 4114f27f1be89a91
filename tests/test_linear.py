"""linear_cross_entropy for NumPy equals its dense definition, and keeps to its memory budget."""

from __future__ import annotations

import tracemalloc
from typing import Any

import laws
import ml_dtypes
import numpy as np
import pytest

import lastlayer
from lastlayer import _backends

TYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def dense(
    h: Any, w: Any, y: Any, *, linear_bias: Any = 0.0, weight: Any = None, reduction: str = "mean",
    label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float | None = None, scale: float = 1.0,
    token_weight: Any = None, dtype: Any = np.float64,
) -> Any:  # fmt: skip
    """The definition over full logits, in the given precision."""
    h, w, b = (np.asarray(a).astype(dtype) for a in (h, w, linear_bias))
    z = (h @ w.T + b) * dtype(scale)
    z = z if softcap is None else dtype(softcap) * np.tanh(z / dtype(softcap))
    lse = np.log(np.exp(z).sum(-1))
    logs, classes = z - lse[..., None], w.shape[0]
    u = np.ones(classes, dtype) if weight is None else np.asarray(weight, dtype)
    if np.issubdtype(y.dtype, np.floating):
        keep = of_target = np.ones(h.shape[:-1])
        loss = -((y * (1 - label_smoothing) + label_smoothing / classes) * u * logs).sum(-1)
    else:
        keep, inside = (y != -100).astype(dtype), np.where(y == -100, 0, y)
        of_target = u[inside] * keep
        loss = -(1 - label_smoothing) * of_target * np.take_along_axis(logs, inside[..., None], -1)[..., 0]
        loss = loss - label_smoothing / classes * (logs * u).sum(-1) * keep
    token = np.ones_like(keep) if token_weight is None else token_weight
    loss = (loss + z_loss * lse**2 * keep) * token
    if reduction == "none":
        return loss
    return loss.sum() / ((of_target * token).sum() if reduction == "mean" else 1)


ALL = {"label_smoothing": 0.1, "z_loss": 1e-2, "softcap": 3.0, "scale": 0.5}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("budget", [2**26, 8000])
@pytest.mark.parametrize("options", [{}, ALL, {"label_smoothing": 0.2}, {"z_loss": 0.1}, {"softcap": 2.0}], ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_it_is_its_definition(
    rng: np.random.Generator, dtype: Any, reduction: str, budget: int, options: dict[str, float], soft: bool
) -> None:
    h, w, b = (rng.normal(size=shape).astype(dtype) for shape in ((3, 4, 5), (33, 5), (33,)))
    y = rng.integers(0, 33, (3, 4))
    y[1, 1] = -100
    if soft:
        y = rng.dirichlet(np.ones(33), (3, 4))
    given = {
        "linear_bias": b,
        "weight": rng.random(33),
        "token_weight": rng.random((3, 4)),
        "reduction": reduction,
        **options,
    }
    exact, kind = dense(h, w, y, **given), np.float64 if dtype is np.float64 else np.float32
    plain = dense(h, w, y, dtype=kind, **given)
    value, gradients = lastlayer.linear_cross_entropy_value_and_grad(h, w, y, memory_budget=budget, **given)
    laws.assert_within(value, exact, plain, kind, "value", terms=33)
    assert value.dtype == kind
    np.testing.assert_array_equal(lastlayer.linear_cross_entropy(h, w, y, memory_budget=budget, **given), value)
    step = 2.0**-14
    for got, (name, array) in zip(gradients, {"h": h, "w": w, "linear_bias": b}.items(), strict=True):
        assert got.dtype == dtype
        for index in [tuple(rng.integers(0, n) for n in array.shape) for _ in range(3)]:
            sides = []
            for move in (step, -step):
                moved = array.astype(np.float64)
                moved[index] += move
                args = {**given, name: moved} if name == "linear_bias" else given
                sides.append(np.sum(dense(moved if name == "h" else h, moved if name == "w" else w, y, **args)))
            slope = (sides[0] - sides[1]) / (2 * step)
            allowed = 4 * laws.spacing(dtype) * max(np.abs(got.astype(float)).max(), abs(slope)) + 16 * step**2
            assert abs(float(got[index]) - slope) <= allowed, (name, index)


def test_ignored_rows_are_deleted_rows_nan_included(rng: np.random.Generator) -> None:
    h, w, y = rng.normal(size=(9, 4)), rng.normal(size=(6, 4)), rng.integers(0, 6, 9)
    y[::2] = -100
    h[::2] = np.nan
    value, gradients = lastlayer.linear_cross_entropy_value_and_grad(h, w, y)
    kept, expected = lastlayer.linear_cross_entropy_value_and_grad(h[1::2], w, y[1::2])
    assert value == kept
    np.testing.assert_array_equal(gradients.input[1::2], expected.input)
    np.testing.assert_array_equal(gradients.input[::2], 0)
    np.testing.assert_array_equal(gradients.linear_weight, expected.linear_weight)


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_learn_from_is_zero(rows: int) -> None:
    h, w = np.ones((rows, 4)), np.ones((5, 4))
    value, gradients = lastlayer.linear_cross_entropy_value_and_grad(h, w, np.full(rows, -100), linear_bias=np.ones(5))
    assert value == 0.0
    assert not any(gradient.any() for gradient in gradients)


def test_inputs_are_not_modified(rng: np.random.Generator) -> None:
    h, w, y = rng.normal(size=(9, 4)), rng.normal(size=(6, 4)), rng.integers(0, 6, 9)
    arrays = [h, w, y]
    for array in arrays:
        array.flags.writeable = False
    lastlayer.linear_cross_entropy_value_and_grad(h, w, y, softcap=3.0, scale=2.0)


@pytest.mark.skipif(
    _backends.choose(np.zeros((1, 1))) is _backends.reference, reason="the reference makes float64 copies of a tile"
)
def test_the_budget_is_kept(rng: np.random.Generator) -> None:
    rows, classes, features, budget = 3000, 5000, 16, 2**21
    h, w = (rng.normal(size=(n, features)).astype(np.float32) for n in (rows, classes))
    y = rng.integers(0, classes, rows)
    lastlayer.linear_cross_entropy_value_and_grad(h[:5], w, y[:5], memory_budget=budget)
    tracemalloc.start()
    lastlayer.linear_cross_entropy_value_and_grad(h, w, y, memory_budget=budget)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    gradients, per_row = 4 * features * (rows + classes), 8 * 20 * rows
    assert peak <= budget + gradients + per_row
    assert peak < 4 * rows * classes / 10


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target": [0, 1, 9, -1]}, IndexError, r"target\[2\] = 9 is outside \[0, 5\)"),
    ({"target": [0, 1, 2]}, ValueError, r"target has shape \(3,\), expected \(4,\) for class indices"),
    ({"target": [0.0, 1, 2, 3]}, ValueError, r"target has shape \(4,\), expected \(4, 5\) for class probabilities"),
    ({"target": [True] * 4}, TypeError, "target has dtype bool"),
    ({"target": ["a"] * 4}, TypeError, "target has dtype"),
    ({"input": np.ones((4, 3), bool)}, TypeError, "input has dtype bool"),
    ({"input": np.ones((4, 2))}, ValueError, r"shapes \(4, 2\) and \(5, 3\), expected \(..., D\) and \(V, D\)"),
    ({"linear_weight": np.ones((5, 3, 1))}, ValueError, "expected"),
    ({"linear_weight": np.ones((0, 3))}, ValueError, "at least one class"),
    ({"linear_weight": np.ones((5, 3), complex)}, TypeError, "complex128"),
    ({"linear_bias": np.ones(4)}, ValueError, r"linear_bias has shape \(4,\), expected \(5,\)"),
    ({"weight": [1, 1, 1, 1]}, ValueError, r"weight has shape \(4,\), expected \(5,\)"),
    ({"weight": [1, 1, np.nan, 1, 1]}, ValueError, r"weight\[2\] = nan must be a finite number >= 0"),
    ({"weight": [1, -1, 1, 1, 1]}, ValueError, r"weight\[1\] = -1"),
    ({"token_weight": [1, 1, 1, np.inf]}, ValueError, r"token_weight\[3\] = inf must be finite"),
    ({"token_weight": [1, 1]}, ValueError, "one factor per token"),
    ({"reduction": "avg"}, ValueError, "reduction = 'avg'"),
    ({"label_smoothing": 1.1}, ValueError, "label_smoothing = 1.1"),
    ({"softcap": -1.0}, ValueError, "softcap = -1.0"),
    ({"scale": np.nan}, ValueError, "scale = nan"),
    ({"memory_budget": 3}, ValueError, "memory_budget = 3 bytes is too small: at least"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD, ids=lambda x: x if isinstance(x, str) else None)
def test_bad_input_is_named(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    good = {"input": np.ones((4, 3)), "linear_weight": np.ones((5, 3)), "target": [0, 1, 2, 3]}
    lastlayer.linear_cross_entropy(**good)
    with pytest.raises(kind, match=message):
        lastlayer.linear_cross_entropy(**{**good, **change})
