"""What identifies people by its form: addresses of all kinds, numbers with checks, dates and ages. Knows no names.

Every finding is a `Span` into the text as given. Where a number has check digits they are checked; where only the words
around it tell what it is ("passport", "policy no."), they are asked. Numbers of crisis lines are never findings.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Literal, get_args

from warmline.corpus.anonymise import signs
from warmline.corpus.anonymise.signs import Signs, letters

Kind = Literal[
    "PERSON", "PLACE", "ORG", "SCHOOL", "ADDRESS", "DATE", "AGE", "PHONE", "EMAIL", "URL", "HANDLE", "ID", "IBAN",
    "CARD", "IP",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
Policy = Literal["strict", "standard"]


@dataclass(frozen=True, slots=True)
class Span:
    """A finding: characters `start` to `end` of the text, and what they are."""

    start: int
    end: int
    kind: Kind


def _list(name: str) -> list[str]:
    text = (resources.files("warmline.corpus") / "lists" / name).read_text("utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]


PUBLIC_NUMBERS = frozenset(re.sub(r"\D", "", line.split("#")[0]) for line in _list("public_numbers.txt"))
PUBLIC_SITES = tuple(_list("public_sites.txt"))


# --- checks ---------------------------------------------------------------------------------------------------------


def luhn(digits: str) -> bool:
    """The check of payment cards and Canadian numbers."""
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if index % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban_holds(text: str) -> bool:
    """ISO 13616: the rearranged number modulo 97 is 1."""
    compact = re.sub(r"\W", "", text).upper()
    if not 15 <= len(compact) <= 34:
        return False
    moved = compact[4:] + compact[:4]
    return int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def ssn_holds(text: str) -> bool:
    """US social security numbers never have these groups; 9xx ones are tax numbers of the same form."""
    area, group, serial = re.sub(r"\D", "", text)[:3], re.sub(r"\D", "", text)[3:5], re.sub(r"\D", "", text)[5:]
    return area not in ("000", "666") and group != "00" and serial != "0000"


def nhs_holds(text: str) -> bool:
    """NHS number: modulo 11 over ten digits."""
    digits = re.sub(r"\D", "", text)
    if len(digits) != 10:
        return False
    check = 11 - sum(int(d) * (10 - i) for i, d in enumerate(digits[:9])) % 11
    return check % 11 == int(digits[9]) and check != 10


def ip_holds(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# --- addresses on the net -------------------------------------------------------------------------------------------

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+%-]{1,64}@(?:[\w-]+\.)+[^\W\d_]{2,24}", re.U)
_EMAIL_SPOKEN = re.compile(
    r"\b(?:[\w-]{1,20}\sdot\s){0,2}[\w.+-]{1,40}(?:\s?(?:\(at\)|\[at\]|\{at\}|@)\s?|\sat\s)"
    r"[\w-]{2,30}(?:\s?(?:\(dot\)|\[dot\]|\{dot\})\s?[a-z]{2,6}|\sdot\s[a-z]{2,6}|\.[a-z]{2,6}){1,3}\b",
    re.I,
)
_TOP = (
    "com|org|net|edu|gov|info|biz|io|me|co|us|uk|ca|au|nz|ie|de|at|ch|fr|be|nl|es|it|pt|se|no|dk|fi|pl|cz|in|jp|cn|br|"
    "mx|za|ng|ke|app|dev|blog|health|care|example|test"
)
_URL = re.compile(
    rf"\b(?:https?://|www\.)[^\s<>\"'’)\]]+|(?<![@\w.-])(?:[a-z0-9-]{{2,40}}\.)+(?:{_TOP})\b(?:/[^\s<>\"'’)\]]*)?(?![\w@-])",
    re.I,
)
_NOT_SITES = re.compile(r"(?:e\.g|i\.e|a\.m|p\.m|etc|vs|[a-z]+\.(?:me|no|it|in|us|at|be|so|is|to|my))$", re.I)
_HANDLE = re.compile(r"(?<![\w@./])@[A-Za-z0-9_](?:[\w.\-]{1,28}\w)?|(?<![\w/])/?u/[\w-]{3,24}|\b[\w.]{2,28}#\d{4}\b")
_PLATFORM = re.compile(
    r"\b(?:insta(?:gram)?|ig|snap(?:chat)?|tik\s?tok|twitter|discord|telegram|kik|skype|reddit|gamer\s?tag|user\s?name|username|"
    r"handle|screen\s?name|psn|xbox|steam|twitch|venmo|cash\s?app|wechat|line id|facebook|fb)\b"
    r"(?:\s+(?:name|handle|user(?:name)?|account|tag|id|there|on there))?\s*(?:is|was|as|"
    r"under|:|=|-|–|@|called|goes by)\s*(?:is\s+)?[\"“'‘]?"
    r"(?P<value>@?[A-Za-z][\w.\-]{2,29})",
    re.I,
)
_IP4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")
_IP6 = re.compile(r"(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.I)
_MAC = re.compile(r"\b(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}\b", re.I)

# --- numbers --------------------------------------------------------------------------------------------------------

_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,4})?\b", re.I)
_CARD = re.compile(r"(?<![\w-])\d(?:[ -]?\d){11,18}(?![\d-]*\d)")
_SSN = re.compile(r"(?<![\d-])\d{3}([- .])\d{2}\1\d{4}(?![\d-]*\d)")
_FORMS = re.compile(
    r"\b[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-Z]\b|\b[a-ceghj-pr-tw-z]{2} ?\d{2} ?\d{2} "
    r"?\d{2} ?[a-d]\b"  # British national insurance number
    r"|\b[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]\b"  # Italian tax code
    r"|(?<![\d.])\d{3}\.\d{3}\.\d{3}-\d{2}\b"  # Brazilian CPF
    r"|\b[12] ?\d{2} ?(?:0[1-9]|1[0-2]) ?\d{2} ?\d{3} ?\d{3}(?: ?\d{2})?\b"  # French social security number
    r"|\b[XYZ]?\d{7,8}-?[TRWAGMYFPDXBNJZSQVHLCKE]\b"  # Spanish DNI and NIE
    r"|(?<!\d)\d{2}-\d{7}(?!\d)"  # US employer number
    r"|(?<!\d)\d{4} \d{4} \d{4}(?! ?\d)"  # Aadhaar
    r"|(?<!\d)(?:19|20)?\d{6}[-+]\d{4}(?!\d)"  # Nordic personal numbers
)
_PAN = re.compile(r"\b[A-Z]{5}\d{4}[A-Z]\b")  # India
_NHS = re.compile(r"(?<!\d)\d{3}[ -]\d{3}[ -]\d{4}(?!\d)|(?<!\d)\d{10}(?!\d)")
_ID_WORD = (
    r"passport|licen[cs]e|driver'?s|plates?|number plate|registration|reg|policy|"
    r"member(?:ship)?|patient|case|file|claim|"
    r"account|acct|routing|sort code|student|employee|staff|badge|payroll|insurance|"
    r"medicare|medicaid|mrn|medical record|chart|"
    r"record|nhs|hospital|social security|ss|ssn|social|national insurance|ni|tax|tin|"
    r"ticket|booking|confirmation|reference|"
    r"ref|order|invoice|docket|inmate|offender|alien|a|uscis|visa|permit|green card|"
    r"prescription|rx|serial|imei|vin|id|ein|"
    r"enrolment|enrollment|matriculation|voucher|referral|customer|client|identity(?: "
    r"card)?|pps|sin|aadhaar|pan|bsb|swift|dni|cpf"
)
_ID_NEAR = re.compile(
    rf"\b(?:{_ID_WORD})\b(?:\s*(?:card|number|numbers|num|no\.?|nr\.?|code|#|id|ref(?:erence)?|plate|file|record|pin)){{0,3}}"
    r"(?:\s*(?:is|was|ends in|of|:|=|#|-|–|,|\(|reads|says|it'?s)){0,3}\s*[#\"“'(]?"
    r"(?P<value>(?=[\w/.-]*\d[\w/.-]*\d)[A-Za-z]{0,5}[-/]?[A-Z0-9][A-Za-z0-9]*(?:[-/. "
    r"]?(?=[A-Z0-9]*\d)[A-Z0-9]{2,}){0,5})",
    re.I,
)
_ID_WORDS = letters(
    "passport|licence|license|driver|drivers|plate|plates|number|registration|reg|policy|member|membership|patient|case|file|claim|"
    "account|acct|routing|sort|student|employee|staff|badge|payroll|insurance|medicare|medicaid|mrn|medical|chart|record|nhs|"
    "hospital|social|ss|ssn|national|ni|tax|tin|ticket|booking|confirmation|reference|ref|order|invoice|docket|inmate|offender|"
    "alien|uscis|visa|permit|green|prescription|rx|serial|imei|vin|id|ein|enrolment|enrollment|matriculation|voucher|referral|"
    "customer|client|identity|pps|sin|aadhaar|pan|bsb|swift|dni|cpf"
)
# An alien number is called "A" alone.
_ID_OF_A = re.compile(
    r"\ba(?:\W*(?:card|numbers?|num|no|nr|code|id|ref(?:erence)?|plate|file|record|pin|is|was|ends in|of|reads|"
    r"says|it'?s))*"
    r"\W*(?:[a-z]{1,5}[-/])?\w*\d"
)
_ID_CODE = re.compile(
    r"(?<![\w-])(?=[A-Z0-9/-]*\d{3})[A-Z]{1,4}[-/]?\d{5,12}[A-Z]{0,2}(?![\w-])|\b[A-Z]{2,5}-\d{2,4}-\d{3,8}\b"
)
_PLATE_NEAR = re.compile(
    r"\bplates?(?:\s+(?:number|no\.?|was|is|reads|says|of))*\s*[:#]?\s*"
    r"(?P<value>(?=[\w •·-]{0,8}\d)[A-ZÄÖÜ0-9]{1,5}(?:[ •·-]{1,3}[A-Z0-9]{1,5}){0,3})(?![a-z])",
)
_PLATE = re.compile(r"\b[A-Z]{2}\d{2} ?[A-Z]{3}\b")

_PHONE = re.compile(
    r"(?<![\w.,$€£#/-])(?:\+|00)?[ ]?\(?\d{1,5}\)?(?:[ "
    r".\-/]{0,2}\(?\d{1,5}\)?){1,6}(?:\s*(?:x|ext\.?|extension)\s*\d{1,6})?(?![\w%]|"
    r"[.,]\d)",
    re.I,
)
_CALL = re.compile(
    r"\b(?:call|phone|text|number|mobile|cell|tel|whatsapp|reach|ring|dial|sms|contact|fax|landline|line)\b", re.I
)
_HOTLINE = re.compile(
    r"hot\s?line|life\s?line|help\s?line|crisis|samaritans|emergency|suicide|childline|shelter|poison", re.I
)
_TOLL_FREE = re.compile(r"^(?:\+?1)?8(?:00|88|77|66|55|44|33)|^0800|^0808|^116|^1800|^1300|^13")
_UNIT = re.compile(
    r"\s*(?:mg|mcg|ml|kg|lbs?|cm|mm|miles?|km|hours?|hrs?|minutes?|mins?|seconds?|days?|weeks?|months?|years?|"
    r"dollars?|euros?|pounds?|usd|eur|gbp|percent|%|times|people|calories|steps|points?|pages?|am|pm|a\.m|p\.m)\b",
    re.I,
)

# --- dates and ages -------------------------------------------------------------------------------------------------

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_ORD = rf"{_DAY}(?:st|nd|rd|th)?"
_YEAR = r"(?:19[2-9]\d|20[0-4]\d)"
_DATE = re.compile(
    rf"\b(?:(?:the\s+)?{_ORD}\s+(?:of\s+)?{_MONTH}(?:,?\s+(?:of\s+)?(?:{_YEAR}|['’]\d{{2}}))?(?![a-z])"
    rf"|{_MONTH}\s+(?:the\s+)?{_ORD}(?:,?\s+(?:of\s+)?{_YEAR})?(?![\w:]|\s*(?:mg|hours?|days?|weeks?|months?|years?|times|am|pm|kids|people)\b)"
    rf"|{_MONTH},?\s+(?:of\s+)?(?:{_YEAR}|['’]\d{{2}}\b)"
    rf"|(?:19|20)\d\d[-/.](?:0?[1-9]|1[0-2])[-/.]{_DAY}(?:[t ]\d{{2}}:\d{{2}}(?::\d{{2}})?z?)?"
    rf"|{_DAY}[-/.]{_DAY}[-/.](?:(?:19|20)\d\d|\d\d)"
    rf"|{_DAY}[-/.]{_MONTH}[-/.](?:(?:19|20)\d\d|\d\d))(?!\d)",
)
_SPELLED_DAY = (
    r"(?:(?:(?:twenty|thirty)[- ])?(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth)|tenth|"
    r"eleventh|twelfth|(?:thir|four|fif|six|seven|eigh|nine)teenth|twentieth|thirtieth)"
)
_SPELLED_TAIL = rf"(?![a-z])(?:,?\s+(?:of\s+)?{_YEAR})?(?:\s+(?:last|this|next)\s+year)?"
# "the second may be harder": without "of", May is taken for the verb.
_SPELLED_DATE = re.compile(
    rf"\b(?:the\s+)?{_SPELLED_DAY}\s+of\s+{_MONTH}{_SPELLED_TAIL}"
    rf"|\bthe\s+{_SPELLED_DAY}\s+(?!may){_MONTH}{_SPELLED_TAIL}"
    rf"|\b(?!may){_MONTH}\s+(?:the\s+)?{_SPELLED_DAY}{_SPELLED_TAIL}"
)
_SPELLED_WORDS = letters(
    "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|thirteenth|fourteenth|fifteenth|sixteenth|"
    "seventeenth|eighteenth|nineteenth|twentieth|thirtieth"
)
_SHORT_DATE = re.compile(rf"(?:\bon|\bsince|\buntil|\bborn|\bdob:?|\bdated?)\s+(?P<value>{_DAY}/{_DAY})(?![/\d])")
_BORN = re.compile(
    r"\b(?:born|birth year|year of birth|dob|class of|graduated)\b(?:\s+(?:in|is|was|back|"
    rf"the|year|:))*\s*(?P<value>{_YEAR}|['’]\d{{2}})\b",
)
_ANY_YEAR = re.compile(rf"(?<![\d$€£.,/-]){_YEAR}(?![\d%/.,-]*\d)")
_TENS = r"(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)"
_NUMBER = (
    rf"(?:\d{{1,3}}|{_TENS}(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?|ten|"
    r"eleven|twelve|thirteen|fourteen|fifteen|"
    r"sixteen|seventeen|eighteen|nineteen)"
)
_TEEN_UP = (
    rf"(?:[1-9]\d|{_TENS}(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?|"
    r"(?:thir|four|fif|six|seven|eigh|nine)teen|eleven|twelve)"
)
_WHOSE = (
    r"(?:i|he|she|they|who|mum|mom|mother|dad|father|son|daughter|sister|brother|husband|wife|partner|boyfriend|girlfriend|"
    r"child|kid|baby|friend|boss|nan|gran|grandma|grandad|grandpa|uncle|aunt|cousin|nephew|niece|eldest|youngest|oldest)"
)
_AGE = re.compile(
    rf"(?<![\w.,$€£-])(?:(?P<a>{_NUMBER}[ -]?(?:years?|yrs?|months?)[ -]?(?:old|of age)|"
    rf"{_NUMBER}\s?(?:y/?o|yo|y\.o\.)\b)"
    rf"|(?P<b>\d{{2}}\s?[mf])(?![\w'’])"
    rf"|(?:\bage[ds]?|\bat the age of|\bturn(?:ed|ing|s)?)\s*:?\s+(?P<c>{_NUMBER})(?![\w%])"
    rf"|\b(?:(?:i['’]?m|i am|(?:she|he|they)['’]?(?:s|re)|{_WHOSE}(?:['’]s| is| was| are| "
    r"were| turns| turned| only))\s+"
    rf"(?:(?:only|just|about|almost|nearly|now|already|around|like)\s+)?)(?P<d>{_TEEN_UP}(?:\s+years?\s+old)?)"
    r"(?=\s*(?:[.,;!?)\n]|$|and\b|but\b|when\b|with\b|now\b|so\b|living\b|from\b|in\b|he\b|she\b|this\b|next\b|last\b|"
    r"or\b|then\b|already\b))"
    rf"|(?:^|(?<=[.!?\n]\s)|(?<=\n))(?P<g>{_TEEN_UP})(?=\s+here\b|,\s+(?:f|m|male|female|woman|man|girl|boy|single)\b)"
    rf"|\((?P<e>{_TEEN_UP}|[1-9])\))"
    rf"|(?<=[a-z]),\s(?P<f>{_TEEN_UP})(?=,)",
)
# "I was 34 minutes late" is no age; a unit after the number says so.


def _spans(pattern: re.Pattern[str], text: str, kind: Kind, ok: Callable[[str], bool] | None = None) -> Iterator[Span]:
    for found in pattern.finditer(text):
        if ok is None or ok(found[0]):
            yield Span(found.start(), found.end(), kind)


_SOCIAL = frozenset(
    "facebook.com instagram.com twitter.com tiktok.com reddit.com youtube.com x.com linkedin.com m.facebook.com".split()
)
"""Platforms whose pages are people's: kept alone, masked with a path."""


