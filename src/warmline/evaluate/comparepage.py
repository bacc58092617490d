"""The page of `warmline compare --web`: replies side by side, and votes. For the builder, on this machine.

Whoever serves it puts host and origin checks before it.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, StringConstraints

from warmline.errors import WarmlineError
from warmline.evaluate.compare import Choice, Comparison

PAGE = Path(__file__).with_name("comparepage")
KINDS = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}


class Asked(BaseModel):
    prompt: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]


class Voted(BaseModel):
    id: str
    choice: Choice


def create_app(both: Comparison) -> FastAPI:
    """The page and its two calls. One prompt at a time: the models are one machine's."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    turn = threading.Lock()

    @app.exception_handler(WarmlineError)
    async def refused(_: Any, error: WarmlineError) -> JSONResponse:
        return JSONResponse({"error": error.what}, 409)

    @app.get("/")
    def page() -> Response:
        return file("page.html")

    @app.get("/{name}")
    def file(name: str) -> Response:
        if name not in KINDS:
            return Response(status_code=204 if name == "favicon.ico" else 404)
        return Response((PAGE / name).read_bytes(), media_type=KINDS[name])

    @app.post("/ask")
    def ask(asked: Asked) -> dict[str, Any]:
        with turn:
            pair = both.ask(asked.prompt)
        return {
            "id": pair.id,
            "says": pair.says,
            "names": None if pair.blind else pair.names,
            "blind": pair.blind,
            "vetted": pair.level >= 3,
        }

    @app.post("/vote")
    def vote(voted: Voted) -> dict[str, Any]:
        with turn:
            pair = both.vote(voted.id, voted.choice)
            return {"names": pair.names, "tallies": [str(one) for one in both.tallies()]}

    return app
