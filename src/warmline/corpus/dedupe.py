"""Find copies: exact, near (MinHash, arXiv 1997 Broder) and against sets that must stay unseen. Knows no files.

Two conversations are copies when both what was asked and what was replied are nearly the same; many good answers to one
question are not. Conversations that share only one of the two stay, but are tied together so that no split cuts them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from warmline.corpus.split import folded, hashed
from warmline.messages import Conversation

PERMUTATIONS = 128
BANDS, ROWS = 25, 5
# A pair with likeness s meets in a band with probability 1 - (1 - s^5)^25: .9999 at s = .8, .06 at s = .3.
COPY = 0.8
"""Likeness (share of common three-word sequences) from which on two texts are taken for copies."""
_SHINGLE = 3
_GRAM = 8
_CONTAINED = 0.5
"""Share of a message's eight-word sequences that may not stand in a set it must not overlap with."""
_TIE_WORDS = 12
"""Replies shorter than this are common phrases; sharing one ties nothing together."""

_random = np.random.default_rng(20_260_101)
_FACTORS = _random.integers(1, 1 << 62, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
_TERMS = _random.integers(0, 1 << 62, PERMUTATIONS, dtype=np.uint64)

Signature = npt.NDArray[np.uint8]


def signature(words: list[str]) -> Signature:
    """MinHash of a text's three-word sequences. Texts with equal sequences have equal signatures.

    Of each least hash one byte is kept: unlike texts agree in 1 of 256 by chance, which shifts no decision at .8.
    """
    if len(words) < 2 * _SHINGLE:
        shingles = [" ".join(words)]
    else:
        shingles = [" ".join(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1)]
    hashes = np.array([zlib.crc32(s.encode("utf-8", "replace")) for s in shingles], dtype=np.uint64)
    lowest: Signature = ((hashes[:, None] * _FACTORS + _TERMS) >> np.uint64(32)).min(axis=0).astype(np.uint8)
    return lowest


def likeness(one: Signature, other: Signature) -> float:
    """Estimated share of common sequences; its standard error is at most .045."""
    return float((one == other).mean())


ASKED, SAID = slice(0, PERMUTATIONS), slice(PERMUTATIONS, 2 * PERMUTATIONS)
WIDTH = 2 * PERMUTATIONS + 8
"""Bytes of a fingerprint: both signatures, then a hash of the whole."""


def fingerprint(conversation: Conversation) -> Signature:
    """Everything the later steps need to know of a conversation to find its copies."""
    asked = folded(" ".join(m.content for m in conversation.messages if m.role == "user"))
    said = folded(" ".join(m.content for m in conversation.messages if m.role == "assistant"))
    whole = hashed(f"{asked}\n{said}")
    row = np.empty(WIDTH, dtype=np.uint8)
    row[ASKED] = signature(asked.split())
    row[SAID] = signature(said.split())
    row[2 * PERMUTATIONS :] = np.frombuffer(whole.to_bytes(8, "little"), dtype=np.uint8)
    return row


def tie_keys(conversation: Conversation) -> list[int]:
    """Hashes of the messages that no two sides of a split may share: the first question, and every longer reply."""
    keys = []
    asked = False
    for message in conversation.messages:
        words = folded(message.content)
        least = _TIE_WORDS if message.role == "assistant" else 6 if message.role == "user" and not asked else 0
        asked = asked or message.role == "user"
        if least and words.count(" ") + 1 >= least:
            keys.append(hashed(f"{message.role}:{words}"))
    return keys


class _Sets:
    """Union-find over positions, in one array."""

    def __init__(self, size: int) -> None:
        self.parent = np.arange(size, dtype=np.int64)

    def find(self, item: int) -> int:
        parent = self.parent
        root = item
        while parent[root] != root:
            root = int(parent[root])
        while parent[item] != root:
            parent[item], item = root, int(parent[item])
        return root

    def union(self, one: int, other: int) -> None:
        a, b = self.find(one), self.find(other)
        if a != b:
            # The lower position leads, so the first of several copies is the one that stays.
            self.parent[max(a, b)] = min(a, b)


@dataclass(frozen=True, slots=True)
class Ties:
    """For every conversation: which earlier one it copies (or -1), and the leader of its group."""

    copy_of: npt.NDArray[np.int64]
    exact: npt.NDArray[np.bool_]
    group: npt.NDArray[np.int64]


def _runs(keys: npt.NDArray[np.uint64]) -> Iterable[npt.NDArray[np.int64]]:
    """Positions with equal keys, two or more at a time."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], len(ordered)]
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        yield order[start:end]


def _whole_hash(prints: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(prints[:, 2 * PERMUTATIONS :]).view(np.uint64).reshape(-1)


def _band_keys(prints: npt.NDArray[np.uint8], side: slice, band: int) -> npt.NDArray[np.uint64]:
    keys = np.zeros((len(prints), 8), dtype=np.uint8)
    start = side.start + band * ROWS
    keys[:, :ROWS] = prints[:, start : start + ROWS]
    return keys.view(np.uint64).reshape(-1)


def ties(
    prints: npt.NDArray[np.uint8],
    groups: npt.NDArray[np.uint64],
    loose: npt.NDArray[np.bool_],
    words: npt.NDArray[np.int64],
    shared: tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]],
    *,
    drop: bool = True,
) -> Ties:
    """Find copies among fingerprints and join the groups of what must stay together.

    `groups` are the sources' own groups as numbers; `loose` marks prose, which is never compared; `words` counts the
    words of the replies; `shared` are positions and `tie_keys` of messages. One band at a time is in memory.
    """
    count = len(prints)
    groups_set, copies = _Sets(count), _Sets(count)
    exact = np.zeros(count, dtype=np.bool_)
    apart = np.arange(count, dtype=np.uint64) | np.uint64(1 << 63)  # a key of its own for what has none

    for run in _runs(groups):
        for other in run[1:]:
            groups_set.union(int(run[0]), int(other))
    whole = _whole_hash(prints)
    for run in _runs(np.where(loose, apart, whole)):
        for other in run[1:]:
            groups_set.union(int(run[0]), int(other))
            copies.union(int(run[0]), int(other))
            exact[other] = True
    owners, hashes = shared
    for run in _runs(hashes):
        members = owners[run]
        # A phrase that a large part of the corpus uses is boilerplate; tying by it would leave nothing to divide.
        if len(run) <= max(20, count // 200):
            for other in members[1:]:
                groups_set.union(int(members[0]), int(other))
    for side in (SAID, ASKED):
        for band in range(BANDS):
            keys = np.where(loose, apart, _band_keys(prints, side, band))
            for run in _runs(keys):
                leader = int(run[0])
                likely = (prints[run, side] == prints[leader, side]).mean(axis=1) >= COPY
                asked_too = (prints[run, ASKED] == prints[leader, ASKED]).mean(axis=1) >= COPY
                for position in np.flatnonzero(likely[1:]) + 1:
                    other = int(run[position])
                    if side == SAID and asked_too[position]:
                        copies.union(leader, other)
                        groups_set.union(leader, other)
                    elif side == ASKED or min(words[leader], words[other]) >= _TIE_WORDS:
                        groups_set.union(leader, other)
    leaders = np.fromiter((copies.find(i) for i in range(count)), np.int64, count)
    copy_of = np.where(leaders == np.arange(count), -1, leaders) if drop else np.full(count, -1, dtype=np.int64)
    return Ties(copy_of, exact, np.fromiter((groups_set.find(i) for i in range(count)), np.int64, count))


class Unseen:
    """Texts that training must not see, such as evaluation sets. Kept as hashes only."""

    def __init__(self, conversations: Iterable[Conversation]) -> None:
        whole: set[int] = set()
        grams: set[int] = set()
        for conversation in conversations:
            for message in conversation.messages:
                words = folded(message.content).split()
                if message.role != "system" and len(words) >= 4:
                    whole.add(hashed(" ".join(words)))
                    grams.update(_grams(words))
        self._whole, self._grams = frozenset(whole), frozenset(grams)

    def __len__(self) -> int:
        return len(self._whole)

    def holds(self, conversation: Conversation) -> bool:
        """True if a message is one of these texts, or half of its eight-word sequences stand in them."""
        for message in conversation.messages:
            words = folded(message.content).split()
            if message.role == "system" or len(words) < 4:
                continue
            if hashed(" ".join(words)) in self._whole:
                return True
            grams = _grams(words)
            if grams and sum(gram in self._grams for gram in grams) >= _CONTAINED * len(grams):
                return True
        return False


def _grams(words: list[str]) -> list[int]:
    return [
        zlib.crc32(joined) | (zlib.adler32(joined) << 32)
        for i in range(len(words) - _GRAM + 1)
        if (joined := " ".join(words[i : i + _GRAM]).encode("utf-8", "replace"))
    ]
