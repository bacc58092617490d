"""Commands of the vault: keys, status, export, erase, rotate, verify, backup, restore, purge, contribute."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from warmline import console
from warmline.errors import VaultError

if TYPE_CHECKING:
    from warmline.vault.keys import MasterKey
    from warmline.vault.store import Vault

app = typer.Typer(
    no_args_is_help=True,
    help="""Conversations kept encrypted: look after them.

    The key comes from --key-file, else a systemd credential (warmline-vault-key), else WARMLINE_VAULT_KEY or
    WARMLINE_VAULT_PASSPHRASE; else the passphrase is asked for.
    """,
)

Store = Annotated[
    str,
    typer.Option(
        "--store", envvar="WARMLINE_SERVE_STORE", help="The vault: a path or postgresql://USER:PASSWORD@HOST/DATABASE."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file", envvar="WARMLINE_SERVE_KEY_FILE", metavar="FILE", help="File that holds the master key."
    ),
]
References = Annotated[list[str], typer.Argument(metavar="NUMBER...", help="Numbers of `status --each`, or ids.")]
NEW_PASSPHRASE = "WARMLINE_VAULT_NEW_PASSPHRASE"


class Form(StrEnum):
    json = "json"
    text = "text"


def master_key(file: Path | None) -> MasterKey:
    """The master key: from `file`, a credential, the environment, or asked for at a terminal.

    Raises:
        VaultError: none was given, and there is nobody to ask.
    """
    from warmline.vault.keys import MasterKey

    found = MasterKey.find(file)
    if found is not None:
        return found
    if not sys.stdin.isatty():
        raise VaultError(
            "the vault's key was not given",
            code="vault-key",
            hint="--key-file FILE (make one with `warmline vault key FILE`), or WARMLINE_VAULT_PASSPHRASE",
        )
    return MasterKey.from_passphrase(typer.prompt("passphrase of the vault", hide_input=True, err=True))


@contextmanager
def opened(store: str, key_file: Path | None, *, alone: bool = False) -> Iterator[Vault]:
    """An existing vault, closed at the end. Nothing is erased by opening it."""
    from warmline.vault.store import Vault

    vault = Vault.open(store, master_key(key_file), alone=alone, create=False, retention_days=None)
    try:
        yield vault
    finally:
        vault.close()


def key(file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")]) -> None:
    """Make a new random master key in a file that only you can read.

    Keep a copy away from the vault: without its key nobody can read it again.

    \b
    Examples:
      warmline vault key vault.key
      warmline serve first --store vault.db --key-file vault.key
    """
    from warmline.vault.keys import MasterKey

    MasterKey.create_file(file)
    console.say(f"wrote {file}; keep a copy of it away from the vault")


def status(
    store: Store,
    each: Annotated[bool, typer.Option("--each", help="One line for each conversation, without a word of it.")] = False,
    key_file: KeyFile = None,
) -> None:
    """What a vault holds, in numbers. The server may run meanwhile.

    \b
    Examples:
      warmline vault status --store vault.db --key-file vault.key
      warmline vault status --each
    """
    with opened(store, key_file) as vault:
        if not each:
            console.json_line(vault.status())
            return
        for row in vault.conversations():
            console.json_line(row)


def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; holds words in clear, for you alone.")],
    store: Store,
    numbers: Annotated[
        list[str] | None, typer.Argument(metavar="[NUMBER...]", help="Empty: all conversations.")
    ] = None,
    format: Annotated[Form, typer.Option(help="One JSON object a line, or text to read.")] = Form.json,
    key_file: KeyFile = None,
) -> None:
    """Write conversations in clear: for a person who asks for their data, or to leave.

    \b
    Examples:
      warmline vault export 12 -o answer.txt --format text
      warmline vault export -o everything.jsonl --store vault.db --key-file vault.key
    """
    with opened(store, key_file) as vault:
        wanted = _meant(vault, numbers) if numbers else None
        count = 0
        with _private(out) as file:
            for row in vault.export(wanted):
                count += 1
                file.write(json.dumps(row, ensure_ascii=False) + "\n" if format is Form.json else _readable(row))
    console.say(f"{count} conversation{'' if count == 1 else 's'} in clear in {out}; delete it when it has served")


def erase(numbers: References, store: Store, key_file: KeyFile = None) -> None:
    """Destroy conversations and their keys, and look on the disk whether anything is left.

    \b
    Examples:
      warmline vault erase 12 --store vault.db --key-file vault.key
    """
    with opened(store, key_file) as vault:
        done = vault.erase_numbers(_meant(vault, numbers))
    console.json_line({"erased": done.conversations, "log_cut": done.log_cut, "left_on_disk": done.left})
    if not done.log_cut:
        console.warn("another program was reading, so the log could not be cut yet; it is when the server stops")
    if done.left is None:
        console.say("PostgreSQL's own log and copies keep sealed remains for a while: see docs/vault.md")
    if done.left or not done.log_cut:
        raise typer.Exit(1)


def rotate(
    store: Store,
    key_file: KeyFile = None,
    new_key_file: Annotated[
        Path | None, typer.Option("--new-key-file", metavar="FILE", help="Lock it with this file's key from now on.")
    ] = None,
) -> None:
    """Change the master key or passphrase. Keys are wrapped anew, no message is written again. Stop the server first.

    Without --new-key-file the new passphrase is WARMLINE_VAULT_NEW_PASSPHRASE, or asked for. Backups made before open
    with the old key only.

    \b
    Examples:
      warmline vault key new.key
      warmline vault rotate --store vault.db --key-file old.key --new-key-file new.key
    """
    from warmline.vault.keys import MasterKey

    if new_key_file is not None:
        new = MasterKey.from_file(new_key_file)
    elif words := os.environ.get(NEW_PASSPHRASE):
        new = MasterKey.from_passphrase(words)
    elif sys.stdin.isatty():
        asked = typer.prompt("new passphrase", hide_input=True, confirmation_prompt=True, err=True)
        new = MasterKey.from_passphrase(asked)
    else:
        raise VaultError("the new key was not given", code="vault-key", hint=f"--new-key-file or {NEW_PASSPHRASE}")
    with opened(store, key_file, alone=True) as vault:
        count = vault.rotate(new)
    console.say("the vault opens with the new key only; make a fresh backup")
    console.json_line({"rewrapped": count})


def verify(store: Store, key_file: KeyFile = None) -> None:
    """Read everything and check it: pages, messages, counts. Exit code 1 if anything is wrong.

    \b
    Examples:
      warmline vault verify --store vault.db --key-file vault.key
    """
    with opened(store, key_file) as vault:
        found = vault.verify()
    console.json_line({"conversations": found.conversations, "messages": found.messages, "faults": found.faults})
    if found.faults:
        raise typer.Exit(1)


def backup(
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; an older one is replaced when it is whole.")],
    store: Store,
    key_file: KeyFile = None,
) -> None:
    """Write everything to one encrypted file, while the server runs. It opens with the present master key.

    \b
    Examples:
      warmline vault backup -o vault-2026-11-21.backup --store vault.db --key-file vault.key
    """
    from warmline.vault import backup as backups

    with opened(store, key_file) as vault:
        counts = backups.make(vault, out)
    console.json_line({"backup": str(out), "bytes": out.stat().st_size} | _rows(counts))


def restore(
    file: Annotated[Path, typer.Argument(metavar="BACKUP", help="A file that `vault backup` wrote.")],
    store: Annotated[str, typer.Option("--store", help="Where the vault will be: a new path or an empty database.")],
    key_file: KeyFile = None,
) -> None:
    """Make a vault from a backup; also the way from a file to PostgreSQL and back.

    \b
    Examples:
      warmline vault restore vault-2026-11-21.backup --store vault.db --key-file vault.key
    """
    from warmline.vault import backup as backups

    counts = backups.restore(file, store, master_key(key_file))
    console.json_line({"restored": store if "://" not in store else "postgresql"} | _rows(counts))


def purge(
    days: Annotated[int, typer.Option(help="Days without a message after which a conversation goes.", min=1)],
    store: Store,
    key_file: KeyFile = None,
) -> None:
    """Erase what has not been used for so long. The server does so by itself for its own retention.

    \b
    Examples:
      warmline vault purge --days 14 --store vault.db --key-file vault.key
    """
    with opened(store, key_file) as vault:
        console.json_line({"erased": vault.purge(days)})


def contribute(
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL file to write.")],
    store: Store,
    language: Annotated[str, typer.Option(help="Two-letter code; other languages are left out.")] = "en",
    key_file: KeyFile = None,
) -> None:
    """Training data from the conversations whose visitors consented: cleaned, anonymised, linted.

    Read the result before you train on it: no anonymiser finds everything. Run again after consents were taken back;
    ids stay the same, so that what went can be found in older files.

    \b
    Examples:
      warmline vault contribute -o given.jsonl --store vault.db --key-file vault.key
      warmline train --data given.jsonl --licence consented
    """
    from warmline.corpus import pipeline
    from warmline.messages import Conversation, Message, Provenance

    counts = {name: Counter[str]() for name in ("repairs", "pii", "lint")}
    left_out, kept = Counter[str](), 0
    with opened(store, key_file) as vault, _private(out) as file:
        for row in vault.export(consenting=True):
            words = tuple(Message(m["role"], m["content"]) for m in row["thread"]["messages"] if m["role"] != "system")
            given = Provenance("vault", "consented", consent=f"given {row['consent'][:10]}")
            one = Conversation(f"given-{vault.pseudonym(row['id'])}", words, provenance=given)
            done = pipeline.one(one, language, True, "drop", "placeholder", None, counts)
            if isinstance(done, str):
                left_out[done] += 1
                continue
            kept += 1
            file.write(json.dumps(done.to_json(), ensure_ascii=False) + "\n")
    console.json_line({"written": kept, "left_out": dict(left_out), "masked": dict(counts["pii"])})


def _meant(vault: Vault, references: list[str]) -> list[int]:
    found: list[int] = []
    for number, reference in enumerate(references, 1):
        these = vault.numbers(reference)
        if not these:
            raise VaultError(
                f"the vault holds no conversation as the {number}. one named",  # an id is a secret
                code="vault-unknown",
                hint="`warmline vault status --each` lists the numbers; nothing was changed",
            )
        found += these
    return found


def _rows(counts: dict[str, int]) -> dict[str, int]:
    return {name.removeprefix("vault_"): count for name, count in counts.items()}


def _readable(row: dict[str, Any]) -> str:
    lines = [f"conversation {row['number']}, {row['created']} to {row['used']}", row["title"] or ""]
    lines += [f"{message['role']}:\n{message['content']}" for message in row["thread"]["messages"]]
    return "\n\n".join(line for line in lines if line) + "\n\n" + "-" * 40 + "\n\n"


@contextmanager
def _private(path: Path) -> Iterator[Any]:
    """A new file for its owner's eyes only; it appears when it is whole."""
    from warmline.runs import writing

    partial = path.with_name(f".{path.name}.partial")
    with writing(path.parent):
        partial.unlink(missing_ok=True)
        try:
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                yield file
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def register(main: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (key, status, export, erase, rotate, verify, backup, restore, purge, contribute):
        app.command()(command)
    main.add_typer(app, name="vault")
