"""How surprised a model is by held-out replies, with an interval. Knows nothing of where they come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from warmline.model import pack as packing
from warmline.model.template import Encoded


@dataclass(frozen=True, slots=True)
class Surprise:
    """Summed negative log-likelihood (nats) and supervised tokens of each conversation, in the same order."""

    owners: tuple[str, ...]
    nats: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % bootstrap interval over `n` conversations."""

    value: float
    low: float
    high: float
    n: int


@torch.no_grad()
def surprise(model: Any, texts: Sequence[Encoded], capacity: int = 2048) -> Surprise:
    """Measure every text; texts of one conversation are added up. No text sees another."""
    model.eval()
    packing.prepare(model)
    device = next(model.parameters()).device
    nats: dict[str, float] = {text.owner: 0.0 for text in texts}
    tokens: dict[str, int] = {text.owner: 0 for text in texts}
    for packed in packing.packs(texts, capacity):
        packed = packed.to(device)
        losses = packing.surprise(model, packed).double()
        for index, owner in enumerate(packed.names):
            mine = losses[packed.owners == index]
            nats[owner] += float(mine.sum())
            tokens[owner] += len(mine)
    return Surprise(tuple(nats), tuple(nats.values()), tuple(tokens.values()))


def _draws(n: int, samples: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(0, n, size=(samples, n))


def perplexity(measured: Surprise, samples: int = 2000, seed: int = 17) -> Interval:
    """exp of the mean loss per token; conversations are resampled whole, for their tokens depend on one another."""
    nats, tokens = np.array(measured.nats), np.array(measured.tokens)
    value = math.exp(nats.sum() / tokens.sum())
    draws = _draws(len(nats), samples, seed)
    drawn = np.exp(nats[draws].sum(1) / tokens[draws].sum(1))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high), len(nats))


def ratio(after: Surprise, before: Surprise, samples: int = 2000, seed: int = 17) -> Interval:
    """Perplexity after divided by before, paired: both are resampled by the same conversations. Below 1 is better.

    Raises:
        ValueError: the two were not measured on the same conversations with the same tokens.
    """
    if after.owners != before.owners or after.tokens != before.tokens:
        raise ValueError("the two measurements are of different texts")
    difference = np.array(after.nats) - np.array(before.nats)
    tokens = np.array(after.tokens)
    draws = _draws(len(tokens), samples, seed)
    drawn = np.exp(difference[draws].sum(1) / tokens[draws].sum(1))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(math.exp(difference.sum() / tokens.sum()), float(low), float(high), len(tokens))
