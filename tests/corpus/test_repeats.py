"""What is kept of a text that comes again, as a question with many answers does, changes nothing that comes out."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmline.corpus import clean, lint, lint_classify, pipeline
from warmline.corpus.anonymise import masking
from warmline.messages import Conversation, Message

KEPT = (clean._mended, masking._alone, lint._in_reply, lint._unanswered, lint_classify._of_window)

ASKED = (
    "My friend Priya in Leeds says I should call 07700 900123.  It&#39;s hard .",
    "I have been cutting myself again.",
    "my sister Rosa moved to Lyon",
    "Priya is back. I want to kill myself",
)
SAID = (
    "You could tell Priya how it felt. What would she say?",
    "What a day.<br>Tell me about your cat.",
    "Just get over it. You are overreacting.",
    "I am sorry that your cousin committed suicide.",
    "I'm here to listen.\nBest wishes,\nJane Roe, LMFT",
)
EXCHANGES = list(itertools.product(ASKED, SAID))


def conversation(*pairs: tuple[str, str]) -> Conversation:
    messages = [Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
    return Conversation("c", tuple(messages))


def outcome(given: Conversation) -> tuple[Any, dict[str, Counter[str]]]:
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("repairs", "pii", "lint")}
    return pipeline.one(given, "en", True, "route", "", None, counts), counts


def forget() -> None:
    for kept in KEPT:
        kept.cache_clear()


@given(st.lists(st.sampled_from(EXCHANGES), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_same_comes_out_the_second_time(pairs: list[tuple[str, str]]) -> None:
    talks = [conversation(pair) for pair in pairs] + [conversation(*pairs)]
    fresh = []
    for talk in talks:
        forget()
        fresh.append(outcome(talk))
    forget()
    assert [outcome(talk) for talk in talks] == fresh
    assert [outcome(talk) for talk in reversed(talks)] == fresh[::-1]


def test_repairs_are_counted_each_time() -> None:
    forget()
    first, second = (clean.clean(conversation((ASKED[0], SAID[4]))) for _ in range(2))
    assert first.repairs == second.repairs
    assert first.repairs["entities"] == 1
    assert first.repairs["spacing"] == 1, "every repair of a text, not the first alone"
    assert first.repairs["signature"] == 1
    assert clean._mended.cache_info().hits == 2


def test_a_signature_is_taken_from_replies_only() -> None:
    forget()
    text = SAID[4]
    assert clean._mended(text, True)[0] != clean._mended(text, False)[0]


def test_names_are_numbered_within_each_conversation() -> None:
    forget()
    one, other = (masking.mask_conversation(conversation((ASKED[0], SAID[0]))) for _ in range(2))
    assert one == other
    after_rosa = masking.mask_conversation(conversation((ASKED[2], "Go on."), (ASKED[0], SAID[0])))
    assert "[PERSON_1]" in one.messages[0].content
    assert "[PERSON_2]" in after_rosa.messages[2].content


def test_a_policy_is_kept_apart() -> None:
    forget()
    text = "It was in 1998, I think."
    assert masking._alone(text, "strict") != masking._alone(text, "standard")


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.__name__)
def test_memory_stays_flat(kept: Any) -> None:
    """A number of texts, so that a corpus larger than memory stays so."""
    assert 0 < kept.cache_info().maxsize <= 16_384
