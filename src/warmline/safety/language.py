"""Which language a message is in: enough to choose the words to look for, or to admit that there are none.

Knows nothing about risk. Never used to guess a country.
"""

from __future__ import annotations

import unicodedata
from functools import cache

from warmline.safety.tables import table

SCREENED = ("en", "es", "fr", "de", "pt", "hi", "zh")
"""English first and well; the others by explicit phrases only."""

_SCRIPTS = {
    "DEVANAGARI": "hi", "CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CYRILLIC": "ru",
    "ARABIC": "ar", "HEBREW": "he", "THAI": "th", "GREEK": "el", "BENGALI": "bn", "TAMIL": "ta", "TELUGU": "te",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy", "KHMER": "km", "LAO": "lo", "MYANMAR": "my", "GUJARATI": "gu", "GURMUKHI": "pa", "KANNADA": "kn",
    "MALAYALAM": "ml", "SINHALA": "si", "ETHIOPIC": "am", "TIBETAN": "bo",
}  # fmt: skip


@cache
def _stopwords() -> dict[str, frozenset[str]]:
    rows = table("second_tier.yaml")
    found = {"en": frozenset(map(str, rows["english"]))}
    found |= {code: frozenset(map(str, entry["stopwords"])) for code, entry in rows["languages"].items()}
    return found | {code: frozenset(map(str, words)) for code, words in rows["others"].items()}


@cache
def _languages_of() -> dict[str, tuple[str, ...]]:
    """In which languages a word is common."""
    found: dict[str, tuple[str, ...]] = {}
    for code, words in _stopwords().items():
        for word in words:
            found[word] = (*found.get(word, ()), code)
    return found


def looks_english(words: tuple[str, ...]) -> bool:
    """Whether enough common English words are there to leave the other languages' phrases aside.

    >>> looks_english(("i", "want", "to", "go")), looks_english(("quiero", "morirme"))
    (True, False)
    """
    plain = [word for word in words if word.isalpha()]
    return bool(plain) and sum(word in _stopwords()["en"] for word in plain) * 3 >= len(plain)


def language_of(words: tuple[str, ...]) -> str:
    """ISO 639-1 code of the main language of normalised words; `en` where nothing speaks against it, `und` if unclear.

    >>> language_of(("ich", "kann", "nicht", "mehr"))
    'de'
    """
    scripts: dict[str, int] = {}
    letters = 0
    for word in words:
        first = word[0]
        if not first.isalpha():
            continue
        letters += len(word)
        if not first.isascii():
            script = unicodedata.name(first, "").split(" ")[0].split("-")[0]
            if script != "LATIN":
                scripts[script] = scripts.get(script, 0) + len(word)
    if scripts:
        code = _SCRIPTS.get(
            "HIRAGANA" if {"HIRAGANA", "KATAKANA"} & scripts.keys() else max(scripts, key=lambda s: scripts[s]), "und"
        )
        if sum(scripts.values()) * 2 >= letters:
            return code
    plain = [word for word in words if word.isalpha()]
    if len(plain) < 2:
        return "en"
    counts = dict.fromkeys(_stopwords(), 0)
    for word in plain:
        for code in _languages_of().get(word, ()):
            counts[code] += 1
    english = counts.pop("en")
    best = max(counts, key=lambda code: counts[code])
    if counts[best] > english and counts[best] >= 2:
        return best
    if english == 0 and len(plain) >= 6:
        return "und"
    return "en"
