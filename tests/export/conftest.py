"""Runs that are ready to be exported, made without training: an adapter with random weights on a tiny base."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from warmline import recipe
from warmline.model import adapter, load
from warmline.runs import Run, write_atomically, write_json

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="GGUF IS NOT TESTED HERE: llama-cpp-python is not installed (pip install llama-cpp-python)",
)


def make_run(folder: Path, source: Path | str, /, **changes: Any) -> tuple[Run, recipe.Recipe]:
    """A run whose adapter changes its base visibly. `changes` are sections of the recipe."""
    tree = {
        "name": folder.name,
        "base": {"model": str(source), "load": "fp32"} | changes.get("base", {}),
        "adapter": {"rank": 4, "alpha": 8} | changes.get("adapter", {}),
        "prompt": changes.get("prompt", {}),
    }
    settings = recipe.parse(tree)
    run = Run.create(folder)
    write_atomically(folder / "recipe.yaml", recipe.dump(settings))
    train = run.stage("train", {"base": str(source)})
    model = adapter.add_adapter(
        load.load_model(settings.base.model_copy(update={"load": "fp32"})), settings.adapter, seed=3
    )
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    adapter.save_adapter(model, train.begin() / "adapter", load.identity(settings.base))
    train.finish({"steps": 3, "epochs": 1.0}, {})
    data = run.stage("data", {})
    data.begin()
    data.finish({"licences": ["MIT"], "counts": {"train": 12}}, {})
    return run, settings


@pytest.fixture
def run_of(models: dict[str, Path], tmp_path: Path) -> Callable[..., tuple[Run, recipe.Recipe]]:
    """Make a run of one architecture in this test's own folder."""

    def make(name: str, **changes: Any) -> tuple[Run, recipe.Recipe]:
        return make_run(tmp_path / "runs" / f"{name}-run", models[name], **changes)

    return make


def refuse(run: Run, *reasons: str, passed: bool = False) -> None:
    """Lay the evaluation's verdict into a run."""
    write_json(run.folder / "evaluation" / "gate.json", {"passed": passed, "reasons": list(reasons)})
