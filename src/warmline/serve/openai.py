"""The OpenAI-style API: chat completions as the official clients speak them, through the same door as the page.

    POST /v1/chat/completions      GET /v1/models      GET /v1/docs, /v1/openapi.json  this API, described

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
from pydantic.json_schema import models_json_schema

from warmline import __version__
from warmline.chat import Chat, Done, Event, Options, Thread, Usage
from warmline.messages import Message
from warmline.serve import directory
from warmline.serve.auth import Gate
from warmline.serve.conversations import Piece, Turn
from warmline.serve.meter import Meter
from warmline.serve.operator import reference
from warmline.serve.turns import BUSY_SECONDS, Line, Refused, Streamed, TurnStream

MOST_CHARACTERS = 8000

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
    """A part of a message; only text is taken."""

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
    """How a stream ends."""

    include_usage: bool = False


class Visitor(BaseModel):
    """Warmline's own field: who is spoken to, as far as the client knows."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    country: str | None = Field(None, max_length=8)
    """Two letters: whose crisis lines are shown first."""
    minor: bool = False
    """Known to be a minor."""


class Completion(BaseModel):
    """What is asked. Fields of OpenAI's protocol that are not here are refused where they would change the reply."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)
    model: str
    """The one that /v1/models lists."""
    messages: list[Said] = Field(min_length=1, max_length=500)
    """The conversation so far; the last message is the user's. Each has at most 8,000 characters."""
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    """The newer name of `max_tokens`."""
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = None
    stream: bool | None = False
    """Server-Sent Events: first `warmline.safety`, then chunks, then [DONE]."""
    stream_options: StreamOptions | None = None
    warmline: Visitor = Visitor()


class Refusal(Exception):
    """A request that is not answered; `status` and OpenAI's error object."""

    def __init__(self, message: str, *, status: int = 400, code: str = "invalid_request", param: str | None = None):
        kind = {
            400: "invalid_request_error",
            404: "not_found_error",
            413: "invalid_request_error",
            429: "rate_limit_error",
        }
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
            case "waiting" if data["waiting"]:  # a comment, which clients pass over
                return f": place {data['place']} in the line\n\n".encode()
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
                status = 500 if data["code"] == "fault" else 503
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


def routes(
    chat: Chat, line: Line, meter: Meter, gate: Gate, *, country: str | None, wait_seconds: float = 120.0
) -> APIRouter:
    """The API's addresses, for the same chat and the same line as the page's."""
    router = APIRouter()
    described = description()
    name = chat.engine.name

    def card() -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "warmline"}

    @router.get("/v1/openapi.json")
    async def openapi() -> dict[str, Any]:
        return described

    @router.get("/v1/docs")
    async def docs() -> Response:
        return reference(described)

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

        stream = TurnStream(
            Turn(),
            events,
            line,
            over=gate.over(request),
            line_seconds=wait_seconds,
            encode=answer.stream,
            refuse=_turned_away,
        )
        if asked.stream:
            return Streamed(stream)
        pieces = await stream.collect(request.receive)
        if pieces is None:
            return Response(status_code=499)
        if isinstance(pieces, Refused):
            return _turned_away(pieces)
        try:
            return JSONResponse(answer.whole(pieces))
        except Refusal as refusal:
            return _refuse(refusal)

    return router


def _refuse(refusal: Refusal, seconds: int = BUSY_SECONDS) -> JSONResponse:
    headers = {"Retry-After": str(seconds)} if refusal.status in (429, 503) else None
    return JSONResponse(refusal.body, refusal.status, headers)


def _turned_away(refused: Refused) -> JSONResponse:
    """No place or over the limit: OpenAI's error, and beside it what the turn meant."""
    told = refused.json()
    refusal = Refusal(told["message"], status=refused.status, code=refused.code)
    refusal.body["warmline"] = {"notices": told["notices"]} | (told["safety"] or {})
    return _refuse(refusal, refused.seconds)


def description() -> dict[str, Any]:
    """This API as OpenAPI 3.1; a test holds its paths and those of `routes` equal."""
    _, shapes = models_json_schema([(Completion, "validation")], ref_template="#/components/schemas/{model}")
    error = {"description": "OpenAI's error object: message, type, param, code"}
    locked = {
        "401": {"description": "A key with the scope `chat` is needed, as `Authorization: Bearer` or `x-api-key`"},
        "403": {"description": "The key has not that scope"},
    }
    busy = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Warmline's OpenAI-style API",
            "version": __version__,
            "description": "Chat completions as the official OpenAI clients speak them. Every reply says first what "
            "the message meant: level, flags, and whom the person can reach.",
        },
        "security": [{"bearer": []}, {"header": []}],
        "paths": {
            "/v1/chat/completions": {
                "post": {
                    "operationId": "complete",
                    "description": "One reply. The field `warmline` has level, flags, action, resources and notices.",
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Completion"}}},
                    },
                    "responses": {
                        "200": {
                            "description": "The completion, or its stream",
                            "content": {"application/json": {}, "text/event-stream": {}},
                        },
                        "400": error,
                        "404": {"description": "No such model"},
                        "413": {"description": "A message is too long"},
                        "429": {"description": "Over the limit; a crisis is answered all the same", "headers": busy},
                        "500": {"description": "A fault of the server; no word of the request is in it"},
                        "503": {"description": "Too many wait; a crisis is answered all the same", "headers": busy},
                    }
                    | locked,
                }
            },
            "/v1/models": {
                "get": {
                    "operationId": "models",
                    "description": "The one model of this server.",
                    "responses": {"200": {"description": "A list", "content": {"application/json": {}}}} | locked,
                }
            },
            "/v1/models/{model}": {
                "get": {
                    "operationId": "model",
                    "description": "That model.",
                    "parameters": [name],
                    "responses": {
                        "200": {"description": "Its card", "content": {"application/json": {}}},
                        "404": {"description": "No such model"},
                    }
                    | locked,
                }
            },
        },
        "components": {
            "schemas": shapes["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


__all__ = ["routes"]
