"""Where the cases lie, and how they are filled."""

from __future__ import annotations

import re
from pathlib import Path

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
