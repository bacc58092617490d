"""Every route, every kind of caller, every place a key can stand. A new route without a row here fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient

from tests.serve.conftest import ORDINARY, chat_with
from warmline.errors import ServeError
from warmline.serve import listening
from warmline.serve.app import create_app
from warmline.serve.auth import Gate, check_routes
from warmline.serve.keys import Keys
from warmline.serve.limits import Limits

HOST = "listen.example.org"
COMPLETION = {"model": "scripted", "messages": [{"role": "user", "content": ORDINARY}]}

#: What each route needs, written down a second time and by hand. ID stands for somebody's conversation.
ROUTES: dict[tuple[str, str], str] = {
    ("GET", "/"): "visit",
    ("GET", "/help"): "open",
    ("GET", "/measures"): "open",
    ("GET", "/worker.js"): "open",
    ("GET", "/static/{path:path}"): "open",
    ("GET", "/favicon.ico"): "open",
    ("GET", "/healthz"): "open",
    ("GET", "/readyz"): "open",
    ("GET", "/metrics"): "metrics",
    ("GET", "/api/resources/{country}"): "open",
    ("GET", "/api/conversations"): "visit",
    ("POST", "/api/conversations"): "visit",
    ("DELETE", "/api/conversations"): "visit",
    ("GET", "/api/conversations/{id}"): "visit",
    ("DELETE", "/api/conversations/{id}"): "visit",
    ("POST", "/api/conversations/{id}/messages"): "visit",
    ("PUT", "/api/conversations/{id}/title"): "visit",
    ("PUT", "/api/conversations/{id}/consent"): "visit",
    ("PUT", "/api/conversations/{id}/verdict"): "visit",
    ("GET", "/api/conversations/{id}/export"): "visit",
    ("GET", "/v1/openapi.json"): "open",
    ("GET", "/v1/docs"): "open",
    ("GET", "/v1/models"): "chat",
    ("GET", "/v1/models/{model:path}"): "chat",
    ("POST", "/v1/chat/completions"): "chat",
    ("GET", "/enter"): "open",
    ("POST", "/enter"): "form",
    ("GET", "/operate/login"): "open",
    ("POST", "/operate/login"): "form",
    ("GET", "/operate"): "operate",
    ("GET", "/operate/status"): "operate",
    ("POST", "/operate/logout"): "operate",
}
BODIES: dict[str, Any] = {
    "/api/conversations": {},
    "/api/conversations/{id}/messages": {"text": ORDINARY},
    "/api/conversations/{id}/title": {"title": "x"},
    "/api/conversations/{id}/consent": {"training": True},
    "/api/conversations/{id}/verdict": {"place": 1, "verdict": "harmful"},
    "/v1/chat/completions": COMPLETION,
}


class House:
    """A server that other machines reach, with a key of every kind."""

    def __init__(self, folder: Path, visitors: Any = "key") -> None:
        self.keys = Keys(folder / "keys.json")
        made = {name: self.keys.create(name, (name,)) for name in ("chat", "metrics", "operate")}  # type: ignore[arg-type]
        gone, revoked = self.keys.create("gone", ("chat", "metrics", "operate"))
        self.keys.revoke(gone.id)
        self.texts = {name: text for name, (_, text) in made.items()} | {"revoked": revoked}
        self.keys.set_operator("ada", "a long enough password")
        self.gate = Gate(self.keys, local=False, visitors=visitors, limits=Limits("9999/minute", "9999/minute"))
        self.app = create_app(chat_with()[0], hosts=(HOST,), gate=self.gate)
        self.web = TestClient(self.app, base_url=f"https://{HOST}", follow_redirects=False)
        operator = self.keys.operator("ada")
        assert operator is not None
        self.session = self.gate.sessions.begin("ada", operator.hash)

    def ask(self, method: str, path: str, id: str = "x" * 32, **headers: str) -> Any:
        self.web.cookies.clear()
        at = places(path).replace("{id}", id)
        body = BODIES.get(path) if method != "GET" else None
        return self.web.request(method, at, json=body, headers=headers)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"))
    with house.web:
        yield house


def places(path: str) -> str:
    """{id} and the like, filled in."""
    return path.replace("{model:path}", "scripted").replace("{path:path}", "page.css").replace("{country}", "GB")


def routes_of(app: Any) -> set[tuple[str, str]]:
    found = set()
    for route in iter_route_contexts(app.routes):
        found |= {(method, str(route.path)) for method in route.methods or () if method != "HEAD"}
    return found


def test_every_route_has_a_row_here(house: House) -> None:
    assert routes_of(house.app) == set(ROUTES)


def test_a_route_without_a_row_keeps_the_server_from_starting() -> None:
    check_routes(path for _, path in ROUTES)
    with pytest.raises(RuntimeError, match="/new"):
        check_routes(["/help", "/new"])


def credentials(house: House) -> list[tuple[str, dict[str, str], set[str]]]:
    """Who asks, how, and which needs are granted to them."""
    everybody = {"open"}
    rows: list[tuple[str, dict[str, str], set[str]]] = [("anonymous", {}, everybody)]
    grants = {
        "chat": {"visit", "chat"},
        "metrics": {"metrics"},
        "operate": {"operate"},
        "revoked": set(),
        "wrong": set(),
        "empty": set(),
    }
    texts = house.texts | {"wrong": house.texts["chat"][:-4] + "AAAA", "empty": ""}
    for name, granted in grants.items():
        text = texts[name]
        rows.append((f"{name} as bearer", {"authorization": f"Bearer {text}"}, everybody | granted))
        rows.append((f"{name} as x-api-key", {"x-api-key": text}, everybody | granted))
        # A key is no cookie, whatever the cookie is called.
        for cookie in ("__Host-entry", "__Host-operator", "__Host-visitor", "entry", "operator", "key"):
            rows.append((f"{name} as {cookie}", {"cookie": f"{cookie}={text}"}, everybody))
    session = {"cookie": f"__Host-operator={house.session}"}
    rows.append(("operator", session, everybody | {"operate", "metrics"}))
    rows.append(("operator, plain cookie name", {"cookie": f"operator={house.session}"}, everybody))
    for header in ({"authorization": f"Bearer {house.session}"}, {"x-api-key": house.session}):
        rows.append(("session as key", header, everybody))
    entry = house.gate.entry(house.texts["chat"])
    assert entry is not None
    rows.append(("entered", {"cookie": f"__Host-entry={entry}"}, everybody | {"visit"}))
    forged = entry.rpartition(".")[0] + "." + "0" * 64
    later = entry.split(".")
    later[1] = str(int(later[1]) + 1)
    for cookie in (forged, ".".join(later), "..", entry + "x"):
        rows.append(("forged entry", {"cookie": f"__Host-entry={cookie}"}, everybody))
    rows.append(("basic", {"authorization": f"Basic {house.texts['chat']}"}, everybody))
    rows.append(("from localhost, says the header", {"x-forwarded-for": "127.0.0.1"}, everybody))
    return rows


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_nobody_comes_in_who_may_not(house: House, route: tuple[str, str]) -> None:
    need = ROUTES[route]
    wrong = []
    for who, headers, granted in credentials(house):
        status = house.ask(*route, **headers).status_code
        if need == "form":
            good = status in (401, 429)  # open to all, and without the right words no use
        elif need not in granted:
            good = status in (401, 403)
        elif route == ("POST", "/operate/logout"):
            good = status == 403  # no form of ours was sent
        elif "{id}" in route[1]:
            good = status == 404  # nobody has that conversation
        else:
            good = 200 <= status < 300
        if not good:
            wrong.append((who, status))
    assert wrong == []


@pytest.mark.parametrize(
    "odd", ["%0a", "%0A", "%0d%0a", "%00", "/", "//", "/.", ";x", "%2f", "%20", ".json", "?x=1", "#"]
)
def test_no_odd_spelling_gets_past_the_rows(house: House, odd: str) -> None:
    """The router takes some of these for the route; then the gate must, too."""
    for method, path in ROUTES:
        if ROUTES[method, path] not in ("open", "form"):
            at = places(path).replace("{id}", "x" * 32)
            for spelled in (
                at + odd,
                odd + at.lstrip("/"),
                "/" + at,
                at.replace("/", "//"),
                at.upper(),
                f"/help/..{at}",
            ):
                if spelled.startswith("/"):
                    assert house.web.request(method, spelled).status_code in (401, 403, 404, 405, 421), spelled


@pytest.mark.parametrize("value", ["é.1.é", "a.9999999999.é", "a.\u0661.x", "...", "=", ";", "a" * 6000])
def test_odd_cookies_and_keys_are_no_faults(house: House, value: str) -> None:
    raw = value.encode("utf-8")
    for name in (b"__Host-entry", b"__Host-operator", b"__Host-visitor"):
        assert house.web.get("/", headers={b"cookie": name + b"=" + raw}).status_code == 401
    for header in ({b"authorization": b"Bearer " + raw}, {b"x-api-key": raw}, {b"authorization": raw}):
        assert house.web.get("/metrics", headers=header).status_code == 401


def test_browsers_are_shown_the_door_and_programs_told(house: House) -> None:
    browser = {"accept": "text/html,*/*"}
    assert house.ask("GET", "/", **browser).headers["location"] == "/enter"
    assert house.ask("GET", "/operate", **browser).headers["location"] == "/operate/login"
    told = house.ask("GET", "/v1/models", **browser)
    assert (told.status_code, told.json()["error"]["code"]) == (401, "key-needed")
    assert told.headers["www-authenticate"] == "Bearer"
    metrics = {"authorization": f"Bearer {house.texts['metrics']}"}
    assert house.ask("GET", "/v1/models", **metrics).json()["error"]["code"] == "scope-missing"


def test_a_visitor_s_conversations_are_nobody_else_s(tmp_path: Path) -> None:
    house = House(tmp_path, visitors="anyone")
    with house.web:
        opened = house.ask("POST", "/api/conversations")
        id, mine = opened.json()["id"], opened.cookies["__Host-visitor"]
        own = {"cookie": f"__Host-visitor={mine}"}
        assert house.ask("POST", "/api/conversations/{id}/messages", id, **own).status_code == 200
        other = house.ask("POST", "/api/conversations").cookies["__Host-visitor"]
        strangers: list[dict[str, str]] = [{}, {"cookie": f"__Host-visitor={other}"}, {"cookie": f"visitor={mine}"}]
        strangers += [{"cookie": f"__Host-operator={house.session}"}]
        for text in (*house.texts.values(), mine):  # nor is the visitor's capability a key
            strangers += [{"authorization": f"Bearer {text}"}, {"x-api-key": text}]
        for method, path in ROUTES:
            if "{id}" not in path:
                continue
            unknown = house.ask(method, path, "y" * 32, **own)
            for headers in strangers:
                answer = house.ask(method, path, id, **headers)
                assert (answer.status_code, answer.content) == (404, unknown.content), (method, path, headers)
        found = house.ask("GET", "/api/conversations/{id}", id, **own).json()
        assert len(found["messages"]) == 2
        # Deleting "all of mine" deletes none of theirs.
        for headers in strangers:
            house.ask("DELETE", "/api/conversations", **headers)
            listed = house.ask("GET", "/api/conversations", **headers)
            assert listed.json()["conversations"] == []
        assert house.ask("GET", "/api/conversations/{id}", id, **own).status_code == 200


def test_on_this_machine_alone_no_key_is_needed_but_for_the_operator_s_page(tmp_path: Path) -> None:
    gate = Gate(Keys(tmp_path / "keys.json"))
    with TestClient(create_app(chat_with()[0], gate=gate), base_url="http://localhost") as web:
        for path in ("/", "/metrics", "/v1/models", "/api/conversations"):
            assert web.get(path).status_code == 200
            # A proxy has passed it on, so it is not from this machine.
            for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"):
                assert web.get(path, headers={header: "192.0.2.1"}).status_code == 401
        assert web.get("/operate").status_code == 401
        assert web.get("/help", headers={"Via": "x"}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_come_in_only_where_there_are_keys(tmp_path: Path, host: str) -> None:
    keys = Keys(tmp_path / "keys.json")
    with pytest.raises(ServeError) as error:
        listening.listen(host, 0, keys)
    assert error.value.code == "serve-open"
    made, _ = keys.create("one", ("chat",))
    listening.listen(host, 0, keys).close()
    keys.revoke(made.id)
    with pytest.raises(ServeError):
        listening.listen(host, 0, keys)


def test_a_file_of_keys_that_breaks_under_way_lets_nobody_in(house: House, tmp_path: Path) -> None:
    broken = House(tmp_path)
    with broken.web:
        bearer = {"authorization": f"Bearer {broken.texts['chat']}"}
        assert broken.ask("GET", "/v1/models", **bearer).status_code == 200
        assert broken.keys.path is not None
        broken.keys.path.write_text("{")
        assert broken.ask("GET", "/v1/models", **bearer).status_code == 401
        assert broken.ask("GET", "/operate", cookie=f"__Host-operator={broken.session}").status_code == 401
        assert broken.ask("GET", "/help").status_code == 200
