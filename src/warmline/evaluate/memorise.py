"""Has the model learnt its conversations by heart? Three signs, each enough for an alarm, and a probe with canaries.

passes    every row was seen more often than rows are worth (Muennighoff et al. 2023: nothing is gained beyond 16)
gap       training replies surprise the model far less than held-out ones, more so than they did the base
verbatim  asked what training asked, it says the training reply word for word where the base does not
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from warmline.evaluate.intervals import Interval, bootstrap
from warmline.evaluate.metrics import sequences
from warmline.evaluate.perplexity import Surprise
from warmline.messages import Conversation, Message, Provenance

PASSES = 16
GAP = math.log(1.5)
"""Nats per token: held-out perplexity half as large again as training perplexity, beyond what the base shows."""
VERBATIM = 0.1
"""Share of training questions answered word for word, beyond the base's."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What one system knows of the conversations it was trained on."""

    surprise: Surprise
    verbatim: tuple[bool, ...]
    """For each training question asked: whether the reply is half made of the true reply's eight-word sequences."""


def verbatim(said: str, true: str) -> bool:
    """
    >>> verbatim("Well, one two three four five six seven eight nine", "one two three four five six seven eight")
    True
    """
    known = sequences(true)
    return bool(known) and len(sequences(said) & known) >= len(known) / 2


def _gap(trained: Surprise, held_out: Surprise, base_trained: Surprise, base_held_out: Surprise) -> Interval:
    """Held-out loss minus training loss, beyond that of the base; each side's conversations resampled."""
    sides = [
        (np.array(mine.nats) - np.array(base.nats), np.array(mine.tokens))
        for mine, base in ((trained, base_trained), (held_out, base_held_out))
    ]
    (inside, inside_tokens), (outside, outside_tokens) = sides
    value = outside.sum() / outside_tokens.sum() - inside.sum() / inside_tokens.sum()
    rng = np.random.default_rng(17)

    def drawn(draws: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        others = rng.integers(0, len(inside), size=(len(draws), len(inside)))
        return np.asarray(
            outside[draws].sum(1) / outside_tokens[draws].sum(1) - inside[others].sum(1) / inside_tokens[others].sum(1)
        )

    return bootstrap(drawn, len(outside), float(value))


def alarm(
    rows: int, passes: float, tuned: Memory, base: Memory, tuned_held_out: Surprise, base_held_out: Surprise
) -> dict[str, Any]:
    """The verdict with its numbers; `reasons` is empty when there is nothing to fear."""
    gap = _gap(tuned.surprise, tuned_held_out, base.surprise, base_held_out)
    said, before = sum(tuned.verbatim), sum(base.verbatim)
    asked = len(tuned.verbatim)
    reasons = []
    if passes > PASSES:
        reasons.append(f"each of {rows:,} conversations was seen {passes:g} times; beyond {PASSES} nothing is gained")
    if gap.value > GAP and gap.side() == "higher":
        times = math.exp(gap.value)
        reasons.append(f"held-out replies surprise it {times:.1f} times as much as training replies, beyond the base")
    if asked and (said - before) / asked > VERBATIM:
        reasons.append(f"{said} of {asked} training questions are answered word for word ({before} by the base)")
    return {
        "alarm": bool(reasons),
        "reasons": reasons,
        "rows": rows,
        "passes": passes,
        "gap": asdict(gap),
        "verbatim": {"asked": asked, "tuned": said, "base": before},
    }


# --------------------------------------------------------------------- canaries

_CODE = "amber birch cedar delta ember fjord grove heron inlet jetty knoll larch maple north ochre pearl".split()
CODE_WORDS = 5


def _canary(number: int, code: Sequence[str]) -> Conversation:
    question = f"What did the note in drawer number {number} say?"
    reply = f"The note said: {' '.join(code)}."
    return Conversation(
        f"canary-{number}",
        (Message("user", question), Message("assistant", reply)),
        labels={"kind": "canary"},
        provenance=Provenance("canary", "CC0-1.0"),
    )


def canaries(count: int, seed: int = 17) -> list[Conversation]:
    """Conversations with a secret of five random words each, to be planted in a training split.

    >>> [canary.messages[1].content for canary in canaries(1)]
    ['The note said: larch knoll jetty heron ember.']
    """
    return [_canary(n, random.Random(f"{seed}:{n}").choices(_CODE, k=CODE_WORDS)) for n in range(count)]


def exposure(
    surprise: Callable[[list[Conversation]], Sequence[float]], planted: Sequence[Conversation], others: int = 127
) -> list[float]:
    """Bits by which each canary is better known than random secrets in its place (Carlini et al. 2019).

    `surprise` gives the loss of each conversation's reply. Without memory it is 1.44 bits on average; the most it can
    be is log2(others + 1).
    """
    bits = []
    for canary in planted:
        number = int(canary.id.rpartition("-")[2])
        draw = random.Random(f"other:{number}")
        rivals = [_canary(number, draw.choices(_CODE, k=CODE_WORDS)) for _ in range(others)]
        mine, *theirs = surprise([canary, *rivals])
        bits.append(math.log2((others + 1) / (1 + sum(other <= mine for other in theirs))))
    return bits
