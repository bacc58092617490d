"""Yearly counts from audit files, as some laws ask for: sums, without identifiers. Knows rows, never words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from warmline.safety.audit import verify

FEWEST = 10
"""Smaller counts are given as `fewer than 10`: with few visitors an exact one could point to a person."""


def count(files: Iterable[Path]) -> dict[str, dict[str, int]]:
    """Per year: conversations, turns, turns with a referral, conversations that reached L3 or L4, cut replies.

    A conversation that lasts over New Year counts in both years. The chain of each file is verified first.

    Raises:
        SafetyError: `audit-broken`.
    """
    years: dict[str, dict[str, int]] = {}
    seen: dict[tuple[str, str], set[str]] = {}
    for file in files:
        verify(file)
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)["row"]
                year = str(row.get("at", ""))[:4] or "unknown"
                sums = years.setdefault(year, dict.fromkeys(("turns", "referrals_shown", "replies_cut"), 0))
                sums["turns"] += 1
                sums["referrals_shown"] += row.get("action") in ("vetted", "model_with_resources")
                sums["replies_cut"] += bool(row.get("cut"))
                talk = f"{file}:{row.get('conversation', '')}"
                seen.setdefault((year, "conversations"), set()).add(talk)
                if row.get("state", 0) >= 3:
                    seen.setdefault((year, "level_3_or_4"), set()).add(talk)
    for year, sums in years.items():
        sums |= {name: len(seen.get((year, name), ())) for name in ("conversations", "level_3_or_4")}
    return dict(sorted(years.items()))


def published(sums: dict[str, int]) -> dict[str, int | str]:
    """Counts as they may be published: small ones are not given exactly.

    >>> published({"turns": 240, "level_3_or_4": 3, "replies_cut": 0})
    {'level_3_or_4': 'fewer than 10', 'replies_cut': 0, 'turns': 240}
    """
    return {name: f"fewer than {FEWEST}" if 0 < n < FEWEST else n for name, n in sorted(sums.items())}
