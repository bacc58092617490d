"""More training conversations by a language model: paraphrases, other personas, follow-up turns. Always synthetic.

A `Writer` is anything that answers messages: a local model, or any OpenAI-compatible server through `Server`. What it
writes passes through cleaning, anonymising, the lint and a band of likeness to its original (no copy, not adrift), and
is never for validation or test. Interrupted, it goes on where it was; nothing is paid for twice.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from rapidfuzz import fuzz

from warmline import console, runs
from warmline.corpus import clean, dedupe, lint
from warmline.corpus.anonymise import mask_conversation
from warmline.corpus.formats import _SAID, ROLE_OF
from warmline.errors import DataError, EngineError
from warmline.messages import Conversation, Message, Role

Kind = Literal["paraphrase", "persona", "follow-up"]
PERSONAS = (
    "a terse teenager who writes in lower case",
    "a retired person who writes in full, formal sentences",
    "a nurse on night shift who is short of time",
    "somebody who jokes about what hurts",
    "a parent interrupted by small children",
    "somebody writing in plain English as a second language",
)
_RULES = (
    "Write plain text, one line a turn, beginning with `Client:` or `Counsellor:`. No names of people, places or "
    "organisations, no numbers that identify anybody. The counsellor is an AI that "
    "listens: it reflects, asks at most one "
    "open question, never diagnoses, never gives medical advice, never claims to be human. Write nothing else."
)
_ASK: dict[str, str] = {
    "paraphrase": "Say what the client says in other words, with the same meaning, and let the "
    "counsellor answer to that.",
    "persona": "Rewrite the conversation with a client who is {persona}. Keep the trouble and the course of the talk.",
    "follow-up": "Add what the client says next and how the counsellor answers. Write only these two new lines.",
}


@dataclass(frozen=True, slots=True)
class Written:
    """What a writer answered, and the tokens it took."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Writer(Protocol):
    """Anything that answers a list of messages."""

    def __call__(self, messages: Sequence[Message]) -> Written: ...


@dataclass(slots=True)
class Server:
    """An OpenAI-compatible server. Waits as the server asks, tries again what may pass, gives up on what will not."""

    url: str
    model: str
    key: str = field(default_factory=lambda: os.environ.get("OPENAI_API_KEY", ""), repr=False)
    per_minute: float = 60
    """Requests in a minute at most."""
    attempts: int = 5
    timeout: float = 120
    temperature: float = 0.8
    sleep: Callable[[float], None] = time.sleep
    _next: float = field(default=0.0, init=False, repr=False)

    def __call__(self, messages: Sequence[Message]) -> Written:
        """One answer.

        Raises:
            EngineError: the server refuses, or does not answer after all attempts. Never holds the request's words.
        """
        body = json.dumps(
            {
                "model": self.model,
                "messages": [{"role": m.role, "content": m.content} for m in messages],
                "temperature": self.temperature,
                "max_tokens": 1024,
            }
        ).encode()
        last = "no answer"
        for attempt in range(self.attempts):
            self._wait()
            try:
                return self._once(body)
            except urllib.error.HTTPError as error:
                last = f"status {error.code}"
                if error.code not in (408, 409, 425, 429) and error.code < 500:
                    break
                self.sleep(_asked_to_wait(error) or min(60.0, 2.0**attempt))
            except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, IndexError) as error:
                last = type(error).__name__
                self.sleep(min(60.0, 2.0**attempt))
        raise EngineError(
            f"the server at {urllib.parse.urlsplit(self.url).netloc} gives no answer: {last}",
            code="engine-failed",
            hint="check --server, --model and the key in OPENAI_API_KEY; the same command goes on where it stopped",
        )

    def _once(self, body: bytes) -> Written:
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=body,
            headers={
                "Content-Type": "application/json",
                **({"Authorization": f"Bearer {self.key}"} if self.key else {}),
            },
        )
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            answer = json.loads(response.read(4 << 20))
        text = answer["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError("no text")
        usage = answer.get("usage") or {}
        return Written(text, int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))

    def _wait(self) -> None:
        now = time.monotonic()
        if now < self._next:
            self.sleep(self._next - now)
        self._next = max(now, self._next) + 60.0 / self.per_minute


