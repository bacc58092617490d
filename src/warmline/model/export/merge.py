"""An adapter and the base it was trained on become one model, added up in full precision. Knows nothing of GGUF.

A base that was trained on in NF4 or int8 is loaded anew from its original weights; the quantised copy is never merged.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import psutil
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from warmline import recipe
from warmline.errors import ModelError
from warmline.model import adapter, load
from warmline.model.export import verify
from warmline.model.template import Parts, Template
from warmline.runs import read_json, write_json, writing

SHARD = "4GB"
"""Largest weight file: what older file systems and browsers still take."""

PRECISION = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def shown_name(model: str) -> str:
    """A base's name as strangers may see it: a hub id, or a folder's last part, never a path of this machine."""
    return model if isinstance(load.locate(model), str) else Path(model).expanduser().resolve().name


def copy_adapter(source: Path, folder: Path, base: recipe.Base) -> dict[str, Any]:
    """The adapter in peft's layout, without the paths of this machine in it. Returns the row for the card."""
    if not (source / "adapter_config.json").exists():
        raise ModelError(
            f"{source} holds no adapter",
            code="adapter-missing",
            hint="a run of adapter.method `full` has none: export it as `merged` or `gguf`",
        )
    name = shown_name(base.model)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copyfile(source / file, folder / file)
    settings = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", settings | {"base_model_name_or_path": name, "revision": base.revision})
    if (source / "base.json").exists():
        write_json(folder / "base.json", read_json(source / "base.json") | {"model": name})
    return {"weights": "byte for byte those of the run"}


def original(base: recipe.Base) -> Any:
    """The base as its makers saved it, on the CPU, whatever the recipe loads it as.

    Raises:
        ModelError: it is larger than the free memory.
    """
    load.check(base)
    where = load.locate(base.model)
    if isinstance(where, Path):
        size = sum(path.stat().st_size for path in where.glob("*.safetensors"))
        free = psutil.virtual_memory().available
        if size > free:
            raise ModelError(
                f"the base's original weights take {size / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free",
                code="fit-memory",
                hint="export on a machine with more memory, or export only `--to adapter`",
            )
    with load.quiet():
        model = AutoModelForCausalLM.from_pretrained(
            str(where), revision=base.revision, trust_remote_code=base.trust_remote_code, dtype="auto"
        )
    model.eval()
    return model


def widen(model: Any) -> None:
    """Compute in fp32 where memory allows; otherwise stay as saved, and let the tolerance of that precision hold."""
    extra = sum(p.numel() * (4 - p.element_size()) for p in model.parameters())
    if extra < psutil.virtual_memory().available:
        model.float()


def merge(base: recipe.Base, folder: Path, template: Template, target: Path) -> dict[str, Any]:
    """Add the adapter in `folder` to its base's original weights and save the sum in the base's own precision.

    Returns how the saved model compares with base and adapter apart.

    Raises:
        ModelError: base and adapter do not belong together, or what was saved computes something else.
    """
    model = original(base)
    saved_as = model.dtype
    model = adapter.load_adapter(model, folder, load.identity(base))
    widen(model)
    prompts = verify.prompt_ids(template)
    apart = verify.logits(model, prompts)
    for module in model.modules():
        # One layer at a time in fp32: a 16-bit sum would round the update away.
        if isinstance(module, BaseTunerLayer):
            layer = module.get_base_layer()
            kept = layer.weight.dtype
            layer.float()
            module.merge(safe_merge=True)
            layer.to(kept)
    model = model.unload().to(saved_as)
    save(model, template, target)
    del model
    return compared(target, apart, prompts, "the merged model")


def save(model: Any, template: Template, target: Path) -> None:
    """Write weights, tokenizer and chat template as transformers reads them, in shards."""
    with load.quiet(), writing(target):
        model.save_pretrained(target, max_shard_size=SHARD)
        template.tokenizer.save_pretrained(target)


def compared(folder: Path, reference: verify.Logits, prompts: list[list[int]], what: str) -> dict[str, Any]:
    """Load what was saved and hold it against the reference."""
    model = original(recipe.Base(model=str(folder)))
    tolerance = verify.TOLERANCE[PRECISION.get(model.dtype, "bf16")]
    widen(model)
    return verify.require(verify.compare(reference, verify.logits(model, prompts), tolerance), what)


def jinja_of(parts: Parts) -> str:
    """A chat template that renders the pieces of a format without one, so that other programs use it too."""
    # A space before the reply is the reply's own, as in training: the prompt must not end with it.
    prompt = repr(parts.to_reply.removesuffix(" "))
    q = {name: repr(getattr(parts, name)) for name in Parts.__slots__ if name != "folds_system"}
    return (
        "{%- for message in messages -%}"
        "{%- if message.role == 'system' -%}{{ "
        + q["begin_system"]
        + " + message.content + "
        + q["system_to_user"]
        + " }}"
        "{%- elif message.role == 'user' -%}"
        "{%- if loop.first -%}{{ " + q["begin_user"] + " }}"
        "{%- elif loop.previtem.role == 'assistant' -%}{{ " + q["reply_to_user"] + " }}{%- endif -%}"
        "{{ message.content }}"
        "{%- else -%}{{ " + q["to_reply"] + " + message.content }}"
        "{%- if loop.last -%}{{ " + q["reply_end"] + " }}{%- endif -%}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ " + prompt + " }}{%- endif -%}"
    )
