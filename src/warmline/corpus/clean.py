"""Mend what is broken in a conversation, or say why it can't be used. Knows nothing of files; text in, text out.

Every mended thing is counted under its name, every refusal has a reason code: `empty`, `one-sided`, `too-short`,
`too-long`, `language`.
"""

from __future__ import annotations

import functools
import html
import re
from collections import Counter
from dataclasses import dataclass, field

from ftfy import TextFixerConfig, fix_text

from warmline.corpus import language
from warmline.messages import Conversation, Message

LONGEST = 200_000
"""Characters of the longest message that is still taken for one."""

_FTFY = TextFixerConfig(
    unescape_html=False,
    uncurl_quotes=False,
    fix_line_breaks=True,
    fix_latin_ligatures=True,
    normalization="NFC",
    explain=False,
)
_MOJIBAKE = re.compile("[ÂÃâ€ð][\u0080-\u00bf\u0152-\u0178\u0192\u02c6-\u02dc\u2013-\u2122]|\ufffd")
_TAG = re.compile(
    r"</?(p|br|div|span|a|b|i|u|em|strong|ul|ol|li|h[1-6]|blockquote|font|table|tr|td|img|hr)\b[^<>]*>", re.I
)
_BREAK = re.compile(r"<(?:br\s*/?|/p|/div|/h[1-6]|/tr|/blockquote|/ul|/ol|hr\s*/?)\s*>", re.I)
_ITEM = re.compile(r"<li\b[^<>]*>", re.I)
_ENTITY = re.compile(
    r"&(?:#\d{2,6}|#x[0-9a-fA-F]{2,5}|amp|lt|gt|quot|apos|nbsp|rsquo|lsquo|ldquo|rdquo|ndash|mdash|hellip);"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u00ad]")
_SPACE = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000\u2028\u2029]")
_MARKUP_TOKEN = re.compile(
    r"<\|[a-z_]{2,30}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>"
)
# "themselves.Seriously", "better?It": a sentence end, at once a new word. Not in names of sites or after initials.
_GLUED = re.compile(r"(?<=[a-z)][.!?])(?=[A-Z][a-z’']|I\b)|(?<=[a-z]{2}[,;])(?=[a-z]{3})")
_SITE = re.compile(r"\S*(?:://|www\.|@|\.(?:com|org|net|edu|gov|io|co)\b)\S*")

_LETTER_END = (
    r"(?i:(?:best|kind|warm|warmest|kindest)\s*(?:wishes|regards)|sincerely|(?:yours\s+)?(?:truly|faithfully)|regards|"
    r"in (?:good )?health|blessings|namaste|be well|take (?:good )?care|warmly|all the best|cheers|good luck)"
)
_CREDENTIAL = (
    r"(?i:ph\.?\s?d|psy\.?\s?d|ed\.?\s?d|m\.?d|lcsw|lmft|lmhc|lpcc?|lcpc|lpc-?s|mft|msw|lmsw|licsw|ncc|dbh|ma|ms|m\.?s\.?w|"
    r"r\.?n|cadc|cht|ccmhc|phr|imft|lcmhc|lisw|lpcmh|mbacp|rcc)"
)
# The tail of a reply: "Best wishes,\nJane Roe, LMFT". A name may follow a greeting or carry letters behind it.
_SIGNATURE = re.compile(
    rf"(?:\n|(?<=[.!?…])\s)\s*(?:(?:{_LETTER_END})\s*[,!.\-–—]*\s*(?:\n\s*|\s)"
    rf"(?:-\s*)?(?:(?:Dr\.?|Mr\.?|Ms\.?|Mrs\.?)\s*)?[A-Z][\w.’'\-]*(?:\s+[A-Z][\w.’'\-]*){{0,3}}\s*(?:,\s*{_CREDENTIAL}\b[^\n]{{0,60}})?\.?"
    rf"|(?:-|–|—|~)\s*(?:Dr\.?\s*)?[A-Z][\w.’'\-]+(?:\s+[A-Z][\w.’'\-]*){{0,3}}(?:,\s*{_CREDENTIAL}\b[^\n]{{0,60}})?"
    rf"|(?:Dr\.?\s*)?[A-Z][\w.’'\-]+(?:\s+[A-Z][\w.’'\-]*){{1,3}},?\s*{_CREDENTIAL}\b[^\n]{{0,60}}"
    rf"|(?:{_LETTER_END})\s*[,!.]*)\s*$",
)
_SIGNATURE_LOWER = re.compile(rf"\n\s*(?:{_LETTER_END})\s*[,!.]*\s*(?:\n\s*[^\n.!?]{{1,50}}){{0,3}}\s*$", re.I)
_ADVERT = re.compile(
    r"(?:\b(?:i|we|my|our|call|contact)\b[^.!?\n]{0,60}(?:free|complimentary|15|20|30)[\w\s-]{0,20}\bconsult(?:ation)?s?\b)"
    r"|(?:(?:visit|check out|see|follow|like)\s+(?:my|our)\s+(?:web\s?site|blog|page|channel|facebook|instagram|book))"
    r"|(?:(?:call|email|e-mail|contact|text|reach|message)\s+(?:me|us|my office|our office)\b"
    r"(?=[^.!?\n]{0,60}(?:\d{3}|@|www|http|\bat\b|schedule|appointment|book|session)))"
    r"|(?:(?:schedule|book)\s+(?:an?|your)\s+(?:appointment|session|consultation)\s+"
    r"(?:with\s+(?:me|us)|at\s+(?:my|our)|today|online|here))"
    r"|(?:my (?:private )?practice (?:is|in|offers)\b)"
    r"|(?:i (?:offer|provide) (?:online|skype|phone|telephone|video|distance|tele\w+)\b)"
    r"|(?:(?:my|our) (?:web\s?site|e-?book|podcast|youtube channel) (?:is|at|has)\b)|(?:sign up for (?:my|our))",
    re.I,
)
_SENTENCE = re.compile(r"(?:[^.!?\n]|[.!?](?=\w))*(?:[.!?]+(?!\w)[”\"')\]]*|\n+|$)")
_SCAFFOLD = re.compile(r"^\s*(?:<{1,3}\s*)?(?:human|assistant|user|bot|ai|response|answer)(?:\s*>{1,3})?\s*:\s+", re.I)


