"""A server on a free port, for the tests that need a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def serve():
    """Start `lastlayer learn --no-browser` with more arguments, in a process of its own; return it and its address."""
    pytest.importorskip("uvicorn")
    started = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "lastlayer", "learn", "--no-browser", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        line = process.stdout.readline()
        return process, line.split()[2].rstrip("/")

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(10)
        process.stdout.close()
        process.stderr.close()


@pytest.fixture(scope="session")
def address(serve) -> str:
    """The address of a running server, without a slash at the end."""
    return serve()[1]
