"""The operator's numbers: they add up, and hold no words."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.serve.conftest import CRISIS, ORDINARY, chat_with, client_for, done, open_one, safety, say
from warmline.chat import Event, Text
from warmline.serve.meter import Meter
from warmline.serve.turns import Line


def value(text: str, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def test_every_turn_is_counted_by_level_and_action() -> None:
    with client_for(chat_with()[0]) as client:
        id = open_one(client)
        say(client, id, ORDINARY)
        say(client, id, CRISIS)
        client.post(
            "/v1/chat/completions", json={"model": "scripted", "messages": [{"role": "user", "content": CRISIS}]}
        )
        answer = client.get("/metrics")
    text = answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    assert value(text, "warmline_turns_total{") == 3
    assert value(text, 'warmline_turns_total{action="vetted"') == 2
    assert value(text, 'warmline_replies_total{stop_reason="stop"') == 3
    assert value(text, "warmline_first_text_seconds_count") == 3
    assert value(text, "warmline_conversations ") == 1
    for words in (ORDINARY, CRISIS, id):
        assert not set(words.lower().split()) & set(text.lower().replace('"', " ").split()) - {"i", "to", "and", "the"}


def meter() -> Meter:
    return Meter(Line(), lambda: 0)


def test_a_turn_left_half_way_and_a_broken_one_are_counted() -> None:
    def turn() -> Iterator[Event]:
        yield safety()
        yield Text("One.")
        yield done()

    def broken() -> Iterator[Event]:
        yield safety()
        raise RuntimeError

    counted = meter()
    left = counted.turn(turn())
    next(left)
    left.close()  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError):
        list(counted.turn(broken()))
    assert len(list(counted.turn(turn()))) == 3
    text = counted.text().decode()
    for reason in ("cancelled", "error", "stop"):
        assert value(text, f'warmline_replies_total{{stop_reason="{reason}"') == 1


def test_ready_until_the_line_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    with client_for(chat_with()[0]) as client:
        assert client.get("/readyz").status_code == 200
        monkeypatch.setattr(Line, "full", property(lambda self: True))
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200


def test_a_line_knows_when_it_is_full() -> None:
    line = Line(places=1, most=1)
    assert not line.full
    assert line.enter(threading.Event(), 1)
    assert not line.full
    waiting = threading.Event()
    waiter = threading.Thread(target=line.enter, args=(threading.Event(), 5, lambda *_: waiting.set()))
    waiter.start()
    assert waiting.wait(5)
    assert (line.full, line.waiting) == (True, 1)
    line.leave()
    waiter.join(5)
    assert (line.full, line.waiting) == (False, 0)
