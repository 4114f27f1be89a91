"""The device benchmark: its logic on a CPU with toy sizes. Gates, failures, bars, reports; no time is asserted."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
from on_gpu import budgets, correct, exact, laws, peers, table  # noqa: E402
from on_gpu.clock import Bench, Effort, admitted, interleaved  # noqa: E402
from on_gpu.floors import Head, Shape  # noqa: E402
from on_gpu.table import Bar, Row, best  # noqa: E402
from timed.rounds import Wrong  # noqa: E402

import lastlayer.torch as F  # noqa: E402

HERE = ["--device", "cpu", "--tiny", "--without", "torch.compile"]
DOCUMENT = "Before.\n<!-- gpu -->\nold\n<!-- /gpu -->\nAfter.\n"


@pytest.fixture
def bench() -> Bench:
    """A CPU, one round."""
    return Bench(torch.device("cpu"), True, Effort(1, 1.0, 1e-9), ["torch.compile"])


def test_a_tiny_run_reports_judges_writes_and_says_who_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, figures = tmp_path / "gpu.md", tmp_path / "out" / "gpu.json"
    document.write_text(DOCUMENT)
    assert gpu.main([*HERE, "--json", str(figures), "--write", str(document)]) == 0
    said, written, results = capsys.readouterr().out, document.read_text(), json.loads(figures.read_text())
    assert list(results["tables"]) == list(gpu.PARTS)
    assert results["not_run"] == []
    for found in results["tables"].values():
        assert found["rows"]
        for row in found["rows"]:
            assert row["seconds"] is None or 0 < row["seconds"][0] <= row["seconds"][1] <= row["seconds"][2]
            assert row["verdict"] in (("met", "missed", "not measured") if row["bar"] else ("",))
            assert row["bar"] is None or "lastlayer" in row["who"]
    missing = " ".join(results["left_out"])
    assert all(
        f"{name}: ModuleNotFoundError" in missing for name in ("Liger", "cut-cross-entropy", "QuACK", "FlashInfer")
    )
    assert "torch.compile: not asked for" in missing
    assert "Not there: Liger" in said
    assert written.startswith("Before.\n<!-- gpu -->\n- CPU: toy sizes, no speed.")
    assert written.endswith("\n<!-- /gpu -->\nAfter.\n")
    assert "\nold\n" not in written
    assert gpu.main(["--read", str(figures)]) == 0
    assert capsys.readouterr().out == said


def test_parts_that_the_time_does_not_allow_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([*HERE, "--part", "bandwidth", "draws", "--seconds", "-1"]) == 0
    assert "Not run: bandwidth, draws: the time was up." in capsys.readouterr().out


def times_a_hundredth_more(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose results are off by a hundredth."""
    return lambda *args, **options: function(*args, **options) * 1.01


