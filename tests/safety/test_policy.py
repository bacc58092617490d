from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from warmline.safety.lint import claims
from warmline.safety.policy import notice_due, pack_for, packs

NOW = datetime(2026, 3, 1, 12)


def test_all_packs_are_there_with_citation_and_date() -> None:
    assert set(packs()) == {"default", "US-CA", "US-NY", "US-UT", "US-IL", "US-NV", "EU", "UK"}
    for pack in packs().values():
        assert pack.citations
        assert "AI" in pack.notice
        assert "{reach}" in pack.notice
        assert pack.remind_every <= timedelta(hours=3)
        assert pack.idle <= timedelta(days=7)
        assert claims(pack.notice) == []
    assert packs()["US-IL"].off
    assert packs()["US-NV"].off
    assert pack_for("nowhere").code == "default"


@pytest.mark.parametrize(
    ("since_notice", "since_seen", "minor", "due"),
    [
        (timedelta(minutes=5), timedelta(minutes=1), False, None),
        (timedelta(hours=2, minutes=59), timedelta(minutes=1), False, None),
        (timedelta(hours=3), timedelta(minutes=1), False, "reminder"),
        (timedelta(hours=1), timedelta(minutes=1), True, "reminder"),
        (timedelta(days=8), timedelta(days=7), False, "welcome_back"),
        (-timedelta(hours=1), timedelta(minutes=1), False, "reminder"),
    ],
)
def test_cadence(since_notice: timedelta, since_seen: timedelta, minor: bool, due: str | None) -> None:
    given = notice_due(
        pack_for(None), began=True, last_notice=NOW - since_notice, last_seen=NOW - since_seen, now=NOW, minor=minor
    )
    assert given == due


def test_the_first_message_is_preceded_by_the_disclosure() -> None:
    assert (
        notice_due(pack_for("EU"), began=False, last_notice=None, last_seen=None, now=NOW, minor=False) == "disclosure"
    )
