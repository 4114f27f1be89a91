"""The benchmark of draws runs, lets nothing wrong be timed, and its float64 reference is right; no time is asserted."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import draws  # noqa: E402
from timed import draws_exact, draws_jobs, draws_peers, draws_report, rounds  # noqa: E402
from timed.draws_exact import Compared  # noqa: E402
from timed.rounds import Effort, Wrong  # noqa: E402

import lastlayer.torch as F  # noqa: E402

DOCUMENT = "Before.\n<!-- speed -->\nold\n<!-- /speed -->\nAfter.\n"
LADDER = np.log([0.4, 0.1, 0.2, 0.3])


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time single calls, of few rounds, and start no processes."""
    monkeypatch.setattr(rounds, "BLOCK", 1e-9)
    monkeypatch.setattr(draws, "QUICK", Effort(rounds=1))
    monkeypatch.setattr(draws_jobs, "measured_extra", lambda name, *shape: 1 << 20)


def test_a_quick_run_reports_writes_and_says_who_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    document, figures = tmp_path / "draws.md", tmp_path / "out" / "draws.json"
    document.write_text(DOCUMENT)
    assert draws.main(["--quick", "--json", str(figures), "--write", str(document)]) == 0
    said, written, results = capsys.readouterr().out, document.read_text(), json.loads(figures.read_text())
    assert {"JAX: not installed", "llama.cpp: not installed"} <= set(results["left_out"])
    for result in (*results["cold"], results["hot"], results["row"], results["head"]):
        assert all(s > 0 for group in result["seconds"].values() for s in group.values())
    timed = results["cold"][0]["seconds"]
    assert set(timed) == {"limit", *draws_report.WHAT}
    assert all(draws_peers.OURS in timed[name] and len(timed[name]) > 1 for name in draws_report.WHAT)
    assert all(bar.promise in said and bar.promise in written for bar in draws_report.judge(results))
    assert written.startswith("Before.\n<!-- speed -->\n- ")
    assert written.endswith("\n<!-- /speed -->\nAfter.\n")
    assert "\nold\n" not in written
    assert draws.main(["--read", str(figures)]) == 0
    assert capsys.readouterr().out == said


def shifted(draw: Callable[..., Any], field: str) -> Callable[..., Any]:
    """Return draws of which one field is one too high in the first row."""

    def wrong(*args: Any, **options: Any) -> Any:
        sample = draw(*args, **options)
        value = getattr(sample, field).clone()
        value[0] += 1
        return sample._replace(**{field: value})

    return wrong


@pytest.mark.parametrize("field", ["index", "kept"])
def test_a_wrong_draw_of_ours_ends_the_run(
    field: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(F, "categorical", shifted(F.categorical, field))
    assert draws.main(["--quick", "--only", "cold"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("wrong: lastlayer, T = 1, 4 x 600: ")


@pytest.mark.skipif(not hasattr(F, "linear_categorical"), reason="no draws from hidden states yet")
@pytest.mark.parametrize(("name", "field"), [("linear_categorical", "index"), ("linear_topk", "index")])
def test_a_wrong_draw_from_hidden_states_ends_the_run(name: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, name, shifted(getattr(F, name), field))
    with pytest.raises(Wrong, match=name):
        draws_jobs.measure_head(*draws_jobs.QUICK_HEAD, Effort(rounds=1), [])


def test_peers_pass_the_gate_and_a_wrong_one_is_named() -> None:
    z, left_out = draws_jobs.random_matrices(64, 500, 1)[0], list[str]()
    for name, operation in draws_peers.operations(64).items():
        source = draws_jobs.sources([z], {operation.source})[operation.source][0]
        found = draws_peers.competitors(operation, ["JAX", "llama.cpp"], left_out)
        other = draws_peers.Competitor(lambda z, seed, ours=found[draws_peers.OURS]: ours.classes(z.roll(1, 0), seed))
        unlikely = draws_peers.Competitor(lambda z, seed, s=operation.samples: (-z).topk(s).indices)
        found |= {"another row's": other, "unlikely": unlikely}
        kept, counted = draws_jobs.admitted(found, source, operation, name, left_out)
        assert kept.keys() == found.keys() - {"another row's", "unlikely"}, (name, left_out)
        assert counted.draws == 64 * operation.samples
    assert len(left_out) == 2 * len(draws_report.WHAT)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 3]),
        ({"top_k": 0}, [0, 1, 2, 3]),
        ({"top_p": 0.0}, [0]),
        ({"top_p": 0.65}, [0, 3]),
        ({"top_p": 0.75}, [0, 2, 3]),
        ({"min_p": 0.45}, [0, 2, 3]),
        ({"min_p": 1.0}, [0]),
        ({"epsilon_cutoff": 0.25}, [0, 3]),
        ({"epsilon_cutoff": 0.9}, [0]),
        ({"eta_cutoff": 0.9}, [0, 3]),  # sqrt(0.9) exp(-1.28) = 0.264
        ({"typical_p": 0.2}, [3]),  # -log 0.3 = 1.20 is nearest to the entropy, 1.28
        ({"typical_p": 0.4}, [2, 3]),  # then -log 0.2 = 1.61, 0.33 away
        ({"top_n_sigma": 1.0}, [0, 3]),  # the standard deviation is 0.52
        ({"temperature": 0.5, "top_p": 0.65}, [0, 3]),  # 16 : 1 : 4 : 9
        ({"temperature": 0.5, "top_p": 0.5}, [0]),
        ({"top_k": 2, "top_p": 0.5}, [0]),  # 4 / 7 of what top_k keeps
    ],
)
def test_the_reference_keeps_what_can_be_counted_by_hand(options: dict[str, float], kept: list[int]) -> None:
    q = draws_exact.distribution(LADDER, options)
    assert np.flatnonzero(q).tolist() == kept
    weights = np.exp(LADDER[kept] / options.get("temperature", 1.0))
    assert q[kept] == pytest.approx(weights / weights.sum(), rel=1e-14)


