"""A log of requests for the operator: one JSON object a line, of listed fields. Nothing else is ever written.

Never text, an address or the id of a conversation: routes are written as the code names them, keys by their ids.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from warmline.errors import ServeError

FIELDS: dict[str, type | tuple[type, ...]] = {
    "event": str,
    "route": str,
    "method": str,
    "status": int,
    "milliseconds": int,
    "code": str,
    "key": str,
    "operator": bool,
    "fault": str,
}
LONGEST = 80

log = logging.getLogger("warmline.serve.journal")
log.propagate = False
faults = logging.getLogger("warmline.serve")


class Lines(logging.Formatter):
    """Time, level and the listed fields. The record's own message, arguments and traceback are left out."""

    def format(self, record: logging.LogRecord) -> str:
        row: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        given = getattr(record, "fields", {"event": "fault"})
        for name, kind in FIELDS.items():
            value = given.get(name)
            if isinstance(value, kind):
                row[name] = value[:LONGEST] if isinstance(value, str) else value
        return json.dumps(row)


def write(event: str, **fields: Any) -> None:
    """One line, where a log was asked for."""
    if log.handlers:
        log.info("", extra={"fields": {"event": event} | fields})


def place(error: BaseException) -> str:
    """Kind of an error and the line it came from. Never its text, which may quote a person."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def fault(what: str, error: BaseException) -> None:
    """Something went wrong that should not have: told by its kind and place."""
    faults.error("%s: %s", what, place(error), extra={"fields": {"event": "fault", "fault": place(error)}})


def open_at(file: Path) -> logging.Handler:
    """Write lines to a file, readable by its owner alone, or to standard error (`-`), until `shut`.

    Raises:
        ServeError: `serve-config`: it cannot be written.
    """
    handler: logging.Handler
    if str(file) == "-":
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            file.touch(mode=0o600)
            # Watched, so that logrotate may move the file away.
            from logging.handlers import WatchedFileHandler

            handler = WatchedFileHandler(file, encoding="utf-8")
        except OSError as error:
            raise ServeError(
                f"the log cannot be written: {(error.strerror or 'refused').lower()}",
                code="serve-config",
                where=str(file),
                hint="name another file with --log, or - for standard error",
            ) from None
    handler.setFormatter(Lines())
    for logger in (log, faults):
        logger.addHandler(handler)
    log.setLevel(logging.INFO)
    return handler


def shut(handler: logging.Handler) -> None:
    for logger in (log, faults):
        logger.removeHandler(handler)
    handler.close()


__all__ = ["FIELDS", "open_at", "shut", "write"]
