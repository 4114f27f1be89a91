"""The demo: its numbers agree with each other, repeat to the bit, and its mistakes are told in one line."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lastlayer import demo
from lastlayer.demo.options import DemoError, Options, Shape, parse

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")
pytest.importorskip("rich")

from lastlayer.demo import chart, corpus, evaluate, measure, report, run, terminal, train  # noqa: E402

SMALL = [
    *("--vocab-size", "400", "--batch-size", "2", "--context", "16", "--width", "16", "--layers", "1"),
    *("--measure-shape", "32,8,64", "--repeats", "1"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of invented sentences: enough for every tenth stretch to hold more than a window."""
    draw = random.Random(0)
    nouns = ["cat", "dog", "tree", "café", "river", "stone", "idea", "<b>loss</b>"]
    verbs = ["sees", "finds", "is", "was", "makes", "&", "holds"]
    lines = (f"The {draw.choice(nouns)} {draw.choice(verbs)} the {draw.choice(nouns)}.\n" for _ in range(600))
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the fresh processes in which memory is measured."""
    monkeypatch.setattr(measure, "peak", lambda name, shape: 1000)


def ran(text: Path, out: Path, *more: str) -> dict[str, Any]:
    """Run the demo, which must succeed, and return its results."""
    arguments = ["--text", str(text), "--out", str(out), *SMALL, *more]
    if "--seconds" not in more:
        arguments += ["--steps", "4"]
    assert demo.main(arguments) == 0
    results: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return results


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One finished run: its results and its directory."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "peak", lambda name, shape: 1000)
        return ran(text, out), out


def repeatable(results: dict[str, Any]) -> dict[str, Any]:
    """The part of the results that may not depend on the clock."""
    return {name: value for name, value in results.items() if name not in ("timing", "head")}


def test_scores_agree_with_each_other(finished: tuple[dict[str, Any], Path]) -> None:
    held_out = finished[0]["held_out"]
    for score in (held_out["model"], held_out["unigram"]):
        assert score["nats_per_token"] == score["nats"] / held_out["tokens"]
        assert score["perplexity"] == math.exp(score["nats_per_token"])
        assert score["bits_per_byte"] == score["nats"] / math.log(2) / held_out["bytes"]
    # The last point of the curve is the final score: same model, same tokens.
    assert finished[0]["training"]["held_out"][-1] == [4, held_out["model"]["nats_per_token"]]


def test_bytes_scored_are_those_of_the_text(text: Path) -> None:
    loaded = corpus.load(Options(text=text, context=16, vocab_size=400))
    held_out = "".join(corpus.split(corpus.read_text(text))[1])
    assert loaded.decode(loaded.held_out) == held_out
    first = len(loaded.decode(loaded.held_out[:1]).encode())
    assert loaded.scored_bytes == len(held_out.encode()) - first


@pytest.mark.parametrize("text", ["", "a", "one line, no newline " * 50, "\n" * 300, "some\nlines\nof text\n" * 99])
def test_split_keeps_every_character_once(text: str) -> None:
    training, held_out = corpus.split(text)
    parts = [part for i in range(0, 90, 9) for part in (*training[i : i + 9], held_out[i // 9])]
    assert "".join(parts) == text


def test_unigram_is_add_one_smoothing(text: Path) -> None:
    loaded = corpus.load(Options(text=text, context=16, vocab_size=400))
    n, V = len(loaded.training), loaded.vocab_size
    occurrences = [(loaded.training == token).sum().item() for token in range(V)]
    expected = torch.tensor([(c + 1) / (n + V) for c in occurrences], dtype=torch.float64)
    torch.testing.assert_close(loaded.unigram().exp(), expected)
    assert loaded.unigram().exp().sum().item() == pytest.approx(1)


def test_reference_text_repeats_no_paragraph() -> None:
    pytest.importorskip("pydoc_data.topics")
    paragraphs = [" ".join(paragraph.split()) for paragraph in corpus.reference_text().split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs)) > 1000


@pytest.mark.parametrize(("length", "context"), [(1, 8), (8, 8), (9, 8), (100, 8), (101, 7), (5, 2)])
def test_windows_score_every_token_once(length: int, context: int) -> None:
    windows = list(evaluate.windows(length, context))
    assert [i for _, scored, end in windows for i in range(scored, end)] == list(range(length))
    assert all(end - first <= context for first, _, end in windows)
    assert all(scored - first >= context // 2 for first, scored, _ in windows[1:])


def test_token_nats_see_only_the_tokens_before(text: Path) -> None:
    loaded = corpus.load(Options(text=text, context=16, vocab_size=400))
    torch.manual_seed(0)
    model = run.LanguageModel(loaded.unigram(), width=16, layers=2)
    for parameter in model.blocks.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = loaded.held_out[:17]
    nats = evaluate.token_nats(model, tokens, context=16)
    changed = torch.cat([tokens[:-1], tokens[-1:] - 1])
    assert torch.equal(evaluate.token_nats(model, changed, context=16)[:-1], nats[:-1])
    logits = model.logits(model(tokens[None, :-1])[0])
    expected = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
    torch.testing.assert_close(nats.float(), expected, rtol=1e-4, atol=1e-5)


def test_surprises_are_sorted_and_those_of_the_held_out_text(finished: tuple[dict[str, Any], Path], text: Path) -> None:
    held_out = "".join(corpus.split(corpus.read_text(text))[1])
    for name, least in (("most_surprising", 0), ("most_surprising_known", 1)):
        surprises = finished[0][name]
        bits = [s["bits"] for s in surprises]
        assert bits == sorted(bits, reverse=True)
        assert all(s["in_training"] >= least for s in surprises)
        assert all(s["before"] + s["token"] + s["after"] in held_out for s in surprises)


def test_same_seed_same_numbers(finished: tuple[dict[str, Any], Path], text: Path, tmp_path: Path) -> None:
    again = ran(text, tmp_path / "again", "--no-measure")
    assert repeatable(again) == repeatable(finished[0])
    other = ran(text, tmp_path / "other", "--no-measure", "--seed", "1")
    assert other["training"]["curve"] != again["training"]["curve"]
    assert other["held_out"]["model"] != again["held_out"]["model"]
    assert other["held_out"]["unigram"] == again["held_out"]["unigram"]


def test_gradients_repeat_to_the_bit() -> None:
    torch.manual_seed(0)
    model = run.LanguageModel(torch.zeros(300), width=128, layers=1)
    tokens = torch.randint(10, (4, 129))

    def gradients() -> list[Any]:
        torch.manual_seed(0)
        model.zero_grad()
        model.nats(model(tokens[:, :-1]), tokens[:, 1:], reduction="mean").backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    first = gradients()
    assert all(torch.equal(a, b) for _ in range(5) for a, b in zip(first, gradients(), strict=True))


def test_the_callers_generator_is_left_alone(text: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    ran(text, tmp_path, "--no-measure")
    assert torch.equal(torch.get_rng_state(), before)


def test_training_lowers_the_loss(text: Path, tmp_path: Path) -> None:
    results = ran(text, tmp_path, "--no-measure", "--seconds", "2")
    assert results["held_out"]["model"]["nats"] < results["held_out"]["unigram"]["nats"]
    assert results["training"]["steps"] > 0


def test_learning_rate_follows_the_budget() -> None:
    budget = train.Budget(Options(steps=200))
    spent = [budget.spent(train.Training(nats=[0.0] * step, seconds=random.random())) for step in range(201)]
    assert spent == [step / 200 for step in range(201)]
    rates = [train.learning_rate(step, fraction) for step, fraction in enumerate(spent)]
    assert rates.index(max(rates)) == train.WARM_UP - 1
    assert 0 < min(rates) < 0.05


def test_smoothed_keeps_the_mean() -> None:
    nats = [float(i) for i in range(1000)]
    points = train.smoothed(nats, points=10)
    assert len(points) == 10
    assert sum(y for _, y in points) / 10 == sum(nats) / 1000
    assert train.smoothed([]) == []
    assert train.smoothed([3.0, 4.0]) == [(1.0, 3.0), (2.0, 4.0)]


def test_ctrl_c_keeps_what_was_learned(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, losses = train.train_step, list[float]()

    def interrupted(*arguments: Any) -> float:
        if len(losses) == 2:
            raise KeyboardInterrupt
        losses.append(step(*arguments))
        return losses[-1]

    monkeypatch.setattr(train, "train_step", interrupted)
    results = ran(text, tmp_path, "--no-measure")
    assert results["training"]["interrupted"]
    assert results["training"]["steps"] == 2
    assert [nats for _, nats in results["training"]["curve"]] == losses
    assert "Ctrl-C" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "stopped by Ctrl-C after 2 steps" in capsys.readouterr().err


def test_ctrl_c_before_the_first_step(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_step", interrupted)
    results = ran(text, tmp_path, "--no-measure")
    assert results["training"]["steps"] == 0
    assert results["timing"]["tokens_per_second"] is None


def test_a_second_ctrl_c_ends_it(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_step", interrupted)
    monkeypatch.setattr(evaluate, "sample", interrupted)
    assert demo.main(["--text", str(text), "--out", str(tmp_path), *SMALL]) == 130
    assert capsys.readouterr().err.endswith("lastlayer demo: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_measuring_keeps_the_report(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "compare", interrupted)
    assert demo.main(["--text", str(text), "--out", str(tmp_path), *SMALL, "--steps", "2"]) == 130
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "results.json", "samples.txt"}


NOISE = bytes(range(256)) * 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read {path}: No such file or directory"),
        (NOISE, "{path} is not UTF-8 text (byte 0x80 at offset 128)"),
        (b"", "{name} is empty"),
        (b" \n\n", "{name} is empty"),
        (b"Too short.\n", "{name} is too short: "),
    ],
)
def test_texts_that_cannot_be_used(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert demo.main(["--text", str(path), "--out", str(tmp_path / "out"), *SMALL]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"lastlayer demo: {message.format(path=path, name=path.name)}")
    assert told.count("\n") == 1


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_output_that_cannot_be_written(
    out: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert demo.main(["--text", str(text), "--out", str(tmp_path / out)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"lastlayer demo: cannot write to {tmp_path / out}: ")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "argument",
    [
        *(
            "--seconds=0",
            "--seconds=-1",
            "--seconds=nan",
            "--seconds=inf",
            "--seconds=soon",
            "--steps=0",
            "--steps=1.5",
        ),
        *("--steps=-3", "--seed=-1", f"--seed={2**63}", "--vocab-size=256", "--context=1", "--width=12", "--layers=0"),
        *("--measure-shape=1,2", "--measure-shape=1,2,0", "--repeats=0", "--stepz=3", "extra"),
    ],
)
def test_arguments_that_make_no_sense(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([argument]) == 2
    told = capsys.readouterr().err
    assert told.startswith("lastlayer demo: ")
    assert argument.split("=")[0] in told
    assert told.count("\n") == 1


def test_seconds_and_steps_exclude_each_other() -> None:
    with pytest.raises(DemoError, match="not allowed with"):
        parse(["--seconds", "5", "--steps", "5"])


def test_defaults() -> None:
    assert parse([]) == Options()
    assert parse(["--measure-shape", "1,2,3"]).measure_shape == Shape(1, 2, 3)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        demo.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: lastlayer demo ")


@pytest.mark.parametrize("gone", demo.NEEDED)
def test_a_missing_package_is_named(
    gone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == gone else find(name))
    assert demo.main([]) == 2
    assert capsys.readouterr().err == f'lastlayer demo: {gone} not installed: pip install "lastlayer[demo]"\n'


def test_importing_the_demo_imports_nothing_of_its_extra() -> None:
    code = "import sys, lastlayer.demo; print([name for name in lastlayer.demo.NEEDED if name in sys.modules])"
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


class Page(HTMLParser):
    """Checks that tags nest, and collects them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open, self.tags = list[str](), list[tuple[str, dict[str, str | None]]]()
        self.feed(source)
        self.close()

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_is_well_formed_and_needs_nothing_else(finished: tuple[dict[str, Any], Path]) -> None:
    source = (finished[1] / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert {"html", "title", "main", "h1", "svg", "table", "caption"} <= names
    assert names.isdisjoint({"script", "link", "img", "iframe", "a"})
    assert not [at for _, at in page.tags if {"src", "href", "srcset", "onload"} & at.keys()]
    assert not re.search(r"https?:|url\(|@import", source)
    assert ("html", {"lang": "en"}) in page.tags
    figures = [at for tag, at in page.tags if tag == "svg" and "aria-hidden" not in at]
    assert [at["role"] for at in figures] == ["img"]
    assert "Unigram baseline" in (figures[0]["aria-label"] or "")
    ElementTree.fromstring(re.search(r"<svg viewBox.*?</svg>", source, re.DOTALL)[0])  # type: ignore[index]


def test_report_shows_the_numbers_of_the_results(finished: tuple[dict[str, Any], Path]) -> None:
    results, out = finished
    source = (out / "report.html").read_text(encoding="utf-8")
    for name in ("model", "unigram"):
        assert f"<td>{results['held_out'][name]['nats_per_token']:.4f}</td>" in source
    for shape in results["head"]["shapes"]:
        assert all(f"{row['median_milliseconds']:,.1f}" in source for row in shape["heads"])
    drawn = (out / "samples.txt").read_text(encoding="utf-8")
    assert all(s["prompt"] + s["text"] in drawn for s in results["samples"])
    assert [s["temperature"] for s in results["samples"]] == [0.5, 0.8, 1.0]


def test_text_cannot_break_the_page() -> None:
    assert report.visible("a\x1b[31m\x00\tb\r\n") == "a\ufffd[31m\ufffd\tb\n"
    assert report._marked("<", "&", '"') == "&lt;<mark>&amp;</mark>&quot;"
    assert report.one_line(" a\n  b ") == " a↵ b "


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.3, 9.1), (5.11, 5.12), (0, 123456), (3, 3)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    marks = chart.ticks(low, high)
    assert len(marks) <= 6
    assert all(low - 1e-6 <= mark <= high + 1e-6 for mark in marks)


