# mypy: ignore-errors
"""Two small Triton kernels: are the targets classes, and a gradient times what came in from above.

Neither reads anything on the host: their answers are tensors. Sibling of rows.py.
"""

import triton
import triton.language as tl

TARGETS = tl.constexpr(4096)  # per program


@triton.jit(do_not_specialize=["N", "V", "ignored"])
def targets_kernel(y_ptr, N, V, ignored, first_ptr, count_ptr):
    """Write the first bad row of each part, N where there is none, and how many of it are ignored."""
    rows = tl.program_id(0).to(tl.int64) * TARGETS + tl.arange(0, TARGETS)
    here = rows < N
    y = tl.load(y_ptr + rows, mask=here, other=0)
    skipped = y == ignored
    bad = here & ((y < 0) | (y >= V)) & (y != ignored)
    tl.store(first_ptr + tl.program_id(0), tl.min(tl.where(bad, rows, N), 0))
    tl.store(count_ptr + tl.program_id(0), tl.sum((here & skipped).to(tl.int64), 0))


@triton.jit(do_not_specialize=["size"])
def times_kernel(q_ptr, size, factor_ptr, T: tl.constexpr, L: tl.constexpr, BLOCKS: tl.constexpr):
    """Multiply ``size`` numbers at q by a factor; where that is 1, return at once."""
    factor = tl.load(factor_ptr).to(T)
    if factor != 1:
        for k in range(BLOCKS):
            first = (tl.program_id(0).to(tl.int64) * BLOCKS + k) * L
            q = q_ptr + first + tl.arange(0, L)
            if first + L <= size:
                value = tl.load(q, eviction_policy="evict_first").to(T) * factor
                tl.store(q, value.to(q_ptr.dtype.element_ty), eviction_policy="evict_first")
            else:
                here = first + tl.arange(0, L) < size
                value = tl.load(q, mask=here).to(T) * factor
                tl.store(q, value.to(q_ptr.dtype.element_ty), mask=here)
