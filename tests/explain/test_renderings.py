"""The renderings of a trace: every number shown is one of the trace, whatever the numbers, the width and the form."""

from __future__ import annotations

import io
import json
import math
import re
from decimal import Decimal
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("mpmath", reason="lastlayer.explain needs mpmath")
rich_console = pytest.importorskip("rich.console", reason="colours need rich")

from lastlayer import explain  # noqa: E402
from lastlayer.explain import mathml, notebook, page, shown, terminal  # noqa: E402
from lastlayer.explain.trace import Step, Trace  # noqa: E402

NUMBER = re.compile(r"(?<![\w.,-])-?(?:\d+(?:\.\d+)?(?:e-?\d+)?|inf|nan)(?![\w.])")
LONG = [math.sin(j) for j in range(50_000)]
WIDTHS = (40, 60, 80, 120)


def step(value: Any, *, exact: Any = None, ulp: Any = None, dtype: str = "", **more: Any) -> Step:
    """Make a step whose texts hold no number, so that all numbers shown are those of value, exact and ulp."""

    def each(tell: Any, x: Any) -> Any:
        return [each(tell, y) for y in x] if isinstance(x, list) else tell(x)

    exact = each(lambda x: repr(float(x)), value) if exact is None else exact
    ulp = each(lambda x: 0.0, value) if ulp is None else ulp
    texts = {"name": "do <it>", "formula": "p < q & r", "latex": "p < q", "substituted": "a < b"}
    return Step(**(texts | {"value": value, "exact": exact, "ulp": ulp} | more))


def trace(*steps: Step, result: Any = 1.0, dtype: str = "float64", **more: Any) -> Trace:
    return Trace("a <title>", "f(x, '&')", dtype, {}, steps, result, **more)


VALUES = {
    "a number": 0.8700957755,
    "a row": [0.2725317930340126, 1.0, 0.2018965179946554],
    "rows": [[0.2, 0.5, -0.1], [-0.1, 0.1, 1e-9]],
    "not finite": [math.inf, -math.inf, math.nan, 0.0, -0.0],
    "extreme": [1e300, -1e-300, 5e-324, 123456.789, 1234567.0, 0.00123456, 0.000999999, 99999.99996],
    "one class": [1.0],
    "classes": [2, 0, 1],
    "many": LONG,
    "many rows": [[math.cos(i + j) for j in range(30)] for i in range(40)],
    "three dimensions": [[[1.5, 2.5], [3.5, 4.5]], [[5.5, 6.5], [7.5, 8.5]]],
}  # fmt: skip


def flat(value: Any) -> list[Any]:
    return [x for each in value for x in flat(each)] if isinstance(value, list) else [value]


def is_shown(text: str, number: float | str) -> bool:
    """Tell whether text is this number, rounded to the digits of text."""
    if not np.isfinite(float(number)):
        return text == str(float(number))
    if text in ("inf", "-inf", "nan"):
        return False
    told = Decimal(text)
    step = Decimal(1).scaleb(int(told.as_tuple().exponent))
    return abs(told - Decimal(number)) <= step / 2


def numbers_in(text: str) -> list[str]:
    """Return the numbers of a text without counts, row names and numbers of steps."""
    text = re.sub(r"(?m)^ ?\d+  do <it>|(?<=\.\.\.)\s+[\d,]+\s+more|row \d+|entry \d+|and [\d,]+ more", "", text)
    return NUMBER.findall(text)


def rendered(shown_trace: Trace, form: str) -> str:
    if form == "markdown":
        return re.sub(
            r"(?m)^### \d+\.|\|  ?(?:\| \d+ )*\|$|^\|.*\n(?=\| ---)|… [\d,]+ more|\\",
            "",
            notebook.markdown(shown_trace),
        )
    return terminal.plain(shown_trace, int(form))


