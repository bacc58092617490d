"""Base against tuned on what neither was trained on: perplexity with intervals, and replies side by side.

The bare model is asked here, without the guard: what a visitor would see is the business of `chat`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from warmline import console, recipe
from warmline.engine.base import Call, Options
from warmline.engine.local import LocalEngine
from warmline.errors import DataError
from warmline.evaluate import perplexity
from warmline.messages import Conversation, Message
from warmline.model.texts import encode_all
from warmline.runs import read_json, read_jsonl, write_json


def measure(settings: recipe.Recipe, data: Path, trained: Path, folder: Path) -> dict[str, Any]:
    """Measure the recipe's base and what was trained on it; leave `measured.json` in `folder` and return its content.

    Half-done work in `folder` is used again: each model's figures are written when they are complete.

    Raises:
        DataError: there is no test split to measure on.
    """
    held_out = [Conversation.from_json(row) for row in read_jsonl(data / "test.jsonl")]
    if not held_out:
        raise DataError(
            "there is no test split to measure on", code="data-split", hint="set data.test to 0.1 and run again"
        )
    models = {"base": None, "tuned": trained}
    found: dict[str, Any] = {}
    surprises: dict[str, perplexity.Surprise] = {}
    with console.progress("measuring", len(models) * (1 + len(settings.evaluate.prompts))) as bar:
        for name, weights in models.items():
            path = folder / f"{name}.json"
            if not path.exists():
                write_json(path, _one(settings, weights, name, held_out, bar))
            found[name] = read_json(path)
            bar.to((len(found)) * (1 + len(settings.evaluate.prompts)))
            surprises[name] = perplexity.Surprise(**{k: tuple(v) for k, v in found[name].pop("surprise").items()})
    result = {
        "models": found,
        "ratio": asdict(perplexity.ratio(surprises["tuned"], surprises["base"])),
        "conversations": len(held_out),
    }
    write_json(folder / "measured.json", result)
    return result


def _one(
    settings: recipe.Recipe, weights: Path | None, name: str, held_out: list[Conversation], bar: console.Bar
) -> dict[str, Any]:
    engine = LocalEngine.open(settings, weights, name)
    texts = encode_all(held_out, engine.template, settings.prompt.model_copy(update={"supervise": "assistant"}))
    replies = []
    for prompt in settings.evaluate.prompts:
        replies.append(ask(engine, settings.evaluate, prompt))
        bar.advance(note=f"{name}: replies")
    measured = perplexity.surprise(engine.model, texts.encoded, settings.train.pack)
    bar.advance(note=f"{name}: perplexity")
    return {
        "perplexity": asdict(perplexity.perplexity(measured)),
        "tokens": sum(measured.tokens),
        "left_out": texts.left_out,
        "replies": replies,
        "surprise": asdict(measured),
    }


def ask(engine: LocalEngine, settings: recipe.Evaluate, prompt: str) -> dict[str, Any]:
    """One bare reply to one prompt, and how it ended."""
    options = Options(
        settings.new_tokens, settings.temperature, settings.top_p, settings.repetition_penalty, settings.seed
    )
    call = Call([Message("user", prompt)], options)
    text = "".join(engine.reply(call)).strip()
    return {"prompt": prompt, "reply": text, "stop": call.usage.stop_reason, "tokens": call.usage.completion_tokens}
