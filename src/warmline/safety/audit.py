"""A row for every turn, without a word of it, chained so that nothing can be taken out or altered unseen.

Knows levels, rule names and times; never text, names or addresses. When the disk is full, rows wait in memory and are
written as soon as there is room, so that a person is answered all the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warmline.errors import SafetyError

GENESIS = "0" * 64
FIELDS = frozenset(
    {
        "at", "conversation", "turn", "level", "state", "flags", "rules", "action", "situation", "stop", "cut",
        "screened", "milliseconds", "engine", "versions", "country_set", "notice", "fault", "policy",
    }
)  # fmt: skip
"""Everything a row may hold. A test keeps free text out."""


def _digest(previous: str, number: int, row: Mapping[str, Any]) -> str:
    body = json.dumps({"n": number, "previous": previous, "row": row}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(body.encode("utf-8")).hexdigest()


class AuditLog:
    """Appends rows to a JSONL file; each line holds the hash of the one before. Safe for several threads.

    Raises:
        SafetyError: the file exists and its chain is broken (`audit-broken`).
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self.path = path
        self._sync = sync
        self._lock = threading.Lock()
        self._waiting: list[dict[str, Any]] = []
        self._number, self._last = verify(path) if path.exists() else (0, GENESIS)

    @property
    def waiting(self) -> int:
        """Rows that could not be written yet."""
        return len(self._waiting)

    def append(self, row: Mapping[str, Any]) -> bool:
        """Add a row. False if it has to wait because the disk refuses it; never raises for that.

        Raises:
            ValueError: the row holds a field that is not in `FIELDS`.
        """
        if unknown := set(row) - FIELDS:
            raise ValueError(f"an audit row has no field {', '.join(sorted(unknown))}")
        with self._lock:
            self._waiting.append(dict(row))
            return self._flush()

    def flush(self) -> bool:
        """Try again to write the rows that wait."""
        with self._lock:
            return self._flush()

    def _flush(self) -> bool:
        lines, number, last = [], self._number, self._last
        for row in self._waiting:
            number += 1
            digest = _digest(last, number, row)
            lines.append(json.dumps({"n": number, "previous": last, "row": row, "hash": digest}, sort_keys=True))
            last = digest
        if not lines:
            return True
        data = ("\n".join(lines) + "\n").encode("utf-8")
        try:
            self._write(data)
        except OSError:
            return False
        self._number, self._last, self._waiting = number, last, []
        return True

    def _write(self, data: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                written = file.write(data)
                if written != len(data):
                    raise OSError("short write")
                if self._sync:
                    os.fsync(file.fileno())
            except OSError:
                # a half-written row would break the chain for good
                os.truncate(self.path, size)
                raise


def verify(path: Path) -> tuple[int, str]:
    """Follow the chain from its first row; return how many rows there are and the last hash.

    Raises:
        SafetyError: `audit-broken`, naming the first line that does not fit.
    """
    last, count = GENESIS, 0
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = json.loads(line)
                    fits = (
                        entry["n"] == number
                        and entry["previous"] == last
                        and entry["hash"] == _digest(last, number, entry["row"])
                    )
                except (ValueError, KeyError, TypeError):
                    fits = False
                if not fits:
                    raise SafetyError(
                        f"the audit chain breaks at line {number}",
                        code="audit-broken",
                        where=f"{path}:{number}",
                        hint="rows from here on were altered, removed or inserted; keep the file and look into it",
                    )
                last, count = entry["hash"], number
    except OSError:
        raise SafetyError(
            "the audit file cannot be read", code="audit-broken", where=str(path), hint="check the path"
        ) from None
    except UnicodeDecodeError:
        raise SafetyError("the audit file is not UTF-8 text", code="audit-broken", where=str(path)) from None
    return count, last
