"""Has the model seen the exam? Evaluation items against the training split, before anything is scored.

An item is contaminated when one training conversation holds one of its messages: the very words, half of its
eight-word sequences, or nearly the same three-word sequences. Only the items are indexed; training streams past.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from warmline.corpus.dedupe import COPY
from warmline.corpus.split import folded
from warmline.messages import Conversation

LONG = 8
HELD = 0.5
"""Share of a message's eight-word sequences in one training conversation from which on it counts as seen."""
SHORT = 3
FEWEST_WORDS = 8
"""Shorter messages are common phrases: that training holds one gives nothing away."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing the model is asked or scored on. `id` never holds a person's words."""

    set: str
    id: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leak:
    """An item, the training conversation that holds it, and why it is taken for seen."""

    set: str
    id: str
    trained_on: str
    why: str


def items_of(name: str, conversations: Iterable[Conversation]) -> list[Item]:
    """Each conversation as one item; the system message is everybody's and does not count."""
    return [Item(name, c.id, tuple(m.content for m in c.messages if m.role != "system")) for c in conversations]


def _sequences(words: Sequence[str], length: int) -> set[int]:
    return {hash(tuple(words[i : i + length])) for i in range(len(words) - length + 1)}


def find(items: Sequence[Item], training: Iterable[Conversation]) -> list[Leak]:
    """The contaminated items, each with the first training conversation that gives it away.

    >>> from warmline.messages import Message
    >>> said = "It has been a long winter and nobody has rung my bell"
    >>> seen = Conversation("t1", (Message("user", said.upper() + "!"),))
    >>> [leak.why for leak in find([Item("test", "a", (said,)), Item("test", "b", ("Hello there",))], [seen])]
    ['the very words']
    """
    texts: list[tuple[int, str, int, int]] = []
    index: dict[int, dict[int, list[int]]] = {LONG: defaultdict(list), SHORT: defaultdict(list)}
    whole: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        for text in item.texts:
            plain = folded(text)
            words = plain.split()
            if len(words) < FEWEST_WORDS:
                continue
            sequences = {length: _sequences(words, length) for length in index}
            for length, found in sequences.items():
                for sequence in found:
                    index[length][sequence].append(len(texts))
            whole[plain].append(len(texts))
            texts.append((number, plain, len(sequences[LONG]), len(sequences[SHORT])))
    leaks: dict[int, Leak] = {}

    def note(place: int, conversation: Conversation, why: str) -> None:
        item = items[texts[place][0]]
        leaks.setdefault(texts[place][0], Leak(item.set, item.id, conversation.id, why))

    for conversation in training:
        for message in conversation.messages:
            if message.role == "system":
                continue
            plain = folded(message.content)
            words = plain.split()
            for place in whole.get(plain, ()):
                note(place, conversation, "the very words")
            held = Counter(place for s in _sequences(words, LONG) for place in index[LONG].get(s, ()))
            for place, count in held.items():
                if count >= HELD * texts[place][2]:
                    note(place, conversation, "half of its eight-word sequences")
            mine = _sequences(words, SHORT)
            alike = Counter(place for s in mine for place in index[SHORT].get(s, ()))
            for place, count in alike.items():
                if count >= COPY * (len(mine) + texts[place][3] - count):
                    note(place, conversation, "nearly the same words")
    return [leaks[number] for number in sorted(leaks)]


def summary(items: Sequence[Item], leaks: Sequence[Leak]) -> dict[str, Any]:
    """Counts by set, and which items they are."""
    sizes, found = Counter(item.set for item in items), Counter(leak.set for leak in leaks)
    return {
        "sets": {name: {"items": size, "contaminated": found[name]} for name, size in sizes.items()},
        "contaminated": [asdict(leak) for leak in leaks],
    }
