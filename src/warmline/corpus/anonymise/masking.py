"""Findings to masked text: overlaps resolved, the same thing the same placeholder, nothing masked twice."""

from __future__ import annotations

import functools
import hashlib
import hmac
import importlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from warmline.corpus import language
from warmline.corpus.anonymise import addresses, names, organisations, patterns, signs
from warmline.corpus.anonymise.patterns import KINDS, Kind, Policy, Span
from warmline.corpus.anonymise.words import COUNTRIES, NATIONS, load, plain
from warmline.errors import DataError, ModelError
from warmline.messages import Conversation, Message

_PLACEHOLDER = re.compile(r"\[(?:" + "|".join(KINDS) + r")_\d+\]")
_RANKED: tuple[Kind, ...] = (
    *("EMAIL", "IBAN", "CARD", "ADDRESS", "URL", "IP", "ID", "PHONE", "DATE", "HANDLE", "AGE", "SCHOOL", "ORG"),
    *("PERSON", "PLACE"),
)
_ORDER: dict[Kind, int] = {kind: rank for rank, kind in enumerate(_RANKED)}
_TITLE = re.compile(r"\b(?:dr|mr|mrs|ms|miss|mx|prof|professor|doctor|rev)\.?\s+$", re.I)
_AFTER = re.compile(r",?\s+(?:Jr\.?|Sr\.?|III|MD|M\.D\.|PhD|Ph\.D\.?|DDS|DVM|LCSW|LMFT|LPC|PsyD)\b\.?")
_STATE_AFTER = re.compile(rf",\s*(?:{addresses._STATES})\b|,?\s+(?:{addresses._STATE_NAMES})\b", re.I)


@dataclass(frozen=True, slots=True)
class Found:
    """A span with what stands in its place."""

    start: int
    end: int
    kind: Kind
    replacement: str


@dataclass(frozen=True, slots=True)
class Masked:
    """The text without what identifies, and where that was in the text as given."""

    text: str
    spans: tuple[Found, ...]

    def to_json(self) -> dict[str, Any]:
        spans = [{"start": s.start, "end": s.end, "type": s.kind, "replacement": s.replacement} for s in self.spans]
        return {"text": self.text, "spans": spans}


class Recogniser(Protocol):
    """Finds what identifies people. Ours is `find`; another may give a second opinion behind the same interface."""

    def __call__(self, text: str, policy: Policy = "standard") -> list[Span]: ...


@dataclass(slots=True)
class Memory:
    """What has been found in a conversation so far, so that a name keeps its placeholder from turn to turn."""

    numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    highest: dict[str, int] = field(default_factory=dict)
    names: dict[str, Kind] = field(default_factory=dict)
    """Words that were (part of) a name, to be found again where their surroundings say less."""

    def number(self, kind: Kind, value: str) -> int:
        keys = [(kind, key) for key in _keys(kind, value)]
        number = next((self.numbers[key] for key in keys if key in self.numbers), None)
        if number is None:
            number = self.highest.get(kind, 0) + 1
            self.highest[kind] = number
        for key in keys:
            self.numbers.setdefault(key, number)
        return number

    def note_placeholders(self, text: str) -> None:
        """Numbers already used in the text are not given out again."""
        for kind, number in re.findall(r"\[([A-Z]+)_(\d+)\]", text):
            self.highest[kind] = max(self.highest.get(kind, 0), int(number))


def _keys(kind: Kind, value: str) -> list[str]:
    """Under which forms a value is remembered: a person also by each of the names."""
    folded = " ".join(re.findall(r"[^\W_]+", plain(value)))
    folded = re.sub(r"^(?:dr|mr|mrs|ms|miss|mx|prof|professor|doctor|rev)\s+", "", folded)
    if kind == "PERSON":
        return [folded, *(part for part in folded.split() if len(part) > 1)]
    if kind in ("PHONE", "CARD", "IBAN", "ID"):
        return [re.sub(r"\W", "", value).lower()]
    return [folded]


