"""How a request for the page's own addresses is turned down: a code and a line, never what was asked."""

from __future__ import annotations

from starlette.responses import JSONResponse

MOST_CHARACTERS = 8000
MOST_TITLE = 120

REFUSALS = {
    "not-found": (404, "there is nothing here"),
    "request-invalid": (422, "the request is not of the form this server reads"),
    "method-unknown": (405, "this address is not used that way"),
    "message-empty": (422, "the message holds no words"),
    "message-too-long": (413, f"the message is longer than {MOST_CHARACTERS:,} characters"),
    "place-taken": (409, "only the last message can be said anew"),
    "country-unknown": (422, "that country is not in the table; leave it out if it is not known"),
    "in-progress": (409, "this very message is being answered; ask again in a moment"),
    "superseded": (409, "a newer message came before this one was answered"),
    "too-many": (429, "there were more new conversations from this address than this server opens so fast"),
    "store-failed": (503, "what is kept cannot be reached or changed now; try again in a few minutes"),
    "full": (503, "there is no room for another conversation now; try again in a few minutes"),
}


def refuse(code: str, status: int | None = None) -> JSONResponse:
    usual, message = REFUSALS[code]
    retry = {"full": "120", "store-failed": "60", "in-progress": "1", "too-many": "60"}.get(code)
    headers = {"Retry-After": retry} if retry else None
    return JSONResponse({"code": code, "message": message}, status or usual, headers)
