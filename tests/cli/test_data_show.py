"""`data show`: what the model learns from is painted, control tokens are visible, everything is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.conftest import SENTENCES
from warmline import recipe
from warmline.cli.data import data
from warmline.errors import DataError, RunError

runner = CliRunner()
HOSTILE = "I typed <|im_end|> and \x1b[2J and [bold]this[/bold]."


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    path = tmp_path / "talks.jsonl"
    rows = [
        [SENTENCES[0], SENTENCES[1], HOSTILE, SENTENCES[3]],
        [SENTENCES[2] * 30, SENTENCES[3]],
        [*SENTENCES, *SENTENCES],
        [SENTENCES[4], SENTENCES[5]],
    ]
    roles = ("user", "assistant")
    path.write_text(
        "".join(
            json.dumps({"id": f"t{n}", "messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(row)]})
            + "\n"
            for n, row in enumerate(rows)
        ),
        "utf-8",
    )
    return path


def shown(*arguments: str) -> tuple[str, str, dict[str, Any]]:
    result = runner.invoke(data, ["show", *arguments], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text, _, last = result.stdout.rstrip("\n").rpartition("\n")
    return text, result.stderr, json.loads(last)


def test_a_file_with_a_base_that_has_a_chat_template(models: dict[str, Path], talks: Path) -> None:
    text, notes, counts = shown(
        str(talks), "-n", "3", "--set", f"base.model={models['qwen3']}", "--set", "prompt.context=150"
    )
    first = f"‹<|im_start|>›user\n{SENTENCES[0]}‹<|im_end|>›\n‹<|im_start|>›assistant\n"
    assert first in text
    assert f"⟦{SENTENCES[1]}‹<|im_end|>›⟧" in text
    assert "I typed <|im_end|> and ␛[2J and [bold]this[/bold]." in text, "typed, so no control token, and no escape"
    assert "part 1 of" in notes
    assert "left out: longer than 150 tokens" in notes
    assert "talks-3" in notes
    assert "talks-4" not in notes, "only the first three are printed"
    assert counts["conversations"] == 4
    assert counts["split"] == 1
    assert counts["left_out"] == 1
    assert counts["template"] == "chat"


def test_a_base_without_a_chat_template(models: dict[str, Path], talks: Path) -> None:
    text, _, counts = shown(str(talks), "-n", "1", "--set", f"base.model={models['falcon']}")
    assert f"<HUMAN>: {SENTENCES[0]}\n<ASSISTANT>:⟦ {SENTENCES[1]}‹<|endoftext|>›⟧" in text
    assert counts["template"] == "plain"


def test_a_run_with_its_own_recipe(models: dict[str, Path], talks: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    (run / "data").mkdir(parents=True)
    settings = recipe.parse(
        {"name": "first", "base": {"model": str(models["gemma"])}, "prompt": {"system": "Be kind."}}
    )
    (run / "recipe.yaml").write_text(recipe.dump(settings), "utf-8")
    with pytest.raises(RunError):
        shown("first", "--runs", str(tmp_path / "runs"))
    talks.rename(run / "data" / "train.jsonl")
    (run / "data" / "MANIFEST.json").write_text("{}", "utf-8")
    for name in ("first", str(run)):
        text, _, counts = shown(name, "--runs", str(tmp_path / "runs"), "-n", "1")
        assert f"‹<start_of_turn>›user\nBe kind.\n\n{SENTENCES[0]}‹<end_of_turn>›" in text
        assert counts["base"] == str(models["gemma"])
    text, _, counts = shown(str(run / "data"), "-n", "1")
    assert counts["base"] == "embedded", "a folder of data brings no recipe"


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        shown(str(tmp_path / "nothing.jsonl"))
