# mypy: ignore-errors
"""The gradient of a row in Triton: p (alpha + beta log p) + gamma [j = y] + delta u, as _algebra.gradient forms it.

What belongs to a row is formed in float64 by ``constants`` and rounded once; ``slopes`` is what is left to do per
logit, in the type of the fold. At a maximum with p > 1/2 the gradient is (slope + base) - q slope, in which slope +
base nearly cancels: it is formed per row in float64 or, with weights, which a class has of its own, from high and low
parts.
Sibling of fold.py.
"""

import triton
import triton.language as tl

from lastlayer._backends.triton.fold import FLOOR, exp_difference, is_finite, log1p


@triton.jit
def parts(x, T: tl.constexpr):
    """Return float64 numbers per row (R,) as a number of the type and what that lacks, (R, 1) each."""
    high = x.to(T)
    return high[:, None], (x - high.to(tl.float64)).to(T)[:, None]


@triton.jit
def constants(m, rest, alpha, beta, gamma, delta, T: tl.constexpr):
    """Return what ``slopes`` needs of each row, (R, 1) in the type T, and which rows are silent: all numbers are 0.

    A row that has no distribution gets a share of NaN, and no class of it counts as a confident maximum.
    """
    silent = (alpha == 0) & (beta == 0) & (gamma == 0) & (delta == 0)
    m, rest = tl.where(silent, 0.0, m), tl.where(silent, 0.0, rest)
    valid = is_finite(m) & is_finite(rest)
    share = tl.where(valid, 1 / (1 + rest), float("nan"))
    log_share = log1p(rest)
    slope = alpha - beta * log_share
    lost = rest * share * slope
    row = (
        m.to(T)[:, None],
        tl.where(valid & (rest < 1), m, float("nan")).to(T)[:, None],
        (alpha * share).to(T)[:, None],
        (beta * share).to(T)[:, None],
        log_share.to(T)[:, None],
        gamma.to(T)[:, None],
        parts(delta, T),
        parts(slope, T),
        parts(slope + gamma, T),
        lost.to(T)[:, None],
        (slope - lost).to(T)[:, None],
        ((slope + gamma) - lost).to(T)[:, None],
        silent[:, None],
    )
    return row, silent


@triton.jit
def slopes(
    z, hit, u, inverse_softcap, row, TARGET: tl.constexpr, BETA: tl.constexpr, WEIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr, DIGITS: tl.constexpr,
):  # fmt: skip
    """Return the gradient of a tile z (R, L), with ``hit`` at the targets, from the ``constants`` of its rows.

    Of a silent row, z is -inf. A class that is no target has the same gradient, to the bit, with TARGET and without.
    """
    m, peak, alpha, beta, log_share, gamma, delta, slope, target_slope, lost, at_peak, at_target, silent = row
    x, w = exp_difference(z, m, DIGITS)
    if BETA:
        if DIGITS == 0:
            x = tl.maximum(x, FLOOR, propagate_nan=tl.PropagateNan.ALL)
        alpha = tl.fma(beta, x - log_share, alpha)
    if WEIGHT:
        base = delta[0] * u
        high, low = slope
        if TARGET:
            base = tl.where(hit, tl.fma(delta[0], u, gamma), base)
            high, low = tl.where(hit, target_slope[0], high), tl.where(hit, target_slope[1], low)
        dz = tl.fma(w, alpha, base)
        confident = (tl.fma(delta[0], u, high) + tl.fma(delta[1], u, low)) - lost
    else:
        dz = w * alpha
        confident = at_peak
        if TARGET:
            dz = tl.where(hit, tl.fma(w, alpha, gamma), dz)
            confident = tl.where(hit, at_target, at_peak)
    # With rest < 1 there is one maximum.
    dz = tl.where(z == peak, confident, dz)
    if SOFTCAP:
        y = z * (tl.zeros([1, 1], tl.float64) + inverse_softcap).to(z.dtype)
        dz = tl.where(silent, 0.0, dz * tl.fma(y, 0 - y, 1.0))
    return dz
