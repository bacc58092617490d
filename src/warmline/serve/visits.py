"""What visitors do with their conversations besides talking: open, read, name, judge, save, delete.

    GET    /api/conversations                 the visitor's own       DELETE /api/conversations         all of them
    POST   /api/conversations                 a new one               DELETE /api/conversations/ID      one
    GET    /api/conversations/ID              its words and level     GET    /api/conversations/ID/export?form=text|json
    PUT    /api/conversations/ID/title        a name for it           PUT    /api/conversations/ID/consent
    PUT    /api/conversations/ID/verdict      what they think of a reply

Foreign ids, deleted ones and any other are answered alike.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from warmline.chat import Thread
from warmline.serve import directory, visitor
from warmline.serve.auth import Gate
from warmline.serve.conversations import Conversations, Held, Verdict
from warmline.serve.meter import Meter
from warmline.serve.pages import LANGUAGES, Pages
from warmline.serve.refusals import MOST_TITLE, refuse


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewConversation(Body):
    country: Annotated[str, StringConstraints(max_length=8)] | None = None
    """Two letters; None when the visitor has not said."""


class Title(Body):
    title: Annotated[str, StringConstraints(max_length=MOST_TITLE)] | None


class Consent(Body):
    training: bool


class Judged(Body):
    place: Annotated[int, Field(ge=0, le=100_000)]
    """Of the reply, among the conversation's messages."""
    verdict: Verdict | None


def routes(
    held: Conversations, pages: Pages, meter: Meter, gate: Gate, idle_hours: int, country: str | None
) -> APIRouter:
    router = APIRouter(prefix="/api/conversations")

    @router.get("")
    def all_own(request: Request) -> Response:
        return JSONResponse({"conversations": held.of(visitor.visitor_of(request))})

    @router.post("")
    def open_one(body: NewConversation, request: Request) -> Response:
        chosen = directory.known(body.country)
        if body.country and chosen is None:
            return refuse("country-unknown")
        # Only where room is short: whoever needs help now may share an address with many others.
        if gate.over_opening(request) and 2 * len(held) > held.most:
            return refuse("too-many")
        who = visitor.visitor_of(request) or visitor.new_visitor()
        opened = held.open(who, Thread(country=chosen or country))
        if opened is None:
            return refuse("full")
        answer = {"id": opened.id, "forgotten_after_idle_hours": None if held.days else idle_hours}
        response = JSONResponse(answer | {"kept_days": held.days}, 201)
        visitor.remember(response, request, who, held.days)
        return response

    @router.delete("")
    def forget_all(request: Request) -> Response:
        held.forget_visitor(visitor.visitor_of(request))
        response = Response(status_code=204)
        visitor.forget(response, request)
        return response

    @router.get("/{id}")
    def read(id: str, request: Request) -> Response:
        found = held.find(visitor.visitor_of(request), id)
        return JSONResponse(_whole(found, country)) if found else refuse("not-found")

    @router.delete("/{id}")
    def forget(id: str, request: Request) -> Response:
        return Response(status_code=204) if held.forget(visitor.visitor_of(request), id) else refuse("not-found")

    @router.put("/{id}/title")
    def rename(id: str, body: Title, request: Request) -> Response:
        title = _text(body.title or "").strip() or None
        done = held.rename(visitor.visitor_of(request), id, title)
        return Response(status_code=204) if done else refuse("not-found")

    @router.put("/{id}/consent")
    def consent(id: str, body: Consent, request: Request) -> Response:
        done = held.consent(visitor.visitor_of(request), id, body.training)
        return Response(status_code=204) if done else refuse("not-found")

    @router.put("/{id}/verdict")
    def judge(id: str, body: Judged, request: Request) -> Response:
        done = held.judge(visitor.visitor_of(request), id, body.place, body.verdict)
        if done and body.verdict:
            meter.judged(body.verdict)
        return Response(status_code=204) if done else refuse("not-found")

    @router.get("/{id}/export")
    def export(id: str, request: Request, form: Literal["text", "json"] = "text", language: str = "en") -> Response:
        found = held.find(visitor.visitor_of(request), id)
        if found is None:
            return refuse("not-found")
        language = language if language in LANGUAGES else "en"
        ending, content = (
            ("json", json.dumps(_saved(found), ensure_ascii=False, indent=2))
            if form == "json"
            else ("txt", _written(found, pages, language))
        )
        kind = "application/json" if form == "json" else "text/plain; charset=utf-8"
        # A name that says nothing to whoever sees the folder.
        name = f"notes-{found.created[:10]}.{ending}"
        return Response(
            content.encode("utf-8"),
            media_type=kind,
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    return router


def _text(words: str) -> str:
    # A lone half of a surrogate pair is legal JSON, but no text.
    return words.encode("utf-8", "replace").decode("utf-8")


def _whole(found: Held, country: str | None) -> dict[str, Any]:
    """For the page: what was said, and what the conversation's level puts on the screen."""
    level = found.thread.state.level
    return {
        "id": found.id,
        "title": found.title,
        "created": found.created,
        "training": found.training,
        "messages": [
            {"role": message.role, "text": message.content, "verdict": found.verdicts.get(place)}
            for place, message in enumerate(found.thread.messages)
        ],
        "level": level,
        "resources": directory.look_up(found.thread.country or country) if level >= 2 else None,
    }


def _saved(found: Held) -> dict[str, Any]:
    return {
        "title": found.title,
        "created": found.created,
        "messages": [{"role": message.role, "content": message.content} for message in found.thread.messages],
    }


def _written(found: Held, pages: Pages, language: str) -> str:
    """The conversation as one would print it, with who says what in the visitor's language."""
    names = {"user": pages.text("talk.you", language), "assistant": pages.text("talk.name", language)}
    parts = [f"{found.title or ''}\n{found.created[:10]}".strip()]
    parts += [f"{names[message.role]}:\n{message.content}" for message in found.thread.messages]
    return "\n\n".join(parts) + "\n"
