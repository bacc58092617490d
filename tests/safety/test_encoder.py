"""The sentence encoder: read alone = read together, the trainer's arithmetic = ours, nothing makes it fall over."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warmline.safety import encoder as encoding
from warmline.safety.classify import HEADS

ROOT = Path(__file__).resolve().parents[2]
LINES = [
    "i don't want to be alive any more",
    "how do i kill a process that hangs",
    "the dog died on sunday and the house is so quiet",
    "tonight",
    "what would it take to make sure i never wake up",
]


@pytest.fixture(scope="module")
def encoder() -> encoding.Encoder:
    return encoding.shipped()


def test_sentences_read_together_are_read_as_if_alone(encoder: encoding.Encoder) -> None:
    ids = [encoder.tokens(line) for line in LINES]
    together = encoder.odds(ids)
    assert together.shape == (len(LINES), len(HEADS))
    alone = np.concatenate([encoder.odds([one]) for one in ids])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 1, "and they differ from each other"


def test_the_order_of_words_counts(encoder: encoding.Encoder) -> None:
    one, other = (encoder.odds([encoder.tokens(text)]) for text in ("i hurt him", "him i hurt"))
    assert not np.allclose(one, other, atol=1e-3)


def test_training_computes_the_same(encoder: encoding.Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.delitem(sys.modules, "train_encoder", raising=False)
    import train_encoder

    learner = train_encoder.Learner(
        {**encoder._t, "heads.weight": encoder._t["heads.weight"] / np.float32(train_encoder.STRETCH)}
    ).eval()
    ids = [encoder.tokens(line) for line in LINES]
    with torch.no_grad():
        theirs = learner(ids).numpy()
    np.testing.assert_allclose(encoder.odds(ids), theirs, atol=1e-3)
    kept = train_encoder.eight_bits(learner.tensors())
    assert all(value.dtype == np.int8 for name, value in kept.items() if name.endswith("up.weight"))


def test_pieces_are_the_likeliest_reading() -> None:
    pieces = [("", 0.0), ("\u2581a", -1.0), ("b", -1.0), ("\u2581ab", -1.5), ("c", -9.0)]
    tiny = encoding.Encoder({}, pieces)
    assert tiny.tokens("ab") == [3], "one piece at -1.5 beats two at -2"
    assert tiny.tokens("abc") == [3, 4]
    assert tiny.tokens("a?b") == [1, 0, 2], "an unknown letter is piece 0"


def test_long_texts_are_read_as_far_as_it_learnt(encoder: encoding.Encoder) -> None:
    assert len(encoder.tokens("word " * 500)) == encoding.LONGEST


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_finite_odds(text: str) -> None:
    encoder = encoding.shipped()
    ids = encoder.tokens(text)
    assert ids
    assert np.isfinite(encoder.odds([ids])).all()