def find(text: str, policy: Policy = "standard", memory: Memory | None = None) -> list[Span]:
    """What identifies people in a text, without overlaps, in order."""
    sign = signs.of(text)
    spans = patterns.find(text, policy, sign) + addresses.find(text, sign)
    found = names.tokens(text)
    if _english(text, found):
        spans += organisations.find(text, found, sign)
        tags = names.tag(found)
    else:
        tags = _listed(found)
    kinds: dict[str, Kind] = {"PERSON": "PERSON", "PLACE": "PLACE", "ORG": "ORG"}
    for first, last, tag in names.runs_of(found, tags):
        start, end = found[first].start, found[last].core_end
        kind = kinds[tag]
        if first and found[first - 1].word in _BEFORE_PLACE and found[first].shape in found[first - 1].shape + "CM":
            # "east dylan", "Lake Bobby": in lower case only where a place is meant.
            led = found[first - 2].word in names.CLASSES["in"] if first > 1 else False
            if (found[first - 1].shape == "C" and not found[first - 1].opens) or led:
                start, kind = found[first - 1].start, "PLACE"
        if text[start:end].lower() in organisations.PUBLIC:
            continue
        if kind == "PLACE" and (after := _STATE_AFTER.match(text, end)):
            end = after.end()
        spans.append(Span(start, end, kind))
    if memory is not None and memory.names:
        spans += _again(text, memory)
    taken = [m.span() for m in _PLACEHOLDER.finditer(text)] if "[" in text else []
    spans = [s for s in spans if not any(s.start < end and start < s.end for start, end in taken)]
    return _resolve(text, [_trimmed(text, s) for s in spans])


def _again(text: str, memory: Memory) -> list[Span]:
    """Words that were a name elsewhere in the conversation."""
    low = text.lower()
    if low.isascii() and not any(name in low for name in memory.names):
        return []
    return [
        Span(word.start(), word.end(), memory.names[low])
        for word in _NAME_WORD.finditer(text)
        if (low := plain(word[0])) in memory.names
    ]


_NAME_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")


_BEFORE_PLACE = frozenset(
    "east west north south new port lake upper lower little great fort mount mt saint st "
    "san santa los las el la old".split()
)


def _english(text: str, found: Sequence[names.Token]) -> bool:
    """Whether the word lists apply. Few everyday words make it worth asking which language it is."""
    words = [t for t in found if t.shape in "lCUM"]
    if len(words) < 8 or sum("e" in t.lists for t in words) > 0.35 * len(words):
        return True
    return language.of(text) in ("en", "")


_KIN_ELSEWHERE = frozenset(
    "schwester bruder mutter vater mann frau freund freundin tochter sohn oma opa "
    "hermana hermano madre padre marido esposa novio novia "
    "hija hijo abuela soeur sœur frere frère mere mère pere père mari femme copain "
    "copine fille fils amie ami sorella fratello moglie "
    "marito figlia figlio irmã irmão mãe pai namorado namorada zus broer moeder vader "
    "vriend vriendin dochter zoon heiße heisse llamo "
    "appelle chiamo chamo heet".split()
)


def _listed(found: Sequence[names.Token]) -> list[str]:
    """Tags by the lists alone, for languages whose everyday words the lists don't know."""
    tags = ["O"] * len(found)
    for index, token in enumerate(found):
        if token.shape not in "CU" or len(token.word) < 3 or token.word in NATIONS or token.word in COUNTRIES:
            continue
        before = found[index - 1].word if index else ""
        if (
            before in _KIN_ELSEWHERE
            or ((tags[index - 1] == "PERSON" if index else False) and "l" in token.lists)
            or (not token.opens and "f" in token.lists and "c" not in token.lists and "k" not in token.lists)
        ):
            tags[index] = "PERSON"
        elif not token.opens and "y" in token.lists and "c" not in token.lists:
            tags[index] = "PLACE"
    return tags


def _trimmed(text: str, span: Span) -> Span:
    """A person with title and degree; nothing with loose marks at its ends."""
    start, end = span.start, span.end
    if span.kind == "PERSON":
        if before := _TITLE.search(text, max(0, start - 12), start):
            start = before.start()
        if after := _AFTER.match(text, end):
            end = after.end()
    while end > start and text[end - 1] in " ,;:\n\t":
        end -= 1
    while start < end and text[start] in " ,;:\n\t":
        start += 1
    return Span(start, end, span.kind)


def _resolve(text: str, spans: list[Span]) -> list[Span]:
    """No overlaps: sure kinds before unsure ones, longer before shorter."""

    def rank(span: Span) -> tuple[int, int]:
        # An address swallows names and codes in it; among names the longer wins.
        group = (
            0
            if span.kind in ("EMAIL", "IBAN", "CARD", "ADDRESS", "URL")
            else 1
            if _ORDER[span.kind] < _ORDER["SCHOOL"]
            else 2
        )
        return group, -(span.end - span.start)

    kept: list[Span] = []
    for span in sorted((s for s in spans if s.end > s.start), key=lambda s: (*rank(s), _ORDER[s.kind], s.start)):
        if not any(span.start < other.end and other.start < span.end for other in kept):
            kept.append(span)
    kept.sort(key=lambda s: s.start)
    return kept


