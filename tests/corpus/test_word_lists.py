"""The tables of the data chain: every word in them is text, not what YAML makes of a bare `no` or `12`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
import yaml

TABLES = sorted(f.name for f in resources.files("warmline.corpus").iterdir() if f.name.endswith(".yaml"))


def not_text(value: Any, path: str = "") -> Iterator[str]:
    """Where a list holds something else than text, lists and mappings. Keys must be text as well."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                yield f"{path}/{key!r}"
            yield from not_text(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            if isinstance(inner, (dict, list)):
                yield from not_text(inner, f"{path}[{at}]")
            elif not isinstance(inner, str):
                yield f"{path}[{at}] = {inner!r}"


@pytest.mark.parametrize("name", TABLES)
def test_every_word_is_text(name: str) -> None:
    table = yaml.safe_load((resources.files("warmline.corpus") / name).read_text("utf-8"))
    assert list(not_text(table)) == []


def test_the_tables_are_found() -> None:
    assert {"lint.yaml", "lint_kinds.yaml"} <= set(TABLES)


@pytest.mark.parametrize("words", ["[yes, no]", "[on, behind]", "[ten, 12]", "[~, word]", "[2020-01-01]", "no: [word]"])
def test_a_bare_word_that_is_none_is_noticed(words: str) -> None:
    assert list(not_text(yaml.safe_load(words)))


def test_a_quoted_word_is_a_word() -> None:
    assert list(not_text(yaml.safe_load('["no", "on", "12", word]'))) == []
