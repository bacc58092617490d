"""What the law of a place asks of a conversation with a machine: notices, breaks, off-mode. Data, not legal advice.

Knows the packs in `tables/packs.yaml` and the clock, no model and no page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any

from warmline.errors import SafetyError
from warmline.safety.tables import table


@dataclass(frozen=True, slots=True)
class Pack:
    """The rules of one jurisdiction, with the sources they were read from."""

    code: str
    name: str
    citations: tuple[str, ...]
    checked: date
    notice: str
    """Text shown before the first message; may hold {reach}."""
    remind_every: timedelta
    """At most so long between two notices in a running conversation."""
    remind_minors_every: timedelta
    idle: timedelta
    """After so long without a message the first notice is shown again."""
    asked: bool
    """Say what it is whenever asked."""
    off: bool
    """The service must not be offered here; only resources are shown."""
    minors: str
    """`allowed`, `protected` (shorter reminders, adult named) or `refused`."""
    counters: tuple[str, ...]
    """Yearly counts to be published, without identifiers."""
    note: str


def _pack(code: str, row: Mapping[str, Any]) -> Pack:
    try:
        return Pack(
            code=code,
            name=row["name"],
            citations=tuple(row["citations"]),
            checked=date.fromisoformat(str(row["checked"])),
            notice=" ".join(row["notice"].split()),
            remind_every=timedelta(hours=row["remind_every_hours"]),
            remind_minors_every=timedelta(hours=row["remind_minors_every_hours"]),
            idle=timedelta(days=row["idle_days"]),
            asked=bool(row["answer_when_asked"]),
            off=bool(row["not_offered"]),
            minors=row["minors"],
            counters=tuple(row["counters"]),
            note=" ".join(row.get("note", "").split()),
        )
    except (KeyError, TypeError, ValueError):
        raise SafetyError(
            f"policy pack `{code}` lacks an entry or has one of the wrong kind",
            code="safety-data",
            where="packs.yaml",
            hint="compare it with the pack `default`",
        ) from None


@cache
def packs() -> dict[str, Pack]:
    """All shipped packs by code."""
    rows = table("packs.yaml")["packs"]
    default = rows["default"]
    return {code: _pack(code, {**default, **row}) for code, row in rows.items()}


def pack_for(code: str | None) -> Pack:
    """The pack of a jurisdiction; `default`, the strictest common ground, for any other or none."""
    return packs().get(code or "default", packs()["default"])


def notice_due(
    pack: Pack, *, began: bool, last_notice: datetime | None, last_seen: datetime | None, now: datetime, minor: bool
) -> str | None:
    """Which notice is due: `disclosure`, `welcome_back`, `reminder`, or none. A clock set back asks for one."""
    if not began or last_notice is None:
        return "disclosure"
    if last_seen is not None and now - last_seen >= pack.idle:
        return "welcome_back"
    every = pack.remind_minors_every if minor else pack.remind_every
    if now - last_notice >= every or now < last_notice:
        return "reminder"
    return None
