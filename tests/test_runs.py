"""Run folders: whole or not there, changed settings never reuse old results, nothing finished is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.errors import DataError, RunError
from warmline.runs import (
    MANIFEST,
    Run,
    environment,
    fingerprint,
    read_json,
    read_jsonl,
    sha256,
    write_atomically,
    write_jsonl,
    writing,
)


def test_a_stage_exists_only_when_it_is_finished(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "first")
    stage = run.stage("data", {"x": 1})
    folder = stage.begin()
    (folder / "train.jsonl").write_text("{}\n")
    assert not stage.finished
    assert not stage.folder.exists()
    stage.finish({"rows": 1}, {"x": 1})
    assert stage.finished
    manifest = stage.manifest
    assert manifest["summary"] == {"rows": 1}
    assert manifest["files"] == {"train.jsonl": sha256(stage.folder / "train.jsonl")}
    assert not stage.partial.exists()
    assert run.manifest("data")["key"] == stage.key


def test_work_of_an_interrupted_stage_is_kept_for_the_same_key_only(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "first")
    (run.stage("train", {"rate": 1}).begin() / "half").write_text("done so far")
    assert (run.stage("train", {"rate": 1}).begin() / "half").exists()
    assert not (run.stage("train", {"rate": 2}).begin() / "half").exists()


def test_a_changed_recipe_moves_the_old_result_aside(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "first")
    old = run.stage("data", {"x": 1})
    (old.begin() / "a").write_text("old")
    old.finish({}, {"x": 1})
    new = run.stage("data", {"x": 2})
    assert not new.finished
    (new.begin() / "a").write_text("new")
    new.finish({}, {"x": 2})
    assert (run.folder / "data" / "a").read_text() == "new"
    assert (run.folder / "replaced" / f"data-{old.key[:8]}" / "a").read_text() == "old"
    assert not old.finished


@given(st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.booleans()), max_size=6))
def test_a_fingerprint_knows_values_not_their_order(value: dict[str, object]) -> None:
    assert fingerprint(value) == fingerprint(dict(reversed(value.items())))
    assert fingerprint(value) != fingerprint(value | {"another": 1.5})


@given(st.lists(st.text(), max_size=8))
def test_jsonl_round_trips_any_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    assert write_jsonl(path, ({"text": text} for text in texts)) == len(texts)
    assert [row["text"] for row in read_jsonl(path)] == texts


def test_a_broken_line_is_named_by_file_and_line_never_by_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"secret words\n')
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path))
    assert "line 3" in caught.value.what
    assert "secret" not in str(caught.value)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    write_atomically(path, "old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError) as caught:
        write_atomically(path, "new")
    assert caught.value.code == "disk-full"
    assert path.read_text() == "old"


def test_rows_that_fail_half_way_leave_nothing(tmp_path: Path) -> None:
    def rows():
        yield {"a": 1}
        raise ValueError("reader failed")

    with pytest.raises(ValueError, match="reader failed"):
        write_jsonl(tmp_path / "train.jsonl", rows())
    assert not (tmp_path / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "disk-full"), (errno.EACCES, "run-unwritable"), (errno.EROFS, "run-unwritable")],
)
def test_the_systems_refusals_become_one_message(tmp_path: Path, number: int, code: str) -> None:
    with pytest.raises(RunError) as caught, writing(tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.code == code
    assert str(tmp_path) in caught.value.what


def test_other_errors_pass_through_unchanged(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="odd") as caught, writing(tmp_path):
        raise OSError(errno.EIO, "odd")
    assert not isinstance(caught.value, RunError)


def test_a_run_is_held_by_one_process(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "first")
    code = (
        f"from warmline.runs import Run; from pathlib import Path\nwith Run(Path({str(run.folder)!r})).locked(): pass"
    )
    with run.locked():
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode == 1
    assert "run-locked" in other.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_missing_run_names_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "recipe.yaml").write_text("name: here\n")
    with pytest.raises(RunError) as caught:
        Run.open("gone", tmp_path)
    assert "here" in (caught.value.hint or "")
    assert Run.open("here", tmp_path).name == "here"
    assert Run.open(str(tmp_path / "here")).name == "here"


def test_a_stage_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished `train` stage"):
        Run.create(tmp_path / "first").manifest("train")


def test_the_environment_holds_no_name_of_a_person_or_machine() -> None:
    found = str(environment())
    assert str(Path.home()) not in found
    assert __import__("socket").gethostname() not in found
    assert "torch" in environment()["packages"]


def test_the_manifest_is_json_a_person_can_read(tmp_path: Path) -> None:
    stage = Run.create(tmp_path / "r").stage("data", {})
    stage.begin()
    stage.finish({"note": "é"}, {})
    assert "é" in (stage.folder / MANIFEST).read_text("utf-8")
    assert read_json(stage.folder / MANIFEST)["stage"] == "data"
