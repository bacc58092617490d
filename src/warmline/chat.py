"""The one door to a model: guard in, engine, guard out. Knows the engine's protocol and the safety floor, nothing else.

Every turn is screened before anything happens, and what it means is told (`Safety`) before a word is said. At the
higher levels the model is not asked at all. What it says below them is held to sentence ends and looked at first. If
it fails, in whatever way, a vetted line with a way to a human takes its place.
"""

from __future__ import annotations

import bisect
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from typing import Protocol as Shape

from warmline import __version__
from warmline.engine.base import Call, Engine, Options, StopReason, Usage
from warmline.messages import Message
from warmline.safety import protocol as protocols
from warmline.safety.classify import Classifier
from warmline.safety.output import OutputGuard, fault
from warmline.safety.policy import notice_due, pack_for
from warmline.safety.resources import Resources, nearest
from warmline.safety.screen import Finding, prepare, screen_turn
from warmline.safety.state import State, advance, at_least

FIRST_WORD_SECONDS = 120.0
"""An engine that has said nothing for so long is given up."""
NEXT_WORD_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Notice:
    """What the AI is, told when it is due. Shown apart from the reply."""

    text: str


@dataclass(frozen=True, slots=True)
class Safety:
    """What the turn meant. Always comes before any text. `level` is the conversation's."""

    level: int
    flags: frozenset[str]
    resources: Resources | None
    action: protocols.Action


@dataclass(frozen=True, slots=True)
class Text:
    """Whole screened sentences of the reply."""

    piece: str


@dataclass(frozen=True, slots=True)
class Done:
    """The turn is over."""

    stop_reason: StopReason
    usage: Usage
    level: int


Event = Notice | Safety | Text | Done


class Audit(Shape):
    """Where a row for every turn goes; `safety.audit.AuditLog` is one."""

    def append(self, row: dict[str, Any], /) -> bool: ...


