"""`lastlayer explain`: what it prints and writes, where its numbers come from, and how it fails."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import lastlayer
from lastlayer import cli

pytest.importorskip("mpmath", reason="lastlayer.explain needs mpmath")
pytest.importorskip("rich", reason="colours need rich")

from lastlayer import explain
from lastlayer.explain import command, page, reading
from lastlayer.explain.functions import FUNCTIONS, OPTIONS

Run = tuple[int, str, str]
TWO = [[1.0, 2.0], [3.0, 4.0]]
LOGITS = "0.2 0.5 -0.1; -0.1 0.1 0.3"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command line, its standard input given as text."""

    def one(*argv: str, stdin: str = "") -> Run:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = cli.main(["explain", *argv])
        out, err = capsys.readouterr()
        return code, out, err

    return one


def result(run: Any, *argv: str, stdin: str = "") -> Any:
    """Return the result of a command, from its JSON."""
    code, out, err = run(*argv, "--json", "--no-check", stdin=stdin)
    assert (code, err) == (0, ""), err
    return json.loads(out)["result"]


def test_softmax(run: Any) -> None:
    code, out, err = run("softmax", "1.2", "2.5", "0.9", "--no-check")
    assert (code, err) == (0, "")
    assert "Result   0.1848  0.6782  0.1369 probability" in out
    assert "\x1b" not in out


def test_the_cross_entropy_of_the_notes(run: Any) -> None:
    code, out, _ = run("cross-entropy", LOGITS, "--target", "1 2", "--no-check")
    assert code == 0
    assert "Result   0.8701 nats" in out
    assert len(out.splitlines()) <= 45


def test_without_a_function_the_worked_example_is_shown(run: Any) -> None:
    code, out, _ = run()
    assert code == 0
    assert "Result   0.8701 nats" in out
    assert "Your own numbers" in out
    assert len(out.splitlines()) <= 45


