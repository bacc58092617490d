"""The training loop: packed conversations in, better weights out, resumable at any step.

An optimizer step is a fixed number of conversations; its loss is the mean over all their supervised tokens, however
they are packed and over however many processes they are spread, so packing, accumulation and processes change nothing
but speed. Which conversations a step takes, and its dropout, are functions of seed and step alone. Knows nothing of
recipes' data section or of run folders.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from warmline import console, recipe
from warmline.errors import ModelError
from warmline.model import pack as packing
from warmline.model.load import half
from warmline.model.loss import Loss
from warmline.model.pack import Pack
from warmline.model.template import Encoded
from warmline.runs import writing
from warmline.train import checkpoint, lean, shard
from warmline.train.group import Group
from warmline.train.samples import Replies
from warmline.train.track import Tracker

LOST_IN_A_ROW = 5
"""So many steps without a finite loss in a row are no accident of one batch: the run stops."""


def steps_for(settings: recipe.Train, texts: int) -> int:
    """Optimizer steps of a run over `texts` texts."""
    return settings.steps or max(1, math.ceil(settings.epochs * texts / settings.batch))


def order(step: int, batch: int, texts: int, seed: int, groups: Sequence[str] = ()) -> list[int]:
    """Which texts the optimizer step `step` (from 0) takes: each epoch is a new permutation, none is skipped.

    With `groups`, a name for each text, those of one group come one after the other.

    >>> sorted(order(0, 2, 4, seed=1) + order(1, 2, 4, seed=1))
    [0, 1, 2, 3]
    """
    taken: list[int] = []
    place = step * batch
    while len(taken) < batch:
        epoch, start = divmod(place, texts)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        drawn = torch.randperm(texts, generator=generator).tolist()
        if groups:
            turn = {groups[text]: place for place, text in reversed(list(enumerate(drawn)))}
            drawn.sort(key=lambda text: turn[groups[text]])
        some = drawn[start : start + batch - len(taken)]
        taken += some
        place += len(some)
    return taken


def chosen(step: int, texts: Sequence[Encoded], settings: recipe.Train) -> list[int]:
    """Which of these texts the optimizer step `step` (from 0) takes, by the recipe's order."""
    groups = [text.group for text in texts] if settings.order == "grouped" else ()
    return order(step, settings.batch, len(texts), settings.seed, groups)


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
    loss: float | None
    best_step: int
    best_validation: float | None
    seconds: float
    targets_per_second: float
    left_out: list[int]
    """Steps without a finite loss that `train.on_nan` passed over."""


@dataclass(slots=True)
class State:
    """Where a training stands: what a checkpoint remembers beside tensors."""

    pack: int
    """Tokens computed at once; smaller than the recipe's after memory ran out."""
    step: int = 0
    loss: float | None = None
    validated: int = -1
    """The last step that was measured on the validation split."""
    best_step: int = 0
    best_validation: float | None = None
    waits: int = 0
    """Measurements since the best."""
    left_out: list[int] = field(default_factory=list)
    targets: int = 0
    seconds: float = 0.0


class _Stopped(Exception):
    """Somebody asked the training to stop, in mid-step; the step is forgotten."""


class _NotFinite(Exception):
    """A step's loss or gradient is NaN or infinite; nothing was changed."""


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


def _memory_ran_out(error: RuntimeError) -> bool:
    # A CPU's allocator has no exception of its own.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _optimizer(groups: list[dict[str, Any]], settings: recipe.Train, group: Group) -> torch.optim.Optimizer:
    if settings.optimizer != "adamw-8bit":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
    if group.split:
        raise ModelError(
            "8-bit averages cannot be split over processes: bitsandbytes does not know slices",
            code="launch-unsupported",
            hint="set train.optimizer to `adamw`: of a split model each process has its slice of the averages only",
        )
    from bitsandbytes.optim import PagedAdamW8bit

    made: torch.optim.Optimizer = PagedAdamW8bit(groups, lr=settings.learning_rate, betas=settings.betas)
    return made


