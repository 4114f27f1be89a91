"""How many threads work on NumPy arrays. On tensors it is what torch.get_num_threads() says."""

from __future__ import annotations

import os


def numpy_threads() -> tuple[int, str]:
    """Return how many threads work on NumPy arrays, and why."""
    setting = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if setting.isdigit() and int(setting) > 0:
        return int(setting), "OMP_NUM_THREADS"
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)), "the processors this process may use"
    return os.cpu_count() or 1, "the processors of this machine"
