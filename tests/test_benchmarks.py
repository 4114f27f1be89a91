"""The benchmark of speed: it runs, lets nothing wrong be timed, and judges its bars; no time is asserted here."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import speed  # noqa: E402
from timed import bars, heads, logits, peers, report, rounds  # noqa: E402
from timed.rounds import Effort, Wrong  # noqa: E402

DOCUMENT = "Before.\n<!-- tables -->\nold\n<!-- end -->\nAfter.\n"


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time single calls, of few rounds."""
    monkeypatch.setattr(rounds, "BLOCK", 1e-9)
    monkeypatch.setattr(speed, "QUICK", Effort(rounds=1))


def leaves(value: Any) -> Iterator[float]:
    """Yield the figures of nested tables."""
    if isinstance(value, dict):
        for part in value.values():
            yield from leaves(part)
    else:
        yield value


def test_a_quick_run_reports_writes_and_says_who_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    document, figures = tmp_path / "speed.md", tmp_path / "out" / "speed.json"
    document.write_text(DOCUMENT)
    outputs = ["--json", str(figures), "--write", str(document)]
    assert speed.main(["--quick", "--only", "logits", "small", "--without", "torch.compile", *outputs]) == 0
    results = json.loads(figures.read_text())
    assert [(r["rows"], r["classes"]) for r in results["logits"]] == logits.QUICK
    for result in results["logits"] + results["small"]:
        assert all(math.isfinite(seconds) and seconds > 0 for seconds in leaves(result["seconds"]))
        assert {"lastlayer", "PyTorch"} <= result["seconds"]["step"].keys()
    assert len([reason for reason in results["left_out"] if reason.startswith("JAX: not installed")]) == 1
    assert "torch.compile: not asked for" in results["left_out"]
    said, written = capsys.readouterr().out, document.read_text()
    assert "Left out: JAX: not installed" in said
    assert "Left out: JAX: not installed" in written
    assert all(bar.promise in said for bar in bars.judge(results))
    assert written.startswith("Before.\n<!-- tables -->\n")
    assert written.endswith("\n<!-- end -->\nAfter.\n")
    assert "old" not in written


def test_an_earlier_run_is_reported_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "speed.json"
    assert speed.main(["--quick", "--only", "small", "--json", str(figures)]) == 0
    said = capsys.readouterr().out
    assert speed.main(["--read", str(figures)]) == 0
    assert capsys.readouterr().out == said


def test_heads_pass_the_gate_and_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "measured_extra", lambda name, setting, shape: 0)
    left_out: list[str] = []
    result = heads.measure(heads.QUICK[0], Effort(rounds=1), left_out)
    assert left_out == []
    expected = {heads.THREE, heads.FOUR, *heads.HEADS} | ({heads.CHUNKED} if result["setting"] else set())
    assert result["seconds"].keys() == expected
    assert result["extra_bytes"].keys() == expected - {heads.THREE, heads.FOUR}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the high-water mark is read from Linux's /proc")
def test_memory_beyond_the_gradients_is_measured() -> None:
    shape = heads.Shape(512, 8, 16_384)
    taken = heads.measured_extra(heads.UNFUSED, "", shape)
    assert taken is not None
    assert 1.9 < taken / (4 * shape.N * shape.V) < 6


def wrong_softmax(of: peers.Peer) -> peers.Peer:
    """Return a competitor whose softmax is off by a hundredth."""
    return lambda logits: of(logits) | {"softmax": lambda: torch.softmax(logits.z, -1) * 1.01}


def test_a_peer_that_is_wrong_is_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "PEERS", {"lastlayer": peers.of_lastlayer, "PyTorch": peers.of_pytorch})
    monkeypatch.setitem(peers.PEERS, "PyTorch", wrong_softmax(peers.of_pytorch))
    assert speed.main(["--quick", "--only", "logits"]) == 0
    assert "Left out: PyTorch, softmax, 2,000 x 2: differs from float64 by 1.0e-02." in capsys.readouterr().out


