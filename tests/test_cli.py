"""The command line: what it prints, and how it fails."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from lastlayer import _backends, cli


def test_info_names_backends_instruction_set_and_threads_with_reasons(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("LASTLAYER_BACKEND", raising=False)
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "threads (NumPy)   3 (OMP_NUM_THREADS)" in out
    assert "the fastest that is there" in out
    assert "gpu               none (torch.cuda.is_available())" in out or importlib.util.find_spec("torch") is None
    if _backends.cpu is not None:
        assert f"instruction set   {_backends.cpu.instruction_sets()[0][0]}" in out


def test_info_without_the_native_module(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backends, "cpu", None)
    monkeypatch.setattr(_backends, "missing", "no module named _native", raising=False)
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    (backends,) = (line for line in out.splitlines() if line.startswith("backends"))
    assert backends.split()[1:] in (["reference"], ["reference,", "triton"])
    assert "cpu               not there: no module named _native" in out


@pytest.mark.parametrize("name", ["LASTLAYER_BACKEND", "LASTLAYER_INSTRUCTION_SET"])
def test_a_wrong_setting_is_one_line_and_exit_code_2(name: str) -> None:
    if name == "LASTLAYER_INSTRUCTION_SET" and _backends.cpu is None:
        pytest.skip("the native module is not built")
    environment = {**os.environ, name: "gpu"}
    run = subprocess.run([sys.executable, "-m", "lastlayer", "info"], capture_output=True, text=True, env=environment)
    assert run.returncode == 2
    assert run.stderr.startswith(f"lastlayer info: {name} = 'gpu': expected one of ")
    assert run.stderr.count("\n") == 1


@pytest.mark.skipif(_backends.cpu is None, reason="the native module is not built")
def test_the_instruction_set_can_be_chosen() -> None:
    environment = {**os.environ, "LASTLAYER_INSTRUCTION_SET": "baseline"}
    run = subprocess.run([sys.executable, "-m", "lastlayer", "info"], capture_output=True, text=True, env=environment)
    assert "instruction set   baseline (LASTLAYER_INSTRUCTION_SET;" in run.stdout


def test_no_command_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["no-such-command"]):
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        assert exit_.value.code == 2
    assert "usage: lastlayer" in capsys.readouterr().err
