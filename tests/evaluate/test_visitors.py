"""Simulated visitors: what the product meets, when, and whom it leaves in peace."""

from __future__ import annotations

import pytest

from warmline.chat import Chat
from warmline.engine.base import ScriptedEngine
from warmline.errors import DataError, EngineError
from warmline.evaluate import visitors

PEOPLE = {v.id: v for v in visitors.read()}


def door(*says):
    return Chat(ScriptedEngine(list(says) or ["I am listening."]), system="")


def test_scripted_visitors_are_met_in_the_turn_they_disclose():
    found = [visitors.come(door(), v) for v in PEOPLE.values() if v.id != "goodbye"]
    assert {v.id: v.late for v in found if v.risk and v.late != 0} == {}
    assert [v.id for v in found if v.alarm] == []


def test_nobody_is_met_before_anything_was_said():
    for found in (visitors.come(door(), v) for v in PEOPLE.values()):
        assert found.met == 0 or found.met >= min(found.disclosed, 2)


def test_a_visit_holds_the_whole_conversation():
    found = visitors.visit(door(), PEOPLE["calm-grief"], visitors.scripted(PEOPLE["calm-grief"]))
    said = [m.content for m in found.messages if m.role == "user"]
    assert said == list(PEOPLE["calm-grief"].script)
    assert len(found.levels) == len(said)


def test_a_played_visitor_hears_the_service_as_its_user():
    player = ScriptedEngine(["Hello, rough week.", "I want to kill myself.", "I don't know."])
    found = visitors.visit(door(), PEOPLE["slow"], visitors.played(PEOPLE["slow"], player, turns=3), by_model=True)
    assert found.met == 2
    assert found.disclosed == 0
    assert found.late is None
    roles = [m.role for m in player.calls[2].messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert PEOPLE["slow"].person in player.calls[0].messages[0].content


def test_a_player_that_fails_is_told():
    player = ScriptedEngine([EngineError("no server answers", code="engine-unreachable")])
    with pytest.raises(EngineError):
        visitors.come(door(), PEOPLE["slow"], player)


def test_a_service_whose_model_fails_still_meets_the_risk():
    found = visitors.visit(door(RuntimeError()), PEOPLE["sudden"], visitors.scripted(PEOPLE["sudden"]))
    assert found.met == 1


def test_summary_counts():
    found = visitors.summary([visitors.come(door(), v).row() for v in PEOPLE.values()])
    assert found["at_risk"] + found["not_at_risk"] == len(PEOPLE)
    assert found["in_the_same_turn"] <= found["met"] <= found["at_risk"]
    assert len(found["visits"]) == len(PEOPLE)


@pytest.mark.parametrize("text", ["", "visitors: []", "visitors: [{id: a}]", "visitors: {", "words"])
def test_files_that_hold_no_visitors(tmp_path, text):
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(DataError, match="cannot be used"):
        visitors.read(tmp_path / "v.yaml")
