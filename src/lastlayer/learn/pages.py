"""The lessons as pages of Markdown, every number computed when they are written.

    python -m lastlayer.learn.pages docs/lessons

What the page shows for a lesson's defaults, without the sliders. Sibling of api.py, which gives the same as JSON.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lastlayer.learn.lesson import Answer, Lesson
from lastlayer.learn.lessons import LESSONS
from lastlayer.learn.notation import FUNCTIONS, SUPERSCRIPTS

DIGITS = {chr(power): chr(digit) for digit, power in SUPERSCRIPTS.items()}  # of powers, as plain ones
KNOWN_TO_LATEX = {"log", "exp", "max", "min"}
INDEX = """# Lessons

`lastlayer learn` opens them as a page where every number can be dragged. Here they are with the numbers they begin
with, all computed by the library.

"""


def markdown(number: int, lesson: Lesson) -> str:
    """Return a lesson with the numbers it begins with.

    Example:
        >>> markdown(1, LESSONS[0]).splitlines()[0]
        '# 1. Odds, log-odds, logit, sigmoid'
    """
    found = lesson.answer(lesson.read({}))
    parts = [f"# {number}. {lesson.title}", f"*{text(lesson.question)}*", *map(text, lesson.prose)]
    parts += [f"$${math(line)}$$" for line in lesson.formula]
    parts.append(f"![The lesson as a page: {lesson.title}](../images/learn-{number}.png)")
    parts += ["## In numbers", *_numbers(found), *map(text, found.says)]
    for heading, note in lesson.notes:
        parts += [f"## {text(heading)}", text(note)]
    parts.append(f"[All lessons](README.md). To drag the numbers: `lastlayer learn`, lesson {number}.")
    return "\n\n".join(parts) + "\n"


def _numbers(found: Answer) -> Iterator[str]:
    rows = [[text(result.label), f"{result.text} {result.unit}".strip()] for result in found.numbers]
    yield _table(["", ""], rows)
    for step in found.steps:
        yield f"**{text(step.name)}**: ${math(step.latex)}$"
    for figure in found.figures:
        yield from _figure(figure)


def _figure(figure: dict[str, Any]) -> Iterator[str]:
    yield f"**{text(figure['title'])}**"
    kind = figure["kind"]
    if kind == "bars":
        series = [*figure["series"], *([figure["reference"]] if figure["reference"] else [])]
        rows = [[label, *(each["texts"][i] for each in series)] for i, label in enumerate(figure["labels"])]
        yield _table(["", *(each["name"] for each in series)], rows)
    elif kind == "heat":
        rows = [[name, *row] for name, row in zip(figure["rows"], figure["texts"], strict=True)]
        yield _table(["", *figure["columns"]], rows)
    elif kind == "table":
        yield _table(figure["columns"], figure["rows"])
    else:
        yield text(figure["alt"].removeprefix(f"{figure['title']}. "))


def _table(columns: list[str], rows: list[list[str]]) -> str:
    cells = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells)


def text(prose: str) -> str:
    """Return prose with its formulas as LaTeX."""
    return re.sub(r"\$([^$]+)\$", lambda found: f"${math(found[1])}$", prose)


def math(latex: str) -> str:
    r"""Return a lesson's formula as LaTeX that Markdown viewers know.

    Example:
        >>> math(r"\logit(p) = \val{−1.2·10⁻⁹}")
        '\\operatorname{logit}(p) = -1.2\\cdot 10^{-9}'
    """
    latex = re.sub(r"\\val\{([^}]*)\}", lambda found: _number(found[1]), latex)
    latex = latex.replace(r"\\", r"\quad ").replace(r"\lp", "(").replace(r"\rp", ")").replace("∞", r"\infty ")
    names = "|".join(FUNCTIONS - KNOWN_TO_LATEX)
    latex = re.sub(rf"\\({names})(?![a-zA-Z])", r"\\operatorname{\1}", latex)
    return re.sub(" +", " ", latex).strip()


def _number(shown: str) -> str:
    head, _, power = shown.replace("−", "-").partition("·10")
    return head if not power else rf"{head}\cdot 10^{{{''.join(DIGITS.get(mark, mark) for mark in power)}}}"


def pages() -> dict[str, str]:
    """Return the pages by file name."""
    names = {f"{i:02}-{lesson.slug}.md": (i, lesson) for i, lesson in enumerate(LESSONS, 1)}
    listed = "".join(f"{i}. [{lesson.title}]({name}): {text(lesson.question)}\n" for name, (i, lesson) in names.items())
    return {"README.md": INDEX + listed} | {name: markdown(i, lesson) for name, (i, lesson) in names.items()}


def main(folder: str) -> None:
    """Write the pages."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        Path(folder, name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
