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

    tensors, _ = encoding.stored()
    learner = train_encoder.Learner(
        {**tensors, "heads.weight": tensors["heads.weight"] / np.float32(train_encoder.STRETCH)}
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


def test_no_piece_reaches_over_a_space() -> None:
    _, pieces = encoding.stored()
    assert not [piece for piece, _ in pieces if "\u2581" in piece[1:]], "else words may not be taken apart one by one"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from("abdeilmost'?9é"), max_size=12), min_size=1, max_size=6))
def test_words_are_taken_apart_one_by_one(words: list[str]) -> None:
    tokens = encoding.shipped().tokens
    assert tokens(" ".join(words)) == [piece for word in words for piece in tokens(word)]


def test_a_very_long_word_is_not_remembered(encoder: encoding.Encoder) -> None:
    before = encoder._word.cache_info().currsize
    encoder.tokens("q" * (encoding.LONGEST + 1))
    assert encoder._word.cache_info().currsize == before


@pytest.mark.parametrize("small", [1, 200_000, 10**9])
def test_products_do_not_depend_on_how_rows_are_shared_out(
    small: int, encoder: encoding.Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_SMALL", small)
    tensors, _ = encoding.stored()
    for name, rows in (("0.up", 33), ("1.down", 7), ("sentence", 1), ("heads", 5)):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        x = np.random.default_rng(rows).standard_normal((rows, len(weight))).astype(np.float32)
        np.testing.assert_allclose(encoder._linear(x, name), x @ weight + bias, atol=1e-4)


def test_long_texts_are_read_as_far_as_it_learnt(encoder: encoding.Encoder) -> None:
    assert len(encoder.tokens("word " * 500)) == encoding.LONGEST


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_finite_odds(text: str) -> None:
    encoder = encoding.shipped()
    ids = encoder.tokens(text)
    assert ids
    assert np.isfinite(encoder.odds([ids])).all()
