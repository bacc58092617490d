"""Has the model learnt its conversations by heart? Four signs, each enough for an alarm.

passes    every row was seen more often than rows are worth (Muennighoff et al. 2023: nothing is gained beyond 16)
canaries  secrets planted with `data.canaries` are known better than others like them, and the base does not know them
gap       training replies surprise the model far less than held-out ones, more so than they did the base
verbatim  asked what training asked, it says the training reply word for word where the base does not
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from warmline.corpus.canary import rivals
from warmline.evaluate.intervals import Interval, bootstrap, mean
from warmline.evaluate.metrics import sequences
from warmline.evaluate.perplexity import Surprise
from warmline.messages import Conversation

PASSES = 16
GAP = math.log(1.5)
"""Nats per token: held-out perplexity half as large again as training perplexity, beyond what the base shows."""
VERBATIM = 0.1
"""Share of training questions answered word for word, beyond the base's."""
RIVALS = 31
EXPOSED = 3.0
"""Bits: canaries better known than seven of eight secrets like them, on average."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What one system knows of the conversations it was trained on."""

    surprise: Surprise
    verbatim: tuple[bool, ...]
    """For each training question asked: whether the reply is half made of the true reply's eight-word sequences."""
    exposure: tuple[float, ...] = ()
    """Bits by which each planted canary is known, if any were planted."""


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
    known = mean(tuned.exposure) if tuned.exposure else None
    unknown = mean(base.exposure) if base.exposure else None
    if known and unknown and known.value > EXPOSED and known.low > unknown.value:
        reasons.append(
            f"{known.n} planted secrets are known by {known.value:.1f} bits ({unknown.value:.1f} by the base)"
        )
    return {
        "alarm": bool(reasons),
        "reasons": reasons,
        "rows": rows,
        "passes": passes,
        "gap": asdict(gap),
        "verbatim": {"asked": asked, "tuned": said, "base": before},
        "canaries": {"tuned": asdict(known), "base": asdict(unknown)} if known and unknown else None,
    }


# --------------------------------------------------------------------- canaries


def exposure(
    surprise: Callable[[list[Conversation]], Sequence[float]],
    planted: Sequence[Conversation],
    others: int = RIVALS,
) -> list[float]:
    """Bits by which each canary is better known than random secrets in its place (Carlini et al. 2019).

    `surprise` gives the loss of each conversation's reply. Without memory it is 1.4 bits on average; the most it can be
    is log2(others + 1).
    """
    bits = []
    for canary in planted:
        mine, *theirs = surprise([canary, *rivals(canary, others)])
        bits.append(math.log2((others + 1) / (1 + sum(other <= mine for other in theirs))))
    return bits