def _asked_to_wait(error: urllib.error.HTTPError) -> float | None:
    try:
        return min(300.0, float(error.headers.get("Retry-After", "")))
    except ValueError:
        return None


@dataclass(slots=True)
class Spent:
    """What has been asked for and what it cost, in whatever money the prices are given."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    price_in: float = 0.0
    """Price of a million prompt tokens."""
    price_out: float = 0.0

    @property
    def cost(self) -> float:
        return (self.prompt_tokens * self.price_in + self.completion_tokens * self.price_out) / 1e6


@dataclass(frozen=True, slots=True)
class Band:
    """Where what is new may stand to its original: at least `low` of its longer words in common, else it has drifted;
    less than `high` alike letter by letter, else it is a copy."""

    low: float = 0.15
    high: float = 0.90


def _stems(text: str) -> set[str]:
    return {word[:5] for word in re.findall(r"[^\W\d_]{4,}", text.lower())}


def _in_common(one: str, other: str) -> float:
    """Dice's coefficient over the beginnings of longer words."""
    a, b = _stems(one), _stems(other)
    return 2 * len(a & b) / max(1, len(a) + len(b))


def turns_of(text: str) -> list[Message]:
    """The turns in a writer's answer; lines without a speaker go on with the one before."""
    turns: list[Message] = []
    for line in text.splitlines():
        said = _SAID.match(line)
        role: Role | None = ROLE_OF.get(said[1].strip().lower()) if said else None
        if said and role in ("user", "assistant"):
            turns.append(Message(role, said[2].strip()))
        elif turns and line.strip():
            turns[-1] = Message(turns[-1].role, f"{turns[-1].content}\n{line.strip()}")
    return turns


def request(conversation: Conversation, kind: Kind, number: int) -> list[Message]:
    """What a writer is asked for a conversation."""
    names = {"user": "Client", "assistant": "Counsellor"}
    shown = "\n".join(
        f"{names[m.role]}: {' '.join(m.content.split())}" for m in conversation.messages if m.role in names
    )
    ask = _ASK[kind].format(persona=PERSONAS[number % len(PERSONAS)])
    return [Message("system", _RULES), Message("user", f"{ask}\n\n{shown}")]


def judge(original: Conversation, kind: Kind, turns: list[Message], band: Band) -> Conversation | str:
    """The new conversation, or the reason it is not taken: form, clean:…, lint:…, copy, drift."""
    old = [m for m in original.messages if m.role != "system"]
    if kind == "follow-up":
        # Some writers repeat the whole talk before what is new.
        fresh = turns[len(old) :] if len(turns) > len(old) and turns[0].content == old[0].content else turns
        if [m.role for m in fresh] != ["user", "assistant"]:
            return "form"
        turns = [*old, *fresh]
        new_words, old_words = fresh[0].content, [m.content for m in old if m.role == "user"]
    else:
        if len(turns) < 2 or turns[0].role != "user":
            return "form"
        new_words = " ".join(m.content for m in turns if m.role == "user")
        old_words = [" ".join(m.content for m in old if m.role == "user")]
    new = replace(original, messages=tuple(turns), labels=original.labels | {"synthetic": "yes", "made": kind})
    cleaned = clean.clean(new, wanted="any")
    if cleaned.conversation is None:
        return f"clean:{cleaned.reason}"
    masked = mask_conversation(cleaned.conversation)
    if found := lint.findings(masked):
        return f"lint:{found[0].rule}"
    if max(fuzz.ratio(new_words.lower(), words.lower()) for words in old_words) > 100 * band.high:
        return "copy"
    if kind != "follow-up" and _in_common(new_words, old_words[-1]) < band.low:
        return "drift"
    return masked


