"""`warmline export` and `warmline push` as a person types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.test_commands import warmline
from tests.export.conftest import needs_llama_cpp, refuse
from warmline import recipe
from warmline.cli.main import app
from warmline.errors import WarmlineError
from warmline.runs import Run

Make = Callable[..., tuple[Run, recipe.Recipe]]


@needs_llama_cpp
def test_export_in_a_process_of_its_own(run_of: Make) -> None:
    run, _ = run_of("qwen3")
    home = run.folder.parents[1]
    done = warmline("export", run.name, "--to", "adapter,gguf", "--quant", "f16,Q8_0", "--ollama", cwd=home)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert set(last["verified"]) == {"adapter", "gguf:f16", "gguf:q8_0", "ollama"}
    assert "qwen3-run-q8_0.gguf" in done.stderr
    assert len(done.stdout.splitlines()) == 1, "llama.cpp's own talk stays away"
    assert "llama_" not in done.stderr
    again = warmline("export", run.name, "--to", "adapter", cwd=home)
    assert "done before, kept" in again.stderr


def test_a_refused_export_is_one_message(run_of: Make) -> None:
    run, _ = run_of("qwen3")
    refuse(run, "more over-refusals")
    done = warmline("export", run.name, cwd=run.folder.parents[1])
    assert done.returncode == 2
    assert "[export-refused]" in done.stderr
    assert "Traceback" not in done.stderr


WRONG: list[tuple[list[str], str]] = [
    (["export", "gone"], "run-missing"),
    (["export", "gone", "--to", "onnx"], "usage"),
    (["export", "gone", "--quant", "q2_k"], "usage"),
    (["push", "gone", "me/x"], "run-missing"),
]


@pytest.mark.parametrize(("arguments", "code"), WRONG, ids=[" ".join(row[0]) for row in WRONG])
def test_a_mistake_is_told_before_anything_is_loaded(
    arguments: list[str], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, arguments)
    assert isinstance(found.exception, WarmlineError)
    assert found.exception.code == code


@pytest.mark.parametrize("command", ["export", "push"])
def test_help_has_examples(command: str) -> None:
    assert "Examples:" in CliRunner().invoke(app, [command, "--help"]).stdout
