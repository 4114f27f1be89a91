# mypy: ignore-errors
"""Blocks of rows in Triton: R rows x L lanes of logits, weights or results, read and written 16 bytes at a time.

Where classes lie side by side, block k of a row is the k-th L logits from the last 16-byte word boundary at or before
its class 0, which is s logits before: so every read is of whole words, aligned, wherever the row begins. A word that
holds one class of the row may be read in whole: it cannot reach into memory that is not there. What it holds beside is
replaced by -inf. Where a word belongs to the row in part, only its classes are written.
Sibling of fold.py, which says why this changes no bit.

Flags: WORD logits per word, 1 where classes do not lie side by side; SHIFTED: s may be above 0. WHOLE: every lane of
the block has a class, and every row is wanted. OUT: 2 where results have their word boundaries at the same classes as
the logits, 1 where they lie side by side, else 0.
"""

import triton
import triton.language as tl

from lastlayer._backends.triton.fold import INFINITY


@triton.jit
def row_starts(ptr, stride, rows, here, WORD: tl.constexpr):
    """Return pointers to rows (R,), whose stride is a multiple of WORD: said so that the compiler sees it."""
    return ptr + tl.where(here, rows, 0) * (stride // WORD) * WORD


@triton.jit
def word_shift(p, WORD: tl.constexpr, SHIFTED: tl.constexpr):
    """Return s: how many logits lie between the last word boundary and each of the pointers p (R,)."""
    return ((p.to(tl.int64) & 15) // (16 // WORD)).to(tl.int32) if SHIFTED else tl.zeros(p.shape, tl.int32)


@triton.jit
def blocks_of(V, L: tl.constexpr, WORD: tl.constexpr, SHIFTED: tl.constexpr):
    """Return how many blocks a row may have."""
    last: tl.constexpr = WORD - 1 if SHIFTED else 0
    return tl.cdiv(V + last, L)


@triton.jit
def classes_of(k, s, L: tl.constexpr):
    """Return which class is in each lane of block k: (R, L), some below 0 or past the last."""
    return (k * L + tl.arange(0, L))[None, :] - s[:, None]


@triton.jit
def whole_blocks(V, wanted, R: tl.constexpr, L: tl.constexpr):
    """Return the end of the blocks 1, 2, .. in which every lane has a class, of rows that are all wanted."""
    return tl.where(tl.sum(wanted.to(tl.int32), 0) == R, V // L, 0)


@triton.jit
def read(
    p, s, wanted, k, V, class_stride, L: tl.constexpr, WORD: tl.constexpr, WHOLE: tl.constexpr, POLICY: tl.constexpr
):
    """Return block k of the rows at p: logits, and -inf where there is no class or the row is not wanted."""
    place = (k * L + tl.arange(0, L))[None, :]
    at = tl.multiple_of(p - s, 16)[:, None] + place if WORD > 1 else p[:, None] + place.to(tl.int64) * class_stride
    if WHOLE:
        z = tl.load(at, eviction_policy=POLICY)
    else:
        word = place // WORD * WORD
        near = (word + WORD > s[:, None]) & (word < s[:, None] + V) & wanted[:, None]
        z = tl.load(at, mask=near, other=-INFINITY, eviction_policy=POLICY)
        z = tl.where((place >= s[:, None]) & (place < s[:, None] + V), z, -INFINITY)
    return z


@triton.jit
def read_weights(u_ptr, u_row, rows, wanted, j, V, T: tl.constexpr):
    """Return the weights of classes j (R, L), 0 where there is none; a row stride of 0 is one vector for all rows."""
    at = u_ptr + rows[:, None] * u_row + j
    return tl.load(at, mask=(j >= 0) & (j < V) & wanted[:, None], other=0.0).to(T)


@triton.jit
def write(
    q, s, here, k, V, class_stride, value, L: tl.constexpr, WORD: tl.constexpr, OUT: tl.constexpr, WHOLE: tl.constexpr
):
    """Write block k of the rows at q."""
    place = (k * L + tl.arange(0, L))[None, :]
    if OUT == 2:
        at = tl.multiple_of(q - s, 16)[:, None] + place
    elif OUT == 1:
        at = (q - s)[:, None] + place
    else:
        at = q[:, None] + (place - s[:, None]).to(tl.int64) * class_stride
    value = value.to(q.dtype.element_ty)
    if WHOLE:
        tl.store(at, value, eviction_policy="evict_first")
    else:
        valid = (place >= s[:, None]) & (place < s[:, None] + V) & here[:, None]
        if OUT == 2:
            word = place // WORD * WORD
            inner = (word >= s[:, None]) & (word + WORD <= s[:, None] + V) & here[:, None]
            tl.store(at, value, mask=inner, eviction_policy="evict_first")
            valid = valid & ~inner
        tl.store(at, value, mask=valid, eviction_policy="evict_first")
