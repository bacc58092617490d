"""`warmline prefer` on a tiny base: what is missing is made, the result replies, a new training puts it aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import SENTENCES
from warmline import recipe
from warmline.cli.main import app
from warmline.cli.stages import Job
from warmline.engine.choice import Choice
from warmline.errors import DataError, RecipeError
from warmline.opening import open_engine
from warmline.runs import Run
from warmline.train.group import Group

pytest.importorskip("trl")


@pytest.fixture(scope="module")
def given(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    talks = [[f"{SENTENCES[i % 6]} It is day {i}.", f"Day {i}. {SENTENCES[(i + 1) % 6]}"] for i in range(20)]
    roles = ("user", "assistant")
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": r, "content": t} for r, t in zip(roles, talk, strict=True)]} for talk in talks
    ]
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    pairs = [{"prompt": f"Night {i}.", "chosen": f"What is night {i} like?", "rejected": "Stop it."} for i in range(6)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), "utf-8")
    (folder / "small.yaml").write_text(
        f"""
name: small
data: {{sources: [{folder}/talks.jsonl], licence: MIT, validation: 0.2, test: 0.2, language: any, dedupe: false}}
base: {{model: {models["qwen3"]}, load: fp32}}
prompt: {{context: 256}}
adapter: {{rank: 4}}
train: {{steps: 2, batch: 4, pack: 128, samples: 0}}
preference: {{sources: [{folder}/pairs.jsonl], epochs: 1, batch: 2, validation: 0, learning_rate: 0.01}}
""",
        "utf-8",
    )
    return folder


def prefer(given: Path, runs: Path, *more: str) -> Run:
    app(["prefer", str(given / "small.yaml"), "--runs", str(runs), *more], standalone_mode=False)
    return Run.open("small", runs)


def test_the_result_replies_until_the_run_is_trained_anew(given: Path, tmp_path: Path) -> None:
    run = prefer(given, tmp_path)
    made = run.manifest("prefer")
    assert made["summary"]["train"] == 6
    assert made["inputs"]["train"] == run.manifest("train")["key"]
    assert run.tuned == "prefer"

    expected, before = (
        load_file(run.folder / stage / "adapter" / "adapter_model.safetensors") for stage in ("prefer", "train")
    )
    assert any(not torch.equal(expected[name], before[name]) for name in before)
    opened = open_engine(run, recipe.load(str(run.folder / "recipe.yaml")), Choice("local", "test"))
    loaded = dict(opened.model.named_parameters())  # type: ignore[union-attr]
    for name, value in expected.items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], value)

    assert prefer(given, tmp_path).manifest("prefer") == made  # done before, kept
    prefer(given, tmp_path, "--set", "preference.beta=0.3")
    assert run.manifest("prefer")["key"] != made["key"]
    assert (run.folder / "replaced").exists()

    job = Job(recipe.load(str(given / "small.yaml"), ("train.steps=1",)), tmp_path)
    job.group = Group()
    job.train(job.data(), job.settings)
    assert run.tuned == "train"


def test_wrong_input_is_told_before_anything_is_made(given: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        prefer(given, tmp_path, "--pairs", "none.jsonl")
    with pytest.raises(DataError, match=r"row 1 of talks\.jsonl is no preference"):
        prefer(given, tmp_path, "--pairs", str(given / "talks.jsonl"))
    with pytest.raises(RecipeError, match=r"adapter\.method is `full`"):
        prefer(given, tmp_path, "--set", "adapter.method=full")
    with pytest.raises(RecipeError, match=r"preference\.betta"):
        prefer(given, tmp_path, "--set", "preference.betta=1")
    assert not (tmp_path / "small").exists()
