"""A save killed at any instruction leaves whole checkpoints and nothing to repair; damage is noticed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from warmline.errors import RunError
from warmline.runs import MANIFEST, read_json, sha256
from warmline.train import checkpoint


def small(seed: int = 0) -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(seed)
    parameters = {"a": torch.nn.Parameter(torch.randn(3, 4)), "b": torch.nn.Parameter(torch.randn(5))}
    return parameters, torch.optim.AdamW(parameters.values(), lr=0.1)


def step(parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def save(folder: Path, parameters: Any, optimizer: Any, number: int, best: int = 0) -> Path:
    return checkpoint.save(folder, number, parameters, optimizer, {"best_step": best, "made_from": {"x": 1}})


def tensors(parameters: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


def in_a_child(work: Any, die_at: int) -> tuple[bool, int]:
    """Do `work` in a child that is killed when it makes its `die_at`-th call into C; was it killed, how many calls?"""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            if event == "c_call":
                calls += 1
                if calls == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        try:
            work()
        finally:
            sys.setprofile(None)
            os.write(writer, str(calls).encode())
            os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    return os.WIFSIGNALED(status), int(said or 0)


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system without a disk where there is one: a kill is the same there, and flushes are free."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills need fork")
@pytest.mark.parametrize(("again", "kills"), [(False, 100), (True, 30)], ids=["a new step", "a step saved before"])
def test_killed_anywhere_in_a_save_there_is_nothing_to_repair(in_memory: Path, again: bool, kills: int) -> None:
    """At calls into C from the first to the last that a save makes: each write, flush, rename and removal is one."""
    tmp_path = in_memory
    parameters, optimizer = small()
    start = tmp_path / "start"
    known: dict[int, dict[str, torch.Tensor]] = {}
    for number in (2, 4, 6):
        step(parameters, optimizer)
        save(start, parameters, optimizer, number, best=2)
        known[number] = tensors(parameters)
    step(parameters, optimizer)
    target = 6 if again else 8
    after = tensors(parameters)

    folder = tmp_path / "counted"
    shutil.copytree(start, folder)
    killed, calls = in_a_child(lambda: save(folder, parameters, optimizer, target, best=2), -1)
    assert not killed
    points = sorted({1 + (calls - 1) * i // (kills - 1) for i in range(kills)})
    assert len(points) == kills
    old = new = 0
    for point in points:
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
        killed, _ = in_a_child(lambda: save(folder, parameters, optimizer, target, best=2), point)
        assert killed
        found = checkpoint.newest(folder)
        assert found is not None
        held, other = small(1)
        state = checkpoint.load(found, held, other)
        expected = [known[state["step"]]] if state["step"] in known else []
        if state["step"] == target:
            expected.append(after)
        assert any(all(torch.equal(held[n], t[n]) for n in held) for t in expected)
        assert checkpoint.whole(checkpoint.at(folder, 2)), "the best is never put at risk"
        old, new = old + (state["step"] != target), new + (state["step"] == target)
        save(folder, parameters, optimizer, target, best=2)  # and the next save simply works
        assert [p.name for p in folder.glob(".*")] == []
        assert checkpoint.newest(folder) == checkpoint.at(folder, target)
    assert new, "some kills came after the rename"
    assert again or old, "and some before it"


def test_a_file_cut_in_the_middle_never_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut in mid-write: half a file, under a hidden name that nobody reads and the next save removes."""
    parameters, optimizer = small()
    step(parameters, optimizer)
    save(tmp_path, parameters, optimizer, 1)
    real = checkpoint.save_tensors
    for file in ("weights", "optimizer", "random"):

        def cut(what: Any, path: Path, file: str = file) -> None:
            real(what, path)
            if path.stem == file:
                os.truncate(path, path.stat().st_size // 2)
                raise KeyboardInterrupt

        monkeypatch.setattr(checkpoint, "save_tensors", cut)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, parameters, optimizer, 2)
        assert checkpoint.newest(tmp_path) == checkpoint.at(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "save_tensors", real)
    save(tmp_path, parameters, optimizer, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    parameters, optimizer = small()
    step(parameters, optimizer)
    path = save(tmp_path, parameters, optimizer, 1)
    number = torch.rand(3)
    again, other = small(9)
    step(again, other)
    step(again, other)
    checkpoint.load(path, again, other)
    assert torch.equal(torch.rand(3), number), "random numbers go on where they were"
    torch.manual_seed(3)
    step(parameters, optimizer)
    torch.manual_seed(3)
    step(again, other)
    assert all(torch.equal(parameters[name], again[name]) for name in parameters)


def test_moments_of_before_do_not_survive_a_load(tmp_path: Path) -> None:
    """A checkpoint of step 0 has no moments; after going back to it there are none either."""
    parameters, optimizer = small()
    path = save(tmp_path, parameters, optimizer, 0)
    step(parameters, optimizer)
    checkpoint.load(path, parameters, optimizer)
    assert not optimizer.state


def test_the_newest_two_stay_and_the_best_of_each(tmp_path: Path) -> None:
    parameters, optimizer = small()
    for number, best in [(0, 0), (10, 10), (20, 10), (30, 10), (40, 40), (50, 40)]:
        save(tmp_path, parameters, optimizer, number, best)
    assert sorted(int(p.name[5:]) for p in tmp_path.iterdir()) == [40, 50]
    for number, best in [(60, 40), (70, 40), (80, 80)]:
        save(tmp_path, parameters, optimizer, number, best)
    assert sorted(int(p.name[5:]) for p in tmp_path.iterdir()) == [40, 70, 80], "70's best is still there for 70"


def _damage(file: Path, how: str) -> None:
    if how == "bits":
        with open(file, "r+b") as handle:
            handle.seek(-3, os.SEEK_END)
            handle.write(b"\x55\xaa\x55")
    elif how == "cut":
        os.truncate(file, file.stat().st_size // 2)
    elif how == "empty":
        os.truncate(file, 0)
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["bits", "cut", "empty", "gone"])
@pytest.mark.parametrize(
    "name", ["weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", MANIFEST]
)
def test_a_damaged_checkpoint_is_passed_over_with_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    parameters, optimizer = small()
    for number in (1, 2):
        step(parameters, optimizer)
        save(tmp_path, parameters, optimizer, number)
    _damage(checkpoint.at(tmp_path, 2) / name, how)
    assert checkpoint.newest(tmp_path) == checkpoint.at(tmp_path, 1)
    assert "step-00000002" in capfd.readouterr().err
    save(tmp_path, parameters, optimizer, 2)  # the run comes by again
    assert checkpoint.newest(tmp_path) == checkpoint.at(tmp_path, 2)
    for number in (1, 2):
        _damage(checkpoint.at(tmp_path, number) / name, how)
    with pytest.raises(RunError) as caught:
        checkpoint.newest(tmp_path)
    assert caught.value.code == "checkpoint-damaged"


def test_the_manifest_covers_every_file(tmp_path: Path) -> None:
    path = save(tmp_path, *small(), 1)
    files = read_json(path / MANIFEST)
    assert files == {p.name: sha256(p) for p in path.iterdir() if p.name != MANIFEST}


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk-full"),
        (SafetensorError("Error while serializing: I/O error: Os { code: 28, kind: StorageFull, .. }"), "disk-full"),
        (OSError(errno.EROFS, "Read-only file system"), "run-unwritable"),
        (SafetensorError("Error while serializing: I/O error: Os { code: 30, .. }"), "run-unwritable"),
    ],
)
def test_a_disk_that_refuses_is_one_message_and_leaves_the_last_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, code: str
) -> None:
    parameters, optimizer = small()
    save(tmp_path, parameters, optimizer, 1)

    def refuse(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(RunError) as caught:
        save(tmp_path, parameters, optimizer, 2)
    assert caught.value.code == code
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"], "and what was half-written gave its space back"
    assert checkpoint.newest(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": "other"}, "data"),
        ({"base": "other"}, "base"),
        ({"train": {"batch": 8, "seed": 1}}, "train.batch"),
        ({"train": {"batch": 4, "seed": 1, "new": 0}}, "train.new"),
        ({"adapter": {"rank": 4}, "data": "other"}, "adapter, data"),
    ],
)
def test_a_training_begun_from_something_else_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    made_from = {"data": "abc", "base": "def", "train": {"batch": 4, "seed": 1}}
    folder = tmp_path / "checkpoints"
    checkpoint.same(tmp_path, made_from)  # nothing there yet
    parameters, optimizer = small()
    checkpoint.save(folder, 7, parameters, optimizer, {"best_step": 0, "made_from": made_from})
    checkpoint.same(tmp_path, json.loads(json.dumps(made_from)))
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(RunError) as caught:
        checkpoint.same(tmp_path, made_from | change)
    assert caught.value.code == "resume-changed"
    assert f"step 7 was begun with other {named}" in caught.value.what
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before, "nothing is lost"
