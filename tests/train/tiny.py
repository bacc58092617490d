"""A model of a few thousand weights with texts of made-up tokens: enough for the loop, made in milliseconds.

A step of twelve texts is about 150 tokens: three packs of 64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from warmline import recipe
from warmline.model.template import Encoded
from warmline.train.loop import Loop


def model(dropout: float = 0.0, width: int = 16) -> Any:
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=64,
        attention_dropout=dropout,
    )
    return LlamaForCausalLM(config)


def texts(count: int, seed: int = 0) -> list[Encoded]:
    """Texts of 6 to 20 tokens, the second half of each supervised."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        length = int(torch.randint(6, 21, (), generator=generator))
        ids = torch.randint(0, 64, (length,), generator=generator).tolist()
        made.append(Encoded(ids, [place >= length // 2 for place in range(length)], f"c{number}"))
    return made


def settings(**changes: Any) -> recipe.Train:
    given = {"steps": 8, "batch": 12, "pack": 64, "learning_rate": 0.01, "validate_every": 3, "save_every": 2}
    return recipe.Train(**(given | changes))


def loop(folder: Path, train: recipe.Train, *, dropout: float = 0.0, width: int = 16, **more: Any) -> Loop:
    return Loop(model(dropout, width), texts(13), texts(3, seed=1), train, folder, **more)
