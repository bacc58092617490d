"""Settings of the server: where each comes from, and faults told all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from warmline.cli.main import app
from warmline.errors import ServeError
from warmline.serve.config import PREFIX, Settings, is_loopback, load

ROOT = Path(__file__).parents[2]


def written(folder: Path, text: str, name: str = "serve.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_yaml_and_toml_say_the_same(tmp_path: Path) -> None:
    one = load(written(tmp_path, "port: 9000\nanswer_to: [a.example]\nlog: '-'\n"), {})
    other = load(written(tmp_path, 'port = 9000\nanswer_to = ["a.example"]\nlog = "-"\n', "serve.toml"), {})
    assert one == other
    assert (one.port, one.answer_to, one.log, one.host) == (9000, ("a.example",), Path("-"), "127.0.0.1")
    assert load(None, {}) == load(written(tmp_path, ""), {}) == Settings()


def test_an_option_goes_before_the_environment_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr("warmline.cli.talk.open_page", lambda run, settings: seen.append(settings))
    monkeypatch.setattr("warmline.cli.talk.Run.open", lambda name, runs: None)
    file = str(written(tmp_path, "port: 1001\nqueue: 7\nname: From the file\n"))
    env = {f"{PREFIX}PORT": "1002", f"{PREFIX}QUEUE": "8", f"{PREFIX}ANSWER_TO": "a.example b.example"}
    done = CliRunner().invoke(app, ["serve", "first", "--config", file, "--port", "1003"], env=env)
    assert done.exception is None, done.output
    found = seen[0]
    assert (found.run, found.port, found.queue, found.name) == ("first", 1003, 8, "From the file")
    assert found.answer_to == ("a.example", "b.example")


def test_every_setting_is_an_option_and_in_the_operator_s_page() -> None:
    help = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    page = (ROOT / "docs" / "operate.md").read_text("utf-8")
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert PREFIX + name.upper() in help
        assert f"`{name}`" in page, name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot: 1", ["`prot` is not a setting, did you mean `port`?"]),
        ("port: 70000\nqueue: -1\nwish: 1", ["`port`", "`queue`", "`wish`"]),
        ("port: eighty", ["`port`"]),
        ("visitors: everyone", ["`visitors`"]),
        ("host: 0.0.0.0", ["`answer_to`"]),
        ("certificate: here.pem", ["come together", "here.pem does not exist"]),
        ("limit_address: often", ["`limit_address` reads e.g."]),
        ("- 1", ["no settings"]),
        ("port: [", ["not YAML"]),
        ("name: ''", ["`name`"]),
    ],
)
def test_faults(tmp_path: Path, text: str, told: list[str]) -> None:
    with pytest.raises(ServeError) as error:
        load(written(tmp_path, text), {})
    assert error.value.code == "serve-config"
    for part in told:
        assert part in str(error.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"port = = 3"])
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "serve.toml"
    file.write_bytes(content)
    for path in (file, tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ServeError):
            load(path, {})


@pytest.mark.parametrize(
    ("given", "local"),
    [
        ({}, True),
        ({"host": "::1"}, True),
        ({"host": "0.0.0.0", "answer_to": ["a.example"]}, False),
        ({"answer_to": ["a.example"]}, False),
        ({"proxies": ["127.0.0.1"]}, False),
        ({"answer_to": ["localhost"]}, True),
    ],
)
def test_a_server_behind_a_name_or_a_proxy_is_not_for_this_machine_alone(given: dict[str, Any], local: bool) -> None:
    assert load(None, given).local is local


def test_the_shipped_files_are_settings() -> None:
    for file in (ROOT / "packaging").glob("serve*.yaml"):
        settings = load(file, {})
        assert not settings.local
        assert not is_loopback(settings.host)
