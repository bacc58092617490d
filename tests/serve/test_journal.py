"""The log of requests: what is on the list is written, and nothing else ever is."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serve.conftest import CRISIS, ORDINARY, Played, chat_with, client_for, events_of, open_one, say
from warmline.errors import EngineError, ServeError
from warmline.serve import journal
from warmline.serve.auth import Gate
from warmline.serve.keys import Keys

CANARY = "kingfisher-sonata-4711"


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_a_line_for_every_request_and_no_word_of_anyone(tmp_path: Path) -> None:
    file, keys = tmp_path / "requests.jsonl", Keys(tmp_path / "keys.json")
    key, text = keys.create("app", ("chat",))
    handler = journal.open_at(file)
    chat, _ = chat_with("Yes.", EngineError(CANARY, code="engine-failed"), RuntimeError(CANARY))
    try:
        with client_for(chat, gate=Gate(keys)) as client:
            id = open_one(client)
            for words in (ORDINARY, CANARY, CRISIS + CANARY):
                say(client, id, words, country="GB")
            client.get(f"/{CANARY}")
            client.request(CANARY.upper(), "/", headers={"x-api-key": CANARY, "cookie": f"a={CANARY}"})
            client.get("/help", params={"country": CANARY})
            client.post("/v1/chat/completions", content=CANARY.encode(), headers={"x-api-key": text})
            client.get("/", headers={"host": CANARY})

        def broken(*_: Any) -> Any:
            raise RuntimeError(CANARY)

        with client_for(Played(broken)) as client:
            assert events_of(client.post(f"/api/conversations/{open_one(client)}/messages", json={"text": CANARY}).text)
    finally:
        journal.shut(handler)
    written = file.read_text("utf-8")
    for secret in (CANARY, CANARY.upper(), id, text, "testclient", "GB"):
        assert secret not in written
    found = rows(file)
    assert {field for row in found for field in row} <= {"at", "level", *journal.FIELDS}
    assert [row["status"] for row in found if row.get("route") == "/api/conversations/{id}/messages"][:3] == [200] * 3
    assert [row for row in found if row.get("key") == key.id and row["status"] == 400]
    assert [row["fault"] for row in found if row["event"] == "fault"] == [f"RuntimeError at test_journal.py:{LINE}"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert handler not in journal.log.handlers + journal.faults.handlers


LINE = 1 + next(
    number
    for number, line in enumerate(Path(__file__).read_text("utf-8").splitlines())
    if "raise RuntimeError(C" in line
)


@given(
    st.dictionaries(st.text(max_size=12), st.one_of(st.text(), st.integers(), st.lists(st.text()), st.none())),
    st.text(),
)
def test_what_is_not_on_the_list_is_not_written(fields: dict[str, Any], message: str) -> None:
    record = logging.LogRecord("warmline.serve", logging.ERROR, __file__, 1, message or CANARY, (), None)
    record.fields = fields | {"text": CANARY, "status": CANARY}
    row = json.loads(journal.Lines().format(record))
    assert CANARY not in json.dumps(row)
    assert set(row) <= {"at", "level", *journal.FIELDS}


def test_a_record_of_somebody_else_loses_its_words() -> None:
    record = logging.LogRecord("warmline.serve", logging.ERROR, __file__, 1, "said %s", (CANARY,), None)
    assert json.loads(journal.Lines().format(record)).keys() == {"at", "level", "event"}


def test_a_log_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ServeError) as error:
        journal.open_at(tmp_path / "no" / "such" / "folder.jsonl")
    assert error.value.code == "serve-config"
