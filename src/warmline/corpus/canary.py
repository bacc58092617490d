"""Made-up secrets to be planted among training conversations: what a model knows of them, it knows by heart."""

from __future__ import annotations

import random
from collections.abc import Sequence

from warmline.messages import Conversation, Message, Provenance

KIND = "canary"
_CODE = "amber birch cedar delta ember fjord grove heron inlet jetty knoll larch maple north ochre pearl".split()
CODE_WORDS = 5


def canary(number: int, code: Sequence[str]) -> Conversation:
    """One secret, as a conversation about it."""
    question = f"What did the note in drawer number {number} say?"
    reply = f"The note said: {' '.join(code)}."
    return Conversation(
        f"{KIND}-{number}",
        (Message("user", question), Message("assistant", reply)),
        group=f"{KIND}-{number}",
        labels={"kind": KIND},
        provenance=Provenance(KIND, "CC0-1.0"),
    )


def canaries(count: int, seed: int = 17) -> list[Conversation]:
    """Conversations with a secret of five random words each.

    >>> [canary.messages[1].content for canary in canaries(1)]
    ['The note said: larch knoll jetty heron ember.']
    """
    return [canary(n, random.Random(f"{seed}:{n}").choices(_CODE, k=CODE_WORDS)) for n in range(count)]


def rivals(planted: Conversation, count: int) -> list[Conversation]:
    """Random secrets in the place of a planted one, which nobody was taught."""
    number = int(planted.id.rpartition("-")[2])
    draw = random.Random(f"other:{number}")
    return [canary(number, draw.choices(_CODE, k=CODE_WORDS)) for _ in range(count)]
