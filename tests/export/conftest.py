"""Runs that are ready to be exported, made without training."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_run
from warmline import recipe
from warmline.runs import Run, write_json

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="GGUF IS NOT TESTED HERE: llama-cpp-python is not installed (pip install llama-cpp-python)",
)


@pytest.fixture
def run_of(models: dict[str, Path], tmp_path: Path) -> Callable[..., tuple[Run, recipe.Recipe]]:
    """Make a run of one architecture in this test's own folder."""

    def make(name: str, **changes: Any) -> tuple[Run, recipe.Recipe]:
        return make_run(tmp_path / "runs" / f"{name}-run", models[name], **changes)

    return make


def refuse(run: Run, *reasons: str, passed: bool = False, **forms: str) -> None:
    """Lay the evaluation's verdict into a run; `forms` are quantised ones that lost what the tuned model had."""
    systems = {"tuned": {"passed": passed, "reasons": list(reasons)}}
    systems |= {f"gguf-{quant}": {"passed": not why, "reasons": [why] if why else []} for quant, why in forms.items()}
    write_json(run.folder / "evaluation" / "gate.json", {"systems": systems})
