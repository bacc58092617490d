"""Carry out a recipe: data → (a new base) → train → evaluate, each stage only if it is not there already."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from warmline import console, recipe
from warmline.errors import DataError
from warmline.runs import Run, Stage, environment, fingerprint, sha256, write_atomically, write_json


def _source_hash(source: str) -> str:
    """What a source holds now, so that changed data is never taken for the old. A hub id is known by its name."""
    if source == "sample":
        from warmline.corpus.read import SAMPLE

        return sha256(Path(str(SAMPLE)))
    path = Path(source).expanduser()
    if path.is_file():
        return sha256(path)
    if path.is_dir():
        return fingerprint({str(p.relative_to(path)): sha256(p) for p in sorted(path.rglob("*")) if p.is_file()})
    return source


class Job:
    """One recipe on its way through the stages of one run folder."""

    def __init__(self, settings: recipe.Recipe, runs: Path) -> None:
        self.settings = settings
        self.run = Run.create(runs / settings.name)

    def carry_out(self) -> dict[str, Any]:
        """Do what is not done yet and return the measurement. Holds the run's lock.

        Of several processes (`accelerate launch`) the first prepares and measures, all train together; the others
        end when the training has.
        """
        began = time.monotonic()
        if self.settings.base.model != "new":
            from warmline.model import load

            load.check(self.settings.base)
        from warmline.train import group

        self.group = group.join()
        if not self.group.leads:
            console.hush()
            self.group.wait()
            self.train(self.data(), self.base(self.data()))
            group.leave()
            raise SystemExit(0)
        with self.run.locked():
            write_atomically(self.run.folder / "recipe.yaml", recipe.dump(self.settings))
            write_json(self.run.folder / "environment.json", environment())
            data = self.data()
            settings = self.base(data)
            self.group.wait()
            train = self.train(data, settings)
            group.leave()
            measured = self.evaluate(data, train, settings)
        return measured | {"seconds": round(time.monotonic() - began, 1)}

    def _stage(self, name: str, what: str, inputs: dict[str, Any]) -> tuple[Stage, bool]:
        stage = self.run.stage(name, inputs)
        if stage.finished:
            console.say(f"{what}: done before, kept")
        else:
            console.heading(what)
        return stage, stage.finished

    def data(self) -> Stage:
        from warmline.corpus.pipeline import Choices, prepare

        section = self.settings.data
        inputs = {
            "data": section.model_dump(mode="json"),
            "sources": {source: _source_hash(source) for source in section.sources},
        }
        stage, done = self._stage("data", "1 of 3 · conversations", inputs)
        if not done:
            summary = prepare(section, stage.begin(), Choices(lint=section.lint, dedupe=section.dedupe))
            stage.finish(summary, inputs)
        return stage

    def base(self, data: Stage) -> recipe.Recipe:
        """The settings with a real base in them: for `new`, one is made first."""
        if self.settings.base.model != "new":
            return self.settings
        from warmline.train.tune import prepare_base

        inputs = {"data": data.key, "new": self.settings.base.new.model_dump(), "seed": self.settings.train.seed}
        stage, done = self._stage("base", "a new base", inputs)
        if not done:
            stage.finish(prepare_base(self.settings, data.folder, stage.begin()), inputs)
        made = self.settings.base.model_copy(update={"model": str(stage.folder)})
        return self.settings.model_copy(update={"base": made})

    def train(self, data: Stage, settings: recipe.Recipe) -> Stage:
        from warmline.model.load import identity
        from warmline.train import checkpoint
        from warmline.train.tune import tune

        base = identity(settings.base)
        inputs = {
            "data": data.key,
            "base": {"identity": base.get("hash", base), **settings.base.model_dump(exclude={"model", "new"})},
            "prompt": settings.prompt.model_dump(mode="json"),
            "adapter": settings.adapter.model_dump(mode="json"),
            "train": settings.train.model_dump(mode="json"),
        }
        stage, done = self._stage("train", "2 of 3 · training", inputs)
        if not done:
            checkpoint.same(stage.partial, inputs)
            if self.group.leads:
                stage.begin()
            self.group.wait()
            summary = tune(settings, data.folder, stage.partial, group=self.group, made_from=inputs)
            if self.group.leads:
                stage.finish(summary, inputs)
        return stage

    def evaluate(self, data: Stage, train: Stage, settings: recipe.Recipe) -> dict[str, Any]:
        from warmline.evaluate import measure

        console.heading("3 of 3 · base against tuned, on conversations neither has seen")
        _, measured = measure.evaluate(self.run, settings)
        return measured


def show(run: Run, measured: dict[str, Any]) -> None:
    """Print base and tuned side by side."""
    rows = []
    for name, found in measured["models"].items():
        p = found["perplexity"]
        rows.append([name, f"{p['value']:.2f}", f"{p['low']:.2f} to {p['high']:.2f}"])
    console.table(
        f"perplexity on {measured['conversations']} held-out conversations (lower is better)",
        ["model", "perplexity", "95 % interval"],
        rows,
    )
    ratio = measured["ratio"]
    console.say(
        f"tuned / base: {ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}); below 1 the tuned is better"
    )
    base, tuned = measured["models"]["base"]["replies"], measured["models"]["tuned"]["replies"]
    if base:
        console.table(
            "the bare models' first replies (a visitor never meets the bare model)",
            ["asked", "base", "tuned"],
            [[b["prompt"], b["reply"], t["reply"]] for b, t in zip(base, tuned, strict=True)],
        )
    console.say(f"report: {run.folder / 'evaluation' / 'report.html'}")


def require_data(sources: tuple[str, ...]) -> None:
    """Say at once, before anything is made, which sources are not there."""
    missing = [
        s for s in sources if s != "sample" and not Path(s).expanduser().exists() and (s.count("/") != 1 or "." in s)
    ]
    if missing:
        raise DataError(
            f"{', '.join(missing)} does not exist",
            code="data-missing",
            hint="name a file, a folder, a hub dataset id such as `owner/name`, or `sample`",
        )
