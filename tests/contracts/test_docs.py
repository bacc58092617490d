"""Docs that cannot drift: error codes, reference pages and what the code says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from warmline.errors import CODES

ROOT = Path(__file__).parents[2]


def test_every_error_code_has_its_heading_and_every_heading_its_code() -> None:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")
    assert sorted(re.findall(r"^## `([a-z-]+)`$", page, re.M)) == sorted(CODES)
    for section in re.split(r"^## ", page, flags=re.M)[1:]:
        name = section.split("\n", 1)[0]
        assert "**Cause.**" in section, name
        assert "**Cure.**" in section, name


def test_every_code_that_is_raised_is_listed_and_every_listed_one_is_raised() -> None:
    used = set()
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text("utf-8")
        if path.name != "errors.py":
            used |= {code for code in CODES if f'"{code}"' in text}
            for code in re.findall(r'code="([a-z-]+)"', text):
                assert code in CODES, f"{path.name}: {code}"
    assert used == set(CODES)


def test_the_reference_pages_are_those_that_the_code_makes() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_reference.py"), "--check"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stdout + made.stderr


def test_help_is_quick_and_takes_no_torch_along() -> None:
    code = (
        "import sys; sys.argv = ['warmline', '--help']\n"
        "from warmline.cli import main\n"
        "try: main.main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'fastapi', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("word", ["session", "sandbox"])
def test_the_readme_speaks_of_the_product_only(word: str) -> None:
    for name in ("README.md", "CONTRIBUTING.md", "SAFETY.md", "SECURITY.md"):
        text = (ROOT / name).read_text("utf-8").lower()
        assert f"this {word}" not in text
        assert "/work/" not in text
