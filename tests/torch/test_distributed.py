"""Vocabulary shards equal one process, and fail together: some ranks over gloo, one report per scenario.

Each number of ranks is started once; its scenarios are in ranks_agree.py and ranks_fail.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch was built without gloo", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))

from ranks import SCENARIOS
from ranks_launch import DEADLINE, reporter, said
from ranks_problem import SOON, STALLED

CASES = [(world, name) for world, scenes in SCENARIOS.items() for name in scenes]


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folders of the worlds of ranks.py."""
    return reporter("ranks.py", tmp_path_factory)


@pytest.mark.parametrize(("world", "name"), CASES, ids=[f"{world} ranks: {name}" for world, name in CASES])
def test_ranks(world: int, name: str, reports: Any) -> None:
    folder = reports(world)
    for rank in range(world):
        path = folder / f"{rank}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        found = next((line for line in lines if line["scenario"] == name), None)
        assert found is not None, f"rank {rank} did not get there:\n{said(folder)}"
        assert found["error"] is None, f"rank {rank} of {world}:\n{found['error']}"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize(("ending", "most"), [("stalled", STALLED + SOON), ("killed", SOON)])
def test_where_one_rank_does_not_answer_the_others_raise(ending: str, most: float, reports: Any) -> None:
    folder = reports("end")
    for rank in range(2):
        path = folder / f"{ending}-{rank}.json"
        assert path.exists(), f"rank {rank} of 3 did not come back:\n{said(folder)}"
        found = json.loads(path.read_text())
        assert found["error"]
        assert found["seconds"] < most
    assert (folder / "stalled-2.json").exists()
    assert not (folder / "killed-2.json").exists()


EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "sharded_head.py"


def test_the_example_trains_and_equals_the_head_in_one_piece() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLE)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=True, start_new_session=True
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    losses = [float(line[1]) for line in lines]
    assert losses[-1] < 0.8 * losses[0], done.stdout
    assert all(abs(float(line[2]) - float(line[1])) <= 1e-5 * losses[0] for line in lines), done.stdout


def test_the_example_says_how_to_start_it() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "torchrun --nproc-per-node 2 examples/sharded_head.py" in done.stderr
