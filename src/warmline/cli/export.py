"""Commands that hand a trained run on: export, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from warmline import console, recipe
from warmline.cli.options import RunsFolder
from warmline.errors import WarmlineError
from warmline.model.export import FORMS, QUANTS
from warmline.runs import Run


def _chosen(given: list[str], known: tuple[str, ...], option: str) -> list[str]:
    """Values of a repeatable option that may also be given with commas."""
    names = [name.strip().lower() for value in given for name in value.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise WarmlineError(
            f"{option} {', '.join(unknown)} does not exist", code="usage", hint=f"known: {', '.join(known)}"
        )
    return names


def export(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A trained run.")],
    to: Annotated[
        list[str] | None, typer.Option("--to", help="adapter, merged or gguf. May be repeated. Default: adapter.")
    ] = None,
    quant: Annotated[
        list[str] | None,
        typer.Option("--quant", help=f"Of gguf: {', '.join(QUANTS)}; several with commas. Default: q8_0."),
    ] = None,
    lora_gguf: Annotated[
        bool, typer.Option("--lora-gguf", help="The adapter apart as GGUF too, with its base, to switch on and off.")
    ] = False,
    ollama: Annotated[bool, typer.Option("--ollama", help="A Modelfile for Ollama beside the GGUF.")] = False,
    override: Annotated[
        str | None, typer.Option("--override", help="Your name: go on though the evaluation refused the model.")
    ] = None,
    base_licence: Annotated[
        str | None, typer.Option("--base-licence", help="Licence of a base whose card states none.")
    ] = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Write a trained run as files for other programs, each checked against the trained model.

    What was exported before from the same training stays.

    \b
    Examples:
      warmline export demo --to adapter
      warmline export demo --to gguf --quant q8_0,q4_k_m --ollama
      warmline export first --to merged --base-licence apache-2.0
    """
    forms = _chosen(to or [], FORMS, "--to")
    quants = _chosen(quant or [], QUANTS, "--quant")
    wanted = {form for form in forms if form != "gguf"}
    if "gguf" in forms or quants or ollama:
        wanted |= {f"gguf:{q}" for q in quants or ["q8_0"]}
    wanted |= {"gguf:lora"} if lora_gguf else set()
    wanted |= {"ollama"} if ollama else set()
    run = Run.open(name, runs)

    from warmline.model.export import make
    from warmline.opening import resolved_base

    settings = resolved_base(run, recipe.load(str(run.folder / "recipe.yaml")))
    stage = make.export(run, settings, wanted or {"adapter"}, override=override, base_licence=base_licence)
    verified = stage.manifest["summary"]["verified"]
    rows = [
        [row["file"], row["same_choice"], row["distance"], row["tolerance"]]
        for row in verified.values()
        if "distance" in row
    ]
    if rows:
        console.table("against the trained model", ["file", "same choice", "distance", "limit"], rows)
    console.say(f"export: {stage.folder}")
    console.json_line({"run": str(run.folder), "export": str(stage.folder), "verified": verified})


def push(
    name: Annotated[str, typer.Argument(metavar="RUN", help="An exported run.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="Repository on the hub, owner/name.")],
    form: Annotated[
        str | None, typer.Option("--form", help="adapter, merged or gguf. Default: the only one there is.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Only for you and those you let in.")] = False,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Put one exported form on a model hub, with its card, after looking through every file for secrets.

    The token is that of `hf auth login` or HF_TOKEN; HF_ENDPOINT names another hub.

    \b
    Examples:
      warmline push demo me/listener --private
      warmline push demo me/listener-gguf --form gguf
    """
    run = Run.open(name, runs)
    from warmline.model.export.push import push as send

    address = send(run, repository, form=form, private=private)
    console.say(f"pushed: {address}")
    console.json_line({"commit": address})


def register(app: typer.Typer) -> None:
    app.command()(export)
    app.command()(push)
