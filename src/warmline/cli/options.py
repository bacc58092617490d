"""Options that several commands have, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override one setting, e.g. --set train.epochs=2. May be repeated.")
]
RecipeName = Annotated[str, typer.Argument(metavar="[RECIPE]", help="A shipped recipe or a path to a YAML file.")]
Sources = Annotated[list[str] | None, typer.Option("--data", help="File, folder or hub dataset id. May be repeated.")]
BaseName = Annotated[str | None, typer.Option("--base", help="Folder or hub id of the base.")]
Licence = Annotated[str | None, typer.Option("--licence", help="Licence of data that states none.")]
RunName = Annotated[str | None, typer.Option("--name", help="Name of the run. Default: the recipe's.")]
