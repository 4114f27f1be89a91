"""The largest logits of rows, and draws where truncation keeps no others.

Law: of equal logits the lower class comes first. torch.topk finds the k-th largest logit, which ties cannot change;
``collect`` then takes all above it and as many that equal it as there is room for, in the order of the classes.

What top_k, top_p and min_p keep is a beginning of the logits in descending order: a number. ``shorten_kernel`` finds it
among the LIMIT largest logits and lists the classes kept; ``pick_kernel`` draws from the list. The masses of the others
are known only as a sum; ``sure`` says of which rows that was enough (``certificate`` of _tile_draws.py says why).
Siblings: blocks.py, inverse.py; the specification is ``truncate`` of _draws.py, the native twin shortlist.h.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from lastlayer._backends.triton.blocks import ERROR, scale_of, wide
from lastlayer._backends.triton.fold import INFINITY, log1p
from lastlayer._backends.triton.inverse import FINE_, first_above, model_of, parted
from lastlayer._draws import BLOCK, NEUTRAL, Drawn, Rules

LIMIT = 1024  # candidates of a row; where truncation keeps more, the specification draws
WIDTH = 4096  # logits that are looked through at a time
TEMPERATURE, TOP_K, TOP_P, MIN_P = (tl.constexpr(code) for code in (1, 2, 3, 4))
COLLECT = {"WIDTH": WIDTH, "num_warps": 16}  # constants and warps of the kernel that collects
PICK = {"LIMIT": LIMIT, "num_warps": 4}  # constants and warps of the kernel that draws from a list
CODES = {"temperature": 1, "top_k": 2, "top_p": 3, "min_p": 4}
PREFIXES = ("top_k", "top_p", "min_p")

# How much a total may be off, relative: a boundary of top_p nearer than that is in doubt.
EXACT = tl.constexpr(2 * ERROR)
SINGLE = tl.constexpr(2.0**-20)  # of float32 terms: at T = 1, where T is another


@triton.jit
def collect(z_ptr, classes, class_stride, cut, ties, index_ptr, value_ptr, WIDTH: tl.constexpr):
    """Write the classes with logits above a cut, and the first ``ties`` that equal it, in their order."""
    j = tl.arange(0, WIDTH)
    count = tl.zeros((), tl.int32)
    equal = tl.zeros((), tl.int32)
    for first in range(0, classes, WIDTH):
        at = tl.zeros((), tl.int64) + first + j
        z = tl.load(z_ptr + at * class_stride, mask=at < classes, other=-INFINITY).to(tl.float64)
        if tl.max(z, 0) >= cut:
            same = ((z == cut) & (at < classes)).to(tl.int32)
            taken = (z > cut) | ((same > 0) & (equal + tl.cumsum(same, 0) <= ties))
            to = count + tl.cumsum(taken.to(tl.int32), 0) - 1
            tl.store(index_ptr + to, at, mask=taken)
            tl.store(value_ptr + to, z, mask=taken)
            count += tl.sum(taken.to(tl.int32), 0)
            equal += tl.sum(same, 0)


@triton.jit
def collect_kernel(z_ptr, cut_ptr, above_ptr, index_ptr, value_ptr, classes, k, row_stride, class_stride,
                   WIDTH: tl.constexpr):  # fmt: skip
    """List the k largest logits of a row in the order of the classes; the k-th and how many are above it are known."""
    row = tl.program_id(0).to(tl.int64)
    cut, ties = tl.load(cut_ptr + row), k - tl.load(above_ptr + row)
    collect(z_ptr + row * row_stride, classes, class_stride, cut, ties, index_ptr + row * k, value_ptr + row * k, WIDTH)


@triton.jit
def filtered(CODE: tl.constexpr, limit, size, weight, total, beyond, margin, kept, uncut, sure, known, lost):
    """Return what one filter makes of the state: ``kept``, ``uncut``, and what is certain of the row.

    ``uncut``: nothing was cut off yet, so logits that are not here count. ``sure``: a filter has cut among these,
    the others are gone. ``known``: the total is that of all logits. ``lost``: what was kept is in doubt.
    """
    i = tl.arange(0, weight.shape[0])
    before, doubtful = kept, lost & ~lost
    if CODE == TOP_K:
        used = limit < INFINITY
        cuts = limit <= size
        kept = tl.minimum(kept, tl.minimum(limit, 1.0e9).to(tl.int32))
        uncut = uncut & ~cuts
    elif CODE == TOP_P:
        used = limit != 1.0
        left = tl.where(i < kept, weight, 0.0)
        running = tl.cumsum(left, 0)
        target = limit * (tl.sum(left, 0) + tl.where(uncut, beyond, 0.0))
        reached = tl.sum(((i < kept) & (running < target)).to(tl.int32), 0)
        most = tl.minimum(tl.minimum(reached + 1, kept), tl.sum((left > 0).to(tl.int32), 0))
        kept = tl.where(used, most, kept)
        goal = limit * total
        near = tl.max(((i < size) & (tl.abs(running - goal) <= margin * goal)).to(tl.int32), 0) > 0
        doubtful = ~known | near
        cuts = tl.max(((i < size - 1) & (running >= goal)).to(tl.int32), 0) > 0
    else:
        used = limit != 0.0
        cuts = tl.sum(tl.where(i == size - 1, weight, 0.0), 0) < limit
        kept = tl.where(used, tl.sum(((i < kept) & (weight >= limit)).to(tl.int32), 0), kept)
    uncut = uncut & (kept == before)
    active = used & ~sure
    lost = lost | (active & doubtful)
    return kept, uncut, sure | (active & cuts & ~lost), known & ~active, lost


@triton.jit(
    do_not_specialize=[
        "z_ptr", "sums_ptr", "value_ptr", "rules_ptr", "index_ptr", "list_ptr", "found_ptr", "whole_ptr", "real_ptr",
        "rows", "classes", "blocks", "samples", "size", "row_stride", "class_stride", "field",
    ]
)  # fmt: skip
def shorten_kernel(z_ptr, sums_ptr, value_ptr, rules_ptr, index_ptr, list_ptr, found_ptr, whole_ptr, real_ptr, rows,
                   classes, blocks, samples, size, row_stride, class_stride, field, BLOCK: tl.constexpr,
                   ALL: tl.constexpr, LIMIT: tl.constexpr, WIDTH: tl.constexpr, ORDER: tl.constexpr):  # fmt: skip
    """List what the filters keep of a row, of which the ``size`` largest logits are known, largest first.

    Between filters, ``kept`` says how many are left, ``beyond`` the mass of logits that are not here and were not cut
    off. ORDER has the codes of the filters in use, the first in the lowest of its digits, which are octal.
    """
    row = tl.program_id(0).to(tl.int64)
    rules_ptr += row * 4
    z_ptr += row * row_stride
    t = tl.load(rules_ptr)
    scale, greedy = scale_of(t), t == 0
    _, _, highest, _, _, status, rest, rest_tempered = model_of(
        z_ptr, sums_ptr, row, t, classes, blocks, class_stride, field, BLOCK, ALL
    )

    i = tl.arange(0, LIMIT)
    v = tl.load(value_ptr + row * size + i, mask=i < size, other=-INFINITY).to(tl.float64)
    gap = tl.where(v > -INFINITY, highest - v, INFINITY)
    last = tl.sum(tl.where(i == size - 1, tl.where(v > -INFINITY, 1, 0), 0), 0)  # whether there may be others
    complete = (size >= classes) | (last == 0)
    kept = tl.sum((v > -INFINITY).to(tl.int32), 0)
    sure = complete | greedy
    uncut = kept >= 0
    known, lost = uncut, ~uncut
    weight = tl.exp(-gap)
    total = tl.exp(rest)
    beyond = tl.where(complete, 0.0, tl.maximum(total - tl.sum(weight, 0), 0.0))
    margin = tl.where(scale == 1.0, wide(EXACT), wide(SINGLE))
    for step in tl.static_range(4):
        if (ORDER >> (3 * step)) & 7 == TEMPERATURE:
            weight = tl.exp(-gap * scale)
            total = tl.exp(rest_tempered)
            beyond = tl.where(complete, 0.0, tl.maximum(total - tl.sum(weight, 0), 0.0))
            margin = wide(EXACT)
        elif (ORDER >> (3 * step)) & 7 > 0:
            limit = tl.load(rules_ptr + ((ORDER >> (3 * step)) & 7) - 1)
            kept, uncut, sure, known, lost = filtered(
                (ORDER >> (3 * step)) & 7, limit, size, weight, total, beyond, margin, kept, uncut, sure, known, lost
            )
    kept = tl.where(greedy, 1, kept)
    weight = tl.where((i > 0) & (i < kept), tl.exp(-gap * scale), 0.0)
    share = tl.sum(tl.where(i < kept, tl.exp(-(gap + rest)), 0.0), 0)
    tl.store(found_ptr + row * 4, highest)
    tl.store(found_ptr + row * 4 + 1, rest)
    tl.store(found_ptr + row * 4 + 2, log1p(tl.sum(weight, 0)))
    tl.store(found_ptr + row * 4 + 3, tl.where(sure | (status != FINE_), 1.0, 0.0))
    numbers = 2 * rows.to(tl.int64) * samples + row
    tl.store(whole_ptr + numbers, kept.to(tl.int64))
    tl.store(whole_ptr + numbers + rows, status.to(tl.int64))
    tl.store(real_ptr + numbers, tl.where(kept == classes, 1.0, share))
    tl.store(real_ptr + numbers + rows, highest + rest)

    cut = tl.sum(tl.where(i == kept - 1, tl.where(v > -INFINITY, v, 0.0), 0.0), 0)
    cut = tl.where(status == FINE_, cut, INFINITY)
    ties = tl.where(greedy, 1, kept - tl.sum((v > cut).to(tl.int32), 0))
    ties = tl.where(status == FINE_, ties, 0)
    collect(z_ptr, classes, class_stride, cut, ties, index_ptr + row * LIMIT, list_ptr + row * LIMIT, WIDTH)


@triton.jit(
    do_not_specialize=[
        "index_ptr", "list_ptr", "found_ptr", "rules_ptr", "u_ptr", "whole_ptr", "real_ptr", "rows", "samples",
    ]
)  # fmt: skip
def pick_kernel(index_ptr, list_ptr, found_ptr, rules_ptr, u_ptr, whole_ptr, real_ptr, rows, samples,
                LIMIT: tl.constexpr):  # fmt: skip
    """Write one draw from the classes of a list, which are in order."""
    at, size = tl.program_id(0).to(tl.int64), rows.to(tl.int64) * samples
    row = at // samples
    i = tl.arange(0, LIMIT)
    kept = tl.load(whole_ptr + 2 * size + row)
    z = tl.load(list_ptr + row * LIMIT + i, mask=i < kept, other=-INFINITY)
    scale = scale_of(tl.load(rules_ptr + row * 4))
    highest, rest = tl.load(found_ptr + row * 4), tl.load(found_ptr + row * 4 + 1)
    weight = tl.where(i < kept, tl.exp((z - highest) * scale), 0.0)
    sums = tl.cumsum(weight, 0)
    total = tl.max(tl.where(weight > 0, sums, 0.0), 0)
    drawn = first_above(sums, weight, tl.load(u_ptr + at) * total)
    z_y = tl.sum(tl.where(i == drawn, z, 0.0), 0)
    tl.store(whole_ptr + at, tl.load(index_ptr + row * LIMIT + drawn))
    tl.store(whole_ptr + size + at, 1 + tl.sum((z > z_y).to(tl.int64), 0))
    tl.store(real_ptr + at, -((highest - z_y) + rest) + 0.0)
    tl.store(real_ptr + size + at, -((highest - z_y) * scale + tl.load(found_ptr + row * 4 + 2)) + 0.0)


class Cut(NamedTuple):
    """How many of the largest logits truncation needs, and whether it is known beforehand that it needs no others."""

    size: int
    enough: bool
    narrow: NDArray[np.bool_]  # the rows that are truncated, or take the largest logit


def plan(rules: Rules, order: tuple[str, ...], classes: int) -> Cut:
    """Return what these rules need: as many as top_k, where nothing that adds up masses comes before it."""
    greedy = rules.temperature == 0
    used = {name: rule != getattr(NEUTRAL, name) for name in PREFIXES if (rule := getattr(rules, name)) is not None}
    narrow = np.logical_or.reduce([greedy, *used.values()])
    k = np.full(len(greedy), math.inf) if rules.top_k is None else rules.top_k
    if "top_p" in used and order.index("top_p") < order.index("top_k"):
        k = np.where(used["top_p"], math.inf, k)
    most = float(np.where(greedy, 1, k)[narrow].max(initial=1))
    size = int(min(most, LIMIT, classes))
    return Cut(size, size >= min(most, classes), narrow)


def code_of(rules: Rules, order: tuple[str, ...]) -> int:
    """Return the filters in use and the temperature as octal digits, the first the lowest."""
    used = [name for name in order if name in CODES and getattr(rules, name) is not None]
    return sum(CODES[name] << 3 * place for place, name in enumerate(used))


def draw_largest(
    z: Tensor, sums: Tensor, numbers: Tensor, uniforms: Tensor, order: int, size: int
) -> tuple[Drawn, Tensor]:
    """Draw from truncated rows, by their largest logits; tell of which rows these are the draws of all classes.

    ``numbers`` (N, 4) are T, top_k, top_p and min_p of each row.
    """
    (n, v), samples, blocks = z.shape, uniforms.shape[1], sums.shape[2]
    value = torch.topk(z, size).values
    whole = z.new_empty(2 * n * (samples + 1), dtype=torch.int64)
    real, found = (z.new_empty(each, dtype=torch.float64) for each in (2 * n * (samples + 1), (n, 4)))
    index, listed = z.new_zeros((n, LIMIT), dtype=torch.int64), z.new_zeros((n, LIMIT), dtype=torch.float64)
    with torch.cuda.device_of(z):
        shorten_kernel[(n,)](
            z, sums, value, numbers, index, listed, found, whole, real, n, v, blocks, samples, size, *z.stride(),
            n * blocks, ORDER=order, **shorten_build(blocks),
        )  # fmt: skip
        pick_kernel[(n * samples,)](index, listed, found, numbers, uniforms, whole, real, n, samples, **PICK)
    return parted(whole, real, n, samples), found[:, 3] > 0


def shorten_build(blocks: int) -> dict[str, Any]:
    """Return the constants of the kernel that shortens for rows of so many blocks, but for the order, and its warps."""
    return {
        "BLOCK": BLOCK, "ALL": triton.next_power_of_2(blocks), "LIMIT": LIMIT, "WIDTH": WIDTH,
        "num_warps": 16 if blocks <= 1024 else 8,
    }  # fmt: skip


def topk(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest logits of each row, in the type of statistics, and their classes.

    Largest first, of equal ones the lower class first.
    """
    n, v = z.shape
    value = torch.topk(z, k).values.double()
    cut = value[:, -1].contiguous()
    above = (value > cut[:, None]).sum(-1)
    index, listed = z.new_zeros((n, k), dtype=torch.int64), torch.zeros_like(value)
    with torch.cuda.device_of(z):
        collect_kernel[(n,)](z, cut, above, index, listed, v, k, *z.stride(), **COLLECT)
    order = torch.sort(listed, dim=-1, descending=True, stable=True).indices
    index = index.gather(-1, order)
    found = z.gather(-1, index)
    return (found if z.dtype == torch.float64 else found.float()), index