@dataclass(slots=True)
class Thread:
    """One conversation, changed by `Chat.turn`. Holds words; whoever keeps it keeps it safe."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    messages: list[Message] = field(default_factory=list)
    state: State = field(default_factory=State)
    country: str | None = None
    locale: str | None = None
    policy: str | None = None
    """Code of the policy pack, e.g. "US-CA"; None takes the chat's."""
    minor: bool = False
    """Known to be a minor, by the operator or by what was said."""
    turns: int = 0
    spoken: int = 0
    """Wordings used so far, so that they take turns."""
    last_notice: datetime | None = None
    last_seen: datetime | None = None
    instructions: str = ""
    """What a client of the API asks of the model. Stands after the chat's own system prompt, never in its place."""
    before: State = field(default_factory=State)
    """The state ahead of the last message, which `Chat.turn` goes back to when that is said anew."""

    def last_place(self) -> int | None:
        """Where the person's last message stands in `messages`; None before the first."""
        places = [place for place, message in enumerate(self.messages) if message.role == "user"]
        return places[-1] if places else None

    def said(self, end: int | None = None) -> list[str]:
        """What the person has said so far, or before the message at `end`."""
        return [message.content for message in self.messages[:end] if message.role == "user"]

    def to_json(self) -> dict[str, Any]:
        """A plain dict; `from_json` reads it back unchanged."""
        return {
            "id": self.id,
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "state": self.state.to_json(),
            "country": self.country,
            "locale": self.locale,
            "policy": self.policy,
            "minor": self.minor,
            "turns": self.turns,
            "spoken": self.spoken,
            "last_notice": self.last_notice.isoformat() if self.last_notice else None,
            "last_seen": self.last_seen.isoformat() if self.last_seen else None,
            "instructions": self.instructions,
            "before": self.before.to_json(),
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Thread:
        """Read a dict as written by `to_json`."""
        when = {k: datetime.fromisoformat(row[k]) if row[k] else None for k in ("last_notice", "last_seen")}
        messages = [Message(m["role"], m["content"]) for m in row["messages"]]
        states = {k: State.from_json(row[k]) for k in ("state", "before")}
        return cls(**row | when | states | {"messages": messages})


def _local_time() -> datetime:
    return datetime.now(UTC).astimezone()


class Chat:
    """Talks with people through one engine. May be used by several threads at once, each with a `Thread` of its own.

    `fits` tells whether a list of messages is short enough for the engine; without it everything is sent.
    `audit` receives a row without text for every turn. `classifier` replaces the shipped one in tests.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        system: str,
        country: str | None = None,
        locale: str = "en",
        options: Options | None = None,
        audit: Audit | None = None,
        clock: Callable[[], datetime] = _local_time,
        fits: Callable[[list[Message]], bool] | None = None,
        policy: str | None = None,
        protocol: protocols.Protocol | None = None,
        refuse_minors: bool = False,
        classifier: Classifier | None = None,
        first_word_seconds: float = FIRST_WORD_SECONDS,
        next_word_seconds: float = NEXT_WORD_SECONDS,
    ) -> None:
        self.engine = engine
        self.system = system
        self.country = country
        self.locale = locale
        self.options = options or Options()
        self.policy = policy
        self._audit = audit
        self._clock = clock
        self._fits = fits
        self._protocol = protocol or protocols.shipped()
        self._refuse_minors = refuse_minors
        self._classifier = classifier
        self._patience = (first_word_seconds, next_word_seconds)
        self._readers: list[threading.Thread] = []
        prepare()
        fault("ready")

    # ------------------------------------------------------------------ one turn

    def recall(self, history: Thread, messages: Sequence[Message]) -> None:
        """Add earlier messages that somebody else kept. Those of the person are screened again: no level gets lost."""
        now = self._clock()
        for message in messages:
            if message.role == "user":
                finding, _ = self._screen(message.content, history)
                history.before, history.state = history.state, advance(history.state, finding, now)
                history.turns += 1
                # Wordings of vetted replies take turns from here on, and the notice has been given.
                history.spoken, history.last_notice, history.last_seen = history.turns, now, now
            history.messages.append(message)
        history.minor = history.minor or "minor" in history.state.flags

    def turn(
        self,
        history: Thread,
        text: str,
        *,
        cancel: threading.Event | None = None,
        options: Options | None = None,
        instead: bool = False,
    ) -> Iterator[Event]:
        """Answer one message. Events come in this order: notices, `Safety`, text, `Done`.

        `options` replace the chat's own for this reply. `instead` puts the message in the place of the person's last
        one, whose answer goes with it; what that one showed of a danger stays known.

        The person's message and what was delivered are added to `history`, also when the reader leaves half-way.
        Never raises for anything an engine, a classifier or a disk does.
        """
        started = time.perf_counter()
        now = self._clock()
        cancel = cancel or threading.Event()
        country = history.country or self.country
        locale = history.locale or self.locale
        pack = pack_for(history.policy or self.policy)
        delivered: list[str] = []
        row: dict[str, Any] = {"fault": "", "notice": "", "cut": "", "stop": "cancelled", "engine": ""}

        place = history.last_place() if instead else None
        finding, screened = self._screen(text, history, place)
        before = history.state
        state = advance(before, finding, now)
        if place is not None:
            # Said anew, the same signs are no second ones. A new sign is one more; nothing is taken back.
            new = not finding.families <= before.families
            state = at_least(advance(before if new else history.before, finding, now), before)
            before = history.before if text == history.messages[place].content else before
            del history.messages[place:]
        else:
            history.before = before
        history.state = state
        history.minor = history.minor or "minor" in state.flags
        decision = protocols.decide(
            state,
            finding,
            country,
            locale,
            history.spoken + _offset(history.id),
            before=before,
            protocol=self._protocol,
        )
        usage = Usage()
        refused = history.minor and (self._refuse_minors or pack.minors == "refused")
        off = pack.off or refused
        action: protocols.Action = "vetted" if off else decision.action
        try:
            for name, words in self._notices(history, pack, finding, country, locale, now):
                row["notice"] = f"{row['notice']} {name}".strip()
                yield Notice(words)
            shown = decision.resources or (nearest(country) if off else None)
            yield Safety(state.level, decision.flags, shown, action)

            stop: StopReason = "stop"
            if decision.action == "vetted":
                delivered.append(decision.text)
                history.spoken += 1
                yield Text(decision.text)
            elif off:
                words = protocols.fill(pack.notice, nearest(country))
                if refused:
                    words = self._protocol.say("minor_refused", country, locale, history.turns)
                delivered.append(words)
                yield Text(words)
            else:
                stop = "error"
                row["engine"] = self.engine.name
                for piece in self._model(history, text, country, locale, cancel, usage, row, options):
                    delivered.append(piece)
                    yield Text(piece)
                stop = "error" if row["fault"] else usage.stop_reason
                if decision.text:
                    extra = ("\n\n" if delivered else "") + decision.text
                    history.spoken += 1
                    delivered.append(extra)
                    yield Text(extra)
            row["stop"] = stop
            usage.stop_reason = stop
            yield Done(stop, replace(usage), state.level)
        finally:
            history.messages.append(Message("user", text))
            if reply := "".join(delivered).strip():
                history.messages.append(Message("assistant", reply))
            history.turns += 1
            history.last_seen = now
            self._record(
                row
                | {
                    "at": now.isoformat(),
                    "conversation": history.id[:8],
                    "turn": history.turns,
                    "level": finding.level,
                    "state": state.level,
                    "flags": sorted(decision.flags),
                    "rules": list(decision.rules),
                    "action": action,
                    "situation": decision.situation,
                    "screened": screened,
                    "policy": pack.code,
                    "country_set": country is not None,
                    "versions": {"warmline": __version__, "protocol": self._protocol.version},
                    "milliseconds": round((time.perf_counter() - started) * 1000, 1),
                }
            )

    def close(self, seconds: float = 5.0) -> None:
        """Wait until the engine has let go of cut replies. A program that ends without it may abort in mid-token."""
        for reader in self._readers:
            reader.join(seconds)

    # ------------------------------------------------------------------ guard in

    def _screen(self, text: str, history: Thread, place: int | None = None) -> tuple[Finding, str]:
        """Screen a message of a conversation, or one that stands in the place of an earlier one."""
        state = history.state if place is None else history.before
        amid = bool(history.messages[:place]) or state.turns > 0
        try:
            finding = screen_turn(text, history.said(place), state.told, self._classifier, amid=amid)
        except Exception:  # nothing may keep a person from being answered
            # nobody knows what was said: answer as if it were serious
            return Finding(3, frozenset(), (), ("screen.failed",), 1.0, "und", frozenset({"ideation"})), "failed"
        if "classifier.failed" in finding.rules:
            return finding, "lexicon"
        return finding, "words" if "encoder.failed" in finding.rules else "full"

    def _notices(
        self, history: Thread, pack: Any, finding: Finding, country: str | None, locale: str, now: datetime
    ) -> Iterator[tuple[str, str]]:
        due = notice_due(
            pack,
            began=history.turns > 0,
            last_notice=history.last_notice,
            last_seen=history.last_seen,
            now=now,
            minor=history.minor,
        )
        if due == "disclosure":
            history.last_notice = now
            yield due, protocols.fill(pack.notice, nearest(country))
        elif due:
            history.last_notice = now
            yield due, self._protocol.say(due, country, locale, history.turns)
        if "asks_if_human" in finding.flags and pack.asked and due != "disclosure":
            history.last_notice = now
            yield "asked", self._protocol.say("asked_human", country, locale, history.turns)

    # ------------------------------------------------------------------ engine and guard out

    def context(self, history: Thread, text: str) -> list[Message]:
        """What the engine is shown: the chat's own system prompt and as much of the history as fits, newest first."""
        words = "\n\n".join(filter(None, (self.system, history.instructions)))
        system = [Message("system", words)] if words else []
        turns: list[Message] = []
        for message in (*history.messages, Message("user", text)):
            if turns and turns[-1].role == message.role:
                turns[-1] = Message(message.role, f"{turns[-1].content}\n\n{message.content}")
            else:
                turns.append(message)
        fits = self._fits
        if fits is not None and not fits([*system, *turns]):
            # What is left begins with the person, and holds at least what they said now. Halving: each look is a long
            # one.
            starts = [place for place, message in enumerate(turns) if message.role == "user"]
            found = bisect.bisect_left(starts[:-1], True, key=lambda place: fits([*system, *turns[place:]]))
            turns = turns[starts[found] :]
        return [*system, *turns]

    def _model(
        self,
        history: Thread,
        text: str,
        country: str | None,
        locale: str,
        cancel: threading.Event,
        usage: Usage,
        row: dict[str, Any],
        options: Options | None,
    ) -> Iterator[str]:
        """Screened sentences of the engine's reply, or the fallback. Puts what went wrong into `row`."""
        cut = self._protocol.say("cut", country, locale, history.spoken)
        guard = OutputGuard(cut, country)
        stop_engine = threading.Event()
        said = False
        try:
            for piece in self._pieces(history, text, usage, stop_engine, cancel, options):
                for sentence in guard.feed(piece):
                    said = True
                    yield sentence
                if guard.tripped:
                    break
            if not cancel.is_set() or guard.tripped:
                for sentence in guard.finish():
                    said = True
                    yield sentence
            elif not guard.tripped:
                usage.stop_reason = "cancelled"
        except GeneratorExit:
            raise
        except BaseException as error:  # an engine may fail in any way, memory included
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            row["fault"] = _kind(error)
        finally:
            stop_engine.set()
        if guard.tripped:
            row["cut"] = guard.tripped
            history.spoken += 1
            if guard.tripped == "output.garbage":
                row["fault"] = row["fault"] or "garbage"
        if not said and not row["fault"] and not cancel.is_set():
            row["fault"] = "empty"
        if row["fault"] and not guard.tripped:
            line = self._protocol.say("fallback", country, locale, history.spoken)
            history.spoken += 1
            yield ("\n\n" if said else "") + line

    def _pieces(
        self,
        history: Thread,
        text: str,
        usage: Usage,
        stop_engine: threading.Event,
        cancel: threading.Event,
        options: Options | None,
    ) -> Iterator[str]:
        """The engine's pieces, read in a thread of its own so that a hanging engine holds nobody up."""
        call = Call(self.context(history, text), options or self.options, usage, stop_engine)
        pieces: queue.Queue[str | BaseException | None] = queue.Queue()

        def read() -> None:
            try:
                for piece in self.engine.reply(call):
                    if not isinstance(piece, str):
                        raise TypeError("an engine yields text")
                    pieces.put(piece)
                    if stop_engine.is_set():
                        break
            except BaseException as error:  # handed on to the reader of the queue
                pieces.put(error)
            else:
                pieces.put(None)

        reader = threading.Thread(target=read, name="engine-reply", daemon=True)
        self._readers = [thread for thread in self._readers if thread.is_alive()] + [reader]
        reader.start()
        first, following = self._patience
        deadline = time.monotonic() + first
        while True:
            if cancel.is_set():
                stop_engine.set()
                return
            try:
                piece = pieces.get(timeout=max(0.0, min(0.1, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    raise TimeoutError from None
                continue
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            deadline = time.monotonic() + following
            yield piece

    # ------------------------------------------------------------------ audit

    def _record(self, row: dict[str, Any]) -> None:
        if self._audit is None:
            return
        try:
            self._audit.append(row)
        except Exception:  # the row is lost to this log; the turn is not
            return


def _offset(identifier: str) -> int:
    """Different conversations begin with different wordings."""
    return sum(identifier.encode()) % 24


def _kind(error: BaseException) -> str:
    """What went wrong, in one word; an exception's message may hold what a person wrote."""
    if isinstance(error, MemoryError):
        return "memory"
    return "silence" if isinstance(error, TimeoutError) else type(error).__name__[:40]


__all__ = ["Audit", "Chat", "Done", "Event", "Notice", "Options", "Safety", "Text", "Thread", "Usage"]
