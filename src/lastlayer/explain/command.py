"""`lastlayer explain`: numbers from the command line, a file or a pipe; their trace in colour, as text, HTML or JSON.

A user's mistake is one line on stderr and exit code 2. Siblings: functions.py (what can be explained, and with which
options), reading.py (numbers), terminal.py, notebook.py and page.py (what is printed or written).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

from lastlayer.explain import reading
from lastlayer.explain.functions import FUNCTIONS, NUMBERS, OPTIONS, Function, closest
from lastlayer.explain.trace import Trace

WIDEST = 100  # longer lines are hard to read
EXAMPLE = ["cross-entropy", "0.2 0.5 -0.1; -0.1 0.1 0.3", "--target", "1 2"]
EXAMPLES = """
examples:
  lastlayer explain softmax 1.2 2.5 0.9
  lastlayer explain cross-entropy "0.2 0.5 -0.1; -0.1 0.1 0.3" --target "1 2"
  lastlayer explain log-softmax -1 120 --dtype float32
  lastlayer explain entropy 0.5 0.25 0.25 --unit bits
  lastlayer explain cross-entropy --file logits.npy --rows 0:3 --target-file targets.npy --html why.html
  echo "1 2 3" | lastlayer explain softmax --json

Rows are separated by semicolons or new lines. Without a function, the second example is shown.
lastlayer explain FUNCTION --help lists the options of one function."""


class Mistake(Exception):
    """A mistake of the user's, told in one line."""


class _Parser(argparse.ArgumentParser):
    """argparse, its errors in one line."""

    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{message} ({self.prog} --help lists the options)")


def main(argv: list[str]) -> int:
    """Run `lastlayer explain` with these arguments.

    Args:
        argv: the command line after "explain"; of none, a worked example is shown.

    Returns:
        The exit code: 0, 1 if the reader of the output went away, 2 for a user's mistake, 130 after Ctrl-C.

    Example:
        >>> main(["sigmoid", "0", "--json", "--no-check"])
        {
          "title": "sigmoid of a number",
        ...
        }
        0
    """
    try:
        _run(argv)
    except ModuleNotFoundError as error:
        if error.name not in ("mpmath", "rich"):
            return _complain(argv, str(error))
        return _complain(argv, f'{error.name} not installed: pip install "lastlayer[explain]"')
    except (Mistake, ValueError, IndexError, TypeError, OverflowError) as error:
        return _complain(argv, " ".join(str(error).split()))
    except BrokenPipeError:
        # Python flushes stdout once more at its end; there must be something to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _complain(argv, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        print("lastlayer explain: interrupted", file=sys.stderr)
        return 130
    return 0


def _complain(argv: list[str], message: str) -> int:
    name = f" {argv[0]}" if argv[:1] and argv[0] in FUNCTIONS else ""
    print(f"lastlayer explain{name}: {message}", file=sys.stderr)
    return 2


def _run(argv: list[str]) -> None:
    name, *rest = argv or EXAMPLE
    if name in ("-h", "--help"):
        print(listing())
        return
    name = name.replace("_", "-")
    if name not in FUNCTIONS:
        raise Mistake(f"no function {name!r}{closest(name)} (lastlayer explain --help lists them)")
    options = _parse(name, FUNCTIONS[name], rest)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal need not know every sign of a formula
    _put_out(_trace(FUNCTIONS[name], options), options)
    if not argv:
        print("\nYour own numbers: lastlayer explain FUNCTION NUMBERS; lastlayer explain --help lists the functions.")


def listing() -> str:
    """Return the help: the functions with a line each, and examples."""
    width = max(map(len, FUNCTIONS))
    lines = [f"  {name.ljust(width)}  {function.help}" for name, function in FUNCTIONS.items()]
    head = "usage: lastlayer explain FUNCTION NUMBERS [options]\n\nFrom the formula to the number, step by step.\n"
    return "\n".join([head, "functions:", *lines, EXAMPLES])


def _parse(name: str, function: Function, argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog=f"lastlayer explain {name}", description=f"{function.help}.", allow_abbrev=False)
    if function.choices:
        parser.add_argument("family", choices=function.choices, help="the distribution")
    parser.add_argument("numbers", nargs="*", help=f"{function.numbers}; - reads standard input")
    for option in function.options:
        settings = OPTIONS[option] | {"required": option in function.required}
        parser.add_argument(f"--{option}", **settings)
    source = parser.add_argument_group("numbers from a file")
    source.add_argument("--file", help="an .npy, .npz or .safetensors file")
    source.add_argument("--name", help="which array of the file, if it has several")
    source.add_argument("--rows", metavar="A:B", help="which rows of the file, such as 0:3 or 5")
    output = parser.add_argument_group("output")
    output.add_argument("--dtype", choices=reading.DTYPES, help="the type to compute in (float64, or the file's)")
    output.add_argument("--html", metavar="FILE", help="write a page")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print Markdown with LaTeX")
    output.add_argument("--no-check", dest="check", action="store_false", help="do not run the line of PyTorch")
    # argparse takes -1e5, -inf and "-1,2" for options unless something stands before them.
    return parser.parse_intermixed_args([f" {word}" if _is_number(word) else word for word in argv])


