"""What identifies people is masked, what does not is left, and nothing is masked twice."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmline.corpus.anonymise import Memory, Span, file_lines, find, mask, mask_conversation, patterns
from warmline.messages import Conversation, Message

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import anonymise as benchmark


def kinds(text: str) -> list[tuple[str, str]]:
    return [(s.kind, text[s.start : s.end]) for s in find(text)]


MASKED = [
    ("my sister priya lives in leeds", [("PERSON", "priya"), ("PLACE", "leeds")]),
    ("i told my therapist dr okonkwo", [("PERSON", "dr okonkwo")]),
    ("I work at Hartwell Freight.", [("ORG", "Hartwell Freight")]),
    ("She goes to Hollybrook Primary School.", [("SCHOOL", "Hollybrook Primary School")]),
    (
        "Send it to:\nFlat 3, Rosewood House,\n22 Garner Road\nManchester\nM14 6TY",
        [("ADDRESS", "Flat 3, Rosewood House,\n22 Garner Road\nManchester\nM14 6TY")],
    ),
    ("He died on 12 March 2019.", [("DATE", "12 March 2019")]),
    ("I'm 34 and tired", [("AGE", "34")]),
    ("call 07700 900123 please", [("PHONE", "07700 900123")]),
    ("or jo dot b at mail dot com", [("EMAIL", "jo dot b at mail dot com")]),
    ("see https://diary.example.net/x/9 now", [("URL", "https://diary.example.net/x/9")]),
    ("add me, @luna.reads_", [("HANDLE", "@luna.reads_")]),
    ("my ssn is 219-09-9999", [("ID", "219-09-9999")]),
    ("IBAN DE89 3704 0044 0532 0130 00 ok", [("IBAN", "DE89 3704 0044 0532 0130 00")]),
    ("card 4111 1111 1111 1111 was used", [("CARD", "4111 1111 1111 1111")]),
    ("it came from 203.0.113.77", [("IP", "203.0.113.77")]),
    ("patient number is 7712093", [("ID", "7712093")]),
]
LEFT = [
    "Call 988, text HOME to 741741, or ring Samaritans on 116 123.",
    "The old lifeline 1-800-273-8255 still connects.",
    "Look at nami.org or www.nhs.uk for groups.",
    "Hope is gone. Will I ever feel joy? There is no grace in it.",
    "I take 50 mg of sertraline and 2 walks a day, 7 days a week.",
    "My OCD and my ADHD argue. CBT helped, EMDR did not.",
    "I am 12 weeks pregnant and 34 minutes late.",
    "It cost 1,200 in 2019 and 1,500 in 2020.",
    "In May I may start again. On Monday, perhaps.",
    "My mother is Polish, my father is Catholic, we live in Germany.",
    "I walked 2 miles down the road and 3 blocks home.",
    "my anxeity is thru the roof",
]


@pytest.mark.parametrize(("text", "expected"), MASKED)
def test_masked(text: str, expected: list[tuple[str, str]]) -> None:
    assert kinds(text) == expected


@pytest.mark.parametrize("text", LEFT)
def test_left_alone(text: str) -> None:
    assert kinds(text) == []


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (patterns.luhn, "4111111111111111", "4111111111111112"),
        (patterns.iban_holds, "GB29 NWBK 6016 1331 9268 19", "GB29 NWBK 6016 1331 9268 18"),
        (patterns.nhs_holds, "943 476 5919", "943 476 5918"),
        (patterns.ssn_holds, "219-09-9999", "666-09-9999"),
        (patterns.ip_holds, "2001:db8::1", "2001:zz8::1"),
    ],
)
def test_check_digits(check, good: str, bad: str) -> None:
    assert check(good)
    assert not check(bad)


def test_the_measured_sets_reach() -> None:
    """The figures of docs/corpus/anonymise.md, with room for nothing."""
    for turns in (benchmark.build(), benchmark.fresh()):
        result = benchmark.measure(benchmark.ours(turns, False), turns)
        assert result["turns"] >= 500
        assert result["masked"] >= 0.95
        assert result["wrongly"] <= 0.02
        assert result["structured"] >= 0.98


def test_no_training_sentence_is_measured() -> None:
    root = Path(benchmark.__file__).parents[1]

    def sentences(path: Path) -> set[str]:
        return {line.lower() for line in path.read_text("utf-8").splitlines() if line and line[0] != "#"}

    train = sentences(root / "scripts" / "tagger_templates.txt")
    measured = sentences(benchmark.HERE / "templates.txt") | sentences(benchmark.HERE / "fresh.txt")
    assert not train & measured


def test_the_same_person_has_one_number_through_a_conversation() -> None:
    talk = Conversation(
        "c",
        (
            Message("user", "i argued with priya again"),
            Message("assistant", "What does Priya want?"),
            Message("user", "Priya Nair wants the flat. Tomasz says nothing."),
        ),
    )
    masked = mask_conversation(talk)
    assert [m.content for m in masked.messages] == [
        "i argued with [PERSON_1] again",
        "What does [PERSON_1] want?",
        "[PERSON_1] wants the flat. [PERSON_2] says nothing.",
    ]


def test_a_name_that_is_clear_late_is_masked_early() -> None:
    talk = Conversation(
        "c", (Message("user", "zorvane. thats all i can think"), Message("user", "my brother zorvane hit me"))
    )
    assert "zorvane" not in " ".join(m.content for m in mask_conversation(talk).messages)


TEXTS = [text for text, _ in MASKED] + LEFT


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["", "secret"])
def test_twice_is_once(text: str, key: str) -> None:
    once = mask(text, surrogates=key)
    again = mask(once.text, surrogates=key)
    assert again.text == once.text
    assert again.spans == ()


def test_stand_ins_depend_on_the_key_and_on_nothing_else() -> None:
    text = "my sister Priya and my boss Tomasz"
    one, other = mask(text, surrogates="a"), mask(text, surrogates="b")
    assert one == mask(text, surrogates="a")
    assert one.text != other.text
    assert "Priya" not in one.text
    assert "[" not in one.text
    assert mask("PRIYA? my sister priya!", surrogates="a").text.count(one.spans[0].replacement) >= 1


def test_offsets_are_into_the_input_and_spans_do_not_overlap() -> None:
    for text, expected in MASKED:
        masked = mask(text)
        assert [text[s.start : s.end] for s in masked.spans] == [value for _, value in expected]
        rebuilt, last = "", 0
        for span in masked.spans:
            assert span.start >= last
            rebuilt += text[last : span.start] + span.replacement
            last = span.end
        assert rebuilt + text[last:] == masked.text


def test_policy() -> None:
    assert kinds("It was 2016.") == []
    assert [s.kind for s in find("It was 2016.", "strict")] == ["DATE"]


def test_other_languages_are_not_taken_for_names() -> None:
    text = "mein Freund Jonas und ich wohnen zusammen und ich weiß nicht mehr weiter mit ihm, weil er immer so müde ist"
    assert kinds(text) == [("PERSON", "Jonas")]


def test_a_second_opinion_behind_the_same_interface() -> None:
    def other(text: str, policy: patterns.Policy = "standard") -> list[Span]:
        return [Span(0, 2, "PERSON")]

    assert mask("Al is here", recogniser=other, memory=Memory()).text == "[PERSON_1] is here"


def test_never_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert "[EMAIL_1]" in mask("write to ada@mail.example.org, my sister Ada").text


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=120))
def test_any_text_is_masked_without_a_fault(text: str) -> None:
    masked = mask(text)
    last = 0
    for span in masked.spans:
        assert last <= span.start < span.end <= len(text)
        last = span.end
    assert mask(masked.text).spans == () or "[" in text


def test_file_lines(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("my sister priya called\n\nnothing here\n")
    rows = list(file_lines(text, "text"))
    assert [r["text"] for r in rows] == ["my sister [PERSON_1] called", "nothing here"]
    assert rows[0]["spans"] == [{"start": 10, "end": 15, "type": "PERSON", "replacement": "[PERSON_1]"}]
    table = tmp_path / "rows.jsonl"
    table.write_text(
        json.dumps({"id": "a", "text": "my sister priya"})
        + "\n"
        + json.dumps(
            {"messages": [{"role": "user", "content": "my sister priya"}, {"role": "assistant", "content": "priya?"}]}
        )
        + "\n"
    )
    first, second = file_lines(table, "jsonl")
    assert first["id"] == "a"
    assert [m["content"] for m in second["messages"]] == ["my sister [PERSON_1]", "[PERSON_1]?"]
