"""Who may knock, and what every answer carries: host and origin checks, security headers, no traceback to anyone.

Knows nothing of conversations. What is refused here never reaches a route, so it is never parsed and never logged.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from warmline.serve import journal
from warmline.serve.auth import Denied, Gate
from warmline.serve.config import LOCAL_NAMES

MOST_BYTES = 128 * 1024  # 8,000 characters, each written as \uXXXX\uXXXX, and room for the rest
BODY_SECONDS = 20.0
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

HEADERS = {
    # No `unsafe-inline` anywhere: text from a model or a person can never become script or style.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "worker-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types worker"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # The address of a website a person opens from here must not say where they came from.
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), browsing-topics=()",
}


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

    def __init__(self, app: ASGIApp, gate: Gate | None = None, hosts: tuple[str, ...] = LOCAL_NAMES) -> None:
        self.app, self.gate = app, gate
        self.hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        status, began = 0, time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._pass(scope, receive, send_with_headers)
        except Exception as error:
            journal.fault("a request failed", error)
            if not status:
                await _answer(send_with_headers, 500, "fault", "something went wrong here")
        finally:
            caller, route = scope.get("state", {}).get("caller"), scope.get("route")
            journal.write(
                "request",
                route=getattr(route, "path", None),
                method=scope["method"] if scope["method"] in METHODS else "other",
                status=status,
                milliseconds=round((time.perf_counter() - began) * 1000),
                key=caller and caller.key,
                operator=bool(caller and caller.operator),
            )

    async def _pass(self, scope: Scope, receive: Receive, send_with_headers: Send) -> None:
        headers = Headers(scope=scope)
        refusal = self._refusal(scope["method"], headers)
        if refusal:
            await _answer(send_with_headers, *refusal)
            return
        caller = self.gate.admit(scope) if self.gate else None
        if isinstance(caller, Denied):
            await _deny(send_with_headers, caller, scope["path"])
            return
        scope.setdefault("state", {})["caller"] = caller
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

        await self.app(scope, receive_again, send_with_headers)

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


async def _deny(send: Send, denied: Denied, path: str) -> None:
    if denied.go:
        await send({"type": "http.response.start", "status": 303, "headers": [(b"location", denied.go.encode())]})
        await send({"type": "http.response.body", "body": b""})
        return
    more = [(b"www-authenticate", b"Bearer")] if denied.status == 401 else []
    error = {"message": denied.message, "type": "authentication_error", "param": None, "code": denied.code}
    await _answer(
        send, denied.status, denied.code, denied.message, more, {"error": error} if path.startswith("/v1/") else None
    )


async def _answer(
    send: Send,
    status: int,
    code: str,
    message: str,
    more: Sequence[tuple[bytes, bytes]] = (),
    row: dict[str, Any] | None = None,
) -> None:
    body = json.dumps(row or {"code": code, "message": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