def _is_number(word: str) -> bool:
    if not word.startswith("-"):
        return False
    with contextlib.suppress(ValueError):
        reading.floats([word.replace(",", " ").replace(";", " ").split() or ["-"]], "float64")
        return True
    return False


def _trace(function: Function, options: argparse.Namespace) -> Trace:
    """Call the function of lastlayer.explain with what was typed."""
    from lastlayer import explain

    numbers = _numbers(function, options)
    typed = {option.replace("-", "_"): getattr(options, option.replace("-", "_")) for option in function.options}
    named = {name: value for name, value in typed.items() if value is not None}
    for name in NUMBERS:
        if name in named:
            named[name] = _option(name, named[name], numbers.dtype.name)
    source = (named.pop("target_file", None), named.pop("target_name", None), options.rows)
    if "target" in function.options:
        target = _target(named.pop("target", None), *source, dtype=numbers.dtype.name)
        named["target"] = target[0] if numbers.ndim == 1 and target.shape == (1,) else target
    given = [options.family] if function.choices else []
    if named.pop("logits", False):
        named["logits"] = numbers
    else:
        given.append(numbers)
    try:
        found: Trace = getattr(explain, function.name)(*given, **named, check=options.check)
    except TypeError as error:
        raise Mistake(_in_options(str(error))) from None
    return found


def _in_options(message: str) -> str:
    """Return a complaint about arguments as one about options."""
    named = ", ".join(f"--{name.replace('_', '-')}" for name in re.findall(r"'(\w+)'", message))
    if " missing " in message:
        return f"needs {named} too"
    return f"{named} is none of its options" if " unexpected keyword " in message else message


def _numbers(function: Function, options: argparse.Namespace) -> Any:
    if options.file is not None:
        if options.numbers:
            raise Mistake(f"numbers and --file are both given: {' '.join(options.numbers).strip()!r}")
        found = reading.stored(options.file, options.name, options.rows)
        if found.dtype.kind not in "fiu" and found.dtype.name != "bfloat16":
            raise Mistake(f"{options.file} holds {found.dtype}, expected numbers")
        return reading.as_type(found, options.dtype, options.file) if options.dtype else found
    for name in ("rows", "name"):
        if getattr(options, name) is not None:
            raise Mistake(f"--{name} is of a --file, and none is given")
    typed = reading.numbers(_typed(function, options.numbers), function.numbers)
    found = reading.floats(typed, options.dtype or "float64", function.numbers)
    return found[0] if function.single and found.shape == (1,) else found


def _option(name: str, text: str, dtype: str) -> Any:
    """Return the numbers of an option in the type of the others: a row, or a number for a parameter of all data."""
    told = f"--{name.replace('_', '-')}"
    found = reading.floats(reading.numbers(text, told), dtype if dtype in reading.DTYPES else "float64", told)
    return found[0] if found.shape == (1,) and name not in ("q", "weight") else found


def _typed(function: Function, words: list[str]) -> str:
    if [word.strip() for word in words] == ["-"] or (not words and not _typing()):
        return sys.stdin.read() if sys.stdin else ""
    if not words:
        raise Mistake(f"no {function.numbers} given")
    return " ".join(words)


def _typing() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _target(text: str | None, file: str | None, name: str | None, rows: str | None, dtype: str) -> Any:
    if (text is None) == (file is None):
        raise Mistake(f"expected one of --target and --target-file, got {'neither' if text is None else 'both'}")
    if file is not None:
        return reading.stored(file, name, rows, targets=True)
    found = reading.classes("--target", reading.numbers(str(text), "--target"))
    # Probabilities are of the type of the logits, which PyTorch insists on.
    return reading.as_type(found, dtype, "--target") if found.dtype.kind == "f" and dtype in reading.DTYPES else found


def _put_out(trace: Trace, options: argparse.Namespace) -> None:
    if options.html:
        from lastlayer.explain import page

        write(Path(options.html), page.html(trace))
    if options.json:
        print(trace.to_json(indent=2))
    elif options.markdown:
        print(trace._repr_markdown_(), end="")
    elif options.html:
        print(f"wrote {options.html}")
    else:
        _show(trace)
    sys.stdout.flush()


def _show(trace: Trace) -> None:
    from lastlayer.explain import terminal

    if not sys.stdout.isatty():
        print(terminal.plain(trace, min(shutil.get_terminal_size().columns, WIDEST)))
        return
    from rich.console import Console

    console = Console()
    console.width = min(console.width, WIDEST)
    terminal.show(trace, console)


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all: beside its place first, then into it."""
    if path.is_dir():
        raise IsADirectoryError(21, "is a directory", str(path))
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        beside.unlink(missing_ok=True)
