"""Put the finished embedded base into the package, with a card that says what was measured.

Needs a finished run of the recipe `embedded-base` and its `documents.jsonl`:

    python training/embedded_base/ship.py [--runs runs] [--run NAME] [--earlier NAME ...] [--note TEXT]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from itertools import chain
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from overlap import overlap

from warmline import recipe
from warmline.engine.base import Call, Options
from warmline.engine.local import LocalEngine
from warmline.evaluate import perplexity
from warmline.messages import Message
from warmline.model import load
from warmline.model.texts import encode_all
from warmline.runs import read_json, read_jsonl
from warmline.train.tune import conversations

OPTIONS = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.0}
SAMPLES = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--run", default="embedded-base", help="name of the finished run to ship")
    parser.add_argument("--earlier", nargs="*", default=[], help="runs whose weights the one before went on from")
    parser.add_argument("--note", default="", help="a sentence about how this training went, for the card")
    arguments = parser.parse_args()
    run = arguments.runs / arguments.run
    target = load.embedded_folder()
    target.mkdir(exist_ok=True)
    for path in (run / "train" / "model").iterdir():
        if path.name != "base.json":
            shutil.copy(path, target / path.name)

    settings = recipe.parse({"name": "card", "base": {"model": "embedded", "load": "bf16"}})
    engine = LocalEngine.open(settings, None, "embedded")
    prompts = (HERE / "prompts.txt").read_text("utf-8").splitlines()
    replies = [(prompt, say(engine, prompt, seed)) for seed, prompt in enumerate(prompts)]

    held_out = list(conversations(run / "data" / "test.jsonl"))
    questions = [c.messages[0].content for c in held_out if c.messages[0].role == "user"]
    random.Random(1).shuffle(questions)
    sampled = [say(engine, question, seed) for seed, question in enumerate(questions[:SAMPLES])]
    fresh = [{"kind": "reply", "text": reply} for reply in sampled]
    runs = [*(arguments.runs / name for name in arguments.earlier), run]
    learnt = chain.from_iterable(read_jsonl(each / "data" / "train.jsonl") for each in runs)
    share, _ = overlap(fresh, learnt, size=12)

    texts = encode_all(held_out, engine.template, recipe.Prompt(supervise="all", context=768))
    measured = perplexity.surprise(engine.model, texts.encoded, 4096)
    found = perplexity.perplexity(measured)
    nats = sum(measured.nats) / sum(measured.tokens)
    summaries = [read_json(each / "train" / "MANIFEST.json")["summary"] for each in runs]
    summary = summaries[-1]
    card = (
        (HERE / "CARD.md")
        .read_text("utf-8")
        .format(
            parameters=summary["parameters"] / 1e6,
            size=sum(p.stat().st_size for p in target.glob("*.safetensors")) / 1e6,
            conversations=sum(each["train"]["conversations"] for each in summaries),
            tokens=sum(each["train"]["tokens"] for each in summaries),
            runs=len(summaries),
            steps=sum(each["steps"] for each in summaries),
            hours=sum(each["seconds"] for each in summaries) / 3600,
            nats=nats,
            value=found.value,
            low=found.low,
            high=found.high,
            n=found.n,
            samples=len(sampled),
            share=share,
            note=arguments.note,
            replies="\n\n".join(f"> {prompt}\n\n{reply}" for prompt, reply in replies),
            **OPTIONS,
        )
    )
    (target / "README.md").write_text(card, "utf-8")
    print(json.dumps({"nats": round(nats, 4), "perplexity": round(found.value, 3), "shared_12_grams": round(share, 4)}))


def say(engine: LocalEngine, prompt: str, seed: int) -> str:
    call = Call([Message("user", prompt)], Options(max_tokens=120, seed=seed, **OPTIONS))
    return "".join(engine.reply(call)).strip()


if __name__ == "__main__":
    main()
