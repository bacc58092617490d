"""Logging in at another service: a small OpenID Connect provider of the tests' own, over real HTTP, honest and not."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from tests.serve.conftest import Running, chat_with
from tests.serve.test_access import ROUTES, routes_of
from warmline.errors import ServeError
from warmline.serve import config, oidc
from warmline.serve.app import create_app
from warmline.serve.auth import IDLE_SECONDS, Gate
from warmline.serve.keys import Keys
from warmline.serve.limits import Limits

CLIENT, SECRET, GROUP = "warmline", "the client's secret", "listeners"
KEY, OTHER_KEY = (RSAKey.generate_key(2048, {"kid": kid}) for kid in ("one", "two"))
UNREAD = [{"kty": "OKP", "crv": "X999", "x": "AA", "kid": "new"}, {"kty": "tea"}]
"""Keys of kinds that nobody knows: a service may publish them beside those it signs with."""


class Provider:
    """Logs everybody in at once. `claims`, `header` and `described` are what a test has it say otherwise."""

    def __init__(self) -> None:
        self.codes: dict[str, dict[str, str]] = {}
        self.asked: list[dict[str, str]] = []
        self.honest()
        app = FastAPI()
        app.get("/.well-known/openid-configuration")(self.description)
        app.get("/keys")(lambda: {"keys": [*UNREAD, *KeySet([KEY, OTHER_KEY]).as_dict(private=False)["keys"]]})
        app.get("/authorize")(self.authorize)
        app.post("/token")(self.token)
        self.running = Running(app)

    def honest(self) -> None:
        self.claims: dict[str, Any] = {}
        self.described: dict[str, Any] = {}
        self.sign: Callable[[dict[str, Any]], str] = lambda claims: jwt.encode(
            {"alg": "RS256", "kid": "one"}, claims, KEY
        )

    @property
    def issuer(self) -> str:
        return self.running.url

    def description(self) -> dict[str, Any]:
        paths = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        found = {name: f"{self.issuer}/{path}" for name, path in paths.items()}
        return found | {"issuer": self.issuer, "end_session_endpoint": f"{self.issuer}/out"} | self.described

    def authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        self.asked.append(asked)
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT
        assert asked["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(8)
        self.codes[code] = asked
        return RedirectResponse(f"{asked['redirect_uri']}?code={code}&state={asked['state']}&iss={self.issuer}", 303)

    async def token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        known = request.headers.get("authorization") == f"Basic {basic}" or form.get("client_secret") == SECRET
        asked = self.codes.pop(form["code"], None)
        if not known or asked is None or asked["redirect_uri"] != form["redirect_uri"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        digest = base64_of(hashlib.sha256(form["code_verifier"].encode()).digest())
        if digest != asked["code_challenge"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "sub": "1", "iat": now, "exp": now + 60, "nonce": asked["nonce"]}
        claims |= {"groups": ["staff", GROUP], "preferred_username": "ada <b>"}
        claims = {name: value for name, value in (claims | self.claims).items() if value is not None}
        return JSONResponse({"access_token": "x", "token_type": "Bearer", "id_token": self.sign(claims)})


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    provider = Provider()
    with provider.running:
        yield provider


@pytest.fixture
def provider(running: Provider) -> Provider:
    running.honest()
    return running


def service_of(provider: Provider, **other: Any) -> oidc.Service:
    return oidc.Service(provider.issuer, CLIENT, GROUP, **{"secret": SECRET} | other)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(Keys(tmp_path / "keys.json"))


@pytest.fixture
def server(provider: Provider, gate: Gate) -> Iterator[Running]:
    with Running(create_app(chat_with()[0], gate=gate, login=service_of(provider))) as running:
        yield running


class Browser(httpx.Client):
    """Goes where it is sent, by hand, so that a test may stand in between."""

    def __init__(self, server: Running) -> None:
        super().__init__(base_url=server.url, timeout=20)

    def to_the_service(self) -> str:
        """Begins, logs in there, and returns the address to come back to."""
        begun = self.get("/operate/oidc")
        assert begun.status_code == 303, begun.text
        return str(httpx.get(begun.headers["location"]).headers["location"])

    def log_in(self) -> httpx.Response:
        return self.get(self.to_the_service())

    def inside(self) -> bool:
        return self.get("/operate").status_code == 200


def test_in_and_out(provider: Provider, server: Running) -> None:
    with Browser(server) as browser:
        assert "/operate/oidc" in browser.get("/operate/login").text
        begun = browser.get("/operate/oidc")
        cookie = begun.headers["set-cookie"].lower()
        for word in ("ticket=", "httponly", "samesite=lax", "max-age=600"):
            assert word in cookie
        answer = browser.log_in()
        assert (answer.status_code, answer.headers["refresh"]) == (200, "0; url=/operate")
        assert "ticket" not in browser.cookies  # used, and gone
        assert "samesite=strict" in answer.headers["set-cookie"].lower()
        page = browser.get("/operate")
        assert "ada &lt;b&gt;" in page.text
        csrf = re.findall(r'name="csrf" value="([^"]+)"', page.text)[0]
        session = browser.cookies["operator"]
        out = browser.post("/operate/logout", data={"csrf": csrf})
        assert f'href="{provider.issuer}/out?client_id={CLIENT}"' in out.text
        assert "operator" not in browser.cookies
        assert browser.get("/operate", headers={"cookie": f"operator={session}"}).status_code == 401
        browser.log_in()
    one, other = provider.asked[-2:]
    for once in ("state", "nonce", "code_challenge"):  # never twice the same
        assert one[once] != other[once]
        assert len(one[once]) >= 43


def changed(**claims: Any) -> Callable[[Provider], None]:
    return lambda provider: provider.claims.update(claims)


def signed(sign: Callable[[dict[str, Any]], str]) -> Callable[[Provider], None]:
    return lambda provider: setattr(provider, "sign", sign)


def described(**other: Any) -> Callable[[Provider], None]:
    return lambda provider: provider.described.update(other)


def base64_of(row: bytes) -> str:
    return base64.urlsafe_b64encode(row).decode().rstrip("=")


def unsigned(claims: dict[str, Any], algorithm: str = "none") -> str:
    parts = (json.dumps(row).encode() for row in ({"alg": algorithm, "kid": "one"}, claims))
    return ".".join(map(base64_of, parts)) + "."


def confused(claims: dict[str, Any]) -> str:
    """Signed with the public key, as if that were a secret that both sides share."""
    text = unsigned(claims, "HS256")
    return text + base64_of(hmac.digest(KEY.as_pem(private=False), text.removesuffix(".").encode(), "sha256"))


FORGERIES: dict[str, tuple[Callable[[Provider], None], str]] = {
    "another nonce": (changed(nonce="x" * 64), "service nonce"),
    "no nonce": (changed(nonce=None), "service nonce"),
    "another audience": (changed(aud="somebody else"), "service aud"),
    "several audiences, none of them named as asking": (changed(aud=[CLIENT, "other"]), "service azp"),
    "asked for by another": (changed(azp="other"), "service azp"),
    "no audience": (changed(aud=None), "service aud"),
    "another issuer": (changed(iss="https://elsewhere.example"), "service iss"),
    "expired": (changed(exp=int(time.time()) - 600), "service exp"),
    "never expires": (changed(exp=None), "service exp"),
    "from the future": (changed(iat=int(time.time()) + 6000), "service iat"),
    "another access token": (changed(at_hash="AAAA"), "service at_hash"),
    "unsigned": (signed(unsigned), "service"),
    "signed with the public key": (signed(confused), "service"),
    "signed with another key": (
        signed(lambda claims: jwt.encode({"alg": "RS256", "kid": "one"}, claims, OTHER_KEY)),
        "service",
    ),
    "changed after signing": (
        signed(lambda claims: jwt.encode({"alg": "RS256", "kid": "one"}, claims, KEY)[:-6] + "AAAAAA"),
        "service",
    ),
    "no token at all": (signed(lambda claims: ""), "service"),
    "no group": (changed(groups=None), "group"),
    "other groups": (changed(groups=["staff", f"{GROUP}-guests"]), "group"),
    "a group that only begins so": (changed(groups=f"{GROUP}, staff"), "group"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_nobody_comes_in_with(
    provider: Provider, server: Running, forgery: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "warmline.serve")
    forge, why = FORGERIES[forgery]
    forge(provider)
    with Browser(server) as browser:
        answer = browser.log_in()
        assert answer.status_code == 401
        assert "operator" not in browser.cookies
        assert not browser.inside()
    told = [row for record in caplog.records if (row := getattr(record, "fields", {})).get("event") == "login"]
    assert [row["code"] for row in told] == [why.split()[0]]
    assert told[0]["fault"].endswith(why.split()[-1]) or " " not in why, told  # the log says what was wrong
    assert "ada" not in str(told)


def test_the_same_provider_unchanged_lets_in(provider: Provider, server: Running) -> None:
    """What the forgeries stand out against."""
    for claims in ({}, {"groups": GROUP}, {"aud": [CLIENT]}, {"aud": [CLIENT, "other"], "azp": CLIENT}):
        provider.claims = claims
        with Browser(server) as browser:
            assert browser.log_in().status_code == 200, claims
            assert browser.inside()


def test_coming_back_with_what_is_not_one_s_own(provider: Provider, server: Running) -> None:
    """Another state, another browser's address (login CSRF), no ticket, the same address twice."""
    with Browser(server) as browser, Browser(server) as victim:
        own = browser.to_the_service()
        mine, theirs = browser.cookies["ticket"], victim.to_the_service()
        for address, ticket in (
            (re.sub("state=[^&]+", "state=" + "0" * 64, own), mine),
            (re.sub("state=[^&]+&?", "", own), mine),
            (re.sub("state=[^&]+", "state=%C3%A9", own), mine),
            (theirs, mine),
            (own, None),
            (own, "1.x"),
            (own, mine.replace(".", "1.", 1)),
            (own, "é.é"),
        ):
            cookie = {} if ticket is None else {"cookie": f"ticket={ticket}".encode()}
            with Browser(server) as stranger:
                answer = stranger.get(address, headers=cookie)
                assert (answer.status_code, "operator" in stranger.cookies) == (401, False), (address, ticket)
        assert "operator" not in victim.cookies
        assert browser.get(re.sub("iss=[^&]+", "iss=https://elsewhere.example", own)).status_code == 401
        again = {"cookie": f"ticket={mine}"}  # the ticket was used up by that; its owner kept a copy
        assert browser.get(own, headers=again).status_code == 200
        assert browser.get(own, headers=again).status_code == 401  # the service gives nothing twice for a code
        assert browser.get("/operate/oidc/back?error=access_denied", headers=again).status_code == 401


