"""Command that teaches a trained run which replies are better: prefer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from warmline import console, recipe
from warmline.cli.build import _resolve
from warmline.cli.options import RunName, RunsFolder, Settings


def prefer(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a path to a YAML file.")],
    pairs: Annotated[
        list[str] | None, typer.Option("--pairs", help="File or folder of preference pairs. May be repeated.")
    ] = None,
    run_name: RunName = None,
    settings: Settings = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Go on from a recipe's trained adapter with pairs of replies, the better one preferred (DPO).

    What of data and training the run lacks is made first. Afterwards chat, serve, evaluate and export use the result.
    Stopped at any point, the same command goes on at its last checkpoint.

    \b
    Examples:
      warmline prefer demo-dpo
      warmline prefer demo --pairs better.jsonl --set preference.beta=0.2
      warmline evaluate demo-dpo
    """
    from warmline.cli.stages import Job, require_data
    from warmline.corpus import preferences
    from warmline.runs import environment, fingerprint, write_atomically, write_json
    from warmline.train.group import Group
    from warmline.train.prefer import check, tune_preferences

    chosen = _resolve(name, settings, {"preference": {"sources": pairs}, "name": run_name})
    check(chosen)
    read = preferences.read(chosen.preference.sources)
    require_data(chosen.data.sources)
    job = Job(chosen, runs)
    job.group = Group()
    with job.run.locked():
        write_atomically(job.run.folder / "recipe.yaml", recipe.dump(chosen))
        write_json(job.run.folder / "environment.json", environment())
        data = job.data()
        resolved = job.base(data)
        train = job.train(data, resolved)
        inputs = {
            "train": train.key,
            "preference": chosen.preference.model_dump(mode="json", exclude={"sources"}),
            "pairs": fingerprint([asdict(pair) for pair in read]),
            "lint": chosen.data.lint,
            "clip": chosen.train.clip,
        }
        stage = job.run.stage("prefer", inputs)
        if stage.finished:
            console.say("preferences: done before, kept")
        else:
            console.heading(f"preferences: {len(read):,} pairs")
            stage.finish(tune_preferences(resolved, read, train.folder / "adapter", stage.begin()), inputs)
    summary = stage.manifest["summary"]
    if held := summary["held_out"]:
        console.say(
            f"{summary['validation']} held-out pairs: the better reply gained on the worse in {held['right']:.0%}; "
            f"log-probability of the better {held['chosen_log_ratio']:+.2f}, of the worse "
            f"{held['rejected_log_ratio']:+.2f}"
        )
    console.say(f"measure it: `warmline evaluate {job.run.name}`; talk to it: `warmline chat {job.run.name}`")
    console.json_line({"run": str(job.run.folder), **summary})


def register(app: typer.Typer) -> None:
    app.command()(prefer)