def test_a_wrong_result_of_ours_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(peers.PEERS, "lastlayer", wrong_softmax(peers.of_lastlayer))
    assert speed.main(["--quick", "--only", "logits", "--without", "torch.compile", "JAX"]) == 1
    assert capsys.readouterr().err.endswith("wrong: lastlayer, softmax, 2,000 x 2: differs from float64 by 1.0e-02\n")


@pytest.mark.parametrize("result", [[1.0, 2.0], [1.0, 2.0, math.nan], [1.0, 2.0, 4.0]])
def test_the_gate_stops_what_differs(result: list[float]) -> None:
    expected = {"f": lambda: torch.tensor([1.0, 2.0, 3.0])}
    left_out: list[str] = []
    jobs = {"f": {"peer": lambda: torch.tensor(result), "right": expected["f"]}}
    assert rounds.gate(jobs, expected, 1.0, "here", left_out)["f"].keys() == {"right"}
    assert left_out[0].startswith("peer, f, here: differs from float64 by ")
    with pytest.raises(Wrong, match="lastlayer, f, here"):
        rounds.gate({"f": {"lastlayer": lambda: torch.tensor(result)}}, expected, 1.0, "here", [])


def test_a_peer_that_fails_or_is_slow_is_named() -> None:
    def fails() -> None:
        raise RuntimeError("no compiler\nat length")

    expected = {"f": lambda: torch.ones(1)}
    left_out: list[str] = []
    rounds.gate({"f": {"failing": fails, "slow": expected["f"]}}, expected, -1.0, "here", left_out)
    assert left_out == ["failing, f, here: RuntimeError: no compiler", "slow, f, here: takes 0.0 s"]


def test_competitors_take_turns() -> None:
    calls: list[str] = []
    jobs = {"f": {name: lambda name=name: calls.append(name) for name in "abc"}}
    assert rounds.interleaved(jobs, Effort(rounds=3, seconds=60.0))["f"].keys() == set("abc")
    rounds_of_three = ["".join(calls[-9 + i : -9 + i + 3 or None]) for i in (0, 3, 6)]
    assert rounds_of_three == ["abc", "bca", "cab"]


def made_up(step: float, clone: float) -> dict[str, Any]:
    """Return the results of one size."""
    seconds = {"limit": {"read": 1.0, "copy": 1.0, "clone": clone}, "step": {"lastlayer": step, "PyTorch": 8.0}}
    result = {"rows": 10, "classes": 1000, "bytes": 1 << 30, "seconds": seconds}
    return {"machine": {"cache_bytes": 1 << 20}, "logits": [result], "small": [], "heads": []}


@pytest.mark.parametrize(("step", "verdicts"), [(1.6, ["reached"] * 3), (2.1, ["missed", "missed", "missed"])])
def test_bars_are_judged_by_their_worst_figure(step: float, verdicts: list[str]) -> None:
    judged = {bar.promise: bar for bar in bars.judge(made_up(step, clone=2.0))}
    found = [bar for promise, bar in judged.items() if promise.startswith("step: ") and bar.where]
    assert [bar.verdict for bar in found] == verdicts
    assert {bar.where for bar in found} == {"step, 10 x 1,000", "PyTorch, step, 10 x 1,000"}
    assert judged["linear_cross_entropy: of three products"].verdict == "not measured"


def test_tables_align_text_left_and_numbers_right() -> None:
    table = report.Table("title", ["what", "ms"], [["a", "1.0"], ["longer", "10"]])
    assert table.plain().splitlines() == ["title", "  what     ms", "  a       1.0", "  longer   10"]
    assert table.markdown().splitlines()[2:] == ["| what | ms |", "| --- | ---: |", "| a | 1.0 |", "| longer | 10 |"]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from timed import picture

    picture.draw(made_up(1.0, 2.0)["logits"], tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
