"""Where a person can reach a human: lines and emergency numbers by country. Knows no conversation.

Only lines whose sources agree are shown, and only until their expiry. For any other country there are two directories
and the local emergency number. A country is what the visitor chose or the operator configured, never a guess.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from typing import Any

from warmline.errors import SafetyError
from warmline.safety.tables import read

UNKNOWN = "ZZ"
LOCAL_EMERGENCY = "your local emergency number (112 works on most mobile networks)"


@dataclass(frozen=True, slots=True)
class Line:
    """One way to reach someone. `tel` and `sms` are links that a phone can follow; empty where there is none."""

    label: str
    number: str = ""
    tel: str = ""
    sms: str = ""
    sms_number: str = ""
    chat: str = ""
    url: str = ""
    hours: str = ""

    def spoken(self) -> str:
        """As part of a sentence: "call or text 988 (988 Suicide & Crisis Lifeline, 24/7)"."""
        about = f" ({self.label}{', ' + self.hours if self.hours else ''})"
        if self.number and self.sms_number:
            same = self.number == self.sms_number
            return (f"call or text {self.number}" if same else f"call {self.number} or text {self.sms_number}") + about
        if self.number:
            return f"call {self.number}{about}"
        if self.sms_number:
            return f"text {self.sms_number}{about}"
        return self.url


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table as it stands, with its sources."""

    country: str
    name: str
    emergency: str
    line: Line
    sources: tuple[str, ...]
    status: str
    checked: date
    expires: date
    note: str


@dataclass(frozen=True, slots=True)
class Resources:
    """What is shown to a visitor of one country. `fallback`: the country has no line that may be shown."""

    country: str
    name: str
    lines: tuple[Line, ...]
    emergency: str
    emergency_tel: str
    fallback: bool
    expired: bool
    """Rows of this country have passed their expiry; the operator should check them."""

    def spoken(self) -> str:
        """The lines as part of a sentence that begins with "you can"."""
        if self.fallback:
            sites = " or ".join(line.url for line in self.lines)
            return f"find a free line in your country at {sites}"
        first = self.lines[0].spoken()
        return f"{first}, or find another line at findahelpline.com"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"lines": [asdict(line) for line in self.lines]}


def _link(scheme: str, number: str) -> str:
    digits = re.sub(r"[^\d+*#]", "", number)
    return f"{scheme}:{digits}" if digits else ""


def _row(cells: dict[str, str], number: int) -> Row:
    try:
        phone = cells["phone"]
        return Row(
            cells["country"],
            cells["name"],
            cells["emergency"],
            Line(
                label=cells["label"],
                number=phone,
                tel=_link("tel", phone),
                sms=_link("sms", cells["sms"]),
                sms_number=cells["sms"],
                chat=cells["chat"],
                url=cells["url"],
                hours=cells["hours"],
            ),
            tuple(source for source in (cells["source_1"], cells["source_2"]) if source),
            cells["status"],
            date.fromisoformat(cells["checked"]),
            date.fromisoformat(cells["expires"]),
            cells["note"],
        )
    except (KeyError, ValueError, TypeError):
        raise SafetyError(
            f"row {number} of the table of resources cannot be read",
            code="safety-data",
            where=f"resources.csv:{number}",
            hint="dates are written 2026-08-08; compare the heading with the shipped table",
        ) from None


@cache
def rows() -> tuple[Row, ...]:
    """The whole shipped table, inactive rows included."""
    return tuple(_row(cells, n) for n, cells in enumerate(csv.DictReader(io.StringIO(read("resources.csv"))), 2))


def countries() -> dict[str, str]:
    """Codes and names of all countries in the table, for a list to choose from."""
    return {row.country: row.name for row in rows() if row.country != UNKNOWN}


def resources_for(country: str | None, today: date | None = None) -> Resources:
    """What to show to a visitor of this country (ISO code such as "GB", any case; None when it is not known).

    Raises:
        SafetyError: `country-unknown`, no such code in the table.
    """
    code = (country or UNKNOWN).strip().upper()
    code = {"UK": "GB", "": UNKNOWN}.get(code, code)
    mine = [row for row in rows() if row.country == code]
    if not mine:
        raise SafetyError(
            f"no country `{code[:8]}` in the table of resources",
            code="country-unknown",
            hint=f"known codes: {', '.join(countries())}; leave it out for the international directories",
        )
    today = today or date.today()
    active = [row for row in mine if row.status == "active"]
    valid = [row.line for row in active if row.expires >= today]
    confirmed = mine[0].emergency if active else ""
    if not valid:
        world = tuple(row.line for row in rows() if row.country == UNKNOWN)
        return Resources(
            code,
            mine[0].name,
            world,
            confirmed or LOCAL_EMERGENCY,
            _link("tel", confirmed),
            fallback=True,
            expired=bool(active),
        )
    return Resources(
        code, mine[0].name, tuple(valid), confirmed, _link("tel", confirmed), False, len(valid) < len(active)
    )


def nearest(country: str | None, today: date | None = None) -> Resources:
    """Like `resources_for`, but an unknown code gives the international directories. For use while someone waits."""
    try:
        return resources_for(country, today)
    except SafetyError:
        return resources_for(None, today)


@cache
def known_numbers() -> frozenset[str]:
    """Digits of every number that may be shown: active lines, their text numbers, confirmed emergency numbers."""
    found = {"112"}
    for row in rows():
        if row.status == "active":
            found |= {re.sub(r"\D", "", n) for n in (row.line.number, row.line.sms_number, row.emergency)}
    return frozenset(found - {""})


@cache
def known_sites() -> frozenset[str]:
    """Host names that may be shown."""
    found = set()
    for row in rows():
        if row.status in ("active", "fallback"):
            found |= {site.split("/")[0].lower() for site in (row.line.url, row.line.chat) if site}
    return frozenset(found)