def _is_public_site(site: str) -> bool:
    bare = re.sub(r"^(?:https?://)?(?:www\.)?", "", site.lower())
    host = bare.split("/")[0].rstrip(".")
    if host in _SOCIAL and len(bare) > len(host) + 1:
        return False
    return any(host == public or host.endswith(f".{public}") for public in PUBLIC_SITES) or host.endswith(
        (".gov", ".nhs.uk")
    )


_PLATFORM_WORDS = letters(
    "insta|instagram|ig|snap|snapchat|tik|tiktok|twitter|discord|telegram|kik|skype|reddit|gamer|gamertag|user|username|"
    "handle|screen|screenname|psn|xbox|steam|twitch|venmo|cash|cashapp|wechat|line|facebook|fb"
)
_BRACKET = re.compile(r"[(\[{]")
_DOT_TOP = re.compile(rf"\.(?:{_TOP})\b")


def _net(text: str, sign: Signs) -> Iterator[Span]:
    if "@" in text:
        yield from _spans(_EMAIL, text, "EMAIL")
    if "dot" in sign.words or ("at" in sign.words and _BRACKET.search(text)):
        for found in _EMAIL_SPOKEN.finditer(text):
            if re.search(r"\bdot\b|[(\[{]", found[0], re.I):
                yield Span(found.start(), found.end(), "EMAIL")
    if "." in text and ("://" in text or "www." in sign.low or _DOT_TOP.search(sign.low)):
        for found in _URL.finditer(text):
            site = found[0].rstrip(".,;:!?")
            spoken = found[0].lower().startswith(("http", "www"))
            if not _is_public_site(site) and (spoken or not _NOT_SITES.search(site)):
                yield Span(found.start(), found.start() + len(site), "URL")
    if "@" in text or "#" in text or "u/" in text:
        for found in _HANDLE.finditer(text):
            yield Span(found.start(), found.end(), "HANDLE")
    for found in _PLATFORM.finditer(text) if sign.any_of(_PLATFORM_WORDS) else ():
        value = found["value"].rstrip(".-")
        if (
            value[0] == "@"
            or re.search(r"[\d_.]", value)
            or re.search(r"[:=@\"“]\s*$", text[found.start() : found.start("value")])
        ):
            yield Span(found.start("value"), found.start("value") + len(value), "HANDLE")
    if text.count(".") >= 3:
        yield from _spans(_IP4, text, "IP", ip_holds)
    if text.count(":") >= 2:
        yield from _spans(_IP6, text, "IP", lambda t: ip_holds(t) and sum(c.isalnum() for c in t) > 2)
        yield from _spans(_MAC, text, "ID")


