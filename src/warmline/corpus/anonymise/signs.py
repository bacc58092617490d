"""What a text can hold at all, told in one pass. Every finder asks before a costly pattern; no is never said wrongly.

A word of a pattern that stands between word boundaries is, letters only, among `words`; so a pattern none of whose
words are there cannot match.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LETTERS = re.compile(r"[a-z]+")
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class Signs:
    """Cheap facts of a text."""

    low: str
    """The text in lower case."""
    words: frozenset[str]
    """Every run of the letters a to z in lower case."""
    digits: int
    """How many digits there are."""

    def any_of(self, words: frozenset[str]) -> bool:
        return not self.words.isdisjoint(words)


def of(text: str) -> Signs:
    low = text.lower()
    return Signs(low, frozenset(_LETTERS.findall(low)), len(_DIGIT.findall(text)))


def letters(words: str) -> frozenset[str]:
    """The words of an alternation, for `any_of`."""
    return frozenset(words.split("|"))
