"""The assertions of the test suite: laws that hold for any input. Test files choose the inputs.

Tolerances come from a budget, never from a hand: twice the error of the plain formula in the same type against float64,
plus one rounding of the result, plus the log2(V) roundings of a pairwise sum where V terms are added (the plain formula
may be lucky in a single row).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lastlayer import _algebra
from lastlayer._algebra import Coefficients, State, Terms
from lastlayer._backends import reference

Floats = np.ndarray[Any, Any]


def wide(array: Any) -> Floats:
    """Return any array, torch or NumPy, 16-bit or not, as NumPy float64."""
    if not isinstance(array, np.ndarray | np.generic | float | int | list):
        array = array.detach().cpu().double().numpy()
    return np.asarray(array).astype(np.float64)


def spacing(dtype: Any) -> float:
    """Return the relative spacing of a floating type, ml_dtypes' bfloat16 included."""
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[np.dtype(dtype).name]


def assert_within(
    got: Any, exact: Any, dense: Any, dtype: Any, what: str = "", terms: int = 1, size: Any = 0.0
) -> None:
    """Assert |got - exact| <= 2 |dense - exact| + 1 + log2(terms) roundings, worst of a row; NaN and inf must agree.

    ``size`` is what is rounded where the result is a small difference of larger numbers.
    """
    got, exact, dense = (np.atleast_1d(wide(array)) for array in (got, exact, dense))
    assert got.shape == exact.shape, f"{what}: shape {got.shape}, expected {exact.shape}"
    special = ~np.isfinite(exact)
    np.testing.assert_array_equal(got[special], exact[special], err_msg=what)
    assert np.isfinite(got[~special]).all(), f"{what}: not finite where the truth is"

    def worst(array: Floats) -> Floats:
        return np.atleast_1d(np.max(np.where(special, 0.0, np.abs(array)), axis=-1, initial=0.0))

    rounding = spacing(dtype) * (1 + np.log2(terms))
    with np.errstate(invalid="ignore"):
        error, allowed = (
            worst(got - exact),
            2 * worst(np.nan_to_num(dense - exact)) + rounding * np.maximum(worst(exact), size),
        )
    for row in np.flatnonzero(~(error <= allowed)):
        raise AssertionError(f"{what}: row {row}: error {error[row]:.3g} > {allowed[row]:.3g}")


def ulp_error(got: Any, exact: Any, dtype: Any) -> Floats:
    """Return |got - exact| in units in the last place of the exact value in dtype (subnormal ones included)."""
    info = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}
    mantissa, lowest = info[np.dtype(dtype).name]
    got, exact = wide(got), wide(exact)
    _, exponent = np.frexp(exact)
    unit = np.ldexp(1.0, np.maximum(exponent - 1, lowest) - mantissa)
    with np.errstate(invalid="ignore"):
        return np.where(got == exact, 0.0, np.abs(got - exact) / unit)


def dense_state(z: Floats, weight: Floats | None) -> State:
    """Return the state by the plain formulas in z's own precision (float32 for 16-bit types)."""
    z = z.astype(np.result_type(z.dtype if z.dtype.name != "bfloat16" else np.float32, np.float32))
    u = np.zeros(z.shape[1], z.dtype) if weight is None else weight.astype(z.dtype)
    with np.errstate(all="ignore"):
        m = z.max(-1, keepdims=True)
        top = np.arange(z.shape[1]) == z.argmax(-1)[:, None]
        w = np.exp(z - m)
        gap = np.where(w > 0, m - z, 0)
        spread = np.where(u != 0, u * (m - z), 0).sum(-1)
        rest = np.where(top, 0, w).sum(-1)
        return State(m[:, 0], rest, (gap * w).sum(-1), spread, u.sum() + 0 * rest)


def fold_is_exact(backend: Any, z: Floats, weight: Floats | None = None) -> None:
    """A backend's fold equals the specification in float64, field by field."""
    got = backend.fold(z, weight, True)
    with np.errstate(all="ignore"):
        exact, dense = reference.fold(z, weight, True), dense_state(z, weight)
    some = np.isfinite(wide(exact.max))  # what else a row of -inf or with +inf holds is nobody's business
    np.testing.assert_array_equal(wide(got.max), wide(exact.max))
    for name in ("rest", "moment", "spread", "mass"):
        rows = [wide(getattr(state, name))[some][:, None] for state in (got, exact, dense)]
        kind = np.float64 if z.dtype == np.float64 else np.float32
        assert_within(*rows, kind, f"{name} of {z.dtype} {z.shape}", terms=z.shape[1])


