"""Preference tuning: the preferred reply becomes likelier against the adapter as it was; resumed = finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from warmline import recipe
from warmline.corpus import preferences
from warmline.corpus.preferences import Pair
from warmline.errors import DataError, ModelError, RecipeError
from warmline.messages import Message
from warmline.model import adapter, load
from warmline.model.template import Template
from warmline.runs import read_jsonl
from warmline.train import prefer

pytest.importorskip("trl")

WORDS = ["I am here.", "That is a long time.", "What would you like?", "It worries me.", "Hello, the kettle."]


def pairs(count: int = 10) -> list[Pair]:
    """Short replies that end in a question are preferred."""
    made = []
    for i in range(count):
        prompt = (Message("user", f"{WORDS[i % 5]} Night {i}."),)
        made.append(Pair(f"p{i}", prompt, f"What is night {i} like?", f"Stop it, {i} is nothing."))
    return made


def settings(base: Path, **preference: object) -> recipe.Recipe:
    section = {"epochs": 4, "batch": 2, "learning_rate": 5e-3, "save_every": 2, "validation": 0.2}
    return recipe.parse(
        {
            "name": "small",
            "base": {"model": str(base), "load": "fp32"},
            "adapter": {"rank": 4, "targets": ["q_proj", "v_proj", "down_proj"]},
            "preference": section | preference,
            "prompt": {"context": 256},
        }
    )


def trained(chosen: recipe.Recipe, folder: Path) -> Path:
    """An adapter as a finished training leaves it: not the base any more."""
    model = adapter.add_adapter(load.load_model(chosen.base), chosen.adapter, seed=1)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    adapter.save_adapter(model, folder, load.identity(chosen.base))
    return folder


def log_probability(chosen: recipe.Recipe, folder: Path, pair: Pair, reply: str) -> float:
    """By another way than the trainer's: whole logits of one text at a time."""
    model = adapter.load_adapter(load.load_model(chosen.base), folder, load.identity(chosen.base))
    text = Template.of(load.load_tokenizer(chosen.base), chosen.prompt).encode(pair.conversation(reply).messages)
    ids = torch.tensor([text.ids])
    with torch.no_grad():
        scores = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return float(scores[torch.tensor(text.supervised[1:])].sum())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def finished(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[recipe.Recipe, Path, Path]:
    root = tmp_path_factory.mktemp("prefer")
    chosen = settings(models["qwen3"])
    start = trained(chosen, root / "start")
    summary = prefer.tune_preferences(chosen, pairs(), start, root / "done")
    assert (summary["train"], summary["validation"], summary["steps"]) == (8, 2, 16)
    assert summary["held_out"]["right"] == 1
    assert summary["last"]["margin"] > 0
    return chosen, start, root / "done"


def test_the_preferred_reply_gains_on_what_it_was(finished: tuple[recipe.Recipe, Path, Path]) -> None:
    chosen, start, done = finished
    before, after = {}, {}
    for pair in pairs():
        for found, folder in ((before, start), (after, done / "adapter")):
            found[pair.id] = [log_probability(chosen, folder, pair, reply) for reply in (pair.chosen, pair.rejected)]
    better = [after[i][0] - before[i][0] for i in before]
    worse = [after[i][1] - before[i][1] for i in before]
    assert sum(better) / len(better) > 0
    assert all(b > w for b, w in zip(better, worse, strict=True))


def test_the_margin_rises_from_nought(finished: tuple[recipe.Recipe, Path, Path]) -> None:
    """At the first step the reference is the adapter itself, so there is no margin yet."""
    rows = list(read_jsonl(finished[2] / "metrics.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, 17))
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert rows[-1]["rewards/margins"] > rows[len(rows) // 2]["rewards/margins"] > 0
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_result_is_one_ordinary_adapter(finished: tuple[recipe.Recipe, Path, Path]) -> None:
    _, start, done = finished
    assert sorted(p.name for p in done.iterdir()) == ["adapter", "metrics.jsonl"]
    assert sorted(p.name for p in (done / "adapter").iterdir()) == sorted(p.name for p in start.iterdir())


def test_resumed_is_finished(finished: tuple[recipe.Recipe, Path, Path], tmp_path: Path, monkeypatch) -> None:
    """Killed after step 7, it goes on at step 6, and to the same bits."""
    chosen, start, done = finished

    class Killed(Exception): ...

    steps = 0
    shown = prefer.console.Bar.to

    def to(bar: object, completed: float, note: str | None = None) -> None:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise Killed
        shown(bar, completed, note)

    monkeypatch.setattr(prefer.console.Bar, "to", to)
    with pytest.raises(Killed):
        prefer.tune_preferences(chosen, pairs(), start, tmp_path)
    torn = tmp_path / "checkpoints" / "checkpoint-8"  # a save that the kill cut off
    shutil.copytree(tmp_path / "checkpoints" / "checkpoint-6", torn)
    (torn / "trainer_state.json").write_text('{"log_hist')
    prefer.tune_preferences(chosen, pairs(), start, tmp_path)
    assert steps == 7 + 10
    expected, found = weights(done), weights(tmp_path)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("precision", ["nf4", "int8", "bf16"])
def test_on_every_precision_the_adapter_stays_exact(models: dict[str, Path], tmp_path: Path, precision: str) -> None:
    plain = settings(models["llama"], epochs=1, learning_rate=1e-6)
    chosen = plain.model_copy(update={"base": plain.base.model_copy(update={"load": precision})})
    start = trained(plain, tmp_path / "start")
    summary = prefer.tune_preferences(chosen, pairs(), start, tmp_path / "done")
    before, after = load_file(start / "adapter_model.safetensors"), weights(tmp_path / "done")
    assert summary["steps"] == 4
    assert all(value.dtype == torch.float32 for value in after.values())
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 1e-5  # a rounding to bf16 alone would move weights of 0.02 by more


def test_texts_are_the_template_s(models: dict[str, Path]) -> None:
    """Prompt and replies are what training and inference see, and no text becomes a control token."""
    base = recipe.Base(model=str(models["qwen3"]))
    template = Template.of(load.load_tokenizer(base), recipe.Prompt(system="Listen."))
    pair = Pair("p", (Message("user", "Hi <|im_end|> you"),), "Yes <|im_start|>?", "No.")
    row = prefer.encode(pair, template)
    assert row["prompt_ids"] == template.encode(pair.prompt, reply=True).ids
    for side, reply in (("chosen_ids", pair.chosen), ("rejected_ids", pair.rejected)):
        whole = template.encode(pair.conversation(reply).messages)
        assert row["prompt_ids"] + row[side] == whole.ids
        assert all(whole.supervised[len(row["prompt_ids"]) :])
        assert [i for i in row[side] if i in template.control_ids] == [template.end_id]


def test_what_is_left_out_is_counted(models: dict[str, Path]) -> None:
    chosen = settings(models["qwen3"], validation=0.0)
    template = Template.of(load.load_tokenizer(chosen.base), chosen.prompt)
    long = Pair("long", (Message("user", "night " * 400),), "Yes.", "No.")
    forbidden = Pair("no", (Message("user", "What is it?"),), "You clearly have OCD.", "What is it like?")
    rows = prefer.rows_of([*pairs(4), long, forbidden], template, chosen)
    assert (len(rows.train), len(rows.validation), rows.too_long, rows.forbidden) == (4, 0, 1, 1)
    stop = chosen.model_copy(update={"prompt": chosen.prompt.model_copy(update={"too_long": "stop"})})
    with pytest.raises(DataError, match="1 of 5 preference pairs are longer than 256 tokens"):
        prefer.rows_of([*pairs(4), long], template, stop)
    with pytest.raises(DataError, match="of 1 preference pairs none is left"):
        prefer.rows_of([forbidden], template, chosen)


def test_one_prompt_stays_on_one_side(models: dict[str, Path]) -> None:
    chosen = settings(models["qwen3"], validation=0.3)
    template = Template.of(load.load_tokenizer(chosen.base), chosen.prompt)
    doubled = [Pair(f"{p.id}-{n}", p.prompt, p.chosen + "!" * n, p.rejected) for p in pairs() for n in range(2)]
    rows = prefer.rows_of(doubled, template, chosen)
    train, held = ({tuple(row["prompt_ids"]) for row in part} for part in (rows.train, rows.validation))
    assert train
    assert held
    assert not train & held


def test_what_cannot_be_is_said_first(models: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    chosen = settings(models["qwen3"])
    full = chosen.model_copy(update={"adapter": chosen.adapter.model_copy(update={"method": "full"})})
    with pytest.raises(RecipeError, match=r"adapter\.method is `full`"):
        prefer.check(full)
    other = trained(settings(models["llama"]), tmp_path / "other")
    with pytest.raises(ModelError, match="another state of the base"):
        prefer.tune_preferences(chosen, pairs(), other, tmp_path / "done")
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    with pytest.raises(ModelError, match="needs the package `trl`"):
        prefer.check(chosen)


def test_the_shipped_pairs_are_fit_to_be_learnt() -> None:
    found = preferences.read(["sample"])
    assert len(found) >= 60
    assert len({pair.prompt for pair in found}) == len(found)
    assert not [pair.id for pair in found if pair.forbidden]
