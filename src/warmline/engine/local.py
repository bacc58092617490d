"""Replies from a transformers model in this process: any base, with or without an adapter, NF4, int8 or bf16.

One reply at a time; further calls wait for their turn. Knows nothing of safety.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from warmline import recipe
from warmline.engine.base import Call
from warmline.errors import EngineError
from warmline.messages import Message
from warmline.model import adapter, load
from warmline.model.template import Template


class _Cancelled(StoppingCriteria):  # type: ignore[misc]
    """Ends the generation when the caller has gone."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device, dtype=torch.bool)


class LocalEngine:
    """A loaded model, its tokenizer and the template it was trained with."""

    def __init__(self, model: Any, template: Template, name: str, context: int = 1024) -> None:
        self.model, self.template, self.name = model, template, name
        limit = getattr(model.config, "max_position_embeddings", None) or context
        self.context = min(context, limit)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.set_attn_implementation("sdpa")
        self._turn = threading.Lock()

    @classmethod
    def open(cls, settings: recipe.Recipe, folder: Path | None, name: str) -> LocalEngine:
        """Load the recipe's base and, when `folder` is a finished train stage, what was trained on it.

        Raises:
            ModelError: the base or the adapter cannot be loaded, or they do not belong together.
        """
        base = settings.base
        if folder is not None and (folder / "model").exists():
            base = base.model_copy(update={"model": str(folder / "model"), "load": "bf16"})
            folder = None
        model = load.load_model(base)
        if folder is not None:
            model = adapter.load_adapter(model, folder / "adapter", load.identity(base))
        model.eval()
        template = Template(load.load_tokenizer(base), settings.prompt.template, settings.prompt.system)
        return cls(model, template, name, settings.prompt.context)

    def fits(self, messages: list[Message], reserve: int) -> bool:
        """Whether these messages leave `reserve` tokens of the context for a reply."""
        return len(self.template.encode(messages, reply=True)) + reserve <= self.context

    def reply(self, call: Call) -> Iterator[str]:
        """Stream a reply. The reply ends at the end-of-turn token, at `max_tokens`, at a stop string or on cancel.

        Raises:
            EngineError: the messages do not fit the context, or generation failed.
        """
        options, usage = call.options, call.usage
        ids = self.template.encode(call.messages, reply=True).ids
        room = self.context - len(ids)
        if room < 1:
            raise EngineError(
                f"the conversation has {len(ids)} tokens, the context holds {self.context}", code="engine-failed"
            )
        usage.prompt_tokens = len(ids)
        streamer = TextIteratorStreamer(self.template.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[Exception] = []
        produced: list[int] = []

        def generate() -> None:
            try:
                with self._turn, torch.inference_mode(), load.quiet(), torch.random.fork_rng():
                    if call.cancel.is_set():
                        return
                    if options.seed is not None:
                        torch.manual_seed(options.seed)
                    else:
                        torch.seed()
                    sampling: dict[str, Any] = {"do_sample": False}
                    if options.temperature > 0:
                        sampling = {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p}
                    prompt = torch.tensor([ids], device=self.model.device)
                    output = self.model.generate(
                        input_ids=prompt,
                        attention_mask=torch.ones_like(prompt),
                        max_new_tokens=min(options.max_tokens, room),
                        repetition_penalty=options.repetition_penalty,
                        eos_token_id=list(self.template.end_ids),
                        pad_token_id=self.template.end_id,
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([_Cancelled(call.cancel)]),
                        **sampling,
                    )
                    produced.extend(output[0, len(ids) :].tolist())
            except Exception as error:
                failure.append(error)
            finally:
                with contextlib.suppress(Exception):
                    streamer.end()

        # Not a daemon: a program that ends in mid-reply waits for the cancelled step, for torch does not survive less.
        worker = threading.Thread(target=generate, name="generate")
        worker.start()
        stopped = cancelled = False
        text = ""
        try:
            for piece in streamer:
                if stopped or not piece:
                    continue
                sent = len(text)
                text += piece
                ends = [at for stop in options.stop if (at := text.find(stop)) >= 0]
                if ends:
                    stopped = True
                    call.cancel.set()
                    piece = text[sent : max(sent, min(ends))]
                if piece:
                    yield piece
            cancelled = call.cancel.is_set()
        finally:  # also when the reader leaves: no token is made for nobody
            call.cancel.set()
            worker.join()
        if failure:
            kind = type(failure[0]).__name__
            raise EngineError(f"the model failed while replying ({kind})", code="engine-failed") from failure[0]
        usage.completion_tokens = len(produced)
        if stopped or (produced and produced[-1] in self.template.end_ids):
            usage.stop_reason = "stop"
        elif cancelled:
            usage.stop_reason = "cancelled"
        else:
            usage.stop_reason = "length"
