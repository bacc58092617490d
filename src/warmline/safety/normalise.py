"""Read through disguise: one plain spelling for what people write, with a way back. Knows nothing about risk.

Unicode look-alikes, curly quotes, hidden characters, digits for letters, stretched words, spaced-out words, emoji and
common slips are brought to plain lower-case words without apostrophes. `offsets` leads from every character back to
the original, so that a finding can be shown where it stands.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

from warmline.safety.tables import table

LONGEST_WORD = 40
"""A longer run of letters is cut to this: no word is longer, and no pattern should have to read on."""


@dataclass(frozen=True, slots=True)
class Normalised:
    """Plain text, and for each of its characters the place in the original it came from."""

    text: str
    offsets: tuple[int, ...]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The span of the original text behind `text[start:end]`."""
        if start >= end or not self.offsets:
            return 0, 0
        return self.offsets[start], self.offsets[end - 1] + 1


# Cyrillic and Greek letters that are read as Latin ones inside a Latin word.
_LOOKALIKES = dict(
    zip(
        "аеорсухіјѕԁһкмтвнӏьбпгуԛԝɡαβεικνορτυχωηγ",
        "aeopcyxijsdhkmtbhlbbnryqwgabeikvoptuxwny",
        strict=True,
    )
)
_LEET = str.maketrans(
    {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i", "|": "l"}
)
_LEET_L = str.maketrans(
    {"0": "o", "1": "l", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "l", "|": "l"}
)
_SPACED = re.compile(r"(?<![^\W_])[a-z0-9@$](?:[ ._*+\-]{1,2}[a-z0-9@$](?![^\W_])){3,}")
_WORD = re.compile(r"[^\s.,!?;:\"()…\[\]{}<>|“”。，！？、।]+|[@$!|][a-z0-9@$!|*]+")
_LEET_WORD = re.compile(r"[a-z0-9@$!|*#]*[a-z][a-z0-9@$!|*#]*")
_AMOUNT = re.compile(
    r"\d+(?:st|nd|rd|th|am|pm|mg|ml|kg|g|lb|lbs|oz|cm|mm|m|km|k|x|h|hr|hrs|s|min|mins|d|yo|yr|yrs|y|f|w|mcg|ft|in|c|p)+"
)
_STRETCH = re.compile(r"([a-z])\1{2,}")


@lru_cache(maxsize=8192)
def _fold(char: str) -> str:
    """One character as plain lower-case text; hidden characters vanish, pictures become words or a space."""
    emoji = table("spelling.yaml")["emoji"].get(char)
    if emoji:
        return f" {emoji} "
    category = unicodedata.category(char)
    if category in ("Cf", "Cc", "Cs", "Co", "Cn"):
        return "\n" if char in "\n\r\x0b\x0c\x85" else " " if char == "\t" or category == "Cs" else ""
    if category == "Mn" or category == "Me":
        name = unicodedata.name(char, "")
        return "" if name.startswith(("COMBINING", "VARIATION")) else char
    if category in ("Zs", "Zl", "Zp"):
        return "\n" if category != "Zs" else " "
    if char in "‘’‛ʼ´`′＇ʹ":
        return "'"
    if char in "“”„‟«»″＂":
        return '"'
    if char in "‐‑‒–—―−":
        return "-"
    out = []
    for folded in unicodedata.normalize("NFKC", char):
        plain = unicodedata.normalize("NFD", folded)
        if len(plain) > 1 and plain[0].isascii():
            folded = plain[0]
        if unicodedata.category(folded) == "So":
            # enclosed and squared letters have a Latin name; any other picture only parts words
            named = re.match(
                r"(?:NEGATIVE |REGIONAL INDICATOR SYMBOL )?.*LETTER ([A-Z])$", unicodedata.name(folded, "")
            )
            folded = named.group(1) if named else " "
        out.append(folded.lower())
    return "".join(out)


@cache
def _spelling() -> tuple[frozenset[str], frozenset[str], dict[str, str], frozenset[str], frozenset[str]]:
    rows = table("spelling.yaml")
    return (
        frozenset(rows["critical"]),
        frozenset(rows["near_but_different"]),
        {str(slip): str(word) for slip, word in rows["known_slips"].items()},
        frozenset(str(word) for word in rows["words"]),
        frozenset(rows["critical_parts"]),
    )


def one_slip(word: str, target: str) -> bool:
    """Whether one typing error (a letter wrong, missing, doubled, or two swapped) lies between the words.

    >>> one_slip("sucide", "suicide"), one_slip("suicied", "suicide"), one_slip("decide", "suicide")
    (True, True, False)
    """
    short, long = sorted((word, target), key=len)
    if word == target or len(long) - len(short) > 1:
        return word == target
    at = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(short) != len(long):
        return short[at:] == long[at + 1 :]
    swapped = short[at + 1 : at + 2] == long[at : at + 1] and short[at : at + 1] == long[at + 1 : at + 2]
    return short[at + 1 :] == long[at + 1 :] or (swapped and short[at + 2 :] == long[at + 2 :])


def take_apart(run: str) -> list[str] | None:
    """The words that were run together, if at least one of them matters; else nothing.

    >>> take_apart("killmyself"), take_apart("keyboard")
    (['kill', 'myself'], None)
    """
    _, _, _, words, parts = _spelling()
    if len(run) > LONGEST_WORD:
        return None
    # fewest words first; ties go to the longer first word
    best: list[list[str] | None] = [None] * (len(run) + 1)
    best[0] = []
    for end in range(1, len(run) + 1):
        for start in range(max(0, end - 10), end):
            before = best[start]
            if before is not None and run[start:end] in words:
                here = best[end]
                if here is None or len(before) + 1 < len(here):
                    best[end] = [*before, run[start:end]]
    split = best[len(run)]
    if split is None or not parts.intersection(split):
        return None
    return split


@lru_cache(maxsize=16384)
def _respell(word: str) -> str:
    """A word in its plain spelling. May become several words, parted by single spaces."""
    critical, near, slips, words, _ = _spelling()
    word = word[: LONGEST_WORD + 1].replace("'", "")
    if word in slips:
        return slips[word]
    if word.isalpha() and len(word) < 4:
        return word
    if not word.isalpha() and word.isascii() and _LEET_WORD.fullmatch(word) and not _AMOUNT.fullmatch(word):
        stripped = word.rstrip("!|")
        if "*" in stripped or "#" in stripped:
            shape = re.compile(re.escape(stripped).replace(r"\*", "[a-z]").replace(r"\#", "[a-z]"))
            for target in (*critical, "kill", "die", "cut", "death", "dead"):
                if shape.fullmatch(target):
                    return target
            loose = re.compile(re.sub(r"(?:\\[*#])+", "[a-z]{1,4}", re.escape(stripped)))
            hits = [target for target in critical if loose.fullmatch(target)]
            return hits[0] if hits and sum(c.isalpha() for c in stripped) >= 3 else word
        if not stripped.isalpha():
            known = words | critical | slips.keys()
            readings = (stripped.translate(_LEET), stripped.translate(_LEET_L))
            word = next((reading for reading in readings if reading in known), readings[0])
            if word in slips:
                return slips[word]
        else:
            word = stripped
    if _STRETCH.search(word):
        once, twice = _STRETCH.sub(r"\1", word), _STRETCH.sub(r"\1\1", word)
        known = words | critical
        word = twice if twice in known and once not in known else once
        if word in slips:
            return slips[word]
    pieces = re.split(r"[-_/+~*]+", word) if re.search(r"[a-z][-_/+~*]+[a-z]", word) else [word]
    if len(pieces) > 1:
        joined = "".join(pieces)
        if joined in critical or joined in words:
            return joined
        return " ".join(_respell(piece) for piece in pieces if piece)
    if not word.isascii() or len(word) < 6 or word in words or word in critical:
        return word
    if word not in near:
        for target in critical:
            if abs(len(word) - len(target)) <= 1 and word[0] == target[0] and one_slip(word, target):
                return target
    split = take_apart(word)
    return " ".join(split) if split and len(split) > 1 else word


def _respaced(run: str) -> str:
    """Letters that were spaced out, as words."""
    letters = re.sub(r"[ ._*+\-]", "", run).translate(_LEET)
    split = take_apart(letters)
    return " ".join(split) if split else letters


def _rewrite(
    text: str, offsets: Iterable[int], pattern: re.Pattern[str], change: Callable[[str], str]
) -> tuple[str, array[int]]:
    """Replace what `pattern` finds, keeping the way back to the original."""
    old = offsets if isinstance(offsets, array) else array("l", offsets)
    pieces: list[str] = []
    kept = array("l")
    done = 0
    for match in pattern.finditer(text):
        found = match.group()
        new = change(found)
        if new == found:
            continue
        start, end = match.span()
        pieces.append(text[done:start])
        kept.extend(old[done:start])
        pieces.append(new)
        width = end - start
        kept.extend(array("l", (old[start + min(i * width // max(len(new), 1), width - 1)] for i in range(len(new)))))
        done = end
    if not pieces:
        return text, old
    pieces.append(text[done:])
    kept.extend(old[done:])
    return "".join(pieces), kept


def _unmask(word: str) -> str:
    """A Latin word with the look-alike letters of other alphabets put right; a foreign word stays as it is."""
    if word.isascii():
        return word
    foreign = [char for char in word if char in _LOOKALIKES]
    latin = sum(char.isascii() and char.isalpha() for char in word)
    others = sum(char.isalpha() and not char.isascii() and char not in _LOOKALIKES for char in word)
    if foreign and not others and latin:
        return "".join(_LOOKALIKES.get(char, char) for char in word)
    return word


def normalise(text: str) -> Normalised:
    """Bring a message to plain lower-case words.

    >>> normalise("I’m gonna k1ll mysеlf").text
    'im gonna kill myself'
    """
    if text.isascii():
        plain, offsets = (
            text.lower().replace("\r", "\n").replace("\t", " ").replace("`", "'"),
            array("l", range(len(text))),
        )
        if re.search(r"[\x00-\x09\x0b-\x1f\x7f]", plain):
            plain, offsets = _rewrite(plain, offsets, re.compile(r"[\x00-\x09\x0b-\x1f\x7f]+"), lambda _: "")
    else:
        pieces = [_fold(char) for char in text]
        plain = "".join(pieces)
        offsets = array("l", (place for place, piece in enumerate(pieces) for _ in piece))
        plain, offsets = _rewrite(plain, offsets, re.compile(r"[^\W\d_]+"), _unmask)
    plain, offsets = _rewrite(plain, offsets, _SPACED, _respaced)
    plain, offsets = _rewrite(plain, offsets, _WORD, _respell)
    return Normalised(plain, tuple(offsets))
