"""What is on the disk: nothing readable, nothing that was erased, everything that was acknowledged."""

from __future__ import annotations

import base64
import logging
import os
import random
import secrets
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.vault.conftest import KEY, Cluster, thread
from warmline.errors import VaultError
from warmline.vault import backup as backups
from warmline.vault import erasure
from warmline.vault.keys import MasterKey
from warmline.vault.store import DAY, Vault

ME = secrets.token_urlsafe(32)
OTHER = MasterKey(bytes(32), passphrase=False)


# ---------------------------------------------------------------------------- canaries


def shapes(word: str) -> Iterable[bytes]:
    """A word as it could stand in a file: UTF-8, UTF-16, hexadecimal, and inside Base64 at each of its three places."""
    plain = word.encode()
    yield plain
    yield word.encode("utf-16-le")
    yield plain.hex().encode()
    for shift in range(3):
        yield base64.b64encode(b"x" * shift + plain)[4 if shift else 0 :].rstrip(b"=")[:-2]


def readable(folders: Iterable[Path], words: Iterable[str]) -> set[str]:
    """Which of the words stand in any file below the folders."""
    found = set()
    for folder in folders:
        for file in folder.rglob("*"):
            data = file.read_bytes() if file.is_file() else b""
            # All words begin alike: a file without that beginning in any shape needs no closer look.
            if any(shape in data for shape in shapes(MARK)):
                found |= {word for word in words if any(shape in data for shape in shapes(word))}
    return found


MARK = "canary-7f3a-"


