"""Divide conversations into train, validation and test by groups, and check that nothing leaks between them.

Knows no files and draws nothing from chance but the seed: the same conversations are always divided alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from warmline.errors import DataError
from warmline.messages import Conversation

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


def assign(
    groups: Sequence[int | str], themes: Sequence[str], *, validation: float, test: float, seed: int
) -> list[Part]:
    """The part of every conversation, given its group and its theme.

    A group is never cut. Within a theme, groups come in an order that depends on the seed; each goes to the part that
    lacks most, and what a theme leaves over is carried to the next, so themes and totals both keep their shares.

    Raises:
        DataError: there are fewer groups than parts asked for.

    >>> assign(["q1", "q1", "q2", "q3"], [""] * 4, validation=0.25, test=0.25, seed=1).count("train")
    2
    """
    names, firsts, index, sizes = np.unique(
        np.asarray(groups), return_index=True, return_inverse=True, return_counts=True
    )
    shares = np.array([1 - validation - test, validation, test])
    wanted = [part for part in range(len(PARTS)) if shares[part] > 0]
    if len(names) < len(wanted):
        have = "1 group" if len(names) == 1 else f"{len(names)} groups"
        raise DataError(
            f"{len(groups)} conversations in {have} cannot be divided into {' and '.join(PARTS[p] for p in wanted)}",
            code="data-split",
            hint="add conversations, or set data.validation and data.test to 0",
        )
    theme_rank = {theme: rank for rank, theme in enumerate(sorted(set(themes)))}
    theme_of = np.array([theme_rank[themes[first]] for first in firsts])
    drawn = np.fromiter((hashed(f"{seed}:{name}") for name in names.tolist()), np.uint64, len(names))
    order = np.lexsort((drawn, theme_of))
    chosen = np.zeros(len(names), dtype=np.int8)
    lack = np.zeros(len(PARTS))
    for group in order:
        lack += shares * sizes[group]
        # One very large group would be a poor sample of anything; it is for training.
        fits = [p for p in wanted if p == 0 or sizes[group] <= max(1.0, shares[p] * len(groups) / 3)]
        part = max(fits, key=lack.__getitem__)
        chosen[group] = part
        lack[part] -= sizes[group]
    for part in wanted:
        if not (chosen == part).any():
            giver = int(np.bincount(chosen, minlength=len(PARTS)).argmax())
            mine = order[chosen[order] == giver]
            chosen[mine[sizes[mine].argmin()]] = part
    return [PARTS[part] for part in chosen[index.reshape(-1)]]


def folded(text: str) -> str:
    """Text as it is compared: lower-case words only."""
    return " ".join(re.findall(r"\w+", text.lower()))


def hashed(text: str) -> int:
    """A text as 64 bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


_LONG_ENOUGH = 6
"""Words from which on two equal messages are no coincidence."""


@dataclass(slots=True)
class Leaks:
    """How many of the held-out conversations share something with the training ones."""

    held_out: int = 0
    same_conversation: int = 0
    same_question: int = 0
    same_reply: int = 0
    same_group: int = 0
    ids: tuple[str, ...] = ()
    """Ids of the first held-out conversations that leak."""

    @property
    def any(self) -> bool:
        return bool(self.same_conversation or self.same_question or self.same_reply or self.same_group)


def leaks(train: Iterable[Conversation], held_out: Iterable[Conversation]) -> Leaks:
    """Look for held-out conversations that training has seen: whole, by their question, by a reply, by their group.

    The held-out side is kept in memory as hashes, the training side is only passed through.
    """
    return leaks_into(train, held_out)[0]


def leaks_into(train: Iterable[Conversation], *held_out: Iterable[Conversation]) -> list[Leaks]:
    """`leaks` for several held-out sides, with one pass through the training side."""
    sides = [_HeldOut(side) for side in held_out]
    for conversation in train:
        prints = _prints(conversation)
        for side in sides:
            side.compare(conversation.group, *prints)
    return [side.leaks() for side in sides]


class _HeldOut:
    """One held-out side as hashes, and which of its conversations have been found in training."""

    def __init__(self, conversations: Iterable[Conversation]) -> None:
        self._whole: dict[int, set[int]] = {}
        self._questions: dict[int, set[int]] = {}
        self._replies: dict[int, set[int]] = {}
        self._groups: dict[str, set[int]] = {}
        self._ids: list[str] = []
        self._found: dict[str, set[int]] = {"whole": set(), "question": set(), "reply": set(), "group": set()}
        for index, conversation in enumerate(conversations):
            self._ids.append(conversation.id)
            entire, first, said = _prints(conversation)
            self._whole.setdefault(entire, set()).add(index)
            if first is not None:
                self._questions.setdefault(first, set()).add(index)
            for reply in said:
                self._replies.setdefault(reply, set()).add(index)
            if conversation.group:
                self._groups.setdefault(conversation.group, set()).add(index)

    def compare(self, group: str, entire: int, first: int | None, said: list[int]) -> None:
        self._found["whole"] |= self._whole.get(entire, set())
        if first is not None:
            self._found["question"] |= self._questions.get(first, set())
        for reply in said:
            self._found["reply"] |= self._replies.get(reply, set())
        self._found["group"] |= self._groups.get(group, set()) if group else set()

    def leaks(self) -> Leaks:
        every = sorted(set().union(*self._found.values()))
        return Leaks(
            len(self._ids),
            len(self._found["whole"]),
            len(self._found["question"]),
            len(self._found["reply"]),
            len(self._found["group"]),
            tuple(self._ids[index] for index in every[:20]),
        )


def _prints(conversation: Conversation) -> tuple[int, int | None, list[int]]:
    texts = [(m.role, folded(m.content)) for m in conversation.messages if m.role != "system"]
    entire = hashed("\n".join(f"{role}:{text}" for role, text in texts))
    first = next((text for role, text in texts if role == "user"), None)
    question = hashed(first) if first is not None and len(first.split()) >= _LONG_ENOUGH else None
    said = [hashed(t) for role, t in texts if role == "assistant" and len(t.split()) >= 2 * _LONG_ENOUGH]
    return entire, question, said
