"""Reading preference pairs: the shapes that are known, and one message for each that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from warmline.corpus import preferences
from warmline.errors import DataError
from warmline.messages import Message


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def written(folder: Path, *rows: Any) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Yes?", "rejected": "No."},
        {"prompt": [user("Hi")], "chosen": [assistant("Yes?")], "rejected": [assistant("No.")]},
        {"prompt": "Hi", "chosen": [user("Hi"), assistant("Yes?")], "rejected": [user("Hi"), assistant("No.")]},
        {"chosen": [user("Hi"), assistant("Yes?")], "rejected": [user("Hi"), assistant("No.")]},
    ],
    ids=["texts", "messages", "repeated prompt", "prompt inside"],
)
def test_known_shapes_are_one_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    (pair,) = preferences.read([written(tmp_path, row)])
    assert (pair.prompt, pair.chosen, pair.rejected) == ((Message("user", "Hi"),), "Yes?", "No.")


def test_a_longer_talk_is_kept_whole(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Listen."}, user("a"), assistant("b"), user("c")]
    (pair,) = preferences.read([written(tmp_path, {"prompt": talk, "chosen": "d", "rejected": "e"})])
    assert [m.role for m in pair.conversation("d").messages] == ["system", "user", "assistant", "user", "assistant"]


def test_a_table_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('prompt,chosen,rejected\n"Hi, you",Yes?,No.\nBye,Why?,Go.\n', "utf-8")
    assert [pair.chosen for pair in preferences.read([str(path)])] == ["Yes?", "Why?"]


SECRET = "my own words"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([SECRET], "it has no columns"),
        ({"prompt": SECRET, "chosen": "a"}, "`rejected` is missing"),
        ({"prompt": SECRET, "chosen": "a", "rejected": ["b"]}, "a message of `rejected` needs"),
        ({"prompt": SECRET, "chosen": " ", "rejected": "b"}, "`chosen` is empty"),
        ({"chosen": SECRET, "rejected": "b"}, "`prompt` is missing"),
        ({"prompt": SECRET, "chosen": SECRET, "rejected": SECRET + " "}, "are the same"),
        ({"prompt": [assistant(SECRET)], "chosen": "a", "rejected": "b"}, "`prompt` does not end with the user's"),
        ({"prompt": SECRET, "chosen": [user("a")], "rejected": "b"}, "`chosen` does not end with the assistant's"),
        (
            {"prompt": "x", "chosen": [user(SECRET), assistant("a")], "rejected": "b"},
            "`chosen` repeats another prompt",
        ),
        (
            {"chosen": [user(SECRET), assistant("a")], "rejected": [user("y"), assistant("b")]},
            "`rejected` repeats another prompt",
        ),
        ({"prompt": [{"role": "doctor", "content": SECRET}], "chosen": "a", "rejected": "b"}, "a message of `prompt`"),
    ],
)
def test_a_wrong_row_is_named_by_its_place_alone(tmp_path: Path, row: Any, reason: str) -> None:
    good = {"prompt": "Hi", "chosen": "Yes?", "rejected": "No."}
    with pytest.raises(DataError, match=r"row 2 of pairs\.jsonl is no preference") as caught:
        preferences.read([written(tmp_path, good, row)])
    assert reason in str(caught.value)
    assert ":2" in str(caught.value)
    assert caught.value.code == "data-row"
    assert SECRET not in str(caught.value)


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        preferences.read([str(tmp_path / "none.jsonl")])
    with pytest.raises(DataError, match="holds no preference pair"):
        preferences.read([written(tmp_path)])
