"""A run that is ready to be measured, made without training: an adapter with random weights on a tiny base."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from warmline import recipe
from warmline.messages import Conversation, Message
from warmline.model import adapter, load
from warmline.runs import Run, write_atomically, write_json, write_jsonl

WORDS = tuple(
    "kettle night bus shift rota mother work sleep quiet winter letter kitchen window harbour ward garden school "
    "morning brother phone street rain music dog train paper doctor money cold tea".split()
)


def conversation(number: int, split: str) -> Conversation:
    """Two messages that share no long sequence of words with any other."""
    draw = random.Random(f"{split} {number}")
    asked = f"I keep thinking of {' and the '.join(draw.sample(WORDS, 7))}."
    said = f"What is it about {' and the '.join(draw.sample(WORDS, 5))} that stays with you?"
    return Conversation(f"{split}-{number}", (Message("user", asked), Message("assistant", said)))


def make_run(folder: Path, source: Path, *, epochs: float = 2.0) -> tuple[Run, recipe.Recipe]:
    """Ten held-out conversations; the first of them stands in the training split too."""
    tree = {
        "name": folder.name,
        "base": {"model": str(source), "load": "fp32"},
        "adapter": {"rank": 4, "alpha": 8},
        "prompt": {"context": 200},
        "evaluate": {"prompts": ["I cannot sleep.", "Hello."], "new_tokens": 8},
    }
    settings = recipe.parse(tree)
    run = Run.create(folder)
    write_atomically(folder / "recipe.yaml", recipe.dump(settings))
    write_json(folder / "environment.json", {"python": "3", "system": "test", "packages": {}})
    data = run.stage("data", {})
    at = data.begin()
    held_out = [conversation(n, "test") for n in range(10)]
    training = [conversation(n, "training") for n in range(12)]
    write_jsonl(at / "test.jsonl", (c.to_json() for c in held_out))
    write_jsonl(at / "train.jsonl", (c.to_json() for c in [*training, held_out[0]]))
    counts = {"train": 13, "read": 23, "val": 0, "test": 10}
    splits = {"train": {"conversations": 13, "words": 400}, "test": {"conversations": 10, "words": 300}}
    data.finish({"licences": ["MIT"], "counts": counts, "splits": splits, "rejects": {}, "sources": []}, {})
    train = run.stage("train", {"base": str(source)})
    model = adapter.add_adapter(load.load_model(settings.base), settings.adapter, seed=3)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    adapter.save_adapter(model, train.begin() / "adapter", load.identity(settings.base))
    counted = {"conversations": 13, "tokens": 900, "targets": 400, "split": 0, "left_out": 0}
    summary = {
        "steps": 3,
        "epochs": epochs,
        "seconds": 1.0,
        "targets_per_second": 9.0,
        "parameters": 1000,
        "trained": 100,
        "train": counted,
        "template": "chat",
        "best_validation": None,
        "best_step": 3,
        "loss": 1.0,
    }
    write_atomically(train.partial / "metrics.jsonl", '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    train.finish(summary, {})
    return run, settings


@pytest.fixture
def run(models: dict[str, Path], tmp_path: Path) -> tuple[Run, recipe.Recipe]:
    return make_run(tmp_path / "runs" / "small", models["llama"])
