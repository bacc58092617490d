"""From a finished data stage to an adapter (or a whole model) on disk: what `warmline train` does after the data.

Knows nothing of measuring base against tuned; that is `evaluate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from warmline import console, recipe
from warmline.errors import DataError
from warmline.messages import Conversation
from warmline.model import adapter, load, scratch
from warmline.model.template import Template
from warmline.model.texts import Texts, encode_all
from warmline.runs import read_jsonl, write_json
from warmline.train.loop import Loop, steps_for

MEMORISED_EPOCHS = 10
"""Passes over a small corpus from which on the loss says more about memory than about skill (seed 002: 116)."""


def conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of one split of a data stage."""
    return (Conversation.from_json(row) for row in read_jsonl(path))


def words(rows: Iterable[Conversation]) -> Iterator[str]:
    return (message.content for row in rows for message in row.messages)


def prepare_base(settings: recipe.Recipe, data: Path, folder: Path) -> dict[str, Any]:
    """Make the untrained base of `base.model: new`: a tokenizer learnt from the training split, random weights."""
    shape = settings.base.new
    tokenizer = scratch.make_tokenizer(words(conversations(data / "train.jsonl")), shape.vocabulary, shape.context)
    scratch.make_base(shape, tokenizer, folder, settings.train.seed)
    return {"vocabulary": len(tokenizer), "shape": shape.model_dump()}


def cautions(settings: recipe.Recipe, train: Texts, validation: Texts) -> list[str]:
    """What a careful reader would say before the run starts."""
    steps = steps_for(settings.train, len(train.encoded))
    epochs = steps * settings.train.batch / len(train.encoded)
    found = []
    if settings.adapter.method == "lora" and epochs > MEMORISED_EPOCHS:
        found.append(
            f"{epochs:.0f} passes over {len(train.encoded):,} texts: the model will learn them by heart; "
            "judge it by the held-out split, not by the training loss"
        )
    if not validation.encoded:
        found.append("there is no validation split, so memorising cannot be told from learning")
    if settings.train.warmup and settings.train.schedule == "constant":
        found.append("warm-up before a constant schedule only delays it")
    if train.split or train.left_out:
        found.append(
            f"{train.split:,} conversations were split at turn boundaries and {train.left_out:,} exchanges left out "
            f"to fit {settings.prompt.context:,} tokens"
        )
    if settings.prompt.supervise == "all" and settings.adapter.method == "lora":
        found.append("the loss is on the visitor's words too: the model learns to write them")
    return found


def tune(settings: recipe.Recipe, data: Path, folder: Path) -> dict[str, Any]:
    """Train as the recipe says; leave `adapter/` (or `model/` for the full method) and `metrics.jsonl` in `folder`.

    Work already done in `folder` by an interrupted run goes on where it stopped. Returns a summary for the manifest.

    Raises:
        DataError: a split that is needed is empty.
        ModelError: the base cannot be loaded or does not fit the recipe.
    """
    tokenizer = load.load_tokenizer(settings.base)
    template = Template(tokenizer, settings.prompt.template, settings.prompt.system)
    train = encode_all(conversations(data / "train.jsonl"), template, settings.prompt)
    validation = encode_all(conversations(data / "val.jsonl"), template, settings.prompt)
    if not train.encoded:
        raise DataError(
            f"no conversation fits {settings.prompt.context} tokens",
            code="data-empty",
            hint="raise prompt.context",
        )
    for caution in cautions(settings, train, validation):
        console.warn(caution)
    full = settings.adapter.method == "full"
    base = settings.base.model_copy(update={"load": "fp32"}) if full else settings.base
    model = load.load_model(base)
    if full:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
    else:
        model = adapter.add_adapter(model, settings.adapter, settings.train.seed)
    size = load.size(model)
    console.say(
        f"{settings.base.model} in {base.load}: {size.total / 1e6:,.1f} M parameters, "
        f"{size.trainable / 1e6:,.2f} M trained; {train.tokens:,} tokens, {train.targets:,} of them targets"
    )
    outcome = Loop(model, train.encoded, validation.encoded, settings.train, folder).run()
    identity = load.identity(settings.base)
    if full:
        model.to(torch.bfloat16)
        model.config.dtype = torch.bfloat16
        with load.quiet():
            model.save_pretrained(folder / "model")
            tokenizer.save_pretrained(folder / "model")
        write_json(folder / "model" / "base.json", identity)
    else:
        adapter.save_adapter(model, folder / "adapter", identity)
    steps = outcome.steps
    return asdict(outcome) | {
        "base": identity,
        "parameters": size.total,
        "trained": size.trainable,
        "epochs": round(steps * settings.train.batch / len(train.encoded), 2),
        "train": train.summary(),
        "validation": validation.summary(),
        "template": template.kind,
    }
