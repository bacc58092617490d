from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from warmline.errors import SafetyError
from warmline.safety.audit import AuditLog, verify


def filled(path: Path, rows: int = 5) -> AuditLog:
    log = AuditLog(path, sync=False)
    for turn in range(rows):
        assert log.append({"turn": turn, "level": 0})
    return log


def test_the_chain_holds_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    filled(path)
    AuditLog(path).append({"turn": 5})
    assert verify(path)[0] == 6


@pytest.mark.parametrize("damage", ["alter", "remove", "swap", "insert", "garble"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "audit.jsonl"
    filled(path)
    lines = path.read_text("utf-8").splitlines()
    if damage == "alter":
        lines[2] = lines[2].replace('"level": 0', '"level": 4')
    elif damage == "remove":
        del lines[2]
    elif damage == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    elif damage == "insert":
        lines.insert(2, lines[1])
    else:
        lines[2] = lines[2][:20]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    with pytest.raises(SafetyError) as failure:
        verify(path)
    assert failure.value.code == "audit-broken"
    with pytest.raises(SafetyError):
        AuditLog(path)


def test_a_full_disk_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    log = filled(path)
    real = log._write

    def full(data: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(log, "_write", full)
    assert not log.append({"turn": 5})
    assert not log.append({"turn": 6})
    assert log.waiting == 2
    monkeypatch.setattr(log, "_write", real)
    assert log.append({"turn": 7})
    assert log.waiting == 0
    assert verify(path)[0] == 8


def test_no_field_for_words(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    with pytest.raises(ValueError, match="text"):
        log.append({"text": "what a person wrote"})


def test_rows_hold_what_was_given(tmp_path: Path) -> None:
    filled(tmp_path / "a.jsonl", 1)
    entry = json.loads((tmp_path / "a.jsonl").read_text("utf-8"))
    assert entry["row"] == {"turn": 0, "level": 0}
    assert entry["previous"] == "0" * 64
