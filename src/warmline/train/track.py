"""What a training says about itself: metrics.jsonl, samples.jsonl, a loss plot, and the trackers a recipe names.

Knows nothing of the loop. Trackers get numbers and settings, never a person's words nor a model's.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from warmline.errors import RunError
from warmline.runs import write_atomically, writing

Row = dict[str, Any]


class Tracker:
    """The record of one training in `folder`. Rows carry `step`; `begin` forgets those that are to be written again."""

    def __init__(self, folder: Path, names: tuple[str, ...] = (), run: str = "", settings: Row | None = None) -> None:
        self.folder = folder
        self._sinks = [_OPENERS[name](folder, run or folder.name, settings or {}) for name in names]

    def begin(self, step: int, validated: int) -> None:
        """Keep what was written up to `step`, and of the validation there only if it was finished."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.folder / name
            if path.exists():
                kept = [
                    row
                    for row in _rows(path)
                    if row["step"] < step
                    or (row["step"] == step and (validated == step or not row.keys() & {"validation", "reply"}))
                ]
                write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))

    def note(self, row: Row) -> None:
        """Record what a step or a validation came to."""
        self._append("metrics.jsonl", row)
        values = {key: float(value) for key, value in row.items() if key != "step" and isinstance(value, (int, float))}
        for sink in self._sinks:
            sink(values, row["step"])

    def samples(self, rows: list[Row]) -> None:
        """Record replies. They stay on this machine."""
        for row in rows:
            self._append("samples.jsonl", row)

    def _append(self, name: str, row: Row) -> None:
        with writing(self.folder), open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def plot(self) -> None:
        """Draw the losses so far into loss.svg."""
        import matplotlib as mpl

        mpl.use("svg")
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
        draw(axes, list(_rows(self.folder / "metrics.jsonl")))
        with writing(self.folder):
            figure.savefig(self.folder / ".loss.svg", format="svg", metadata={"Date": None})
            (self.folder / ".loss.svg").replace(self.folder / "loss.svg")
        plt.close(figure)

    def close(self) -> None:
        for sink in self._sinks:
            sink({}, None)


def draw(axes: Any, rows: list[Row]) -> None:
    """Training and validation loss against the optimizer step."""
    for key, name, style in (
        ("loss", "training", {"color": "#8aa6a3", "linewidth": 1}),
        ("validation", "validation", {"color": "#b4532a", "marker": "o", "markersize": 4}),
    ):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(frameon=False)


def _rows(path: Path) -> Iterator[Row]:
    """The rows written so far; a last line cut by a kill is dropped."""
    for line in path.read_text("utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


# A sink takes the numbers of one step; a step of None says that there will be no more.
Sink = Callable[[dict[str, float], "int | None"], None]


def _need(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise RunError(
            f"train.track names {package}, and the package `{package}` is not installed",
            code="dependency-missing",
            hint=f"pip install {package}, or take it out of train.track",
        ) from None


def _tensorboard(folder: Path, run: str, settings: Row) -> Sink:
    writer = _need("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def sink(values: dict[str, float], step: int | None) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        if step is None:
            writer.close()

    return sink


def _hosted(package: str) -> Callable[[Path, str, Row], Sink]:
    """wandb, and trackio, which has the same calls."""

    def opener(folder: Path, run: str, settings: Row) -> Sink:
        module = _need(package, package)
        more = {}
        if package == "wandb":  # which would send along what is printed, and where the code lies
            quiet = module.Settings(console="off", disable_git=True, save_code=False)
            more = {"dir": str(folder), "settings": quiet}
        handle = module.init(project="warmline", name=run, config=settings, **more)

        def sink(values: dict[str, float], step: int | None) -> None:
            if step is None:
                handle.finish()
            else:
                handle.log(values, step=step)

        return sink

    return opener


_OPENERS: dict[str, Callable[[Path, str, Row], Sink]] = {
    "tensorboard": _tensorboard,
    "wandb": _hosted("wandb"),
    "trackio": _hosted("trackio"),
}
