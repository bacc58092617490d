"""The server's contract: the order of events, who is refused and how, and that no word of a person leaks."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from tests.serve.conftest import (
    CRISIS,
    ORDINARY,
    REPLY,
    Played,
    brief,
    chat_with,
    client_for,
    events_of,
    open_one,
    safety,
    say,
)
from warmline.errors import EngineError, ServeError, WarmlineError
from warmline.serve import directory
from warmline.serve.app import MOST_CHARACTERS, check_port, listen
from warmline.serve.conversations import Conversations
from warmline.serve.doorway import HEADERS, MOST_BYTES, host_name

CANARY = "kingfisher-sonata-4711"


def names(events: list) -> list[str]:
    return [name for name, _ in events]


class TestTurn:
    def test_events_come_in_order(self, client: TestClient) -> None:
        events = say(client, open_one(client), ORDINARY)
        order = names(events)
        assert order[0] == "notice"
        assert order.index("safety") < order.index("text")
        assert order[-1] == "done"
        assert "".join(data["text"] for name, data in events if name == "text").split() == REPLY.split()
        assert dict(events)["safety"]["level"] <= 1

    def test_a_crisis_is_answered_when_the_engine_is_dead(self) -> None:
        chat, engine = chat_with(EngineError("gone", code="engine-failed"))
        with client_for(chat) as client:
            events = say(client, open_one(client, country="GB"), CRISIS)
        found = dict(events)
        assert found["safety"]["level"] >= 3
        assert found["safety"]["action"] == "vetted"
        assert found["safety"]["resources"]["lines"][0]["call"]["href"] == "tel:116123"
        assert "text" in found
        assert names(events).index("safety") < names(events).index("text")
        assert "error" not in found
        assert engine.calls == []

    def test_a_dead_engine_gives_the_fallback_not_an_error(self) -> None:
        chat, _ = chat_with(EngineError(f"gone {CANARY}", code="engine-failed"))
        with client_for(chat) as client:
            events = say(client, open_one(client), ORDINARY)
        assert names(events)[-1] == "done"
        assert "text" in names(events)
        assert CANARY not in str(events)

    def test_the_country_of_a_message_decides_the_numbers(self, client: TestClient) -> None:
        id = open_one(client)
        assert dict(say(client, id, CRISIS))["safety"]["resources"]["country"] is None
        assert dict(say(client, id, CRISIS, country="us"))["safety"]["resources"]["country"] == "US"
        assert dict(say(client, id, CRISIS))["safety"]["resources"]["country"] == "US"

    def test_history_is_one_conversation_s_own(self) -> None:
        chat, engine = chat_with("One.", "Two.", "Three.")
        with client_for(chat) as client:
            first, second = open_one(client), open_one(client)
            say(client, first, "The rota at work is too long.")
            say(client, second, "My sister moved far away.")
            say(client, first, "I asked for a change of it.")
        words = " ".join(message.content for message in engine.calls[2].messages)
        assert "rota" in words
        assert "sister" not in words

    def test_a_fault_in_a_turn_says_nothing_of_itself(self, caplog: pytest.LogCaptureFixture) -> None:
        def broken(*_: object) -> Iterator:
            yield safety()
            raise RuntimeError(f"inside {CANARY}")

        with client_for(Played(broken)) as client, caplog.at_level(logging.DEBUG):
            events = say(client, open_one(client), ORDINARY)
        assert names(events) == ["safety", "error"]
        assert events[-1][1]["code"] == "fault"
        assert CANARY not in str(events) + caplog.text
        assert "RuntimeError at test_app.py" in caplog.text


class TestIds:
    def test_they_cannot_be_guessed(self, client: TestClient) -> None:
        ids = {open_one(client) for _ in range(50)}
        assert len(ids) == 50
        assert min(map(len, ids)) >= 32

    def test_unknown_deleted_idle_and_malformed_are_alike(self) -> None:
        now = [0.0]
        held = Conversations(idle_seconds=12 * 3600, clock=lambda: now[0])
        with client_for(Played(brief), conversations=held) as client:
            idle, deleted = open_one(client), open_one(client)
            assert client.delete(f"/api/conversations/{deleted}").status_code == 204
            now[0] += 12 * 3600 + 1
            answers = set()
            for id in (idle, deleted, "A" * 32, "x", "%00", "é", "..%2f..", "a" * 5000):
                for answer in (
                    client.post(f"/api/conversations/{id}/messages", json={"text": "hello"}),
                    client.delete(f"/api/conversations/{id}"),
                ):
                    answers.add((answer.status_code, answer.content, answer.headers["content-type"]))
            assert len(answers) == 1
            assert answers.pop()[0] == 404
            assert len(held) == 0

    def test_a_message_keeps_a_conversation_alive(self) -> None:
        now = [0.0]
        with client_for(Played(brief), conversations=Conversations(idle_seconds=100, clock=lambda: now[0])) as client:
            id = open_one(client)
            for _ in range(5):
                now[0] += 90
                assert names(say(client, id, "still here")) == ["safety", "text", "done"]

    def test_a_full_house_drops_nobody(self) -> None:
        with client_for(Played(brief), conversations=Conversations(most=2)) as client:
            first, _ = open_one(client), open_one(client)
            refused = client.post("/api/conversations", json={})
            assert (refused.status_code, refused.json()["code"]) == (503, "full")
            assert refused.headers["retry-after"]
            assert say(client, first, "hello")
            client.delete(f"/api/conversations/{first}")
            open_one(client)


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "type", "status", "code"),
        [
            (b'{"text": ""}', "application/json", 422, "message-empty"),
            (b'{"text": " \\n\\t "}', "application/json", 422, "message-empty"),
            (b'{"text": 3}', "application/json", 422, "request-invalid"),
            (b'{"text": null}', "application/json", 422, "request-invalid"),
            (b"{}", "application/json", 422, "request-invalid"),
            (b"", "application/json", 422, "request-invalid"),
            (b"[" * 2000, "application/json", 422, "request-invalid"),
            (b'{"text": "kingfisher-sonata-4711', "application/json", 422, "request-invalid"),
            (b'{"text": "kingfisher-sonata-4711", "system": "x"}', "application/json", 422, "request-invalid"),
            (b'{"text": "kingfisher-sonata-4711 \xff\xfe"}', "application/json", 422, "request-invalid"),
            (b'{"text": "kingfisher-sonata-4711"}', "text/plain", 422, "request-invalid"),
            (b'{"text": "kingfisher-sonata-4711"}', "application/x-www-form-urlencoded", 422, "request-invalid"),
            (b'{"text": "hello", "country": "QQ"}', "application/json", 422, "country-unknown"),
            (b'{"text": "hello", "country": "kingfisher-sonata"}', "application/json", 422, "request-invalid"),
            (b'{"text": "' + b"a" * (MOST_CHARACTERS + 1) + b'"}', "application/json", 413, "message-too-long"),
            (b'{"text": "' + b"a" * MOST_BYTES + b'"}', "application/json", 413, "request-too-large"),
        ],
    )
    def test_a_bad_message(
        self, client: TestClient, caplog: pytest.LogCaptureFixture, body: bytes, type: str, status: int, code: str
    ) -> None:
        with caplog.at_level(logging.DEBUG):
            path = f"/api/conversations/{open_one(client)}/messages"
            answer = client.post(path, content=body, headers={"content-type": type})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert "kingfisher" not in answer.text + caplog.text

    def test_a_large_body_in_pieces_is_cut_off(self, client: TestClient) -> None:
        def pieces() -> Iterator[bytes]:
            for _ in range(64):
                yield b"a" * 65536

        path = f"/api/conversations/{open_one(client)}/messages"
        answer = client.post(path, content=pieces(), headers={"content-type": "application/json"})
        assert answer.status_code == 413

    @pytest.mark.parametrize("text", ["a" * MOST_CHARACTERS, "😮" * MOST_CHARACTERS, "\\ud800", "\\u0000", "\\u202e"])
    def test_odd_but_legal_text_is_answered(self, client: TestClient, text: str) -> None:
        path = f"/api/conversations/{open_one(client)}/messages"
        body = f'{{"text": "{text} and so on"}}' if text[0] == "\\" else f'{{"text": "{text}"}}'
        answer = client.post(path, content=body.encode(), headers={"content-type": "application/json"})
        assert answer.status_code == 200
        assert names(events_of(answer.text))[-1] == "done"

    @pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "OPTIONS", "TRACE"])
    def test_other_methods(self, client: TestClient, method: str) -> None:
        answer = client.request(method, f"/api/conversations/{open_one(client)}/messages")
        assert answer.status_code in (403, 405)


class TestDoorway:
    @pytest.mark.parametrize(
        "path",
        ["/", "/help", "/measures", "/healthz", "/static/page.css", "/static/nothing", "/api/resources/GB", "/nowhere"],
    )
    def test_every_answer_carries_the_headers(self, client: TestClient, path: str) -> None:
        answer = client.get(path)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "cache-control" in answer.headers
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "server" not in answer.headers
        assert "set-cookie" not in answer.headers

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost", 200),
            ("LOCALHOST:8765", 200),
            ("127.0.0.1:8765", 200),
            ("[::1]:8765", 200),
            ("example.org", 421),
            ("localhost.example.org", 421),
            ("127.0.0.1.example.org:8765", 421),
            ("localhost@example.org", 421),
            ("0.0.0.0:8765", 421),
            ("", 421),
        ],
    )
    def test_only_its_own_names(self, client: TestClient, host: str, status: int) -> None:
        answer = client.get("/healthz", headers={"host": host})
        assert answer.status_code == status
        assert answer.headers["content-security-policy"]

    def test_configured_names(self) -> None:
        with client_for(Played(brief), hosts=("listen.example.org",)) as client:
            assert client.get("/healthz", headers={"host": "listen.example.org"}).status_code == 200
            assert client.get("/healthz", headers={"host": "localhost"}).status_code == 421

    @pytest.mark.parametrize(
        ("headers", "allowed"),
        [
            ({}, True),
            ({"origin": "http://localhost"}, True),
            ({"origin": "http://localhost", "sec-fetch-site": "same-origin"}, True),
            ({"origin": "http://localhost:9999"}, False),
            ({"origin": "http://127.0.0.1"}, False),
            ({"origin": "https://example.org"}, False),
            ({"origin": "null"}, False),
            ({"sec-fetch-site": "cross-site"}, False),
            ({"sec-fetch-site": "same-site"}, False),
        ],
    )
    def test_another_website_cannot_write(self, client: TestClient, headers: dict[str, str], allowed: bool) -> None:
        answer = client.post("/api/conversations", json={}, headers=headers)
        assert answer.status_code == (201 if allowed else 403)

    def test_no_cross_origin_answers(self, client: TestClient) -> None:
        preflight = {"origin": "https://example.org", "access-control-request-method": "POST"}
        for answer in (
            client.options("/api/conversations", headers=preflight),
            client.get("/", headers={"origin": "https://example.org"}),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control")]

    @pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/.env", "/static/", "/static"])
    def test_nothing_else_is_there(self, client: TestClient, path: str) -> None:
        assert client.get(path).status_code == 404

    @pytest.mark.parametrize(
        "path",
        [
            "../app.py",
            "..%2fapp.py",
            "%2e%2e/app.py",
            "strings/../../app.py",
            "/etc/passwd",
            "index.html",
            "..\\app.py",
            "page.css%00",
            "page.css/",
        ],
    )
    def test_no_path_names_a_file(self, client: TestClient, path: str) -> None:
        assert client.get(f"/static/{path}").status_code == 404

    def test_static_files_are_checked_again_not_sent_again(self, client: TestClient) -> None:
        first = client.get("/static/page.js")
        assert first.headers["content-type"].startswith("text/javascript")
        again = client.get("/static/page.js", headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")

    @pytest.mark.parametrize(
        ("value", "name"),
        [("localhost", "localhost"), ("A:1", "a"), ("[::1]", "::1"), ("https://x.org:1", "x.org"), ("", "")],
    )
    def test_host_name(self, value: str, name: str) -> None:
        assert host_name(value) == name


class TestPeople:
    def test_every_country_is_on_the_help_page(self, client: TestClient) -> None:
        page = client.get("/help").text
        assert len(directory.choices()) > 40
        for code, label in directory.choices():
            assert f'value="{code}"' in page
            for line in directory.look_up(code)["lines"]:
                for way in ("call", "text"):
                    assert not line[way] or f'href="{line[way]["href"]}"' in page, label

    def test_the_help_page_needs_neither_script_nor_engine(self) -> None:
        chat, _ = chat_with(EngineError("gone", code="engine-failed"))
        with client_for(chat, country="GB") as client:
            page = client.get("/help").text
            assert page.count("<script") == 1  # leave.js; its control is a link that works without it
            assert 'href="tel:116123"' in page
            assert 'href="tel:911"' in client.get("/help?country=US").text.split("Lines by country")[0]

    @pytest.mark.parametrize("country", ["", "QQ", "../x", "<script>alert(1)</script>", "a" * 3000])
    def test_an_unknown_country_still_gets_help(self, client: TestClient, country: str) -> None:
        answer = client.get("/help", params={"country": country})
        assert answer.status_code == 200
        assert "findahelpline.com" in answer.text
        assert "<script>alert" not in answer.text

    def test_resources(self, client: TestClient) -> None:
        britain = client.get("/api/resources/gb").json()
        assert (britain["country"], britain["emergency"]) == ("GB", {"number": "999", "tel": "tel:999"})
        assert britain["lines"][0]["call"] == {"number": "116 123", "href": "tel:116123"}
        nowhere = client.get("/api/resources/ZZ").json()
        assert nowhere["country"] is None
        assert nowhere["elsewhere"][0] == {"url": "https://findahelpline.com", "site": "findahelpline.com"}
        unknown = client.get("/api/resources/QQ")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "country-unknown")

    def test_an_operator_s_unknown_country_stops_the_start(self) -> None:
        with pytest.raises(WarmlineError) as error:
            client_for(Played(brief), country="QQ")
        assert error.value.code == "country-unknown"

    def test_the_service_s_name_is_only_text(self) -> None:
        with client_for(Played(brief), name='<img src=x onerror="alert(1)">') as client:
            for path in ("/", "/help"):
                assert "<img src=x" not in client.get(path).text


class TestListening:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "10.0.0.1", "example.org", ""])
    def test_only_this_machine(self, host: str) -> None:
        with pytest.raises(ServeError) as error:
            listen(host, 0)
        assert error.value.code == "serve-open"
        assert error.value.hint

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "127.8.8.8"])
    def test_loopback(self, host: str) -> None:
        with listen(host, 0) as door:
            assert door.getsockname()[1] > 0

    def test_no_answer_is_held_back_until_the_one_before_is_acknowledged(self) -> None:
        """Nagle's delay: 40 ms for an answer in two pieces. asyncio turns it off if the socket names its protocol."""

        async def look() -> int:
            seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

            async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                reader = writer.get_extra_info("socket")
                seen.set_result(reader.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                writer.close()

            door = listen("127.0.0.1", 0)
            async with await asyncio.start_server(accepted, sock=door):
                _, writer = await asyncio.open_connection(*door.getsockname())
                writer.close()
                return await seen

        assert asyncio.run(look())

    def test_a_taken_port(self) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(ServeError) as error:
                check_port("127.0.0.1", port)
        assert error.value.code == "port-in-use"
        assert str(port) in str(error.value)
        assert f"--port {port + 1}" in str(error.value)

    @pytest.mark.parametrize("port", [-1, 70000])
    def test_no_such_port(self, port: int) -> None:
        with pytest.raises(ServeError):
            listen("127.0.0.1", port)

    @pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
    def test_it_ends_cleanly(self, sent: signal.Signals) -> None:
        program = textwrap.dedent("""
            from warmline.chat import Chat
            from warmline.engine.base import ScriptedEngine
            from warmline.serve.app import create_app, run
            run(create_app(Chat(ScriptedEngine(), system="x")), port=0, ready=lambda at: print(at, flush=True))
            print("after", flush=True)
        """)
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        ) as server:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:")
            host, port = address.removeprefix("http://").split(":")
            import http.client

            for _ in range(100):
                try:
                    connection = http.client.HTTPConnection(host, int(port), timeout=5)
                    connection.request("GET", "/healthz")
                    assert connection.getresponse().status == 200
                    break
                except ConnectionError:
                    continue
            server.send_signal(sent)
            out, err = server.communicate(timeout=20)
        assert err == ""
        assert server.returncode in (0, -sent)
        assert out == "after\n" or sent == signal.SIGTERM


def test_no_word_of_a_person_is_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    chat, _ = chat_with(REPLY, EngineError(CANARY, code="engine-failed"), RuntimeError(CANARY))
    with client_for(chat) as client, caplog.at_level(logging.DEBUG):
        id = open_one(client)
        for text in (ORDINARY, f"{CANARY} keeps me awake", CRISIS + CANARY):
            say(client, id, text)
        printed = capfd.readouterr()
    assert CANARY not in caplog.text + printed.out + printed.err
