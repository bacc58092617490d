"""Replies from a GGUF through llama.cpp: the fast engine where there is no GPU. Knows nothing of safety.

Ids go in: messages are tokenised by the template the run was trained with, what people wrote apart from its control
tokens; llama.cpp's own chat formatter is never asked.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from warmline.engine import saved as saves
from warmline.engine.base import Call, Options, TemplatedEngine, UntilStop, common
from warmline.engine.sequences import SharedContext
from warmline.errors import ModelError
from warmline.messages import Message
from warmline.model.template import Template

AT_ONCE = 4
"""Whole contexts that the cache may grow to. Conversations rarely fill theirs, and all share the safety prompt."""


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LlamaCppEngine(TemplatedEngine):
    """A GGUF, and the template it was trained with. Many conversations at once."""

    def __init__(self, shared: SharedContext, template: Template, name: str, context: int, *, merged: bool) -> None:
        super().__init__(template, name, context, merged)
        self.shared = shared
        self._quiet = frozenset(template.control_ids)

    @classmethod
    def open(
        cls,
        gguf: Path,
        template: Template,
        *,
        name: str,
        context: int,
        adapter: Path | None = None,
        merged: bool = False,
        threads: int | None = None,
        at_once: int = AT_ONCE,
        saved: Path | None = None,
    ) -> LlamaCppEngine:
        """Load a GGUF by mmap, with or without a LoRA adapter, and read the safety prompt: ready means warm.

        `saved` is a file that keeps the prompt as read, for the next start.

        Raises:
            ModelError: llama.cpp is not installed, cannot read a file, or its vocabulary is not the template's.
        """
        size, free = gguf.stat().st_size if gguf.exists() else 0, psutil.virtual_memory().available
        if size > free:
            raise ModelError(
                f"{gguf.name} needs {size / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
                code="fit-memory",
                hint="export a smaller quantisation, such as q4_k_m",
            )
        shared = SharedContext(
            gguf, cells=context * at_once, threads=threads or cores(), adapter=adapter, begin=context
        )
        highest = max((*template.control_ids, *template.end_ids))
        if highest >= shared.tokens:
            shared.close()
            raise ModelError(
                f"{gguf.name} has {shared.tokens:,} tokens, the run's tokenizer more",
                code="base-mismatch",
                where=str(gguf),
                hint="export the run again",
            )
        engine = cls(shared, template, name, context, merged=merged)
        engine.warm(saved, saves.key(engine._head, gguf, adapter))
        return engine

    def warm(self, saved: Path | None, key: bytes) -> None:
        """Read the safety prompt, or what was kept of it, so that the first visitor does not wait for it."""
        known = saved is not None and saves.put_back(self.shared, saved, key, self._head)
        list(self.reply(Call([Message("user", "")], Options(max_tokens=1, temperature=0))))
        if saved is not None and not known:
            saves.keep(self.shared, saved, key, self._head)

    @property
    def places(self) -> int:
        """How many conversations of full length there is room for at a time."""
        return max(1, self.shared.cells // self.context)

    def close(self) -> None:
        self.shared.close()

    def reply(self, call: Call) -> Iterator[str]:
        """Stream a reply. It ends at the end-of-turn token, at `max_tokens`, at a stop string or on cancel.

        Raises:
            EngineError: the messages do not fit the context, the base was asked of a merged model, or llama.cpp failed.
        """
        options = call.options
        ids, limit = self.prompt(call)
        head = len(self._head) if common(ids, self._head) == len(self._head) else 0
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        until, began = UntilStop(options.stop), False
        ends = frozenset(self.template.end_ids)
        tokens = self.shared.stream(ids, call, limit=limit, ends=ends, quiet=self._quiet, head=head)
        try:
            for token in tokens:
                piece = decoder.decode(b"" if token in self._quiet else self.shared.spelling(token))
                if not began:  # a space that SentencePiece puts before its first word is nobody's
                    piece = piece.lstrip(" ")
                    began = bool(piece)
                if piece := until.feed(piece):
                    yield piece
                if until.stopped:
                    break
            else:
                if piece := until.rest():  # half a character at the very end is dropped
                    yield piece
        finally:
            tokens.close()
        if until.stopped:
            call.usage.stop_reason = "stop"
