"""What can be wrong with a run's model: each is one message, and none of them reaches a visitor."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_remote import Server, event, server, stream  # noqa: F401
from tests.export.conftest import make_run, needs_llama_cpp
from warmline.chat import Chat, Done, Text, Thread
from warmline.engine.base import ScriptedEngine
from warmline.engine.remote import RemoteEngine
from warmline.errors import WarmlineError
from warmline.model.export import make
from warmline.opening import open_chat
from warmline.runs import Run, read_json, write_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its base beside it, exported as merged GGUF and as base with adapter."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(models["qwen3"], folder / "base")
    run, chosen = make_run(folder / "runs" / "first", folder / "base", prompt={"context": 400})
    make.export(run, chosen, ["gguf:f16", "gguf:lora"])
    return folder


def _replace(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _hashes(run: Run) -> None:
    """As if the fault had been there when the hashes were taken: llama.cpp itself must see it."""
    manifest = run.folder / "export" / "MANIFEST.json"
    write_json(manifest, read_json(manifest) | {"files": {}})


def _other_base(run: Run) -> None:
    """The base's makers have changed it since."""
    settings = read_json(run.folder.parents[1] / "base" / "generation_config.json")
    write_json(run.folder.parents[1] / "base" / "generation_config.json", settings | {"top_k": 7})


def _gguf(run: Run, name: str = "first-f16.gguf") -> Path:
    return run.folder / "export" / "gguf" / name


WRONG: dict[str, tuple[Callable[[Run], Any], str, str]] = {
    "adapter without its base": (lambda run: shutil.rmtree(run.folder.parents[1] / "base"), "local", "base-missing"),
    "base without weights": (
        lambda run: (run.folder.parents[1] / "base" / "model.safetensors").unlink(), "local", "base-weights"
    ),
    "base changed since training": (_other_base, "local", "base-mismatch"),
    "no adapter": (lambda run: shutil.rmtree(run.folder / "train" / "adapter"), "local", "adapter-missing"),
    "damaged base": (lambda run: _cut(run.folder.parents[1] / "base" / "model.safetensors"), "local", "base-weights"),
    "damaged adapter": (
        lambda run: _cut(run.folder / "train" / "adapter" / "adapter_model.safetensors"), "local", "adapter-missing"
    ),
    "GGUF of an unknown architecture": (
        lambda run: (_hashes(run), _replace(_gguf(run), b"qwen3", b"qwenX")), "llamacpp", "gguf-damaged"
    ),
    "half a GGUF": (lambda run: (_hashes(run), _cut(_gguf(run))), "llamacpp", "gguf-damaged"),
    "one bit of the weights": (lambda run: _flip(_gguf(run)), "llamacpp", "gguf-damaged"),
    "no GGUF any more": (lambda run: _gguf(run).unlink(), "llamacpp", "gguf-damaged"),
    "GGUF adapter of another run": (
        lambda run: (_without_merged(run), _flip(_gguf(run, "first-lora.gguf"))), "llamacpp", "gguf-damaged"
    ),
    "half a GGUF adapter": (
        lambda run: (_without_merged(run), _hashes(run), _cut(_gguf(run, "first-lora.gguf"))),
        "llamacpp", "gguf-damaged",
    ),
    "no server": (lambda run: None, "http://127.0.0.1:9/v1#x", "engine-unreachable"),
}  # fmt: skip


def _without_merged(run: Run) -> None:
    verified = run.folder / "export" / "verified.json"
    write_json(verified, {k: v for k, v in read_json(verified).items() if k == "gguf:lora"})


@needs_llama_cpp
@pytest.mark.parametrize("fault", WRONG)
def test_each_is_one_message(whole: Path, tmp_path: Path, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole, tmp_path / "w")
    run = Run.open("first", tmp_path / "w" / "runs")
    recipe = (run.folder / "recipe.yaml").read_text()
    (run.folder / "recipe.yaml").write_text(recipe.replace(str(whole), str(tmp_path / "w")))
    spoil, engine, code = WRONG[fault]
    if engine != "local" or code != "base-missing":  # whole it talks: the fault is what stops it
        open_chat(run, engine=engine if "://" not in engine else "llamacpp").close()
    capfd.readouterr()
    spoil(run)
    with pytest.raises(WarmlineError) as caught:
        open_chat(run, engine=engine)
    assert caught.value.code == code
    assert caught.value.hint
    told = "".join(capfd.readouterr())
    assert "Traceback" not in told
    assert not [line for line in told.splitlines() if "error" in line.lower()], "nothing beside the message"
    # and should it happen in mid-conversation, a visitor gets words meant for a person
    events = list(Chat(ScriptedEngine([caught.value]), system="", country="GB").turn(Thread(), "a rough week"))
    shown = "".join(event.piece for event in events if isinstance(event, Text))
    assert isinstance(events[-1], Done)
    assert events[-1].stop_reason == "error"
    assert shown
    for told in (caught.value.what, caught.value.code, caught.value.hint, "gguf", "base", "Error"):
        assert told not in shown


