"""Replies of the model in training to the recipe's prompts, to read beside the losses. Knows nothing of safety.

What is said here is the bare model's; a visitor only ever meets the guarded one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from warmline import recipe
from warmline.messages import Message
from warmline.model import load
from warmline.model import pack as packing
from warmline.model.template import Template

Replies = Callable[[Callable[[], int]], list[dict[str, Any]]]
"""Makes the replies; takes what says whether somebody wants the training to stop, and then ends early."""


class _Stopped(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, asked: Callable[[], int]) -> None:
        self.asked = asked

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), bool(self.asked()), device=input_ids.device, dtype=torch.bool)


def replies_of(model: Any, template: Template, settings: recipe.Evaluate, count: int) -> Replies:
    """The likeliest reply to each of the first `count` prompts; training's random numbers are left as they were."""
    prompts = settings.prompts[:count]

    @torch.no_grad()
    def replies(asked: Callable[[], int]) -> list[dict[str, Any]]:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.set_attn_implementation("sdpa")
        model.eval()
        made = []
        for prompt in prompts:
            ids = template.encode([Message("user", prompt)], reply=True).ids
            given = torch.tensor([ids], device=model.device)
            with load.quiet():
                output = model.generate(
                    input_ids=given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=settings.new_tokens,
                    do_sample=False,
                    repetition_penalty=settings.repetition_penalty,
                    eos_token_id=list(template.end_ids),
                    pad_token_id=template.end_id,
                    stopping_criteria=StoppingCriteriaList([_Stopped(asked)]),
                )
            text = template.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip()
            made.append({"prompt": prompt, "reply": text})
        packing.prepare(model)
        model.train()
        return made

    return replies