def dense_gradient(z: Floats, numbers: Coefficients, target: Floats, weight: Floats) -> Floats:
    """Return the gradient by the plain formulas in z's own precision."""
    z = z.astype(np.result_type(z.dtype if z.dtype.name != "bfloat16" else np.float32, np.float32))
    alpha, beta, gamma, delta = (number.astype(z.dtype)[:, None] for number in numbers)
    with np.errstate(all="ignore"):
        w = np.exp(z - z.max(-1, keepdims=True))
        p = w / w.sum(-1, keepdims=True)
        dz = np.where(p > 0, p * (alpha + beta * np.log(p)), 0) + delta * weight.astype(z.dtype)
    return dz + gamma * (np.arange(z.shape[1]) == target[:, None])


def gradient_is_exact(backend: Any, z: Floats, numbers: Coefficients, target: Floats, weight: Floats) -> None:
    """A backend's gradient, into a buffer of NaN and in place, equals the specification in float64."""
    state = reference.fold(z, weight)
    exact = reference.gradient(z, state, numbers, target, weight, out=np.full(z.shape, np.nan))
    dense = dense_gradient(z, numbers, target, weight)
    got = backend.gradient(z, state, numbers, target, weight, out=np.full_like(z, np.nan))
    what = f"gradient of {z.dtype} {z.shape}"
    size = np.max(np.abs(np.stack([*numbers[:3], numbers.delta * weight.max()])), axis=0)
    assert_within(got, exact, dense, z.dtype, what, z.shape[1] + 3, size)  # and alpha, gamma, delta u
    inside = z.copy()
    backend.gradient(inside, state, numbers, target, weight, out=inside)
    assert inside.tobytes() == got.tobytes(), f"{what}: in place differs"


def some_rows(terms: Terms, rows: Any) -> Terms:
    """Return the factors of some rows."""
    return Terms(*(factor[rows] if isinstance(factor, np.ndarray) else factor for factor in terms))


def composed_loss(
    z: Floats, terms: Terms, target: Any, weight: Any, scale: float, softcap: float | None
) -> tuple[Floats, Floats]:
    """Return the losses of rows and their gradient as the specification composes them, in float64."""
    z, weight = wide(z), None if weight is None else wide(weight)
    state = _algebra.fold(z, weight)
    found = _algebra.finish(state, None if target is None else z[np.arange(len(z)), target])
    numbers = _algebra.numbers_of(found, state.mass, terms, scale)
    return _algebra.loss(found, terms), _algebra.gradient(z, state, numbers, target, weight, 0, softcap)


