"""A small classifier beside lint's patterns: which words, and words near each other, unsuitable replies are made of.

Knows words and weights, nothing of actions. The weights come from `scripts/train_lint.py` and text written for this
project. Each sentence is judged by itself, a short one together with the next; quotations are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib import resources
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import yaml

_TOKEN = re.compile(r"[a-z']+|\d+|[.!?\n*]+|[^\x00-\x7f]")
_ENDS = frozenset(".!?\n*")
_QUOTE = re.compile(r'"[^"\n]{1,300}"|“[^”\n]{1,300}”')
LONGEST = 50
"""Words of one window; a longer sentence is cut."""
FAR = -4.7
"""How far below the threshold single words may stay before pairs and kinds are not looked at. Of the sentences found
in 339 planted lines (`fresh4.yaml`) one in fifty lies below it, of the sample corpus three quarters."""
SHORT = 5
"""A sentence of fewer words is also judged together with the next."""


@cache
def _kinds() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Whole words with their kinds, and stems with theirs."""
    whole: dict[str, tuple[str, ...]] = {}
    stems: dict[str, tuple[str, ...]] = {}
    table = yaml.safe_load((resources.files("warmline.corpus") / "lint_kinds.yaml").read_text("utf-8"))
    for kind, words in table.items():
        for word in map(str, words):
            into, key = (stems, word[:-1]) if word.endswith("*") else (whole, word)
            into[key] = (*into.get(key, ()), kind)
    return whole, stems


@lru_cache(maxsize=32_768)
def kinds_of(word: str) -> tuple[str, ...]:
    """The kinds of a word (`lint_kinds.yaml`).

    >>> kinds_of("lorazepam")
    ('drug',)
    """
    whole, stems = _kinds()
    found = list(whole.get(word, ()))
    for end in range(2, len(word) + 1):
        found += [kind for kind in stems.get(word[:end], ()) if kind not in found]
    return tuple(found)


def _of_word(word: str) -> list[str]:
    start = [f"{word[:5]}*"] if len(word) > 5 else []
    return [word, *start, *(f"<{kind}>" for kind in kinds_of(word))]


def _of_pair(first: str, second: str) -> list[str]:
    one, two = kinds_of(first), kinds_of(second)
    return [
        f"{first} {second}",
        *(f"{first} <{b}" for b in two),
        *(f"{a}> {second}" for a in one),
        *(f"<{a}> <{b}>" for a in one for b in two),
    ]


def _of_skip(first: str, third: str) -> list[str]:
    return [f"{first} _ {third}", *(f"<{a}> _ <{b}>" for a in kinds_of(first) for b in kinds_of(third))]


def _of_start(word: str) -> list[str]:
    return [f"^{word}", *(f"^<{kind}>" for kind in kinds_of(word))]


def _of_kinds(words: tuple[str, ...]) -> list[str]:
    present = sorted({kind for word in words for kind in kinds_of(word)})
    return [f"{a}&{b}" for a, b in combinations(present, 2)]


def features(words: tuple[str, ...]) -> set[str]:
    """Words, neighbours, words with one between them, how the window begins; all of these also by kind."""
    found: set[str] = set(_of_start(words[0])) | set(_of_kinds(words))
    for word in words:
        found.update(_of_word(word))
    for first, second in pairwise(words):
        found.update(_of_pair(first, second))
    for first, third in zip(words, words[2:], strict=False):
        found.update(_of_skip(first, third))
    return found


