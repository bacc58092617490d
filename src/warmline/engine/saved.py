"""The safety prompt as a model has read it, kept on disk: a start after the first reads nothing. Holds nobody's words.

The file is a checksum and llama.cpp's own state of the prompt. The checksum is also over everything the state depends
on, so that a changed prompt, model or llama.cpp, like a damaged file, just means that the prompt is read once more.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import mmap
from pathlib import Path

from warmline.engine.sequences import SharedContext
from warmline.errors import RunError
from warmline.runs import write_atomically

CHECKSUM = 32


def key(ids: list[int], *files: Path | None) -> bytes:
    """What the state of a prompt depends on. Files are known by size and time, for reading them takes too long."""
    known = [(f.stat().st_size, f.stat().st_mtime_ns) if f else None for f in files]
    return repr((importlib.metadata.version("llama-cpp-python"), known, ids)).encode()


def put_back(shared: SharedContext, path: Path, key: bytes, ids: list[int]) -> bool:
    """Give the context the prompt's state from `path`; False if it is not there, of something else or damaged."""
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as held,
            memoryview(held) as whole,
            whole[CHECKSUM:] as state,
        ):
            return whole[:CHECKSUM] == _checksum(key, state) and shared.set_head_state(ids, state)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def keep(shared: SharedContext, path: Path, key: bytes, ids: list[int]) -> None:
    """Write the prompt's state, where the folder allows it."""
    if state := shared.head_state(ids):
        with contextlib.suppress(OSError, RunError):
            write_atomically(path, _checksum(key, state) + state)


def _checksum(key: bytes, state: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(state)
    return digest.digest()
