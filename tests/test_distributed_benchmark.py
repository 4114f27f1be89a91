"""The benchmark of vocabulary shards: it runs on two ranks behind its gate, reports, and its model adds up."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this torch was built without gloo", allow_module_level=True)

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import distributed  # noqa: E402

DOCUMENT = "Before.\n<!-- tables -->\nold\n<!-- end -->\nAfter.\n"


def test_a_quick_run_of_two_ranks_reports_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, figures = tmp_path / "distributed.md", tmp_path / "out" / "distributed.json"
    document.write_text(DOCUMENT)
    assert distributed.main(["--quick", "--json", str(figures), "--write", str(document)]) == 0
    results = json.loads(figures.read_text())
    assert results["ranks"] == 2
    assert all(math.isfinite(value) and value > 0 for value in results["constants"].values())
    names = {distributed.OURS, distributed.RECOMPUTED, distributed.FULL, distributed.LOSS_PARALLEL}
    for found in results["weak"]:
        assert found["seconds"].keys() == {"1 ranks", "2 ranks", "side by side"}
        assert all(by.keys() == names for by in found["seconds"].values())
        assert all(seconds > 0 for by in found["seconds"].values() for seconds in by.values())
        features = found["shape"]["D"]
        for name in (distributed.OURS, distributed.RECOMPUTED):
            assert found["sent"][name]["all_gather"] == 24
            assert found["sent"][name]["all_reduce"] == 4 * features
        assert found["sent"][distributed.OURS]["all_gather_object"] == distributed.SCHEDULES["fused"][1]
        assert found["sent"][distributed.RECOMPUTED]["all_gather_object"] == distributed.SCHEDULES["recomputed"][1]
    said, written = capsys.readouterr().out, document.read_text()
    assert "Reckoned, assumed cluster" in said
    assert written.startswith("Before.\n<!-- tables -->\n- ")
    assert written.endswith("\n<!-- end -->\nAfter.\n")
    assert "old" not in written
    assert distributed.main(["--read", str(figures)]) == 0
    assert capsys.readouterr().out == said


def test_a_run_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "launched", lambda options: None)
    assert distributed.main([]) == 1


def test_the_model_adds_up() -> None:
    cluster = distributed.Cluster(latency=1.0, bandwidth=1.0, flops=1.0, merge=1.0, state=0.5)
    alone = distributed.reckon(1, 100, 10, 1000, "fused", cluster)
    assert alone.efficiency == 1
    assert alone.compute == 6 * 100 * 10 * 1000
    step = distributed.reckon(4, 100, 10, 1000, "recomputed", cluster)  # one chunk
    assert step.state_bytes == 24 * 100 * 3
    assert step.gradient_bytes == 2 * 3 / 4 * 4 * 100 * 10
    assert step.states == 3 + step.state_bytes
    assert step.gradient == 6 + step.gradient_bytes
    assert step.messages == 6 * 2 * 3
    assert step.merges == 2 + 150  # two levels, three states of each token
    assert step.compute == 8 * 100 * 10 * 1000
    assert step.efficiency == step.compute / (3 + 7200 + 6 + 6000 + 36 + 152 + step.compute)


def test_more_ranks_are_less_efficient() -> None:
    for schedule in distributed.SCHEDULES:
        of = [
            distributed.reckon(ranks, 8192, 4096, 16_384, schedule, distributed.ASSUMED) for ranks in (2, 8, 64, 1024)
        ]
        shares = [step.efficiency for step in of]
        assert shares == sorted(shares, reverse=True)
