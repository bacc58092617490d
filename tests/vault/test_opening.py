"""Keys and doors: what opens a vault, and one clear line for everything that does not."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from tests.vault.conftest import KEY, WORDS, Cluster, thread
from warmline.errors import VaultError
from warmline.vault import keys
from warmline.vault.database import connect, header_of
from warmline.vault.keys import Keyring, MasterKey
from warmline.vault.store import Vault

ME = "m" * 43
OTHER = MasterKey(bytes(32), passphrase=False)
PHRASE = MasterKey.from_passphrase(WORDS)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A closed vault with one conversation in it."""
    path = tmp_path / "vault.db"
    vault = Vault.open(str(path), KEY)
    vault.put(ME, "a", thread("Mine.", "Yours."))
    vault.close()
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".lock"}


def told(error: VaultError) -> str:
    """What the person at the terminal reads: one line and a hint."""
    first, *rest = str(error).split("\n")
    assert not rest or (len(rest) == 1 and rest[0].startswith("hint: "))
    return first


def plain_sqlite(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE t (x)")


def cut(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(5000)


def scribble(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(1000)
        file.write(b"\0" * 2000)


FAULTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "plain": (plain_sqlite, "vault-plain", "unencrypted"),
    "plain without keys": (lambda p: (header_of(p).unlink(), plain_sqlite(p)), "vault-plain", "unencrypted"),
    "no keys": (lambda p: header_of(p).unlink(), "vault-damaged", "keys are missing"),
    "no database": (lambda p: p.unlink(), "vault-damaged", "gone or empty"),
    "empty database": (lambda p: os.truncate(p, 0), "vault-damaged", "gone or empty"),
    "keys are no JSON": (lambda p: header_of(p).write_text("{"), "vault-damaged", "locked keys"),
    "keys are a list": (lambda p: header_of(p).write_text("[1]"), "vault-damaged", "locked keys"),
    "keys without lock": (lambda p: header_of(p).write_text('{"made": true}'), "vault-damaged", "locked keys"),
    "keys are bytes": (lambda p: header_of(p).write_bytes(b"\xff\xfe"), "vault-damaged", "locked keys"),
    "first page": (scribble, "vault-damaged", "damaged"),
    "cut": (cut, "vault-damaged", "damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_in_one_line_and_left_as_it_is(
    kept: Path, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    break_it, code, words = FAULTS[fault]
    break_it(kept)
    before = contents(kept.parent)
    with pytest.raises(VaultError, match=words) as caught:
        Vault.open(str(kept), KEY)
    assert caught.value.code == code
    assert str(kept.parent) in told(caught.value)
    after = contents(kept.parent)
    assert {name: after[name] for name in before} == before
    assert capfd.readouterr() == ("", "")  # SQLCipher likes to talk


def test_a_damaged_page_further_in_is_found_and_the_rest_still_read(tmp_path: Path) -> None:
    vault = Vault.open(str(tmp_path / "v.db"), KEY)
    for number in range(40):
        vault.put(ME, f"c{number}", thread("word " * 400, "more " * 400))
    vault.close()
    size = (tmp_path / "v.db").stat().st_size
    with open(tmp_path / "v.db", "r+b") as file:
        file.seek(size - 4096 * 3 + 100)
        file.write(b"\0")
    vault = Vault.open(str(tmp_path / "v.db"), KEY)
    found = vault.verify()
    assert found.faults
    readable = 0
    for number in range(40):
        try:
            readable += vault.get(ME, f"c{number}") is not None
        except VaultError as error:
            if error.code != "vault-damaged":
                raise
    assert 0 < readable < 40
    vault.close()


@pytest.mark.parametrize(
    ("made", "given", "words"),
    [
        (KEY, OTHER, "the key does not open"),
        (KEY, PHRASE, "locked with a key file"),
        (PHRASE, KEY, "locked with a passphrase"),
        (PHRASE, MasterKey.from_passphrase(WORDS + "s"), "the passphrase does not open"),
    ],
)
def test_the_wrong_key_is_refused_and_changes_nothing(
    store: str, made: MasterKey, given: MasterKey, words: str
) -> None:
    vault = Vault.open(store, made)
    vault.put(ME, "a", thread("Mine."))
    vault.close()
    with pytest.raises(VaultError, match=words) as caught:
        Vault.open(store, given)
    assert caught.value.code == "vault-key"
    told(caught.value)
    vault = Vault.open(store, made)
    assert vault.get(ME, "a") == thread("Mine.")
    vault.close()


def test_a_passphrase_is_the_same_on_every_keyboard() -> None:
    composed, decomposed = "caf\u00e9 by the river, five", "cafe\u0301 by the river, five"
    header = Keyring.new().locked(MasterKey.from_passphrase(composed))
    assert header["lock"]["memory_kib"] == 65536
    assert Keyring.unlocked(header, MasterKey.from_passphrase(f" {decomposed}\n"), "here")


def test_a_short_passphrase_makes_no_vault(store: str) -> None:
    with pytest.raises(VaultError, match="at least 12"):
        Vault.open(store, MasterKey.from_passphrase("hunter2"))
    Vault.open(store, KEY).close()  # nothing of it was left in the way


@pytest.mark.parametrize(
    "change",
    [
        {"salt": base64.b64encode(bytes(16)).decode()},
        {"kind": "plain"},
        {"salt": "not base64!"},
        {"kind": "passphrase", "memory_kib": 2**40, "passes": 3, "lanes": 4},
    ],
)
def test_altered_locks_open_nothing(change: dict[str, Any]) -> None:
    header = Keyring.new().locked(KEY)
    header["lock"] |= change
    key = PHRASE if header["lock"]["kind"] == "passphrase" else KEY
    with pytest.raises(VaultError):
        Keyring.unlocked(header, key, "here")


@pytest.mark.parametrize(
    "where", ["postgresql://nobody@127.0.0.1:1/x", "mysql://a/b", "postgresql://[", "postgresql:///x?port=no"]
)
def test_a_database_that_cannot_be_had_is_one_line(where: str) -> None:
    with pytest.raises(VaultError) as caught:
        connect(where, KEY)
    assert caught.value.code == "vault-unreachable"
    told(caught.value)


def test_no_password_is_shown(cluster: Cluster) -> None:
    address = cluster.new().replace("warmline@", "warmline:hunter2-secret@")
    database = connect(address, KEY)
    assert "hunter2" not in database.where
    database.close()
    with pytest.raises(VaultError) as caught:
        connect(f"postgresql://warmline:hunter2-secret@localhost/none?host={cluster.folder}", KEY)
    assert "hunter2" not in str(caught.value)
    assert caught.value.code == "vault-unreachable"


def test_what_is_not_there_is_not_made_unless_asked(store: str) -> None:
    with pytest.raises(VaultError, match="no vault") as caught:
        Vault.open(store, KEY, create=False)
    assert caught.value.code == "vault-unreachable"
    Vault.open(store, KEY).close()
    Vault.open(store, KEY, create=False).close()


def test_alone_is_alone(store: str) -> None:
    first = Vault.open(store, KEY)
    second = Vault.open(store, KEY)  # a second server, or a command beside it
    with pytest.raises(VaultError, match="another program") as caught:
        Vault.open(store, KEY, alone=True)
    assert caught.value.code == "vault-busy"
    first.close()
    second.close()
    alone = Vault.open(store, KEY, alone=True)
    with pytest.raises(VaultError, match="another program"):
        Vault.open(store, KEY)
    alone.close()


def test_files_are_for_their_owner_alone(kept: Path) -> None:
    old = os.umask(0)
    try:
        vault = Vault.open(str(kept.with_name("new.db")), KEY)
        vault.put(ME, "a", thread("Mine."))
        modes = {
            file.name: file.stat().st_mode & 0o077 for file in kept.parent.glob("new.db*") if file.suffix != ".lock"
        }
        vault.close()
    finally:
        os.umask(old)
    assert len(modes) == 4  # data, log, its index, keys
    assert set(modes.values()) == {0}


def test_key_files(tmp_path: Path) -> None:
    file = tmp_path / "key"
    MasterKey.create_file(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert MasterKey.find(file)
    with pytest.raises(VaultError, match="never overwritten"):
        MasterKey.create_file(file)
    file.chmod(0o640)
    with pytest.raises(VaultError, match="chmod 600"):
        MasterKey.from_file(file)
    file.chmod(0o600)
    for content in ("", "short", base64.b64encode(bytes(31)).decode(), "é" * 44):
        file.write_text(content)
        with pytest.raises(VaultError, match="32 bytes") as caught:
            MasterKey.from_file(file)
        assert caught.value.code == "vault-key"
    with pytest.raises(VaultError, match="no such file"):
        MasterKey.from_file(tmp_path / "none")


def test_where_a_key_is_found_first(tmp_path: Path) -> None:
    header = {number: Keyring.new().locked(MasterKey(bytes([number]) * 32, passphrase=False)) for number in (1, 2, 3)}
    text = {number: base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3)}
    (tmp_path / keys.CREDENTIAL).write_text(text[2])
    file = tmp_path / "file"
    file.write_text(text[1])
    file.chmod(0o600)
    everything = {
        "CREDENTIALS_DIRECTORY": str(tmp_path),
        keys.KEY_VARIABLE: text[3],
        keys.PASSPHRASE_VARIABLE: WORDS,
    }

    def opens(number: int, key: MasterKey | None) -> bool:
        return key is not None and bool(Keyring.unlocked(header[number], key, ""))

    assert opens(1, MasterKey.find(file, everything))
    assert opens(2, MasterKey.find(None, everything))
    del everything["CREDENTIALS_DIRECTORY"]
    assert opens(3, MasterKey.find(None, everything))
    del everything[keys.KEY_VARIABLE]
    found = MasterKey.find(None, everything)
    assert found is not None
    assert found.passphrase
    assert MasterKey.find(None, {}) is None


# ---------------------------------------------------------------------------- rotation


def state_of(vault: Vault) -> tuple[list[bytes], list[bytes]]:
    with vault.database.reading() as connection:
        data = connection.scalars(sql.text("SELECT data_key FROM vault_conversations ORDER BY number")).all()
        content = connection.scalars(sql.text("SELECT content FROM vault_messages ORDER BY conversation, place")).all()
    return [bytes(one) for one in data], [bytes(one) for one in content]


@pytest.mark.parametrize("new", [OTHER, PHRASE, KEY])
def test_rotation_wraps_keys_anew_and_writes_no_message(store: str, new: MasterKey) -> None:
    vault = Vault.open(store, KEY, alone=True)
    for id in "abc":
        vault.put(ME, id, thread(id, id), id)
    data, content = state_of(vault)
    ring = vault.database.keyring
    assert vault.rotate(new) == 3
    after_data, after_content = state_of(vault)
    assert after_content == content
    assert not set(after_data) & set(data)
    assert vault.database.keyring.visitors == ring.visitors
    assert set(vault.database.keyring.ring) == {2}
    assert vault.put(ME, "d", thread("d"))
    vault.close()
    if new is not KEY:
        with pytest.raises(VaultError) as caught:
            Vault.open(store, KEY)
        assert caught.value.code == "vault-key"
    vault = Vault.open(store, new)
    assert [vault.get(ME, id) for id in "abcd"] == [thread("a", "a"), thread("b", "b"), thread("c", "c"), thread("d")]
    assert vault.verify().faults == []
    vault.close()


@pytest.mark.parametrize("stop_at", [0, 1, 2, 3])
def test_an_interrupted_rotation_loses_nothing_and_goes_on(
    store: str, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each of its four steps, the vault opens with one of the two keys, and is whole then."""
    from warmline.vault.database import Database

    vault = Vault.open(store, KEY, alone=True)
    vault.put(ME, "a", thread("a", "b"))
    steps = 0

    def stopping(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **more: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > stop_at:
                raise KeyboardInterrupt
            return real(*given, **more)

        return step

    with monkeypatch.context() as patched:
        patched.setattr(Database, "writing", stopping(Database.writing))
        real_lock = Database.lock_again
        if "://" not in store:  # on PostgreSQL this is itself a `writing`
            patched.setattr(Database, "lock_again", stopping(real_lock))
        with pytest.raises(KeyboardInterrupt):
            vault.rotate(OTHER)
    vault.close()
    opening = KEY if stop_at < 2 else OTHER
    vault = Vault.open(store, opening)
    assert vault.get(ME, "a") == thread("a", "b")
    assert len(vault.database.keyring.ring) == 1
    assert vault.put(ME, "b", thread("new"))
    vault.close()
    vault = Vault.open(store, opening, alone=True)
    assert vault.rotate(PHRASE) == 2
    assert vault.verify().faults == []
    vault.close()


def test_a_process_with_old_keys_cannot_write_what_nobody_could_read(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warmline.vault import database

    old = Vault.open(store, KEY)
    old.put(ME, "a", thread("a"))
    # A replica whose lock was lost with its connection looks like nobody to `alone`.
    monkeypatch.setattr(database, "_flock", lambda *a, **k: None)
    if "://" in store:
        with old.database.engine.connect() as other:
            [other_locks] = other.execute(
                sql.text("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted")
            ).all()
            other.execute(sql.text(f"SELECT pg_terminate_backend({other_locks[0]})"))
    new = Vault.open(store, KEY, alone=True)
    new.rotate(OTHER)
    for id in ("a", "b"):
        with pytest.raises(VaultError, match="rotated") as caught:
            old.put(ME, id, thread("a", "lost?"))
        assert caught.value.code == "vault-key"
    assert [one["id"] for one in new.list(ME)] == ["a"]
    assert new.get(ME, "a") == thread("a")
    old.close()
    new.close()


# ---------------------------------------------------------------------------- migration


@pytest.fixture
def half_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A second version of the tables, beside the first, whose step a test writes."""
    import warmline.vault.migrations as real
    from warmline.vault import database

    folder = tmp_path / "migrations"
    shutil.copytree(Path(str(real.__file__)).parent, folder)
    monkeypatch.setattr(database, "SCRIPTS", str(folder))
    return folder / "versions" / "second.py"


STEP = """
from alembic import op
import sqlalchemy as sql
revision, down_revision = "0002", "0001"
def upgrade():
    op.add_column("vault_conversations", sql.Column("colour", sql.Text))
    {then}
"""


@pytest.mark.parametrize(
    "then", ['op.execute("SELECT nothing FROM nowhere")', 'op.drop_column("vault_messages", "none")']
)
def test_a_migration_that_fails_leaves_everything_as_it_was(store: str, half_way: Path, then: str) -> None:
    vault = Vault.open(store, KEY)
    vault.put(ME, "a", thread("a", "b"))
    vault.close()
    half_way.write_text(STEP.format(then=then))
    with pytest.raises(VaultError, match="half-way") as caught:
        Vault.open(store, KEY)
    assert caught.value.code == "vault-migration"
    told(caught.value)
    half_way.unlink()
    vault = Vault.open(store, KEY)
    assert vault.get(ME, "a") == thread("a", "b")
    vault.close()


def test_a_migration_brings_an_older_vault_up(store: str, half_way: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from warmline.vault import schema

    vault = Vault.open(store, KEY)
    vault.put(ME, "a", thread("a", "b"), "Title")
    vault.close()
    half_way.write_text(STEP.format(then=""))
    monkeypatch.setattr(schema, "metadata", sql.MetaData())  # its tables are not those of 0002
    vault = Vault.open(store, KEY)
    assert vault.get(ME, "a") == thread("a", "b")
    with vault.database.reading() as connection:
        assert "colour" in {one["name"] for one in sql.inspect(connection).get_columns("vault_conversations")}
    vault.close()
    monkeypatch.undo()
    with pytest.raises(VaultError, match="later version") as caught:  # the older program at the newer vault
        Vault.open(store, KEY)
    assert caught.value.code == "vault-migration"


@pytest.mark.parametrize("broken", ["DROP TABLE vault_feedback", "ALTER TABLE vault_messages ADD COLUMN more INTEGER"])
def test_tables_left_half_way_are_refused(store: str, broken: str) -> None:
    vault = Vault.open(store, KEY)
    vault.put(ME, "a", thread("a"))
    with vault.database.writing() as connection:
        connection.execute(sql.text(broken))
    vault.close()
    with pytest.raises(VaultError, match="half-way") as caught:
        Vault.open(store, KEY)
    assert caught.value.code == "vault-migration"


def test_the_migrations_make_the_tables_that_the_code_uses(store: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from warmline.vault import schema
    from warmline.vault.database import VERSION_TABLE

    database = connect(store, KEY)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, schema.metadata) == []
    database.close()


def test_a_header_without_its_database_password_says_nothing_readable(kept: Path) -> None:
    header = json.loads(header_of(kept).read_text())
    assert set(header) == {"warmline_vault", "lock", "keys", "made"}
    assert len(base64.b64decode(header["keys"])) > 100
