from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.safety.normalise import normalise, one_slip, take_apart


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("I’m gonna k1ll mysеlf", "im gonna kill myself"),
        ("k i l l  m y s e l f", "kill myself"),
        ("s-u-i-c-i-d-e", "suicide"),
        ("su1c1d3 su!cide $uicide su*cide", "suicide suicide suicide suicide"),
        ("𝐤𝐢𝐥𝐥 ⓚⓘⓛⓛ", "kill kill"),
        ("sui\u200bcide", "suicide"),
        ("killlll myselffff", "kill myself"),
        ("diiiie sooooo", "die so"),
        ("endmylife", "end my life"),
        ("sucide myslef", "suicide myself"),
        ("z̷a̷l̷g̷o̷", "zalgo"),
        ("кill", "kill"),
        ("don’t don't dont", "dont dont dont"),
        ("self-harm", "self harm"),
        ("🔪", " knife "),
        ("Ich möchte", "ich mochte"),
    ],
)
def test_disguises_are_read_through(written: str, read: str) -> None:
    assert normalise(written).text == read


@pytest.mark.parametrize(
    "plain",
    [
        "take 20mg at 3am",
        "я хочу",
        "मैं मरना चाहता हूँ",
        "我想自杀",
        "beginning",
        "keyboard",
        "a b",
        "himself",
        "4th",
        "hello there!!!",
    ],
)
def test_ordinary_words_stay(plain: str) -> None:
    assert normalise(plain).text == plain


@pytest.mark.parametrize(("word", "target"), [("decide", "suicide"), ("himself", "myself"), ("hopeful", "hopeless")])
def test_other_words_are_no_slips(word: str, target: str) -> None:
    assert not one_slip(word, target)
    assert take_apart("window") is None


@given(st.text(max_size=300))
def test_offsets_lead_back(text: str) -> None:
    plain = normalise(text)
    assert len(plain.text) == len(plain.offsets)
    assert all(0 <= place < len(text) for place in plain.offsets)
    assert list(plain.offsets) == sorted(plain.offsets)


@given(st.text(max_size=200))
def test_nothing_raises_and_plain_text_is_lower_case(text: str) -> None:
    once = normalise(text).text
    assert once == once.lower() or not once.isascii()


def test_a_span_is_found_in_the_original() -> None:
    text = "Well… I’ll k1ll mysеlf, ok?"
    plain = normalise(text)
    start = plain.text.index("kill myself")
    first, last = plain.original(start, start + len("kill myself"))
    assert text[first:last] == "k1ll mysеlf"
