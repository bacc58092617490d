"""Pushing to a hub: the real client against a small stand-in of the hub's API, and what must never leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.conftest import make_run
from tests.export.hub import TOKEN, Hub, serving
from warmline.errors import WarmlineError
from warmline.model.export import make, push
from warmline.runs import Run


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def exported(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one that is exported as adapter and merged."""
    runs = tmp_path_factory.mktemp("push") / "runs"
    run, chosen = make_run(runs / "first", models["qwen3"])
    make.export(run, chosen, ["adapter", "merged"], base_licence="MIT")
    return runs


@pytest.fixture
def run(exported: Path, tmp_path: Path) -> Run:
    import shutil

    shutil.copytree(exported, tmp_path / "runs")
    return Run.open("first", tmp_path / "runs")


Warmline = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pushing(run: Run, hub: Hub) -> Warmline:
    """`warmline push first ...` in a process of its own, as a person would, with the stand-in as its hub."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        return subprocess.run(
            [sys.executable, "-m", "warmline", "push", "first", *arguments, "--runs", str(run.folder.parent)],
            capture_output=True,
            text=True,
            env=clean
            # LFS over plain HTTP: what every hub speaks, also those without the newer storage
            | {"HF_HUB_DISABLE_XET": "1"}
            | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(run.folder.parent / "hf"), "COLUMNS": "200"}
            | environment,
            timeout=120,
        )

    return call


def test_one_form_goes_in_one_commit_with_its_card(pushing: Warmline, hub: Hub, run: Run) -> None:
    (run.folder / "export" / "adapter" / "notes.txt").write_text("laid beside it by hand")
    done = pushing("me/listener", "--form", "adapter", "--private")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["commit"].startswith(hub.url)
    files = hub.files("me/listener")
    folder = run.folder / "export" / "adapter"
    names = {name.removeprefix("adapter/") for name in run.manifest("export")["files"] if name.startswith("adapter/")}
    assert set(files) == names
    assert "notes.txt" not in files
    assert all(files[name] == (folder / name).read_bytes() for name in files)
    assert hub.repositories["me/listener"]["private"] is True
    head = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert head["license"] == "mit"
    assert sum(1 for method, path in hub.requests if "/commit/" in path) == 1
    again = pushing("me/listener", "--form", "merged", "--private")
    assert again.returncode == 0, again.stderr
    assert "model.safetensors" in hub.files("me/listener")


def test_a_hub_that_refuses_is_one_message(pushing: Warmline, hub: Hub) -> None:
    for status, start in ((401, "/api/repos/create"), (403, "/api/models/me/listener/preupload")):
        hub.fail = {start: status}
        done = pushing("me/listener", "--form", "adapter")
        assert done.returncode == 2
        assert "[hub-refused]" in done.stderr
        assert "Traceback" not in done.stderr
        assert TOKEN not in done.stderr
    assert all(not repository["files"] for repository in hub.repositories.values())


def test_a_public_repository_is_not_taken_for_a_private_one(pushing: Warmline, hub: Hub) -> None:
    hub.repositories["me/listener"] = {"private": False, "files": {}}
    done = pushing("me/listener", "--form", "adapter", "--private")
    assert done.returncode == 2
    assert "[hub-refused]" in done.stderr
    assert not hub.files("me/listener")


def test_no_hub_no_login(pushing: Warmline, hub: Hub) -> None:
    nobody = pushing("me/listener", "--form", "adapter", HF_TOKEN="")
    assert "[hub-refused]" in nobody.stderr, nobody.stderr
    gone = pushing("me/listener", "--form", "adapter", HF_ENDPOINT="http://127.0.0.1:9")
    assert "[hub-unreachable]" in gone.stderr, gone.stderr
    offline = pushing("me/listener", "--form", "adapter", HF_HUB_OFFLINE="1")
    assert "[hub-unreachable]" in offline.stderr, offline.stderr


PLANTED = {
    "card": ("README.md", "\nuse hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345 to load it\n", "Hugging Face"),
    "config": ("config.json", '{"k": "AKIA' + 'ABCDEFGHIJKLMNOP"}', "AWS"),
    "template": ("chat_template.jinja", "{# /home/anna.k/models #}", "account"),
    "token of this machine": ("README.md", f"\n{TOKEN}\n", "Hugging Face"),
    "key": ("README.md", "\n-----BEGIN OPENSSH PRIVATE KEY-----\n", "private key"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_secret_stops_everything_before_the_hub_is_asked(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    name, text, kind = PLANTED[planted]
    path = run.folder / "export" / "merged" / name
    path.write_text(path.read_text("utf-8") + text if path.exists() else text)
    _accept(run, name)
    with pytest.raises(WarmlineError) as caught:
        push.push(run, "me/listener", form="merged", private=True)
    assert caught.value.code == "push-secret"
    assert kind in str(caught.value)
    assert text.strip() not in str(caught.value)
    assert hub.requests == []


def _accept(run: Run, name: str) -> None:
    """Let the manifest know a changed file, so that only the search for secrets can stop it."""
    from warmline.runs import read_json, sha256, write_json

    manifest = read_json(run.folder / "export" / "MANIFEST.json")
    manifest["files"][f"merged/{name}"] = sha256(run.folder / "export" / "merged" / name)
    write_json(run.folder / "export" / "MANIFEST.json", manifest)


def test_a_file_changed_after_it_was_checked_does_not_go(run: Run) -> None:
    with open(run.folder / "export" / "merged" / "config.json", "a") as file:
        file.write(" ")
    with pytest.raises(WarmlineError) as caught:
        push.push(run, "me/listener", form="merged")
    assert caught.value.code == "export-differs"


def test_what_to_push_must_be_clear(run: Run) -> None:
    for form, said in ((None, "--form adapter"), ("gguf", "--to gguf")):
        with pytest.raises(WarmlineError) as caught:
            push.push(run, "me/listener", form=form)
        assert caught.value.code == "usage"
        assert said in str(caught.value)
    with pytest.raises(WarmlineError) as caught:
        push.push(Run.create(run.folder.parent / "empty"), "me/listener")
    assert caught.value.code == "run-missing"


def test_an_unknown_licence_keeps_it_from_the_public(models: dict[str, Path], tmp_path: Path) -> None:
    run, chosen = make_run(tmp_path / "runs" / "own", models["falcon"])
    make.export(run, chosen, ["adapter"])
    with pytest.raises(WarmlineError) as caught:
        push.push(run, "me/listener")
    assert caught.value.code == "data-licence"


def test_real_exports_hold_no_secret(run: Run) -> None:
    for path in run.folder.joinpath("export").rglob("*"):
        if path.is_file():
            assert push.secrets_in(path) == [], path


CLEAN = [
    "hf_ is a prefix, sk- too, and AKIA alone",
    "see https://example.org/a:b@c and mailto:me@example.org",
    "the password is something you never tell",
    "/home/ and /Users/ are folders",
    '"password": null, "api_key": ""',
    "token: <|im_end|>",
]


@pytest.mark.parametrize("text", CLEAN)
def test_words_about_secrets_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.md").write_text(text)
    assert push.secrets_in(tmp_path / "card.md") == []


@settings(max_examples=40)
@given(before=st.integers(0, 300), after=st.binary(max_size=40))
def test_a_secret_is_found_wherever_it_stands(
    tmp_path_factory: pytest.TempPathFactory, before: int, after: bytes
) -> None:
    path = tmp_path_factory.mktemp("scan") / "weights.bin"
    secret = b" " + TOKEN.encode() + b" "
    path.write_bytes(bytes(before) + secret + after)
    chunk, overlap = push._CHUNK, push._OVERLAP
    push._CHUNK, push._OVERLAP = 64, 60
    try:
        assert push.secrets_in(path) == ["a Hugging Face token"]
        assert "a secret of this machine's environment" in push.secrets_in(path, (TOKEN,))
    finally:
        push._CHUNK, push._OVERLAP = chunk, overlap
