"""The inverse CDF in two steps: over the masses of blocks, then over the classes of one, in float64.

Law: a draw is the first class whose cumulative mass exceeds u times the total. A sum over many lanes adds up in a tree,
whose roundings can make a later sum the smaller one: so only a class that has a mass is taken, and with it the largest
sum of those before it. ``draw_all`` draws among all classes of a row: the sums of blocks.py, the two blocks that decide
(the one drawn from, and the one of the largest logit, whose rest needs digits), and a count of larger logits that looks
only where there are some. Nothing is read on the host.

Kernels take no hint on strides and addresses here: hints would change the order of sums. Siblings: blocks.py;
candidates.py, for truncated rows. The native twins are inverse.h and row_draw.h.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lastlayer._backends.triton.blocks import scale_of, widened
from lastlayer._backends.triton.fold import INFINITY, log1p
from lastlayer._backends.triton.uploads import beside
from lastlayer._draws import BLOCK, FINE, HAS_INFINITY, HAS_NAN, HAS_NOTHING, Drawn

FINE_, NAN_, INFINITE_, NOTHING_ = (tl.constexpr(code) for code in (FINE, HAS_NAN, HAS_INFINITY, HAS_NOTHING))

TILE = 8192  # logits that a program counts at a time, times the draws that it counts for
TOGETHER = 8  # draws
INSIDE = {"BLOCK": BLOCK, "num_warps": 8}  # constants and warps of the kernel that finds a class in a block


@triton.jit
def first_above(sums, weight, threshold):
    """Return the first with a weight whose sum is above the threshold; where rounding hides it, the last with one."""
    j = tl.arange(0, sums.shape[0])
    found = tl.min(tl.where((sums > threshold) & (weight > 0), j, sums.shape[0]), 0)
    return tl.minimum(found, tl.max(tl.where(weight > 0, j, 0), 0))


@triton.jit
def block_at(top, mass, scale, uniform):
    """Return the block of a draw, and the share of its mass that lies before it."""
    j = tl.arange(0, top.shape[0])
    weight = tl.where(mass > 0, tl.exp((top - tl.max(top, 0)) * scale) * mass, 0.0)
    sums = tl.cumsum(weight, 0)
    threshold = uniform * tl.max(tl.where(weight > 0, sums, 0.0), 0)
    b = first_above(sums, weight, threshold)
    before = tl.max(tl.where((j < b) & (weight > 0), sums, 0.0), 0)
    return b, (threshold - before) / tl.sum(tl.where(j == b, weight, 0.0), 0)


@triton.jit
def class_at(z, scale, fraction):
    """Return the class of a block of logits z where this share of the mass lies before it."""
    weight = tl.where(z > -INFINITY, tl.exp((z - tl.max(z, 0)) * scale), 0.0)
    sums = tl.cumsum(weight, 0)
    return first_above(sums, weight, fraction * tl.max(tl.where(weight > 0, sums, 0.0), 0))


@triton.jit
def load_block(z_ptr, b, classes, class_stride, BLOCK: tl.constexpr):
    """Return a block of a row in float64, -inf behind its end."""
    j = b.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return tl.load(z_ptr + j * class_stride, mask=j < classes, other=-INFINITY).to(tl.float64)


@triton.jit
def log_rest(z, place, top, mass, where, highest, scale):
    """Return log of the mass of a row relative to its largest logit, which is in this place of block z, number where.

    It is kept out of the sum, so that the rest has all its digits.
    """
    own = tl.where((z > -INFINITY) & (tl.arange(0, z.shape[0]) != place), tl.exp((z - highest) * scale), 0.0)
    some = (tl.arange(0, top.shape[0]) != where) & (mass > 0)
    others = tl.where(some, tl.exp((top - highest) * scale) * mass, 0.0)
    return log1p(tl.sum(own, 0) + tl.sum(others, 0))


@triton.jit
def first_largest(x, highest):
    """Return the place of the first that has the largest value; 0 if NaN has hidden it."""
    j = tl.arange(0, x.shape[0])
    first = tl.min(tl.where(x == highest, j, x.shape[0]), 0)
    return tl.where(first < x.shape[0], first, 0)


@triton.jit
def status_of(top, mass, highest):
    """Return whether a row has a distribution, or why not."""
    odd = tl.max((mass != mass).to(tl.int32), 0) > 0
    status = tl.where(highest == INFINITY, INFINITE_, tl.where(highest == -INFINITY, NOTHING_, FINE_))
    return tl.where(odd, NAN_, status)


@triton.jit
def model_of(z_ptr, sums_ptr, row, t, classes, blocks, class_stride, field, BLOCK: tl.constexpr, ALL: tl.constexpr):
    """Return what a row's sums, and the block of its largest logit, say of it.

    The blocks' tops and masses; the largest logit, its block and place there; the status; log of the mass relative to
    the largest, at T = 1 and at T.
    """
    j = tl.arange(0, ALL)
    sums_ptr += row * blocks + j
    top = tl.load(sums_ptr, mask=j < blocks, other=-INFINITY)
    mass = tl.load(sums_ptr + field, mask=j < blocks, other=0.0)
    plain = tl.load(sums_ptr + 2 * field, mask=j < blocks, other=0.0)
    highest = tl.max(top, 0)
    where = first_largest(top, highest)
    z = load_block(z_ptr, where, classes, class_stride, BLOCK)
    place = first_largest(z, highest)
    rest = log_rest(z, place, top, plain, where, highest, 1.0)
    rest_tempered = log_rest(z, place, top, mass, where, highest, scale_of(t))
    return top, mass, highest, where, place, status_of(top, mass, highest), rest, rest_tempered


@triton.jit(do_not_specialize=["top_ptr", "mass_ptr", "t_ptr", "u_ptr", "block_ptr", "share_ptr", "blocks", "samples"])
def choose_kernel(top_ptr, mass_ptr, t_ptr, u_ptr, block_ptr, share_ptr, blocks, samples, ALL: tl.constexpr):
    """Write the block and the share of one draw."""
    at = tl.program_id(0).to(tl.int64)
    row = at // samples
    j = tl.arange(0, ALL)
    top = tl.load(top_ptr + row * blocks + j, mask=j < blocks, other=-INFINITY)
    mass = tl.load(mass_ptr + row * blocks + j, mask=j < blocks, other=0.0)
    b, share = block_at(top, mass, scale_of(tl.load(t_ptr + row)), tl.load(u_ptr + at))
    tl.store(block_ptr + at, b.to(tl.int64))
    tl.store(share_ptr + at, share)


@triton.jit(do_not_specialize=["z_ptr", "t_ptr", "share_ptr", "index_ptr", "classes", "row_stride", "class_stride"])
def inside_kernel(z_ptr, t_ptr, share_ptr, index_ptr, classes, row_stride, class_stride, BLOCK: tl.constexpr):
    """Write the class of one draw within its block."""
    row = tl.program_id(0).to(tl.int64)
    z = load_block(z_ptr + row * row_stride, tl.zeros((), tl.int64), classes, class_stride, BLOCK)
    place = class_at(z, scale_of(tl.load(t_ptr + row)), tl.load(share_ptr + row))
    tl.store(index_ptr + row, place.to(tl.int64))


@triton.jit(
    do_not_specialize=[
        "z_ptr", "sums_ptr", "t_ptr", "u_ptr", "whole_ptr", "real_ptr", "rows", "classes", "blocks", "samples",
        "row_stride", "class_stride", "field",
    ]
)  # fmt: skip
def draw_kernel(z_ptr, sums_ptr, t_ptr, u_ptr, whole_ptr, real_ptr, rows, classes, blocks, samples, row_stride,
                class_stride, field, BLOCK: tl.constexpr, ALL: tl.constexpr):  # fmt: skip
    """Write one draw among all classes of a row but for its rank; the program of the first writes what is the row's."""
    at, size = tl.program_id(0).to(tl.int64), rows.to(tl.int64) * samples
    row = at // samples
    z_ptr += row * row_stride
    t = tl.load(t_ptr + row)
    scale, greedy = scale_of(t), t == 0
    top, mass, highest, where, place, status, rest, rest_tempered = model_of(
        z_ptr, sums_ptr, row, t, classes, blocks, class_stride, field, BLOCK, ALL
    )
    b, share = block_at(top, mass, scale, tl.load(u_ptr + at))
    z = load_block(z_ptr, b, classes, class_stride, BLOCK)
    index = tl.where(greedy, where, b).to(tl.int64) * BLOCK + tl.where(greedy, place, class_at(z, scale, share))
    z_y = tl.load(z_ptr + index * class_stride).to(tl.float64)
    tl.store(whole_ptr + at, index)
    tl.store(real_ptr + at, -((highest - z_y) + rest) + 0.0)
    tl.store(real_ptr + size + at, tl.where(greedy, 0.0, -((highest - z_y) * scale + rest_tempered)) + 0.0)
    if at == row * samples:
        j = tl.arange(0, ALL)
        kept = tl.sum(tl.load(sums_ptr + 3 * field + row * blocks + j, mask=j < blocks, other=0.0), 0)
        tl.store(whole_ptr + 2 * size + row, tl.where(greedy, 1.0, kept).to(tl.int64))
        tl.store(whole_ptr + 2 * size + rows + row, status.to(tl.int64))
        tl.store(real_ptr + 2 * size + row, tl.where(greedy & (classes > 1), tl.exp(-rest), 1.0))
        tl.store(real_ptr + 2 * size + rows + row, highest + rest)


