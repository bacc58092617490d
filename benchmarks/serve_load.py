"""The server under load: streams on few places, readers who vanish, refusals, an hour of everything (soak).

    python benchmarks/serve_load.py [--streams 64] [--leavers 200] [--slow 50] [--refusals 200] [--soak MINUTES]

The server runs in a process of its own with a scripted engine, so what is measured is Warmline and not a model. Prints
one JSON line. The same code runs at small counts in tests/serve/test_calm.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

PLACES = 2
CRISIS = "I want to kill myself tonight."


def said(number: int) -> str:
    return f"My name tag at work says {number} and the shifts are long."


def reply(number: int) -> str:
    return f"You said the tag says {number}. Long shifts wear a person down. What did tag {number} see today?"


class Echo:
    """Answers with the number it was told, a word at a time; the last word comes `seconds` after the first."""

    name = "echo"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def reply(self, call: Any) -> Iterator[str]:
        number = int("".join(c for c in call.messages[-1].content if c.isdigit()) or 0)
        words = reply(number).split(" ")
        for index, word in enumerate(words):
            if call.cancel.wait(self.seconds / len(words)):
                call.usage.stop_reason = "cancelled"
                return
            call.usage.completion_tokens += 1
            yield word if index == 0 else f" {word}"


def serve(seconds: float, places: int, queue: int) -> None:
    """Until killed, on a free port, which is printed."""
    from warmline.chat import Chat
    from warmline.serve.app import create_app, run
    from warmline.serve.auth import Gate
    from warmline.serve.keys import Keys
    from warmline.serve.limits import Limits

    gate = Gate(Keys(), limits=Limits("100000/minute", "100000/minute"))
    chat = Chat(Echo(seconds), system="You listen.")
    app = create_app(chat, engine_places=places, queue=queue, gate=gate)
    run(app, port=0, ready=lambda address: print(address, flush=True))


class Server:
    """`serve` in a process of its own."""

    def __init__(self, seconds: float = 0.05, places: int = PLACES, queue: int = 64) -> None:
        self.words = [sys.executable, str(Path(__file__)), "--serve", str(seconds), str(places), str(queue)]
        self.places = places

    def __enter__(self) -> Server:
        self.process = subprocess.Popen(self.words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        for _ in range(200):
            try:
                httpx.get(f"{self.url}/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)

    def number(self, name: str) -> float:
        for line in httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        raise KeyError(name)

    def all_back(self, patience: float = 30) -> float:
        """Seconds until every place is free and nobody waits."""
        began = time.monotonic()
        while self.number("warmline_places_free") < self.places or self.number("warmline_turns_live"):
            if time.monotonic() - began > patience:
                raise TimeoutError("places are lost")
            time.sleep(0.02)
        return time.monotonic() - began

    def memory(self) -> int:
        import psutil

        return int(psutil.Process(self.process.pid).memory_info().rss)


async def begin(web: httpx.AsyncClient) -> tuple[str, dict[str, str]]:
    """A conversation: its address, and the cookie that opens it."""
    answer = await web.post("/api/conversations", json={})
    answer.raise_for_status()
    web.cookies.clear()
    return f"/api/conversations/{answer.json()['id']}/messages", dict(answer.cookies)


def text_of(body: str) -> tuple[str, str]:
    """All the text of a stream, and the name of its last event."""
    words, last = "", ""
    for block in body.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            last = fields["event"]
            if last == "text":
                words += json.loads(fields["data"])["text"]
    return words, last


async def crowd(url: str, streams: int) -> dict[str, int]:
    """So many people at the same moment; each must get their own reply whole, or be told when to come back."""
    counts: Counter[str] = Counter()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as web:

        async def one(number: int) -> None:
            at, cookie = await begin(web)
            headers = {"cookie": f"visitor={cookie['visitor']}"}
            answer = await web.post(at, json={"text": said(number)}, headers=headers)
            if answer.status_code in (429, 503):
                counts["told to retry" if int(answer.headers["retry-after"]) > 0 else "lost"] += 1
                kept = 0
            else:
                words, last = text_of(answer.text)
                counts["complete" if words.strip() == reply(number) and last == "done" else "wrong"] += 1
                kept = 2
            held = (await web.get(at.removesuffix("/messages"), headers=headers)).json()["messages"]
            counts["history wrong"] += len(held) != kept

        await asyncio.gather(*(one(number) for number in range(1000, 1000 + streams)))
    return dict(counts)


async def refusals(url: str, tries: int, busy: int) -> dict[str, float]:
    """How fast a full server turns someone away, and that it answers a crisis meanwhile."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as web:
        places = [await begin(web) for _ in range(busy)]
        at, cookie = await begin(web)
        headers = {"cookie": f"visitor={cookie['visitor']}"}

        async def hold(number: int) -> None:
            where, theirs = places[number]
            await web.post(where, json={"text": said(number)}, headers={"cookie": f"visitor={theirs['visitor']}"})

        holding = [asyncio.create_task(hold(number)) for number in range(busy)]
        while (await web.get("/readyz")).status_code == 200:
            await asyncio.sleep(0.02)
        took, nothing, crises = [], [], 0
        for _ in range(tries):
            began = time.perf_counter()
            answer = await web.post(at, json={"text": said(1)}, headers=headers)
            took.append(1000 * (time.perf_counter() - began))
            if answer.status_code != 503:
                raise RuntimeError(f"a full server answered {answer.status_code}")
            began = time.perf_counter()
            await web.get("/readyz")  # what any answer costs
            nothing.append(1000 * (time.perf_counter() - began))
            if len(took) % 10 == 0:
                urgent = await begin(web)
                answer = await web.post(
                    urgent[0], json={"text": CRISIS}, headers={"cookie": f"visitor={urgent[1]['visitor']}"}
                )
                crises += answer.status_code == 200 and text_of(answer.text)[1] == "done"
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)
    took.sort()
    return {
        "median_ms": round(statistics.median(took), 1),
        "p99_ms": round(took[int(0.99 * (len(took) - 1))], 1),
        "slowest_ms": round(took[-1], 1),
        "readyz_median_ms": round(statistics.median(nothing), 1),
        "crises_answered": crises,
        "crises": tries // 10,
    }


