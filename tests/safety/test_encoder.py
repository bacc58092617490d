"""The sentence encoder: what is shipped reads, what is exported is what was trained, nothing makes it fall over."""

from __future__ import annotations

import json
import random
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from warmline.safety import encoder as encoding
from warmline.safety.classify import HEADS

ROOT = Path(__file__).resolve().parents[2]
LINES = [
    "i don't want to be alive any more",
    "how do i kill a process that hangs",
    "the dog died on sunday and the house is so quiet . nobody rings",
    "tonight",
    "what would it take to make sure i never wake up",
]
WIDTH = 48


@pytest.fixture(scope="module")
def encoder() -> encoding.Encoder:
    return encoding.shipped()


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.delitem(sys.modules, "train_encoder", raising=False)
    import train_encoder

    return train_encoder


@pytest.fixture
def published() -> dict[str, torch.Tensor]:
    """A small MiniLM by chance, under the names of the published one."""
    torch.manual_seed(1)
    found = {
        "embeddings.word_embeddings.weight": torch.randn(200, WIDTH),
        "embeddings.position_embeddings.weight": torch.randn(128, WIDTH) * 0.1,
        "embeddings.token_type_embeddings.weight": torch.randn(2, WIDTH) * 0.1,
    }
    shapes = {"intermediate.dense": (4 * WIDTH, WIDTH), "output.dense": (WIDTH, 4 * WIDTH)}
    dense = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    for layer in ("encoder.layer.0.", "encoder.layer.1."):
        for name in (*dense, *shapes):
            rows, columns = shapes.get(name, (WIDTH, WIDTH))
            found[f"{layer}{name}.weight"] = torch.randn(rows, columns) * columns**-0.5
            found[f"{layer}{name}.bias"] = torch.randn(rows) * 0.1
    norms = ["embeddings.LayerNorm"]
    norms += [f"encoder.layer.{n}.{part}.LayerNorm" for n in (0, 1) for part in ("attention.output", "output")]
    for name in norms:
        found[f"{name}.weight"], found[f"{name}.bias"] = 1 + torch.randn(WIDTH) * 0.1, torch.randn(WIDTH) * 0.1
    return found


def test_what_is_read_differs_by_what_it_says(encoder: encoding.Encoder) -> None:
    odds = [encoder.odds(encoder.tokens(line)) for line in LINES]
    assert all(len(each) == len(HEADS) for each in odds)
    assert odds[0][0] > 0 > odds[1][0], "one wants to die, the other has a computer"
    assert odds[4][2] > odds[0][2], "and one asks for a way"


def test_the_order_of_words_counts(encoder: encoding.Encoder) -> None:
    one, other = (encoder.odds(encoder.tokens(text)) for text in ("i hurt him", "him i hurt"))
    assert not np.allclose(one, other, atol=1e-3)


def test_the_same_passage_is_read_the_same_each_time(encoder: encoding.Encoder) -> None:
    ids = encoder.tokens(LINES[2])
    first = encoder.odds(ids)
    encoder.odds(encoder.tokens(" ".join(LINES)))
    assert encoder.odds(ids) == first, "whatever was read between"


def test_pieces_of_parts_are_the_pieces_of_the_whole(encoder: encoding.Encoder) -> None:
    """`classify.opinion` takes messages apart sentence by sentence and puts their pieces together."""
    parts = [("i", "can't", "."), ("it", "'s", "9", "o'clock", "?"), ("goodbye",)]
    whole = encoder.tokens(" ".join(word for part in parts for word in part))
    assert [piece for part in parts for piece in encoder.tokens(" ".join(part))] == whole


def test_long_texts_are_read_as_far_as_it_learnt(encoder: encoding.Encoder) -> None:
    long = encoder.tokens("word " * 500)
    assert encoder.odds(long) == encoder.odds(long[: encoding.LONGEST - 2])


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_finite_odds(text: str) -> None:
    encoder = encoding.shipped()
    assert np.isfinite(encoder.odds(encoder.tokens(text))).all()