def augment(
    conversations: Iterable[Conversation],
    writer: Writer,
    ledger: Path,
    *,
    kinds: Sequence[Kind] = ("paraphrase",),
    each: int = 1,
    band: Band = Band(),
    limit: int | None = None,
    spent: Spent | None = None,
    budget: float | None = None,
) -> Iterator[Conversation]:
    """New conversations made from training ones, as they come.

    Every answer, taken or not, is a line of `ledger` with its tokens, so a second call asks only for what is missing.

    Raises:
        EngineError: the writer gives no answer.
        DataError: the budget is used up; what was made is kept.
    """
    spent = spent if spent is not None else Spent()
    done: dict[str, dict[str, Any]] = {}
    if ledger.exists():
        done = {row["key"]: row for row in _lines_of(ledger)}
    prints: list[dedupe.Signature] = []
    count = 0
    ledger.parent.mkdir(parents=True, exist_ok=True)
    for conversation in conversations:
        if conversation.labels.get("synthetic") == "yes" or conversation.labels.get("form") == "prose":
            continue
        for kind in kinds:
            for number in range(each):
                if limit is not None and count >= limit:
                    return
                count += 1
                key = f"{conversation.id}/{kind}/{number}"
                row = done.get(key)
                if row is None:
                    if budget is not None and spent.cost >= budget:
                        raise DataError(
                            f"the budget of {budget:g} is used up after {spent.requests:,} requests",
                            code="data-empty",
                            hint="what was made is kept; raise --budget to go on",
                        )
                    row = _ask(conversation, kind, number, writer, key, band)
                    with runs.writing(ledger), open(ledger, "a", encoding="utf-8") as file:
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
                        file.flush()
                        os.fsync(file.fileno())
                spent.requests += 1
                spent.prompt_tokens += row["prompt_tokens"]
                spent.completion_tokens += row["completion_tokens"]
                if row["conversation"] is None:
                    continue
                new = Conversation.from_json(row["conversation"])
                # Two answers may be alike although neither is a copy of its original.
                mine = dedupe.fingerprint(new)[dedupe.ASKED]
                if any(dedupe.likeness(mine, other) >= dedupe.COPY for other in prints[-200:]) and kind != "follow-up":
                    continue
                prints.append(mine)
                yield new


def _lines_of(ledger: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of the ledger; one cut off by a power failure is asked for again."""
    for line in ledger.read_text("utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def _ask(conversation: Conversation, kind: Kind, number: int, writer: Writer, key: str, band: Band) -> dict[str, Any]:
    written = writer(request(conversation, kind, number))
    result = judge(conversation, kind, turns_of(written.text), band)
    new = None
    if isinstance(result, Conversation):
        new = replace(result, id=f"{conversation.id}~{kind}-{number}", group=conversation.group or conversation.id)
    return {
        "key": key,
        "reason": result if isinstance(result, str) else "",
        "prompt_tokens": written.prompt_tokens,
        "completion_tokens": written.completion_tokens,
        "conversation": new.to_json() if new else None,
    }


def augment_folder(
    folder: Path,
    writer: Writer,
    *,
    kinds: Sequence[Kind],
    each: int,
    limit: int | None,
    spent: Spent,
    budget: float | None = None,
) -> dict[str, Any]:
    """Make `synthetic.jsonl` beside the `train.jsonl` of a prepared folder; validation and test are never read.

    Raises:
        DataError: the folder holds no `train.jsonl`.
    """
    train = folder / "train.jsonl"
    if not train.exists():
        raise DataError(
            f"{folder} holds no train.jsonl",
            code="data-missing",
            hint="make it with `warmline data prepare SOURCE -o DIR`",
        )
    ledger = folder / "augment.jsonl"
    wanted = sum(1 for _ in runs.read_jsonl(train)) * len(kinds) * each
    with console.progress("new conversations", min(wanted, limit or wanted)) as bar:

        def shown() -> Iterator[dict[str, Any]]:
            source = (Conversation.from_json(row) for row in runs.read_jsonl(train))
            for new in augment(source, writer, ledger, kinds=kinds, each=each, limit=limit, spent=spent, budget=budget):
                bar.to(spent.requests, f"{spent.requests:,} asked, cost {spent.cost:.2f}")
                yield new.to_json()

        made = runs.write_jsonl(folder / "synthetic.jsonl", shown())
    reasons = Counter(row["reason"] or "taken" for row in _lines_of(ledger))
    return {
        "made": made,
        "requests": spent.requests,
        "reasons": dict(reasons.most_common()),
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "cost": round(spent.cost, 4),
    }
