# mypy: ignore-errors
"""The Triton kernels of rows of logits: statistics, loss with its gradient, gradient from states, softmax.

A row is *resident*, read once into registers, or *streamed*: folded block by block, then, where something is written,
read again from its end, since that is what the L2 cache still holds. Which of the two depends on the number of classes
alone. There are no atomics, and no row knows of another. The specification is _algebra.py, whose names and formulas
these are; fold.py and slopes.py have the arithmetic, tiles.py the reading and writing; launch.py calls them.

Letters: z logits, u class weights, y target; p, q, s as in tiles.py; R rows x L lanes. Flags are capitals.
"""

import triton
import triton.language as tl

from lastlayer._backends.triton.fold import (
    INFINITY,
    empty_lanes,
    exp_difference,
    fold_lane,
    fold_tile,
    is_finite,
    join_lanes,
    log1p,
)
from lastlayer._backends.triton.slopes import constants, slopes
from lastlayer._backends.triton.tiles import (
    blocks_of,
    classes_of,
    read,
    read_weights,
    row_starts,
    whole_blocks,
    word_shift,
    write,
)

UNROLL = tl.constexpr(2)  # blocks of which a thread asks for the logits before it folds them


@triton.jit
def rows_of(z_ptr, z_row, N, R: tl.constexpr, WORD: tl.constexpr, SHIFTED: tl.constexpr):
    """Return this program's rows, which of them are here, where they begin, and how far past a word."""
    rows = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    here = rows < N
    p = row_starts(z_ptr, z_row, rows, here, 1 if SHIFTED else WORD)
    return rows, here, p, word_shift(p, WORD, SHIFTED)