def _numbers(text: str, sign: Signs) -> Iterator[Span]:
    lower, digits_in = sign.low, sign.digits
    for found in _IBAN.finditer(text) if digits_in >= 10 else ():
        # The words after the number may look like more groups of it: take the longest beginning that checks out.
        ends = [m.start() for m in re.finditer(r"[ -]|$", found[0])][::-1]
        end = next((e for e in ends if iban_holds(found[0][:e])), None)
        if end is None and "iban" in lower[max(0, found.start() - 30) : found.start()]:
            end = next((e for e in ends if e >= 15 and found[0][e - 1].isdigit()), None)
        if end is not None:
            yield Span(found.start(), found.start() + end, "IBAN")
    for found in _CARD.finditer(text) if digits_in >= 12 else ():
        digits = re.sub(r"\D", "", found[0])
        near = lower[max(0, found.start() - 40) : found.start()]
        if (luhn(digits) and digits[0] in "23456" and len(digits) >= 13) or "card" in near or "visa" in near:
            yield Span(found.start(), found.end(), "CARD")
    for found in _SSN.finditer(text) if digits_in >= 9 else ():
        if ssn_holds(found[0]):
            yield Span(found.start(), found.end(), "ID")
    if digits_in >= 4:
        yield from _spans(_PAN, text, "ID")
    if digits_in >= 6:
        yield from _spans(_FORMS, text, "ID")
    for found in _NHS.finditer(text) if digits_in >= 10 else ():
        if nhs_holds(found[0]) and "nhs" in lower[max(0, found.start() - 40) : found.end() + 20]:
            yield Span(found.start(), found.end(), "ID")
    named = sign.any_of(_ID_WORDS) or ("a" in sign.words and _ID_OF_A.search(lower))
    for found in _ID_NEAR.finditer(text) if digits_in >= 3 and named else ():
        value = found["value"].rstrip(" .-/")
        digits = sum(c.isdigit() for c in value)
        if (
            digits >= 3
            and not _UNIT.match(text, found.start("value") + len(value))
            and not _keeps(value, text, found.start())
        ):
            if digits == len(value) == 4 and re.fullmatch(_YEAR, value):
                continue
            yield Span(found.start("value"), found.start("value") + len(value), "ID")
    if digits_in >= 5:
        yield from _spans(_ID_CODE, text, "ID")
    if digits_in >= 2:
        yield from _spans(_PLATE, text, "ID")
    if "plate" in lower:
        for found in _PLATE_NEAR.finditer(text):
            yield Span(found.start("value"), found.end("value"), "ID")
    for found in _PHONE.finditer(text) if digits_in >= 7 else ():
        if span := _phone(found, text):
            yield span


