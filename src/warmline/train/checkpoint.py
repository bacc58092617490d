"""Checkpoints: everything a run needs to go on as if it had never stopped. Knows nothing of models or data.

    step-00000120/  weights.safetensors  optimizer.safetensors  random.safetensors  state.json  MANIFEST.json

The manifest holds a sha256 of each file, is written last, and the folder gets its name last: a checkpoint that has
its name is whole. Names that begin with a dot are unfinished or on their way out.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from warmline import console
from warmline.errors import RunError
from warmline.runs import MANIFEST, read_json, sha256, write_json, writing
from warmline.train import shard

KEEP = 2
"""So many of the newest are kept, and the best of each of them."""


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors and flush them to the disk. Raises OSError also where safetensors has an error of its own."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        number = re.search(r"code: (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def at(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is or would be."""
    return folder / f"step-{step:08d}"


def save(
    folder: Path,
    step: int,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    leads: bool = True,
) -> Path:
    """Write a checkpoint below `folder`, then remove those that are no longer needed.

    Kept are the newest and the one before it, each with the checkpoint of its `best_step`. Of a split model all
    processes must come here; the one that `leads` writes it, whole, so any number of processes can go on from it.
    """
    final = at(folder, step)
    weights, moments = {}, {}
    for name, parameter in parameters.items():
        found = {f"{key}:{name}": value for key, value in optimizer.state.get(parameter, {}).items()}
        held = shard.whole(parameter)
        if leads:
            weights[name] = held
        for key, value in found.items():
            held = shard.whole(torch.as_tensor(value))
            if leads:  # bitsandbytes' tables are one for all parameters, which safetensors does not write
                moments[key] = held.clone() if key.startswith("qmap") else held
    if not leads:
        return final
    partial = folder / f".{final.name}"
    with writing(folder):
        _sweep(folder)
        try:
            partial.mkdir(parents=True)
            save_tensors(weights, partial / "weights.safetensors")
            save_tensors(moments, partial / "optimizer.safetensors")
            random = {"cpu": torch.get_rng_state()}
            if torch.cuda.is_available():
                random |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
            save_tensors(random, partial / "random.safetensors")
            write_json(partial / "state.json", state | {"step": step})
            files = {path.name: sha256(path) for path in sorted(partial.iterdir())}
            write_json(partial / MANIFEST, files)
            _flush(partial)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # a full disk gets the space back
            raise
        if final.exists():
            os.replace(final, folder / f".{final.name}.old")
        os.replace(partial, final)
        _flush(folder)
        newest_first = [path for path in _found(folder) if path.name <= final.name]
        needed = set(newest_first[:KEEP])
        needed |= {at(folder, _best_step(path)) for path in newest_first[:KEEP]}
        for path in _found(folder):
            if path not in needed:
                os.replace(path, folder / f".{path.name}")
        _sweep(folder)
    return final


def _found(folder: Path) -> list[Path]:
    """The named checkpoints, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _sweep(folder: Path) -> None:
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)


def _best_step(checkpoint: Path) -> int:
    """The best step so far as that checkpoint knows it; 0 where it cannot be read."""
    try:
        return int(read_json(checkpoint / "state.json")["best_step"])
    except (OSError, ValueError, KeyError):
        return 0


def whole(checkpoint: Path) -> bool:
    """True if every file is as its manifest says."""
    try:
        files = read_json(checkpoint / MANIFEST)
        return bool(files) and all(sha256(checkpoint / name) == digest for name, digest in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None. A damaged one is passed over, with a word, for the one before it.

    Raises:
        RunError: there are checkpoints and none of them is whole.
    """
    found = _found(folder)
    for checkpoint in found:
        if whole(checkpoint):
            return checkpoint
        console.warn(f"checkpoint {checkpoint.name} does not match its manifest; going back to the one before it")
    if found:
        raise RunError(
            f"none of the {len(found)} checkpoints matches its manifest",
            code="checkpoint-damaged",
            where=str(folder),
            hint="the disk may be failing; move the folder away to start this stage anew",
        )
    return None


def load_weights(checkpoint: Path, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Put the weights back, and nothing else."""
    weights = load_file(checkpoint / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(shard.like(weights[name], parameter))


def load(
    checkpoint: Path, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put weights, optimizer and random state back as they were; return the saved state.

    Raises:
        RunError: the averages are of the other kind, in 8 bits or not.
    """
    moments = load_file(checkpoint / "optimizer.safetensors")
    if moments and any(key.startswith("state1:") for key in moments) != hasattr(optimizer, "get_state_buffer"):
        raise RunError(
            "the training began with AdamW's averages in another precision than the plan finds room for here",
            code="resume-changed",
            where=str(checkpoint),
            hint="go on where there is as much memory as at the beginning, or move the folder away to begin anew",
        )
    load_weights(checkpoint, parameters)
    optimizer.state.clear()
    for key, value in moments.items():
        kind, _, name = key.partition(":")
        parameter = parameters[name]
        optimizer.state[parameter][kind] = _remembered(optimizer, parameter, kind, value)
    random = load_file(checkpoint / "random.safetensors")
    torch.set_rng_state(random["cpu"])
    for name, value in random.items():
        if name.startswith("cuda:") and torch.cuda.is_available() and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(value, int(name[5:]))
    state: dict[str, Any] = read_json(checkpoint / "state.json")
    return state


def _remembered(optimizer: Any, parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> torch.Tensor | int:
    """One piece of an optimizer's memory of a parameter, in the form that it keeps it in."""
    if kind == "step":
        return value if value.is_floating_point() else int(value)
    if kind in ("state1", "state2"):  # bitsandbytes, whose paged memory no copy of a tensor is
        buffer: torch.Tensor = optimizer.get_state_buffer(parameter, dtype=value.dtype)
        return buffer.copy_(value)
    return shard.like(value, parameter)


def same(stage: Path, made_from: dict[str, Any]) -> None:
    """Check, before anything is touched, that a training left in `stage` was begun from just this.

    Raises:
        RunError: data, base or a setting is another now; the message names which.
    """
    found = newest(stage / "checkpoints")
    before = read_json(found / "state.json").get("made_from", {}) if found else made_from
    changed = []
    for name in sorted(made_from.keys() | before.keys()):
        was, now = before.get(name), made_from.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            changed += [f"{name}.{key}" for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
        elif was != now:
            changed.append(name)
    if changed and found:
        raise RunError(
            f"the training that stands at step {int(found.name[5:])} was begun with other {', '.join(changed)}",
            code="resume-changed",
            where=str(stage),
            hint="put these back, or give the new training another --name; move the folder away to begin anew",
        )
