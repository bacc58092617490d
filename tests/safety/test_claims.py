"""Nothing the product says may sound like a licensed professional: README, pages, personas, wordings."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
import typer
import yaml
from conftest import ROOT
from typer.testing import CliRunner

from warmline.cli.safety import register
from warmline.safety.lint import claims
from warmline.safety.tables import table

app = typer.Typer()
register(app)
runner = CliRunner()
PACKAGE = Path(str(resources.files("warmline")))


def found(text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in claims(text)]


@pytest.mark.parametrize("name", ["README.md", "SAFETY.md"])
def test_pages_of_the_project(name: str) -> None:
    assert found((ROOT / name).read_text("utf-8")) == []


def test_strings_of_the_page() -> None:
    for file in sorted((PACKAGE / "serve" / "web" / "strings").glob("*.json")):
        for key, text in json.loads(file.read_text("utf-8")).items():
            assert found(str(text)) == [], key


def test_personas() -> None:
    for file in sorted((PACKAGE / "recipes").glob("*.yaml")):
        prompt = (yaml.safe_load(file.read_text("utf-8")) or {}).get("prompt") or {}
        assert found(str(prompt.get("system", ""))) == [], file.name


def test_wordings() -> None:
    for name, many in table("wordings.en.yaml").items():
        if isinstance(many, list):
            for text in many:
                assert found(text) == [], name


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Your AI therapist treats depression.\nAlways there.", 1),
        ("Board certified care by a digital psychologist.", 1),
        ("It cures anxiety, guaranteed.", 1),
        ("This is not a therapist and cannot diagnose anything. Ask a doctor.", 0),
    ],
)
def test_the_command(tmp_path: Path, text: str, code: int) -> None:
    path = tmp_path / "page.md"
    path.write_text("A line before.\n" + text, "utf-8")
    result = runner.invoke(app, ["claims", str(path)])
    assert result.exit_code == code, result.output
    if code:
        row = json.loads(result.stdout.splitlines()[0])
        assert row["line"] == 2
        assert row["rule"].startswith("claims.")
