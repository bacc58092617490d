"""A base in outline: every size of it, none of its weights. Knows nothing of machines or time.

Only the configuration is read. A base that a shipped recipe names need not even be on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from warmline import recipe
from warmline.errors import ModelError
from warmline.model import load, scratch
from warmline.model.adapter import add_adapter
from warmline.model.pack import takes_told

SAME_INPUT = frozenset({"k_proj", "v_proj", "up_proj"})
"""Layers that read what `q_proj` or `gate_proj` beside them reads: it is kept once."""


@dataclass(frozen=True, slots=True)
class Outline:
    """What can be said of a base and its adapter before any weight is loaded. Counts are of numbers, not of bytes."""

    total: int
    trained: int
    matrices: int
    """Parameters in linear layers, the head left out: what NF4 and int8 store in few bits."""
    largest: int
    """Of these, those of the largest layer, which is dequantised whole."""
    kept: int
    """Numbers kept for the backward pass for each token: inputs and outputs of all linear layers."""
    attended: int
    """Of these, queries, keys, values and what attention makes of them."""
    scores: int
    """Attention scores kept for each token and each that it sees; 0 where attention is computed in blocks."""
    layers: int
    width: int
    widest: int
    vocabulary: int
    context: int | None
    """Longest text the base was made for, if it says so."""


@lru_cache(maxsize=16)
def outline(base: recipe.Base, adapter: recipe.Adapter) -> Outline:
    """Measure a base and the adapter it would get.

    Raises:
        ModelError: the configuration cannot be had, or the adapter's target modules do not exist.
    """
    model = _hollow(base)
    head = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    sizes = [module.weight.numel() for module in linear.values()]
    inputs = [module.in_features for name, module in linear.items() if name.rpartition(".")[2] not in SAME_INPUT]
    outputs = [module.out_features for module in linear.values()]
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        groups = 1  # Falcon
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = total
    if adapter.method == "lora":
        wrapped = add_adapter(model, adapter, 0)
        trained = sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)
    return Outline(
        total=total,
        trained=trained,
        matrices=sum(sizes),
        largest=max(sizes, default=0),
        kept=sum(inputs) + sum(outputs),
        attended=2 * (heads + groups) * head_width * config.num_hidden_layers,
        scores=0 if model._supports_attention_backend or takes_told(model) else heads * config.num_hidden_layers,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        widest=max(outputs, default=config.hidden_size),
        vocabulary=config.vocab_size,
        context=getattr(config, "max_position_embeddings", None),
    )


def _hollow(base: recipe.Base) -> Any:
    """The base's modules without memory behind them."""
    if base.model == "new":
        config = scratch.configuration(base.new, base.new.vocabulary)
    else:
        known = yaml.safe_load((resources.files("warmline") / "model" / "shapes.yaml").read_text("utf-8"))
        try:
            config = load.load_config(base, here=base.model in known)
        except ModelError:
            if base.model not in known:
                raise
            config = AutoConfig.for_model(**known[base.model])
    with load.explained(base.model), load.quiet(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=base.trust_remote_code)
