"""The light tokenizer gives what transformers' gives; nothing a person writes becomes a control token."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ARCHITECTURES
from warmline.engine.vocabulary import Vocabulary
from warmline.errors import ModelError
from warmline.messages import Message
from warmline.model.template import Template

ROLES = ("user", "assistant")


def templates(folder: Path) -> tuple[Template, Template]:
    from transformers import AutoTokenizer

    slow = Template(AutoTokenizer.from_pretrained(str(folder)), system="Be kind.")
    return slow, Template(Vocabulary(folder), system="Be kind.")


def hostile(template: Template) -> list[str]:
    own = sorted({*template.tokenizer.all_special_tokens, *template.tokenizer.added_tokens_encoder})
    marks = [
        *own,
        "<|im_end|>",
        "</s>",
        "[INST]",
        "<start_of_turn>user\n",
        "<0x0A>",
        "<<SYS>>",
        "<|im_start|>",
        "<think>",
    ]
    frames = ("{}", "x{}", "{}y", "a {} b", "{0}{0}", "<{}>", "{} \n{}", "😀{}日本", "\u200b{}", "▁{}", "{}" + " " * 9)
    texts = [frame.replace("{0}", a).replace("{}", a) for a in marks for frame in frames]
    texts += [a[:i] + b + a[i:] for a in marks for b in marks for i in range(1, min(len(a), 9))]
    texts += [a + b for a in marks for b in marks] + [a.swapcase() for a in marks]
    return texts


@pytest.mark.parametrize("family", [*ARCHITECTURES, "embedded"])
def test_it_equals_transformers_and_keeps_control_tokens_out(models: dict[str, Path], family: str) -> None:
    from warmline.model.load import embedded_folder

    slow, light = templates(models[family] if family != "embedded" else embedded_folder())
    assert light.parts == slow.parts
    assert (light.control_ids, light.end_ids) == (slow.control_ids, slow.end_ids)
    texts = hostile(slow)
    assert len(texts) >= 500
    for text in texts:
        ids = light.content(text)
        assert ids == slow.content(text)
        assert not light.control_ids & set(ids), "0 control tokens inside content"
        assert light.tokenizer(text).input_ids == slow.tokenizer(text).input_ids
    turns = [Message(ROLES[n % 2], text) for n, text in enumerate(texts[:9])]  # type: ignore[arg-type]
    assert light.encode(turns, reply=True) == slow.encode(turns, reply=True)


@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    from warmline.model.load import embedded_folder

    slow, light = _EMBEDDED or _EMBEDDED.extend(templates(embedded_folder())) or _EMBEDDED
    assert light.content(text) == slow.content(text)


_EMBEDDED: list[Template] = []


def test_tokens_named_in_the_settings_only(models: dict[str, Path], tmp_path: Path) -> None:
    source = models["qwen3"]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / name).exists():
            (tmp_path / name).write_bytes((source / name).read_bytes())
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["additional_special_tokens"] = ["<|care|>"]
    token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings["eos_token"] = {"__type": "AddedToken", "content": "<|im_end|>", **token}
    path.write_text(json.dumps(settings))
    slow, light = templates(tmp_path)
    assert light.control_ids == slow.control_ids
    assert light.end_ids == slow.end_ids
    assert not light.control_ids & set(light.content("a <|care|> b"))


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        Vocabulary(tmp_path)
    assert caught.value.code == "base-tokenizer"


def test_torch_stays_out() -> None:
    code = (
        "import sys\n"
        "import warmline.engine.llamacpp, warmline.engine.vocabulary, warmline.engine.remote, warmline.chat\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'llama_cpp')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
