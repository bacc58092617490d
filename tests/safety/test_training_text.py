"""The text that the screen learns from: its form, and that nothing of it is measured with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from conftest import CASES

from warmline.safety.tables import table

ROOT = Path(__file__).resolve().parents[2]
LINES = sorted((ROOT / "scripts" / "screen_lines").glob("*.txt"))
TALKS = sorted((ROOT / "scripts" / "screen_talks").glob("*.txt"))


def bare(text: str) -> str:
    return " ".join(re.sub(r"[^a-z ]", " ", text.lower()).split())


@pytest.mark.parametrize("path", LINES, ids=lambda path: path.stem)
def test_every_line_has_a_label_and_a_slice(path: Path) -> None:
    slices = 0
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        slices += line.startswith("## ")
        if line and not line.startswith("#"):
            assert re.match(r"[0234m] \S", line), f"{path.name}:{number}"
            assert slices, f"{path.name}:{number} stands in no slice"


@pytest.mark.parametrize("path", TALKS, ids=lambda path: path.stem)
def test_every_conversation_is_marked_as_its_file_says(path: Path) -> None:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        turns = line.split(" | ")
        marks = [turn[0] for turn in turns if turn[0] in "+*"]
        assert len(turns) > 1, f"{path.name}:{number}"
        assert all(turn.lstrip("+*").strip() for turn in turns), f"{path.name}:{number}"
        if "calm" in path.stem:
            assert not marks, f"{path.name}:{number}"
        else:
            assert marks, f"{path.name}:{number}"
            assert marks == sorted(marks, key="+*".index), f"{path.name}:{number}: asked about after it was acted on"


def test_nothing_is_learnt_that_measures() -> None:
    """`fresh*.yaml` share no line of eight words or more with what is learnt."""
    learnt = {bare(line[2:]) for path in LINES for line in path.read_text("utf-8").splitlines() if line}
    for path in TALKS:
        for line in path.read_text("utf-8").splitlines():
            learnt.update(bare(turn) for turn in line.split(" | "))
    for path in sorted(CASES.glob("fresh*.yaml")):
        for name, entries in yaml.safe_load(path.read_text("utf-8")).items():
            texts = [turn for entry in entries for turn in str(entry).split(" | ")]
            same = [text for text in map(bare, texts) if len(text.split()) >= 8 and text in learnt]
            assert not same, f"{path.name}: {name}"


@pytest.mark.parametrize(("name", "key"), [("kinds.yaml", "kinds")])
def test_words_are_words(name: str, key: str) -> None:
    """An unquoted no, yes, on or off is no word in YAML."""
    for kind, words in table(name)[key].items():
        assert all(isinstance(word, str) for word in words), kind
