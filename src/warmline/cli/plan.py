"""The command that plans a training: what it will take, before it is begun."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from warmline import console, recipe
from warmline.cli.build import _resolve
from warmline.cli.options import BaseName, Licence, RecipeName, RunName, RunsFolder, Settings, Sources
from warmline.errors import ModelError, WarmlineError

if TYPE_CHECKING:
    from warmline.train.plan import Machine, Plan


def plan(
    name: RecipeName = "laptop",
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Plan for another machine: t4, a10, l4, a100, h100, h200, rtx3060 ...")
    ] = None,
    data: Sources = None,
    base: BaseName = None,
    licence: Licence = None,
    run_name: RunName = None,
    try_out: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Take ten real steps to measure the time, if the base is here.")
    ] = True,
    settings: Settings = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Say what a training will take: memory by part, steps, time, disk, and what to mind.

    The data is prepared as `warmline train` would and kept for it; the base itself need not be here, its config.json is
    enough. What cannot fit is refused, with the setting that would.

    \b
    Examples:
      warmline plan demo
      warmline plan falcon-7b-qlora --gpu t4
      warmline plan --data counsel.csv --licence MIT --base ./Qwen3-4B --set base.load=int8
    """
    from warmline.cli.stages import require_data
    from warmline.train.plan import GPUS, make_plan, this_machine

    if gpu is not None and gpu.lower() not in GPUS:
        raise WarmlineError(f"no GPU `{gpu}` is known", code="usage", hint=f"known are: {', '.join(GPUS)}")
    chosen = _resolve(
        name, settings, {"data": {"sources": data, "licence": licence}, "base": {"model": base}, "name": run_name}
    )
    require_data(chosen.data.sources)
    machine = GPUS[gpu.lower()] if gpu else this_machine()
    make_plan(chosen, machine.without_limit())  # a wrong base or adapter is told before the data is read
    texts, why = _texts(chosen, runs)
    made = make_plan(chosen, machine, *texts)
    if why:
        made = replace(made, cautions=[*made.cautions, why])
    measured = None
    if texts and try_out and gpu is None and _is_here(chosen.base):
        from warmline.train.probe import probe

        measured = probe(chosen, made, texts[0])
        made = made.timed_by(measured.tokens_per_second, chosen, *texts)
    _show(made, machine)
    extra: dict[str, Any] = {"needed": made.needed}
    if measured:
        console.say(
            f"tried out: {measured.steps} steps, {measured.tokens_per_second:,.0f} tokens/s, "
            f"at most {measured.peak / 1e9:.1f} GB"
        )
        extra["probe"] = asdict(measured)
    console.json_line(asdict(made) | extra)


def _texts(chosen: recipe.Recipe, runs: Path) -> tuple[tuple[Any, ...], str]:
    """Training and validation texts, or nothing and the reason why their number is not known."""
    from warmline.cli.stages import Job
    from warmline.model.load import load_tokenizer
    from warmline.train.tune import texts_of

    if chosen.base.model == "new":
        return (), "the tokenizer of a new base is learnt from the data, so tokens and time are not known yet"
    job = Job(chosen, runs)
    try:
        with job.run.locked():
            data = job.data()
    except WarmlineError as error:
        if error.code not in ("hub-unreachable", "base-gated", "dependency-missing"):
            raise
        return (), f"steps, tokens and time are not known: {error.what}"
    why = ""
    try:
        tokenizer = load_tokenizer(chosen.base)
    except ModelError as error:
        why = f"tokens are an estimate, counted with the tokenizer that ships with Warmline: {error.what}"
        tokenizer = load_tokenizer(recipe.Base())
    return texts_of(chosen, data.folder, tokenizer)[1:], why


def _is_here(base: recipe.Base) -> bool:
    """Whether the base's weights are in a folder on this machine."""
    from warmline.model import load

    try:
        load.check(base)
    except ModelError:
        return False
    return isinstance(load.locate(base.model), Path)


def _show(made: Plan, machine: Machine) -> None:
    from warmline.train.plan import spoken

    sizes = made.memory | {"together": made.needed, f"there is ({made.machine})": made.available}
    rows = [[part, f"{size / 1e9:.2f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"] for part, size in sizes.items()]
    console.table(f"memory at {made.pack:,} tokens at once", ["part", "about"], rows)
    for line in made.short():
        console.say(line)
    if made.split is not None and made.left_out is not None:
        console.say(f"split to fit the context: {made.split:.1%} of the conversations; left out: {made.left_out:.1%}")
    if made.seconds:
        how = "from ten real steps" if made.timed == "measured" else f"assuming {machine.share:.0%} of its 16-bit rate"
        console.say(f"time: {spoken(made.seconds)} for {made.steps:,} steps, {how}")
    console.say(f"disk: up to {made.disk / 1e9:.2f} GB for checkpoints and the result")
    for caution in made.cautions:
        console.warn(caution)


def register(app: typer.Typer) -> None:
    app.command()(plan)
