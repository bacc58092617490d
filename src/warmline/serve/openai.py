"""The OpenAI-style API: chat completions as the official clients speak them, through the same door as the page.

    POST /v1/chat/completions      GET /v1/models

A client keeps its own conversation and sends it whole, so the person's earlier messages are screened again each time.
What the turn meant (level, flags, resources, notices) comes first: as the event `warmline.safety` of a stream, and in
the field `warmline` of either form. A client's system prompt stands after the safety prompt, never in its place.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from warmline.chat import Chat, Done, Event, Options, Thread, Usage
from warmline.messages import Message
from warmline.serve import directory
from warmline.serve.conversations import Turn
from warmline.serve.meter import Meter
from warmline.serve.turns import Line, Piece, Streamed, TurnStream

MOST_CHARACTERS = 8000
RETRY_SECONDS = 5

#: Fields of the protocol that this server does not carry out, and the values at which they change nothing.
IDLE: dict[str, tuple[Any, ...]] = {
    "n": (1, None),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": ({}, None),
    "tools": ([], None),
    "tool_choice": ("none", "auto", None),
    "functions": ([], None),
    "function_call": ("none", "auto", None),
    "response_format": ({"type": "text"}, None),
    "modalities": (["text"], None),
    "audio": (None,),
    "prediction": (None,),
    "store": (False, None),
    "parallel_tool_calls": (True, False, None),
}
#: Fields that are read by no one here and mean nothing to the reply. Nothing of them is kept.
IGNORED = ("user", "safety_identifier", "metadata", "service_tier", "prompt_cache_key", "reasoning_effort", "verbosity")


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Said(BaseModel):
    """One message of the client's conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None
    refusal: None = None

    @property
    def words(self) -> str:
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return text.encode("utf-8", "replace").decode("utf-8")


class StreamOptions(BaseModel):
    include_usage: bool = False


class Visitor(BaseModel):
    """Warmline's own field: who is spoken to, as far as the client knows."""

    model_config = ConfigDict(extra="forbid")
    country: str | None = Field(None, max_length=8)
    minor: bool = False


class Completion(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str
    messages: list[Said] = Field(min_length=1, max_length=500)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    warmline: Visitor = Visitor()


class Refusal(Exception):
    """A request that is not answered; `status` and OpenAI's error object."""

    def __init__(self, message: str, *, status: int = 400, code: str = "invalid_request", param: str | None = None):
        kind = {400: "invalid_request_error", 404: "not_found_error", 413: "invalid_request_error"}
        self.status = status
        self.body = {
            "error": {"message": message, "type": kind.get(status, "server_error"), "param": param, "code": code}
        }
        super().__init__(code)


def _read(body: bytes) -> Completion:
    """The request, or what is wrong with it in one sentence that quotes none of its text."""
    try:
        raw = json.loads(body)
        if not isinstance(raw, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise Refusal("the body is not a JSON object") from None
    try:
        asked = Completion.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        where = ".".join(str(step) for step in first["loc"] if step != "function-after")
        raise Refusal(f"{where}: {first['msg'].lower()}", param=where) from None
    for name, value in (asked.model_extra or {}).items():
        if name in IGNORED or (name in IDLE and value in IDLE[name]):
            continue
        known = "is not carried out here" if name in IDLE else "is not known here"
        raise Refusal(f"{name[:40]} {known}; leave it out", code="unsupported_parameter", param=name[:40])
    if asked.messages[-1].role != "user":
        raise Refusal("the last message must be the user's", param="messages")
    if not asked.messages[-1].words.strip():
        raise Refusal("the last message holds no words", param="messages")
    if any(len(message.words) > MOST_CHARACTERS for message in asked.messages):
        raise Refusal(f"a message is longer than {MOST_CHARACTERS:,} characters", status=413, param="messages")
    if asked.warmline.country and directory.known(asked.warmline.country) is None:
        raise Refusal("that country is not in the table; leave it out if it is not known", param="warmline.country")
    return asked


def _options(asked: Completion, usual: Options) -> Options:
    given: dict[str, Any] = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_tokens": asked.max_completion_tokens or asked.max_tokens,
        "seed": asked.seed,
        "stop": (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ()) or None,
    }
    return replace(usual, **{name: value for name, value in given.items() if value is not None})


class Answer:
    """Writes the pieces of one turn in OpenAI's form."""

    def __init__(self, model: str, usage: Usage, include_usage: bool) -> None:
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.model, self.usage, self.include_usage = model, usage, include_usage
        self.meant: dict[str, Any] = {"notices": []}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self) -> dict[str, Any]:
        read, made = self.usage.prompt_tokens, self.usage.completion_tokens
        return {
            "prompt_tokens": read,
            "completion_tokens": made,
            "total_tokens": read + made,
            "prompt_tokens_details": {"cached_tokens": self.usage.cached_tokens},
        }

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, **extra: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._head("chat.completion.chunk") | {"choices": [choice]} | extra

    def stream(self, piece: Piece) -> bytes:
        """One piece as Server-Sent Events; nothing for what the protocol has no word for."""
        name, data = piece
        match name:
            case "notice":
                self.meant["notices"].append(data["text"])
                return b""
            case "safety":
                self.meant |= data
                chunk = self._chunk({"role": "assistant", "content": ""}, warmline=self.meant)
                return f"event: warmline.safety\ndata: {json.dumps(chunk)}\n\n".encode()
            case "text":
                return _data(self._chunk({"content": data["text"]}))
            case "done":
                end = _data(self._chunk({}, _finish(data["stop_reason"]), warmline={"level": data["level"]}))
                if self.include_usage:
                    end += _data(self._head("chat.completion.chunk") | {"choices": [], "usage": self._usage()})
                return end + b"data: [DONE]\n\n"
            case "error":
                error = {"message": data["message"], "type": "server_error", "param": None, "code": data["code"]}
                return _data({"error": error})
        return b""

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """All pieces as one completion.

        Raises:
            Refusal: the turn came to no reply.
        """
        text, finish = "", "stop"
        for name, data in pieces:
            if name == "error":
                status = 503 if data["code"] == "busy" else 500
                raise Refusal(data["message"], status=status, code=data["code"])
            if name == "notice":
                self.meant["notices"].append(data["text"])
            elif name == "safety":
                self.meant |= data
            elif name == "text":
                text += data["text"]
            elif name == "done":
                finish = _finish(data["stop_reason"])
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return self._head("chat.completion") | {"choices": [choice], "usage": self._usage(), "warmline": self.meant}


