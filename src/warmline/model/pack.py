"""Several conversations in one row of tokens, each seeing only itself: exact, and no padding is computed.

Conversations of a row that begin alike share that beginning: it is computed once, and each attends to it as its own.

    [ system · question ]──[ answer of A ]      three parts, two conversations: A = 0 1, B = 0 2
                        └──[ answer of B ]

Knows nothing of templates or loss. Attention is made per part by `attend`, registered with transformers under the name
`warmline`, or handed to Falcon in the place of a mask; architectures with an attention of another kind compute a pack's
conversations one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Any

import torch
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from warmline.model.attention import LONGEST, attend_short
from warmline.model.template import Encoded

SHORTEST = 8
"""Fewer common tokens than this stay with each conversation: joining parts would cost more than computing them."""
DEEPEST = 64
"""Parts on the way from a beginning to an end; texts that branch more often repeat what lies beyond."""
EIGHT = 8
"""Rows of tokens are filled up to a multiple: an odd number of rows can slow every matrix product by a fifth."""
KEY = 8
"""A part keeps its own copy of what it attends to; so many keys take about as much memory as one computed token."""


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
class Branch:
    """Tokens that go on from the branch below; `texts` are those that end with them, `above` is how others go on."""

    ids: list[int]
    texts: list[int]
    above: list[Branch]


def grow(texts: Sequence[list[int]], share: bool = True) -> list[Branch]:
    """Texts as trees, joined where they begin alike; without `share` each is a tree of its own.

    >>> [root] = grow([[*range(9), 1, 2], [*range(9), 3]])
    >>> root.ids[-1], [(branch.ids, branch.texts) for branch in root.above]
    (8, [([1, 2], [0]), ([3], [1])])
    """

    def apart(group: Sequence[int], start: int) -> list[Branch]:
        return [Branch(texts[i][start:], [i], []) for i in group]

    def joined(group: list[int], start: int, depth: int) -> list[Branch]:
        if len(group) == 1 or depth == DEEPEST:
            return apart(group, start)
        # In sorted order what the first and the last have in common, all have; the shortest come first.
        first, last = texts[group[0]], texts[group[-1]]
        stop = next((place for place in range(start, len(first)) if first[place] != last[place]), len(first))
        ended = [i for i in group if len(texts[i]) == stop]
        alike = [list(found) for _, found in groupby(group[len(ended) :], key=lambda i: texts[i][stop])]
        if stop - start < SHORTEST:
            return apart(ended, start) + [branch for some in alike for branch in joined(some, start, depth + 1)]
        above = [branch for some in alike for branch in joined(some, stop, depth + 1)]
        return [Branch(first[start:stop], ended, above)]

    everything = range(len(texts))
    return joined(sorted(everything, key=lambda i: texts[i]), 0, 0) if share and texts else apart(everything, 0)


def gather(trees: Sequence[Branch], capacity: int) -> list[list[int]]:
    """Rows of texts for `capacity` tokens, what a row's texts share counted once; so alike ones come together."""

    def fill(branches: Sequence[Branch], before: int) -> list[tuple[int, list[int]]]:
        items = []
        for branch in branches:
            above = fill(branch.above, before + len(branch.ids)) or [(0, [])]
            above[0][1].extend(branch.texts)
            items += [(len(branch.ids) + before // KEY + size, inside) for size, inside in above]
        rows = best_fit([size for size, _ in items], capacity - before)
        return [(sum(items[i][0] for i in row), [text for i in row for text in items[i][1]]) for row in rows]

    return [inside for _, inside in fill(trees, 0)]


@dataclass(frozen=True, slots=True)
class Layout:
    """What attends to what in a row: the parts' lengths, and for each part those it sees, in order, itself last."""

    lengths: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Pack:
    """One row for the model. `ids` and `positions` are [1, tokens]; a position is a token's place in its text.

    `rows` [targets] are the places whose output predicts a supervised token, `labels` [targets] those tokens,
    `owners` [targets] which conversation of the pack each belongs to, in order. What is supervised in a shared part
    stands there once for each owner, so loss and gradient are those of the conversations apart. `ends` has for each
    conversation the part in which it ends.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    layout: Layout
    ends: tuple[int, ...]
    rows: torch.Tensor
    labels: torch.Tensor
    owners: torch.Tensor
    names: tuple[str, ...]

    @property
    def single(self) -> bool:
        """Whether it is one text, with or without beginnings and copies of it: no smaller row could hold it."""
        return len(self.layout.paths) == len(self.layout.paths[-1])

    def to(self, device: torch.device | str) -> Pack:
        tensors = ("ids", "positions", "rows", "labels", "owners")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    def places(self, conversation: int) -> torch.Tensor:
        """Where in the row a conversation's tokens lie, in its own order."""
        starts = [0, *accumulate(self.layout.lengths)]
        parts = self.layout.paths[self.ends[conversation]]
        return torch.cat([torch.arange(starts[part], starts[part + 1]) for part in parts]).to(self.ids.device)


def pack(texts: Sequence[Encoded], share: bool = True) -> Pack:
    """Lay texts into one row; with `share` what they have in common at their beginnings is there once."""
    ids: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    paths: list[tuple[int, ...]] = []
    ends = [0] * len(texts)
    places: list[list[int]] = [[]] * len(texts)

    def lay(branch: Branch, path: tuple[int, ...], before: list[int]) -> None:
        path = (*path, len(paths))
        along = [*before, *range(len(ids), len(ids) + len(branch.ids))]
        ids.extend(branch.ids)
        positions.extend(range(len(before), len(along)))
        lengths.append(len(branch.ids))
        paths.append(path)
        for text in branch.texts:
            ends[text], places[text] = path[-1], along
        for higher in branch.above:
            lay(higher, path, along)

    for tree in grow([text.ids for text in texts], share):
        lay(tree, (), [])
    targets = [
        (places[owner][place - 1], text.ids[place], owner)
        for owner, text in enumerate(texts)
        for place in range(1, len(text.ids))
        if text.supervised[place]
    ]
    rows, labels, owners = torch.tensor(targets, dtype=torch.long).reshape(-1, 3).unbind(1)
    return Pack(
        torch.tensor([ids]),
        torch.tensor([positions]),
        Layout(tuple(lengths), tuple(paths)),
        tuple(ends),
        rows.contiguous(),
        labels.contiguous(),
        owners.contiguous(),
        tuple(text.owner for text in texts),
    )


def packs(texts: Sequence[Encoded], capacity: int, share: bool = True) -> list[Pack]:
    """Pack texts into as few rows of `capacity` tokens as best-fit-decreasing finds, alike ones together."""
    rows = gather(grow([text.ids for text in texts], share), capacity)
    return [pack([texts[i] for i in row], share) for row in rows]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each part to its path: query [1, heads, tokens, width] → [1, tokens, heads, width]."""
    layout = layout or Layout((query.shape[2],), ((0,),))
    kept = value.dtype
    on_cpu = query.device.type == "cpu"
    dropout = dropout if module.training else 0.0
    # split, not slices: the backward of a slice fills a whole pack with zeros for each part
    queries, keys, values = (torch.split(tensor, list(layout.lengths), dim=2) for tensor in (query, key, value))
    outputs = []
    for q, path in zip(queries, layout.paths, strict=True):
        k, v = (torch.cat([of[part] for part in path], dim=2) if path[1:] else of[path[0]] for of in (keys, values))
        if not on_cpu:
            outputs.append(_attend_fused(q.to(kept), k.to(kept), v, scaling, sliding_window, dropout))
            continue
        if k.shape[2] <= LONGEST and not dropout:
            outputs.append(attend_short(q.to(kept), k.to(kept), v, scaling, sliding_window))
            continue
        mask = _mask(q.shape[2], k.shape[2], sliding_window, q.device)
        with torch.autocast("cpu", enabled=False):
            outputs.append(
                scaled_dot_product_attention(
                    q.float(),  # the backward of the CPU kernel is faster in fp32 than in bf16
                    k.float(),
                    v.float(),
                    attn_mask=mask,
                    is_causal=mask is None,
                    scale=scaling,
                    enable_gqa=query.shape[1] != key.shape[1],
                    dropout_p=dropout,
                )
            )
    return torch.cat([output.to(kept) for output in outputs], dim=2).transpose(1, 2), None


def _attend_fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float | None, window: int | None, dropout: float
) -> torch.Tensor:
    """One part's attention by a kernel that never holds its scores, as far as the device has one.

    FlashAttention takes keys that heads share, and no mask but this bias. The other kernel takes masks and no shared
    keys: for it each head gets its own copy, which costs less than whole scores.
    """
    mask = _mask(q.shape[2], k.shape[2], window, q.device)
    lower_right = mask is not None and (window is None or k.shape[2] <= window)
    shared = q.shape[1] // k.shape[1]
    if shared > 1 and (
        (mask is not None and not lower_right)
        or not can_use_flash_attention(SDPAParams(q, k, v, None, dropout, False, True))
    ):
        k, v, shared = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1), 1
    return scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=causal_lower_right(q.shape[2], k.shape[2]) if lower_right else mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=shared > 1,
        dropout_p=dropout,
    )


def _mask(length: int, seen: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which of `seen` tokens each of the last `length` attends to; None when it is simply those up to itself."""
    if length == seen and (window is None or seen <= window):
        return None
    behind = torch.arange(seen - length, seen, device=device)[:, None] - torch.arange(seen, device=device)
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)


AttentionInterface.register("warmline", attend)


class _Told(torch.Tensor):
    """In the place of a mask, for models that call torch's attention themselves: the call becomes `attend`'s."""

    seen: Layout

    @classmethod
    def of(cls, layout: Layout) -> _Told:
        size = sum(layout.lengths)
        told = torch.empty(1, 1, size, size, device="meta").as_subclass(cls)
        told.seen = layout
        return told

    @classmethod
    def __torch_function__(cls, function: Any, kinds: Any, args: Any = (), named: Any = None) -> Any:
        if function is scaled_dot_product_attention:
            query, key, value = args
            seen = named["attn_mask"].seen
            output, _ = attend(_ATTENTION, query, key, value, None, scaling=named.get("scale"), layout=seen)
            return output.transpose(1, 2).contiguous()
        if function is torch.Tensor.to:  # it holds nothing that could be elsewhere
            return args[0]
        return super().__torch_function__(function, kinds, args, named or {})  # type: ignore[no-untyped-call]


_ATTENTION = torch.nn.Module()  # `attend` asks whose attention it is for the dropout alone, and Falcon has none


def takes_told(model: Any) -> bool:
    """Whether attention can be told what attends to what by the place of the mask: Falcon's own, without ALiBi."""
    base = _base(model)
    return type(base).__module__ == "transformers.models.falcon.modeling_falcon" and not base.config.alibi


def at_once(model: Any) -> bool:
    """Whether a prepared `model` computes a pack in one go; others compute its conversations one after the other."""
    kind = _base(model).config._attn_implementation
    return kind == "warmline" or (kind == "sdpa" and takes_told(model))


def prepare(model: Any) -> None:
    """Let `model` attend per part where its architecture can be told how; generation wants `sdpa` again.

    Not where a layer carries more from token to token than attention does (Qwen3-Next), or attends in its own way
    (Gemma 2's soft caps): a pack would see across conversations, or compute something else.
    """
    base = _base(model)
    kinds = set(getattr(base.config, "layer_types", None) or ())
    told = base._supports_attention_backend and base._supports_sdpa and not base._is_stateful
    if told and kinds <= {"full_attention", "sliding_attention"}:
        base.set_attn_implementation("warmline")
    else:
        base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")


def logits(model: Any, packed: Pack) -> torch.Tensor:
    """Logits [targets, vocabulary] at the places that predict a supervised token; no others are computed."""
    if at_once(model):
        ids, positions, layout = _filled(packed)
        how = {"attention_mask": _Told.of(layout)} if takes_told(model) else {"layout": layout}
        return _forward(model, ids, positions, packed.rows, **how)
    pieces = []
    for conversation in range(len(packed.ends)):
        places = packed.places(conversation)
        rows = packed.positions[0, packed.rows[packed.owners == conversation]]
        if len(rows):
            pieces.append(_forward(model, packed.ids[:, places], packed.positions[:, places], rows))
    return torch.cat(pieces)


def _filled(packed: Pack) -> tuple[torch.Tensor, torch.Tensor, Layout]:
    """A pack's ids, positions and layout with a part behind that nobody sees, up to a multiple of `EIGHT` tokens."""
    lengths, paths = packed.layout.lengths, packed.layout.paths
    spare = -packed.ids.shape[1] % EIGHT
    if not spare:
        return packed.ids, packed.positions, packed.layout
    places = torch.arange(spare, device=packed.ids.device)[None]
    ids = torch.cat([packed.ids, packed.ids[:, :1].expand(1, spare)], 1)
    layout = Layout((*lengths, spare), (*paths, (len(paths),)))
    return ids, torch.cat([packed.positions, places], 1), layout


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _forward(model: Any, ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, **extra: Any) -> torch.Tensor:
    extra = {"attention_mask": None, "use_cache": False} | extra
    output = model(input_ids=ids, position_ids=positions, logits_to_keep=rows, **extra)
    result: torch.Tensor = output.logits[0]
    return result


def surprise(model: Any, packed: Pack) -> torch.Tensor:
    """Negative log-likelihood in nats of each supervised token [targets], fp32."""
    return torch.nn.functional.cross_entropy(logits(model, packed).float(), packed.labels, reduction="none")
