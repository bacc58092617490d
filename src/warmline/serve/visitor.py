"""Who a visitor is: whoever holds a cookie that cannot be guessed. It opens that visitor's conversations, nothing else.

Set when the first conversation is opened and never before, so that looking at the page leaves nothing behind.
"""

from __future__ import annotations

import re
import secrets

from starlette.requests import Request
from starlette.responses import Response

_FORM = re.compile(r"[A-Za-z0-9_-]{43}")
NOBODY = ""


def _name(request: Request) -> str:
    # The prefix keeps a neighbouring name of the same domain from planting a cookie of its own.
    return "__Host-visitor" if request.url.scheme == "https" else "visitor"


def visitor_of(request: Request) -> str:
    """The visitor's capability, or NOBODY, who has no conversations."""
    value = request.cookies.get(_name(request), "")
    return value if _FORM.fullmatch(value) else NOBODY


def new_visitor() -> str:
    return secrets.token_urlsafe(32)


def remember(response: Response, request: Request, visitor: str, days: int | None) -> None:
    """Give the visitor their cookie: for `days` where conversations are kept so long, else until the browser closes."""
    response.set_cookie(
        _name(request),
        visitor,
        max_age=days * 86400 if days else None,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        path="/",
    )


def forget(response: Response, request: Request) -> None:
    secure = request.url.scheme == "https"
    response.delete_cookie(_name(request), path="/", secure=secure, httponly=True, samesite="strict")
