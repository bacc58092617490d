from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from warmline.cli.safety import register
from warmline.errors import SafetyError
from warmline.safety.audit import AuditLog
from warmline.safety.counters import count

app = typer.Typer()
register(app)
runner = CliRunner()

TURNS = [
    ("2025-12-31T23:00:00", "aaaaaaaa", 0, "model"),
    ("2026-01-01T00:10:00", "aaaaaaaa", 3, "vetted"),
    ("2026-01-01T00:12:00", "aaaaaaaa", 3, "vetted"),
    ("2026-02-01T12:00:00", "bbbbbbbb", 2, "model_with_resources"),
    *[("2026-03-01T12:00:00", f"c{n:07}", 0, "model") for n in range(12)],
]


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    log = AuditLog(tmp_path / "audit.jsonl")
    for at, conversation, state, action in TURNS:
        log.append({"at": at, "conversation": conversation, "state": state, "action": action, "cut": ""})
    return log.path


def test_sums_by_year(audit: Path) -> None:
    years = count([audit])
    assert years["2025"] == {
        "turns": 1, "referrals_shown": 0, "replies_cut": 0, "conversations": 1, "level_3_or_4": 0,
    }  # fmt: skip
    assert years["2026"] == {
        "turns": 15, "referrals_shown": 3, "replies_cut": 0, "conversations": 14, "level_3_or_4": 1,
    }  # fmt: skip


def test_what_is_published_names_nobody_and_hides_small_counts(audit: Path) -> None:
    result = runner.invoke(app, ["audit", "counters", str(audit)])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout.splitlines()[-1])
    assert shown["2026"]["level_3_or_4"] == "fewer than 10"
    assert shown["2026"]["conversations"] == 14
    assert "aaaaaaaa" not in result.output
    assert str(audit) not in result.stdout


def test_an_altered_file_is_not_counted(audit: Path) -> None:
    lines = audit.read_text("utf-8").splitlines()
    audit.write_text("\n".join(lines[:3] + lines[4:]) + "\n", "utf-8")
    with pytest.raises(SafetyError):
        count([audit])
