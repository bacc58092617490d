"""What is skipped because no sign of it is there would have found nothing: quick and thorough give the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.corpus import lint
from warmline.corpus.anonymise import masking, signs
from warmline.corpus.read import read

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import anonymise as measured


class Everything(frozenset[str]):
    """A set of words that has every word."""

    def isdisjoint(self, other: object) -> bool:
        return False

    def __contains__(self, word: object) -> bool:
        return True


def thorough(text: str) -> signs.Signs:
    return signs.Signs(text.lower(), Everything(), 10_000)


def texts() -> list[str]:
    sets = [measured.build(fills=1), measured.fresh(fills=1), measured.third(fills=1)]
    spoken = [m.content for c in list(read("sample"))[:120] for m in c.messages]
    return [text for turns in sets for text, _ in turns] + spoken


def found(text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[masking.Span], list[masking.Span]]:
    quick = masking.find(text)
    with monkeypatch.context() as patch:
        patch.setattr(signs, "of", thorough)
        return quick, masking.find(text)


def test_signs_skip_nothing_on_real_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in texts():
        quick, slow = found(text, monkeypatch)
        assert quick == slow, text


PIECES = st.sampled_from(
    [
        *"a I my is at dot may May first of the 3 12 1998 555-0142 @ # u/ap street Road Allee rue 14 postfach".split(),
        *"box apo AE 09012 year old m here plates AB12 CDE case no. Ltd Oy St of Church and , . : / - ( )".split(),
        *"plot class born instagram me TX 75001 zip".split(),
        "\n",
    ]
)


@given(st.lists(PIECES, max_size=14))
def test_signs_skip_nothing_on_any_mixture(pieces: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        quick, slow = found(" ".join(pieces), patch)
    assert quick == slow


def test_words_are_runs_of_letters() -> None:
    sign = signs.of("Am 3. Mai, P.O.Box 12: jo@café.example")
    assert sign.words == {"am", "mai", "p", "o", "box", "jo", "caf", "example"}
    assert sign.digits == 3
    assert sign.any_of(signs.letters("box|postfach"))


def every_pattern(plain: str, *, exchange: bool) -> list[tuple[str, int, int]]:
    """The rules without the table of beginnings: every pattern at every place."""
    hits = []
    for rule in lint.rules():
        if rule.exchange != exchange:
            continue
        whole = re.compile("|".join(f"(?:{p.pattern})" for p in rule.say))
        hits += [(rule.id, m.start(), m.end()) for m in whole.finditer(plain) if not lint._held(plain, rule, m)]
    return sorted(hits)


def test_a_rule_is_looked_for_wherever_it_can_begin() -> None:
    cases = [case for rule in lint.rules() for case in (*rule.fire, *rule.hold)]
    for case in cases:
        for text in [case] if isinstance(case, str) else case:
            plain = lint.straight(text)
            for exchange in (False, True):
                quick = sorted((rule.id, start, end) for rule, start, end in lint.in_text(plain, exchange=exchange))
                assert quick == every_pattern(plain, exchange=exchange), text
