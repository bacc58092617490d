"""The classifier beside lint's patterns: what it reads, that its short cuts change nothing, lines never tuned on."""

from __future__ import annotations

import importlib
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from warmline.corpus import lint
from warmline.corpus.lint_classify import LONGEST, Weights, features, kinds_of, weights, windows
from warmline.messages import Conversation, Message

FRESH = yaml.safe_load((Path(__file__).parent / "fresh4.yaml").read_text("utf-8"))
FOUND, FLAGGED = 0.64, 0.03
"""What `fresh4` must not fall below and above: a little less than what was measured (docs/corpus/lint.md)."""


def exchange(case: str | list[str]) -> Conversation:
    asked, said = case if isinstance(case, list) else ("What do you think?", case)
    return Conversation("c", (Message("user", asked), Message("assistant", said)))


def test_lines_never_tuned_on() -> None:
    lines = [case for cases in FRESH["planted"].values() for case in cases]
    found = sum(bool(lint.findings(exchange(case))) for case in lines)
    flagged = sum(bool(lint.findings(exchange(case))) for case in FRESH["clean"])
    print(f"fresh4: {found} of {len(lines)} found, {flagged} of {len(FRESH['clean'])} clean ones flagged")
    assert len(lines) >= 300
    assert min(len(cases) for cases in FRESH["planted"].values()) >= 25
    assert set(FRESH["planted"]) == {rule.id for rule in lint.rules()}
    assert found >= FOUND * len(lines)
    assert flagged <= FLAGGED * len(FRESH["clean"])


def shingles(text: str, length: int = 6) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z]+", text.lower().replace("'", ""))
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


def test_nothing_of_the_measuring_list_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """No six words in a row of a training line are in a measuring line."""
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "scripts"))
    rows = importlib.import_module("train_lint").lint_lines()
    cases = [case for cases in FRESH["planted"].values() for case in cases] + FRESH["clean"]
    fresh = {run for case in cases for run in shingles(" ".join(case) if isinstance(case, list) else case)}
    assert len(rows) > 5_000
    assert not [row.words for row in rows if shingles(" ".join(row.words)) & fresh]
    assert shingles("Well, are you thinking about ending your life") & fresh, "the comparison can fail"


def test_heads_are_rules() -> None:
    assert set(weights().heads) <= {rule.id for rule in lint.rules()}
    assert len(weights().least) == len(weights().heads)


@pytest.mark.parametrize(
    ("word", "kind"), [("lorazepam", "drug"), ("therapists", "clinician"), ("no", "none"), ("promised", "promise")]
)
def test_kinds(word: str, kind: str) -> None:
    assert kind in kinds_of(word)


@pytest.mark.parametrize("word", ["", "zzz", "promontory", "noon", "the"])
def test_no_kind_by_chance(word: str) -> None:
    assert not {"promise", "none", "drug"} & set(kinds_of(word))


def test_windows_are_sentences_and_short_ones_go_with_the_next() -> None:
    text = "oh dear. you don't have to be strong? rest now"
    assert [(" ".join(words), text[start:end]) for words, start, end in windows(text)] == [
        ("oh dear", "oh dear"),
        ("you dont have to be strong ?", "you don't have to be strong"),
        ("oh dear you dont have to be strong ?", "oh dear. you don't have to be strong"),
        ("rest now", "rest now"),
    ]


def test_what_is_quoted_is_not_judged() -> None:
    assert [words for words, _, _ in windows('he said "get over it" and left.')] == [("he", "said", "and", "left")]
    assert [words for words, _, _ in windows('"get over it"')] == [("get", "over", "it")]


def test_a_sentence_without_end_is_cut() -> None:
    longest = max(len(words) for words, _, _ in windows("and then " * 500))
    assert longest <= LONGEST + 1


SOME = st.lists(st.sampled_from("i you my therapist pills love just never promise die mum ?".split()), min_size=1)


@given(SOME)
@settings(max_examples=60, deadline=None)
def test_the_short_cuts_change_nothing(words: list[str]) -> None:
    names = sorted({name for pair in pairwise(["i", "you", "my", "pills", "love", "die"]) for name in features(pair)})
    rows = np.random.default_rng(3).integers(-300, 300, (len(names), 2))
    model = Weights(
        {
            "heads": ["a", "b"],
            "bias": [0.5, -1],
            "thresholds": [0, 0],
            "features": names,
            "weights": rows.ravel().tolist(),
        }
    )
    known = dict(zip(names, rows / 100, strict=True))
    model.least -= 1000  # nothing is far from these rules
    slow = np.array([0.5, -1]) + sum((known[name] for name in features(tuple(words)) if name in known), np.zeros(2))
    assert np.allclose(model.odds(tuple(words)), slow, atol=1e-3)


def test_what_is_far_from_every_rule_is_judged_by_its_words_alone() -> None:
    model = Weights(
        {
            "heads": ["a"],
            "bias": [0],
            "thresholds": [5],
            "features": ["you", "love", "you love"],
            "weights": [10, 20, 900],
        }
    )
    assert model.odds(("you", "love"))[0] == pytest.approx(9.3), "4.7 below the threshold at most: looked at closely"
    model.least += 1
    assert model.odds(("you", "love"))[0] == pytest.approx(0.3)


def test_wording_that_cannot_be_put_right_is_left_out() -> None:
    reworded, _ = lint.settle(exchange("Your failed overdose frightened you."), "route")
    assert reworded is None
