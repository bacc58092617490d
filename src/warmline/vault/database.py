"""Where a vault lies: a SQLCipher file with its locked keys beside it, or a PostgreSQL database. Opens and migrates it.

    vault.db        every page encrypted             vault.db.keys   the locked keys, not secret by themselves
    vault.db-wal    what was just written, likewise  vault.db.lock   empty; who works on the vault holds it

Knows tables, not what stands in them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from warmline.errors import VaultError
from warmline.runs import write_atomically, writing
from warmline.vault import schema
from warmline.vault.keys import Keyring, MasterKey, damaged

PLAIN_SQLITE = b"SQLite format 3\0"
_ADVISORY = 0x5741524D
"""Advisory locks of PostgreSQL: held shared by whoever uses the vault; the next number while tables are made."""
KILLED_SECONDS = 5.0
"""PostgreSQL notices a little later that whoever held its lock was killed."""
VERSION_TABLE = "vault_version"
SCRIPTS = "warmline.vault:migrations"

logging.getLogger("alembic").setLevel(logging.WARNING)


@dataclass
class Database:
    """An open vault's database. `where` may be shown: it holds no password."""

    engine: sql.Engine
    where: str
    keyring: Keyring
    lock_kind: str
    path: Path | None = None
    """The SQLCipher file; None for PostgreSQL."""
    held: contextlib.ExitStack = None  # type: ignore[assignment]

    def close(self) -> None:
        """Leave no log behind, and let others at the vault."""
        with contextlib.suppress(SQLAlchemyError, VaultError):
            self.truncate_log()
        self.held.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sql.Connection]:
        """One consistent view."""
        with told(self.where), self.engine.connect().execution_options(**self._view()) as connection:
            yield connection

    def _view(self) -> dict[str, Any]:
        return {"reading": True} if self.path else {"isolation_level": "REPEATABLE READ"}

    @contextlib.contextmanager
    def writing(self) -> Iterator[sql.Connection]:
        """All or nothing, and on the disk when the block has ended."""
        with told(self.where), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def outside(self) -> Iterator[sql.Connection]:
        """SQLCipher: for statements that may not stand in a transaction."""
        with told(self.where), self.engine.connect().execution_options(outside=True) as connection:
            yield connection

    def truncate_log(self) -> bool:
        """SQLCipher: carry the log into the file and cut it to nothing. False while another process reads."""
        if self.path is None:
            return True
        with self.outside() as connection:
            busy, _, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
        log = log_of(self.path)
        return not busy and (not log.exists() or log.stat().st_size == 0)

    def lock_again(self, keyring: Keyring, master: MasterKey) -> None:
        """Put `keyring`, locked with `master`, in the place of the present header; at once or not at all."""
        header = keyring.locked(master) | {"made": True}
        if self.path is not None:
            write_header(self.path, header)
        else:
            with self.writing() as connection:
                connection.execute(sql.update(schema.header).values(content=json.dumps(header)))
        self.keyring, self.lock_kind = keyring, header["lock"]["kind"]


def header_of(path: Path) -> Path:
    return path.with_name(path.name + ".keys")


def header_text(database: Database) -> str:
    """The locked keys as they are stored."""
    if database.path is not None:
        return header_of(database.path).read_text("utf-8")
    with database.reading() as connection:
        return str(connection.scalar(sql.select(schema.header.c.content)))


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def write_header(path: Path, header: dict[str, Any]) -> None:
    write_atomically(header_of(path), json.dumps(header, indent=1) + "\n")
    header_of(path).chmod(0o600)
    with contextlib.suppress(OSError):  # the rename itself, on the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def connect(
    store: str,
    master: MasterKey,
    *,
    alone: bool = False,
    create: bool = True,
    header: dict[str, Any] | None = None,
) -> Database:
    """Open the vault at a path or `postgresql://` address; make it if nothing is there and `create` is set.

    `alone`: nobody else may have it open. `header`: the locked keys for a new vault (a restored one); one that is there
    already must have the same.

    Raises:
        VaultError: one for each way in which this can fail; nothing is changed then.
    """
    if store.startswith(("postgresql:", "postgresql+", "postgres:")):
        return _postgresql(store, master, alone, create, header)
    if "://" in store:
        raise VaultError(
            "a store is a path or a postgresql:// address", code="vault-unreachable", hint="e.g. --store vault.db"
        )
    return _sqlcipher(Path(store), master, alone, create, header)


# ---------------------------------------------------------------------------- SQLCipher


