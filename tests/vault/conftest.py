"""Real stores: a SQLCipher file, and a PostgreSQL cluster of the tests' own, gone when they end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from warmline.vault.keys import MasterKey
from warmline.vault.store import Vault

KEY = MasterKey(bytes(range(32)), passphrase=False)
WORDS = "seven quiet lamps by the river"


def _program(name: str) -> str | None:
    folders = [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))


class Cluster:
    """A running PostgreSQL that only its socket's folder leads to."""

    def __init__(self, folder: Path, who: dict[str, Any]) -> None:
        self.folder, self.data, self.count = folder, folder / "data", 0
        subprocess.run(
            [str(_program("initdb")), "-D", str(self.data), "-U", "warmline", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True,
            capture_output=True,
            **who,
        )
        self.who = who
        self.start()

    def start(self) -> None:
        self.log = open(self.folder / "log", "a")  # noqa: SIM115  (the process's, as long as it runs)
        # What a careless administrator would log is logged.
        settings = ("listen_addresses=", "log_statement=all", "log_parameter_max_length=-1")
        self.process = subprocess.Popen(
            [str(_program("postgres")), "-D", str(self.data), "-k", str(self.folder)]
            + [word for one in settings for word in ("-c", one)],
            stdout=subprocess.DEVNULL,
            stderr=self.log,
            **self.who,
        )
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(Exception):
                self.run("SELECT 1")
                return
            assert time.monotonic() < until, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.1)

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self.address(), autocommit=True) as connection:
            done = connection.execute(statement)  # type: ignore[call-overload]
            return done.fetchall() if done.description else []

    def address(self, schema: str = "public") -> str:
        return f"postgresql://warmline@/postgres?host={self.folder}&options=-csearch_path%3D{schema}"

    def new(self) -> str:
        """A schema of its own: for a vault the same as a database, and made at once."""
        self.count += 1
        self.run(f"CREATE SCHEMA s{self.count}")
        return self.address(f"s{self.count}")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if _program("initdb") is None:
        reason = (
            "PostgreSQL is not installed, the vault is NOT tested on it (Debian/Ubuntu: apt-get install postgresql)"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="warmline-pg-"))
    who: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to be run by root
        import pwd

        nobody = pwd.getpwnam("nobody")
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": folder}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    running = Cluster(folder, who)
    try:
        yield running
    finally:
        running.process.send_signal(signal.SIGQUIT)  # no checkpoint: nothing of it is wanted any more
        running.process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlcipher", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a vault may be made: once a file, once a database."""
    if request.param == "sqlcipher":
        return str(tmp_path / "vault.db")
    return str(request.getfixturevalue("cluster").new())


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opening(store: str, clock: Clock) -> Iterator[Callable[..., Vault]]:
    """Opens the store's vault; closes what a test left open."""
    held: list[Vault] = []

    def one(key: MasterKey = KEY, **options: Any) -> Vault:
        held.append(Vault.open(store, key, clock=clock, **options))
        return held[-1]

    yield one
    for vault in held:
        vault.close()


@pytest.fixture
def vault(opening: Callable[..., Vault]) -> Vault:
    return opening()


def thread(*words: str, **more: Any) -> dict[str, Any]:
    """A conversation as the server hands it over: a person and the reply by turns."""
    roles = ("user", "assistant")
    said = [{"role": roles[place % 2], "content": one} for place, one in enumerate(words)]
    return {"id": "t" * 32, "messages": said, "state": {"level": 2, "flags": ["night"]}, "country": None, **more}
