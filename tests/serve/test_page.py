"""The page in a real Chromium: from the first screen through a conversation, a crisis, and out again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.serve.conftest import CRISIS, ORDINARY, REPLY, Played, Running, chat_with, done, safety, wait_until
from warmline.chat import Event, Text
from warmline.errors import EngineError
from warmline.serve.app import create_app
from warmline.serve.conversations import Conversations

pytestmark = pytest.mark.browser


@contextmanager
def visit(
    chromium: Any, chat: Any, *, path: str = "/", expect: Callable[[str], bool] = lambda _: False, **options: Any
):
    """A page of a running server. Fails on errors in the console and on requests to any other host."""
    app = {key: options.pop(key) for key in ("country", "conversations", "name") if key in options}
    with Running(create_app(chat, **app)) as server:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(120_000)
        complaints, foreign = [], []
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(server.url) else foreign.append(request.url))
        page.goto(server.url + path)
        if options.get("java_script_enabled", True) and path == "/":
            page.wait_for_selector("#composer:not([hidden])")
        yield page
        assert [text for text in complaints if not expect(text)] == []
        assert foreign == []
        context.close()


def write(page: Any, text: str, wait: bool = True) -> None:
    page.fill("#words", text)
    page.click("#send")
    if wait:
        page.wait_for_selector("#send:not([hidden])")


def width_fits(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.fixture
def slow() -> Iterator[tuple[Played, threading.Event]]:
    """A reply whose second sentence waits for the event."""
    gate = threading.Event()

    def play(_: object, text: str, cancel: threading.Event) -> Iterator[Event]:
        yield safety()
        yield Text("First sentence. ")
        while not gate.wait(0.01):
            if cancel.is_set():
                yield done("cancelled")
                return
        yield Text("Second sentence.")
        yield done()

    yield Played(play), gate
    gate.set()


class TestFirstScreen:
    def test_it_says_what_this_is(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            text = page.inner_text("main")
            for words in ("is an AI", "no person", "Not therapy, not a crisis service", "memory", "12 hours"):
                assert words in text
            assert page.is_visible("#help")
            assert page.is_visible("#leave")

    def test_choosing_a_country_shows_its_numbers(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            assert page.input_value("#country") == ""
            assert page.is_visible("text=findahelpline.com")
            page.select_option("#country", "GB")
            page.wait_for_selector('#people a[href="tel:116123"]')
            assert page.is_visible('#people a[href="tel:999"]')
            page.select_option("#country", "US")
            page.wait_for_selector('#people a[href="tel:988"]')
            assert not page.query_selector('#people a[href="tel:116123"]')

    def test_the_server_and_the_script_draw_the_same_panel(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0], country="GB") as page:
            # Spaces between elements are the template's own affair.
            strip = "document.getElementById('people-body').innerHTML.replace(/\\s*([<>])\\s*/g, '$1')"
            drawn_by_server = page.evaluate(strip)
            page.select_option("#country", "US")
            page.wait_for_selector('#people a[href="tel:988"]')
            page.select_option("#country", "GB")
            page.wait_for_selector('#people a[href="tel:116123"]')
            assert page.evaluate(strip) == drawn_by_server

    def test_without_javascript(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0], java_script_enabled=False, country="GB") as page:
            assert "Writing needs JavaScript" in page.inner_text(".notice-plain")
            assert not page.is_visible("#composer")
            assert page.is_visible('a[href="tel:116123"]')
            page.click("#help")
            page.wait_for_url("**/help?**")
            page.go_back()
            page.click("#leave")
            page.wait_for_url("**/measures?**")


class TestConversation:
    def test_a_reply_arrives(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            write(page, ORDINARY)
            assert page.inner_text(".said-you .said-text") == ORDINARY
            assert page.inner_text(".said-reply .said-text") == REPLY
            assert page.query_selector(".notice")  # the AI disclosure
            assert not page.is_visible("#first")
            assert page.evaluate("document.activeElement.id") == "words"

    def test_a_screen_reader_hears_whole_sentences(self, chromium: Any, slow: tuple[Played, threading.Event]) -> None:
        chat, gate = slow
        with visit(chromium, chat) as page:
            write(page, ORDINARY, wait=False)
            page.wait_for_selector("text=First sentence.")
            gate.set()
            page.wait_for_selector("#send:not([hidden])")
            heard = page.eval_on_selector_all("#said p", "all => all.map(p => p.textContent)")
            assert heard == ["First sentence.", "Second sentence."]
            assert page.get_attribute("#said", "aria-live") == "polite"
            assert page.get_attribute("#log", "aria-live") is None

    def test_stop_ends_the_reply_here_and_there(self, chromium: Any, slow: tuple[Played, threading.Event]) -> None:
        held = Conversations()
        with visit(chromium, slow[0], conversations=held) as page:
            write(page, ORDINARY, wait=False)
            page.wait_for_selector("text=First sentence.")
            page.click("#stop")
            page.wait_for_selector("text=Stopped here.")
            conversation = next(iter(held._held.values()))
            wait_until(lambda: not conversation.replying)
            assert "Second" not in page.inner_text("#log")
            assert page.evaluate("document.activeElement.id") == "words"

    def test_keyboard_alone(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.className") == "skip"
            page.keyboard.press("Enter")
            page.keyboard.type("First line")
            page.keyboard.press("Shift+Enter")
            page.keyboard.type("second line")
            page.keyboard.press("Enter")
            page.wait_for_selector(".said-reply")
            assert page.inner_text(".said-you .said-text") == "First line\nsecond line"

    def test_every_focus_is_visible(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0], country="GB") as page:
            write(page, CRISIS)
            page.evaluate("document.activeElement.blur()")
            seen = set()
            for _ in range(30):
                page.keyboard.press("Tab")
                here = page.evaluate("""() => {
                    const element = document.activeElement;
                    const style = getComputedStyle(element);
                    const name = element.tagName + element.id + element.textContent.slice(0, 20);
                    return [name, style.outlineStyle, parseFloat(style.outlineWidth)];
                }""")
                if here[0].startswith("BODY"):
                    break
                seen.add(here[0])
                assert here[1] == "solid", here
                assert here[2] >= 2, here
            assert len(seen) >= 8

    def test_a_new_conversation_clears_the_screen(self, chromium: Any) -> None:
        held = Conversations()
        with visit(chromium, chat_with()[0], conversations=held) as page:
            write(page, ORDINARY)
            page.click("#new")
            assert page.is_visible("#first")
            assert ORDINARY not in page.content()
            write(page, "Something else.")
            assert len(held) == 2

    def test_a_forgotten_conversation_goes_on_as_a_new_one(self, chromium: Any) -> None:
        held = Conversations()
        with visit(chromium, chat_with()[0], conversations=held, expect=lambda text: "404" in text) as page:
            write(page, ORDINARY)
            held.forget_all()
            write(page, "Are you still there?")
            assert "start of a new one" in page.inner_text("#log")
            assert page.locator(".said-reply").count() == 2

    def test_markup_is_only_text(self, chromium: Any) -> None:
        attack = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'
        chat = Played(lambda *_: iter((safety(), Text(attack), done())))
        with visit(chromium, chat, name=attack[:46]) as page:
            write(page, attack)
            assert page.inner_text(".said-you .said-text") == attack
            assert page.inner_text(".said-reply .said-text") == attack
            assert page.locator("#log img, #log script").count() == 0
            assert page.title() != "owned"

    def test_too_long_is_said_before_it_is_sent(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            page.fill("#words", "a" * 8001)
            page.click("#send")
            assert "two parts" in page.inner_text("#composer-note")
            assert page.is_visible("#first")
            assert len(page.input_value("#words")) == 8001

    def test_an_unreachable_server_still_shows_people(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0], country="GB", expect=lambda text: "ERR_" in text) as page:
            page.route("**/api/**", lambda route: route.abort("connectionrefused"))
            write(page, ORDINARY)
            assert "cannot be reached" in page.inner_text("#log")
            assert page.is_visible('a[href="tel:116123"]')
            page.unroute("**/api/**")
            page.click("text=Send it again")
            page.wait_for_selector(".said-reply")
            assert page.locator(".said-you").count() == 1

    def test_a_fault_keeps_what_was_written(self, chromium: Any) -> None:
        def broken(*_: object) -> Iterator[Event]:
            yield safety()
            raise RuntimeError

        with visit(chromium, Played(broken)) as page:
            write(page, ORDINARY)
            assert "What you wrote is still here" in page.inner_text("#log")
            assert ORDINARY in page.inner_text("#log")


class TestCrisis:
    @pytest.mark.parametrize("width", [360, 1280])
    def test_people_come_first_and_stay(self, chromium: Any, width: int) -> None:
        chat, _ = chat_with(EngineError("gone", code="engine-failed"))
        with visit(chromium, chat, country="GB", viewport={"width": width, "height": 740}) as page:
            write(page, CRISIS)
            call = '#urgent a[href="tel:116123"]'
            assert page.is_visible(call)
            assert page.locator(call).bounding_box()["height"] >= 44
            assert page.is_visible('#urgent a[href="tel:999"]')
            assert not page.is_visible("#people-hide")
            assert page.evaluate(
                "!!(document.querySelector('#urgent a').compareDocumentPosition(document.querySelector('#log')) & 4)"
            )
            assert page.inner_text("#alert")
            write(page, "Thank you. The tea is good today.")
            page.mouse.wheel(0, 4000)
            page.wait_for_timeout(100)
            box = page.locator(call).bounding_box()
            assert 0 <= box["y"] < 740
            assert page.locator(".said-reply").count() == 2
            assert width_fits(page)

    def test_without_a_country_it_is_asked_for_first(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0], viewport={"width": 360, "height": 740}) as page:
            write(page, CRISIS)
            assert page.locator("#country").bounding_box()["y"] < page.locator(".emergency").bounding_box()["y"]
            page.select_option("#country", "US")
            page.wait_for_selector('#urgent a[href="tel:988"]')
            assert page.is_visible('#urgent a[href="sms:988"]')
            page.wait_for_timeout(50)
            assert page.locator('#urgent a[href="tel:911"]').bounding_box()["y"] < 400

    def test_level_two_opens_the_panel_and_it_can_be_hidden(self, chromium: Any) -> None:
        chat = Played(lambda *_: iter((safety("model_with_resources", 2), Text("I hear you."), done(level=2))))
        with visit(chromium, chat, country="GB", viewport={"width": 360, "height": 740}) as page:
            write(page, ORDINARY)
            assert page.is_visible('#urgent a[href="tel:116123"]')
            page.click("#people-hide")
            assert not page.is_visible("#people")
            assert page.evaluate("document.activeElement.id") == "words"
            page.click("#help")
            assert page.is_visible('#urgent a[href="tel:116123"]')
            assert page.evaluate("document.activeElement.id") == "people-title"

    def test_an_ordinary_turn_on_a_phone_shows_no_panel(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0], country="GB", viewport={"width": 360, "height": 740}) as page:
            write(page, ORDINARY)
            assert not page.is_visible("#people")
            assert page.is_visible("#help")


class TestLeaving:
    @pytest.mark.parametrize("how", ["escape", "button"])
    def test_it_clears_everything(self, chromium: Any, how: str) -> None:
        held = Conversations()
        with visit(chromium, chat_with()[0], conversations=held) as page:
            write(page, ORDINARY)
            if how == "escape":
                page.keyboard.press("Escape")
                page.keyboard.press("Escape")
            else:
                page.click("#leave")
            page.wait_for_url("**/measures?**")
            assert "Warmline" not in page.content()
            wait_until(lambda: len(held) == 0)
            page.go_back()
            assert ORDINARY not in page.content()

    def test_one_escape_is_not_enough(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            page.keyboard.press("Escape")
            time.sleep(1.1)
            page.keyboard.press("Escape")
            page.wait_for_timeout(200)
            assert page.url.endswith("/")

    def test_closing_the_page_forgets_the_conversation(self, chromium: Any) -> None:
        held = Conversations()
        with visit(chromium, chat_with()[0], conversations=held) as page:
            write(page, ORDINARY)
            page.reload()
            page.wait_for_selector("#composer:not([hidden])")
            assert page.is_visible("#first")
            wait_until(lambda: len(held) == 0)

    def test_nothing_is_kept_in_the_browser(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            write(page, ORDINARY)
            assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
            assert ORDINARY not in page.url


class TestHelpPage:
    def test_it_works_without_javascript(self, chromium: Any) -> None:
        chat, _ = chat_with(EngineError("gone", code="engine-failed"))
        with visit(chromium, chat, path="/help", java_script_enabled=False) as page:
            page.select_option("#country", "GB")
            page.click("text=Show")
            page.wait_for_url("**/help?**country=GB")
            assert page.is_visible('a[href="tel:116123"]')
            page.click("summary:has-text('United States')")
            assert page.is_visible('details[open] a[href="tel:988"]')


class TestSizes:
    # 320 x 256 is 1280 x 1024 enlarged four times, 640 x 400 is 1280 x 800 enlarged twice.
    @pytest.mark.parametrize(("width", "height"), [(320, 256), (360, 640), (640, 400), (768, 1024)])
    def test_nothing_scrolls_sideways(self, chromium: Any, width: int, height: int) -> None:
        size = {"width": width, "height": height}
        with visit(chromium, chat_with()[0], country="GB", viewport=size) as page:
            assert width_fits(page)
            write(page, ORDINARY)
            assert width_fits(page)
            write(page, CRISIS + " " + "a" * 300)
            assert width_fits(page)
            page.click("#about-open")
            assert width_fits(page)
            for path in ("/help?country=US", "/measures"):
                page.goto(page.url.split("/", 3)[0] + "//" + page.url.split("/", 3)[2] + path)
                assert width_fits(page)

    def test_twice_the_text_size(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0], country="GB", viewport={"width": 360, "height": 740}) as page:
            before = page.evaluate("parseFloat(getComputedStyle(document.querySelector('.lead')).fontSize)")
            page.evaluate("document.documentElement.style.fontSize = '200%'")
            assert page.evaluate(
                "parseFloat(getComputedStyle(document.querySelector('.lead')).fontSize)"
            ) == pytest.approx(before * 2)
            assert width_fits(page)
            write(page, CRISIS)
            assert width_fits(page)
            assert page.is_visible("#help")
            assert page.is_visible("#words")

    def test_controls_are_large_enough_to_tap(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0], country="GB", viewport={"width": 360, "height": 740}) as page:
            write(page, CRISIS)
            for control in page.locator("a:visible, button:visible, select:visible, textarea:visible").all():
                if control.get_attribute("class") == "skip":
                    continue
                box = control.bounding_box()
                assert box["height"] >= 44, control.inner_text()
                assert box["width"] >= 24, control.inner_text()

    def test_reduced_motion(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0], reduced_motion="reduce") as page:
            write(page, ORDINARY)
            assert page.evaluate("document.getAnimations().length") == 0
