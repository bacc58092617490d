"""`warmline data augment` with a model of this machine: the engine writes, the ledger counts, no server is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from warmline.cli.main import app
from warmline.engine.base import Call
from warmline.engine.local import LocalEngine
from warmline.errors import ModelError
from warmline.messages import Conversation, Message
from warmline.runs import read_jsonl, write_jsonl

ASKED = "I cannot sleep before exams, my stomach turns and I keep counting the hours."
TOLD = "Counting hours in the dark sounds lonely. What goes through you while you count?"
WRITTEN = (
    "Client: Before every exam my stomach is in knots, sleep stays away and I lie there watching the hours.\n"
    "Counsellor: Watching the hours while your stomach is in knots sounds hard. What is the exam for you?"
)


def folder_of(root: Path, *asked: str) -> Path:
    rows = [Conversation(f"c{n}", (Message("user", text), Message("assistant", TOLD))) for n, text in enumerate(asked)]
    write_jsonl(root / "train.jsonl", (row.to_json() for row in rows))
    return root


def augment(folder: Path, base: Path | str) -> list[dict[str, object]]:
    app(["data", "augment", str(folder), "--model", str(base), "--load", "fp32"], standalone_mode=False)
    return list(read_jsonl(folder / "augment.jsonl"))


def test_what_the_model_writes_is_judged_and_counted(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(self: LocalEngine, call: Call) -> Iterator[str]:
        assert ASKED in "".join(message.content for message in call.messages)
        call.usage.prompt_tokens, call.usage.completion_tokens = 90, 40
        yield from WRITTEN.splitlines(keepends=True)

    monkeypatch.setattr(LocalEngine, "reply", reply)
    monkeypatch.setattr(LocalEngine, "fits", lambda *_: True)  # the small model's context is shorter than the request
    (row,) = augment(folder_of(tmp_path, ASKED), models["gemma3"])
    assert (row["reason"], row["prompt_tokens"], row["completion_tokens"]) == ("", 90, 40)
    (new,) = read_jsonl(tmp_path / "synthetic.jsonl")
    assert new["labels"]["synthetic"] == "yes"
    assert new["messages"][0]["content"].startswith("Before every exam")


def test_what_is_too_long_is_not_taken_and_stops_nothing(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = augment(folder_of(tmp_path, f"{ASKED} " * 40), models["gemma3"])
    assert (row["reason"], row["prompt_tokens"]) == ("form", 0)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["made"] == 0


def test_a_base_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        augment(folder_of(tmp_path, ASKED), "./none")
