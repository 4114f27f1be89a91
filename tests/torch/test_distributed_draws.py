"""Draws over vocabulary shards equal those of one process, and fail on all ranks: two and three ranks over gloo.

Each number of ranks is started once; its scenarios are in ranks_draws.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch was built without gloo", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))

from ranks_draws import SCENES
from ranks_launch import reporter, said

CASES = [(world, name) for world, scenes in SCENES.items() for name in scenes]


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folders of the worlds of ranks_draws.py."""
    return reporter("ranks_draws.py", tmp_path_factory)


@pytest.mark.parametrize(("world", "name"), CASES, ids=[f"{world} ranks: {name}" for world, name in CASES])
def test_ranks(world: int, name: str, reports: Any) -> None:
    folder = reports(world)
    for rank in range(world):
        path = folder / f"{rank}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        found = next((line for line in lines if line["scenario"] == name), None)
        assert found is not None, f"rank {rank} did not get there:\n{said(folder)}"
        assert found["error"] is None, f"rank {rank} of {world}:\n{found['error']}"