@triton.jit
def resident(
    p, s, rows, wanted, V, z_class, u_ptr, u_row, MOMENT: tl.constexpr, T: tl.constexpr, DIGITS: tl.constexpr,
    L: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    """Read whole rows; return their logits, the classes of the lanes, weights (without any, the logits) and states."""
    WEIGHT: tl.constexpr = u_ptr is not None
    z = read(p, s, wanted, 0, V, z_class, L, WORD, False, "evict_first").to(T)
    j = classes_of(0, s, L)
    u = z
    if WEIGHT:
        u = read_weights(u_ptr, u_row, rows, wanted, j, V, T)
    return z, j, u, fold_tile(z, (j >= 0) & (j < V), u, MOMENT, WEIGHT, DIGITS)


@triton.jit
def fold_block(
    lanes, p, s, rows, wanted, k, V, z_class, u_ptr, u_row, MOMENT: tl.constexpr, T: tl.constexpr, DIGITS: tl.constexpr,
    POLICY: tl.constexpr, L: tl.constexpr, WORD: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Return the lanes with block k merged into them."""
    z = read(p, s, wanted, k, V, z_class, L, WORD, WHOLE, POLICY).to(T)
    WEIGHT: tl.constexpr = u_ptr is not None
    u = z
    if WEIGHT:
        u = read_weights(u_ptr, u_row, rows, wanted, classes_of(k, s, L), V, T)
    return fold_lane(z, u, lanes, MOMENT, WEIGHT, DIGITS)


@triton.jit
def stream(
    p, s, rows, wanted, V, z_class, u_ptr, u_row, MOMENT: tl.constexpr, T: tl.constexpr, DIGITS: tl.constexpr,
    POLICY: tl.constexpr, R: tl.constexpr, L: tl.constexpr, WORD: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """Fold rows block by block. Before block k, the lanes hold the classes of the blocks before it."""
    WEIGHT: tl.constexpr = u_ptr is not None
    blocks = tl.where(tl.max(wanted.to(tl.int32), 0) > 0, blocks_of(V, L, WORD, SHIFTED), 0)
    end = whole_blocks(V, wanted, R, L)
    lanes = empty_lanes(R, L, T)
    lanes = fold_block(
        lanes, p, s, rows, wanted, 0, V, z_class, u_ptr, u_row, MOMENT, T, DIGITS, POLICY, L, WORD, False
    )
    for k in tl.range(1, end, loop_unroll_factor=UNROLL):
        lanes = fold_block(
            lanes, p, s, rows, wanted, k, V, z_class, u_ptr, u_row, MOMENT, T, DIGITS, POLICY, L, WORD, True
        )
    for k in range(tl.maximum(end, 1), blocks):
        lanes = fold_block(
            lanes, p, s, rows, wanted, k, V, z_class, u_ptr, u_row, MOMENT, T, DIGITS, POLICY, L, WORD, False
        )
    m, rest, moment, spread, mass = join_lanes(lanes, MOMENT, WEIGHT)
    # Two infinities in a lane give inf - inf. Such a row has no distribution; whether it holds NaN too is asked here.
    endless = m == INFINITY
    if tl.max(endless.to(tl.int32), 0) > 0:
        nan = tl.zeros([R, L], tl.int32)
        for k in range(blocks):
            z = read(p, s, wanted, k, V, z_class, L, WORD, False, POLICY)
            nan += (z != z).to(tl.int32)
        rest = tl.where(endless, tl.where(tl.max(nan, 1) > 0, float("nan"), 0.0), rest)
    nothing = rest == -1
    return tl.where(nothing, -INFINITY, m), tl.where(nothing, V - 1.0, rest), moment, spread, mass


@triton.jit
def finish(m, rest):
    """Return log sum_j exp(z_j - max), NaN for a row that has no distribution, and log sum_j exp(z_j)."""
    s = log1p(rest)
    return tl.where(is_finite(m), s, float("nan")), m + s


@triton.jit
def target_gap(p, y, wanted, m, V, z_class):
    """Return max - z_y, NaN for a target that is no class."""
    inside = (y >= 0) & (y < V) & wanted
    return m - tl.load(p + tl.where(inside, y, 0) * z_class, mask=inside, other=float("nan")).to(tl.float64)


@triton.jit
def place_of(y, first_class, V):
    """Return the class of a tile that targets are, its first being ``first_class``; -8 for what is none of it."""
    y = y - first_class
    return tl.where((y >= 0) & (y < V), y, -8).to(tl.int32)


@triton.jit
def write_block(
    p, s, q, rows, here, wanted, y, k, V, z_class, q_class, u_ptr, u_row, inverse_softcap, row, BETA: tl.constexpr,
    SOFTCAP: tl.constexpr, T: tl.constexpr, DIGITS: tl.constexpr, L: tl.constexpr, WORD: tl.constexpr,
    OUT: tl.constexpr, BARRIER: tl.constexpr, WHOLE: tl.constexpr, TARGET: tl.constexpr,
):  # fmt: skip
    """Read block k once more, and write its gradient."""
    WEIGHT: tl.constexpr = u_ptr is not None
    z = read(p, s, wanted, k, V, z_class, L, WORD, WHOLE, "evict_first").to(T)
    j = classes_of(k, s, L)
    u = z
    if WEIGHT:
        u = read_weights(u_ptr, u_row, rows, wanted, j, V, T)
    dz = slopes(z, j == y[:, None], u, inverse_softcap, row, TARGET, BETA, WEIGHT, SOFTCAP, DIGITS)
    if BARRIER:  # what is written lies over logits of this block that other threads read
        tl.debug_barrier()
    write(q, s, here, k, V, q_class, dz, L, WORD, OUT, WHOLE)


@triton.jit
def write_gradient(
    p, s, q, rows, here, wanted, y, V, z_class, q_class, u_ptr, u_row, inverse_softcap, row, TARGET: tl.constexpr,
    BETA: tl.constexpr, SOFTCAP: tl.constexpr, T: tl.constexpr, DIGITS: tl.constexpr, R: tl.constexpr, L: tl.constexpr,
    WORD: tl.constexpr, SHIFTED: tl.constexpr, OUT: tl.constexpr, BARRIER: tl.constexpr,
):  # fmt: skip
    """Write the gradient of rows from their end. After block k, the logits of the blocks before it are as they were.

    So results may lie over the logits, each at or after the place of its own logit.
    """
    blocks, end = blocks_of(V, L, WORD, SHIFTED), whole_blocks(V, wanted, R, L)
    home = tl.where(y >= 0, (y + s) // L, -1)
    for i in range(blocks):
        k = blocks - 1 - i
        if (k > 0) & (k < end) & (tl.sum((home == k).to(tl.int32), 0) == 0):
            write_block(
                p, s, q, rows, here, wanted, y, k, V, z_class, q_class, u_ptr, u_row, inverse_softcap, row, BETA,
                SOFTCAP, T, DIGITS, L, WORD, OUT, BARRIER, True, False,
            )  # fmt: skip
        else:
            write_block(
                p, s, q, rows, here, wanted, y, k, V, z_class, q_class, u_ptr, u_row, inverse_softcap, row, BETA,
                SOFTCAP, T, DIGITS, L, WORD, OUT, BARRIER, False, TARGET,
            )  # fmt: skip


@triton.jit
def number(ptr, stride, one, rows, wanted):
    """Return a number per row, float64: those at ptr, or the same one for all; 0 where not wanted."""
    if ptr is not None:
        value = tl.load(ptr + rows * stride, mask=wanted, other=0.0).to(tl.float64)
    else:
        value = tl.where(wanted, tl.zeros(rows.shape, tl.float64) + one, 0.0)
    return value


@triton.jit
def counted(factor, value):
    """Return factor * value, where 0 * inf and 0 * NaN are 0."""
    return factor * tl.where(factor != 0, value, 0.0)


@triton.jit(do_not_specialize=["N"])
def statistics_kernel(
    z_ptr, z_row, z_class, N, V, u_ptr, u_row, y_ptr, state_ptr, found_ptr, MOMENT: tl.constexpr, T: tl.constexpr,
    DIGITS: tl.constexpr, R: tl.constexpr, L: tl.constexpr, WORD: tl.constexpr, SHIFTED: tl.constexpr,
    STREAMED: tl.constexpr,
):  # fmt: skip
    """Write the state of each row, (5, N), and its statistics logsumexp, logprob, entropy and cross, (4, N)."""
    rows, here, p, s = rows_of(z_ptr, z_row, N, R, WORD, SHIFTED)
    WEIGHT: tl.constexpr = u_ptr is not None
    if STREAMED:
        m, rest, moment, spread, mass = stream(
            p, s, rows, here, V, z_class, u_ptr, u_row, MOMENT, T, DIGITS, "evict_first", R, L, WORD, SHIFTED
        )
    else:
        _z, _j, _u, state = resident(p, s, rows, here, V, z_class, u_ptr, u_row, MOMENT, T, DIGITS, L, WORD)
        m, rest, moment, spread, mass = state
    if state_ptr is not None:
        tl.store(state_ptr + rows, m, mask=here)
        tl.store(state_ptr + N + rows, rest, mask=here)
        tl.store(state_ptr + 2 * N + rows, moment, mask=here)
        tl.store(state_ptr + 3 * N + rows, spread, mask=here)
        tl.store(state_ptr + 4 * N + rows, mass, mask=here)
    if found_ptr is not None:
        log_sum, lse = finish(m, rest)
        tl.store(found_ptr + rows, lse, mask=here)
        if y_ptr is not None:
            y = tl.load(y_ptr + rows, mask=here, other=-1)
            tl.store(found_ptr + N + rows, 0.0 - (target_gap(p, y, here, m, V, z_class) + log_sum), mask=here)
        if MOMENT:
            tl.store(found_ptr + 2 * N + rows, log_sum + moment / (1 + rest), mask=here)
        if WEIGHT:
            tl.store(found_ptr + 3 * N + rows, spread + mass * log_sum, mask=here)


@triton.jit(do_not_specialize=["N", "ignored"])
def loss_kernel(
    z_ptr, z_row, z_class, N, V, u_ptr, u_row, y_ptr, ignored, nll_ptr, nll_stride, nll_one: tl.float64, cross_ptr,
    cross_stride, cross_one: tl.float64, square_ptr, square_stride, square_one: tl.float64, scale_ptr,
    scale_one: tl.float64, inverse_softcap: tl.float64, losses_ptr, losses_stride, q_ptr, q_row, q_class,
    SOFTCAP: tl.constexpr, T: tl.constexpr, DIGITS: tl.constexpr, WRITTEN: tl.constexpr, R: tl.constexpr,
    L: tl.constexpr, WORD: tl.constexpr,
    SHIFTED: tl.constexpr, STREAMED: tl.constexpr, OUT: tl.constexpr, BARRIER: tl.constexpr, POLICY: tl.constexpr,
    UNSCALED: tl.constexpr,
):  # fmt: skip
    """Write the loss of each row and, where there is q, its gradient times scale. A row without weight is not read.

    UNSCALED: the gradient times 1 is there already; where the scale is 1, return at once.
    """
    if UNSCALED:  # noqa: SIM102 -- one flag, then one number on the device
        if tl.load(scale_ptr) == 1:
            return
    rows, here, p, s = rows_of(z_ptr, z_row, N, R, WORD, SHIFTED)
    WEIGHT: tl.constexpr = u_ptr is not None
    live, y = here, rows
    if y_ptr is not None:
        y = tl.load(y_ptr + rows, mask=here, other=0)
        live = here & (y != ignored)
    nll = number(nll_ptr, nll_stride, nll_one, rows, live)
    cross = number(cross_ptr, cross_stride, cross_one, rows, live)
    square = number(square_ptr, square_stride, square_one, rows, live)
    wanted = (nll != 0) | (cross != 0) | (square != 0)
    if STREAMED:
        m, rest, _moment, spread, mass = stream(
            p, s, rows, wanted, V, z_class, u_ptr, u_row, False, T, DIGITS, POLICY, R, L, WORD, SHIFTED
        )
    else:
        z, j, u, state = resident(p, s, rows, wanted, V, z_class, u_ptr, u_row, False, T, DIGITS, L, WORD)
        m, rest, _moment, spread, mass = state
    log_sum, lse = finish(m, rest)
    loss = counted(square, lse * lse)
    if y_ptr is not None:
        loss += counted(nll, target_gap(p, y, wanted, m, V, z_class) + log_sum)
    if WEIGHT:
        loss += counted(cross, spread + mass * log_sum)
    tl.store(losses_ptr + rows * losses_stride, loss, mask=here)
    if q_ptr is not None:
        scale = number(scale_ptr, 0, scale_one, rows, wanted)
        nll, cross, square = nll * scale, cross * scale, square * scale
        alpha = 2 * counted(square, lse) + nll + cross * mass
        row, silent = constants(m, rest, alpha, tl.zeros_like(alpha), 0.0 - nll, 0.0 - cross, T)
        q = row_starts(q_ptr, q_row, rows, here, WORD if OUT == 2 and not SHIFTED else 1)
        y = place_of(y, 0, V)
        TARGET: tl.constexpr = y_ptr is not None
        if STREAMED:
            write_gradient(
                p, s, q, rows, here, wanted & ~silent, y, V, z_class, q_class, u_ptr, u_row, inverse_softcap, row,
                TARGET, False, SOFTCAP, T, WRITTEN, R, L, WORD, SHIFTED, OUT, BARRIER,
            )  # fmt: skip
        else:
            z = tl.where(silent[:, None], -INFINITY, z)
            dz = slopes(z, j == y[:, None], u, inverse_softcap, row, TARGET, False, WEIGHT, SOFTCAP, WRITTEN)
            write(q, s, here, 0, V, q_class, dz, L, WORD, OUT, False)


@triton.jit(do_not_specialize=["N", "first_class"])
def gradient_kernel(
    z_ptr, z_row, z_class, N, V, u_ptr, u_row, y_ptr, first_class, max_ptr, max_stride, rest_ptr, rest_stride,
    alpha_ptr, alpha_stride, beta_ptr, beta_stride, gamma_ptr, gamma_stride, delta_ptr, delta_stride,
    inverse_softcap: tl.float64, q_ptr, q_row, q_class, SOFTCAP: tl.constexpr, T: tl.constexpr, WRITTEN: tl.constexpr,
    R: tl.constexpr, L: tl.constexpr, WORD: tl.constexpr, SHIFTED: tl.constexpr, OUT: tl.constexpr,
    BARRIER: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a tile from the states of its rows and their four numbers, from its end."""
    rows, here, p, s = rows_of(z_ptr, z_row, N, R, WORD, SHIFTED)
    m = number(max_ptr, max_stride, 0.0, rows, here)
    rest = number(rest_ptr, rest_stride, 0.0, rows, here)
    alpha = number(alpha_ptr, alpha_stride, 0.0, rows, here)
    beta = number(beta_ptr, beta_stride, 0.0, rows, here)
    gamma = number(gamma_ptr, gamma_stride, 0.0, rows, here)
    delta = number(delta_ptr, delta_stride, 0.0, rows, here)
    y = rows
    if y_ptr is not None:
        y = tl.load(y_ptr + rows, mask=here, other=0)
    else:
        gamma = tl.zeros_like(gamma)
    row, silent = constants(m, rest, alpha, beta, gamma, delta, T)
    q = row_starts(q_ptr, q_row, rows, here, WORD if OUT == 2 and not SHIFTED else 1)
    write_gradient(
        p, s, q, rows, here, here & ~silent, place_of(y, first_class, V), V, z_class, q_class, u_ptr, u_row,
        inverse_softcap, row, y_ptr is not None, True, SOFTCAP, T, WRITTEN, R, L, WORD, SHIFTED, OUT, BARRIER,
    )  # fmt: skip


@triton.jit
def softmax_block(
    p, s, q, here, m, share, log_sum, k, V, z_class, q_class, LOG: tl.constexpr, T: tl.constexpr, DIGITS: tl.constexpr,
    L: tl.constexpr, WORD: tl.constexpr, OUT: tl.constexpr, BARRIER: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Read block k once more, and write its probabilities or their logarithms."""
    z = read(p, s, here, k, V, z_class, L, WORD, WHOLE, "evict_first").to(T)
    value = probability(z, m, share, log_sum, LOG, DIGITS)
    if BARRIER:  # as in write_block
        tl.debug_barrier()
    write(q, s, here, k, V, q_class, value, L, WORD, OUT, WHOLE)


@triton.jit
def probability(z, m, share, log_sum, LOG: tl.constexpr, DIGITS: tl.constexpr):
    """Return p_j = exp(z_j - max) / (1 + rest), or log p_j = (z_j - max) - log1p(rest)."""
    if LOG:
        value = (z - m) - log_sum
    else:
        _x, w = exp_difference(z, m, DIGITS)
        value = w * share
    return value


@triton.jit(do_not_specialize=["N"])
def softmax_kernel(
    z_ptr, z_row, z_class, N, V, q_ptr, q_row, q_class, LOG: tl.constexpr, T: tl.constexpr, DIGITS: tl.constexpr,
    WRITTEN: tl.constexpr,
    R: tl.constexpr, L: tl.constexpr, WORD: tl.constexpr, SHIFTED: tl.constexpr, STREAMED: tl.constexpr,
    OUT: tl.constexpr, BARRIER: tl.constexpr,
):  # fmt: skip
    """Write the softmax of rows, or its logarithm, from their end."""
    rows, here, p, s = rows_of(z_ptr, z_row, N, R, WORD, SHIFTED)
    if STREAMED:
        m, rest, _moment, _spread, _mass = stream(
            p, s, rows, here, V, z_class, None, 0, False, T, DIGITS, "evict_last", R, L, WORD, SHIFTED
        )
    else:
        z, _j, _u, state = resident(p, s, rows, here, V, z_class, None, 0, False, T, DIGITS, L, WORD)
        m, rest, _moment, _spread, _mass = state
    log_sum, _lse = finish(m, rest)
    share = tl.where(is_finite(m), 1 / (1 + rest), float("nan")).to(T)[:, None]
    log_sum, m = log_sum.to(T)[:, None], m.to(T)[:, None]
    q = row_starts(q_ptr, q_row, rows, here, WORD if OUT == 2 and not SHIFTED else 1)
    if STREAMED:
        blocks, end = blocks_of(V, L, WORD, SHIFTED), whole_blocks(V, here, R, L)
        for i in range(blocks):
            k = blocks - 1 - i
            if (k > 0) & (k < end):
                softmax_block(
                    p, s, q, here, m, share, log_sum, k, V, z_class, q_class, LOG, T, WRITTEN, L, WORD, OUT, BARRIER,
                    True,
                )  # fmt: skip
            else:
                softmax_block(
                    p, s, q, here, m, share, log_sum, k, V, z_class, q_class, LOG, T, WRITTEN, L, WORD, OUT, BARRIER,
                    False,
                )  # fmt: skip
    else:
        value = probability(z, m, share, log_sum, LOG, WRITTEN)
        write(q, s, here, 0, V, q_class, value, L, WORD, OUT, False)
