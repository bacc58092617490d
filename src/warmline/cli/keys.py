"""Commands for who may come in: API keys and operators of `warmline serve`."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from warmline import console
from warmline.errors import ServeError

if TYPE_CHECKING:
    from warmline.serve.keys import Keys

app = typer.Typer(
    no_args_is_help=True,
    help="""Keys and operators of a server: who may use the API, read the numbers, or see the operator's page.

    A running server takes changes at once.
    """,
)

File = Annotated[
    Path,
    typer.Option("--keys", envvar="WARMLINE_SERVE_KEYS", metavar="FILE", help="The file that the server reads too."),
]
FILE = Path("runs/keys.json")
PASSWORD = "WARMLINE_OPERATOR_PASSWORD"


class Scope(StrEnum):
    chat = "chat"
    metrics = "metrics"
    operate = "operate"


def _keys(file: Path) -> Keys:
    from warmline.serve.keys import Keys

    return Keys(file)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who or what it is for; you read it in the list.")],
    scope: Annotated[
        list[Scope],
        typer.Option(help="chat: the API and a closed page; metrics: the numbers; operate: the operator's page."),
    ],
    days: Annotated[int | None, typer.Option(min=1, help="Not valid any more after so many days.")] = None,
    keys: File = FILE,
) -> None:
    """Make an API key and print it, once: only its hash is kept.

    \b
    Examples:
      warmline keys create website --scope chat
      warmline keys create prometheus --scope metrics --days 365
    """
    key, text = _keys(keys).create(name, tuple(one.value for one in scope), days)
    console.say(f"key {key.id} for {name}, {' and '.join(key.scopes)}; it is shown this once:")
    console.out(text)


@app.command("list")
def show(keys: File = FILE) -> None:
    """Say which keys and operators there are; no key can be read again.

    \b
    Example:
      warmline keys list
    """
    held = _keys(keys).read()
    rows = [[key.id, key.name, " ".join(key.scopes), f"{key.created:%Y-%m-%d}", key.state] for key in held.keys]
    console.table("keys", ["id", "name", "scopes", "made", "state"], rows)
    console.table("operators", ["name", "since"], [[one.name, f"{one.created:%Y-%m-%d}"] for one in held.operators])
    valid = sum(key.state == "valid" for key in held.keys)
    console.json_line({"keys": len(rows), "valid": valid, "operators": len(held.operators)})


@app.command("revoke")
def revoke(id: Annotated[str, typer.Argument(metavar="ID", help="As in the list.")], keys: File = FILE) -> None:
    """Make a key worthless, also for those who entered the page with it.

    \b
    Example:
      warmline keys revoke 1f0c2a9b
    """
    if not _keys(keys).revoke(id):
        raise ServeError(f"there is no valid key `{id[:20]}`", code="usage", hint="`warmline keys list` has the ids")
    console.say(f"key {id} is worthless from now on")


@app.command("operator")
def operator(
    name: Annotated[str, typer.Argument(help="To log in with.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the login away; open pages are closed.")] = False,
    keys: File = FILE,
) -> None:
    """Give an operator a login, or a new password; it is asked for, or read from WARMLINE_OPERATOR_PASSWORD.

    \b
    Examples:
      warmline keys operator ada
      warmline keys operator ada --remove
    """
    held = _keys(keys)
    if remove:
        if not held.remove_operator(name):
            raise ServeError(f"there is no operator `{name[:40]}`", code="usage", hint="see `warmline keys list`")
        console.say(f"{name} can log in no more")
        return
    password = os.environ.get(PASSWORD) or typer.prompt("password", hide_input=True, confirmation_prompt=True, err=True)
    held.set_operator(name, password)
    console.say(f"{name} can log in at /operate")


def register(main: typer.Typer) -> None:
    main.add_typer(app, name="keys")
