"""Preference pairs: one prompt, the reply that is preferred and the one that is not. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

from warmline.corpus import lint
from warmline.corpus.read import files_of
from warmline.corpus.rows import Fault, container_of, rows
from warmline.errors import DataError
from warmline.messages import ROLES, Conversation, Message, Role

SAMPLE = resources.files("warmline") / "sample" / "preferences.jsonl"


@dataclass(frozen=True, slots=True)
class Pair:
    """`prompt` ends with the person's words; `id` never holds any."""

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str

    def conversation(self, reply: str) -> Conversation:
        """The talk as it would have gone on with `reply`."""
        return Conversation(self.id, (*self.prompt, Message("assistant", reply)))

    @property
    def forbidden(self) -> bool:
        """Whether the lint would not let the preferred reply be learnt."""
        last = len(self.prompt)
        return any(found.message == last for found in lint.findings(self.conversation(self.chosen)))


def read(sources: Sequence[str]) -> list[Pair]:
    """All pairs of files or folders (JSONL, JSON, CSV, Parquet, ...); `sample` are those that ship with Warmline.

    A row has `prompt`, `chosen` and `rejected`, each a text or messages. Messages of `chosen` and `rejected` may repeat
    the prompt, which then need not stand by itself.

    Raises:
        DataError: a file is missing, a row is not a pair (named by its place, never by its words), or there is none.
    """
    pairs = [pair for source in sources for path in _files(source) for pair in _pairs(path)]
    if not pairs:
        raise DataError(f"{', '.join(sources)} holds no preference pair", code="data-empty", hint=_SHAPE)
    return pairs


_SHAPE = (
    "a row has `prompt` (a text, or messages of which the last is the user's), `chosen` and `rejected` (a text, or "
    "messages of which the last is the assistant's)"
)


def _files(source: str) -> list[Path]:
    return [Path(str(SAMPLE))] if source == "sample" else files_of(source)


def _pairs(path: Path) -> Iterator[Pair]:
    def refuse(number: int, line: int | None, reason: str) -> DataError:
        where = f"{path}:{line}" if line else str(path)
        return DataError(f"row {number} of {path.name} is no preference: {reason}", code="data-row", where=where)

    def fault(found: Fault) -> None:
        raise refuse(found.number, found.line, found.reason)

    container = container_of(path)
    if path.stat().st_size == 0:
        return
    if container is None:
        raise DataError(f"{path.name} is in no known format", code="data-format", where=str(path), hint=_SHAPE)
    for row in rows(path, container, fault):
        try:
            yield _pair(row.value, f"{path.stem}-{row.number}")
        except ValueError as error:
            refused = refuse(row.number, row.line, str(error))
            raise DataError(refused.what, code=refused.code, where=refused.where, hint=_SHAPE) from None


def _pair(row: Any, name: str) -> Pair:
    if not isinstance(row, dict):
        raise ValueError("it has no columns")
    chosen, rejected = (_messages(row, side, "assistant") for side in ("chosen", "rejected"))
    prompt = _messages(row, "prompt", "user") if row.get("prompt") else chosen[:-1]
    for side, talk in (("chosen", chosen), ("rejected", rejected)):
        if talk[:-1] and talk[:-1] != prompt:
            raise ValueError(f"`{side}` repeats another prompt")
    if not prompt:
        raise ValueError("`prompt` is missing")
    if prompt[-1].role != "user":
        raise ValueError("the prompt does not end with the user's words")
    if chosen[-1] == rejected[-1]:
        raise ValueError("`chosen` and `rejected` are the same")
    return Pair(name, tuple(prompt), chosen[-1].content, rejected[-1].content)


def _messages(row: dict[str, Any], column: str, last: Role) -> list[Message]:
    """A column as messages; a bare text is one of the role `last`."""
    value = row.get(column)
    turns = [{"role": last, "content": value}] if isinstance(value, str) else value
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"`{column}` is missing")
    made = []
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise ValueError(f"a message of `{column}` needs `role` (system, user or assistant) and `content`")
        made.append(Message(cast(Role, turn["role"]), turn["content"].strip()))
    if made[-1].role != last:
        raise ValueError(f"`{column}` does not end with the {last}'s words")
    if not made[-1].content:
        raise ValueError(f"`{column}` is empty")
    return made