@needs_llama_cpp
@pytest.mark.parametrize("engine", ["local", "llamacpp"])
def test_no_memory_for_the_model(whole: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    with pytest.raises(WarmlineError) as caught:
        open_chat(Run.open("first", whole / "runs"), engine=engine)
    assert caught.value.code == "fit-memory"
    assert "0.0 GB are free" in str(caught.value)


def test_memory_is_counted_by_precision(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from warmline import recipe
    from warmline.engine import local

    config = AutoConfig.from_pretrained(models["qwen3"])
    stored = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    for load, size in local.BYTES.items():
        base = recipe.Base(model=str(models["qwen3"]), load=load)  # type: ignore[arg-type]
        for free, fits in ((stored * size * 1.01, True), (stored * size * 0.99, False)):
            monkeypatch.setattr("psutil.virtual_memory", lambda free=free: type("M", (), {"available": free})())
            if fits:
                local._fits_memory(base)
            else:
                with pytest.raises(WarmlineError):
                    local._fits_memory(base)


@needs_llama_cpp
def test_without_llama_cpp_a_gguf_is_not_taken_and_the_run_talks_all_the_same(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr("warmline.engine.choice.has_llamacpp", lambda: False)
    run = Run.open("first", whole / "runs")
    door = open_chat(run)
    assert type(door.engine).__name__ == "LocalEngine"
    with pytest.raises(WarmlineError) as caught:
        open_chat(run, engine="llamacpp")
    assert caught.value.code == "engine-unfit"
    monkeypatch.setattr("warmline.engine.choice.has_llamacpp", lambda: True)  # there, but its library does not load
    with pytest.raises(WarmlineError) as caught:
        open_chat(run, engine="llamacpp")
    assert caught.value.code == "dependency-missing"
    assert "compiler" in str(caught.value)


def test_no_compiler_is_one_message_and_no_failure(tmp_path: Path) -> None:
    """The install goes on without llama.cpp, and says what is missing and how to get it."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "gguf.sh", tmp_path / "scripts")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\ncase $1 in -c) exit 1;; esac\necho pip was called\nexit 9\n")
    python.chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("dirname", "getconf", "sh"):
        (tools / tool).symlink_to(shutil.which(tool) or "")

    def install() -> subprocess.CompletedProcess[str]:
        command = [str(tools / "sh"), str(tmp_path / "scripts" / "gguf.sh")]
        return subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)

    done = install()
    assert done.returncode == 0
    assert done.stdout == ""
    assert "no C++ compiler" in done.stderr
    assert "make gguf" in done.stderr
    (tools / "c++").write_text("#!/bin/sh\n")
    (tools / "c++").chmod(0o755)
    done = install()
    assert done.returncode == 0
    assert "could not be built" in done.stderr, "with a compiler it is tried, and a failure is told"


def test_a_server_gone_in_mid_stream(server: Server) -> None:  # noqa: F811
    server.steps = [stream(event("That "), event("is a long time. And "))]
    engine = RemoteEngine(server.url, "small", backoff=())
    thread = Thread()
    events = list(Chat(engine, system="", country="GB").turn(thread, "a rough week"))
    shown = "".join(event.piece for event in events if isinstance(event, Text))
    assert isinstance(events[-1], Done)
    assert events[-1].stop_reason == "error"
    assert shown.startswith("That is a long time.")
    assert "And" not in shown.split("time.")[1].split("\n")[0], "half a sentence is not shown"
    assert len(shown) > len("That is a long time."), "a way to a human follows"
    for word in ("server", "127.0.0.1", "connection", "engine"):
        assert word not in shown.lower()
    engine.close()