def _finish(reason: str) -> str:
    return "length" if reason == "length" else "stop"


def _data(row: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(row)}\n\n".encode()


def routes(chat: Chat, line: Line, meter: Meter, *, country: str | None) -> APIRouter:
    """The API's addresses, for the same chat and the same line as the page's."""
    router = APIRouter()
    name = chat.engine.name

    def card() -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "warmline"}

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card()]}

    @router.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        if model != name:
            return _refuse(Refusal("that model is not here; see /v1/models", status=404, code="model_not_found"))
        return JSONResponse(card())

    @router.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        try:
            asked = _read(await request.body())
            if asked.model != name:
                raise Refusal(
                    "that model is not here; see /v1/models", status=404, code="model_not_found", param="model"
                )
        except Refusal as refusal:
            return _refuse(refusal)
        usage = Usage()
        answer = Answer(name, usage, bool(asked.stream_options and asked.stream_options.include_usage))
        earlier = [m for m in asked.messages[:-1] if m.role in ("user", "assistant")]
        thread = Thread(
            country=directory.known(asked.warmline.country) or country,
            minor=asked.warmline.minor,
            instructions="\n\n".join(m.words for m in asked.messages if m.role in ("system", "developer")),
        )

        def events(cancel: threading.Event) -> Iterator[Event]:
            chat.recall(thread, [Message("user" if m.role == "user" else "assistant", m.words) for m in earlier])
            turn = chat.turn(thread, asked.messages[-1].words, cancel=cancel, options=_options(asked, chat.options))
            for event in meter.turn(turn):
                if isinstance(event, Done):
                    for field in ("prompt_tokens", "cached_tokens", "completion_tokens"):
                        setattr(usage, field, getattr(event.usage, field))
                yield event

        if asked.stream and not line.full:
            return Streamed(TurnStream(Turn(), events, line, encode=answer.stream))
        pieces = await TurnStream(Turn(), events, line).collect(request.receive)
        if pieces is None:
            return Response(status_code=499)
        if asked.stream and pieces[-1][0] == "done":  # the line is full, but a crisis never stands in it
            return Response(b"".join(map(answer.stream, pieces)), media_type="text/event-stream")
        try:
            return JSONResponse(answer.whole(pieces))
        except Refusal as refusal:
            return _refuse(refusal)

    return router


def _refuse(refusal: Refusal) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_SECONDS)} if refusal.status == 503 else None
    return JSONResponse(refusal.body, refusal.status, headers)


__all__ = ["routes"]
