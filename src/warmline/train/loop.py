"""The training loop: packed conversations in, better weights out, resumable at any step.

An optimizer step is a fixed number of conversations; its loss is the mean over all their supervised tokens, however
they are packed, so packing and accumulation change nothing but speed. Which conversations a step takes is a function
of seed and step alone. Knows nothing of recipes' data section or of run folders.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import load_file

from warmline import console, recipe
from warmline.errors import ModelError
from warmline.model import pack as packing
from warmline.model.pack import Pack
from warmline.model.template import Encoded
from warmline.runs import write_atomically, writing
from warmline.train import checkpoint


def steps_for(settings: recipe.Train, texts: int) -> int:
    """Optimizer steps of a run over `texts` texts."""
    return settings.steps or max(1, math.ceil(settings.epochs * texts / settings.batch))


def order(step: int, batch: int, texts: int, seed: int) -> list[int]:
    """Which texts the optimizer step `step` (from 0) takes: each epoch is a new permutation, none is skipped.

    >>> sorted(order(0, 2, 4, seed=1) + order(1, 2, 4, seed=1))
    [0, 1, 2, 3]
    """
    taken: list[int] = []
    place = step * batch
    while len(taken) < batch:
        epoch, start = divmod(place, texts)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        chosen = torch.randperm(texts, generator=generator)[start : start + batch - len(taken)].tolist()
        taken += chosen
        place += len(chosen)
    return taken


def learning_rate(step: int, steps: int, settings: recipe.Train) -> float:
    """The rate for the optimizer step `step` (from 0): linear warm-up, then the schedule down to its floor."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    share = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]
    return settings.learning_rate * (settings.floor + (1 - settings.floor) * share)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training came to. Losses are in nats per supervised token; None where there is no validation split."""

    steps: int
    loss: float
    best_step: int
    best_validation: float | None
    seconds: float
    targets_per_second: float


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Note SIGINT and SIGTERM instead of dying in mid-step; a second SIGINT dies at once."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: nobody sends us signals
        before = {}
    try:
        yield lambda: caught[0] if caught else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Loop:
    """One training, in `folder`. `run` starts it or goes on where the newest checkpoint stands.

    The model's trainable parameters are what is trained; they must be fp32. `texts` and `validation` are as encoded.
    """

    def __init__(
        self,
        model: Any,
        texts: Sequence[Encoded],
        validation: Sequence[Encoded],
        settings: recipe.Train,
        folder: Path,
    ) -> None:
        self.model, self.texts, self.settings, self.folder = model, texts, settings, folder
        self.device = next(model.parameters()).device
        self.steps = steps_for(settings, len(texts))
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        decayed = [p for p in self.parameters.values() if p.dim() > 1]
        plain = [p for p in self.parameters.values() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=settings.betas,
            fused=True,
        )
        packing.prepare(model)
        for module in model.modules():
            # bitsandbytes repacks NF4 weights for AVX-512 at the first measurement, and its kernel for them has no
            # backward: every gradient after that would be silently wrong.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        self.validation = [p.to(self.device) for p in packing.packs(validation, settings.pack)]
        half = torch.float16 if self.device.type == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16
        self.half = half

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.half)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the validation split's supervised tokens."""
        self.model.eval()
        total, count = 0.0, 0
        for packed in self.validation:
            with self._autocast():
                loss = packing.surprise(self.model, packed)
            total += float(loss.double().sum())
            count += len(loss)
        self.model.train()
        return total / count

    def _step(self, step: int) -> tuple[float, float, int]:
        """One optimizer step; returns loss, gradient norm and supervised tokens."""
        chosen = [self.texts[i] for i in order(step, self.settings.batch, len(self.texts), self.settings.seed)]
        rows: list[Pack] = packing.packs(chosen, self.settings.pack)
        targets = sum(text.targets for text in chosen)
        total = 0.0
        for packed in rows:
            with self._autocast():
                loss = packing.surprise(self.model, packed.to(self.device)).sum() / targets
            torch.autograd.backward(loss)
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.settings.clip))
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise ModelError(
                f"the loss became {total} at step {step + 1}",
                code="train-nan",
                where="conversations " + ", ".join(text.owner for text in chosen[:8]),
                hint="the last checkpoint is whole; lower train.learning_rate and run again",
            )
        rate = learning_rate(step, self.steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm, targets

    def run(self, what: str = "training") -> Outcome:
        """Train to the end; afterwards the model holds the weights to keep (best by validation, or last).

        Raises:
            ModelError: the loss became NaN or infinite; the last checkpoint is kept.
            KeyboardInterrupt, SystemExit(143): after SIGINT or SIGTERM, with a checkpoint written.
        """
        state: dict[str, Any] = {"best_step": 0, "best_validation": None, "seconds": 0.0, "targets": 0}
        start = 0
        if found := checkpoint.newest(self.folder / "checkpoints"):
            state |= checkpoint.load(found, self.parameters, self.optimizer)
            start = state["step"]
        else:
            torch.manual_seed(self.settings.seed)
        metrics = self.folder / "metrics.jsonl"
        rows = [row for row in _rows(metrics) if row["step"] <= start]
        loss = next((row["loss"] for row in reversed(rows) if "loss" in row), math.nan)
        write_atomically(metrics, "".join(json.dumps(row) + "\n" for row in rows))
        began = saved = time.monotonic()
        self.model.train()
        with (
            writing(self.folder),
            open(metrics, "a", encoding="utf-8") as log,
            console.progress(what, self.steps) as bar,
            _signals() as caught,
        ):

            def note(row: dict[str, Any]) -> None:
                log.write(json.dumps(row) + "\n")
                log.flush()

            bar.to(start, f"from step {start}" if start else "")
            if start == 0 and self.validation:
                state["best_validation"] = self.validate()
                note({"step": 0, "validation": state["best_validation"]})
                self._keep_best()
            for step in range(start, self.steps):
                tick = time.monotonic()
                loss, norm, targets = self._step(step)
                state["targets"] += targets
                done = step + 1
                note(
                    {
                        "step": done,
                        "loss": loss,
                        "norm": norm,
                        "rate": learning_rate(step, self.steps, self.settings),
                        "targets": targets,
                        "seconds": round(time.monotonic() - tick, 4),
                    }
                )
                if self.validation and (done % self.settings.validate_every == 0 or done == self.steps):
                    validation = self.validate()
                    note({"step": done, "validation": validation})
                    if validation < state["best_validation"]:
                        state["best_validation"], state["best_step"] = validation, done
                        self._keep_best()
                best = f" · validation {state['best_validation']:.3f}" if self.validation else ""
                bar.to(done, f"loss {loss:.3f}{best}")
                due = done % self.settings.save_every == 0 or time.monotonic() - saved > self.settings.save_seconds
                if due or done == self.steps or caught():
                    now = state | {"seconds": state["seconds"] + time.monotonic() - began}
                    checkpoint.save(self.folder / "checkpoints", done, self.parameters, self.optimizer, now)
                    saved = time.monotonic()
                if caught() and done < self.steps:
                    console.say(f"stopped at step {done} of {self.steps}; the same command continues from here")
                    raise KeyboardInterrupt if caught() == signal.SIGINT else SystemExit(143)
        seconds = state["seconds"] + time.monotonic() - began
        if self.validation and self.settings.keep == "best":
            best = load_file(self.folder / "best.safetensors")
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(best[name])
        self.model.eval()
        return Outcome(
            self.steps,
            loss,
            state["best_step"] if self.validation else self.steps,
            state["best_validation"],
            round(seconds, 2),
            round(state["targets"] / max(seconds, 1e-9), 1),
        )

    def _keep_best(self) -> None:
        partial = self.folder / ".best.safetensors"
        checkpoint.save_tensors(dict(self.parameters), partial)
        partial.replace(self.folder / "best.safetensors")


def _rows(path: Path) -> list[dict[str, Any]]:
    """The metrics written so far; a last line cut by a kill is dropped."""
    rows = []
    if path.exists():
        for line in path.read_text("utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return rows
