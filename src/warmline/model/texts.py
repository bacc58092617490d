"""A whole split as token ids, with what was split or left out counted. Never cuts a text silently."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
    """Conversations longer than the context that became several texts."""
    left_out: int
    """Exchanges (or, by policy, conversations) longer than the context that are not used."""

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
        }


def encode_all(conversations: Iterable[Conversation], template: Template, prompt: recipe.Prompt) -> Texts:
    """Encode conversations by the recipe's policy for those longer than the context.

    Raises:
        DataError: one is too long and the policy is `stop`.
    """
    encoded: list[Encoded] = []
    count = split = left_out = 0
    everything = prompt.supervise == "all"
    for conversation in conversations:
        count += 1
        texts, dropped = template.fit(conversation, prompt.context, all=everything)
        if len(texts) == 1 and not dropped:
            encoded += texts
            continue
        if prompt.too_long == "stop":
            raise DataError(
                f"conversation {conversation.id} is longer than {prompt.context} tokens",
                code="data-too-long",
                hint="raise prompt.context, or set prompt.too_long to `split` or `drop`",
            )
        if prompt.too_long == "drop":
            left_out += 1
            continue
        encoded += texts
        split += 1 if texts else 0
        left_out += dropped
    return Texts([text for text in encoded if text.targets], count, split, left_out)
