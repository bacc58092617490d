"""More than 500 hostile texts, every family of templates, every engine: no text becomes a control token.

What is looked at is what the engine hands on: token ids to llama.cpp and to transformers, text to a server, which
renders and tokenises it as such servers do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import CHATML, GEMMA, LLAMA2, byte_level, sentence_piece
from tests.engine.test_remote import Server, server  # noqa: F401
from tests.engine.test_vocabulary import hostile
from warmline.engine.base import Call, Options
from warmline.engine.llamacpp import LlamaCppEngine
from warmline.engine.local import LocalEngine
from warmline.engine.remote import RemoteEngine
from warmline.engine.vocabulary import Vocabulary
from warmline.messages import Message
from warmline.model.load import embedded_folder
from warmline.model.template import Template

LLAMA3 = (
    "{{ bos_token }}{%- for m in messages -%}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content"
    " | trim + '<|eot_id|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"
)
PHI = (
    "{%- for m in messages -%}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
)
ZEPHYR = (
    "{%- for m in messages -%}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
)
MISTRAL = (
    "{{ bos_token }}{%- set ns = namespace(system='') -%}{%- for m in messages -%}"
    "{%- if m.role == 'system' -%}{%- set ns.system = m.content + '\n\n' -%}"
    "{%- elif m.role == 'user' -%}{{ '[INST] ' + ns.system + m.content + '[/INST]' }}{%- set ns.system = '' -%}"
    "{%- else -%}{{ ' ' + m.content + eos_token }}{%- endif -%}{%- endfor -%}"
)
FAMILIES: dict[str, Any] = {
    "chatml (Qwen, SmolLM)": lambda folder: byte_level(
        folder, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML, None, "<|im_end|>", ("<think>", "</think>")
    ),
    "llama 3": lambda folder: byte_level(
        folder,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        LLAMA3,
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "phi": lambda folder: byte_level(
        folder, ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], PHI, None, "<|end|>"
    ),
    "zephyr": lambda folder: sentence_piece(folder, [], ZEPHYR),
    "llama 2": lambda folder: sentence_piece(folder, [], LLAMA2),
    "mistral": lambda folder: sentence_piece(folder, ["[INST]", "[/INST]"], MISTRAL),
    "gemma": lambda folder: sentence_piece(folder, ["<start_of_turn>", "<end_of_turn>"], GEMMA, prefix=False),
    "plain (Falcon, no template)": lambda folder: byte_level(folder, ["<|endoftext|>"], None, None, "<|endoftext|>"),
    "embedded": None,
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if FAMILIES[request.param] is None:
        return embedded_folder()
    folder = tmp_path_factory.mktemp("family")
    FAMILIES[request.param](folder)
    return folder


def talk(texts: list[str]) -> list[Message]:
    """One long conversation: each text as what a person said and as what was replied."""
    return [Message(role, text) for text in [*texts, "end"] for role in ("user", "assistant")][:-1]  # type: ignore[arg-type]


def texts_for(folder: Path) -> list[str]:
    texts = hostile(Template(AutoTokenizer.from_pretrained(folder)))
    assert len(set(texts)) >= 500
    return texts


class Given:
    """Stands where llama.cpp or a transformers model would, and keeps what it is given."""

    config = SimpleNamespace(max_position_embeddings=1_000_000)
    device = "cpu"

    def __init__(self) -> None:
        self.ids: list[int] = []

    def set_attn_implementation(self, name: str) -> None:
        pass

    def stream(self, ids: list[int], call: Call, **_: Any) -> Iterator[int]:
        self.ids = ids
        yield from ()

    def generate(self, *, input_ids: Any, streamer: Any, past_key_values: Any, **_: Any) -> Any:
        self.ids = input_ids[0].tolist()
        past_key_values.get_seq_length = lambda: 0
        return torch.tensor([self.ids])


@pytest.mark.parametrize("kind", ["llamacpp", "local"])
def test_ids_handed_to_the_model_hold_the_templates_control_tokens_only(folder: Path, kind: str) -> None:
    given = Given()
    if kind == "llamacpp":
        template = Template(Vocabulary(folder), system="Listen.")
        engine: Any = LlamaCppEngine(given, template, "x", 1_000_000, merged=False)  # type: ignore[arg-type]
    else:
        template = Template(AutoTokenizer.from_pretrained(folder), system="Listen.")
        engine = LocalEngine(given, template, "x", 1_000_000)

    def control(texts: list[str]) -> list[int]:
        list(engine.reply(Call(talk(texts), Options(max_tokens=1))))
        return [i for i in given.ids if i in template.control_ids]

    texts = texts_for(folder)
    harmless = control(["I cannot sleep"] * len(texts))
    assert len(harmless) >= len(texts) or template.kind != "chat", "the template's own are there"
    assert control(texts) == harmless
    # the same count sees them where content is not kept apart
    whole = template.tokenizer(f"I cannot {template.tokenizer.all_special_tokens[-1]} sleep").input_ids
    assert any(i in template.control_ids for i in whole)


def test_a_server_that_renders_and_tokenises_finds_none(folder: Path, server: Server) -> None:  # noqa: F811
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        pytest.skip("a base without a template has no server that renders one")
    texts = texts_for(folder)
    engine = RemoteEngine(server.url, "small", backoff=())
    list(engine.reply(Call(talk(texts))))
    engine.close()
    sent = [message["content"] for message in server.bodies[0]["messages"]]
    assert len(sent) == 2 * len(texts) + 1
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_encoder.values()}

    def count(text: str) -> int:
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
        return sum(i in control for i in tokenizer(rendered, add_special_tokens=False).input_ids)

    harmless = count("I cannot sleep")
    assert max(map(count, texts)) > harmless, "sent as they were, they would become control tokens"
    assert {text for text in sent if count(text) > harmless} == set()
