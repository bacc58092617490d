"""Commands that talk: the terminal chat and the page. Nothing here knows an engine; `chat` is the one door."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from warmline import console
from warmline.cli.options import RunsFolder
from warmline.runs import Run

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


def serve(
    name: Annotated[str, typer.Argument(metavar="[RUN]", help="A finished run.")] = "demo",
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 8765,
    country: Country = None,
    engine: Engine = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Open the chat page of a run on this machine, with the safety layer on.

    Conversations are held in memory only and gone when the program ends.

    \b
    Examples:
      warmline serve demo
      warmline serve first --port 9000 --country IE
    """
    open_page(Run.open(name, runs), port=port, country=country, engine=engine)


def open_page(run: Run, *, port: int, country: str | None = None, engine: str | None = None) -> None:
    """Load a run's model and serve its page until Ctrl-C."""
    from warmline.opening import open_chat
    from warmline.serve.app import create_app, listen
    from warmline.serve.app import run as serve_until_stopped

    listen("127.0.0.1", port).close()  # a taken port is told before the model is loaded
    console.say("loading the model ...")
    door = open_chat(run, country=country, engine=engine)
    app = create_app(door, name="Warmline", country=country)

    def ready(address: str) -> None:
        console.say(f"the page is at {address} (this machine only); Ctrl-C ends it", style="bold")

    serve_until_stopped(app, "127.0.0.1", port, ready=ready)
    door.close()


def register(app: typer.Typer) -> None:
    app.command()(chat)
    app.command()(serve)
