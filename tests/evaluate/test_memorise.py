"""The alarm sounds for what seed 002 did, stays quiet on a sane run, and the probe finds planted canaries."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.train import tiny
from warmline import recipe
from warmline.corpus.canary import canaries
from warmline.corpus.pipeline import Choices, prepare
from warmline.evaluate import perplexity
from warmline.evaluate.memorise import Memory, alarm, exposure, verbatim
from warmline.evaluate.perplexity import Surprise, surprise
from warmline.messages import Conversation, Message, Provenance
from warmline.model.template import Template
from warmline.runs import read_jsonl, write_jsonl
from warmline.train.loop import Loop

ROWS = 172


def known(nats_a_token: float, count: int = 40, seed: int = 0) -> Surprise:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(40, 120, count)
    nats = tokens * (nats_a_token + rng.normal(0, 0.1, count))
    return Surprise(tuple(f"c{n}" for n in range(count)), tuple(nats.tolist()), tuple(tokens.tolist()))


def judged(passes: float, trained: float, held_out: float, word_for_word: int = 0, base: float = 4.0) -> dict[str, Any]:
    said = tuple(n < word_for_word for n in range(24))
    return alarm(
        ROWS,
        passes,
        Memory(known(trained), said),
        Memory(known(base, seed=1), (False,) * 24),
        known(held_out, seed=2),
        known(base, seed=3),
    )


def test_seed_002() -> None:
    """172 rows, 116 passes, training loss .031."""
    found = judged(116, 0.031, 5.0, word_for_word=20)
    assert found["alarm"]
    assert len(found["reasons"]) == 3
    assert "172" in found["reasons"][0]


@pytest.mark.parametrize(
    ("passes", "trained", "held_out", "word_for_word"),
    [(116, 2.5, 2.6, 0), (3, 0.4, 3.0, 0), (3, 2.5, 2.6, 6)],
    ids=["passes", "gap", "verbatim"],
)
def test_each_sign_is_enough(passes: float, trained: float, held_out: float, word_for_word: int) -> None:
    assert len(judged(passes, trained, held_out, word_for_word)["reasons"]) == 1


@pytest.mark.parametrize(
    ("passes", "trained", "held_out", "word_for_word"), [(3, 2.5, 2.6, 0), (1, 3.9, 4.0, 0), (5, 2.2, 2.5, 1)]
)
def test_sane_runs_are_quiet(passes: float, trained: float, held_out: float, word_for_word: int) -> None:
    assert not judged(passes, trained, held_out, word_for_word)["alarm"]


def test_a_split_that_is_harder_for_the_base_too_is_no_alarm() -> None:
    harder = known(4.0, seed=1)
    found = alarm(ROWS, 3, Memory(known(2.0), ()), Memory(known(3.0, seed=4), ()), known(3.0, seed=2), harder)
    assert not found["alarm"]


def trained(folder: Path, epochs: float) -> dict[str, Any]:
    """A small model trained on 172 texts that cannot be understood, only learnt by heart."""
    torch.manual_seed(3)
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=64))
    train = [text.__class__(text.ids, text.supervised, f"t{n}") for n, text in enumerate(tiny.texts(ROWS))]
    held_out = tiny.texts(40, seed=9)
    before = surprise(model, train[:48]), surprise(model, held_out)
    steps = max(1, round(epochs * ROWS / 43))
    settings = tiny.settings(
        steps=steps, batch=43, pack=1024, learning_rate=0.01, save_every=10_000, validate_every=10_000, keep="last"
    )
    Loop(model, train, [], settings, folder).run()
    after = surprise(model, train[:48]), surprise(model, held_out)
    return alarm(ROWS, epochs, Memory(after[0], ()), Memory(before[0], ()), after[1], before[1])


def test_a_real_training_of_172_rows_in_116_passes(tmp_path: Path) -> None:
    found = trained(tmp_path, 116)
    assert len(found["reasons"]) == 2  # passes, and the gap that they made
    assert found["gap"]["value"] > 1


def test_a_real_training_of_172_rows_in_2_passes(tmp_path: Path) -> None:
    assert not trained(tmp_path, 2)["alarm"]


def test_verbatim() -> None:
    true = "One two three four five six seven eight nine ten eleven twelve."
    assert verbatim(true.lower(), true)
    assert verbatim("So: " + true, true)
    assert not verbatim("One two three four five, and then something else altogether happened here", true)
    assert not verbatim("I hear you.", "I hear you.")  # everybody says that


def test_planted_canaries_are_found_and_absent_ones_are_not(models: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(models["qwen3"], dtype=torch.float32)
    template = Template(AutoTokenizer.from_pretrained(models["qwen3"]))
    planted, absent = canaries(8)[:4], canaries(8)[4:]

    def losses(conversations: list[Conversation]) -> list[float]:
        texts = [template.encode(c.messages, owner=str(n)) for n, c in enumerate(conversations)]
        found = perplexity.surprise(model, texts)
        return [nats / tokens for nats, tokens in zip(found.nats, found.tokens, strict=True)]

    texts = [template.encode(c.messages) for c in planted]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        text = texts[step % 4]
        ids = torch.tensor([text.ids])
        labels = torch.where(torch.tensor([text.supervised]), ids, -100)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert min(exposure(losses, planted, others=31)) == math.log2(32)
    assert np.mean(exposure(losses, absent, others=31)) < 4


@pytest.mark.parametrize(("bits", "before", "sounds"), [(4.6, 1.4, True), (4.6, 4.5, False), (2.0, 1.4, False)])
def test_known_secrets_are_an_alarm_where_the_base_does_not_know_them(bits: float, before: float, sounds: bool) -> None:
    spread = np.linspace(-0.4, 0.4, 8)
    after, base = (tuple(float(x) for x in middle + spread) for middle in (bits, before))
    same = known(2.0)
    found = alarm(ROWS, 3, Memory(same, (), after), Memory(same, (), base), known(2.0, seed=2), known(2.0, seed=2))
    assert found["alarm"] is sounds
    assert found["canaries"]["tuned"]["value"] == pytest.approx(bits)


def test_canaries_are_always_the_same_and_all_different() -> None:
    assert canaries(20) == canaries(20)
    assert len({c.messages[1].content for c in canaries(20)}) == 20
    assert canaries(1, seed=1) != canaries(1, seed=2)
    assert canaries(1)[0].provenance == Provenance("canary", "CC0-1.0")
    assert exposure(lambda cs: [0.0, *[1.0] * (len(cs) - 1)], canaries(1)) == [5.0]
    assert exposure(lambda cs: [1.0, *[0.0] * (len(cs) - 1)], canaries(1)) == [0.0]


def test_the_recipe_plants_them_in_training_alone(tmp_path: Path) -> None:
    def said(number: int) -> Conversation:
        asked = f"The week number {number} was long and the nights number {number * 7} longer still."
        reply = f"What was it about night {number * 7} that stayed with you?"
        return Conversation(f"t{number}", (Message("user", asked), Message("assistant", reply)))

    write_jsonl(tmp_path / "in.jsonl", (said(n).to_json() for n in range(60)))
    split: dict[int, dict[str, list[str]]] = {}
    for count in (0, 8):
        section = recipe.Data(sources=(str(tmp_path / "in.jsonl"),), licence="MIT", canaries=count)
        prepare(section, tmp_path / str(count), Choices(workers=1))
        split[count] = {
            part: [row["id"] for row in read_jsonl(tmp_path / str(count) / f"{part}.jsonl")]
            for part in ("train", "val", "test")
        }
    planted = [canary.id for canary in canaries(8)]
    assert split[8] == split[0] | {"train": [*split[0]["train"], *planted]}
    assert split[0]["test"]
