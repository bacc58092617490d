"""Several conversations in one row of tokens, each seeing only itself: exact, and no padding is computed.

Knows nothing of templates or loss. Attention is made per conversation by `attend`, registered with transformers under
the name `warmline`; architectures with an attention of their own (Falcon) compute a pack's conversations one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from warmline.model.template import Encoded


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Group items into rows of at most `capacity` tokens: best fit, longest first. Returns indices into `lengths`.

    An item is never cut; one longer than `capacity` gets a row of its own.

    >>> best_fit([3, 7, 4, 2], capacity=8)
    [[1], [2, 0], [3]]
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        best = min((r for r in range(len(rows)) if free[r] >= lengths[index]), key=lambda r: free[r], default=None)
        if best is None:
            rows.append([index])
            free.append(capacity - lengths[index])
        else:
            rows[best].append(index)
            free[best] -= lengths[index]
    return rows


@dataclass(frozen=True, slots=True)
class Pack:
    """One row for the model. `ids` and `positions` are [1, tokens], `boundaries` has one entry more than conversations.

    `rows` [targets] are the places whose output predicts a supervised token, `labels` [targets] those tokens,
    `owners` [targets] which conversation of the pack each belongs to.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    boundaries: tuple[int, ...]
    rows: torch.Tensor
    labels: torch.Tensor
    owners: torch.Tensor
    names: tuple[str, ...]

    def to(self, device: torch.device | str) -> Pack:
        return Pack(
            self.ids.to(device),
            self.positions.to(device),
            self.boundaries,
            self.rows.to(device),
            self.labels.to(device),
            self.owners.to(device),
            self.names,
        )


def pack(texts: Sequence[Encoded]) -> Pack:
    """Lay texts end to end."""
    ids: list[int] = []
    positions: list[int] = []
    boundaries = [0]
    rows: list[int] = []
    labels: list[int] = []
    owners: list[int] = []
    for owner, text in enumerate(texts):
        start = len(ids)
        ids += text.ids
        positions += range(len(text.ids))
        boundaries.append(len(ids))
        for place in range(1, len(text.ids)):
            if text.supervised[place]:
                rows.append(start + place - 1)
                labels.append(text.ids[place])
                owners.append(owner)
    return Pack(
        torch.tensor([ids]),
        torch.tensor([positions]),
        tuple(boundaries),
        torch.tensor(rows),
        torch.tensor(labels),
        torch.tensor(owners),
        tuple(text.owner for text in texts),
    )


def packs(texts: Sequence[Encoded], capacity: int) -> list[Pack]:
    """Pack texts into as few rows of `capacity` tokens as best-fit-decreasing finds."""
    return [pack([texts[i] for i in row]) for row in best_fit([len(text) for text in texts], capacity)]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    boundaries: tuple[int, ...] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each conversation: query [1, heads, tokens, width] → [1, tokens, heads, width]."""
    lengths = [end - start for start, end in pairwise(boundaries or (0, query.shape[2]))]
    grouped = query.shape[1] != key.shape[1]
    kept = value.dtype
    on_cpu = query.device.type == "cpu"
    if on_cpu:  # for turns of about 100 tokens the backward of the CPU kernel is three times faster in fp32 than in bf16
        query, key, value = query.float(), key.float(), value.float()
    outputs = []
    # split, not slices: the backward of a slice fills a whole pack with zeros for each conversation
    for q, k, v in zip(*(torch.split(tensor, lengths, dim=2) for tensor in (query, key, value)), strict=True):
        length = q.shape[2]
        mask = None
        if sliding_window is not None and length > sliding_window:
            places = torch.arange(length, device=q.device)
            behind = places[:, None] - places[None, :]
            mask = (behind >= 0) & (behind < sliding_window)
        with torch.autocast(query.device.type, enabled=False) if on_cpu else contextlib.nullcontext():
            outputs.append(
                scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=mask,
                    is_causal=mask is None,
                    scale=scaling,
                    enable_gqa=grouped,
                    dropout_p=dropout if module.training else 0.0,
                )
            )
    return torch.cat(outputs, dim=2).to(kept).transpose(1, 2), None


AttentionInterface.register("warmline", attend)


def prepare(model: Any) -> None:
    """Let `model` attend per conversation where its architecture can be told how; generation wants `sdpa` again."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_attn_implementation("warmline" if base._supports_attention_backend else "sdpa")


def logits(model: Any, packed: Pack) -> torch.Tensor:
    """Logits [targets, vocabulary] at the places that predict a supervised token; no others are computed."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base.config._attn_implementation == "warmline":
        return _forward(model, packed.ids, packed.positions, packed.rows, boundaries=packed.boundaries)
    # Falcon's own attention ignores positions when it makes its mask, so a pack would see across conversations.
    pieces = []
    for start, end in pairwise(packed.boundaries):
        rows = packed.rows[(packed.rows >= start) & (packed.rows < end)] - start
        if len(rows):
            pieces.append(_forward(model, packed.ids[:, start:end], packed.positions[:, start:end], rows))
    return torch.cat(pieces)


def _forward(model: Any, ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, **extra: Any) -> torch.Tensor:
    output = model(
        input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False, logits_to_keep=rows, **extra
    )
    result: torch.Tensor = output.logits[0]
    return result


def surprise(model: Any, packed: Pack) -> torch.Tensor:
    """Negative log-likelihood in nats of each supervised token [targets], fp32."""
    return torch.nn.functional.cross_entropy(logits(model, packed).float(), packed.labels, reduction="none")
