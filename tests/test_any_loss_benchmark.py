"""The benchmark of any loss runs, passes its gate, and writes its tables where the document wants them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import any_loss
import torch

import lastlayer.torch as F


def test_it_runs_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, figures = tmp_path / "page.md", tmp_path / "figures.json"
    document.write_text("Before.\n<!-- statistics -->\nold\n<!-- end of statistics -->\nAfter.\n")
    assert any_loss.main(["--quick", "--json", str(figures), "--write", str(document)]) == 0
    said, written, found = capsys.readouterr().out, document.read_text(), json.loads(figures.read_text())
    assert "linear_loss / statistics" in said
    assert written.startswith("Before.\n<!-- statistics -->\n- ")
    assert written.endswith("\n<!-- end of statistics -->\nAfter.\n")
    assert "old" not in written
    for seconds in (found["heads"][0]["seconds"], found["logits"][0]["seconds"]):
        assert all(t > 0 for group in seconds.values() for t in group.values())
    assert any_loss.main(["--read", str(figures)]) == 0
    assert capsys.readouterr().out == said


def test_a_wrong_result_of_ours_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    right = F.linear_loss
    monkeypatch.setattr(F, "linear_loss", lambda *args, **options: torch.mul(right(*args, **options), 1.001))
    assert any_loss.main(["--quick"]) == 1
