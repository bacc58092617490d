"""A small classifier beside the lexicon: a linear model of words near each other, and a sentence encoder.

Knows words and weights, nothing of levels or replies. The weights come from `scripts/train_screen.py` and its sisters,
and from text written for this project. The linear model judges each sentence, the encoder a whole message or the
passage around its worst sentence, and the last turns of a conversation in one piece.
"""

from __future__ import annotations

import hashlib
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from warmline.safety import encoder
from warmline.safety.phrases import Words
from warmline.safety.tables import read, table

Odds = tuple[float, float, float]
"""Log-odds of `HEADS`."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a classifier thinks of a message: probabilities of L2 or more, L3 or more, a request for a method.

    `odds` are the worst log-odds of its parts, which the conversation keeps; None keeps nothing.
    """

    risk: float
    active: float
    method: float
    odds: Odds | None = None
    partial: bool = False
    """The encoder failed, and the words were judged alone."""


Classifier = Callable[[Words], Judgement]

HEADS = ("risk", "active", "method")
SECONDS = 0.5
"""A classifier that has not answered by then is left out of this message."""
REST = 50
"""After a classifier has hung, so many messages are screened without one."""

PER_WINDOW = 1.0
SHARES = (1.0, 1.0, 0.5)
"""What the linear model's log-odds count beside the encoder's, for each head."""
PASSAGE = 46
"""Word pieces that the encoder reads at once."""
READ_PIECES = 46
"""Word pieces of a message that the encoder reads. More passages of a long one found no more."""
SURE = -4.0
"""Log-odds of each sentence below which the linear model is believed alone."""
CALM_ENOUGH, CALM_READ = -3.9, -2.0
"""Log-odds of all heads, together and of the encoder alone, below which a message is harmless whatever words it has."""
UNREAD = -2.0
"""What counts for the encoder's opinion of a message that it has not read."""

TALK_SURE = -3.0
"""Log-odds of risk of each turn below which a conversation is not read as a whole."""
TURNS = 8
"""So many of a conversation's last turns are judged together."""
WORST = 3
"""Of these, so many of the worst for each head count."""
CALM = -8.0
"""The least that a turn counts, and what one that was not said counts as."""

_BIAS = ""
"""Stands in every window; no feature is empty."""
_MARKS = frozenset('.!?,:"')
_WINDOW = 60


def in_training(slice_: str, template: str) -> bool:
    """Whether a template of the cases belongs to the training half. The other half measures."""
    return hashlib.sha256(f"{slice_}/{template}".encode()).digest()[0] % 2 == 0


@cache
def _kinds() -> tuple[dict[str, list[str]], dict[str, list[str]], tuple[int, ...]]:
    """Whole words with their kinds, stems with theirs, and how long stems are."""
    whole: dict[str, list[str]] = {}
    stems: dict[str, list[str]] = {}
    for kind, words in table("kinds.yaml")["kinds"].items():
        for word in map(str, words):
            (stems if word.endswith("*") else whole).setdefault(word.removesuffix("*"), []).append(kind)
    return whole, stems, tuple(sorted({len(stem) for stem in stems}))


@lru_cache(maxsize=16384)
def kinds_of(word: str) -> tuple[str, ...]:
    """The kinds of a word (`tables/kinds.yaml`).

    >>> kinds_of("bridges")
    ('height',)
    """
    whole, stems, lengths = _kinds()
    found = [*whole.get(word, ()), *(kind for n in lengths if n <= len(word) for kind in stems.get(word[:n], ()))]
    return tuple(dict.fromkeys(found))


def features(words: Sequence[str]) -> dict[str, float]:
    """Words, neighbouring words, words with one between them, beginnings of longer words, and kinds of words.

    Kinds count by themselves, beside each other, and together anywhere in the window: what "I gave the cat away, it
    won't be mine to feed" has in common with other farewells is not its words.
    """
    kept = [word for word in words if word not in _MARKS][:_WINDOW]
    kinds_at = [kinds_of(word) for word in kept]
    found: dict[str, float] = {"?": 1.0} if "?" in words else {}
    before: tuple[str, ...] = ()
    present: set[str] = set()
    for place, word in enumerate(kept):
        found[word] = 1.0
        if len(word) > 5:
            found[word[:5] + "*"] = 1.0
        kinds = kinds_at[place]
        if place + 1 < len(kept):
            after = kept[place + 1]
            found[f"{word} {after}"] = 1.0
            for kind in kinds_at[place + 1]:
                found[f"{word} <{kind}"] = 1.0
            for kind in kinds:
                found[f"{kind}> {after}"] = 1.0
        if place + 2 < len(kept):
            found[f"{word} _ {kept[place + 2]}"] = 1.0
        if kinds:
            for kind in kinds:
                found[f"<{kind}>"] = 1.0
                for earlier in before:
                    found[f"<{earlier}> <{kind}>"] = 1.0
            before = kinds
            present.update(kinds)
    ordered = sorted(present)
    for place, kind in enumerate(ordered):
        for other in ordered[place + 1 :]:
            found[f"{kind}&{other}"] = 1.0
    if kept:
        found[f"^{kept[0]}"] = 1.0
    return found


