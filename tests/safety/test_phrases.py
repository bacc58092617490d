from __future__ import annotations

import time
from collections import Counter

import pytest

from warmline.errors import SafetyError
from warmline.safety.normalise import normalise
from warmline.safety.phrases import Grammar, Hit, PhraseBook, Words, words_of


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


def test_no_phrase_is_left_out_that_would_have_been_found() -> None:
    """What is tried only where all its parts can be is found as if everything were tried everywhere."""
    from conftest import cases

    from warmline.safety.screen import lexicon

    lines = [line for name in ("risk", "benign") for _, lines in cases(name).values() for line in lines]
    book = lexicon().book
    phrases = {id(phrase): phrase for many in book._index.values() for _, phrase in many}.values()
    found = 0
    for start in range(0, len(lines), 29):
        words = words_of(normalise(". ".join(lines[start : start + 29 : 6])).text)
        hits = Counter[Hit]()
        for place, first in enumerate(words.sentences):
            after = words.sentences[place + 1] if place + 1 < len(words.sentences) else len(words.words)
            stop = words.starts[after] if after < len(words.words) else len(words.line)
            for phrase in phrases:
                for match in phrase.pattern.finditer(words.line, words.starts[first], stop):
                    hits[Hit(phrase.key, words.index(match.start()), words.index(match.end() - 1) + 1)] += 1
        # of a rule of several parts, those alone count that stand in a sentence with all the others
        tried = Counter(book.search(words))
        assert tried <= hits
        assert whole(hits, words) == whole(tried, words)
        found += len(tried)
    assert found > 50


def whole(hits: Counter[Hit], words: Words) -> Counter[Hit]:
    from warmline.safety.screen import lexicon

    def at(hit: Hit) -> tuple[str, int]:
        return hit.key.partition("#")[0], words.sentence(hit.first)[0]

    met = Counter(at(hit) for hit in {Hit(h.key, words.sentence(h.first)[0], 0): h for h in hits}.values())
    return Counter(
        {hit: n for hit, n in hits.items() if "#" not in hit.key or met[at(hit)] == lexicon().parts[at(hit)[0]]}
    )


@pytest.mark.parametrize(
    ("text", "words", "sentences"),
    [
        ("", [], [0]),
        ("no", ["no"], [0]),
        ("no... yes!!\n\nwhy?!", ["no", ".", "yes", "!", "why", "?"], [0, 2, 4]),
        ("why?? so; well", ["why", "?", "?", "so", ".", "well"], [0, 2, 3, 5]),
        (". a, b", [".", "a", ",", "b"], [0, 1]),
    ],
)
def test_words_and_sentences(text: str, words: list[str], sentences: list[int]) -> None:
    apart = words_of(text)
    assert list(apart.words) == words
    assert list(apart.sentences) == sentences
    assert [apart.line[start:].split(" ")[0] for start in apart.starts] == words
    assert [apart.index(start) for start in apart.starts] == list(range(len(words)))
