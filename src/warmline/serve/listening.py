"""The server's socket, and its life from the first request to the last. Knows nothing of what is said."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from warmline.errors import ServeError
from warmline.serve.config import is_loopback
from warmline.serve.keys import Keys
from warmline.serve.turns import Line

CUT_SECONDS = 5.0
"""How long a reply that was cut at the end may take to be written down."""
KEEP_SECONDS = 75
"""An idle connection is kept so long: longer than proxies keep theirs (60), so that none is closed under a request."""
VANISHED_MILLISECONDS = 20_000
"""A reader whose network is gone without a word is given up when what was sent stays unanswered so long (Linux)."""


def guarded(host: str, keys: Keys) -> None:
    """Nobody opens a server to other machines without anything that opens it to some and not to others.

    Raises:
        ServeError: `serve-open`: there is neither a key nor an operator; `keys-file` as `Keys.read`.
    """
    held = keys.read()
    if not is_loopback(host) and not held.operators and not any(key.state == "valid" for key in held.keys):
        raise ServeError(
            f"{host} can be reached from other machines, and there is no key or operator yet",
            code="serve-open",
            where=str(keys.path) if keys.path else None,
            hint="make one: `warmline keys operator NAME`, `warmline keys create NAME --scope chat`; "
            "or leave --host out and reach it through an SSH tunnel: ssh -L 8765:127.0.0.1:8765 THIS-MACHINE",
        )


def listen(host: str, port: int, keys: Keys | None = None) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        ServeError: `serve-open` for an address beyond this machine without keys, `port-in-use` for a port that cannot
            be had.
    """
    guarded(host, keys or Keys())
    host = "127.0.0.1" if host.lower() == "localhost" else host.strip("[]")
    # The protocol by name: asyncio switches Nagle's delay off only where it is, and that costs 40 ms an answer.
    door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it
        door.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_MILLISECONDS)
    try:
        door.bind((host, port))
        door.listen(128)
    except (OSError, OverflowError) as error:
        door.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            what, hint = f"port {port} is taken", f"stop what listens there, or choose another: --port {port + 1}"
        elif isinstance(error, socket.gaierror) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
            what, hint = "this machine has no such address", "0.0.0.0 listens at all of its addresses"
        else:
            what, hint = f"port {port} cannot be used here", "choose one from 1024 to 65535, e.g. --port 8765"
        raise ServeError(what, code="port-in-use", where=host, hint=hint) from None
    return door


def check_port(host: str, port: int, keys: Keys | None = None) -> None:
    """Find out early, before a model is loaded, whether `run` will be able to listen there.

    Raises:
        ServeError: as `listen`.
    """
    listen(host, port, keys).close()


class Server(uvicorn.Server):
    """Ends in order: nobody new comes in, replies under way may finish, what is left is cut and kept."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        line = getattr(getattr(self.config.app, "state", None), "line", None)
        if isinstance(line, Line):
            line.close()
        await super().shutdown(sockets)


def run(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8765,
    *,
    ready: Callable[[str], None] | None = None,
    keys: Keys | None = None,
    proxies: tuple[str, ...] = (),
    certificate: Path | None = None,
    certificate_key: Path | None = None,
    grace_seconds: float = 3.0,
) -> None:
    """Serve until Ctrl-C or SIGTERM, then return. `ready` is called with the address once the port is open.

    Replies under way have `grace_seconds` to finish; then they are cut, and what was said is in the conversation.

    Raises:
        ServeError: the server cannot start as asked.
    """
    door = listen(host, port, keys)
    address = door.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    for logger in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # paths hold the ids of conversations
    try:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_SECONDS,
            timeout_graceful_shutdown=max(1, round(grace_seconds)),
            proxy_headers=bool(proxies),
            forwarded_allow_ips=list(proxies),
            ssl_certfile=certificate,
            ssl_keyfile=certificate_key,
        )
        config.load()
    except OSError as error:  # ssl.SSLError is one
        door.close()
        raise ServeError(
            f"the certificate or its key cannot be used: {type(error).__name__}",
            code="serve-config",
            where=str(certificate),
            hint="both in PEM, the chain in the certificate's file, the key without a passphrase",
        ) from None
    server = Server(config)
    if ready is not None:
        ready(f"{'https' if certificate else 'http'}://{shown}:{address[1]}")
    with contextlib.suppress(KeyboardInterrupt), door:
        server.run(sockets=[door])


__all__ = ["CUT_SECONDS", "check_port", "guarded", "listen", "run"]
