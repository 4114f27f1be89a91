"""The command line: ``lastlayer info``, ``demo``, ``explain`` and ``learn``.

What a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence


def info() -> str:
    """Say which backends are there, which instruction set and how many threads work, and why."""
    import platform

    import numpy as np

    import lastlayer
    from lastlayer import _backends

    lines = [f"lastlayer {lastlayer.__version__}, Python {platform.python_version()}, NumPy {np.__version__}"]
    if importlib.util.find_spec("torch"):
        import torch

        lines[0] += f", torch {torch.__version__}"
    chosen = "by LASTLAYER_BACKEND" if _backends.requested() else "the fastest that is there"
    cpu = _backends.cpu
    there = ["reference", *(["cpu"] if cpu else []), *(["triton"] if importlib.util.find_spec("triton") else [])]
    lines.append(f"backends          {', '.join(there)}")
    used = _backends.requested() or _backends.host().__name__.rsplit(".", 1)[-1]
    lines.append(f"in use            {used} ({chosen})")
    if cpu is None:
        lines.append(f"cpu               not there: {_backends.missing}")
    else:
        sets, why = cpu.instruction_sets()
        lines.append(f"instruction set   {sets[0]} ({why}; this build and processor have {', '.join(sorted(sets))})")
    count, why = _backends.numpy_threads()
    lines.append(f"threads (NumPy)   {count} ({why})")
    if importlib.util.find_spec("torch"):
        lines.append(f"threads (torch)   {torch.get_num_threads()} (torch.get_num_threads())")
        lines.append(f"gpu               {_gpu()}")
    else:
        lines.append('torch             not installed: pip install "lastlayer[torch]"')
    return "\n".join(lines)


def _gpu() -> str:
    """Say what computes on a GPU."""
    import torch

    if not torch.cuda.is_available():
        return "none (torch.cuda.is_available())"
    if importlib.util.find_spec("triton") is None:
        return f"{torch.cuda.get_device_name()}: reference (triton is not installed)"
    import triton

    return f"{torch.cuda.get_device_name()}: Triton {triton.__version__}"


def _with_extra(command: str, argv: list[str]) -> int:
    """Run a command whose package needs the extra of the same name."""
    try:
        module = importlib.import_module(f"lastlayer.{command}.command")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "lastlayer":
            raise
        print(f'lastlayer {command}: {error.name} not installed: pip install "lastlayer[{command}]"', file=sys.stderr)
        return 2
    return int(module.main(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (2 for bad usage)."""
    parser = argparse.ArgumentParser(prog="lastlayer", description="The last layer of classifiers and language models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("info", help="backends, instruction set and threads in use, and why")
    commands.add_parser("demo", help="train, evaluate and sample a small language model on real text", add_help=False)
    commands.add_parser("explain", help="from the formula to the number, for your own numbers", add_help=False)
    commands.add_parser("learn", help="lessons on a local page, where every number can be dragged", add_help=False)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["demo"]:
        from lastlayer import demo

        return demo.main(arguments[1:])
    if arguments[:1] in (["explain"], ["learn"]):
        return _with_extra(arguments[0], arguments[1:])
    parser.parse_args(arguments)
    try:
        print(info())
    except (RuntimeError, ValueError) as error:
        print(f"lastlayer info: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
