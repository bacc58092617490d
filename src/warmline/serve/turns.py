"""One reply as Server-Sent Events: made in a thread of its own, ended as soon as the reader is gone.

    reader <- queue <- thread: notice, safety | place in the line for the engine | text..., done

Knows nothing of models. A turn that is answered without the engine never stands in the line for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from warmline.chat import Event, Safety
from warmline.serve import wire
from warmline.serve.conversations import Turn
from warmline.serve.doorway import place

log = logging.getLogger("warmline.serve")

Piece = tuple[str, dict[str, Any]]
"""Name and data of one Server-Sent Event."""


class Line:
    """A first-come line for the engine: at most `places` replies at a time, at most `most` others waiting in order."""

    def __init__(self, places: int = 1, most: int = 64) -> None:
        self._free, self._most = places, most
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    def enter(self, cancel: threading.Event, seconds: float, waiting: Callable[[], None] = lambda: None) -> bool:
        """Wait for a place, at most `seconds`; True if there is one, to be given back with `leave`.

        `waiting` is called once if the place is not free at once. False: the line is full, the wait was
        given up, or `cancel` was set.
        """
        ticket = threading.Event()
        with self._lock:
            if self._free and not self._waiting:
                self._free -= 1
                return True
            if len(self._waiting) >= self._most:
                return False
            self._waiting.append(ticket)
        waiting()
        until = time.monotonic() + seconds
        while not ticket.wait(0.05):
            if cancel.is_set() or time.monotonic() > until:
                with self._lock:
                    if not ticket.is_set():
                        self._waiting.remove(ticket)
                        return False
                break  # the place was handed over at this very moment
        return True

    @property
    def full(self) -> bool:
        """Whether whoever comes now is turned away."""
        with self._lock:
            return not self._free and len(self._waiting) >= self._most

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def leave(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class TurnStream:
    """An ASGI response that sends the events of one turn. `events(cancel)` makes them, `encode` writes them.

    Seconds: `line_seconds` in the line for the engine, `silence_seconds` without an event from it, `reader_seconds` for
    a reader to take what is sent, `beat_seconds` between signs of life on a silent stream.
    """

    def __init__(
        self,
        turn: Turn,
        events: Callable[[threading.Event], Iterator[Event]],
        line: Line,
        *,
        line_seconds: float = 120.0,
        silence_seconds: float = 180.0,
        reader_seconds: float = 20.0,
        beat_seconds: float = 5.0,
        encode: Callable[[Piece], bytes] | None = None,
    ) -> None:
        self.turn, self.events, self.line = turn, events, line
        self.encode = encode or _sse
        self.line_seconds, self.silence_seconds = line_seconds, silence_seconds
        self.reader_seconds, self.beat_seconds = reader_seconds, beat_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Piece | None] = asyncio.Queue()

        def put(piece: Piece | None) -> None:
            with contextlib.suppress(RuntimeError):  # the server has shut down in the meantime
                loop.call_soon_threadsafe(queue.put_nowait, piece)

        threading.Thread(target=self._make, args=(put,), name="warmline-turn", daemon=True).start()
        # The reader is watched from the start: one who leaves before the first byte must not keep the engine busy.
        gone = asyncio.ensure_future(self._gone(receive))
        sending = asyncio.ensure_future(self._send(queue, send))
        try:
            await asyncio.wait((gone, sending), return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and (error := sending.exception()) and not isinstance(error, (OSError, TimeoutError)):
                log.error("a reply could not be sent: %s", place(error))
        finally:
            self.turn.cancel.set()
            for task in (gone, sending):
                task.cancel()
            await asyncio.gather(gone, sending, return_exceptions=True)

    async def collect(self, receive: Receive) -> list[Piece] | None:
        """All pieces at once instead of a stream; None if the reader left before the end."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Piece | None] = asyncio.Queue()

        def put(piece: Piece | None) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(queue.put_nowait, piece)

        async def everything() -> list[Piece]:
            pieces: list[Piece] = []
            while (piece := await queue.get()) is not None:
                pieces.append(piece)
            return pieces

        threading.Thread(target=self._make, args=(put,), name="warmline-turn", daemon=True).start()
        gone = asyncio.ensure_future(self._gone(receive))
        made = asyncio.ensure_future(everything())
        try:
            await asyncio.wait((gone, made), return_when=asyncio.FIRST_COMPLETED)
            return made.result() if made.done() else None
        finally:
            self.turn.cancel.set()
            for task in (gone, made):
                task.cancel()
            await asyncio.gather(gone, made, return_exceptions=True)

    def _make(self, put: Callable[[Piece | None], None]) -> None:
        cancel, inside = self.turn.cancel, False
        events: Iterator[Event] | None = None
        try:
            events = self.events(cancel)
            for event in events:
                put(wire.piece(event))
                if isinstance(event, Safety) and event.action != "vetted" and not inside:
                    inside = self._enter(put)
                    if not inside:
                        return
        except Exception as error:
            log.error("a turn failed: %s", place(error))
            put(wire.trouble("fault"))
        finally:
            if isinstance(events, Generator):
                with contextlib.suppress(Exception):
                    events.close()
            if inside:
                self.line.leave()
            self.turn.ended.set()
            put(None)

    def _enter(self, put: Callable[[Piece | None], None]) -> bool:
        """Stand in the line for the engine, and tell the reader so while it lasts."""
        standing = threading.Event()

        def stand() -> None:
            standing.set()
            put(("waiting", {"waiting": True}))

        if self.line.enter(self.turn.cancel, self.line_seconds, stand):
            if standing.is_set():
                put(("waiting", {"waiting": False}))
            return True
        if not self.turn.cancel.is_set():
            put(wire.trouble("busy"))
        return False

    async def _send(self, queue: asyncio.Queue[Piece | None], send: Send) -> None:
        async def pass_on(message: dict[str, Any]) -> None:
            await asyncio.wait_for(send(message), self.reader_seconds)

        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await pass_on({"type": "http.response.start", "status": 200, "headers": headers})
        silent_since, in_line = time.monotonic(), False
        while True:
            try:
                piece = await asyncio.wait_for(queue.get(), self.beat_seconds)
            except TimeoutError:
                if not in_line and time.monotonic() - silent_since > self.silence_seconds:
                    piece = wire.trouble("no-reply")
                    await pass_on(_body(self.encode(piece)))
                    break
                await pass_on(_body(b": still here\n\n"))
                continue
            if piece is None:
                break
            silent_since, in_line = time.monotonic(), piece == ("waiting", {"waiting": True})
            await pass_on(_body(self.encode(piece)))
        await pass_on({"type": "http.response.body", "body": b"", "more_body": False})

    @staticmethod
    async def _gone(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


class Streamed(Response):
    """Lets a `TurnStream` answer the request by itself."""

    def __init__(self, stream: TurnStream) -> None:
        self.stream = stream
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.stream(scope, receive, send)


def _sse(piece: Piece) -> bytes:
    name, data = piece
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def _body(chunk: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": chunk, "more_body": True}
