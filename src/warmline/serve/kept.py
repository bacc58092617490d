"""Conversations that outlive the process: those in use are in memory, all are in the vault.

What was said is in the vault before its turn is told to be done. If the vault fails, conversations go on in memory and
are written as soon as it works again: nobody in need is turned away for a full disk. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from warmline.chat import Thread
from warmline.errors import VaultError
from warmline.safety.state import State
from warmline.serve.conversations import Conversations, Held, Verdict
from warmline.vault.store import Vault

PURGE_SECONDS = 900.0

log = logging.getLogger("warmline.serve")
Answer = TypeVar("Answer")


class Kept(Conversations):
    """As `Conversations`, before a vault. Its calls may wait for a disk or a database: not for an event loop."""

    def __init__(self, vault: Vault, **options: Any) -> None:
        super().__init__(**options)
        self.vault, self.days = vault, vault.retention_days
        self._stamps: dict[str, str | None] = {}
        """What the vault's copy was when the one in memory was the same."""
        self._unkept: set[str] = set()
        """Held in memory only, because the vault failed."""
        self._purged = self.clock()
        self._loading = threading.Lock()

    # ------------------------------------------------------------------ one conversation

    def open(self, visitor: str, thread: Thread) -> Held | None:
        self._make_room()
        return super().open(visitor, thread)

    def find(self, visitor: str, id: str) -> Held | None:
        held = super().find(visitor, id)
        if not visitor or (held is not None and (held.replying or id in self._unkept)):
            return held
        try:
            stamp = self.vault.stamp(visitor, id)
            if held is not None and stamp == self._stamps.get(id):
                return held
            record = None if stamp is None else self.vault.record(visitor, id)
        except VaultError as error:
            self._failed(error)
            return held
        if record is None:
            if held is not None:  # erased by a command or another process
                self._let_go(held)
            return None
        with self._loading:
            held = self._held.get(id)
            if held is not None and (held.replying or self._stamps.get(id) == record["stamp"]):
                return held  # another request was quicker, and may have begun a turn on it
            if held is None:
                self._make_room()
                held = self._held[id] = Held(id, visitor, Thread(), self.clock())
            held.thread = _thread(record["thread"])
            held.title, held.training = record["title"], record["consent"] is not None
            held.created, held.changed = record["created"], record["used"]
            held.verdicts = {one["place"]: one["verdict"] for one in record["feedback"]}
            self._stamps[id] = record["stamp"]
            return held

    def keep(self, held: Held) -> None:
        super().keep(held)
        if self._held.get(held.id) is held:
            self._write(held)

    def _write(self, held: Held) -> None:
        try:
            new = self._stamps.get(held.id) is None
            if not self.vault.put(held.visitor, held.id, held.thread.to_json(), held.title):
                self._let_go(held)  # erased meanwhile
                return
            if new and held.training:
                self.vault.consent(held.visitor, held.id, True)
            self._stamps[held.id] = self.vault.stamp(held.visitor, held.id)
            self._unkept.discard(held.id)
            if self._held.get(held.id) is not held:  # deleted while it was written
                self.vault.erase(held.visitor, held.id)
        except VaultError as error:
            self._unkept.add(held.id)
            self._failed(error)

    def rename(self, visitor: str, id: str, title: str | None) -> bool:
        done = super().rename(visitor, id, title)
        return done and self._told(lambda: self.vault.rename(visitor, id, title), id)

    def consent(self, visitor: str, id: str, training: bool) -> bool:
        done = super().consent(visitor, id, training)
        return done and self._told(lambda: self.vault.consent(visitor, id, training), id)

    def judge(self, visitor: str, id: str, place: int, verdict: Verdict | None) -> bool:
        done = super().judge(visitor, id, place, verdict)
        return done and self._told(lambda: self.vault.feedback(visitor, id, place, verdict), id)

    def forget(self, visitor: str, id: str) -> bool:
        held = self.find(visitor, id)
        if held is None:
            return False
        self._let_go(held)
        self.vault.erase(visitor, id)
        return True

    # ------------------------------------------------------------------ many

    def of(self, visitor: str) -> list[dict[str, Any]]:
        waiting = [one for one in super().of(visitor) if one["id"] in self._unkept]
        listed = self._asked(lambda: self.vault.list(visitor) if visitor else [], None)
        if listed is None:
            return super().of(visitor)
        known = {one["id"] for one in waiting}
        return waiting + [one for one in listed if one["id"] not in known and one["messages"]]

    def forget_visitor(self, visitor: str) -> None:
        super().forget_visitor(visitor)
        if visitor:
            self.vault.erase_visitor(visitor)

    def review(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._asked(self.vault.review, [])
        return [{"conversation": str(one.pop("number")), "used": one.pop("at"), **one} for one in found]

    def forget_idle(self) -> None:
        """Lets go of what nobody uses; in the vault it stays until its days are over."""
        now = self.clock()
        for held in [held for held in list(self._held.values()) if now - held.used > self.idle_seconds]:
            if held.id not in self._unkept:
                self._let_go(held)
        if now - self._purged > PURGE_SECONDS:
            self._purged = now
            self.flush()
            self._asked(self.vault.purge, 0)

    def forget_all(self) -> None:
        self.flush()
        super().forget_all()

    def flush(self) -> None:
        """Write what the vault did not take earlier."""
        for id in list(self._unkept):
            held = self._held.get(id)
            if held is None:
                self._unkept.discard(id)
            else:
                self._write(held)

    # ------------------------------------------------------------------ inside

    def _make_room(self) -> None:
        """A full memory turns nobody away here: what was not used for longest is read from the vault when needed."""
        idle = [one for one in list(self._held.values()) if not one.replying and one.id not in self._unkept]
        for held in sorted(idle, key=lambda one: one.used)[: max(0, len(self._held) - self.most + 1)]:
            self._let_go(held)

    def _let_go(self, held: Held) -> None:
        super()._let_go(held)
        self._stamps.pop(held.id, None)
        self._unkept.discard(held.id)

    def _told(self, tell: Callable[[], bool], id: str) -> bool:
        """Carry a change over. What the vault has not seen yet goes there with its first message."""
        return tell() or self._stamps.get(id) is None

    def _asked(self, ask: Callable[[], Answer], otherwise: Answer) -> Answer:
        try:
            return ask()
        except VaultError as error:
            self._failed(error)
            return otherwise

    @staticmethod
    def _failed(error: VaultError) -> None:
        log.error("the vault failed: %s", error.code)  # never more: a text could name what was kept


def _thread(row: dict[str, Any]) -> Thread:
    """A thread as an earlier or later version may have written it: unknown parts are left, missing ones as at first."""
    known = Thread().to_json()
    states = {name: known[name] | _known(State().to_json(), row.get(name, {})) for name in ("state", "before")}
    return Thread.from_json(known | _known(known, row) | states)


def _known(known: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name in known}
