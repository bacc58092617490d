"""The linear model beside the lexicon: hashes, stems and shared sums give what plain look-ups give."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime

import pytest
from conftest import cases
from hypothesis import given
from hypothesis import strategies as st

from warmline.safety import classify, encoder
from warmline.safety.classify import Judgement, Weights, features, kinds_of, weights, windows
from warmline.safety.normalise import normalise
from warmline.safety.phrases import words_of
from warmline.safety.screen import screen, screen_turn
from warmline.safety.state import follow
from warmline.safety.tables import read, table

NOON = datetime(2026, 1, 1, 12)
LINES = [line for name in ("risk", "benign") for _, lines in cases(name).values() for line in lines][::5]


def test_windows_are_the_sums_of_their_features_weights() -> None:
    document = json.loads(read("classifier.json"))
    for start in range(0, len(LINES), 7):
        text = ". ".join(LINES[start : start + 7])
        seen = windows(words_of(normalise(text).text))
        for window, odds in zip(seen, weights().windows(seen), strict=True):
            counted = [document["weights"][name] for name in features(window) if name in document["weights"]]
            assert odds == pytest.approx([sum(head) for head in zip(document["bias"], *counted, strict=True)])
            assert odds == pytest.approx(weights().window(window)), "alone as among others"


def test_a_window_without_a_known_feature_has_the_bias() -> None:
    model = Weights({"version": 1, "bias": [1.0, 2.0, 3.0], "weights": {"sad": [0.5, 0.0, -1.0], "^sad": [1, 0, 0]}})
    assert model.windows([(".", ","), ("sad",), ("zzz",)]) == [(1, 2, 3), (2.5, 2, 2), (1, 2, 3)]


def test_the_classifier_looks_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "SECONDS", -1.0)
    with pytest.raises(TimeoutError):
        weights()(words_of("i am sad"))


def test_kinds_of_words_and_of_what_begins_like_a_stem() -> None:
    rows = [(str(word), kind) for kind, words in table("kinds.yaml")["kinds"].items() for word in words]
    known = {word.removesuffix("*") for word, _ in rows}
    for word in [*known, *(f"{word}{end}" for word in list(known)[:200] for end in ("s", "ing", "*")), "a", "", "zzz"]:
        kinds = {k for w, k in rows if (word.startswith(w[:-1]) if w.endswith("*") else word == w)}
        assert set(kinds_of(word)) == kinds
        assert len(kinds_of(word)) == len(kinds)


@given(st.lists(st.sampled_from("i want to kill the dog , ? bridges pills tonight goodbye".split()), max_size=9))
def test_any_window_can_be_judged(words: list[str]) -> None:
    assert all(abs(odds) < 100 for odds in weights().window(tuple(words)))


lengths_and_odds = st.lists(st.tuples(st.integers(1, 70), st.floats(-9, 9)), min_size=1, max_size=30)


@given(lengths_and_odds, st.sampled_from([0, 46, 92, 200]))
def test_passages_hold_the_worst_sentences_whole_and_once(parts: list[tuple[int, float]], most: int) -> None:
    lengths, odds = [n for n, _ in parts], [value for _, value in parts]
    found = classify.passages(lengths, odds, most)
    taken = [place for passage in found for place in passage]
    assert len(taken) == len(set(taken)), "no sentence is read twice"
    assert odds.index(max(odds)) in found[0]
    for passage in found:
        assert len(passage) == 1 or sum(lengths[place] for place in passage) <= classify.PASSAGE
    first, *others = (sum(lengths[place] for place in passage) for passage in found)
    assert sum(others) <= max(0, most - first)
    if sum(lengths) <= classify.PASSAGE:
        assert found == [range(len(parts))], "a short message is read as a whole"


def test_sentences_lose_no_word() -> None:
    for text in (*LINES[::9], "", ".", "a. b", "word " * 150, "Why?! No."):
        words = words_of(normalise(text).text)
        assert tuple(word for part in classify.sentences(words.words) for word in part) == words.words


def test_without_its_file_the_words_judge_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of("i can't do this any more and nobody would miss me")
    whole = weights()(words)

    def missing() -> None:
        raise FileNotFoundError("encoder.onnx")

    monkeypatch.setattr(encoder, "shipped", missing)
    alone = weights()(words)
    assert (whole.partial, alone.partial) == (False, True)
    assert not classify.harmless(words, replace(alone, odds=(-8.0, -8.0, -8.0))), "and calm nothing down"
    finding = screen("i can't do this any more and nobody would miss me")
    assert "encoder.failed" in finding.rules


def test_a_damaged_encoder_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Damaged:
        def __init__(self, weights: bytes, tokenizer: str) -> None:
            tried.append(weights)
            raise ValueError

    monkeypatch.setattr(encoder, "Encoder", Damaged)
    encoder._loaded.cache_clear()
    try:
        assert all(weights()(words_of("i can't do this any more")).partial for _ in range(3))
        assert len(tried) == 1
    finally:
        encoder._loaded.cache_clear()


def test_what_the_classifier_finds_harmless_is_lowered_to_two_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "should we be jumping off a cliff into the lake at scout camp"
    lowered = screen(text)
    assert lowered.level == 2
    assert "classifier.calm" in lowered.rules
    assert screen(text, lambda words: Judgement(0.0, 0.0, 0.0)).level >= 3, "one's own classifier lowers nothing"
    assert screen(text, amid=True).level >= 3, "it might be an answer"
    assert screen(f"{text} {text} {text} {text} {text}").level >= 3, "too long to be read at once"

    monkeypatch.setattr("warmline.safety.screen.harmless", lambda words, judged: True)
    assert screen(text).level == 2
    for plain in (
        "I am going to kill myself tonight",
        "I am planning my suicide",
        "I will end my life today",
        "I took forty tylenol",
        "I have the gun in my mouth",
        "quiero matarme esta noche",
    ):
        assert screen(plain).level >= 3, "what is said in so many words, done or at hand stands, and any other language"
    for passive in ("I wish I were dead", "I cut myself again"):
        assert screen(passive).level == 2


def test_conversations_without_a_doubtful_turn_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Reader:
        def tokens(self, text: str) -> list[int]:
            return [len(text)]

        def talk(self, turns: list[list[int]]) -> float:
            read.append(len(turns))
            return 1.0

    monkeypatch.setattr(encoder, "shipped", Reader)
    turns = [words_of(text) for text in ("hi", "the bus was late", "bye")] * 4
    calm, doubtful = (-7.0, -8.0, -8.0), (-1.0, -6.0, -8.0)
    assert classify.conversation(turns[:1], [doubtful]) is None, "one turn is no conversation"
    assert classify.conversation(turns, [calm] * 12) is None
    assert classify.conversation(turns, [doubtful, *[calm] * 12]) is None, "long ago"
    assert not read
    assert classify.conversation(turns, [doubtful, *[calm] * 5]) == 1.0
    assert read == [classify.TURNS]


def test_what_went_before_changes_what_a_turn_means() -> None:
    last = "After the weekend it will not matter any more."
    earlier = ["I want it all to stop.", "I have written to my sister.", "I gave the cat to the neighbours for good."]
    alone, after = screen_turn(last, [], ()), [finding for finding, _ in follow([*earlier, last], NOON)][-1]
    assert alone.whole is None
    assert after.whole is not None
    assert replace(after, whole=None) == alone, "and nothing else"
    answer = "Yes. Everything is ready on the table. I'm so tired. I don't want to hurt her, I just can't."
    played = list(follow(["I told my mom I loved her and fed the cat enough for three days.", answer], NOON))
    assert played[-1][1].level >= 3, "found calm, it is not taken down: it answers something"
    assert screen_turn(last, earlier, (), lambda words: Judgement(0.0, 0.0, 0.0)).whole is None


def test_a_conversation_that_cannot_be_read_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(turns: object, told: object) -> None:
        raise MemoryError

    monkeypatch.setattr("warmline.safety.screen.conversation", fails)
    found = screen_turn("i can't do this any more", ["hi"], ())
    assert "encoder.failed" in found.rules
    assert found.level == screen("i can't do this any more").level


@pytest.mark.parametrize(
    "text",
    [
        "I took forty tylenol",
        "just swallowed twenty of my mums tablets and now im on the bus",
        "gun to my head I'd say the second album",
        "we had lunch with my aunt and then the cousins came and we played cards and ate the cake she baked and my"
        " uncle told the story of the boat again and everyone laughed and the dog slept on my feet and i drove home in"
        " the rain with the radio on and i took sixty paracetamol an hour ago",
        "nice day, went to the zoo. " * 6 + "Oh and I have the gun in my lap.",
    ],
)
def test_what_may_be_happening_now_is_never_lowered(text: str) -> None:
    by_words = screen(text, lambda words: Judgement(0.0, 0.0, 0.0)).level
    assert screen(text).level >= by_words >= 3


def test_a_bare_word_is_read_with_what_went_before() -> None:
    assert screen("tonight").level == 0
    said = ["I want it all to stop.", "I have written to my sister and I gave the cat away.", "tonight"]
    assert [finding for finding, _ in follow(said, NOON)][-1].whole is not None


def test_a_sentence_too_long_to_be_read_at_once_is_read_to_its_end() -> None:
    start = "and then we went to see the people at the house by the sea " * 6
    parts = [tuple((start + end).split()) for end in ("because it was sunny", "because i want to die")]
    calm, grave = (classify.opinion([part], [0.0]) for part in parts)
    assert calm
    assert grave
    assert grave[0] > calm[0] + 1


def test_an_encoder_that_fails_costs_nothing_of_what_the_words_found(monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of("nobody would miss me if i was gone")
    [odds] = weights().windows([words.words])

    def missing() -> None:
        raise FileNotFoundError("encoder.onnx")

    monkeypatch.setattr(encoder, "shipped", missing)
    found = weights()(words)
    assert found.odds
    assert found.odds[0] == pytest.approx(odds[0], abs=0.051)