class Loop:
    """One training, in `folder`. `run` starts it or goes on where the newest checkpoint stands.

    The model's trainable parameters are what is trained; they must be fp32. `texts` and `validation` are as encoded.
    `made_from` is kept in every checkpoint (see `checkpoint.same`). Every process of a `group` has its own Loop over
    the same texts and folder; the leading one alone writes. With `recompute` a block keeps only its input for the
    backward pass and is computed again there: less memory, more time, the same step.
    """

    def __init__(
        self,
        model: Any,
        texts: Sequence[Encoded],
        validation: Sequence[Encoded],
        settings: recipe.Train,
        folder: Path,
        *,
        group: Group | None = None,
        replies: Replies | None = None,
        tracker: Tracker | None = None,
        made_from: dict[str, Any] | None = None,
        recompute: bool = False,
    ) -> None:
        self.model, self.texts, self.settings, self.folder = model, texts, settings, folder
        self.group = group or Group()
        self.replies, self.made_from = replies, made_from or {}
        self.tracker = (tracker or Tracker(folder)) if self.group.leads else None
        self.checkpoints = folder / "checkpoints"
        self.steps = steps_for(settings, len(texts))
        packing.prepare(model)
        for module in model.modules():
            # bitsandbytes repacks NF4 weights for AVX-512 at the first measurement, and its kernel for them has no
            # backward: every gradient after that would be silently wrong.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        lean.install(model)
        self.loss = Loss(model)
        if recompute:
            self.loss.base.activation_checkpointing_enable({"use_reentrant": False})
        if self.group.split:
            shard.split(model)
        self.device = next(model.parameters()).device
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        decayed = [p for p in self.parameters.values() if p.dim() > 1]
        plain = [p for p in self.parameters.values() if p.dim() <= 1]
        self.optimizer = _optimizer(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            settings,
            self.group,
        )
        self.validation = [
            (packed.to(self.device), real) for packed, real in self._rows(validation, settings.pack_tokens)
        ]
        self.validates = bool(validation)
        self.half = half(self.device.type)
        self.state = State(settings.pack_tokens)
        self.caught: Callable[[], int] = lambda: 0

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.half)

    def _stop_if_asked(self) -> None:
        """Leave in mid-step. Of several processes none may: the others would wait for it."""
        if self.group.size == 1 and self.caught():
            raise _Stopped

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the validation split's supervised tokens."""
        self.model.eval()
        total, count = 0.0, 0
        try:
            for packed, real in self.validation:
                self._stop_if_asked()
                with self._autocast():
                    total += float(self.loss(packed)) * real
                count += len(packed.labels) * real
        finally:
            self.model.train()
        summed, counted = self.group.total(total, count)
        return summed / counted

    def _chosen(self, step: int) -> list[Encoded]:
        return [self.texts[i] for i in chosen(step, self.texts, self.settings)]

    def _rows(self, texts: Sequence[Encoded], capacity: int) -> list[tuple[Pack, bool]]:
        """This process's share of the texts in packs, and whether each counts.

        The processes of a split model run it equally often: those with less to do repeat what does not count.
        """
        mine = self.group.mine(texts)
        if not self.group.split:
            return [(packed, True) for packed in packing.packs(mine, capacity, self.settings.share_prefixes)]
        if not packing.at_once(self.model):  # runs once for each conversation of a pack
            rows = [packing.pack([text]) for text in mine]
        else:
            rows = packing.packs(mine, capacity, self.settings.share_prefixes)
        idle = self.group.most(len(rows)) - len(rows)
        shortest = [packing.pack([min(texts, key=len)])] if idle else []
        return [(packed, True) for packed in rows] + [(packed, False) for packed in shortest * idle]

    def _gradients(self, step: int) -> tuple[float, int]:
        """This process's share of a step: its summed loss, its supervised tokens; gradients are on the parameters.

        When memory runs out the share is computed anew in smaller packs: slower, and the same step.
        """
        texts = self._chosen(step)
        mine = self.group.mine(texts)
        while True:
            torch.manual_seed((self.settings.seed * 1_000_003 + step) * self.group.size + self.group.rank)
            rows = self._rows(texts, self.state.pack)
            total = 0.0
            try:
                for packed, real in rows:
                    self._stop_if_asked()
                    total += self._one_pack(packed, real)
                return total, sum(text.targets for text in mine)
            except RuntimeError as error:
                if not _memory_ran_out(error):
                    raise
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if self.group.split or all(packed.single for packed, _ in rows):
                longest = max(packed.ids.shape[1] for packed, _ in rows)
                raise ModelError(
                    f"{longest:,} tokens at once do not fit into memory",
                    code="fit-memory",
                    hint="lower prompt.context, set base.load to `nf4`, or lower adapter.rank"
                    + (", or train.pack" if self.group.split else ""),
                )
            self.state.pack = max(packed.ids.shape[1] for packed, _ in rows) // 2
            console.warn(
                f"memory ran out at step {step + 1}: computing {self.state.pack:,} tokens at once from here on"
            )

    def _one_pack(self, packed: Pack, real: bool = True) -> float:
        """Forward and backward; nothing of a pack outlives this call but its gradients."""
        with self._autocast():
            loss = self.loss(packed.to(self.device))
            if not real:
                loss = loss * 0
        torch.autograd.backward(loss)
        return float(loss.detach())

    def _step(self, step: int) -> tuple[float, float, int]:
        """One optimizer step; returns loss, gradient norm and supervised tokens.

        Raises:
            _NotFinite: loss or norm is; weights and optimizer are as they were.
        """
        try:
            total, targets = self._gradients(step)
            gradients = []
            for parameter in self.parameters.values():
                if parameter.grad is None and self.group.size > 1:
                    parameter.grad = torch.zeros_like(parameter)
                if parameter.grad is not None:
                    gradients.append(parameter.grad)
            if not self.group.split:  # there they arrive added up
                self.group.add_up(gradients)
            summed, counted = self.group.total(total, targets)
            torch._foreach_div_(gradients, counted)
            length = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.settings.clip)
            norm = float(shard.whole(length))
            loss = summed / counted
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise _NotFinite
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(step, self.steps, self.settings)
            self.optimizer.step()
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        self.state.pack = self.group.least(self.state.pack)
        return loss, norm, int(counted)

    def run(self, what: str = "training") -> Outcome:
        """Train to the end; afterwards the model holds the weights to keep (best by validation, or last).

        Raises:
            ModelError: the loss became NaN or infinite and may not be passed over, or one conversation alone needs
                more memory than there is; the last checkpoint is kept.
            KeyboardInterrupt, SystemExit(143): after SIGINT or SIGTERM, with a checkpoint written.
        """
        with writing(self.folder), console.progress(what, self.steps) as bar, _signals() as self.caught:
            self._restore()
            self._bar = bar
            self._began = self._saved_at = time.monotonic()
            self._earlier = self.state.targets, self.state.seconds
            bar.to(self.state.step, f"from step {self.state.step}" if self.state.step else "")
            self.model.train()
            finished = False
            while not finished:
                state = self.state
                try:
                    if self._validation_is_due() and not self.group.most(self.caught()):
                        self._measure()
                    over = self._ended_early() or state.step == self.steps
                    finished = over and not self._validation_is_due()
                    number = self.group.most(self.caught())
                    if finished or number or self._save_is_due():
                        self._save()
                    if number:
                        console.say(f"stopped at step {state.step} of {self.steps}; the same command goes on from here")
                        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(143)
                    if not finished:
                        self._advance()
                except _Stopped:
                    continue  # the next turn saves and leaves
            self._show()
        self.group.wait()
        if self.tracker:
            self.tracker.plot()
            self.tracker.close()
        self._take_best()
        self.model.eval()
        state = self.state
        return Outcome(
            state.step,
            state.loss,
            state.best_step if self.validates else state.step,
            state.best_validation,
            round(state.seconds, 2),
            round(state.targets / max(state.seconds, 1e-9), 1),
            state.left_out,
        )

    def _restore(self) -> None:
        """Be where the newest checkpoint stands, or at the beginning."""
        self.state = State(self.settings.pack_tokens)
        if found := checkpoint.newest(self.checkpoints):
            saved = checkpoint.load(found, self.parameters, self.optimizer)
            self.state = State(**{f.name: saved[f.name] for f in fields(State) if f.name in saved})
        self._unsaved, self._saved_step = found is None, self.state.step
        if self.tracker:
            self.tracker.begin(self.state.step, self.state.validated)
        self.group.wait()

    def _validation_is_due(self) -> bool:
        step = self.state.step
        place = step % self.settings.validate_every == 0 or step == self.steps
        return self.validates and place and self.state.validated != step

    def _ended_early(self) -> bool:
        return self.settings.patience is not None and self.state.waits >= self.settings.patience

    def _measure(self) -> None:
        """Validation loss and sample replies at the step where we stand."""
        state = self.state
        validation = self.validate()
        replies = self.replies(self.caught) if self.replies and self.tracker else []
        self._stop_if_asked()
        state.validated = state.step
        if math.isfinite(validation) and (state.best_validation is None or validation < state.best_validation):
            state.best_validation, state.best_step, state.waits = validation, state.step, 0
            self._unsaved = self._unsaved or self.settings.keep == "best"
        else:
            state.waits += 1
        if self.tracker:
            self.tracker.note({"step": state.step, "validation": validation})
            self.tracker.samples([{"step": state.step, **reply} for reply in replies])
            if state.step:
                self.tracker.plot()
        loss = f"loss {state.loss:.3f} · " if state.loss is not None else ""
        best = ""
        if state.best_validation is not None and state.waits:
            best = f" (best {state.best_validation:.3f} at step {state.best_step})"
        console.say(f"step {state.step} of {self.steps} · {loss}validation {validation:.3f}{best}{self._pace()}")

    def _show(self) -> None:
        loss = f"loss {self.state.loss:.3f}" if self.state.loss is not None else ""
        best = f" · validation {self.state.best_validation:.3f}" if self.state.best_validation is not None else ""
        self._bar.to(self.state.step, f"{loss}{best}{self._pace()}")

    def _pace(self) -> str:
        """Supervised tokens a second since this process began, for the bar."""
        seconds, targets = time.monotonic() - self._began, self.state.targets - self._earlier[0]
        return f" · {targets / seconds:,.0f} supervised tokens/s" if targets else ""

    def _save_is_due(self) -> bool:
        if self._unsaved or time.monotonic() - self._saved_at > self.settings.save_seconds:
            return True
        return self.state.step % self.settings.save_every == 0 and self.state.step != self._saved_step

    def _save(self) -> None:
        self._saved_at, self._unsaved, self._saved_step = time.monotonic(), False, self.state.step
        self.state.seconds = self._earlier[1] + time.monotonic() - self._began
        if self.group.leads or self.group.split:
            kept = asdict(self.state) | {"made_from": self.made_from}
            where, leads = self.checkpoints, self.group.leads
            checkpoint.save(where, self.state.step, self.parameters, self.optimizer, kept, leads)

    def _advance(self) -> None:
        """Take the next step, or pass it over as the recipe says when its loss is not finite."""
        state = self.state
        step, tick = state.step, time.monotonic()
        if step in state.left_out:
            state.step += 1
            if self.tracker:
                self.tracker.note({"step": state.step, "left_out": [text.owner for text in self._chosen(step)]})
            return
        try:
            state.loss, norm, targets = self._step(step)
        except _NotFinite:
            self._pass_over(step)
            return
        state.step += 1
        state.targets += targets
        if self.tracker:
            self.tracker.note(
                {
                    "step": state.step,
                    "loss": state.loss,
                    "norm": norm,
                    "rate": learning_rate(step, self.steps, self.settings),
                    "targets": targets,
                    "seconds": round(time.monotonic() - tick, 4),
                }
            )
        self._show()

    def _pass_over(self, step: int) -> None:
        """See that a step without a finite loss is left out.

        Raises:
            ModelError: the recipe says stop, or it is no accident of one batch.
        """
        owners = [text.owner for text in self._chosen(step)]
        named = ", ".join(owners[:8]) + (f" and {len(owners) - 8} more" if len(owners) > 8 else "")
        left_out = [*self.state.left_out, step]
        in_a_row = set(range(step - LOST_IN_A_ROW + 1, step + 1)) <= set(left_out)
        if self.settings.on_nan == "stop" or in_a_row:
            raise ModelError(
                f"the loss is not a finite number at step {step + 1}",
                code="train-nan",
                where=f"conversations {named}",
                hint="the last checkpoint is whole; lower train.learning_rate, or set train.on_nan to `skip`",
            )
        if self.settings.on_nan == "rollback":
            self._restore()
        console.warn(f"step {step + 1} has no finite loss and is left out (conversations {named})")
        self.state.left_out = left_out

    def _take_best(self) -> None:
        """Give the model the best weights; without a sound copy of them it keeps the last."""
        if self.settings.keep == "last" or self.state.best_validation is None:
            return
        best = checkpoint.at(self.checkpoints, self.state.best_step)
        if checkpoint.whole(best):
            checkpoint.load_weights(best, self.parameters)
        else:
            console.warn(f"the weights of step {self.state.best_step} are damaged; the last ones are kept instead")
            self.state.best_step, self.state.best_validation = self.state.step, None
