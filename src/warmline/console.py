"""The only module that prints. Data goes to stdout, everything else to stderr; readable without colour."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_err = Console(stderr=True, highlight=False)
_out = Console(highlight=False)


def say(text: str, *, style: str | None = None) -> None:
    """One line for the person at the terminal (stderr). Square brackets are printed as they are."""
    _err.print(escape(text), style=style, soft_wrap=True)


def hush() -> None:
    """Print nothing to stderr from here on: of several processes on one job, one speaks."""
    _err.quiet = True


def heading(text: str) -> None:
    _err.print()
    _err.print(escape(text), style="bold")


def warn(text: str) -> None:
    _err.print(escape(f"caution: {text}"), style="yellow", soft_wrap=True)


def error(text: str) -> None:
    _err.print(escape(text), style="red", soft_wrap=True)


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A small table on stderr; numbers are right-aligned."""
    grid = Table(title=escape(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        grid.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(escape(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row))
    _err.print(grid)


def out(text: str, *, end: str = "\n") -> None:
    """Data for stdout, exactly as given: no wrapping, no markup."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def painted(pieces: Iterable[tuple[str, bool, bool]]) -> None:
    """A training text on stdout from (text, learnt, control): learnt is green or between ⟦ ⟧, control bold or ‹ ›."""
    text = Text()
    colour = _out.color_system is not None
    for learnt, run in groupby(pieces, key=lambda piece: piece[1]):
        inside = Text("" if colour or not learnt else "⟦")
        for words, _, control in run:
            words = words.replace("\x1b", "␛")  # no text may steer the terminal
            inside.append(words if colour or not control else f"‹{words}›", "bold" if control else "")
        inside.append("" if colour or not learnt else "⟧")
        inside.stylize("green" if learnt else "")
        text.append_text(inside)
    _out.print(text, soft_wrap=True)


def json_line(value: dict[str, Any]) -> None:
    """One JSON object on stdout, where a script may follow."""
    out(json.dumps(value, ensure_ascii=False))


def ask(prompt: str) -> str:
    """Read one line from the person. Raises EOFError at the end of the input."""
    return _out.input(escape(prompt))


class Bar:
    """A progress bar with a remaining-time estimate and one changing note."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, by: float = 1, note: str | None = None) -> None:
        self._progress.update(self._task, advance=by, note=self._note(note))

    def to(self, completed: float, note: str | None = None) -> None:
        self._progress.update(self._task, completed=completed, note=self._note(note))

    def _note(self, note: str | None) -> str:
        return self._progress.tasks[self._task].fields["note"] if note is None else escape(note)


@contextmanager
def progress(what: str, total: float | None) -> Iterator[Bar]:
    """Show a bar on stderr while the block runs. Without a terminal only its last state is printed."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_err, transient=False) as bars:
        task = bars.add_task(escape(what), total=total, note="")
        yield Bar(bars, task)
        if total is None:  # how much there was is known only now
            bars.update(task, total=1, completed=1)
