"""`lastlayer demo`: a language model trained, scored, sampled and measured with this library's last layer.

options -> corpus -> model, train -> evaluate -> measure -> report, terminal; `run` strings them together. Importing
this package imports none of what the `demo` extra brings.
"""

from __future__ import annotations

import importlib.util
import os
import sys

from lastlayer.demo.options import DemoError, parse

NEEDED = ("torch", "tokenizers", "rich")


def wait_politely() -> None:
    """Let torch's idle threads sleep: spinning, they cost a shared machine more time than waking them takes."""
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main(argv: list[str]) -> int:
    """Run `lastlayer demo` with these arguments; return the exit code: 2 for a user's mistake, 130 after Ctrl-C."""
    try:
        options = parse(argv)
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise DemoError(f'{" and ".join(missing)} not installed: pip install "lastlayer[demo]"')
        wait_politely()
        from lastlayer.demo.run import run

        return run(options)
    except DemoError as error:
        print(f"lastlayer demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lastlayer demo: interrupted", file=sys.stderr)
        return 130
