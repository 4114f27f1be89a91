"""The Triton backend behind NumPy arrays, in Triton's interpreter, so that the laws of the backends run over it too.

Arrays become tensors over the same memory. The interpreter takes as long for one row as for a hundred: a program here
gets more rows than on a device, which by the promise of fold.py changes no bit, and of the longest tests some cases
run.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

LOGITS = 1 << 18  # of a program
FILES = ("test_backends.py", "test_loss.py")  # draws have tests of their own in tests/kernels
SOME = {"test_loss_is_its_composition": {(1, "float16"), (65, "bfloat16"), (1000, "float64")}}


def runs(item: Any) -> bool:
    """Tell whether a test runs: any that is not of this backend, and those that the interpreter has time for."""
    given = getattr(getattr(item, "callspec", None), "params", {})
    if given.get("backend") != "triton":
        return True
    some = SOME.get(item.originalname)
    case = (given.get("classes"), np.dtype(given.get("dtype")).name)
    return item.path.name in FILES and (some is None or case in some)


def tensor(array: Any) -> Any:
    """Return an array, or those of a tuple, as tensors over the same memory; a copy where torch has no such strides."""
    import torch

    if isinstance(array, tuple):
        return type(array)(*map(tensor, array))
    if not isinstance(array, np.ndarray):
        return array
    if min(array.strides, default=1) < 0 or not array.flags.writeable:
        array = array.copy()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def arrays(value: Any) -> Any:
    """Return tensors, alone or in a tuple, as NumPy arrays."""
    if isinstance(value, tuple):
        return type(value)(*map(arrays, value)) if hasattr(value, "_fields") else tuple(map(arrays, value))
    return value.numpy() if hasattr(value, "numpy") and not isinstance(value, np.generic) else value


def backend() -> Any:
    """Return the backend itself: a module for tensors."""
    return importlib.import_module("lastlayer._backends.triton")


@contextmanager
def interpreted() -> Iterator[None]:
    """Compute as a device does, without NumPy's warnings, and with more rows per program."""
    import triton

    from lastlayer._backends.triton import launch

    choose = launch.tile

    def tile(z: Any) -> Any:
        found = choose(z)
        rows = max(1, min(triton.next_power_of_2(z.shape[0]), LOGITS // found.L))
        return found._replace(R=rows)

    launch.tile = tile
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
            yield
    finally:
        launch.tile = choose


ROWS = ("fold", "statistics", "gradient", "loss", "check_targets", "softmax", "log_softmax")
DRAWS = ("draw", "tempered", "multinomial", "masses", "choose", "inside", "topk")
TENSORS = {"choose": 2}  # how many arguments of a draw are tensors: one, but here


def call_rows(name: str, *given: Any, **named: Any) -> Any:
    """Call a function of rows, all of whose arrays are tensors."""
    with interpreted():
        found = getattr(backend(), name)(*map(tensor, given), **{key: tensor(value) for key, value in named.items()})
    return named["out"] if name in ("gradient", "softmax", "log_softmax") else arrays(found)


def call_draws(name: str, *given: Any) -> Any:
    """Call a function of draws, whose numbers per row are NumPy's."""
    tensors = TENSORS.get(name, 1)
    with interpreted():
        return arrays(getattr(backend(), name)(*map(tensor, given[:tensors]), *given[tensors:]))


class Backend:
    """The backend for NumPy arrays."""

    def __getattr__(self, name: str) -> Any:
        if name in ROWS:
            return partial(call_rows, name)
        return partial(call_draws, name) if name in DRAWS else getattr(backend(), name)