def _sqlcipher(path: Path, master: MasterKey, alone: bool, create: bool, given: dict[str, Any] | None) -> Database:
    where, beside = str(path), header_of(path)
    with writing(path.parent), contextlib.ExitStack() as stack:
        if not (create or path.exists() or beside.exists()):
            raise nothing(where)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(open(path.with_name(path.name + ".lock"), "a"))
        size = path.stat().st_size if path.exists() else 0
        start = b""
        if size:
            with open(path, "rb") as data:
                start = data.read(len(PLAIN_SQLITE))
        if start == PLAIN_SQLITE:
            raise VaultError(
                "this file is an unencrypted database, not a vault",
                code="vault-plain",
                where=where,
                hint="nothing was changed; give another path with --store, a new vault is made there",
            )
        if size and not beside.exists():
            raise damaged(f"this is no vault, or its keys are missing ({beside.name})", where)
        header = _read_header(beside) if beside.exists() else {}
        if given is not None and (size or header) and header.get("keys") != given["keys"]:
            raise taken(where)
        new = not header.get("made")
        _flock(file, exclusive=new or alone, where=where)
        if not header:
            header = given or Keyring.new().locked(master)
        keyring = Keyring.unlocked(header, master, where)
        if not new and not size:
            raise damaged(f"the keys are there ({beside.name}), but the database is gone or empty", where)
        if new:
            write_header(path, header | {"made": False})
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        database = Database(_sqlcipher_engine(path, keyring.file), where, keyring, header["lock"]["kind"], path)
        stack.callback(database.engine.dispose)
        with told(where), database.engine.begin() as connection:
            migrate(connection, where)
            if new:
                known = sql.insert(schema.wrapping).prefix_with("OR IGNORE")
                connection.execute(known, [{"number": number} for number in keyring.ring])
        if new:
            write_header(path, header | {"made": True})
        if not alone:
            _flock(file, exclusive=False, where=where)
        database.held = stack.pop_all()
        return database


def _read_header(beside: Path) -> dict[str, Any]:
    try:
        header = json.loads(beside.read_text("utf-8"))
    except (ValueError, OSError):
        raise damaged("the locked keys of the vault are damaged", str(beside)) from None
    if not isinstance(header, dict):
        raise damaged("the locked keys of the vault are damaged", str(beside))
    return header


def _flock(file: IO[str], *, exclusive: bool, where: str) -> None:
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy(where) from None


def nothing(where: str) -> VaultError:
    return VaultError(
        "there is no vault", code="vault-unreachable", where=where, hint="name it with --store PATH or postgresql://..."
    )


def taken(where: str) -> VaultError:
    return VaultError(
        "there is another vault already", code="vault-busy", where=where, hint="restore to a new path or empty database"
    )


def busy(where: str) -> VaultError:
    return VaultError(
        "another program has this vault open",
        code="vault-busy",
        where=where,
        hint="stop the server (or whatever else uses it) and run the same command again",
    )


def _sqlcipher_engine(path: Path, key: bytes) -> sql.Engine:
    try:
        from sqlcipher3 import dbapi2  # type: ignore[import-untyped]
    except ImportError:
        raise VaultError(
            "the package `sqlcipher3` is not installed",
            code="dependency-missing",
            hint="pip install 'warmline[vault]'",
        ) from None

    def connection() -> Any:
        made = dbapi2.connect(str(path), timeout=20, isolation_level=None, check_same_thread=False)
        # The standard SQLite would ignore the key and write plain text.
        if made.execute("PRAGMA cipher_version").fetchone() is None:
            raise VaultError("this SQLite cannot encrypt", code="dependency-missing", hint="pip install sqlcipher3")
        for pragma in (
            f"key = \"x'{key.hex()}'\"",
            "cipher_log_level = NONE",  # it would write to stderr by itself
            "journal_mode = WAL",
            "synchronous = FULL",  # what is acknowledged is on the disk
            "secure_delete = ON",
            "temp_store = MEMORY",
            "foreign_keys = ON",
        ):
            made.execute(f"PRAGMA {pragma}")
        return made

    engine = sql.create_engine(
        "sqlite://", module=dbapi2, creator=connection, poolclass=sql.pool.QueuePool, pool_size=4, hide_parameters=True
    )

    @sql.event.listens_for(engine, "begin")
    def begin(connection: sql.Connection) -> None:
        # A writer asks for the lock at once; two that began by reading could only fail each other.
        options = connection.get_execution_options()
        if not options.get("outside"):
            connection.exec_driver_sql("BEGIN" if options.get("reading") else "BEGIN IMMEDIATE")

    @sql.event.listens_for(engine, "handle_error")
    def after_a_damaged_page(context: Any) -> None:
        # SQLCipher's connection reads nothing more once a page's checksum was wrong; the next one reads the rest.
        if (
            isinstance(context.original_exception, dbapi2.DatabaseError)
            and _kind(context.original_exception) == "damaged"
        ):
            context.is_disconnect = True

    return engine


# ---------------------------------------------------------------------------- PostgreSQL