@dataclass(slots=True)
class Cleaned:
    """The mended conversation, or the reason it is refused; and what was mended, by name."""

    conversation: Conversation | None
    reason: str = ""
    repairs: Counter[str] = field(default_factory=Counter)


def mend(text: str, repairs: Counter[str], *, reply: bool = False) -> str:
    """One message's text, mended. `reply` also takes off signatures, adverts and a cut-off end.

    >>> mend("It&#39;s <b>hard</b>.Really\\xa0hard", Counter())
    "It's hard. Really hard"
    """

    def note(name: str, new: str) -> str:
        nonlocal text
        if new != text:
            repairs[name] += 1
            text = new
        return text

    if not text.isascii():
        if _MOJIBAKE.search(text):
            note("mojibake", fix_text(text, _FTFY))
        note("spaces", _SPACE.sub(" ", text))
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "<" in text:
        if _TAG.search(text):
            note("html", _TAG.sub("", _ITEM.sub("\n- ", _BREAK.sub("\n", text))))
        note("control-tokens", _MARKUP_TOKEN.sub(" ", text))
    elif "[" in text:
        note("control-tokens", _MARKUP_TOKEN.sub(" ", text))
    if "&" in text and _ENTITY.search(text):
        note("entities", _SPACE.sub(" ", html.unescape(text)))
    note("control", _CONTROL.sub("", text))
    if "\\n" in text or "/n" in text:
        note("literal-breaks", re.sub(r"\\r?\\n|\\n|(?<=[.!?\s])/n(?=\s|[A-Z<]|$)", "\n", text))
    if _GLUED.search(text):
        note("glued-sentences", _unglue(text))
    note("spacing", _spacing(text))
    note("speaker-mark", _SCAFFOLD.sub("", text))
    if reply:
        note("signature", _SIGNATURE_LOWER.sub("", _SIGNATURE.sub("", text)).rstrip())
        if _ADVERT.search(text):
            note("advert", _without_adverts(text))
        note("cut-end", _whole_sentences(text))
    return text


@functools.lru_cache(maxsize=4_096)
def _mended(text: str, reply: bool) -> tuple[str, tuple[str, ...]]:
    """What `mend` makes of a text, with the repairs; kept, as many corpora hold a question once with every answer."""
    repairs: Counter[str] = Counter()
    return mend(text, repairs, reply=reply), tuple(repairs.elements())


def _spacing(text: str) -> str:
    if "  " in text or "\t" in text:
        text = re.sub(r"[ \t]{2,}|\t", " ", text)
    if "\n" in text:
        text = re.sub(r" ?\n ?", "\n", text)
        text = re.sub(r"\n{3,}", "\n\n", text)
    if " ," in text or " ." in text or " ?" in text or " !" in text:
        text = re.sub(r"(?<=\w) ([,.?!])(?=\s|$)", r"\1", text)
    return text.strip()


