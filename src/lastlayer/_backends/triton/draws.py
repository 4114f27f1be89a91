"""Draws from tensors by Triton kernels: which of them a call needs; what no kernel does, the specification does.

    no filter                   blocks.py, inverse.py: one read of the logits, nothing read on the host
    top_k, top_p, min_p, T = 0  candidates.py: the largest logits; rows that need others are left to the specification
    everything else             _draws.py in float64 on the device, some rows at a time

Law: the draws of a row are those of the specification, and its bits do not depend on the rows beside it. Siblings of
draw in reference.py and cpu.py; numbers per row come as NumPy arrays, results are tensors beside the logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lastlayer import _draws
from lastlayer._backends.triton.blocks import masses, sum_blocks
from lastlayer._backends.triton.candidates import CODES, code_of, draw_largest, plan, topk
from lastlayer._backends.triton.inverse import choose, draw_all, inside
from lastlayer._backends.triton.uploads import upload
from lastlayer._draws import NEUTRAL, Drawn, Edits, Rules

__all__ = ["choose", "draw", "inside", "masses", "multinomial", "tempered", "topk"]

CHUNK_BYTES = 256 << 20  # what float64 temporaries of a chunk of rows may take where the specification makes them
TEMPORARIES = 8


def draw(
    z: Tensor, uniforms: Any, rules: Rules, order: tuple[str, ...], edits: Edits | None, replacement: bool
) -> Drawn:
    """Draw from each row; the numbers per row are NumPy's."""
    rules = simplified(rules, z.shape[1])
    others = any(rule is not None for name, rule in zip(Rules._fields, rules, strict=True) if name not in CODES)
    if others or edits is not None or not replacement or 0 in z.shape:
        return specified(z, uniforms, rules, order, edits, replacement)
    cut = plan(rules, order, z.shape[1])
    given = (getattr(NEUTRAL, name) if (rule := getattr(rules, name)) is None else rule for name in CODES)
    numbers = np.stack(np.broadcast_arrays(*given), -1)
    u, on_device, t = upload(z, uniforms, numbers, numbers[:, 0])
    sums = sum_blocks(z, t, plain=True)
    if not rules.truncates:
        return draw_all(z, sums, t, u)
    drawn, sure = draw_largest(z, sums, on_device, u, code_of(rules, order), cut.size)
    if not cut.narrow.all():
        drawn = merged(upload(z, cut.narrow)[0] > 0, drawn, draw_all(z, sums, t, u))
    if cut.enough:
        return drawn
    left = np.flatnonzero(~sure.cpu().numpy() & cut.narrow)
    if len(left):
        some = Rules(*(None if rule is None else rule[left] for rule in rules))
        places = torch.as_tensor(left, device=z.device)
        put(drawn, places, specified(z[places], uniforms[left], some, order, None, True))
    return drawn


def simplified(rules: Rules, classes: int) -> Rules:
    """Return the rules without filters that do nothing in any row, top_k as the number of classes that it keeps."""
    k = rules.top_k
    k = None if k is None else np.where(k < classes, np.maximum(np.ceil(k), 1), NEUTRAL.top_k)
    others = zip(rules._replace(top_k=k)[1:], NEUTRAL[1:], strict=True)
    used = (None if rule is None or bool((rule == neutral).all()) else rule for rule, neutral in others)
    return Rules(rules.temperature, *used)


def merged(which: Tensor, drawn: Drawn, others: Drawn) -> Drawn:
    """Return the draws of these rows, and the others."""
    return Drawn(
        *(torch.where(which[:, None] if a.dim() == 2 else which, a, b) for a, b in zip(drawn, others, strict=True))
    )


def put(drawn: Drawn, rows: Any, part: Drawn) -> None:
    """Write the draws of some rows."""
    for all_rows, some in zip(drawn, part, strict=True):
        all_rows[rows] = some.to(all_rows.dtype)


def specified(
    z: Tensor, uniforms: Any, rules: Rules, order: tuple[str, ...], edits: Edits | None, replacement: bool
) -> Drawn:
    """Draw as the specification does, some rows at a time."""
    parts = []
    for rows in chunks(*z.shape):
        u, *numbers = upload(z, uniforms[rows], *(rule[rows] for rule in rules if rule is not None))
        left = iter(numbers)
        some = Rules(*(None if rule is None else next(left) for rule in rules))
        parts.append(_draws.draw(z[rows], u, some, order, edits_of(edits, rows), replacement))
    return Drawn(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def edits_of(edits: Edits | None, rows: slice) -> Edits | None:
    """Return the edits of some rows."""
    if edits is None:
        return None
    start = np.asarray(edits.start)[rows.start : rows.stop + 1]
    places = slice(int(start[0]), int(start[-1]))
    return Edits(start - start[0], edits.index[places], edits.value[places])


def chunks(rows: int, classes: int) -> list[slice]:
    """Return the rows in pieces whose temporaries fit; of no rows, one that is empty."""
    step = max(1, CHUNK_BYTES // (8 * TEMPORARIES * max(classes, 1)))
    return [slice(start, min(start + step, rows)) for start in range(0, max(rows, 1), step)]


def tempered(z: Tensor, rules: Rules, order: tuple[str, ...]) -> Tensor:
    """Return (z - max) / T of the classes kept, -inf of the others, float64."""
    given = upload(z, *(rule for rule in rules if rule is not None))
    left = iter(given)
    on_device = Rules(*(None if rule is None else next(left) for rule in rules))
    return _draws.tempered(z.double(), on_device, order)  # type: ignore[no-any-return]


def multinomial(p: Tensor, uniforms: Any, replacement: bool) -> tuple[Tensor, Tensor]:
    """Draw from each row of weights: the classes, and the status of the rows."""
    (u,) = upload(p, uniforms)
    found = [_draws.draw_weights(p[rows], u[rows], replacement) for rows in chunks(*p.shape)]
    index, status = (torch.cat(each) for each in zip(*found, strict=True))
    return index, status
