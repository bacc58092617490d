"""Who may do what, decided in one place for every route. Knows requests' headers, never their bodies.

What each address needs stands in `NEEDS`; a route that stands in no row keeps the server from starting.

    open      everybody: people to turn to must never stand behind a door
    visit     the page and its conversations    a key with `chat`, also one that was entered once; or `anyone`
    chat      the API                           a key with `chat`
    metrics   the numbers                       a key with `metrics`, or an operator
    operate   the operator's page               a key with `operate`, or an operator; also on this machine itself

On a server that only this machine reaches, all but `operate` is granted to whoever comes.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.types import Scope

from warmline.errors import ServeError
from warmline.serve.keys import Keys
from warmline.serve.limits import Limits

log = logging.getLogger("warmline.serve")

Need = Literal["open", "visit", "chat", "metrics", "operate"]

NEEDS: tuple[tuple[Need, str], ...] = (
    ("open", r"/help|/measures|/enter|/worker\.js|/favicon\.ico|/static/.*|/api/resources/.*"),
    ("open", r"/healthz|/readyz|/v1/openapi\.json|/v1/docs|/operate/login|/operate/oidc(/back)?"),
    ("visit", r"/|/api/conversations(/.*)?"),
    ("chat", r"/v1/.*"),
    ("metrics", r"/metrics"),
    ("operate", r"/operate(/.*)?"),
)
"""The first row that matches the whole path counts."""

ENTRY_DAYS = 30
IDLE_SECONDS = 30 * 60.0
LONGEST_SECONDS = 8 * 3600.0
ROTATE_SECONDS = 10 * 60.0
GRACE_SECONDS = 30.0
ENTRY, OPERATOR, TICKET = "entry", "operator", "ticket"


def need_of(path: str) -> Need | None:
    """What an address needs; None for one that no row names.

    >>> need_of("/help"), need_of("/"), need_of("/v1/models"), need_of("/operate/login"), need_of("/operate/x")
    ('open', 'visit', 'chat', 'open', 'operate')
    """
    return next((need for need, pattern in NEEDS if re.fullmatch(pattern, path, re.DOTALL)), None)


def check_routes(paths: Iterable[str]) -> None:
    """Every route stands in `NEEDS`; a fault of ours if not."""
    missing = sorted(path for path in paths if need_of(path) is None)
    if missing:
        raise RuntimeError(f"auth.NEEDS has no row for {', '.join(missing)}")


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a request does not come in, and where a browser is sent instead."""

    status: int
    code: str
    message: str
    go: str | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `granted` holds needs; `key` is the id of the key that counts, `operator` a name."""

    address: str
    granted: frozenset[str]
    key: str | None = None
    given: bool = False
    """The key came with this very request, not with a visitor's cookie."""
    operator: str | None = None
    session: Session | None = None
    session_id: str = ""
    limited: bool = True


@dataclass(slots=True, eq=False)
class Session:
    """An operator who is logged in. `csrf` must come back with every form."""

    name: str
    hash: str | None
    """The password's, as it was at login: another password ends the session. None: the login was at another service."""
    began: float
    seen: float
    turned: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(24))


