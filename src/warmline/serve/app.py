"""The visitor's web server: the page, conversations in memory, and everyone who can be reached.

Knows nothing of engines or models: every word goes through `chat`. No text of a conversation enters a log, an error or
a file.

    GET    /                 the page                     POST   /api/conversations/ID/messages   one turn
    GET    /help             people, without script       ...    /api/conversations...            see `visits`
    GET    /measures         the neutral page             GET    /api/resources/COUNTRY           who to reach
    GET    /static/...       what the pages load          GET    /worker.js                       keeps the help page
    GET    /healthz          is the server alive          GET    /metrics                         numbers only
    GET    /readyz           can it answer now            /v1/...  the OpenAI-style API (see `openai`)
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.routing import iter_route_contexts
from fastapi.telemetry import TelemetryConfig
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.exceptions import HTTPException

from warmline.chat import Chat, Done, Event
from warmline.errors import VaultError
from warmline.safety.resources import UNKNOWN, resources_for
from warmline.serve import directory, openai, operator, visits
from warmline.serve.auth import Gate, check_routes
from warmline.serve.config import LOCAL_NAMES, is_loopback
from warmline.serve.conversations import Conversations
from warmline.serve.doorway import Doorway
from warmline.serve.keys import Keys
from warmline.serve.listening import CUT_SECONDS, check_port, listen, run
from warmline.serve.meter import FORM, Meter
from warmline.serve.oidc import Service
from warmline.serve.pages import LANGUAGES, Pages, static_files
from warmline.serve.refusals import MOST_CHARACTERS, refuse
from warmline.serve.turns import Line, Streamed, TurnStream, replay
from warmline.serve.visitor import visitor_of
from warmline.serve.wire import Placed

SWEEP_SECONDS = 600.0

# FastAPI's own would record what was refused and why, and can be switched on by an environment variable.
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}


class NewMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str
    country: Annotated[str, StringConstraints(max_length=8)] | None = None
    """Two letters; None when the visitor has not said."""
    language: Annotated[str, StringConstraints(max_length=8)] | None = None
    """Of the page; wordings that exist in it are used."""
    place: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """Where the message goes: in the place of the person's last one, or after all others as without it."""