def test_the_help_lists_every_function_with_a_line(run: Any) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name, function in FUNCTIONS.items():
        assert re.search(rf"^  {name} +{re.escape(function.help)}$", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 110


def test_every_function_that_makes_a_trace_has_a_command() -> None:
    makers = {name for name in explain.__all__ if name[0].islower()}
    assert {function.name for function in FUNCTIONS.values()} == makers
    assert {option for function in FUNCTIONS.values() for option in function.options} == set(OPTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["explain", name, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(f"--{option}" in out for option in FUNCTIONS[name].options)


# A call of each function on the command line, and the value that it must give.
CALLS = [
    ("softmax 1 2", lambda: lastlayer.softmax([1.0, 2.0])),
    ("softmax -1 2", lambda: lastlayer.softmax([-1.0, 2.0])),
    ("softmax -1e1 -.5 -inf", lambda: lastlayer.softmax([-10.0, -0.5, -np.inf])),
    ("softmax -1,2,-3", lambda: lastlayer.softmax([-1.0, 2.0, -3.0])),
    ("softmax '[[1, -2], [3, 4]]'", lambda: lastlayer.softmax([[1.0, -2.0], [3.0, 4.0]])),
    ("softmax '-1 2; 3 4'", lambda: lastlayer.softmax([[-1.0, 2.0], [3.0, 4.0]])),
    ("softmax --dtype float32 1.2 2.5", lambda: lastlayer.softmax(np.float32([1.2, 2.5]))),
    ("softmax 1.2 --dtype float16 2.5", lambda: lastlayer.softmax(np.float16([1.2, 2.5]))),
    ("log-softmax 1 2", lambda: lastlayer.log_softmax([1.0, 2.0])),
    ("log_softmax 1 2", lambda: lastlayer.log_softmax([1.0, 2.0])),
    ("log-softmax 1 2 --unit bits", lambda: lastlayer.log_softmax([1.0, 2.0]) / np.log(2)),
    ("logsumexp 1000 1000", lambda: lastlayer.logsumexp([1000.0, 1000.0])),
    ("sigmoid 1.5", lambda: lastlayer.sigmoid(1.5)),
    ("sigmoid -1.5 2", lambda: lastlayer.sigmoid([-1.5, 2.0])),
    ("logit 0.8", lambda: lastlayer.logit(0.8)),
    ("cross-entropy 1 2 3 --target 2", lambda: lastlayer.cross_entropy([1.0, 2.0, 3.0], 2)),
    ("cross-entropy '1 2; 3 4' --target '0 -100'", lambda: lastlayer.cross_entropy(TWO, [0, -100])),
    ("cross-entropy 1 2 --target '0.9 0.1'", lambda: lastlayer.cross_entropy([1.0, 2.0], [0.9, 0.1])),
    ("cross-entropy '1 2; 3 4' --target '0 1' --weight '1 3' --label-smoothing 0.1 --reduction sum",
     lambda: lastlayer.cross_entropy(TWO, [0, 1], [1.0, 3.0], label_smoothing=0.1, reduction="sum")),
    ("cross-entropy '1 2; 3 4' --target '0 7' --ignore-index 7",
     lambda: lastlayer.cross_entropy(TWO, [0, 7], ignore_index=7)),
    ("cross-entropy 1 2 --target '0.9 0.1' --dtype float32",
     lambda: lastlayer.cross_entropy(np.float32([1, 2]), np.float32([0.9, 0.1]))),
    ("nll-loss -0.5 -1 --target 1", lambda: lastlayer.nll_loss([-0.5, -1.0], 1)),
    ("perplexity '1 2; 3 4' --target '0 1'", lambda: lastlayer.perplexity(TWO, [0, 1])),
    ("entropy 0.5 0.25 0.25 --unit bits", lambda: 1.5),
    ("entropy 1 2 --logits", lambda: lastlayer.entropy(logits=[1.0, 2.0])),
    ("cross-entropy-between 0.5 0.5 --q '0.25 0.75'",
     lambda: lastlayer.information.cross_entropy([0.5, 0.5], [0.25, 0.75])),
    ("kl-divergence 0.5 0.5 --q '0.25 0.75'", lambda: lastlayer.information.kl_divergence([0.5, 0.5], [0.25, 0.75])),
    ("temperature 1 2 --temperature 0.5", lambda: lastlayer.softmax([-2.0, 0.0])),
    ("truncate 1 2 3 --top-k 2", lambda: lastlayer.softmax([-np.inf, 2.0, 3.0])),
    ("truncate 1 2 3 --top-p 0.5 --min-p 0.1 --temperature 1", lambda: [0.0, 0.0, 1.0]),
    ("categorical 1 2 3 --seed 5", lambda: lastlayer.categorical([1.0, 2.0, 3.0], seed=5).index),
    ("likelihood binomial 7 --total-count 10 --probs 0.5",
     lambda: lastlayer.likelihood.binomial.likelihood([7], 10, 0.5)),
    ("likelihood categorical 0 1 --probs '0.2 0.8'", lambda: 0.2 * 0.8),
    ("likelihood normal 1 -2 --loc -0.5 --scale 2", lambda: lastlayer.likelihood.normal.likelihood([1, -2], -0.5, 2.0)),
    ("mle normal 1 2 3 4", lambda: [2.5, 1.25**0.5]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "value"), CALLS, ids=[line for line, _ in CALLS])
def test_the_result_is_the_librarys(run: Any, line: str, value: Any) -> None:
    found = np.asarray(result(run, *shlex.split(line)), np.float64)
    # A unit is one rounding away, and so is a product that the library takes as a sum of logarithms.
    np.testing.assert_allclose(found, np.asarray(value(), np.float64), rtol=1e-14, atol=0)


def test_every_function_is_called_above() -> None:
    assert {shlex.split(line)[0].replace("_", "-") for line, _ in CALLS} == set(FUNCTIONS)


def test_standard_input(run: Any) -> None:
    expected = lastlayer.softmax([[1.0, 2.0], [3.0, 5.0]]).tolist()
    assert result(run, "softmax", stdin="1 2\n3 5\n") == expected
    assert result(run, "softmax", "-", stdin="1, 2\n\n3, 5") == expected
    code, out, err = run("softmax", "--no-check", stdin="")
    assert (code, out, err) == (2, "", "lastlayer explain softmax: no logits given\n")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Files of each kind with logits (2, 3, 4), their targets (2, 3), and things that are not what their name says."""
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    target = np.arange(6).reshape(2, 3) % 4
    np.save(tmp_path / "logits.npy", logits)
    np.save(tmp_path / "target.npy", target)
    np.savez(tmp_path / "both.npz", logits=logits, target=target)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    for name in ("wrong.npy", "wrong.npz", "wrong.safetensors", "wrong.txt"):
        (tmp_path / name).write_text("hello")
    return tmp_path


def stored(files: Path) -> tuple[Any, Any]:
    return np.load(files / "logits.npy").reshape(6, 4), np.load(files / "target.npy").reshape(6)


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("rows", ["0:3", "2:5", "-2:", "4", "-1", None])
def test_rows_of_files(run: Any, files: Path, kind: str, rows: str | None) -> None:
    logits, target = stored(files)
    if kind == "npy":
        source = ["--file", str(files / "logits.npy"), "--target-file", str(files / "target.npy")]
    else:
        if kind == "safetensors":
            save_file = pytest.importorskip("safetensors.numpy").save_file
            save_file(
                {"logits": np.load(files / "logits.npy"), "target": np.load(files / "target.npy")},
                files / "both.safetensors",
            )
        both = str(files / f"both.{kind}")
        source = ["--file", both, "--name", "logits", "--target-file", both, "--target-name", "target"]
    if rows is not None:
        source += [f"--rows={rows}"]
    chosen: Any = {"0:3": slice(3), "2:5": slice(2, 5), "-2:": slice(-2, None), "4": slice(4, 5), "-1": slice(5, 6)}
    kept = chosen.get(rows, slice(None))
    assert result(run, "cross-entropy", *source) == pytest.approx(
        float(lastlayer.cross_entropy(logits[kept], target[kept])), rel=0, abs=0
    )


def test_bfloat16_of_safetensors(run: Any, tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    save_file = pytest.importorskip("safetensors.numpy").save_file
    z = np.array([[1.2, 2.5, 0.9]]).astype(ml_dtypes.bfloat16)
    save_file({"logits": z}, tmp_path / "z.safetensors")
    assert (
        result(run, "softmax", "--file", str(tmp_path / "z.safetensors")) == lastlayer.softmax(z).astype(float).tolist()
    )


# A command line in the folder of the files, and what its one line on stderr must say.
MISTAKES = [
    ("softmax a b", "'a' is not a number"),
    ("softmax '1 2; 3'", "row 1 has 1 numbers, row 0 has 2"),
    ("softmax ''", "no logits given"),
    ("softmax 1 --nosuch", "unrecognized arguments: --nosuch"),
    ("softmax 1 --unit bits", "unrecognized arguments: --unit bits"),
    ("softmax 1 --dtype int8", "invalid choice: 'int8'"),
    ("softmax 1e6 --dtype float16", "is beyond float16"),
    ("sofmax 1", "did you mean softmax?"),
    ("nothing 1", "no function 'nothing'"),
    ("cross-entropy 1 2", "expected one of --target and --target-file, got neither"),
    ("cross-entropy 1 2 --target 0 --target-file target.npy", "got both"),
    ("cross-entropy 1 2 --target 2", "target = 2 is outside [0, 2)"),
    ("cross-entropy '1 2; 3 4' --target '0 5'", "is outside [0, 2)"),
    ("cross-entropy 1 2 --target x", "--target: 'x' is not a number"),
    ("cross-entropy 1 2 --target 99999999999999999999", "is not a class"),
    ("cross-entropy '1 2; 3 4' --target '0 1; 1 0'", "expected one class for each row"),
    ("cross-entropy '1 2; 3 4' --target 0", "target has shape"),
    ("cross-entropy 1 2 --target 0 --label-smoothing 2", "label_smoothing"),
    ("cross-entropy 1 2 --target 0 --weight '1 2 3'", "weight"),
    ("cross-entropy 1 2 --target 0 --weight '1 -2'", "weight"),
    ("nll-loss 0.3 0.7 --target 1", "no log-probability"),
    ("entropy 0.5 0.6", "sum"),
    ("kl-divergence 0.5 0.5", "--q"),
    ("temperature 1 2", "--temperature"),
    ("temperature 1 2 --temperature -1", "temperature"),
    ("likelihood binomial 7", "needs --total-count, --probs too"),
    ("likelihood normal 7 --rate 1", "--rate is none of its options"),
    ("likelihood cauchy 7", "invalid choice: 'cauchy'"),
    ("softmax --file none.npy", "none.npy: No such file or directory"),
    ("softmax --file wrong.txt", "expected a file named .npy, .npz or .safetensors"),
    ("softmax --file wrong.npy", "wrong.npy: not an .npy file of numbers"),
    ("softmax --file wrong.npz", "wrong.npz: not an .npz file"),
    ("softmax --file objects.npy", "not an .npy file of numbers"),
    ("softmax --file words.npy", "holds <U1, expected numbers"),
    ("softmax --file both.npz", "name one of them: logits, target"),
    ("softmax --file both.npz --name x", "has no array 'x', only logits, target"),
    ("softmax --file logits.npy --rows 6", "no rows '6', there are 6"),
    ("softmax --file logits.npy --rows a:b", "expected such as 0:3"),
    ("softmax --file logits.npy 1 2", "numbers and --file are both given"),
    ("softmax 1 2 --rows 0:1", "--rows is of a --file"),
    ("softmax 1 2 --html none/x.html", "none/x.html: No such file or directory"),
    ("softmax 1 2 --html .", "is a directory"),
    ("softmax 1 2 --json --markdown", "not allowed with argument"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "said"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(
    run: Any, files: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    monkeypatch.chdir(files)
    code, out, err = run(*shlex.split(line))
    assert (code, out) == (2, "")
    assert err.startswith("lastlayer explain")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("name", ["safetensors", "ml_dtypes"])
def test_what_is_not_installed_is_named(run: Any, files: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    line = ["--file", str(files / "wrong.safetensors")] if name == "safetensors" else ["1", "--dtype", "bfloat16"]
    code, _, err = run("softmax", *line)
    assert code == 2
    assert re.search(rf"needs {name}: pip install \S+\n$", err)


def test_forms(run: Any, tmp_path: Path) -> None:
    code, out, _ = run("sigmoid", "1.5", "--markdown", "--no-check")
    assert (code, out) == (0, explain.sigmoid(1.5, check=False)._repr_markdown_())
    code, out, _ = run("sigmoid", "1.5", "--json", "--no-check")
    assert (code, json.loads(out)) == (0, explain.sigmoid(1.5, check=False).to_dict())
    file = tmp_path / "why.html"
    code, out, _ = run("sigmoid", "1.5", "--html", str(file), "--no-check")
    assert (code, out) == (0, f"wrote {file}\n")
    assert file.read_text(encoding="utf-8") == page.html(explain.sigmoid(1.5, check=False))


@pytest.mark.parametrize("line", [line for line, _ in CALLS])
def test_every_page_is_well_formed_and_sets_its_formulas(run: Any, tmp_path: Path, line: str) -> None:
    pytest.importorskip("latex2mathml")
    assert run(*shlex.split(line), "--no-check", "--html", str(tmp_path / "x.html"))[0] == 0
    text = (tmp_path / "x.html").read_text(encoding="utf-8").removeprefix("<!DOCTYPE html>")
    formulas = ElementTree.fromstring(text).findall(".//p[@class='formula']")
    assert formulas
    assert all(formula.find("math") is not None for formula in formulas)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "why.html"
    command.write(file, "the old page")

    def full(self: Path, text: str, **_: Any) -> int:
        with self.open("w") as half:
            half.write(text[:3])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        command.write(file, "the new page")
    assert [each.name for each in tmp_path.iterdir()] == ["why.html"]
    assert file.read_text() == "the old page"


def test_text_is_read_as_it_is_printed() -> None:
    z = np.random.default_rng(0).normal(size=(3, 4))
    for text in (str(z), repr(z.tolist()), json.dumps(z.tolist())):
        found = reading.floats(reading.numbers(text), "float64")
        np.testing.assert_allclose(found, z, rtol=0, atol=1e-8)  # str prints eight decimals


def start(*argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "lastlayer", "explain", *argv], capture_output=True, text=True, env=environment, **more
    )


def test_as_a_program() -> None:
    done = start("softmax", "--no-check", input="-1 2\n", env={"COLUMNS": "60"})
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 60
    assert "\x1b" not in done.stdout
    done = start("softmax", "a", "b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lastlayer explain softmax: logits: 'a' is not a number\n"


@pytest.mark.parametrize("colour", [True, False])
def test_on_a_terminal(colour: bool) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "60"} | ({} if colour else {"NO_COLOR": "1"})
    line = [sys.executable, "-m", "lastlayer", "explain", "softmax", "1", "2", "--no-check"]
    process = subprocess.Popen(line, stdout=theirs, stdin=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    out = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        out += part
    os.close(ours)
    assert process.wait() == 0
    assert (b"\x1b[1;36m" in out) == colour
    text = re.sub(r"\x1b\[[\d;]*m", "", out.decode()).replace("\r", "")
    assert "Result   0.2689  0.7311 probability" in text
    assert max(map(len, text.splitlines())) <= 60


def test_a_reader_that_goes_away_gets_no_traceback() -> None:
    code = "import sys; from lastlayer.cli import main; sys.exit(main(['explain', 'softmax', '1', '--no-check']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(("line", "missing"), [("explain softmax 1", "mpmath"), ("learn --no-browser", "starlette")])
def test_a_missing_extra_is_one_line(line: str, missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from lastlayer.cli import main; sys.exit(main({line.split()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f'pip install "lastlayer[{line.split()[0]}]"' in done.stderr


def test_the_command_line_imports_nothing_for_others() -> None:
    code = "import sys, lastlayer.cli; print([m for m in ('mpmath', 'rich', 'torch', 'starlette') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def examples() -> list[tuple[str, str]]:
    """Return the commands of docs/explain.md that begin with a dollar sign, with the output that follows them."""
    text = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [
        (line, output)
        for block in blocks
        for line, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    ]


@pytest.mark.parametrize(("line", "output"), examples(), ids=[line for line, _ in examples()])
def test_the_page_says_what_happens(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, output: str
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    typed, _, rest = line.rpartition(" | ")
    stdin = " ".join(shlex.split(typed)[1:]) + "\n" if typed else ""
    program, name, *argv = shlex.split(rest)
    assert (program, name) == ("lastlayer", "explain")
    _, out, err = run(*argv, stdin=stdin)
    assert out + err == output
