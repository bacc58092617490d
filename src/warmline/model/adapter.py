"""Adapters through peft: put one on a base, save it, load it, check that it belongs to the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError

from warmline import recipe
from warmline.errors import ModelError
from warmline.model.load import quiet
from warmline.runs import read_json, write_json


def add_adapter(model: Any, settings: recipe.Adapter, seed: int) -> Any:
    """Freeze `model` and put a new adapter on it; its weights are fp32 and depend on `seed` alone.

    Raises:
        ModelError: the target modules do not exist; the message names those that do.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    targets: str | list[str] = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    if isinstance(targets, list):
        linear = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and "lm_head" not in name
        }
        missing = [target for target in targets if target not in linear]
        if missing:
            raise ModelError(
                f"the base has no linear layers named {', '.join(f'`{m}`' for m in missing)}",
                code="adapter-targets",
                hint=f"adapter.targets can be `all-linear` or some of: {', '.join(sorted(linear))}",
            )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    with quiet():
        return get_peft_model(model, config)


def save_adapter(
    model: Any, folder: Path, base: dict[str, Any], weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Write the adapter in peft's layout, with the identity of the base it belongs to beside it.

    `weights` are its parameters by name where the model does not hold them whole.
    """
    with quiet():
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card; the run's own card says more
    write_json(folder / "base.json", base)


def load_adapter(model: Any, folder: Path, base: dict[str, Any], *, trainable: bool = False) -> Any:
    """Put a saved adapter on `model`.

    Raises:
        ModelError: there is none in `folder`, or it belongs to another base.
    """
    if not all((folder / name).exists() for name in ("adapter_config.json", "adapter_model.safetensors")):
        raise ModelError(f"{folder} holds no adapter", code="adapter-missing", hint="has the run finished training?")
    trained_on = read_json(folder / "base.json") if (folder / "base.json").exists() else None
    if trained_on and trained_on.get("hash") and base.get("hash") and trained_on["hash"] != base["hash"]:
        raise ModelError(
            f"the adapter was trained on another state of the base `{trained_on['model']}`",
            code="base-mismatch",
            where=str(folder),
            hint="use the base it was trained on, or train again",
        )
    try:
        with quiet():
            return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, RuntimeError):  # not a whole file, or weights of other sizes
        raise ModelError(
            f"the adapter in {folder} is damaged, or of another shape than the base",
            code="adapter-missing",
            hint="restore it from a backup, or train again",
        ) from None
