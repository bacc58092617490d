"""Operators who log in at their organisation's own service: OpenID Connect, the code flow with PKCE, state and nonce.

    GET /operate/oidc        to the service        GET /operate/oidc/back        back from it

Nothing is kept between the two: state, nonce and verifier are made from a ticket in the browser's cookie and a secret
of this process. The service is asked for its description and keys at every login, so a changed key needs no restart.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from warmline.errors import ServeError
from warmline.serve import journal
from warmline.serve.config import confidential

TICKET_SECONDS = 600
SECONDS = 10.0
LEEWAY_SECONDS = 60
LONGEST_NAME = 60
AT_ONCE = 8
"""Logins that may wait for the service. Visitors' requests need threads of the same 40, also while it hangs."""
ADDRESSES = ("authorization_endpoint", "token_endpoint", "jwks_uri")
# Never `none`, and nothing with a shared secret: what signs is the service's private key.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
# What a service may give as its reason and the log repeats; anything else could be a person's words.
REASONS = (
    *("access_denied", "invalid_request", "invalid_scope", "unauthorized_client", "unsupported_response_type"),
    *("server_error", "temporarily_unavailable", "invalid_client", "invalid_grant", "unsupported_grant_type"),
    *("login_required", "interaction_required", "account_selection_required", "consent_required"),
)


class NoLogin(Exception):
    """Why nobody was logged in: `stale` (the browser), `service` (the other side) or `group` (not an operator)."""

    def __init__(self, why: str, detail: str) -> None:
        self.why, self.detail = why, detail
        super().__init__(f"{why}: {detail}")


