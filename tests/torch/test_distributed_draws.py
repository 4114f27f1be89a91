"""Draws over vocabulary shards equal those of one process, and fail on all ranks: two and three ranks over gloo.

Each number of ranks is started once; its scenarios are in ranks_draws.py. What is left of the ranks after a deadline
is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch was built without gloo", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))

from ranks_draws import SCENES

DEADLINE = 120.0  # seconds; all is over after a tenth of it
CASES = [(world, name) for world, scenes in SCENES.items() for name in scenes]


def launch(world: int, folder: Path) -> None:
    """Run the ranks to their end, or to the deadline; what they said is in the folder."""
    command = [sys.executable, str(Path(__file__).parent / "ranks_draws.py"), str(world), str(folder)]
    with (folder / "output").open("w") as output:
        options: dict[str, Any] = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stdout": output}
        ranks = subprocess.Popen(command, start_new_session=True, stderr=subprocess.STDOUT, **options)
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


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that gives the folder of a world: of several workers the first one runs it, others wait."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def report(world: int) -> Path:
        folder = base / f"ranks-draws-{world}"
        try:
            folder.mkdir()
        except FileExistsError:
            limit = time.monotonic() + DEADLINE + 10
            while not (folder / "done").exists() and time.monotonic() < limit:
                time.sleep(0.05)
        else:
            launch(world, folder)
            (folder / "done").touch()
        return folder

    return report


@pytest.mark.parametrize(("world", "name"), CASES, ids=[f"{world} ranks: {name}" for world, name in CASES])
def test_ranks(world: int, name: str, reports: Any) -> None:
    folder = reports(world)
    for rank in range(world):
        path = folder / f"{rank}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        found = next((line for line in lines if line["scenario"] == name), None)
        assert found is not None, f"rank {rank} did not get there:\n{(folder / 'output').read_text()[-3000:]}"
        assert found["error"] is None, f"rank {rank} of {world}:\n{found['error']}"
