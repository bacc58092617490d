"""The text grammar of the embedded base model."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "training" / "embedded_base"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"embedded_base_{name}", FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


compose = load("compose")
overlap = load("overlap")


@pytest.fixture(scope="module")
def grammar() -> Any:
    return compose.Grammar.load()


@pytest.fixture(scope="module")
def documents(grammar: Any) -> list[dict[str, Any]]:
    composer = compose.Composer(grammar, seed=11)
    themes = list(grammar.themes)
    return [composer.document(theme=themes[n % len(themes)]) for n in range(500)]


def texts(document: dict[str, Any]) -> list[str]:
    return [m["content"] for m in document.get("messages", ())] or [document["text"]]


def toy(shared: dict[str, Any], seed: int = 1) -> Any:
    grammar = compose.Grammar(shared, {"toy": {"situation": ["I sleep badly"]}})
    return compose.State(random.Random(seed), grammar.themes["toy"])


def test_same_seed_same_documents(grammar: Any) -> None:
    first = list(compose.Composer(grammar, 5).documents(60))
    assert first == list(compose.Composer(grammar, 5).documents(60))
    assert first != list(compose.Composer(grammar, 6).documents(60))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("I lie awake", "you lie awake"),
        ("my sister tells me that I am late", "your sister tells you that you are late"),
        ("am I mad", "are you mad"),
        ("I'm tired and I've lost mine", "you're tired and you've lost yours"),
        ("I was alone", "you were alone"),
        ("I never was at ease", "you never were at ease"),
        ("was I wrong", "were you wrong"),
        ("I wasn't asked", "you weren't asked"),
        ("I do not trust myself", "you do not trust yourself"),
        ("I cannot sleep and nobody sees me", "you cannot sleep and nobody sees you"),
        ("I'd go if I'll be let", "you'd go if you'll be let"),
        ("we argue about our son", "you argue about your son"),
        ("My mother was right", "Your mother was right"),
        ("I should have stayed", "you ought to have stayed"),
        ("I should not be here", "you ought not to be here"),
        # what must stay
        ("the door was open", "the door was open"),
        ("she was calm and it was late", "she was calm and it was late"),
        ("a memory of the army and the mime", "a memory of the army and the mime"),
        ("the miner is amused at home", "the miner is amused at home"),
        ("nobody came and it rained", "nobody came and it rained"),
    ],
)
def test_second_person(first: str, second: str) -> None:
    assert compose.to_second_person(first) == second


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("i saw a owl. it was an big one", "I saw an owl. It was a big one"),
        ("wait  for it , please .", "Wait for it, please."),
        ("it is the the end..", "It is the end."),
        ("an hour, a university, an useful thing", "An hour, a university, a useful thing"),
        ("so... it goes on", "So... it goes on"),
        ("write to findahelpline.com elsewhere", "Write to findahelpline.com elsewhere"),
        ("dear Anna,\nthank you.\nyours", "Dear Anna,\nThank you.\nYours"),
    ],
)
def test_tidy(raw: str, clean: str) -> None:
    assert compose.tidy(raw) == clean


def test_nothing_unexpanded(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        for text in texts(document):
            assert text.strip(), document
            assert not re.search(r"[{}|()=*~]| {2}|\bNone\b(?! of)| [,.;?!]", text), text


def test_first_letter_is_large_outside_texters(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        for message in document.get("messages", ())[1::2]:
            assert re.match(r"[\"']?[A-Z]", message["content"]), message


def test_roles_alternate_and_a_reply_ends(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        if document["kind"] in ("listening", "forum", "answers"):
            roles = [message["role"] for message in document["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            assert 2 <= len(roles) <= 6
        else:
            assert set(document) == {"kind", "theme", "text"}


@pytest.mark.parametrize("mix", sorted(compose.MIXES))
def test_shares_of_the_kinds(grammar: Any, mix: str) -> None:
    composer = compose.Composer(grammar, 3, mix)
    counts = Counter(composer.document(theme="sleep")["kind"] for _ in range(1500))
    assert sum(compose.MIXES[mix].values()) == 100
    for kind, share in compose.MIXES[mix].items():
        assert abs(counts[kind] / 1500 - share / 100) < 0.04, kind


def test_careful_themes(grammar: Any) -> None:
    composer = compose.Composer(grammar, 4)
    for theme in compose.CAREFUL:
        kinds = {composer.document(theme=theme)["kind"] for _ in range(120)}
        assert kinds == set(compose.CAREFUL_KINDS) & set(compose.MIXES["learning"])
    for theme in compose.CAREFUL:
        replies = [
            message["content"]
            for _ in range(200)
            for message in composer.document(theme=theme, kind="listening")["messages"][1::2]
        ]
        assert sum(bool(re.search(r"suicid|your life|die|dying|kill", reply)) for reply in replies) > 60, theme
        assert sum(bool(re.search(r"crisis|emergency|helpline|line\b", reply)) for reply in replies) > 20, theme


LISTENING = {
    path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted((FOLDER / "listening").glob("*.yaml"))
}


def test_every_theme_has_its_topics() -> None:
    assert set(LISTENING) == {path.stem for path in (FOLDER / "themes").glob("*.yaml")}
    for theme, bank in LISTENING.items():
        assert len(bank["topics"]) >= 8, theme
        assert len(bank["steps"]) >= 10, theme
        for topic in bank["topics"]:
            assert set(topic) == {"name", *compose.TOPIC} - {"steps"}, (theme, topic["name"])
            assert len(topic["heard"]) >= 9, (theme, topic["name"])
            assert all(line.endswith("?") for line in topic["asks"]), (theme, topic["name"])


@pytest.mark.parametrize(
    "wrong",
    [
        r"I understand",
        r"sorry to hear",
        r"reaching out",
        r"\byou should\b",
        r"\bat least\b",
        r"\bdiagnos(?:ed|is) (?:with|of)\b",
        r"\b(?:dose|antidepressants?)\b",
        r"\bcommit(?:ted|ting)? suicide",
        r"will be (?:fine|okay|all right)",
        r"\bI (?:was|had|used to)\b",
    ],
)
def test_listening_replies_keep_the_rules(grammar: Any, wrong: str) -> None:
    composer = compose.Composer(grammar, 8)
    for theme in LISTENING:
        for _ in range(12):
            for message in composer.document(theme=theme, kind="listening")["messages"][1::2]:
                assert not re.search(wrong, message["content"], re.I), message


def test_a_listener_stays_with_the_topic(grammar: Any) -> None:
    """Every listening reply of a document is written from the lists of one topic."""
    composer = compose.Composer(grammar, 9)
    words = {
        (theme, topic["name"]): set(
            re.findall(r"[a-z']{4,}", str([topic["heard"], topic["asks"], bank["steps"]]).lower())
        )
        for theme, bank in LISTENING.items()
        for topic in bank["topics"]
    }
    shared = yaml.safe_load((FOLDER / "shared.yaml").read_text("utf-8"))
    common = set(re.findall(r"[a-z']{4,}", str([shared[key] for key in ("warm", "bye", "farewell")]).lower()))
    for theme in ("sleep", "panic", "work-stress"):
        for _ in range(30):
            document = composer.document(theme=theme, kind="listening")
            found = set(re.findall(r"[a-z']{4,}", " ".join(m["content"] for m in document["messages"][1::2]).lower()))
            share = max(len(found & (words[key] | common)) / len(found) for key in words if key[0] == theme)
            assert share > 0.75, document  # some words are varied afterwards


def test_weights() -> None:
    state = toy({"end": "9* rare\n1* often"})
    counts = Counter(state.pick(state.table["end"], fresh=False) for _ in range(1000))
    assert 850 < counts["rare"] < 950


def test_remembered_names() -> None:
    state = toy({"line": ["{s=situation}. {s}, {you:s}"]})
    # a message repeats a name once; the next message may do so again
    with pytest.raises(LookupError):
        state.expand("line")
    state = toy({"user": ["{s=situation}"], "reply": ["So {you:s}.", "Missing {f}."]})
    assert state.expand("user") == "I sleep badly"
    assert state.expand("reply") == "So you sleep badly."


def test_nested_alternatives() -> None:
    seen = {toy({"a": ["x(1|2(3|4(|5)))"]}, seed).expand("a") for seed in range(80)}
    assert seen == {"x1", "x23", "x24", "x245"}


@pytest.mark.parametrize("source", ["(a|b", "a|b)", "{nothing", "a}", "{x=unknown}", "{up:x}"])
def test_faulty_templates_are_refused(source: str) -> None:
    with pytest.raises(ValueError):
        compose.Grammar({"a": [source]}, {})


def test_no_long_fixed_runs_in_the_shared_grammar() -> None:
    shared = yaml.safe_load((FOLDER / "shared.yaml").read_text("utf-8"))
    for key, value in shared.items():
        for line in value.splitlines():
            open_line, before = re.sub(r"^\d+\*\s*", "", line), ""
            while before != open_line:
                before, open_line = open_line, re.sub(r"\([^()]*\)|\{[^{}]*\}", "#", open_line)
            assert all(len(run.split()) <= 6 for run in open_line.split("#")), (key, line)


def test_overlap() -> None:
    words = [f"w{n}" for n in range(24)]
    one = {"kind": "message", "text": " ".join(words)}
    half = {"kind": "message", "text": " ".join(words[:12] + ["x"] * 12)}
    assert overlap.overlap([one], [one])[0] == 1.0
    assert overlap.overlap([one], [half])[0] == pytest.approx(1 / 13)
    assert overlap.overlap([one], [])[0] == 0.0
