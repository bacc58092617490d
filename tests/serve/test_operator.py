"""Logging in, staying in, being locked out, and what an operator sees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.serve.conftest import CRISIS, ORDINARY, Running, chat_with, open_one, say
from warmline.serve import auth
from warmline.serve.app import create_app
from warmline.serve.auth import Gate, Sessions
from warmline.serve.keys import Keys
from warmline.serve.limits import Limits

PASSWORD = "a long enough password"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    keys = Keys(tmp_path / "keys.json")
    keys.set_operator("ada", PASSWORD)
    return keys


@pytest.fixture
def web(keys: Keys) -> Iterator[TestClient]:
    app = create_app(chat_with("One <b>reply</b>.")[0], gate=Gate(keys), name="Listen & <i>rest</i>")
    with TestClient(app, base_url="http://localhost", follow_redirects=False) as web:
        yield web


def log_in(web: TestClient, password: str = PASSWORD, name: str = "ada") -> Any:
    return web.post("/operate/login", data={"name": name, "password": password})


def test_in_and_out(web: TestClient) -> None:
    answer = log_in(web)
    assert (answer.status_code, answer.headers["location"]) == (303, "/operate")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    page = web.get("/operate")
    assert page.status_code == 200
    assert "Listen &amp; &lt;i&gt;" in page.text
    csrf = re.findall(r'name="csrf" value="([^"]+)"', page.text)[0]
    for wrong in ({}, {"csrf": ""}, {"csrf": csrf[:-1]}, {"csrf": "é"}):
        assert web.post("/operate/logout", data=wrong).status_code == 403
    assert (
        web.post("/operate/logout", content=f"csrf={csrf}", headers={"content-type": "text/plain"}).status_code == 403
    )
    assert web.get("/operate").status_code == 200
    session = web.cookies["operator"]
    assert web.post("/operate/logout", data={"csrf": csrf}).status_code == 303
    assert web.get("/operate", headers={"cookie": f"operator={session}"}).status_code == 401


def test_a_session_of_another_does_not_lend_its_token(web: TestClient, keys: Keys) -> None:
    keys.set_operator("bob", PASSWORD)
    log_in(web)
    csrf = re.findall(r'name="csrf" value="([^"]+)"', web.get("/operate").text)[0]
    web.cookies.clear()
    log_in(web, name="bob")
    assert web.post("/operate/logout", data={"csrf": csrf}).status_code == 403


def test_wrong_passwords_are_alike_and_lock_out(web: TestClient) -> None:
    unknown, wrong = log_in(web, name="eve"), log_in(web, "not the right password")
    assert unknown.status_code == wrong.status_code == 401
    assert unknown.content == wrong.content
    assert "set-cookie" not in wrong.headers
    for _ in range(4):
        log_in(web, "not the right password")
    locked = log_in(web)  # right now, and too late
    assert locked.status_code == 429
    assert 0 < int(locked.headers["retry-after"]) <= 900
    assert PASSWORD not in locked.text


def test_a_right_password_starts_the_count_anew() -> None:
    limits = Limits()
    for _ in range(6):
        assert [limits.login("192.0.2.1", "ada") for _ in range(2)] == [0, 0]
        limits.right("192.0.2.1", "ada")
    for _ in range(5):
        limits.login("192.0.2.2", "ada")
    assert limits.login("192.0.2.2", "ada") > 0
    assert limits.login("192.0.2.3", "ada") == 0
    # Many names from one address, and one name from many addresses, come to an end too.
    assert sum(limits.login("192.0.2.9", f"name{n}") == 0 for n in range(30)) == 20
    assert sum(limits.login(f"198.51.100.{n}", "bob") == 0 for n in range(80)) == 50


class TestSessions:
    def begin(self, keys: Keys) -> tuple[Sessions, str, list[float]]:
        now = [1000.0]
        sessions = Sessions(keys, clock=lambda: now[0])
        operator = keys.operator("ada")
        assert operator is not None
        return sessions, sessions.begin("ada", operator.hash), now

    def test_ids_change_and_the_old_one_soon_opens_nothing(self, keys: Keys) -> None:
        sessions, id, now = self.begin(keys)
        now[0] += auth.ROTATE_SECONDS + 1
        found = sessions.find(id)
        assert found is not None
        new, session = found
        assert new != id
        again = sessions.find(id)  # a request that was under way
        assert again is not None
        assert again[1] is session
        now[0] += auth.GRACE_SECONDS + 1
        assert sessions.find(id) is None
        assert sessions.find(new) is not None

    def test_they_end(self, keys: Keys) -> None:
        sessions, id, now = self.begin(keys)
        now[0] += auth.IDLE_SECONDS + 1
        assert sessions.find(id) is None
        sessions, id, now = self.begin(keys)
        for _ in range(int(auth.LONGEST_SECONDS // 600)):
            now[0] += 600
            found = sessions.find(id)
            id = found[0] if found else id
        now[0] += 2
        assert sessions.find(id) is None

    def test_another_password_ends_them(self, keys: Keys) -> None:
        sessions, id, _ = self.begin(keys)
        keys.set_operator("ada", "another long password")
        assert sessions.find(id) is None
        sessions, id, _ = self.begin(keys)
        keys.remove_operator("ada")
        assert sessions.find(id) is None

    @pytest.mark.parametrize("id", ["", "x", "a" * 5000, "é"])
    def test_no_other_id_opens_one(self, keys: Keys, id: str) -> None:
        assert self.begin(keys)[0].find(id) is None


def test_the_page_counts_and_shows_what_was_judged_and_nothing_else(web: TestClient) -> None:
    id = open_one(web)
    say(web, id, "The <script>alert(1)</script> at work.")
    say(web, id, "Unjudged words stay unseen.")
    say(web, id, CRISIS)
    assert web.put(f"/api/conversations/{id}/verdict", json={"place": 1, "verdict": "harmful"}).status_code == 204
    log_in(web)
    page = web.get("/operate").text
    assert "&lt;script&gt;alert(1)" in page
    assert "One &lt;b&gt;reply" in page
    assert "Unjudged" not in page
    assert "kill" not in page
    assert id not in page
    status = web.get("/operate/status").json()
    assert sum(status["sums"]["Turns by level"].values()) == 3
    assert status["sums"]["Turns by action"]["vetted"] == 1
    assert status["sums"]["Replies by judgement"] == {"harmful": 1}
    assert ORDINARY not in str(status)


def test_a_judgement_is_still_counted_when_its_conversation_is_gone(web: TestClient) -> None:
    """In memory only, what was judged goes with the visitor's page. The operator is told so, and keeps the count."""
    id = open_one(web)
    say(web, id, "The shifts are long.")
    web.put(f"/api/conversations/{id}/verdict", json={"place": 1, "verdict": "helpful"})
    assert web.delete(f"/api/conversations/{id}").status_code == 204
    log_in(web)
    page = web.get("/operate").text
    assert "in memory only here" in page
    assert "shifts" not in page
    assert re.search(r"<dt>helpful</dt>\s*<dd>1</dd>", page)


