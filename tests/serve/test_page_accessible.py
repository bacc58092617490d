"""axe-core over every state of the page, in a real Chromium: no violations of WCAG 2.2 AA or of its best practices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.serve.conftest import CRISIS, ORDINARY, chat_with
from tests.serve.test_page import visit, width_fits, write
from tests.serve.test_visits import PASSIVE, Kept

pytestmark = pytest.mark.browser

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def faults(page: Any) -> list[str]:
    # The dev dependency brings axe-core along; nothing of it is in the product.
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page, options={"runOnly": RULES})
    return [
        f"{each['id']}: {node['html'][:160]} {node['failureSummary'][:300]}"
        for each in found.response["violations"]
        for node in each["nodes"]
    ]


def states(page: Any, check: Callable[[str], None]) -> None:
    """Every state that a visitor can bring the page into."""
    check("first screen")
    write(page, ORDINARY)
    check("conversation")
    page.click(".rate summary")
    page.click(".rate button:text-is('Harmful')")
    page.wait_for_selector("text=Noted. Thank you.")
    check("judged")
    page.click("button:text-is('Edit')")
    check("editing")
    page.click("#edit-cancel")
    page.click("#about-open")
    check("settings")
    page.click("#delete-this")
    check("asked before deleting")
    page.click(".this-ways button:text-is('Keep')")
    page.select_option("#size", "largest")
    check("largest text")
    page.select_option("#size", "")
    page.click("#to-earlier")
    page.wait_for_selector(".past")
    check("list of conversations")
    page.click("button:text-is('Rename')")
    check("renaming")
    page.click("button:text-is('Cancel')")
    page.click(".past button:text-is('Delete')")
    check("asked before deleting from the list")
    page.click(".past button:text-is('Keep')")
    page.click("#earlier-back")
    page.click("#new")
    write(page, PASSIVE)
    check("level 2")
    page.route("**/messages", lambda route: route.abort("connectionrefused"))
    write(page, ORDINARY)
    check("unreachable")
    page.unroute("**/messages")
    page.click("#new")
    write(page, CRISIS)
    check("level 3")
    page.click("#about-open")
    page.select_option("#language", "es")
    page.wait_for_selector("#help:text-is('Necesito ayuda ya')")
    check("Spanish at level 3")
    home = "/".join(page.url.split("/")[:3])
    for path in ("/help", "/help?country=GB&language=de&text=large", "/measures"):
        page.goto(home + path)
        check(path)


SIZES = [(360, 740), (768, 1024), (1280, 800)]
VIEWS = [(size, scheme) for size in SIZES for scheme in ("light", "dark")]
USUAL = [((360, 740), "light"), ((1280, 800), "dark")]


@pytest.mark.parametrize(
    ("size", "scheme"), [pytest.param(*view, marks=() if view in USUAL else pytest.mark.slow) for view in VIEWS]
)
def test_no_state_has_a_fault(chromium: Any, size: tuple[int, int], scheme: str) -> None:
    found: dict[str, list[str]] = {}
    with visit(
        chromium,
        chat_with()[0],
        country="GB",
        conversations=Kept(),
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        reduced_motion="reduce",
        expect=lambda text: "ERR_" in text,
    ) as page:

        def check(state: str) -> None:
            if bad := faults(page) + ([] if width_fits(page) else ["wider than the screen"]):
                found[state] = bad

        states(page, check)
    assert found == {}


def test_a_fault_would_be_found(chromium: Any) -> None:
    with visit(chromium, chat_with()[0]) as page:
        page.evaluate("document.querySelector('label[for=words]').remove()")
        page.evaluate("document.querySelector('.lead').style.color = '#c8c0b4'")
        found = " ".join(faults(page))
        assert "label" in found
        assert "color-contrast" in found


def test_everything_by_keyboard(chromium: Any) -> None:
    """From the first screen to a renamed and deleted conversation without a pointer."""
    held = Kept()
    with visit(chromium, chat_with()[0], conversations=held) as page:

        def tab_to(selector: str) -> None:
            for _ in range(60):
                page.keyboard.press("Tab")
                if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                    return
            raise AssertionError(f"{selector} cannot be reached by Tab")

        tab_to("#words")
        page.keyboard.type(ORDINARY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#send:not([hidden])")
        page.evaluate("document.activeElement.blur()")
        tab_to(".rate summary")
        page.keyboard.press("Enter")
        tab_to(".rate button")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Noted. Thank you.")
        assert held.review()[0]["verdict"] == "helpful"
        tab_to("#to-earlier")
        page.keyboard.press("Enter")
        page.wait_for_selector(".past")
        tab_to(".past-ways button")
        page.keyboard.press("Enter")
        page.keyboard.type("Nights")
        page.keyboard.press("Enter")
        page.wait_for_selector(".past-name:text-is('Nights')")
        tab_to(".past-ways button:last-child")
        page.keyboard.press("Enter")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=There is nothing here yet.")
        assert len(held) == 0
