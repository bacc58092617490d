"""What is done about a finding: a table of situations, read by clinicians, carried out here. Knows no model.

The table and the wordings are data (`tables/protocol.yaml`, `tables/wordings.en.yaml`). An operator's own table is laid
over them with `stricter`, which accepts nothing that weakens them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast, get_args

from warmline.errors import SafetyError
from warmline.safety.resources import Resources, nearest
from warmline.safety.screen import Finding
from warmline.safety.state import SPOKEN, State
from warmline.safety.tables import table

Action = Literal["model", "model_with_resources", "vetted"]
ACTIONS: tuple[Action, ...] = get_args(Action)
"""From weakest to strictest."""


@dataclass(frozen=True, slots=True)
class Situation:
    """One row of the protocol."""

    id: str
    action: Action
    wording: str | None
    resources: bool
    must: tuple[str, ...]
    level: int = 0
    """Lowest level of the conversation."""
    message_level: int = 0
    """Lowest level of the present message."""
    flags: frozenset[str] = frozenset()
    """Any of these, in the present message."""
    rising: bool = False
    """The message has lifted the conversation to this level."""
    first: bool = False
    """The flag has not been seen before in this conversation."""
    unsaid: bool = False
    """No message so far has spoken of death or of hurting oneself: the level was put together from several."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens in this turn. `text` is the whole reply (`vetted`) or what is added below the model's."""

    action: Action
    text: str
    resources: Resources | None
    rules: tuple[str, ...]
    level: int
    flags: frozenset[str]
    situation: str


def _situation(row: Mapping[str, Any]) -> Situation:
    when = row.get("when") or {}
    unknown = set(when) - {"level", "message_level", "flags", "rising", "first", "unsaid"}
    if unknown or row.get("action") not in ACTIONS:
        raise SafetyError(
            f"situation `{row.get('id')}` has an action or a condition that does not exist",
            code="safety-data",
            where="protocol.yaml",
            hint=f"actions are {', '.join(ACTIONS)}; conditions are level, message_level, flags, rising, first, unsaid",
        )
    return Situation(
        id=str(row["id"]),
        action=cast(Action, row["action"]),
        wording=row.get("wording"),
        resources=bool(row.get("resources")),
        must=tuple(row.get("must", ())),
        level=int(when.get("level", 0)),
        message_level=int(when.get("message_level", 0)),
        flags=frozenset(when.get("flags", ())),
        rising=bool(when.get("rising", False)),
        first=bool(when.get("first", False)),
        unsaid=bool(when.get("unsaid", False)),
    )


class Protocol:
    """Situations in order, and their wordings by locale."""

    def __init__(self, rules: Mapping[str, Any], wordings: Mapping[str, Mapping[str, Any]]) -> None:
        self.version = str(rules["version"])
        self.situations = tuple(_situation(row) for row in rules["situations"])
        self.elements: dict[str, list[str]] = {k: list(v) for k, v in rules["elements"].items()}
        self.banned: tuple[str, ...] = tuple(rules["banned"])
        self.wordings: dict[str, dict[str, tuple[str, ...]]] = {
            locale: {name: tuple(many) for name, many in book.items() if isinstance(many, list)}
            for locale, book in wordings.items()
        }
        for situation in self.situations:
            if situation.wording and situation.wording not in self.wordings["en"]:
                raise SafetyError(
                    f"situation `{situation.id}` names the wording `{situation.wording}`, which does not exist",
                    code="safety-data",
                    where="protocol.yaml",
                )

    def locales(self) -> tuple[str, ...]:
        return tuple(self.wordings)

    def wording(self, name: str, locale: str, turn: int) -> str:
        """One of the wordings, another one each turn; English where the locale has none."""
        book = self.wordings.get(locale.split("-")[0].lower(), {})
        many = book.get(name) or self.wordings["en"][name]
        return many[turn % len(many)]

    def say(self, name: str, country: str | None, locale: str, turn: int) -> str:
        """A wording with the country's lines filled in."""
        return fill(self.wording(name, locale, turn), nearest(country))

    def situation(self, state: State, finding: Finding, before: State | None = None) -> Situation:
        """The first situation that applies. `before` is the state ahead of this message, for `rising` and `first`."""
        flags = finding.flags | ({"long_night"} & state.flags)
        known = before.flags if before is not None else frozenset()
        previous = before.level if before is not None else 0
        for situation in self.situations:
            if state.level < situation.level or finding.level < situation.message_level:
                continue
            matching = flags & situation.flags
            if situation.flags and not matching:
                continue
            if situation.rising and state.level <= previous:
                continue
            if situation.first and matching <= known:
                continue
            if situation.unsaid and state.families & SPOKEN:
                continue
            return situation
        return self.situations[-1]


