"""Broken text is mended, and only broken text."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.corpus import language
from warmline.corpus.clean import clean, mend
from warmline.messages import Conversation, Message

MENDED = [
    ("personâ€™s day", "person’s day", "mojibake"),
    ("a\u00a0b\u00a0\u00a0c", "a b c", "spaces"),
    ("<p>One</p><p>Two<br/>Three</p>", "One\nTwo\nThree", "html"),
    ("<ul><li>tea</li><li>walk</li></ul>", "- tea\n- walk", "html"),
    ("It&#39;s &amp; that&nbsp;too", "It's & that too", "entities"),
    ("ze\u200bro wi\u00addth", "zero width", "control"),
    ("bell\x07 rings", "bell rings", "control"),
    ("worthless to themselves.Seriously, no", "worthless to themselves. Seriously, no", "glued-sentences"),
    ("Is it?It is", "Is it? It is", "glued-sentences"),
    ("too   many\t spaces", "too many spaces", "spacing"),
    ("Well , yes .", "Well, yes.", "spacing"),
    ("one\\ntwo", "one\ntwo", "literal-breaks"),
    ("<|im_start|>user hello<|im_end|>", "user hello", "control-tokens"),
    ("hello </s> [INST] there", "hello there", "control-tokens"),
]
KEPT = [
    "I read it on counselchat.com and www.Example.org/Page.Html today",
    "The U.S. is big. Mr. Smith said 3.5 or 4,5 at 9.30 p.m.",
    "a < b and b > a; I <3 you",
    "“Curly quotes” and naïve café stay – so do 你好 and 🙂",
    "AT&T & co",
    "He said: stop.\n\nThen left.",
    "either/nor and and/or",
]


@pytest.mark.parametrize(("before", "after", "name"), MENDED)
def test_mended(before: str, after: str, name: str) -> None:
    repairs: Counter[str] = Counter()
    assert mend(before, repairs) == after
    assert repairs[name] == 1


@pytest.mark.parametrize("text", KEPT)
def test_left_alone(text: str) -> None:
    repairs: Counter[str] = Counter()
    assert mend(text, repairs) == text
    assert not repairs


REPLY = "That sounds heavy, and you are not weak for finding it so. What would help tonight? Talk to someone you trust."
TAILS = [
    "\n\nBest wishes,\nJane Roe, LMFT",
    " Take care, Jane",
    "\n- Natalie",
    "\nDr. Robin J. Landry, DBH, LPC, NCC",
    " Be well.",
    "\nKind regards,\nJane Roe",
    " Call me at 555-0100 to schedule an appointment.",
    " I offer online sessions through mytherapy.example.",
    " Visit my website for more.",
    " Book a session with me today.",
]
NO_TAILS = [
    " Call me old-fashioned, but rest helps.",
    " You can call 988 at any hour.",
    " Take good care of your body and your sleep.",
    " Visit your doctor. Ask what he can offer.",
    " He wrote: Jane",
]


@pytest.mark.parametrize("tail", TAILS)
def test_signatures_and_adverts_of_answerers_go(tail: str) -> None:
    assert mend(REPLY + tail, Counter(), reply=True) == REPLY


@pytest.mark.parametrize("tail", NO_TAILS)
def test_ordinary_ends_stay(tail: str) -> None:
    assert mend(REPLY + tail, Counter(), reply=True) == REPLY + tail


def test_an_end_cut_off_by_the_source_is_taken_back_to_a_whole_sentence() -> None:
    long = " ".join([REPLY] * 4)
    assert mend(f"{long} And then you could also try to find someone who", Counter(), reply=True) == long


def talk(*turns: tuple[str, str], labels: dict[str, str] | None = None) -> Conversation:
    return Conversation("c", tuple(Message(role, text) for role, text in turns), labels=labels or {})  # type: ignore[arg-type]


CASES = [
    ("empty", talk(("user", "  "), ("assistant", "...")), "empty"),
    ("only-user", talk(("user", "hello"), ("user", "anyone?")), "one-sided"),
    ("only-reply", talk(("assistant", "hello")), "one-sided"),
    ("user-last-only", talk(("assistant", "Hi"), ("user", "hello")), "one-sided"),
    ("huge", talk(("user", "a " * 150_000), ("assistant", "b")), "too-long"),
]


@pytest.mark.parametrize(("name", "conversation", "reason"), CASES)
def test_refused(name: str, conversation: Conversation, reason: str) -> None:
    done = clean(conversation)
    assert done.conversation is None
    assert done.reason == reason


def test_turns_alternate_from_user_to_assistant() -> None:
    done = clean(
        talk(
            ("assistant", "Welcome"),
            ("user", "hi"),
            ("user", "hi"),
            ("user", "you there?"),
            ("assistant", "Yes."),
            ("user", "ok"),
        )
    )
    assert done.conversation is not None
    assert [(m.role, m.content) for m in done.conversation.messages] == [
        ("user", "hi\nyou there?"),
        ("assistant", "Yes."),
    ]
    assert done.repairs == {"leading-reply": 1, "repeated-turn": 1, "joined-turns": 1, "unanswered-end": 1}


def test_prose_keeps_its_single_message() -> None:
    done = clean(talk(("assistant", "The kettle boils."), labels={"form": "prose"}))
    assert done.conversation is not None
    assert len(done.conversation.messages) == 1


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(max_size=60)), max_size=12))
def test_what_comes_out_is_well_formed_and_cleaning_twice_changes_nothing(turns: list[tuple[str, str]]) -> None:
    done = clean(talk(*turns), wanted="any")
    if done.conversation is None:
        assert done.reason
        return
    spoken = [m.role for m in done.conversation.messages if m.role != "system"]
    assert spoken == ["user", "assistant"] * (len(spoken) // 2)
    assert all(m.content.strip() for m in done.conversation.messages)
    again = clean(done.conversation, wanted="any")
    assert again.conversation is not None


TONGUES = {
    "en": "I have not been sleeping well and my partner says that I should see someone about it before it gets worse",
    "de": "Ich schlafe seit Wochen nicht mehr gut und meine Frau sagt, dass ich mit jemandem darüber reden soll",
    "es": "No duermo bien desde hace semanas y mi mujer me dice que debería hablar con alguien porque no puedo seguir",
    "fr": "Je ne dors plus depuis des semaines et ma femme me dit que je devrais en parler avec quelqu'un de confiance",
    "id": "Saya tidak bisa tidur sejak lama dan ibu saya bilang kalau saya harus bicara dengan orang lain tentang ini",
    "pt": "Eu não durmo há semanas e a minha mulher diz que eu devia falar com alguém porque isso não pode continuar",
    "ru": "Я уже несколько недель не сплю, и жена говорит, что мне надо с кем-нибудь об этом поговорить сегодня же",
    "zh": "我已经好几个星期没有睡好了,我的妻子说我应该找个人谈谈这件事,因为我真的很累 很累 很累 很累",
}


@pytest.mark.parametrize("code", TONGUES)
def test_language(code: str) -> None:
    assert language.of(TONGUES[code]) == code
    done = clean(talk(("user", TONGUES[code]), ("assistant", TONGUES[code])))
    assert (done.conversation is None) == (code != "en")
    assert clean(talk(("user", TONGUES[code]), ("assistant", TONGUES[code])), wanted="any").conversation


def test_short_texts_are_given_the_benefit_of_the_doubt() -> None:
    assert language.of("ok gracias") == ""
