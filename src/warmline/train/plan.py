"""The plan of a training, made before it: sizes, memory by part, steps, time, disk, what a careful reader would say.

Knows the machine by its memory and speed only, so a plan can be made for one that is elsewhere. What cannot fit is
refused here, with numbers, and not an hour later.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from warmline import recipe
from warmline.errors import DataError, ModelError
from warmline.model.load import half
from warmline.model.loss import PIECE
from warmline.model.outline import Outline, outline
from warmline.model.texts import Texts
from warmline.runs import MANIFEST
from warmline.train.checkpoint import KEEP
from warmline.train.loop import steps_for

GB = 1e9
MEMORISED_EPOCHS = 10
"""Passes over a small corpus from which on the loss says more about memory than about skill (seed 002: 119)."""
RATES = {"lora": (1e-5, 1e-3), "full": (1e-7, 1e-4)}
"""Learning rates that have been seen to work."""
SIZES = (8192, 4096, 2048, 1024, 512, 256)
"""Packs that `train.pack: auto` tries. Beyond 2048 tokens a CPU gains nothing, beyond 8192 nobody does."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What trains: memory in bytes that a program can have, products a second (two operations each count as two)."""

    name: str
    memory: float
    rate: float
    share: float
    """Part of `rate` that a training is assumed to get."""
    cuda: bool = True
    bf16: bool = True
    slices: int = 1
    """Processes that a model is split over."""

    def without_limit(self) -> Machine:
        """The same with any memory one likes."""
        return replace(self, memory=float("inf"))


def _gpu(name: str, gib: float, tera: float, bf16: bool = True) -> Machine:
    return Machine(name, gib * 2**30, tera * 1e12, 0.3, bf16=bf16)


GPUS = {
    "t4": _gpu("T4 16 GB", 14.6, 65, bf16=False),
    "v100": _gpu("V100 16 GB", 15.8, 125, bf16=False),
    "rtx2060": _gpu("RTX 2060 6 GB", 5.8, 26, bf16=False),
    "rtx3060": _gpu("RTX 3060 12 GB", 11.6, 25),
    "rtx3090": _gpu("RTX 3090 24 GB", 23.5, 71),
    "rtx4090": _gpu("RTX 4090 24 GB", 23.5, 165),
    "a10": _gpu("A10 24 GB", 22.0, 125),
    "l4": _gpu("L4 24 GB", 22.0, 121),
    "a100": _gpu("A100 40 GB", 39.4, 312),
    "a100-80": _gpu("A100 80 GB", 79.1, 312),
    "h100": _gpu("H100 80 GB", 79.1, 989),
    "h200": _gpu("H200 141 GB", 139.8, 989),
}
"""Memory a program sees, and the makers' dense 16-bit rates."""


def known_gpu(name: str) -> Machine | None:
    """The GPU of which the driver says this name.

    >>> known_gpu("NVIDIA A100-SXM4-80GB").name, known_gpu("NVIDIA L40S")
    ('A100 40 GB', None)
    """
    spoken_of = re.split(r"[^a-z0-9]+", name.lower().replace("rtx ", "rtx"))
    return next((gpu for key, gpu in GPUS.items() if key in spoken_of), None)


def this_machine(slices: int = 1) -> Machine:
    """The GPU of this machine, else its CPU, with the memory that is free now; a CPU's rate is measured."""
    if torch.cuda.is_available():
        name, free = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
        known = known_gpu(name)
        return Machine(name, free, known.rate if known else 100e12, 0.3, True, half("cuda") == torch.bfloat16, slices)
    return Machine("this CPU", psutil.virtual_memory().available, _cpu_rate(), 0.6, cuda=False, slices=slices)


def _cpu_rate() -> float:
    """Operations a second of a bf16 matrix product, the best of a few."""
    a, b = (torch.ones(512, 1024, dtype=torch.bfloat16), torch.ones(1024, 1024, dtype=torch.bfloat16))
    times = []
    for _ in range(4):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return 2 * 512 * 1024 * 1024 / min(times)


