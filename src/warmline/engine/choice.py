"""Which engine replies for a run on this machine, and why. Loads nothing.

    a server was named                                 remote
    no GPU, a GGUF of this training, llama.cpp here    llamacpp
    everything else                                    local

What was asked for by name is taken or refused, never replaced by something else.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from warmline.errors import EngineError, RunError
from warmline.runs import MANIFEST, Run, read_json, sha256, write_atomically

Kind = Literal["llamacpp", "local", "remote"]

PREFERRED = ("q4_k_m", "q5_k_m", "q8_0", "q4_0", "bf16", "f16", "f32")
"""Which of several GGUF files replies: the fastest that keeps close to the trained model."""


@dataclass(frozen=True, slots=True)
class Files:
    """GGUF files of a run: the model as asked for, or its base with an adapter that can be switched off."""

    model: Path
    adapter: Path | None = None
    merged: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, in one sentence why it, and what it needs."""

    kind: Kind
    why: str
    files: Files | None = None
    url: str = ""
    model: str = ""


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is there to compute on. Looks at the driver, for asking torch takes seconds."""
    return sys.platform == "linux" and any(Path("/dev").glob("nvidia[0-9]*"))


def has_llamacpp() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def exported(run: Run, *, tuned: bool) -> tuple[Files | None, str]:
    """The GGUF files that can reply for the run, tuned or as its base; without any, what is missing."""
    stage = run.folder / "export"
    if not (stage / MANIFEST).exists():
        return None, "the run has no GGUF"
    if read_json(stage / MANIFEST)["inputs"].get("train") != run.manifest(run.tuned)["key"]:
        return None, "the exported GGUF is of an earlier training"
    verified: Mapping[str, Any] = read_json(stage / "verified.json")
    folder = stage / "gguf"
    for quant in PREFERRED if tuned else ():
        if row := verified.get(f"gguf:{quant}"):
            return Files(folder / row["file"], merged=True), ""
    if row := verified.get("gguf:lora"):
        return Files(folder / row["base"], folder / row["file"] if tuned else None), ""
    return None, "the run has no GGUF" if tuned else "the base was not exported as GGUF (`--lora-gguf` does)"


def unchanged(run: Run, files: Files) -> None:
    """Hold GGUF files against the hashes of when they were checked. Once for each state of a file: it takes seconds.

    Raises:
        EngineError: a file is damaged or was replaced; llama.cpp would load wrong numbers without a word.
    """
    known: Mapping[str, str] = read_json(run.folder / "export" / MANIFEST).get("files", {})
    for file in (f for f in (files.model, files.adapter) if f is not None and f.exists()):
        expected, state = known.get(f"gguf/{file.name}"), file.stat()
        note, now = run.folder / "cache" / f"{file.stem}.checked", f"{state.st_size} {state.st_mtime_ns} {expected}"
        if expected is None or (note.exists() and note.read_text() == now):
            continue
        if sha256(file) != expected:
            raise EngineError(
                f"{file.name} is not the file that was checked when it was exported",
                code="gguf-damaged",
                where=str(file),
                hint="delete the run's folder `export` and export again",
            )
        with contextlib.suppress(RunError):
            write_atomically(note, now)


def choose(run: Run, use: str = "auto", *, tuned: bool = True) -> Choice:
    """Decide on `use`: `auto`, `llamacpp`, `local`, or a server's address, with #MODEL if it has several.

    Raises:
        EngineError: what was asked for by name cannot be used here.
    """
    if "://" in use:
        url, _, model = use.partition("#")
        if not tuned:
            raise _unfit("remote", "a server's model cannot be asked as the base it was")
        return Choice("remote", "a server was named", url=url, model=model)
    if use not in ("auto", "llamacpp", "local"):
        raise EngineError(
            f"there is no engine `{use}`",
            code="engine-unfit",
            hint="auto, llamacpp, local, or the address of a server such as http://127.0.0.1:8000/v1",
        )
    if use == "local":
        return Choice("local", "it was asked for")
    files, missing = exported(run, tuned=tuned)
    if not has_llamacpp():
        missing = "llama-cpp-python is not installed"
    if files is not None and not missing and (use == "llamacpp" or not has_gpu()):
        return Choice("llamacpp", "it was asked for" if use != "auto" else "no GPU, and a GGUF is there", files)
    if use == "llamacpp":
        raise _unfit(use, missing)
    return Choice("local", "a GPU is there" if has_gpu() else missing)


def _unfit(kind: str, why: str) -> EngineError:
    return EngineError(
        f"engine `{kind}` cannot be used: {why}",
        code="engine-unfit",
        hint="`warmline export RUN --to gguf` makes a GGUF; `warmline doctor RUN` says what can be used",
    )
