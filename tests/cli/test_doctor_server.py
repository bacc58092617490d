"""`warmline doctor --config`: what a server still needs, told before it is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmline.cli.doctor import server
from warmline.serve.keys import Keys


@pytest.mark.parametrize(
    ("text", "cautions"),
    [
        ("port: 8799", set()),
        ("prot: 1", {"settings"}),
        ("host: 0.0.0.0\nanswer_to: [a.example]", {"keys", "TLS"}),
        ("host: 0.0.0.0\nanswer_to: [a.example]\nproxies: [192.0.2.1]\nkeys: {folder}/keys.json", set()),
        ("log: {folder}/missing/log.jsonl", {"log"}),
        ("keys: {folder}/open.json", {"keys"}),
        ("oidc_issuer: http://127.0.0.1:1\noidc_client: a\noidc_group: b", {"login service"}),
    ],
)
def test_what_is_missing(tmp_path: Path, text: str, cautions: set[str]) -> None:
    Keys(tmp_path / "keys.json").create("one", ("chat",))
    (tmp_path / "open.json").write_text("{}")
    (tmp_path / "open.json").chmod(0o644)
    file = tmp_path / "serve.yaml"
    file.write_text(text.replace("{folder}", str(tmp_path)) + f"\nruns: {tmp_path / 'runs'}\n")
    rows = list(server(file))
    assert {what for what, _, _, good in rows if not good} - {"open files"} == cautions
    assert all(advice for what, _, advice, good in rows if not good)
