"""How surprised a model is by held-out replies, with an interval. Knows nothing of where they come from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from warmline.evaluate.intervals import Interval, bootstrap
from warmline.model import pack as packing
from warmline.model.template import Encoded


@dataclass(frozen=True, slots=True)
class Surprise:
    """Summed negative log-likelihood (nats) and supervised tokens of each conversation, in the same order."""

    owners: tuple[str, ...]
    nats: tuple[float, ...]
    tokens: tuple[int, ...]


@contextlib.contextmanager
def attending_in_packs(model: Any) -> Iterator[None]:
    """Attend within packs in this block; afterwards the model can reply again."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.config._attn_implementation
    model.eval()
    packing.prepare(model)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


@torch.no_grad()
def surprise(model: Any, texts: Sequence[Encoded], capacity: int = 2048, *, adapter: bool = True) -> Surprise:
    """Measure every text, with the model's adapter on or off; texts of one conversation are added up.

    No text sees another.
    """
    nats: dict[str, float] = {text.owner: 0.0 for text in texts}
    tokens: dict[str, int] = {text.owner: 0 for text in texts}
    switched = contextlib.nullcontext() if adapter or not hasattr(model, "disable_adapter") else model.disable_adapter()
    with attending_in_packs(model), switched:
        device = next(model.parameters()).device
        for packed in packing.packs(texts, capacity):
            packed = packed.to(device)
            losses = packing.surprise(model, packed).double()
            for index, owner in enumerate(packed.names):
                mine = losses[packed.owners == index]
                nats[owner] += float(mine.sum())
                tokens[owner] += len(mine)
    return Surprise(tuple(nats), tuple(nats.values()), tuple(tokens.values()))


def perplexity(measured: Surprise) -> Interval:
    """exp of the mean loss per token; conversations are resampled whole, for their tokens depend on one another."""
    nats, tokens = np.array(measured.nats), np.array(measured.tokens)
    return bootstrap(
        lambda draws: np.exp(nats[draws].sum(1) / tokens[draws].sum(1)),
        len(nats),
        math.exp(nats.sum() / tokens.sum()),
    )


def ratio(after: Surprise, before: Surprise) -> Interval:
    """Perplexity after divided by before, paired: both are resampled by the same conversations. Below 1 is better.

    Raises:
        ValueError: the two were not measured on the same conversations with the same tokens.
    """
    if after.owners != before.owners or after.tokens != before.tokens:
        raise ValueError("the two measurements are of different texts")
    difference = np.array(after.nats) - np.array(before.nats)
    tokens = np.array(after.tokens)
    return bootstrap(
        lambda draws: np.exp(difference[draws].sum(1) / tokens[draws].sum(1)),
        len(tokens),
        math.exp(difference.sum() / tokens.sum()),
    )