@dataclass(frozen=True, slots=True)
class Way:
    """How a training keeps to the memory there is; none changes what a step takes in."""

    pack: int
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    recompute: bool = False
    """Whether a block keeps its input only and is computed again for the backward pass."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training will be. Bytes, seconds, tokens; None where nothing is known."""

    name: str
    machine: str
    base: str
    parameters: int
    trained: int
    pack: int
    optimizer: str
    recompute: bool
    memory: dict[str, float]
    available: float
    disk: float
    batch: int
    steps: int | None = None
    epochs: float | None = None
    conversations: int | None = None
    tokens: int | None = None
    supervised: float | None = None
    split: float | None = None
    left_out: float | None = None
    seconds: float | None = None
    timed: Literal["measured", "assumed"] = "assumed"
    cautions: list[str] = field(default_factory=list)

    @property
    def needed(self) -> float:
        return sum(self.memory.values())

    def timed_by(self, rate: float, settings: recipe.Recipe, train: Texts, validation: Texts) -> Plan:
        """The same plan, its time told from `rate` measured tokens a second."""
        return replace(self, seconds=computed_tokens(settings, train, validation) / rate, timed="measured")

    def short(self) -> Iterator[str]:
        """The plan in a few lines, before a training."""
        trained = f"{self.trained / 1e6:,.2f} M trained ({self.trained / self.parameters:.2%})"
        yield f"{self.base}: {self.parameters / 1e6:,.1f} M parameters, {trained}"
        if self.tokens and self.steps:
            yield (
                f"{self.conversations:,} conversations, {self.tokens:,} tokens, {self.supervised:.0%} of them "
                f"supervised; {self.steps:,} steps of {self.batch} are {self.epochs:.3g} epochs"
            )
        about = f", about {spoken(self.seconds)}" if self.seconds else ""
        yield (
            f"{self.machine}: about {self.needed / GB:.1f} of {self.available / GB:.1f} GB "
            f"at {self.pack:,} tokens at once{about}"
        )
        if self.recompute:
            yield "to fit, every block is computed again for the backward pass"
        if self.optimizer != "adamw":
            yield "AdamW's averages are kept in 8 bits"


