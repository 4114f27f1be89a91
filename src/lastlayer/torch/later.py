"""What is wrong with values on a GPU, said without waiting for it.

``require`` looks at values that are in this process's memory at once. Of others it starts to bring what it would look
at, and raises when that has arrived and somebody asks: the next checked call does, and ``check_errors``. Until then the
kernels do what is safe: a target that is no class makes a loss of NaN, and the device stays usable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lastlayer import _validate

Describe = Callable[..., Exception]  # of the element's index and its values


class _Found(NamedTuple):
    """A question whose answer is under way: row -1 is "nothing wrong"."""

    answer: Tensor  # number of the element, its values; in this process's memory
    event: Any  # query() tells whether it is there, synchronize() waits
    shape: torch.Size
    describe: Describe


_waiting: deque[_Found] = deque()
MOST = 1024  # questions under way; then all are waited for


def far(*tensors: Tensor | None) -> bool:
    """Tell whether to look at a value of these would wait for a device, or, while compiling, is not possible."""
    return torch.compiler.is_compiling() or any(t is not None and is_far(t) for t in tensors)


def is_far(tensor: Tensor) -> bool:
    return tensor.is_cuda


def capturing(tensor: Tensor) -> bool:
    """Tell whether a CUDA graph is being captured, which looking at a value, and so waiting for it, would break."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def require(ok: Tensor, describe: Describe, *values: Tensor, at_once: bool = False) -> None:
    """Raise ``describe(index, *values)`` for the first element that is not ok: now, or when that is known."""
    if torch.compiler.is_compiling():
        return
    if not far(ok):
        if not bool(ok.all()):
            index = _validate.position(~ok)
            raise describe(index, *(value[index].item() for value in values))
        return
    flat = ~ok.reshape(-1)
    if flat.numel() > 0:
        first = flat.to(torch.uint8).argmax()
        row = torch.where(flat.take(first), first, -1)  # what is indexed by a number waits for the number
        post(row, ok.shape, describe, *(value.take(first) for value in values), at_once=at_once)


def require_classes(target: Tensor, ignored: Tensor, classes: int, *, at_once: bool = False) -> Tensor:
    """Return the targets; raise IndexError for the first that is neither a class nor ignored: now, or when it is known.

    A compiled graph must use what is returned: that is where it looks.
    """
    if torch.compiler.is_compiling():
        return _checked(target, ignored, classes)  # type: ignore[no-any-return]
    require(((target >= 0) & (target < classes)) | ignored, outside("target", classes), target, at_once=at_once)
    return target


@torch.library.custom_op("lastlayer::check_classes", mutates_args=())
def _checked(target: Tensor, ignored: Tensor, classes: int) -> Tensor:
    """Return a copy of the targets, once they are checked."""
    return require_classes(target, ignored, classes).clone()


@_checked.register_fake
def _(target: Tensor, ignored: Tensor, classes: int) -> Tensor:
    return torch.empty_like(target)


def outside(name: str, classes: int) -> Describe:
    """Return what describes a target that is no class."""
    return lambda index, value: IndexError(f"{_validate.element(name, index)} = {int(value)} is outside [0, {classes})")


def post(row: Tensor, shape: torch.Size, describe: Describe, *values: Tensor, at_once: bool = False) -> None:
    """Ask for the number of the first wrong element (-1: none) and its values, all on one device."""
    if capturing(row):
        return
    answer = torch.stack([each.double() for each in (row, *values)])
    if far(answer):
        _waiting.append(_Found(*_bring(answer), shape, describe))
        if at_once or len(_waiting) > MOST:
            check_errors()
        poll()
    else:
        _raise(_Found(answer, None, shape, describe))


def _bring(values: Tensor) -> tuple[Tensor, Any]:
    """Start to copy values to this process's memory; return where they will be, and what tells when."""
    there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    there.copy_(values, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(values.device))
    return there, event


def poll() -> None:
    """Raise what has been found, among the answers that have arrived."""
    while _waiting and _waiting[0].event.query():
        _raise(_waiting.popleft())


def _raise(found: _Found) -> None:
    row, *values = found.answer.tolist()
    if row >= 0:
        index = np.unravel_index(int(row), tuple(found.shape)) if found.shape else ()
        raise found.describe(tuple(int(i) for i in index), *values)


def check_errors() -> None:
    """Wait for the GPU, and raise what was found wrong with the values of earlier calls.

    A call with tensors on a GPU does not wait for their values: an error in them, say a target that is no class, is
    raised by a later call, or here. Does nothing where nothing is under way.

    Raises:
        IndexError, ValueError: as the function whose argument it was says.

    Example:
        >>> check_errors()
    """
    while _waiting:
        _waiting[0].event.synchronize()
        _raise(_waiting.popleft())