class Weights:
    """A linear model with three heads over `features`, which it knows by their hashes."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.version = document["version"]
        rows = {_BIAS: document["bias"], **document["weights"]}
        hashes = np.fromiter(map(hash, rows), np.int64, len(rows))
        order = hashes.argsort()
        self._hashes, self._rows = hashes[order], np.array(list(rows.values()), float)[order]
        _kinds()  # read now, not while somebody waits

    def window(self, words: Sequence[str]) -> Odds:
        """Log-odds for one or two sentences."""
        return self.windows([words])[0]

    def windows(self, seen: Sequence[Sequence[str]]) -> list[Odds]:
        """
        Raises:
            TimeoutError: it took longer than `SECONDS`.
        """
        deadline = time.monotonic() + SECONDS
        hashes: list[int] = []
        starts: list[int] = []
        for words in seen:
            starts.append(len(hashes))
            hashes.append(hash(_BIAS))
            hashes += map(hash, features(words))
            if time.monotonic() > deadline:
                raise TimeoutError
        wanted = np.array(hashes)
        places = self._hashes.searchsorted(wanted)
        known = self._hashes.take(places, mode="clip") == wanted
        counted = self._rows.take(places, 0, mode="clip") * known[:, None]
        return [(risk, active, method) for risk, active, method in np.add.reduceat(counted, starts, 0).tolist()]

    def __call__(self, words: Words) -> Judgement:
        parts = sentences(words.words)
        seen = parts + joined(parts)
        if not any(len(part) > 1 for part in seen):
            # a bare word says nothing by itself, and may be the answer that a conversation turns on
            return Judgement(0.0, 0.0, 0.0, (CALM, CALM, CALM))
        odds = self.windows(seen)
        judged = [each for each, part in zip(odds, seen, strict=True) if len(part) > 1]
        read, partial = None, False
        try:
            read = opinion(parts, [max(each) for each in odds[: len(parts)]])
        except Exception:  # a damaged file or no memory must not cost the words' own opinion
            partial = True
        # a long message has more sentences that sound bad by chance: the two worst are taken together, less a toll
        toll = PER_WINDOW * math.log(len(judged) + 2)
        best, worst = [], []
        for head, share in enumerate(SHARES):
            top = sorted((each[head] for each in judged), reverse=True)[:2]
            more = (0.0 if partial else UNREAD) if read is None else read[head]
            best.append(_logistic(share * (sum(top) / len(top) - toll) + more))
            worst.append(share * top[0] + more)
        risk, active, method = (round(max(CALM, min(-CALM, each)), 1) for each in worst)
        return Judgement(best[0], best[1], best[2], (risk, active, method), partial)


def opinion(parts: Sequence[Sequence[str]], odds: Sequence[float]) -> list[float] | None:
    """The encoder's worst log-odds of a message's passages, which hold its worst sentences by the linear model.

    None where each sentence is as calm as `SURE`. Of a sentence too long to be read at once beginning and end are read.
    """
    if max(odds) <= SURE:
        return None
    reader = encoder.shipped()
    pieces = [reader.tokens(" ".join(part)) for part in parts]
    chosen = passages([len(ids) for ids in pieces], odds, READ_PIECES)
    texts = [[piece for place in passage for piece in pieces[place]] for passage in chosen]
    fits = encoder.LONGEST - 2
    read = [reader.odds(part) for text in texts for part in ([text] if len(text) <= fits else [text, text[-fits:]])]
    return [max(each) for each in zip(*read, strict=True)]


def harmless(words: Words, judged: Judgement) -> bool:
    """Whether both opinions find the whole of a message plainly calm. False where not all of it can be read."""
    if judged.odds is None or judged.partial or max(judged.odds) > CALM_ENOUGH:
        return False
    try:
        reader = encoder.shipped()
        pieces = reader.tokens(" ".join(words.words))
        return len(pieces) <= encoder.LONGEST - 2 and max(reader.odds(pieces)) <= CALM_READ
    except Exception:
        return False


def sentences(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Each sentence with its mark, cut into pieces where it is very long."""
    found: list[tuple[str, ...]] = []
    start = 0
    for place in range(len(words) + 1):
        end = place == len(words) or words[place] in ".!?"
        if (end or place - start >= _WINDOW) and start < len(words):
            found.append(tuple(words[start : place + 1]))
            start = place + 1
    return found


def passages(lengths: Sequence[int], odds: Sequence[float], most: int) -> list[range]:
    """Which sentences the encoder reads together: a whole message, or the worst sentences with those around them.

    Takes each sentence's pieces and log-odds. A passage has at most `PASSAGE` pieces, unless it is one sentence; all
    together have at most `most`, unless it is one passage.

    >>> passages([10, 10, 10], [-1.0, 2.0, -3.0], 96)
    [range(0, 3)]
    >>> passages([20, 20, 20, 20, 20], [-1.0, -3.0, -2.0, -3.0, 4.0], 96)
    [range(3, 5), range(0, 2)]
    """
    found: list[range] = []
    taken: set[int] = set()
    left = most
    for worst in sorted(range(len(lengths)), key=lambda place: -odds[place]):
        if worst in taken:
            continue
        room = min(PASSAGE, left) if found else PASSAGE
        if found and lengths[worst] > room:
            break
        first = last = worst
        size = lengths[worst]
        grown = True
        while grown:
            grown = False
            for place in (first - 1, last + 1):
                if 0 <= place < len(lengths) and place not in taken and size + lengths[place] <= room:
                    size += lengths[place]
                    first, last, grown = min(first, place), max(last, place), True
        found.append(range(first, last + 1))
        taken.update(found[-1])
        left -= size
    return found