def test_no_piece_is_beyond_the_tables(encoder: encoding.Encoder) -> None:
    table = (resources.files("warmline.safety.tables") / "encoder.tokenizer.json").read_text("utf-8")
    places = sorted(json.loads(table)["model"]["vocab"].values())
    assert places == list(range(len(places)))
    assert np.isfinite(encoder.odds([places[-1]])).all()


def test_padding_changes_nothing(trainer: ModuleType, published: dict[str, torch.Tensor]) -> None:
    learner = trainer.Learner(published).eval()
    batch = [[1, 5, 9, 2], [1, 7, 2], [1, *range(10, 40), 2]]
    with torch.no_grad():
        together = learner(*trainer.padded(batch))
        alone = torch.cat([learner(torch.tensor([ids])) for ids in batch])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_what_is_exported_is_what_was_trained(
    trainer: ModuleType, published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    words = ["[UNK]", "[CLS]", "[SEP]", "[unused1]", "ä", *(f"w{n}" for n in range(195))]
    document = json.loads((resources.files("warmline.safety.tables") / "encoder.tokenizer.json").read_text("utf-8"))
    document["model"]["vocab"] = {word: place for place, word in enumerate(words)}
    document["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(document))
    learner = trainer.Learner(published).eval()
    torch.nn.init.normal_(learner.heads.weight)
    text = "w3 w14 w15 w92 w65"
    ids = [1, *tokenizer.encode(text, add_special_tokens=False).ids, 2]
    with torch.no_grad():
        theirs = learner(torch.tensor([ids]))[0].numpy()
    trainer.export(learner, tokenizer, tmp_path)
    ours = encoding.Encoder(
        (tmp_path / "encoder.onnx").read_bytes(), (tmp_path / "encoder.tokenizer.json").read_text("utf-8")
    )
    pieces = ours.tokens(text)
    assert [place - 2 for place in ids[1:-1]] == pieces, "two pieces before them are left out"
    found = np.array([*ours.odds(pieces), ours.talk([pieces])])
    assert np.abs(found - theirs).max() < 0.15 * np.abs(theirs).max(), "eight bits, no more"


def test_a_conversation_is_read_from_its_end(encoder: encoding.Encoder) -> None:
    turns = [encoder.tokens(text) for text in ("i gave my brother my guitar", "no reason", "after saturday it is over")]
    assert encoder.talk(turns) != encoder.talk(turns[::-1])
    long = encoder.tokens("and then " * 60)
    assert encoder.talk([turns[0], long, turns[2]]) == encoder.talk([turns[2]]), "what does not fit is left out"


@given(st.lists(st.lists(st.integers(5, 900), max_size=130), min_size=1, max_size=12))
def test_the_last_turns_fit_and_are_whole(turns: list[list[int]]) -> None:
    begin, end = 1, 2
    read = encoding.last_turns(turns, begin, end)
    assert len(read) <= encoding.LONGEST_TALK
    assert read[0] == begin
    assert read[-1] == end
    last = turns[-1][-(encoding.LONGEST_TALK - 2) :]
    assert read[len(read) - 1 - len(last) : -1] == last, "of a long last turn the end"
    whole = [piece for turn in turns for piece in (*turn, end)]
    assert read[1:] == whole[len(whole) - len(read) + 1 :]


def test_a_conversation_is_learnt_up_to_where_one_would_act(trainer: ModuleType) -> None:
    class Reader:
        begin, end = 1, 2

        def pieces(self, turn: str) -> list[int]:
            return [int(turn)]

    acute = trainer.Talk(("10", "11", "12", "13", "14"), (0, 0, 1, 2, 2))
    calm = trainer.Talk(("20", "21", "22"), (0, 0, 0))
    seen = set()
    for seed in range(300):
        pieces, wanted = trainer.Conversations([acute, calm], Reader(), random.Random(seed)).chosen()
        said = [piece for piece in pieces if piece > 9]
        seen.add((said[-1], wanted))
        assert len(said) > 1, "a single turn is no conversation"
    assert seen == {(10, 0.0), (11, 0.0), (13, 1.0), (14, 1.0), (20, 0.0), (21, 0.0), (22, 0.0)}
