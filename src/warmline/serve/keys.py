"""API keys and operators in one file, never readable as they were given out. Knows nothing of requests.

A key is 256 random bits, so a plain hash of it is enough; an operator's password is not, so it goes through argon2id.
The file is read again when it has changed: what is revoked here is refused by a running server at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import threading
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from warmline.errors import ServeError
from warmline.runs import write_atomically

Scope = Literal["chat", "metrics", "operate"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
MARK = "wl"
SHORTEST_PASSWORD = 12


class Key(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str
    name: str
    scopes: tuple[Scope, ...]
    hash: str
    created: datetime
    expires: datetime | None = None
    revoked: datetime | None = None

    @property
    def state(self) -> str:
        if self.revoked:
            return "revoked"
        return "expired" if self.expires and self.expires <= datetime.now(UTC) else "valid"


class Operator(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    hash: str
    created: datetime


class Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    secret: str = Field(default_factory=lambda: secrets.token_hex(32))
    """Signs the cookie of a visitor who entered a key."""
    keys: list[Key] = []
    operators: list[Operator] = []


class Keys:
    """The file at `path`; one that does not exist, or None, holds nothing."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._seen: tuple[int, ...] | None = None
        self._content = Content()
        self._hasher = PasswordHasher()
        self._one = threading.Lock()

    def read(self) -> Content:
        """What the file holds now.

        Raises:
            ServeError: `keys-file`: it is damaged, or others on this machine can read or change it.
        """
        if self.path is None:
            return self._content
        try:
            status = self.path.stat()
        except FileNotFoundError:
            if self._seen is not None:
                self._seen, self._content = None, Content()
            return self._content
        seen = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode)
        if seen != self._seen:
            if status.st_mode & 0o077:
                raise ServeError(
                    "the file of keys can be read or changed by other users of this machine",
                    code="keys-file",
                    where=str(self.path),
                    hint=f"chmod 600 {self.path}",
                )
            try:
                self._content = Content.model_validate_json(self.path.read_bytes())
            except (OSError, ValidationError) as error:
                raise ServeError(
                    "the file of keys is damaged or cannot be read",
                    code="keys-file",
                    where=str(self.path),
                    hint="restore it from a backup, or move it away and make new keys with `warmline keys create`",
                ) from error
            self._seen = seen
        return self._content

    def find(self, given: str) -> Key | None:
        """The valid key that was given; None alike for malformed, unknown, revoked and expired ones."""
        mark, _, rest = given.partition("_")
        id, _, secret = rest.partition("_")
        known = self.valid(id) if mark == MARK else None
        matches = hmac.compare_digest(_hash(secret), known.hash if known else _hash("none"))
        return known if known and matches else None

    def valid(self, id: str) -> Key | None:
        """The key of that id, if it has neither expired nor been revoked."""
        return next((key for key in self.read().keys if key.id == id and key.state == "valid"), None)

    def create(self, name: str, scopes: tuple[Scope, ...], days: int | None = None) -> tuple[Key, str]:
        """A new key, and the only sight of its text."""
        secret, now = secrets.token_urlsafe(32), datetime.now(UTC).replace(microsecond=0)
        key = Key(
            id=secrets.token_hex(4),
            name=name,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            hash=_hash(secret),
            created=now,
            expires=now + timedelta(days=days) if days else None,
        )
        with self._changing() as content:
            content.keys.append(key)
        return key, f"{MARK}_{key.id}_{secret}"

    def revoke(self, id: str) -> bool:
        with self._changing() as content:
            found = [key for key in content.keys if key.id == id and not key.revoked]
            for key in found:
                key.revoked = datetime.now(UTC).replace(microsecond=0)
        return bool(found)

    def set_operator(self, name: str, password: str) -> None:
        """Add an operator, or give one a new password.

        Raises:
            ServeError: `usage`: the password is short.
        """
        if len(password) < SHORTEST_PASSWORD:
            raise ServeError(f"a password has at least {SHORTEST_PASSWORD} characters", code="usage")
        hashed = self._hasher.hash(password)
        with self._changing() as content:
            content.operators = [one for one in content.operators if one.name != name]
            created = datetime.now(UTC).replace(microsecond=0)
            content.operators.append(Operator(name=name, hash=hashed, created=created))

    def remove_operator(self, name: str) -> bool:
        with self._changing() as content:
            before = len(content.operators)
            content.operators = [one for one in content.operators if one.name != name]
            return len(content.operators) < before

    def operator(self, name: str) -> Operator | None:
        return next((one for one in self.read().operators if one.name == name), None)

    def check_password(self, name: str, password: str) -> Operator | None:
        """The operator, if the password is right. Slow on purpose, and one at a time: each try takes 64 MiB."""
        one = self.operator(name)
        with self._one:
            try:
                self._hasher.verify(one.hash if one else self._nobody, password)
            except (Argon2Error, InvalidHashError):
                return None
        return one

    @cached_property
    def _nobody(self) -> str:
        """A login under an unknown name takes as long as any other."""
        return self._hasher.hash(secrets.token_hex())

    def _changing(self) -> _Changing:
        return _Changing(self)


class _Changing:
    """Reads the file, lets a block change it, and writes it, with every other writer shut out."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    def __enter__(self) -> Content:
        path = self.keys.path
        assert path is not None
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.content = self.keys.read().model_copy(deep=True)
        except BaseException:
            os.close(self._lock)
            raise
        return self.content

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                earlier = os.umask(0o077)
                try:
                    write_atomically(self.path, json.dumps(self.content.model_dump(mode="json"), indent=1))
                finally:
                    os.umask(earlier)
        finally:
            os.close(self._lock)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


__all__ = ["SCOPES", "Key", "Keys", "Operator", "Scope"]
