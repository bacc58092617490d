"""What goes wrong in a long training, and that no work is lost by it."""

from __future__ import annotations

import errno
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train import tiny
from warmline.errors import ModelError, RunError
from warmline.model.loss import Loss
from warmline.model.pack import Pack
from warmline.runs import read_json, read_jsonl
from warmline.train import checkpoint, loop
from warmline.train.loop import Loop, Outcome


def losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row}


def weights(trained: Loop) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trained.parameters.values()]


def equal(one: Loop, other: Loop) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float = math.nan) -> list[int]:
    """Let the summed loss of these steps be `value`; returns where the steps that were computed are noted."""
    real, computed = Loop._gradients, []

    def gradients(self: Loop, step: int) -> tuple[float, int]:
        computed.append(step)
        total, targets = real(self, step)
        return (value if step in steps else total), targets

    monkeypatch.setattr(Loop, "_gradients", gradients)
    return computed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_stop_names_the_conversations_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    spoil(monkeypatch, {5}, value)
    with pytest.raises(ModelError, match="step 6") as caught:
        tiny.loop(tmp_path, tiny.settings()).run()
    assert caught.value.code == "train-nan"
    named = ", ".join(f"c{i}" for i in loop.order(5, 12, 13, 17)[:8])
    assert caught.value.where == f"conversations {named} and 4 more"
    assert checkpoint.newest(tmp_path / "checkpoints") == checkpoint.at(tmp_path / "checkpoints", 4)


def test_a_gradient_that_is_not_finite_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Loop._gradients

    def gradients(self: Loop, step: int) -> tuple[float, int]:
        result = real(self, step)
        if step == 2:
            next(iter(self.parameters.values())).grad[0, 0] = math.inf  # type: ignore[index]
        return result

    monkeypatch.setattr(Loop, "_gradients", gradients)
    with pytest.raises(ModelError, match="step 3"):
        tiny.loop(tmp_path, tiny.settings()).run()


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_step_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    computed = spoil(monkeypatch, {3, 6})
    outcome = tiny.loop(tmp_path, tiny.settings(on_nan=policy, save_every=3)).run()
    assert outcome.left_out == [3, 6]
    assert outcome.steps == 8
    assert sorted(losses(tmp_path)) == [1, 2, 3, 5, 6, 8]
    rows = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if "left_out" in row]
    assert [row["step"] for row in rows] == [4, 7]
    assert rows[0]["left_out"] == [f"c{i}" for i in loop.order(3, 12, 13, 17)], "named by their ids"
    assert all(math.isfinite(value) for value in losses(tmp_path).values())
    assert computed == [0, 1, 2, 3, 4, 5, 6, 7]


def test_rolled_back_steps_are_done_again_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skipped, rolled = (tiny.loop(tmp_path / p, tiny.settings(on_nan=p, save_every=5)) for p in ("skip", "rollback"))
    with monkeypatch.context() as patch:
        spoil(patch, {4})
        skipped.run()
    computed = spoil(monkeypatch, {4})
    rolled.run()
    assert computed == [0, 1, 2, 3, 4, 3, 5, 6, 7] or computed == [0, 1, 2, 3, 4, 0, 1, 2, 3, 5, 6, 7]
    assert equal(skipped, rolled)
    assert losses(tmp_path / "skip") == losses(tmp_path / "rollback")


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_what_was_left_out_is_remembered_over_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    spoil(monkeypatch, {2})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train = tiny.settings(on_nan=policy)
    one = tiny.loop(whole, train)
    one.run()
    stop_at(monkeypatch, 5)
    with pytest.raises(SystemExit):
        tiny.loop(parts, train).run()
    other = tiny.loop(parts, train)
    assert other.run().left_out == [2]
    assert equal(one, other)
    assert losses(whole) == losses(parts)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_training_that_has_come_apart_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    computed = spoil(monkeypatch, set(range(2, 100)))
    with pytest.raises(ModelError) as caught:
        tiny.loop(tmp_path, tiny.settings(on_nan=policy, steps=50)).run()
    assert caught.value.code == "train-nan"
    assert max(computed) == 6, "five in a row"


def run_out(monkeypatch: pytest.MonkeyPatch, when: Callable[[Pack], bool], error: Exception) -> list[int]:
    """Memory runs out in packs for which `when` holds; returns where the sizes that went through are noted."""
    real, sizes = Loss.__call__, []

    def loss_of(self: Loss, packed: Pack) -> torch.Tensor:
        if self.model.training and when(packed):
            raise error
        if self.model.training:
            sizes.append(packed.ids.shape[1])
        return real(self, packed)

    monkeypatch.setattr(Loss, "__call__", loss_of)
    return sizes


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_when_memory_runs_out_the_packs_get_smaller_and_the_step_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tiny.loop(tmp_path / "whole", tiny.settings(pack=120)).run()
    failed = iter([False, True])  # the second pack of the run, after the first left gradients
    sizes = run_out(monkeypatch, lambda packed: next(failed, False), error)
    trained = tiny.loop(tmp_path / "short", tiny.settings(pack=120))
    trained.run()
    assert trained.state.pack < 100
    assert len(sizes) > 9
    whole, short = losses(tmp_path / "whole"), losses(tmp_path / "short")
    assert short == pytest.approx(whole, rel=1e-3), "the same effective batch"
    assert read_json(checkpoint.at(tmp_path / "short" / "checkpoints", 8) / "state.json")["pack"] == trained.state.pack