@pytest.mark.parametrize(
    ("part", "name"), [("rows", "log_softmax"), ("cross_entropy", "cross_entropy"), ("linear", "linear_cross_entropy")]
)
def test_a_wrong_result_of_ours_ends_the_run(
    part: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(F, name, times_a_hundredth_more(getattr(F, name)))
    assert gpu.main([*HERE, "--part", part]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("wrong: lastlayer, ")


def test_a_wrong_draw_of_ours_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    right = F.categorical

    def wrong(z: Any, **options: Any) -> Any:
        sample = right(z, **options)
        return sample._replace(index=(sample.index + 1) % z.shape[1])

    monkeypatch.setattr(F, "categorical", wrong)
    assert gpu.main([*HERE, "--part", "draws"]) == 1


def test_the_laws_hold_on_this_device(bench: Bench) -> None:
    lines: list[str] = []
    assert correct.run(bench, lines.append) == 0
    assert len(lines) == len(correct.checks()) + 1
    assert all(": ok (" in line or ": not here: " in line for line in lines[:-1])
    assert lines[-1] == "0 failed"


def test_a_failing_check_stops_no_other_and_is_counted(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    monkeypatch.setattr(F, "log_softmax", times_a_hundredth_more(F.log_softmax))
    lines: list[str] = []
    failures = correct.run(bench, lines.append, "log_softmax")
    assert failures == len(correct.DTYPES)
    assert len(lines) == failures + 1
    assert all(": FAILED: AssertionError: " in line and " times its budget" in line for line in lines[:-1])
    assert gpu.main([*HERE, "--part", "correct", "--only", "log_softmax"]) == failures


@pytest.mark.parametrize("name", ["softmax", "cross_entropy", "logsumexp"])
def test_a_row_that_depends_on_its_batch_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    right = getattr(F, name)
    monkeypatch.setattr(F, name, lambda z, *rest, **options: right(z, *rest, **options) * (1 + 0.02 * (len(z) > 1)))
    assert correct.run(bench, lambda line: None, "a row alone") == len(correct.DTYPES)


def test_the_checks_stand_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([*HERE, "--part", "correct", "draws"])
    assert "stands alone" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--part", "draws"])
    assert "toy sizes only" in capsys.readouterr().err


def test_peers_that_fail_or_are_far_off_are_rows_that_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(h: Any, W: Any, y: Any) -> Any:
        raise RuntimeError("out of memory\nat length")

    def missing() -> Any:
        raise ImportError("no such library")

    def wrong(h: Any, W: Any, y: Any) -> Any:
        return 3 * peers.unfused(h, W, y)

    others = {"failing": lambda: fails, "wrong": lambda: wrong, "missing": missing}
    monkeypatch.setattr(peers, "HEADS", {peers.EAGER: lambda: peers.unfused, **others})
    assert gpu.main([*HERE, "--part", "linear"]) == 0
    said = capsys.readouterr().out
    assert "RuntimeError: out of memory" in said
    assert next(line for line in said.splitlines() if " wrong " in line).split()[6:9] == ["wrong", "-", "-"]
    assert "Not there: missing: ImportError: no such library." in said
    assert "best: PyTorch" in said


def test_the_gate_stops_what_differs(bench: Bench) -> None:
    jobs = {"right": lambda i: 0.5, "far": lambda i: math.nan, "lastlayer": lambda i: 1.0}
    kept, said = admitted(bench, jobs, lambda got: got, "here")
    assert list(kept) == ["right", "lastlayer"]
    assert said["far"] == "error: nan budgets"
    with pytest.raises(Wrong, match=r"lastlayer, here: the error is 1.5 times its budget"):
        admitted(bench, {"lastlayer": lambda i: 1.5}, lambda got: got, "here")


def test_competitors_take_turns_with_inputs_in_turn() -> None:
    calls: list[str] = []
    bench = Bench(torch.device("cpu"), True, Effort(3, 60.0, 1e-9))
    jobs = {name: (lambda i, name=name: calls.append(name)) for name in "abc"}
    assert set(interleaved(bench, jobs)) == set("abc")
    once = calls[-18::2]  # each is timed twice: by the device's clock and by the caller's
    assert ["".join(once[i : i + 3]) for i in (0, 3, 6)] == ["abc", "bca", "cab"]


def test_an_error_is_counted_in_budgets() -> None:
    true = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    eps = torch.finfo(torch.float32).eps
    dense = true + torch.tensor([[0.0, 1e-5], [0.0, 0.0]], dtype=torch.float64)
    assert exact.excess(true.float(), true, dense) == 0.0
    off = true.clone()
    off[0, 0] += (
        2e-5 + 2 * eps + 1 * eps
    )  # twice the plain formula's error, a rounding of the row's largest, of its own
    assert 0.98 < exact.excess(off.float(), true, dense) < 1.02
    assert exact.excess(off.float(), true, true) > 50
    assert exact.excess(true.float()[:1], true, dense) == math.inf
    assert exact.excess(torch.full_like(true, math.nan).float(), true, dense) == math.inf
    holes = torch.tensor([[math.nan, -math.inf, 1.0]], dtype=torch.float64)
    assert exact.excess(holes.float(), holes, holes) == 0.0
    assert exact.excess(holes.float().nan_to_num(), holes, holes) == math.inf
    large = torch.tensor([[1e6, 1.0]], dtype=torch.float64)
    assert exact.excess(large.half(), large, large) == 0.0


def test_the_references_are_the_derivatives_of_the_formula(bench: Bench) -> None:
    head = Head(bench, Shape(12, 8, 50))
    h, W = head.h.double().requires_grad_(), head.W.double().requires_grad_()
    loss = exact.with_entropy(h @ W.T, head.y, head.a.double()).mean()
    expected = exact.Pass(loss.detach(), *torch.autograd.grad(loss, (h, W)))
    inputs = head.h, head.W, head.y, head.a, exact.with_entropy
    for got, true in zip(exact.exact_head(*inputs), expected, strict=True):
        torch.testing.assert_close(got, true)
    assert exact.head_excess(exact.dense_head(*inputs), expected, exact.dense_head(*inputs), 50) <= 1


def test_bars_and_the_best_peer() -> None:
    assert [Bar(1.05).verdict(x) for x in (1.0, 1.1, None)] == ["met", "missed", "not measured"]
    assert [Bar(0.9, at_most=False).verdict(x) for x in (1.0, 0.8)] == ["met", "missed"]
    rows = [Row("c", name, (s, s, s)) for name, s in (("lastlayer", 2.0), ("slow", 3.0), ("fast", 1.0))]
    (compared,) = best(rows, rows[0], ["slow", "fast", "absent"], "c")
    assert (compared.figure, compared.note, compared.plain()["verdict"]) == (2.0, "best: fast", "missed")
    assert best(rows, rows[0], ["absent"], "c") == []


def test_memory_is_judged_by_what_was_asked_for() -> None:
    within, above, unasked = (
        budgets.peak_row("c", "lastlayer", *given) for given in ((64, 2**26), (65, 2**26), (9, None))
    )
    assert [row.plain()["verdict"] for row in (within, above, unasked)] == ["met", "missed", ""]
    assert budgets.peak_row("c", "lastlayer", None, 2**26).plain()["note"] == "a CPU does not count"


def test_checks_see_unaligned_rows_masks_and_confident_rows(bench: Bench) -> None:
    found = {name: z for name, z, _ in laws.matrices(bench, torch.bfloat16)}
    odd = next(z for name, z in found.items() if name.endswith("x 1,000, unaligned"))
    assert odd.storage_offset() == 1
    assert odd.stride() == (1001, 1)
    assert bool((odd[0] == -math.inf).any())
    assert float(odd[1].max()) == 60.0


def test_the_page_has_a_place_for_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    page.write_text((ROOT / "docs" / "gpu.md").read_text())
    nothing = {"machine": {"device": "d", "versions": "v", "card": []}, "left_out": [], "not_run": [], "tables": {}}
    table.write(page, nothing)
    assert "<!-- gpu -->\n- d. v.\n<!-- /gpu -->" in page.read_text()
    with pytest.raises(ValueError, match="0 places"):
        table.write(page, nothing, "elsewhere")
