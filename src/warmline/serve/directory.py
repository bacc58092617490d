"""Who can be reached, for the page and for the help page: the table of resources in the page's words.

Knows nothing of conversations, and needs neither a model nor a network.
"""

from __future__ import annotations

from datetime import date
from functools import cache
from typing import Any

from warmline.safety.resources import UNKNOWN, countries, resources_for, rows
from warmline.serve import wire


@cache
def _names() -> dict[str, str]:
    return countries()


def known(country: str | None) -> str | None:
    """The country's code as the table writes it; None for none and for codes the table does not have."""
    code = (country or "").strip().upper()
    code = "GB" if code == "UK" else code
    return code if code in _names() else None


def choices() -> list[tuple[str, str]]:
    """Code and name of every country, by name, for a list to choose from."""
    return sorted(_names().items(), key=lambda item: item[1])


def look_up(country: str | None) -> dict[str, Any]:
    """Who can be reached from a known country; for None the international directories."""
    return wire.resources(resources_for(country))


def checked() -> date:
    """The day the oldest line on show was last checked."""
    return min(row.checked for row in rows() if row.status == "active" and row.country != UNKNOWN)
