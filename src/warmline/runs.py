"""Run folders: one subfolder per stage, a manifest written last, nothing half-written. Knows no stage's work.

runs/<name>/
    recipe.yaml  environment.json
    data/      MANIFEST.json ...      a finished stage
    .train/    KEY ...                a stage at work; kept, so that it can resume
    replaced/  data-1a2b3c4d/         a finished stage whose recipe or input has changed since
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from warmline import __version__
from warmline.errors import DataError, RunError

MANIFEST = "MANIFEST.json"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's write errors below `path` into one clear message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"no space is left on the disk that holds {path}",
                code="disk-full",
                hint="free some space and run the same command again; finished work is kept",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise RunError(
                f"{path} cannot be written: {(error.strerror or 'refused').lower()}",
                code="run-unwritable",
                hint="choose another folder with --runs, or change its permissions",
            ) from error
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside `path`, flush to the disk, rename: a reader sees the old file or the new one, never half of it."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with open(partial, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Stream `rows` to `path`, one JSON value a line; return how many. Memory stays flat."""
    count = 0
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with open(partial, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    return count


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yield the values of a JSONL file one at a time.

    Raises:
        DataError: a line is not JSON; named by file and line, never by its text.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"line {number} of {path.name} is not JSON", code="data-row", where=f"{path}:{number}"
                ) from error


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """A hash of any JSON value; equal values give equal hashes whatever their key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class Stage:
    """One subfolder of a run. `key` says from which settings and inputs it was or will be made."""

    run: Run
    name: str
    key: str

    @property
    def folder(self) -> Path:
        return self.run.folder / self.name

    @property
    def partial(self) -> Path:
        return self.run.folder / f".{self.name}"

    @property
    def finished(self) -> bool:
        """True if the stage was finished with just these settings and inputs."""
        manifest = self.folder / MANIFEST
        return manifest.exists() and read_json(manifest)["key"] == self.key

    @property
    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = read_json(self.folder / MANIFEST)
        return manifest

    def begin(self) -> Path:
        """The folder to work in. What an interrupted try with the same key left there is still there."""
        with writing(self.run.folder):
            marker = self.partial / "KEY"
            if self.partial.exists() and not (marker.exists() and marker.read_text() == self.key):
                shutil.rmtree(self.partial)
            self.partial.mkdir(parents=True, exist_ok=True)
            write_atomically(marker, self.key)
        return self.partial

    def finish(self, summary: dict[str, Any], inputs: dict[str, Any]) -> None:
        """Write the manifest, then rename the folder into place. An older result is moved aside, never deleted."""
        with writing(self.run.folder):
            (self.partial / "KEY").unlink(missing_ok=True)
            files = {
                str(path.relative_to(self.partial)): sha256(path)
                for path in sorted(self.partial.rglob("*"))
                if path.is_file()
            }
            write_json(
                self.partial / MANIFEST,
                {
                    "stage": self.name,
                    "key": self.key,
                    "inputs": inputs,
                    "files": files,
                    "summary": summary,
                    "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "warmline": __version__,
                },
            )
            if self.folder.exists():
                old = read_json(self.folder / MANIFEST)["key"] if (self.folder / MANIFEST).exists() else "unfinished"
                aside = self.run.folder / "replaced" / f"{self.name}-{old[:8]}"
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                os.replace(self.folder, aside)
            os.replace(self.partial, self.folder)


class Run:
    """A run's folder. Open it with `Run.create` to work on it, with `Run.open` to read what is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name

    @classmethod
    def create(cls, folder: Path) -> Run:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    @classmethod
    def open(cls, name: str, runs: Path = Path("runs")) -> Run:
        """Find a run by name below `runs`, or by path.

        Raises:
            RunError: there is none; the message names those that exist.
        """
        for folder in (runs / name, Path(name)):
            if (folder / "recipe.yaml").exists():
                return cls(folder)
        there = sorted(p.parent.name for p in runs.glob("*/recipe.yaml"))
        raise RunError(
            f"run `{name}` does not exist in {runs}",
            code="run-missing",
            hint=f"runs there: {', '.join(there)}" if there else "start one with `warmline train RECIPE`",
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for one process. The lock goes with the process, also when it is killed."""
        with writing(self.folder), open(self.folder / ".lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"another process is working on run `{self.name}`",
                    code="run-locked",
                    where=str(self.folder),
                    hint="wait for it, or give this run another name with --name",
                ) from None
            yield

    def stage(self, name: str, inputs: dict[str, Any]) -> Stage:
        """The stage `name` made from `inputs` (recipe sections, keys of earlier stages, hashes of files)."""
        return Stage(self, name, fingerprint({"stage": name, "inputs": inputs}))

    @property
    def tuned(self) -> str:
        """The stage whose weights reply: `prefer` if it goes on from this very training, else `train`."""
        preferred, trained = (self.folder / stage / MANIFEST for stage in ("prefer", "train"))
        if not (preferred.exists() and trained.exists()):
            return "train"
        return "prefer" if read_json(preferred)["inputs"]["train"] == read_json(trained)["key"] else "train"

    def manifest(self, stage: str) -> dict[str, Any]:
        """The manifest of a finished stage.

        Raises:
            RunError: the stage is not finished.
        """
        path = self.folder / stage / MANIFEST
        if not path.exists():
            raise RunError(
                f"run `{self.name}` has no finished `{stage}` stage",
                code="run-missing",
                where=str(self.folder),
                hint="run the same `warmline train` or `warmline demo` command again; it continues where it was",
            )
        manifest: dict[str, Any] = read_json(path)
        return manifest


def environment() -> dict[str, Any]:
    """Versions and machine, for `environment.json`. Holds no user name, host name or path."""
    packages = {}
    for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "safetensors", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "warmline": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": packages,
    }
