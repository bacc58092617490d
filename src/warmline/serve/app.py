"""The visitor's web server: the page, conversations in memory, and everyone who can be reached.

Knows nothing of engines or models: every word goes through `chat`. No text of a conversation enters a log, an error or
a file.

    GET    /                                the page                POST   /api/conversations            a new one
    GET    /help                            people, without script  POST   /api/conversations/ID/messages  one turn
    GET    /measures                        the neutral page        DELETE /api/conversations/ID         forget it
    GET    /static/...                      what the pages load     GET    /api/resources/COUNTRY        who to reach
    GET    /healthz                         is the server alive     GET    /metrics                      numbers only
    GET    /readyz                          can it answer now       /v1/...  the OpenAI-style API (see `openai`)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.telemetry import TelemetryConfig
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.exceptions import HTTPException

from warmline.chat import Chat, Event, Thread
from warmline.errors import ServeError
from warmline.safety.resources import UNKNOWN, resources_for
from warmline.serve import directory, openai
from warmline.serve.conversations import Conversations
from warmline.serve.doorway import LOCAL_NAMES, Doorway
from warmline.serve.meter import FORM, Meter
from warmline.serve.pages import Pages, static_files
from warmline.serve.turns import Line, Streamed, TurnStream

MOST_CHARACTERS = 8000
SWEEP_SECONDS = 600.0

# FastAPI's own would record what was refused and why, and can be switched on by an environment variable.
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}

REFUSALS = {
    "not-found": (404, "there is nothing here"),
    "request-invalid": (422, "the request is not of the form this server reads"),
    "method-unknown": (405, "this address is not used that way"),
    "message-empty": (422, "the message holds no words"),
    "message-too-long": (413, f"the message is longer than {MOST_CHARACTERS:,} characters"),
    "country-unknown": (422, "that country is not in the table; leave it out if it is not known"),
    "superseded": (409, "a newer message came before this one was answered"),
    "full": (503, "there is no room for another conversation now; try again in a few minutes"),
}


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    country: Annotated[str, StringConstraints(max_length=8)] | None = None
    """Two letters; None when the visitor has not said."""


class NewConversation(Body):
    pass


class NewMessage(Body):
    text: str


def create_app(
    chat: Chat,
    *,
    name: str = "Warmline",
    country: str | None = None,
    hosts: tuple[str, ...] = LOCAL_NAMES,
    engine_places: int = 1,
    idle_hours: int = 12,
    conversations: Conversations | None = None,
) -> FastAPI:
    """The server for one `chat`. `name` is what visitors read, `country` (else the chat's) is theirs until
    they choose.

    `engine_places` replies are made at a time, others wait in line; replies that need no engine never wait.
    """
    held = conversations if conversations is not None else Conversations(idle_seconds=idle_hours * 3600)
    pages = Pages(name, idle_hours)
    static = static_files()
    line = Line(engine_places)
    meter = Meter(lambda: line.waiting, lambda: len(held))
    country = country or chat.country
    if country:
        country = resources_for(country).country

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                held.forget_idle()

        sweeping = asyncio.create_task(sweep())
        yield
        sweeping.cancel()
        held.forget_all()

    app = FastAPI(
        title=name,
        openapi_url=None,
        lifespan=lifespan,
        telemetry=NO_TELEMETRY,
    )
    app.add_middleware(Doorway, hosts=hosts)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, __: Exception) -> Response:
        # FastAPI's own answer would quote the request.
        return refuse("request-invalid")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        codes = {400: "request-invalid", 404: "not-found", 405: "method-unknown"}
        return refuse(codes.get(status, "request-invalid"))

    @app.get("/")
    async def first() -> Response:
        return HTMLResponse(pages.first(directory.choices(), country, directory.look_up(country)))

    @app.get("/help")
    async def help(country: str | None = country) -> Response:
        """Made from the table of resources alone: it works when the engine does not."""
        chosen = directory.known(country)
        page = pages.help(
            directory.choices(), chosen, directory.look_up(chosen), directory.everywhere(), directory.checked()
        )
        return HTMLResponse(page)

    @app.get("/measures")
    async def neutral() -> Response:
        return HTMLResponse(pages.neutral())

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

    @app.post("/api/conversations")
    async def open_conversation(body: NewConversation) -> Response:
        chosen = directory.known(body.country)
        if body.country and chosen is None:
            return refuse("country-unknown")
        opened = held.open(Thread(country=chosen or country))
        if opened is None:
            return refuse("full")
        return JSONResponse({"id": opened.id, "forgotten_after_idle_hours": idle_hours}, 201)

    @app.post("/api/conversations/{id}/messages")
    async def say(id: str, body: NewMessage) -> Response:
        conversation = held.find(id)
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
        turn = await conversation.begin()
        if turn is None:
            return refuse("superseded")
        thread = conversation.thread
        if "country" in body.model_fields_set:
            thread.country = chosen or country

        def events(cancel: threading.Event) -> Iterator[Event]:
            return meter.turn(chat.turn(thread, text, cancel=cancel))

        return Streamed(TurnStream(turn, events, line))

    @app.delete("/api/conversations/{id}")
    async def forget(id: str) -> Response:
        return Response(status_code=204) if held.forget(id) else refuse("not-found")

    app.include_router(openai.routes(chat, line, meter, country=country))

    return app


def refuse(code: str, status: int | None = None) -> JSONResponse:
    usual, message = REFUSALS[code]
    headers = {"Retry-After": "120"} if code == "full" else None
    return JSONResponse({"code": code, "message": message}, status or usual, headers)


def is_loopback(host: str) -> bool:
    """True for names and addresses that only this machine can reach.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on this machine; port 0 takes any free one.

    Raises:
        ServeError: `serve-open` for an address beyond this machine, `port-in-use` for a port that cannot be had.
    """
    if not is_loopback(host):
        raise ServeError(
            f"{host} can be reached from other machines, and this version has no keys or logins",
            code="serve-open",
            hint="leave --host out, and reach it from elsewhere through an SSH tunnel: "
            f"ssh -L {port or 8765}:127.0.0.1:{port or 8765} THIS-MACHINE",
        )
    host = "127.0.0.1" if host.lower() == "localhost" else host.strip("[]")
    door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
        door.listen(128)
    except (OSError, OverflowError) as error:
        door.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            what, hint = f"port {port} is taken", f"stop what listens there, or choose another: --port {port + 1}"
        else:
            what, hint = f"port {port} cannot be used here", "choose one from 1024 to 65535, e.g. --port 8765"
        raise ServeError(what, code="port-in-use", where=host, hint=hint) from None
    return door


def check_port(host: str, port: int) -> None:
    """Find out early, before a model is loaded, whether `run` will be able to listen there.

    Raises:
        ServeError: as `listen`.
    """
    listen(host, port).close()


def run(app: FastAPI, host: str = "127.0.0.1", port: int = 8765, *, ready: Callable[[str], None] | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM, then return. `ready` is called with the address once the port is open.

    Replies under way are cut after three seconds; nothing is kept, so nothing is lost.

    Raises:
        ServeError: the server cannot start as asked.
    """
    door = listen(host, port)
    address = door.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    for logger in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # paths hold the ids of conversations
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=3)
    )
    if ready is not None:
        ready(f"http://{shown}:{address[1]}")
    with contextlib.suppress(KeyboardInterrupt), door:
        server.run(sockets=[door])


__all__ = ["check_port", "create_app", "is_loopback", "listen", "run"]
