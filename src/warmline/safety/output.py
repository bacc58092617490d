"""Hold the model's words back until a sentence is whole, look at it, and only then let it go. Knows no model.

A sentence that must not be said is cut, and with it everything that would have followed; a vetted line takes its place.
Not one of its characters is released.
"""

from __future__ import annotations

import re
from functools import cache

from warmline.safety.normalise import normalise
from warmline.safety.phrases import Grammar, Hit, PhraseBook, Words, words_of
from warmline.safety.resources import known_numbers, known_sites, nearest
from warmline.safety.tables import table

LONGEST_SENTENCE = 600
"""Without a sentence end after so many characters the text is looked at as it stands."""
LONGEST_REPLY = 6_000

_END = re.compile(r"""[.!?…。！？](?:["'”’)\]]*)(?=\s)|\n""")
_MARKUP = re.compile(
    r"<\|[^|>]{0,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:HUMAN|ASSISTANT|USER|SYSTEM|BOT)>"
    r"|<\|?(?:im_start|im_end|eot_id|endoftext)"
    r"|^\s*(?:#{1,4} ?)?(?:user|human|assistant|system|visitor|patient|client|therapist|counsell?or|V|R) ?:",
    re.IGNORECASE | re.MULTILINE,
)
_SITE = re.compile(
    r"(?:https?://|www\.)[^\s]{1,200}|\b[\w-]{1,63}(?:\.[\w-]{1,63}){0,4}\.(?:com|org|net|gov|edu|info|io|co|uk|de|fr|es|pt|ca|au|nz|ie|in|us|me|app|chat|health|help|care|be|nl|at|ch|se|no|dk|fi|br|jp|kr|sg|hk|za|mx|it|eu|int|xyz|online|site|biz|tv)\b(?:/[^\s]{0,200})?",
    re.IGNORECASE,
)
_MAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}\.\w{2,}")
_DIGITS = re.compile(r"\+?(?:\(\d{1,4}\)[ ]?)?\d{1,20}(?:[ .\-–/]{1,2}\d{1,20}){0,9}")
_CALLING = re.compile(
    r"\b(?:call|calling|ring|dial|text|texting|phone|hotline|helpline|lifeline|line|number"
    r"|reach (?:them|someone|out) at|sms|whatsapp|contact)\b",
    re.IGNORECASE,
)
_SPOKEN = dict(zip("zero oh one two three four five six seven eight nine".split(), "00123456789", strict=True))
_SPOKEN_NUMBER = re.compile(
    r"\b(?:(?:zero|oh|one|two|three|four|five|six|seven|eight|nine|hundred|double|triple)\b[\s,-]{1,3}){2,}(?:zero|oh|one|two|three|four|five|six|seven|eight|nine|hundred)\b",
    re.IGNORECASE,
)
_UNSAFE_WORDING = (
    (re.compile(r"\bcommitted suicide\b", re.IGNORECASE), "died by suicide"),
    (re.compile(r"\bcommits suicide\b", re.IGNORECASE), "dies by suicide"),
    (re.compile(r"\bcommit suicide\b", re.IGNORECASE), "die by suicide"),
    (re.compile(r"\bcommitting suicide\b", re.IGNORECASE), "dying by suicide"),
    (re.compile(r"\b(?:un)?(?:successful|failed) suicide attempt", re.IGNORECASE), "suicide attempt"),
)
"""Words that blame or praise, and what is said in their place."""


@cache
def _book() -> PhraseBook:
    rows = table("output.yaml")
    grammar = Grammar(rows["classes"], "output.yaml", denials=False)
    return PhraseBook(grammar.compile(str(p), rule["id"]) for rule in rows["rules"] for p in rule["say"])


_NEGATORS = frozenset(
    "not never no dont doesnt isnt arent cant cannot wont wasnt nor neither without nobody rather instead didnt "
    "couldnt shouldnt wouldnt havent hasnt aint".split()
)
_ASKING = frozenset(
    "are have do did were is was would could when if whether thoughts thinking planning feel feeling says".split()
)
_NEVER_EXCUSED = frozenset({"output.secrecy", "output.contract"})
"""Their phrases are denials themselves."""
_SAYABLE = frozenset({"output.human", "output.romance", "output.clinician", "output.self-hatred"})
"""What a person may be offered as words of their own, in quotation marks."""


def _excused(words: Words, hit: Hit) -> bool:
    """Denied ("it is not your fault"), asked ("are you thinking of ...?"), or offered in quotation marks."""
    start, end = words.sentence(hit.first)
    before = words.words[max(start, hit.first - 5) : hit.first]
    if hit.key in _SAYABLE and sum(word == '"' for word in words.words[: hit.first]) % 2 == 1:
        return True
    if hit.key in _NEVER_EXCUSED:
        # "don't promise to keep it secret" is good counsel; every other denial here is the fault itself
        promise = words.words[hit.first] in ("promise", "swear", "guarantee")
        return promise and before[-1:] in (("dont",), ("never",), ("not",))
    if _NEGATORS.intersection(before):
        return True
    asked = (
        end < len(words.words)
        and words.words[end] == "?"
        and bool(_ASKING.intersection(words.words[start : hit.first + 1]))
    )
    return asked and hit.key in ("output.encouragement", "output.method", "output.self-hatred", "output.diagnosis")


