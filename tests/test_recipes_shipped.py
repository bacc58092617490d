"""Every recipe that ships, run for real on a small random model of its architecture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.conftest import SENTENCES
from warmline import recipe
from warmline.cli.stages import Job
from warmline.runs import read_json, read_jsonl
from warmline.train.tune import tune

KIN = {
    "demo": "embedded",
    "laptop": "qwen3",
    "falcon-7b-qlora": "falcon",
    "gemma-2b-qlora": "gemma",
    "open-llama-3b-int8-lora": "llama",
    "llama-2-7b-chat-qlora": "llama",
    "qwen3-4b-qlora": "qwen3",
    "gemma-3-4b-qlora": "gemma3",
    "llama-3.2-3b-qlora": "llama",
}
"""The small model that stands for the base of a recipe."""
SEEDS = [name for name in KIN if recipe.load(name).prompt.seed_format]
OTHERS = {"embedded-base"}
"""Recipes that train no adapter on a base."""


def test_every_recipe_is_tried_here() -> None:
    fine_tunes = {name for name in recipe.shipped() if not name.endswith("-dpo")}
    assert fine_tunes == set(KIN) | OTHERS
    assert len(SEEDS) == 4


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talks")
    for split, count in (("train", 12), ("val", 3), ("test", 3)):
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for i in range(count):
                said = [f"{SENTENCES[i % 6]} It is day {i}.", f"Day {i}. {SENTENCES[(i + 1) % 6]}"]
                turns = [{"role": r, "content": t} for r, t in zip(("user", "assistant"), said, strict=True)]
                file.write(json.dumps({"id": f"{split}-{i}", "messages": turns}) + "\n")
    return folder


def small(name: str, models: dict[str, Path], *more: str) -> recipe.Recipe:
    base = str(models.get(KIN.get(name, ""), KIN.get(name, "new")))
    if recipe.load(name).prompt.system == recipe.listener():
        more = ("prompt.system=Listen first.", *more)  # the small models' context is short, their words are long
    return recipe.load(
        name,
        (
            f"base.model={base}",
            "train.steps=2",
            "train.batch=4",
            "train.validate_every=1",
            "evaluate.new_tokens=4",
            *more,
        ),
    )


@pytest.mark.parametrize(
    ("name", "more"),
    [(name, ()) for name in KIN] + [(name, ("prompt.template=seed", "prompt.supervise=all")) for name in SEEDS],
)
def test_it_trains(models: dict[str, Path], talks: Path, tmp_path: Path, name: str, more: tuple[str, ...]) -> None:
    settings = small(name, models, *more)
    done = tune(settings, talks, tmp_path)
    assert done["steps"] == 2
    assert math.isfinite(done["loss"])
    assert 0 < done["trained"] < done["parameters"]
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["r"] == settings.adapter.rank
    rows = list(read_jsonl(tmp_path / "metrics.jsonl"))
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert done["template"] == ("seed" if more else done["template"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(KIN) | OTHERS))
def test_it_goes_the_whole_way(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    more = ["data.sources=[sample]", "data.licence=Apache-2.0", "data.limit=40", "data.anonymise=false"]
    if name in OTHERS:
        more += [f"base.new.{key}={value}" for key, value in (("vocabulary", 600), ("width", 64), ("layers", 1))]
        more += ["base.new.inner=64", "data.validation=0.1", "data.test=0.1"]
    job = Job(small(name, models, *more), tmp_path)
    measured = job.carry_out()
    assert set(measured["models"]) == {"base", "tuned"}
    assert (job.run.folder / "evaluation" / "report.html").exists()
