"""Names of organisations and schools by their last word: "brightwell logistics", "St Anne's Primary School"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from warmline.corpus.anonymise import signs
from warmline.corpus.anonymise.names import _GENERIC, ORG_HEADS, SCHOOL_HEADS, Token
from warmline.corpus.anonymise.patterns import Kind, Span, _list
from warmline.corpus.anonymise.signs import Signs, letters

PUBLIC = frozenset(_list("public_organisations.txt"))
_JOINERS = frozenset({"of", "and", "&", "the", "for", "'s", "de", "st", "saint"})
_LEADS = frozenset(
    {"at", "for", "with", "from", "joined", "left", "quit", "to", "attend", "attended", "in", "near", "by", "into"}
)
# Faker and real law firms: "Brown, Smith and Khan", "Hansen-Ortiz Group"
_FIRM = re.compile(
    r"\b(?:(?:at|for|under|by|of|from|[Mm]y|join|joined|left)\s|(?:^|(?<=[.!?]\s)))"
    r"(?P<value>[A-Z][\w'’\-]+,\s[A-Z][\w'’\-]+\s(?:and|&)\s[A-Z][\w'’\-]+)\b(?!\s(?:and "
    r"I|are|were|have|all|went|got|always)\b)"
)
_LEGAL = re.compile(
    r"\b(?:[A-Z][\w'’.\-]*\s(?:(?:&|and|de|du|der|von)\s)?){1,4}(?:S\.?A\.?R\.?L\.?|S\.?A\.?S?\.?|S\.?r\.?l\.?|S\.?p\.?A\.?|GbR|KGaA|KG|AB|HB|A/S|ApS|BV|N\.?V\.?|Oy|"
    r"Pvt\.?(?:\sLtd\.?)?|Limited|Ltda\.?|S\.?L\.?|s\.r\.o\.|Sp\.\s?z\s?o\.o\.|PT|CV|UD|Tbk|A\.?Ş\.?)(?![\w])"
)
_EMPLOYED = re.compile(
    r"\b(?:work(?:s|ed|ing)?|job|intern(?:ed)?|employed|shifts?|position|hired|fired|"
    r"volunteer(?:ed|ing)?)\s+(?:part[- ]time\s+|full[- ]time\s+)?(?:at|for|by|from|"
    r"with)\s+(?P<value>(?:[A-Z][\w'’&.\-]*)(?:\s(?:and|&|of|"
    r"the)?\s?[A-Z][\w'’&.\-]*){0,4})"
)
_OF = re.compile(
    r"\b(?:University|College|Institute|School|Academy|Hospital|Bank|Church|City|Ministry|Department)\s+of\s+(?:the\s+)?[A-Z][\w'’\-]+(?:\s(?:and\s)?[A-Z][\w'’\-]+){0,3}"
)
_OF_LOWER = re.compile(
    r"\b(?:university|college) of (?:the )?(?!applied|course|my|life|"
    r"science)[a-z][\w'’\-]+(?: (?:carolina|dakota|york|mexico|jersey|england|wales|"
    r"australia))?",
    re.I,
)


_OF_WORDS = letters("university|college|institute|school|academy|hospital|bank|church|city|ministry|department")
_EMPLOYED_WORDS = letters(
    "work|works|worked|working|job|intern|interned|employed|shift|shifts|position|hired|fired|volunteer|volunteered|volunteering"
)
_LEGAL_END = re.compile(r"\s(?:S\.?[ALrp]|s\.r\.|G|KG|AB|HB|A/S|A\.?Ş|ApS|BV|N\.?V|Oy|P[vT]|L[it]|Sp|CV|UD|Tb)")


def find(text: str, found: Sequence[Token], sign: Signs | None = None) -> Iterator[Span]:
    """Organisations and schools, public services left out."""
    for span in _candidates(text, found, sign or signs.of(text)):
        if text[span.start : span.end].lower().removeprefix("the ") not in PUBLIC:
            yield span


def _candidates(text: str, found: Sequence[Token], sign: Signs) -> Iterator[Span]:
    for pattern in (_OF, _OF_LOWER) if "of" in sign.words and sign.any_of(_OF_WORDS) else ():
        for match in pattern.finditer(text):
            kind: Kind = "SCHOOL" if re.match(r"(?i)univ|coll|school|acad|inst", match[0]) else "ORG"
            yield Span(match.start(), match.end(), kind)
    for match in _FIRM.finditer(text) if "," in text and ("and" in sign.words or "&" in text) else ():
        yield Span(match.start("value"), match.end("value"), "ORG")
    for match in _LEGAL.finditer(text) if _LEGAL_END.search(text) else ():
        if match[0].split()[0] not in ("I", "The", "My"):
            yield Span(match.start(), match.end(), "ORG")
    for match in _EMPLOYED.finditer(text) if sign.any_of(_EMPLOYED_WORDS) else ():
        value = match["value"].rstrip(".'’")
        if not re.fullmatch(
            r"(?:I|My|The|A|Home|HR|IT|NHS|God|Mum|Mom|Dad|Him|Her|Them|Christmas|CPS|DFPS|VA|(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day)(?:\s.*)?",
            value,
        ):
            yield Span(match.start("value"), match.start("value") + len(value), "ORG")
    index = 0
    while index < len(found):
        token = found[index]
        if token.word in ORG_HEADS and token.shape in "lCUM":
            span, index = _around(found, index)
            if span is not None:
                yield span
            continue
        index += 1


def _around(found: Sequence[Token], head: int) -> tuple[Span | None, int]:
    """The name that ends in a head word, if there is something of its own before it."""
    last = head
    while last + 1 < len(found) and found[last + 1].word in ORG_HEADS and found[last + 1].shape == found[head].shape:
        last += 1
    capital = found[last].shape in "CU"
    first, own = head, False
    while first > 0 and head - first < 4:
        before = found[first - 1]
        if before.shape in "CUM" and before.text not in (
            "I",
            "My",
            "The",
            "A",
            "Our",
            "His",
            "Her",
            "This",
            "And",
            "But",
            "So",
            "At",
        ):
            if before.opens and before.word in _GENERIC:
                break
            first -= 1
            own = own or (before.word not in _GENERIC and not (before.opens and "e" in before.lists))
        elif before.shape == "l" and not capital and before.word not in _GENERIC and "e" not in before.lists:
            first -= 1
            own = own or not {"c", "k"} & set(before.lists) or (first > 0 and found[first - 1].word in _LEADS)
        elif (
            (
                before.word
                in (
                    "primary",
                    "high",
                    "middle",
                    "secondary",
                    "grammar",
                    "elementary",
                    "community",
                    "medical",
                    "care",
                    "state",
                    "comprehensive",
                    "general",
                    "memorial",
                    "county",
                    "junior",
                    "girls",
                    "boys",
                    "catholic",
                    "and",
                    "&",
                    "credit",
                )
                and first >= 2
                and (
                    (found[first - 2].shape in "CU" and not found[first - 2].opens)
                    or (
                        found[first - 2].shape == "l"
                        and not capital
                        and found[first - 2].word not in _GENERIC
                        and "e" not in found[first - 2].lists
                    )
                )
            )
            or (
                before.word in ("of", "&", "and", "-")
                and capital
                and first >= 2
                and found[first - 2].shape in "CU"
                and found[first - 2].word not in _GENERIC
            )
            or (before.text == "." and first >= 2 and found[first - 2].word in ("st", "ste", "mt"))
        ):
            first -= 1
        elif before.word in ("st", "saint", "our", "lady") and first < head:
            first -= 1
            own = True
        else:
            break
    # A capital head with nothing of its own ("Church", "the High School") names nothing.
    if not own or first == head:
        return None, last + 1
    if (
        not capital
        and found[first].shape == "l"
        and found[head].word
        in (
            "home",
            "house",
            "company",
            "group",
            "times",
            "works",
            "express",
            "daily",
            "health",
            "plant",
            "power",
            "energy",
            "law",
            "post",
            "care",
            "store",
            "bar",
            "oil",
            "gas",
            "book",
            "books",
            "media",
            "press",
            "prison",
            "society",
            "therapy",
            "psychology",
            "sons",
            "brothers",
            "partners",
            "recovery",
            "rehab",
        )
    ):
        lead = found[first - 1].word if first else ""
        if lead not in ("at", "for", "joined"):
            return None, last + 1
    words = {t.word for t in found[first : last + 1]}
    kind: Kind = "SCHOOL" if words & SCHOOL_HEADS and not words & {"bank", "insurance", "hospital"} else "ORG"
    return Span(found[first].start, found[last].core_end, kind), last + 1
