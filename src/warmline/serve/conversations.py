"""Conversations in memory: each belongs to one visitor, and is forgotten after hours without a message.

A visitor is a capability that cannot be guessed; ids of other visitors and ids never given are answered alike. Nothing
here touches a disk. Knows nothing of HTTP or of what a conversation holds.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from warmline.chat import Thread

Piece = tuple[str, dict[str, Any]]
"""Name and data of one event of a turn, as it goes over the wire."""

Verdict = Literal["helpful", "unhelpful", "harmful"]

TURN_END_SECONDS = 2.0
"""How long a new message waits for the reply before it to end, once that has been told to stop."""


@dataclass(slots=True, eq=False)
class Turn:
    """One reply on its way. `cancel` asks it to end; `ended` says that it has."""

    cancel: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    key: str = ""
    """The client's own, so that a message sent twice is answered once."""
    before: int = 0
    """How many messages the conversation had."""
    pieces: list[Piece] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether the reply came to its end and nobody cut it short."""
        name, data = self.pieces[-1] if self.pieces else ("", {})
        return self.ended.is_set() and name == "done" and data["stop_reason"] != "cancelled"


@dataclass(slots=True, eq=False)
class Held:
    """A conversation and the reply that is being made in it, if any."""

    id: str
    visitor: str
    thread: Thread
    used: float
    created: str = field(default_factory=lambda: _now())
    changed: str = field(default_factory=lambda: _now())
    title: str | None = None
    """The visitor's own name for it."""
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    """What the visitor said of replies, by their place among the messages."""
    training: bool = False
    """Whether the visitor allows it to become training data."""
    turn: Turn | None = None
    arrivals: int = 0
    recent: deque[Turn] = field(default_factory=lambda: deque(maxlen=16))

    @property
    def replying(self) -> bool:
        return self.turn is not None and not self.turn.ended.is_set()

    async def again(self, key: str) -> Turn | None:
        """The turn that was begun under this key, if it stands: being answered, answered, or no longer the last.

        One that was cut short by a lost connection is taken back, message and all, and None says: begin anew. What the
        safety state learnt from it stays.
        """
        turn = next((turn for turn in self.recent if key and turn.key == key), None)
        if turn is None:
            return None
        if turn.cancel.is_set():
            patience = time.monotonic() + TURN_END_SECONDS
            while not turn.ended.is_set() and time.monotonic() < patience:
                await asyncio.sleep(0.02)
        if turn is self.turn and turn.ended.is_set() and not turn.whole:
            self.take_back(turn)
            self.recent.remove(turn)
            return None
        return turn

    def take_back(self, turn: Turn) -> None:
        """Forget the message of a turn that got no reply, so that sending it again does not say it twice."""
        del self.thread.messages[turn.before :]

    async def begin(self, key: str = "") -> Turn | None:
        """Stop the reply that is still being made, and open a new turn. None if a newer message came while it waited.

        A reply that does not stop in time (a stuck engine) is left behind with the old `thread`; the conversation goes
        on with a copy, so that a person in need is never kept waiting by a fault.
        """
        self.arrivals += 1
        number = self.arrivals
        if self.turn is not None and self.replying:
            stuck = self.turn
            stuck.cancel.set()
            patience = time.monotonic() + TURN_END_SECONDS
            while not stuck.ended.is_set() and time.monotonic() < patience:
                await asyncio.sleep(0.02)
                if number != self.arrivals:
                    return None
            if not stuck.ended.is_set():
                self.thread = Thread.from_json(self.thread.to_json())
        self.turn = Turn(key=key, before=len(self.thread.messages))
        self.recent.append(self.turn)
        return self.turn

    def stop(self) -> None:
        if self.turn is not None:
            self.turn.cancel.set()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Conversations:
    """All conversations of this process. Bounded; a full house turns newcomers away and drops nobody."""

    days: int | None = None
    """How long conversations are kept on a disk; None: in memory only. The page tells visitors so."""

    def __init__(
        self, *, idle_seconds: float = 12 * 3600, most: int = 2000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.idle_seconds, self.most, self.clock = idle_seconds, most, clock
        self._held: dict[str, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    # ------------------------------------------------------------------ one conversation

    def open(self, visitor: str, thread: Thread) -> Held | None:
        """Hold a new conversation; None when the house is full.

        The id is not the thread's own: that one may stand in an audit row, this one opens the conversation.
        """
        self.forget_idle()
        if len(self._held) >= self.most:
            return None
        id = secrets.token_urlsafe(24)
        held = self._held[id] = Held(id, visitor, thread, self.clock())
        return held

    def find(self, visitor: str, id: str) -> Held | None:
        """The visitor's conversation, marked as used now. None alike for foreign ids, deleted ones and any other."""
        self.forget_idle()
        held = self._held.get(id)
        if held is None or not visitor or held.visitor != visitor:
            return None
        held.used = self.clock()
        return held

    def keep(self, held: Held) -> None:
        """A turn has ended: what was said is part of the conversation now. Called in the turn's own thread."""
        held.verdicts = {place: said for place, said in held.verdicts.items() if place < len(held.thread.messages)}
        held.changed = _now()

    def rename(self, visitor: str, id: str, title: str | None) -> bool:
        held = self.find(visitor, id)
        if held is not None:
            held.title = title
        return held is not None

    def consent(self, visitor: str, id: str, training: bool) -> bool:
        """Whether it may become training data. Only where conversations are kept: in memory there is nothing to use."""
        held = self.find(visitor, id)
        if held is not None:
            held.training = training and self.days is not None
        return held is not None

    def judge(self, visitor: str, id: str, place: int, verdict: Verdict | None) -> bool:
        """What the visitor says of the reply at `place`; None takes it back. False: there is no such reply."""
        held = self.find(visitor, id)
        messages = held.thread.messages if held is not None else []
        if held is None or not 0 <= place < len(messages) or messages[place].role != "assistant":
            return False
        held.verdicts.pop(place, None)
        if verdict is not None:
            held.verdicts[place] = verdict
        return True

    def forget(self, visitor: str, id: str) -> bool:
        """Erase a conversation, also where it is kept."""
        held = self.find(visitor, id)
        if held is not None:
            self._let_go(held)
        return held is not None

    # ------------------------------------------------------------------ many

    def of(self, visitor: str) -> list[dict[str, Any]]:
        """The visitor's conversations in which something was said, last used first."""
        self.forget_idle()
        theirs = [
            held for held in list(self._held.values()) if visitor and held.visitor == visitor and held.thread.messages
        ]
        return [
            {
                "id": held.id,
                "title": held.title,
                "created": held.created,
                "used": held.changed,
                "messages": len(held.thread.messages),
            }
            for held in sorted(theirs, key=lambda held: held.used, reverse=True)
        ]

    def forget_visitor(self, visitor: str) -> None:
        """Erase all conversations of a visitor, also where they are kept."""
        for held in [held for held in list(self._held.values()) if visitor and held.visitor == visitor]:
            self._let_go(held)

    def review(self) -> list[dict[str, Any]]:
        """For the operator: replies that visitors judged, harmful ones first, each with the message it answered."""
        order = ("harmful", "unhelpful", "helpful")
        found = [
            {
                "conversation": held.thread.id[:8],
                "used": held.changed,
                "verdict": verdict,
                "place": place,
                "message": held.thread.messages[place - 1].content if place else "",
                "reply": held.thread.messages[place].content,
            }
            for held in list(self._held.values())
            for place, verdict in list(held.verdicts.items())
            if place < len(held.thread.messages)
        ]
        return sorted(found, key=lambda row: order.index(str(row["verdict"])))

    def _let_go(self, held: Held) -> None:
        self._held.pop(held.id, None)
        held.stop()

    def forget_idle(self) -> None:
        now = self.clock()
        for held in [held for held in list(self._held.values()) if now - held.used > self.idle_seconds]:
            self._let_go(held)

    def forget_all(self) -> None:
        for held in list(self._held.values()):
            self._let_go(held)
