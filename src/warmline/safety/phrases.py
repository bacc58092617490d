"""A small language for phrases that a clinician can read, matched in linear time. Knows nothing of what they mean.

    want to (die|be dead)      words in order; round brackets hold alternatives
    suicid*                    any word that begins so
    really?                    may be there or not; also (…)?
    ...                        up to three words in between; ...6 up to six; never past the end of a sentence
    <want>                     a class of words or phrases from the same table
    ^  $                       the sentence begins or ends here

A phrase becomes a regular expression in which every repetition is bounded and every word ends in a space, so that
no text can make it run away. Before it is tried at all, each of its obligatory parts must occur in the text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate

from warmline.errors import SafetyError
from warmline.safety.normalise import normalise

_TOKEN = re.compile(r"[^\s.,!?;:\"()…\[\]{}<>|“”。，！？、।]+|[.!?…;。！？।\n]|[,:\"，、]")
_END = frozenset(".!?…;。！？।\n")
_PIECE = re.compile(r"\(|\)\??|\||<[a-z_0-9]+>\??|\.\.\.\d*|[^\s()|<>]+")
_GAP = r"(?:[^ .!?;\n]{1,60} ){0,%d}?"
_PLAIN_GAP = (
    r"(?:(?!(?:not|never|no|isnt|arent|dont|doesnt|cant|cannot|wont|wasnt|nor|neither|without) )"
    r"[^ .!?;\n]{1,60} ){0,%d}?"
)


@dataclass(frozen=True, slots=True)
class Words:
    """A text as a line of words, each followed by one space; sentence ends are words of their own.

    `line` begins with a space. `starts[i]` is where word i begins in `line`, `spans[i]` where it stood in the text.
    """

    line: str
    words: tuple[str, ...]
    starts: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    sentences: tuple[int, ...]
    """Where each sentence begins."""

    def index(self, place: int) -> int:
        """The number of the word at this place of `line`."""
        return bisect_right(self.starts, place) - 1

    def sentence(self, word: int) -> tuple[int, int]:
        """First word of the sentence around a word, and the one after its last (its full stop, or the end)."""
        place = bisect_right(self.sentences, word) - 1
        start = self.sentences[place]
        end = self.sentences[place + 1] if place + 1 < len(self.sentences) else len(self.words)
        return start, end - 1 if end > start and self.words[end - 1] in ".!?" else end


def words_of(text: str) -> Words:
    """Take a normalised text apart into words and sentence ends."""
    words: list[str] = []
    spans: list[tuple[int, int]] = []
    before = ""
    for match in _TOKEN.finditer(text):
        word = match.group()
        if word in _END:
            word = "." if word not in "!?" else word
            if before and before in ".!?" and word in ".!":
                continue
        words.append(word)
        spans.append(match.span())
        before = word
    starts = accumulate((len(word) + 1 for word in words[:-1]), initial=1) if words else ()
    sentences = [0, *(n + 1 for n, word in enumerate(words[:-1]) if word in ".!?")]
    line = " " + "".join([f"{word} " for word in words])
    return Words(line, tuple(words), tuple(starts), tuple(spans), tuple(sentences))


@dataclass(frozen=True, slots=True)
class Phrase:
    """One compiled phrase. `needs` are sets of words of which the text must hold one each; a stem ends in `*`."""

    pattern: re.Pattern[str]
    needs: tuple[frozenset[str], ...]
    key: str


@dataclass(slots=True)
class _Part:
    """A regular expression and the sets of words it cannot match without."""

    regex: str
    needs: list[frozenset[str]] = field(default_factory=list)


def rarest(needs: Sequence[frozenset[str]]) -> frozenset[str] | None:
    """The set whose words are the least likely to be met: few of them, and long ones, which are rarer."""
    return min(needs, key=lambda need: sum(2.0 ** -len(word) for word in need)) if needs else None


class Grammar:
    """Compiles phrases with the classes of one table."""

    def __init__(self, classes: Mapping[str, Sequence[str]], where: str = "table", *, denials: bool = True) -> None:
        """`denials=False`: what lies between the words of a phrase may not turn it round ("it is not your fault")."""
        self._gap = _GAP if denials else _PLAIN_GAP
        self._classes = classes
        self._done: dict[str, _Part] = {}
        self._open: list[str] = []
        self._where = where

    def compile(self, phrase: str, key: str = "") -> Phrase:
        """
        Raises:
            SafetyError: brackets do not match, or a class is not in the table.
        """
        pieces = _PIECE.findall(phrase)
        part, rest = self._sequence(pieces, 0, phrase)
        if rest != len(pieces) or not part.needs:
            raise self._fault(
                phrase, "has brackets that do not match" if rest != len(pieces) else "has no word of its own"
            )
        return Phrase(re.compile(f"(?<= ){part.regex}"), tuple(part.needs), key)

    def _fault(self, phrase: str, why: str) -> SafetyError:
        return SafetyError(f"the phrase `{phrase}` {why}", code="safety-data", where=self._where)

    def _class(self, name: str, phrase: str) -> _Part:
        if name not in self._done:
            if name not in self._classes or name in self._open:
                raise self._fault(phrase, f"names a class `{name}` that the table does not hold")
            self._open.append(name)
            self._done[name] = self._either([self._whole(str(item)) for item in self._classes[name]])
            self._open.pop()
        return self._done[name]

    def _whole(self, phrase: str) -> _Part:
        pieces = _PIECE.findall(phrase)
        part, rest = self._sequence(pieces, 0, phrase)
        if rest != len(pieces):
            raise self._fault(phrase, "has brackets that do not match")
        return part

    def _either(self, parts: list[_Part]) -> _Part:
        needs = [rarest(part.needs) for part in parts]
        # longest first: the matcher takes the first alternative that fits
        regex = "|".join(dict.fromkeys(sorted((part.regex for part in parts), key=len, reverse=True)))
        known = [need for need in needs if need is not None]
        return _Part(f"(?:{regex})", [frozenset().union(*known)] if len(known) == len(needs) else [])

    def _sequence(self, pieces: list[str], at: int, phrase: str) -> tuple[_Part, int]:
        options: list[_Part] = []
        regex, needs = "", list[frozenset[str]]()
        while at < len(pieces) and not pieces[at].startswith(")"):
            piece = pieces[at]
            at += 1
            if piece == "|":
                options.append(_Part(regex, needs))
                regex, needs = "", []
                continue
            if piece == "(":
                part, at = self._sequence(pieces, at, phrase)
                if at >= len(pieces):
                    raise self._fault(phrase, "has brackets that do not match")
                optional = pieces[at].endswith("?")
                at += 1
            elif piece.startswith("..."):
                regex += self._gap % int(piece[3:] or 3)
                continue
            elif piece in "^$":
                regex += r"(?:(?<=[.!?;] )|(?<=^ )|(?<=[.!?;] , ))" if piece == "^" else r"(?=[.!?;]|$)"
                continue
            elif piece.startswith("<"):
                optional = piece.endswith("?")
                part = self._class(piece.strip("<>?"), phrase)
            else:
                optional = piece.endswith("?") and len(piece) > 1
                part = self._literal(piece.removesuffix("?") if optional else piece)
            regex += f"(?:{part.regex})?" if optional else part.regex
            needs += [] if optional else part.needs
        options.append(_Part(regex, needs))
        return (options[0] if len(options) == 1 else self._either(options)), at

    @staticmethod
    def _literal(word: str) -> _Part:
        if word in (",", ".", "?", '"'):
            return _Part(f"{re.escape(word)} ", [frozenset([word])])
        stem = word.endswith("*")
        # a stem is no word: put right as one, it might become another
        plain = word.removesuffix("*").lower().replace("'", "") if stem else normalise(word).text.strip()
        spoken = plain.split()
        comma = "(?:, )?"
        if stem:
            return _Part(re.escape(" ".join(spoken)) + r"[^ ]{0,30} " + comma, [frozenset([spoken[-1] + "*"])])
        return _Part("".join(re.escape(part) + " " for part in spoken) + comma, [frozenset([part]) for part in spoken])


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a phrase was found: words `first` up to, not including, `last`."""

    key: str
    first: int
    last: int


