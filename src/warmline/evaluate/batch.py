"""Many prompts to one model at once, each as if asked alone: its own seed, its own end. Knows no question's meaning.

A small model spends most of a token's time in overheads that a whole batch shares. What is drawn for one prompt does
not depend on its company, but for the last digits of floating-point numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache, RepetitionPenaltyLogitsProcessor

from warmline.engine.base import Call, Engine, Options
from warmline.engine.local import LocalEngine
from warmline.messages import Message
from warmline.model import load

ROWS = 64
"""Prompts in a batch."""
CELLS = 24 << 10
"""Tokens of a batch, those yet to come included: what a batch may take of the memory."""
LIKELIEST = 256
"""Tokens among which one is drawn when they hold all that `top_p` lets through: sorting a vocabulary is slow."""
THREADS = 4
"""Prompts under way in an engine that batches by itself."""

Prompts = Sequence[Sequence[Message]]


class Drawn:
    """One token for each row: the likeliest, or the one at the row's own next random number.

    Tokens are ordered by their likelihood before one is drawn, so the same number picks near enough the same place in
    two models' distributions: what differs between paired replies is the models more than the dice.
    """

    def __init__(self, options: Options, seeds: Sequence[int], padding: Sequence[int]) -> None:
        self.options, self.padding = options, list(padding)
        self._dice = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._penalty = RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self.padding, self._dice = [self.padding[row] for row in rows], [self._dice[row] for row in rows]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = scores.float()
        if self.options.repetition_penalty != 1:  # row by row: padding was never said
            for row, empty in enumerate(self.padding):
                scores[row] = self._penalty(input_ids[row : row + 1, empty:], scores[row : row + 1])[0]
        if self.options.temperature == 0:
            return scores.argmax(-1)
        scores = scores / self.options.temperature
        whole = scores.logsumexp(-1, keepdim=True)
        best, order = scores.topk(min(LIKELIEST, scores.shape[-1]))
        if bool(((best - whole).exp().sum(-1) < self.options.top_p).any()):
            best, order = scores.sort(descending=True, stable=True)
        likely = (best - whole).exp()
        so_far = likely.cumsum(-1)
        kept = (so_far - likely < self.options.top_p).sum(-1, keepdim=True)
        dice = torch.cat([torch.rand(1, generator=one) for one in self._dice]).to(scores.device)[:, None]
        mass = so_far.gather(-1, kept - 1)
        place = torch.minimum((so_far <= dice * mass).sum(-1, keepdim=True), kept - 1)
        return order.gather(-1, place)[:, 0]


def batches(lengths: Sequence[int], new: int, rows: int = ROWS) -> Iterator[list[int]]:
    """Positions in batches of near lengths, shortest first.

    >>> list(batches([30, 10, 31, 11], 5, rows=2))
    [[1, 3], [0, 2]]
    """
    mine: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda n: (lengths[n], n)):
        if mine and (len(mine) == rows or (len(mine) + 1) * (lengths[place] + new) > CELLS):
            yield mine
            mine = []
        mine.append(place)
    if mine:
        yield mine


def ask_all(engine: Engine, prompts: Prompts, options: Options, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A reply and how it ended for each prompt, in their order; each is drawn with the seed at its place.

    Raises:
        EngineError: a prompt does not fit the context, or the model failed.
    """
    if not isinstance(engine, LocalEngine):
        calls = [Call(list(prompt), replace(options, seed=seed)) for prompt, seed in zip(prompts, seeds, strict=True)]
        with ThreadPoolExecutor(THREADS) as pool:
            said = list(pool.map(lambda call: "".join(engine.reply(call)).strip(), calls))
        return [
            {"reply": text, "stop": c.usage.stop_reason, "tokens": c.usage.completion_tokens}
            for text, c in zip(said, calls, strict=True)
        ]
    asked = [engine.prompt(Call(list(prompt), options)) for prompt in prompts]
    found: dict[int, dict[str, Any]] = {}
    for places in batches([len(ids) for ids, _ in asked], options.max_tokens):
        found |= _batch(engine, asked, places, options, seeds)
    return [found[place] for place in range(len(prompts))]


def _batch(
    engine: LocalEngine, asked: Sequence[tuple[list[int], int]], places: list[int], options: Options, seeds: Any
) -> dict[int, dict[str, Any]]:
    """One batch; where the GPU has no room for it, both its halves."""
    try:
        return _generate(engine, asked, places, options, seeds)
    except torch.OutOfMemoryError:
        if len(places) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(places) // 2
    return _batch(engine, asked, places[:half], options, seeds) | _batch(engine, asked, places[half:], options, seeds)


def _generate(
    engine: LocalEngine, asked: Sequence[tuple[list[int], int]], places: list[int], options: Options, seeds: Any
) -> dict[int, dict[str, Any]]:
    model, template = engine.model, engine.template
    width = max(len(asked[place][0]) for place in places)
    padding = [width - len(asked[place][0]) for place in places]
    device = model.device
    ids = torch.tensor([[template.end_id] * pad + asked[n][0] for n, pad in zip(places, padding, strict=True)])
    seen = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding])
    ids, seen = ids.to(device), seen.to(device)
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    draw = Drawn(options, [seeds[place] for place in places], padding)
    cache = DynamicCache(config=model.config)
    said: dict[int, list[int]] = {place: [] for place in places}
    going, ended, new = list(places), set[int](), ids
    with contextlib.ExitStack() as around:
        around.enter_context(torch.inference_mode())
        around.enter_context(load.quiet())
        if not options.adapter and hasattr(model, "disable_adapter"):
            around.enter_context(model.disable_adapter())
        while True:
            output = model(
                input_ids=new,
                attention_mask=seen,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            drawn = draw(ids, output.logits[:, -1])
            for place, token in zip(going, drawn.tolist(), strict=True):
                if token in template.end_ids:
                    ended.add(place)
                said[place].append(token)
            left = [n for n, place in enumerate(going) if place not in ended and len(said[place]) < asked[place][1]]
            if not left:
                break
            if len(left) < len(going):  # who has ended costs nothing more
                rows = torch.tensor(left, device=device)
                going = [going[n] for n in left]
                drawn, ids, seen, positions = drawn[rows], ids[rows], seen[rows], positions[rows]
                cache.batch_select_indices(rows)
                draw.keep(left)
            new = drawn[:, None]
            ids = torch.cat([ids, new], 1)
            seen = torch.cat([seen, seen.new_ones(len(going), 1)], 1)
            positions = positions[:, -1:] + 1
    return {
        place: {
            "reply": template.tokenizer.decode(
                tokens[:-1] if place in ended else tokens, skip_special_tokens=True
            ).strip(),
            "stop": "stop" if place in ended else "length",
            "tokens": len(tokens),
        }
        for place, tokens in said.items()
    }