def test_a_login_that_took_too_long(provider: Provider) -> None:
    now = [1_000_000.0]
    service = service_of(provider, clock=lambda: now[0])
    address, ticket = service.begin("http://localhost/operate/oidc/back")
    told = dict(part.split("=", 1) for part in urlsplit(httpx.get(address).headers["location"]).query.split("&"))
    now[0] += oidc.TICKET_SECONDS + 1
    with pytest.raises(oidc.NoLogin) as no:
        service.finish("http://localhost/operate/oidc/back", ticket, told)
    assert no.value.why == "stale"
    now[0] -= 2
    assert service.finish("http://localhost/operate/oidc/back", ticket, told) == "ada <b>"


@pytest.mark.parametrize(
    "said",
    [
        {"issuer": "https://elsewhere.example"},
        {"token_endpoint": "http://id.example.org/token"},
        {"jwks_uri": "file:///etc/passwd"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": None},
        {"token_endpoint": ["https://id.example.org"]},
    ],
    ids=str,
)
def test_a_description_that_is_not_to_be_trusted(provider: Provider, server: Running, said: dict[str, Any]) -> None:
    provider.described = said
    with Browser(server) as browser:
        answer = browser.get("/operate/oidc")
        assert answer.status_code == 503
        assert "location" not in answer.headers
        assert "set-cookie" not in answer.headers
    with pytest.raises(oidc.NoLogin):
        service_of(provider).describe()


def test_a_service_that_is_gone_or_talks_nonsense(gate: Gate) -> None:
    nonsense = FastAPI()
    nonsense.get("/.well-known/openid-configuration")(lambda: ["x"])
    with Running(nonsense) as away:
        pass
    with Running(nonsense) as here:
        for issuer in (away.url, here.url, f"{here.url}/nothing"):
            app = create_app(chat_with()[0], gate=gate, login=oidc.Service(issuer, CLIENT, GROUP))
            with Running(app) as server, Browser(server) as browser:
                assert browser.get("/operate/oidc").status_code == 503
                assert browser.get("/operate/login").status_code == 200  # the password still opens
                assert browser.get("/help").status_code == 200


def test_nobody_is_sent_anywhere_but_to_the_service(provider: Provider, server: Running) -> None:
    """Whatever the request names, the browser goes to the service and comes back to this server's own name."""
    with Browser(server) as browser:
        for more in ("next=https://evil.example", "redirect_uri=https://evil.example", "state=x&back=//evil.example"):
            to = browser.get(f"/operate/oidc?{more}").headers["location"]
            assert to.startswith(f"{provider.issuer}/authorize?")
            assert "evil" not in to
            assert parse_qs(urlsplit(to).query)["redirect_uri"] == [f"{server.url}/operate/oidc/back"]
        assert browser.get("/operate/oidc", headers={"host": "evil.example"}).status_code == 421
        own = browser.to_the_service()
        assert "evil" not in str(browser.get(f"{own}&next=https://evil.example").headers)


def test_it_is_an_operator_s_session_like_any_other(provider: Provider, tmp_path: Path) -> None:
    now = [1000.0]
    keys = Keys(tmp_path / "keys.json")
    gate = Gate(keys, clock=lambda: now[0])
    with Running(create_app(chat_with()[0], gate=gate, login=service_of(provider))) as server, Browser(server) as web:
        web.log_in()
        assert web.get("/metrics").status_code == 200
        assert web.get("/operate/status").status_code == 200
        assert web.post("/operate/logout", data={"csrf": "x"}).status_code == 403
        # An operator of the file who happens to have the same name is somebody else.
        keys.set_operator("ada <b>", "a long enough password")
        keys.remove_operator("ada <b>")
        assert web.inside()
        now[0] += IDLE_SECONDS + 1
        assert not web.inside()


def test_how_often(provider: Provider, tmp_path: Path) -> None:
    gate = Gate(Keys(tmp_path / "keys.json"), limits=Limits())
    with Running(create_app(chat_with()[0], gate=gate, login=service_of(provider))) as server, Browser(server) as web:
        seen = [web.get("/operate/oidc") for _ in range(22)]
    assert [answer.status_code for answer in seen] == [303] * 20 + [429] * 2
    assert int(seen[-1].headers["retry-after"]) > 0


def test_coming_back_and_the_password_are_counted_apart(provider: Provider, tmp_path: Path) -> None:
    """One ticket used again and again asks the service no more than 20 times; who has a password still comes in."""
    keys = Keys(tmp_path / "keys.json")
    keys.set_operator("ada", "a long enough password")
    gate = Gate(keys, limits=Limits())
    with Running(create_app(chat_with()[0], gate=gate, login=service_of(provider))) as server, Browser(server) as web:
        own = re.sub("code=[^&]+", "code=x", web.to_the_service())
        ticket = {"cookie": f"ticket={web.cookies['ticket']}"}
        seen = [web.get(own, headers=ticket).status_code for _ in range(22)]
        assert seen == [401] * 20 + [429] * 2
        form = {"name": "ada", "password": "a long enough password"}
        assert web.post("/operate/login", data=form).status_code == 303


def test_another_website_sends_nobody_through_a_login(provider: Provider, server: Running) -> None:
    with Browser(server) as browser:
        for site, to in (("cross-site", "/operate/login"), ("same-site", "/operate/login"), ("none", provider.issuer)):
            answer = browser.get("/operate/oidc", headers={"sec-fetch-site": site})
            assert answer.headers["location"].startswith(to), site
            assert ("set-cookie" in answer.headers) == (site == "none")


def test_a_service_that_hangs_holds_few_threads(provider: Provider) -> None:
    service = service_of(provider)
    with contextlib.ExitStack() as hanging:
        for _ in range(oidc.AT_ONCE):
            hanging.enter_context(service._client())
        with pytest.raises(oidc.NoLogin, match="too many"):
            service.describe()
        assert service.leaving() is None
    for _ in range(oidc.AT_ONCE + 1):
        assert service.describe()


@pytest.mark.parametrize(("error", "told"), [("invalid_scope", "invalid_scope"), ("ada wants in", "")])
def test_the_service_s_reason_is_told_if_it_is_a_known_one(provider: Provider, error: str, told: str) -> None:
    service = service_of(provider)
    back = "http://localhost/operate/oidc/back"
    address, ticket = service.begin(back)
    state = parse_qs(urlsplit(address).query)["state"][0]
    with pytest.raises(oidc.NoLogin) as no:
        service.finish(back, ticket, {"state": state, "error": error})
    assert no.value.detail == f"it sent no code, or another service did {told}".strip()


@pytest.mark.parametrize("methods", [["client_secret_post"], ["client_secret_basic", "client_secret_post"]])
def test_how_the_server_shows_its_secret(provider: Provider, methods: list[str]) -> None:
    provider.described = {"token_endpoint_auth_methods_supported": methods}
    back = "http://localhost/operate/oidc/back"
    for secret, good in ((SECRET, True), ("wrong", False)):
        service = service_of(provider, secret=secret)
        address, ticket = service.begin(back)
        told = dict(part.split("=", 1) for part in urlsplit(httpx.get(address).headers["location"]).query.split("&"))
        if good:
            assert service.finish(back, ticket, told)
        else:
            with pytest.raises(oidc.NoLogin, match="invalid_grant"):
                service.finish(back, ticket, told)


@pytest.mark.parametrize(
    ("claim", "claims", "good"),
    [
        ("groups", {"groups": ["a", GROUP]}, True),
        ("groups", {"groups": {GROUP: True}}, False),
        ("groups", {"groups": [[GROUP]]}, False),
        ("groups", {"groups": None}, False),
        ("realm_access.roles", {"realm_access": {"roles": [GROUP]}}, True),
        ("realm_access.roles", {"realm_access": [GROUP]}, False),
        ("https://example.org/roles", {"https://example.org/roles": [GROUP]}, True),
        ("department", {"department": GROUP}, True),
        ("department", {"department": GROUP.upper()}, False),
    ],
)
def test_who_is_an_operator(claim: str, claims: dict[str, Any], good: bool) -> None:
    assert oidc.Service("https://id.example.org", CLIENT, GROUP, claim=claim).admits(claims) is good


def test_the_addresses_are_there_only_where_it_is_set_up() -> None:
    service = oidc.Service("https://id.example.org", CLIENT, GROUP)
    more = routes_of(create_app(chat_with()[0], login=service)) - set(ROUTES)
    assert more == {("GET", "/operate/oidc"), ("GET", "/operate/oidc/back")}


GOOD = {"oidc_issuer": "https://id.example.org", "oidc_client": CLIENT, "oidc_group": GROUP}


class TestSettings:
    @pytest.mark.parametrize("left", GOOD)
    def test_they_come_together(self, left: str) -> None:
        config.load(None, GOOD)
        with pytest.raises(ServeError, match="come together"):
            config.load(None, {name: value for name, value in GOOD.items() if name != left})

    @pytest.mark.parametrize(
        "issuer", ["http://id.example.org", "id.example.org", "https://", "ftp://x", "http://[::1"]
    )
    def test_the_service_is_spoken_to_encrypted(self, issuer: str) -> None:
        with pytest.raises(ServeError, match="https"):
            config.load(None, GOOD | {"oidc_issuer": issuer})

    def test_the_secret_is_in_file_or_environment_and_never_shown(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from typer.testing import CliRunner

        from warmline.cli.main import app

        file = tmp_path / "serve.yaml"
        file.write_text(f"oidc_secret: {SECRET}\n")
        settings = config.load(file, GOOD)
        assert settings.oidc_secret is not None
        assert settings.oidc_secret.get_secret_value() == SECRET
        assert SECRET not in repr(settings)
        monkeypatch.setenv("WARMLINE_SERVE_OIDC_SECRET", "from outside")
        settings = config.load(file, GOOD)
        assert settings.oidc_secret is not None
        assert settings.oidc_secret.get_secret_value() == "from outside"
        told = CliRunner().invoke(app, ["serve", "--oidc-secret", SECRET])
        assert told.exit_code == 2
        assert SECRET not in told.output


def test_in_a_real_browser_from_one_site_to_the_other_and_back(
    provider: Provider, server: Running, chromium: Any
) -> None:
    """The session's cookie is `strict`: a browser keeps it back from what another site has set going."""
    page = chromium.new_page()
    here = server.url.replace("127.0.0.1", "localhost")  # to a browser, another site than the provider's 127.0.0.1
    page.goto(f"{here}/operate/login")
    page.get_by_role("link", name="Log in at").click()
    page.get_by_role("heading", name="Health").wait_for()
    assert page.url == f"{here}/operate"
    page.get_by_role("button", name="Log out").click()
    page.get_by_text("You are logged out here").wait_for()
    page.goto(f"{here}/operate")
    assert page.url == f"{here}/operate/login"
    page.close()
