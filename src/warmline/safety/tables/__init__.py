"""The tables a clinician reads and edits: words, wordings, telephone lines, policies. Knows nothing of their use."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml

from warmline.errors import SafetyError


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads yes, no, on and off as the words they are; only true and false are truth values."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(name: str) -> str:
    """The text of a table as it ships.

    Raises:
        SafetyError: the table is missing or is not UTF-8 text.
    """
    try:
        return (resources.files(__name__) / name).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise SafetyError(
            f"the safety table {name} cannot be read", code="safety-data", hint="install the package again"
        ) from None


def parse(text: str, name: str) -> dict[str, Any]:
    """A YAML table as a mapping.

    Raises:
        SafetyError: it is not YAML, or not a mapping.
    """
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise SafetyError(f"the safety table {name} is not YAML", code="safety-data", where=where) from None
    if not isinstance(tree, dict):
        raise SafetyError(f"the safety table {name} holds no sections", code="safety-data", where=name)
    return tree


@cache
def table(name: str) -> dict[str, Any]:
    """A shipped YAML table, parsed once."""
    return parse(read(name), name)
