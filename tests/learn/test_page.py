"""The page in a real browser without a window: it loads, follows every change, keeps its state, can be read.

Skipped, with the reason, where no Chromium or Playwright is found.
"""

from __future__ import annotations

import os
import shutil

import pytest

from lastlayer.learn import api

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

LESSONS = [lesson["slug"] for lesson in api.lessons()]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is found: none of {', '.join(BROWSERS)} is on the path")
    # Chromium's sandbox does not work for root, as whom containers run.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=arguments)
        yield started
        started.close()


class Page:
    """A page that remembers what it complained of and whom it asked."""

    def __init__(self, browser, address, width=1100, scheme="light", **options):
        self.address = address
        # Without motion: a smooth scroll would carry away what the mouse is about to press.
        self.context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce", **options
        )
        self.page = self.context.new_page()
        self.errors, self.foreign = [], []
        self.page.on(
            "console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: request.url.startswith(address) or self.foreign.append(request.url))

    def open(self, fragment):
        self.page.goto(f"{self.address}/#{fragment}")
        slug = fragment.split("?")[0]
        self.page.wait_for_selector(f'main[data-ready="{slug}"]', timeout=10_000)
        return self.page

    def answered(self, act):
        """Do something that changes the state, and wait until its answer is drawn."""
        before = self.answers()
        act()
        self.until(lambda: self.answers() > before)
        self.page.wait_for_timeout(50)

    def answers(self):
        return int(self.page.get_attribute("main", "data-answers"))

    def until(self, holds):
        """Wait for what holds: from here, for the page's policy forbids a script that waits there."""
        for _ in range(500):
            if holds():
                return
            self.page.wait_for_timeout(10)
        raise AssertionError("this did not come to hold within 5 seconds")


@pytest.fixture
def page(browser, address):
    made = Page(browser, address)
    yield made
    made.context.close()


@pytest.fixture(scope="module")
def axe():
    package = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    return package.Axe()


@pytest.mark.parametrize("slug", LESSONS)
def test_each_lesson_loads_from_this_server_alone_and_without_a_complaint(page, slug):
    shown = page.open(slug)
    number = LESSONS.index(slug) + 1
    assert shown.text_content(".eyebrow") == f"Lesson {number} of 10"
    found = api.answer(slug, {})
    assert shown.locator(".result .value").all_text_contents() == [each["text"] for each in found["numbers"]]
    assert shown.locator("figure.card").count() == len(found["figures"])
    alts = [figure["alt"] for figure in found["figures"] if figure["kind"] != "table"]
    assert [each.get_attribute("aria-label") for each in shown.locator("figure svg[role=img]").all()] == alts
    assert shown.locator(".steps math").count() >= len(found["steps"])
    assert page.errors == []
    assert page.foreign == []


@pytest.mark.parametrize("slug", LESSONS)
def test_nothing_is_wider_than_a_phone(browser, address, slug):
    page = Page(browser, address, width=360, scheme="dark")
    shown = page.open(slug)
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360
    # What is cut off inside a card would not make the page wider.
    cards = "[...document.querySelectorAll('figure svg, .field, .result')]"
    cut = shown.evaluate(f"{cards}.filter((e) => e.scrollWidth > e.clientWidth + 1).length")
    assert cut == 0
    page.context.close()


# In the dark only the colours are others.
@pytest.mark.parametrize(("scheme", "rules"), [("light", {}), ("dark", {"runOnly": ["color-contrast"]})])
@pytest.mark.parametrize("slug", LESSONS)
def test_axe_finds_nothing(browser, address, axe, slug, scheme, rules):
    # The policy of the page forbids what axe itself does.
    page = Page(browser, address, scheme=scheme, bypass_csp=True)
    found = axe.run(page.open(slug), options={"resultTypes": ["violations"], **rules}).response["violations"]
    page.context.close()
    assert not found, [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found]


def test_a_slider_moves_figure_formula_and_number(page):
    shown = page.open("softmax")
    seen = [shown.text_content(selector) for selector in (".result .value", ".steps", ".says")]
    alt = shown.locator("figure svg").nth(1).get_attribute("aria-label")
    slider = shown.get_by_label("Logits z, class 0, slider")
    slider.focus()
    page.answered(lambda: slider.press("End"))
    assert shown.get_by_label("Logits z, class 0", exact=True).input_value() == "5"
    expected = api.answer("softmax", {"logits": [5, 2.5, 0.9]})
    assert shown.locator(".result .value").all_text_contents() == [each["text"] for each in expected["numbers"]]
    assert shown.locator("figure svg").nth(1).get_attribute("aria-label") == expected["figures"][1]["alt"] != alt
    assert all(
        shown.text_content(each) != old for each, old in zip((".result .value", ".steps", ".says"), seen, strict=True)
    )
    # A screen reader is told after a pause.
    page.until(lambda: expected["numbers"][0]["text"] in shown.text_content("#spoken"))


def test_a_typed_number_counts_and_arrows_step_it(page):
    shown = page.open("softmax")
    box = shown.get_by_label("Temperature T", exact=True)
    page.answered(lambda: box.fill("0.5"))
    assert shown.locator(".result .value").first.text_content() == "0.8968"
    page.answered(lambda: box.press("ArrowUp"))
    assert box.input_value() == "0.55"
    assert "temperature=0.55" in shown.url


def test_a_link_restores_the_state(page):
    shown = page.open("softmax?logits=1,2,3&temperature=2")
    assert [shown.get_by_label(f"Logits z, class {j}", exact=True).input_value() for j in range(3)] == ["1", "2", "3"]
    expected = api.answer("softmax", {"logits": [1, 2, 3], "temperature": 2})
    assert shown.locator(".result .value").all_text_contents() == [each["text"] for each in expected["numbers"]]
    box = shown.get_by_label("Constant c, added to all", exact=True)
    page.answered(lambda: box.fill("7"))
    link = shown.url
    assert link.endswith("#softmax?logits=1,2,3&temperature=2&constant=7")
    shown.goto("about:blank")
    shown.goto(link)
    shown.wait_for_selector('main[data-ready="softmax"]')
    assert shown.get_by_label("Constant c, added to all", exact=True).input_value() == "7"


def test_a_matrix_and_a_choice_travel_in_the_link_too(page):
    shown = page.open("mistakes")
    page.answered(lambda: shown.get_by_label("Logits z, row 1, class 2", exact=True).fill("-1.5"))
    page.answered(lambda: shown.get_by_role("radio", name="Softmax twice").check(force=True))
    assert shown.url.endswith("#mistakes?mistake=twice&logits=1,2,0.1;1.2,0.5,-1.5;0.4,1,1.5")
    shown.reload()
    shown.wait_for_selector('main[data-ready="mistakes"]')
    assert shown.get_by_label("Logits z, row 1, class 2", exact=True).input_value() == "-1.5"
    assert shown.get_by_role("radio", name="Softmax twice").is_checked()


def test_a_state_to_try_is_a_link_that_keeps_the_focus(page):
    shown = page.open("softmax")
    link = shown.get_by_role("link", name="Nearly argmax")
    link.focus()
    page.answered(lambda: link.press("Enter"))
    assert shown.get_by_label("Temperature T", exact=True).input_value() == "0.1"
    assert shown.evaluate("document.activeElement.textContent") == "Nearly argmax"
    page.answered(lambda: shown.get_by_role("button", name="Reset").click())
    assert shown.get_by_label("Temperature T", exact=True).input_value() == "1"


def drag(shown, selector, nth, to):
    handle = shown.locator(selector).nth(nth)
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown.mouse.down()
    shown.mouse.move(box["x"] + box["width"] * to[0], box["y"] + box["height"] * to[1], steps=6)
    shown.mouse.up()


def test_a_point_on_a_curve_can_be_dragged(page):
    shown = page.open("likelihood")
    page.answered(lambda: drag(shown, "figure .grip", 0, (0.7, 0.3)))
    assert float(shown.get_by_label("Probability p of heads", exact=True).input_value()) == pytest.approx(0.7, abs=0.02)
    shown = page.open("odds")
    page.answered(lambda: drag(shown, "figure .grip", 0, (0.5, 0.3)))
    assert float(shown.get_by_label("Probability p", exact=True).input_value()) == pytest.approx(0.5, abs=0.02)


def test_a_bar_can_be_dragged(page):
    shown = page.open("softmax")
    page.answered(lambda: drag(shown, "figure .grip.upright", 2, (0.5, 0.0)))
    assert float(shown.get_by_label("Logits z, class 2", exact=True).input_value()) == pytest.approx(5, abs=0.2)


@pytest.mark.parametrize(("typed", "told"), [("abc", "got 'abc'"), ("", "got nothing"), ("5000", "got 5000")])
def test_bad_input_is_told_at_its_field_and_the_page_stays(page, typed, told):
    shown = page.open("softmax")
    box = shown.get_by_label("Logits z, class 1", exact=True)
    box.fill(typed)
    line = shown.locator('[data-field="logits"] .complaint')
    line.wait_for(state="visible")
    assert line.text_content() == f"logits[1]: expected a number from −1000 to 1000, {told}"
    assert box.get_attribute("aria-invalid") == "true"
    assert box.get_attribute("aria-describedby") == line.get_attribute("id")
    assert shown.locator("figure.card").count() == 3
    page.answered(lambda: box.fill("1"))
    assert line.is_hidden()
    assert box.get_attribute("aria-invalid") is None


@pytest.mark.parametrize(
    "fragment", ["softmax?logits=1,2", "softmax?temperature=", "softmax?logits=%E0%A4%A", "no-such", "softmax?x=1&x=2"]
)
def test_a_broken_link_breaks_nothing(page, fragment):
    shown = page.page
    shown.goto(f"{page.address}/#{fragment}")
    shown.wait_for_selector("main[data-ready]")
    assert shown.locator("h1").count() == 1
    assert [error for error in page.errors if "400" not in error] == []


def test_only_the_chosen_loss_shows_its_number(page):
    shown = page.open("objectives")
    assert shown.get_by_label("Focus g", exact=True).is_visible()
    page.answered(lambda: shown.get_by_role("radio", name="z-loss").check(force=True))
    assert not shown.get_by_label("Focus g", exact=True).is_visible()
    assert shown.get_by_label("Factor of the z-loss", exact=True).is_visible()


def test_the_keyboard_reaches_everything(page):
    shown = page.page
    shown.goto(page.address)
    shown.wait_for_selector("main[data-ready]")
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.className") == "skip"
    shown.keyboard.press("Enter")
    assert shown.evaluate("document.activeElement.id") == "lesson"
    assert "#" not in shown.url
    names = []
    for _ in range(16):
        shown.keyboard.press("Tab")
        names.append(
            shown.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent")
        )
    assert "Probability p, slider" in names
    assert "Probability p" in names
    assert "Copy link" in names


def test_answers_come_in_order(page):
    """While one answer is slow the states in between are dropped, and the last one is shown."""
    shown = page.open("softmax")
    asked = []

    def slow(route):
        asked.append(route.request.post_data_json["temperature"])
        shown.wait_for_timeout(40)
        route.continue_()

    shown.route("**/api/lessons/softmax", slow)
    slider = shown.get_by_label("Temperature T, slider")
    move = "(e) => { e.value = i / 20; e.dispatchEvent(new Event('input')); }"
    slider.evaluate(f"(e) => {{ for (let i = 1; i <= 60; i++) setTimeout(() => ({move})(e), 4 * i); }}")
    last = api.answer("softmax", {"temperature": 3})["numbers"][0]["text"]
    page.until(lambda: shown.text_content(".result .value") == last)
    assert asked == sorted(asked)
    assert asked[-1] == 3
    assert len(asked) < 30