class Service:
    """One OpenID Connect provider. Whoever's `claim` is, or holds, `group` is an operator.

    Raises:
        ServeError: `dependency-missing`: authlib or joserfc is not installed.
    """

    def __init__(
        self,
        issuer: str,
        client: str,
        group: str,
        *,
        secret: str | None = None,
        claim: str = "groups",
        scope: str = "openid profile",
        clock: Callable[[], float] = time.time,
    ) -> None:
        try:
            import authlib.integrations.httpx_client  # type: ignore[import-untyped]
            import authlib.oidc.core  # type: ignore[import-untyped]  # noqa: F401
            import joserfc  # noqa: F401
        except ImportError:
            raise ServeError(
                "logging in with OpenID Connect needs the packages `authlib` and `joserfc`",
                code="dependency-missing",
                hint="pip install 'warmline[oidc]'",
            ) from None
        self.issuer, self.client, self.group, self.claim, self.scope = issuer, client, group, claim, scope
        self._secret, self._clock, self._seed = secret, clock, secrets.token_bytes(32)
        self._places = threading.Semaphore(AT_ONCE)

    @property
    def name(self) -> str:
        return urlsplit(self.issuer).netloc

    def begin(self, back: str) -> tuple[str, str]:
        """Where the browser goes to log in and come `back`, and the ticket it keeps meanwhile."""
        ticket = f"{int(self._clock())}.{secrets.token_urlsafe(32)}"
        with self._client(back) as web:
            address, _ = web.create_authorization_url(
                self._described(web)["authorization_endpoint"],
                state=self._made(ticket, "state"),
                nonce=self._made(ticket, "nonce"),
                code_verifier=self._made(ticket, "verifier"),
            )
        return str(address), ticket

    def finish(self, back: str, ticket: str, told: Mapping[str, str]) -> str:
        """The name of the operator who came back with what the service `told`.

        Raises:
            NoLogin: nobody did.
        """
        began = ticket.partition(".")[0]
        fresh = re.fullmatch(r"[0-9]{1,12}", began) and 0 <= self._clock() - int(began) <= TICKET_SECONDS
        state = told.get("state", "").encode("utf-8", "replace")
        if not fresh or not hmac.compare_digest(state, self._made(ticket, "state").encode()):
            raise NoLogin("stale", "the ticket is missing, late or of another login")
        with self._client(back) as web:
            found = self._described(web)
            if "code" not in told or told.get("iss", found["issuer"]) != found["issuer"]:
                raise NoLogin("service", f"it sent no code, or another service did {_known(told.get('error'))}".strip())
            token = web.fetch_token(
                found["token_endpoint"],
                grant_type="authorization_code",
                code=told["code"],
                code_verifier=self._made(ticket, "verifier"),
            )
            keys = _json(web, found["jwks_uri"])
            claims = self._claims(token, keys, found["issuer"], self._made(ticket, "nonce"))
        if not self.admits(claims):
            raise NoLogin("group", f"`{self.claim}` does not hold the operators' group")
        shown = next(
            (claims[name] for name in ("preferred_username", "name", "email") if claims.get(name)), claims["sub"]
        )
        return str(shown)[:LONGEST_NAME]

    def admits(self, claims: Mapping[str, Any]) -> bool:
        """Whether these claims make an operator. A claim within another is named with a dot: `realm_access.roles`."""
        held: Any = claims.get(self.claim)
        if held is None:
            held = claims
            for step in self.claim.split("."):
                held = held.get(step) if isinstance(held, Mapping) else None
        return self.group in held if isinstance(held, list) else self.group == held

    def leaving(self) -> str | None:
        """Where one logs out of the service as well; None if it does not say, or does not answer."""
        try:
            address = str(self.describe().get("end_session_endpoint"))
        except NoLogin:
            return None
        return f"{address}?{urlencode({'client_id': self.client})}" if confidential(address) else None

    def describe(self) -> dict[str, Any]:
        """What the service says of itself, checked.

        Raises:
            NoLogin: it does not answer, is another one, or would be spoken to unencrypted.
        """
        with self._client() as web:
            return self._described(web)

    def _described(self, web: Any) -> dict[str, Any]:
        found = _json(web, self.issuer.rstrip("/") + "/.well-known/openid-configuration")
        if str(found.get("issuer")).rstrip("/") != self.issuer.rstrip("/"):
            raise NoLogin("service", "its description is of another issuer")
        if not all(confidential(str(found.get(name))) for name in ADDRESSES):
            raise NoLogin("service", "an address of its description is missing or not https")
        if "client_secret_basic" not in found.get("token_endpoint_auth_methods_supported", ["client_secret_basic"]):
            web.token_endpoint_auth_method = "client_secret_post" if self._secret else "none"
        return found

    def _claims(self, token: Mapping[str, Any], keys: dict[str, Any], issuer: str, nonce: str) -> dict[str, Any]:
        from authlib.oidc.core import CodeIDToken
        from joserfc import jwt
        from joserfc.jwk import KeySet

        signing: list[Any] = []
        for key in keys["keys"]:
            if key.get("use", "sig") == "sig":
                with contextlib.suppress(Exception):  # a service may publish keys of kinds that are not read here
                    signing += KeySet.import_key_set({"keys": [key]}).keys
        read = jwt.decode(token["id_token"], KeySet(signing), algorithms=ALGORITHMS)
        claims = CodeIDToken(
            read.claims,
            read.header,
            {"iss": {"essential": True, "value": issuer}, "aud": {"essential": True, "value": self.client}},
            {"nonce": nonce, "client_id": self.client, "access_token": token.get("access_token")},
        )
        claims.validate(leeway=LEEWAY_SECONDS)
        return dict(claims)

    @contextlib.contextmanager
    def _client(self, back: str | None = None) -> Iterator[Any]:
        """Speaks to the service. Whatever goes wrong means that nobody is logged in; told by its kind, not its text."""
        from authlib.integrations.httpx_client import OAuth2Client

        if not self._places.acquire(blocking=False):
            raise NoLogin("service", "too many logins are waiting for it")
        try:
            with OAuth2Client(
                self.client,
                self._secret,
                scope=self.scope,
                redirect_uri=back,
                code_challenge_method="S256",
                timeout=SECONDS,
            ) as web:
                yield web
        except NoLogin:
            raise
        except Exception as error:
            why = getattr(error, "claim", "") or _known(getattr(error, "error", ""))
            raise NoLogin("service", f"{journal.place(error)} {why}".strip()) from None
        finally:
            self._places.release()

    def _made(self, ticket: str, what: str) -> str:
        return hmac.new(self._seed, f"{what}:{ticket}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def _known(reason: object) -> str:
    return str(reason) if reason in REASONS else ""


def _json(web: Any, address: str) -> dict[str, Any]:
    answer = web.get(address, auth=None)
    answer.raise_for_status()
    found = answer.json()
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


__all__ = ["NoLogin", "Service"]
