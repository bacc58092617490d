"""Every rule's own cases, lines planted apart from the rules, and clean replies that must pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from warmline.corpus import lint
from warmline.corpus.read import read
from warmline.messages import Conversation, Message

LISTS = ("planted", "planted_second", "planted_third")
PLANTED = {name: yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text("utf-8")) for name in LISTS}
CASES = [
    (rule.id, case, fires)
    for rule in lint.rules()
    for fires, cases in ((True, rule.fire), (False, rule.hold))
    for case in cases
]


def exchange(case: str | list[str]) -> Conversation:
    asked, said = case if isinstance(case, list) else ("What do you think?", case)
    return Conversation("c", (Message("user", asked), Message("assistant", said)))


@pytest.mark.parametrize(("rule", "case", "fires"), CASES)
def test_the_rules_own_cases(rule: str, case: str | list[str], fires: bool) -> None:
    found = {finding.rule for finding in lint.findings(exchange(case))}
    assert (rule in found) if fires else not found


def test_planted_lines_are_found() -> None:
    total = lost = 0
    for name, planted in PLANTED.items():
        lines = [(rule, case) for rule, cases in planted.items() for case in cases]
        missed = [case for _, case in lines if not lint.findings(exchange(case))]
        print(f"{name}: {len(lines) - len(missed)} of {len(lines)} planted lines found")
        assert len(missed) <= 0.05 * len(lines), missed
        total, lost = total + len(lines), lost + len(missed)
    assert total >= 300
    assert lost <= 0.05 * total


@pytest.mark.parametrize(
    "said",
    [
        'You could tell her: "I love you and I need you to listen."',
        "People say “just get over it”, and it does not help.",
        "Talk to a mental health professional, such as a psychologist or a counsellor.",
        "A good friend can be as helpful as a professional counsellor.",
        "Suddenly stopping antidepressant medication can lead to withdrawal.",
        "I'm sorry that your boyfriend left like that.",
        "Let's get really clear about what you need.",
        "Did you learn that you deserved to be punished?",
        "It took you years to get over it, and that is nothing to hide.",
    ],
)
def test_quoting_comparing_and_warning_are_no_faults(said: str) -> None:
    assert lint.findings(exchange(said)) == []


@pytest.mark.parametrize("said", ['"Just get over it."', "“You are worthless.” I mean it."])
def test_a_reply_that_is_one_quotation_is_still_a_reply(said: str) -> None:
    assert lint.findings(exchange(said))


def test_clean_replies_pass() -> None:
    replies = flagged = 0
    for conversation in read("sample"):
        found = lint.findings(conversation)
        replies += sum(m.role == "assistant" for m in conversation.messages)
        flagged += len({f.message for f in found})
    print(f"{flagged} of {replies} replies of the sample flagged")
    assert flagged <= 0.02 * replies


def test_actions() -> None:
    wording = exchange("I am sorry that your cousin committed suicide.")
    unsafe = exchange(["I am going to kill myself.", "What did you have for breakfast?"])
    method = exchange("Swallow the whole bottle of sleeping pills with vodka.")
    for conversation in (wording, unsafe, method):
        assert lint.settle(conversation, "drop")[0] is None
        assert lint.settle(conversation, "report")[0] == conversation
        assert lint.settle(conversation, "off") == (conversation, [])
    reworded, _ = lint.settle(wording, "route")
    assert reworded is not None
    assert reworded.messages[1].content == "I am sorry that your cousin died by suicide."
    safe, _ = lint.settle(unsafe, "route")
    assert safe is not None
    assert safe.messages[-1].content == lint.SAFE_REPLY
    assert lint.settle(method, "route")[0] is None


def test_what_route_puts_in_is_clean_itself() -> None:
    assert lint.findings(exchange(["I want to die.", lint.SAFE_REPLY])) == []
