"""The command line as a person meets it: one message, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SENTENCES
from warmline.runs import read_json


def warmline(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "warmline", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"} | environment,
        input="",
        timeout=300,
    )


WORDS = [
    f"{a}{b}{c}" for a in ("ka", "lo", "mi", "ru") for b in ("n", "t", "s") for c in ("de", "fo", "ga", "pi", "zu")
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "talks.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for i in range(40):
            # No two alike, or the report would rightly refuse to measure on them.
            words = [" ".join(random.Random(f"{i}{who}").choices(WORDS, k=14)) for who in "ab"]
            turns = [f"{SENTENCES[i % 6]} {words[0]}", f"{words[1]} {SENTENCES[(i + 1) % 6]}"]
            file.write(
                json.dumps(
                    {"messages": [{"role": r, "content": t} for r, t in zip(("user", "assistant"), turns, strict=True)]}
                )
                + "\n"
            )
    return path


def small(corpus: Path, base: Path, *more: str) -> list[str]:
    sets = ["train.steps=3", "train.batch=4", "adapter.rank=2", "evaluate.new_tokens=6", "data.dedupe=false", *more]
    options = [part for setting in sets for part in ("--set", setting)]
    return ["train", "--data", str(corpus), "--base", str(base), "--licence", "MIT", *options]


def test_own_data_and_own_base_in_one_command(models: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    done = warmline(*small(corpus, models["qwen3"]), "--name", "first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    run = tmp_path / last["run"]
    for name in (
        "recipe.yaml",
        "environment.json",
        "data/MANIFEST.json",
        "train/MANIFEST.json",
        "evaluation/report.html",
    ):
        assert (run / name).exists(), name
    report = (run / "evaluation" / "report.html").read_text("utf-8")
    assert "perplexity" in report
    assert "<script" not in report
    assert 'src="http' not in report, "the page needs no network"
    manifest = read_json(run / "train" / "MANIFEST.json")
    again = warmline(*small(corpus, models["qwen3"]), "--name", "first", cwd=tmp_path)
    assert again.returncode == 0
    assert again.stderr.count("done before, kept") == 3
    assert read_json(run / "train" / "MANIFEST.json") == manifest
    changed = warmline(*small(corpus, models["qwen3"], "train.learning_rate=0.001"), "--name", "first", cwd=tmp_path)
    assert changed.stderr.count("done before, kept") == 1, "the data; training and measuring were done anew"
    assert len(list((run / "replaced").iterdir())) == 2


def test_a_run_replays_itself(models: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    first = warmline(*small(corpus, models["llama"]), "--name", "one", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    again = warmline("train", "runs/one/recipe.yaml", "--name", "two", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    one, two = (read_json(tmp_path / "runs" / n / "train" / "MANIFEST.json") for n in ("one", "two"))
    key = "adapter/adapter_model.safetensors"
    assert one["files"][key] == two["files"][key]


WRONG: list[tuple[str, list[str], str, str]] = [
    ("recipe", ["train", "demmo"], "recipe-unknown", "demo"),
    ("setting", ["train", "demo", "--set", "train.epoch=1"], "recipe-invalid", "train.epochs"),
    ("data", ["train", "--data", "gone.csv"], "data-missing", "gone.csv"),
    ("base", ["train", "--base", "./gone"], "base-missing", "./gone"),
    ("hub", ["train", "--base", "nobody/nothing"], "hub-unreachable", "nobody/nothing"),
    ("run", ["chat", "gone"], "run-missing", "gone"),
    ("serve", ["serve", "gone"], "run-missing", "gone"),
    ("copy", ["recipes", "copy", "demo", "taken.yaml"], "recipe-invalid", "taken.yaml"),
    ("show", ["recipes", "show", "gone"], "recipe-unknown", "gone"),
    ("country", ["resources", "XX"], "country-unknown", "XX"),
]


@pytest.mark.parametrize(("what", "arguments", "code", "named"), WRONG, ids=[row[0] for row in WRONG])
def test_a_mistake_is_one_message_and_exit_code_2(
    tmp_path: Path, what: str, arguments: list[str], code: str, named: str
) -> None:
    (tmp_path / "taken.yaml").write_text("mine")
    done = warmline(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"[{code}]" in done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "taken.yaml").read_text() == "mine"


def test_bases_that_cannot_be_used_are_said_so_before_anything_is_trained(
    models: dict[str, Path], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text(json.dumps({"model_type": "llama"}))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (other / "model.safetensors").write_bytes(b"")
    for base, code in ((empty, "base-weights"), (other, "base-unsupported")):
        done = warmline("train", "--base", str(base), "--set", "train.steps=1", "--name", base.name, cwd=tmp_path)
        assert (done.returncode, f"[{code}]" in done.stderr) == (2, True), done.stderr
        assert not (tmp_path / "runs" / base.name / "train").exists()


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_corpus_is_said_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "empty.jsonl").write_text(text)
    done = warmline("train", "--data", "empty.jsonl", "--licence", "MIT", cwd=tmp_path)
    assert done.returncode == 2
    assert "[data-" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = warmline("train", "demo", "--runs", "file", cwd=tmp_path)
    assert done.returncode == 2
    assert "[run-unwritable]" in done.stderr


def test_a_taken_port_is_said_before_the_model_is_loaded(models: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    assert warmline(*small(corpus, models["qwen3"]), "--name", "first", cwd=tmp_path).returncode == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for command in (["serve", "first"], ["demo"]):
            done = warmline(*command, "--port", port, cwd=tmp_path)
            assert done.returncode == 2
            assert "[port-in-use]" in done.stderr
    assert not (tmp_path / "runs" / "demo").exists()


def test_chat_answers_a_crisis_without_the_model(models: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    assert warmline(*small(corpus, models["qwen3"]), "--name", "first", cwd=tmp_path).returncode == 0
    talk = subprocess.run(
        [sys.executable, "-m", "warmline", "chat", "first", "--country", "GB"],
        input="hello there\nI am going to kill myself tonight\n/resources US\n/new\n/nonsense\n/quit\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert talk.returncode == 0, talk.stderr
    said = talk.stdout + talk.stderr
    assert "116 123" in talk.stdout, "the vetted reply names the line of the chosen country"
    assert "988" in said
    assert "a new conversation" in said
    assert "no such command" in said
    audit = (tmp_path / "runs" / "first" / "audit.jsonl").read_text("utf-8")
    assert audit.count("\n") == 2, "a row for every turn"
    assert "kill myself" not in audit
    assert "hello there" not in audit
    assert warmline("audit", "verify", "runs/first/audit.jsonl", cwd=tmp_path).returncode == 0


def test_a_fault_of_ours_shows_no_text_of_anybody(tmp_path: Path) -> None:
    code = (
        "from warmline.cli import main, build\n"
        "import sys; sys.argv = ['warmline', 'recipes']\n"
        "def broken(*_): raise RuntimeError('I told it my secret')\n"
        "build.recipe.shipped = broken\n"
        "main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "secret" not in done.stderr
    assert "RuntimeError" in done.stderr


def test_version_and_recipes_print_to_stdout(tmp_path: Path) -> None:
    assert warmline("--version", cwd=tmp_path).stdout.startswith("warmline ")
    listed = warmline("recipes", cwd=tmp_path).stdout
    assert "demo" in listed
    assert "laptop" in listed
    assert "train.epochs" in warmline("recipes", "explain", cwd=tmp_path).stdout
    shown = warmline("recipes", "show", "demo", cwd=tmp_path).stdout
    assert "batch:" in shown
    copied = warmline("recipes", "copy", "demo", "mine.yaml", cwd=tmp_path)
    assert copied.returncode == 0
    assert (tmp_path / "mine.yaml").read_text("utf-8").startswith("# The whole job")
