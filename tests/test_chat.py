"""The one door: order of events, faults of every kind, and that nothing gets around the guard."""

from __future__ import annotations

import errno
import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from warmline.chat import Chat, Done, Event, Notice, Safety, Text, Thread
from warmline.engine.base import Call, ScriptedEngine
from warmline.errors import EngineError
from warmline.messages import Message
from warmline.safety.audit import AuditLog, verify
from warmline.safety.classify import Judgement, Patient
from warmline.safety.phrases import Words
from warmline.safety.screen import Finding, screen_turn

CRISIS = "I want to kill myself"


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12)

    def __call__(self) -> datetime:
        return self.now


def talk(chat: Chat, thread: Thread, text: str) -> list[Event]:
    return list(chat.turn(thread, text))


def said(events: list[Event]) -> str:
    return "".join(event.piece for event in events if isinstance(event, Text))


def safety(events: list[Event]) -> Safety:
    return next(event for event in events if isinstance(event, Safety))


def test_order_of_events() -> None:
    thread = Thread()
    chat = Chat(ScriptedEngine(["That sounds long. What was hardest?"]), system="Listen.", country="GB")
    events = talk(chat, thread, "a rough week")
    assert [type(event).__name__ for event in events] == ["Notice", "Safety", "Text", "Text", "Done"]
    assert said(events) == "That sounds long. What was hardest?"
    assert thread.messages == [Message("user", "a rough week"), Message("assistant", said(events))]
    assert isinstance(talk(chat, thread, "mm")[0], Safety)


@pytest.mark.parametrize("message", [CRISIS, "how many pills would kill me", "I'm going to end my life tonight"])
def test_a_crisis_is_answered_without_the_model(message: str) -> None:
    engine = ScriptedEngine()
    events = talk(Chat(engine, system="", country="US"), Thread(), message)
    assert engine.calls == []
    assert safety(events).action == "vetted"
    assert safety(events).level >= 3
    assert safety(events).resources is not None
    assert "988" in said(events)


def test_passive_thoughts_get_the_model_and_the_lines() -> None:
    engine = ScriptedEngine(["That is a heavy thing to carry."])
    events = talk(Chat(engine, system="", country="US"), Thread(), "I wish I wouldn't wake up")
    assert len(engine.calls) == 1
    assert said(events).startswith("That is a heavy thing to carry.\n\n")
    assert "988" in said(events)


def test_the_visitor_s_country_wins() -> None:
    chat = Chat(ScriptedEngine(), system="", country="US")
    assert "116 123" in said(talk(chat, Thread(country="GB"), CRISIS))


def dead(call: Call) -> Iterator[str]:
    raise EngineError("dead", code="engine-failed")
    yield ""


def out_of_memory(call: Call) -> Iterator[str]:
    yield "I hear"
    raise MemoryError


def nothing(call: Call) -> Iterator[str]:
    yield from ()


def junk(call: Call) -> Iterator[str]:
    yield from ["\ufffd\ufffd\ufffd\ufffd ", "%%% ### 000 ### %%%. "] * 5


def loop(call: Call) -> Iterator[str]:
    yield from ["so "] * 400


def silent(call: Call) -> Iterator[str]:
    call.cancel.wait(5)
    yield ""


def no_text(call: Call) -> Iterator[Any]:
    yield 17


def unsafe(call: Call) -> Iterator[str]:
    yield from ["I hear you. You", " are", " worth", "less and should", " just die", ". Bye."]


def fine(call: Call) -> Iterator[str]:
    yield from ["That sounds hard. ", "What ", "happened?"]


class Faulty:
    """An engine that fails in the next way of its list each time."""

    name = "faulty"

    def __init__(self, *ways: Any) -> None:
        self._ways = itertools.cycle(ways)
        self.calls = 0

    def reply(self, call: Call) -> Iterator[str]:
        self.calls += 1
        return next(self._ways)(call)  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", [dead, out_of_memory, nothing, junk, loop, silent, no_text])
def test_a_failing_engine_is_replaced_by_a_way_to_a_human(way: Any) -> None:
    chat = Chat(Faulty(way), system="", country="US", first_word_seconds=0.2, next_word_seconds=0.2)
    thread = Thread()
    events = talk(chat, thread, "hello")
    assert "988" in said(events)
    assert isinstance(events[-1], Done)
    assert "\ufffd" not in said(events)
    assert thread.messages[-1].role == "assistant"


