"""A small stand-in for a model hub's HTTP API: enough for huggingface_hub to create, upload and commit for real."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "TestTokenOfNobody" * 2 + "0"


@dataclass
class Hub:
    """What the hub was asked and what it holds. `fail` answers a path's beginning with a status."""

    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    fail: dict[str, int] = field(default_factory=dict)

    def files(self, repository: str) -> dict[str, bytes]:
        return self.repositories[repository]["files"]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _handle(self) -> None:
        hub, path, body = self.hub, self.path.split("?")[0], self._body()
        hub.requests.append((self.command, path))
        for start, status in hub.fail.items():
            if path.startswith(start):
                return self._answer({"error": "no"}, status)
        if not path.startswith("/upload/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "who are you"}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in hub.repositories:
                return self._answer({"error": "exists", "url": f"{hub.url}/{name}"}, 409)
            private = asked.get("visibility") == "private" or asked.get("private") is True
            hub.repositories[name] = {"private": private, "files": {}}
            return self._answer({"url": f"{hub.url}/{name}"})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path.startswith("/upload/"):
            hub.objects[path.rsplit("/", 1)[1]] = body
            return self._answer({})
        name = next((name for name in hub.repositories if f"/{name}" in path), None)
        if name is None:
            return self._answer({"error": "no such repository"}, 404)
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                item | {"actions": {"upload": {"href": f"{hub.url}/upload/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        if "/preupload/" in path:
            files = [
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if item["path"].endswith((".safetensors", ".gguf")) else "regular",
                    "shouldIgnore": False,
                }
                for item in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if "/commit/" in path:
            for line in body.decode().splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    hub.files(name)[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                elif item["key"] == "lfsFile":
                    content = hub.objects[item["value"]["oid"]]
                    assert hashlib.sha256(content).hexdigest() == item["value"]["oid"]
                    hub.files(name)[item["value"]["path"]] = content
            return self._answer({"commitUrl": f"{hub.url}/{name}/commit/{'a' * 40}", "commitOid": "a" * 40})
        repository = hub.repositories[name]
        return self._answer({"id": name, "private": repository["private"], "siblings": [], "tags": []})

    do_GET = do_POST = do_PUT = _handle


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
