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
from warmline.messages import Conversation
from warmline.model import adapter, load, scratch
from warmline.model.template import Template
from warmline.model.texts import Texts, encode_all
from warmline.runs import read_jsonl, write_json
from warmline.train import checkpoint, shard
from warmline.train.group import Group
from warmline.train.loop import Loop
from warmline.train.plan import make_plan, this_machine
from warmline.train.samples import replies_of
from warmline.train.track import Tracker


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


def texts_of(settings: recipe.Recipe, data: Path, tokenizer: Any) -> tuple[Template, Texts, Texts]:
    """The training and the validation split of a data stage, as the model will see them."""
    template = Template.of(tokenizer, settings.prompt)
    train, validation = (
        encode_all(conversations(data / f"{split}.jsonl"), template, settings.prompt) for split in ("train", "val")
    )
    return template, train, validation


def model_to_train(settings: recipe.Recipe, device: str | None = None) -> Any:
    """The base with what is to be trained on it: every weight, or a new adapter."""
    if settings.adapter.method == "lora":
        return adapter.add_adapter(load.load_model(settings.base, device), settings.adapter, settings.train.seed)
    model = load.load_model(settings.base.model_copy(update={"load": "fp32"}), device)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def tune(
    settings: recipe.Recipe,
    data: Path,
    folder: Path,
    *,
    group: Group | None = None,
    made_from: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train as the recipe says; leave `adapter/` (or `model/` for the full method) and `metrics.jsonl` in `folder`.

    Work already done in `folder` by an interrupted run goes on where it stopped, if it was `made_from` the same.
    Returns a summary for the manifest. Of several processes the leading one writes.

    Raises:
        DataError: a split that is needed is empty.
        ModelError: the base cannot be loaded or does not fit the recipe.
        RunError: the work in `folder` was begun with other data, another base or other settings.
    """
    group, made_from = group or Group(), made_from or {}
    checkpoint.same(folder, made_from)
    tokenizer = load.load_tokenizer(settings.base)
    template, train, validation = texts_of(settings, data, tokenizer)
    plan = make_plan(settings, this_machine(group.size if group.split else 1), train, validation)
    for line in plan.short():
        console.say(line)
    for caution in plan.cautions:
        console.warn(caution)
    # What is to be split may be too large for one device: it goes there block by block, in slices.
    model = model_to_train(settings, "cpu" if group.split else None)
    size = load.size(model)
    names = settings.train.track if group.leads else ()
    loop = Loop(
        model,
        train.encoded,
        validation.encoded,
        settings.train.model_copy(update={"pack": plan.pack, "optimizer": plan.optimizer}),
        folder,
        group=group,
        replies=None if group.split else replies_of(model, template, settings.evaluate, settings.train.samples),
        tracker=Tracker(folder, names, settings.name, settings.train.model_dump(mode="json")),
        made_from=made_from,
        recompute=plan.recompute,
    )
    outcome = loop.run()
    full = settings.adapter.method == "full"
    weights = shard.gather(loop.parameters, torch.bfloat16 if full else torch.float32, group.leads)
    identity = load.identity(settings.base)
    if not group.leads:
        pass
    elif full:
        model.to(torch.bfloat16)
        model.config.dtype = torch.bfloat16
        with load.quiet():
            model.save_pretrained(folder / "model", state_dict=weights)
            tokenizer.save_pretrained(folder / "model")
        write_json(folder / "model" / "base.json", identity)
    else:
        adapter.save_adapter(model, folder / "adapter", identity, weights)
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
