"""A server with a scripted engine, stand-ins for `chat` where a test must decide every event, and a real Chromium."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from warmline.chat import Chat, Done, Event, Safety, Text, Thread
from warmline.engine.base import Options, ScriptedEngine, Usage
from warmline.serve.app import create_app, listen

ORDINARY = "Work has been heavy lately and I lie awake over it."
CRISIS = "I want to kill myself tonight."
REPLY = "That sounds heavy to carry alone. What part of it stays with you at night?"


def chat_with(*script: str | Exception) -> tuple[Chat, ScriptedEngine]:
    engine = ScriptedEngine(script or (REPLY,))
    return Chat(engine, system="You listen."), engine


class Played:
    """Stands in for `Chat`: `turn` plays what a test wrote, step by step."""

    country: str | None = None

    def __init__(self, play: Callable[[Thread, str, threading.Event], Iterator[Event]]) -> None:
        self.play = play
        self.engine = ScriptedEngine()
        self.options = Options()

    def recall(self, history: Thread, messages: Any) -> None:
        history.messages.extend(messages)

    def turn(
        self, history: Thread, text: str, *, cancel: threading.Event | None = None, options: Options | None = None
    ) -> Iterator[Event]:
        return self.play(history, text, cancel or threading.Event())


def safety(action: str = "model", level: int = 0) -> Safety:
    return Safety(level=level, flags=frozenset(), resources=None, action=action)  # type: ignore[arg-type]


def done(stop_reason: str = "stop", level: int = 0) -> Done:
    return Done(stop_reason=stop_reason, usage=Usage(), level=level)  # type: ignore[arg-type]


def brief(history: Thread, text: str, cancel: threading.Event) -> Iterator[Event]:
    yield safety()
    yield Text("Yes.")
    yield done()


def client_for(chat: Any, **options: Any) -> TestClient:
    return TestClient(create_app(chat, **options), base_url="http://localhost")


@pytest.fixture
def client() -> Iterator[TestClient]:
    with client_for(chat_with()[0]) as client:
        yield client


def open_one(client: TestClient, **body: Any) -> str:
    answer = client.post("/api/conversations", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def events_of(body: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in body.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def say(client: TestClient, id: str, text: str, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    answer = client.post(f"/api/conversations/{id}/messages", json={"text": text, **more})
    assert answer.status_code == 200, answer.text
    return events_of(answer.text)


class Running:
    """An app behind a real port, in a thread."""

    def __init__(self, app: FastAPI) -> None:
        self.door = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.door.getsockname()[1]}"
        self.server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        )
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.door]}, daemon=True)

    def __enter__(self) -> Running:
        self.thread.start()
        wait_until(lambda: self.server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(10)
        self.door.close()


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real Chromium. Without one the tests are skipped, but in CI they fail."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        reason = "Chromium is not installed, the page is NOT tested (Debian/Ubuntu: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    # For one module only: as long as it is open, no other test can run an event loop in this thread.
    with sync_playwright() as playwright:
        # Chromium refuses its own sandbox to root, which is who runs the tests in a container.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()
