"""Two processes that train together do what one does: the same losses, the same weights, one of them writes."""

from __future__ import annotations

import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed

from tests.train import several, tiny
from tests.train.several import forks
from warmline.errors import ModelError
from warmline.model.template import Encoded
from warmline.runs import read_json, read_jsonl
from warmline.train import checkpoint
from warmline.train.group import Group, join, leave


def train(folder: Path, stop: int, kind: str) -> None:
    """What each process does. `stop`: the step in which the second is told to stop; `kind`: what it alone meets."""
    group = join()
    loop = tiny.loop(folder, tiny.settings(on_nan="rollback"), group=group)
    real = loop._gradients

    def gradients(step: int) -> tuple[float, int]:
        if step == stop and group.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        total, targets = real(step)
        if kind == "nan" and step == 5 and group.rank == 1:
            total = math.nan
        if kind == "memory" and step == 4 and group.rank == 1:
            loop.state.pack = 33
        return total, targets

    loop._gradients = gradients  # type: ignore[method-assign]
    loop.run()
    held = torch.cat([p.detach().reshape(-1) for p in loop.parameters.values()])
    low, high = held.clone(), held.clone()
    distributed.all_reduce(low, distributed.ReduceOp.MIN)
    distributed.all_reduce(high, distributed.ReduceOp.MAX)
    assert torch.equal(low, high), "all processes hold the same weights"
    leave()


def together(folder: Path, stop: int = -1, kind: str = "") -> list[int]:
    return several.together(train, folder, stop, kind)


def losses(folder: Path, kind: str = "loss") -> dict[int, float]:
    rows = list(read_jsonl(folder / "metrics.jsonl"))
    found = [(row["step"], row[kind]) for row in rows if kind in row]
    assert len(found) == len(dict(found)), "one process writes"
    return dict(found)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    tiny.loop(folder, tiny.settings(on_nan="rollback")).run()
    return folder


@forks
def test_two_processes_equal_one_with_the_same_batch(alone: Path, tmp_path: Path) -> None:
    assert together(tmp_path) == [0, 0]
    for kind in ("loss", "validation", "norm"):
        assert losses(tmp_path, kind) == pytest.approx(losses(alone, kind), rel=2e-3)
    targets = losses(alone, "targets")
    assert losses(tmp_path, "targets") == targets, "no text is left out and none is taken twice"


@forks
def test_a_signal_to_one_stops_both_and_any_number_goes_on(alone: Path, tmp_path: Path) -> None:
    """Begun by two, stopped, gone on with by one: the same trajectory."""
    assert together(tmp_path, stop=3) == [143, 143]
    saved = checkpoint.newest(tmp_path / "checkpoints")
    assert saved is not None
    assert read_json(saved / "state.json")["step"] == 4
    tiny.loop(tmp_path, tiny.settings(on_nan="rollback")).run()
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=2e-3)


@forks
def test_begun_by_one_gone_on_with_by_two(alone: Path, tmp_path: Path) -> None:
    tiny.loop(tmp_path, tiny.settings(on_nan="rollback")).run()
    shutil.rmtree(checkpoint.at(tmp_path / "checkpoints", 8))
    assert together(tmp_path) == [0, 0]
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=2e-3)


@forks
def test_what_one_process_meets_all_take_part_in(tmp_path: Path) -> None:
    """One process's NaN rolls all of them back over the step; one's smaller packs become everyone's."""
    assert together(tmp_path / "nan", kind="nan") == [0, 0]
    assert sorted(losses(tmp_path / "nan")) == [1, 2, 3, 4, 5, 7, 8]
    assert together(tmp_path / "memory", kind="memory") == [0, 0]
    assert read_json(checkpoint.at(tmp_path / "memory" / "checkpoints", 8) / "state.json")["pack"] == 33


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 5))
def test_shares_are_disjoint_complete_and_even(lengths: list[int], size: int) -> None:
    texts = [Encoded([0] * length, [False] * length, str(i)) for i, length in enumerate(lengths)]
    shares = [Group(rank, size).mine(texts) for rank in range(size)]
    assert sorted(text.owner for share in shares for text in share) == sorted(text.owner for text in texts)
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    tokens = [sum(map(len, share)) for share in shares]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)


def test_alone_is_a_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    group = join()
    assert (group.rank, group.size, group.leads) == (0, 1, True)
    assert group.total(1.5, 2) == (1.5, 2)
    assert (group.most(3), group.least(3)) == (3, 3)


REFUSED = [
    ("DeepSpeed", {"ACCELERATE_USE_DEEPSPEED": "true"}),
    ("Megatron-LM", {"ACCELERATE_USE_MEGATRON_LM": "true"}),
    ("FSDP1", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}),
    ("FSDP2's offloading", {**several.FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}),
]


@pytest.mark.parametrize(("kind", "environment"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_launcher_that_would_split_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str, environment: dict[str, str]
) -> None:
    """Rather than to go on as if it had not been asked for."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelError, match=f"asks for {kind},") as caught:
        join()
    assert caught.value.code == "launch-unsupported"
