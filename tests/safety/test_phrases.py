from __future__ import annotations

import time

import pytest

from warmline.errors import SafetyError
from warmline.safety.normalise import normalise
from warmline.safety.phrases import Grammar, PhraseBook, words_of


def found(phrase: str, text: str, **classes: list[str]) -> list[str]:
    book = PhraseBook([Grammar(classes).compile(phrase, "k")])
    words = words_of(normalise(text).text)
    return [" ".join(words.words[hit.first : hit.last]) for hit in book.search(words)]


@pytest.mark.parametrize(
    ("phrase", "text", "hits"),
    [
        ("want to (die|be dead)", "I want to die. I want to be dead!", 2),
        ("want to (die|be dead)", "I want to dine", 0),
        ("suicid*", "suicidal, suicide", 2),
        ("really? sad", "really sad; sad", 2),
        ("end ...2 life", "end my whole life", 1),
        ("end ...2 life", "end my whole and only life", 0),
        ("end ... life", "the end. My life", 0),
        ("<who> died", "my dad died", 1),
        ("^ yes $", "Well, yes. Yes.", 1),
        ("don't", "I don’t and I dont", 2),
    ],
)
def test_the_small_language(phrase: str, text: str, hits: int) -> None:
    assert len(found(phrase, text, who=["dad", "mum"])) == hits


@pytest.mark.parametrize("phrase", ["(open", "close)", "<nobody>", "...", "maybe?"])
def test_a_damaged_phrase_names_itself(phrase: str) -> None:
    with pytest.raises(SafetyError) as failure:
        Grammar({}).compile(phrase)
    assert phrase in str(failure.value)


def test_a_class_may_not_contain_itself() -> None:
    with pytest.raises(SafetyError):
        Grammar({"a": ["<a> b"]}).compile("<a> c")


@pytest.mark.parametrize(
    "text", ["a " * 4000, "i want to " * 1500, "a" * 20000, "( " * 5000, "want " * 4000, "😀" * 3000]
)
def test_no_text_makes_it_run_away(text: str) -> None:
    from warmline.safety.screen import screen

    screen("warm up")
    began = time.perf_counter()
    screen(text)
    assert time.perf_counter() - began < 3.0
