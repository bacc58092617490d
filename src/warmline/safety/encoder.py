"""A small sentence encoder beside the words: how near a sentence comes to what people in danger say.

The Universal Sentence Encoder, lite (Cer et al. 2018, arXiv 1803.11175; weights under Apache-2.0), trained further by
`scripts/train_encoder.py` on the text that `scripts/train_screen.py` names: two transformer layers and three heads, in
numpy. Weights are stored in eight bits. Knows no levels and no rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
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
_BLOCK = 64
_SMALL = 1_000_000
"""Up to so many multiplications OpenBLAS reads a matrix where it lies. For larger products it copies it first, which
costs as much as the product of a message's few rows: so weights lie in blocks of columns, and rows are shared out."""


class Encoder:
    """Log-odds of the classifier's heads for sentences. `scripts/train_encoder.py` names the tensors."""

    def __init__(self, tensors: Mapping[str, Array], pieces: Sequence[tuple[str, float]]) -> None:
        self._t = {name: _blocks(value) if name.endswith(".weight") else value for name, value in tensors.items()}
        self._pieces = {piece: (score, place) for place, (piece, score) in enumerate(pieces) if piece}
        self._longest = max(map(len, self._pieces))
        self._layers = sum(name.endswith("qkv.weight") for name in tensors)
        self._word = lru_cache(maxsize=16384)(self._segmented)
        if "timing" in tensors:
            places = np.arange(LONGEST, dtype=np.float32)[:, None] * tensors["timing"]
            self._places = np.concatenate([np.sin(places), np.cos(places)], 1)

    def tokens(self, text: str) -> list[int]:
        """The pieces of a text by the likeliest segmentation (unigram, arXiv 1804.10959), at most `LONGEST`.

        No piece reaches over a space, so each word is taken apart by itself.
        """
        ids: list[int] = []
        for word in text.split(" "):
            ids += self._word(word) if len(word) <= LONGEST else self._segmented(word)
            if len(ids) >= LONGEST:
                break
        return ids[:LONGEST]

    def _segmented(self, word: str) -> tuple[int, ...]:
        text = _SPACE + word
        best = [0.0] + [-1e18] * len(text)
        back = [(0, 0)] * (len(text) + 1)
        for start in range(len(text)):
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
        return tuple(ids[::-1])

    def odds(self, sentences: Sequence[Sequence[int]]) -> Array:
        """Log-odds [sentences, heads] of sentences given as `tokens`; each is read by itself, and none may be empty."""
        return self.opinion(self.read(sentences))

    def read(self, sentences: Sequence[Sequence[int]]) -> Array:
        """What each sentence means [sentences, width], as the mean over its pieces; such means may be averaged."""
        lengths = [len(ids) for ids in sentences]
        starts = np.cumsum([0, *lengths[:-1]])
        x: Array = 2 * self._t["embedding"][np.concatenate([np.asarray(ids) for ids in sentences])]
        x += np.concatenate([self._places[:n] for n in lengths])
        for layer in map(str, range(self._layers)):
            rest = self._linear(x, "widen") if layer == "0" else x
            mixed = self._linear(self._norm(x, f"{layer}.norm"), f"{layer}.qkv")
            x = self._linear(self._attend(mixed, lengths, starts), f"{layer}.out")
            x += rest
            inner = self._linear(self._norm(x, f"{layer}.ffn_norm"), f"{layer}.up")
            np.maximum(inner, 0, out=inner)
            if layer == str(self._layers - 1):
                # the last step is linear and only its mean is asked for
                x, inner = _means(x, lengths, starts), _means(inner, lengths, starts)
            x += self._linear(inner, f"{layer}.down")
        return x

    def meaning(self, read: Array) -> Array:
        """Sentence vectors of length 1 from what `read` gave."""
        meant: Array = np.tanh(self._linear(read, "sentence"))
        meant /= np.linalg.norm(meant, axis=1, keepdims=True)
        return meant

    def opinion(self, read: Array) -> Array:
        """Log-odds of the heads from what `read` gave."""
        return self._linear(self.meaning(read), "heads")

    def _attend(self, mixed: Array, lengths: Sequence[int], starts: Any) -> Array:
        width = mixed.shape[1] // 3
        found = np.empty((len(mixed), width), np.float32)
        mixed[:, :width] *= np.float32((width // HEADS) ** -0.5)
        for n, start in zip(lengths, starts, strict=True):
            rows = slice(start, start + n)
            query, key, value = mixed[rows].reshape(n, 3, HEADS, -1).transpose(1, 2, 0, 3)
            weight = query @ key.transpose(0, 2, 1)
            weight -= weight.max(-1, keepdims=True)
            np.exp(weight, out=weight)
            weight /= weight.sum(-1, keepdims=True)
            np.matmul(weight, value, out=found[rows].reshape(n, HEADS, -1).transpose(1, 0, 2))
        return found

    def _linear(self, x: Array, name: str) -> Array:
        blocks, bias = self._t[f"{name}.weight"], self._t[f"{name}.bias"]
        count, deep, wide = blocks.shape
        made: Array = np.empty((len(x), len(bias)), np.float32)
        step = max(1, _SMALL // (deep * wide))
        step = -(-len(x) // -(-len(x) // step))
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            np.matmul(x[rows], blocks, out=made[rows].reshape(-1, count, wide).transpose(1, 0, 2))
        made += bias
        return made

    def _norm(self, x: Array, name: str) -> Array:
        apart: Array = x - x.mean(-1, keepdims=True)
        spread = np.einsum("ij,ij->i", apart, apart)[:, None] / np.float32(x.shape[1])
        apart /= np.sqrt(spread + np.float32(1e-6))
        apart *= self._t[f"{name}.weight"]
        apart += self._t[f"{name}.bias"]
        return apart


def _blocks(weight: Array) -> Array:
    """A matrix [rows, columns] as [blocks, rows, columns of a block], one block after the other; others as they are."""
    if weight.ndim != 2:
        return weight
    wide = _BLOCK if weight.shape[1] % _BLOCK == 0 else weight.shape[1]
    return np.ascontiguousarray(weight.reshape(len(weight), -1, wide).transpose(1, 0, 2))


def _means(rows: Array, lengths: Sequence[int], starts: Any) -> Array:
    total: Array = np.add.reduceat(rows, starts, 0)
    total /= np.array(lengths, np.float32)[:, None]
    return total


def stored() -> tuple[dict[str, Array], list[tuple[str, float]]]:
    """The shipped tensors and word pieces."""
    table = resources.files("warmline.safety.tables") / "encoder.safetensors"
    with resources.as_file(table) as path, safe_open(path, "np") as file:
        names = file.keys()
        kept = {name: file.get_tensor(name) for name in names}
        pieces = json.loads(file.metadata()["pieces"])
    tensors = {
        name: value.astype(np.float32) * (kept[f"{name}.scale"] if value.dtype == np.int8 else np.float32(1))
        for name, value in kept.items()
        if not name.endswith(".scale")
    }
    return tensors, [(piece, score) for piece, score in pieces]


@cache
def shipped() -> Encoder:
    """The shipped encoder. About 25 MB in memory."""
    return Encoder(*stored())
