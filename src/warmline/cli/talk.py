"""Commands that talk: the terminal chat and the page. Nothing here knows an engine; `chat` is the one door."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from warmline import console
from warmline.cli.options import RunsFolder
from warmline.runs import Run
from warmline.serve.config import NO_OPTION, PREFIX, Settings, is_loopback, load

if TYPE_CHECKING:
    from warmline.serve.kept import Kept
    from warmline.serve.oidc import Service

Engine = Annotated[
    str | None,
    typer.Option("--engine", metavar="ENGINE", help="auto, llamacpp, local, or a server's address, with #MODEL."),
]
Country = Annotated[str | None, typer.Option("--country", help="Two-letter code: whose crisis lines are shown first.")]

HELP = "/help  this list · /resources [COUNTRY]  crisis lines · /new  start over · /quit  leave"


def chat(
    name: Annotated[str, typer.Argument(metavar="[RUN]", help="A finished run.")] = "demo",
    country: Country = None,
    untuned: Annotated[bool, typer.Option("--base", help="Talk to the untuned base instead.")] = False,
    seed: Annotated[int | None, typer.Option(help="Make replies repeatable.")] = None,
    engine: Engine = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Talk to a run's model in the terminal, with the safety layer on.

    Nothing is stored: the conversation ends with the program.

    \b
    Examples:
      warmline chat demo
      warmline chat first --country GB
      warmline chat first --engine http://127.0.0.1:11434/v1#listener
    """
    from warmline.chat import Notice, Safety, Text, Thread
    from warmline.opening import open_chat

    run = Run.open(name, runs)
    console.say(f"loading {run.name} ...")
    door = open_chat(run, tuned=not untuned, country=country, seed=seed, engine=engine)
    thread = Thread()
    console.say(HELP, style="dim")
    while True:
        try:
            text = console.ask("\nyou  ").strip()
        except EOFError:
            break
        if not text:
            continue
        if text in ("/quit", "/exit", "/q"):
            break
        if text == "/help":
            console.say(HELP)
            continue
        if text == "/new":
            thread = Thread()
            console.say("a new conversation; the one before is gone")
            continue
        if text.startswith("/resources"):
            show_resources(text.removeprefix("/resources").strip() or country)
            continue
        if text.startswith("/"):
            console.say(f"no such command. {HELP}")
            continue
        began = False
        for event in door.turn(thread, text):
            if isinstance(event, Notice):
                console.say(event.text, style="dim")
            elif isinstance(event, Safety) and event.resources is not None:
                show_resources(event.resources.country)
            elif isinstance(event, Text):
                console.out(event.piece if began else f"\nreply  {event.piece.lstrip()}", end="")
                began = True
        console.out("")
    door.close()
    console.say("Take care. Crisis lines: `warmline resources`")


def show_resources(country: str | None) -> None:
    """Print crisis lines; an unknown country gets the ones that work anywhere."""
    from warmline.safety.resources import resources_for

    found = resources_for(country)
    console.say(f"emergency: {found.emergency}", style="bold")
    for line in found.lines:
        ways = (line.label, line.number, line.sms_number and f"text {line.sms_number}", line.url, line.hours)
        console.say("  ".join(way for way in ways if way))


def serve(**given: Any) -> None:
    """Open the chat page and the API of a run, with the safety layer on.

    Each setting comes from its option, else from its environment variable, else from the file of --config, else from
    its default. Without --host only this machine reaches the server.

    \b
    Examples:
      warmline serve demo
      warmline serve first --port 9000 --country IE
      warmline serve --config serve.yaml
    """
    config = given.pop("config")
    settings = load(config, {name: value for name, value in given.items() if value not in (None, [])})
    open_page(Run.open(settings.run, settings.runs), settings)


