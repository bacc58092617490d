"""Doors with a lock: a visitor's key to a closed page, the operator's login, and what the operator sees.

    GET, POST  /enter            a key, for the page of a server that is not for everybody
    GET, POST  /operate/login    name and password
    GET        /operate          health, counts and the review queue      GET  /operate/status   the same as JSON, less
    POST       /operate/logout                                                                   the review queue

The review queue shows what visitors sent in by judging a reply: that reply, and the message it answered. Nothing else
of a conversation is ever shown here.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

import jinja2
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from warmline import __version__
from warmline.chat import Chat
from warmline.serve.auth import ENTRY, ENTRY_DAYS, OPERATOR, Gate, caller_of, cookie_for
from warmline.serve.conversations import Conversations
from warmline.serve.meter import Meter
from warmline.serve.turns import Line

LONGEST_FIELD = 200

# A browser that is told to send no referrer at all sends the origin `null` with a form, which the doorway refuses.
FORM_HEADERS = {"Referrer-Policy": "same-origin"}

_templates = jinja2.Environment(
    loader=jinja2.FunctionLoader(lambda file: (files("warmline.serve") / "web" / file).read_text("utf-8")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(template: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any) -> Response:
    """A page of ours, filled in; everything is escaped."""
    text = _templates.get_template(template).render(**values)
    return HTMLResponse(text, status, dict(headers or {}) | FORM_HEADERS)


def routes(chat: Chat, line: Line, meter: Meter, gate: Gate, held: Conversations, name: str) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    began = time.monotonic()

    def health() -> dict[str, Any]:
        return {
            "version": __version__,
            "engine": chat.engine.name,
            "ready": not line.full,
            "hours": round((time.monotonic() - began) / 3600, 1),
            "replying": line.live - line.waiting,
            "free": line.free,
            "waiting": line.waiting,
            "conversations": len(held),
            "kept_days": held.days,
        }

    # ------------------------------------------------------------------ a visitor's key

    @router.get("/enter")
    async def entrance() -> Response:
        return page("enter.html", name=name, trouble="")

    @router.post("/enter")
    async def enter(request: Request) -> Response:
        if wait := gate.limits.entering(caller_of(request).address):
            return _wait("enter.html", wait, name=name)
        entry = gate.entry((await _form(request)).get("key", "").strip())
        if entry is None:
            return page("enter.html", 401, name=name, trouble="wrong")
        response = RedirectResponse("/", 303)
        response.set_cookie(value=entry, max_age=ENTRY_DAYS * 86400, **cookie_for(request.scope, ENTRY))
        return response

    # ------------------------------------------------------------------ the operator

    @router.get("/operate/login")
    async def login_page() -> Response:
        return page("login.html", name=name, trouble="")

    @router.post("/operate/login")
    async def login(request: Request) -> Response:
        form = await _form(request)
        who, address = form.get("name", "").strip(), caller_of(request).address
        if wait := gate.limits.login(address, who):
            return _wait("login.html", wait, name=name)
        operator = await run_in_threadpool(gate.keys.check_password, who, form.get("password", ""))
        if operator is None:
            return page("login.html", 401, name=name, trouble="wrong")
        gate.limits.right(address, who)
        response = RedirectResponse("/operate", 303)
        response.set_cookie(
            value=gate.sessions.begin(operator.name, operator.hash), **cookie_for(request.scope, OPERATOR)
        )
        return response

    @router.post("/operate/logout")
    async def logout(request: Request) -> Response:
        caller = caller_of(request)
        if caller.session is None or not _same(caller.session.csrf, (await _form(request)).get("csrf", "")):
            return JSONResponse({"code": "csrf", "message": "this form is not from this page"}, 403)
        gate.sessions.end(caller.session_id)
        response = RedirectResponse("/operate/login", 303)
        response.delete_cookie(**cookie_for(request.scope, OPERATOR))
        return response

    @router.get("/operate")
    def overview(request: Request) -> Response:
        caller = caller_of(request)
        response = page(
            "operate.html",
            name=name,
            operator=caller.operator,
            csrf=caller.session.csrf if caller.session else "",
            health=health(),
            sums=meter.sums(),
            review=held.review(),
        )
        if caller.session is not None:  # its id may have changed
            response.set_cookie(value=caller.session_id, **cookie_for(request.scope, OPERATOR))
        return response

    @router.get("/operate/status")
    async def status() -> Response:
        return JSONResponse(health() | {"sums": meter.sums()})

    return router


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form as browsers send it; nothing where it is not one."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        return {}
    try:
        found = parse_qs((await request.body()).decode("utf-8"), max_num_fields=10, keep_blank_values=True)
    except ValueError:
        return {}
    return {name: values[0][:LONGEST_FIELD] for name, values in found.items()}


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "replace"))


def _wait(template: str, seconds: int, **values: Any) -> Response:
    return page(template, 429, {"Retry-After": str(seconds)}, trouble="often", **values)


def reference(schema: dict[str, Any]) -> Response:
    """The API's reference as a page, from its OpenAPI description: no script, nothing from elsewhere."""
    parts = schema.get("components", {}).get("schemas", {})

    def kind(field: dict[str, Any]) -> str:
        if "$ref" in field:
            return str(field["$ref"]).rpartition("/")[2]
        if "anyOf" in field:
            return " or ".join(dict.fromkeys(kind(one) for one in field["anyOf"]))
        if "enum" in field:
            return " | ".join(json.dumps(one) for one in field["enum"])
        return f"list of {kind(field['items'])}" if "items" in field else str(field.get("type", "any"))

    return page("api.html", schema=schema, parts=parts, kind=kind)


__all__ = ["page", "reference", "routes"]
