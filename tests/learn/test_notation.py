"""How numbers, prose and formulas become nodes."""

from __future__ import annotations

import math

import pytest

from lastlayer.learn.lessons import LESSONS
from lastlayer.learn.notation import formula, pieces, rich, show, vals


def text(node) -> str:
    """Return what a node reads as."""
    return node if isinstance(node, str) else "".join(text(child) for child in node[2:])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1.0000"),
        (-0.3123, "−0.3123"),
        (1e-4, "0.0001"),
        (9.99e-5, "9.990·10⁻⁵"),
        (1e6, "1.000·10⁶"),
        (math.inf, "∞"),
        (math.nan, "not a number"),
        (7, "7"),
        (-7, "−7"),
    ],
)
def test_numbers_are_printed_in_one_way(value, shown):
    assert show(value) == shown


@pytest.mark.parametrize(
    ("latex", "reads"),
    [
        (r"H(p) + D(p \Vert q)", "H(p)+D(p∥q)"),
        (r"(a) - b", "(a)−b"),
        (r"p_j (\alpha + \beta \log p_j)", "pj(α+βlogpj)"),
        (r"\frac{1}{6} \lp \val{−1.5} \rp", "16(−1.5)"),
        (r"(\beta) \log p", "(β)logp"),
        (r"x^{n - k}", "xn−k"),
        (r"\text{ nats}", "\u00a0nats"),
    ],
)
def test_a_formula_keeps_its_symbols(latex, reads):
    assert text(formula(latex)) == reads


def test_only_a_leading_minus_is_a_sign():
    signs = [node[1] for node in formula("- a - (- b)")[2:] if node[0] == "mo"]
    assert signs == [{"form": "prefix"}, {}]
    assert formula("a = - b")[4] == ["mo", {"form": "prefix"}, "−"]


def test_scripts_stand_under_sums_and_beside_letters():
    assert formula(r"\sum_k z_k")[2][0] == "munder"
    assert formula(r"\sum_k^n z")[2][0] == "munderover"
    assert formula(r"p_j^2")[2][0] == "msubsup"
    # The exponent belongs to the whole parenthesis.
    assert formula(r"(1 - p)^2")[2][1:][1][0] == "mrow"


def test_rows_break_between_their_numbers():
    assert [text(piece) for piece in pieces("p = " + vals([0.5, 0.25, 0.25]))] == ["p=(0.5000,", "0.2500,", "0.2500)"]


@pytest.mark.parametrize("latex", [r"\frac{a}{", r"\unknown", "{a", "(a"])
def test_a_formula_that_is_not_understood_is_an_error(latex):
    with pytest.raises(ValueError, match="formula"):
        formula(latex)


def test_prose_has_three_marks():
    assert rich("**a** `b` $c$ <i>") == [
        ["strong", {}, "a"],
        " ",
        ["code", {}, "b"],
        " ",
        ["math", {}, ["mi", {}, "c"]],
        " <i>",
    ]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.slug)
def test_no_mark_is_left_over_in_the_prose(lesson):
    texts = [lesson.question, *lesson.prose, *(text for _, text in lesson.notes)]
    texts += lesson.answer(lesson.read({})).says
    for prose in texts:
        left = "".join(node for node in rich(prose) if isinstance(node, str))
        assert not set("*`$\\") & set(left), prose
