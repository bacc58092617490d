"""Commands that build: train, demo, recipes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

from warmline import console, recipe
from warmline.cli.options import BaseName, Licence, RecipeName, RunName, RunsFolder, Settings, Sources


def _resolve(
    name: str, settings: list[str] | None, changes: dict[str, dict[str, object] | str | None]
) -> recipe.Recipe:
    """The recipe with --set and the short options laid over it; empty ones change nothing."""
    chosen = recipe.load(name, tuple(settings or ()))
    tree = chosen.model_dump(mode="json")
    for section, values in changes.items():
        if isinstance(values, dict):
            tree[section] |= {key: value for key, value in values.items() if value}
        elif values:
            tree[section] = values
    return recipe.parse(tree, name)


def train(
    name: RecipeName = "laptop",
    data: Sources = None,
    base: BaseName = None,
    licence: Licence = None,
    run_name: RunName = None,
    settings: Settings = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Prepare data, train, measure base against tuned, write a report.

    Stopped at any point, the same command goes on where it was; what is finished is not done again.

    \b
    Examples:
      warmline train demo
      warmline train --data counsel.csv --licence MIT --base ./Qwen3-0.6B --name first
      warmline train my.yaml --set train.epochs=2
    """
    from warmline.cli.stages import Job, require_data, show

    chosen = _resolve(
        name, settings, {"data": {"sources": data, "licence": licence}, "base": {"model": base}, "name": run_name}
    )
    require_data(chosen.data.sources)
    job = Job(chosen, runs)
    measured = job.carry_out()
    show(job.run, measured)
    console.json_line(_last_line(job.run.folder, measured))


def demo(
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Open the chat page at the end.")] = True,
    port: Annotated[int, typer.Option(help="Port of the chat page.")] = 8765,
    settings: Settings = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """The whole job in a few minutes: sample corpus, QLoRA of the embedded base, report, chat page.

    \b
    Examples:
      warmline demo
      warmline demo --no-serve
    """
    from warmline.cli.stages import Job, show

    if serve:
        from warmline.serve.app import listen

        listen("127.0.0.1", port).close()  # a taken port is told now, not after the training
    console.say("Warmline demo: it trains a very small model on this machine. No network is needed.", style="bold")
    job = Job(_resolve("demo", settings, {}), runs)
    measured = job.carry_out()
    show(job.run, measured)
    console.say(f"took {measured['seconds']:.0f} s")
    if not serve:
        console.json_line(_last_line(job.run.folder, measured))
        return
    from warmline.cli.talk import open_page
    from warmline.serve.config import Settings

    open_page(job.run, Settings(port=port))


def _last_line(folder: Path, measured: dict[str, object]) -> dict[str, object]:
    models = measured["models"]
    assert isinstance(models, dict)
    return {
        "run": str(folder),
        "report": str(folder / "evaluation" / "report.html"),
        "perplexity": {name: round(found["perplexity"]["value"], 3) for name, found in models.items()},
        "ratio": measured["ratio"],
        "seconds": measured["seconds"],
    }


recipes = typer.Typer(help="List, show, copy and explain recipes.", no_args_is_help=False)


@recipes.callback(invoke_without_command=True)
def recipes_list(context: typer.Context) -> None:
    """List the recipes that ship with Warmline."""
    if context.invoked_subcommand is None:
        for name in recipe.shipped():
            console.out(f"{name:24} {recipe.load(name).description}")


@recipes.command("show")
def recipes_show(name: Annotated[str, typer.Argument(help="Name or path.")]) -> None:
    """Print a recipe with every setting resolved, below what its author says of it."""
    loaded = recipe.load(name)
    lines = recipe.source(name)[0].splitlines()
    said = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    console.out("".join(f"{line}\n" for line in said) + recipe.dump(loaded), end="")


@recipes.command("copy")
def recipes_copy(
    name: Annotated[str, typer.Argument(help="Shipped recipe.")],
    path: Annotated[
        Path | None, typer.Argument(help="New file, never overwritten. Default: the recipe's name, here.")
    ] = None,
) -> None:
    """Copy a shipped recipe to a file of your own, to edit it."""
    from warmline.errors import RecipeError
    from warmline.runs import write_atomically

    text, _ = recipe.source(name)
    path = path or Path(f"{Path(name).stem if name.endswith(('.yaml', '.yml')) else name}.yaml")
    if path.exists():
        raise RecipeError(f"{path} exists already", code="recipe-invalid", hint="choose another name")
    write_atomically(path, text)
    console.say(f"{path}: edit it, then `warmline train {path}`")


@recipes.command("explain")
def recipes_explain() -> None:
    """Every setting with its default and its effect."""
    for name, default, text in recipe.explain():
        console.out(f"{name} = {default}\n    {text}")


def register(app: typer.Typer) -> None:
    app.command()(demo)
    app.command()(train)
    app.add_typer(recipes, name="recipes")
