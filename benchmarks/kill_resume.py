"""Kill a training at random moments, run the same command again, and compare with one that was left alone.

    python benchmarks/kill_resume.py --kills 50

Every trial trains a tiny model in a process of its own that is killed (SIGKILL) once, at a random moment between its
first step and its end, and run again to the end. Resumed is equal when the adapter's sha256 and the loss, norm and
validation loss of every step are those of the run that was left alone, bit for bit. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from tests.conftest import make_model
from tests.train.test_loop import conversations, settings
from warmline.runs import read_jsonl, sha256, write_jsonl
from warmline.train import checkpoint
from warmline.train.tune import tune

STEPS = 12


def train(plan: object, data: Path, folder: Path) -> int:
    """Train in a child process; returns its id."""
    child = os.fork()
    if child:
        return child
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    code = 1
    try:
        folder.mkdir(exist_ok=True)
        tune(plan, data, folder, made_from={"this": "benchmark"})
        code = 0
    finally:
        os._exit(code)


def finish(plan: object, data: Path, folder: Path) -> float:
    began = time.monotonic()
    _, status = os.waitpid(train(plan, data, folder), 0)
    if status:
        raise SystemExit(f"the training in {folder} ended with {status}")
    return time.monotonic() - began


def result(folder: Path) -> tuple[str, list[object]]:
    rows = read_jsonl(folder / "metrics.jsonl")
    curve = [(row["step"], row.get("loss"), row.get("norm"), row.get("validation")) for row in rows]
    return sha256(folder / "adapter" / "adapter_model.safetensors"), curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--base", default="qwen3", help="llama, falcon, gemma, gemma3 or qwen3, random and tiny")
    parser.add_argument("--load", default="nf4", choices=["nf4", "int8", "bf16", "fp32"])
    parser.add_argument("--seed", type=int, default=17)
    options = parser.parse_args()
    began = time.process_time(), time.monotonic()
    torch.set_num_threads(1)  # children made by fork may not use the parent's threads
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        base = make_model(options.base, root / "base")
        data = root / "data"
        for name, count in (("train", 14), ("val", 4)):
            write_jsonl(data / f"{name}.jsonl", (row.to_json() for row in conversations(count)))
        plan = settings(base, base__load=options.load, train__steps=STEPS, train__save_every=2, train__validate_every=4)
        (root / "whole").mkdir()
        tune(plan, data, root / "whole", made_from={"this": "benchmark"})  # here: children begin with all imports made
        expected = result(root / "whole")
        seconds = finish(plan, data, root / "again")
        if result(root / "again") != expected:
            raise SystemExit("two runs that nobody stopped differ: that is for another test")
        equal = killed = tries = 0
        at: list[int] = []
        while killed < options.kills and tries < 4 * options.kills:
            tries += 1
            folder = root / f"killed-{tries}"
            child = train(plan, data, folder)
            time.sleep(chance.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status) or not (folder / "metrics.jsonl").exists():
                continue  # over already, or not yet begun: that shows nothing
            killed += 1
            found = checkpoint.newest(folder / "checkpoints")
            at.append(int(found.name[5:]) if found else 0)
            finish(plan, data, folder)
            same = result(folder) == expected
            equal += same
            print(
                f"{killed:3}  gone on from step {at[-1]:2} of {STEPS}  {'equal' if same else 'DIFFERENT'}", flush=True
            )
    spent = time.process_time() - began[0] + sum(os.times()[2:4])
    counted = {"kills": killed, "bit_identical": equal, "resumed_from": sorted(set(at)), "load": options.load}
    print(json.dumps(counted | {"cpu_seconds": round(spent), "seconds": round(time.monotonic() - began[1])}))
    sys.exit(equal != killed or killed < options.kills)


if __name__ == "__main__":
    main()