def fault(text: str, country: str | None = None) -> str | None:
    """The rule that this text of a model breaks, or None.

    >>> fault("You deserve to be heard."), fault("You have bipolar disorder.")
    (None, 'output.diagnosis')
    """
    if _MARKUP.search(text):
        return "output.markup"
    if _MAIL.search(text):
        return "output.address"
    for site in _SITE.finditer(text):
        host = re.sub(r"^(?:https?://)?(?:www\.)?", "", site.group().lower()).split("/")[0].rstrip(".,;:!?")
        if host not in known_sites():
            return "output.address"
    if _number_fault(text, country):
        return "output.number"
    words = words_of(normalise(text).text)
    hits = [hit.key for hit in _book().search(words) if not _excused(words, hit)]
    return min(hits, default=None)


def _number_fault(text: str, country: str | None) -> bool:
    resources = nearest(country)
    allowed = set(known_numbers())
    if resources.country != "ZZ":
        allowed = {re.sub(r"\D", "", n) for line in resources.lines for n in (line.number, line.sms_number)}
        allowed |= {re.sub(r"\D", "", resources.emergency), "112"}
    plain = normalise(text).text if not text.isascii() else text
    for match in _SPOKEN_NUMBER.finditer(plain):
        digits = "".join(_SPOKEN.get(word, "00") for word in re.findall(r"[a-z]+", match.group().lower()))
        if digits not in allowed:
            return True
    for match in _DIGITS.finditer(plain):
        digits = re.sub(r"\D", "", match.group())
        if digits in allowed or (digits in ("24", "7", "247")):
            continue
        if len(digits) >= 7:
            return True
        before = plain[max(0, match.start() - 40) : match.start()]
        after = plain[match.end() : match.end() + 30]
        if len(digits) >= 3 and (
            _CALLING.search(before) or re.match(r"\W{0,3}(?:hotline|helpline|lifeline|line)\b", after)
        ):
            return True
    return False


def garbage(text: str) -> bool:
    """Whether this is no language at all: control characters, one word over and over, or hardly any letters.

    >>> garbage("the the the the the the the the"), garbage("I'm listening.")
    (True, False)
    """
    stripped = text.strip()
    if not stripped:
        return True
    odd = sum(char == "\ufffd" or (ord(char) < 32 and char not in "\n\r\t") for char in stripped)
    letters = sum(char.isalpha() for char in stripped)
    if odd > 2 or odd * 10 > len(stripped) or (len(stripped) >= 8 and letters * 2 < len(stripped)):
        return True
    words = stripped.lower().split()
    if len(words) >= 8:
        top = max(words.count(word) for word in set(words))
        if top * 2 > len(words) or len(set(words)) * 4 < len(words):
            return True
    return max(map(len, words)) > 60


class OutputGuard:
    """Feed it the pieces of one reply; it gives back whole sentences that may be shown.

    `instead` is what is shown when something had to be cut. After that nothing more comes out.
    """

    def __init__(self, instead: str, country: str | None = None) -> None:
        self._instead = instead
        self._country = country
        self._held = ""
        self._context = ""
        self._length = 0
        self.tripped: str | None = None
        """The rule that cut the reply, if one did."""
        self.released = 0
        """Characters of the model's own text that were let go."""

    def feed(self, piece: str) -> list[str]:
        """Take the next piece; return the sentences that have become whole and may be shown."""
        if self.tripped or not piece:
            return []
        self._held += piece
        ready = []
        while not self.tripped:
            match = _END.search(self._held)
            if match:
                end = match.end()
            elif len(self._held) > LONGEST_SENTENCE:
                end = self._held.rfind(" ", 0, LONGEST_SENTENCE) + 1 or LONGEST_SENTENCE
            else:
                break
            sentence, self._held = self._held[:end], self._held[end:]
            ready += self._look(sentence)
        return ready

    def finish(self) -> list[str]:
        """The end of the reply: look at what is left."""
        if self.tripped or not self._held.strip():
            return []
        sentence, self._held = self._held, ""
        return self._look(sentence)

    def _look(self, sentence: str) -> list[str]:
        if not sentence.strip():
            return [sentence] if self.released else []
        for pattern, better in _UNSAFE_WORDING:
            sentence = pattern.sub(better, sentence)
        self._length += len(sentence)
        rule = "output.garbage" if garbage(sentence) and len(sentence.strip()) > 3 else None
        if self._length > LONGEST_REPLY:
            rule = "output.length"
        # what a sentence means can depend on the one before it
        rule = rule or fault(sentence, self._country)
        if rule is None and self._context and fault(f"{self._context} {sentence}", self._country):
            rule = fault(re.sub(r"[.!?…\n]+", ",", self._context) + " " + sentence, self._country) or "output.context"
        if rule:
            self.tripped = rule
            self._held = ""
            return [(" " if self.released else "") + self._instead]
        self._context = sentence.strip()
        self.released += len(sentence)
        return [sentence]
