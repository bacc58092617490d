"""Write docs/reference/recipe.md and docs/reference/commands.md from the code; with --check only compare.

python scripts/make_reference.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer.main

from warmline import recipe
from warmline.cli.main import app

FOLDER = Path(__file__).parents[1] / "docs" / "reference"


def recipe_page() -> str:
    lines = [
        "# Recipe settings",
        "",
        "Made from the code by `make docs`. `warmline recipes explain` prints the same.",
        "",
    ]
    section = ""
    for name, default, text in recipe.explain():
        head = name.rpartition(".")[0]
        if head != section:
            section = head
            lines += [f"## {section}", ""]
        lines += [f"**`{name}`** = `{default or 'required'}`  ", text or "See the name.", ""]
    return "\n".join(lines)


def commands_page() -> str:
    lines = ["# Commands", "", "Made from the code by `make docs`.", ""]

    def add(command: Any, path: str, parent: Any) -> None:
        context = command.context_class(command, info_name=path.rpartition(" ")[2], parent=parent)
        context.terminal_width = 100
        help_text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        lines.extend([f"## `{path}`", "", "```", help_text, "```", ""])
        if hasattr(command, "list_commands"):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None:
                    add(child, f"{path} {name}", context)

    add(typer.main.get_command(app), "warmline", None)
    return "\n".join(lines)


def main() -> int:
    stale = 0
    for name, text in {"recipe.md": recipe_page(), "commands.md": commands_page()}.items():
        path = FOLDER / name
        if "--check" in sys.argv:
            if not path.exists() or path.read_text("utf-8") != text:
                print(f"docs/reference/{name} is not what the code makes: run `make docs`")
                stale = 1
        else:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
