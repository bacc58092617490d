"""A whole split as token ids, with what was split or left out counted. Never cuts a text silently."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from warmline import recipe
from warmline.errors import DataError
from warmline.messages import Conversation
from warmline.model.template import Encoded, Template


@dataclass(frozen=True, slots=True)
class Texts:
    """Encoded texts and the count of what did not go in as it was."""

    encoded: list[Encoded]
    conversations: int
    split: int
    """Conversations longer than the context of which one or more texts are used."""
    left_out: int
    """Exchanges (or, by policy, conversations) longer than the context that are not used."""
    without_reply: int = 0
    """Texts not used because nobody's words in them are to be learnt: no reply follows."""

    @property
    def tokens(self) -> int:
        return sum(len(text) for text in self.encoded)

    @property
    def targets(self) -> int:
        return sum(text.targets for text in self.encoded)

    def summary(self) -> dict[str, int]:
        return {
            "conversations": self.conversations,
            "texts": len(self.encoded),
            "tokens": self.tokens,
            "targets": self.targets,
            "split": self.split,
            "left_out": self.left_out,
            "without_reply": self.without_reply,
        }


def encode_all(conversations: Iterable[Conversation], template: Template, prompt: recipe.Prompt) -> Texts:
    """Encode conversations by the recipe's policy for those longer than the context.

    Raises:
        DataError: some are too long and the policy is `stop`; all are counted.
    """
    encoded: list[Encoded] = []
    too_long: list[str] = []
    count = split = left_out = 0
    for conversation in conversations:
        count += 1
        texts, dropped = template.fit(conversation, prompt.context, all=prompt.supervise == "all")
        if len(texts) > 1 or dropped:
            too_long.append(conversation.id)
            if prompt.too_long != "split":
                left_out += 1
                continue
            split += 1 if texts else 0
            left_out += dropped
        encoded += [replace(text, group=conversation.group or conversation.id) for text in texts]
    if too_long and prompt.too_long == "stop":
        raise DataError(
            f"{len(too_long):,} of {count:,} conversations are longer than {prompt.context:,} tokens",
            code="data-too-long",
            where=", ".join(too_long[:5]),
            hint="raise prompt.context, or set prompt.too_long to `split` or `drop`",
        )
    learnt = [text for text in encoded if text.targets]
    return Texts(learnt, count, split, left_out, len(encoded) - len(learnt))


@dataclass(frozen=True, slots=True)
class Piece:
    """Words of a text as the model sees them: whether they carry the loss, and whether they are one control token."""

    text: str
    learnt: bool
    control: bool


def spelt(text: Encoded, template: Template) -> list[Piece]:
    """A text in letters, control tokens included, for a person to look at."""
    pieces: list[Piece] = []
    stop, before = 0, ""
    marks = [
        (target, i in template.control_ids, place if i in template.control_ids else -1)
        for place, (i, target) in enumerate(zip(text.ids, text.supervised, strict=True))
    ]
    for (learnt, control, _), run in groupby(marks):
        stop += len(list(run))
        # What comes new, not the run by itself: some tokenizers drop the space before the first word of any text.
        now = template.tokenizer.decode(text.ids[:stop], clean_up_tokenization_spaces=False)
        pieces.append(Piece(now[len(before) :], learnt, control))
        before = now
    return pieces
