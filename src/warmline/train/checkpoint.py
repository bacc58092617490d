"""Checkpoints: everything a run needs to go on as if it had never stopped. Knows nothing of models or data.

    step-00000120/  weights.safetensors  optimizer.safetensors  random.safetensors  state.json  MANIFEST.json

The manifest holds a sha256 of each file, is written last, and the folder gets its name last: a checkpoint that has
its name is whole.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from warmline.errors import RunError
from warmline.runs import MANIFEST, read_json, sha256, write_json, writing


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def save(
    folder: Path,
    step: int,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write a checkpoint below `folder` and remove all but the newest `keep`."""
    final = folder / f"step-{step:08d}"
    partial = folder / f".step-{step:08d}"
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_tensors(dict(parameters), partial / "weights.safetensors")
        moments = {}
        for name, parameter in parameters.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                moments[f"{key}:{name}"] = value
        save_tensors(moments, partial / "optimizer.safetensors")
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
        save_tensors(random, partial / "random.safetensors")
        write_json(partial / "state.json", state | {"step": step})
        write_json(
            partial / MANIFEST, {path.name: sha256(path) for path in sorted(partial.iterdir()) if path.name != MANIFEST}
        )
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    return final


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None. A damaged one is passed over in favour of the one before it.

    Raises:
        RunError: there are checkpoints and none of them is whole.
    """
    found = sorted(folder.glob("step-*"), reverse=True)
    for checkpoint in found:
        manifest = checkpoint / MANIFEST
        if manifest.exists() and all(
            (checkpoint / name).exists() and sha256(checkpoint / name) == digest
            for name, digest in read_json(manifest).items()
        ):
            return checkpoint
    if found:
        raise RunError(
            f"none of the {len(found)} checkpoints matches its manifest",
            code="checkpoint-damaged",
            where=str(folder),
            hint="the disk may be failing; move the folder away to start this stage anew",
        )
    return None


def load(
    checkpoint: Path, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put weights, optimizer and random state back as they were; return the saved state."""
    weights = load_file(checkpoint / "weights.safetensors")
    moments = load_file(checkpoint / "optimizer.safetensors")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for key, value in moments.items():
        kind, _, name = key.partition(":")
        parameter = parameters[name]
        optimizer.state[parameter][kind] = value if kind == "step" else value.to(parameter.device)
    random = load_file(checkpoint / "random.safetensors")
    torch.set_rng_state(random["cpu"])
    for name, value in random.items():
        if name.startswith("cuda:") and torch.cuda.is_available():
            torch.cuda.set_rng_state(value, int(name[5:]))
    state: dict[str, Any] = read_json(checkpoint / "state.json")
    return state