def canary() -> str:
    return MARK + secrets.token_hex(12)


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    words = [canary() for _ in range(7)]
    for number, shape in enumerate(shapes(words[0])):
        (tmp_path / "x").write_bytes(b"\0" * number + shape)
        assert readable([tmp_path], words) == {words[0]}
    for shift in range(3):
        (tmp_path / "x").write_bytes(base64.b64encode(b"q" * shift + f"{words[3]} and more".encode()))
        assert readable([tmp_path], words) == {words[3]}, shift
    (tmp_path / "x").write_bytes(b"nothing of it")
    assert readable([tmp_path], words) == set()


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_canary_can_be_read_anywhere(
    count: int,
    store: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In messages, titles, states, visitors and the passphrase: not in data, log, temporary or backup files."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    for name in ("TMPDIR", "SQLITE_TMPDIR"):
        monkeypatch.setenv(name, str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    caplog.set_level(logging.DEBUG)
    for name in ("sqlalchemy.engine", "sqlalchemy.pool", "alembic", "psycopg"):
        caplog.set_level(logging.DEBUG, name)
    words = [canary() for _ in range(count)]
    passphrase, visitors = canary(), [canary() for _ in range(3)]
    vault = Vault.open(store, MasterKey.from_passphrase(passphrase))
    for number in range(0, count, 4):
        user, reply, title, state = (words + words)[number : number + 4]
        who = visitors[number % 3]
        vault.put(who, f"c{number}", thread(user, reply, instructions=state), title)
        vault.put(who, f"c{number}", thread(user, reply, f"{user} again", instructions=state))
        vault.feedback(who, f"c{number}", 1, "harmful")
        if number % 5 == 0:
            vault.rename(who, f"c{number}", f"{title} {state}")
        if number % 7 == 0:
            vault.erase(who, f"c{number}")
    vault.list(visitors[0])
    vault.review()
    with pytest.raises(VaultError):
        Vault.open(store, MasterKey.from_passphrase(passphrase + "?"))
    backups.make(vault, tmp_path / "backup")
    secret = [*words, passphrase, *visitors]
    folders = [tmp_path]
    if "://" in store:
        cluster: Cluster = request.getfixturevalue("cluster")
        cluster.run("CHECKPOINT")
        folders.append(cluster.folder)
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert readable(folders, secret) == set()  # while it is open: the log and its index too
    vault.rotate(MasterKey.from_passphrase(canary()))
    vault.close()
    assert readable(folders, secret) == set()
    out, err = capfd.readouterr()
    (tmp_path / "said").write_text(logged + caplog.text + out + err)
    assert readable([tmp_path], secret) == set()
    if "://" not in store:
        assert "sqlalchemy.engine.Engine" in {record.name for record in caplog.records}  # it did log


# ---------------------------------------------------------------------------- erasure


def fill(vault: Vault, count: int) -> None:
    for number in range(count):
        vault.put(ME, f"c{number}", thread(f"{number} " * 300, "yes " * 40, "short"), f"title {number}")


def test_what_was_erased_is_nowhere_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "v.db"
    vault = Vault.open(str(path), KEY)
    fill(vault, 30)
    vault.database.truncate_log()
    wanted = vault.numbers("c7")
    with vault.database.reading() as connection:
        import sqlalchemy as sql

        from warmline.vault.schema import conversations

        rows = connection.execute(sql.select(conversations).where(conversations.c.number.in_(wanted))).all()
        traces = erasure.traces(connection, rows)
    assert len(traces) == 4
    file_key = vault.database.keyring.file
    assert erasure.found(path, file_key, traces) == 4  # the search can find them
    done = vault.erase_numbers(wanted)
    assert (done.conversations, done.log_cut, done.left) == (1, True, 0)
    assert erasure.found(path, file_key, traces) == 0
    assert (tmp_path / "v.db-wal").stat().st_size == 0
    assert len(vault.list(ME)) == 29
    assert vault.verify().faults == []
    vault.close()


def test_without_overwriting_the_search_would_say_so(tmp_path: Path) -> None:
    """The same erasure with SQLite's `secure_delete` off leaves traces: what the check is there to notice."""
    vault = Vault.open(str(tmp_path / "v.db"), KEY)
    fill(vault, 30)
    vault.database.truncate_log()
    with vault.database.outside() as connection:
        connection.exec_driver_sql("PRAGMA secure_delete = OFF")
    done = vault.erase_numbers(vault.numbers("c7"))
    assert done.left is not None
    assert done.left > 0
    vault.close()


def test_a_reader_elsewhere_keeps_the_log_and_that_is_told(tmp_path: Path) -> None:
    vault, other = Vault.open(str(tmp_path / "v.db"), KEY), Vault.open(str(tmp_path / "v.db"), KEY)
    with vault.database.outside() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 100")
    fill(vault, 3)
    reading = other.export()
    next(reading)
    done = vault.erase_numbers(vault.numbers("c1"))
    assert (done.conversations, done.log_cut) == (1, False)
    reading.close()
    assert vault.database.truncate_log()
    other.close()
    vault.close()


def test_past_its_time_is_gone_from_the_disk_too(tmp_path: Path) -> None:
    path, now = tmp_path / "v.db", time.time()
    vault = Vault.open(str(path), KEY, clock=lambda: now)
    fill(vault, 5)
    vault.database.truncate_log()
    pages = list(erasure.pages(path, vault.database.keyring.file))
    nonces = [one["stamp"] for id in range(5) if (one := vault.record(ME, f"c{id}"))]
    assert all(any(bytes.fromhex(nonce) in page for page in pages) for nonce in nonces)
    vault._clock = lambda: now + 31 * DAY
    assert vault.purge() == 5
    pages = list(erasure.pages(path, vault.database.keyring.file))
    assert not any(bytes.fromhex(nonce) in page for nonce in nonces for page in pages)
    vault.close()


def test_postgresql_tables_hold_nothing_of_what_was_erased(cluster: Cluster) -> None:
    vault = Vault.open(cluster.new(), KEY)
    fill(vault, 10)
    with vault.database.reading() as connection:
        import sqlalchemy as sql

        from warmline.vault.schema import conversations

        rows = connection.execute(sql.select(conversations).where(conversations.c.id == "c7")).all()
        traces = erasure.traces(connection, rows)

    def left(folder: str) -> int:
        cluster.run("CHECKPOINT")
        files = [file.read_bytes() for file in (cluster.data / folder).rglob("*") if file.is_file()]
        return sum(any(trace in data for data in files) for trace in traces)

    assert left("base") == 4
    done = vault.erase_numbers(vault.numbers("c7"))
    assert (done.conversations, done.left) == (1, None)
    assert left("base") == 0
    assert left("pg_wal") > 0  # what docs/vault.md warns of; a rotation makes it worthless
    assert len(vault.list(ME)) == 9
    vault.close()


# ---------------------------------------------------------------------------- kill -9


def killed(work: Callable[[Callable[[str], None]], None], after: float, words: int = 0) -> list[str]:
    """Run `work` in a process of its own; kill -9 it `after` seconds from its first word; return all it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            work(lambda word: os.write(writing, f"{word}\n".encode()) and None)
            code = 0
        except BaseException as error:
            os.write(writing, f"failed {type(error).__name__} {error}\n".encode())
        finally:
            os._exit(code)
    os.close(writing)
    said, until, ended = b"", None, False
    while not ended and (until is None or time.monotonic() < until):
        ready, _, _ = select.select([reading], [], [], 30 if until is None else max(0, until - time.monotonic()))
        if ready:
            chunk = os.read(reading, 65536)
            ended = not chunk
            said += chunk
            if until is None and said.count(b"\n") > words:
                until = time.monotonic() + after
    os.kill(child, signal.SIGKILL)
    while chunk := os.read(reading, 65536):
        said += chunk
    os.close(reading)
    os.waitpid(child, 0)
    lines = said.decode().split("\n")[:-1]
    assert not any(line.startswith("failed") for line in lines), lines[-1]
    return lines


FORK = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs a fork without threads")


@FORK
@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_what_was_acknowledged_survives_kill_9(kills: int, store: str) -> None:
    """Writers are killed in the midst of puts; every put that had returned is there whole afterwards."""
    chance, acknowledged = random.Random(kills), {}
    Vault.open(store, KEY).close()
    for round in range(kills):

        def work(say: Callable[[str], None], round: int = round) -> None:
            vault = Vault.open(store, KEY)
            say("open")
            while True:
                for id in range(3):
                    for upto in range(1, 6):
                        vault.put(ME, f"r{round}-{id}", thread(*[f"{round} {id} {n} " * 20 for n in range(upto)]))
                        say(f"r{round}-{id} {upto}")
                        vault.put(ME, "all", thread(*["x" * 50] * (upto + 1), turns=round * 100 + upto))

        for line in killed(work, chance.random() * 0.08, words=1):
            if line != "open":
                id, upto = line.split()
                acknowledged[id] = max(int(upto), acknowledged.get(id, 0)) if upto != "1" else int(upto)
    vault = Vault.open(store, KEY)
    there = {one["id"]: one["messages"] for one in vault.list(ME)}
    assert len(acknowledged) >= kills // 2
    for id, upto in acknowledged.items():
        round, number = id[1:].split("-")
        got = vault.get(ME, id)
        assert got is not None, f"{id} is lost"
        # The kill may have fallen after a later put was carried out and before it was told.
        assert there[id] in (upto, upto % 5 + 1), (id, upto, there[id])
        assert got == thread(*[f"{round} {number} {n} " * 20 for n in range(there[id])])
    assert vault.verify().faults == []
    vault.close()


@FORK
@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["making", "rotating", "erasing"])
def test_kill_9_while_a_vault_is_changed_leaves_it_whole(
    kills: int, what: str, store: str, request: pytest.FixtureRequest
) -> None:
    chance = random.Random(what)
    for round in range(kills):
        here = request.getfixturevalue("cluster").new() if "://" in store else f"{store}-{round}"
        if what != "making":
            vault = Vault.open(here, KEY)
            vault.erase_visitor(ME)
            for number in range(8):
                vault.put(ME, f"{round}-{number}", thread("one", "two"))
            vault.close()

        def work(say: Callable[[str], None], here: str = here) -> None:
            if what == "making":
                say("begin")
                Vault.open(here, KEY)
                return
            vault = Vault.open(here, KEY, alone=True)
            say("begin")
            if what == "rotating":
                vault.rotate(OTHER)
            else:
                vault.erase_visitor(ME)

        killed(work, chance.random() * (0.3 if what == "making" else 0.06))
        try:
            vault = Vault.open(here, KEY, alone=True)
        except VaultError as error:
            if (what, error.code) != ("rotating", "vault-key"):
                raise
            vault = Vault.open(here, OTHER, alone=True)
            vault.rotate(KEY)
        with closing(vault):
            left = len(vault.list(ME))
            assert left in {"making": (0,), "rotating": (8,), "erasing": (0, 8)}[what]
            assert vault.verify().faults == []
            assert len(vault.database.keyring.ring) == 1
            assert vault.put(ME, "afterwards", thread("still works"))


@pytest.mark.slow
@FORK
def test_kill_9_of_postgresql_itself_loses_nothing_acknowledged(cluster: Cluster) -> None:
    import subprocess

    address, acknowledged = cluster.new(), 0
    for round in range(10):
        with pytest.MonkeyPatch.context():
            vault = Vault.open(address, KEY)
            stop = time.monotonic() + 0.3
            while time.monotonic() < stop:
                vault.put(ME, f"c{acknowledged}", thread("one", "two"))
                acknowledged += 1
        children = subprocess.run(
            ["pgrep", "-P", str(cluster.process.pid)], capture_output=True, text=True
        ).stdout.split()
        for process in (cluster.process.pid, *map(int, children)):
            os.kill(process, signal.SIGKILL)
        cluster.process.wait()
        with pytest.raises(VaultError) as caught:
            vault.get(ME, "c0")
        assert caught.value.code == "vault-unreachable"
        vault.close()
        (cluster.data / "postmaster.pid").unlink(missing_ok=True)
        cluster.start()
        vault = Vault.open(address, KEY)
        assert {one["id"] for one in vault.list(ME)} >= {f"c{n}" for n in range(acknowledged)}, round
        assert vault.verify().faults == []
        vault.close()


def test_what_is_acknowledged_is_asked_to_be_on_the_disk(store: str) -> None:
    vault = Vault.open(store, KEY)
    if vault.database.path:
        with vault.database.outside() as connection:
            told: dict[str, Any] = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("synchronous", "journal_mode", "secure_delete", "temp_store", "foreign_keys")
            }
        assert told == {"synchronous": 2, "journal_mode": "wal", "secure_delete": 1, "temp_store": 2, "foreign_keys": 1}
    else:
        with vault.database.reading() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
    vault.close()
