"""GGUF files of the tiny models, for the engines that read them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SYSTEM = "Listen with care, ask one thing at a time and never diagnose. " * 4


@pytest.fixture(scope="session")
def gguf(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models whose speech differs enough to see a wrong cache, in full precision."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("LOUD: llama-cpp-python is not installed, so nothing of its engine was tested")
    from transformers import AutoTokenizer

    from warmline.model.export.weights import write_gguf
    from warmline.model.template import Template

    folder = tmp_path_factory.mktemp("gguf")
    for name, model in models.items():
        template = Template(AutoTokenizer.from_pretrained(str(model)))
        template.tokenizer.chat_template = template.tokenizer.chat_template or ""
        write_gguf(model, folder / f"{name}.gguf", "f32", template)
    return {name: folder / f"{name}.gguf" for name in models}
