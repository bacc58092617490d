"""The safety part of an evaluation: the suites on every system, the same through `chat`, visitors, and the gate.

Knows where the parts lie; what is asked and how it is scored is in `suites`, `visitors` and `gate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from warmline.chat import Chat
from warmline.console import warn
from warmline.engine.base import Engine, Options
from warmline.errors import EngineError
from warmline.evaluate import gate, intervals, visitors
from warmline.evaluate.asking import Speaker, Task, ask
from warmline.evaluate.leak import Item
from warmline.evaluate.suites import TOKENS, Recorded, Reply, Row, Suite, run, through
from warmline.runs import read_json


def items_of(suites: Sequence[Suite]) -> list[Item]:
    """The suites' prompts as items of the leak check."""
    return [Item("suites", f"{suite.name}/{item.id}", (item.ask,)) for suite in suites for item in suite.items]


def unseen(suites: Sequence[Suite], contaminated: frozenset[str]) -> tuple[Suite, ...]:
    """The suites without what training holds."""
    left = (replace(s, items=tuple(i for i in s.items if f"{s.name}/{i.id}" not in contaminated)) for s in suites)
    return tuple(suite for suite in left if suite.items)


def bare(engine: Speaker, options: Options) -> Reply:
    """The model's own first sentences, nothing before or behind it."""
    short = replace(options, max_tokens=min(options.max_tokens, TOKENS))
    return lambda messages: str(ask(engine, messages, short)["reply"])


def carry_out(task: Task, system: str, engine: Speaker, options: Options) -> None:
    """Put the suites to one system."""
    task.part(system, "safety", lambda: run(bare(engine, options), unseen(task.suites, task.contaminated)))


def visits(task: Task, system: str, engine: Speaker, options: Options, player: Engine | None = None) -> None:
    """Let the visitors talk to the product with this model in it; scripted always, played when there is a player."""
    prompt = task.settings.prompt

    def talk(by: Engine | None) -> dict[str, Any]:
        door = Chat(
            engine,
            system=prompt.system,
            options=options,
            fits=lambda messages: engine.fits(messages, options.max_tokens),
        )
        try:
            return visitors.summary(visitors.run(door, visitors.read(), by))
        finally:
            door.close()

    task.part(system, "visits", lambda: talk(None))
    if player is not None:
        try:
            task.part(system, "visits-played", lambda: talk(player))
        except EngineError as error:
            warn(f"the played visitors could not come: {error}")


def together(task: Task, systems: Sequence[str]) -> dict[str, Any]:
    """The gate's decision, written, and what the suites and visitors found, for the report."""
    suites = unseen(task.suites, task.contaminated)
    rows: dict[str, list[Row]] = {name: read_json(task.folder / name / "safety.json") for name in systems}
    shown = {
        name: task.part(
            name,
            "safety-shown",
            lambda said=said: run(through(Recorded(said), task.settings.prompt.system), suites),  # type: ignore[misc]
        )
        for name, said in rows.items()
    }
    decided = gate.write(task.folder, rows)
    products = {
        f"{new} − {old}": gate.decide(shown[old], shown[new])["differences"][:2]
        for new, old in [("tuned", "base"), *((name, "tuned") for name in systems if name not in ("base", "tuned"))]
    }
    talks = {part: task.folder / "tuned" / f"{part}.json" for part in ("visits", "visits-played")}
    return {
        "suites": {suite.name: {"says": suite.says, "items": len(suite.items)} for suite in suites},
        "bare": {name: _shares(found) for name, found in rows.items()},
        "shown": {name: _shares(found) for name, found in shown.items()},
        "slices": {name: _slices(found) for name, found in shown.items()},
        "gate": decided,
        "product": products,
    } | {part: read_json(path) for part, path in talks.items() if path.exists()}


def _shares(rows: Sequence[Row]) -> dict[str, Any]:
    """Both findings for each suite and for all, with Wilson intervals."""
    found = {}
    for suite in ("all", *dict.fromkeys(row["suite"] for row in rows)):
        mine = [row for row in rows if suite in ("all", row["suite"])]
        found[suite] = {
            name: asdict(intervals.share([bool(row[name]) for row in mine]))  # type: ignore[literal-required]
            for name in gate.FINDINGS
        }
    return found


def _slices(rows: Sequence[Row]) -> dict[str, Any]:
    """For each slice of each suite: of how many, how many were met and how many did harm."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        counts = found.setdefault(f"{row['suite']}: {row['slice']}", {"items": 0, "met": 0, "harmful": 0})
        counts["items"] += 1
        counts["met"] += row["met"]
        counts["harmful"] += not row["harmless"]
    return found
