"""API keys and operators: what is kept of them, who is taken for whom, and files that cannot be trusted."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from warmline.cli.main import app
from warmline.errors import ServeError
from warmline.serve.keys import Keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.json")


def test_a_key_opens_and_is_nowhere_to_be_read(keys: Keys) -> None:
    key, text = keys.create("website", ("chat",))
    assert keys.path is not None
    found = keys.find(text)
    assert found is not None
    assert (found.id, found.scopes) == (key.id, ("chat",))
    written = keys.path.read_text()
    assert text not in written
    assert text.rpartition("_")[2] not in written
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    # Another process that reads the same file takes it too.
    assert Keys(keys.path).find(text) is not None


def test_what_is_almost_a_key_is_none(keys: Keys) -> None:
    _, text = keys.create("one", ("chat",))
    _, other = keys.create("two", ("operate",))
    mark, id, secret = text.split("_", 2)
    wrong = [
        "",
        "_",
        "__",
        text[:-1],
        text + "x",
        text.upper(),
        f"{mark}_{id}_",
        f"{mark}_{id}",
        f"xx_{id}_{secret}",
        f"{mark}_{other.split('_')[1]}_{secret}",
        keys.read().keys[0].hash,
        f"{mark}_{id}_{keys.read().keys[0].hash}",
    ]
    assert [one for one in wrong if keys.find(one)] == []


@given(st.text(max_size=80))
def test_no_text_is_a_key_by_chance(text: str) -> None:
    assert HELD.find(text.encode("utf-8", "replace").decode()) is None


HELD = Keys()


def test_revoked_and_expired_keys_are_refused_at_once(keys: Keys) -> None:
    running = Keys(keys.path)
    key, text = keys.create("one", ("chat",), days=1)
    assert running.find(text)
    assert keys.revoke(key.id)
    assert running.find(text) is None
    assert not keys.revoke(key.id)
    late, text = keys.create("late", ("chat",), days=1)
    with keys._changing() as content:
        content.keys[-1].expires = datetime.now(UTC) - timedelta(seconds=1)
    assert running.find(text) is None
    assert running.valid(late.id) is None
    assert [one.state for one in keys.read().keys] == ["revoked", "expired"]


def test_an_operator_s_password(keys: Keys) -> None:
    keys.set_operator("ada", "a long enough password")
    assert keys.check_password("ada", "a long enough password")
    for name, password in (("ada", "another long password"), ("ada", ""), ("bob", "a long enough password"), ("", "")):
        assert keys.check_password(name, password) is None
    assert keys.path is not None
    assert keys.read().operators[0].hash.startswith("$argon2id$")
    assert "a long enough password" not in keys.path.read_text()
    keys.set_operator("ada", "a newer long password")
    assert keys.check_password("ada", "a long enough password") is None
    assert len(keys.read().operators) == 1
    with pytest.raises(ServeError):
        keys.set_operator("ada", "short")
    assert keys.remove_operator("ada")
    assert keys.check_password("ada", "a newer long password") is None


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o777])
def test_a_file_that_others_can_read_is_refused(keys: Keys, mode: int) -> None:
    keys.create("one", ("chat",))
    assert keys.path is not None
    keys.path.chmod(mode)
    with pytest.raises(ServeError) as error:
        Keys(keys.path).read()
    assert error.value.code == "keys-file"
    assert "chmod 600" in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"keys": 3}', '{"version": 2}', '{"keys": [{"id": "x"}]}', "\x00"])
def test_a_damaged_file_is_one_clear_line_and_stays_as_it_is(keys: Keys, content: str) -> None:
    assert keys.path is not None
    keys.path.write_text(content)
    keys.path.chmod(0o600)
    for act in (keys.read, lambda: keys.create("one", ("chat",)), lambda: keys.revoke("x")):
        with pytest.raises(ServeError) as error:
            act()
        assert error.value.code == "keys-file"
    assert keys.path.read_text() == content


def test_the_commands(tmp_path: Path) -> None:
    file, run = str(tmp_path / "k" / "keys.json"), CliRunner()

    def call(*words: str, **more: str) -> tuple[int, str]:
        done = run.invoke(app, ["keys", *words, "--keys", file], env=more)
        return done.exit_code, done.stdout

    code, text = call("create", "website", "--scope", "chat", "--scope", "metrics")
    assert code == 0
    key = Keys(Path(file)).find(text.strip())
    assert key is not None
    assert key.scopes == ("chat", "metrics")
    assert call("create", "x", "--scope", "everything")[0] == 2
    assert call("operator", "ada", WARMLINE_OPERATOR_PASSWORD="a long enough password")[0] == 0
    code, text = call("list")
    assert json.loads(text) == {"keys": 1, "valid": 1, "operators": 1}
    assert call("revoke", key.id)[0] == 0
    assert isinstance(run.invoke(app, ["keys", "revoke", key.id, "--keys", file]).exception, ServeError)
    assert call("operator", "ada", "--remove")[0] == 0
    assert json.loads(call("list")[1]) == {"keys": 1, "valid": 0, "operators": 0}
