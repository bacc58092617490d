"""A small classifier beside the lexicon: a linear model of words near each other, and a sentence encoder.

Knows words and weights, nothing of levels or replies. The weights come from `scripts/train_screen.py` and text written
for this project. Each window of one or two sentences is judged by itself; the message is as risky as its riskiest one.
The encoder costs most, so it reads the windows that look worst to the linear model.
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


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a classifier thinks of a message: probabilities of L2 or more, L3 or more, a request for a method.

    `odds` are the log-odds of its worst sentences, which the conversation keeps; None keeps nothing.
    """

    risk: float
    active: float
    method: float
    odds: Odds | None = None


Classifier = Callable[[Words], Judgement]

HEADS = ("risk", "active", "method")
SECONDS = 0.5
"""A classifier that has not answered by then is left out of this message."""
REST = 50
"""After a classifier has hung, so many messages are screened without one."""

PER_WINDOW = 1.0
READ_PIECES = 32
"""Word pieces of a message that the encoder reads."""
SURE = -4.0
"""Log-odds below which the linear model is believed alone. Of 1,443 lines at risk that were found, none lay there."""
UNREAD = -2.0
"""The most that the encoder's opinion counts for a sentence that it has not read."""
ENCODER_SHARE = 1.0
"""What the encoder's log-odds count beside the linear model's."""

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
        seen = windows(words)
        if not seen:
            return Judgement(0.0, 0.0, 0.0)
        judged = with_encoder(seen, self.windows(seen))
        # a long message has more sentences that sound bad by chance: the two worst are taken together, less a toll
        toll = PER_WINDOW * math.log(len(judged) + 2)
        best, worst = [], []
        for head in range(len(HEADS)):
            top = sorted((odds[head] for odds in judged), reverse=True)[:2]
            best.append(_logistic(sum(top) / len(top) - toll))
            worst.append(round(max(CALM, min(-CALM, top[0])), 1))
        return Judgement(best[0], best[1], best[2], (worst[0], worst[1], worst[2]))


def with_encoder(seen: Sequence[Sequence[str]], odds: list[Odds]) -> list[Odds]:
    """The windows' log-odds with the encoder's added, as far as `READ_PIECES` goes, the worst windows first.

    A window it did not read gets the calmest opinion it gave in this message, and at most `UNREAD`: it was not among
    the worst. Windows that the words find as calm as `SURE` are not read. Without the encoder's file, or when it fails,
    the linear model's odds stand.
    """
    read: dict[int, list[int]] = {}
    left = READ_PIECES
    doubtful = [place for place in range(len(seen)) if max(odds[place]) > SURE]
    if not doubtful:
        return odds
    try:
        reader = encoder.shipped()
        for place in sorted(doubtful, key=lambda place: -max(odds[place])):
            ids = reader.tokens(" ".join(seen[place]))[:READ_PIECES]
            if read and len(ids) > left:
                break
            read[place] = ids
            left -= len(ids)
        opinions = reader.odds(list(read.values())) * ENCODER_SHARE
    except Exception:  # a damaged file or no memory must not cost the words' own opinion
        return odds
    calmest = opinions.min(0).clip(max=UNREAD)
    said = dict(zip(read, opinions, strict=True))
    return [
        (risk + float(more[0]), active + float(more[1]), method + float(more[2]))
        for (risk, active, method), more in ((each, said.get(place, calmest)) for place, each in enumerate(odds))
    ]


def windows(words: Words) -> list[tuple[str, ...]]:
    """Each sentence, cut into pieces where it is very long; a very short one together with the next."""
    sentences: list[tuple[str, ...]] = []
    start = 0
    for place in range(len(words.words) + 1):
        end = place == len(words.words) or words.words[place] in ".!?"
        if end or place - start >= _WINDOW:
            piece = words.words[start : place + 1]
            if len(piece) > 1:
                sentences.append(piece)
            start = place + 1
    joined = [
        first + second
        for first, second in pairwise(sentences)
        if len(first) < 5 and len(first) + len(second) <= _WINDOW
    ]
    return sentences + joined


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
    """The shipped classifier. It looks at the clock after each sentence and needs no thread; others take `Patient`."""
    return weights()


@cache
def _talks() -> tuple[float, list[list[float]]]:
    document = json.loads(read("talks.json"))
    return document["bias"], document["weights"]


def together(told: Sequence[Odds]) -> float:
    """Log-odds that a conversation's last turns, none of which need say much by itself, call for L3 together.

    A linear model (`scripts/train_talks.py`) of the worst turns for each head. More of a sign never lowers it.

    >>> together([(-4.0, -5.0, -6.0)] * 4) < 0 < together([(3.0, 2.0, -2.0)] * 4)
    True
    """
    odds, weights = _talks()
    for head, row in enumerate(weights):
        worst = sorted((max(CALM, turn[head]) for turn in told[-TURNS:]), reverse=True)[:WORST]
        odds += sum(weight * value for weight, value in zip(row, worst + [CALM] * (WORST - len(worst)), strict=True))
    return odds


@cache
def thresholds() -> dict[str, float]:
    """From which probability on a head is believed."""
    return {
        "risk": 0.2,
        "strong": 0.6,
        "certain": 0.9,
        "faint": 0.05,
        "method": 0.04,
        "method-certain": 0.5,
        "method-risk": 0.1,
        "method-short": 0.6,
        "active": 0.4,
        "active-alone": 0.4,
        "active-risk": 0.6,
        "talk": 0.3,
    }
