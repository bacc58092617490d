"""The loop: resumed = uninterrupted to the last bit, accumulated = batched, nothing skipped, nothing half-written."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ARCHITECTURES, SENTENCES
from warmline import recipe
from warmline.errors import ModelError, RunError
from warmline.messages import Conversation, Message
from warmline.model import adapter, load
from warmline.model.template import Encoded, Template
from warmline.runs import read_json, read_jsonl, sha256, write_jsonl
from warmline.train import checkpoint
from warmline.train.loop import Loop, learning_rate, order, steps_for
from warmline.train.plan import cautions
from warmline.train.tune import tune


def conversations(count: int) -> list[Conversation]:
    made = []
    for i in range(count):
        turns = [SENTENCES[(i + k) % 6] + f" {i}" for k in range(2 + 2 * (i % 2))]
        messages = tuple(Message("user" if k % 2 == 0 else "assistant", text) for k, text in enumerate(turns))
        made.append(Conversation(f"c{i}", messages))
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name, rows in {"train": conversations(14), "val": conversations(4), "test": conversations(4)}.items():
        write_jsonl(folder / f"{name}.jsonl", (row.to_json() for row in rows))
    return folder


def settings(base: Path, **changes: object) -> recipe.Recipe:
    tree = {
        "name": "small",
        "base": {"model": str(base), "load": "fp32"},
        "adapter": {"rank": 4, "dropout": 0.1},
        "train": {"steps": 6, "batch": 4, "pack": 128, "learning_rate": 0.01, "validate_every": 2, "save_every": 2},
        "prompt": {"context": 256},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    return recipe.parse(tree)


@given(st.integers(1, 9), st.integers(1, 17), st.integers(0, 5))
def test_every_text_is_taken_once_an_epoch(batch: int, texts: int, seed: int) -> None:
    taken = [i for step in range(texts) for i in order(step, batch, texts, seed)]
    for epoch in range(len(taken) // texts):
        assert sorted(taken[epoch * texts : (epoch + 1) * texts]) == list(range(texts))


@given(st.integers(1, 9), st.lists(st.sampled_from("abcd"), min_size=1, max_size=17), st.integers(0, 5))
def test_one_question_after_the_other(batch: int, groups: list[str], seed: int) -> None:
    texts = len(groups)
    taken = [i for step in range(texts) for i in order(step, batch, texts, seed, groups)]
    for epoch in range(len(taken) // texts):
        once = taken[epoch * texts : (epoch + 1) * texts]
        assert sorted(once) == list(range(texts))
        assert len(list(groupby(groups[i] for i in once))) == len(set(groups)), "each group is one stretch"


def test_groups_too_are_drawn_anew_each_epoch() -> None:
    groups = [str(place // 2) for place in range(20)]
    assert order(0, 20, 20, 1, groups) != order(1, 20, 20, 1, groups)


def test_epochs_differ_in_order_and_seeds_too() -> None:
    assert order(0, 20, 20, 1) != order(1, 20, 20, 1)
    assert order(0, 20, 20, 1) != order(0, 20, 20, 2)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_then_follows_its_schedule(schedule: str) -> None:
    plan = recipe.Train(schedule=schedule, warmup=0.1, learning_rate=1e-3, floor=0.1)
    rates = [learning_rate(step, 100, plan) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-3 if schedule == "constant" else 1e-4, rel=0.15)


@pytest.mark.parametrize("capacity", [16, 64, 4096])
def test_accumulated_equals_batched(models: dict[str, Path], tmp_path: Path, capacity: int) -> None:
    """However few tokens are computed at once, an optimizer step is the same."""
    plan = settings(models["llama"], adapter__dropout=0.0)
    losses = {}
    for name, pack in {"whole": 100_000, "pieces": capacity}.items():
        model = load.load_model(plan.base)
        template = Template(load.load_tokenizer(plan.base))
        model = adapter.add_adapter(model, plan.adapter, 1)
        texts = [template.encode(row.messages, owner=row.id) for row in conversations(8)]
        train = plan.train.model_copy(update={"pack": pack, "steps": 3})
        Loop(model, texts, texts[:2], train, tmp_path / name).run()
        losses[name] = [row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl") if "loss" in row]
    assert losses["whole"] == pytest.approx(losses["pieces"], rel=2e-2)


def _weights(folder: Path) -> str:
    return sha256(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_resumed_equals_uninterrupted(models: dict[str, Path], data: Path, tmp_path: Path, stop: int) -> None:
    """Stopped by SIGTERM after any step, the same command ends with the same adapter and losses, bit for bit."""
    plan = settings(models["llama"])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    tune(plan, data, whole)
    steps = Loop._step

    def step(self: Loop, number: int) -> tuple[float, float, int]:
        result = steps(self, number)
        if number + 1 == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", step)
        with pytest.raises(SystemExit) as stopped:
            tune(plan, data, parts)
    assert stopped.value.code == 143
    assert not (parts / "adapter").exists()
    torch.manual_seed(12345)  # whatever happened in between must not matter
    tune(plan, data, parts)
    assert _weights(parts) == _weights(whole)

    def curve(folder: Path) -> list[tuple[object, ...]]:
        rows = read_jsonl(folder / "metrics.jsonl")
        return [(r["step"], r.get("loss"), r.get("validation"), r.get("norm")) for r in rows]

    assert curve(parts) == curve(whole)


KILLED = """
import sys
from pathlib import Path
from warmline import recipe
from warmline.train.tune import tune
plan = recipe.parse(recipe.yaml.safe_load(open(sys.argv[1])))
tune(plan, Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_resumed_after_sigkill(models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """A real process killed in mid-run, twice, at points of chance."""
    plan = settings(models["qwen3"], train__steps=40, train__save_every=3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    tune(plan, data, whole)
    (tmp_path / "plan.yaml").write_text(recipe.dump(plan))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "plan.yaml"), str(data), str(parts)]
    killed = 0
    for after in (4, 17):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 900
        metrics = parts / "metrics.jsonl"
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and f'"step": {after}' in metrics.read_text():
                process.kill()
                killed += 1
                break
            time.sleep(0.005)
        process.wait()
    assert killed == 2, "both processes were killed in mid-run, or the test shows nothing"
    tune(plan, data, parts)
    assert _weights(parts) == _weights(whole)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("precision", ["nf4", "int8", "bf16"])
def test_every_architecture_learns_in_every_precision(
    models: dict[str, Path], data: Path, tmp_path: Path, name: str, precision: str
) -> None:
    plan = settings(models[name], base__load=precision, train__steps=8, train__learning_rate=0.02)
    folder = tmp_path / "train"
    folder.mkdir()
    outcome = tune(plan, data, folder)
    rows = list(read_jsonl(folder / "metrics.jsonl"))
    first, best = rows[0]["validation"], outcome["best_validation"]
    assert best < first - 0.05, "held-out loss fell"
    assert outcome["trained"] < outcome["parameters"]
    assert (folder / "adapter" / "adapter_config.json").exists()
    base = load.load_model(plan.base)
    tuned = adapter.load_adapter(base, folder / "adapter", load.identity(plan.base))
    from warmline.evaluate.perplexity import surprise

    template = Template(load.load_tokenizer(plan.base))
    texts = [template.encode(row.messages, owner=row.id) for row in conversations(4)]
    measured = surprise(tuned, texts)
    assert sum(measured.nats) / sum(measured.tokens) == pytest.approx(best, abs=0.15)


def test_measuring_in_between_leaves_nf4_gradients_alone(models: dict[str, Path], tmp_path: Path) -> None:
    """bitsandbytes changes its weights' layout when a model is measured on a CPU; training must not notice."""
    plan = settings(models["qwen3"], base__load="nf4", adapter__dropout=0.0, train__steps=3)
    losses = {}
    for measured in (False, True):
        model = load.load_model(plan.base)
        template = Template(load.load_tokenizer(plan.base))
        model = adapter.add_adapter(model, plan.adapter, 1)
        texts = [template.encode(row.messages, owner=row.id) for row in conversations(8)]
        Loop(model, texts, texts[:2] if measured else [], plan.train, tmp_path / str(measured)).run()
        rows = read_jsonl(tmp_path / str(measured) / "metrics.jsonl")
        losses[measured] = [(row["loss"], row["norm"]) for row in rows if "loss" in row]
    assert losses[True] == losses[False]


def test_an_untouched_adapter_is_the_base(models: dict[str, Path]) -> None:
    plan = settings(models["gemma"])
    model = load.load_model(plan.base)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        before = model(ids).logits
        after = adapter.add_adapter(model, plan.adapter, 1)(ids).logits
    assert torch.equal(before, after)


def test_the_full_method_trains_and_saves_a_whole_model(models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    plan = settings(models["llama"], adapter__method="full", train__learning_rate=0.003)
    outcome = tune(plan, data, tmp_path)
    assert outcome["trained"] == outcome["parameters"]
    again = load.load_model(plan.base.model_copy(update={"model": str(tmp_path / "model"), "load": "bf16"}))
    assert next(again.parameters()).dtype == torch.bfloat16


def test_a_new_base_is_made_from_text(data: Path, tmp_path: Path) -> None:
    from warmline.train.tune import prepare_base

    plan = recipe.parse(
        {
            "name": "new",
            "base": {"model": "new", "new": {"vocabulary": 512, "width": 32, "layers": 1, "heads": 2, "inner": 64}},
        }
    )
    prepare_base(plan, data, tmp_path)
    base = recipe.Base(model=str(tmp_path), load="fp32")
    template = Template(load.load_tokenizer(base))
    assert template.kind == "chat"
    text = "Voilà: naïve ☕ 🙂 日本 <|end|> \x00 zero"
    ids = template.content(text)
    assert template.tokenizer.decode(ids) == text
    assert not set(ids) & template.control_ids
    assert sum(p.numel() for p in load.load_model(base).parameters()) > 10_000


def test_nan_stops_with_the_conversations_named(models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    plan = settings(models["llama"], train__learning_rate=0.9, train__steps=30, train__clip=1e30)
    steps = Loop._step

    def step(self: Loop, number: int) -> tuple[float, float, int]:
        if number == 3:
            with torch.no_grad():
                next(iter(self.parameters.values())).fill_(math.nan)
        return steps(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", step)
        with pytest.raises(ModelError, match="step 4") as caught:
            tune(plan, data, tmp_path)
    assert caught.value.code == "train-nan"
    assert "c" in str(caught.value.where)
    assert checkpoint.newest(tmp_path / "checkpoints") is not None, "what was good before is kept"


def test_a_damaged_checkpoint_is_passed_over(models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    tune(settings(models["llama"]), data, tmp_path)
    found = sorted((tmp_path / "checkpoints").glob("step-*"))
    assert len(found) == 2, "the last and the one before are kept"
    with open(found[-1] / "weights.safetensors", "r+b") as file:
        file.seek(200)
        file.write(b"\x00\x01\x02\x03")
    assert checkpoint.newest(tmp_path / "checkpoints") == found[0]
    shutil.rmtree(found[0])
    with pytest.raises(RunError) as caught:
        checkpoint.newest(tmp_path / "checkpoints")
    assert caught.value.code == "checkpoint-damaged"


def test_wrong_targets_say_which_there_are(models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    plan = settings(models["falcon"], adapter__targets=["q_proj", "query_key_value"])
    with pytest.raises(ModelError) as caught:
        tune(plan, data, tmp_path)
    assert caught.value.code == "adapter-targets"
    assert "`q_proj`" in caught.value.what
    assert "query_key_value" in (caught.value.hint or "")


def test_an_adapter_of_another_base_is_refused(models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    plan = settings(models["llama"])
    tune(plan, data, tmp_path)
    assert read_json(tmp_path / "adapter" / "base.json")["hash"]
    other = load.identity(recipe.Base(model=str(models["gemma"])))
    with pytest.raises(ModelError) as caught:
        adapter.load_adapter(load.load_model(plan.base), tmp_path / "adapter", other)
    assert caught.value.code == "base-mismatch"


def test_cautions_name_the_seeds_faults(models: dict[str, Path]) -> None:
    from warmline.model.texts import Texts

    texts = Texts([Encoded([1, 2], [True, True])] * 172, 172, 3, 1)
    empty = Texts([], 0, 0, 0)
    plan = settings(models["llama"], train__steps=320, train__batch=64, prompt__supervise="all")
    found = " ".join(cautions(plan, texts, empty))
    assert "119 passes" in found
    assert "no validation split" in found
    assert "visitor's words" in found
    assert "split at turn boundaries" in found
    sane = settings(models["llama"], train__steps=20, train__batch=16, train__learning_rate=2e-4)
    assert cautions(sane, Texts(texts.encoded, 172, 0, 0), texts) == []
    assert steps_for(sane.train.model_copy(update={"steps": None, "epochs": 2.0}), 172) == 22
