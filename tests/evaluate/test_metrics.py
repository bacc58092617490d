"""Each metric on worked examples: with its library's own words, by hand, and on what it must not take for a sign."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF

from warmline.evaluate import metrics
from warmline.evaluate.metrics import METRICS, Company, Reply, distinct, sequences

ALONE = Company.of([])


def of(text: str, reference: str | None = None, stop: str = "stop") -> Reply:
    return Reply("How are you?", text, stop, reference)


PAIRS = [
    ("the cat sat on the mat", "the cat lay on the mat"),
    ("It sounds as if nobody asked.", "It sounds like nobody has asked you."),
    ("", "Anything"),
    ("police kill the gunman", "police killed the gunman"),
    ("Schön, dass du da bist.", "Schön, daß du hier bist."),
]


@pytest.mark.parametrize(("text", "reference"), PAIRS)
def test_the_libraries_agree(text: str, reference: str) -> None:
    rouge = RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure
    chrf = CHRF(char_order=6, word_order=0, beta=2).sentence_score(text, [reference]).score
    assert metrics.rouge_l(of(text, reference), ALONE) == pytest.approx(rouge, abs=1e-6)
    assert metrics.chrf(of(text, reference), ALONE) == pytest.approx(chrf, abs=1e-6)


def test_the_papers_agree() -> None:
    # Lin 2004, section 3.1: "police killed the gunman" against "police kill the gunman" and "the gunman kill police"
    reference = "police killed the gunman"
    assert metrics.rouge_l(of("police kill the gunman", reference), ALONE) == pytest.approx(3 / 4, abs=1e-6)
    assert metrics.rouge_l(of("the gunman kill police", reference), ALONE) == pytest.approx(2 / 4, abs=1e-6)
    # chrF by hand for one-letter words: of "ab" and "ac" one of two letters and no pair is common
    assert metrics.chrf(of("ab", "ac"), ALONE) == pytest.approx(100 * (0.5 + 0) / 2, abs=1e-6)
    # distinct-n (Li et al. 2016): 4 different of 6 words, 3 of 4 pairs
    replies = [of("I am here"), of("I am not"), of("")]
    assert distinct(replies, 1) == pytest.approx(4 / 6, abs=1e-6)
    assert distinct(replies, 2) == pytest.approx(3 / 4, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "What is it like at night?",
        "I see. And how does your mother take it?",
        "Tell me more about him?",
        "Which of the two weighs more?",
        "You said you are tired; what would rest look like?",
    ],
)
def test_open_questions(text: str) -> None:
    assert metrics.open_question(of(text), ALONE) == 1


@pytest.mark.parametrize(
    "text",
    ["Are you well?", "Do you sleep?", "I know what you mean.", "", "What a night that was.", "Is that how it is?"],
)
def test_not_open_questions(text: str) -> None:
    assert metrics.open_question(of(text), ALONE) == 0


@pytest.mark.parametrize(
    "text",
    [
        "That sounds exhausting.",
        "It seems nobody asked you. What now?",
        "You feel alone with it.",
        "You’re carrying a lot.",
        "I hear how tired you are.",
        "So you lay there and counted.",
        "That must be hard.",
    ],
)
def test_reflections(text: str) -> None:
    assert metrics.reflection(of(text), ALONE) == 1


@pytest.mark.parametrize(
    "text",
    ["You should see a doctor.", "Try to breathe.", "How are you?", "", "You can call them.", "Do you feel alone?"],
)
def test_not_reflections(text: str) -> None:
    assert metrics.reflection(of(text), ALONE) == 0


@pytest.mark.parametrize(
    ("reply", "runs_on"),
    [
        (of("I am here."), 0),
        (of("I am here", stop="length"), 1),
        (of("I am here.\nUser: thank you"), 1),
        (of("I am here. <HUMAN>: thank you"), 1),
        (of("My doctor said to me: rest. The user manual: lost."), 0),
    ],
)
def test_stopping(reply: Reply, runs_on: float) -> None:
    assert metrics.runs_on(reply, ALONE) == runs_on


def test_templates_are_seen_and_variety_is_not() -> None:
    alike = [of(f"I am sorry to hear about {w}. Please take care of yourself.") for w in ("it", "him", "her", "work")]
    company = Company.of(alike)
    assert [metrics.opens_alike(r, company) for r in alike] == [1, 1, 1, 1]
    assert [metrics.ends_alike(r, company) for r in alike] == [1, 1, 1, 1]
    varied = [of("What was it like?"), of("That sounds hard on you."), of("Four nights is long.")]
    company = Company.of(varied)
    assert [metrics.opens_alike(r, company) for r in varied] == [0, 0, 0]
    assert metrics.opens_alike(varied[0], Company.of(varied[:1])) == 0  # alone it is like nobody


def test_copies_of_training_are_counted() -> None:
    trained = "one two three four five six seven eight nine ten"
    company = Company.of([], sequences(trained))
    assert metrics.copied(of(trained), company) == 1
    assert metrics.copied(of("eleven " + trained), company) == pytest.approx(3 / 4)
    assert metrics.copied(of("ten nine eight seven six five four three two one"), company) == 0
    assert metrics.copied(of("too short to tell"), company) is None


def test_without_a_reference_there_is_no_likeness() -> None:
    assert metrics.rouge_l(of("I am here."), ALONE) is None
    assert metrics.chrf(of("I am here."), ALONE) is None


@given(st.text(max_size=300), st.text(max_size=300), st.sampled_from(["stop", "length", "error"]))
def test_any_text_has_sensible_numbers(text: str, reference: str, stop: str) -> None:
    reply = Reply("", text, stop, reference)
    company = Company.of([reply, of("I am here.")], sequences(reference))
    for name, metric in METRICS.items():
        value = metric.measure(reply, company)
        if value is not None:
            most = {"chrf": 100 + 1e-6, "length": 300, "meaning": 1 + 1e-5}.get(name, 1 + 1e-9)
            assert (-1 - 1e-5 if name == "meaning" else 0) <= value <= most, name
            assert not metric.share or value in (0, 1)
    assert 0 <= distinct([reply], 2) <= 1


def test_meaning_is_the_cosine_of_mean_word_vectors() -> None:
    """Against the library's own files, worked out anew; and what it cannot see."""
    wordllama = pytest.importorskip("wordllama")
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = Path(wordllama.__file__).parent
    vectors = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"].astype(np.float64)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))

    def mean(text: str) -> np.ndarray:
        found = vectors[tokenizer.encode(text, add_special_tokens=False).ids].mean(0)
        return found / np.linalg.norm(found)

    def measured(text: str, reference: str) -> float:
        value = METRICS["meaning"].measure(Reply("", text, reference=reference), Company.of([]))
        assert value is not None
        return value

    pairs = [("I feel so alone at night.", "Nobody is there when it gets dark."), ("The bus is late.", "I am tired.")]
    for text, reference in pairs:
        assert measured(text, reference) == pytest.approx(float(mean(text) @ mean(reference)), abs=1e-4)
    near, far = (
        measured("I feel sad and lonely.", "So much grief and loneliness."),
        measured("The bus is late.", "Grief."),
    )
    assert near > far
    assert measured("I do not feel alone", "I feel alone") > 0.8  # "not" is not seen, as the docs say


def test_meaning_needs_a_reference_a_reply_and_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    alone = Company.of([])
    level, handlers = logging.getLogger().level, list(logging.getLogger().handlers)
    assert metrics.meaning(Reply("", "Hello", reference=None), alone) is None
    assert metrics.meaning(Reply("", " … ", reference="Hello"), alone) is None
    assert (logging.getLogger().level, logging.getLogger().handlers) == (level, handlers)
    monkeypatch.setitem(sys.modules, "wordllama", None)  # not installed
    metrics._meanings.cache_clear()
    assert metrics.meaning(Reply("", "Hello", reference="Hello"), alone) is None
    metrics._meanings.cache_clear()