@triton.jit
def rank_kernel(z_ptr, top_ptr, index_ptr, rank_ptr, classes, blocks, samples, row_stride, class_stride,
                BLOCK: tl.constexpr, DRAWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Write 1 + the number of logits above those drawn, DRAWS of a row at a time; blocks without any are not read."""
    groups = (samples + DRAWS - 1) // DRAWS
    row = tl.program_id(0).to(tl.int64) // groups
    s = tl.program_id(0) % groups * DRAWS + tl.arange(0, DRAWS)
    index = tl.load(index_ptr + row * samples + s, mask=s < samples, other=0)
    z_ptr += row * row_stride
    z_y = widened(tl.load(z_ptr + index * class_stride))
    z_y = tl.where(s < samples, z_y, INFINITY)
    level = tl.min(z_y, 0)
    above = tl.zeros((DRAWS, WIDTH), tl.int32)
    step = tl.arange(0, WIDTH // BLOCK)
    j = tl.arange(0, WIDTH)
    for first in range(0, blocks, WIDTH // BLOCK):
        top = tl.load(top_ptr + row * blocks + first + step, mask=first + step < blocks, other=-INFINITY)
        if tl.max(top, 0) > level:
            at = tl.zeros((), tl.int64) + first
            at = at * BLOCK + j
            z = widened(tl.load(z_ptr + at * class_stride, mask=at < classes, other=-INFINITY))
            above += (z[None, :] > z_y[:, None]).to(tl.int32)
    tl.store(rank_ptr + row * samples + s, 1 + tl.sum(above, 1).to(tl.int64), mask=s < samples)


def choose_build(blocks: int) -> dict[str, Any]:
    """Return the constants of the choosing kernel for rows of so many blocks, and how many warps hold their sums."""
    return {"ALL": triton.next_power_of_2(blocks), "num_warps": 4 if blocks <= 4096 else 16}


def draw_build(blocks: int) -> dict[str, Any]:
    """Return the constants of the drawing kernel for rows of so many blocks, and its warps."""
    return {"BLOCK": BLOCK, **choose_build(blocks)}


def rank_build(samples: int) -> dict[str, Any]:
    """Return the constants of the counting kernel for this many draws per row, and its warps."""
    draws = min(triton.next_power_of_2(samples), TOGETHER)
    return {"BLOCK": BLOCK, "DRAWS": draws, "WIDTH": TILE // draws, "num_warps": 16}


def choose(top: Tensor, mass: Tensor, temperature: Any, uniforms: Any) -> tuple[Tensor, Tensor]:
    """Return the block of each draw, and the share of its mass that lies before it."""
    top, mass, t, u = (beside(top, each) for each in (top, mass, temperature, uniforms))
    (n, blocks), samples = top.shape, u.shape[1]
    chosen, share = u.new_empty(u.shape, dtype=torch.int64), torch.empty_like(u)
    with torch.cuda.device_of(top):
        choose_kernel[(n * samples,)](
            top, mass, t, u, chosen, share, blocks, samples,
            **choose_build(blocks),
        )  # fmt: skip
    return chosen, share


def inside(z: Tensor, temperature: Any, fraction: Any) -> Tensor:
    """Return the class within a block."""
    t, share = (beside(z, each) for each in (temperature, fraction))
    index = z.new_empty(len(z), dtype=torch.int64)
    with torch.cuda.device_of(z):
        inside_kernel[(len(z),)](z, t, share, index, z.shape[1], *z.stride(), **INSIDE)
    return index


def draw_all(z: Tensor, sums: Tensor, temperature: Tensor, uniforms: Tensor) -> Drawn:
    """Draw among all classes of each row, from the sums of its blocks."""
    (n, v), samples, blocks = z.shape, uniforms.shape[1], sums.shape[2]
    whole = z.new_empty(2 * n * (samples + 1), dtype=torch.int64)
    real = z.new_empty(2 * n * (samples + 1), dtype=torch.float64)
    with torch.cuda.device_of(z):
        draw_kernel[(n * samples,)](
            z, sums, temperature, uniforms, whole, real, n, v, blocks, samples, *z.stride(), n * blocks,
            **draw_build(blocks),
        )  # fmt: skip
    drawn = parted(whole, real, n, samples)
    count_above(z, sums[0], drawn.index, drawn.rank)
    return drawn


def parted(whole: Tensor, real: Tensor, n: int, samples: int) -> Drawn:
    """Return what kernels wrote to two buffers: of each draw two fields, of each row two."""
    size = n * samples
    index, rank, kept, status = whole.split([size, size, n, n])
    logprob, sampled, mass, logsumexp = real.split([size, size, n, n])
    index, logprob, sampled, rank = (each.view(n, samples) for each in (index, logprob, sampled, rank))
    return Drawn(index, logprob, sampled, rank, kept, mass, logsumexp, status)


def count_above(z: Tensor, top: Tensor, index: Tensor, rank: Tensor) -> None:
    """Write the ranks of draws."""
    n, samples = index.shape
    built = rank_build(samples)
    with torch.cuda.device_of(z):
        rank_kernel[(n * triton.cdiv(samples, built["DRAWS"]),)](
            z, top, index, rank, z.shape[1], top.shape[1], samples, *z.stride(), **built
        )
