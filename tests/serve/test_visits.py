"""What visitors do with their conversations: theirs alone, under a name, judged, saved, said anew, deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.serve.conftest import CRISIS, ORDINARY, REPLY, Played, brief, chat_with, client_for, events_of, open_one, say
from warmline.errors import EngineError
from warmline.serve.app import create_app
from warmline.serve.conversations import Conversations
from warmline.serve.visitor import NOBODY, _name, visitor_of

PASSIVE = "Sometimes I wish I could go to sleep and not wake up."


class Kept(Conversations):
    """Says that it keeps conversations, as one with a vault does."""

    days = 30


@pytest.fixture
def other(client: TestClient) -> Iterator[TestClient]:
    """Another visitor of the same server."""
    with TestClient(client.app, base_url="http://localhost") as other:
        open_one(other)
        yield other


def own(client: TestClient) -> list[dict[str, Any]]:
    found = client.get("/api/conversations").json()["conversations"]
    assert isinstance(found, list)
    return found


class TestVisitor:
    def test_looking_leaves_nothing_behind(self, client: TestClient) -> None:
        for path in ("/", "/help", "/measures", "/api/conversations", "/worker.js"):
            assert "set-cookie" not in client.get(path).headers

    def test_the_cookie_is_a_capability_for_this_site_alone(self, client: TestClient) -> None:
        answer = client.post("/api/conversations", json={})
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("visitor=")
        assert len(cookie.split(";")[0].partition("=")[2]) == 43
        attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "samesite=strict", "path=/"} <= attributes
        assert not [part for part in attributes if part.startswith(("max-age", "expires", "domain", "secure"))]

    def test_over_https_it_is_secure_and_bound_to_the_host(self) -> None:
        with TestClient(create_app(Played(brief)), base_url="https://localhost") as client:
            cookie = client.post("/api/conversations", json={}).headers["set-cookie"]
            assert cookie.startswith("__Host-visitor=")
            assert "secure" in cookie.lower()
            assert "domain" not in cookie.lower()

    def test_it_lasts_as_long_as_what_it_opens(self) -> None:
        with client_for(Played(brief), conversations=Kept()) as client:
            cookie = client.post("/api/conversations", json={}).headers["set-cookie"]
            assert f"max-age={30 * 86400}" in cookie.lower()

    def test_all_conversations_of_a_visitor_have_one_cookie(self, client: TestClient) -> None:
        open_one(client)
        first = client.cookies["visitor"]
        open_one(client)
        assert client.cookies["visitor"] == first

    @pytest.mark.parametrize("value", ["", "x", "a" * 42, "a" * 44, "a" * 42 + "\u00e9", "../" * 14 + "a", "a" * 5000])
    def test_a_malformed_cookie_is_nobody(self, client: TestClient, value: str) -> None:
        id = open_one(client)
        client.cookies.clear()
        headers = {"cookie": f"visitor={value}".encode()}
        assert client.get(f"/api/conversations/{id}", headers=headers).status_code == 404
        assert client.get("/api/conversations", headers=headers).json() == {"conversations": []}

    def test_nobody_has_no_conversations(self) -> None:
        held = Conversations()
        assert held.of(NOBODY) == []
        assert held.find(NOBODY, "x") is None
        assert visitor_of.__doc__
        assert _name.__name__


def every_way(client: TestClient, id: str) -> dict[str, tuple[int, bytes]]:
    at = f"/api/conversations/{id}"
    answers = {
        "read": client.get(at),
        "say": client.post(f"{at}/messages", json={"text": ORDINARY}),
        "title": client.put(f"{at}/title", json={"title": "mine"}),
        "consent": client.put(f"{at}/consent", json={"training": True}),
        "verdict": client.put(f"{at}/verdict", json={"place": 1, "verdict": "harmful"}),
        "text": client.get(f"{at}/export?form=text"),
        "json": client.get(f"{at}/export?form=json"),
        "delete": client.delete(at),
    }
    return {way: (answer.status_code, answer.content) for way, answer in answers.items()}


class TestOthers:
    def test_foreign_unknown_and_deleted_are_alike(self, client: TestClient, other: TestClient) -> None:
        theirs, deleted = open_one(client), open_one(other)
        say(client, theirs, ORDINARY)
        other.delete(f"/api/conversations/{deleted}")
        foreign = every_way(other, theirs)
        assert foreign == every_way(other, deleted) == every_way(other, "A" * 32)
        assert {status for status, _ in foreign.values()} == {404}
        assert client.get(f"/api/conversations/{theirs}").json()["title"] is None
        assert len(own(client)) == 1

    def test_without_a_cookie_there_is_nothing(self, client: TestClient) -> None:
        id = open_one(client)
        say(client, id, ORDINARY)
        client.cookies.clear()
        assert {status for status, _ in every_way(client, id).values()} == {404}

    def test_the_list_holds_the_visitor_s_own(self, client: TestClient, other: TestClient) -> None:
        mine, theirs = open_one(client), open_one(other)
        say(client, mine, ORDINARY)
        say(other, theirs, ORDINARY)
        assert [row["id"] for row in own(client)] == [mine]
        assert [row["id"] for row in own(other)] == [theirs]

    def test_deleting_all_leaves_others_alone(self, client: TestClient, other: TestClient) -> None:
        mine, theirs = open_one(client), open_one(other)
        say(client, mine, ORDINARY)
        say(other, theirs, ORDINARY)
        answer = client.delete("/api/conversations")
        assert answer.status_code == 204
        assert 'visitor=""' in answer.headers["set-cookie"]
        assert own(client) == []
        assert len(own(other)) == 1

    def test_a_foreign_try_does_not_keep_a_conversation_alive(self) -> None:
        now = [0.0]
        held = Conversations(idle_seconds=100, clock=lambda: now[0])
        opened = held.open("a" * 43, chat_thread())
        assert opened is not None
        now[0] = 90
        assert held.find("b" * 43, opened.id) is None
        now[0] = 101
        assert held.find("a" * 43, opened.id) is None


def chat_thread() -> Any:
    from warmline.chat import Thread

    return Thread()


class TestList:
    def test_newest_first_with_its_name(self, client: TestClient) -> None:
        first, second = open_one(client), open_one(client)
        open_one(client)  # nothing was said in it: not shown
        say(client, first, ORDINARY)
        say(client, second, ORDINARY)
        say(client, first, "And another thing.")
        assert client.put(f"/api/conversations/{first}/title", json={"title": "  Nights "}).status_code == 204
        rows = own(client)
        assert [(row["id"], row["title"], row["messages"]) for row in rows] == [(first, "Nights", 4), (second, None, 2)]
        assert rows[0]["created"] <= rows[0]["used"]

    @pytest.mark.parametrize("title", ["", "   ", None])
    def test_an_empty_name_takes_it_away(self, client: TestClient, title: str | None) -> None:
        id = open_one(client)
        say(client, id, ORDINARY)
        client.put(f"/api/conversations/{id}/title", json={"title": "Nights"})
        client.put(f"/api/conversations/{id}/title", json={"title": title})
        assert own(client)[0]["title"] is None

    def test_odd_names_are_kept_as_text(self, client: TestClient) -> None:
        id = open_one(client)
        say(client, id, ORDINARY)
        for title in ("<script>alert(1)</script>", "\u202eabc", "😮" * 120):
            assert client.put(f"/api/conversations/{id}/title", json={"title": title}).status_code == 204
            assert own(client)[0]["title"] == title
        body = b'{"title": "half \\ud800 a pair"}'
        answer = client.put(
            f"/api/conversations/{id}/title", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code in (204, 422)
        assert client.get("/api/conversations").status_code == 200
        assert client.put(f"/api/conversations/{id}/title", json={"title": "a" * 121}).status_code == 422

    def test_reading_one_shows_what_its_level_demands(self, client: TestClient) -> None:
        calm, acute = open_one(client, country="GB"), open_one(client, country="GB")
        say(client, calm, ORDINARY)
        say(client, acute, CRISIS)
        found = client.get(f"/api/conversations/{calm}").json()
        assert [message["text"] for message in found["messages"]] == [ORDINARY, REPLY]
        assert (found["level"], found["resources"]) == (0, None)
        found = client.get(f"/api/conversations/{acute}").json()
        assert found["level"] >= 3
        assert found["resources"]["lines"][0]["call"]["href"] == "tel:116123"


class TestSaving:
    def test_as_text(self, client: TestClient) -> None:
        id = open_one(client)
        say(client, id, "Größe, mañana, ça va")
        answer = client.get(f"/api/conversations/{id}/export?form=text&language=de")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["content-disposition"].startswith('attachment; filename="notes-')
        assert "Warmline" not in answer.headers["content-disposition"]
        assert "Du:\nGröße, mañana, ça va\n\nWarmline:\n" + REPLY in answer.content.decode("utf-8")

    def test_as_json(self, client: TestClient) -> None:
        id = open_one(client)
        say(client, id, ORDINARY)
        client.put(f"/api/conversations/{id}/title", json={"title": "Nights"})
        found = json.loads(client.get(f"/api/conversations/{id}/export?form=json").content)
        assert found["title"] == "Nights"
        assert found["messages"] == [{"role": "user", "content": ORDINARY}, {"role": "assistant", "content": REPLY}]
        assert set(found) == {"title", "created", "messages"}

    @pytest.mark.parametrize("form", ["xml", "../text", ""])
    def test_no_other_form(self, client: TestClient, form: str) -> None:
        assert client.get(f"/api/conversations/{open_one(client)}/export", params={"form": form}).status_code == 422


class TestVerdicts:
    def test_the_operator_reads_what_was_judged_harmful_first(self) -> None:
        held = Conversations()
        with client_for(chat_with("One.", "Two.")[0], conversations=held) as client:
            id = open_one(client)
            say(client, id, ORDINARY)
            say(client, id, "And another thing.")
            assert held.review() == []
            put = f"/api/conversations/{id}/verdict"
            assert client.put(put, json={"place": 1, "verdict": "helpful"}).status_code == 204
            assert client.put(put, json={"place": 3, "verdict": "harmful"}).status_code == 204
            rows = held.review()
            assert [(row["verdict"], row["message"], row["reply"]) for row in rows] == [
                ("harmful", "And another thing.", "Two."),
                ("helpful", ORDINARY, "One."),
            ]
            assert client.get(f"/api/conversations/{id}").json()["messages"][3]["verdict"] == "harmful"
            assert id not in str(rows)
            assert 'warmline_verdicts_total{verdict="harmful"} 1.0' in client.get("/metrics").text
            assert client.put(put, json={"place": 3, "verdict": None}).status_code == 204
            assert len(held.review()) == 1
            client.delete(f"/api/conversations/{id}")
            assert held.review() == []

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"place": 0, "verdict": "helpful"}, 404),  # the person's own message
            ({"place": 2, "verdict": "helpful"}, 404),
            ({"place": 99_999, "verdict": "helpful"}, 404),
            ({"place": -1, "verdict": "helpful"}, 422),
            ({"place": 1, "verdict": "great"}, 422),
            ({"place": "1; drop", "verdict": "helpful"}, 422),
            ({"verdict": "helpful"}, 422),
        ],
    )
    def test_only_replies_that_are_there(self, client: TestClient, body: dict[str, Any], status: int) -> None:
        id = open_one(client)
        say(client, id, ORDINARY)
        assert client.put(f"/api/conversations/{id}/verdict", json=body).status_code == status

    def test_a_reply_said_anew_is_judged_anew(self) -> None:
        held = Conversations()
        with client_for(chat_with("One.", "Two.")[0], conversations=held) as client:
            id = open_one(client)
            say(client, id, ORDINARY)
            client.put(f"/api/conversations/{id}/verdict", json={"place": 1, "verdict": "harmful"})
            say(client, id, ORDINARY, place=0)
            assert held.review() == []
            assert client.get(f"/api/conversations/{id}").json()["messages"][1]["verdict"] is None


class TestConsent:
    def test_off_until_given_and_taken_back_at_any_time(self) -> None:
        with client_for(chat_with()[0], conversations=Kept()) as client:
            id = open_one(client)
            say(client, id, ORDINARY)
            for wanted in (False, True, False):
                if wanted or client.get(f"/api/conversations/{id}").json()["training"]:
                    client.put(f"/api/conversations/{id}/consent", json={"training": wanted})
                assert client.get(f"/api/conversations/{id}").json()["training"] is wanted

    def test_in_memory_there_is_nothing_to_consent_to(self, client: TestClient) -> None:
        id = open_one(client)
        say(client, id, ORDINARY)
        client.put(f"/api/conversations/{id}/consent", json={"training": True})
        assert client.get(f"/api/conversations/{id}").json()["training"] is False
        assert 'id="training"' not in client.get("/").text


class TestSaidAnew:
    def place(self, client: TestClient, id: str, text: str, place: int | None = None) -> tuple[int, Any]:
        answer = client.post(f"/api/conversations/{id}/messages", json={"text": text, "place": place})
        assert answer.status_code == 200, answer.text
        return int(answer.headers["warmline-place"]), dict(events_of(answer.text))

    def test_the_answer_says_where_the_message_stands(self, client: TestClient) -> None:
        id = open_one(client)
        assert [self.place(client, id, ORDINARY)[0] for _ in range(3)] == [0, 2, 4]

    def test_an_edit_replaces_the_last_message_and_its_answer(self) -> None:
        chat, engine = chat_with("One.", "Two.", "Three.")
        with client_for(chat) as client:
            id = open_one(client)
            self.place(client, id, "The rota is too long.")
            self.place(client, id, "My boss said kingfisher.")
            assert self.place(client, id, "My boss said no.", 2)[0] == 2
            said = [message["text"] for message in client.get(f"/api/conversations/{id}").json()["messages"]]
            assert said == ["The rota is too long.", "One.", "My boss said no.", "Three."]
            assert "kingfisher" not in str(engine.calls[-1].messages)

    @pytest.mark.parametrize("place", [0, 1, 3, 5, 99])
    def test_only_the_last_message(self, client: TestClient, place: int) -> None:
        id = open_one(client)
        self.place(client, id, "The rota is too long.")
        self.place(client, id, "And the nights too.")
        answer = client.post(f"/api/conversations/{id}/messages", json={"text": "x", "place": place})
        assert (answer.status_code, answer.json()["code"]) == (409, "place-taken")
        assert self.place(client, id, "Still here.", 4)[0] == 4  # after all others: a new one

    @pytest.mark.parametrize("risk", [PASSIVE, CRISIS])
    def test_no_edit_takes_a_danger_back(self, risk: str) -> None:
        with client_for(chat_with()[0], country="GB") as client:
            id = open_one(client)
            level = self.place(client, id, risk)[1]["safety"]["level"]
            assert level >= 2
            for _ in range(6):
                assert self.place(client, id, "The tea is good today.", 0)[1]["safety"]["level"] == level
            assert client.get(f"/api/conversations/{id}").json()["level"] == level

    def test_after_a_failure_too(self) -> None:
        def play(history: Any, text: str, cancel: object, **_: object) -> Iterator[Any]:
            raise EngineError("gone", code="engine-failed")
            yield

        with client_for(Played(play)) as client:
            id = open_one(client)
            for _ in range(2):
                answer = client.post(f"/api/conversations/{id}/messages", json={"text": ORDINARY, "place": 0})
                assert dict(events_of(answer.text))["error"]["code"] == "fault"


class TestLanguages:
    @pytest.mark.parametrize(
        ("query", "accepted", "language"),
        [
            ("", "", "en"),
            ("", "de-CH,de;q=0.9,en;q=0.8", "de"),
            ("", "pt-BR, es;q=0.4, en;q=0.3", "es"),
            ("", "pt", "en"),
            ("", "*;q=0.1", "en"),
            ("", "fr;q=zero, de;q=0.1", "de"),
            ("?language=fr", "de", "fr"),
            ("?language=xx", "es", "es"),
            ("?language=../en", "", "en"),
            ('?language="><script>', "", "en"),
        ],
    )
    def test_the_asked_one_then_the_browser_s(
        self, client: TestClient, query: str, accepted: str, language: str
    ) -> None:
        for path in ("/", "/help", "/measures"):
            page = client.get(path + query, headers={"accept-language": accepted}).text
            assert f'<html lang="{language}"' in page
            assert "<script>" not in page

    def test_size_and_language_travel_in_links(self, client: TestClient) -> None:
        page = client.get("/?language=es&text=large").text
        assert 'data-text="large"' in page
        assert 'href="/help?language=es&amp;text=large"' in page
        assert 'href="/measures?language=es"' in page
        assert "data-text" not in client.get("/?text=huge").text

    def test_how_words_are_kept_is_true_to_the_server(self) -> None:
        with client_for(Played(brief)) as client:
            assert "Held in memory only" in client.get("/").text
            assert "encrypted" not in client.get("/").text
        with client_for(Played(brief), conversations=Kept()) as client:
            page = client.get("/").text
            assert "Kept encrypted for 30 days" in page
            assert "memory only" not in page
            assert 'id="training"' in page
            assert "checked" not in page.split('id="training"')[1].split(">")[0]

    def test_the_language_reaches_the_protocol(self) -> None:
        held = Conversations()
        with client_for(chat_with()[0], conversations=held) as client:
            id = open_one(client)
            say(client, id, ORDINARY, language="es")
            assert next(iter(held._held.values())).thread.locale == "es"
            say(client, id, ORDINARY, language="xx")
            assert next(iter(held._held.values())).thread.locale == "es"
