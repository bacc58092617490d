"""The server before a vault: what was told to be done is there after a crash, and nothing else changes for visitors."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.conftest import (
    CRISIS,
    ORDINARY,
    REPLY,
    Played,
    brief,
    chat_with,
    client_for,
    done,
    events_of,
    open_one,
    safety,
    say,
)
from warmline.chat import Text, Thread
from warmline.errors import VaultError
from warmline.messages import Message
from warmline.safety.state import State
from warmline.serve.conversations import Held
from warmline.serve.kept import Kept, _thread
from warmline.vault.keys import MasterKey
from warmline.vault.store import DAY, Vault

KEY = MasterKey(bytes(range(32)), passphrase=False)
HERE = Path(__file__).parents[2]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Kept]]:
    held: list[Kept] = []

    def one(**options: Any) -> Kept:
        held.append(Kept(Vault.open(str(tmp_path / "v.db"), KEY, **options.pop("vault", {})), **options))
        return held[-1]

    yield one
    for kept in held:
        kept.vault.close()


def failing(*_: Any, **__: Any) -> Any:
    raise VaultError("the disk is full", code="disk-full")


def cookies(client: Any) -> dict[str, str]:
    return {cookie.name: cookie.value for cookie in client.cookies.jar}


def test_a_conversation_goes_on_after_the_process_died(opened: Callable[..., Kept]) -> None:
    first = client_for(chat_with()[0], conversations=opened())
    id = open_one(first)
    told = say(first, id, CRISIS)
    level = next(data for name, data in told if name == "safety")["level"]
    assert level >= 3
    first.put(f"/api/conversations/{id}/title", json={"title": "That night"})
    before = first.get(f"/api/conversations/{id}").json() | {"created": ""}
    # Nothing is closed or flushed: another process opens the vault as a kill -9 would leave it.
    second = client_for(chat_with()[0], conversations=opened())
    second.cookies.update(cookies(first))
    assert second.get(f"/api/conversations/{id}").json() | {"created": ""} == before
    assert [one["title"] for one in second.get("/api/conversations").json()["conversations"]] == ["That night"]
    told = say(second, id, ORDINARY)
    assert next(data for name, data in told if name == "safety")["level"] == level  # the state came along
    assert len(second.get(f"/api/conversations/{id}").json()["messages"]) == 4


def test_another_visitor_gets_nothing_of_it(opened: Callable[..., Kept]) -> None:
    kept = opened()
    mine, theirs = client_for(chat_with()[0], conversations=kept), client_for(chat_with()[0], conversations=kept)
    id = open_one(mine)
    say(mine, id, ORDINARY)
    open_one(theirs)
    unknown = theirs.get("/api/conversations/" + "x" * 32)
    for method, path, body in (
        ("GET", "", None),
        ("GET", "/export", None),
        ("DELETE", "", None),
        ("PUT", "/title", {"title": "x"}),
        ("PUT", "/consent", {"training": True}),
        ("PUT", "/verdict", {"place": 1, "verdict": "harmful"}),
        ("POST", "/messages", {"text": "hello"}),
    ):
        answer = theirs.request(method, f"/api/conversations/{id}{path}", json=body)
        assert (answer.status_code, answer.content) == (404, unknown.content), path
    assert len(mine.get(f"/api/conversations/{id}").json()["messages"]) == 2


def test_done_is_told_after_it_is_kept(opened: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    kept, order = opened(), []
    real = Vault.put
    monkeypatch.setattr(Vault, "put", lambda *given, **more: order.append("kept") or real(*given, **more))

    def play(history: Thread, text: str, cancel: threading.Event) -> Iterator[Any]:
        yield safety()
        yield Text("Yes.")
        yield done()
        order.append("over")
        history.messages += [Message("user", text), Message("assistant", "Yes.")]

    client = client_for(Played(play), conversations=kept)
    id = open_one(client)
    assert [name for name, _ in say(client, id, "hello")][-1] == "done"
    assert order == ["over", "kept"]
    [stored] = list(kept.vault.export())
    assert len(stored["thread"]["messages"]) == 2


def test_nothing_is_kept_of_a_conversation_without_words(opened: Callable[..., Kept]) -> None:
    kept = opened()
    client = client_for(chat_with()[0], conversations=kept)
    id = open_one(client)
    client.put(f"/api/conversations/{id}/consent", json={"training": True})
    client.put(f"/api/conversations/{id}/title", json={"title": "Early"})
    assert kept.vault.status()["conversations"] == 0
    say(client, id, ORDINARY)
    [record] = list(kept.vault.export(consenting=True))  # and what was said of it before is not lost
    assert record["title"] == "Early"


def test_feedback_consent_and_edits_reach_the_vault(opened: Callable[..., Kept]) -> None:
    kept = opened()
    client = client_for(chat_with()[0], conversations=kept)
    id = open_one(client)
    say(client, id, ORDINARY)
    path = f"/api/conversations/{id}"
    assert client.put(f"{path}/verdict", json={"place": 1, "verdict": "harmful"}).status_code == 204
    [row] = kept.review()
    assert (row["verdict"], row["message"], row["reply"]) == ("harmful", ORDINARY, REPLY)
    assert set(row) == {"conversation", "used", "verdict", "place", "message", "reply"}
    client.put(f"{path}/verdict", json={"place": 1, "verdict": None})
    assert kept.review() == []
    client.put(f"{path}/verdict", json={"place": 1, "verdict": "helpful"})
    client.put(f"{path}/consent", json={"training": True})
    assert len(list(kept.vault.export(consenting=True))) == 1
    client.put(f"{path}/consent", json={"training": False})
    assert list(kept.vault.export(consenting=True)) == []
    say(client, id, "Something else.", place=0)
    [record] = list(kept.vault.export())
    assert [m["content"] for m in record["thread"]["messages"]] == ["Something else.", REPLY]
    assert record["feedback"] == []  # it was about another reply


@pytest.mark.parametrize("how", ["one", "all", "command"])
def test_deleted_is_deleted(opened: Callable[..., Kept], how: str) -> None:
    kept = opened()
    client = client_for(chat_with()[0], conversations=kept)
    id = open_one(client)
    say(client, id, ORDINARY)
    held = kept.find(cookies(client)["visitor"], id)
    assert held is not None
    if how == "one":
        assert client.delete(f"/api/conversations/{id}").status_code == 204
    elif how == "all":
        assert client.delete("/api/conversations").status_code == 204
    else:
        kept.vault.erase_numbers(kept.vault.numbers(id))
    assert client.get(f"/api/conversations/{id}").status_code == 404
    assert client.get("/api/conversations").json() == {"conversations": []}
    kept.keep(held)  # a reply that ends only now
    assert kept.vault.status()["conversations"] == 0


def test_deleted_during_its_first_reply_is_not_kept(opened: Callable[..., Kept]) -> None:
    kept = opened()
    held = kept.open("v" * 43, Thread())
    assert held is not None
    held.thread.messages.append(Message("user", "hello"))
    assert kept.forget("v" * 43, held.id)
    kept.keep(held)
    assert kept.vault.status()["conversations"] == 0


def test_a_failing_vault_stops_no_conversation_and_is_caught_up(
    opened: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    kept = opened(clock=lambda: now)
    client = client_for(chat_with()[0], conversations=kept)
    id = open_one(client)
    say(client, id, "first words")
    with monkeypatch.context() as broken:
        for name in ("put", "stamp", "record", "list", "review", "erase"):
            broken.setattr(Vault, name, failing)
        told = say(client, id, "second words")
        assert told[-1][0] == "done"
        assert len(client.get(f"/api/conversations/{id}").json()["messages"]) == 4
        assert len(client.get("/api/conversations").json()["conversations"]) == 1
        now = 13 * 3600.0
        kept.forget_idle()  # it would be lost
        assert len(kept) == 1
    assert "words" not in caplog.text
    kept.flush()
    [record] = list(kept.vault.export())
    assert len(record["thread"]["messages"]) == 4
    kept.forget_idle()
    assert len(kept) == 0
    assert len(client.get(f"/api/conversations/{id}").json()["messages"]) == 4


def test_a_deletion_that_failed_is_told(opened: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_for(chat_with()[0], conversations=opened())
    id = open_one(client)
    say(client, id, ORDINARY)
    with monkeypatch.context() as broken:
        broken.setattr(Vault, "erase", failing)
        answer = client.delete(f"/api/conversations/{id}")
    assert (answer.status_code, answer.json()["code"]) == (503, "store-failed")
    assert client.get(f"/api/conversations/{id}").status_code == 200
    assert client.delete(f"/api/conversations/{id}").status_code == 204


def test_a_full_memory_turns_nobody_away_and_loses_nothing(opened: Callable[..., Kept]) -> None:
    now = 0.0
    kept = opened(most=3, clock=lambda: now)
    ids = []
    for number in range(8):
        now += 1
        held = kept.open("v" * 43, Thread())
        assert held is not None
        held.thread.messages.append(Message("user", str(number)))
        kept.keep(held)
        ids.append(held.id)
    assert len(kept) == 3
    for number, id in enumerate(ids):
        found = kept.find("v" * 43, id)
        assert found is not None
        assert found.thread.messages == [Message("user", str(number))]
    assert len(kept.of("v" * 43)) == 8


def test_two_replicas_see_what_the_other_kept(opened: Callable[..., Kept]) -> None:
    one, other = opened(), opened()
    who = "v" * 43
    held = one.open(who, Thread())
    assert held is not None
    held.thread.messages.append(Message("user", "a"))
    one.keep(held)
    there = other.find(who, held.id)
    assert there is not None
    there.thread.messages.append(Message("assistant", "b"))
    other.keep(there)
    assert other.rename(who, held.id, "Ours")
    back = one.find(who, held.id)
    assert back is held
    assert [message.content for message in held.thread.messages] == ["a", "b"]
    assert other.forget(who, held.id)
    assert one.find(who, held.id) is None


def test_requests_at_the_same_moment_share_one_conversation(opened: Callable[..., Kept]) -> None:
    """Two copies in memory would mean that one of them is never written."""
    kept, who = opened(), "v" * 43
    held = kept.open(who, Thread())
    assert held is not None
    held.thread.messages.append(Message("user", "a"))
    kept.keep(held)
    for _ in range(20):
        kept._let_go(kept._held[held.id])
        found: list[Held | None] = []
        together = threading.Barrier(4)

        def look(found: list[Held | None] = found, together: threading.Barrier = together) -> None:
            together.wait()
            found.append(kept.find(who, held.id))

        looking = [threading.Thread(target=look) for _ in range(4)]
        for one in looking:
            one.start()
        for one in looking:
            one.join()
        assert {id(one) for one in found} == {id(kept._held[held.id])}


def test_retention_is_swept_while_the_server_runs(opened: Callable[..., Kept]) -> None:
    day, now = [1_800_000_000.0], 0.0
    kept = opened(clock=lambda: now, vault={"clock": lambda: day[0], "retention_days": 2})
    assert kept.days == 2
    held = kept.open("v" * 43, Thread())
    assert held is not None
    held.thread.messages.append(Message("user", "a"))
    kept.keep(held)
    day[0] += 2 * DAY + 1
    now = 3600.0
    kept.forget_idle()
    assert kept.vault.status()["conversations"] == 0
    assert kept.find("v" * 43, held.id) is None


def test_threads_of_other_versions_are_read() -> None:
    thread = Thread(messages=[Message("user", "x")], state=State(level=3), minor=True)
    row = json.loads(json.dumps(thread.to_json()))
    assert _thread(row) == thread
    del row["before"], row["minor"], row["state"]["veil"]
    row |= {"colour": "red"}
    row["state"] |= {"mood": 2}
    read = _thread(row)
    assert (read.messages, read.state.level, read.minor) == (thread.messages, 3, False)


def test_the_end_of_the_server_writes_what_waits(opened: Callable[..., Kept], monkeypatch: pytest.MonkeyPatch) -> None:
    kept = opened()
    with client_for(Played(brief), conversations=kept) as client, monkeypatch.context() as broken:
        id = open_one(client)
        broken.setattr(Vault, "put", failing)
        held: Held | None = kept.find(cookies(client)["visitor"], id)
        assert held is not None
        held.thread.messages.append(Message("user", "waits"))
        kept.keep(held)
        broken.undo()
    assert kept.vault.status()["messages"] == 1


SERVER = """
import sys
from tests.serve.conftest import chat_with
from tests.serve.test_kept import KEY
from warmline.serve.app import create_app
from warmline.serve.kept import Kept
from warmline.serve.listening import run
from warmline.vault.store import Vault
kept = Kept(Vault.open(sys.argv[1], KEY))
run(create_app(chat_with()[0], conversations=kept), port=0, ready=lambda address: print(address, flush=True))
"""


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_9_of_the_server_loses_nothing_it_said_was_done(kills: int, tmp_path: Path) -> None:
    """Real processes on a real port: every message whose `done` had arrived is there after the kill."""
    headers: dict[str, str] = {}
    told: dict[str, int] = {}
    for number in range(kills):
        command = [sys.executable, "-c", SERVER, str(tmp_path / "v.db")]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE)
        try:
            assert server.stdout is not None
            with httpx.Client(base_url=server.stdout.readline().strip(), headers=headers, timeout=60) as client:
                kept = {one["id"]: one["messages"] for one in client.get("/api/conversations").json()["conversations"]}
                assert kept == told
                opened = client.post("/api/conversations", json={})
                headers = headers or {"cookie": f"visitor={opened.cookies['visitor']}"}
                client.headers.update(headers)
                id = opened.json()["id"]
                for turn in range(1 + number % 3):
                    answer = client.post(f"/api/conversations/{id}/messages", json={"text": f"{number} {turn}"})
                    assert events_of(answer.text)[-1][0] == "done"
                    told[id] = 2 * (turn + 1)
        finally:
            server.kill()
            server.wait()
    vault = Vault.open(str(tmp_path / "v.db"), KEY)
    assert {row["id"]: len(row["thread"]["messages"]) for row in vault.export()} == told
    assert vault.verify().faults == []
    vault.close()