def mask(
    text: str,
    *,
    policy: Policy = "standard",
    surrogates: str = "",
    memory: Memory | None = None,
    recogniser: Recogniser | None = None,
) -> Masked:
    """Replace what identifies people by placeholders, or names by stand-ins when a key is given for them."""
    memory = memory if memory is not None else Memory()
    spans = find(text, policy, memory) if recogniser is None else _resolve(text, recogniser(text, policy))
    return _replaced(text, spans, memory, surrogates)


def _replaced(text: str, spans: Sequence[Span], memory: Memory, surrogates: str) -> Masked:
    if "[" in text:
        memory.note_placeholders(text)
    pieces: list[str] = []
    out: list[Found] = []
    last = 0
    for span in spans:
        value = text[span.start : span.end]
        if surrogates and not _POOLED_WORDS.isdisjoint(value.split()):
            continue
        new = _stand_in(surrogates, span.kind, value) if surrogates else None
        if new is None:
            new = f"[{span.kind}_{memory.number(span.kind, value)}]"
        _remember(memory, span.kind, value)
        pieces += [text[last : span.start], new]
        out.append(Found(span.start, span.end, span.kind, new))
        last = span.end
    return Masked("".join([*pieces, text[last:]]), tuple(out))


def _remember(memory: Memory, kind: Kind, value: str) -> None:
    """Keep the parts of a name that are no everyday words."""
    if kind not in ("PERSON", "PLACE"):
        return
    for word in re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", value):
        low = plain(word)
        if len(low) >= 3 and low not in load("everyday") and low not in load("common") and low not in names._NEVER:
            memory.names.setdefault(low, kind)


@functools.lru_cache(maxsize=4_096)
def _alone(text: str, policy: Policy) -> tuple[Span, ...]:
    """What `find` finds; kept, as many corpora hold a question once with every answer."""
    return tuple(find(text, policy))


def mask_conversation(
    conversation: Conversation, counts: Any = None, *, policy: Policy = "standard", surrogates: str = ""
) -> Conversation:
    """All messages with one memory. Names are looked for twice, so that one found late is masked early too."""
    memory = Memory()
    spoken = [m for m in conversation.messages if m.role != "system"]
    seen = [list(_alone(m.content, policy)) for m in spoken]
    for message, spans in zip(spoken, seen, strict=True):
        for span in spans:
            _remember(memory, span.kind, message.content[span.start : span.end])
    if not any(seen):
        return conversation
    messages: list[Message] = []
    found_spans = iter(seen)
    for message in conversation.messages:
        if message.role == "system":
            messages.append(message)
            continue
        text = message.content
        spans = next(found_spans)
        if again := _again(text, memory):
            free = [
                s
                for s in again
                if not any(s.start < m.end() and m.start() < s.end for m in _PLACEHOLDER.finditer(text))
            ]
            spans = _resolve(text, spans + free)
        masked = _replaced(text, spans, memory, surrogates)
        if counts is not None:
            counts.update(s.kind for s in masked.spans)
        messages.append(Message(message.role, masked.text))
    return conversation.with_messages(tuple(messages))


class Warmline:
    """Our recogniser as an object, for tables that compare several."""

    name = "warmline"

    def __call__(self, text: str, policy: Policy = "standard") -> list[Span]:
        return find(text, policy)


_PRESIDIO: dict[str, Kind] = {
    "PERSON": "PERSON",
    "LOCATION": "PLACE",
    "GPE": "PLACE",
    "ORGANIZATION": "ORG",
    "DATE_TIME": "DATE",
    "PHONE_NUMBER": "PHONE",
    "EMAIL_ADDRESS": "EMAIL",
    "URL": "URL",
    "IBAN_CODE": "IBAN",
    "CREDIT_CARD": "CARD",
    "IP_ADDRESS": "IP",
}


