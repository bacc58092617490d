"""What every system is put to: the same conversations, prompts and seeds. Knows no report.

A part is one file below the evaluation's folder, written when it is complete and never computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from warmline import recipe
from warmline.corpus.canary import KIND
from warmline.corpus.split import hashed
from warmline.engine.base import Call, Engine, Options
from warmline.evaluate import memorise
from warmline.evaluate.batch import ask_all
from warmline.evaluate.leak import Item
from warmline.evaluate.perplexity import Surprise
from warmline.evaluate.suites import Suite
from warmline.messages import Conversation, Message
from warmline.model.template import Encoded, Template
from warmline.model.texts import encode_all
from warmline.runs import read_json, read_jsonl, write_json

PARTS = ("perplexity", "replies", "answers")
"""What every system has."""
TRAINED_ON = 48
"""Training conversations that the memorisation alarm asks about."""


class Speaker(Engine, Protocol):
    """An engine that knows how much fits into its context."""

    template: Template

    def fits(self, messages: list[Message], reserve: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out conversation up to a reply, and that reply."""

    id: str
    messages: tuple[Message, ...]
    reference: str


@dataclass(frozen=True)
class Task:
    """Where the run's files are and what is asked; the same in every process."""

    settings: recipe.Recipe
    data: Path
    train: Path
    folder: Path
    items: int
    contaminated: frozenset[str] = frozenset()
    suites: tuple[Suite, ...] = ()

    def part(self, system: str, name: str, compute: Callable[[], Any]) -> Any:
        """A finished part as it was written, or `compute`d and written now."""
        path = self.folder / system / f"{name}.json"
        if not path.exists():
            write_json(path, compute())
        return read_json(path)

    @cached_property
    def test(self) -> list[Conversation]:
        """The test split without what training holds."""
        rows = (Conversation.from_json(row) for row in read_jsonl(self.data / "test.jsonl"))
        return [c for c in rows if c.id not in self.contaminated]

    @cached_property
    def trained_on(self) -> list[Conversation]:
        """Some of the training split, always the same."""
        rows = [Conversation.from_json(row) for row in read_jsonl(self.data / "train.jsonl")]
        return sorted((c for c in rows if question_of(c) and not _planted(c)), key=_drawn)[:TRAINED_ON]

    @cached_property
    def canaries(self) -> list[Conversation]:
        """The secrets that were planted in the training split."""
        rows = (Conversation.from_json(row) for row in read_jsonl(self.data / "train.jsonl"))
        return [c for c in rows if _planted(c)]

    def encoded(self, conversations: Sequence[Conversation], template: Template) -> tuple[list[Encoded], int]:
        """Texts whose replies alone are scored, and how many exchanges were too long."""
        prompt = self.settings.prompt.model_copy(update={"supervise": "assistant"})
        if prompt.too_long == "stop":
            prompt = prompt.model_copy(update={"too_long": "drop"})
        texts = encode_all(conversations, template, prompt)
        return texts.encoded, texts.left_out

    def questions(self, engine: Speaker) -> list[Question]:
        """The held-out questions that are asked: as many as wanted, drawn by their ids."""
        found = (question_of(c) for c in sorted(self.test, key=_drawn))
        return [q for q in found if q and self.fits(engine, q)][: self.items]

    def fits(self, engine: Speaker, question: Question) -> bool:
        """Whether there is room for the question and a whole reply."""
        return engine.fits(list(question.messages), self.settings.evaluate.new_tokens)

    def seeds(self, count: int) -> list[int]:
        """One for each prompt, the same for every system. With one for all, unsure replies begin alike."""
        return [self.settings.evaluate.seed + number for number in range(count)]

    @property
    def options(self) -> Options:
        asked = self.settings.evaluate
        return Options(asked.new_tokens, asked.temperature, asked.top_p, asked.repetition_penalty, asked.seed)

    def texts(self) -> list[Item]:
        """The recipe's own prompts as items of the leak check."""
        return [Item("prompts", f"prompt {n}", (p,)) for n, p in enumerate(self.settings.evaluate.prompts, 1)]


