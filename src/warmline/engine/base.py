"""What an engine is: messages in, pieces of text out. Knows nothing of safety; `chat` stands between it and a person.

`ScriptedEngine` ships for tests, docs and work on the page without a model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from warmline.errors import EngineError
from warmline.messages import Message

if TYPE_CHECKING:
    from warmline.model.template import Template

StopReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Options:
    """How a reply is drawn. `temperature` 0 takes the likeliest token; `seed` None draws a new one each time."""

    max_tokens: int = 160
    temperature: float = 0.7
    top_p: float = 0.9
    repetition_penalty: float = 1.1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    adapter: bool = True
    """Off: the base replies, as it was before training. Engines that cannot tell them apart refuse."""


@dataclass(slots=True)
class Usage:
    """Filled by the engine while it replies; complete when the stream has ended."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's tokens, those that did not have to be read again."""
    completion_tokens: int = 0
    stop_reason: StopReason = "stop"


@dataclass(slots=True)
class Call:
    """One request for a reply: `cancel.set()` ends it at the next token, also from another thread."""

    messages: Sequence[Message]
    options: Options = field(default_factory=Options)
    usage: Usage = field(default_factory=Usage)
    cancel: threading.Event = field(default_factory=threading.Event)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids the two begin with alike.

    >>> common([1, 2, 3], [1, 2, 4, 5])
    2
    """
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # halving: slices compare fifty times as fast as a loop
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low


class Engine(Protocol):
    """One method and a name. `reply` may be called from several threads; calls wait for one another where they must."""

    name: str

    def reply(self, call: Call) -> Iterator[str]:
        """Yield pieces of the reply as they come.

        Raises:
            EngineError: no reply can be produced; also in mid-stream.
        """
        ...


class TemplatedEngine:
    """What engines share that are given ids: the template a run was trained with, and a context of so many tokens.

    `merged`: the training is in the model's own weights, so the base cannot be asked.
    """

    def __init__(self, template: Template, name: str, context: int, merged: bool) -> None:
        self.template, self.name, self.context, self._merged = template, name, context, merged
        self._head = template.encode([Message("system", template.system), Message("user", "")]).ids
        """What every conversation begins with."""

    def fits(self, messages: list[Message], reserve: int) -> bool:
        """Whether these messages leave `reserve` tokens of the context for a reply."""
        return len(self.template.encode(messages, reply=True)) + reserve <= self.context

    def prompt(self, call: Call) -> tuple[list[int], int]:
        """The ids of a call's messages, and how many tokens its reply may have.

        Raises:
            EngineError: they do not fit the context, or the base is asked of a merged model.
        """
        ids = self.template.encode(call.messages, reply=True).ids
        room = self.context - len(ids)
        if room < 1:
            raise EngineError(
                f"the conversation has {len(ids)} tokens, the context holds {self.context}", code="engine-failed"
            )
        if self._merged and not call.options.adapter:
            raise EngineError("the training is in this model's weights, so the base cannot reply", code="engine-failed")
        return ids, min(call.options.max_tokens, room)


class UntilStop:
    """Passes text on until one of the stop strings is complete, which is never shown, not even in part.

    >>> until = UntilStop(("END",))
    >>> until.feed("so E"), until.feed("asy EN"), until.feed("D of"), until.stopped
    ('so ', 'Easy ', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        text = self._held + piece
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends or self.stopped:
            self._held, self.stopped = "", True
            return text[: min(ends, default=0)]
        # what may yet become a stop string waits
        back = max(
            (n for stop in self._stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])),
            default=0,
        )
        self._held = text[len(text) - back :]
        return text[: len(text) - back]

    def rest(self) -> str:
        """What was held back, when nothing follows any more."""
        return "" if self.stopped else self._held


class ScriptedEngine:
    """Replies with the next line of its script, word by word, over and over. A line that is an exception is raised."""

    name = "scripted"

    def __init__(self, script: Sequence[str | Exception] = ("I am listening.",)) -> None:
        self.script = list(script)
        self.calls: list[Call] = []

    def reply(self, call: Call) -> Iterator[str]:
        line = self.script[len(self.calls) % len(self.script)]
        self.calls.append(call)
        if isinstance(line, Exception):
            raise line
        for index, word in enumerate(line.split(" ")):
            if call.cancel.is_set():
                call.usage.stop_reason = "cancelled"
                return
            call.usage.completion_tokens += 1
            yield word if index == 0 else f" {word}"
