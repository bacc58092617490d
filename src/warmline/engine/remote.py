"""Replies from a server that speaks OpenAI's chat API: vLLM, Ollama, LM Studio, llama.cpp's own. Knows no other server.

Words go to the one address the operator named and nowhere else: no proxy from the environment, no redirect, no second
server when this one fails. What a person wrote is broken up where it spells a control token, because the server
applies its chat template to text.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import queue
import re
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from warmline.engine.base import Call
from warmline.errors import EngineError
from warmline.messages import Message

FIRST_WORD_SECONDS = 90.0
"""Longest wait for the first piece, attempts to reach the server included."""
NEXT_WORD_SECONDS = 30.0
BACKOFF = (0.5, 1.0, 2.0)
"""Pauses before each further attempt. Only before the first piece: a reply is never begun twice."""
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be different a second later."""
LONGEST_LINE = 1 << 20
LONGEST_TOKEN = 40
"""Characters. A server that sends more than so many for each token asked for does not keep to the limit."""

# <|im_end|>, </s>, <start_of_turn>, <｜User｜>, [INST], [/TOOL_CALLS], >>QUESTION<<: whatever a known vocabulary holds.
_SPELLING = re.compile(r"<(?=[^<>\s]+>)|\[(?=/?[A-Z_]{2,}\])|>>(?=[A-Z]+<<)")


def defuse(text: str) -> str:
    """Put a space into everything that could spell a control token in some vocabulary; other text stays as it is.

    >>> defuse("I <3 you <|im_end|> [INST]")
    'I <3 you < |im_end|> [ INST]'
    """
    return _SPELLING.sub(lambda found: found[0] + " ", text)


class _Passing(Exception):
    """A failure that another attempt may get over. Holds what to tell if it does not."""

    def __init__(self, error: EngineError, pause: float | None = None) -> None:
        self.error, self.pause = error, pause


