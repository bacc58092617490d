"""Doors with a lock: a visitor's key to a closed page, the operator's login, and what the operator sees.

    GET, POST  /enter            a key, for the page of a server that is not for everybody
    GET, POST  /operate/login    name and password
    GET        /operate          health, counts and the review queue      GET  /operate/status   the same as JSON, less
    POST       /operate/logout                                                                   the review queue
    GET        /operate/oidc     to another service's login           GET  /operate/oidc/back    back from it

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
from markupsafe import Markup, escape
from starlette.concurrency import run_in_threadpool

from warmline import __version__
from warmline.chat import Chat
from warmline.serve import journal
from warmline.serve.auth import ENTRY, ENTRY_DAYS, OPERATOR, TICKET, Gate, caller_of, cookie_for
from warmline.serve.conversations import Conversations
from warmline.serve.meter import Meter
from warmline.serve.oidc import TICKET_SECONDS, NoLogin, Service
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


def _said(text: str) -> Markup:
    """What stands between backticks, as code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if n % 2 else escape(p) for n, p in enumerate(parts))


_templates.filters["said"] = _said


def page(template: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any) -> Response:
    """A page of ours, filled in; everything is escaped."""
    text = _templates.get_template(template).render(**values)
    return HTMLResponse(text, status, dict(headers or {}) | FORM_HEADERS)


def routes(
    chat: Chat, line: Line, meter: Meter, gate: Gate, held: Conversations, name: str, service: Service | None = None
) -> APIRouter:
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
            return page("enter.html", 429, {"Retry-After": str(wait)}, name=name, trouble="often")
        entry = gate.entry((await _form(request)).get("key", "").strip())
        if entry is None:
            return page("enter.html", 401, name=name, trouble="wrong")
        response = RedirectResponse("/", 303)
        response.set_cookie(value=entry, max_age=ENTRY_DAYS * 86400, **cookie_for(request.scope, ENTRY))
        return response

    # ------------------------------------------------------------------ the operator

    def login_form(trouble: str = "", status: int = 200, elsewhere: str | None = None, **headers: str) -> Response:
        shown = service.name if service else None
        return page("login.html", status, headers, name=name, trouble=trouble, service=shown, elsewhere=elsewhere)

    def logged_in(request: Request, response: Response, who: str, hash: str | None) -> Response:
        response.set_cookie(value=gate.sessions.begin(who, hash), **cookie_for(request.scope, OPERATOR))
        return response

    @router.get("/operate/login")
    async def login_page() -> Response:
        return login_form()

    @router.post("/operate/login")
    async def login(request: Request) -> Response:
        form = await _form(request)
        who, address = form.get("name", "").strip(), caller_of(request).address
        if wait := gate.limits.login(address, who):
            return login_form("often", 429, **{"Retry-After": str(wait)})
        operator = await run_in_threadpool(gate.keys.check_password, who, form.get("password", ""))
        if operator is None:
            return login_form("wrong", 401)
        gate.limits.right(address, who)
        return logged_in(request, RedirectResponse("/operate", 303), operator.name, operator.hash)

    if service is not None:

        def back(request: Request) -> str:
            return f"{request.url.scheme}://{request.url.netloc}/operate/oidc/back"

        def nobody(no: NoLogin, status: int) -> Response:
            if no.why != "stale":  # which anybody can bring about, as often as they like
                told = {"event": "login", "code": no.why, "fault": no.detail}
                journal.faults.warning("an operator's login failed: %s", no, extra={"fields": told})
            return login_form(no.why, status)

        @router.get("/operate/oidc")
        def login_elsewhere(request: Request) -> Response:
            # Another website must not send people through a login that they did not ask for.
            if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
                return RedirectResponse("/operate/login", 303)
            if wait := gate.limits.elsewhere(caller_of(request).address, "begin"):
                return login_form("often", 429, **{"Retry-After": str(wait)})
            try:
                address, ticket = service.begin(back(request))
            except NoLogin as no:
                return nobody(no, 503)
            response = RedirectResponse(address, 303)
            # `lax`: it has to come along when the other service sends the browser back.
            kind = cookie_for(request.scope, TICKET) | {"samesite": "lax"}
            response.set_cookie(value=ticket, max_age=TICKET_SECONDS, **kind)
            return response

        @router.get("/operate/oidc/back")
        def login_back(request: Request) -> Response:
            # A ticket is good for ten minutes, and every use of it has the service asked.
            if wait := gate.limits.elsewhere(caller_of(request).address, "back"):
                return login_form("often", 429, **{"Retry-After": str(wait)})
            kind = cookie_for(request.scope, TICKET)
            try:
                who = service.finish(back(request), request.cookies.get(kind["key"], ""), request.query_params)
            except NoLogin as no:
                response = nobody(no, 401)
            else:
                # Not sent on by a redirect: the browser would take that for the other site's doing, and keep back the
                # session's cookie.
                response = logged_in(request, login_form("in", Refresh="0; url=/operate"), who, None)
            response.delete_cookie(**kind)
            return response

    @router.post("/operate/logout")
    async def logout(request: Request) -> Response:
        caller = caller_of(request)
        if caller.session is None or not _same(caller.session.csrf, (await _form(request)).get("csrf", "")):
            return JSONResponse({"code": "csrf", "message": "this form is not from this page"}, 403)
        gate.sessions.end(caller.session_id)
        response: Response = RedirectResponse("/operate/login", 303)
        if service is not None and caller.session.hash is None:
            response = login_form("out", elsewhere=await run_in_threadpool(service.leaving))
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
