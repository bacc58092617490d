"""What goes over the wire: events and resources as plain JSON. Only what the page needs; never an internal text."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from warmline.chat import Done, Event, Notice, Safety, Text
from warmline.safety.resources import UNKNOWN, Resources, resources_for

TROUBLE = {
    "busy": "no answer came in time, because others are being answered",
    "no-reply": "no answer came in time",
    "too-many": "there were more messages than this server takes in so short a time",
    "closing": "the server is being restarted; try again in a moment",
    "fault": "something went wrong here",
}


def piece(event: Event) -> tuple[str, dict[str, Any]]:
    """Name and data of an event, as the page reads them."""
    match event:
        case Notice(text=text):
            return "notice", {"text": text}
        case Safety():
            return "safety", {
                "level": event.level,
                "flags": sorted(event.flags),
                "action": event.action,
                "resources": resources(event.resources) if event.resources else None,
            }
        case Text(piece=text):
            return "text", {"text": text}
        case Done():
            return "done", {"stop_reason": event.stop_reason, "level": event.level}
    raise TypeError(f"no wire form for {type(event).__name__}")


def trouble(code: str) -> tuple[str, dict[str, Any]]:
    return "error", {"code": code, "message": TROUBLE[code]}


def website(name: str) -> dict[str, str] | None:
    """Link and spoken name of a website as the table writes it.

    >>> website("www.samaritans.org/how-we-can-help")
    {'url': 'https://www.samaritans.org/how-we-can-help', 'site': 'samaritans.org'}
    """
    bare = name.strip().removeprefix("https://").removeprefix("http://")
    return {"url": f"https://{bare}", "site": bare.partition("/")[0].removeprefix("www.")} if bare else None


def resources(found: Resources) -> dict[str, Any]:
    """Lines of the country, its emergency number, and where to find more. None where there is none.

    A country without checked lines gets all directories, any other the first: what is short is read.
    """
    lines = () if found.fallback else found.lines
    directories = found.lines if found.fallback else resources_for(None).lines[:1]
    return {
        "country": None if found.country == UNKNOWN else found.country,
        "name": None if found.country == UNKNOWN else found.name,
        "emergency": {"number": found.emergency, "tel": found.emergency_tel} if found.emergency_tel else None,
        "lines": [
            {
                "label": line.label,
                "hours": line.hours or None,
                "call": {"number": line.number, "href": line.tel} if line.tel else None,
                "text": {"number": line.sms_number, "href": line.sms} if line.sms else None,
                "chat": website(line.chat),
                "web": website(line.url) if line.url != line.chat else None,
            }
            for line in lines
        ],
        "elsewhere": [site for line in directories if (site := website(line.url))],
    }


class Placed(Response):
    """An answer that also says, in the header `Warmline-Place`, where the person's message stands among the others."""

    def __init__(self, answer: Response, place: int) -> None:
        self.answer, self.place = answer, place
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def placed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Warmline-Place"] = str(self.place)
            await send(message)

        await self.answer(scope, receive, placed)
