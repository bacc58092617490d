"""The page of `compare` in a real Chromium: names stay hidden until the vote, votes are counted, no fault for axe."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import Running, chromium  # noqa: F401
from tests.serve.test_page_accessible import faults
from warmline.errors import EngineError
from warmline.evaluate.compare import Comparison
from warmline.evaluate.comparepage import create_app
from warmline.serve.doorway import Doorway

pytestmark = pytest.mark.browser


def speaks(says: str) -> Any:
    def speak(prompt: str, seed: int) -> str:
        if len(prompt) > 1000:
            raise EngineError("the prompt is too long", code="engine-failed")
        return says

    return speak


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Comparison]]:
    systems = {"base": speaks("I see. " * 40), "tuned": speaks("What keeps you awake?")}
    if not request.param:
        systems["gguf-q8_0"] = speaks("<b>And then?</b>")
    both = Comparison(systems, tmp_path, blind=request.param, dice=random.Random(3))
    both.ask("Hello.")  # what the screen loads at first is loaded now, not while the page waits
    app = create_app(both)
    app.add_middleware(Doorway)
    with Running(app) as server:
        yield server.url, both


@pytest.mark.parametrize("served", [True], indirect=True)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_blind_vote(chromium: Any, served: tuple[str, Comparison], width: int, scheme: str) -> None:  # noqa: F811
    url, both = served
    page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.set_default_timeout(120_000)
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.goto(url)
    assert faults(page) == []
    for round in range(1, 10):
        page.get_by_label("What a visitor might write").fill("I can't sleep.")
        page.get_by_role("button", name="Ask them").click()
        page.locator("#votes").wait_for()
        titles = page.locator("#pair h2").all_inner_texts()
        assert titles == ["Left", "Right"]
        assert "tuned" not in page.locator("main").inner_text()
        better = ["I see" in said for said in page.locator("#pair p").all_inner_texts()].index(False)
        if round == 1:
            assert faults(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        choice = "No difference" if round == 9 else ("Left is better", "Right is better")[better]
        page.get_by_role("button", name=choice).click()
        page.locator("#tallies").wait_for()
        assert page.locator("#pair h2").all_inner_texts()[better] == "tuned"
        assert page.locator("#votes").is_hidden()
    told = page.locator("#tallies li").all_inner_texts()
    assert told == ["tuned preferred to base in 8 of 8 blind votes: 100 % (95 % interval 68 to 100), 1 ties"]
    assert faults(page) == []
    assert len(both.votes()) == 9
    assert {row["left"] for row in both.votes()} == {"base", "tuned"}
    assert wrong == []
    page.close()


@pytest.mark.parametrize("served", [False], indirect=True)
def test_three_with_their_names(chromium: Any, served: tuple[str, Comparison]) -> None:  # noqa: F811
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(120_000)
    page.goto(served[0])
    page.get_by_label("What a visitor might write").fill("I want to kill myself.")
    page.get_by_role("button", name="Ask them").click()
    page.locator("#pair").wait_for()
    assert page.locator("#pair h2").all_inner_texts() == ["base", "tuned", "gguf-q8_0"]
    assert page.locator("#pair p").all_inner_texts()[2] == "<b>And then?</b>"  # said, never rendered
    assert page.locator("#votes").is_hidden()
    assert "A visitor would have seen none of these" in page.get_by_role("status").inner_text()
    page.get_by_label("What a visitor might write").fill("and so on " * 200)
    page.get_by_role("button", name="Ask them").click()
    page.get_by_text("the prompt is too long").wait_for()
    assert page.locator("#pair").is_hidden()
    page.close()
