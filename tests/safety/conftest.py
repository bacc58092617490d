"""Where the cases and the shared development data lie."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

CASES = Path(__file__).parent / "cases"
ROOT = Path(__file__).resolve().parents[2]


def expand(template: str) -> list[str]:
    """All fillings of a template: the n-th choice of each {a|b} together."""
    parts = re.split(r"\{([^}]*)\}", template)
    choices = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
    count = max(map(len, choices))
    return ["".join(options[min(n, len(options) - 1)] for options in choices) for n in range(count)]


def cases(name: str) -> dict[str, tuple[int, list[str]]]:
    """Slices of a file of cases: their level and their lines."""
    book = yaml.safe_load((CASES / f"{name}.yaml").read_text("utf-8"))
    return {s: (e["level"], [line for t in e["templates"] for line in expand(t)]) for s, e in book.items()}


def planted() -> list[tuple[str, str]]:
    book = yaml.safe_load((CASES / "planted.yaml").read_text("utf-8"))
    return [(kind, line) for kind, templates in book.items() for t in templates for line in expand(t)]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("WARMLINE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the shared development data is not here; set WARMLINE_SHARED_DATA")
    return folder
