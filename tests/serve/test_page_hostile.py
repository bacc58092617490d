"""Hostile strings in a real Chromium: as user text, model output, notices, titles and the service's name. None may run.

The browser is told to ignore the Content-Security-Policy: the page must hold without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from tests.serve.conftest import ORDINARY, Played, Running, brief, chat_with, done, safety
from tests.serve.test_page import write
from warmline.chat import Event, Notice, Text, Thread
from warmline.messages import Message
from warmline.serve.app import create_app
from warmline.serve.conversations import Conversations
from warmline.serve.visitor import new_visitor

pytestmark = pytest.mark.browser

RUN = "window.owned=1"
BODIES = [
    f"<img src=x onerror={RUN}>",
    f"<svg onload={RUN}>",
    f"<script>{RUN}</script>",
    f"<iframe src=javascript:parent.{RUN}></iframe>",
    f"<details open ontoggle={RUN}>",
    f"<input autofocus onfocus={RUN}>",
    f"<a href=javascript:{RUN} id=x tabindex=1 onfocus={RUN} autofocus>a</a>",
    f"<video><source onerror={RUN}></video>",
    f"<style onload={RUN}></style>",
    f"<object data=javascript:{RUN}></object>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<math><mtext><img src onerror={RUN}></mtext></math>",
    f"<audio src onerror={RUN}>",
    f"<div style=animation-name:a onanimationstart={RUN}>",
    "<base href=https://example.invalid/>",
    "<meta http-equiv=refresh content=0;url=https://example.invalid/>",
]
BREAKS = ["", '">', "'>", "</p>", "</textarea>", "</title>", "</script>", "-->", "</style>", "</template>"]


def scripted(body: str) -> Iterator[str]:
    yield body
    yield body.swapcase().replace(RUN.swapcase(), RUN)
    yield f"{{{{{body}}}}} ${{{RUN}}} {{name}} [a](javascript:{RUN})"


HOSTILE = [start + form for start in BREAKS for body in BODIES for form in scripted(body)]


@pytest.fixture(scope="module")
def unguarded(chromium: Any) -> Iterator[Any]:
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, bypass_csp=True)
    context.set_default_timeout(120_000)
    yield context
    context.close()


def untouched(page: Any) -> None:
    """Nothing ran, nothing was loaded from elsewhere, and no element came from a string."""
    page.wait_for_timeout(200)
    assert page.evaluate("window.owned") is None
    tags = page.evaluate(
        "[...new Set([...document.querySelectorAll('main *, #said *')].map(each => each.tagName.toLowerCase()))]"
    )
    planted = {"script", "iframe", "object", "video", "audio", "svg", "math", "style", "base", "meta", "img"}
    assert not set(tags) & planted
    assert page.evaluate("document.baseURI").startswith("http://127.0.0.1")


def test_there_are_enough_and_they_do_run_where_nobody_minds(unguarded: Any) -> None:
    """The strings themselves: put into a page as markup, they run. Otherwise the tests below would prove nothing."""
    assert len(HOSTILE) >= 300
    assert len(set(HOSTILE)) == len(HOSTILE)
    page = unguarded.new_page()
    ran = 0
    for text in islice(HOSTILE, 0, None, 8):
        if "refresh" in text or "<base" in text:
            continue
        page.set_content(f"<p>{text}</p>")
        page.wait_for_timeout(30)
        ran += page.evaluate("window.owned") == 1
    page.close()
    assert ran >= 20


def test_as_user_text_and_model_output_and_titles(unguarded: Any) -> None:
    held, visitor = Conversations(), new_visitor()
    for text in HOSTILE:
        small = held.open(visitor, Thread(messages=[Message("user", text), Message("assistant", text)]))
        assert small is not None
        small.title = text[:120]
    everything = [Message(role, text) for text in HOSTILE for role in ("user", "assistant")]
    large = held.open(visitor, Thread(messages=everything))
    assert large is not None
    large.title = "all of them"
    with Running(create_app(Played(brief), conversations=held)) as server:
        unguarded.add_cookies([{"name": "visitor", "value": visitor, "url": server.url}])
        page = unguarded.new_page()
        page.goto(server.url)
        page.click("#go-back")
        page.wait_for_selector(".past")
        assert page.locator(".past").count() == len(HOSTILE) + 1
        untouched(page)
        page.click(".past-name:text-is('all of them')")
        page.wait_for_selector(".said-reply")
        shown = page.eval_on_selector_all(".said .said-text", "all => all.map(each => each.textContent)")
        assert shown == [message.content for message in everything]
        untouched(page)
        page.close()


def test_as_it_streams(unguarded: Any) -> None:
    def play(history: Thread, text: str, cancel: object, **_: object) -> Iterator[Event]:
        for hostile in HOSTILE[::6]:
            yield Notice(hostile)
        yield safety()
        for hostile in HOSTILE:
            yield Text(hostile + " ")
        yield done()

    with Running(create_app(Played(play))) as server:
        page = unguarded.new_page()
        page.goto(server.url)
        page.wait_for_selector("#composer:not([hidden])")
        write(page, "".join(HOSTILE)[:7000])
        assert page.inner_text(".said-reply .said-text").count(RUN) >= len(HOSTILE) // 2
        untouched(page)
        page.click("button:text-is('Edit')")
        write(page, HOSTILE[1])
        untouched(page)
        page.close()


@pytest.mark.parametrize("part", range(6))
def test_as_the_name_of_the_service(unguarded: Any, part: int) -> None:
    name = "".join(HOSTILE[part::6])
    with Running(create_app(Played(brief), name=name)) as server:
        page = unguarded.new_page()
        page.goto(server.url + "/?language=de")
        page.wait_for_selector("#composer:not([hidden])")
        page.select_option("#language", "en")
        page.wait_for_selector("#help:text-is('I need help now')")
        # A name as long as this covers what is to be clicked.
        page.fill("#words", ORDINARY)
        page.dispatch_event("#send", "click")
        page.wait_for_selector(".said-reply")
        page.dispatch_event("#about-open", "click")
        assert page.inner_text(".brand").count(RUN) == name.count(RUN)
        untouched(page)
        page.goto(server.url + "/help")
        untouched(page)
        page.close()


def test_as_a_name_that_is_typed(unguarded: Any) -> None:
    with Running(create_app(chat_with()[0])) as server:
        page = unguarded.new_page()
        page.goto(server.url)
        page.wait_for_selector("#composer:not([hidden])")
        write(page, ORDINARY)
        page.click("#to-earlier")
        for text in HOSTILE[:6]:
            page.click("button:text-is('Rename')")
            page.fill(".past-rename input", text[:120])
            page.keyboard.press("Enter")
            page.wait_for_selector("button:text-is('Rename')")
            assert page.inner_text(".past-name") == " ".join(text[:120].split())
        untouched(page)
        page.close()