def _planted(conversation: Conversation) -> bool:
    return conversation.labels.get("kind") == KIND


def _drawn(conversation: Conversation) -> tuple[int, str]:
    return hashed(conversation.id), conversation.id


def question_of(conversation: Conversation) -> Question | None:
    """The conversation up to its last reply; None for prose and for what ends without one."""
    messages = conversation.messages
    last = max((n for n, m in enumerate(messages) if m.role == "assistant"), default=0)
    if conversation.labels.get("form") == "prose" or last == 0 or messages[last - 1].role != "user":
        return None
    return Question(conversation.id, messages[:last], messages[last].content)


def ask(engine: Engine, messages: Sequence[Message], options: Options) -> dict[str, Any]:
    """One bare reply and how it ended, with the seconds to its first words and to its end."""
    call = Call(list(messages), options)
    began = time.monotonic()
    pieces, first = [], None
    for piece in engine.reply(call):
        first = first or time.monotonic() - began
        pieces.append(piece)
    seconds = time.monotonic() - began
    return {
        "reply": "".join(pieces).strip(),
        "stop": call.usage.stop_reason,
        "tokens": call.usage.completion_tokens,
        "first": round(first or seconds, 4),
        "seconds": round(seconds, 4),
    }


Measure = Callable[[list[Encoded]], Surprise]


def carry_out(
    task: Task, system: str, engine: Speaker, measure: Measure, note: Callable[[str], None], *, adapter: bool = True
) -> None:
    """The parts that every system has: perplexity, replies to the recipe's prompts, answers to held-out questions."""
    options = replace(task.options, adapter=adapter)

    def perplexity() -> dict[str, Any]:
        encoded, left_out = task.encoded(task.test, engine.template)
        return {"surprise": asdict(measure(encoded)), "left_out": left_out}

    def replies() -> list[dict[str, Any]]:
        prompts = task.settings.evaluate.prompts
        said = ask_all(engine, [[Message("user", prompt)] for prompt in prompts], options, task.seeds(len(prompts)))
        return [{"prompt": prompt} | row for prompt, row in zip(prompts, said, strict=True)]

    def answers() -> list[dict[str, Any]]:
        asked = task.questions(engine)
        said = ask_all(engine, [question.messages for question in asked], options, task.seeds(len(asked)))
        return [
            {"id": question.id, "asked": question.messages[-1].content, "reference": question.reference} | row
            for question, row in zip(asked, said, strict=True)
        ]

    for name, compute in zip(PARTS, (perplexity, replies, answers), strict=True):
        task.part(system, name, compute)
        note(f"{system}: {name}")


def remember(task: Task, system: str, engine: Speaker, measure: Measure, *, adapter: bool) -> memorise.Memory:
    """What a system knows of training conversations; their questions are asked for the likeliest reply."""

    def memory() -> dict[str, Any]:
        encoded, _ = task.encoded(task.trained_on, engine.template)
        asked = [q for q in map(question_of, task.trained_on[: task.items]) if q and task.fits(engine, q)]
        likeliest = replace(task.options, temperature=0, repetition_penalty=1, adapter=adapter)
        said = ask_all(engine, [q.messages for q in asked], likeliest, task.seeds(len(asked)))
        found = [memorise.verbatim(row["reply"], q.reference) for row, q in zip(said, asked, strict=True)]

        def losses(secrets: list[Conversation]) -> list[float]:  # each replaces the one secret, so all have its name
            named = [replace(secret, id=str(place)) for place, secret in enumerate(secrets)]
            return list(measure(task.encoded(named, engine.template)[0]).nats)

        exposure = memorise.exposure(losses, task.canaries)
        return {"surprise": asdict(measure(encoded)), "verbatim": found, "exposure": exposure}

    found = task.part(system, "memory", memory)
    return memorise.Memory(surprise_of(found), tuple(found["verbatim"]), tuple(found.get("exposure", ())))


def surprise_of(part: dict[str, Any]) -> Surprise:
    return Surprise(**{key: tuple(value) for key, value in part["surprise"].items()})
