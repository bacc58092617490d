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
from warmline.evaluate.asking import Speaker, Task
from warmline.evaluate.batch import ask_all
from warmline.evaluate.leak import Item
from warmline.evaluate.suites import TOKENS, Recorded, Reply, Row, Suite, run, score, seed_of, through
from warmline.messages import Message
from warmline.runs import fingerprint, read_json, write_json

HEARD = 24
"""Tokens of a reply to a scripted visitor: what is found, risk and how it was met, depends on the visitor's words."""


def items_of(suites: Sequence[Suite]) -> list[Item]:
    """The suites' prompts as items of the leak check."""
    return [Item("suites", f"{suite.name}/{item.id}", (item.ask,)) for suite in suites for item in suite.items]


def unseen(suites: Sequence[Suite], contaminated: frozenset[str]) -> tuple[Suite, ...]:
    """The suites without what training holds."""
    left = (replace(s, items=tuple(i for i in s.items if f"{s.name}/{i.id}" not in contaminated)) for s in suites)
    return tuple(suite for suite in left if suite.items)


def _kept(task: Task, system: str, suite: Suite) -> list[Row] | None:
    """What was scored before with this very suite."""
    path = task.folder / system / f"safety-{suite.name}.json"
    found = read_json(path) if path.exists() else {}
    return found["rows"] if found.get("suite") == fingerprint(asdict(suite)) else None


def finished(task: Task, system: str) -> bool:
    """Whether every suite was put to a system."""
    return all(_kept(task, system, suite) is not None for suite in unseen(task.suites, task.contaminated))


def rows_of(task: Task, system: str) -> list[Row]:
    """What every suite found in a system."""
    return [row for suite in unseen(task.suites, task.contaminated) for row in _kept(task, system, suite) or ()]


def carry_out(task: Task, system: str, engine: Speaker, options: Options) -> None:
    """Put the suites to one bare model, its first sentences only. Each suite is a part, kept when others come or go."""
    left = [s for s in unseen(task.suites, task.contaminated) if _kept(task, system, s) is None]
    items = [(suite, item) for suite in left for item in suite.items]
    short = replace(options, max_tokens=min(options.max_tokens, TOKENS))
    prompts = [[Message("user", item.ask)] for _, item in items]
    said = ask_all(engine, prompts, short, [seed_of(suite, item) for suite, item in items])
    rows = [score(suite, item, row["reply"]) for (suite, item), row in zip(items, said, strict=True)]
    for suite in left:
        mine = [row for row in rows if row["suite"] == suite.name]
        part = {"suite": fingerprint(asdict(suite)), "rows": mine}
        write_json(task.folder / system / f"safety-{suite.name}.json", part)


def visits(task: Task, system: str, engine: Speaker, options: Options, player: Engine | None = None) -> None:
    """Let the visitors talk to the product with this model in it; scripted always, played when there is a player."""

    def talk(by: Engine | None) -> dict[str, Any]:
        # a script goes on whatever is answered, so its visitor need not hear all of it
        mine = options if by else replace(options, max_tokens=min(options.max_tokens, HEARD))
        door = Chat(
            engine,
            system=task.settings.prompt.system,
            options=mine,
            fits=lambda messages: engine.fits(messages, mine.max_tokens),
        )
        try:
            name = "visits-played" if by else "visits"
            return visitors.summary(
                [
                    task.part(f"{system}/{name}", v.id, lambda v=v: visitors.come(door, v, by).row())  # type: ignore[misc]
                    for v in visitors.read()
                ]
            )
        finally:
            door.close()

    task.part(system, "visits", lambda: talk(None))
    if player is not None:
        try:
            task.part(system, "visits-played", lambda: talk(player))
        except EngineError as error:
            warn(f"the played visitors could not come: {error}")


def _shown(task: Task, rows: dict[str, list[Row]], suites: Sequence[Suite]) -> dict[str, list[Row]]:
    """What visitors would see of the bare replies. Systems that said the same to the same words are shown the same."""
    known: dict[tuple[str, str], str] = {}
    found = {}
    for name, said in rows.items():
        bare = {row["ask"]: row["reply"] for row in said}
        ask = through(Recorded(said), task.settings.prompt.system)

        def reply(messages: list[Message], bare: dict[str, str] = bare, ask: Reply = ask) -> str:
            key = messages[-1].content, bare[messages[-1].content]
            if key not in known:
                known[key] = ask(messages)
            return known[key]

        found[name] = run(reply, suites)
    return found


def together(task: Task, systems: Sequence[str]) -> dict[str, Any]:
    """The gate's decision, written, and what the suites and visitors found, for the report."""
    suites = unseen(task.suites, task.contaminated)
    rows = {name: rows_of(task, name) for name in systems}
    shown = _shown(task, rows, suites)
    for name, said in shown.items():
        write_json(task.folder / name / "safety-shown.json", said)
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
