"""Every setting of the server, explained once, under its field. Knows nothing of how a setting is carried out.

A setting comes from the command line, else from the environment (WARMLINE_SERVE_ and its name in capitals), else from
one file, YAML or TOML, else from here.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import tomllib
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from warmline.errors import ServeError

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
PREFIX = "WARMLINE_SERVE_"
NO_OPTION = ("oidc_secret",)


class Settings(BaseModel):
    """What `warmline serve` may be told."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: str = "demo"
    """A finished run, whose model replies."""
    runs: Path = Path("runs")
    """Folder that holds the runs."""
    engine: str | None = None
    """auto, llamacpp, local, or a server's address, with #MODEL. Empty: the recipe's."""
    country: str | None = None
    """Two-letter code: whose crisis lines are shown first, until the visitor chooses."""
    name: str = Field("Warmline", min_length=1, max_length=60)
    """What visitors read as the name of the service."""
    host: str = "127.0.0.1"
    """Address to listen at. Any but this machine's own demands keys, and names in `answer_to`."""
    port: int = Field(8765, ge=0, le=65535)
    """Port to listen at; 0 takes a free one."""
    answer_to: tuple[str, ...] = ()
    """Names under which visitors reach the server, e.g. listen.example.org. It answers to no other but localhost."""
    proxies: tuple[str, ...] = ()
    """Addresses of the reverse proxies whose word on a visitor's address and on https is taken."""
    certificate: Path | None = None
    """TLS certificate with its chain (PEM). Empty: plain HTTP, for this machine or behind a proxy that does TLS."""
    certificate_key: Path | None = None
    """Private key of the certificate (PEM)."""
    keys: Path | None = None
    """File of API keys and operators, made by `warmline keys`. Empty: keys.json in the folder of the runs."""
    visitors: Literal["key", "anyone"] = "key"
    """Beyond this machine: who may open the page. `key`: whoever enters a key with the scope chat; `anyone`: the
    public. The API, the numbers and the operator's page want a key or login either way."""
    places: int | None = Field(None, ge=1, le=1024)
    """Replies that are made at a time. Empty: as many as the engine has room for (llama.cpp), else 1. Name it for an
    engine that is a server."""
    queue: int = Field(64, ge=0, le=10_000)
    """Turns that wait for a place; whoever comes then is told when to come back. A crisis never waits."""
    wait_seconds: float = Field(120.0, gt=0)
    """Longest wait for a place."""
    grace_seconds: float = Field(20.0, ge=0)
    """At the end, how long replies may take to finish; then they stop where they are, and what was said is kept."""
    idle_hours: int = Field(12, ge=1)
    """Conversations in memory are forgotten after so many hours without a message."""
    store: str = "none"
    """Where conversations are kept, encrypted: a path or postgresql://USER:PASSWORD@HOST/DATABASE. `none`: in memory
    only, gone when the server ends."""
    key_file: Path | None = None
    """File with the master key of `store`. Empty: a systemd credential, WARMLINE_VAULT_KEY or
    WARMLINE_VAULT_PASSPHRASE, or the passphrase is asked for."""
    keep_days: int = Field(30, ge=1, le=3650)
    """Kept conversations are erased after so many days without a message."""
    limit_address: str = "30/minute; 600/hour"
    """Messages from one address (IPv6: from one /64) without a key. Beyond it only a crisis is answered. Not for
    requests of this machine itself."""
    limit_key: str = "120/minute"
    """Messages under one API key."""
    oidc_issuer: str | None = None
    """Operators may log in at this OpenID Connect service (https://...), besides those of `keys`."""
    oidc_client: str | None = None
    """The client id under which the service knows this server; its redirect address is /operate/oidc/back. The secret
    is no option: it is `oidc_secret` in the file, or WARMLINE_SERVE_OIDC_SECRET."""
    oidc_group: str | None = None
    """Whoever has this group (role) at the service is an operator."""
    oidc_claim: str = Field("groups", min_length=1)
    """Where the service's ID token names groups, e.g. `groups` or `realm_access.roles`."""
    oidc_scope: str = "openid profile"
    """What is asked of the service; some want `groups` here as well."""
    oidc_secret: SecretStr | None = None
    """The client's secret. In the file or the environment only: a command line can be read by others."""
    log: Path | None = None
    """File for one JSON line per request: route, status, milliseconds, key id. Never text, ids of conversations or
    addresses. `-` is standard error, empty is none."""

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the server, as far as the settings tell."""
        return is_loopback(self.host) and not self.proxies and all(is_loopback(name) for name in self.answer_to)

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.answer_to, *LOCAL_NAMES)))

    @property
    def keys_file(self) -> Path:
        return self.keys or self.runs / "keys.json"


def is_loopback(host: str) -> bool:
    """True for names and addresses that only this machine can reach.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def confidential(address: str) -> bool:
    """Whether nobody on the way can read what is sent there: https, or a server of this very machine.

    >>> confidential("https://id.example.org"), confidential("http://id.example.org"), confidential("http://127.0.0.1:9")
    (True, False, True)
    """
    try:
        parts = urlsplit(address)
        return bool(parts.netloc) and (
            parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
        )
    except ValueError:
        return False


