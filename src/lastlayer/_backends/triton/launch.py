"""The row kernels as a backend for torch tensors: which tiles, which flags, then a launch. Nothing is read on the host.

Each function makes a ``Call``, all that a launch is decided by, and starts it: tests compile the same calls without a
device. Sibling of cpu.py and reference.py.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lastlayer._algebra import Coefficients, State, Statistics, Terms
from lastlayer._backends.triton import rows, targets

TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WORD = 16  # bytes


class Limits(NamedTuple):
    """What fits the registers of a program, for one size of logits; tests compile all kernels and find no spills."""

    resident: int  # classes of a row that is read once
    lanes: int  # of a longer row
    tile: int  # logits of a program of short rows
    each: int  # logits of a thread
    warps: int  # of a longer row


LIMITS = {2: Limits(8192, 8192, 1024, 8, 32), 4: Limits(8192, 4096, 1024, 8, 32), 8: Limits(2048, 1024, 256, 2, 16)}
MOST = 2**30  # classes; rows have no such limit
SHORT = 64  # rows of fewer classes that begin anywhere are read class by class


class Tile(NamedTuple):
    """How a program sees rows: R rows of L lanes, read by words of so many logits; ``warps`` threads / 32."""

    R: int
    L: int
    WORD: int
    SHIFTED: bool
    STREAMED: bool
    warps: int


class Call(NamedTuple):
    """A kernel, how many programs, their arguments by name, and warps."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    warps: int


def takes(z: Any) -> bool:
    """Tell whether the kernels read this array: a tensor of a floating type they know, on a GPU or interpreted."""
    return isinstance(z, Tensor) and z.dtype in TYPES and (z.is_cuda or (z.is_cpu and triton.knobs.runtime.interpret))


def reserve(out: Tensor) -> Tensor:
    """Return the tensor; there is nothing to prepare."""
    return out


def strides(z: Tensor) -> tuple[int, int]:
    """Return the strides of rows and classes; of one row, or one class, those that cost least."""
    n, v = z.shape
    classes = 1 if v == 1 else z.stride(1)
    return (v if n == 1 and classes == 1 else z.stride(0)), classes


def on_words(z: Tensor) -> bool:
    """Tell whether each row begins at a word."""
    row = 0 if z.shape[0] == 1 else z.stride(0)
    return z.data_ptr() % WORD == 0 and row * z.element_size() % WORD == 0


