"""A folder of safetensors as one GGUF file, tensor by tensor. Knows nothing of quantising below 16 bits.

llama.cpp names tensors differently and for some architectures wants their rows in another order or their numbers
shifted; every such difference is in `Shape`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

from warmline.errors import ModelError
from warmline.model.export.vocabulary import add_vocabulary
from warmline.runs import read_json, writing

ARCHITECTURES = {"llama": "llama", "qwen3": "qwen3", "gemma": "gemma", "gemma3_text": "gemma3", "falcon": "falcon"}
"""transformers' name → GGUF's."""

KINDS = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32, 4),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16, 2),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16, 2),
}
"""Name → the tensors' type, the file's type, bytes a weight."""

NATIVE = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""The kind that keeps a checkpoint's numbers as they are."""


def unsupported(what: str, hint: str = "export it as `merged` or `adapter` instead") -> ModelError:
    return ModelError(what, code="export-unsupported", hint=hint)


@dataclass(frozen=True)
class Shape:
    """What llama.cpp must know of a base, read from its config.json."""

    architecture: str
    config: dict[str, Any]
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """Raises ModelError for what llama.cpp's graph of the architecture does not compute."""
        kind = config.get("model_type")
        if kind not in ARCHITECTURES:
            raise unsupported(f"GGUF of a `{kind}` cannot be written; known are {', '.join(sorted(ARCHITECTURES))}")
        heads, width = config["num_attention_heads"], config["hidden_size"]
        kv_heads = config.get("num_key_value_heads") or heads
        if kind == "falcon":
            if config.get("alibi") or not config.get("parallel_attn") or config.get("bias"):
                raise unsupported("GGUF of a Falcon with ALiBi, biases or sequential attention cannot be written")
            # num_kv_heads of the older layout is filled in by transformers and means nothing there.
            kv_heads = 1 if config["multi_query"] else heads
            if config.get("new_decoder_architecture"):
                kv_heads = config["num_kv_heads"]
        return cls(
            architecture=ARCHITECTURES[kind],
            config=config,
            layers=config["num_hidden_layers"],
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            head_width=config.get("head_dim") or width // heads,
        )

    @property
    def names(self) -> Any:
        """Translates names of tensors."""
        known = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
        return gguf.get_tensor_name_map(known[self.architecture], self.layers)

    def rows(self, name: str, tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The tensor with its output rows in llama.cpp's order. An update of the weights is reordered just so."""
        layer = name.removesuffix(".weight").removesuffix(".bias")
        rest = tensor.shape[1:]
        if self.architecture == "llama" and layer.endswith(("q_proj", "k_proj")):
            # rotary pairs: halves apart in transformers, neighbours in llama.cpp
            n = self.heads if layer.endswith("q_proj") else self.kv_heads
            return tensor.reshape(n, 2, tensor.shape[0] // n // 2, *rest).swapaxes(1, 2).reshape(tensor.shape)
        if self.architecture == "falcon" and layer.endswith("query_key_value"):
            # groups of (queries, key, value) → all queries, all keys, all values
            groups = tensor.reshape(self.kv_heads, self.heads // self.kv_heads + 2, self.head_width, *rest)
            parts = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])
            return np.concatenate([part.reshape(-1, *rest) for part in parts])
        return tensor

    def numbers(self, name: str, tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The tensor as llama.cpp multiplies with it."""
        if self.architecture.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1  # Gemma multiplies by one plus the weight
        if self.architecture == "gemma3" and name.endswith("q_norm.weight"):
            # llama.cpp takes the attention's scale from the sizes; where a config says otherwise, the queries carry it.
            sizes = self.width // self.heads if self.layers == 62 else self.head_width
            tensor = tensor * math.sqrt(sizes / self.config["query_pre_attn_scalar"])
        return self.rows(name, tensor)

    def describe(self, writer: Any) -> None:
        """Write the sizes and constants."""
        config = self.config
        writer.add_block_count(self.layers)
        writer.add_embedding_length(self.width)
        writer.add_context_length(config.get("max_position_embeddings", 2048))
        writer.add_feed_forward_length(
            config.get("intermediate_size") or config.get("ffn_hidden_size") or 4 * self.width
        )
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_vocab_size(config["vocab_size"])
        if self.architecture == "falcon":
            writer.add_layer_norm_eps(config["layer_norm_epsilon"])
            writer.add_tensor_data_layout("jploski")
        else:
            writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
            writer.add_key_length(self.head_width)
            writer.add_value_length(self.head_width)
        if self.architecture == "llama":
            writer.add_rope_dimension_count(self.head_width)
        if self.architecture == "gemma3":
            if config.get("attn_logit_softcapping"):
                raise unsupported("GGUF of a Gemma 3 with capped attention logits cannot be written")
            if config.get("final_logit_softcapping"):
                writer.add_final_logit_softcapping(config["final_logit_softcapping"])
            writer.add_sliding_window(config["sliding_window"])
            writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
            writer.add_rope_freq_base_swa(float(config["rope_parameters"]["sliding_attention"]["rope_theta"]))
        elif "sliding_attention" in config.get("layer_types", ()):
            raise unsupported(f"GGUF of a {self.architecture} with a sliding window cannot be written")
        rope = self.rope
        writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
        if rope.get("rope_type") == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(rope["factor"]))
        elif rope.get("rope_type", "default") not in ("default", "llama3"):
            raise unsupported(f"GGUF with `{rope['rope_type']}` rotary scaling cannot be written")

    @property
    def rope(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config.get("rope_parameters") or {}
        return found.get("full_attention", found) if self.architecture == "gemma3" else found

    def rope_factors(self) -> np.ndarray[Any, Any] | None:
        """Llama 3's stretching of the slow rotations: a divisor for each frequency."""
        rope = self.rope
        if rope.get("rope_type") != "llama3":
            return None
        waves = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, self.head_width, 2) / self.head_width)
        old, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = np.clip((old / waves - low) / (high - low), 0, 1)
        factors: np.ndarray[Any, Any] = 1 / ((1 - smooth) / rope["factor"] + smooth)
        return factors.astype(np.float32)


