"""A turn as a stream: the line for the engine, readers who leave, engines that hang."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

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
from warmline.chat import Event, Text
from warmline.serve.app import create_app
from warmline.serve.conversations import Conversations, Turn
from warmline.serve.turns import Line, TurnStream


class TestLine:
    def test_first_come_first_served(self) -> None:
        line, order, never = Line(1), [], threading.Event()
        assert line.enter(never, 1)
        threads = []
        for number in range(5):
            standing = threading.Event()

            def stand(number: int = number, standing: threading.Event = standing) -> None:
                assert line.enter(never, 5, lambda *_: standing.set())
                order.append(number)
                line.leave()

            threads.append(threading.Thread(target=stand))
            threads[-1].start()
            assert standing.wait(2)
        line.leave()
        for thread in threads:
            thread.join(5)
        assert order == [0, 1, 2, 3, 4]
        assert line.enter(never, 0)

    def test_never_more_than_its_places(self) -> None:
        line, never, lock = Line(3), threading.Event(), threading.Lock()
        inside, most = 0, 0

        def visit() -> None:
            nonlocal inside, most
            for _ in range(20):
                assert line.enter(never, 10)
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.0005)
                with lock:
                    inside -= 1
                line.leave()

        threads = [threading.Thread(target=visit) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert most == 3
        assert all(line.enter(never, 0) for _ in range(3))
        assert not line.enter(never, 0.1)

    def test_who_gives_up_leaves_no_hole(self) -> None:
        line, never, gone = Line(1), threading.Event(), threading.Event()
        assert line.enter(never, 0)
        assert not line.enter(never, 0.1)
        gone.set()
        assert not line.enter(gone, 60)
        line.leave()
        assert line.enter(never, 0)

    def test_a_full_line_turns_away_at_once(self) -> None:
        line, never, gone, standing = Line(1, most=1), threading.Event(), threading.Event(), threading.Event()
        assert line.enter(never, 0)
        waiting = threading.Thread(target=line.enter, args=(gone, 10, lambda *_: standing.set()))
        waiting.start()
        assert standing.wait(2)
        started = time.monotonic()
        assert not line.enter(never, 10)
        assert time.monotonic() - started < 0.1
        gone.set()
        waiting.join(2)


def visit(server: Running) -> tuple[str, dict[str, str]]:
    """A new conversation: its address, and the cookie that opens it."""
    answer = httpx.post(f"{server.url}/api/conversations", json={})
    return f"{server.url}/api/conversations/{answer.json()['id']}/messages", dict(answer.cookies)


def ask(at: tuple[str, dict[str, str]], text: str, answers: list[str] | None = None, **headers: str) -> httpx.Response:
    answer = httpx.post(at[0], json={"text": text}, cookies=at[1], headers=headers, timeout=20)
    if answers is not None:
        answers.append(answer.text)
    return answer


def slow(entered: threading.Event, gate: threading.Event) -> Played:
    """Ordinary turns hold the engine until `gate` or their cancel is set; a crisis is answered without it."""

    def play(_: object, text: str, cancel: threading.Event) -> Iterator[Event]:
        if text == CRISIS:
            yield safety("vetted", 4)
            yield Text("You matter.")
            yield done(level=4)
            return
        yield safety()
        entered.set()
        while not gate.wait(0.01):
            if cancel.is_set():
                yield done("cancelled")
                return
        yield Text("Yes.")
        yield done()

    return Played(play)


def test_a_crisis_does_not_wait_for_the_engine() -> None:
    entered, gate = threading.Event(), threading.Event()
    with Running(create_app(slow(entered, gate))) as server, httpx.Client(base_url=server.url, timeout=20) as web:
        first, second, third = (visit(server) for _ in range(3))
        answers: list[str] = []
        busy = threading.Thread(target=ask, args=(first, ORDINARY, answers))
        busy.start()
        assert entered.wait(5)
        with web.stream("POST", second[0], json={"text": ORDINARY}, cookies=second[1]) as queued:
            seen = ""
            for chunk in queued.iter_text():
                seen += chunk
                if "waiting" in seen:
                    break
            started = time.monotonic()
            urgent = events_of(ask(third, CRISIS).text)
            assert time.monotonic() - started < 1
            assert [name for name, _ in urgent] == ["safety", "text", "done"]
            assert "text" not in [name for name, _ in events_of(seen)]
        gate.set()
        busy.join(10)
        assert [name for name, _ in events_of(answers[0])] == ["safety", "text", "done"]


def test_who_waits_is_answered_in_the_end() -> None:
    entered, gate = threading.Event(), threading.Event()
    with Running(create_app(slow(entered, gate))) as server:
        answers: list[str] = []

        threads = [threading.Thread(target=ask, args=(visit(server), ORDINARY, answers)) for _ in range(8)]
        for thread in threads:
            thread.start()
        assert entered.wait(5)
        time.sleep(0.2)
        gate.set()
        for thread in threads:
            thread.join(20)
    assert len(answers) == 8
    told = 0
    for answer in answers:
        events = events_of(answer)
        assert [name for name, _ in events if name != "waiting"] == ["safety", "text", "done"]
        places = [data.get("place") for name, data in events if name == "waiting"]
        assert places == [] or places[-1] is None
        assert sorted(places[:-1], reverse=True) == places[:-1]
        told += len(places) > 0
    assert told >= 1


@pytest.mark.parametrize("when", ["before the first byte", "in mid-stream"])
def test_a_reader_who_leaves_frees_the_engine(when: str) -> None:
    entered, gate = threading.Event(), threading.Event()
    held = Conversations()
    with Running(create_app(slow(entered, gate), conversations=held)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        for _ in range(10):
            entered.clear()
            at = visit(server)
            path, visitor = at[0].removeprefix(server.url), at[1]["visitor"]
            body = b'{"text": "I lie awake."}'
            with socket.create_connection((host, int(port))) as reader:
                reader.sendall(
                    f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nCookie: visitor={visitor}\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                if when == "in mid-stream":
                    assert entered.wait(5)
                    assert reader.recv(100)
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            conversation = held.find(visitor, path.split("/")[3])
            assert conversation is not None
            left = time.monotonic()
            if when == "in mid-stream":
                wait_until(lambda c=conversation: not c.replying, 2)
            else:
                wait_until(lambda c=conversation: c.turn is None or c.turn.ended.is_set(), 2)
            assert time.monotonic() - left < 2
        gate.set()
        assert events_of(ask(visit(server), ORDINARY).text)[-1][0] == "done"
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "warmline-turn"])


def test_a_newer_message_stops_the_reply_before_it() -> None:
    entered, gate = threading.Event(), threading.Event()
    with Running(create_app(slow(entered, gate))) as server:
        at, first = visit(server), []
        asking = threading.Thread(target=ask, args=(at, ORDINARY, first))
        asking.start()
        assert entered.wait(5)
        second = events_of(ask(at, CRISIS).text)
        assert [name for name, _ in second] == ["safety", "text", "done"]
        asking.join(5)
        assert dict(events_of(first[0]))["done"]["stop_reason"] == "cancelled"


def test_a_stuck_engine_does_not_hold_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmline.serve.conversations.TURN_END_SECONDS", 0.2)
    entered, gate = threading.Event(), threading.Event()

    def play(_: object, text: str, cancel: threading.Event) -> Iterator[Event]:
        if text == CRISIS:
            yield safety("vetted", 4)
            yield done(level=4)
            return
        yield safety()
        entered.set()
        gate.wait(20)  # deaf to its cancel
        yield done()

    with Running(create_app(Played(play))) as server:
        at = visit(server)
        asking = threading.Thread(target=ask, args=(at, ORDINARY))
        asking.start()
        assert entered.wait(5)
        started = time.monotonic()
        assert [name for name, _ in events_of(ask(at, CRISIS).text)] == ["safety", "done"]
        assert time.monotonic() - started < 2
        gate.set()
        asking.join(10)


def stream(play: Any, line: Line | None = None, **seconds: float) -> tuple[Turn, list[tuple[str, dict[str, Any]]], str]:
    """Run one `TurnStream` to its end with a reader who stays."""
    turn, sent = Turn(), []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    streaming = TurnStream(turn, lambda cancel: play(cancel), line or Line(1), **seconds)
    asyncio.run(streaming({"type": "http"}, receive, send))
    body = b"".join(sent).decode()
    return turn, events_of(body), body


def test_silence_ends_with_a_calm_error_and_a_cancel() -> None:
    def play(cancel: threading.Event) -> Iterator[Event]:
        yield safety()
        cancel.wait(10)
        yield done("cancelled")

    turn, events, body = stream(play, silence_seconds=0.3, beat_seconds=0.1)
    assert [name for name, _ in events] == ["safety", "error"]
    assert events[-1][1]["code"] == "no-reply"
    assert turn.cancel.is_set()
    assert ": still here" in body
    assert turn.ended.wait(2)


def test_a_line_too_long_ends_with_a_calm_error() -> None:
    line, closed = Line(1), []
    line.enter(threading.Event(), 0)

    def play(_: threading.Event) -> Iterator[Event]:
        try:
            yield safety()
            yield Text("never")
        finally:
            closed.append(True)

    _, events, _ = stream(play, line, line_seconds=0.2)
    assert [name for name, _ in events] == ["safety", "waiting", "error"]
    assert events[-1][1]["code"] == "busy"
    assert closed == [True]


def test_a_reader_who_takes_nothing_is_let_go() -> None:
    turn = Turn()

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        await asyncio.sleep(60)

    def play(cancel: threading.Event) -> Iterator[Event]:
        yield safety()
        cancel.wait(10)
        yield done("cancelled")

    streaming = TurnStream(turn, play, Line(1), reader_seconds=0.2)
    started = time.monotonic()
    asyncio.run(streaming({"type": "http"}, receive, send))
    assert time.monotonic() - started < 2
    assert turn.cancel.is_set()
    assert turn.ended.wait(2)


def test_many_conversations_are_never_mixed() -> None:
    def play(_: object, text: str, cancel: threading.Event) -> Iterator[Event]:
        yield safety()
        for word in range(5):
            time.sleep(0.002)
            yield Text(f"{text}-{word}. ")
        yield done()

    with Running(create_app(Played(play), engine_places=4)) as server:
        wrong: list[str] = []

        def talk(number: int) -> None:
            with httpx.Client(base_url=server.url, timeout=30) as web:
                id = web.post("/api/conversations", json={}).json()["id"]
                for turn in range(3):
                    said = f"v{number}t{turn}"
                    events = events_of(web.post(f"/api/conversations/{id}/messages", json={"text": said}).text)
                    heard = "".join(data["text"] for name, data in events if name == "text")
                    if heard != "".join(f"{said}-{word}. " for word in range(5)):
                        wrong.append(said)

        threads = [threading.Thread(target=talk, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert wrong == []


def test_deleting_stops_the_reply() -> None:
    entered, gate = threading.Event(), threading.Event()
    with Running(create_app(slow(entered, gate))) as server:
        at, answers = visit(server), []
        asking = threading.Thread(target=ask, args=(at, ORDINARY, answers))
        asking.start()
        assert entered.wait(5)
        assert httpx.delete(at[0].removesuffix("/messages"), cookies=at[1]).status_code == 204
        asking.join(5)
        assert dict(events_of(answers[0]))["done"]["stop_reason"] == "cancelled"


def test_stop_leaves_a_conversation_that_goes_on() -> None:
    chat, engine = chat_with("One thought. And another thought.")
    with client_for(chat) as client:
        id = open_one(client)
        say(client, id, ORDINARY)
        say(client, id, "Go on, then.")
    assert len(engine.calls) == 2
