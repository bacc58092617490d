"""Backup and restore: the same vault elsewhere, also between the two stores; damaged backups change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vault.conftest import KEY, Cluster, thread
from warmline.errors import VaultError
from warmline.vault import backup as backups
from warmline.vault.keys import MasterKey
from warmline.vault.store import Vault

ME, YOU = "m" * 43, "y" * 43
OTHER = MasterKey(bytes(32), passphrase=False)


def filled(store: str, many: int = 3) -> Vault:
    vault = Vault.open(store, KEY)
    for number in range(many):
        vault.put(ME, f"c{number}", thread("one", "two", f"{number}"), f"title {number}")
    vault.put(YOU, "yours", thread("y"))
    vault.put(ME, "gone", thread("x"))
    vault.erase(ME, "gone")
    vault.feedback(ME, "c1", 1, "harmful")
    vault.consent(ME, "c2", True)
    return vault


def seen(vault: Vault) -> object:
    """Everything a visitor or operator can learn from a vault."""
    records = [vault.record(who, one["id"]) for who in (ME, YOU) for one in vault.list(who)]
    return records, vault.review(), list(vault.conversations()), list(vault.export()), vault.verify()


@pytest.mark.parametrize("to", ["sqlcipher", "postgresql"])
def test_a_restored_vault_is_the_same(store: str, to: str, tmp_path: Path, cluster: Cluster) -> None:
    vault = filled(store)
    counts = backups.make(vault, tmp_path / "b")
    vault.put(ME, "later", thread("not in it"))
    vault.erase(ME, "later")
    wanted = seen(vault)
    vault.close()
    target = cluster.new() if to == "postgresql" else str(tmp_path / "other" / "vault.db")
    assert backups.restore(tmp_path / "b", target, KEY) == counts
    assert counts["vault_messages"] == 10
    again = Vault.open(target, KEY)
    assert seen(again) == wanted
    assert again.put(ME, "gone", thread("x")) is False  # what was erased before stays so
    assert again.put(ME, "new", thread("after"))  # and there is room for more
    assert again.get(ME, "new") == thread("after")
    again.close()


def test_a_backup_of_many_rows_comes_in_batches(tmp_path: Path) -> None:
    vault = filled(str(tmp_path / "v.db"), backups.BATCH + 5)
    backups.make(vault, tmp_path / "b")
    assert len((tmp_path / "b").read_text().splitlines()) == 1 + 2 + 4 + 1 + 1 + 1
    backups.restore(tmp_path / "b", str(tmp_path / "w.db"), KEY)
    again = Vault.open(str(tmp_path / "w.db"), KEY)
    assert len(again.list(ME)) == backups.BATCH + 5
    assert again.verify().faults == []
    again.close()
    vault.close()


def swap_lines(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


FAULTS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "last line gone": lambda lines: lines[:-1],
    "a line gone": lambda lines: [*lines[:2], *lines[3:]],
    "lines exchanged": swap_lines,
    "a letter changed": lambda lines: [
        *lines[:2],
        lines[2].replace(lines[2][30:31], b"A" if lines[2][30:31] != b"A" else b"B", 1),
        *lines[3:],
    ],
    "cut in a line": lambda lines: [*lines[:-1], lines[-1][:20]],
    "not Base64": lambda lines: [lines[0], b"\xff\xfe", *lines[1:]],
    "no header": lambda lines: lines[1:],
    "empty": lambda lines: [],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_backup_makes_no_vault(fault: str, tmp_path: Path) -> None:
    vault = filled(str(tmp_path / "v.db"))
    backups.make(vault, tmp_path / "b")
    vault.close()
    (tmp_path / "b").write_bytes(b"\n".join(FAULTS[fault]((tmp_path / "b").read_bytes().splitlines())))
    target = tmp_path / "new.db"
    with pytest.raises(VaultError) as caught:
        backups.restore(tmp_path / "b", str(target), KEY)
    assert caught.value.code == "vault-damaged"
    assert list(tmp_path.glob("new.db*")) == []


def test_a_line_of_another_backup_does_not_fit(tmp_path: Path) -> None:
    vault = filled(str(tmp_path / "v.db"))
    for name in "ab":
        backups.make(vault, tmp_path / name)
    vault.close()
    a, b = ((tmp_path / name).read_bytes().splitlines() for name in "ab")
    (tmp_path / "mixed").write_bytes(b"\n".join([a[0], b[1], *a[2:]]))
    with pytest.raises(VaultError, match="line 2"):
        backups.restore(tmp_path / "mixed", str(tmp_path / "new.db"), KEY)


def test_a_backup_opens_with_the_key_of_its_day(store: str, tmp_path: Path) -> None:
    vault = filled(store)
    backups.make(vault, tmp_path / "before")
    vault.close()
    vault = Vault.open(store, KEY, alone=True)
    vault.rotate(OTHER)
    backups.make(vault, tmp_path / "after")
    vault.close()
    for name, right, wrong in (("before", KEY, OTHER), ("after", OTHER, KEY)):
        with pytest.raises(VaultError) as caught:
            backups.restore(tmp_path / name, str(tmp_path / name) + ".db", wrong)
        assert caught.value.code == "vault-key"
        backups.restore(tmp_path / name, str(tmp_path / name) + ".db", right)


def test_no_vault_is_overwritten(store: str, tmp_path: Path) -> None:
    vault = filled(str(tmp_path / "other.db"))
    backups.make(vault, tmp_path / "b")
    vault.close()
    there = Vault.open(store, KEY)
    there.put(ME, "mine", thread("kept"))
    there.close()
    for where in (store, str(tmp_path / "other.db")):  # another vault, and the very one
        with pytest.raises(VaultError, match="already") as caught:
            backups.restore(tmp_path / "b", where, KEY)
        assert caught.value.code == "vault-busy"
    there = Vault.open(store, KEY)
    assert there.get(ME, "mine") == thread("kept")
    there.close()


def test_an_interrupted_restore_is_done_again(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = filled(str(tmp_path / "other.db"))
    counts = backups.make(vault, tmp_path / "b")
    vault.close()
    real, calls = backups._unpacked, 0

    def stopped(value: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 30:
            raise KeyboardInterrupt
        return real(value)

    with monkeypatch.context() as patched:
        patched.setattr(backups, "_unpacked", stopped)
        with pytest.raises(KeyboardInterrupt):
            backups.restore(tmp_path / "b", store, KEY)
    assert backups.restore(tmp_path / "b", store, KEY) == counts
    again = Vault.open(store, KEY)
    assert len(again.list(ME)) == 3
    again.close()


def test_an_older_backup_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = filled(str(tmp_path / "v.db"))
    backups.make(vault, tmp_path / "b")
    old = (tmp_path / "b").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(backups, "_packed", lambda value: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            backups.make(vault, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == old
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []
    backups.make(vault, tmp_path / "b")
    assert (tmp_path / "b").stat().st_mode & 0o077 == 0
    vault.close()
