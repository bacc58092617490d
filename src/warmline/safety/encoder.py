"""A small sentence encoder beside the words: how near a sentence comes to what people in danger say.

The Universal Sentence Encoder, lite (Cer et al. 2018, arXiv 1803.11175; weights under Apache-2.0), trained further by
`scripts/train_encoder.py` on the text that `scripts/train_screen.py` names: two transformer layers and three heads, in
numpy. Weights are stored in eight bits. Knows no levels and no rules.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

Array = NDArray[np.float32]

LONGEST = 128
"""Pieces of a sentence that are read; so many the encoder has learnt."""
HEADS = 4
_SPACE = "\u2581"
_UNKNOWN = -20.0


class Encoder:
    """Log-odds of the classifier's heads for sentences. `scripts/train_encoder.py` names the tensors."""

    def __init__(self, tensors: dict[str, Array], pieces: Sequence[tuple[str, float]]) -> None:
        self._t = tensors
        self._pieces = {piece: (score, place) for place, (piece, score) in enumerate(pieces) if piece}
        self._longest = max(map(len, self._pieces))
        self._layers = sum(name.endswith("qkv.weight") for name in tensors)

    def tokens(self, text: str) -> list[int]:
        """The pieces of a text by the likeliest segmentation (unigram, arXiv 1804.10959), at most `LONGEST`."""
        text = _SPACE + text.replace(" ", _SPACE)
        best = [0.0] + [-1e18] * len(text)
        back = [(0, 0)] * (len(text) + 1)
        for start, here in enumerate(best[:-1]):
            here = best[start]
            for end in range(start + 1, min(len(text), start + self._longest) + 1):
                found = self._pieces.get(text[start:end])
                score, place = found if found else (_UNKNOWN if end == start + 1 else -1e18, 0)
                if here + score > best[end]:
                    best[end], back[end] = here + score, (start, place)
        ids: list[int] = []
        end = len(text)
        while end:
            end, place = back[end]
            ids.append(place)
        return ids[::-1][:LONGEST]

    def odds(self, sentences: Sequence[Sequence[int]]) -> Array:
        """Log-odds [sentences, heads] of sentences given as `tokens`; each is read by itself, and none may be empty."""
        return self.opinion(self.read(sentences))

    def read(self, sentences: Sequence[Sequence[int]]) -> Array:
        """What each sentence means [sentences, width], as the mean over its pieces; such means may be averaged."""
        t = self._t
        lengths = [len(ids) for ids in sentences]
        ends = np.cumsum(lengths, dtype=np.intp)
        places = np.concatenate([np.arange(n, dtype=np.float32) for n in lengths])[:, None] * t["timing"]
        x = 2 * t["embedding"][np.concatenate([np.asarray(ids) for ids in sentences])]
        x = x + np.concatenate([np.sin(places), np.cos(places)], 1)
        for layer in map(str, range(self._layers)):
            rest = self._linear(x, "widen") if layer == "0" else x
            mixed = self._linear(self._norm(x, f"{layer}.norm"), f"{layer}.qkv")
            x = self._linear(self._attend(mixed, lengths, ends), f"{layer}.out") + rest
            inner = np.maximum(self._linear(self._norm(x, f"{layer}.ffn_norm"), f"{layer}.up"), 0)
            x = x + self._linear(inner, f"{layer}.down")
        total = np.add.reduceat(x, ends - np.asarray(lengths), 0)
        mean: Array = (total / np.asarray(lengths)[:, None]).astype(np.float32)
        return mean

    def meaning(self, read: Array) -> Array:
        """Sentence vectors of length 1 from what `read` gave."""
        meant: Array = np.tanh(self._linear(read, "sentence"))
        meant /= np.linalg.norm(meant, axis=1, keepdims=True)
        return meant

    def opinion(self, read: Array) -> Array:
        """Log-odds of the heads from what `read` gave."""
        return self._linear(self.meaning(read), "heads")

    def _attend(self, mixed: Array, lengths: Sequence[int], ends: Any) -> Array:
        width = mixed.shape[1] // 3
        found = np.empty((len(mixed), width), np.float32)
        for n, end in zip(lengths, ends, strict=True):
            rows = slice(end - n, end)
            query, key, value = mixed[rows].reshape(n, 3, HEADS, -1).transpose(1, 2, 0, 3)
            weight = query @ key.transpose(0, 2, 1) * np.float32((width // HEADS) ** -0.5)
            weight = np.exp(weight - weight.max(-1, keepdims=True))
            weight /= weight.sum(-1, keepdims=True)
            found[rows] = (weight @ value).transpose(1, 0, 2).reshape(n, width)
        return found

    def _linear(self, x: Array, name: str) -> Array:
        made: Array = x @ self._t[f"{name}.weight"] + self._t[f"{name}.bias"]
        return made

    def _norm(self, x: Array, name: str) -> Array:
        apart = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((apart * apart).mean(-1, keepdims=True) + 1e-6)
        made: Array = apart / spread * self._t[f"{name}.weight"] + self._t[f"{name}.bias"]
        return made


@cache
def shipped() -> Encoder:
    """The shipped encoder. About 25 MB in memory."""
    table = resources.files("warmline.safety.tables") / "encoder.safetensors"
    with resources.as_file(table) as path, safe_open(path, "np") as file:
        names = file.keys()
        stored = {name: file.get_tensor(name) for name in names}
        pieces = json.loads(file.metadata()["pieces"])
    tensors = {
        name: value.astype(np.float32) * (stored[f"{name}.scale"] if value.dtype == np.int8 else np.float32(1))
        for name, value in stored.items()
        if not name.endswith(".scale")
    }
    return Encoder(tensors, [(piece, score) for piece, score in pieces])
