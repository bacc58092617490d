from __future__ import annotations

import copy
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from warmline.chat import Chat, Text, Thread
from warmline.engine.base import ScriptedEngine
from warmline.errors import SafetyError
from warmline.safety.own import rules
from warmline.safety.protocol import shipped
from warmline.safety.tables import table

NOON = datetime(2026, 3, 1, 12)


def write(path: Path, document: dict[str, object]) -> Path:
    path.write_text(yaml.safe_dump(document, allow_unicode=True), "utf-8")
    return path


def test_no_file_means_the_shipped_rules(tmp_path: Path) -> None:
    assert rules(tmp_path / "protocol.yaml").protocol is shipped()


def test_a_stricter_situation_is_followed(tmp_path: Path) -> None:
    situations = copy.deepcopy(table("protocol.yaml")["situations"])
    row = next(row for row in situations if row["id"] == "passive")
    row["action"] = "vetted"
    own = rules(write(tmp_path / "protocol.yaml", {"situations": situations, "policy": "EU"}))
    assert own.policy == "EU"
    assert own.protocol.version.endswith("+own")
    chat = Chat(ScriptedEngine(["the model speaks"]), system="", clock=lambda: NOON, protocol=own.protocol)
    said = "".join(e.piece for e in chat.turn(Thread(), "I wish I wouldn't wake up tomorrow") if isinstance(e, Text))
    assert "the model speaks" not in said
    assert said


@pytest.mark.parametrize(
    "document",
    [
        {"situations": table("protocol.yaml")["situations"][1:]},
        {"banned": ["nothing"]},
        {"polcy": "EU"},
        {"policy": "Atlantis"},
        {"minors": "allowed"},
        {"situations": [{"id": "imminent"}]},
        {"situations": "all"},
        {"wordings": {"en": {"active": ["Cheer up, promise me you won't."] * 6}}},
        {"wordings": {"en": {"active": table("wordings.en.yaml")["active"][:2]}}},
    ],
)
def test_what_weakens_or_is_unknown_is_refused(tmp_path: Path, document: dict[str, object]) -> None:
    with pytest.raises(SafetyError) as caught:
        rules(write(tmp_path / "protocol.yaml", document))
    assert caught.value.code == "safety-data"


@pytest.mark.parametrize("refuse", [True, False])
def test_minors_are_refused_where_the_operator_says_so(tmp_path: Path, refuse: bool) -> None:
    own = rules(write(tmp_path / "protocol.yaml", {"minors": "refused"} if refuse else {}))
    engine = ScriptedEngine(["the model speaks", "the model speaks"])
    chat = Chat(
        engine,
        system="",
        country="GB",
        clock=lambda: NOON,
        protocol=own.protocol,
        refuse_minors=own.refuse_minors,
    )
    thread = Thread()
    for text in ("I'm 14 and school is hard", "are you there?"):
        said = "".join(e.piece for e in chat.turn(thread, text) if isinstance(e, Text))
        assert ("the model speaks" in said) is not refuse
        assert ("116 123" in said) is refuse or not refuse
    acute = "".join(e.piece for e in chat.turn(thread, "I want to kill myself") if isinstance(e, Text))
    assert "116 123" in acute
    assert "for adults" not in acute
