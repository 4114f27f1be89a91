"""Numbers per row, which NumPy holds, beside the logits: all of a call in one copy that the host does not wait for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def beside(z: Tensor, array: Any) -> Tensor:
    """Return numbers, a tensor's or NumPy's, as contiguous float64 where z lives."""
    if isinstance(array, Tensor):
        return array.to(z.device, torch.float64).contiguous()
    return upload(z, array)[0]


def upload(z: Tensor, *arrays: Any) -> tuple[Tensor, ...]:
    """Return NumPy arrays as float64 tensors of their shapes where z lives.

    They are new memory here, so that nothing is awaited: of memory that is not pinned a copy is made before the call
    returns.
    """
    flat = torch.from_numpy(np.concatenate([np.asarray(array, np.float64).reshape(-1) for array in arrays]))
    parts = flat.to(z.device, non_blocking=True).split([np.size(array) for array in arrays])
    return tuple(part.reshape(np.shape(array)) for part, array in zip(parts, arrays, strict=True))
