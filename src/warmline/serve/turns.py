"""One reply as Server-Sent Events: made in a thread of its own, ended as soon as the reader is gone.

    reader <- queue <- thread: notice, safety | place in the line for the engine | text..., done

Knows nothing of models. A turn that is answered without the engine never stands in the line for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from warmline.chat import Event, Notice, Safety
from warmline.serve import journal, wire
from warmline.serve.conversations import Piece, Turn

BUSY_SECONDS = 5
"""When to come back to a full line whose speed is not known yet."""
CLOSING_SECONDS = 10


class Line:
    """A first-come line for the engine: at most `places` replies at a time, at most `most` others waiting in order."""

    def __init__(self, places: int = 1, most: int = 64) -> None:
        self._free, self._most = places, most
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()
        self._moves: deque[float] = deque(maxlen=8)
        """When the line last moved on, while somebody stood in it."""
        self._live: set[Turn] = set()
        self.closing = False

    def enter(
        self, cancel: threading.Event, seconds: float, waiting: Callable[[int, float | None], None] = lambda *_: None
    ) -> bool:
        """Wait for a place, at most `seconds`; True if there is one, to be given back with `leave`.

        `waiting` is told the place in the line and the likely seconds (None: not known yet), at once if the place is
        not free and whenever the line moves. False: the line is full or closed, the wait was given up, or `cancel` was
        set.
        """
        ticket, told = threading.Event(), 0
        with self._lock:
            if self.closing:
                return False
            if self._free and not self._waiting:
                self._free -= 1
                return True
            if len(self._waiting) >= self._most:
                return False
            if not self._waiting:
                self._moves.clear()
            self._waiting.append(ticket)
        until = time.monotonic() + seconds
        while True:
            with self._lock:
                if ticket.is_set():
                    return True
                if cancel.is_set() or self.closing or time.monotonic() > until:
                    self._waiting.remove(ticket)
                    return False
                ahead = self._waiting.index(ticket) + 1
            if ahead != told:
                told = ahead
                waiting(ahead, self.likely(ahead))
            ticket.wait(0.05)

    def likely(self, place: int) -> float | None:
        """Seconds until whoever stands at `place` has a turn, from how fast the line moved last."""
        with self._lock:
            if len(self._moves) < 2:
                return None
            return place * (self._moves[-1] - self._moves[0]) / (len(self._moves) - 1)

    @property
    def full(self) -> bool:
        """Whether whoever comes now is turned away."""
        with self._lock:
            return self.closing or (not self._free and len(self._waiting) >= self._most)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def free(self) -> int:
        return self._free

    def leave(self) -> None:
        with self._lock:
            if self._waiting:
                self._moves.append(time.monotonic())
                self._waiting.popleft().set()
            else:
                self._free += 1

    # -------------------------------------------------------------- the end of the day

    @property
    def live(self) -> int:
        """Turns that are being answered or wait to be."""
        return len(self._live)

    def begun(self, turn: Turn) -> None:
        self._live.add(turn)

    def ended(self, turn: Turn) -> None:
        self._live.discard(turn)

    def close(self) -> None:
        """Let nobody in any more; who has a place keeps it. Crises are answered to the end."""
        self.closing = True

    def cut(self, seconds: float) -> bool:
        """Ask all turns to end where they are, and wait until what they said is in their conversations."""
        for turn in list(self._live):
            turn.cancel.set()
        until = time.monotonic() + seconds
        return all(turn.ended.wait(max(0.0, until - time.monotonic())) for turn in list(self._live))


@dataclass(frozen=True, slots=True)
class Refused:
    """A turn that got no reply: why, and when to come back. What was said is screened all the same."""

    code: str
    status: int
    seconds: int
    pieces: tuple[Piece, ...] = ()
    """Notices and safety of the turn: a flag is shown also when there is no reply."""

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"notices": [data["text"] for name, data in self.pieces if name == "notice"]}
        found["safety"] = next((data for name, data in self.pieces if name == "safety"), None)
        message = wire.trouble(self.code)[1]["message"]
        return {"code": self.code, "message": message, "retry_after": self.seconds} | found


def _refusal(refused: Refused) -> Response:
    return JSONResponse(refused.json(), refused.status, {"Retry-After": str(refused.seconds)})


Item = Piece | Refused | None
"""What a turn puts on its queue: a piece, or that there will be none, or the end."""


class TurnStream:
    """An ASGI response that sends the events of one turn. `events(cancel)` makes them, `encode` writes them.

    The answer begins when it is known whether there is a place for the turn: one that finds none, or that is over the
    caller's limit (`over` says for how many seconds), becomes the response that `refuse` makes, and `dropped` is
    called. A turn that needs no engine is never refused.

    Seconds: `line_seconds` in the line for the engine, `silence_seconds` without an event from it, `reader_seconds` for
    a reader to take what is sent, `beat_seconds` between signs of life on a silent stream.
    """

    def __init__(
        self,
        turn: Turn,
        events: Callable[[threading.Event], Iterator[Event]],
        line: Line,
        *,
        over: int = 0,
        line_seconds: float = 120.0,
        silence_seconds: float = 180.0,
        reader_seconds: float = 20.0,
        beat_seconds: float = 5.0,
        encode: Callable[[Piece], bytes] | None = None,
        refuse: Callable[[Refused], Response] = _refusal,
        dropped: Callable[[], None] = lambda: None,
    ) -> None:
        self.turn, self.events, self.line, self.over = turn, events, line, over
        self.encode, self.refuse, self.dropped = encode or _sse, refuse, dropped
        self.line_seconds, self.silence_seconds = line_seconds, silence_seconds
        self.reader_seconds, self.beat_seconds = reader_seconds, beat_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        queue = self._start()
        # The reader is watched from the start: one who leaves before the first byte must not keep the engine busy.
        gone = asyncio.ensure_future(self._gone(receive))
        sending = asyncio.ensure_future(self._send(queue, scope, receive, send))
        try:
            await asyncio.wait((gone, sending), return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and (error := sending.exception()) and not isinstance(error, (OSError, TimeoutError)):
                journal.fault("a reply could not be sent", error)
        finally:
            self.turn.cancel.set()
            for task in (gone, sending):
                task.cancel()
            await asyncio.gather(gone, sending, return_exceptions=True)

    async def collect(self, receive: Receive) -> list[Piece] | Refused | None:
        """All pieces at once instead of a stream; None if the reader left before the end."""
        queue = self._start()

        async def everything() -> list[Piece] | Refused:
            pieces: list[Piece] = []
            while (item := await queue.get()) is not None:
                if isinstance(item, Refused):
                    return item
                pieces.append(item)
            return pieces

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

    def _start(self) -> asyncio.Queue[Item]:
        """Begin the turn in a thread of its own; the queue ends with None."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Item] = asyncio.Queue()

        def put(item: Item) -> None:
            if isinstance(item, tuple):
                self.turn.pieces.append(item)
            with contextlib.suppress(RuntimeError):  # the server has shut down in the meantime
                loop.call_soon_threadsafe(queue.put_nowait, item)

        self.line.begun(self.turn)
        threading.Thread(target=self._make, args=(put,), name="warmline-turn", daemon=True).start()
        return queue

    def _make(self, put: Callable[[Item], None]) -> None:
        cancel, inside, decided = self.turn.cancel, False, threading.Event()
        events: Iterator[Event] | None = None
        early: list[Piece] = []

        def decide() -> None:
            if not decided.is_set():
                decided.set()
                for piece in early:
                    put(piece)

        try:
            events = self.events(cancel)
            for event in events:
                piece = wire.piece(event)
                if decided.is_set():
                    put(piece)
                    continue
                early.append(piece)
                if isinstance(event, Safety) and event.action != "vetted":
                    refused = self._over() or self._stand(put, decide)
                    if isinstance(refused, Refused):
                        left = cancel.is_set()
                        if isinstance(events, Generator):
                            events.close()
                        if not left:  # told only when the message is taken back: it may be sent again at once
                            self.dropped()
                            told = wire.trouble(refused.code) if decided.is_set() else None
                            put(told or replace(refused, pieces=tuple(early)))
                        return
                    inside = True
                if not isinstance(event, Notice):
                    decide()
        except Exception as error:
            journal.fault("a turn failed", error)
            decide()
            put(wire.trouble("fault"))
        finally:
            if isinstance(events, Generator):
                with contextlib.suppress(Exception):
                    events.close()
            if inside:
                self.line.leave()
            self.turn.ended.set()
            self.line.ended(self.turn)
            put(None)

    def _over(self) -> Refused | None:
        return Refused("too-many", 429, self.over) if self.over else None

    def _stand(self, put: Callable[[Item], None], decide: Callable[[], None]) -> Refused | None:
        """Stand in the line for the engine, and tell the reader so while it lasts."""
        standing = False

        def stand(place: int, seconds: float | None) -> None:
            nonlocal standing
            if not standing:
                standing = True
                decide()
            likely = None if seconds is None else max(1, round(seconds))
            put(("waiting", {"waiting": True, "place": place, "seconds": likely}))

        if self.line.enter(self.turn.cancel, self.line_seconds, stand):
            if standing:
                put(("waiting", {"waiting": False}))
            return None
        if self.line.closing:
            return Refused("closing", 503, CLOSING_SECONDS)
        likely = self.line.likely(self.line.waiting)
        return Refused("busy", 503, BUSY_SECONDS if likely is None else min(120, max(1, round(likely))))

    async def _send(self, queue: asyncio.Queue[Item], scope: Scope, receive: Receive, send: Send) -> None:
        async def pass_on(message: dict[str, Any]) -> None:
            await asyncio.wait_for(send(message), self.reader_seconds)

        item: Item | Literal["beat"]
        try:
            item = await asyncio.wait_for(queue.get(), self.beat_seconds)
        except TimeoutError:
            item = "beat"
        if isinstance(item, Refused):
            await asyncio.wait_for(self.refuse(item)(scope, receive, send), self.reader_seconds)
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await pass_on({"type": "http.response.start", "status": 200, "headers": headers})
        silent_since, in_line = time.monotonic(), False
        while item is not None:
            if item == "beat":
                if not in_line and time.monotonic() - silent_since > self.silence_seconds:
                    await pass_on(_body(self.encode(wire.trouble("no-reply"))))
                    break
                await pass_on(_body(b": still here\n\n"))
            else:
                piece = wire.trouble(item.code) if isinstance(item, Refused) else item
                silent_since, in_line = time.monotonic(), piece[0] == "waiting" and piece[1]["waiting"]
                await pass_on(_body(self.encode(piece)))
            try:
                item = await asyncio.wait_for(queue.get(), self.beat_seconds)
            except TimeoutError:
                item = "beat"
        await pass_on({"type": "http.response.body", "body": b"", "more_body": False})

    @staticmethod
    async def _gone(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


def replay(pieces: Sequence[Piece], encode: Callable[[Piece], bytes] | None = None) -> Response:
    """A turn's pieces once more, for a client that asks again under the same idempotency key."""
    write = encode or _sse
    body = b"".join(write(piece) for piece in pieces if piece[0] != "waiting")
    return Response(body, media_type="text/event-stream")


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