def presidio(policy_language: str = "en") -> Recogniser:
    """Microsoft Presidio behind the same interface, as a second opinion. It is not a dependency of Warmline.

    Raises:
        ModelError: the package or its language model is not installed.
    """
    try:
        engine = importlib.import_module("presidio_analyzer").AnalyzerEngine()
    except Exception as error:
        raise ModelError(
            f"Presidio cannot be used: {type(error).__name__}",
            code="dependency-missing",
            hint="pip install presidio-analyzer and a spaCy model, or go on without it",
        ) from None

    def recognise(text: str, policy: Policy = "standard") -> list[Span]:
        return [
            Span(result.start, result.end, _PRESIDIO.get(result.entity_type, "ID"))
            for result in engine.analyze(text=text, language=policy_language)
        ]

    return recognise


# --- stand-in names -------------------------------------------------------------------------------------------------

# Made up, so that a stand-in is never somebody's real name and a second run knows it for what it is.
_A = (
    "Avel Bren Cald Dorv Elst Farn Gwin Hald Ism Jorv Kest Lorm Marv Nesk Orl Pelt Quor "
    "Resk Selv Torv Ulm Vask Wend Yorl Zemp"
).split()
_B = "a e i o in an el is or ia".split()
_POOLS: dict[str, list[str]] = {
    "PERSON": [a + b for a in _A for b in _B],
    "PLACE": [a + b for a in _A for b in ("mere", "stow", "wick", "holm")],
    "ORG": [f"{a}{b} Works" for a in _A for b in ("ex", "on")],
    "SCHOOL": [f"{a}{b} School" for a in _A for b in ("ley", "by")],
}
_POOLED_WORDS = frozenset(name.split()[0] for pool in _POOLS.values() for name in pool)


def _stand_in(key: str, kind: Kind, value: str) -> str | None:
    pool = _POOLS.get(kind)
    if pool is None:
        return None
    # The same name in any case and with or without its title gets the same stand-in under the same key.
    digest = hmac.new(key.encode(), f"{kind}:{_keys(kind, value)[0]}".encode(), hashlib.sha256).digest()
    return pool[int.from_bytes(digest[:8], "big") % len(pool)]


# --- files ----------------------------------------------------------------------------------------------------------


def file_lines(
    file: Path,
    format: Literal["text", "jsonl"],
    *,
    surrogates: str = "",
    policy: Policy = "standard",
    whole: bool = False,
) -> Iterator[dict[str, Any]]:
    """One masked object for every line of a text file, or every row of a JSONL file with `text` or `messages`.

    Raises:
        DataError: the file does not exist, is not UTF-8, or a row is not usable; named by line, never by its text.
    """
    try:
        stream = sys.stdin if str(file) == "-" else open(file, encoding="utf-8", newline="\n")  # noqa: SIM115
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {(error.strerror or 'refused').lower()}",
            code="data-missing",
            hint="name a file, or - for standard input",
        ) from None
    with stream:
        number = 0
        try:
            if whole:
                yield mask(stream.read(), policy=policy, surrogates=surrogates).to_json()
                return
            for number, line in enumerate(stream, 1):
                text = line.rstrip("\r\n")
                if not text.strip():
                    continue
                yield (
                    mask(text, policy=policy, surrogates=surrogates).to_json()
                    if format == "text"
                    else _row(text, file, number, surrogates, policy)
                )
        except UnicodeDecodeError:
            raise DataError(
                f"line {number + 1} of {file.name} is not UTF-8", code="data-row", where=f"{file}:{number + 1}"
            ) from None


def _row(line: str, file: Path, number: int, surrogates: str, policy: Policy) -> dict[str, Any]:
    def unusable(why: str) -> DataError:
        return DataError(f"line {number} of {file.name} {why}", code="data-row", where=f"{file}:{number}")

    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise unusable("is not JSON") from None
    if isinstance(row, str):
        return mask(row, policy=policy, surrogates=surrogates).to_json()
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        masked = mask(row["text"], policy=policy, surrogates=surrogates).to_json()
        return {**({"id": row["id"]} if "id" in row else {}), **masked}
    if isinstance(row, dict) and isinstance(row.get("messages"), list):
        memory = Memory()
        messages = []
        for turn in cast(list[Any], row["messages"]):
            if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
                raise unusable("has a message without content")
            masked = mask(turn["content"], policy=policy, surrogates=surrogates, memory=memory).to_json()
            messages.append({"role": turn.get("role"), "content": masked["text"], "spans": masked["spans"]})
        return {**({"id": row["id"]} if "id" in row else {}), "messages": messages}
    raise unusable("has neither `text` nor `messages`")
