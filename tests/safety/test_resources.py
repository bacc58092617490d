from __future__ import annotations

from datetime import date

import pytest

from warmline.errors import SafetyError
from warmline.safety.resources import UNKNOWN, countries, known_numbers, nearest, resources_for, rows

TODAY = date(2026, 11, 1)


@pytest.mark.parametrize(
    ("code", "number", "emergency"),
    [
        ("US", "988", "911"),
        ("gb", "116 123", "999"),
        ("UK", "116 123", "999"),
        ("AU", "13 11 14", "000"),
        ("FR", "3114", "112"),
        ("ES", "024", "112"),
    ],
)
def test_confirmed_countries(code: str, number: str, emergency: str) -> None:
    found = resources_for(code, TODAY)
    assert found.lines[0].number == number
    assert found.emergency == emergency
    assert found.lines[0].tel == "tel:" + number.replace(" ", "")
    assert not found.fallback


@pytest.mark.parametrize("code", ["BE", "IT", "PL", "TR", None, ""])
def test_unconfirmed_countries_fall_back(code: str | None) -> None:
    found = resources_for(code, TODAY)
    assert found.fallback
    assert [line.url for line in found.lines] == ["findahelpline.com", "befrienders.org"]
    assert not any(line.number for line in found.lines)
    assert "local emergency number" in found.emergency


def test_an_unknown_code_is_refused_or_falls_back() -> None:
    with pytest.raises(SafetyError) as failure:
        resources_for("XX", TODAY)
    assert failure.value.code == "country-unknown"
    assert nearest("XX", TODAY).fallback


def test_expired_rows_fall_back_and_say_so() -> None:
    found = resources_for("US", date(2030, 1, 1))
    assert found.fallback
    assert found.expired
    assert found.emergency == "911"


def test_every_row_has_source_date_and_expiry() -> None:
    assert len(countries()) == 49
    for row in rows():
        assert row.sources
        assert row.checked < row.expires
        assert row.status in ("active", "inactive", "fallback")
        if row.status == "active":
            assert len(row.sources) == 2
            assert row.line.number or row.line.sms_number


def test_numbers_of_inactive_rows_are_not_known() -> None:
    assert "85258" not in known_numbers()
    assert "988" in known_numbers()
    assert UNKNOWN not in countries()
