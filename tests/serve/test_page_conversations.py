"""The page in a real Chromium: saying it anew, going back, naming, saving, judging, deleting; languages; no server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.conftest import CRISIS, ORDINARY, Played, Running, chat_with, done, safety, wait_until
from tests.serve.test_page import visit, width_fits, write
from tests.serve.test_visits import PASSIVE, Kept
from warmline.chat import Event, Text
from warmline.serve.app import create_app
from warmline.serve.conversations import Conversations

pytestmark = pytest.mark.browser


def texts(page: Any, kind: str) -> list[str]:
    return list(page.eval_on_selector_all(f".said-{kind} .said-text", "all => all.map(each => each.innerText)"))


def only(held: Conversations) -> Any:
    return next(iter(held._held.values()))


class TestSaidAnew:
    def test_try_again_brings_another_answer_in_the_same_place(self, chromium: Any) -> None:
        held = Conversations()
        with visit(chromium, chat_with("First.", "Second.", "Third.")[0], conversations=held) as page:
            write(page, "One thing.")
            write(page, "Another thing.")
            assert page.locator("button:text-is('Try again')").count() == 1
            page.click("button:text-is('Try again')")
            page.wait_for_selector("text=Third.")
            page.wait_for_selector("#send:not([hidden])")
            assert texts(page, "you") == ["One thing.", "Another thing."]
            assert texts(page, "reply") == ["First.", "Third."]
            kept = [message.content for message in only(held).thread.messages]
            assert kept == ["One thing.", "First.", "Another thing.", "Third."]
            assert page.locator(".said-notice").count() == 1  # what this is, is still told

    def test_edit_replaces_the_last_message(self, chromium: Any) -> None:
        held = Conversations()
        with visit(chromium, chat_with("First.", "Second.")[0], conversations=held) as page:
            write(page, "My bos said no.")
            page.click("button:text-is('Edit')")
            assert page.input_value("#words") == "My bos said no."
            assert "will be replaced" in page.inner_text("#editing")
            write(page, "My boss said no.")
            assert texts(page, "you") == ["My boss said no."]
            assert texts(page, "reply") == ["Second."]
            assert not page.is_visible("#editing")
            assert len(only(held).thread.messages) == 2

    def test_an_edit_can_be_left(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            write(page, ORDINARY)
            page.click("button:text-is('Edit')")
            page.click("#edit-cancel")
            assert page.input_value("#words") == ""
            write(page, "And more.")
            assert len(texts(page, "you")) == 2

    def test_an_edit_takes_no_danger_off_the_screen(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0], country="GB", viewport={"width": 360, "height": 740}) as page:
            write(page, CRISIS)
            page.click("button:text-is('Edit')")
            write(page, "The tea is good today.")
            assert page.is_visible('#urgent a[href="tel:116123"]')
            assert not page.is_visible("#people-hide")
            assert page.evaluate("'urgent' in document.body.dataset")

    def test_what_was_written_in_advance_is_not_tried_again(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            write(page, CRISIS)
            assert page.locator("button:text-is('Try again')").count() == 0
            assert page.locator("button:text-is('Edit')").count() == 1

    def test_after_a_stop(self, chromium: Any) -> None:
        gate = threading.Event()

        def play(history: Any, text: str, cancel: threading.Event, **_: object) -> Iterator[Event]:
            yield safety()
            yield Text("So far. ")
            while not gate.wait(0.01):
                if cancel.is_set():
                    yield done("cancelled")
                    return
            yield done()

        with visit(chromium, Played(play)) as page:
            write(page, ORDINARY, wait=False)
            page.wait_for_selector("text=So far.")
            page.click("#stop")
            page.wait_for_selector("button:text-is('Try again')")
            gate.set()
            page.click("button:text-is('Try again')")
            page.wait_for_selector("#send:not([hidden])")
            assert page.locator("#log >> text=Stopped here.").count() == 0
            assert texts(page, "you") == [ORDINARY]


class TestGoingBack:
    def test_to_an_earlier_one_and_on_with_it(self, chromium: Any) -> None:
        held = Conversations()
        with visit(chromium, chat_with("One.", "Two.", "Three.")[0], conversations=held) as page:
            write(page, "The rota is too long.")
            page.click("#new")
            write(page, "My sister moved away.")
            page.click("#to-earlier")
            page.wait_for_selector(".past")
            assert page.evaluate("document.activeElement.id") == "earlier-title"
            assert not page.is_visible("#composer")
            assert page.is_visible("#help")
            assert page.is_visible("#leave")
            page.locator(".past-name").nth(1).click()
            page.wait_for_selector("text=The rota is too long.")
            assert "sister" not in page.inner_text("#log")
            write(page, "I asked for a change.")
            assert texts(page, "reply") == ["One.", "Three."]
            assert len(held) == 2

    def test_its_level_comes_back_with_it(self, chromium: Any) -> None:
        size = {"width": 360, "height": 740}
        with visit(chromium, chat_with()[0], country="GB", viewport=size) as page:
            write(page, CRISIS)
            page.click("#new")
            assert not page.evaluate("'urgent' in document.body.dataset")
            write(page, ORDINARY)
            assert not page.is_visible("#people")
            page.click("#to-earlier")
            page.locator(".past-name").nth(1).click()
            page.wait_for_selector('#urgent a[href="tel:116123"]')
            assert not page.is_visible("#people-hide")
            assert page.inner_text("#people-title") == "A person can be with you in this"

    def test_rename_save_and_delete(self, chromium: Any) -> None:
        held = Conversations()
        with visit(chromium, chat_with()[0], conversations=held) as page:
            write(page, ORDINARY)
            page.click("#to-earlier")
            page.click("button:text-is('Rename')")
            assert page.evaluate("document.activeElement.tagName") == "INPUT"
            page.keyboard.type("Nights & <b>rota</b>")
            page.keyboard.press("Enter")
            page.wait_for_selector(".past-name:text-is('Nights & <b>rota</b>')")
            assert only(held).title == "Nights & <b>rota</b>"
            with page.expect_download() as saved:
                page.click(".past a:text-is('Save as text')")
            assert ORDINARY in saved.value.path().read_text("utf-8")
            assert saved.value.suggested_filename.startswith("notes-")
            page.click(".past button:text-is('Delete')")
            assert page.evaluate("document.activeElement.textContent") == "Keep"  # not what cannot be undone
            page.click(".past button:text-is('Keep')")
            assert len(held) == 1
            page.click(".past button:text-is('Delete')")
            page.click(".past .plain-final")
            page.wait_for_selector("text=There is nothing here yet.")
            assert len(held) == 0
            page.click("#earlier-back")
            assert page.is_visible("#first")

    def test_delete_all(self, chromium: Any) -> None:
        held = Conversations()
        with visit(chromium, chat_with()[0], conversations=held) as page:
            write(page, ORDINARY)
            page.click("#new")
            write(page, ORDINARY)
            page.click("#to-earlier")
            page.wait_for_selector(".past")
            page.click("#earlier-all")
            page.click(".earlier-ways .plain-final")
            page.wait_for_selector("text=There is nothing here yet.")
            assert len(held) == 0

    def test_this_one_is_saved_and_deleted_from_its_settings(self, chromium: Any) -> None:
        held = Conversations()
        with visit(chromium, chat_with()[0], conversations=held) as page:
            write(page, ORDINARY)
            page.click("#about-open")
            for way, start in (("#save-text", "2"), ("#save-json", "{")):
                with page.expect_download() as saved:
                    page.click(way)
                assert saved.value.path().read_text("utf-8").startswith(start)
            page.click("#delete-this")
            page.click(".this-ways .plain-final")
            page.wait_for_selector("#first:not([hidden])")
            assert len(held) == 0

    def test_where_they_are_kept_closing_the_page_keeps_them(self, chromium: Any) -> None:
        held = Kept()
        with visit(chromium, chat_with()[0], conversations=held) as page:
            assert "Kept encrypted for 30 days" in page.inner_text("main")
            assert not page.is_visible("#go-back")
            write(page, ORDINARY)
            page.click("#about-open")
            assert not page.is_checked("#training")
            page.check("#training")
            wait_until(lambda: only(held).training)
            page.uncheck("#training")
            wait_until(lambda: not only(held).training)
            page.reload()
            page.wait_for_selector("#composer:not([hidden])")
            assert len(held) == 1
            assert ORDINARY not in page.content()
            page.click("#go-back")
            page.locator(".past-name").click()
            page.wait_for_selector(f"text={ORDINARY}")

    def test_in_memory_nothing_is_asked_about_training(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            write(page, ORDINARY)
            page.click("#about-open")
            assert page.locator("#training").count() == 0


class TestJudging:
    def test_a_reply_is_judged_and_taken_back(self, chromium: Any) -> None:
        held = Conversations()
        with visit(chromium, chat_with("One.", "Two.")[0], conversations=held) as page:
            write(page, ORDINARY)
            write(page, "And more.")
            box = page.locator(".rate").nth(0)
            box.locator("summary").click()
            assert "can read this answer and your message" in box.inner_text()
            box.locator("button:text-is('Harmful')").click()
            page.wait_for_selector("text=Noted. Thank you.")
            assert [(row["verdict"], row["reply"]) for row in held.review()] == [("harmful", "One.")]
            assert box.locator("[aria-pressed=true]").inner_text() == "Harmful"
            box.locator("button:text-is('Harmful')").click()
            page.wait_for_selector("text=Taken back.")
            assert held.review() == []

    def test_a_verdict_comes_back_with_the_conversation(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            write(page, ORDINARY)
            page.click(".rate summary")
            page.click(".rate button:text-is('Not helpful')")
            page.wait_for_selector("text=Noted. Thank you.")
            page.click("#to-earlier")
            page.locator(".past-name").click()
            page.click(".rate summary")
            assert page.locator(".rate [aria-pressed=true]").inner_text() == "Not helpful"


class TestLanguages:
    @pytest.mark.parametrize(
        ("language", "help", "send"),
        [
            ("es", "Necesito ayuda ya", "Enviar"),
            ("fr", "Besoin d’aide", "Envoyer"),
            ("de", "Ich brauche Hilfe", "Senden"),
        ],
    )
    def test_a_switch_changes_everything_and_loses_nothing(
        self, chromium: Any, language: str, help: str, send: str
    ) -> None:
        with visit(chromium, chat_with()[0], country="GB", viewport={"width": 360, "height": 740}) as page:
            write(page, ORDINARY)
            page.fill("#words", "half a thought")
            page.click("#about-open")
            page.select_option("#language", language)
            page.wait_for_selector(f"#help:text-is('{help}')")
            assert page.get_attribute("html", "lang") == language
            assert page.inner_text("#send") == send
            assert page.input_value("#words") == "half a thought"
            assert texts(page, "you") == [ORDINARY]
            # not wait_for_function: where it has to look twice, the page's policy refuses its script
            wait_until(lambda: "immediate danger" not in page.inner_text("#people-body"))
            english = page.evaluate("document.body.innerText")
            for word in ("Rate this", "Settings", "Leave", "A computer program"):
                assert word not in english
            assert page.evaluate("location.search") == f"?language={language}"
            assert f"language={language}" in page.get_attribute("#help", "href")
            assert page.input_value("#country") == "GB"
            assert width_fits(page)

    def test_an_answer_that_exists_in_english_only_says_so(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0], path="/?language=es", country="ES") as page:
            page.wait_for_selector("#composer:not([hidden])")
            write(page, CRISIS)
            assert "solo existe en inglés" in page.inner_text("#log")
            assert page.get_attribute(".said-reply .said-text", "lang") == "en"
            assert page.is_visible('#urgent a[href^="tel:"]')

    def test_text_size(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            size = "parseFloat(getComputedStyle(document.querySelector('.lead')).fontSize)"
            before = page.evaluate(size)
            page.select_option("#size", "largest")
            assert page.evaluate(size) == pytest.approx(before * 1.4375)
            page.reload()
            page.wait_for_selector("#composer:not([hidden])")
            assert page.evaluate(size) == pytest.approx(before * 1.4375)
            assert page.input_value("#size") == "largest"

    def test_without_javascript(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0], java_script_enabled=False) as page:
            page.select_option("#language", "de")
            page.click("#settings button")
            assert page.get_attribute("html", "lang") == "de"
            page.click("#help")
            assert "/help?language=de" in page.url
            assert page.inner_text("h1") == "Jetzt einen Menschen erreichen"


def settled(page: Any) -> None:
    """The browser has its copy of the help page, and the worker that answers with it."""
    copy = "caches.open('help').then(kept => kept.match('/measures')).then(Boolean)"
    kept = f"navigator.serviceWorker.ready.then(() => {copy})"
    wait_until(lambda: page.evaluate(kept))
    page.wait_for_timeout(300)


class TestNoServer:
    def test_help_leaving_and_the_page_itself_open_from_the_browser(self, chromium: Any) -> None:
        chat, _ = chat_with()
        context = chromium.new_context(viewport={"width": 360, "height": 740})
        page = context.new_page()
        page.set_default_timeout(120_000)
        with Running(create_app(chat, country="GB")) as server:
            page.goto(server.url)
            page.wait_for_selector("#composer:not([hidden])")
            settled(page)
            write(page, ORDINARY)
        write(page, "Are you there?")
        assert "cannot be reached" in page.inner_text("#log")
        assert page.is_visible('#urgent a[href="tel:116123"]')
        page.goto(server.url + "/help")
        assert page.is_visible('a[href="tel:116123"]')
        assert "cannot be reached just now" in page.inner_text("#unreachable")
        assert page.evaluate("getComputedStyle(document.querySelector('.way-call')).borderRadius") != "0px"
        page.goto(server.url + "/?language=en")
        assert page.inner_text("h1") == "Reach a person now"
        page.click("#leave")
        page.wait_for_url("**/measures**")
        assert page.inner_text("h1") == "Kitchen measures"
        context.close()

    def test_the_copy_is_in_the_language_of_the_page(self, chromium: Any) -> None:
        context = chromium.new_context()
        page = context.new_page()
        page.set_default_timeout(120_000)
        with Running(create_app(chat_with()[0], country="FR")) as server:
            page.goto(server.url + "/?language=fr")
            page.wait_for_selector("#composer:not([hidden])")
            settled(page)
        page.goto(server.url)
        assert page.inner_text("h1") == "Joindre une personne maintenant"
        assert "n’est pas joignable" in page.inner_text("#unreachable")
        context.close()

    def test_with_the_server_there_the_worker_stays_out_of_the_way(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            settled(page)
            page.goto(page.url.rstrip("/") + "/help?country=US")
            assert not page.is_visible("#unreachable")
            assert page.is_visible('a[href="tel:988"]')

    def test_no_word_of_a_conversation_is_in_the_copy(self, chromium: Any) -> None:
        with visit(chromium, chat_with()[0]) as page:
            settled(page)
            write(page, "kingfisher-sonata " + PASSIVE)
            kept = page.evaluate(
                """async () => {
                    const kept = await caches.open("help");
                    const text = async (key) => [key.url, await (await kept.match(key)).text()];
                    const found = await Promise.all((await kept.keys()).map(text));
                    return [(await caches.keys()).join(), JSON.stringify(found)];
                }"""
            )
            assert kept[0] == "help"
            assert "kingfisher" not in kept[1]
            assert "/api/" not in kept[1]
