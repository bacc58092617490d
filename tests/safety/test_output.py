from __future__ import annotations

import json
import re
import time
from importlib import resources

import pytest
from conftest import planted
from hypothesis import given, settings
from hypothesis import strategies as st

from warmline.safety.output import OutputGuard, fault, garbage

INSTEAD = "[a vetted line]"
KIND = "That sounds like a long day."


def through(pieces: list[str], country: str | None = "US") -> tuple[str, str | None]:
    guard = OutputGuard(INSTEAD, country)
    said = [sentence for piece in pieces for sentence in guard.feed(piece)] + guard.finish()
    return "".join(said), guard.tripped


def test_planted_lines_are_stopped_at_every_token_boundary() -> None:
    lines = planted()
    assert len(lines) >= 200
    passed = []
    for kind, line in lines:
        tokens = re.findall(r"\s?\S+", line)
        for cut in range(len(tokens) + 1):
            said, rule = through([f"{KIND} ", "".join(tokens[:cut]), "".join(tokens[cut:])])
            if rule is None:
                passed.append((kind, line))
                break
            # what was released before may be an innocent first sentence of the line, never the offending one
            assert said.endswith(INSTEAD)
            shown = said.removesuffix(INSTEAD).strip()
            assert fault(shown, "US") is None
    assert len(passed) <= 0.02 * len(lines), passed


def test_good_turns_are_hardly_touched() -> None:
    lines = (resources.files("warmline") / "sample" / "conversations.jsonl").read_text("utf-8").splitlines()
    turns = [m["content"] for line in lines for m in json.loads(line)["messages"] if m["role"] == "assistant"]
    touched = [t for t in turns if through([t], None)[1]]
    assert len(touched) <= 0.02 * len(turns)


@pytest.mark.parametrize(
    "kind",
    [
        "It is not your fault.",
        "You don't deserve this.",
        "Are you thinking about ending your life?",
        "I'm an AI, not a human, and no therapist.",
        "A doctor can talk with you about your medication.",
        "You can call or text 988 at any hour.",
        "findahelpline.com lists lines in your country.",
        'You could tell her: "I need you here tonight."',
        "You won 3 of 4 games in 2024.",
        "It has been 24 hours.",
    ],
)
def test_what_may_be_said(kind: str) -> None:
    assert fault(kind, "US") is None


def test_a_number_of_another_country_is_stopped() -> None:
    assert fault("Call 988 now.", "GB") == "output.number"
    assert fault("Call 116 123 now.", "GB") is None


def test_sentences_are_released_whole() -> None:
    guard = OutputGuard(INSTEAD)
    assert guard.feed("I hear") == []
    assert guard.feed(" you. How") == ["I hear you."]
    assert guard.finish() == [" How"]


def test_words_are_made_safe() -> None:
    assert through(["He committed suicide in May. "])[0] == "He died by suicide in May."
    assert through(["People who commit suicide leave others behind."])[0].startswith("People who die by suicide")


def test_after_a_hit_nothing_more_comes() -> None:
    guard = OutputGuard(INSTEAD)
    assert guard.feed("You are worthless. ") == [INSTEAD]
    assert guard.tripped == "output.self-hatred"
    assert guard.feed("Kind words. ") == []
    assert guard.finish() == []


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=300), st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_splitting_changes_nothing(text: str, widths: list[int]) -> None:
    pieces, at = [], 0
    for width in widths * (len(text) // sum(widths) + 1):
        pieces.append(text[at : at + width])
        at += width
    assert through(pieces) == through([text])


def test_garbage() -> None:
    assert garbage("\ufffd\ufffd\ufffd")
    assert garbage("1234567890 )))) ((((")
    assert garbage("so " * 20)
    assert not garbage("Yes.")
    assert not garbage("That sounds hard. I'm here.")


def test_quick_enough() -> None:
    text = "I hear how much this weighs on you, and I'm glad you said it. What was the hardest part? " * 20
    through([text])
    began = time.perf_counter()
    through([text])
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Please don't promise to keep it secret.", None),
        ("It is better not promise to keep it secret; say that you may need help too.", None),
        ("I promise to keep it secret.", "output.secrecy"),
        ("Don't tell anyone, I promise to keep it between us.", "output.secrecy"),
        ("Don't worry. I promise to keep it secret.", "output.secrecy"),
    ],
)
def test_advice_against_secrecy_is_no_secrecy(text: str, found: str | None) -> None:
    assert fault(text) == found
