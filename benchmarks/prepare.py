"""How fast and how flat: 100,000 made-up conversations through the whole chain.

    python benchmarks/prepare.py [--conversations N] [--workers N] [--kill SECONDS]

Prints conversations a second, the largest memory of any process, and with --kill that a stopped run goes on where it
was and ends with the same files. The conversations are put together from the sample's turns with names, places and
numbers planted, so that every stage has its work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from warmline.corpus.read import read

NAMES = "Priya Tomasz Chidi Rosa Keiko Lars Aisha Bronagh Mateo Olena".split()
PLACES = "Leeds Aarhus Enugu Tulsa Gdynia Lyon Puebla Hanoi".split()


def make(path: Path, count: int) -> float:
    """Write `count` conversations of two to four exchanges and return their mean number of words."""
    pick = random.Random(4)
    pairs = [
        (conversation.messages[i].content, conversation.messages[i + 1].content)
        for conversation in read("sample")
        for i in range(0, len(conversation.messages) - 1, 2)
    ]
    words = 0
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            messages = []
            for asked, said in pick.sample(pairs, pick.choice((1, 2, 2, 3))):
                # Shuffled sentences make nearly all of them different from each other, as real ones are.
                parts = asked.split(". ")
                pick.shuffle(parts)
                lead = f"My friend {pick.choice(NAMES)} in {pick.choice(PLACES)} says {number} times: "
                more = f"{said} {pick.choice(pairs)[1]}" if pick.random() < 0.2 else said
                messages += [
                    {"role": "user", "content": lead + ". ".join(parts)},
                    {"role": "assistant", "content": more},
                ]
            words += sum(len(m["content"].split()) for m in messages)
            file.write(json.dumps({"messages": messages}) + "\n")
    return words / count


def run(source: Path, out: Path, workers: int, kill: float = 0) -> tuple[float, float]:
    """Seconds and the largest resident memory in MB of one run; with `kill`, stop it after so many seconds."""
    command = [
        *(sys.executable, "-m", "warmline.cli.main", "data", "prepare", str(source), "-o", str(out)),
        *("--licence", "Apache-2.0", "--workers", str(workers)),
    ]
    begun = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        if kill:
            time.sleep(kill)
            process.kill()
        process.wait()
    return time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def digest(folder: Path) -> str:
    parts = ((folder / f"{part}.jsonl").read_bytes() for part in ("train", "val", "test"))
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--conversations", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", type=float, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mean = make(folder / "made.jsonl", args.conversations)
        result: dict[str, object] = {"conversations": args.conversations, "words_each": round(mean, 1)}
        small = folder / "small.jsonl"
        with open(folder / "made.jsonl") as full, open(small, "w") as part:
            for _ in range(args.conversations // 10):
                part.write(full.readline())
        result["memory_mb_tenth"] = round(run(small, folder / "tenth", args.workers)[1])
        seconds, memory = run(folder / "made.jsonl", folder / "whole", args.workers)
        result |= {
            "seconds": round(seconds, 1),
            "per_second": round(args.conversations / seconds),
            "memory_mb": round(memory),
        }
        if args.kill:
            first, _ = run(folder / "made.jsonl", folder / "stopped", args.workers, args.kill)
            second, _ = run(folder / "made.jsonl", folder / "stopped", args.workers)
            result |= {
                "stopped_after": round(first, 1),
                "rest_seconds": round(second, 1),
                "same_files": digest(folder / "whole") == digest(folder / "stopped"),
            }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
