"""How numbers, prose and formulas become what the page builds its elements from: trees of plain lists.

A node is a text, or ``[tag, attributes, child, ...]``. Prose knows **bold**, `code` and $formula$; a formula is a
small part of LaTeX and becomes native MathML. The page makes elements of nodes, never of markup, so no text can turn
into code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

Node: TypeAlias = "str | list[Any]"

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
FUNCTIONS = {"log", "exp", "max", "min", "sigmoid", "softmax", "logit", "LSE", "argmax"}
OPERATORS = {
    "cdot": "·", "times": "×", "le": "≤", "ge": "≥", "approx": "≈", "to": "→", "infty": "∞", "quad": "\u2003",
    "sum": "∑", "prod": "∏", "ne": "≠", "mid": "|", "Vert": "∥", "dots": "…", "partial": "∂", "Leftrightarrow": "⟺",
    "in": "∈",
}  # fmt: skip
GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "pi": "π", "sigma": "σ", "mu": "μ"}
CLOSING = {"(": ")", "[": "]"}
BEFORE_A_SIGN = ("(", "[", "=", ",", "\\,", "\\quad", "\\lp")

_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|\d+(?:\.\d+)?|\S")
_RICH = re.compile(r"\*\*(?P<strong>.+?)\*\*|`(?P<code>[^`]+)`|\$(?P<math>[^$]+)\$")


def show(value: float, digits: int = 4) -> str:
    """Return a number as the page prints it: four decimals, or a power of ten where these would not do.

    Example:
        >>> show(0.18484), show(-2.0612e-9), show(float("-inf")), show(3)
        ('0.1848', '−2.061·10⁻⁹', '−∞', '3')
    """
    if isinstance(value, int):
        return str(value).replace("-", "−")
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if 10.0**-digits <= abs(value) < 1e6:
        return f"{value:.{digits}f}".replace("-", "−")
    head, power = f"{value:.3e}".split("e")
    return f"{head.replace('-', '−')}·10{str(int(power)).translate(SUPERSCRIPTS)}"


def short(value: float) -> str:
    """Return a number without superfluous zeros, as on an axis or in a list of arguments.

    Example:
        >>> short(0.5), short(-20.0), short(1e-9)
        ('0.5', '−20', '1e−09')
    """
    return "∞" if value == math.inf else f"{value:.6g}".replace("-", "−").replace("inf", "∞")


def val(value: float | str) -> str:
    """Return a number as LaTeX that the page sets off as one of the reader's own."""
    return rf"\val{{{value if isinstance(value, str) else show(value)}}}"


def given(value: float) -> str:
    """Return a number that the reader put in, as typed: without decimals that nobody asked for."""
    return val(short(value))


def vals(values: Iterable[float]) -> str:
    """Return a row of numbers as LaTeX, in parentheses; lines may break after its commas."""
    return r"\lp " + r",\\ ".join(val(float(value)) for value in values) + r"\rp "


def rich(text: str) -> list[Node]:
    """Return prose as nodes.

    Example:
        >>> rich("a **b** `c`")
        ['a ', ['strong', {}, 'b'], ' ', ['code', {}, 'c']]
    """
    nodes: list[Node] = []
    end = 0
    for found in _RICH.finditer(text):
        nodes.append(text[end : found.start()])
        kind, inside = str(found.lastgroup), str(found[str(found.lastgroup)])
        nodes.append(formula(inside) if kind == "math" else [kind, {}, inside])
        end = found.end()
    return [node for node in [*nodes, text[end:]] if node != ""]


def formula(latex: str) -> Node:
    r"""Return a formula as a MathML tree; ``\val{...}`` is a number of the reader's.

    Example:
        >>> formula("p_1")
        ['math', {}, ['msub', {}, ['mi', {}, 'p'], ['mn', {}, '1']]]
    """
    return ["math", {}, *_Parser(latex).row("")]


def pieces(latex: str) -> list[Node]:
    r"""Return a formula in pieces, cut at ``\\\\``, between which a line may break where the page is narrow.

    Example:
        >>> len(pieces(r"a + \\ b"))
        2
    """
    return [formula(piece) for piece in latex.split(r"\\")]


