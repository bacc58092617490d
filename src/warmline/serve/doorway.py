"""Who may knock, and what every answer carries: host and origin checks, security headers, no traceback to anyone.

Knows nothing of conversations. What is refused here never reaches a route, so it is never parsed and never logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("warmline.serve")

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

MOST_BYTES = 128 * 1024  # 8,000 characters, each written as \uXXXX\uXXXX, and room for the rest
BODY_SECONDS = 20.0

HEADERS = {
    # No `unsafe-inline` anywhere: text from a model or a person can never become script or style.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # The address of a website a person opens from here must not say where they came from.
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), browsing-topics=()",
}


def place(error: BaseException) -> str:
    """Kind of an error and the line it came from. Never its text, which may quote a person."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def host_name(value: str) -> str:
    """The name in a Host header or an origin, without scheme and port.

    >>> host_name("LocalHost:8765"), host_name("http://[::1]:8765"), host_name("127.0.0.1")
    ('localhost', '::1', '127.0.0.1')
    """
    value = value.strip().lower().rpartition("://")[2]
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0]


class Doorway:
    """ASGI middleware round everything. `hosts` are the names this server answers to; others get 421.

    The host check is what keeps a foreign website from reaching a server on the visitor's own machine by pointing its
    name at 127.0.0.1 (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] = LOCAL_NAMES) -> None:
        self.app = app
        self.hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._refusal(scope["method"], headers)
        if refusal:
            await _answer(send_with_headers, *refusal)
            return
        try:
            body = await asyncio.wait_for(_read(receive), BODY_SECONDS)
        except TimeoutError:
            await _answer(send_with_headers, 408, "request-slow", "the request did not come to its end")
            return
        if body is None:
            await _answer(send_with_headers, 413, "request-too-large", "the request is too large")
            return
        read = False

        async def receive_again() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await self.app(scope, receive_again, send_with_headers)
        except Exception as error:
            log.error("a request failed: %s", place(error))
            if not started:
                await _answer(send_with_headers, 500, "fault", "something went wrong here")

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str, str] | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or host_name(hosts[0]) not in self.hosts:
            return 421, "host-unknown", "this server does not answer to that name"
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        foreign = origin is not None and origin.lower().rpartition("://")[2] != hosts[0].strip().lower()
        if foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "origin-foreign", "another website may not write here"
        return None


async def _read(receive: Receive) -> bytes | None:
    """The whole body, or None when it is larger than any message may be."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(body)


async def _answer(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps({"code": code, "message": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
