# mypy: ignore-errors
"""The fold of a row in Triton: _algebra.fold with one exponential per logit, and the arithmetic that kernels share.

A program has R rows x L lanes. Class j of a row is in lane j mod L (shifted by the same number for all classes of a
row), and a lane takes its classes in their order, so what a lane holds does not depend on where the row lies. Lanes are
joined by ``total``, whose order does not matter. So strides, alignment and batch change no bit: the promise that this
file keeps. Its siblings: tiles.py reads and writes blocks of rows, rows.py has the kernels.

Letters: z logits, m maximum, w = exp(z - m), u class weights. What is per row has the shape (R,) and is float64.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(0.693147182464599609375)  # ln 2 rounded to float32, and what it lacks
LN2_LOW = tl.constexpr(-1.904654299957767878541824e-9)
INFINITY = tl.constexpr(float("inf"))
LOWEST = tl.constexpr(-3.4028234663852886e38)
LOWEST_DOUBLE = tl.constexpr(-1.7976931348623157e308)
FLOOR = tl.constexpr(-131.0)  # exp of this, and of what is below, is 0
FLOOR_DOUBLE = tl.constexpr(-1062.0)


@triton.jit
def difference(a, b):
    """Return a - b for a <= b, not below the floor; NaN stays."""
    floor: tl.constexpr = FLOOR_DOUBLE if a.dtype == tl.float64 else FLOOR
    return tl.maximum(a - b, floor, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def rounded_off(a, b):
    """Return the rounding error of a - b (Knuth's TwoSum), 0 below the floor."""
    floor: tl.constexpr = FLOOR_DOUBLE if a.dtype == tl.float64 else FLOOR
    x = a - b
    back = x - a
    return tl.where(x > floor, (a - (x - back)) - (b + back), 0.0)


@triton.jit
def exp_difference(a, b, DIGITS: tl.constexpr):
    """Return x = a - b for a <= b and exp(a - b): in float32 2^t, t = x log2 e, with what roundings lost put back.

    DIGITS: 2 puts back those of x and of t. 1, for 16-bit logits, that of t, which is the larger one. 0, for results of
    16 bits, nothing: they have none of these digits. Then x is not kept above the floor.
    """
    if a.dtype == tl.float64:
        x = difference(a, b)
        w = tl.exp(x)
        w = tl.fma(w, rounded_off(a, b), w)
    elif DIGITS == 2:
        x = difference(a, b)
        w = exp_of(x, rounded_off(a, b))
    elif DIGITS == 1:
        x = difference(a, b)
        w = exp_of(x, None)
    else:
        x = a - b
        w = tl.exp2(x * LOG2E)
    return x, w


@triton.jit
def exp_of(x, lost):
    """Return exp(x + lost), float32, FLOOR <= x <= 0: 2^t, t = x log2 e, with the rounding of t put back."""
    t = x * LOG2E
    w = tl.exp2(t)
    low = tl.fma(t, -LN2_LOW, tl.fma(t, -LN2_HIGH, x))
    if lost is not None:
        low += lost
    return tl.fma(w, low, w)


@triton.jit
def power(n, T: tl.constexpr):
    """Return 2^n for an integer n within the exponents of the type."""
    if tl.float64 == T:
        value = ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        value = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return value


@triton.jit
def total(x, INFINITE: tl.constexpr = False):
    """Return the sum over lanes of x (R, L), the same in whatever order: terms are added as integers.

    The largest term becomes less than 2^62 / L, so that of L terms none overflows and each keeps 62 - log2 L bits
    below the largest; float64 adds the next 46 bits. A sum of infinities is formed plainly where there may be any.
    """
    L: tl.constexpr = x.shape[1]
    largest = tl.max(tl.where(x == x, tl.abs(x), INFINITY), 1)
    if x.dtype == tl.float64:
        n = 61 + 1023 - (largest.to(tl.int64, bitcast=True) >> 52)
    else:
        n = 61 + 127 - (largest.to(tl.int32, bitcast=True) >> 23)
    half = n // 2
    scaled = x * power(half, x.dtype)[:, None] * (power(n - half, x.dtype) / L)[:, None]
    if x.dtype == tl.float64:
        whole = tl.floor(scaled)
        rest = tl.sum(((scaled - whole) * 2.0**46).to(tl.int64), 1).to(tl.float64) * 2.0**-46
        added = tl.sum(whole.to(tl.int64), 1).to(tl.float64) + rest
    else:
        added = tl.sum(scaled.to(tl.int64), 1).to(tl.float64)
    finite = added * L * power(-half, tl.float64) * power(half - n, tl.float64)
    plain = tl.sum(x, 1).to(tl.float64) if INFINITE else tl.zeros_like(finite) + float("nan")
    return tl.where(largest < INFINITY, finite, plain)


@triton.jit
def fold_tile(z, valid, u, MOMENT: tl.constexpr, WEIGHT: tl.constexpr, DIGITS: tl.constexpr):
    """Fold whole rows z (R, L), -inf where not valid; return max, rest, moment, spread and mass, (R,) in float64."""
    m = tl.max(z, 1)
    top = z == m[:, None]
    x, w = exp_difference(z, m[:, None], DIGITS)
    w = tl.where(top, 0.0, w)
    rest = total(w) + (tl.sum((top & valid).to(tl.int32), 1) - 1)
    moment = tl.zeros_like(rest)
    spread, mass = moment, moment
    if MOMENT:
        moment = -total(tl.where(top, 0.0, x * w))
    if WEIGHT:
        spread = total(tl.where(top | (u == 0), 0.0, u * (m[:, None] - z)), INFINITE=True)
        mass = total(u)
    return m.to(tl.float64), rest, moment, spread, mass


@triton.jit
def empty_lanes(R: tl.constexpr, L: tl.constexpr, T: tl.constexpr):
    """Return lanes that hold no class: 1 + rest = 0. Their maximum is finite, so that z - m is never inf - inf."""
    zero = tl.zeros([R, L], T)
    lowest: tl.constexpr = LOWEST_DOUBLE if tl.float64 == T else LOWEST
    return zero + lowest, zero - 1, zero, zero, zero


@triton.jit
def fold_lane(z, u, lanes, MOMENT: tl.constexpr, WEIGHT: tl.constexpr, DIGITS: tl.constexpr):
    """Merge one class into each lane, with one exponential; z = -inf (and u = 0) changes nothing.

    z > m:  rest = rest w + w, moment = w (moment + |x| (rest + 1))    else: rest = rest + w, moment = moment + |x| w

    A lane's moment and spread are kept with the sign of x = min(z, m) - max(z, m), so that nothing is negated. Sums of
    products are written as fma: what a compiler may contract, it might contract in one kernel and not in another.
    """
    m, rest, moment, spread, mass = lanes
    high = tl.maximum(m, z)
    above = z > m
    apart = tl.abs(z - m) * -1.0  # so the compiler sees a sign, which costs nothing, and no difference
    if DIGITS == 1 and z.dtype == tl.float32:
        x = tl.maximum(apart, FLOOR, propagate_nan=tl.PropagateNan.ALL)
        w = exp_of(x, None)
    else:
        x, w = exp_difference(tl.minimum(m, z, propagate_nan=tl.PropagateNan.ALL), high, DIGITS)
    decay = tl.where(above, w, 1.0)
    if MOMENT:
        moment = tl.fma(moment, decay, (x * w) * tl.where(above, rest + 1, 1.0))
    if WEIGHT:
        moved = tl.where(above, mass, u)
        spread = tl.where(moved != 0, tl.fma(moved, apart, spread), spread)
        mass += u
    return high, tl.fma(rest, decay, w), moment, spread, mass


@triton.jit
def join_lanes(lanes, MOMENT: tl.constexpr, WEIGHT: tl.constexpr):
    """Merge the lanes of each row: _algebra.merge of all of them at once. Returns what fold_tile returns."""
    m, lane_rest, lane_moment, lane_spread, lane_mass = lanes
    top = tl.max(m, 1)
    highest = m == top[:, None]
    x, w = exp_difference(m, top[:, None], 2)
    below = tl.where(highest, 0.0, (lane_rest + 1) * w)
    rest = total(tl.where(highest, lane_rest, below)) + (tl.sum(highest.to(tl.int32), 1) - 1)
    moment = tl.zeros_like(rest)
    spread, mass = moment, moment
    if MOMENT:
        moment = -total(tl.where(highest, lane_moment, tl.fma(lane_moment, w, x * below)))
    if WEIGHT:
        moved = tl.where(highest | (lane_mass == 0), 0.0, lane_mass * (m - top[:, None]))
        spread = -total(lane_spread + moved, INFINITE=True)
        mass = total(lane_mass)
    return top.to(tl.float64), rest, moment, spread, mass


@triton.jit
def log1p(r):
    """Return log(1 + r) of float64 r >= 0 to a few units in the last place: what 1 + r rounds away is put back."""
    u = 1.0 + r
    return tl.where(u == 1.0, r, tl.log(u) * r / tl.where(u == 1.0, 1.0, u - 1.0))


@triton.jit
def is_finite(x):
    """Tell where x is a number, and not infinite."""
    return tl.abs(x) < INFINITY