def _stored(folder: Path) -> Iterator[tuple[Any, str]]:
    """An open file and the name of each tensor in it."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                yield file, name


def _encoded(tensor: np.ndarray[Any, Any], kind: Any) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(gguf.quants.quantize(tensor.astype(np.float32), kind))


def write_gguf(folder: Path, path: Path, kind: str, template: Any, licence: str | None = None) -> None:
    """Write the model in `folder` (config, safetensors, tokenizer.json) to `path`; one tensor in memory at a time.

    `kind` is one of `KINDS`. `template` is the run's: its end of turn and chat format go into the file.

    Raises:
        ModelError: llama.cpp cannot compute this model.
    """
    shape = Shape.of(read_json(folder / "config.json"))
    matrix, file_type, _ = KINDS[kind]
    tied = shape.config.get("tie_word_embeddings", False)
    names = shape.names
    plan: list[tuple[str, str, Any]] = []
    writer = gguf.GGUFWriter(path, shape.architecture)
    for file, name in _stored(folder):
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise unsupported(f"the base has a tensor `{name}` that llama.cpp does not know")
        dimensions = file.get_slice(name).get_shape()
        stored = gguf.GGMLQuantizationType.F32 if len(dimensions) == 1 else matrix
        size = math.prod(dimensions) * (4 if len(dimensions) == 1 else KINDS[kind][2])
        writer.add_tensor_info(new, dimensions, np.dtype(np.float32), size, raw_dtype=stored)
        plan.append((name, new, stored))
    factors = shape.rope_factors()
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.add_name(path.stem)
    writer.add_file_type(file_type)
    if licence:
        writer.add_license(licence)
    shape.describe(writer)
    add_vocabulary(writer, folder, shape.config["vocab_size"], template)
    with writing(path.parent):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        expected = iter(plan)
        for file, name in _stored(folder):
            if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
                continue
            _, _, stored = next(expected)
            tensor = file.get_tensor(name).to(torch.float32).numpy()
            writer.write_tensor_data(_encoded(shape.numbers(name, tensor), stored))
        if factors is not None:
            writer.write_tensor_data(factors)
        writer.close()


def write_lora(adapter: Path, path: Path, config: dict[str, Any]) -> None:
    """Write a peft adapter as a GGUF adapter, which llama.cpp puts on and takes off a loaded base.

    Raises:
        ModelError: the adapter is of a kind that llama.cpp cannot add; merging it works.
    """
    settings, shape = read_json(adapter / "adapter_config.json"), Shape.of(config)
    beyond = [key for key in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern") if settings.get(key)]
    if settings.get("peft_type") != "LORA" or beyond:
        raise unsupported(
            f"llama.cpp cannot add an adapter with {', '.join(beyond) or settings.get('peft_type')}",
            hint="leave out --lora-gguf: merged into the weights it works in every form",
        )
    names = shape.names
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_type("adapter")
    writer.add_name(path.stem)
    writer.add_string("adapter.type", "lora")
    # llama.cpp scales by alpha / rank, rank-stabilised LoRA by alpha / sqrt(rank)
    writer.add_float32(
        "adapter.lora.alpha", float(settings["lora_alpha"]) * (settings["r"] ** 0.5 if settings["use_rslora"] else 1)
    )
    for file, name in _stored(adapter):
        layer, side = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
        new = names.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        if new is None:
            raise unsupported(f"the adapter changes `{layer}`, which llama.cpp does not know")
        tensor = file.get_tensor(name).to(torch.float32).numpy()
        tensor = shape.rows(layer, tensor) if side == "B" else tensor
        writer.add_tensor(f"{new}.lora_{side.lower()}", np.ascontiguousarray(tensor))
    with writing(path.parent):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