@pytest.mark.parametrize("form", ["40", "60", "80", "120", "markdown"])
@pytest.mark.parametrize("name", VALUES)
def test_every_number_shown_is_one_of_the_trace(name: str, form: str) -> None:
    told = trace(step(VALUES[name], unit="nats"), result=VALUES[name])
    found = numbers_in(rendered(told, form))
    assert found
    known = flat(VALUES[name])
    first, last = known[:40], known[-40:]
    for text in found:
        assert any(is_shown(text, x) for x in (*first, *last, *known)), text


def test_a_number_that_is_not_in_the_trace_would_be_found() -> None:
    assert not any(is_shown("0.8702", x) for x in (0.8700957755, 0.87025001))
    assert is_shown("0.8701", 0.8700957755)
    assert numbers_in("= 0.5  -inf  1.5e-9; nan") == ["0.5", "-inf", "1.5e-9", "nan"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["a row", "not finite", "extreme", "one class", "classes", "many"])
def test_the_ends_of_a_row_are_shown_in_order_and_the_rest_is_counted(name: str, width: int) -> None:
    value: Any = VALUES[name]
    line = shown.elided(value, width, shown.number)
    assert len(line) <= width
    count = re.search(r"  \.\.\. ([\d,]+) more \.\.\.", line)
    before, after = (line[: count.start()], line[count.end() :]) if count else (line, "")
    first, last = before.split(), after.split()
    hidden = int(count[1].replace(",", "")) if count else 0
    assert len(first) + hidden + len(last) == len(value)
    assert all(is_shown(text, x) for text, x in zip(first, value, strict=False))
    assert all(is_shown(text, x) for text, x in zip(last[::-1], value[::-1], strict=False))
    if count:
        assert first


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", VALUES)
def test_lines_fit(name: str, width: int) -> None:
    text = "a rather long sentence about what has been computed here, and why it matters to the reader. " * 3
    told = trace(
        step(VALUES[name], name="a step with a name", formula="f(x) = " + "x + " * 60, note=text, unit="nats"),
        step(VALUES[name], substituted=" + ".join(map(repr, LONG[:5000]))),
        result=VALUES[name], pytorch="F.f(" + ", ".join(map(repr, LONG[:500])) + ")", pytorch_value=VALUES[name],
        agrees=True, notes=(text,),
    )  # fmt: skip
    lines = terminal.plain(told, width).split("\n")
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


def test_numbers_stay_whole_where_the_middle_of_a_formula_is_left_out() -> None:
    told = terminal.plain(trace(step(1.0, substituted=" + ".join(map(repr, LONG)))), 60)
    found = [text for text in numbers_in(told) if text != "1"]
    assert found
    assert set(found) <= set(map(repr, LONG))


# The exact value: name, value, exact, ulp, type, and whether it is told.
EXACT = [
    ("the same", 0.1, "0.10000000000000001", 0.0, "float64", False),
    ("another digit far behind", 0.8700957755, "0.87009577551", 0.4, "float32", False),
    ("a digit that is shown", 0.8702, "0.8700957755", 1000.0, "float32", True),
    ("all digits lost", 0.0, "2.0611536181902037e-9", 1.4e36, "float32", True),
    ("too small for its type", 0.0, "7.6676480737219996e-53", 5e-8, "float32", True),
    ("not finite", -math.inf, "-120.0", math.inf, "float32", True),
    ("infinite both", -math.inf, "-inf", 0.0, "float32", False),
    ("neither a number", math.nan, "nan", 0.0, "float32", False),
    ("few digits, all right", 0.8701171875, "0.8700957755", 0.04, "float16", False),
    ("few digits, one wrong", 0.5, "0.54", 80.0, "float16", True),
    ("a class", 2, "2", 0.0, "float32", False),
]


@pytest.mark.parametrize(
    ("value", "exact", "ulp", "dtype", "told"), [case[1:] for case in EXACT], ids=[c[0] for c in EXACT]
)
def test_the_exact_value_is_told_where_the_digits_shown_differ(
    value: float, exact: str, ulp: float, dtype: str, told: bool
) -> None:
    one = trace(step(value, exact=exact, ulp=ulp), dtype=dtype, result=value)
    for text in (terminal.plain(one), notebook.html(one), notebook.markdown(one)):
        assert (re.search("exact", text.partition("</style>")[2] or text, re.IGNORECASE) is not None) == told
    if told and math.isfinite(value):
        assert " ulp away" in terminal.plain(one)
        assert any(is_shown(text, exact) for text in numbers_in(terminal.plain(one)))


