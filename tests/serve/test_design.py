"""What can be checked of the page without a browser: strings, markup rules, and the contrast of every colour pair."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import get_args

import pytest
from fastapi.testclient import TestClient

from warmline.serve.conversations import Verdict
from warmline.serve.directory import choices
from warmline.serve.pages import LANGUAGES, SIZES

WEB = files("warmline.serve") / "web"
SCRIPTS = sorted(item.name for item in WEB.iterdir() if item.name.endswith(".js"))
PAGES = ("/", "/help", "/help?country=GB", "/measures", "/?language=es", "/help?language=de&text=large")


def strings(language: str) -> dict[str, str]:
    return json.loads((WEB / "strings" / f"{language}.json").read_text("utf-8"))  # type: ignore[no-any-return]


STRINGS = strings("en")


def text_of(name: str) -> str:
    return (WEB / name).read_text("utf-8")


class Elements(HTMLParser):
    """All start tags of a page, with the text inside each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[int] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attributes}, []))
        if tag not in ("meta", "link", "img", "input", "br"):
            self._open.append(len(self.found) - 1)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self.found[self._open.pop()][0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for index in self._open:
            self.found[index][2].append(data)

    def all(self, *tags: str) -> list[tuple[dict[str, str], str]]:
        return [(attributes, "".join(text).strip()) for tag, attributes, text in self.found if tag in tags]


@pytest.mark.parametrize("path", PAGES)
class TestMarkup:
    def test_no_inline_script_style_or_handler(self, client: TestClient, path: str) -> None:
        elements = Elements(client.get(path).text)
        assert all(attributes.get("src") and not text for attributes, text in elements.all("script"))
        assert not elements.all("style")
        for _, attributes, _ in elements.found:
            assert "style" not in attributes
            assert not [name for name in attributes if name.startswith("on")]

    def test_nothing_is_loaded_from_elsewhere(self, client: TestClient, path: str) -> None:
        elements = Elements(client.get(path).text)
        for attributes, _ in elements.all("script", "link", "img", "source", "iframe"):
            target = attributes.get("src") or attributes.get("href") or ""
            assert target.startswith("/static/"), target
            assert client.get(target).status_code == 200
        for attributes, _ in elements.all("form"):
            assert attributes["action"].startswith("/") if "action" in attributes else attributes["id"] == "composer"

    def test_one_heading_one_main_a_language_a_title(self, client: TestClient, path: str) -> None:
        elements = Elements(client.get(path).text)
        assert len(elements.all("h1")) == len(elements.all("main")) == 1
        assert elements.all("html")[0][0]["lang"] == (re.findall(r"language=(\w+)", path) or ["en"])[0]
        assert elements.all("title")[0][1]
        viewport = next(a["content"] for a, _ in elements.all("meta") if a.get("name") == "viewport")
        assert "maximum-scale" not in viewport
        assert "user-scalable" not in viewport

    def test_ids_are_unique_and_references_lead_somewhere(self, client: TestClient, path: str) -> None:
        elements = Elements(client.get(path).text)
        ids = [attributes["id"] for _, attributes, _ in elements.found if "id" in attributes]
        assert len(ids) == len(set(ids))
        for _, attributes, _ in elements.found:
            for name in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
                assert set(attributes.get(name, "").split()) <= set(ids)

    def test_every_control_has_a_name(self, client: TestClient, path: str) -> None:
        elements = Elements(client.get(path).text)
        labelled = {attributes.get("for") for attributes, text in elements.all("label") if text}
        for attributes, _ in elements.all("select", "textarea", "input"):
            if attributes.get("type") == "hidden":
                continue
            assert attributes["id"] in labelled
        for attributes, text in elements.all("a", "button", "summary"):
            assert text or attributes.get("aria-label")
        for attributes, _ in elements.all("img"):
            assert "alt" in attributes
        for attributes, _ in elements.all("section"):
            assert "aria-labelledby" in attributes

    def test_links_that_leave_say_so_and_tell_nothing(self, client: TestClient, path: str) -> None:
        for attributes, text in Elements(client.get(path).text).all("a"):
            if attributes.get("href", "").startswith("http"):
                assert attributes.get("href", "").startswith("https://")
                assert attributes["rel"] == "noopener noreferrer"
                language = (re.findall(r"language=(\w+)", path) or ["en"])[0]
                assert strings(language)["people.newtab"] in text

    def test_tap_to_call_links_are_numbers_only(self, client: TestClient, path: str) -> None:
        for attributes, _ in Elements(client.get(path).text).all("a"):
            if attributes.get("href", "").startswith(("tel:", "sms:")):
                assert re.fullmatch(r"(tel|sms):[+*#0-9]{2,16}(\?&?body=[\w%+]+)?", attributes.get("href", ""))


def test_scripts_make_no_markup_and_keep_nothing() -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|localStorage|sessionStorage|indexedDB|document\.cookie|https?://|console\."
    for name in SCRIPTS:
        assert not re.findall(forbidden, text_of(name)), name


def test_style_sheets_load_nothing() -> None:
    for name in ("page.css", "measures.css"):
        assert not re.findall(r"@import|url\(|!important(?!; })", text_of(name))


def test_strings_are_used_and_all_exist() -> None:
    used: set[str] = {"language", "months", "date", "talk.you", "talk.name"}
    areas = "|".join(sorted({key.partition(".")[0] for key in STRINGS if "." in key}))
    for name in SCRIPTS:
        used |= set(re.findall(rf"""["']((?:{areas})\.[\w.-]+)["']""", text_of(name)))
    for name in ("index.html", "help.html", "measures.html", "people.html"):
        used |= set(re.findall(rf"""["']((?:{areas})\.[\w.-]+)["']""", text_of(name)))
        used |= set(re.findall(r'\b(?:t|said)\("([\w.-]+)"', text_of(name)))
    # Put together from a part that is fixed and one that is not.
    used |= {f"{start}.{end}" for start in ("first.kept.memory", "first.kept.stored") for end in ("title", "text")}
    used |= {f"rate.{verdict}" for verdict in get_args(Verdict)} | {f"settings.size.{size}" for size in SIZES}
    used |= {f"save.{form}" for form in ("text", "json")}
    used -= {"first.kept.memory", "first.kept.stored", "people.html", "settings.size."}
    assert used <= set(STRINGS), used - set(STRINGS)
    assert {key for key in STRINGS if not key.startswith(("trouble.", "country."))} - used == set()
    assert {key for key in STRINGS if key.startswith("country.")} == {f"country.{code}" for code, _ in choices()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_says_everything(language: str) -> None:
    said = strings(language)
    assert list(said) == list(STRINGS)
    assert all(text.strip() for text in said.values())
    for key, text in said.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", STRINGS[key])), key
    assert len(said["months"].split()) == 12
    if language != "en":
        # Left as in English: names, and words that are the same in both.
        same = [key for key in said if said[key] == STRINGS[key] and not key.startswith("country.")]
        assert set(same) <= {"date", "talk.name", "talk.title", "talk.earlier", "away.volume", "away.butter"}, same


def test_the_page_promises_nothing_it_must_not() -> None:
    everything = " ".join(STRINGS.values()).lower()
    for word in ("therapist", "counsellor", "doctor", "diagnosed", "cure", "100 %", "guarantee", "committed suicide"):
        assert word not in everything
    assert "AI" in STRINGS["first.program.text"]
    assert "no person" in STRINGS["first.program.text"]
    assert "not therapy, not a crisis service" in everything
    assert "{hours} hours" in STRINGS["first.kept.memory.text"]
    assert "{days} days" in STRINGS["first.kept.stored.text"]
    assert "Off unless" in STRINGS["consent.note"]


def palette(scheme: str) -> dict[str, str]:
    style = text_of("page.css")
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    colours: dict[str, str] = {}
    for block in blocks[: 1 if scheme == "light" else 2]:
        colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    return colours


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_right() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


TEXT_ON = [
    ("ink", "paper"),
    ("ink", "card"),
    ("ink", "mine"),
    ("ink", "urgent-paper"),
    ("soft", "paper"),
    ("soft", "card"),
    ("accent", "paper"),
    ("accent", "card"),
    ("accent", "mine"),
    ("accent-deep", "card"),
    ("accent-deep", "mine"),
    ("on-accent", "accent"),
    ("on-accent", "accent-deep"),
    ("urgent", "paper"),
    ("urgent", "card"),
    ("urgent", "urgent-paper"),
    ("urgent", "mine"),
    ("urgent-deep", "urgent-paper"),
    ("on-urgent", "urgent"),
    ("on-urgent", "urgent-deep"),
]
EDGE_ON = [("edge", "paper"), ("edge", "card"), ("focus", "paper"), ("focus", "card"), ("focus", "urgent-paper")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("front", "back"), TEXT_ON)
def test_text_can_be_read(scheme: str, front: str, back: str) -> None:
    colours = palette(scheme)
    assert contrast(colours[front], colours[back]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("front", "back"), EDGE_ON)
def test_edges_and_focus_can_be_seen(scheme: str, front: str, back: str) -> None:
    colours = palette(scheme)
    assert contrast(colours[front], colours[back]) >= 3
