"""Find what must not be learnt from a conversation, by the rules in `lint.yaml` and the classifier beside them.

`settle` carries out what a run chose: leave the conversation out, put it right, or only count.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import regex
import yaml

from warmline.corpus import lint_classify
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
    (
        re.compile(
            r"\b(?:failed|unsuccessful|botched|successful|completed) (suicide(?: attempts?)?|attempts?)\b", re.I
        ),
        r"\1",
    ),
    (re.compile(r"\bcompletes? suicide\b", re.I), "die by suicide"),
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
    quotable: bool
    """Holds not in a quotation: "tell her: 'I love you'"."""
    say: tuple[re.Pattern[str], ...]
    """Begins at a word, at a mark, or with the text; the first that matches counts."""
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
                row.get("quotable", False),
                tuple(re.compile(compiled(p)) for p in row["say"]),
                tuple(re.compile(p) for p in row["unless"]),
                re.compile(row["resources"]) if "resources" in row else None,
                tuple(row["fire"]),
                tuple(row["hold"]),
            )
        )
    return tuple(made)


_SENTENCE_END = re.compile(r"[.!?\n]+[\"”’')]*(?=\s|$)")


def straight(text: str) -> str:
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


_START = re.compile(r"(?<!\w)\w|[^\w\s]|^")
_FIRST = 4
"""Characters by which it is told which patterns can match somewhere."""


@functools.lru_cache(maxsize=65_536)
def _beginning(first: str, exchange: bool) -> tuple[tuple[Rule, tuple[re.Pattern[str], ...]], ...]:
    """The patterns that can match where a text goes on with `first`; most words begin none."""
    if not first:
        return tuple((rule, rule.say) for rule in rules() if rule.exchange == exchange)
    found = []
    for rule, patterns in _beginning(first[:-1], exchange):
        able = tuple(p for p in patterns if _partial(p.pattern).match(first, partial=True))
        if able:
            found.append((rule, able))
    return tuple(found)


@functools.cache
def _partial(pattern: str) -> Any:
    return regex.compile(pattern)


def in_text(plain: str, *, exchange: bool = False) -> Iterator[tuple[Rule, int, int]]:
    """Where rules fire in a text (lower case, straight apostrophes), sentences that hold them back left out.

    `exchange`: the rules about what a person says, which ask something of the reply; otherwise those about replies.
    """
    until: dict[str, int] = {}
    for start in [m.start() for m in _START.finditer(plain)]:
        for rule, patterns in _beginning(plain[start : start + _FIRST], exchange):
            if start < until.get(rule.id, 0):
                continue
            for pattern in patterns:
                if found := pattern.match(plain, start):
                    until[rule.id] = found.end()
                    if not _held(plain, rule, found):
                        yield rule, start, found.end()
                    break


def _quoted(plain: str, start: int) -> bool:
    """Within quotation marks that the same paragraph opens and closes, after words of the reply's own."""
    top = plain.rfind("\n", 0, start) + 1
    before, after = plain[top:start], plain[start : start + 400].split("\n")[0]
    opened = before.count('"') % 2 == 1 and '"' in after
    curly = before.rfind("“") > before.rfind("”") and "”" in after
    return (opened or curly) and before.lstrip()[:1] not in ('"', "“")


def _held(plain: str, rule: Rule, found: re.Match[str]) -> bool:
    if rule.quotable and _quoted(plain, found.start()):
        return True
    before, after = _sentence(plain, found.start(), found.end())
    around = f"{before}{found[0]}{after}"
    for pattern in rule.unless:
        # A pattern that ends at `$` looks at what stands before; others at the whole sentence.
        if "$" in pattern.pattern:
            if pattern.search(before) or (r"\?\s*$" in pattern.pattern and around.rstrip().endswith("?")):
                return True
        elif pattern.search(around):
            return True
    return False


RISK = "no-resources"


@functools.lru_cache(maxsize=4_096)
def _unanswered(asked: str) -> re.Pattern[str] | None:
    """What the reply to this turn must name, if the turn speaks of suicide or self-harm."""
    fires = {rule.id: rule for rule, _, _ in in_text(asked, exchange=True)}
    if not fires:
        judged = lint_classify.judged(asked) if lint_classify.grim(asked) else ()
        if all(rule != RISK for rule, _, _ in judged):
            return None
    return next(rule.resources for rule in rules() if rule.id == RISK)


@functools.lru_cache(maxsize=4_096)
def _in_reply(plain: str) -> tuple[tuple[int, int, int], ...]:
    """What fires in a reply: places in the table with start and end. Many corpora hold a reply more than once."""
    rank = {rule.id: at for at, rule in enumerate(rules())}
    hits = [(rank[rule.id], start, end) for rule, start, end in in_text(plain)]
    if not hits:  # a pattern names its rule better than a guess does, and one finding is enough to act on
        judged = {rank[rule]: (start, end) for rule, start, end in lint_classify.judged(plain)}
        hits = [(at, *place) for at, place in judged.items() if not rules()[at].exchange]
    return tuple(sorted(hits))


def findings(conversation: Conversation) -> list[Finding]:
    """Every rule that fires, in the order of the messages, then of the table."""
    found: list[Finding] = []
    messages = conversation.messages
    asked = ""
    for index, message in enumerate(messages):
        plain = straight(message.content)
        if message.role == "user":
            asked = plain
        if message.role != "assistant":
            continue
        found += [Finding(rules()[at].id, index, start, end) for at, start, end in _in_reply(plain)]
        if asked and (unsafe := _unanswered(asked)) and not unsafe.search(plain):
            found.append(Finding(RISK, index, 0, len(message.content)))
    return found


def settle(conversation: Conversation, action: Action) -> tuple[Conversation | None, list[Finding]]:
    """The conversation as the action leaves it, or None to leave it out; and what was found.

    `route` rewords harmful wording, puts the safe reply where a way to help was missing and ends there,
    and leaves out what can't be put right, wording that the replacements do not reach among it.
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
            if any(rule.id == finding.rule for rule, _, _ in in_text(straight(text))):
                return None, found
            messages[finding.message] = Message("assistant", text)
    first = min((f.message for f in found if routes[f.rule] == "safe"), default=None)
    if first is not None:
        messages = [*messages[:first], Message("assistant", SAFE_REPLY)]
    return conversation.with_messages(tuple(messages)), found
