"""Models side by side on any prompt, and what people prefer when they do not know which is which.

The bare models, without the guard: for whoever builds them, never for a visitor. Votes lie in the run's `compare/`.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

from warmline import recipe
from warmline.engine.base import Engine, Options
from warmline.errors import WarmlineError
from warmline.evaluate import intervals, quantised
from warmline.evaluate.asking import ask
from warmline.messages import Message
from warmline.runs import Run, read_jsonl, write_jsonl, writing
from warmline.safety.screen import screen

Choice = Literal["left", "right", "tie"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

Speak = Callable[[str, int], str]
"""A prompt and a seed to a reply."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What systems said to one prompt, in the order in which it is shown; blind, there are two. `level` is what the
    guard saw."""

    id: str
    prompt: str
    names: tuple[str, ...]
    says: tuple[str, ...]
    blind: bool
    level: int


@dataclass(frozen=True, slots=True)
class Tally:
    """How often `of` was preferred to `over`: Wilson's interval over the blind votes that chose one."""

    of: str
    over: str
    wins: int
    losses: int
    ties: int
    rate: intervals.Interval | None

    def __str__(self) -> str:
        if self.rate is None:
            return f"{self.of} against {self.over}: no blind vote that chose one yet"
        r = self.rate
        return (
            f"{self.of} preferred to {self.over} in {self.wins} of {r.n} blind votes: {100 * r.value:.0f} % "
            f"(95 % interval {100 * r.low:.0f} to {100 * r.high:.0f}), {self.ties} ties"
        )


class Comparison:
    """Asks the systems and keeps the votes. `folder` holds `votes.jsonl`."""

    def __init__(
        self, systems: dict[str, Speak], folder: Path, *, blind: bool, dice: random.Random | None = None
    ) -> None:
        if len(systems) < 2:
            raise WarmlineError(
                "it takes two different models to compare", code="usage", hint="for instance --systems base,tuned"
            )
        self.systems, self.blind = systems, blind
        self._file = folder / "votes.jsonl"
        self._dice = dice or random.SystemRandom()
        self._open: dict[str, Pair] = {}

    def ask(self, prompt: str) -> Pair:
        """Every reply, with the same seed; blind: two of them, and their order, drawn anew for each prompt.

        Raises:
            EngineError: a model cannot reply, for instance because the prompt is too long.
        """
        names = list(self.systems)
        if self.blind:
            names = self._dice.sample(names, 2)
        seed = self._dice.randrange(2**31)
        said = tuple(self.systems[name](prompt, seed) for name in names)
        pair = Pair(secrets.token_hex(8), prompt, tuple(names), said, self.blind, screen(prompt).level)
        self._open[pair.id] = pair
        return pair

    def vote(self, id: str, choice: Choice) -> Pair:
        """Keep a vote, one for each pair; returns the pair with its names.

        Raises:
            WarmlineError: there is no such pair, it was voted on, its names were known, or the choice is none.
        """
        if choice not in CHOICES or id not in self._open or not self.blind:
            raise WarmlineError(
                "there is no such vote to cast", code="usage", hint=f"ask first; choices: {', '.join(CHOICES)}"
            )
        pair = self._open.pop(id)
        left, right = pair.names
        row = {
            "id": pair.id,
            "prompt": pair.prompt,
            "left": left,
            "right": right,
            "left_says": pair.says[0],
            "right_says": pair.says[1],
            "blind": pair.blind,
            "level": pair.level,
            "choice": choice,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with writing(self._file.parent):
            write_jsonl(self._file, [*self.votes(), row])
        return pair

    def votes(self) -> list[dict[str, Any]]:
        return list(read_jsonl(self._file)) if self._file.exists() else []

    def tallies(self) -> list[Tally]:
        """Each system's wins over those named before it."""
        votes = self.votes()
        return [tally(votes, of, over) for over, of in combinations(self.systems, 2)]


def tally(votes: Iterable[dict[str, Any]], of: str, over: str) -> Tally:
    """Count the blind votes between two systems; those on other pairs, and those that knew, do not count.

    >>> row = {"left": "base", "right": "tuned", "blind": True, "choice": "right"}
    >>> str(tally([row] * 3 + [row | {"choice": "tie"}], "tuned", "base"))
    'tuned preferred to base in 3 of 3 blind votes: 100 % (95 % interval 44 to 100), 1 ties'
    """
    mine = [v for v in votes if v["blind"] and {v["left"], v["right"]} == {of, over}]
    chosen = [v[v["choice"]] for v in mine if v["choice"] != "tie"]
    wins = chosen.count(of)
    rate = intervals.share([name == of for name in chosen]) if chosen else None
    return Tally(of, over, wins, len(chosen) - wins, len(mine) - len(chosen), rate)


# ---------------------------------------------------------------------- what can be compared


def open_systems(run: Run, settings: recipe.Recipe, names: Sequence[str]) -> dict[str, Speak]:
    """Load what is to be compared: `base`, `tuned`, or `gguf-QUANT` of the run's export.

    Raises:
        WarmlineError: there is none of that name.
        ModelError: it cannot be loaded.
    """
    from warmline.engine.local import LocalEngine
    from warmline.opening import LONGEST_REPLY, open_engine

    files = {f"gguf-{quant}": path for quant, path in quantised.ggufs(run).items()}
    known = ["base", "tuned", *files]
    if unknown := [name for name in names if name not in known]:
        raise WarmlineError(
            f"--systems {', '.join(unknown)}: this run has no such model",
            code="usage",
            hint=f"it has: {', '.join(known)}",
        )
    asked = settings.evaluate
    options = Options(
        min(LONGEST_REPLY, settings.prompt.context // 3), asked.temperature, asked.top_p, asked.repetition_penalty
    )
    train = run.folder / run.tuned
    apart = (train / "model").exists()
    shared: LocalEngine | None = None
    systems: dict[str, Speak] = {}
    for name in names:
        engine: Engine
        if name in files:
            from warmline.engine.choice import Choice as EngineChoice
            from warmline.engine.choice import Files

            chosen = EngineChoice("llamacpp", "it was asked for", Files(files[name], merged=True))
            engine = open_engine(run, settings, chosen)
        elif apart:
            engine = LocalEngine.open(settings, train if name == "tuned" else None, name)
        else:
            engine = shared = shared or LocalEngine.open(settings, train, run.name)
        systems[name] = speaker(engine, replace(options, adapter=name != "base" or apart))
    return systems


def speaker(engine: Engine, options: Options) -> Speak:
    """One engine's bare replies."""
    return lambda prompt, seed: str(ask(engine, [Message("user", prompt)], replace(options, seed=seed))["reply"])
