"""The keys of a vault: a master key that only people hold, and the random keys that it locks away.

    master key (passphrase, file, environment, credential) ─locks─► Keyring: file, visitors, ring of wrapping keys
    wrapping key ─wraps─► one data key for each conversation ─seals─► its messages, title and state

Everything is AES-256-GCM with a random nonce, bound to what it belongs to. Knows no database.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import secrets
import stat
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from warmline.errors import VaultError

SHORTEST_PASSPHRASE = 12
KEY_VARIABLE = "WARMLINE_VAULT_KEY"
PASSPHRASE_VARIABLE = "WARMLINE_VAULT_PASSPHRASE"
CREDENTIAL = "warmline-vault-key"
"""Name of the systemd credential (LoadCredential= or LoadCredentialEncrypted=)."""

ARGON2 = {"memory_kib": 64 * 1024, "passes": 3, "lanes": 4}
"""RFC 9106's second choice: 64 MiB, three passes."""
_MOST_MEMORY_KIB = 4 * 1024 * 1024
_NONCE = 12


def seal(key: bytes, words: bytes, place: str) -> bytes:
    """Encrypt for one place; `unseal` with another key or place fails."""
    nonce = secrets.token_bytes(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, words, place.encode())


def unseal(key: bytes, sealed: bytes, place: str) -> bytes:
    """Raises InvalidTag: another key, another place, or not what was sealed."""
    if len(sealed) < _NONCE + 16:
        raise InvalidTag
    return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], place.encode())


def _derive(secret: bytes, salt: bytes, purpose: str) -> bytes:
    return HKDF(SHA256(), 32, salt, f"warmline vault: {purpose}".encode()).derive(secret)


class MasterKey:
    """What opens a vault. Never stored with it, and never shown."""

    def __init__(self, secret: bytes, *, passphrase: bool) -> None:
        self._secret, self.passphrase = secret, passphrase

    @classmethod
    def from_passphrase(cls, words: str) -> MasterKey:
        """Spelt the same on every keyboard: the words are normalised (NFKC), spaces at the ends do not count."""
        return cls(unicodedata.normalize("NFKC", words).strip().encode(), passphrase=True)

    @classmethod
    def from_text(cls, text: str, where: str) -> MasterKey:
        """A key of 32 bytes in Base64, as `create_file` writes it."""
        try:
            key = base64.b64decode(text.strip(), validate=True)
        except ValueError:
            key = b""
        if len(key) != 32:
            raise VaultError(
                "that is no key: 32 bytes in Base64 are wanted",
                code="vault-key",
                where=where,
                hint="make one with `warmline vault key FILE`",
            )
        return cls(key, passphrase=False)

    @classmethod
    def from_file(cls, path: Path) -> MasterKey:
        """Read a key file. Refused if anybody else may read it."""
        try:
            mode, text = path.stat().st_mode, path.read_text("ascii", errors="replace")
        except OSError as error:
            raise VaultError(
                f"the key file cannot be read: {(error.strerror or 'refused').lower()}",
                code="vault-key",
                where=str(path),
                hint="make one with `warmline vault key FILE`",
            ) from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise VaultError(
                "others on this machine may read the key file",
                code="vault-key",
                where=str(path),
                hint=f"chmod 600 {path}",
            )
        return cls.from_text(text, str(path))

    @staticmethod
    def create_file(path: Path) -> None:
        """Write a new random key, for nobody else to read. An existing file is left alone."""
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(base64.b64encode(secrets.token_bytes(32)).decode() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise VaultError(
                f"the key file cannot be written: {(error.strerror or 'refused').lower()}",
                code="vault-key",
                where=str(path),
                hint="choose another name; a key that exists is never overwritten",
            ) from None

    @classmethod
    def find(cls, file: Path | None = None, environment: Mapping[str, str] = os.environ) -> MasterKey | None:
        """The key from `file`, else a systemd credential, else the environment; None if there is none."""
        if file is not None:
            return cls.from_file(file)
        if folder := environment.get("CREDENTIALS_DIRECTORY"):
            credential = Path(folder) / CREDENTIAL
            if credential.exists():  # systemd guards the folder; the file itself is 0440 at times
                return cls.from_text(credential.read_text("ascii", errors="replace"), "systemd credential")
        if text := environment.get(KEY_VARIABLE):
            return cls.from_text(text, KEY_VARIABLE)
        if words := environment.get(PASSPHRASE_VARIABLE):
            return cls.from_passphrase(words)
        return None

    def _new_lock(self) -> dict[str, Any]:
        salt = base64.b64encode(secrets.token_bytes(16)).decode()
        if not self.passphrase:
            return {"kind": "key", "salt": salt}
        if len(self._secret.decode()) < SHORTEST_PASSPHRASE:
            raise VaultError(
                f"the passphrase is too short: at least {SHORTEST_PASSPHRASE} characters",
                code="vault-key",
                hint="five or six words that do not belong together are good and easy to keep",
            )
        return {"kind": "passphrase", "salt": salt, **ARGON2}

    def _open_lock(self, lock: Mapping[str, Any]) -> bytes:
        salt = base64.b64decode(lock["salt"], validate=True)
        if not self.passphrase:
            return _derive(self._secret, salt, "lock")
        memory, passes, lanes = (int(lock[name]) for name in ARGON2)
        if memory > _MOST_MEMORY_KIB or passes > 100:
            raise ValueError("no vault of ours asks for that much")
        return Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory).derive(self._secret)


