"""A message said anew, edited or tried again: it takes the place of the last one, and takes no sign of danger back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmline.chat import Chat, Safety, Thread
from warmline.engine.base import ScriptedEngine
from warmline.messages import Message
from warmline.safety.state import State, at_least

CALM = "The tea is good today and the garden is in flower."
PASSIVE = "Sometimes I wish I could go to sleep and not wake up."
ACUTE = "I want to kill myself tonight."


def chat_with(*script: str) -> tuple[Chat, ScriptedEngine]:
    engine = ScriptedEngine(script or ("I hear you.",))
    return Chat(engine, system="You listen."), engine


def said(chat: Chat, thread: Thread, text: str, instead: bool = False) -> Safety:
    events = list(chat.turn(thread, text, instead=instead))
    return next(event for event in events if isinstance(event, Safety))


def test_it_takes_the_place_of_the_last_one_and_its_answer() -> None:
    chat, engine = chat_with("One.", "Two.", "Three.")
    thread = Thread()
    said(chat, thread, "My sister moved away.")
    said(chat, thread, "Work is long and I mistyped htis.")
    said(chat, thread, "Work is long.", instead=True)
    assert [m.content for m in thread.messages] == ["My sister moved away.", "One.", "Work is long.", "Three."]
    assert "htis" not in str(engine.calls[-1].messages)
    assert "Two." not in str(engine.calls[-1].messages)


def test_with_nothing_said_before_it_is_a_first_message() -> None:
    chat, _ = chat_with()
    thread = Thread()
    said(chat, thread, CALM, instead=True)
    assert thread.messages[0] == Message("user", CALM)


@pytest.mark.parametrize("text", [CALM, PASSIVE, ACUTE])
def test_tried_again_nothing_changes(text: str) -> None:
    chat, _ = chat_with()
    thread = Thread()
    first = said(chat, thread, text)
    state = thread.state
    for _ in range(6):
        again = said(chat, thread, text, instead=True)
        assert (again.level, again.action) == (first.level, first.action)
    assert replace(thread.state, began=None, last=None) == replace(state, began=None, last=None)


@pytest.mark.parametrize("risk", [PASSIVE, ACUTE])
def test_an_edit_takes_no_danger_back(risk: str) -> None:
    chat, _ = chat_with()
    thread = Thread()
    level = said(chat, thread, risk).level
    assert level >= 2
    for _ in range(8):
        assert said(chat, thread, CALM, instead=True).level == level
    assert thread.state.peak >= level


def test_an_edit_can_show_more() -> None:
    chat, _ = chat_with()
    thread = Thread()
    assert said(chat, thread, CALM).level == 0
    found = said(chat, thread, ACUTE, instead=True)
    assert found.level >= 3
    assert found.action == "vetted"


def test_signs_of_both_wordings_count_together() -> None:
    """Wishing to be dead, changed into saying goodbye, is both."""
    both, one = Thread(), Thread()
    chat, _ = chat_with()
    goodbye = "I gave my cat away and wrote everyone a goodbye letter."
    said(chat, both, PASSIVE)
    said(chat, both, goodbye, instead=True)
    said(chat, one, goodbye)
    assert both.state.families >= one.state.families
    assert both.state.level >= max(one.state.level, 3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([CALM, PASSIVE, ACUTE, "ok", "no"]), st.booleans()), max_size=8))
def test_the_level_never_falls_by_saying_it_anew(turns: list[tuple[str, bool]]) -> None:
    chat, _ = chat_with()
    thread = Thread()
    for text, instead in turns:
        before, anew = thread.state, instead and thread.turns > 0
        said(chat, thread, text, instead=instead)
        if anew:
            assert thread.state == at_least(thread.state, before)


def test_the_state_before_survives_being_stored() -> None:
    chat, _ = chat_with()
    thread = Thread()
    said(chat, thread, PASSIVE)
    copy = Thread.from_json(json.loads(json.dumps(thread.to_json())))
    assert copy == thread
    assert copy.before == State()
    assert said(chat, copy, PASSIVE, instead=True).level == thread.state.level
