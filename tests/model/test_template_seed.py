"""The seeds' own formats, faults included; and the words for bases, tokenizers and adapters that cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import CHATML, SENTENCES, byte_level, sentence_piece
from warmline import recipe
from warmline.errors import ModelError, RecipeError
from warmline.messages import Message
from warmline.model import adapter, load
from warmline.model.template import Template

ASKED, ANSWERED = SENTENCES[0], SENTENCES[1]
TALK = [Message("user", ASKED), Message("assistant", ANSWERED)]


def form(name: str, tokenizer: Any, **more: str) -> Template:
    prompt = recipe.load(name).prompt.model_copy(update={"template": "seed", **more})
    return Template.of(tokenizer, prompt)


def test_falcons_seed_teaches_no_end(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, ["<|endoftext|>"], None, None, "<|endoftext|>")
    template = form("falcon-7b-qlora", tokenizer)
    text = template.encode(TALK)
    assert tokenizer.decode(text.ids) == f"<HUMAN>: {ASKED}\n<ASSISTANT>: {ANSWERED}"
    assert tokenizer.eos_token_id not in text.ids, "the seed's fault"
    assert tokenizer.decode([i for i, s in zip(text.ids, text.supervised, strict=True) if s]) == f" {ANSWERED}"
    corrected = Template.of(tokenizer, recipe.load("falcon-7b-qlora").prompt).encode(TALK)
    assert corrected.ids[-1] == tokenizer.eos_token_id
    assert corrected.supervised[-1]
    asked = template.encode(TALK[:1], reply=True)
    assert text.ids[: len(asked)] == asked.ids, "one form for training and inference"
    twice = tokenizer.decode(template.encode(TALK * 2).ids)
    assert twice == "\n".join([f"<HUMAN>: {ASKED}\n<ASSISTANT>: {ANSWERED}"] * 2)


def test_llamas_seed_begins_twice_and_lacks_the_breaks(tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = sentence_piece(tmp_path, [], None)
    begin = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[begin])
    spelt = recipe.load("llama-2-7b-chat-qlora").prompt.seed_format
    own = tokenizer(spelt.format(system="Listen.", user=ASKED, reply=ANSWERED)).input_ids
    text = form("llama-2-7b-chat-qlora", tokenizer, system="Listen.").encode(TALK)
    assert text.ids[:2] == [tokenizer.bos_token_id] * 2 == own[:2], "the seed's fault"
    assert text.ids[-1] == own[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(text.ids).replace(" ", "") == tokenizer.decode(own).replace(" ", "")
    assert "\n" not in tokenizer.decode(text.ids)
    without = form("llama-2-7b-chat-qlora", tokenizer, system="").encode(TALK)
    assert "<<SYS>><</SYS>>" in tokenizer.decode(without.ids).replace(" ", "")


def test_gemmas_sibling_and_open_llamas_lines(tmp_path: Path) -> None:
    special = ["<start_of_turn>", "<end_of_turn>", "<eos>"]
    tokenizer = byte_level(tmp_path, ["<|endoftext|>", *special], None, None, "<eos>")
    text = form("gemma-2b-qlora", tokenizer).encode(TALK)
    assert tokenizer.decode(text.ids) == (
        f"<start_of_turn>user\n{ASKED}<end_of_turn>\n<start_of_turn>model\n{ANSWERED}<end_of_turn><eos>"
    )
    assert text.ids[-1] == tokenizer.convert_tokens_to_ids("<eos>")
    lines = form("open-llama-3b-int8-lora", tokenizer, system="Listen.").encode(TALK)
    assert tokenizer.decode(lines.ids) == f"Listen.\n### Instruction:\n   {ASKED}\n### Response:{ANSWERED}"


@given(st.text(alphabet=st.sampled_from("ab <>s/[]INST_SYuserm|\n"), max_size=40))
def test_what_a_person_writes_is_never_a_control_token(tokenizers_: dict[str, Any], words: str) -> None:
    for name, tokenizer in tokenizers_.items():
        template = form("llama-2-7b-chat-qlora", tokenizer, system="Listen.")
        usual = template.encode([Message("user", "a"), Message("assistant", "b")])
        for said in (words, f"{words}</s><s>[INST]<|im_end|>"):
            found = template.encode([Message("user", said), Message("assistant", said)])
            control = [sum(i in template.control_ids for i in text.ids) for text in (usual, found)]
            assert control[0] == control[1], name


@pytest.fixture(scope="module")
def tokenizers_(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "llama": sentence_piece(root / "llama", [], None),
        "qwen": byte_level(root / "qwen", ["<s>", "</s>", "<|im_end|>"], CHATML, "<s>", "</s>"),
    }


@pytest.mark.parametrize(
    "text",
    ["no slots", "{user}", "{reply}", "{reply}{user}", "{user}{reply}{user}", "{user}{system}{reply}"],
)
def test_a_format_without_its_slots_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="seed_format needs"):
        recipe.parse({"name": "x", "prompt": {"seed_format": text}})


def test_the_seeds_form_needs_a_seed() -> None:
    with pytest.raises(RecipeError, match="only the seeds' recipes have"):
        recipe.load("demo", ("prompt.template=seed",))


def test_a_tokenizer_that_cannot_end_a_reply_is_said_so(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, ["<|endoftext|>"], None, None, "<|endoftext|>")
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="could never end") as caught:
        Template(tokenizer)
    assert caught.value.code == "base-tokenizer"
    tokenizer = byte_level(tmp_path, ["<|endoftext|>"], None, None, "<|endoftext|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(ModelError, match="without a control token"):
        Template(tokenizer, "chat")
    Template(tokenizer, "plain")


def test_layers_that_are_not_there_are_named_beside_those_that_are(models: dict[str, Path]) -> None:
    model = load.load_model(recipe.Base(model=str(models["falcon"]), load="bf16"))
    with pytest.raises(ModelError) as caught:
        adapter.add_adapter(model, recipe.Adapter(targets=("q_proj", "dense", "k_proj")), 1)
    assert caught.value.code == "adapter-targets"
    assert "`q_proj`, `k_proj`" in caught.value.what
    assert "dense, dense_4h_to_h, dense_h_to_4h, query_key_value" in (caught.value.hint or "")


def test_an_adapter_of_another_base_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    base = recipe.Base(model=str(models["llama"]), load="bf16")
    tuned = adapter.add_adapter(load.load_model(base), recipe.Adapter(rank=2), 1)
    adapter.save_adapter(tuned, tmp_path, load.identity(base))
    other = recipe.Base(model=str(models["qwen3"]), load="bf16")
    with pytest.raises(ModelError, match="base-mismatch"):
        adapter.load_adapter(load.load_model(other), tmp_path, load.identity(other))


def test_a_gated_base_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: Any, **__: Any) -> None:
        raise GatedRepoError("401", response=httpx.Response(401, request=httpx.Request("GET", "https://hub.example")))

    monkeypatch.setattr(load.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ModelError, match="accepted licence and a login") as caught:
        load.load_config(recipe.Base(model="meta-llama/Llama-2-7b-chat-hf"))
    assert caught.value.code == "base-gated"
    assert "hf auth login" in (caught.value.hint or "")


def test_a_base_with_code_of_its_own_is_not_run(models: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(models["llama"], tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.Odd"}}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    (tmp_path / "odd" / "odd.py").write_text("raise SystemExit('this code was run')\n")
    with pytest.raises(ModelError) as caught:
        load.load_model(recipe.Base(model=str(tmp_path / "odd"), load="bf16"))
    assert caught.value.code == "base-remote-code"
    assert "base.trust_remote_code" in (caught.value.hint or "")


def test_weights_that_are_missing_are_never_made_up(models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(models["qwen3"], tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    weights = load_file(path)
    gone = sorted(name for name in weights if "layers.1." in name)
    save_file({name: w for name, w in weights.items() if name not in gone}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{len(gone)} of the weights") as caught:
        load.load_model(recipe.Base(model=str(tmp_path / "cut"), load="bf16"))
    assert caught.value.code == "base-weights"


def test_of_a_base_that_sees_pictures_the_part_that_reads_is_loaded(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    text |= {"head_dim": 16, "intermediate_size": 128, "vocab_size": 600, "sliding_window": 16}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vision |= {"image_size": 28, "patch_size": 14}
    whole = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision)).eval()
    whole.save_pretrained(tmp_path)
    part = load.load_model(recipe.Base(model=str(tmp_path), load="fp32"))
    assert type(part).__name__ == "Gemma3ForCausalLM"
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(whole(input_ids=ids).logits, part(input_ids=ids).logits, atol=1e-5)
    linear = {
        name for name, _ in adapter.add_adapter(part, recipe.Adapter(rank=2), 1).named_modules() if "lora_A" in name
    }
    assert linear
    assert not any("vision" in name for name in linear)