def _keeps(number: str, text: str, start: int) -> bool:
    """True for numbers of crisis lines and emergency services, which a reader may need."""
    digits = re.sub(r"\D", "", number)
    if (
        digits in PUBLIC_NUMBERS
        or digits.removeprefix("1") in PUBLIC_NUMBERS
        or digits.removeprefix("44") in PUBLIC_NUMBERS
    ):
        return True
    around = text[max(0, start - 80) : start + 60]
    return bool(_TOLL_FREE.search(digits)) and bool(_HOTLINE.search(around))


def _phone(found: re.Match[str], text: str) -> Span | None:
    shown = found[0].strip()
    start = found.start() + len(found[0]) - len(found[0].lstrip())
    core = re.split(r"(?i)\s*(?:x|ext)", shown)[0]
    digits = re.sub(r"\D", "", core)
    if not 7 <= len(digits) <= 15 or _keeps(core, text, start) or _UNIT.match(text, start + len(shown)):
        return None
    plus = core.startswith(("+", "00"))
    near = bool(_CALL.search(text[max(0, start - 45) : start])) or bool(
        _CALL.search(text[found.end() : found.end() + 25])
    )
    groups = re.findall(r"\d+", core)
    like = bool(
        re.fullmatch(r"\(?\d{3}\)?[ .\-/]{0,2}\d{3}[ .\-]?\d{4}", core)
        or re.fullmatch(r"\+?1[ .\-]{0,2}\(?\d{3}\)?[ .\-]{0,2}\d{3}[ .\-]?\d{4}", core)
        or re.fullmatch(r"\d{3}[-.]\d{4}", core)
        or (digits[0] == "0" and 9 <= len(digits) <= 12 and max(map(len, groups)) >= 3)
    )
    # Years, ranges and bare long numbers are no telephone numbers unless somebody says call.
    if (
        (plus and len(digits) >= 8)
        or like
        or (near and len(digits) >= 7 and not re.fullmatch(r"(?:19|20)\d\d\s?-\s?(?:19|20)\d\d", core))
    ):
        return Span(start, start + len(shown.rstrip(" .-/")), "PHONE")
    return None


