"""A run that is ready to be measured, made without training, and a server whose model judges and visits."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_run
from warmline import recipe
from warmline.runs import Run


@pytest.fixture
def run(models: dict[str, Path], tmp_path: Path) -> tuple[Run, recipe.Recipe]:
    return make_run(tmp_path / "runs" / "small", models["llama"], prompt={"context": 200})


@pytest.fixture
def server() -> Iterator[dict[str, Any]]:
    """An OpenAI-compatible server with one model, `arbiter`: as judge it finds every question's first answer right, as
    visitor it says the lines of `script` over and over."""
    state: dict[str, Any] = {"calls": 0, "dies_at": None, "script": ["I am tired.", "I want to kill myself."]}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def send(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send("application/json", json.dumps({"data": [{"id": "arbiter"}]}).encode())

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state["calls"] += 1
            if state["calls"] == state["dies_at"]:
                self.send_response(400)
                self.end_headers()
                return
            judged = re.search(r"one of (\[.*\])", asked["messages"][0]["content"])
            if judged:
                text = json.dumps({"why": "so", "answer": json.loads(judged.group(1))[0]})
            else:
                said = sum(message["role"] == "assistant" for message in asked["messages"])
                text = state["script"][said % len(state["script"])]
            chunk = {"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}
            self.send("text/event-stream", f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        state["url"] = f"http://127.0.0.1:{http.server_address[1]}/v1"
        yield state
        http.shutdown()
