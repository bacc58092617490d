"""What screening costs on one core: latency by length, messages a second, and the time added before a first sentence.

    python benchmarks/screening.py [--messages 2000]

The last line is JSON. Messages are made by chance from the project's own cases and sample corpus.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from datetime import datetime
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts")]

from train_screen import expand

from warmline.safety.output import OutputGuard
from warmline.safety.screen import screen
from warmline.safety.state import follow

NOON = datetime(2026, 1, 1, 12)


def sentences() -> list[str]:
    found = []
    for name in ("risk", "benign"):
        book = yaml.safe_load((ROOT / "tests/safety/cases" / f"{name}.yaml").read_text("utf-8"))
        found += [line for entry in book.values() for template in entry["templates"] for line in expand(template)]
    for line in (ROOT / "src/warmline/sample/conversations.jsonl").read_text("utf-8").splitlines():
        found += [m["content"] for m in json.loads(line)["messages"] if m["role"] == "user"]
    return found


def talks() -> list[str]:
    """Conversations at risk and without, whose turns are also read together."""
    book = yaml.safe_load((ROOT / "tests/safety/cases/talks.yaml").read_text("utf-8"))
    return [talk for kind in ("risk", "calm") for talk in book[kind]]


def quantile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))] * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=2000)
    options = parser.parse_args()
    dice = random.Random(3)
    pool = sentences()
    began = time.perf_counter()
    screen("warm up")
    result: dict[str, float] = {"load_ms": round((time.perf_counter() - began) * 1000)}
    for length in (100, 500, 2000):
        texts = []
        for _ in range(options.messages if length < 2000 else options.messages // 4):
            text = ""
            while len(text) < length:
                text += dice.choice(pool) + ". "
            texts.append(text[:length])
        times = []
        for text in texts:
            began = time.perf_counter()
            screen(text)
            times.append(time.perf_counter() - began)
        result[f"p50_ms_{length}"] = round(quantile(times, 0.5), 2)
        result[f"p99_ms_{length}"] = round(quantile(times, 0.99), 2)
        result[f"per_second_{length}"] = round(len(times) / sum(times))
    turns = [dice.choice(pool) for _ in range(options.messages)]
    began = time.perf_counter()
    for text in turns:
        screen(text)
    result["turns_per_second"] = round(len(turns) / (time.perf_counter() - began))
    times = []
    for talk in talks():
        played = follow(talk.split(" | "), NOON)
        while True:
            began = time.perf_counter()
            if next(played, None) is None:
                break
            times.append(time.perf_counter() - began)
    result["p50_ms_turn_of_conversation"] = round(quantile(times, 0.5), 2)
    result["p99_ms_turn_of_conversation"] = round(quantile(times, 0.99), 2)
    replies = [
        m["content"]
        for line in (ROOT / "src/warmline/sample/conversations.jsonl").read_text("utf-8").splitlines()
        for m in json.loads(line)["messages"]
        if m["role"] == "assistant"
    ]
    times = []
    for reply in replies:
        guard = OutputGuard("x", "US")
        end = re.search(r"[.!?]\s", reply)
        first = reply[: end.end()] if end else reply
        began = time.perf_counter()
        guard.feed(first) or guard.finish()
        times.append(time.perf_counter() - began)
    result["guard_first_sentence_p99_ms"] = round(quantile(times, 0.99), 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
