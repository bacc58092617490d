"""What a training shows of itself, when it stops early, and which weights it keeps."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train import tiny
from warmline import recipe
from warmline.errors import RecipeError, RunError
from warmline.messages import Message
from warmline.model import adapter, load
from warmline.model.template import Template
from warmline.runs import read_jsonl, write_jsonl
from warmline.train import checkpoint
from warmline.train.loop import Loop
from warmline.train.samples import replies_of
from warmline.train.track import Tracker


class Recorder(ModuleType):
    """Stands in for wandb or trackio: the same calls."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.started: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def Settings(self, **given: Any) -> dict[str, Any]:
        return given

    def init(self, **given: Any) -> Recorder:
        self.started = given
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_every_number_and_no_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module = Recorder(name)
    monkeypatch.setitem(sys.modules, name, module)
    train = tiny.settings(track=[name])
    tracker = Tracker(tmp_path, train.track, "first", train.model_dump(mode="json"))
    replies = [{"prompt": "How are you?", "reply": "Listening."}]
    tiny.loop(tmp_path, train, tracker=tracker, replies=lambda asked: replies).run()
    assert module.started["name"] == "first"
    assert module.started["config"]["batch"] == 12
    assert module.finished == 1
    assert name == "trackio" or module.started["settings"]["console"] == "off"
    rows = list(read_jsonl(tmp_path / "metrics.jsonl"))
    assert [step for step, _ in module.logged] == [row["step"] for row in rows]
    assert [v["loss"] for _, v in module.logged if "loss" in v] == [row["loss"] for row in rows if "loss" in row]
    assert all(isinstance(value, float) for _, values in module.logged for value in values.values())
    said = repr((module.started, module.logged))
    assert "Listening" not in said
    assert "How are you" not in said


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_missing_package_is_one_message_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RunError) as caught:
        Tracker(tmp_path, (name,))
    assert caught.value.code == "dependency-missing"
    assert f"pip install {name}" in (caught.value.hint or "")


def test_an_unknown_tracker_is_a_fault_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"train\.track"):
        recipe.parse({"name": "x", "train": {"track": ["clearml"]}})


def test_tensorboard_files_hold_the_losses(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny.loop(tmp_path, tiny.settings(), tracker=Tracker(tmp_path, ("tensorboard",))).run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(row["step"], row["loss"]) for row in read_jsonl(tmp_path / "metrics.jsonl") if "loss" in row]
    assert [(e.step, pytest.approx(e.value, rel=1e-5)) for e in events.Scalars("loss")] == losses


def test_a_run_leaves_its_numbers_its_plot_and_its_samples(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def replies(asked: Any) -> list[dict[str, str]]:
        return [{"prompt": "p", "reply": "r"}, {"prompt": "q", "reply": "s"}]

    outcome = tiny.loop(tmp_path, tiny.settings(), replies=replies).run()
    rows = list(read_jsonl(tmp_path / "metrics.jsonl"))
    assert [row["step"] for row in rows if "validation" in row] == [0, 3, 6, 8]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    assert {"loss", "norm", "rate", "targets", "seconds"} <= rows[1].keys()
    assert [row["step"] for row in read_jsonl(tmp_path / "samples.jsonl")] == [0, 0, 3, 3, 6, 6, 8, 8]
    drawn = (tmp_path / "loss.svg").read_text()
    assert drawn.count("#8aa6a3") >= 1
    assert drawn.count("#b4532a") >= 4, "a mark for each validation"
    said = capfd.readouterr().err
    assert "step 6 of 8" in said
    assert "supervised tokens/s" in said
    assert outcome.targets_per_second > 0


@pytest.mark.parametrize(
    ("validated", "kept"), [(4, [0, 1, 2, 3, 4, 4]), (2, [0, 1, 2, 3, 4])], ids=["measured", "not yet measured"]
)
def test_rows_that_will_be_written_again_are_forgotten(tmp_path: Path, validated: int, kept: list[int]) -> None:
    rows: list[dict[str, float]] = [{"step": 0, "validation": 2.0}]
    rows += [{"step": i, "loss": 1.0} for i in range(1, 5)]
    rows += [{"step": 4, "validation": 1.0}, {"step": 5, "loss": 1.0}]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # cut by a kill
    Tracker(tmp_path).begin(4, validated)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == kept


def planned(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    monkeypatch.setattr(Loop, "validate", lambda self: losses[self.state.step])


def test_patience_ends_the_run_with_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(monkeypatch, {0: 3.0, 1: 2.0, 2: 2.5, 3: 1.5, 4: 1.6, 5: 1.7, 6: 1.4})
    loop = tiny.loop(tmp_path, tiny.settings(validate_every=1, patience=2))
    outcome = loop.run()
    assert (outcome.steps, outcome.best_step, outcome.best_validation) == (5, 3, 1.5)
    best = load_file(checkpoint.at(tmp_path / "checkpoints", 3) / "weights.safetensors")
    assert all(torch.equal(p, best[name]) for name, p in loop.parameters.items())


def test_the_last_weights_are_kept_when_the_recipe_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(monkeypatch, {0: 3.0, 3: 2.0, 6: 2.5, 8: 2.6})
    loop = tiny.loop(tmp_path, tiny.settings(keep="last"))
    loop.run()
    last = load_file(checkpoint.at(tmp_path / "checkpoints", 8) / "weights.safetensors")
    assert all(torch.equal(p, last[name]) for name, p in loop.parameters.items())


def test_patience_counts_over_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {0: 3.0, 1: 2.0, 2: 2.5, 3: 2.6, 4: 2.7, 5: 1.0}
    train = tiny.settings(validate_every=1, patience=3)

    def stopping(self: Loop) -> float:
        if self.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses[self.state.step]

    monkeypatch.setattr(Loop, "validate", stopping)
    with pytest.raises(SystemExit):
        tiny.loop(tmp_path, train).run()
    planned(monkeypatch, losses)
    assert tiny.loop(tmp_path, train).run().steps == 4


def test_a_validation_that_is_not_a_number_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(monkeypatch, {0: float("nan"), 3: 2.0, 6: float("nan"), 8: 2.5})
    assert tiny.loop(tmp_path, tiny.settings()).run().best_step == 3


def test_samples_leave_the_training_as_it_was(models: dict[str, Path], tmp_path: Path) -> None:
    """Asking the model in between changes no weight, and the replies are the model's own."""
    base = recipe.Base(model=str(models["qwen3"]), load="nf4")
    evaluate = recipe.Evaluate(prompts=("I cannot sleep.", "Hello."), new_tokens=6)
    template = Template(load.load_tokenizer(base))
    texts = [
        template.encode([Message("user", f"Hello {i}"), Message("assistant", "That is a long time.")], owner=f"c{i}")
        for i in range(6)
    ]
    weights = []
    for asked in (0, 2):
        model = adapter.add_adapter(load.load_model(base), recipe.Adapter(rank=4, dropout=0.1), 1)
        folder = tmp_path / str(asked)
        train = tiny.settings(steps=3, validate_every=1, batch=4)
        loop = Loop(model, texts, texts[:2], train, folder, replies=replies_of(model, template, evaluate, asked))
        loop.run()
        weights.append([p.detach().clone() for p in loop.parameters.values()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    rows = list(read_jsonl(tmp_path / "2" / "samples.jsonl"))
    assert [row["prompt"] for row in rows] == list(evaluate.prompts) * 4
    assert not (tmp_path / "0" / "samples.jsonl").exists()