def open_page(run: Run, settings: Settings) -> None:
    """Load a run's model and serve its page until Ctrl-C."""
    from warmline.opening import open_chat
    from warmline.serve import journal, listening
    from warmline.serve.app import create_app
    from warmline.serve.auth import Gate
    from warmline.serve.keys import Keys
    from warmline.serve.limits import Limits

    keys = Keys(settings.keys_file)
    listening.check_port(settings.host, settings.port, keys)  # a taken port is told before the model is loaded
    handler = journal.open_at(settings.log) if settings.log else None
    if not is_loopback(settings.host) and not (settings.certificate or settings.proxies):
        console.warn("what visitors write crosses the network unencrypted: set `certificate`, or a proxy and `proxies`")
    held = open_kept(settings)
    console.say("loading the model ...")
    door = open_chat(run, country=settings.country, engine=settings.engine)
    gate = Gate(
        keys,
        local=settings.local,
        visitors=settings.visitors,
        limits=Limits(settings.limit_address, settings.limit_key),
    )
    app = create_app(
        door,
        name=settings.name,
        country=settings.country,
        hosts=settings.hosts,
        engine_places=settings.places or int(getattr(door.engine, "places", 1)),
        idle_hours=settings.idle_hours,
        gate=gate,
        queue=settings.queue,
        wait_seconds=settings.wait_seconds,
        conversations=held,
        login=login_service(settings),
    )

    def ready(address: str) -> None:
        who = "this machine only" if settings.local else f"as {', '.join(settings.answer_to)}"
        console.say(f"the page is at {address} ({who}); Ctrl-C ends it", style="bold")

    listening.run(
        app,
        settings.host,
        settings.port,
        ready=ready,
        keys=keys,
        proxies=settings.proxies,
        certificate=settings.certificate,
        certificate_key=settings.certificate_key,
        grace_seconds=settings.grace_seconds,
    )
    door.close()
    if held is not None:
        held.vault.close()
    if handler is not None:
        journal.shut(handler)


def login_service(settings: Settings) -> Service | None:
    """Where operators log in besides the keys' file; None where only that one counts."""
    if not (settings.oidc_issuer and settings.oidc_client and settings.oidc_group):
        return None
    from warmline.serve.oidc import Service

    return Service(
        settings.oidc_issuer,
        settings.oidc_client,
        settings.oidc_group,
        secret=settings.oidc_secret.get_secret_value() if settings.oidc_secret else None,
        claim=settings.oidc_claim,
        scope=settings.oidc_scope,
    )


def open_kept(settings: Settings) -> Kept | None:
    """The conversations of the vault that the settings name; None where they are held in memory only.

    Raises:
        VaultError: it cannot be opened; nothing is served then.
    """
    if settings.store == "none":
        return None
    from warmline.cli.vault import master_key
    from warmline.serve.kept import Kept
    from warmline.vault.store import Vault

    vault = Vault.open(settings.store, master_key(settings.key_file), retention_days=settings.keep_days)
    return Kept(vault, idle_seconds=settings.idle_hours * 3600)


def _options() -> Iterator[inspect.Parameter]:
    """One option for every setting, explained as it is there."""
    config = Annotated[
        Path | None, typer.Option("--config", envvar=f"{PREFIX}CONFIG", help="File of settings, YAML or TOML.")
    ]
    yield inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=config)
    for name, field in Settings.model_fields.items():
        if name in NO_OPTION:
            continue
        kinds = {"int": int, "float": float, "Path": Path, "tuple": list[str]}
        kind = next((kind for word, kind in kinds.items() if word in str(field.annotation)), str)
        shown = field.default if field.default not in (None, ()) else ""
        help = " ".join(str(field.description).split()) + (f" Default: {shown}." if shown != "" else "")
        what: Any
        if name == "run":
            what = typer.Argument(metavar="[RUN]", help=help, envvar=PREFIX + name.upper(), show_default=False)
        else:
            metavar = "|".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else None
            flag = f"--{name.replace('_', '-')}"
            what = typer.Option(flag, envvar=PREFIX + name.upper(), help=help, metavar=metavar, show_default=False)
        annotation = Annotated[kind | None, what]  # type: ignore[valid-type]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


serve.__signature__ = inspect.Signature(list(_options()))  # type: ignore[attr-defined]
serve.__annotations__ = {option.name: option.annotation for option in _options()}


def register(app: typer.Typer) -> None:
    app.command()(chat)
    app.command()(serve)