def _unglue(text: str) -> str:
    """Put the missing space after a sentence, but not inside addresses of sites."""
    sites = [m.span() for m in _SITE.finditer(text)]
    pieces, last = [], 0
    for gap in _GLUED.finditer(text):
        inside = next((s for s in sites if s[0] < gap.start() < s[1]), None)
        if inside and re.search(r"://|www\.|@", text[slice(*inside)]):
            continue
        pieces.append(text[last : gap.start()])
        last = gap.start()
    return " ".join([*pieces, text[last:]])


def _without_adverts(text: str) -> str:
    """Drop the sentences in which the answerer offers paid or private service; keep at least half of the reply."""
    sentences = _SENTENCE.findall(text)
    kept = "".join(s for s in sentences if not _ADVERT.search(s)).strip()
    return kept if len(kept) * 2 >= len(text) else text


def _whole_sentences(text: str) -> str:
    """Cut a long reply that breaks off in mid-sentence back to its last whole one."""
    if len(text) < 300 or not re.search(r"[\w,;(-]$", text):
        return text
    last_line = text.rpartition("\n")[2]
    # Lists and headings end without a stop by right.
    if "\n" in text and len(last_line) < 120:
        return text
    ends = [m.end() for m in re.finditer(r"[.!?][”\"')\]]*(?=\s)", text)]
    return text[: ends[-1]] if len(ends) >= 2 and ends[-1] * 10 >= len(text) * 7 else text


def _fold(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def clean(conversation: Conversation, *, wanted: str = "en") -> Cleaned:
    """Mend a conversation or refuse it.

    Afterwards user and assistant alternate, a user begins and an assistant ends, and no message is empty. A prose row
    (label `form: prose`) keeps its single message. `wanted` is a language code, or `any`.
    """
    repairs: Counter[str] = Counter()
    prose = conversation.labels.get("form") == "prose"
    messages: list[Message] = []
    if sum(len(m.content) for m in conversation.messages) > LONGEST:
        return Cleaned(None, "too-long", repairs)
    for message in conversation.messages:
        text, mended = _mended(message.content, message.role == "assistant" and not prose)
        repairs.update(mended)
        if text and (message.role == "system" or any(c.isalnum() for c in text)):
            messages.append(Message(message.role, text))
        elif not prose:
            repairs["empty-turn"] += 1
    if not [m for m in messages if m.role != "system"]:
        return Cleaned(None, "empty", repairs)
    if not prose:
        messages = _in_turns(messages, repairs)
        if not messages:
            return Cleaned(None, "one-sided", repairs)
    spoken = " ".join(m.content for m in messages if m.role != "system")
    if not prose and len(messages[-1].content) < 2:
        return Cleaned(None, "too-short", repairs)
    if wanted != "any" and language.of(spoken) not in (wanted, ""):
        return Cleaned(None, "language", repairs)
    return Cleaned(conversation.with_messages(tuple(messages)), "", repairs)


def _in_turns(messages: list[Message], repairs: Counter[str]) -> list[Message]:
    """Alternating turns: system first, then user, assistant, …; repeated and orphaned turns go."""
    system = [m for m in messages if m.role == "system"]
    turns: list[Message] = []
    for message in messages:
        if message.role == "system":
            continue
        if turns and turns[-1].role == message.role:
            before = turns[-1]
            if _fold(message.content) == _fold(before.content):
                repairs["repeated-turn"] += 1
            else:
                repairs["joined-turns"] += 1
                turns[-1] = Message(message.role, f"{before.content}\n{message.content}")
            continue
        if len(turns) >= 2 and turns[-2] == message:
            if message.role == "user":
                # The same question again: the reply that follows it takes the place of the earlier one.
                turns.pop()
                repairs["repeated-turn"] += 1
                continue
            repairs["repeated-turn"] += 1
            turns.pop()
            continue
        turns.append(message)
    if turns and turns[0].role == "assistant":
        turns.pop(0)
        repairs["leading-reply"] += 1
    if turns and turns[-1].role == "user":
        turns.pop()
        repairs["unanswered-end"] += 1
    if len(system) > 1:
        repairs["joined-turns"] += 1
        system = [Message("system", "\n".join(m.content for m in system))]
    return [*system, *turns] if turns else []
