"""Conversations in memory: each behind an id that cannot be guessed, forgotten after hours without a message.

Nothing here touches a disk. Knows nothing of HTTP or of what a conversation holds.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from warmline.chat import Thread

TURN_END_SECONDS = 2.0
"""How long a new message waits for the reply before it to end, once that has been told to stop."""


@dataclass(slots=True, eq=False)
class Turn:
    """One reply on its way. `cancel` asks it to end; `ended` says that it has."""

    cancel: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True, eq=False)
class Held:
    """A conversation and the reply that is being made in it, if any."""

    id: str
    thread: Thread
    used: float
    turn: Turn | None = None
    arrivals: int = 0

    @property
    def replying(self) -> bool:
        return self.turn is not None and not self.turn.ended.is_set()

    async def begin(self) -> Turn | None:
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
        self.turn = Turn()
        return self.turn

    def stop(self) -> None:
        if self.turn is not None:
            self.turn.cancel.set()


class Conversations:
    """All conversations of this process. Bounded; a full house turns newcomers away and drops nobody."""

    def __init__(
        self, *, idle_seconds: float = 12 * 3600, most: int = 2000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.idle_seconds, self.most, self.clock = idle_seconds, most, clock
        self._held: dict[str, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def open(self, thread: Thread) -> Held | None:
        """Hold a new conversation; None when the house is full.

        The id is not the thread's own: that one may stand in an audit row, this one opens the conversation.
        """
        self.forget_idle()
        if len(self._held) >= self.most:
            return None
        id = secrets.token_urlsafe(24)  # 192 bits: knowing the id is the right to the conversation
        held = self._held[id] = Held(id, thread, self.clock())
        return held

    def find(self, id: str) -> Held | None:
        """The conversation, marked as used now. None alike for ids never given, forgotten and deleted."""
        self.forget_idle()
        held = self._held.get(id)
        if held is not None:
            held.used = self.clock()
        return held

    def forget(self, id: str) -> bool:
        held = self._held.pop(id, None)
        if held is not None:
            held.stop()
        return held is not None

    def forget_idle(self) -> None:
        now = self.clock()
        for held in [h for h in self._held.values() if now - h.used > self.idle_seconds]:
            self.forget(held.id)

    def forget_all(self) -> None:
        for id in list(self._held):
            self.forget(id)