def windows(plain: str) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """The sentences of a text (lower case, straight apostrophes) as words, and where each stands."""
    if '"' in plain or "“" in plain:
        said = plain.lstrip()[:1]
        if said not in ('"', "“"):
            plain = _QUOTE.sub(lambda quote: " " * len(quote[0]), plain)
    before: tuple[tuple[str, ...], int] | None = None
    words: list[str] = []
    start = end = 0

    def close(mark: str) -> Iterator[tuple[tuple[str, ...], int, int]]:
        nonlocal before
        made = (*words, "?") if "?" in mark else tuple(words)
        yield made, start, end
        if before is not None and len(before[0]) + len(made) <= LONGEST:
            yield before[0] + made, before[1], end
        before = (made, start) if len(words) < SHORT else None

    for token in _TOKEN.finditer(plain):
        text = token[0]
        if text[0] in _ENDS or len(words) == LONGEST:
            if words:
                yield from close(text)
            words = []
            if text[0] in _ENDS:
                continue
        if not words:
            start = token.start()
        words.append(text.replace("'", "") or "'")
        end = token.end()
    if words:
        yield from close("")


class Weights:
    """A linear model with one head a rule over `features`."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.heads: tuple[str, ...] = tuple(document["heads"])
        self.bias = np.array(document["bias"], np.float32)
        self.least = np.array(document["thresholds"], np.float32)
        """Log-odds from which on a head is believed."""
        names = document["features"]
        self._weights = np.array(document["weights"], np.float32).reshape(len(names), len(self.heads)) / 100
        self._row = {name: at for at, name in enumerate(names)}
        self._word = lru_cache(maxsize=32_768)(lambda word: self._rows(_of_word(word)))
        self._pair = lru_cache(maxsize=65_536)(lambda one, two: self._rows(_of_pair(one, two)))
        self._skip = lru_cache(maxsize=65_536)(lambda one, two: self._rows(_of_skip(one, two)))
        self._start = lru_cache(maxsize=8_192)(lambda word: self._rows(_of_start(word)))
        kinds = sorted({kind for table in _kinds() for found in table.values() for kind in found})
        self._kind = {kind: at for at, kind in enumerate(kinds)}
        self._beside = np.zeros((len(kinds) ** 2, len(self.heads)), np.float32)
        for (one, a), (two, b) in combinations(self._kind.items(), 2):
            if (row := self._row.get(f"{one}&{two}")) is not None:
                self._beside[a * len(kinds) + b] = self._weights[row]

    def _rows(self, names: list[str]) -> tuple[int, ...]:
        return tuple(row for name in names if (row := self._row.get(name)) is not None)

    def odds(self, words: tuple[str, ...]) -> Any:
        """Log-odds of every head for one window; by its single words alone where those are far from any rule."""
        rows = set(self._start(words[0]))
        for word in words:
            rows.update(self._word(word))
        alone = self._weights.take(np.fromiter(rows, np.intp, len(rows)), 0).sum(0) + self.bias
        if (alone - self.least).max() < FAR:
            return alone
        rows.update(*map(self._pair, words, words[1:]))
        rows.update(*map(self._skip, words, words[2:]))
        kinds = np.array(sorted({self._kind[kind] for word in words for kind in kinds_of(word)}), np.intp)
        beside = self._beside.take((kinds[:, None] * len(self._kind) + kinds).ravel(), 0).sum(0)
        return self._weights.take(np.fromiter(rows, np.intp, len(rows)), 0).sum(0) + beside + self.bias


@cache
def weights() -> Weights:
    """The shipped weights."""
    return Weights(json.loads((resources.files("warmline.corpus") / "lint_weights.json").read_text("utf-8")))


_GRIM = frozenset({"die", "harm", "means", "ending"})


def grim(plain: str) -> bool:
    """Whether any word of a text has to do with dying or harm; most texts need no closer look."""
    return any(not _GRIM.isdisjoint(kinds_of(word)) for word in set(re.findall("[a-z]+", plain)))


def judged(plain: str) -> Iterator[tuple[str, int, int]]:
    """Which rules the classifier finds in a text (lower case, straight apostrophes), and in which sentences."""
    for words, start, end in windows(plain):
        for rule in _of_window(words):
            yield rule, start, end


@lru_cache(maxsize=16_384)
def _of_window(words: tuple[str, ...]) -> tuple[str, ...]:
    model = weights()
    return tuple(model.heads[head] for head in np.flatnonzero(model.odds(words) >= model.least))