def dense_loss(
    z: Floats, terms: Terms, target: Any, weight: Any, scale: float, softcap: float | None
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the same by the plain formulas in z's own precision, and the sizes of what is added up in them."""
    z = z.astype(np.float64 if z.dtype == np.float64 else np.float32)
    u = np.zeros_like(z[0]) if weight is None else weight.astype(z.dtype)
    nll, cross, square = (np.broadcast_to(z.dtype.type(0) if f is None else f, len(z)).astype(z.dtype) for f in terms)
    m = z.max(-1)
    w = np.exp(z - m[:, None])
    s = w.sum(-1)
    lse, spread = m + np.log(s), np.where(u != 0, u * (m[:, None] - z), 0).sum(-1)
    hit = np.zeros_like(z) if target is None else (np.arange(z.shape[1]) == target[:, None]).astype(z.dtype)
    parts = [nll * (lse - np.where(hit != 0, z, 0).sum(-1)), cross * (spread + u.sum(-1) * np.log(s)), square * lse**2]
    slopes = [nll, cross * u.sum(-1), 2 * square * lse]
    dz = (w / s[:, None]) * sum(slopes)[:, None] - nll[:, None] * hit - cross[:, None] * u
    cap = 1 if softcap is None else 1 - (z / z.dtype.type(softcap)) ** 2
    apart = np.abs(square) * (np.abs(m) + np.log(s))  # lse is their sum, and may be small
    loss_size = sum(np.abs(part) for part in parts) + apart * np.abs(lse)
    slope_size = sum(np.abs(slope) for slope in slopes) + apart + np.abs(cross) * u.max(initial=0)
    return sum(parts), scale * dz * cap, loss_size, np.abs(scale) * slope_size


def loss_is_exact(
    backend: Any,
    z: Floats,
    terms: Terms,
    target: Any = None,
    weight: Any = None,
    *,
    ignored: int = -1,
    scale: float = 1.0,
    softcap: float | None = None,
) -> None:
    """A backend's losses, their sum and their gradient are those of the rows that count; all others are 0."""
    live = np.ones(len(z), bool) if target is None else target != ignored
    chosen = None if target is None else target[live]
    arguments = (
        z[live], some_rows(terms, live), chosen, weight[live] if np.ndim(weight) == 2 else weight, scale, softcap,
    )  # fmt: skip
    exact, exact_dz = np.zeros(len(z)), np.zeros(z.shape)
    dense, dense_dz, size, slope = np.zeros(len(z)), np.zeros(z.shape), np.zeros(len(z)), np.zeros(len(z))
    with np.errstate(all="ignore"):
        exact[live], exact_dz[live] = composed_loss(*arguments)
        dense[live], dense_dz[live], size[live], slope[live] = dense_loss(*arguments)
    losses, dz = np.full(len(z), np.nan), np.full_like(z, np.nan)
    size, slope = np.nan_to_num(size, posinf=0), np.nan_to_num(slope, posinf=0)  # a row that is compared exactly
    options: dict[str, Any] = {"ignored": ignored, "scale": scale, "softcap": softcap}
    total = backend.loss(z, terms, target, weight, losses=losses, out=dz, **options)
    what, kind = f"{z.dtype} {z.shape} {terms}", np.float64 if z.dtype == np.float64 else np.float32
    roundings = 8 * z.shape[1]  # three more: the factor, the sum of three terms, the softcap's factor
    assert_within(losses[:, None], exact[:, None], dense[:, None], kind, f"loss of {what}", roundings, size)
    assert_within(dz, exact_dz, dense_dz, z.dtype, f"gradient of {what}", roundings, slope)
    sum_size = np.abs(losses).sum() * spacing(np.float64) * len(z)
    np.testing.assert_allclose(total, losses.sum(), rtol=0, atol=sum_size if np.isfinite(sum_size) else 0, err_msg=what)
    alone = backend.loss(z, terms, target, weight, **options)
    np.testing.assert_array_equal(alone, total, err_msg=what)
    for name, (other, out) in other_layouts(z).items():
        again = np.full(len(z), np.nan)
        np.testing.assert_array_equal(
            backend.loss(other, terms, target, weight, losses=again, out=out, **options),
            total,
            err_msg=f"{name}, {what}",
        )
        np.testing.assert_array_equal(again, losses, err_msg=f"{name}, {what}")
        np.testing.assert_array_equal(wide(out), wide(dz), err_msg=f"{name}, {what}")


def other_layouts(z: Floats) -> dict[str, tuple[Floats, Floats]]:
    """Return copies of z of other strides, each with where to write: itself, or memory of other strides still."""
    gaps = np.full((len(z), 2 * z.shape[1]), np.nan, z.dtype)
    gaps[:, ::2] = z
    beside, inside = np.asfortranarray(z), z.copy()
    return {
        "in place": (inside, inside),
        "every second class": (gaps[:, ::2], np.full_like(z, np.nan)),
        "every second class, in place": (gaps[:, ::2], gaps[:, ::2]),
        "transposed": (beside, np.full_like(beside, np.nan)),
        "to every second class": (z, np.full_like(gaps, np.nan)[:, ::2]),
    }


def rows_are_exact(backend: Any, name: str, z: Floats) -> None:
    """softmax and log_softmax, into a buffer of NaN, equal the specification in float64, entry by entry."""
    got = getattr(backend, name)(z, out=np.full_like(z, np.nan))
    exact = getattr(reference, name)(z, out=np.full(z.shape, np.nan))
    with np.errstate(all="ignore"):
        rounded = exact.astype(z.dtype).astype(np.float64)  # a result may lie outside the type
        size = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}[z.dtype.name]
        dense = dense_softmax(z.astype(np.float64 if z.dtype == np.float64 else np.float32), name)
        lost = np.abs(np.nan_to_num(dense - exact))
    budget = 2 * lost + (4 + np.log2(z.shape[1])) * spacing(z.dtype) * np.abs(np.nan_to_num(exact)) + size
    special = ~np.isfinite(rounded)
    np.testing.assert_array_equal(wide(got)[special], rounded[special])
    assert (np.abs(wide(got)[~special] - exact[~special]) <= budget[~special]).all(), f"{name} of {z.dtype} {z.shape}"


def dense_softmax(z: Floats, name: str) -> Floats:
    """Return softmax or log_softmax by the plain formula in z's precision."""
    with np.errstate(all="ignore"):
        x = z - z.max(-1, keepdims=True)
        s = np.exp(x).sum(-1, keepdims=True)
        return (np.exp(x) / s if name == "softmax" else x - np.log(s)).astype(np.float64)


def states_agree(a: State, b: State, terms: int) -> None:
    """Two states of the same classes agree to the roundings of ``terms`` additions of positive numbers."""
    np.testing.assert_array_equal(a.max, b.max)
    for name in ("rest", "moment", "spread", "mass"):
        x, y = getattr(a, name), getattr(b, name)
        np.testing.assert_allclose(x, y, rtol=(terms + 8) * 2.0**-52, atol=0, err_msg=name)


def merge_all(states: list[State]) -> State:
    """Merge from left to right."""
    total = states[0]
    for state in states[1:]:
        total = _algebra.merge(total, state)
    return total
