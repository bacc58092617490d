"""`warmline vault ...` as a person types it: results as JSON lines, failures as one line and exit code 2."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vault.conftest import WORDS, thread
from warmline.cli import main
from warmline.vault.keys import MasterKey
from warmline.vault.store import Vault

ME = "m" * 43
Command = Callable[..., tuple[int, list[Any], str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    for name in ("WARMLINE_VAULT_KEY", "WARMLINE_VAULT_PASSPHRASE", "WARMLINE_SERVE_STORE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> tuple[int, list[Any], str]:
        monkeypatch.setattr(sys, "argv", ["warmline", "vault", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), [json.loads(line) for line in out.splitlines()], err

    return run


@pytest.fixture
def key(tmp_path: Path, command: Command) -> Path:
    assert command("key", str(tmp_path / "key"))[0] == 0
    return tmp_path / "key"


@pytest.fixture
def where(tmp_path: Path, key: Path) -> tuple[str, ...]:
    """Options that name a vault with two conversations."""
    vault = Vault.open(str(tmp_path / "v.db"), MasterKey.from_file(key))
    vault.put(ME, "first-id", thread("I feel low since Tuesday.", "What happened then?"), "Low")
    said = "Call me on 07700 900123, I am Priya Raman from Leeds. I can't sleep and it makes work very hard for me."
    reply = "That sounds exhausting. What goes through your mind when you lie awake at night?"
    vault.put(ME, "second-id", thread(said, reply))
    vault.close()
    return "--store", str(tmp_path / "v.db"), "--key-file", str(key)


def test_status(command: Command, where: tuple[str, ...]) -> None:
    code, [told], _ = command("status", *where)
    assert code == 0
    assert (told["conversations"], told["messages"], told["locked_with"], told["kind"]) == (2, 4, "key", "sqlcipher")
    code, each, _ = command("status", "--each", *where)
    assert [row["number"] for row in each] == [1, 2]
    assert "first-id" not in json.dumps(each)


def test_export_of_one_and_of_all(command: Command, where: tuple[str, ...], tmp_path: Path) -> None:
    assert command("export", "-o", str(tmp_path / "all"), *where)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "all").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["first-id", "second-id"]
    assert rows[0]["thread"]["messages"][0]["content"] == "I feel low since Tuesday."
    assert (tmp_path / "all").stat().st_mode & 0o077 == 0
    for reference in ("1", "first-id"):
        assert command("export", reference, "-o", str(tmp_path / "one"), "--format", "text", *where)[0] == 0
        text = (tmp_path / "one").read_text()
        assert "Low" in text
        assert "What happened then?" in text
        assert "Priya" not in text


def test_erase_says_what_is_left(command: Command, where: tuple[str, ...]) -> None:
    code, [done], _ = command("erase", "1", *where)
    assert (code, done) == (0, {"erased": 1, "log_cut": True, "left_on_disk": 0})
    code, _, said = command("erase", "1", "2", *where)
    assert code == 2
    assert "[vault-unknown]" in said
    assert command("status", *where)[1][0]["conversations"] == 1  # nothing was erased by a command that failed


def test_rotate_to_another_file_and_to_a_passphrase(
    command: Command, where: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("key", str(tmp_path / "new"))
    code, [done], _ = command("rotate", *where, "--new-key-file", str(tmp_path / "new"))
    assert (code, done) == (0, {"rewrapped": 2})
    code, _, said = command("status", *where)
    assert code == 2
    assert "does not open this vault" in said
    store = where[:2]
    monkeypatch.setenv("WARMLINE_VAULT_NEW_PASSPHRASE", WORDS)
    assert command("rotate", *store, "--key-file", str(tmp_path / "new"))[0] == 0
    monkeypatch.setenv("WARMLINE_VAULT_PASSPHRASE", WORDS)
    assert command("verify", *store)[:2] == (0, [{"conversations": 2, "messages": 4, "faults": []}])


def test_backup_and_restore(command: Command, where: tuple[str, ...], tmp_path: Path, key: Path) -> None:
    code, [done], _ = command("backup", "-o", str(tmp_path / "b"), *where)
    assert (code, done["conversations"], done["messages"]) == (0, 2, 4)
    new = ("--store", str(tmp_path / "new.db"), "--key-file", str(key))
    code, [done], _ = command("restore", str(tmp_path / "b"), *new)
    assert (code, done["conversations"]) == (0, 2)
    assert command("status", *new)[1][0]["messages"] == 4
    assert command("restore", str(tmp_path / "b"), *new)[0] == 2


def test_purge(command: Command, where: tuple[str, ...]) -> None:
    assert command("purge", "--days", "1", *where)[1] == [{"erased": 0}]
    assert command("purge", "--days", "0", *where)[0] == 2


def test_contribute_takes_consenting_conversations_only_and_masks_them(
    command: Command, where: tuple[str, ...], tmp_path: Path, key: Path
) -> None:
    given = tmp_path / "given.jsonl"
    assert command("contribute", "-o", str(given), *where)[1][0]["written"] == 0
    vault = Vault.open(where[1], MasterKey.from_file(key))
    vault.consent(ME, "second-id", True)
    vault.close()
    assert command("contribute", "-o", str(given), *where)[1][0]["written"] == 1
    [row] = [json.loads(line) for line in given.read_text().splitlines()]
    text = json.dumps(row)
    for secret in ("Priya", "Raman", "900123", "second-id", ME, "Tuesday"):
        assert secret not in text
    assert "can't sleep" in text
    assert row["provenance"]["consent"].startswith("given 20")
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    vault = Vault.open(where[1], MasterKey.from_file(key))
    vault.consent(ME, "second-id", False)
    vault.close()
    assert command("contribute", "-o", str(given), *where)[1][0]["written"] == 0
    assert given.read_text() == ""


def test_a_shameful_reply_is_not_taught(command: Command, where: tuple[str, ...], tmp_path: Path, key: Path) -> None:
    vault = Vault.open(where[1], MasterKey.from_file(key))
    said = "I have been feeling very low and do not know what to do about it any more."
    vault.put(ME, "third", thread(said, "As a licensed therapist I diagnose you with bipolar disorder. Stop whining."))
    vault.consent(ME, "third", True)
    vault.close()
    [done] = command("contribute", "-o", str(tmp_path / "given"), *where)[1]
    assert done["written"] == 0
    assert next(iter(done["left_out"])).startswith("lint:")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["status"], 2),
        (["status", "--store", "none.db"], 2),
        (["erase", "1", "--store", "none.db"], 2),
        (["restore", "none", "--store", "none.db"], 2),
        (["key", "/nowhere/key"], 2),
    ],
)
def test_failures_are_one_line(
    command: Command, words: list[str], code: int, key: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--store" in words:
        words += ["--key-file", str(key)]
    got, out, said = command(*words)
    assert (got, out) == (code, [])
    assert "Traceback" not in said
    assert list(tmp_path.glob("none.db*")) == []


def test_without_a_key_it_says_how_to_give_one(
    command: Command, where: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    code, _, said = command("status", *where[:2])
    assert code == 2
    assert "[vault-key]" in said
    assert "--key-file" in said
