"""The one schema everything speaks: a conversation of messages, and where it came from.

Knows nothing about files, tokens or models.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast, get_args

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is plain text; markup and control tokens mean nothing in it."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a conversation came from: enough to find the row again and to know what may be done with it."""

    source: str
    licence: str = "unknown"
    row: int | None = None
    """1-based row or record of the source."""
    consent: str = "as published"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, with an id that never holds a person's words.

    `group` ties together what must stay on one side of a split (one question with many answers); it defaults to the id.
    `labels` are short facts about the conversation, e.g. {"risk": "2", "kind": "at-risk"}.
    """

    id: str
    messages: tuple[Message, ...]
    theme: str = ""
    group: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    provenance: Provenance = Provenance("unknown")

    def with_messages(self, messages: tuple[Message, ...]) -> Conversation:
        return replace(self, messages=messages)

    @property
    def words(self) -> int:
        return sum(len(m.content.split()) for m in self.messages)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for one JSONL line; `from_json` reads it back unchanged."""
        return {
            "id": self.id,
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "theme": self.theme,
            "group": self.group,
            "labels": dict(self.labels),
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Conversation:
        """Read a dict as written by `to_json`.

        Raises:
            ValueError: a role is unknown, or a field is missing or of the wrong type.
        """
        messages = row.get("messages")
        if not isinstance(messages, list) or not isinstance(row.get("id"), str):
            raise ValueError("a conversation needs `id` and a list of `messages`")
        turns = []
        for turn in messages:
            if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
                raise ValueError("a message needs `role` (system, user or assistant) and `content`")
            turns.append(Message(cast(Role, turn["role"]), turn["content"]))
        return cls(
            id=row["id"],
            messages=tuple(turns),
            theme=row.get("theme", ""),
            group=row.get("group", ""),
            labels=dict(row.get("labels", {})),
            provenance=Provenance(**row["provenance"]) if "provenance" in row else Provenance("unknown"),
        )
