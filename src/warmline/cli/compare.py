"""Commands that set two models against each other: compare, by people, and judge, by a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from warmline import console, recipe
from warmline.cli.options import RunsFolder
from warmline.errors import EngineError, WarmlineError
from warmline.runs import Run

if TYPE_CHECKING:
    from warmline.evaluate.compare import Choice, Comparison, Pair

KEYS: dict[str, Choice] = {"l": "left", "r": "right", "t": "tie"}


def compare(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A trained run.")],
    systems: Annotated[
        str, typer.Option("--systems", help="Two or more of base, tuned and gguf-QUANT, with commas.")
    ] = "base,tuned",
    blind: Annotated[bool, typer.Option("--blind", help="Two at a time, which is which hidden, and vote.")] = False,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Ask this and end. May be repeated.")] = None,
    web: Annotated[bool, typer.Option("--web", help="On a page on this machine instead of here.")] = False,
    port: Annotated[int, typer.Option(help="Port of the page.")] = 8766,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Put the same words to two models or more and see the replies side by side.

    The bare models, without the safety layer: for whoever builds them. Votes, with the prompts and replies they are
    about, are kept in the run's folder `compare`.

    \b
    Examples:
      warmline compare demo
      warmline compare demo --blind --web
      warmline compare first --systems base,tuned,gguf-q4_k_m --prompt "I can't sleep."
    """
    run = Run.open(name, runs)
    run.manifest(run.tuned)

    from warmline.evaluate import compare as comparing
    from warmline.opening import resolved_base

    settings = resolved_base(run, recipe.load(str(run.folder / "recipe.yaml")))
    chosen = [one.strip() for one in systems.split(",") if one.strip()]
    if len(set(chosen)) < 2 or len(set(chosen)) < len(chosen):
        raise WarmlineError(
            "it takes two different models to compare", code="usage", hint="for instance --systems base,tuned"
        )
    if web:
        from warmline.serve.app import check_port

        check_port("127.0.0.1", port)
    console.say(f"loading {', '.join(chosen)} ...")
    both = comparing.Comparison(comparing.open_systems(run, settings, chosen), run.folder / "compare", blind=blind)
    if web:
        _page(both, port)
    elif prompt:
        for words in prompt:
            pair = both.ask(words)
            _show(pair)
            console.json_line(dict(zip(pair.names, pair.says, strict=True)) | {"level": pair.level})
    else:
        _talk(both)
    for tally in both.tallies():
        console.say(str(tally))


def _show(pair: Pair) -> None:
    titles = ["left", "right"] if pair.blind else list(pair.names)
    console.table("", titles, [[said or "(nothing)" for said in pair.says]])
    if pair.level >= 3:
        console.say("a visitor would have seen none of these: the protocol answers this itself", style="dim")


def _talk(both: Comparison) -> None:
    console.say("Write what a visitor might. An empty line ends it.", style="dim")
    while True:
        try:
            words = console.ask("\nyou  ").strip()
            if not words:
                return
            try:
                pair = both.ask(words)
            except EngineError as error:
                console.error(str(error))
                continue
            _show(pair)
            if both.blind:
                answer = ""
                while answer not in (*KEYS, "s"):
                    answer = console.ask("better: (l)eft, (r)ight, (t)ie, (s)kip  ").strip().lower()[:1]
                if answer in KEYS:
                    both.vote(pair.id, KEYS[answer])
                console.say("left was {}, right was {}".format(*pair.names))
        except EOFError:
            return


def _page(both: Comparison, port: int) -> None:
    from warmline.evaluate.comparepage import create_app
    from warmline.serve.app import run as serve_until_stopped
    from warmline.serve.doorway import Doorway

    app = create_app(both)
    app.add_middleware(Doorway)

    def ready(address: str) -> None:
        console.say(f"the page is at {address} (this machine only); Ctrl-C ends it", style="bold")

    serve_until_stopped(app, "127.0.0.1", port, ready=ready)


def judge(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A measured run.")],
    by: Annotated[
        str,
        typer.Option("--by", metavar="URL#MODEL", help="Server and model that judges; its key in WARMLINE_JUDGE_KEY."),
    ],
    rubric: Annotated[
        Path | None, typer.Option("--rubric", help="A YAML file, or the folder of VERA-MH. Default: Warmline's own.")
    ] = None,
    votes: Annotated[int, typer.Option("--votes", min=1, help="How often each question is put.")] = 3,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Let another model judge the answers of base and tuned that `warmline evaluate` kept.

    The held-out conversations and both answers are sent to that server. First it judges exchanges that the authors
    have rated, and the agreement is told with the result. Stopped at any point, the same command goes on.

    \b
    Examples:
      warmline judge demo --by http://127.0.0.1:8000/v1#qwen3-14b
      warmline judge demo --by http://127.0.0.1:8000/v1#qwen3-14b --rubric data/vera_mh_rubric --votes 1
    """
    from warmline.engine.remote import RemoteEngine
    from warmline.evaluate import judge as judging
    from warmline.opening import resolved_base
    from warmline.runs import fingerprint, read_json, write_json

    run = Run.open(name, runs)
    measured = run.manifest("evaluation")["key"]
    settings = resolved_base(run, recipe.load(str(run.folder / "recipe.yaml")))
    asked = judging.read_rubric(rubric) if rubric else judging.read_rubric()
    url, _, model = by.partition("#")
    server = RemoteEngine.open(url, model, key=os.environ.get("WARMLINE_JUDGE_KEY"))
    try:
        judging.refuse_self(server.name, judging.names_of(run.name, settings))
        answers = {one: read_json(run.folder / "evaluation" / one / "answers.json") for one in ("base", "tuned")}
        key = fingerprint([measured, server.name, asked.name, [q.ask for q in asked.questions], votes])
        folder = run.folder / "judged" / key[:12]
        with run.locked(), console.progress("judging", 1 + 3 * len(answers["base"])) as bar:
            found = judging.judge_run(server, asked, answers, folder, votes, lambda _: bar.advance())
    finally:
        server.close()
    write_json(folder / "judged.json", found)
    console.say(found["agreement"]["says"])
    console.say(asked.disclaimer, style="dim")
    rows = [
        [id, *(f"{100 * found['good'][one][id]['value']:.0f} %" for one in ("base", "tuned"))]
        for id in found["good"]["base"]
        if id in found["good"]["tuned"]
    ]
    console.table(f"{asked.name}: good answers", ["question", "base", "tuned"], rows)
    console.json_line({"judged": str(folder / "judged.json"), "preferred": found["preferred"], "judge": server.name})


def register(app: typer.Typer) -> None:
    app.command()(compare)
    app.command()(judge)