def test_unsafe_words_are_never_shown() -> None:
    events = talk(Chat(Faulty(unsafe), system="", country="US"), Thread(), "hello")
    assert "worthless" not in said(events)
    assert "Bye" not in said(events)
    assert said(events).startswith("I hear you. ")


def test_a_reader_who_leaves_stops_the_engine() -> None:
    engine = ScriptedEngine(["One sentence. " * 50])
    thread = Thread()
    turn = Chat(engine, system="").turn(thread, "hello")
    for event in turn:
        if isinstance(event, Text):
            break
    turn.close()
    assert engine.calls[0].cancel.is_set()
    assert thread.messages[0] == Message("user", "hello")
    assert thread.messages[1].content == "One sentence."


def test_stop_button() -> None:
    cancel = threading.Event()
    engine = ScriptedEngine(["One sentence. " * 200])
    events = []
    for event in Chat(engine, system="").turn(Thread(), "hello", cancel=cancel):
        events.append(event)
        if isinstance(event, Text):
            cancel.set()
    assert isinstance(events[-1], Done)
    assert events[-1].stop_reason == "cancelled"


def test_notices() -> None:
    clock = Clock()
    thread = Thread()
    chat = Chat(ScriptedEngine(), system="", clock=clock)

    def notices(text: str = "hm") -> list[str]:
        return [event.text for event in talk(chat, thread, text) if isinstance(event, Notice)]

    assert len(notices()) == 1
    assert notices() == []
    clock.now += timedelta(hours=3, minutes=1)
    assert "AI" in notices()[0]
    clock.now += timedelta(days=8)
    assert len(notices()) == 1
    for question in ("are you human?", "are you a therapist?", "am I talking to a real person"):
        assert "AI" in notices(question)[0]


def test_where_the_service_is_off_the_model_is_not_asked() -> None:
    engine = ScriptedEngine()
    chat = Chat(engine, system="", country="US", policy="US-IL")
    events = talk(chat, Thread(), "I feel a bit low")
    assert engine.calls == []
    assert "isn't offered" in said(events)
    assert "988" in said(talk(chat, Thread(), CRISIS))


def test_threads_survive_storage() -> None:
    thread = Thread(country="GB")
    chat = Chat(ScriptedEngine(), system="")
    for text in ("hi", "I wish I was dead", CRISIS):
        talk(chat, thread, text)
    copy = Thread.from_json(json.loads(json.dumps(thread.to_json())))
    assert copy == thread


def test_context_is_cut_at_turns_and_keeps_the_newest() -> None:
    engine = ScriptedEngine(["ok then."])
    chat = Chat(engine, system="Listen.", fits=lambda messages: len(messages) <= 4)
    thread = Thread()
    for number in range(5):
        talk(chat, thread, f"message {number}")
    sent = engine.calls[-1].messages
    assert [m.role for m in sent] == ["system", "user", "assistant", "user"]
    assert sent[-1].content == "message 4"


