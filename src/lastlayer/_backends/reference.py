"""The specification as a backend: _algebra in float64, rounded once at the end. Slow, exact, runs anywhere.

Sibling of cpu.py, which is tested against it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lastlayer import _algebra, _draws, _philox
from lastlayer._algebra import Array, Coefficients, State, Statistics, Terms
from lastlayer._draws import Drawn, Edits, Rules

QUIET = {"invalid": "ignore", "over": "ignore", "under": "ignore", "divide": "ignore"}


def _wide(array: Array | None) -> Any:
    if array is None:
        return None
    return array.astype(np.float64) if isinstance(array, np.ndarray) else array.double()


def _write(out: Array, value: Array) -> Array:
    out[...] = value.astype(out.dtype) if isinstance(out, np.ndarray) else value.to(out.dtype)
    return out


def reserve(out: Array) -> Array:
    """Return the array; there is nothing to prepare."""
    return out


def fold(z: Array, weight: Array | None = None, moment: bool = False) -> State:
    """Return the state of each row of z (N, V), in float64. ``moment`` is always there."""
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _algebra.fold(_wide(z), _wide(weight))


def statistics(
    z: Array, target: Array | None = None, weight: Array | None = None, entropy: bool = False, keep: bool = True
) -> tuple[Statistics, State]:
    """Fold and finish: the statistics asked for (else None), and the state, kept or not."""
    wide = _wide(z)
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        state = _algebra.fold(wide, _wide(weight))
        chosen = None if target is None else _pick(wide, target)
        found = _algebra.finish(state, chosen)
    return found._replace(
        logprob=None if target is None else found.logprob,
        entropy=found.entropy if entropy else None,
        cross=None if weight is None else found.cross,
    ), state


def _pick(z: Array, target: Array) -> Array:
    """Return z at the targets, NaN for one that is no class."""
    xp = _algebra.namespace(z)
    inside = (target >= 0) & (target < z.shape[1])
    return xp.where(inside, z[_algebra.classes(z.T), xp.where(inside, target, 0)], float("nan"))


def gradient(
    z: Array,
    state: State,
    numbers: Coefficients,
    target: Array | None = None,
    weight: Array | None = None,
    first_class: int = 0,
    softcap: float | None = None,
    *,
    out: Array,
) -> Array:
    """Write the gradient of the tile z into out, which may be z itself."""
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _write(out, _algebra.gradient(_wide(z), state, numbers, target, _wide(weight), first_class, softcap))


def loss(
    z: Array,
    terms: Terms,
    target: Array | None = None,
    weight: Array | None = None,
    *,
    ignored: int = -1,
    scale: Array | float = 1.0,
    softcap: float | None = None,
    losses: Array | None = None,
    out: Array | None = None,
    unscaled: bool = False,
) -> Array:
    """Return the sum of the rows' losses, with each in ``losses`` and the gradient, times scale, in ``out``.

    Where ``unscaled``, out holds the gradient times 1 already: for a scale of 1 there is nothing to do, and no total.
    """
    if unscaled and float(scale) == 1.0:
        return 0.0
    found, state = statistics(z, target, weight)
    xp = _algebra.namespace(z)
    live = xp.ones_like(state.max) if target is None else xp.where(target == ignored, 0.0, xp.ones_like(state.max))
    live_terms = Terms(*(None if factor is None else factor * live for factor in terms))
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        each = _algebra.loss(found, live_terms)
        if losses is not None:
            losses[...] = each
        if out is not None:
            numbers = _algebra.numbers_of(found, state.mass, live_terms, scale)
            gradient(z, state, numbers, target, weight, 0, softcap, out=out)
    return each.sum()


def times_(out: Array, factor: Array | float) -> Array:
    """Multiply an array in place by one number; by 1, not at all."""
    if float(factor) != 1.0:
        out *= factor
    return out


def check_targets(target: Array, classes: int, ignored: int) -> tuple[int, int]:
    """Return the first row whose target is neither a class nor ignored (-1: none), and how many are ignored."""
    skipped = target == ignored
    bad = ((target < 0) | (target >= classes)) & ~skipped
    return (int(_algebra.namespace(target).argmax(bad + 0)) if bool(bad.any()) else -1), int(skipped.sum())


def softmax(z: Array, *, out: Array) -> Array:
    """Write the softmax of each row into out."""
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _write(out, _algebra.softmax(_wide(z)))


def log_softmax(z: Array, *, out: Array) -> Array:
    """Write the log-softmax of each row into out."""
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _write(out, _algebra.log_softmax(_wide(z)))


uniforms = _philox.uniforms
uniforms_of_rows = _philox.uniforms_of_rows


def draw(
    z: Array, uniforms: Array, rules: Rules, order: tuple[str, ...], edits: Edits | None, replacement: bool
) -> Drawn:  # fmt: skip
    """Draw from each row; the numbers per row are NumPy's, the result is of the kind of z."""
    on_device = Rules(*(None if rule is None else _beside(z, rule) for rule in rules))
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _draws.draw(z, _beside(z, uniforms), on_device, order, edits, replacement)


def tempered(z: Array, rules: Rules, order: tuple[str, ...]) -> Array:
    """Return (z - max) / T of the classes kept, -inf of the others, float64."""
    on_device = Rules(*(None if rule is None else _beside(z, rule) for rule in rules))
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _draws.tempered(_wide(z), on_device, order)


def _beside(z: Array, numbers: Any) -> Array:
    """Return NumPy's numbers where z lives."""
    xp = _algebra.namespace(z)
    return numbers if xp is np else xp.as_tensor(numbers, device=z.device)


def multinomial(p: Array, uniforms: Array, replacement: bool) -> tuple[Array, Array]:
    """Draw from each row of weights: the classes, and the status of the rows."""
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _draws.draw_weights(p, _beside(p, uniforms), replacement)


def masses(z: Array, temperature: Array) -> tuple[Array, Array]:
    """Return the maximum and the mass of each block of classes."""
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _draws.masses(z, temperature)


def choose(top: Array, mass: Array, temperature: Array, uniforms: Array) -> tuple[Array, Array]:
    """Return the block of each draw, and the share of its mass that lies before it."""
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _draws.choose(top, mass, temperature, uniforms)


def inside(z: Array, temperature: Array, fraction: Array) -> Array:
    """Return the class within a block."""
    with np.errstate(**QUIET):  # type: ignore[arg-type]
        return _draws.inside(z, temperature, fraction)


def topk(z: Array, k: int) -> tuple[Array, Array]:
    """Return the k largest logits of each row, and their classes."""
    return _draws.topk(z, k)