class PhraseBook:
    """Many phrases, searched at once: only those are tried of which every obligatory part occurs.

    Each set of words that a phrase needs has a bit; what a word is good for, and what a phrase needs, are numbers.
    """

    def __init__(self, phrases: Iterable[Phrase]) -> None:
        bits: dict[frozenset[str], int] = {}
        self._index: dict[str, list[tuple[int, Phrase]]] = {}
        for phrase in phrases:
            needed = 0
            for need in phrase.needs:
                needed |= bits.setdefault(need, 1 << len(bits))
            for word in rarest(phrase.needs) or ():
                self._index.setdefault(word, []).append((needed, phrase))
        self._fills: dict[str, int] = {}
        for need, bit in bits.items():
            for word in need:
                self._fills[word] = self._fills.get(word, 0) | bit
        self._lengths = tuple(sorted({len(word) - 1 for word in self._fills if word.endswith("*")}))
        self._met = lru_cache(maxsize=16384)(self._meet)

    def _meet(self, word: str) -> tuple[int, tuple[tuple[int, Phrase], ...]]:
        """What a word of a text is good for, as itself and by its beginnings, and the phrases to be tried for it."""
        names = (word, *(word[:n] + "*" for n in self._lengths if len(word) >= n))
        filled = 0
        for name in names:
            filled |= self._fills.get(name, 0)
        return filled, tuple(pair for name in names for pair in self._index.get(name, ()))

    def search(self, words: Words) -> Iterator[Hit]:
        """Every place where a phrase stands, sentence by sentence. A phrase stands within one sentence."""
        for place, start in enumerate(words.sentences if words.words else ()):
            last = place + 1 == len(words.sentences)
            end = len(words.words) if last else words.sentences[place + 1]
            met = [self._met(word) for word in dict.fromkeys(words.words[start:end])]
            present = 0
            for filled, _ in met:
                present |= filled
            # a dict and no set: the order of what is found is that of the text
            fitting = {id(phrase): phrase for _, pairs in met for need, phrase in pairs if need & present == need}
            begin, stop = words.starts[start], len(words.line) if last else words.starts[end]
            for phrase in fitting.values():
                for match in phrase.pattern.finditer(words.line, begin, stop):
                    if match.end() > match.start():
                        yield Hit(phrase.key, words.index(match.start()), words.index(match.end() - 1) + 1)
