"""The lessons as pages in the documents say what the library says today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lastlayer.learn import pages
from lastlayer.learn.lessons import LESSONS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_committed_pages_are_those_of_today() -> None:
    """After a change of a lesson: ``python -m lastlayer.learn.pages docs/lessons``."""
    expected = pages.pages()
    found = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "lessons").glob("*.md")}
    assert found == expected


def test_every_number_of_the_answer_is_on_the_page() -> None:
    for number, lesson in enumerate(LESSONS, 1):
        page = pages.markdown(number, lesson)
        for result in lesson.answer(lesson.read({})).numbers:
            assert result.text in page


def test_pictures_and_links_are_there() -> None:
    for name, page in pages.pages().items():
        for target in re.findall(r"\]\(([^)#:]+)\)", page):
            assert (DOCS / "lessons" / target).exists(), (name, target)


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        (r"\val{1.5} + \lp a\rp", "1.5 + ( a)"),
        (r"\softmax(z) \\ = p", r"\operatorname{softmax}(z) \quad = p"),
        (r"\argmax_j", r"\operatorname{argmax}_j"),
        (r"\max_j", r"\max_j"),
        (r"\val{−∞}", r"-\infty"),
    ],
)
def test_formulas(latex: str, expected: str) -> None:
    assert pages.math(latex) == expected