@pytest.mark.parametrize("points", [[], [(1.0, 3.0)], [(1.0, 3.0), (2.0, 2.5)]])
def test_curve_is_drawn_whatever_is_there(points: list[tuple[float, float]]) -> None:
    svg = ElementTree.fromstring(chart.curve(points, points, 3.0))
    assert len(svg.findall("circle")) == len(points)


def test_heads_are_gated_then_measured(finished: tuple[dict[str, Any], Path]) -> None:
    own, larger = finished[0]["head"]["shapes"]
    assert own["shape"] == {"N": 2 * 16, "D": 16, "V": finished[0]["settings"]["vocab_size"]}
    assert larger["shape"] == {"N": 32, "D": 8, "V": 64}
    for shape in (own, larger):
        rows = {row["name"]: row for row in shape["heads"]}
        assert {measure.OURS, measure.BASELINE} <= rows.keys()
        assert all(row["agrees"] and len(row["milliseconds"]) == 1 for row in rows.values())
        assert rows[measure.BASELINE]["time_ratio"] == 1


@pytest.mark.usefixtures("no_processes")
def test_a_head_that_disagrees_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(h: Any, W: Any, y: Any) -> Any:
        return heads[measure.BASELINE](h, W * 1.001, y)

    heads = measure.heads()
    monkeypatch.setattr(measure, "heads", lambda: heads | {"wrong": wrong})
    compared = measure.compare(measure.random_inputs(Shape(32, 8, 64)), 2, "random")
    row = next(row for row in compared["heads"] if row["name"] == "wrong")
    assert not row["agrees"]
    assert row["milliseconds"] == []
    assert ("wrong", "disagrees", "", "", "") in report.head_rows(compared)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the high-water mark is read from Linux's /proc")
def test_memory_is_measured_as_it_is_used() -> None:
    size = 64 * 2**20
    assert measure.rise(lambda: torch.ones(size // 4)) == pytest.approx(size, rel=0.1)
    taken = measure.peak(measure.BASELINE, Shape(256, 8, 16384))
    logits = 256 * 16384 * 4
    assert taken is not None
    assert 1.9 * logits < taken < 6 * logits


def test_lines_tell_tenths(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress() as watcher:
        for step in range(1, 101):
            watcher.trained(step, step / 100, 2.0, 1234.5, 9.0)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 10
    assert told[0] == "step 10  loss 2.000  1,234 tokens/s  9.0 s left"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with terminal.progress() as watcher:
        watcher.evaluated(0, 6.5)
        watcher.trained(1, 0.5, 2.0, 1000.0, 65.0)
    told = capsys.readouterr().err
    assert "step 0  held-out 6.500 nats per token" in told
    assert "50%" in told
    assert "1,000 tokens/s  1 min 5 s left" in told