def test_a_form_that_is_none(web: TestClient) -> None:
    for body, kind in (
        (b"name=ada&password=%ff", "application/x-www-form-urlencoded"),
        (b"\xff\xfe", "application/x-www-form-urlencoded"),
        (b"&".join(b"a%d=1" % n for n in range(50)), "application/x-www-form-urlencoded"),
        (b'{"name": "ada"}', "application/json"),
        (b"", "multipart/form-data; boundary=x"),
    ):
        for path in ("/operate/login", "/enter"):
            answer = web.post(path, content=body, headers={"content-type": kind})
            assert answer.status_code in (401, 429)


def test_a_visitor_enters_a_key_and_a_revoked_one_shuts_the_page(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    key, text = keys.create("group", ("chat",))
    _, other = keys.create("monitor", ("metrics",))
    app = create_app(chat_with()[0], gate=Gate(keys, local=False), hosts=("localhost",))
    with TestClient(app, base_url="http://localhost", follow_redirects=False) as web:
        for wrong in ("", other, text[:-1], "é" * 10):
            assert web.post("/enter", data={"key": wrong}).status_code == 401
        answer = web.post("/enter", data={"key": f" {text}\n"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert text not in answer.headers["set-cookie"]
        assert web.get("/").status_code == 200
        assert say(web, open_one(web), ORDINARY)[-1][0] == "done"
        # The cookie opens the page and neither the API nor the numbers.
        assert web.get("/v1/models").status_code == web.get("/metrics").status_code == 401
        keys.revoke(key.id)
        assert web.get("/").status_code == 401


@pytest.mark.browser
def test_the_forms_work_in_a_browser(chromium: Any, tmp_path: Path) -> None:
    """A browser sends an origin with a form, or `null` where a page's headers forbid it; only one of them is let in."""
    keys = Keys(tmp_path / "keys.json")
    keys.set_operator("ada", PASSWORD)
    _, text = keys.create("group", ("chat",))
    gate = Gate(keys, local=False)
    with Running(create_app(chat_with()[0], gate=gate)) as server:
        page = chromium.new_page(java_script_enabled=False)
        page.goto(server.url)
        assert page.url.endswith("/enter")
        assert page.locator("a[href='/help']").is_visible()
        page.fill("#key", "wrong")
        page.click("button")
        assert page.locator("[role=alert]").is_visible()
        page.fill("#key", text)
        page.click("button")
        assert page.url == f"{server.url}/"
        page.goto(f"{server.url}/operate")
        page.fill("#name", "ada")
        page.fill("#password", PASSWORD)
        page.click("button")
        assert page.url.endswith("/operate")
        assert page.locator("text=Replies that visitors judged").is_visible()
        page.click("button")
        assert page.url.endswith("/operate/login")
        page.close()
