"""The schema: what is written is read back, what is not a conversation is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.errors import CODES, WarmlineError
from warmline.messages import ROLES, Conversation, Message, Provenance

messages = st.lists(st.builds(Message, st.sampled_from(ROLES), st.text()), max_size=5).map(tuple)


@given(messages, st.text(min_size=1), st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
def test_a_conversation_round_trips(turns: tuple[Message, ...], name: str, labels: dict[str, str]) -> None:
    whole = Conversation(name, turns, "sleep", "g", labels, Provenance("a.csv", "MIT", 3))
    assert Conversation.from_json(whole.to_json()) == whole


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"id": "x"},
        {"id": 3, "messages": []},
        {"id": "x", "messages": "hello"},
        {"id": "x", "messages": [{"role": "robot", "content": "hi"}]},
        {"id": "x", "messages": [{"role": "user", "content": None}]},
        {"id": "x", "messages": ["hi"]},
    ],
)
def test_what_is_not_a_conversation_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="needs"):
        Conversation.from_json(row)


def test_words_are_counted_over_all_turns() -> None:
    assert Conversation("x", (Message("user", "one two"), Message("assistant", "three"))).words == 3


def test_an_error_says_what_where_and_what_to_try() -> None:
    error = WarmlineError("the port is taken", code="port-in-use", where="127.0.0.1:8765", hint="try --port 8766")
    assert str(error) == "the port is taken (127.0.0.1:8765) [port-in-use]\nhint: try --port 8766"


def test_an_unlisted_code_is_our_own_mistake() -> None:
    with pytest.raises(KeyError, match="not listed"):
        WarmlineError("x", code="no-such-code")
    assert all(code == code.lower() and cause and not cause.endswith(".") for code, cause in CODES.items())