def leave(url: str, before: int, middle: int, slow: int, *, erase: bool = False) -> None:
    """Readers who break the connection before the first byte, in the middle, and who hardly read at all.

    What they said stays in memory for the idle hours, unless they `erase` it afterwards.
    """
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"text": said(7)}).encode()
    sockets: list[socket.socket] = []
    left: list[httpx.Response] = []

    def ask() -> socket.socket:
        opened = httpx.post(f"{url}/api/conversations", json={}, timeout=60)
        left.append(opened)
        reader = socket.create_connection((host, int(port)), timeout=60)
        reader.sendall(
            f"POST /api/conversations/{opened.json()['id']}/messages HTTP/1.1\r\nHost: {host}:{port}\r\n"
            f"Cookie: visitor={opened.cookies['visitor']}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        return reader

    def reset(reader: socket.socket) -> None:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        reader.close()

    for number in range(max(before, middle, slow)):
        if number < slow:
            reader = ask()
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            sockets.append(reader)
        if number < before:
            reset(ask())
        if number < middle:
            reader = ask()
            reader.recv(64)
            reset(reader)
    for reader in sockets:
        reset(reader)
    for opened in left if erase else ():
        httpx.delete(f"{url}/api/conversations/{opened.json()['id']}", cookies=opened.cookies, timeout=60)


def soak(server: Server, minutes: float) -> dict[str, Any]:
    """Everything at once; whether memory still grows after the first fifth says whether something is kept for ever."""
    began, samples, faults = time.monotonic(), [], 0
    over = began + 60 * minutes
    kinds: Counter[str] = Counter()

    def work(seed: int) -> None:
        nonlocal faults
        draw = random.Random(seed)
        with httpx.Client(base_url=server.url, timeout=60) as web:
            while time.monotonic() < over:
                kind = draw.choice(["talk", "talk", "crisis", "leave", "api", "judge", "keep", "delete", "nonsense"])
                kinds[kind] += 1
                try:
                    if kind == "leave":
                        leave(server.url, 1, 1, 0, erase=True)
                        continue
                    if kind == "api":
                        messages = [{"role": "user", "content": said(5)}]
                        answer = web.post("/v1/chat/completions", json={"model": "echo", "messages": messages})
                    elif kind == "nonsense":
                        answer = web.post("/api/conversations", content=draw.randbytes(200))
                    else:
                        at = f"/api/conversations/{web.post('/api/conversations', json={}).json()['id']}"
                        text = CRISIS if kind == "crisis" else said(3)
                        answer = web.post(f"{at}/messages", json={"text": text})
                        if kind == "judge":
                            web.put(f"{at}/verdict", json={"place": 1, "verdict": "helpful"})
                            answer = web.get(f"{at}/export?form=json")
                        if kind == "keep":  # read again, and left to be erased with all the visitor's at once
                            web.get(at)
                            answer = web.delete("/api/conversations")
                        else:
                            web.delete(at)
                    faults += answer.status_code in (500, 502, 504) or "Traceback" in answer.text
                except httpx.TransportError:
                    faults += 1

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    while time.monotonic() < over:
        time.sleep(min(5.0, 6 * minutes))
        samples.append((time.monotonic() - began, server.memory() / 2**20))
    for worker in workers:
        worker.join(60)
    back = server.all_back()
    # One figure for each tenth: neighbouring samples are not independent, their interval would be too narrow.
    tenths: list[list[float]] = [[] for _ in range(10)]
    for second, mib in samples:
        tenths[min(9, int(second / (6 * minutes)))].append(mib)
    means = [round(statistics.median(tenth), 2) for tenth in tenths if tenth]
    slope, wide = slope_of([minutes * (place + 0.5) / 10 for place in range(2, len(means))], means[2:])
    return {
        "minutes": minutes,
        "requests": dict(kinds),
        "faults": faults,
        "mib_by_tenth": means,
        "mib_per_minute_after_the_second": [round(slope - wide, 3), round(slope, 3), round(slope + wide, 3)],
        "all_back_s": round(back, 2),
        "conversations_left": server.number("warmline_conversations"),
    }


def slope_of(x: list[float], y: list[float]) -> tuple[float, float]:
    """The slope of a line through the points, and how far its 95 % interval goes to either side."""
    from scipy.stats import linregress, t

    if len(x) < 3:
        return 0.0, 0.0
    line = linregress(x, y)
    return float(line.slope), float(t.ppf(0.975, len(x) - 2) * line.stderr)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    for name, usual in (("streams", 64), ("leavers", 200), ("slow", 50), ("refusals", 200)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    if asked.streams:
        with Server() as server:
            found["crowd"] = asyncio.run(crowd(server.url, asked.streams)) | {"places": PLACES}
        with Server(queue=16) as server:
            found["crowd_short_queue"] = asyncio.run(crowd(server.url, asked.streams))
    if asked.refusals:
        with Server(seconds=60, queue=4) as server:
            found["refusals"] = asyncio.run(refusals(server.url, asked.refusals, PLACES + 4))
    if asked.leavers or asked.slow:
        with Server(seconds=5) as server:
            leave(server.url, asked.leavers, asked.leavers, asked.slow)
            found["leavers"] = {"count": 2 * asked.leavers, "slow": asked.slow, "all_back_s": server.all_back()}
    if asked.soak:
        with Server() as server:
            found["soak"] = soak(server, asked.soak)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