def test_after_a_resume_the_packs_stay_small_and_the_bits_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out(monkeypatch, lambda packed: packed.ids.shape[1] > 40, torch.OutOfMemoryError("CUDA out of memory"))
    one, train = tiny.loop(tmp_path / "whole", tiny.settings(pack=1000)), tiny.settings(pack=1000)
    one.run()
    stop_at(monkeypatch, 4)
    with pytest.raises(SystemExit):
        tiny.loop(tmp_path / "parts", train).run()
    other = tiny.loop(tmp_path / "parts", train)
    other.run()
    assert equal(one, other)


def test_one_conversation_that_does_not_fit_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out(monkeypatch, lambda packed: packed.ids.shape[1] > 8, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ModelError) as caught:
        tiny.loop(tmp_path, tiny.settings()).run()
    assert caught.value.code == "fit-memory"
    assert "prompt.context" in (caught.value.hint or "")


def test_another_fault_of_the_machine_is_not_taken_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out(monkeypatch, lambda packed: True, RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side"):
        tiny.loop(tmp_path, tiny.settings()).run()


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM, after: int = 0) -> None:
    """Send this process a signal, once, before pack `after` of `step` (from 0) is computed."""
    real, left = Loop._gradients, [True]

    def gradients(self: Loop, at: int) -> tuple[float, int]:
        if at == step and left:
            left.clear()
            computed = iter([False] * after + [True])
            loss_of = Loss.__call__

            def sending(self: Loss, packed: Pack) -> torch.Tensor:
                if next(computed, False):
                    os.kill(os.getpid(), number)
                return loss_of(self, packed)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Loss, "__call__", sending)
                return real(self, at)
        return real(self, at)

    monkeypatch.setattr(Loop, "_gradients", gradients)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(("step", "after"), [(0, 0), (3, 0), (4, 1), (7, 0)])
def test_a_signal_in_mid_step_is_obeyed_at_the_next_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, step: int, after: int
) -> None:
    """Not at the step's end, which may be minutes away; the step is done anew later, bit for bit, dropout too."""
    train = tiny.settings()
    one = tiny.loop(tmp_path / "whole", train, dropout=0.2)
    one.run()
    stop_at(monkeypatch, step, number, after)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stopped:
        tiny.loop(tmp_path / "parts", train, dropout=0.2).run()
    assert (stopped.value.code if isinstance(stopped.value, SystemExit) else 130) == code
    assert checkpoint.newest(tmp_path / "parts" / "checkpoints") == checkpoint.at(
        tmp_path / "parts" / "checkpoints", step
    )
    other = tiny.loop(tmp_path / "parts", train, dropout=0.2)
    other.run()
    assert equal(one, other)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.parametrize("at", [0, 3, 8])
def test_a_signal_while_measuring_is_obeyed_and_the_measurement_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    tiny.loop(tmp_path / "whole", tiny.settings()).run()
    real = Loop.validate

    def validate(self: Loop) -> float:
        if self.state.step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "validate", validate)
        with pytest.raises(SystemExit):
            tiny.loop(tmp_path / "parts", tiny.settings()).run()
    outcome = tiny.loop(tmp_path / "parts", tiny.settings()).run()
    assert isinstance(outcome, Outcome)

    def measured(name: str) -> list[tuple[int, float]]:
        rows = read_jsonl(tmp_path / name / "metrics.jsonl")
        return [(row["step"], row["validation"]) for row in rows if "validation" in row]

    assert measured("parts") == measured("whole")


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "disk-full"), (errno.EROFS, "run-unwritable")])
@pytest.mark.parametrize("where", ["save_tensors", "metrics"])
def test_a_disk_that_refuses_ends_the_run_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str, where: str
) -> None:
    one = tiny.loop(tmp_path / "whole", tiny.settings())
    one.run()
    broken = tiny.loop(tmp_path / "parts", tiny.settings())

    def refuse(*_: Any, **__: Any) -> None:
        if broken.state.step >= 5:
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if where == "metrics":
            assert broken.tracker is not None
            real = broken.tracker._append
            patch.setattr(broken.tracker, "_append", lambda *a: (refuse(), real(*a)))
        else:
            save = checkpoint.save_tensors
            patch.setattr(checkpoint, "save_tensors", lambda *a: (refuse(), save(*a)))
        with pytest.raises(RunError) as caught:
            broken.run()
    assert caught.value.code == code
    again = tiny.loop(tmp_path / "parts", tiny.settings())
    again.run()
    assert equal(one, again), "with space again the same command goes on"


def test_damage_of_the_newest_costs_time_and_no_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tiny.loop(tmp_path / "whole", tiny.settings())
    one.run()
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        with pytest.raises(SystemExit):
            tiny.loop(tmp_path / "parts", tiny.settings()).run()
    newest = checkpoint.newest(tmp_path / "parts" / "checkpoints")
    assert newest is not None
    (newest / "optimizer.safetensors").write_bytes(b"")
    other = tiny.loop(tmp_path / "parts", tiny.settings())
    other.run()
    assert equal(one, other)


def test_without_a_sound_best_the_last_weights_are_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train = tiny.settings(learning_rate=0.9, steps=6)  # so steep that the start stays the best
    assert tiny.loop(tmp_path, train).run().best_step == 0
    (checkpoint.at(tmp_path / "checkpoints", 0) / "weights.safetensors").unlink()
    outcome = tiny.loop(tmp_path, train).run()
    assert outcome.best_step == 6
    assert outcome.best_validation is None
    assert "damaged" in capfd.readouterr().err