def create_app(
    chat: Chat,
    *,
    name: str = "Warmline",
    country: str | None = None,
    hosts: tuple[str, ...] = LOCAL_NAMES,
    engine_places: int = 1,
    idle_hours: int = 12,
    conversations: Conversations | None = None,
    gate: Gate | None = None,
    queue: int = 64,
    wait_seconds: float = 120.0,
    login: Service | None = None,
) -> FastAPI:
    """The server for one `chat`. `name` is what visitors read, `country` (else the chat's) is theirs until
    they choose.

    `engine_places` replies are made at a time, at most `queue` others wait in line for `wait_seconds`; replies that
    need no engine never wait. `gate` decides who comes in; without one the server is for this machine alone. At
    `login` operators may log in, too.
    """
    held = conversations if conversations is not None else Conversations(idle_seconds=idle_hours * 3600)
    pages = Pages(name, idle_hours, held.days)
    static = static_files()
    gate = gate or Gate(Keys())
    line = Line(engine_places, queue)
    meter = Meter(line, lambda: len(held))
    country = country or chat.country
    if country:
        country = resources_for(country).country

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                await asyncio.to_thread(held.forget_idle)

        sweeping = asyncio.create_task(sweep())
        yield
        sweeping.cancel()
        await asyncio.to_thread(line.cut, CUT_SECONDS)
        await asyncio.to_thread(held.forget_all)

    app = FastAPI(
        title=name,
        openapi_url=None,
        lifespan=lifespan,
        telemetry=NO_TELEMETRY,
    )
    app.state.line = line
    app.add_middleware(Doorway, gate=gate, hosts=hosts)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, __: Exception) -> Response:
        # FastAPI's own answer would quote the request.
        return refuse("request-invalid")

    @app.exception_handler(VaultError)
    async def not_kept(_: Request, __: Exception) -> Response:
        return refuse("store-failed")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        codes = {400: "request-invalid", 404: "not-found", 405: "method-unknown"}
        return refuse(codes.get(status, "request-invalid"))

    @app.get("/")
    def first(request: Request, text: str = "", language: str = "") -> Response:
        view = pages.view(language, text, request.headers.get("accept-language", ""))
        return HTMLResponse(pages.first(view, country, bool(held.of(visitor_of(request)))))

    @app.get("/help")
    async def help(request: Request, country: str | None = country, text: str = "", language: str = "") -> Response:
        """Made from the table of resources alone: it works when the engine does not."""
        view = pages.view(language, text, request.headers.get("accept-language", ""))
        return HTMLResponse(pages.help(view, directory.known(country)))

    @app.get("/measures")
    async def neutral(request: Request, language: str = "") -> Response:
        view = pages.view(language, "", request.headers.get("accept-language", ""))
        return HTMLResponse(pages.neutral(view))

    @app.get("/worker.js")
    async def worker() -> Response:
        """Keeps the help page in the browser. At the root, because a worker only sees what lies below its address."""
        return Response(static["worker.js"].content, media_type=static["worker.js"].type)

    @app.get("/static/{path:path}")
    async def static_file(path: str, request: Request) -> Response:
        file = static.get(path)
        if file is None:
            return refuse("not-found")
        headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.type, headers=headers)

    @app.get("/favicon.ico")
    async def favicon() -> Response:
        return Response(static["plain.svg"].content, media_type=static["plain.svg"].type)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """For a load balancer: 503 while no further message would get a place in the line."""
        return JSONResponse({"status": "full" if line.full else "ok"}, 503 if line.full else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(meter.text(), media_type=FORM)

    @app.get("/api/resources/{country}")
    async def resources(country: str) -> Response:
        chosen = directory.known(country)
        if chosen is None and country.upper() != UNKNOWN:
            return refuse("country-unknown", 404)
        return JSONResponse(directory.look_up(chosen))

    @app.post("/api/conversations/{id}/messages")
    async def say(id: str, body: NewMessage, request: Request) -> Response:
        conversation = await asyncio.to_thread(held.find, visitor_of(request), id)
        if conversation is None:
            return refuse("not-found")
        # A lone half of a surrogate pair is legal JSON, but no text.
        text = body.text.encode("utf-8", "replace").decode("utf-8")
        if not text.strip():
            return refuse("message-empty")
        if len(text) > MOST_CHARACTERS:
            return refuse("message-too-long")
        chosen = directory.known(body.country)
        if body.country and chosen is None:
            return refuse("country-unknown")
        key = request.headers.get("idempotency-key", "")[:200]
        if earlier := await conversation.again(key):
            if earlier.whole:
                return Placed(replay(earlier.pieces), earlier.before)
            return refuse("superseded" if earlier.ended.is_set() else "in-progress")
        turn = await conversation.begin(key)
        if turn is None:
            return refuse("superseded")
        thread = conversation.thread
        instead = body.place is not None and body.place == thread.last_place()
        if body.place is not None and not instead and body.place != len(thread.messages):
            turn.ended.set()
            return refuse("place-taken")
        if body.place is not None:
            turn.before = body.place
            conversation.verdicts = {at: said for at, said in conversation.verdicts.items() if at < body.place}
        if "country" in body.model_fields_set:
            thread.country = chosen or country
        if body.language in LANGUAGES:
            thread.locale = body.language

        def events(cancel: threading.Event) -> Iterator[Event]:
            more: dict[str, Any] = {"instead": True} if instead else {}
            done: Done | None = None
            try:
                for event in meter.turn(chat.turn(thread, text, cancel=cancel, **more)):
                    if isinstance(event, Done):
                        done = event
                    else:
                        yield event
            finally:
                held.keep(conversation)
            if done is not None:  # told once it is kept
                yield done

        def dropped() -> None:
            conversation.take_back(turn)
            held.keep(conversation)

        stream = TurnStream(turn, events, line, over=gate.over(request), line_seconds=wait_seconds, dropped=dropped)
        return Placed(Streamed(stream), turn.before)

    app.include_router(visits.routes(held, pages, meter, gate, idle_hours, country))
    app.include_router(openai.routes(chat, line, meter, gate, country=country, wait_seconds=wait_seconds))
    app.include_router(operator.routes(chat, line, meter, gate, held, name, login))
    check_routes(str(context.path) for context in iter_route_contexts(app.routes))

    return app


__all__ = ["check_port", "create_app", "is_loopback", "listen", "run"]
