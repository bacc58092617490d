"""Ten real steps of a training, to know what the plan can only assume. Leaves nothing behind."""

from __future__ import annotations

import contextlib
import resource
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from warmline import recipe
from warmline.model.texts import Texts
from warmline.train.loop import Loop, chosen
from warmline.train.plan import Plan
from warmline.train.track import Row, Tracker
from warmline.train.tune import model_to_train

STEPS = 10
SECONDS = 60.0
"""A probe takes about so long at most, loading the base aside; its steps take fewer conversations if need be."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What the steps came to. `peak` is in bytes: of the GPU, or of this whole program on a CPU."""

    steps: int
    tokens_per_second: float
    peak: float


class _Enough(Exception):
    """The time is over."""


class _Watch(Tracker):
    """Notes what each step took, draws nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seconds: list[float] = []

    def note(self, row: Row) -> None:
        self.seconds.append(float(row["seconds"]))
        if sum(self.seconds) > SECONDS:
            raise _Enough

    def plot(self) -> None:
        pass


def probe(settings: recipe.Recipe, plan: Plan, train: Texts) -> Probe:
    """Load the base, take up to ten steps on the training texts and throw the result away."""
    each = plan.seconds / plan.steps if plan.seconds and plan.steps else 0.0
    batch = settings.train.batch
    if each * STEPS > SECONDS:
        batch = max(1, int(batch * SECONDS / (each * STEPS)))
    changes: dict[str, Any] = {"steps": STEPS, "batch": batch, "pack": plan.pack, "keep": "last", "patience": None}
    changes |= {"save_every": 10**9, "save_seconds": 1e9, "optimizer": plan.optimizer}
    with tempfile.TemporaryDirectory() as folder:
        watch = _Watch(Path(folder))
        few = settings.train.model_copy(update=changes)
        model, again = model_to_train(settings), plan.recompute
        loop = Loop(model, train.encoded, [], few, Path(folder), tracker=watch, recompute=again)
        with contextlib.suppress(_Enough):
            loop.run(f"{STEPS} steps to try")
    rates = [
        sum(len(train.encoded[i]) for i in chosen(step, train.encoded, few)) / seconds
        for step, seconds in enumerate(watch.seconds)
    ]
    if torch.cuda.is_available():
        peak = float(torch.cuda.max_memory_allocated())
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return Probe(len(rates), statistics.median(rates[1:] or rates), peak)
