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


def _bias(start: int, stop: int, seen: int, first: int, window: int | None, device: torch.device) -> torch.Tensor:
    """What to add to the scores of the queries from `start` to `stop` and the keys from `first` on [queries, keys].

    Added, because filling by a mask takes ten times as long on a CPU.
    """
    places = torch.arange(seen + start, seen + stop, device=device)[:, None]
    keys = torch.arange(first, seen + stop, device=device)[None, :]
    hidden = keys > places
    if window is not None:
        hidden |= keys <= places - window
    return torch.zeros(hidden.shape, device=device).masked_fill_(hidden, float("-inf"))


def _grouped(heads: torch.Tensor, groups: int) -> torch.Tensor:
    """[1, heads, tokens, width] → [groups, tokens · heads of a group, width]: rows that share keys lie together."""
    _, count, _, width = heads.shape
    return heads.view(groups, count // groups, -1, width).transpose(1, 2).reshape(groups, -1, width).contiguous()


def _ungrouped(rows: torch.Tensor, heads: int) -> torch.Tensor:
    groups, count, width = rows.shape
    shared = heads // groups
    return rows.view(groups, count // shared, shared, width).transpose(1, 2).reshape(1, heads, -1, width)


class _Short(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
    ) -> torch.Tensor:
        heads, tokens = query.shape[1:3]
        groups, seen, dtype = key.shape[1], key.shape[2] - tokens, query.dtype
        shared = heads // groups
        queries, keys, values = _grouped(query, groups), key[0].contiguous(), value[0].contiguous()
        output = torch.empty_like(queries)
        kept, blocks = [], []
        with torch.autocast(query.device.type, enabled=False):
            precise, turned = queries.float(), keys.float().transpose(1, 2)
            for start in range(0, tokens, BLOCK):
                stop = min(tokens, start + BLOCK)
                first, last = 0 if window is None else max(0, seen + start - window + 1), seen + stop
                rows = slice(start * shared, stop * shared)
                bias = _bias(start, stop, seen, first, window, query.device).repeat_interleave(shared, 0)
                scores = torch.baddbmm(bias, precise[:, rows], turned[:, :, first:last], alpha=scale)
                shares = torch.softmax(scores, -1).to(dtype)
                torch.bmm(shares, values[:, first:last], out=output[:, rows])
                kept.append(shares)
                blocks.append((rows, first, last))
        ctx.save_for_backward(queries, keys, values, *kept)
        ctx.blocks, ctx.scale, ctx.heads = blocks, scale, heads
        return _ungrouped(output, heads)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        queries, keys, values, *kept = ctx.saved_tensors
        given = _grouped(grads[0], len(keys))
        to_queries = torch.empty_like(queries)
        to_keys, to_values = (torch.zeros(keys.shape, device=keys.device) for _ in range(2))
        for (rows, first, last), shares in zip(ctx.blocks, kept, strict=True):
            some, grad = queries[:, rows], given[:, rows]
            to_values[:, first:last] += shares.transpose(1, 2) @ grad
            to_shares = grad @ values[:, first:last].transpose(1, 2)
            to_scores = torch._softmax_backward_data(to_shares, shares, -1, shares.dtype)
            torch.bmm(to_scores, keys[:, first:last], out=to_queries[:, rows])
            to_keys[:, first:last] += to_scores.transpose(1, 2) @ some
        to_query = _ungrouped(to_queries.mul_(ctx.scale), ctx.heads)
        return to_query, to_keys[None].mul_(ctx.scale).to(keys.dtype), to_values[None].to(values.dtype), None, None


_short: Callable[..., torch.Tensor] = _Short.apply