def test_screening_that_fails_altogether_is_answered_as_serious(monkeypatch: pytest.MonkeyPatch) -> None:
    import warmline.chat as module

    def broken(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(module, "screen_turn", broken)
    engine = ScriptedEngine()
    events = talk(Chat(engine, system="", country="US"), Thread(), "anything")
    assert engine.calls == []
    assert safety(events).action == "vetted"


def fault_run(turns: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, float]:
    """(turns, rows, slowest crisis answer in seconds) under faults of classifier, engine and disk."""
    dice = random.Random(5)
    log = AuditLog(folder / "audit.jsonl", sync=False)
    write = log._write

    def disk(data: bytes) -> None:
        if dice.random() < 0.2:
            raise OSError(errno.ENOSPC, "no space")
        write(data)

    monkeypatch.setattr(log, "_write", disk)

    def judge(words: Words) -> Judgement:
        lot = dice.random()
        if lot < 0.2:
            raise ValueError
        if lot < 0.205:
            time.sleep(0.2)
        return Judgement(0.0, 0.0, 0.0)

    ways = (fine, dead, out_of_memory, nothing, junk, loop, no_text, unsafe)
    engine = Faulty(*ways)
    chat = Chat(
        engine, system="", country="US", audit=log, classifier=Patient(judge, seconds=0.05), next_word_seconds=1
    )
    messages = [
        "hello",
        "I feel low",
        CRISIS,
        "how do I hang myself",
        "my feet are killing me",
        "I'm 14",
        "I cut myself",
    ]
    slowest = 0.0
    for number in range(turns):
        text = messages[number % len(messages)]
        began = time.perf_counter()
        events = talk(chat, Thread(), text)
        took = time.perf_counter() - began
        meant = safety(events)
        assert isinstance(events[-1], Done)
        assert "worthless" not in said(events)
        assert said(events)
        if text in (CRISIS, "how do I hang myself"):
            slowest = max(slowest, took)
            assert meant.action == "vetted"
            assert "988" in said(events)
        first_text = next(i for i, event in enumerate(events) if isinstance(event, Text))
        assert any(isinstance(event, Safety) for event in events[:first_text])
    monkeypatch.setattr(log, "_write", write)
    assert log.flush()
    rows, _ = verify(log.path)
    screened = [json.loads(line)["row"]["screened"] for line in log.path.read_text("utf-8").splitlines()]
    assert set(screened) <= {"full", "lexicon"}
    return turns, rows, slowest


def test_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, rows, slowest = fault_run(400, tmp_path, monkeypatch)
    assert rows == turns
    assert slowest < 1.0


@pytest.mark.slow
def test_ten_thousand_turns_of_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, rows, slowest = fault_run(10_000, tmp_path, monkeypatch)
    assert rows == turns
    assert slowest < 1.0


def test_the_audit_holds_no_words(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "a.jsonl", sync=False)
    chat = Chat(ScriptedEngine(["Unmistakable reply words."]), system="prompt words", audit=log)
    talk(chat, Thread(), "zebra crossing umbrella")
    row = log.path.read_text("utf-8").lower()
    assert not any(word in row for word in ("zebra", "umbrella", "unmistakable", "prompt words"))


def test_every_path_to_the_engine_leads_through_the_screen() -> None:
    """Follow the calls of a turn: the engine is reached after the screen, from `Chat` alone."""
    seen: list[str] = []

    class Watched(ScriptedEngine):
        def reply(self, call: Call) -> Iterator[str]:
            seen.append("engine")
            return super().reply(call)

    def trace(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_name == "screen" and frame.f_code.co_filename.endswith("screen.py"):
            seen.append("screen")

    sys.setprofile(trace)
    try:
        talk(Chat(Watched(), system=""), Thread(), "hello")
    finally:
        sys.setprofile(None)
    assert seen == ["screen", "engine"]


def test_chat_needs_no_model_library() -> None:
    import subprocess

    code = "import sys, warmline.chat; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("most", range(1, 12))
def test_the_oldest_turns_go_first_and_what_is_left_begins_with_the_person(most: int) -> None:
    looks = 0

    def fits(messages: list[Message]) -> bool:
        nonlocal looks
        looks += 1
        return len(messages) <= most

    chat = Chat(ScriptedEngine(), system="Listen.", fits=fits)
    for first in ("user", "assistant"):
        roles = ("user", "assistant") if first == "user" else ("assistant", "user")
        said = [Message(roles[n % 2], f"{roles[n % 2]} {n}") for n in range(8 if first == "user" else 9)]
        thread = Thread(messages=list(said))
        kept = chat.context(thread, "now")
        assert kept[0] == Message("system", "Listen.")
        assert kept[1].role == "user" or len(kept) - 2 == len(said)
        assert kept[-1].content.endswith("now")
        assert len(kept) <= max(most, 2)
        assert kept[1:-1] == [*said, Message("user", "now")][-len(kept) + 1 : -1] if first == "user" else True
        # As much as fits: the next turn would have been one too many.
        assert len(kept) == len(said) + 2 or len(kept) + 2 > most or first == "assistant"
        assert thread.messages == said
    assert looks < 12


def test_a_conversation_is_screened_with_what_the_person_said_before_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import warmline.chat as module

    asked: list[tuple[str, list[str], int, bool]] = []

    def watch(text: str, earlier: Any, told: Any, classifier: Any, *, amid: bool) -> Finding:
        asked.append((text, list(earlier), len(told), amid))
        return screen_turn(text, earlier, told, classifier, amid=amid)

    monkeypatch.setattr(module, "screen_turn", watch)
    chat, history = Chat(ScriptedEngine(), system="", country="US"), Thread()
    chat.recall(history, [Message("assistant", "How are you?"), Message("user", "Not well.")])
    talk(chat, history, "Work is hard.")
    talk(chat, history, "My boss shouts.")
    list(chat.turn(history, "My boss shouts every day.", instead=True))
    assert asked == [
        ("Not well.", [], 0, True),
        ("Work is hard.", ["Not well."], 1, True),
        ("My boss shouts.", ["Not well.", "Work is hard."], 2, True),
        ("My boss shouts every day.", ["Not well.", "Work is hard."], 2, True),
    ]
