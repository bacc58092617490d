"""The visitor's pages and the files they load, all read once at start. Knows nothing of conversations.

Whatever is not in this small set does not exist: no request names a path on the disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import jinja2
from markupsafe import Markup, escape

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class WebFile:
    content: bytes
    type: str
    etag: str


def _web() -> Traversable:
    return files("warmline.serve") / "web"


def static_files() -> dict[str, WebFile]:
    """What the pages load, by the path below /static/."""

    def below(folder: Traversable, prefix: str) -> dict[str, WebFile]:
        found: dict[str, WebFile] = {}
        for item in folder.iterdir():
            suffix = item.name[item.name.rfind(".") :]
            if item.is_dir():
                found |= below(item, f"{prefix}{item.name}/")
            elif suffix in TYPES:
                content = item.read_bytes()
                etag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
                found[prefix + item.name] = WebFile(content, TYPES[suffix], etag)
        return found

    return below(_web(), "")


class Pages:
    """Renders the pages in one language for one service name."""

    def __init__(self, name: str, hours: int, language: str = "en") -> None:
        self.name, self.hours = name, hours
        self.strings: dict[str, str] = json.loads((_web() / "strings" / f"{language}.json").read_text("utf-8"))
        self._templates = jinja2.Environment(
            loader=jinja2.FunctionLoader(lambda file: (_web() / file).read_text("utf-8")),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals.update(t=self.text, name=name, hours=hours)

    def text(self, key: str, **values: object) -> Markup:
        """The page's words for `key`, with `{name}`, `{hours}` and `values` filled in and escaped."""
        filled = self.strings[key]
        for slot, value in {"name": self.name, "hours": self.hours, **values}.items():
            filled = filled.replace("{" + slot + "}", str(value))
        return escape(filled)

    def first(self, countries: Sequence[tuple[str, str]], country: str | None, resources: dict[str, Any]) -> str:
        """The first screen and the conversation."""
        return self._render("index.html", countries=countries, country=country or "", resources=resources)

    def help(
        self,
        countries: Sequence[tuple[str, str]],
        country: str | None,
        resources: dict[str, Any],
        everywhere: Sequence[tuple[str, str, dict[str, Any]]],
        checked: str,
    ) -> str:
        """Everyone who can be reached, without JavaScript and without an engine."""
        return self._render(
            "help.html",
            countries=countries,
            country=country or "",
            country_name=dict(countries).get(country or ""),
            resources=resources,
            everywhere=everywhere,
            checked=checked,
        )

    def neutral(self) -> str:
        """The page one leaves to. It does not say where it comes from."""
        return self._render("measures.html")

    def _render(self, template: str, **values: Any) -> str:
        return self._templates.get_template(template).render(**values)
