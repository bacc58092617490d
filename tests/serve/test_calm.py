"""Calm under load: nobody lost, doubled or mixed up; who cannot be answered is told when; a crisis always is.

The counts are small here; the slow tests, and benchmarks/serve_load.py, take the whole ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from benchmarks import serve_load
from tests.serve.conftest import (
    CRISIS,
    ORDINARY,
    Played,
    Running,
    chat_with,
    client_for,
    done,
    events_of,
    open_one,
    safety,
    say,
    wait_until,
)
from tests.serve.test_turns import ask, slow, stream, visit
from warmline.chat import Chat, Event, Text
from warmline.engine.base import Call, ScriptedEngine
from warmline.serve.app import create_app
from warmline.serve.auth import Gate
from warmline.serve.conversations import Conversations, Held
from warmline.serve.keys import Keys
from warmline.serve.limits import Limits
from warmline.serve.listening import Server
from warmline.serve.turns import Line

LOW = "I feel like a burden to everyone."


def names(events: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [name for name, _ in events if name != "waiting"]


# ---------------------------------------------------------------------- many at a time


@pytest.mark.parametrize(
    ("streams", "queue"),
    [(12, 64), (12, 3), pytest.param(64, 64, marks=pytest.mark.slow), pytest.param(64, 16, marks=pytest.mark.slow)],
)
def test_every_stream_is_whole_or_told_when_to_come_back(streams: int, queue: int) -> None:
    with serve_load.Server(queue=queue) as server:
        counts = asyncio.run(serve_load.crowd(server.url, streams))
        server.all_back()
    assert counts["history wrong"] == 0
    assert counts["complete"] + counts.get("told to retry", 0) == streams
    assert counts["complete"] >= min(streams, queue + serve_load.PLACES)


@pytest.mark.parametrize(("each", "slowly"), [(4, 2), pytest.param(200, 50, marks=pytest.mark.slow)])
def test_readers_who_break_off_hold_no_place(each: int, slowly: int) -> None:
    with serve_load.Server(seconds=60) as server:  # whoever is not noticed holds a place for a minute
        serve_load.leave(server.url, each, each, slowly)
        server.all_back(10)


@pytest.mark.parametrize("minutes", [0.05, pytest.param(10, marks=pytest.mark.slow)])
def test_minutes_of_everything_keep_nothing(minutes: float) -> None:
    with serve_load.Server() as server:
        found = serve_load.soak(server, minutes)
    assert found["faults"] == 0
    assert len(found["requests"]) > 1
    assert found["conversations_left"] == 0
    if minutes >= 10:
        assert found["mib_per_minute_after_the_second"][0] <= 0.1, found  # the interval's lower end: surely growing


def test_what_grows_is_seen_to_grow() -> None:
    steady = serve_load.slope_of([float(x) for x in range(8)], [100, 101, 100, 99, 100, 101, 99, 100])
    growing = serve_load.slope_of([float(x) for x in range(8)], [100 + 0.5 * x + (x % 2) * 0.2 for x in range(8)])
    assert steady[0] - steady[1] < 0 < steady[0] + steady[1]
    assert 0.4 < growing[0] - growing[1] < 0.5 < growing[0] + growing[1] < 0.6


def test_a_full_server_turns_away_and_answers_a_crisis() -> None:
    with serve_load.Server(seconds=60, queue=2) as server:
        found = asyncio.run(serve_load.refusals(server.url, 10, serve_load.PLACES + 2))
    assert found["crises_answered"] == found["crises"] == 1


# ---------------------------------------------------------------------- the line


def test_the_place_in_the_line_is_told_and_counts_down() -> None:
    line, gone = Line(1), threading.Event()
    assert line.enter(gone, 1)
    told: list[list[int]] = [[], [], []]
    threads = []
    for seen in told:
        thread = threading.Thread(target=lambda s=seen: line.enter(gone, 20, lambda place, _: s.append(place)))
        thread.start()
        threads.append(thread)
        wait_until(lambda s=seen: bool(s))
    for _ in range(3):
        line.leave()
        time.sleep(0.2)
    for thread in threads:
        thread.join(10)
    assert told == [[1], [2, 1], [3, 2, 1]]
    assert line.likely(3) is not None


def test_a_closed_line_lets_nobody_in_and_those_inside_stay() -> None:
    line, never, outcome = Line(1), threading.Event(), []
    assert line.enter(never, 1)
    waiting = threading.Thread(target=lambda: outcome.append(line.enter(never, 20)))
    waiting.start()
    wait_until(lambda: line.waiting == 1)
    line.close()
    waiting.join(5)
    assert outcome == [False]
    assert line.full
    assert not line.enter(never, 1)
    line.leave()
    assert line.free == 1


# ---------------------------------------------------------------------- told to come back


class Full(Line):
    def enter(self, *_: Any, **__: Any) -> bool:
        return False


def test_who_finds_no_place_is_told_so_with_the_resources_and_nothing_is_said_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat, engine = chat_with()
    held = Conversations()
    with client_for(chat, conversations=held, country="GB") as client:
        id = open_one(client)
        path = f"/api/conversations/{id}/messages"
        with monkeypatch.context() as full:
            full.setattr(Line, "enter", Full.enter)
            for _ in range(3):
                refused = client.post(path, json={"text": LOW})
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) > 0
                assert refused.json()["code"] == "busy"
                assert refused.json()["safety"]["level"] >= 2
                assert refused.json()["safety"]["resources"]["lines"][0]["call"]["href"] == "tel:116123"
            urgent = say(client, id, CRISIS)
            assert names(urgent)[-1] == "done"
            assert dict(urgent)["safety"]["action"] == "vetted"
        assert names(say(client, id, ORDINARY))[-1] == "done"
        found = client.get(f"/api/conversations/{id}").json()
    assert [m["text"] for m in found["messages"] if m["role"] == "user"] == [CRISIS, ORDINARY]
    assert found["level"] >= 2  # what the refused messages showed stays known
    assert len(engine.calls) <= 1


def limited(**limits: str) -> Gate:
    return Gate(Keys(), local=False, visitors="anyone", limits=Limits(**limits))


def test_beyond_the_limit_of_an_address_only_a_crisis_is_answered() -> None:
    chat, engine = chat_with()
    with client_for(chat, gate=limited(address="2/minute")) as client:
        id = open_one(client)
        for _ in range(2):
            say(client, id, ORDINARY)
        for _ in range(2):
            refused = client.post(f"/api/conversations/{id}/messages", json={"text": ORDINARY})
            assert (refused.status_code, refused.json()["code"]) == (429, "too-many")
            assert 0 < int(refused.headers["retry-after"]) <= 60
        assert dict(say(client, id, CRISIS))["safety"]["action"] == "vetted"
        assert len(client.get(f"/api/conversations/{id}").json()["messages"]) == 6
    assert len(engine.calls) == 2


def test_each_key_has_a_limit_of_its_own(tmp_path: Any) -> None:
    keys = Keys(tmp_path / "keys.json")
    texts = [keys.create(name, ("chat",))[1] for name in ("one", "two")]
    gate = Gate(keys, local=False, limits=Limits(key="2/minute"))
    body = {"model": "scripted", "messages": [{"role": "user", "content": ORDINARY}]}
    crisis = {"model": "scripted", "messages": [{"role": "user", "content": CRISIS}]}
    with client_for(chat_with()[0], gate=gate) as client:
        for stream_it in (False, True):
            for text in texts:
                headers = {"x-api-key": text}
                found = [client.post("/v1/chat/completions", json=body | {"stream": stream_it}, headers=headers)]
                if stream_it:
                    assert found[0].status_code == 429
                    assert found[0].json()["error"]["type"] == "rate_limit_error"
                    assert found[0].json()["warmline"]["level"] in (0, 1)
                    assert client.post("/v1/chat/completions", json=crisis, headers=headers).status_code == 200
                else:
                    found.append(client.post("/v1/chat/completions", json=body, headers=headers))
                    assert [answer.status_code for answer in found] == [200, 200]


def test_new_conversations_have_a_limit_where_room_is_short() -> None:
    for most, after in ((40, 429), (400, 201)):
        with client_for(chat_with()[0], gate=limited(), conversations=Conversations(most=most)) as client:
            codes = [client.post("/api/conversations", json={}).status_code for _ in range(35)]
        assert codes[:30] == [201] * 30
        assert set(codes[30:]) == {after}


# ---------------------------------------------------------------------- sent twice


def test_a_message_sent_twice_is_answered_once() -> None:
    chat, engine = chat_with("One.", "Two.")
    with client_for(chat) as client:
        id = open_one(client)
        path, key = f"/api/conversations/{id}/messages", {"Idempotency-Key": "a1"}
        first = client.post(path, json={"text": ORDINARY}, headers=key)
        again = client.post(path, json={"text": ORDINARY}, headers=key)
        assert names(events_of(first.text)) == names(events_of(again.text))
        assert first.text == again.text
        assert first.headers["warmline-place"] == again.headers["warmline-place"] == "0"
        other = client.post(path, json={"text": ORDINARY}, headers={"Idempotency-Key": "a2"})
        assert other.text != first.text
        # Late copies of the first are still the first.
        assert client.post(path, json={"text": ORDINARY}, headers=key).text == first.text
        # The key belongs to the conversation.
        elsewhere = client.post(f"/api/conversations/{open_one(client)}/messages", json={"text": "x"}, headers=key)
        assert elsewhere.status_code == 200
        assert len(client.get(f"/api/conversations/{id}").json()["messages"]) == 4
    assert len(engine.calls) == 3


def test_a_copy_that_comes_while_the_first_is_answered_waits_its_turn() -> None:
    entered, gate = threading.Event(), threading.Event()
    with Running(create_app(slow(entered, gate))) as server:
        at, answers = visit(server), []
        key = {"Idempotency-Key": "k"}
        first = threading.Thread(target=ask, args=(at, ORDINARY, answers), kwargs=key)
        first.start()
        assert entered.wait(5)
        copy = ask(at, ORDINARY, **key)
        assert (copy.status_code, copy.json()["code"]) == (409, "in-progress")
        assert copy.headers["retry-after"]
        gate.set()
        first.join(10)
        assert ask(at, ORDINARY, **key).text == answers[0]


def test_a_reply_that_was_cut_off_is_made_anew_and_the_message_stands_once() -> None:
    class Halting(ScriptedEngine):
        def reply(self, call: Call) -> Iterator[str]:
            self.calls.append(call)
            yield "The first thing is said. "
            if len(self.calls) == 1:
                call.cancel.wait(20)
                return
            yield "And the second."

    engine = Halting()
    held = Conversations()
    with Running(create_app(Chat(engine, system="x"), conversations=held)) as server:
        at, key = visit(server), {"Idempotency-Key": "k"}
        with (
            httpx.Client(cookies=at[1], timeout=20) as web,
            web.stream("POST", at[0], json={"text": ORDINARY}, headers=key) as answer,
        ):
            for piece in answer.iter_text():
                if "first thing" in piece:
                    break
        whole = events_of(ask(at, ORDINARY, **key).text)
        assert "".join(data["text"] for name, data in whole if name == "text").endswith("And the second.")
        messages = httpx.get(at[0].removesuffix("/messages"), cookies=at[1]).json()["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"]
    assert len(engine.calls) == 2


# ---------------------------------------------------------------------- the end of the day


def ending(app: Any, grace: int) -> tuple[Server, threading.Thread, str]:
    from warmline.serve.app import listen

    door = listen("127.0.0.1", 0)
    server = Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=grace))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    return server, thread, f"http://127.0.0.1:{door.getsockname()[1]}"


def open_at(url: str) -> tuple[str, dict[str, str]]:
    answer = httpx.post(f"{url}/api/conversations", json={})
    return f"{url}/api/conversations/{answer.json()['id']}/messages", dict(answer.cookies)


def test_a_reply_under_way_may_finish() -> None:
    entered, gate = threading.Event(), threading.Event()
    server, thread, url = ending(create_app(slow(entered, gate)), 20)
    first, second, answers = open_at(url), open_at(url), []
    asking = threading.Thread(target=ask, args=(first, ORDINARY, answers))
    asking.start()
    assert entered.wait(5)
    waiting: list[str] = []
    queued = threading.Thread(target=ask, args=(second, ORDINARY, waiting))
    queued.start()
    line = server.config.app.state.line  # type: ignore[union-attr]
    wait_until(lambda: line.waiting == 1)
    server.should_exit = True
    queued.join(10)  # who only waited is told at once
    assert events_of(waiting[0])[-1] == (
        "error",
        {"code": "closing", "message": events_of(waiting[0])[-1][1]["message"]},
    )
    gate.set()
    asking.join(10)
    thread.join(20)
    assert names(events_of(answers[0])) == ["safety", "text", "done"]


def test_a_reply_that_takes_too_long_is_cut_and_what_was_said_is_kept() -> None:
    kept: list[Held] = []

    class Recording(Conversations):
        def keep(self, held: Held) -> None:
            kept.append(held)

    class Endless(ScriptedEngine):
        def reply(self, call: Call) -> Iterator[str]:
            yield "This much was said. "
            call.cancel.wait(60)

    server, thread, url = ending(create_app(Chat(Endless(), system="x"), conversations=Recording()), 1)
    at, seen = open_at(url), threading.Event()

    def read() -> None:
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.Client(cookies=at[1], timeout=20) as web,
            web.stream("POST", at[0], json={"text": ORDINARY}) as answer,
        ):
            for piece in answer.iter_text():
                if "This much" in piece:
                    seen.set()

    reading = threading.Thread(target=read)
    reading.start()
    assert seen.wait(10)
    server.should_exit = True
    thread.join(20)
    reading.join(10)
    assert not thread.is_alive()
    assert [message.content for message in kept[0].thread.messages][:1] == [ORDINARY]
    assert kept[0].thread.messages[1].content.startswith("This much was said.")


# ---------------------------------------------------------------------- the stream itself


def test_nothing_is_sent_before_it_is_known_whether_there_is_a_place() -> None:
    def play(_: threading.Event) -> Iterator[Event]:
        yield safety()
        yield Text("Yes.")
        yield done()

    with client_for(chat_with()[0]) as client, pytest.MonkeyPatch.context() as full:
        full.setattr(Line, "enter", Full.enter)
        refused = client.post(f"/api/conversations/{open_one(client)}/messages", json={"text": ORDINARY})
        assert (refused.status_code, refused.headers["content-type"]) == (503, "application/json")
    turn, events, _ = stream(play, Line(1))
    assert names(events) == ["safety", "text", "done"]
    assert turn.whole


def test_a_fault_before_anything_was_meant_is_a_calm_error() -> None:
    def broken(*_: Any) -> Iterator[Event]:
        raise RuntimeError
        yield

    with client_for(Played(broken)) as client:
        assert names(say(client, open_one(client), ORDINARY)) == ["error"]