@dataclass(frozen=True)
class Keyring:
    """The random keys of one vault. `ring` holds the wrapping keys by number; the highest one wraps what is new."""

    file: bytes
    """Encrypts the SQLCipher file and backups."""
    visitors: bytes
    """Turns a visitor's capability into what is stored of it."""
    ring: dict[int, bytes]

    @classmethod
    def new(cls) -> Keyring:
        return cls(secrets.token_bytes(32), secrets.token_bytes(32), {1: secrets.token_bytes(32)})

    @property
    def newest(self) -> int:
        return max(self.ring)

    def with_new_wrapping_key(self) -> Keyring:
        return Keyring(self.file, self.visitors, self.ring | {self.newest + 1: secrets.token_bytes(32)})

    def only_newest(self) -> Keyring:
        return Keyring(self.file, self.visitors, {self.newest: self.ring[self.newest]})

    @property
    def backup(self) -> bytes:
        return _derive(self.file, b"", "backup")

    def mark(self, *parts: str) -> bytes:
        """A keyed hash: says whether two things are the same, not what they are."""
        return hmac.digest(self.visitors, "\0".join(parts).encode("utf-8", "surrogatepass"), "sha256")

    def locked(self, master: MasterKey) -> dict[str, Any]:
        """As it is stored beside the data: readable by who holds the master key."""
        lock = master._new_lock()
        keys = {"file": self.file.hex(), "visitors": self.visitors.hex()}
        words = json.dumps({**keys, "ring": {str(number): key.hex() for number, key in self.ring.items()}})
        sealed = seal(master._open_lock(lock), words.encode(), _bound(lock))
        return {"warmline_vault": 1, "lock": lock, "keys": base64.b64encode(sealed).decode()}

    @classmethod
    def unlocked(cls, header: Any, master: MasterKey, where: str) -> Keyring:
        """Open what `locked` made.

        Raises:
            VaultError: `vault-key` for the wrong key or kind of key, `vault-damaged` for what is no header.
        """
        try:
            lock, sealed = header["lock"], base64.b64decode(header["keys"], validate=True)
            if header["warmline_vault"] != 1 or lock["kind"] not in ("key", "passphrase"):
                raise ValueError("of another version")
            if (lock["kind"] == "passphrase") != master.passphrase:
                wanted = "passphrase" if lock["kind"] == "passphrase" else "key file"
                raise VaultError(f"this vault is locked with a {wanted}", code="vault-key", where=where)
            key = master._open_lock(lock)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise damaged("the locked keys of the vault are damaged", where) from None
        try:
            found = json.loads(unseal(key, sealed, _bound(lock)))
        except InvalidTag:
            given = "passphrase" if master.passphrase else "key"
            raise VaultError(
                f"the {given} does not open this vault",
                code="vault-key",
                where=where,
                hint="nothing was changed; give the one it was made or last rotated with",
            ) from None
        ring = {int(number): bytes.fromhex(text) for number, text in found["ring"].items()}
        return cls(bytes.fromhex(found["file"]), bytes.fromhex(found["visitors"]), ring)


def _bound(lock: Mapping[str, Any]) -> str:
    return "keys of a vault " + json.dumps(lock, sort_keys=True)


def damaged(what: str, where: str) -> VaultError:
    """The error for what cannot be read although the key is right."""
    return VaultError(
        what, code="vault-damaged", where=where, hint="nothing was changed; keep the files and restore a backup"
    )
