"""Which engine replies: by what was exported and what is here; what was asked for by name is never replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.engine.conftest import SYSTEM
from warmline.chat import Done, Text, Thread
from warmline.engine import choice
from warmline.engine.choice import choose
from warmline.errors import EngineError, RunError
from warmline.opening import open_chat
from warmline.runs import Run, write_json


@pytest.fixture
def run(tmp_path: Path, models: dict[str, Path]) -> Run:
    """A trained run as far as the choice can see; its base is a tiny model."""
    folder = tmp_path / "first"
    (folder / "train").mkdir(parents=True)
    write_json(folder / "train" / "MANIFEST.json", {"key": "k1", "inputs": {}, "summary": {}})
    settings = {"name": "first", "base": {"model": str(models["qwen3"]), "load": "fp32"}}
    settings |= {"prompt": {"system": SYSTEM, "context": 400}, "evaluate": {"temperature": 0.0}}
    write_json(folder / "recipe.yaml", settings)
    return Run(folder)


def export(run: Run, key: str = "k1", **files: dict[str, str]) -> None:
    write_json(run.folder / "export" / "MANIFEST.json", {"key": "e", "inputs": {"train": key}, "summary": {}})
    write_json(run.folder / "export" / "verified.json", {f"gguf:{name}": row for name, row in files.items()})


LORA = {"file": "first-lora.gguf", "base": "first-base-bf16.gguf"}
Q4 = {"file": "first-q4_k_m.gguf"}
Q8 = {"file": "first-q8_0.gguf"}


@pytest.mark.parametrize(
    ("files", "tuned", "model", "adapter", "merged"),
    [
        ({"q8_0": Q8, "q4_k_m": Q4}, True, "first-q4_k_m.gguf", None, True),
        ({"q8_0": Q8}, True, "first-q8_0.gguf", None, True),
        ({"q8_0": Q8, "lora": LORA}, True, "first-q8_0.gguf", None, True),
        ({"lora": LORA}, True, "first-base-bf16.gguf", "first-lora.gguf", False),
        ({"lora": LORA, "q8_0": Q8}, False, "first-base-bf16.gguf", None, False),
        ({"q8_0": Q8}, False, None, None, False),
        ({}, True, None, None, False),
    ],
)
def test_which_file(
    run: Run, files: dict[str, Any], tuned: bool, model: str | None, adapter: str | None, merged: bool
) -> None:
    export(run, **files)
    found, missing = choice.exported(run, tuned=tuned)
    if model is None:
        assert found is None
        assert missing
        return
    assert found is not None
    assert (found.model.name, found.adapter and found.adapter.name, found.merged) == (model, adapter, merged)


@pytest.mark.parametrize(
    ("use", "gguf", "installed", "gpu", "kind"),
    [
        ("auto", True, True, False, "llamacpp"),
        ("auto", True, True, True, "local"),
        ("auto", True, False, False, "local"),
        ("auto", False, True, False, "local"),
        ("local", True, True, False, "local"),
        ("llamacpp", True, True, True, "llamacpp"),
        ("llamacpp", True, False, False, None),
        ("llamacpp", False, True, False, None),
        ("http://127.0.0.1:8000/v1#small", True, True, False, "remote"),
        ("lamacpp", True, True, False, None),
        ("", True, True, False, None),
    ],
)
def test_the_choice(
    run: Run, monkeypatch: pytest.MonkeyPatch, use: str, gguf: bool, installed: bool, gpu: bool, kind: str | None
) -> None:
    monkeypatch.setattr(choice, "has_llamacpp", lambda: installed)
    monkeypatch.setattr(choice, "has_gpu", lambda: gpu)
    if gguf:
        export(run, q8_0=Q8)
    if kind is None:
        with pytest.raises(EngineError) as caught:
            choose(run, use)
        assert caught.value.code == "engine-unfit"
        return
    found = choose(run, use)
    assert found.kind == kind
    assert found.why
    if kind == "remote":
        assert (found.url, found.model) == ("http://127.0.0.1:8000/v1", "small")


def test_an_export_of_an_earlier_training_is_not_taken(run: Run) -> None:
    export(run, key="k0", q8_0=Q8)
    assert choose(run).kind == "local"
    assert "earlier" in choose(run).why
    with pytest.raises(EngineError):
        choose(run, "llamacpp")


def test_a_file_is_held_against_its_hash_once_for_each_state(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = choice.sha256
    monkeypatch.setattr(choice, "sha256", lambda path: read.append(path) or real(path))
    file = run.folder / "export" / "gguf" / "first-q8_0.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    files = choice.Files(file, merged=True)
    manifest = run.folder / "export" / "MANIFEST.json"
    write_json(manifest, {"files": {"gguf/first-q8_0.gguf": real(file)}})
    for _ in range(3):
        choice.unchanged(run, files)
    assert len(read) == 1
    os.utime(file, ns=(1, 1))
    choice.unchanged(run, files)
    assert len(read) == 2, "a file of another time is looked at again"
    file.write_bytes(b"weighty")
    with pytest.raises(EngineError) as caught:
        choice.unchanged(run, files)
    assert caught.value.code == "gguf-damaged"
    write_json(manifest, {"files": {"gguf/first-q8_0.gguf": real(file)}})
    choice.unchanged(run, files)
    (run.folder / "cache" / "first-q8_0.checked").unlink()
    (run.folder / "cache").rmdir()
    (run.folder / "cache").write_text("in the way")  # a run on a disk that cannot be written talks all the same
    choice.unchanged(run, files)


def test_a_server_has_no_base_to_ask(run: Run) -> None:
    with pytest.raises(EngineError):
        choose(run, "http://127.0.0.1:8000/v1", tuned=False)


def test_a_run_talks_through_its_gguf(run: Run, gguf: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "has_gpu", lambda: False)
    (run.folder / "export" / "gguf").mkdir(parents=True)
    os.link(gguf["qwen3"], run.folder / "export" / "gguf" / "first-f32.gguf")
    export(run, f32={"file": "first-f32.gguf"})
    chat = open_chat(run)
    assert type(chat.engine).__name__ == "LlamaCppEngine"
    thread = Thread()
    for text in ("a rough week", "my mother called", "I am tired"):
        events = list(chat.turn(thread, text))
        assert isinstance(events[-1], Done)
        assert any(isinstance(event, Text) for event in events)
    assert len(thread.messages) == 6


def test_before_training(run: Run) -> None:
    (run.folder / "train" / "MANIFEST.json").unlink()
    (run.folder / "train").rmdir()
    with pytest.raises(RunError):
        open_chat(run)


@pytest.mark.parametrize("prepare", [lambda run: None, lambda run: export(run, q8_0=Q8)])
@pytest.mark.parametrize("use", [[], ["--engine", "llamacpp"], ["--engine", "http://127.0.0.1:9/v1"]])
def test_the_doctor_says_what_would_reply(run: Run, prepare: Callable[[Run], None], use: list[str]) -> None:
    from warmline.cli.main import app

    prepare(run)
    done = CliRunner().invoke(app, ["doctor", "first", "--runs", str(run.folder.parent), "--port", "1", *use])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told["engine"]["use"] in ("llamacpp", "local", "remote", "none")
    assert told["engine"]["why"]
    assert told["port 1"] == "free"
    for what in ("processor", "memory", "disk", "GPU", "torch", "C++ compiler"):
        assert told[what]