class _Parser:
    """A reader of the LaTeX that the lessons use; what it does not know is an error, found by the first test."""

    def __init__(self, latex: str) -> None:
        self.latex = latex
        self.at = 0

    def token(self) -> str:
        """Return the next token, or "" at the end."""
        while self.at < len(self.latex) and self.latex[self.at].isspace():
            self.at += 1
        found = _TOKEN.match(self.latex, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found[0]

    def peek(self) -> str:
        start = self.at
        token = self.token()
        self.at = start
        return token

    def row(self, end: str) -> list[Node]:
        """Return the nodes up to a closing token."""
        nodes: list[Node] = []
        before = "("
        while (token := self.token()) != end:
            if token == "":
                raise ValueError(f"formula {self.latex!r} ends without {end!r}")
            # A sign after one of these belongs to what follows, and stands close to it.
            sign = token == "-" and before in BEFORE_A_SIGN
            if token[1:] in FUNCTIONS and nodes and before[-1].isalnum():
                nodes.append(["mspace", {"width": "0.17em"}])
            nodes.append(["mo", {"form": "prefix"}, "−"] if sign else self.scripts(self.atom(token)))
            before = self.latex[self.at - 1] if self.latex[self.at - 1] in ")]}" else token
        return nodes

    def group(self) -> Node:
        token = self.token()
        if token != "{":
            return self.atom(token)
        nodes = self.row("}")
        return nodes[0] if len(nodes) == 1 else ["mrow", {}, *nodes]

    def raw(self) -> str:
        """Return what stands in braces, as it is."""
        end = self.latex.index("}", self.at)
        text = self.latex[self.at : end].removeprefix("{")
        self.at = end + 1
        # MathML drops spaces at the ends of a text.
        return re.sub("^ | $", "\u00a0", text)

    def atom(self, token: str) -> Node:
        """Return the node of one token and its arguments."""
        if token == "{":
            nodes = self.row("}")
            return nodes[0] if len(nodes) == 1 else ["mrow", {}, *nodes]
        if token in CLOSING:
            # In a row of their own, parentheses are as high as what is between them, and no higher.
            return ["mrow", {}, ["mo", {}, token], *self.row(CLOSING[token]), ["mo", {}, CLOSING[token]]]
        if token.startswith("\\"):
            return self.command(token[1:])
        if token[0].isdigit():
            return ["mn", {}, token]
        if token.isalpha():
            return ["mi", {}, token]
        return ["mo", {}, "−" if token == "-" else token]

    def command(self, name: str) -> Node:
        """Return the node of a command such as frac or log."""
        if name == "frac":
            return ["mfrac", {}, self.group(), self.group()]
        if name == "sqrt":
            return ["msqrt", {}, self.group()]
        if name in ("text", "val"):
            return ["mtext", {}, self.raw()] if name == "text" else ["mn", {"class": "val"}, self.raw()]
        if name in FUNCTIONS:
            # A space stands for the invisible "function of" before an argument without parentheses.
            gap = [] if self.peek() in ("(", "_", "^") else [["mspace", {"width": "0.17em"}]]
            word: Node = ["mi", {"mathvariant": "normal"}, name]
            return ["mrow", {}, word, *gap] if gap else word
        if name in GREEK:
            return ["mi", {}, GREEK[name]]
        if name in (",", ";", "quad"):
            return ["mspace", {"width": {",": "0.17em", ";": "0.28em", "quad": "1em"}[name]}]
        if name in ("lp", "rp"):
            return ["mo", {"stretchy": "false"}, "(" if name == "lp" else ")"]
        if name in OPERATORS:
            return ["mo", {}, OPERATORS[name]]
        raise ValueError(f"formula {self.latex!r} has \\{name}, which is not known here")

    def scripts(self, base: Node) -> Node:
        """Return the node with what is written below and above it."""
        scripts: dict[str, Node] = {}
        while self.peek() in ("_", "^"):
            mark = self.token()
            scripts[mark] = self.group()
        if not scripts:
            return base
        place = "under" if base[-1] in ("∑", "∏", "max", "min") else "sub"
        over = "over" if place == "under" else "sup"
        tag = "m" + (place if "_" in scripts else "") + (over if "^" in scripts else "")
        return [tag, {}, base, *(scripts[mark] for mark in ("_", "^") if mark in scripts)]
