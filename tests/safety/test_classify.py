"""The linear model beside the lexicon: hashes, stems and shared sums give what plain look-ups give."""

from __future__ import annotations

import json

import pytest
from conftest import cases
from hypothesis import given
from hypothesis import strategies as st

from warmline.safety import classify
from warmline.safety.classify import Weights, features, kinds_of, weights, windows
from warmline.safety.normalise import normalise
from warmline.safety.phrases import words_of
from warmline.safety.tables import read, table

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
