from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from warmline.cli.safety import register
from warmline.safety.audit import AuditLog

app = typer.Typer()
register(app)
runner = CliRunner()


def rows(path: Path, *options: str) -> list[dict[str, object]]:
    result = runner.invoke(app, ["screen", str(path), *options])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_screen_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("hello\nI want to kill myself\n", "utf-8")
    found = rows(path)
    assert [row["level"] for row in found] == [0, 3]
    assert {"id", "level", "flags", "score", "rules"} <= set(found[0])


def test_screen_of_conversations(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    talk = [
        {"role": "user", "content": "I want to kill myself"},
        {"role": "assistant", "content": "..."},
        {"role": "user", "content": "jk"},
    ]
    path.write_text(
        json.dumps({"id": "a", "messages": talk}) + "\n" + json.dumps({"id": "b", "text": "hi"}) + "\n", "utf-8"
    )
    first, second = rows(path)
    assert (first["id"], first["level"], first["peak"], first["turns"]) == ("a", 3, 3, [3, 3])
    assert second["level"] == 0


def test_resources() -> None:
    result = runner.invoke(app, ["resources", "gb"])
    assert "116 123" in result.stdout
    assert runner.invoke(app, ["resources", "XX"]).exit_code != 0
    assert len(runner.invoke(app, ["resources"]).stdout.splitlines()) == 49


def test_audit_verify(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "a.jsonl")
    log.append({"turn": 1})
    result = runner.invoke(app, ["audit", "verify", str(log.path)])
    assert json.loads(result.stdout.splitlines()[-1])["rows"] == 1
    log.path.write_text("{}\n", "utf-8")
    assert runner.invoke(app, ["audit", "verify", str(log.path)]).exit_code != 0
