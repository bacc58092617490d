"""Check what will be said before anybody reads it: wordings of the protocol, and claims in any text of the product.

Knows the tables, no conversation. Every wording is rendered for every country and checked as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from warmline.safety.normalise import normalise
from warmline.safety.phrases import Grammar, PhraseBook, words_of
from warmline.safety.protocol import Protocol, fill
from warmline.safety.resources import Resources, countries, known_numbers, nearest
from warmline.safety.tables import table

MOST_WORDS = 120
LEAST_WORDINGS = 6
_NUMBER = re.compile(r"\+?\d[\d\s().\-]*\d|\d")


def check_text(text: str, template: str, must: tuple[str, ...], protocol: Protocol, resources: Resources) -> list[str]:
    """Faults of one rendered wording, in plain words; none if it may be shown."""
    faults = []
    if len(text.split()) > MOST_WORDS:
        faults.append(f"{len(text.split())} words, at most {MOST_WORDS}")
    if "{" in text or "}" in text:
        faults.append("a placeholder was not filled in")
    for element in must:
        signs = protocol.elements[element]
        where = template if element in ("line", "emergency") else text
        if not any(sign.lower() in where.lower() for sign in signs):
            faults.append(f"lacks `{element}`")
    lower = template.lower().replace("’", "'")
    faults += [f"says `{phrase}`" for phrase in protocol.banned if re.search(rf"\b{re.escape(phrase)}", lower)]
    allowed = {re.sub(r"\D", "", n) for line in resources.lines for n in (line.number, line.sms_number)}
    allowed |= {re.sub(r"\D", "", part) for line in resources.lines for part in (line.hours, line.label, line.url)}
    allowed |= {"24", "7", "247"} | {re.sub(r"\D", "", resources.emergency), "112", ""}
    bare = text
    for line in resources.lines:
        for known in sorted(
            {line.number, line.sms_number, line.hours, line.label, line.url} - {""}, key=len, reverse=True
        ):
            bare = bare.replace(known, " ")
    bare = bare.replace(resources.emergency, " ")
    for match in _NUMBER.findall(bare):
        digits = re.sub(r"\D", "", match)
        if digits not in allowed and digits not in known_numbers():
            faults.append("a number that is not in the table of resources")
    return faults


def lint(protocol: Protocol) -> Iterator[str]:
    """Every fault of every wording × locale × country × channel, named by situation, locale and position.

    The channels differ in one thing only: a page shows tappable lines beside the text, so a situation that speaks of
    lines must hand them over as well.
    """
    places = [nearest(code) for code in (None, *countries())]
    for situation in protocol.situations:
        if situation.wording is None:
            continue
        if "line" in situation.must and not situation.resources:
            yield f"{situation.id}: speaks of lines but hands none to the page"
        for locale, book in protocol.wordings.items():
            many = book.get(situation.wording, ())
            if not many and locale != "en":
                continue
            if len(many) < LEAST_WORDINGS and situation.wording != "unscreened":
                yield f"{situation.id} [{locale}]: {len(many)} wordings, at least {LEAST_WORDINGS}"
            if len(set(many)) != len(many):
                yield f"{situation.id} [{locale}]: a wording is there twice"
            for number, template in enumerate(many, 1):
                found: dict[str, str] = {}
                for resources in places:
                    for fault in check_text(fill(template, resources), template, situation.must, protocol, resources):
                        found.setdefault(fault, resources.country)
                for fault, country in found.items():
                    yield f"{situation.id} [{locale}] wording {number} ({country}): {fault}"


# ---------------------------------------------------------------------- claims


@cache
def _claims() -> PhraseBook:
    rows = table("claims.yaml")
    grammar = Grammar(rows.get("classes", {}), "claims.yaml")
    return PhraseBook(grammar.compile(str(phrase), entry["id"]) for entry in rows["claims"] for phrase in entry["say"])


@cache
def _allowed() -> PhraseBook:
    rows = table("claims.yaml")
    grammar = Grammar(rows.get("classes", {}), "claims.yaml")
    return PhraseBook(grammar.compile(str(phrase), "allowed") for phrase in rows["allowed"])


def claims(text: str) -> list[tuple[str, tuple[int, int]]]:
    """Places where a text of the product claims to be, or to do what only, a licensed professional does.

    For personas, pages, the README and replies. Returns rule ids with their spans.

    >>> [rule for rule, _ in claims("Your AI therapist treats depression.")]
    ['claims.title', 'claims.treats']
    >>> claims("This is not a therapist.")
    []
    """
    plain = normalise(text)
    words = words_of(plain.text)
    excused = [(hit.first, hit.last) for hit in _allowed().search(words)]
    found = []
    for hit in _claims().search(words):
        if any(first < hit.last and last > hit.first for first, last in excused):
            continue
        found.append((hit.key, plain.original(words.spans[hit.first][0], words.spans[hit.last - 1][1])))
    return sorted(set(found), key=lambda claim: claim[1])