class Sessions:
    """Operators' sessions, in memory. Their ids change every few minutes, so a stolen one is soon worth nothing."""

    def __init__(self, keys: Keys, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys, self._clock = keys, clock
        self._open: dict[str, Session] = {}
        self._old: dict[str, tuple[str, float]] = {}
        """Ids that were replaced a moment ago: requests under way still carry them."""
        self._lock = threading.Lock()

    def begin(self, name: str, hash: str | None) -> str:
        id, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._open[id] = Session(name, hash, now, now, now)
        return id

    def find(self, id: str) -> tuple[str, Session] | None:
        """The session and the id it goes by from now on. None for unknown, ended and outdated ones."""
        now = self._clock()
        with self._lock:
            new, until = self._old.get(id, (id, now))
            id = new if now <= until else id
            session = self._open.get(id)
            if session is None:
                return None
            ended = now - session.seen > IDLE_SECONDS or now - session.began > LONGEST_SECONDS
            if session.hash is not None:
                operator = self._keys.operator(session.name)
                ended = ended or operator is None or operator.hash != session.hash
            if ended:
                del self._open[id]
                return None
            session.seen = now
            if now - session.turned > ROTATE_SECONDS:
                del self._open[id]
                self._old = {one: kept for one, kept in self._old.items() if kept[1] > now}
                fresh = secrets.token_urlsafe(32)
                self._old[id] = (fresh, now + GRACE_SECONDS)
                id, session.turned = fresh, now
                self._open[id] = session
            return id, session

    def end(self, id: str) -> None:
        with self._lock:
            self._open.pop(self._old.get(id, (id, 0.0))[0], None)


class Gate:
    """Asks every request who it is. `local`: only this machine reaches the server, as far as the settings tell.

    A request that a proxy has passed on (it says so in a header) is never taken for one of this machine.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        local: bool = True,
        visitors: Literal["key", "anyone"] = "key",
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.keys, self.local, self.visitors = keys, local, visitors
        self.limits = limits or Limits()
        self.sessions = Sessions(keys, clock)

    def admit(self, scope: Scope) -> Caller | Denied:
        """The caller, or why they do not come in."""
        headers, path = Headers(scope=scope), scope["path"]
        caller = self._caller(scope, headers)
        need = need_of(path)
        if need is None:
            # No row, so no route. Not left to the router: it takes `/metrics` and a line break for `/metrics`.
            return Denied(404, "not-found", "there is nothing here")
        if need == "open" or need in caller.granted:
            return caller
        api = path.startswith("/v1/")
        if caller.given:
            return Denied(403, "scope-missing", f"this key has not the scope that is needed here ({need})")
        browser = scope["method"] == "GET" and "text/html" in headers.get("accept", "") and not api
        go = {"visit": "/enter", "operate": "/operate/login"}.get(need) if browser else None
        return Denied(401, "key-needed", "a valid key is needed here", go)

    def _caller(self, scope: Scope, headers: Headers) -> Caller:
        address = scope["client"][0] if scope.get("client") else "unknown"
        passed_on = any(name in headers for name in ("forwarded", "x-forwarded-for", "x-real-ip", "via"))
        granted: set[str] = set()
        session_id, by_header = "", False
        if at_home := self.local and not passed_on:
            granted |= {"visit", "chat", "metrics"}
        if self.visitors == "anyone":
            granted.add("visit")
        key = operator = session = None
        cookies = cookie_parser(headers.get("cookie", ""))
        try:
            for given in _given(headers):
                if found := self.keys.find(given):
                    key, by_header = found.id, True
                    granted |= set(found.scopes)
                    break
            if entry := self._entered(cookies.get(_name(scope, ENTRY), "")):
                granted.add("visit")
                key = key or entry
            if found_session := self.sessions.find(cookies.get(_name(scope, OPERATOR), "")):
                session_id, session = found_session
                operator = session.name
                granted |= {"operate", "metrics"}
        except ServeError as error:  # the file was damaged under way: nobody is let in by it until it is mended
            log.error("the file of keys cannot be used", extra={"fields": {"event": "fault", "code": error.code}})
        if "chat" in granted:
            granted.add("visit")
        return Caller(address, frozenset(granted), key, by_header, operator, session, session_id, limited=not at_home)

    # ------------------------------------------------------------------ a visitor who enters a key

    def entry(self, given: str) -> str | None:
        """The cookie's value for a visitor who has entered a key with the scope `chat`; None for any other."""
        key = self.keys.find(given)
        if key is None or "chat" not in key.scopes:
            return None
        until = int(time.time()) + ENTRY_DAYS * 86400
        return f"{key.id}.{until}.{self._sign(key.id, until)}"

    def _entered(self, cookie: str) -> str | None:
        id, _, rest = cookie.partition(".")
        until, _, signed = rest.partition(".")
        if not re.fullmatch(r"[0-9]{1,12}", until) or not hmac.compare_digest(
            signed.encode(), self._sign(id, int(until)).encode()
        ):
            return None
        key = self.keys.valid(id)
        return id if key and "chat" in key.scopes and int(until) > time.time() else None

    def _sign(self, id: str, until: int) -> str:
        secret = bytes.fromhex(self.keys.read().secret)
        return hmac.new(secret, f"entry:{id}:{until}".encode(), hashlib.sha256).hexdigest()

    # ------------------------------------------------------------------ limits

    def over(self, request: Request) -> int:
        """Count a message of this request's caller: 0 if it is within the limits, else the seconds to wait."""
        caller = caller_of(request)
        return self.limits.message(caller.address, caller.key) if caller.limited else 0

    def over_opening(self, request: Request) -> int:
        """Count a new conversation, in the same way."""
        caller = caller_of(request)
        return self.limits.opening(caller.address) if caller.limited else 0


def caller_of(request: Request) -> Caller:
    caller = request.scope["state"]["caller"]
    assert isinstance(caller, Caller)
    return caller


def cookie_for(scope: Scope, kind: str) -> dict[str, Any]:
    """How a cookie of ours is set: out of reach of scripts, other sites and, with https, of plain connections."""
    return {
        "key": _name(scope, kind),
        "httponly": True,
        "samesite": "strict",
        "secure": scope["scheme"] == "https",
        "path": "/",
    }


def _name(scope: Mapping[str, Any], kind: str) -> str:
    # The prefix keeps a neighbouring name of the same domain from planting a cookie of its own.
    return f"__Host-{kind}" if scope["scheme"] == "https" else kind


def _given(headers: Headers) -> list[str]:
    """What stands where a key may stand."""
    kind, _, bearer = headers.get("authorization", "").partition(" ")
    return [
        given.strip() for given in (bearer if kind.lower() == "bearer" else "", headers.get("x-api-key", "")) if given
    ]


__all__ = ["NEEDS", "Caller", "Denied", "Gate", "Sessions", "caller_of", "check_routes", "cookie_for", "need_of"]
