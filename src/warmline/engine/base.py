"""What an engine is: messages in, pieces of text out. Knows nothing of safety; `chat` stands between it and a person.

`ScriptedEngine` ships for tests, docs and work on the page without a model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from warmline.messages import Message

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


@dataclass(slots=True)
class Usage:
    """Filled by the engine while it replies; complete when the stream has ended."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    stop_reason: StopReason = "stop"


@dataclass(slots=True)
class Call:
    """One request for a reply: `cancel.set()` ends it at the next token, also from another thread."""

    messages: Sequence[Message]
    options: Options = field(default_factory=Options)
    usage: Usage = field(default_factory=Usage)
    cancel: threading.Event = field(default_factory=threading.Event)


class Engine(Protocol):
    """One method and a name. `reply` may be called from several threads; calls wait for one another where they must."""

    name: str

    def reply(self, call: Call) -> Iterator[str]:
        """Yield pieces of the reply as they come.

        Raises:
            EngineError: no reply can be produced; also in mid-stream.
        """
        ...


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
