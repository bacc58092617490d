"""A scripted local server stands in for a language model: limits, faults, resume, cost, and what is taken."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from warmline.corpus import augment
from warmline.corpus.augment import Band, Server, Spent, augment_folder, judge, turns_of
from warmline.errors import DataError, EngineError
from warmline.messages import Conversation, Message

ASKED = "I lie awake at night and worry about the rent and my sister's silence."
SAID = "The rent and the silence, both at once. Which is louder tonight?"
GOOD = (
    "Client: At night I can't sleep, I worry about the rent and why my sister is "
    "silent.\nCounsellor: Two worries in one bed. Which one came first?"
)
TALK = Conversation("a", (Message("user", ASKED), Message("assistant", SAID)), "money", "g")


class Scripted:
    """Answers with its script, line by line: a text, or a status with headers."""

    def __init__(self) -> None:
        self.script: list[str | tuple[int, dict[str, str]]] = []
        self.requests: list[dict] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append({"path": self.path, "key": self.headers.get("Authorization"), **json.loads(body)})
                line = outer.script[min(len(outer.requests), len(outer.script)) - 1]
                status, headers = line if isinstance(line, tuple) else (200, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if not isinstance(line, tuple):
                    answer = {
                        "choices": [{"message": {"content": line}}],
                        "usage": {"prompt_tokens": 100, "completion_tokens": 50},
                    }
                    self.wfile.write(line.encode() if line == "not json" else json.dumps(answer).encode())

            def log_message(self, *args: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.http.shutdown()
    server.http.server_close()


def writer(scripted: Scripted, waits: list[float]) -> Server:
    return Server(scripted.url, "small", key="k", per_minute=6_000_000, sleep=waits.append)


def folder_of(tmp_path: Path, count: int) -> Path:
    rows = [
        Conversation(f"c{n}", (Message("user", f"{ASKED} It is night {n}."), Message("assistant", SAID)), group=f"g{n}")
        for n in range(count)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(c.to_json()) + "\n" for c in rows))
    (tmp_path / "test.jsonl").write_text("not to be read")
    return tmp_path


def made(folder: Path) -> list[Conversation]:
    return [Conversation.from_json(json.loads(line)) for line in (folder / "synthetic.jsonl").read_text().splitlines()]


def test_what_is_made_is_marked_and_stays_in_its_group(scripted: Scripted, tmp_path: Path) -> None:
    scripted.script = [GOOD]
    result = augment_folder(
        folder_of(tmp_path, 1),
        writer(scripted, []),
        kinds=["paraphrase"],
        each=1,
        limit=None,
        spent=Spent(price_in=1, price_out=2),
    )
    (new,) = made(tmp_path)
    assert new.labels == {"synthetic": "yes", "made": "paraphrase"}
    assert (new.group, new.id) == ("g0", "c0~paraphrase-0")
    assert result["cost"] == pytest.approx((100 * 1 + 50 * 2) / 1e6)
    sent = scripted.requests[0]
    assert (sent["path"], sent["key"], sent["model"]) == ("/v1/chat/completions", "Bearer k", "small")


def test_limits_and_passing_faults_are_waited_out(scripted: Scripted) -> None:
    waits: list[float] = []
    scripted.script = [(429, {"Retry-After": "7"}), (503, {}), "not json", GOOD]
    answer = writer(scripted, waits)(augment.request(TALK, "paraphrase", 0))
    assert answer.text == GOOD
    assert waits[0] == 7.0
    assert len(scripted.requests) == 4


@pytest.mark.parametrize(("status", "calls"), [(401, 1), (404, 1), (500, 5)])
def test_lasting_faults_are_one_clear_error(scripted: Scripted, status: int, calls: int) -> None:
    scripted.script = [(status, {})]
    with pytest.raises(EngineError) as caught:
        writer(scripted, [])(augment.request(TALK, "paraphrase", 0))
    assert str(status) in str(caught.value)
    assert "rent" not in str(caught.value)
    assert len(scripted.requests) == calls


def test_requests_keep_to_the_limit_a_minute(scripted: Scripted) -> None:
    waits: list[float] = []
    scripted.script = [GOOD]
    server = Server(scripted.url, "small", per_minute=30, sleep=waits.append)
    for _ in range(3):
        server(augment.request(TALK, "paraphrase", 0))
    assert len(waits) == 2
    assert all(1.0 < wait <= 4.0 for wait in waits)


def test_interrupted_it_asks_only_for_what_is_missing(scripted: Scripted, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 6)
    scripted.script = [GOOD, GOOD, GOOD, (401, {})]
    with pytest.raises(EngineError):
        augment_folder(folder, writer(scripted, []), kinds=["paraphrase"], each=1, limit=None, spent=Spent())
    assert not (folder / "synthetic.jsonl").exists()
    with open(folder / "augment.jsonl", "a") as file:
        file.write('{"key": "cut off')
    (folder / "augment.jsonl").write_text((folder / "augment.jsonl").read_text() + "\n")
    scripted.requests.clear()
    scripted.script = [GOOD]
    spent = Spent()
    augment_folder(folder, writer(scripted, []), kinds=["paraphrase"], each=1, limit=None, spent=spent)
    assert len(scripted.requests) == 3
    assert spent.requests == 6


def test_the_budget_ends_it(scripted: Scripted, tmp_path: Path) -> None:
    scripted.script = [GOOD]
    with pytest.raises(DataError):
        augment_folder(
            folder_of(tmp_path, 6), writer(scripted, []), kinds=["paraphrase"], each=1, limit=None,
            spent=Spent(price_in=1e6, price_out=0), budget=250,
        )  # fmt: skip
    assert len(scripted.requests) == 3


JUDGED = [
    ("paraphrase", GOOD, ""),
    ("paraphrase", "I am sorry, I cannot help with that.", "form"),
    ("paraphrase", "Counsellor: Hello\nClient: Hi", "form"),
    ("paraphrase", f"Client: {ASKED}\nCounsellor: Which is louder?", "copy"),
    ("paraphrase", "Client: My goldfish collects purple umbrellas.\nCounsellor: Why purple?", "drift"),
    ("paraphrase", GOOD.replace("Two worries in one bed.", "You just need to get over it."), "lint:dismissive"),
    ("paraphrase", GOOD.replace("Two worries", "You have clinical depression. Two worries"), "lint:diagnosis"),
    ("persona", GOOD.lower().replace("client", "Client").replace("counsellor", "Counsellor"), ""),
    ("follow-up", "Client: The silence. I wrote to my sister twice.\nCounsellor: Twice, and nothing back.", ""),
    ("follow-up", f"Client: {ASKED}\nCounsellor: {SAID}\nClient: My sister's silence.\nCounsellor: Since when?", ""),
    ("follow-up", "Client: The silence.", "form"),
]


@pytest.mark.parametrize(("kind", "text", "reason"), JUDGED)
def test_what_is_taken(kind: augment.Kind, text: str, reason: str) -> None:
    result = judge(TALK, kind, turns_of(text), Band())
    if reason:
        assert result == reason
        return
    assert isinstance(result, Conversation)
    if kind == "follow-up":
        assert result.messages[:2] == TALK.messages
        assert len(result.messages) == 4


def test_names_the_writer_makes_up_are_masked() -> None:
    result = judge(TALK, "paraphrase", turns_of(GOOD.replace("my sister is", "my sister Priyanka is")), Band())
    assert isinstance(result, Conversation)
    assert "Priyanka" not in result.messages[0].content


def test_held_out_conversations_are_never_read(scripted: Scripted, tmp_path: Path) -> None:
    scripted.script = [GOOD]
    folder = folder_of(tmp_path, 2)
    augment_folder(folder, writer(scripted, []), kinds=["paraphrase"], each=1, limit=None, spent=Spent())
    assert (folder / "test.jsonl").read_text() == "not to be read"
    with pytest.raises(DataError):
        augment_folder(tmp_path / "none", writer(scripted, []), kinds=["paraphrase"], each=1, limit=None, spent=Spent())
