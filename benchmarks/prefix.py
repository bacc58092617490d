"""What sharing prefixes saves on one question with many answers: tokens computed, and seconds of an optimizer step.

    python benchmarks/prefix.py ../shared/data/counsel_chat/20200325_counsel_chat.csv

Steps take one question after the other, as in the file and with `train.order: grouped`; those that are timed come
from all over it. Sharing is switched off and on in turn within one run, on one model of random weights with a LoRA
adapter, by the training loop itself. The last line is JSON; seconds are the processor's, so that what else runs on
the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from warmline import recipe
from warmline.corpus import read
from warmline.messages import Conversation
from warmline.model import adapter, load, scratch
from warmline.model import pack as packing
from warmline.model.template import Encoded, Template
from warmline.model.texts import encode_all
from warmline.train.loop import Loop
from warmline.train.tune import words

SYSTEM = recipe.listener()


def batches(texts: list[Encoded], size: int) -> Iterator[list[Encoded]]:
    for start in range(0, len(texts) - size + 1, size):
        yield texts[start : start + size]


def tokens(steps: list[list[Encoded]], capacity: int, share: bool) -> int:
    return sum(row.ids.shape[1] for step in steps for row in packing.packs(step, capacity, share))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--batch", type=int, default=32, help="conversations in a step")
    parser.add_argument("--answers", type=int, default=5, help="fewest answers of a question that is timed")
    parser.add_argument("--pack", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3, help="different steps that are timed, from all over the file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--load", default="nf4", choices=["nf4", "int8", "bf16", "fp32"])
    args = parser.parse_args()
    found: list[Conversation] = list(read.read(args.source, on_reject=lambda reject: None))
    groups: dict[str, list[Conversation]] = {}
    for conversation in found:
        groups.setdefault(conversation.group or conversation.id, []).append(conversation)
    many = [group for group in groups.values() if len(group) >= args.answers]
    result: dict[str, object] = {
        "conversations": len(found),
        "questions": len(groups),
        "most_answers": max(map(len, groups.values())),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = recipe.NewBase(
            vocabulary=32000, width=args.width, layers=4, heads=args.width // 64, inner=args.width * 11 // 4
        )
        tokenizer = scratch.make_tokenizer(words(found), shape.vocabulary, shape.context)
        scratch.make_base(shape, tokenizer, folder, seed=1)
        template = Template(tokenizer, system=SYSTEM)
        for title, chosen_groups in (("all", groups.values()), (f"{args.answers}_answers_or_more", many)):
            rows = [conversation for group in chosen_groups for conversation in group]
            steps = list(batches(encode_all(rows, template, recipe.Prompt()).encoded, args.batch))
            apart, shared = (tokens(steps, args.pack, share) for share in (False, True))
            result[title] = {"tokens": apart, "shared_tokens": shared, "ratio": round(apart / shared, 2)}
        base = recipe.Base(model=str(folder), load=args.load)
        model = adapter.add_adapter(load.load_model(base), recipe.Adapter(rank=16), seed=1)
        chosen = steps[:: max(1, len(steps) // args.steps)][: args.steps]  # from the whole file: answers grow fewer
        settings = recipe.Train(batch=args.batch, pack=args.pack)
        loop = Loop(model, chosen[0], [], settings, folder)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        losses: dict[bool, list[float]] = {False: [], True: []}
        model.train()
        for turn in range(-1, args.rounds):
            for step in chosen if turn >= 0 else chosen[:1]:
                for share in (False, True):
                    # A rate of nothing: every step is computed from the same weights, so losses can be compared.
                    loop.settings = settings.model_copy(update={"share_prefixes": share, "learning_rate": 0.0})
                    loop.texts = step
                    began = time.process_time()
                    loss, _, _ = loop._step(0)
                    if turn >= 0:
                        seconds[share].append(time.process_time() - began)
                        losses[share].append(loss)
    apart, shared = statistics.median(seconds[False]), statistics.median(seconds[True])
    faster = statistics.median(a / b for a, b in zip(seconds[False], seconds[True], strict=True))
    timed = (tokens(chosen, args.pack, False), tokens(chosen, args.pack, True))
    result["step"] = {
        "tokens": timed[0],
        "shared_tokens": timed[1],
        "seconds": round(apart, 2),
        "shared_seconds": round(shared, 2),
        "times_faster": round(faster, 2),
        "largest_difference_of_loss": round(max(abs(a - b) for a, b in zip(*losses.values(), strict=True)), 5),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
