"""The laws on a real device, nothing timed: the first thing to run on a new one.

Each check prints one line: its name, and ok or what went wrong; one failure does not stop the others, and the exit code
counts them. The checks are in row_checks.py, head_checks.py and cuda_checks.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from on_gpu import cuda_checks, head_checks, row_checks
from on_gpu.clock import Bench, reason_of
from on_gpu.laws import Check, NotHereError, named

MOST = 100  # failures that an exit code counts
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def checks() -> dict[str, Check]:
    """Return all checks by name."""
    by_type = row_checks.BY_TYPE | head_checks.BY_TYPE
    each = {f"{name} {named(dtype)}": partial(by_type[name], dtype=dtype) for dtype in DTYPES for name in by_type}
    return row_checks.CHECKS | each | head_checks.CHECKS | cuda_checks.CHECKS


def run(bench: Bench, tell: Callable[[str], None], only: str = "") -> int:
    """Run the checks whose names begin so, tell each in one line, and return the number of failures."""
    failures = 0
    for name, check in checks().items():
        if not name.startswith(only):
            continue
        begin = time.perf_counter()
        try:
            check(bench)
            bench.wait()
            said = "ok"
        except NotHereError as reason:
            said = f"not here: {reason}"
        except Exception as error:
            said, failures = f"FAILED: {reason_of(error)}", failures + 1
        tell(f"{name}: {said} ({time.perf_counter() - begin:.1f} s)")
        bench.tidy()
    tell(f"{failures} failed")
    return min(failures, MOST)