def fill(wording: str, resources: Resources) -> str:
    """Put the lines and the emergency number into a wording."""
    reach = resources.spoken()
    return (
        wording.replace("{reach}", reach)
        .replace("{Reach}", reach[:1].upper() + reach[1:])
        .replace("{emergency}", resources.emergency)
    )


_LOCALES = ("en",)


@cache
def shipped() -> Protocol:
    """The protocol as it ships."""
    return Protocol(table("protocol.yaml"), {locale: table(f"wordings.{locale}.yaml") for locale in _LOCALES})


def stricter(own: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The shipped rules with an operator's own laid over them.

    Raises:
        SafetyError: something was loosened: a situation taken away or narrowed, an action weakened, a required element,
            the resources or a banned phrase dropped. All faults are named at once.
    """
    base = base if base is not None else table("protocol.yaml")
    faults: list[str] = []
    mine = {row["id"]: row for row in own.get("situations", base["situations"])}
    order = [row["id"] for row in own.get("situations", base["situations"])]
    for row in base["situations"]:
        there = mine.get(row["id"])
        if there is None:
            faults.append(f"situation `{row['id']}` is missing")
            continue
        if ACTIONS.index(there["action"]) < ACTIONS.index(row["action"]):
            faults.append(f"situation `{row['id']}`: `{there['action']}` is weaker than `{row['action']}`")
        if row.get("resources") and not there.get("resources"):
            faults.append(f"situation `{row['id']}` no longer shows resources")
        if missing := set(row.get("must", ())) - set(there.get("must", ())):
            faults.append(f"situation `{row['id']}` no longer requires {', '.join(sorted(missing))}")
        new, old = there.get("when") or {}, row.get("when") or {}
        narrower = (
            any(new.get(key, 0) > old.get(key, 0) for key in ("level", "message_level", "rising", "first", "unsaid"))
            or (not old.get("flags") and new.get("flags"))
            or not set(old.get("flags", ())) <= set(new.get("flags", old.get("flags", ())))
        )
        if narrower:
            faults.append(f"situation `{row['id']}` applies less often than it did")
    shipped_order = [row["id"] for row in base["situations"]]
    kept = [name for name in order if name in shipped_order]
    if kept != [name for name in shipped_order if name in kept]:
        faults.append("the order of the shipped situations was changed")
    first_kept: dict[str, int] = {name: order.index(name) for name in kept}
    for place, name in enumerate(order):
        if name not in shipped_order and mine[name].get("action") != "vetted":
            later = [other for other in kept if first_kept[other] > place]
            if any(ACTIONS.index(mine[name]["action"]) < ACTIONS.index(mine[other]["action"]) for other in later):
                faults.append(f"the added situation `{name}` stands before a stricter one")
    if missing_words := set(base["banned"]) - set(own.get("banned", base["banned"])):
        faults.append(f"{len(missing_words)} banned phrases were taken away")
    if faults:
        raise SafetyError(
            f"the protocol was loosened in {len(faults)} place{'s' if len(faults) > 1 else ''}: {'; '.join(faults)}",
            code="safety-data",
            hint="a protocol of your own may only make the shipped one stricter",
        )
    return {**base, **own}


def decide(
    state: State,
    finding: Finding,
    country: str | None,
    locale: str,
    turn: int,
    *,
    before: State | None = None,
    protocol: Protocol | None = None,
) -> Decision:
    """What to do in this turn.

    `state` is the conversation after this message, `before` the one ahead of it; `turn` picks the wording.
    """
    rules = protocol or shipped()
    situation = rules.situation(state, finding, before)
    resources = nearest(country) if situation.resources else None
    text = fill(rules.wording(situation.wording, locale, turn), nearest(country)) if situation.wording else ""
    return Decision(
        situation.action,
        text,
        resources,
        (*finding.rules, f"protocol.{situation.id}"),
        state.level,
        finding.flags | state.flags,
        situation.id,
    )
