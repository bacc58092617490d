"""Conversations kept encrypted: put, got, listed, erased, each message sealed for its one place. Knows no HTTP.

A conversation belongs to a visitor: an unguessable capability of which only a keyed hash is stored. Somebody else's
conversation and one that never was answer alike. Several threads may use one vault.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sql
from cryptography.exceptions import InvalidTag
from sqlalchemy.exc import IntegrityError

from warmline.errors import VaultError
from warmline.vault import erasure
from warmline.vault.database import Database, connect
from warmline.vault.keys import MasterKey, damaged, seal, unseal
from warmline.vault.schema import conversations, erased, feedback, messages, wrapping

RETENTION_DAYS = 30
VERDICTS = ("harmful", "unhelpful", "helpful")
DAY = 24 * 3600

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Verified:
    """What `verify` could read whole, and what not. `faults` name conversations by number, never by content."""

    conversations: int
    messages: int
    faults: list[str] = field(default_factory=list)


class Vault:
    """Open one with `Vault.open`. What `put` was given is on the disk when it returns."""

    def __init__(self, database: Database, retention_days: int | None, clock: Callable[[], float]) -> None:
        self.database, self.retention_days, self._clock = database, retention_days, clock

    @classmethod
    def open(
        cls,
        store: str,
        key: MasterKey,
        *,
        retention_days: int | None = RETENTION_DAYS,
        alone: bool = False,
        create: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> Vault:
        """The vault at a path or `postgresql://` address, made if nothing is there. What is past its time is erased.

        `alone`: fail unless nobody else has it open. `create` False: fail if nothing is there. `retention_days` None:
        erase nothing by oneself.

        Raises:
            VaultError: the key does not fit, the file is not encrypted, damaged or cannot be had. Nothing was changed.
        """
        if retention_days is not None and retention_days < 1:
            raise VaultError("conversations are kept for at least one day", code="usage", hint="or use no vault")
        vault = cls(connect(store, key, alone=alone, create=create), retention_days, clock)
        try:
            if len(vault.database.keyring.ring) > 1:  # a rotation was interrupted
                vault._wrap_again(key)
            vault.purge()
        except BaseException:
            vault.database.close()
            raise
        return vault

    def close(self) -> None:
        self.database.close()

    # ------------------------------------------------------------------ for the visitor

    def put(self, visitor: str, id: str, thread: dict[str, Any], title: str | None = None) -> bool:
        """Keep a conversation as it is now; on the disk when this returns. `title` None leaves the present one.

        Messages that stand already are not written again; those that were taken back (an edit) go. False: it was
        erased since, and stays so.
        """
        who = self._who(visitor)
        words = [json.dumps(message).encode() for message in thread["messages"]]
        state = json.dumps({**thread, "messages": len(words)}).encode()
        now = int(self._clock())
        with self.database.writing() as connection:
            gone = sql.select(erased.c.at).where(erased.c.mark == self._gone(who, id))
            if connection.scalar(gone) is not None:
                return False
            row = self._row(connection, who, id, lock=True) or self._new(connection, who, id, now)
            key, bound = self._data_key(row), _bound(row)
            old = [] if row.state == b"" else self._messages(connection, row, key)
            same = 0
            while same < min(len(old), len(words)) and old[same] == words[same]:
                same += 1
            if same < len(old):
                for table in (messages, feedback):
                    which = (table.c.conversation == row.number) & (table.c.place >= same)
                    connection.execute(sql.delete(table).where(which))
            if same < len(words):
                rows = [
                    {"conversation": row.number, "place": place, "content": seal(key, one, f"{bound}/{place}")}
                    for place, one in enumerate(words[same:], same)
                ]
                connection.execute(sql.insert(messages), rows)
            changed: dict[str, Any] = {"state": seal(key, state, f"{bound}/state"), "used": now}
            if title is not None:
                changed["title"] = self._sealed_title(row, title)
            self._change(connection, row, **changed)
        return True

    def get(self, visitor: str, id: str) -> dict[str, Any] | None:
        """The thread as it was put; None alike for what never was, is erased or is another visitor's."""
        with self.database.reading() as connection:
            row = self._row(connection, self._who(visitor), id)
            return None if row is None else self._thread(connection, row)

    def list(self, visitor: str) -> Rows:
        """The visitor's conversations, the last used first."""
        query = _with_counts().where(conversations.c.visitor == self._who(visitor))
        with self.database.reading() as connection:
            return [
                {"id": row.id, "title": self._title(row), **_times(row), "messages": row.messages}
                for row in connection.execute(
                    query.order_by(conversations.c.used.desc(), conversations.c.number.desc())
                )
            ]

    def record(self, visitor: str, id: str) -> dict[str, Any] | None:
        """Everything that is kept of a conversation: its thread, title, times, consent, feedback and stamp."""
        with self.database.reading() as connection:
            row = self._row(connection, self._who(visitor), id)
            return None if row is None else self._record(connection, row) | {"stamp": _stamp(row)}

    def stamp(self, visitor: str, id: str) -> str | None:
        """Another one after each `put`, from whatever process; None when there is no such conversation."""
        with self.database.reading() as connection:
            row = self._row(connection, self._who(visitor), id)
            return None if row is None else _stamp(row)

    def rename(self, visitor: str, id: str, title: str | None) -> bool:
        with self.database.writing() as connection:
            row = self._row(connection, self._who(visitor), id, lock=True)
            if row is None:
                return False
            self._change(connection, row, title=self._sealed_title(row, title))
        return True

    def consent(self, visitor: str, id: str, given: bool) -> bool:
        """Whether the conversation may become training data. Not given unless said so; taken back at any time."""
        with self.database.writing() as connection:
            row = self._row(connection, self._who(visitor), id, lock=True)
            if row is None:
                return False
            self._change(connection, row, consented=int(self._clock()) if given else None)
        return True

    def feedback(self, visitor: str, id: str, place: int, verdict: str | None) -> bool:
        """What the visitor thinks of the message at `place`; the last word counts, None takes it back."""
        if verdict is not None and verdict not in VERDICTS:
            raise ValueError(f"a verdict is one of {', '.join(VERDICTS)}")
        with self.database.writing() as connection:
            row = self._row(connection, self._who(visitor), id, lock=True)
            if row is None:
                return False
            here = (messages.c.conversation == row.number) & (messages.c.place == place)
            if connection.scalar(sql.select(messages.c.place).where(here)) is None:
                return False
            here = (feedback.c.conversation == row.number) & (feedback.c.place == place)
            connection.execute(sql.delete(feedback).where(here))
            if verdict is not None:
                one = {"conversation": row.number, "place": place, "verdict": verdict, "at": int(self._clock())}
                connection.execute(sql.insert(feedback).values(**one))
        return True

    def erase(self, visitor: str, id: str) -> bool:
        """Destroy the conversation's key and rows, and cut the log that may hold them."""
        return (
            self._erase((conversations.c.visitor == self._who(visitor)) & (conversations.c.id == id)).conversations > 0
        )

    def erase_visitor(self, visitor: str) -> int:
        """Erase all of a visitor's conversations; how many there were."""
        return self._erase(conversations.c.visitor == self._who(visitor)).conversations

    # ------------------------------------------------------------------ for the operator

    def review(self) -> Rows:
        """What visitors said of replies, harmful ones first: the verdict, the reply and the message before it.

        A conversation goes by its number: nothing here opens it as its visitor.
        """
        query = sql.select(feedback, conversations).join(conversations).order_by(feedback.c.at.desc())
        found = []
        with self.database.reading() as connection:
            for row in connection.execute(query).all():
                thread = self._messages(connection, row, self._data_key(row))
                said = [json.loads(words)["content"] for words in thread[max(0, row.place - 1) : row.place + 1]]
                found.append(
                    {
                        "number": row.number,
                        "place": row.place,
                        "verdict": row.verdict,
                        "at": _iso(row.at),
                        "message": said[0] if len(said) > 1 else "",
                        "reply": said[-1] if said else "",
                    }
                )
        return sorted(found, key=lambda one: VERDICTS.index(one["verdict"]))

    def numbers(self, reference: str) -> Sequence[int]:
        """The conversations that `reference` means: a number of `conversations()`, or an id that a visitor told."""
        which = conversations.c.id == reference
        if reference.isdecimal() and len(reference) < 18:
            which |= conversations.c.number == int(reference)
        with self.database.reading() as connection:
            return list(connection.scalars(sql.select(conversations.c.number).where(which)))

    def conversations(self) -> Iterator[dict[str, Any]]:
        """All conversations by number, without a word of them."""
        with self.database.reading() as connection:
            for row in connection.execute(_with_counts().order_by(conversations.c.number)):
                yield {"number": row.number, **_times(row), "messages": row.messages, "consent": _consent(row)}

    def export(self, numbers: Sequence[int] | None = None, *, consenting: bool = False) -> Iterator[dict[str, Any]]:
        """Whole conversations in clear, one after another: all, those of `numbers`, or only consenting ones."""
        query = sql.select(conversations).order_by(conversations.c.number)
        if numbers is not None:
            query = query.where(conversations.c.number.in_(numbers))
        if consenting:
            query = query.where(conversations.c.consented.is_not(None))
        with self.database.reading() as connection:
            for row in connection.execute(query).all():
                yield {"number": row.number} | self._record(connection, row)

    def pseudonym(self, id: str) -> str:
        """The same for the same conversation, and of no use to find it without the vault's keys."""
        return self.database.keyring.mark("contributed", id).hex()[:16]

    def erase_numbers(self, numbers: Sequence[int], *, look: bool = True) -> erasure.Erased:
        """Erase, and `look` on the disk whether anything of it is left."""
        return self._erase(conversations.c.number.in_(numbers), look=look)

    def purge(self, days: int | None = None) -> int:
        """Erase what has not been used for `days` (None: the vault's retention); how many that were."""
        days = self.retention_days if days is None else days
        if days is None:
            return 0
        before = int(self._clock()) - days * DAY
        with self.database.writing() as connection:
            # Messages and feedback go with their conversation.
            done = connection.execute(sql.delete(conversations).where(conversations.c.used < before)).rowcount
            connection.execute(sql.delete(erased).where(erased.c.at < before))
        return erasure.finish(self.database, done).conversations

    def rotate(self, new: MasterKey) -> int:
        """Lock the vault with `new` and wrap every data key again under a fresh wrapping key; how many.

        No message is encrypted again. From the first step on only `new` opens the vault; interrupted, the next `open`
        goes on with it. Open the vault `alone`: other processes hold the old keys.
        """
        keyring = self.database.keyring.with_new_wrapping_key()
        with self.database.writing() as connection:
            there = set(connection.scalars(sql.select(wrapping.c.number)))
            if keyring.newest not in there:
                connection.execute(sql.insert(wrapping).values(number=keyring.newest))
        self.database.lock_again(keyring, new)
        return self._wrap_again(new)

    def _wrap_again(self, master: MasterKey) -> int:
        keyring, count = self.database.keyring, 0
        newest = keyring.newest
        with self.database.writing() as connection:
            old = sql.select(conversations).where(conversations.c.wrapped_by != newest).with_for_update()
            while rows := connection.execute(old.limit(1000)).all():
                for row in rows:
                    wrapped = seal(keyring.ring[newest], self._data_key(row), f"{_bound(row)}/key")
                    self._change(connection, row, data_key=wrapped, wrapped_by=newest)
                count += len(rows)
            connection.execute(sql.delete(wrapping).where(wrapping.c.number != newest))
        self.database.lock_again(keyring.only_newest(), master)
        self.database.truncate_log()
        return count

    def verify(self) -> Verified:
        """Read everything: each page's checksum (SQLCipher), each message, each count."""
        faults, count, total = erasure.page_faults(self.database), 0, 0
        try:
            with self.database.reading() as connection:
                numbers = connection.scalars(sql.select(conversations.c.number).order_by(conversations.c.number)).all()
        except VaultError:
            return Verified(0, 0, [*faults, "the conversations cannot be listed"])
        for number in numbers:
            try:
                with self.database.reading() as connection:
                    row = connection.execute(sql.select(conversations).where(conversations.c.number == number)).first()
                    total += len(self._record(connection, row)["thread"]["messages"]) if row is not None else 0
                count += 1
            except VaultError:
                faults.append(f"conversation {number} cannot be read whole")
        return Verified(count, total, faults)

    def status(self) -> dict[str, Any]:
        """Numbers only."""
        table = conversations.c
        oldest = sql.func.min(table.used), sql.func.max(table.used)
        with self.database.reading() as connection:
            count, first, last = connection.execute(
                sql.select(sql.func.count(), *oldest).select_from(conversations)
            ).one()
            said = connection.scalar(sql.select(sql.func.count()).select_from(messages))
            consenting = connection.scalar(sql.select(sql.func.count(table.consented)))
            verdicts = sql.select(feedback.c.verdict, sql.func.count()).group_by(feedback.c.verdict)
            about = {row[0]: row[1] for row in connection.execute(verdicts)}
        return {
            "store": self.database.where,
            "kind": "sqlcipher" if self.database.path else "postgresql",
            "locked_with": self.database.lock_kind,
            "conversations": count,
            "messages": said,
            "least_recently_used": _iso(first) if first else None,
            "last_used": _iso(last) if last else None,
            "consenting": consenting,
            "feedback": about,
            "retention_days": self.retention_days,
        }

    # ------------------------------------------------------------------ inside

    def _who(self, visitor: str) -> bytes:
        return self.database.keyring.mark("visitor", visitor)

    def _gone(self, who: bytes, id: str) -> bytes:
        return self.database.keyring.mark("erased", who.hex(), id)

    def _row(self, connection: sql.Connection, who: bytes, id: str, *, lock: bool = False) -> Any:
        query = sql.select(conversations).where((conversations.c.visitor == who) & (conversations.c.id == id))
        return connection.execute(query.with_for_update() if lock else query).first()

    def _new(self, connection: sql.Connection, who: bytes, id: str, now: int) -> Any:
        ring = self.database.keyring.ring
        newest = self.database.keyring.newest
        wrapped = seal(ring[newest], secrets.token_bytes(32), f"{who.hex()}/{id}/key")
        values = {"visitor": who, "id": id, "wrapped_by": newest, "data_key": wrapped, "created": now, "used": now}
        try:
            with connection.begin_nested():
                connection.execute(sql.insert(conversations).values(**values, state=b""))
        except IntegrityError:  # another process was first; or this one's key is not in use any more
            if self._row(connection, who, id) is None:
                raise
        return self._row(connection, who, id, lock=True)

    def _data_key(self, row: Any) -> bytes:
        outer = self.database.keyring.ring.get(row.wrapped_by)
        if outer is None:
            raise VaultError(
                "the vault's keys were rotated meanwhile",
                code="vault-key",
                where=self.database.where,
                hint="start again with the new key",
            )
        return self._opened(outer, row.data_key, row, "key")

    def _opened(self, key: bytes, sealed: bytes, row: Any, place: str | int) -> bytes:
        try:
            return unseal(key, sealed, f"{_bound(row)}/{place}")
        except InvalidTag:
            raise damaged(f"conversation {row.number} was altered or damaged", self.database.where) from None

    def _messages(self, connection: sql.Connection, row: Any, key: bytes) -> Sequence[bytes]:
        query = sql.select(messages.c.place, messages.c.content).where(messages.c.conversation == row.number)
        rows = connection.execute(query.order_by(messages.c.place))
        return [self._opened(key, one.content, row, one.place) for one in rows]

    def _thread(self, connection: sql.Connection, row: Any) -> dict[str, Any]:
        key = self._data_key(row)
        state: dict[str, Any] = json.loads(self._opened(key, row.state, row, "state"))
        words = self._messages(connection, row, key)
        if len(words) != state["messages"]:
            raise damaged(f"messages of conversation {row.number} are missing", self.database.where)
        return {**state, "messages": [json.loads(one) for one in words]}

    def _record(self, connection: sql.Connection, row: Any) -> dict[str, Any]:
        query = sql.select(feedback.c.place, feedback.c.verdict, feedback.c.at)
        verdicts = connection.execute(query.where(feedback.c.conversation == row.number).order_by(feedback.c.place))
        return {
            "id": row.id,
            "title": self._title(row),
            **_times(row),
            "consent": _consent(row),
            "feedback": [{"place": one.place, "verdict": one.verdict, "at": _iso(one.at)} for one in verdicts],
            "thread": self._thread(connection, row),
        }

    def _sealed_title(self, row: Any, title: str | None) -> bytes | None:
        if title is None:
            return None
        return seal(self._data_key(row), title.encode("utf-8", "replace"), f"{_bound(row)}/title")

    def _title(self, row: Any) -> str | None:
        return None if row.title is None else self._opened(self._data_key(row), row.title, row, "title").decode()

    def _change(self, connection: sql.Connection, row: Any, **values: Any) -> None:
        connection.execute(sql.update(conversations).where(conversations.c.number == row.number).values(**values))

    def _erase(self, which: Any, *, look: bool = False) -> erasure.Erased:
        now = int(self._clock())
        with self.database.writing() as connection:
            rows = connection.execute(sql.select(conversations).where(which).with_for_update()).all()
            if not rows:
                return erasure.Erased()
            traces = erasure.traces(connection, rows) if look else []
            marks = [{"mark": self._gone(row.visitor, row.id), "at": now} for row in rows]
            connection.execute(sql.insert(erased), marks)
            connection.execute(sql.delete(conversations).where(conversations.c.number.in_([r.number for r in rows])))
        return erasure.finish(self.database, len(rows), traces)


def _bound(row: Any) -> str:
    """What everything of a conversation is sealed for: nothing can be moved to another visitor, id or place."""
    return f"{row.visitor.hex()}/{row.id}"


def _stamp(row: Any) -> str:
    return bytes(row.state[:12]).hex()  # the nonce of what `put` sealed last


def _with_counts() -> Any:
    counted = (
        sql.select(messages.c.conversation, sql.func.count().label("messages")).group_by(messages.c.conversation)
    ).subquery()
    return sql.select(conversations, sql.func.coalesce(counted.c.messages, 0).label("messages")).outerjoin(
        counted, counted.c.conversation == conversations.c.number
    )


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _times(row: Any) -> dict[str, str]:
    return {"created": _iso(row.created), "used": _iso(row.used)}


def _consent(row: Any) -> str | None:
    return None if row.consented is None else _iso(row.consented)


__all__ = ["RETENTION_DAYS", "VERDICTS", "Vault", "Verified"]
