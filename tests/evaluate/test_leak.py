"""Nothing that training holds is scored, and nothing else is left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.evaluate.leak import Item, find, items_of, summary
from warmline.messages import Conversation, Message

QUESTION = "Since the move I wake at four every night and lie there counting what went wrong at work"
REPLY = "Four in the morning is a lonely hour to be counting. What is the first thing you count when you wake?"
OTHER = "My sister has stopped answering and I do not know whether to drive over or to leave her be"


def conversation(id: str, *texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(id, tuple(Message(roles[n % 2], text) for n, text in enumerate(texts)))


TRAINING = [conversation("t0", "Hello, I am new here", "Welcome."), conversation("t1", QUESTION, REPLY)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (QUESTION, "the very words"),
        (QUESTION.upper() + " …", "the very words"),
        (REPLY.replace("?", "").replace(",", ""), "the very words"),
        ("Well. " + QUESTION + " and at home and with everybody I ever knew.", "half of its eight-word sequences"),
        (QUESTION + " I think", "half of its eight-word sequences"),
    ],
)
def test_what_training_holds_is_found(text: str, why: str) -> None:
    [leak] = find([Item("test", "a", (text,))], TRAINING)
    assert (leak.trained_on, leak.why) == ("t1", why)


@pytest.mark.parametrize(
    "text",
    [
        OTHER,
        "Hello, I am new here",  # a common phrase gives nothing away
        "",
        "I wake at four every night",
        "Since the move I sleep better than I have for years, and work goes well, thank you for asking me about it",
    ],
)
def test_what_training_does_not_hold_stays(text: str) -> None:
    assert find([Item("test", "a", (text,))], TRAINING) == []


def test_nearly_the_same_words_in_another_order_of_edits() -> None:
    words = (OTHER + " " + QUESTION + " " + REPLY).split()
    edited = [w if n % 20 != 10 else "something" for n, w in enumerate(words)]
    training = [conversation("t", " ".join(words))]
    assert len(find([Item("test", "a", (" ".join(edited),))], training)) == 1


def test_the_system_message_is_everybodys() -> None:
    system = Message("system", "You listen to people who have a hard time, and you answer in a few warm words.")
    one, two = (Conversation(i, (system, Message("user", t))) for i, t in (("a", OTHER), ("b", QUESTION)))
    assert find(items_of("test", [one]), [two]) == []


def test_counts_are_by_set() -> None:
    items = [Item("test", "a", (QUESTION,)), Item("test", "b", (OTHER,)), Item("prompts", "p", (REPLY,))]
    found = summary(items, find(items, TRAINING))
    assert found["sets"] == {
        "test": {"items": 2, "contaminated": 1},
        "prompts": {"items": 1, "contaminated": 1},
    }
    assert [row["id"] for row in found["contaminated"]] == ["a", "p"]
    assert QUESTION not in str(found)


WORDS = st.lists(st.sampled_from([f"w{n}" for n in range(500)]), min_size=8, max_size=60)


@given(st.lists(WORDS, min_size=1, max_size=5), st.data())
def test_a_planted_copy_is_always_found_and_strangers_never(texts: list[list[str]], data: st.DataObject) -> None:
    training = [conversation(f"t{n}", " ".join(words)) for n, words in enumerate(texts)]
    planted = data.draw(st.integers(0, len(texts) - 1))
    stranger = " ".join(f"x{n}" for n in range(20))
    items = [Item("test", "copy", (" ".join(texts[planted]),)), Item("test", "stranger", (stranger,))]
    assert [leak.id for leak in find(items, training)] == ["copy"]