def spoken(seconds: float) -> str:
    """A length of time as one says it.

    >>> spoken(95), spoken(5400)
    ('2 min', '1.5 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def make_plan(
    settings: recipe.Recipe, machine: Machine, train: Texts | None = None, validation: Texts | None = None
) -> Plan:
    """Plan a training on `machine`; without `train` its tokens and time stay open.

    Raises:
        DataError: no conversation fits the context, or a validation split is asked for and is empty.
        ModelError: the base is not known, the adapter does not fit it, or the machine is too small; the message then
            names a setting that would do.
    """
    _check_texts(settings, train, validation)
    sizes = outline(settings.base, settings.adapter)
    longest = max((len(text) for text in train.encoded), default=0) if train else settings.prompt.context
    way = _fitting(settings, sizes, machine, longest)
    memory = memory_by_part(settings, sizes, machine, way.pack, longest, way)
    if sum(memory.values()) > machine.memory:
        raise _too_large(settings, sizes, machine, longest, memory)
    plan = Plan(
        name=settings.name,
        machine=machine.name,
        base=f"{settings.base.model} in {_precision(settings)}",
        parameters=sizes.total,
        trained=sizes.trained,
        pack=way.pack,
        optimizer=way.optimizer,
        recompute=way.recompute,
        memory=memory,
        available=machine.memory,
        # A checkpoint has the weights and AdamW's two averages; the best may be older than those kept; one is written.
        disk=(2 * KEEP + 1) * sizes.trained * 12 + sizes.trained * 4,
        batch=settings.train.batch,
        steps=settings.train.steps,
    )
    if train:
        steps = steps_for(settings.train, len(train.encoded))
        plan = replace(
            plan,
            steps=steps,
            epochs=steps * settings.train.batch / len(train.encoded),
            conversations=train.conversations,
            tokens=train.tokens,
            supervised=train.targets / train.tokens,
            split=train.split / train.conversations,
            left_out=train.left_out / train.conversations,
            seconds=computed_tokens(settings, train, validation)
            * operations(settings, sizes, train, way.recompute)
            / (machine.rate * machine.share),
        )
    return replace(plan, cautions=[*cautions(settings, train, validation), *_of_machine(settings, sizes, machine)])


def _precision(settings: recipe.Recipe) -> str:
    return "fp32" if settings.adapter.method == "full" else settings.base.load


def memory_by_part(
    settings: recipe.Recipe, sizes: Outline, machine: Machine, pack: int, longest: int, way: Way | None = None
) -> dict[str, float]:
    """Bytes at the highest point of a step that computes `pack` tokens at once, or its longest conversation alone."""
    way = way or Way(pack)
    tokens = max(pack, longest)
    load = _precision(settings)
    # NF4: half a byte, and for 64 of them a scale of 4 bytes, or of 1 byte with 4 bytes for 256 scales.
    scale = 1 / 64 + 4 / (64 * 256) if settings.base.double_quant else 4 / 64
    stored = {"nf4": 0.5 + scale, "int8": 1.0, "bf16": 2.0, "fp32": 4.0}[load]
    plain = 4.0 if load == "fp32" else 2.0
    full = settings.adapter.method == "full"
    kept = 2.0 * sizes.kept + (0 if machine.cuda else 4.0 * sizes.attended)  # on a CPU attention is computed in fp32
    if settings.adapter.dora:
        kept *= 2
    elif settings.adapter.dropout:
        kept += sizes.kept / 3  # a mask of a byte for each input
    kept += 4.0 * sizes.scores * longest
    if way.recompute:
        kept = kept / sizes.layers + plain * sizes.width * sizes.layers
    slices, trained = machine.slices, sizes.trained / machine.slices
    weights = stored * sizes.matrices, plain * (sizes.total - sizes.matrices)
    # Of a split model a process has its slice, two blocks whole, and what lies around the blocks.
    around = (2 * weights[0] / sizes.layers + weights[1]) if slices > 1 else 0.0
    piece = min(PIECE, tokens * sizes.vocabulary)
    return {
        "weights": sum(weights) / slices + around,
        "adapter": 0.0 if full else 4.0 * trained,
        "gradients": 4.0 * trained + (around if full else 0.0),
        "optimizer": (8.0 if way.optimizer == "adamw" else 2.04) * trained,
        "activations": tokens * (kept + 4.0 * sizes.width),
        "working space": 2.0 * sizes.largest + tokens * 6.0 * sizes.widest,
        "logits": piece * (10.0 if machine.cuda else 2.0) + (4.0 * sizes.width * sizes.vocabulary if full else 0),
        "the program": 0.7e9,
    }


def _fitting(settings: recipe.Recipe, sizes: Outline, machine: Machine, longest: int) -> Way:
    """The fastest way that fits, else the leanest. Computing blocks again costs most time and is the last resort."""
    chosen = settings.train
    packs = SIZES[0 if machine.cuda else 2 :] if chosen.pack == "auto" else (chosen.pack,)
    optimizers: list[Literal["adamw", "adamw-8bit"]] = ["adamw" if chosen.optimizer == "auto" else chosen.optimizer]
    if chosen.optimizer == "auto" and machine.cuda and machine.slices == 1:
        optimizers.append("adamw-8bit")
    ways = [Way(pack, kind, again) for again in (False, True) for kind in optimizers for pack in packs]

    def fits(way: Way) -> bool:
        return sum(memory_by_part(settings, sizes, machine, way.pack, longest, way).values()) <= machine.memory

    return next(filter(fits, ways), ways[-1])


def _too_large(
    settings: recipe.Recipe, sizes: Outline, machine: Machine, longest: int, memory: dict[str, float]
) -> ModelError:
    """The refusal, with the first remedy that is enough; each adds to those before it."""
    tree = settings.model_dump(mode="json")
    named: list[str] = []
    hint = "no setting makes this base fit: choose a smaller one, or a larger machine"
    remedies: list[tuple[str, str, Any]] = [
        ("train", "pack", "auto"),
        ("adapter", "method", "lora"),
        ("base", "load", "nf4"),
        *(("prompt", "context", size) for size in (1024, 512, 256) if size < longest),
        ("adapter", "rank", min(8, settings.adapter.rank)),
    ]
    alone = [[remedy] for remedy in remedies]
    together = [remedies[: stop + 1] for stop in range(1, len(remedies))]
    for tried in [*alone, *together]:
        changed = {name: dict(section) if isinstance(section, dict) else section for name, section in tree.items()}
        for section, key, value in tried:
            changed[section][key] = value
        new = recipe.parse(changed)
        new_sizes = replace(sizes, trained=sizes.trained * new.adapter.rank // settings.adapter.rank)
        if new.adapter.method != settings.adapter.method:
            new_sizes = outline(new.base, new.adapter)
        most = min(longest, new.prompt.context)
        way = _fitting(new, new_sizes, machine, most)
        need = sum(memory_by_part(new, new_sizes, machine, way.pack, most, way).values())
        if need <= machine.memory:
            named = [f"{s}.{k}: {v}" for s, k, v in _last(tried) if tree[s][k] != v]
            hint = f"with {' and '.join(named)} it takes {need / GB:.1f} GB"
            break
    parts = ", ".join(f"{part} {size / GB:.1f}" for part, size in memory.items() if size >= 0.05 * GB)
    return ModelError(
        f"this training takes about {sum(memory.values()) / GB:.1f} GB and {machine.name} has "
        f"{machine.memory / GB:.1f} GB",
        code="fit-memory",
        where=f"GB: {parts}",
        hint=hint,
    )


def _last(remedies: Sequence[tuple[str, str, Any]]) -> Sequence[tuple[str, str, Any]]:
    """The remedies without those that a later one overrides."""
    return list({(section, key): (section, key, value) for section, key, value in remedies}.values())


def operations(settings: recipe.Recipe, sizes: Outline, train: Texts, again: bool = False) -> float:
    """Arithmetic operations for a token: forward and backward through every matrix, the head where supervised.

    A frozen matrix costs two operations a parameter forward and two backward, a trained one two more; two more if
    blocks are computed `again`.
    """
    trained_too = 6 if settings.adapter.method == "full" else 4
    head = sizes.width * sizes.vocabulary * train.targets / train.tokens
    update = 6 * sizes.trained if trained_too == 4 else 0
    return trained_too * (sizes.matrices + head) + 2 * again * sizes.matrices + update


def computed_tokens(settings: recipe.Recipe, train: Texts, validation: Texts | None) -> float:
    """Tokens of all steps, and of all measurements on the validation split, which have no backward pass, half of."""
    steps = steps_for(settings.train, len(train.encoded))
    each = train.tokens / len(train.encoded) * settings.train.batch
    measured = validation.tokens * (steps // settings.train.validate_every + 1) / 2 if validation else 0
    return steps * each + measured


def _check_texts(settings: recipe.Recipe, train: Texts | None, validation: Texts | None) -> None:
    if train and not train.encoded:
        raise DataError(
            f"no conversation fits {settings.prompt.context} tokens", code="data-empty", hint="raise prompt.context"
        )
    if validation and not validation.encoded and settings.data.validation:
        raise DataError(
            f"the validation split is empty: {validation.conversations} conversations, none of which fits "
            f"{settings.prompt.context} tokens",
            code="data-split",
            hint="raise prompt.context or data.validation; data.validation: 0 trains without one",
        )


def cautions(settings: recipe.Recipe, train: Texts | None, validation: Texts | None) -> list[str]:
    """What a careful reader would say of the settings and the data before the run starts."""
    found = []
    chosen, steps = settings.train, settings.train.steps
    if train:
        steps = steps_for(chosen, len(train.encoded))
        epochs = steps * chosen.batch / len(train.encoded)
        if settings.adapter.method == "lora" and epochs > MEMORISED_EPOCHS:
            found.append(
                f"{epochs:.0f} passes over {len(train.encoded):,} texts: the model will learn them by heart; "
                "judge it by the held-out split, not by the training loss"
            )
        if train.split or train.left_out:
            found.append(
                f"{train.split:,} conversations were split at turn boundaries and {train.left_out:,} exchanges left "
                f"out to fit {settings.prompt.context:,} tokens"
            )
    if not settings.data.validation or (validation and not validation.encoded):
        found.append("there is no validation split, so memorising cannot be told from learning")
    if chosen.warmup and chosen.schedule == "constant":
        found.append("warm-up before a constant schedule only delays it")
    elif chosen.warmup and steps and round(chosen.warmup * steps) < 1:
        found.append(f"a warm-up of {chosen.warmup:g} is no step of {steps}: it has no effect")
    low, high = RATES[settings.adapter.method]
    from_nothing = settings.base.model == "new" or (Path(settings.base.model) / MANIFEST).exists()
    if not from_nothing and not low <= chosen.learning_rate <= high:
        found.append(
            f"a learning rate of {chosen.learning_rate:g} is outside {low:g} to {high:g}, where "
            f"{'adapters' if settings.adapter.method == 'lora' else 'whole models'} are known to learn"
        )
    if settings.prompt.supervise == "all" and settings.adapter.method == "lora":
        found.append("the loss is on the visitor's words too: the model learns to write them")
    if settings.prompt.template == "seed":
        found.append("the seed's own form of the text is used, faults included")
    return found


def _of_machine(settings: recipe.Recipe, sizes: Outline, machine: Machine) -> list[str]:
    found = []
    if not machine.bf16:
        found.append(f"{machine.name} has no bf16: products are computed in fp16, whose small numbers end sooner")
    if sizes.context and settings.prompt.context > sizes.context:
        found.append(
            f"prompt.context is {settings.prompt.context:,} and the base was made for {sizes.context:,} tokens: what "
            "lies beyond is guessed"
        )
    if settings.base.trust_remote_code and not settings.base.revision:
        found.append("the base's own code is run and base.revision does not say which: pin it")
    return found