def test_the_reference_breaks_ties_by_class_and_keeps_the_order_of_steps() -> None:
    plateau, masked = np.zeros(5), np.array([-math.inf, 0.0, -math.inf])
    assert np.flatnonzero(draws_exact.distribution(plateau, {"top_k": 2})).tolist() == [0, 1]
    assert np.flatnonzero(draws_exact.distribution(plateau, {"top_p": 0.6})).tolist() == [0, 1, 2]
    assert draws_exact.distribution(masked, {"top_p": 1 - 1e-7, "min_p": 1.0}).tolist() == [0, 1, 0]
    hot = {"temperature": 2.0, "top_p": 0.65}
    assert np.flatnonzero(draws_exact.distribution(LADDER, hot)).tolist() == [0, 2, 3]
    assert np.flatnonzero(draws_exact.distribution(LADDER, hot, draws_exact.LLAMA)).tolist() == [0, 3]


def test_draws_are_compared_with_the_interval_of_their_class() -> None:
    q, u = np.array([0.25, 0.0, 0.5, 0.25]), np.array([0.0, 0.25, 0.5, 0.875])
    assert draws_exact.compare(q, np.array([0, 2, 2, 3]), u) == Compared(4, 0, 0.0)
    assert draws_exact.compare(q, np.array([0, 0, 2, 2]), u) == Compared(4, 2, 0.125)
    assert draws_exact.compare(q, np.array([0, 2, 2, 0]), u) == Compared(4, 1, 0.625)
    assert draws_exact.compare(q, np.array([1, 2, 2, 3]), u) == Compared(4, 1, math.inf)
    # Without the class 2 the others have a half each.
    assert draws_exact.compare_one_by_one(q, np.array([2, 3]), np.array([0.5, 0.5])) == Compared(2, 0, 0.0)
    assert draws_exact.compare_one_by_one(q, np.array([2, 2]), np.array([0.5, 0.5])).farthest == math.inf


def made_up(ours: float, theirs: float) -> dict[str, Any]:
    """Return results in which a read takes a second."""
    group = {draws_peers.OURS: ours, draws_peers.SOFTMAX: theirs, draws_peers.SORT: theirs}
    seconds = {"limit": {draws_jobs.READ: 1.0}, "temperature": group, "top_k, top_p, min_p": group}
    cold = {"rows": 64, "classes": 1000, "matrices": 2, "seconds": seconds, "compared": [1, 0, 0.0]}
    head = {"seconds": {"limit": {"bare product": 1.0}, "draw": {"lastlayer": ours}}, "extra_bytes": {"draw": 65 << 20}}
    return {"cold": [cold], "hot": None, "row": {"seconds": seconds}, "head": head}


def test_bars_are_judged() -> None:
    judged = [bar.verdict for bar in draws_report.judge(made_up(1.05, 64.0))]
    assert judged == ["reached", "reached", "reached", "reached", "missed", "reached", "missed"]
    judged = [bar.verdict for bar in draws_report.judge(made_up(2.0, 64.0))]
    assert judged == ["missed", "missed", "reached", "missed", "missed", "missed", "missed"]
    nothing = draws_report.judge(made_up(2.0, 64.0) | {"row": None, "head": None})
    assert [bar.verdict for bar in nothing[4:]] == ["not measured"] * 3


def test_a_document_without_the_place_is_an_error(tmp_path: Path) -> None:
    document = tmp_path / "draws.md"
    document.write_text(DOCUMENT)
    with pytest.raises(ValueError, match="expected 1"):
        draws_report.write(document, "certificate", "new")


def test_matrices_take_turns_and_fill_the_cache() -> None:
    rotation, seen = draws_peers.Rotation(), list[tuple[str, float]]()
    matrices = [torch.full((1, 1), float(i)) for i in range(3)]
    jobs = [
        rotation.job(draws_peers.Competitor(lambda z, seed, name=name: seen.append((name, float(z)))), matrices)
        for name in "ab"
    ]
    for job in (jobs[0], jobs[1], jobs[1], jobs[0]):
        job()
    assert seen == [("a", 0), ("b", 1), ("b", 2), ("a", 0)]
    rows, classes = 64, 128_256
    others = (draws_jobs.enough(rows, classes) - 1) * rows * classes * torch.bfloat16.itemsize
    assert others >= min(draws_jobs.CACHES * draws_jobs.machine.cache(), draws_jobs.MOST_BYTES)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draws_report.draw_picture(made_up(1.0, 2.0)["cold"][0], tmp_path / "draws.png")
    assert (tmp_path / "draws.png").read_bytes().startswith(b"\x89PNG")
