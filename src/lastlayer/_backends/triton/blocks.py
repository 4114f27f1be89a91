"""The masses of blocks of BLOCK classes: one read of the logits, from which a whole draw without filters follows.

Law: a block's mass is sum exp((z - top) / T) to 2.0e-9 relative (float64 logits: to float64), and its bits depend on
the block's logits alone. Terms are added up as integers, in units of 2^-51 of the largest: in any order the same sum,
so neither the alignment of a row nor the shape of the launch shows.

Siblings: inverse.py and candidates.py, which draw from these sums. The specification is ``masses`` of _draws.py, the
native twin blocks.h. Letters as there: z logits, T temperature, N rows, V classes, B blocks.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lastlayer._backends.triton.fold import INFINITY, LOG2E, difference, exp_of
from lastlayer._backends.triton.uploads import beside
from lastlayer._draws import BLOCK

# 2^r = 1 + r Q(r) for |r| <= 1/2, highest coefficient first: by Remez exchange on the relative error, in 200 bits
# (mpmath), with the value 1 at 0 kept. One term more would leave an error of 5e-11, for a tenth more arithmetic.
Q = tuple(
    tl.constexpr(q)
    for q in (
        0.00015353351679681920, 0.0013398887290071399, 0.0096184374811061359,
        0.055503324404203302, 0.24022647911966553, 0.69314720286799072,
    )
)  # fmt: skip
Q5, Q4, Q3, Q2, Q1, Q0 = Q
ERROR = 2.0e-9  # relative, of a power and so of a block's mass

MAGIC = tl.constexpr(12582912.0)  # 1.5 2^23: a number added to it is rounded to an integer, found in its low bits
LOWEST = tl.constexpr(-56.0)  # 2^LOWEST is below half a unit
UNIT = tl.constexpr(2.0**-51)
LARGEST = tl.constexpr(1.7976931348623157e308)

FEW = 2048  # programs: with fewer blocks than that each has a program of its own
EACH = 4  # else so many blocks


@triton.jit
def wide(x: tl.constexpr):
    """Return a constant in float64: tl.fma takes others for float32."""
    return tl.full((), x, tl.float64)


@triton.jit
def widened(z):
    """Return logits in the type of statistics."""
    if z.dtype == tl.float64:
        return z
    else:  # noqa: RET505  (which of the two is compiled depends on the type)
        return z.to(tl.float32)


@triton.jit
def scale_of(temperature):
    """Return 1 / T, never infinite, so that 0 times it is 0; at T = 0, where the largest is taken, 1."""
    t = tl.where(temperature == 0, 1.0, temperature)
    return tl.minimum(1.0 / t, wide(LARGEST))


@triton.jit
def powers(z, m, scale):
    """Return 2^((z - m) scale), float64, of float32 logits z <= m; 0 below 2^LOWEST.

    The exponent is cut into n + r in float32, which need not be exact; r itself, |r| <= 1/2, is formed in float64.
    """
    t = tl.fma(z - m, tl.minimum(scale, 3.0e38).to(tl.float32), MAGIC)
    n = t - MAGIC
    r = tl.fma(z.to(tl.float64) - m.to(tl.float64), scale, -n.to(tl.float64))
    q = tl.fma(r, wide(Q5), wide(Q4))
    q = tl.fma(q, r, wide(Q3))
    q = tl.fma(q, r, wide(Q2))
    q = tl.fma(q, r, wide(Q1))
    q = tl.fma(q, r, wide(Q0))
    q = tl.fma(q, r, wide(1.0))
    # The low twelve bits of t are those of n: shifted, they add n to the exponent.
    w = q.to(tl.int64, bitcast=True) + (t.to(tl.int32, bitcast=True).to(tl.int64) << 52)
    return tl.where(t > MAGIC + LOWEST, w.to(tl.float64, bitcast=True), 0.0)


@triton.jit
def units(w):
    """Return the sum of w in [0, 1], a multiple of four of them, as an integer in units of 2^-51.

    2 + w has w in its low bits. Its high bits are 2^62, of which a multiple of four is 0 in 64 bits.
    """
    return tl.sum((w + 2.0).to(tl.int64, bitcast=True), 0)


@triton.jit
def units_below(w):
    """Return the sum of what w leave below a unit, in units of 2^-102."""
    below = (w - ((w + 2.0) - 2.0)) / UNIT + 0.5
    return units(below) - tl.full((), w.shape[0] * 2**50, tl.int64)


@triton.jit
def sums(z, m, scale):
    """Return the sum of exp((z - m) scale) over a tile z <= m: units, and of float64 logits what is below them."""
    if z.dtype == tl.float64:
        w = tl.where(z > -INFINITY, tl.exp((z - m) * scale), 0.0)
        return units(w), units_below(w)
    else:  # noqa: RET505
        return units(powers(z, m, tl.minimum(scale * LOG2E, wide(LARGEST)))), tl.full((), 0, tl.int64)


@triton.jit
def plain_sums(z, m):
    """Return the same at T = 1, to float32."""
    if z.dtype == tl.float64:
        return sums(z, m, wide(1.0))
    else:  # noqa: RET505
        return units(exp_of(difference(z, m), None).to(tl.float64)), tl.full((), 0, tl.int64)


@triton.jit
def mass_of(units, below, top, odd):
    """Return the mass of a block: NaN if there is one, infinite with +inf, 0 if there is nothing but -inf."""
    mass = units.to(tl.float64) * UNIT + below.to(tl.float64) * (UNIT * UNIT)
    mass = tl.where(top == INFINITY, INFINITY, tl.where(top == -INFINITY, 0.0, mass))
    return tl.where(odd > 0, float("nan"), mass)


@triton.jit
def masses_kernel(z_ptr, t_ptr, out_ptr, classes, blocks, origin, row_stride, class_stride, field,
                  BLOCK: tl.constexpr, GROUP: tl.constexpr, STEPS: tl.constexpr, PLAIN: tl.constexpr,
                  ADJACENT: tl.constexpr):  # fmt: skip
    """Write top and mass of STEPS blocks of a row, and with PLAIN the mass at T = 1 and how many are above -inf.

    A block is read in groups of 16 bytes from its first aligned class on; what lies before and after them, less than
    two groups, is a small tile of its own. Row 0 begins ``origin`` classes behind the address, which is aligned.
    """
    row = tl.program_id(0).to(tl.int64)
    scale = scale_of(tl.load(t_ptr + row))
    start = origin + row * row_stride
    if not ADJACENT:  # classes are then counted from the row's own first one on, wherever it is
        z_ptr += row * row_stride
        start = tl.zeros((), tl.int64)
    i, k = tl.arange(0, BLOCK), tl.arange(0, 4 * GROUP)
    first_block = tl.program_id(1).to(tl.int64) * STEPS
    last_block = tl.minimum(first_block + STEPS, blocks) - 1
    for step in range(STEPS):
        b = tl.minimum(first_block + step, last_block)  # what is beyond the row is the last block again
        begin = start + b * BLOCK
        end = begin + tl.minimum(classes - b * BLOCK, BLOCK)
        aligned = (begin + (GROUP - 1)) // GROUP * GROUP
        groups = tl.maximum(end - aligned, 0) // GROUP
        rest = aligned + groups * GROUP
        z = widened(tl.load(z_ptr + (aligned + i) * class_stride, mask=i // GROUP < groups, other=-INFINITY))
        # Lanes below 2 GROUP are before the groups, the others behind them.
        behind = k >= 2 * GROUP
        at = tl.where(behind, rest + k - 2 * GROUP, begin + k)
        stop = tl.where(behind, end, tl.minimum(aligned, end))
        few = widened(tl.load(z_ptr + at * class_stride, mask=at < stop, other=-INFINITY))
        top = tl.maximum(tl.max(z, 0), tl.max(few, 0))
        top = tl.where(top == top, top, -INFINITY)
        odd = tl.sum((z != z).to(tl.int32), 0) + tl.sum((few != few).to(tl.int32), 0)
        total, below = sums(z, top, scale)
        few_total, few_below = sums(few, top, scale)
        mass = mass_of(total + few_total, below + few_below, top, odd)
        to = out_ptr + row * blocks + b
        tl.store(to, top.to(tl.float64))
        tl.store(to + field, mass)
        if PLAIN:
            if scale != 1.0:
                total, below = plain_sums(z, top)
                few_total, few_below = plain_sums(few, top)
                mass = mass_of(total + few_total, below + few_below, top, odd)
            tl.store(to + 2 * field, mass)
            some = tl.sum((z > -INFINITY).to(tl.int32), 0) + tl.sum((few > -INFINITY).to(tl.int32), 0)
            tl.store(to + 3 * field, some.to(tl.float64))


def build(dtype: torch.dtype, programs: int, plain: bool, adjacent: bool) -> dict[str, Any]:
    """Return the constants of the kernel for this many blocks in all, and how many warps run it."""
    return {
        "BLOCK": BLOCK, "GROUP": 16 // dtype.itemsize, "STEPS": EACH if programs > FEW else 1, "PLAIN": plain,
        "ADJACENT": adjacent, "num_warps": dtype.itemsize // 2,
    }  # fmt: skip


def aligned(z: Tensor) -> tuple[Tensor, int]:
    """Return a tensor at a multiple of 16 bytes, and how many elements behind it z begins."""
    before = z.data_ptr() % 16 // z.element_size()
    if before == 0 or before > z.storage_offset():
        return z, 0
    return z.as_strided((1,), (1,), z.storage_offset() - before), before


def sum_blocks(z: Tensor, temperature: Tensor, plain: bool) -> Tensor:
    """Sum the blocks of each row at its temperature (N,): top and mass; with ``plain`` what a draw needs besides.

    float64 (2 or 4, N, B): the maximum, the mass, the mass at T = 1, how many logits are above -inf.
    """
    n, v = z.shape
    blocks = triton.cdiv(v, BLOCK)
    out = z.new_empty((4 if plain else 2, n, blocks), dtype=torch.float64)
    adjacent = z.stride(1) == 1
    at, origin = aligned(z) if adjacent else (z, 0)
    built = build(z.dtype, n * blocks, plain, adjacent)
    with torch.cuda.device_of(z):
        masses_kernel[(n, triton.cdiv(blocks, built["STEPS"]))](
            at, temperature, out, v, blocks, origin, *z.stride(), n * blocks, **built
        )
    return out


def masses(z: Tensor, temperature: Any) -> tuple[Tensor, Tensor]:
    """Return the maximum and the mass of each block of classes."""
    top, mass = sum_blocks(z, beside(z, temperature), plain=False)
    return top, mass