def test_of_many_inexact_numbers_the_worst_are_told() -> None:
    value = [0.5] * 10
    one = trace(step(value, exact=["0.6"] * 10, ulp=[float(j) for j in range(10)], labels=tuple("abcdefghij")))
    text = terminal.plain(one)
    assert re.findall(r"exact \((.)\)", text) == ["j", "i", "h"]
    assert "and 7 more that differ" in text


def cells(li: ElementTree.Element) -> list[list[str]]:
    """Return the numbers of the first table of a step, row by row, the hidden ones counted."""
    table = li.find(".//div[@class='numbers']/table")
    assert table is not None
    rows = [["".join(td.itertext()) for td in tr.findall("td")] for tr in table.findall("tr")]
    return [[text for text in row if text] for row in rows if any(row)]


@pytest.mark.parametrize("name", VALUES)
def test_the_page_shows_the_numbers_in_their_places(name: str) -> None:
    value = VALUES[name]
    root = ElementTree.fromstring(page.html(trace(step(value), result=value)).removeprefix("<!DOCTYPE html>"))
    li = root.find(".//ol/li")
    assert li is not None
    if not isinstance(value, list):
        assert is_shown("".join(li.find("p[@class='result']").itertext()).removeprefix("= "), value)
        return
    found, expected = cells(li), shown.rows(value)
    hidden = [row for row in found if "rows" in row[0]]
    assert (len(found) - len(hidden)) + sum(int(re.sub(r"\D", "", row[0])) for row in hidden) == len(expected)
    for row, numbers in [(found[0], expected[0]), (found[-1], expected[-1])]:
        gaps = [text for text in row if "more" in text]
        assert len(row) - len(gaps) + sum(int(re.sub(r"\D", "", text)) for text in gaps) == len(numbers)
        assert is_shown(row[0], numbers[0])
        assert is_shown(row[-1], numbers[-1])


def hostile() -> Trace:
    bad = "<script>alert('&')</script>"
    texts = dict.fromkeys(("name", "formula", "latex", "substituted", "unit", "note"), bad)
    return Trace(
        bad, bad, "float32", {bad: bad},
        (step([1.0, 0.5], labels=(bad, "b"), **texts),),
        0.5, bad, bad, 0.5, True, (bad,),
    )  # fmt: skip


def test_pages_are_well_formed_and_need_no_network() -> None:
    for told in (hostile(), trace(step(LONG)), trace(*(step(value) for value in VALUES.values()))):
        text = page.html(told)
        root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
        assert not re.search(r"https?:|//|url\(|@import|<script|<link|<img|<iframe", text)
        assert root.find(".//h1") is not None
        assert not {"script", "link", "img", "iframe", "object"} & {each.tag for each in root.iter()}
        ElementTree.fromstring(f"<div>{notebook.html(told)}</div>")


def test_markdown_has_no_html_and_one_cell_for_each_number() -> None:
    text = notebook.markdown(hostile())
    assert "<script" not in re.sub(r"`[^`]*`|\$\$.*?\$\$", "", text).replace("\\<", "")
    table = [line for line in notebook.markdown(trace(step(VALUES["rows"]))).split("\n") if line.startswith("|")]
    assert [line.count(" | ") for line in table] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("latex", "same"), [(r"\frac{a}{b}", False), (r"\nosuchthing x", True), ("a & b", True), ("", True)]
)
def test_a_formula_is_mathml_or_plain_text(latex: str, same: bool) -> None:
    pytest.importorskip("latex2mathml")
    found = mathml.formula(latex, "a < b")
    assert (found == "<code>a &lt; b</code>") == same
    ElementTree.fromstring(found)


