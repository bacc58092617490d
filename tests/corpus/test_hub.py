"""A dataset on a hub, read by the real `datasets` package from a small hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("datasets", reason="the optional package `datasets` is not installed")

SHA = "5" * 40
NAME = "clinic/talks"
CARD = {"license": "cc-by-4.0"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a hub with one dataset: a card with a licence and a Parquet file with the columns of Amod."""
    folder = tmp_path / "hub"
    folder.mkdir()
    rows = [
        (f"My week {n} was long and I slept badly after night {n * 3}.", f"What kept you awake in night {n * 3}?")
        for n in range(40)
    ]
    table = pa.table({"Context": [a for a, _ in rows], "Response": [b for _, b in rows]})
    pq.write_table(table, folder / "train.parquet")
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Talks\n")
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            start = f"/datasets/{NAME}/resolve/"
            if path.startswith(start) and (name := path[len(start) :].split("/", 1)[1]) in files:
                return self.file(files[name])
            if path.startswith(f"/api/datasets/{NAME}/tree/"):
                inside = path.removeprefix(f"/api/datasets/{NAME}/tree/").partition("/")[2]
                return self.answer([e for e in entries() if e["path"].startswith(inside)])
            if path.startswith(f"/api/datasets/{NAME}/paths-info/"):
                asked = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                return self.answer([e for e in entries() if e["path"] in unquote(asked)])
            if path in (f"/api/datasets/{NAME}", f"/api/datasets/{NAME}/revision/main") or path.endswith(SHA):
                return self.answer({"id": NAME, "sha": SHA, "private": False, "siblings": siblings, "cardData": CARD})
            self.send_error(404)
            return None

        do_HEAD = do_POST = do_GET

        def answer(self, value: object) -> None:
            self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def file(self, body: bytes) -> None:
            tag = hashlib.sha1(body).hexdigest()
            headers = {"ETag": f'"{tag}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
            if asked := self.headers.get("Range"):
                first, _, last = asked.removeprefix("bytes=").partition("-")
                begin, end = int(first), min(int(last or len(body)), len(body) - 1)
                headers["Content-Range"] = f"bytes {begin}-{end}/{len(body)}"
                self.reply(206, body[begin : end + 1], headers)
            else:
                self.reply(200, body, headers)

        def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    def entries() -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
            for name, body in files.items()
        ]

    siblings = [{"rfilename": name} for name in files]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def warmline(endpoint: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # The package reads the hub's address once, when it is imported: hence a process of its own.
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "warmline.cli.main", *words], env=environment, cwd=home, capture_output=True, text=True
    )


def test_a_dataset_of_the_hub_is_prepared_with_its_licence(hub: str, tmp_path: Path) -> None:
    done = warmline(hub, tmp_path, "data", "prepare", NAME, "-o", "out")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["counts"]["read"] == 40
    card = (tmp_path / "out" / "card.md").read_text()
    assert "cc-by-4.0" in card.lower()
    row = json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[0])
    assert row["provenance"]["source"] == NAME


def test_a_dataset_that_is_not_there_is_one_message(hub: str, tmp_path: Path) -> None:
    done = warmline(hub, tmp_path, "data", "prepare", "clinic/nothing", "-o", "out")
    assert done.returncode != 0
    assert "clinic/nothing" in done.stderr
    assert "hub-unreachable" in done.stderr
    assert "Traceback" not in done.stderr
