"""Whether what was erased is gone: looked for on the disk, page by page, and in the log. Knows nothing of contents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from warmline.errors import VaultError
from warmline.vault.database import Database, told
from warmline.vault.schema import messages

PAGE, SALT, RESERVED, VECTOR = 4096, 16, 80, 16
"""SQLCipher 4's pages: the first begins with a salt; each ends with its vector and checksum."""


@dataclass(frozen=True)
class Erased:
    """What an erasure did. `left` counts traces that are still on the disk: None where it cannot be looked at."""

    conversations: int = 0
    log_cut: bool = True
    left: int | None = None


def traces(connection: sql.Connection, rows: Sequence[Any]) -> list[bytes]:
    """What can be looked for later: the wrapped keys and the nonces of the messages, which are random and unique.

    Both stand at the beginning of their records, so no page boundary cuts them.
    """
    which = messages.c.conversation.in_([row.number for row in rows])
    nonces = [content[:12] for content in connection.scalars(sql.select(messages.c.content).where(which))]
    return [*(row.data_key for row in rows), *nonces]


def finish(database: Database, count: int, looked_for: Sequence[bytes] = ()) -> Erased:
    """Drop what the database keeps of deleted rows, then look."""
    if database.path is None:
        if looked_for:
            _rewrite_tables(database)
        return Erased(count)
    cut = database.truncate_log() if count else True
    if not looked_for:
        return Erased(count, cut)
    return Erased(count, cut, found(database.path, database.keyring.file, looked_for))


def found(path: Path, key: bytes, looked_for: Sequence[bytes]) -> int:
    """How many of `looked_for` stand anywhere in the file, free pages included."""
    left = set(looked_for)
    for page in pages(path, key):
        left -= {trace for trace in left if trace in page}
    return len(set(looked_for)) - len(left)


def pages(path: Path, key: bytes) -> Iterator[bytes]:
    """The decrypted pages of a SQLCipher file, as they lie on the disk."""
    with open(path, "rb") as file:
        start = SALT
        while len(page := file.read(PAGE)) == PAGE:
            vector = page[PAGE - RESERVED :][:VECTOR]
            opened = Cipher(algorithms.AES(key), modes.CBC(vector)).decryptor()
            yield opened.update(page[start : PAGE - RESERVED])
            start = 0


def page_faults(database: Database) -> list[str]:
    """SQLCipher's and SQLite's own checks."""
    if database.path is None:
        return []
    faults: list[str] = []
    for check in ("cipher_integrity_check", "integrity_check", "foreign_key_check"):
        try:
            with database.outside() as connection:
                rows = connection.exec_driver_sql(f"PRAGMA {check}").all()
            faults += [f"{check}: {row[0]}" for row in rows if row[0] != "ok"]
        except VaultError:
            faults.append(f"{check}: the database is damaged")
    return faults


def _rewrite_tables(database: Database) -> None:
    """PostgreSQL keeps deleted rows in its pages until they are overwritten; this writes the tables anew."""
    with told(database.where), database.engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        for table in ("vault_conversations", "vault_messages", "vault_feedback"):
            connection.execute(sql.text(f"VACUUM FULL {table}"))