def test_colours_and_none() -> None:
    told = trace(*(step(value) for value in VALUES.values()), pytorch="F.f(x)", pytorch_value=1.0, agrees=False)

    def printed(**settings: Any) -> str:
        console = rich_console.Console(file=io.StringIO(), width=60, **settings)
        terminal.show(told, console)
        return str(console.file.getvalue())

    coloured = printed(force_terminal=True, color_system="standard", _environ={})
    plain = terminal.plain(told, 60) + "\n"
    assert "\x1b[1;36m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", printed(force_terminal=True, _environ={"NO_COLOR": "1"}))
    assert printed(_environ={}) == plain  # a pipe


def test_pytorch_is_said_to_agree_to_differ_or_not_to_have_been_asked() -> None:
    def end(**more: Any) -> str:
        return terminal.plain(trace(step(1.0), pytorch="F.f(x)", **more)).partition("PyTorch")[2]

    assert "= 1, agrees" in end(pytorch_value=1.0, agrees=True)
    assert "= 2, differs" in end(pytorch_value=2.0, agrees=False)
    assert "not compared" in end()
    assert "PyTorch" not in terminal.plain(trace(step(1.0)))


def test_json_holds_what_the_trace_holds() -> None:
    told = trace(step(VALUES["not finite"]))
    found = json.loads(told.to_json())
    assert found["steps"][0]["value"] == ["inf", "-inf", "nan", 0.0, -0.0]
    assert found["result"] == told.result


def real(name: str) -> Trace:
    """Return a trace of one of the functions."""
    logits = [[0.2, 0.5, -0.1], [-0.1, 0.1, 0.3]]
    made = {
        "cross-entropy": lambda: explain.cross_entropy(logits, [1, 2], check=False),
        "bits": lambda: explain.cross_entropy(logits, [1, 2], unit="bits", label_smoothing=0.1, check=False),
        "margin 120": lambda: explain.log_softmax(np.float32([0, 120]), check=False),
        "masked": lambda: explain.softmax([0.0, -math.inf, 1.0], check=False),
        "one class": lambda: explain.softmax([3.0], check=False),
        "half": lambda: explain.softmax(np.float16([1.2, 2.5, 0.9]), check=False),
        "long": lambda: explain.softmax(np.float32(LONG), check=False),
        "no distribution": lambda: explain.softmax([math.inf, 0.0], check=False),
        "a number": lambda: explain.sigmoid(1.5, check=False),
    }
    return made[name]()


@pytest.mark.parametrize(
    "name",
    ["cross-entropy", "bits", "margin 120", "masked", "one class", "half", "long", "no distribution", "a number"],
)
def test_traces_of_the_functions_in_all_renderings(name: str) -> None:
    told = real(name)
    for width in (60, 80):
        assert max(map(len, terminal.plain(told, width).split("\n"))) <= width
    root = ElementTree.fromstring(page.html(told).removeprefix("<!DOCTYPE html>"))
    steps = root.findall(".//ol/li")
    assert len(steps) == len(told.steps)
    for li, one in zip(steps, told.steps, strict=True):
        if isinstance(one.value, list):
            assert is_shown(cells(li)[0][0], flat(one.value)[0])
            assert is_shown(cells(li)[-1][-1], flat(one.value)[-1])
    assert notebook.markdown(told).count("\n### ") == len(told.steps)


def test_all_formulas_become_mathml() -> None:
    pytest.importorskip("latex2mathml")
    for name in ("cross-entropy", "bits", "margin 120", "a number"):
        for one in real(name).steps:
            assert mathml.formula(one.latex, one.formula).startswith("<math"), one.latex


def test_a_cross_entropy_fits_one_screen_and_says_the_loss() -> None:
    text = terminal.plain(real("cross-entropy"), 80)
    assert text.count("\n") + 1 <= 45
    assert "Result   0.8701 nats" in text
    assert terminal.plain(real("cross-entropy"), 60).count("\n") + 1 <= 60
