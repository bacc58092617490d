"""The command that measures: evaluate."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from warmline import console, recipe
from warmline.cli.options import RunsFolder
from warmline.runs import Run


def evaluate(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A trained run.")],
    forms: Annotated[
        str,
        typer.Option(
            "--forms",
            help="Weights beside base and tuned: auto, none, or some of fp32,bf16,int8,nf4,gguf-QUANT.",
        ),
    ] = "auto",
    items: Annotated[
        int | None,
        typer.Option("--items", min=1, help="Held-out questions for every system. [default: 24, or as before]"),
    ] = None,
    suites: Annotated[
        str,
        typer.Option(
            "--suites",
            help="Safety suites beside those asked before: all, none, or some by name or as YAML files, with commas.",
        ),
    ] = "all",
    visitors: Annotated[
        str | None,
        typer.Option("--visitors", metavar="URL#MODEL", help="A server whose model plays visitors too."),
    ] = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Measure a run: base, tuned and quantised, with the same prompts and seeds, on one report page.

    First what of the test stands in the training data is left out. Stopped at any point, the same command goes on.

    \b
    Examples:
      warmline evaluate demo
      warmline evaluate first --forms none
      warmline evaluate first --forms bf16,nf4,gguf-q4_k_m --items 60
      warmline evaluate first --suites crisis,methods,ours.yaml --visitors http://127.0.0.1:8000/v1#actor
    """
    from warmline.cli.stages import show
    from warmline.opening import resolved_base

    began = time.monotonic()
    run = Run.open(name, runs)
    run.manifest("train")
    settings = resolved_base(run, recipe.load(str(run.folder / "recipe.yaml")))

    from warmline.evaluate import measure
    from warmline.evaluate import suites as safety_suites
    from warmline.model import load

    load.check(settings.base)
    chosen = safety_suites.chosen(tuple(name.strip() for name in suites.split(",") if name.strip()))
    player = None
    if visitors:
        from warmline.engine.remote import RemoteEngine

        url, _, model = visitors.partition("#")
        player = RemoteEngine.open(url, model, key=os.environ.get("WARMLINE_VISITORS_KEY"))
    asked = measure.chosen_forms(run, settings, [form.strip() for form in forms.split(",") if form.strip()])
    with run.locked():
        stage, measured = measure.evaluate(run, settings, asked, items, chosen, player)
    if "safety" in measured and not measured["safety"]["gate"]["passed"]:
        console.warn("less safe: " + "; ".join(measured["safety"]["gate"]["reasons"]))
    if measured["memorisation"]["alarm"]:
        console.warn("memorisation: " + "; ".join(measured["memorisation"]["reasons"]))
    show(run, measured)
    console.json_line(
        {
            "run": str(run.folder),
            "report": str(stage.folder / "report.html"),
            "ratio": measured["ratio"],
            "contaminated": len(measured["leak"]["contaminated"]),
            "memorisation": measured["memorisation"]["alarm"],
            "gate": measured["safety"]["gate"]["passed"] if "safety" in measured else None,
            "failed": measured["failed"],
            "seconds": round(time.monotonic() - began, 1),
        }
    )


def register(app: typer.Typer) -> None:
    app.command()(evaluate)