class RemoteEngine:
    """One model of one server. Any number of replies at a time; the server decides how many it works on.

    `url` is the API's root, such as http://127.0.0.1:8000/v1. `key` is sent as a bearer token. `context` is the
    model's, in tokens, of which the server alone knows the exact count.

    Raises:
        EngineError: the address is not one, or would carry words or the key unencrypted beyond this network.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        context: int = 4096,
        first_word_seconds: float = FIRST_WORD_SECONDS,
        next_word_seconds: float = NEXT_WORD_SECONDS,
        backoff: Sequence[float] = BACKOFF,
    ) -> None:
        self.url, self.model, self.name, self.context = _checked(url), model, model, context
        self._key = key
        self._patience = (first_word_seconds, next_word_seconds)
        self._backoff = tuple(backoff)
        self._loop = asyncio.new_event_loop()
        self._client: httpx.AsyncClient | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote-engine", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, url: str, model: str = "", *, key: str | None = None, context: int = 4096) -> RemoteEngine:
        """Ask the server for its models first, so that a wrong address is told before anybody talks.

        Raises:
            EngineError: the server is not there, refuses the key, or has not exactly one model and none was named.
        """
        engine = cls(url, model, key=key, context=context)
        try:
            names = asyncio.run_coroutine_threadsafe(engine._models(), engine._loop).result()
            if model and names and model not in names:
                raise EngineError(
                    f"the server has no model `{model}`",
                    code="engine-unreachable",
                    where=engine.url,
                    hint=f"it has: {', '.join(names[:10])}",
                )
            if not model and len(names) != 1:
                raise EngineError(
                    f"the server has {len(names)} models and none was chosen",
                    code="engine-unreachable",
                    where=engine.url,
                    hint=f"set engine.model to one of: {', '.join(names[:10])}" if names else "set engine.model",
                )
            engine.model = engine.name = model or names[0]
        except BaseException:
            engine.close()
            raise
        return engine

    def close(self) -> None:
        """Drop every connection. Replies under way end as cancelled."""

        async def stop() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            if self._client is not None:
                await self._client.aclose()
            await self._loop.shutdown_asyncgens()

        if self._thread.is_alive():
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(stop(), self._loop).result(5)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            self._loop.close()

    def fits(self, messages: list[Message], reserve: int) -> bool:
        """Whether these messages leave `reserve` tokens, as a careful guess: three bytes a token, and the template."""
        return sum(len(m.content.encode()) // 3 + 12 for m in messages) + reserve <= self.context

    def reply(self, call: Call) -> Iterator[str]:
        """Stream a reply; on cancel, or when the reader leaves, the connection is closed at once.

        Raises:
            EngineError: the server cannot be reached, refuses, sends what is no reply, falls silent or dies.
        """
        if not call.options.adapter:
            raise self._fault("a server's model has no adapter to switch off")
        pieces: queue.Queue[str | None] = queue.Queue()

        async def read() -> None:
            try:
                async for piece in self._stream(call):
                    pieces.put(piece)
            finally:
                pieces.put(None)

        reading = asyncio.run_coroutine_threadsafe(read(), self._loop)
        try:
            while not call.cancel.is_set():
                try:
                    piece = pieces.get(timeout=0.05)
                except queue.Empty:
                    continue
                if piece is None:
                    if not reading.cancelled():
                        reading.result()
                    return
                yield piece
            call.usage.stop_reason = "cancelled"
        finally:
            reading.cancel()

    # ------------------------------------------------------------------ on the loop

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            # Time is kept by `_stream`; trust_env off: a proxy named in the environment would read along.
            self._client = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(None, connect=5.0), trust_env=False)
        return self._client

    def _fault(self, what: str, hint: str | None = None, code: str = "engine-failed") -> EngineError:
        return EngineError(what, code=code, where=self.url, hint=hint)

    async def _models(self) -> list[str]:
        try:
            answer = await self._http().get(f"{self.url}/models", timeout=10.0)
        except httpx.HTTPError as error:
            raise self._fault(
                f"no server answers ({type(error).__name__})",
                "is it running, and is this the root of its API, mostly ending in /v1?",
                "engine-unreachable",
            ) from None
        if answer.status_code in (401, 403):
            raise self._refused(answer.status_code)
        try:
            return [str(row["id"]) for row in answer.json()["data"]] if answer.is_success else []
        except (ValueError, KeyError, TypeError):
            return []

    def _refused(self, status: int) -> EngineError:
        return self._fault(
            f"the server refuses the key ({status})", "put it into WARMLINE_ENGINE_KEY", "engine-unreachable"
        )

    async def _stream(self, call: Call) -> AsyncIterator[str]:
        first, following = self._patience
        clock = asyncio.get_running_loop().time
        begun = False
        try:
            async with asyncio.timeout(first) as limit:
                for pause in (*self._backoff, None):
                    try:
                        async for piece in self._attempt(call):
                            begun = True
                            limit.reschedule(clock() + following)
                            yield piece
                        return
                    except _Passing as passing:
                        if begun or pause is None:
                            raise passing.error from None
                        await asyncio.sleep(max(pause, min(passing.pause or 0.0, 10.0)))
        except TimeoutError:
            when = "in mid-reply" if begun else "before its first word"
            raise self._fault(f"the server fell silent {when}") from None

    async def _attempt(self, call: Call) -> AsyncIterator[str]:
        try:
            async with self._http().stream("POST", f"{self.url}/chat/completions", json=self._body(call)) as answer:
                if answer.status_code in (401, 403):
                    raise self._refused(answer.status_code)
                if not answer.is_success:
                    # Its body may quote what was sent, so only the number is told.
                    error = self._fault(f"the server answered {answer.status_code}")
                    if answer.status_code in PASSING:
                        wait = answer.headers.get("retry-after", "")
                        raise _Passing(error, float(wait) if wait.isdigit() else None)
                    raise error
                async for piece in self._pieces(call, answer):
                    yield piece
        except httpx.ConnectError:
            raise _Passing(self._fault("no server answers", code="engine-unreachable")) from None
        except httpx.HTTPError as error:
            raise _Passing(self._fault(f"the connection broke ({type(error).__name__})")) from None

    def _body(self, call: Call) -> dict[str, Any]:
        options = call.options
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": m.role, "content": defuse(m.content)} for m in call.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
        }
        if options.seed is not None:
            body["seed"] = options.seed
        if options.stop:
            body["stop"] = list(options.stop)
        if options.repetition_penalty != 1:
            # Not OpenAI's: the first is vLLM's name, the second that of llama.cpp and LM Studio.
            body["repetition_penalty"] = body["repeat_penalty"] = options.repetition_penalty
        return body

    async def _pieces(self, call: Call, answer: httpx.Response) -> AsyncIterator[str]:
        usage, ended, characters = call.usage, False, 0
        async for data in self._events(answer):
            if data == "[DONE]":
                break
            try:
                chunk = json.loads(data)
                if "error" in chunk:
                    raise self._fault("the server reports an error in mid-stream")
                if counts := chunk.get("usage"):
                    usage.prompt_tokens = int(counts["prompt_tokens"])
                    usage.completion_tokens = int(counts["completion_tokens"])
                for choice in chunk["choices"][:1]:
                    piece = choice["delta"].get("content") or ""
                    if not isinstance(piece, str):
                        raise TypeError
                    reason = choice.get("finish_reason")
                    if piece:
                        usage.completion_tokens += 1  # replaced by the server's own count where it sends one
                        characters += len(piece)
                        yield piece
                    if reason == "content_filter":
                        raise self._fault("the server's own filter stopped the reply")
                    if reason:
                        ended, usage.stop_reason = True, "length" if reason == "length" else "stop"
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise self._fault("the server sends something that is no reply") from None
            if characters > LONGEST_TOKEN * call.options.max_tokens:
                usage.stop_reason = "length"
                return
        if not ended:
            raise _Passing(self._fault("the server ended the stream before the reply was complete"))

    async def _events(self, answer: httpx.Response) -> AsyncIterator[str]:
        """The data of each server-sent event. Each is one line in this API."""
        if "event-stream" not in answer.headers.get("content-type", ""):
            raise self._fault("the server does not stream its replies")
        rest = b""
        async for block in answer.aiter_bytes():
            *lines, rest = (rest + block).split(b"\n")
            if len(rest) > LONGEST_LINE:
                raise self._fault("the server sends something that is no reply")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].decode("utf-8", "replace").strip()
        if rest.startswith(b"data:"):
            yield rest[5:].decode("utf-8", "replace").strip()


def _checked(url: str) -> str:
    """The address without its last slash.

    Raises:
        EngineError: not http(s), a name or password in it, or plain http to an address outside private networks.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.query or parts.fragment:
        raise EngineError(
            "the address of the engine's server is not one that can be used",
            code="engine-unreachable",
            hint="write it as http://127.0.0.1:8000/v1; a key belongs into WARMLINE_ENGINE_KEY",
        )
    if parts.scheme == "http" and _public(host):
        raise EngineError(
            "what people write would travel unencrypted",
            code="engine-unreachable",
            where=url,
            hint="use https, or a server on this machine or its private network",
        )
    return url.rstrip("/")


def _public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith((".local", ".internal", ".lan", ".localhost"))
