"""Causal attention of one short text on a CPU, by matrix products of blocks, forward and backward.

torch's own CPU kernel takes half as long again, or more, to train texts of a few hundred tokens. Scores and softmax are
fp32. Keeps the probabilities for backward, so it is meant for texts of at most `LONGEST` tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LONGEST = 1024
"""Tokens beyond which the probabilities kept take more memory than they save time."""
BLOCK = 128


def attend_short(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None = None
) -> torch.Tensor:
    """query [1, heads, tokens, width], key and value [1, groups, seen + tokens, width] → [1, heads, tokens, width].

    The last query sees every key; one `n` places before it sees all but the last `n`, and with `window` only so many
    of the latest. `seen` keys come before the first query: a prefix that other texts share.
    """
    return _short(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale, window)


def _hidden(start: int, stop: int, seen: int, first: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which keys from `first` on the queries from `start` to `stop` must not see [queries, keys]."""
    places = torch.arange(seen + start, seen + stop, device=device)[:, None]
    keys = torch.arange(first, seen + stop, device=device)[None, :]
    hidden = keys > places
    return hidden if window is None else hidden | (keys <= places - window)


class _Short(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        _, heads, tokens, width = query.shape
        groups, seen, dtype = key.shape[1], key.shape[2] - tokens, query.dtype
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        kept, blocks = [], []
        with torch.autocast(query.device.type, enabled=False):
            precise = key[0].float()
            for start in range(0, tokens, BLOCK):
                stop = min(tokens, start + BLOCK)
                first = 0 if window is None else max(0, seen + start - window + 1)
                some = query[0, :, start:stop].reshape(groups, -1, width)
                scores = (some.float() * scale) @ precise[:, first : seen + stop].transpose(1, 2)
                scores = scores.view(heads, stop - start, -1)
                # Without a window only the block's own keys can be ahead of a query.
                doubtful = seen + start if window is None else first
                hidden = _hidden(start, stop, seen, doubtful, window, query.device)
                scores[:, :, doubtful - first :].masked_fill_(hidden, float("-inf"))
                shares = torch.softmax(scores, -1).to(dtype)
                mixed = shares.view(groups, some.shape[1], -1) @ value[0, :, first : seen + stop]
                output[0, :, start:stop] = mixed.view(heads, stop - start, width)
                kept.append(shares)
                blocks.append((start, stop, first))
        ctx.save_for_backward(query, key, value, *kept)
        ctx.blocks, ctx.scale = blocks, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        _, heads, tokens, width = query.shape
        groups, seen = key.shape[1], key.shape[2] - tokens
        to_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        to_key, to_value = (torch.zeros(groups, seen + tokens, width) for _ in range(2))
        for (start, stop, first), shares in zip(ctx.blocks, kept, strict=True):
            last = seen + stop
            some = query[0, :, start:stop].reshape(groups, -1, width)
            grad = grads[0][0, :, start:stop].reshape(groups, -1, width)
            shared = shares.view(groups, some.shape[1], -1)
            to_value[:, first:last] += shared.transpose(1, 2) @ grad
            to_shares = grad @ value[0, :, first:last].transpose(1, 2)
            to_scores = torch._softmax_backward_data(to_shares.view_as(shares), shares, -1, shares.dtype)
            to_scores = to_scores.view_as(shared)
            to_some = (to_scores @ key[0, :, first:last]).mul_(ctx.scale)
            to_query[0, :, start:stop] = to_some.view(heads, stop - start, width)
            to_key[:, first:last].add_(to_scores.transpose(1, 2) @ some, alpha=ctx.scale)
        return to_query, to_key[None].to(key.dtype), to_value[None].to(value.dtype), None, None


_short: Callable[..., torch.Tensor] = _Short.apply