def _postgresql(address: str, master: MasterKey, alone: bool, create: bool, given: dict[str, Any] | None) -> Database:
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise VaultError(
            "the package `psycopg` is not installed", code="dependency-missing", hint="pip install 'warmline[vault]'"
        ) from None
    try:
        url = sql.make_url(address).set(drivername="postgresql+psycopg")
        settings = {"connect_timeout": 10}
        engine = sql.create_engine(url, pool_pre_ping=True, hide_parameters=True, connect_args=settings, pool_size=4)
    except (SQLAlchemyError, ValueError):
        raise VaultError(
            "that is no address of a PostgreSQL database",
            code="vault-unreachable",
            hint="postgresql://USER:PASSWORD@HOST/DATABASE",
        ) from None
    where = f"postgresql://{url.host or 'localhost'}/{url.database or ''}"

    @sql.event.listens_for(engine, "connect")
    def acknowledged_is_on_disk(connection: Any, _: Any) -> None:
        connection.execute("SET synchronous_commit = on")
        connection.commit()

    with contextlib.ExitStack() as stack:
        stack.callback(engine.dispose)
        with told(where):
            holder = stack.enter_context(engine.connect().execution_options(isolation_level="AUTOCOMMIT"))
            lock = sql.text(f"SELECT pg_try_advisory_lock{'' if alone else '_shared'}({_ADVISORY})")
            until = time.monotonic() + KILLED_SECONDS
            while not holder.scalar(lock):
                if time.monotonic() > until:
                    raise busy(where)
                time.sleep(0.1)
            stack.callback(_release, holder)
            with engine.begin() as connection:
                connection.execute(sql.text(f"SELECT pg_advisory_xact_lock({_ADVISORY + 1})"))
                there = sql.inspect(connection).has_table(schema.header.name)
                text = connection.scalar(sql.select(schema.header.c.content)) if there else None
                if given is not None and text is not None and json.loads(text)["keys"] != given["keys"]:
                    raise taken(where)
                if not there and not create:
                    raise nothing(where)
                if there and text is None:
                    raise damaged("the tables are there, but the locked keys are gone", where)
                header = json.loads(text) if text else given or Keyring.new().locked(master)
                keyring = Keyring.unlocked(header, master, where)
                migrate(connection, where)
                if not text:
                    connection.execute(sql.insert(schema.header).values(one=1, content=json.dumps(header)))
                    connection.execute(sql.insert(schema.wrapping), [{"number": n} for n in keyring.ring])
        return Database(engine, where, keyring, header["lock"]["kind"], held=stack.pop_all())


def _release(holder: sql.Connection) -> None:
    with contextlib.suppress(SQLAlchemyError):
        holder.execute(sql.text("SELECT pg_advisory_unlock_all()"))


# ---------------------------------------------------------------------------- both


def migrate(connection: sql.Connection, where: str) -> None:
    """Bring the tables to this version, inside the caller's transaction: all steps or none.

    Raises:
        VaultError: `vault-migration`: made by a later version, or left half-way by something else.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", SCRIPTS)
    script = ScriptDirectory.from_config(config)
    now = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
    if len(now) > 1 or any(revision not in {known.revision for known in script.walk_revisions()} for revision in now):
        raise VaultError(
            "this vault was written by a later version of Warmline",
            code="vault-migration",
            where=where,
            hint="nothing was changed; install that version",
        )
    if set(now) != set(script.get_heads()):
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except (CommandError, DBAPIError) as error:
            if _kind(error) == "disk":
                raise
            raise _half_way(where) from None
    for table in schema.metadata.sorted_tables:
        there = sql.inspect(connection)
        columns = {c["name"] for c in there.get_columns(table.name)} if there.has_table(table.name) else set()
        if columns != set(table.columns.keys()):
            raise _half_way(where)


def _half_way(where: str) -> VaultError:
    return VaultError(
        "the tables are not those of the version they say: a migration was left half-way by something else",
        code="vault-migration",
        where=where,
        hint="nothing was changed; keep the vault as it is and restore a backup to a new place",
    )


def _kind(error: Exception) -> str:
    text = str(getattr(error, "orig", error)).lower()
    if "not a database" in text or "malformed" in text or "disk i/o error" in text or "hmac" in text:
        return "damaged"
    if "disk is full" in text or "no space left" in text:
        return "disk"
    return "busy" if "locked" in text else "unreachable"


@contextlib.contextmanager
def told(where: str) -> Iterator[None]:
    """Turn what a database driver raises into one message without values."""
    try:
        yield
    except DBAPIError as error:
        kind = _kind(error)
        if kind == "damaged":
            raise damaged("the database is damaged", where) from None
        if kind == "disk":
            raise VaultError(
                "no space is left for the vault", code="disk-full", where=where, hint="free some; nothing was lost"
            ) from None
        if kind == "busy":
            raise busy(where) from None
        if "foreign key" in str(error.orig).lower():
            raise VaultError(
                "the vault's keys were rotated meanwhile",
                code="vault-key",
                where=where,
                hint="start again with the new key",
            ) from None
        raise VaultError(
            f"the database cannot be reached or refuses ({type(error.orig).__name__})",
            code="vault-unreachable",
            where=where,
            hint="check the address, the user and that the database runs; nothing was changed",
        ) from None


__all__ = ["Database", "connect", "header_of", "log_of", "migrate"]