def joined(parts: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Very short sentences, each together with the next."""
    long = [part for part in parts if len(part) > 1]
    return [a + b for a, b in pairwise(long) if len(a) < 5 and len(a) + len(b) <= _WINDOW]


def windows(words: Words) -> list[tuple[str, ...]]:
    """What the linear model judges: each sentence, and a very short one together with the next."""
    parts = sentences(words.words)
    return [part for part in parts if len(part) > 1] + joined(parts)


def _logistic(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, value))))


class Patient:
    """A time limit for a classifier of one's own: asked in a thread, given up when it hangs, then rested for a while.

    Raises:
        TimeoutError: no answer in time, or the classifier is resting.
    """

    def __init__(self, judge: Classifier, seconds: float = SECONDS) -> None:
        self._judge = judge
        self._seconds = seconds
        self._resting = 0
        self._lock = threading.Lock()

    def __call__(self, words: Words) -> Judgement:
        with self._lock:
            if self._resting:
                self._resting -= 1
                raise TimeoutError
        answer: queue.SimpleQueue[Judgement | BaseException] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answer.put(self._judge(words))
            except BaseException as error:
                answer.put(error)

        threading.Thread(target=ask, name="classifier", daemon=True).start()
        try:
            said = answer.get(timeout=self._seconds)
        except queue.Empty:
            with self._lock:
                self._resting = REST
            raise TimeoutError from None
        if isinstance(said, BaseException):
            raise said
        return said


@cache
def weights() -> Weights:
    """The shipped weights."""
    return Weights(json.loads(read("classifier.json")))


@cache
def shipped() -> Classifier:
    """The shipped classifier. It looks at the clock, reads so much and no more, and needs no thread as others do."""
    return weights()


def conversation(turns: Sequence[Words], told: Sequence[Odds]) -> float | None:
    """The encoder's log-odds that a conversation calls for acting, by what the person said in the last turns.

    None where there is one turn only, and where every turn of `told`, the last one's among them, is as calm as
    `TALK_SURE`.
    """
    if len(turns) < 2 or max(turn[0] for turn in told[-TURNS:]) <= TALK_SURE:
        return None
    reader = encoder.shipped()
    return reader.talk([reader.tokens(" ".join(turn.words)) for turn in turns[-TURNS:]])


class Talks:
    """How the turns of a conversation count together (`scripts/train_talks.py`). No weight is negative."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.bias: float = document["bias"]
        self.weights: list[list[float]] = document["weights"]
        self.whole: float = document["whole"]

    @staticmethod
    def worst(told: Sequence[Odds]) -> list[list[float]]:
        """For each head the worst of the last turns' log-odds."""
        found = [sorted((max(CALM, turn[head]) for turn in told[-TURNS:]), reverse=True) for head in range(len(HEADS))]
        return [(row + [CALM] * WORST)[:WORST] for row in found]

    def __call__(self, told: Sequence[Odds], whole: float | None) -> float:
        rows = zip(self.weights, self.worst(told), strict=True)
        by_turns = sum(w * value for weights, values in rows for w, value in zip(weights, values, strict=True))
        return self.bias + by_turns + self.whole * within(whole)


def within(whole: float | None) -> float:
    """What `conversation` found, between `CALM` and its opposite."""
    return CALM if whole is None else max(CALM, min(-CALM, whole))


@cache
def shipped_talks() -> Talks:
    return Talks(json.loads(read("talks.json")))


def together(told: Sequence[Odds], whole: float | None = None) -> float:
    """Log-odds that a conversation's last turns, none of which need say much by itself, call for L3 together.

    `whole` is what `conversation` found. More of a sign never lowers it.

    >>> calm, bad = (-4.0, -5.0, -6.0), (3.0, 2.0, -2.0)
    >>> together([calm] * 4) < 0 and together([calm] * 4) < together([bad] * 4) < together([bad] * 4, 3.0)
    True
    """
    return shipped_talks()(told, whole)


@cache
def thresholds() -> dict[str, float]:
    """From which probability on a head is believed."""
    return {
        "risk": 0.35,
        "strong": 0.6,
        "certain": 0.9,
        "faint": 0.05,
        "method": 0.2,
        "method-certain": 0.8,
        "method-likely": 0.2,
        "method-risk": 0.1,
        "method-short": 0.6,
        "active": 0.4,
        "active-alone": 0.4,
        "active-risk": 0.6,
        "talk": 0.25,
        "talk-unseen": 0.5,
    }
