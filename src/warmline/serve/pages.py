"""The visitor's pages and the files they load, all read once at start. Knows nothing of conversations.

Whatever is not in this small set does not exist: no request names a path on the disk.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup, escape

from warmline.safety.protocol import shipped
from warmline.serve import directory

LANGUAGES = ("en", "es", "fr", "de")
SIZES = ("large", "largest")

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


@dataclass(frozen=True, slots=True)
class View:
    """How a visitor wants the pages: travels in their addresses, so that nothing has to be kept in the browser."""

    language: str = "en"
    size: str = ""

    def query(self, **more: str | None) -> str:
        """The part of an address that carries it on, with "?" where there is any.

        >>> View("es").query(country="MX"), View().query()
        ('?language=es&country=MX', '?language=en')
        """
        return "?" + urlencode({k: v for k, v in {"language": self.language, "text": self.size, **more}.items() if v})


class Pages:
    """Renders the pages for one service name, in any of LANGUAGES.

    `hours` until a conversation in memory is forgotten; `days` for which it is kept on a disk, None for memory only.
    """

    def __init__(self, name: str, hours: int, days: int | None = None) -> None:
        self.name, self.hours, self.days = name, hours, days
        self.strings: dict[str, dict[str, str]] = {
            language: json.loads((_web() / "strings" / f"{language}.json").read_text("utf-8")) for language in LANGUAGES
        }
        self._templates = jinja2.Environment(
            loader=jinja2.FunctionLoader(lambda file: (_web() / file).read_text("utf-8")),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def view(self, language: str, size: str, accepted: str) -> View:
        """What was asked for, as far as it exists; else the browser's language (`Accept-Language`)."""
        return View(language if language in LANGUAGES else preferred(accepted), size if size in SIZES else "")

    def text(self, key: str, language: str = "en", **values: object) -> str:
        """The page's words for `key`, with `{name}`, `{hours}`, `{days}` and `values` filled in."""
        filled = self.strings[language][key]
        for slot, value in {"name": self.name, "hours": self.hours, "days": self.days, **values}.items():
            filled = filled.replace("{" + slot + "}", str(value))
        return filled

    def first(self, view: View, country: str | None, earlier: bool) -> str:
        """The first screen and the conversation. `earlier`: the visitor has conversations to go back to."""
        vetted = [language for language in LANGUAGES if language in shipped().locales()]
        resources = directory.look_up(country)
        return self._render("index.html", view, country, resources=resources, earlier=earlier, vetted=vetted)

    def help(self, view: View, country: str | None) -> str:
        """Everyone who can be reached, without JavaScript and without an engine."""
        lines = [(code, label, directory.look_up(code)) for code, label in self._countries(view)]
        day = directory.checked()
        months = self.text("months", view.language).split()
        return self._render(
            "help.html",
            view,
            country,
            country_key=f"country.{country}" if country else "people.title",
            resources=directory.look_up(country),
            everywhere=[entry for entry in lines if entry[2]["lines"]],
            checked=self.text("date", view.language, day=day.day, month=months[day.month - 1], year=day.year),
        )

    def neutral(self, view: View) -> str:
        """The page one leaves to. It does not say where it comes from."""
        return self._render("measures.html", view, None)

    def _countries(self, view: View) -> list[tuple[str, str]]:
        """Code and name of every country, in the order of the language's alphabet, near enough."""
        names = {code: self.text(f"country.{code}", view.language) for code, _ in directory.choices()}
        return sorted(names.items(), key=lambda item: unicodedata.normalize("NFKD", item[1]).casefold())

    def _render(self, template: str, view: View, country: str | None, **values: Any) -> str:
        def t(key: str, **slots: object) -> Markup:
            return escape(self.text(key, view.language, **slots))

        def said(key: str, **slots: object) -> Markup:
            """Attribute and text of an element whose words change with the language while the page is open."""
            return Markup(' data-t="{}">{}').format(key, self.text(key, view.language, **slots))

        languages = [(language, self.text("language", language)) for language in LANGUAGES]
        return self._templates.get_template(template).render(
            t=t,
            said=said,
            name=self.name,
            hours=self.hours,
            days=self.days,
            view=view,
            languages=languages,
            sizes=SIZES,
            country=country or "",
            countries=self._countries(view),
            **values,
        )


def preferred(accepted: str) -> str:
    """The first of LANGUAGES in an `Accept-Language` header, by weight; English if there is none.

    >>> preferred("pt, es-MX;q=0.8, en;q=0.9"), preferred("de-CH"), preferred("*"), preferred("fr;q=0, x;q=y")
    ('en', 'de', 'en', 'en')
    """
    best, language = 0.0, "en"
    for part in accepted[:500].split(","):
        tag, _, weight = part.strip().lower().partition(";q=")
        try:
            weighs = float(weight or 1)
        except ValueError:
            continue
        if tag.split("-")[0] in LANGUAGES and weighs > best:
            best, language = weighs, tag.split("-")[0]
    return language