def tile(z: Tensor) -> Tile:
    """Choose the tiles for logits (N, V). What changes bits, STREAMED and the L of streamed rows, depends on V only."""
    v, size = z.shape[1], z.element_size()
    if v > MOST:
        raise ValueError(f"input has {v} classes, expected at most {MOST}: LASTLAYER_BACKEND=reference takes more")
    limits, word = LIMITS[size], WORD // size
    streamed, shifted = v > limits.resident, not on_words(z)
    fits = streamed or not shifted or SHORT <= v <= limits.resident - word
    if strides(z)[1] != 1 or not fits:
        word, shifted = 1, False
    if streamed:
        return Tile(1, limits.lanes, word, shifted, True, limits.warps)
    lanes = max(triton.next_power_of_2(v + (word - 1 if shifted else 0)), word, 2)
    many = min(128, max(1, limits.tile // (lanes if word > 1 else 4 * lanes)))
    warps = min(32 if size < 8 else 16, max(4, many * lanes // (32 * limits.each)))
    return Tile(many, lanes, word, shifted, False, warps)


def digits_of(z: Tensor) -> int:
    """Return which roundings of an exponential of these logits are put back: fold.py says what the numbers mean."""
    return 1 if z.element_size() == 2 else 2


def flags(z: Tensor, tile: Tile) -> dict[str, Any]:
    """Return the arguments that describe logits to every kernel."""
    row, classes = strides(z)
    wide = z.dtype == torch.float64
    return {
        "z_ptr": z, "z_row": row, "z_class": classes, "N": z.shape[0], "V": z.shape[1],
        "T": tl.float64 if wide else tl.float32, "DIGITS": digits_of(z), "R": tile.R, "L": tile.L,
        "WORD": tile.WORD, "SHIFTED": tile.SHIFTED,
    }  # fmt: skip


def written(z: Tensor, out: Tensor, tile: Tile) -> dict[str, Any]:
    """Return the arguments that describe where rows are written, beside logits or over them."""
    row, classes = strides(out)
    kind = 0
    if classes == 1:
        alike = out.element_size() == z.element_size() and (out.data_ptr() - z.data_ptr()) % WORD == 0
        together = alike and (z.shape[0] == 1 or (out.stride(0) - z.stride(0)) * z.element_size() % WORD == 0)
        kind = 2 if tile.WORD > 1 and (together or (not tile.SHIFTED and on_words(out))) else 1
    over = out.element_size() != z.element_size() and out.untyped_storage().data_ptr() == z.untyped_storage().data_ptr()
    digits = 0 if out.element_size() == 2 else digits_of(z)
    return {"q_ptr": out, "q_row": row, "q_class": classes, "OUT": kind, "BARRIER": over, "WRITTEN": digits}


def weights(z: Tensor, weight: Tensor | None) -> dict[str, Any]:
    """Return the arguments that describe class weights, (V,) or (N, V), of the type of the fold."""
    if weight is None:
        return {"u_ptr": None, "u_row": 0}
    weight = weight.to(torch.float64 if z.dtype == torch.float64 else torch.float32)
    weight = weight if weight.stride(-1) == 1 else weight.contiguous()
    return {"u_ptr": weight, "u_row": weight.stride(0) if weight.dim() == 2 else 0}


def factor(name: str, value: Tensor | float | None) -> dict[str, Any]:
    """Return the arguments that describe a number per row, or one for all; None is 0."""
    if isinstance(value, Tensor):
        return {f"{name}_ptr": value, f"{name}_stride": value.stride(0) if value.dim() else 0, f"{name}_one": 0.0}
    return {f"{name}_ptr": None, f"{name}_stride": 0, f"{name}_one": float(value or 0.0)}


def capped(softcap: float | None) -> dict[str, Any]:
    """Return the arguments that describe a softcap."""
    return {"SOFTCAP": softcap is not None, "inverse_softcap": 1 / softcap if softcap else 0.0}


def start(call: Call, z: Tensor) -> None:
    """Launch on the current stream of the device that holds z; of no rows, nothing."""
    if call.programs:
        with torch.cuda.device_of(z) if z.is_cuda else nullcontext():
            call.kernel[(call.programs,)](**call.arguments, num_warps=call.warps)


def of_rows(kernel: Any, z: Tensor, tile: Tile, arguments: dict[str, Any]) -> Call:
    """Return the call of a kernel over all rows.

    Where more is kept of each class, or each class has an address of its own, threads are fewer, with more registers.
    The former has fewer lanes too; the latter may not: bits do not depend on addresses.
    """
    many = arguments.get("MOMENT", False) or arguments.get("u_ptr") is not None
    if many or tile.WORD == 1:
        tile = tile._replace(warps=min(tile.warps, 16))
    if many and tile.STREAMED:
        tile = tile._replace(L=min(tile.L, 32 * tile.warps * LIMITS[z.element_size()].each))
    given = flags(z, tile) | arguments
    if kernel is rows.gradient_kernel:
        del given["DIGITS"]
    else:
        given["STREAMED"] = tile.STREAMED
    return Call(kernel, -(-z.shape[0] // tile.R), given, tile.warps)


def statistics_call(
    z: Tensor, target: Tensor | None, weight: Tensor | None, moment: bool, state: Tensor | None, found: Tensor | None
) -> Call:
    """Return the call that folds rows, and finishes them where there is room for what is found."""
    given = {"y_ptr": target, "state_ptr": state, "found_ptr": found, "MOMENT": moment}
    return of_rows(rows.statistics_kernel, z, tile(z), given | weights(z, weight))


def fold(z: Tensor, weight: Tensor | None = None, moment: bool = False) -> State:
    """Return the state of each row of z (N, V), in float64; moment is 0 unless asked for."""
    state = z.new_empty((5, z.shape[0]), dtype=torch.float64)
    start(statistics_call(z, None, weight, moment, state, None), z)
    return State(*state)


def statistics(
    z: Tensor, target: Tensor | None = None, weight: Tensor | None = None, entropy: bool = False, keep: bool = True
) -> tuple[Statistics, State | None]:
    """Fold and finish in one pass: the statistics asked for (else None); to keep, of the state max, rest and mass."""
    block = z.new_empty((9, z.shape[0]), dtype=torch.float64)
    start(statistics_call(z, target, weight, entropy, block[:5] if keep else None, block[5:]), z)
    asked = (True, target is not None, entropy, weight is not None)
    found = Statistics(*(block[5 + i] if wanted else None for i, wanted in enumerate(asked)))
    if not keep:
        return found, None
    return found._replace(max=block[0]), State(block[0], block[1], None, None, block[4])


def gradient_call(
    z: Tensor, state: State, numbers: Coefficients, target: Tensor | None, weight: Tensor | None, first_class: int,
    softcap: float | None, out: Tensor,
) -> Call:  # fmt: skip
    """Return the call that writes the gradient of a tile."""
    seen = tile(z)
    given: dict[str, Any] = {"y_ptr": target, "first_class": first_class}
    for name, value in zip(("max", "rest", *numbers._fields), (state.max, state.rest, *numbers), strict=True):
        given |= {f"{name}_ptr": value, f"{name}_stride": value.stride(0)}
    return of_rows(rows.gradient_kernel, z, seen, given | weights(z, weight) | capped(softcap) | written(z, out, seen))


def gradient(
    z: Tensor,
    state: State,
    numbers: Coefficients,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    first_class: int = 0,
    softcap: float | None = None,
    *,
    out: Tensor,
) -> Tensor:
    """Write the gradient of the tile z into out; target is int64 and contiguous.

    ``out`` may be z itself, or 16-bit numbers in the second half of each row of a float32 z.
    """
    start(gradient_call(z, state, numbers, target, weight, first_class, softcap, out), z)
    return out


def loss_call(
    z: Tensor, terms: Terms, target: Tensor | None, weight: Tensor | None, ignored: int, scale: Tensor | float,
    softcap: float | None, losses: Tensor, out: Tensor | None, unscaled: bool = False,
) -> Call:  # fmt: skip
    """Return the call that writes the losses of rows and, where there is room, their gradient."""
    seen = tile(z)
    given: dict[str, Any] = {"y_ptr": target, "ignored": ignored}
    given |= {"losses_ptr": losses, "losses_stride": losses.stride(0)}
    for name, value in terms._asdict().items():
        given |= factor(name, value)
    given |= factor("scale", scale) | capped(softcap) | weights(z, weight)
    del given["scale_stride"]
    nowhere = {"q_ptr": None, "q_row": 0, "q_class": 0, "OUT": 0, "BARRIER": False, "WRITTEN": 0}
    given |= nowhere if out is None else written(z, out, seen)
    given["UNSCALED"] = unscaled and isinstance(scale, Tensor)
    given["POLICY"] = "evict_first" if out is None else "evict_last"  # in the cache, for the second look
    return of_rows(rows.loss_kernel, z, seen, given)


def loss(
    z: Tensor,
    terms: Terms,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    ignored: int = -1,
    scale: Tensor | float = 1.0,
    softcap: float | None = None,
    losses: Tensor | None = None,
    out: Tensor | None = None,
    unscaled: bool = False,
) -> Tensor:
    """Return the sum of the rows' losses, () in float64; each goes to losses, the gradient, times scale, to out.

    Each factor of ``terms`` is None, a float, or a float64 tensor (N,) or (); scale is a float, or such a tensor ().
    ``out`` is as in ``gradient``. A row whose target is ``ignored``, or whose factors are 0, is not read.
    Where ``unscaled``, out holds the gradient times 1 already: for a scale of 1 nothing is read or written, and there
    is no total.
    """
    if unscaled and not isinstance(scale, Tensor) and scale == 1:
        return z.new_zeros((), dtype=torch.float64)
    if losses is None:
        losses = z.new_empty(z.shape[0], dtype=torch.float64)
    start(loss_call(z, terms, target, weight, ignored, scale, softcap, losses, out, unscaled), z)
    return losses.sum()


def softmax_call(z: Tensor, log: bool, out: Tensor) -> Call:
    """Return the call that writes the softmax of each row, or its logarithm."""
    seen = tile(z)
    return of_rows(rows.softmax_kernel, z, seen, written(z, out, seen) | {"LOG": log})


def softmax(z: Tensor, *, out: Tensor) -> Tensor:
    """Write the softmax of each row into out."""
    start(softmax_call(z, False, out), z)
    return out


def log_softmax(z: Tensor, *, out: Tensor) -> Tensor:
    """Write the log-softmax of each row into out."""
    start(softmax_call(z, True, out), z)
    return out


def check_targets(target: Tensor, classes: int, ignored: int) -> tuple[Tensor, Tensor]:
    """Return the first row whose target is neither a class nor ignored (-1: none), and how many are ignored: ()."""
    n = target.shape[0]
    parts = max(1, -(-n // targets.TARGETS.value))
    first, count = target.new_empty((2, parts))
    given = {"y_ptr": target, "N": n, "V": classes, "ignored": ignored, "first_ptr": first, "count_ptr": count}
    start(Call(targets.targets_kernel, parts, given, 8), target)
    bad = first.amin()
    return torch.where(bad < n, bad, -1), count.sum()


def times_call(out: Tensor, factor: Tensor) -> Call:
    """Return the call that multiplies the memory of a dense tensor."""
    wide = tl.float64 if out.dtype == torch.float64 else tl.float32
    given = {"q_ptr": out, "size": out.numel(), "factor_ptr": factor, "T": wide, "L": 4096, "BLOCKS": 16}
    return Call(targets.times_kernel, -(-out.numel() // (4096 * 16)), given, 8)


def times_(out: Tensor, factor: Tensor | float) -> Tensor:
    """Multiply a tensor in place by a number, on its device () or not; where that is 1, nothing is read or written."""
    if not isinstance(factor, Tensor):
        return out if factor == 1 else out.mul_(factor)
    if not torch.ops.aten.is_non_overlapping_and_dense(out):
        return out.mul_(factor.to(out.dtype))
    start(times_call(out, factor), out)
    return out
