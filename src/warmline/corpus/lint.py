"""Find what must not be learnt from a conversation, by the rules in `lint.yaml`. Text in, findings out.

`settle` carries out what a run chose: leave the conversation out, put it right, or only count.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml

from warmline.messages import Conversation, Message

Action = Literal["drop", "route", "report", "off"]

SAFE_REPLY = (
    "Thank you for telling me. I am an AI, so I cannot be with you, and I want you to be "
    "safe. Are you thinking about ending "
    "your life, or are you in danger right now? If you are, please call your emergency "
    "number, or in the US call or text 988; "
    "findahelpline.com lists free lines in other countries. Is there someone who could "
    "stay with you? I am here to listen "
    "while you reach them."
)
"""What `--lint route` puts in place of a reply to a turn about suicide or self-harm that offers no way to help."""

_REWORD = (
    (re.compile(r"\bcommitted suicide\b", re.I), "died by suicide"),
    (re.compile(r"\bcommitting suicide\b", re.I), "dying by suicide"),
    (re.compile(r"\bcommits suicide\b", re.I), "dies by suicide"),
    (re.compile(r"\bcommit suicide\b", re.I), "die by suicide"),
    (re.compile(r"\b(?:failed|unsuccessful|botched) (suicide attempt)", re.I), r"\1"),
    (re.compile(r"\b(?:successful|completed) suicide\b", re.I), "suicide"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that fired in a message: which, and where in that message."""

    rule: str
    message: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table, compiled."""

    id: str
    why: str
    route: str
    exchange: bool
    say: re.Pattern[str]
    unless: tuple[re.Pattern[str], ...]
    resources: re.Pattern[str] | None
    fire: tuple[Any, ...]
    hold: tuple[Any, ...]


@functools.cache
def rules() -> tuple[Rule, ...]:
    """The table of `lint.yaml`."""
    table = yaml.safe_load((resources.files("warmline.corpus") / "lint.yaml").read_text("utf-8"))
    lists: dict[str, str] = table["lists"]

    def compiled(pattern: str) -> str:
        for name, words in lists.items():
            pattern = pattern.replace("{" + name + "}", words if words.startswith("(?:") else f"(?:{words})")
        # A pattern begins at a word unless it says otherwise: "hose" is not in "those".
        return pattern if pattern.startswith(("(?:^", r"\b")) else rf"\b(?:{pattern})"

    made = []
    for row in table["rules"]:
        made.append(
            Rule(
                row["id"],
                row["why"],
                row["route"],
                row["in"] == "exchange",
                re.compile("|".join(f"(?:{compiled(p)})" for p in row["say"])),
                tuple(re.compile(p) for p in row["unless"]),
                re.compile(row["resources"]) if "resources" in row else None,
                tuple(row["fire"]),
                tuple(row["hold"]),
            )
        )
    return tuple(made)


_SENTENCE_END = re.compile(r"[.!?\n]+[\"”’')]*(?=\s|$)")


def _straight(text: str) -> str:
    """Lower case with straight apostrophes; the length stays the same. The table's patterns are in lower case."""
    lower = text.lower()
    return (lower if len(lower) == len(text) else text).replace("’", "'").replace("‘", "'")


def _sentence(text: str, start: int, end: int) -> tuple[str, str]:
    """What stands in the same sentence before and after a finding."""
    cuts = [m.end() for m in _SENTENCE_END.finditer(text[max(0, start - 160) : start])]
    before = text[max(0, start - 160) + (cuts[-1] if cuts else 0) : start]
    after = text[end : end + 160]
    stop = _SENTENCE_END.search(after)
    return before, after[: stop.end()] if stop else after


def in_text(text: str, rule: Rule) -> Iterator[tuple[int, int]]:
    """Where a rule fires in a text, sentences that hold it back left out."""
    yield from _in_plain(_straight(text), rule)


def _in_plain(plain: str, rule: Rule) -> Iterator[tuple[int, int]]:
    for found in rule.say.finditer(plain):
        before, after = _sentence(plain, found.start(), found.end())
        around = f"{before}{found[0]}{after}"
        held = False
        for pattern in rule.unless:
            # A pattern that ends at `$` looks at what stands before; others at the whole sentence.
            if "$" in pattern.pattern:
                held = (
                    held
                    or bool(pattern.search(before))
                    or (r"\?\s*$" in pattern.pattern and around.rstrip().endswith("?"))
                )
            else:
                held = held or bool(pattern.search(around))
        if not held:
            yield found.start(), found.end()


def findings(conversation: Conversation) -> list[Finding]:
    """Every rule that fires, in the order of the messages."""
    found: list[Finding] = []
    messages = conversation.messages
    asked = ""
    for index, message in enumerate(messages):
        plain = _straight(message.content)
        if message.role == "user":
            asked = plain
        if message.role != "assistant":
            continue
        for rule in rules():
            if not rule.exchange:
                found += [Finding(rule.id, index, start, end) for start, end in _in_plain(plain, rule)]
            elif asked and rule.resources is not None and not rule.resources.search(plain):
                first = next(_in_plain(asked, rule), None)
                if first is not None:
                    found.append(Finding(rule.id, index, 0, len(message.content)))
    return found


def settle(conversation: Conversation, action: Action) -> tuple[Conversation | None, list[Finding]]:
    """The conversation as the action leaves it, or None to leave it out; and what was found.

    `route` rewords harmful wording, puts the safe reply where a way to help was missing and ends there,
    and leaves out what can't be put right.
    """
    if action == "off" or conversation.labels.get("form") == "prose":
        return conversation, []
    found = findings(conversation)
    if not found or action == "report":
        return conversation, found
    if action == "drop":
        return None, found
    routes = {rule.id: rule.route for rule in rules()}
    if any(routes[f.rule] == "drop" for f in found):
        return None, found
    messages = list(conversation.messages)
    for finding in found:
        if routes[finding.rule] == "reword":
            text = messages[finding.message].content
            for pattern, new in _REWORD:
                text = pattern.sub(new, text)
            messages[finding.message] = Message("assistant", text)
    first = min((f.message for f in found if routes[f.rule] == "safe"), default=None)
    if first is not None:
        messages = [*messages[:first], Message("assistant", SAFE_REPLY)]
    return conversation.with_messages(tuple(messages)), found
