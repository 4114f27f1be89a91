"""Start some ranks over gloo, once per test session, and keep what they said: for tests of what is sharded over them.

Nothing can hang: a collective has a timeout, and whatever is left of the ranks after a deadline is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

DEADLINE = 120.0  # seconds; all is over after a tenth of it


def launch(script: str, world: str, folder: Path) -> None:
    """Run the ranks of a world to their end, or to the deadline; what they said is in the folder."""
    command = [sys.executable, str(Path(__file__).parent / script), world, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "output").open("w") as output:
        options: dict[str, Any] = {"env": environment, "stdout": output, "stderr": subprocess.STDOUT}
        ranks = subprocess.Popen(command, start_new_session=True, **options)
        try:
            ranks.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            print("killed after the deadline", file=output)
        finally:
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError):
                    os.killpg(ranks.pid, signal.SIGKILL)  # the ranks too
            ranks.kill()
            ranks.wait()


def reporter(script: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[object], Path]:
    """Return a function that gives the folder of a world: of several workers the first one runs it, others wait."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def report(world: object) -> Path:
        folder = base / f"{Path(script).stem}-{world}"
        try:
            folder.mkdir()
        except FileExistsError:
            limit = time.monotonic() + DEADLINE + 10
            while not (folder / "done").exists() and time.monotonic() < limit:
                time.sleep(0.05)
        else:
            launch(script, str(world), folder)
            (folder / "done").touch()
        return folder

    return report


def said(folder: Path) -> str:
    """Return the end of what the ranks printed."""
    return (folder / "output").read_text()[-3000:]
