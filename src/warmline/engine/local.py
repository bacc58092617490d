"""Replies from a transformers model in this process: any base, with or without an adapter, NF4, int8 or bf16.

One reply at a time; further calls wait for their turn. What the last conversations held stays computed, so that a turn
reads its new words only. Knows nothing of safety.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from warmline import recipe
from warmline.engine.base import Call, TemplatedEngine, UntilStop, common
from warmline.errors import EngineError, ModelError
from warmline.model import adapter, load
from warmline.model.template import Template

KEPT = 3
"""Conversations whose keys and values are kept. Each takes as much memory as its tokens do while it is talked to."""
WORTH_COPYING = 16
"""Tokens. Less is read again as soon as copied."""


@dataclass(slots=True)
class _Held:
    """Keys and values of `ids`, as the model computed them with the adapter on or off."""

    ids: list[int]
    adapter: bool
    cache: Any


BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.2, "nf4": 0.7}
"""Of memory for a parameter; in few bits, embeddings and output stay in 16."""


def _fits_memory(base: recipe.Base) -> None:
    """Say that a model is too large before the system ends the program for it. A GPU says so itself.

    Raises:
        ModelError: the weights need more than the free memory.
    """
    where = load.locate(base.model)
    if torch.cuda.is_available() or not isinstance(where, Path):
        return
    parameters = 0
    for path in where.glob("*.safetensors"):
        with load.explained(base.model), safe_open(path, "pt") as file:
            parameters += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    needed, free = parameters * BYTES[base.load], psutil.virtual_memory().available
    if needed > free:
        raise ModelError(
            f"base `{base.model}` as {base.load} needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
            code="fit-memory",
            hint="set base.load to `nf4`, or export a GGUF: `warmline export RUN --to gguf --quant q4_k_m`",
        )


class _Cancelled(StoppingCriteria):  # type: ignore[misc]
    """Ends the generation when the caller has gone."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device, dtype=torch.bool)


class LocalEngine(TemplatedEngine):
    """A loaded model, its tokenizer and the template it was trained with."""

    def __init__(self, model: Any, template: Template, name: str, context: int = 1024, *, merged: bool = False) -> None:
        limit = getattr(model.config, "max_position_embeddings", None) or context
        super().__init__(template, name, min(context, limit), merged)
        self.model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.set_attn_implementation("sdpa")
        self._turn = threading.Lock()
        self._held: list[_Held] = []

    @classmethod
    def open(cls, settings: recipe.Recipe, folder: Path | None, name: str) -> LocalEngine:
        """Load the recipe's base and, when `folder` is a finished train stage, what was trained on it.

        Raises:
            ModelError: the base or the adapter cannot be loaded, or they do not belong together.
        """
        base = settings.base
        merged = folder is not None and (folder / "model").exists()
        if folder is not None and merged:
            base = base.model_copy(update={"model": str(folder / "model"), "load": "bf16"})
            folder = None
        _fits_memory(base)
        model = load.load_model(base)
        if folder is not None:
            model = adapter.load_adapter(model, folder / "adapter", load.identity(base))
        model.eval()
        template = Template.of(load.load_tokenizer(base), settings.prompt)
        return cls(model, template, name, settings.prompt.context, merged=merged)

    def _take(self, ids: list[int], adapter: bool) -> tuple[Any, int]:
        """A cache that holds as much of the beginning of `ids` as is known, and how much that is."""
        held = [h for h in self._held if h.adapter == adapter]
        best = max(held, key=lambda h: common(h.ids, ids), default=None)
        # the last token is read in any case: what follows it is what is asked
        kept = min(common(best.ids, ids), len(ids) - 1) if best else 0
        cache = DynamicCache()
        if best is None or kept < WORTH_COPYING:
            return cache, 0
        head = common(ids, self._head)
        if 2 * (kept - head) >= len(best.ids) - head:  # the same conversation goes on
            self._held.remove(best)
            if surplus := best.cache.get_seq_length() - kept:
                best.cache.crop(-surplus)
            return best.cache, kept
        for number, layer in enumerate(best.cache.layers):
            cache.update(layer.keys[..., :kept, :].clone(), layer.values[..., :kept, :].clone(), number)
        return cache, kept

    def reply(self, call: Call) -> Iterator[str]:
        """Stream a reply. The reply ends at the end-of-turn token, at `max_tokens`, at a stop string or on cancel.

        Raises:
            EngineError: the messages do not fit the context, the base was asked of a merged model, or generation
                failed.
        """
        options, usage = call.options, call.usage
        ids, limit = self.prompt(call)
        usage.prompt_tokens = len(ids)
        adapted = options.adapter and hasattr(self.model, "disable_adapter")
        streamer = TextIteratorStreamer(self.template.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[Exception] = []
        produced: list[int] = []

        def generate() -> None:
            try:
                with contextlib.ExitStack() as around:
                    for block in (self._turn, torch.inference_mode(), load.quiet(), torch.random.fork_rng()):
                        around.enter_context(block)
                    if call.cancel.is_set():
                        return
                    if not adapted and hasattr(self.model, "disable_adapter"):
                        around.enter_context(self.model.disable_adapter())
                    if options.seed is not None:
                        torch.manual_seed(options.seed)
                    else:
                        torch.seed()
                    sampling: dict[str, Any] = {"do_sample": False}
                    if options.temperature > 0:
                        sampling = {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p}
                    prompt = torch.tensor([ids], device=self.model.device)
                    cache, usage.cached_tokens = self._take(ids, adapted)
                    output = self.model.generate(
                        input_ids=prompt,
                        past_key_values=cache,
                        attention_mask=torch.ones_like(prompt),
                        max_new_tokens=limit,
                        repetition_penalty=options.repetition_penalty,
                        eos_token_id=list(self.template.end_ids),
                        pad_token_id=self.template.end_id,
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([_Cancelled(call.cancel)]),
                        **sampling,
                    )
                    produced.extend(output[0, len(ids) :].tolist())
                    known = output[0, : cache.get_seq_length()].tolist()
                    self._held = [*self._held, _Held(known, adapted, cache)][-KEPT:]
            except Exception as error:
                failure.append(error)
            finally:
                with contextlib.suppress(Exception):
                    streamer.end()

        # Not a daemon: a program that ends in mid-reply waits for the cancelled step, for torch does not survive less.
        worker = threading.Thread(target=generate, name="generate")
        worker.start()
        cancelled = False
        until = UntilStop(options.stop)
        try:
            for piece in streamer:
                if shown := until.feed(piece):
                    yield shown
                if until.stopped:
                    call.cancel.set()
            cancelled = call.cancel.is_set()
            if rest := until.rest():
                yield rest
        finally:  # also when the reader leaves: no token is made for nobody
            call.cancel.set()
            worker.join()
        if failure:
            kind = type(failure[0]).__name__
            raise EngineError(f"the model failed while replying ({kind})", code="engine-failed") from failure[0]
        usage.completion_tokens = len(produced)
        if until.stopped or (produced and produced[-1] in self.template.end_ids):
            usage.stop_reason = "stop"
        elif cancelled:
            usage.stop_reason = "cancelled"
        else:
            usage.stop_reason = "length"