_MONTHS = letters(
    "jan|january|feb|february|mar|march|apr|april|may|jun|june|jul|july|aug|august|sep|sept|september|oct|october|nov|november|"
    "dec|december"
)
_DIGIT_MARK = re.compile(r"\d[-/.]")
_SMALL = re.compile(r"(?<!\d)\d{1,3}(?!\d)")
_NUMBER_WORDS = letters(
    "ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|"
    "eighty|ninety"
)
_SINCE_WORDS = letters("on|since|until|born|dob|date|dated")
_BORN_WORDS = letters("born|birth|dob|class|graduated")


def _dates(text: str, policy: Policy, sign: Signs) -> Iterator[Span]:
    # Lower case may be longer than the text itself; then the positions would be wrong.
    lower = sign.low if len(sign.low) == len(text) else text
    dated = sign.digits and (sign.any_of(_MONTHS) or _DIGIT_MARK.search(lower))
    for found in _DATE.finditer(lower) if dated else ():
        # "May 12 people ..." and "he may 3" are no dates; the month must not be the verb.
        if found[0][:3].lower() == "may" and not re.match(r"(?i)may\s+(?:the\s+)?\d", found[0]):
            continue
        yield Span(found.start(), found.end(), "DATE")
    spelled = sign.any_of(_MONTHS) and sign.any_of(_SPELLED_WORDS)
    for found in _SPELLED_DATE.finditer(lower) if spelled else ():
        yield Span(found.start(), found.end(), "DATE")
    for pattern, words in ((_SHORT_DATE, _SINCE_WORDS), (_BORN, _BORN_WORDS)):
        for found in pattern.finditer(lower) if sign.digits and sign.any_of(words) else ():
            yield Span(found.start("value"), found.end("value"), "DATE")
    if policy == "strict":
        yield from _spans(_ANY_YEAR, text, "DATE")
    for found in _AGE.finditer(lower) if sign.any_of(_NUMBER_WORDS) or _SMALL.search(lower) else ():
        name = next(name for name in "abcdefg" if found[name])
        start, end = found.span(name)
        value = re.match(r"\d+", found[name])
        if value and not 1 <= int(value[0]) <= 115:
            continue
        yield Span(start, end, "AGE")


def find(text: str, policy: Policy = "standard", sign: Signs | None = None) -> list[Span]:
    """All findings by form, overlapping ones included."""
    sign = sign or signs.of(text)
    spans: list[Span] = []
    if sign.digits or "." in text or "@" in text or ":" in text or "dot" in sign.words:
        spans += _net(text, sign)
    if sign.digits:
        spans += _numbers(text, sign)
    spans += _dates(text, policy, sign)
    return spans
