"""A start from the kept prompt says what a start from nothing says; whatever does not belong to it is not taken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_llamacpp import FAMILIES, Dictated, opened, same, say
from warmline.engine import saved
from warmline.engine.llamacpp import LlamaCppEngine
from warmline.engine.vocabulary import Vocabulary
from warmline.model.template import Template


@pytest.fixture
def took(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each engine opened from now on took what was kept."""
    found: list[bool] = []
    real = saved.put_back
    monkeypatch.setattr(saved, "put_back", lambda *given: found.append(real(*given)) or found[-1])
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_start_reads_no_prompt_and_expects_the_same(
    models: dict[str, Path], gguf: dict[str, Path], tmp_path: Path, took: list[bool], family: str
) -> None:
    expected: list[Any] = []
    for _ in range(3):
        engine = opened(models, gguf, family, saved=tmp_path / "deep" / "a.prompt")
        with Dictated(engine) as dictated:
            calls = [say(engine, "I cannot sleep."), say(engine, "Somebody else.")]
            expected.append([dictated.of(call) for _, call in calls])
        assert all(call.usage.cached_tokens >= len(engine._head) for _, call in calls)
        engine.close()
    assert took == [False, True, True]
    for later in expected[1:]:
        assert all(same(a, b) for a, b in zip(later, expected[0], strict=True))
    assert not same(expected[0][0], expected[0][1])


def _spoil(path: Path, at: int) -> None:
    whole = bytearray(path.read_bytes())
    whole[at] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: _spoil(path, 3),
        lambda path: _spoil(path, -1),
        lambda path: _spoil(path, 5000),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"x" * 40),
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_file_means_reading_once_more(
    models: dict[str, Path], gguf: dict[str, Path], tmp_path: Path, took: list[bool], spoil: Any
) -> None:
    path = tmp_path / "a.prompt"
    opened(models, gguf, "qwen3", saved=path).close()
    whole = path.read_bytes()
    spoil(path)
    opened(models, gguf, "qwen3", saved=path).close()
    assert took == [False, False]
    assert path.read_bytes()[:32] == whole[:32], "it is mended"
    opened(models, gguf, "qwen3", saved=path).close()
    assert took[-1]


def test_of_another_prompt_or_model_it_is_not_taken(
    models: dict[str, Path], gguf: dict[str, Path], tmp_path: Path, took: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = tmp_path / "a.prompt", tmp_path / "m.gguf"
    model.write_bytes(gguf["qwen3"].read_bytes())

    def start(system: str = "Listen with care. " * 9) -> None:
        template = Template(Vocabulary(models["qwen3"]), system=system)
        LlamaCppEngine.open(model, template, name="x", context=400, threads=1, saved=path).close()

    start()
    start()
    start("Listen with much care. " * 9)
    os.utime(model, ns=(1, 1))
    start("Listen with much care. " * 9)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    start("Listen with much care. " * 9)
    assert took == [False, True, False, False, False]


def test_a_folder_that_cannot_be_written_changes_nothing(
    models: dict[str, Path], gguf: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    engine = opened(models, gguf, "qwen3", saved=tmp_path / "file" / "a.prompt")
    assert say(engine, "I cannot sleep.")[0]
    engine.close()


def test_nothing_that_was_said_is_in_it(models: dict[str, Path], gguf: dict[str, Path], tmp_path: Path) -> None:
    files = []
    for name, words in (("a", "I cannot sleep."), ("b", "My mother says I think too much.")):
        engine = opened(models, gguf, "qwen3", saved=tmp_path / name)
        say(engine, words)
        engine.close()
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
