"""A vault in one encrypted file, and back: the same file for SQLCipher and PostgreSQL, so also the way between them.

    line 1: the locked keys, as they lie beside the vault     last line, sealed: how many rows there were
    further lines: rows in batches, each sealed for its place in this very backup

It opens with the master key of the day on which it was made.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from cryptography.exceptions import InvalidTag

from warmline.errors import VaultError
from warmline.runs import writing
from warmline.vault import schema
from warmline.vault.database import connect, header_text, taken
from warmline.vault.keys import Keyring, MasterKey, damaged, seal, unseal
from warmline.vault.store import Vault

TABLES = (schema.conversations, schema.messages, schema.feedback, schema.erased)
BATCH = 200


def make(vault: Vault, file: Path) -> dict[str, int]:
    """Write everything as it is at this moment; the vault may be in use. Returns the rows of each table."""
    database, mark = vault.database, secrets.token_hex(16)
    key, counts = database.keyring.backup, dict.fromkeys((table.name for table in TABLES), 0)
    partial = file.with_name(f".{file.name}.partial")
    with writing(file.parent), contextlib.ExitStack() as stack:
        stack.callback(partial.unlink, missing_ok=True)
        partial.unlink(missing_ok=True)
        out = stack.enter_context(open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"))
        number = 0

        def line(content: dict[str, Any]) -> None:
            nonlocal number
            out.write(base64.b64encode(seal(key, json.dumps(content).encode(), f"{mark}/{number}")).decode() + "\n")
            number += 1

        out.write(json.dumps({"warmline_backup": 1, "mark": mark, "header": json.loads(header_text(database))}) + "\n")
        with database.reading() as connection:
            for table in TABLES:
                rows = connection.execution_options(yield_per=BATCH).execute(sql.select(table))
                for batch in rows.mappings().partitions(BATCH):
                    line({"table": table.name, "rows": [{k: _packed(v) for k, v in row.items()} for row in batch]})
                    counts[table.name] += len(batch)
        line({"end": counts})
        out.flush()
        os.fsync(out.fileno())
        os.replace(partial, file)
    return counts


def restore(file: Path, store: str, master: MasterKey) -> dict[str, int]:
    """Make a vault at `store` from a backup. The backup is read to its end before anything is written.

    Raises:
        VaultError: the backup is damaged or cut short, the key is not its own, or `store` holds another vault.
    """
    header, batches = read(file, master)
    counts: dict[str, int] = {}
    for batch in batches:
        counts = batch.get("end", counts)
    database = connect(store, master, alone=True, header=header)
    try:
        with database.writing() as connection:
            if connection.scalar(sql.select(sql.func.count()).select_from(schema.conversations)):
                raise taken(database.where)
            tables = {table.name: table for table in TABLES}
            for batch in read(file, master)[1]:
                if "table" in batch:
                    rows = [{k: _unpacked(v) for k, v in row.items()} for row in batch["rows"]]
                    connection.execute(sql.insert(tables[batch["table"]]), rows)
            if database.path is None:
                number = "pg_get_serial_sequence('vault_conversations', 'number')"
                connection.execute(sql.text(f"SELECT setval({number}, max(number)) FROM vault_conversations"))
    finally:
        database.close()
    return counts


def read(file: Path, master: MasterKey) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """The locked keys and the batches of a backup; the iterator raises where the file is damaged or ends too early."""
    try:
        with open(file, encoding="ascii") as lines:
            first = json.loads(lines.readline())
            header, mark = first["header"], first["mark"]
            if first["warmline_backup"] != 1:
                raise ValueError("of another version")
    except OSError as error:
        raise VaultError(
            f"the backup cannot be read: {(error.strerror or 'refused').lower()}",
            code="vault-damaged",
            where=str(file),
            hint="check the path",
        ) from None
    except (ValueError, KeyError, TypeError):
        raise damaged("this is no backup of a vault", str(file)) from None
    key = Keyring.unlocked(header, master, str(file)).backup

    def batches() -> Iterator[dict[str, Any]]:
        ended = False
        with open(file, "rb") as lines:
            lines.readline()
            for number, line in enumerate(lines):
                try:
                    batch = json.loads(unseal(key, base64.b64decode(line), f"{mark}/{number}"))
                except (InvalidTag, ValueError):
                    raise damaged(f"line {number + 2} of the backup is damaged", str(file)) from None
                ended = "end" in batch
                yield batch
        if not ended:
            raise damaged("the backup ends too early", str(file))

    return header, batches()


def _packed(value: Any) -> Any:
    return {"b": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _unpacked(value: Any) -> Any:
    return base64.b64decode(value["b"]) if isinstance(value, dict) else value
