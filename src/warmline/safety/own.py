"""An operator's own rules, laid over the shipped ones: `protocol.yaml` in a run's folder. May only make them stricter.

    policy: EU                    # whose notices and cadence; a code of `tables/packs.yaml`
    minors: refused               # people known to be under age are shown people to turn to, and no model
    situations: [...]             # the whole list of `tables/protocol.yaml`, made stricter
    banned: [...]                 # its list and more
    wordings: {en: {active: [...]}}   # reworded; every one is checked as the shipped ones are

Knows no model and no run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmline.errors import SafetyError
from warmline.safety.lint import lint
from warmline.safety.policy import packs
from warmline.safety.protocol import Protocol, shipped, stricter
from warmline.safety.tables import parse, table

_KEYS = frozenset({"policy", "minors", "situations", "banned", "wordings", "reviewed_by", "version"})


@dataclass(frozen=True, slots=True)
class Rules:
    """What a conversation is held to."""

    protocol: Protocol
    policy: str | None = None
    refuse_minors: bool = False


def _fault(what: str, path: Path, hint: str = "a protocol of your own may only make the shipped one stricter") -> Any:
    return SafetyError(what, code="safety-data", where=str(path), hint=hint)


def rules(path: Path) -> Rules:
    """The rules of a file; the shipped ones where there is no file.

    Raises:
        SafetyError: the file cannot be read, loosens something, or a wording of it may not be shown.
    """
    if not path.exists():
        return Rules(shipped())
    try:
        own = parse(path.read_text("utf-8"), path.name)
    except (OSError, UnicodeDecodeError):
        raise _fault(f"{path.name} cannot be read as UTF-8 text", path, "check the file") from None
    if unknown := set(own) - _KEYS:
        names = ", ".join(sorted(map(str, unknown)))
        raise _fault(f"{path.name} holds unknown settings: {names}", path, f"known are {', '.join(sorted(_KEYS))}")
    if own.get("policy") not in (None, *packs()):
        raise _fault("`policy` names no pack", path, f"packs are {', '.join(packs())}")
    if own.get("minors") not in (None, "refused"):
        raise _fault("`minors` can only be `refused`", path)
    book: dict[str, Any] = {}
    for locale in shipped().locales():
        mine = own.get("wordings", {}).get(locale, {})
        book[locale] = table(f"wordings.{locale}.yaml") | mine
    try:
        merged = stricter({key: own[key] for key in ("situations", "banned") if key in own})
        protocol = Protocol(merged | {"version": f"{table('protocol.yaml')['version']}+own"}, book)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise _fault(f"{path.name} has an entry of the wrong kind", path, "compare it with the shipped table") from None
    if faults := list(lint(protocol)):
        shown = "; ".join(faults[:5])
        raise _fault(f"{len(faults)} faults in wordings: {shown}", path, "`must` and `banned` say what is asked of one")
    return Rules(protocol, own.get("policy"), own.get("minors") == "refused")