def load(file: Path | None, given: dict[str, Any]) -> Settings:
    """The settings: those `given` go before the file's. All faults are told at once.

    Raises:
        ServeError: `serve-config`.
    """
    said = _read(file) if file else {}
    faults = [_unknown(name) for name in said if name not in Settings.model_fields]
    known = {name: value for name, value in said.items() if name in Settings.model_fields}
    known |= {name: value for name in NO_OPTION if (value := os.environ.get(PREFIX + name.upper()))}
    settings = None
    try:
        settings = Settings.model_validate(known | given)
    except ValidationError as error:
        for fault in error.errors(include_input=False, include_url=False):
            faults.append(f"`{fault['loc'][0]}`: {fault['msg'].lower()}")
    if settings is not None:
        faults += _together(settings)
    if faults or settings is None:
        raise ServeError(
            "; ".join(faults),
            code="serve-config",
            where=str(file) if file else "command line or environment",
            hint="`warmline serve --help` explains every setting",
        )
    return settings


def _together(settings: Settings) -> list[str]:
    """What does not go together."""
    from limits import parse_many

    faults = []
    if bool(settings.certificate) != bool(settings.certificate_key):
        faults.append("`certificate` and `certificate_key` come together")
    for file in (settings.certificate, settings.certificate_key):
        if file and not file.is_file():
            faults.append(f"{file} does not exist")
    if not is_loopback(settings.host) and not settings.answer_to:
        faults.append(
            "`answer_to` must name the addresses visitors use, e.g. listen.example.org, when others can reach"
        )
    oidc = (settings.oidc_issuer, settings.oidc_client, settings.oidc_group)
    if any(oidc) and not all(oidc):
        faults.append("`oidc_issuer`, `oidc_client` and `oidc_group` come together")
    if settings.oidc_issuer and not confidential(settings.oidc_issuer):
        faults.append("`oidc_issuer` is an https:// address")
    for name in ("limit_address", "limit_key"):
        try:
            parse_many(getattr(settings, name))
        except ValueError:
            faults.append(f"`{name}` reads e.g. 30/minute; 600/hour")
    return faults


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text("utf-8")
        found = tomllib.loads(text) if file.suffix == ".toml" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"{file} cannot be read: {type(error).__name__}", code="serve-config") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else getattr(error, "lineno", None)
        kind = "TOML" if file.suffix == ".toml" else "YAML"
        raise ServeError(
            f"the file is not {kind}", code="serve-config", where=f"{file}:{line}" if line else str(file)
        ) from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ServeError("the file holds no settings", code="serve-config", where=str(file), hint="write `port: 8765`")
    return {str(name): value for name, value in found.items()}


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, Settings.model_fields, 1)
    return f"`{name[:40]}` is not a setting" + (f", did you mean `{near[0]}`?" if near else "")


__all__ = ["LOCAL_NAMES", "NO_OPTION", "PREFIX", "Settings", "confidential", "is_loopback", "load"]
