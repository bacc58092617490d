"""Seconds of `warmline evaluate`, by stage: every part of the report, and what lies between them.

    python benchmarks/evaluate.py RUN [--runs runs] [--forms auto] [--quant q8_0,q4_k_m]

A copy of the trained run is measured from nothing, after its GGUF files are made where they are missing (told apart).
The last line is JSON: seconds by stage, the whole, and processor seconds of all its processes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def used() -> float:
    """Processor seconds of every process that has ended, those that outlived their parent included."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def warmline(*arguments: str) -> float:
    """Carry out a command; returns its seconds."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "warmline", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def by_stage(folder: Path, began: float) -> dict[str, float]:
    """Seconds until each part was written, since the part before it; the parts of one suite or visit together."""
    parts = sorted((path.stat().st_mtime, path.relative_to(folder)) for path in folder.rglob("*.*") if path.is_file())
    found: dict[str, float] = {}
    before = began
    for at, path in parts:
        name = str(path.with_suffix(""))
        for many in ("safety-", "visits"):
            if f"/{many}" in name:
                name = f"{name.split('/')[0]}/{many.rstrip('-')}"
        found[name] = found.get(name, 0.0) + at - before
        before = at
    return {name: round(seconds, 1) for name, seconds in found.items() if seconds >= 0.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--forms", default="auto")
    parser.add_argument("--quant", default="q8_0,q4_k_m")
    asked = parser.parse_args()
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: the forms' processes become ours when the command ends
    with tempfile.TemporaryDirectory(dir=asked.runs) as work:
        run = Path(work) / asked.run
        left_out = shutil.ignore_patterns("evaluation", ".evaluation", "checkpoints", "compare", "judged")
        shutil.copytree(asked.runs / asked.run, run, ignore=left_out)
        exported = warmline("export", asked.run, "--to", "gguf", "--quant", asked.quant, "--runs", work)
        before = used()
        began = time.time()
        seconds = warmline("evaluate", asked.run, "--forms", asked.forms, "--runs", work)
        processor = used() - before
        stages = by_stage(run / "evaluation", began)
        measured = json.loads((run / "evaluation" / "measured.json").read_text("utf-8"))
    for stage, took in stages.items():
        print(f"{took:7.1f} s  {stage}")
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "processor_seconds": round(processor, 1),
                "export_seconds": round(exported, 1),
                "forms": [row["form"] for row in measured["forms"]],
                "failed": measured["failed"],
                "cores": len(os.sched_getaffinity(0)),
                "stages": stages,
            }
        )
    )


if __name__ == "__main__":
    main()
