"""Small random models of the real architectures with their real classes, and runs of them; shared by all tests."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A busy machine is slow, not wrong: no test asserts a time.
settings.register_profile("warmline", deadline=None)
settings.load_profile("warmline")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ARCHITECTURES = ("llama", "falcon", "gemma", "gemma3", "qwen3")

SENTENCES = [
    "I cannot sleep at night and it worries me.",
    "What goes through your mind when you lie there?",
    "My mother says I think too much about work.",
    "That is a long time to carry it alone.",
    "Hello, I am here. What would you like to talk about?",
    "The kettle, the night bus, the shift rota: it never stops.",
]

CHATML = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"
    "{%- endif -%}"
)
GEMMA = (
    "{{ bos_token }}{%- if messages[0].role == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}"
    "{%- for m in messages -%}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim }}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
LLAMA2 = (
    "{%- set ns = namespace(system='') -%}{%- for m in messages -%}"
    "{%- if m.role == 'system' -%}{%- set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' -%}"
    "{%- elif m.role == 'user' -%}{{ bos_token + '[INST] ' + ns.system + m.content + ' [/INST]' }}"
    "{%- set ns.system = '' -%}"
    "{%- else -%}{{ ' ' + m.content + ' ' + eos_token }}{%- endif -%}{%- endfor -%}"
)


def byte_level(
    folder: Path, special: list[str], template: str | None, bos: str | None, eos: str, plain: tuple[str, ...] = ()
):
    """A byte-level BPE tokenizer as Llama 3, Qwen and Falcon have; `plain` are added tokens not marked special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        SENTENCES * 3,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos, chat_template=template)
    tokenizer.save_pretrained(folder)
    return tokenizer


def sentence_piece(folder: Path, special: list[str], template: str | None, prefix: bool = True):
    """A SentencePiece-style BPE tokenizer with byte fallback; `prefix`: a space before every text, as in Llama 2."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if prefix else []), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if prefix else [])
    )
    pieces = ["<unk>", "<s>", "</s>", *special, *(f"<0x{i:02X}>" for i in range(256))]
    backend.train_from_iterator(
        SENTENCES * 3, trainers.BpeTrainer(vocab_size=600, special_tokens=pieces, show_progress=False)
    )
    # Byte pieces are ordinary vocabulary in the real tokenizers, not control tokens.
    state = __import__("json").loads(backend.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    backend = Tokenizer.from_str(__import__("json").dumps(state))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special,
        chat_template=template,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_model(name: str, folder: Path) -> Path:
    """Save a random model of one architecture, with a tokenizer of its family, to `folder`."""
    import torch
    from transformers import (
        FalconConfig,
        FalconForCausalLM,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        GemmaConfig,
        GemmaForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    torch.manual_seed(7)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
    if name == "llama":
        tokenizer = sentence_piece(folder, [], LLAMA2)
        config = LlamaConfig(**shape, intermediate_size=128, num_key_value_heads=2, vocab_size=len(tokenizer))
        model = LlamaForCausalLM(config)
    elif name == "falcon":
        tokenizer = byte_level(folder, ["<|endoftext|>"], None, None, "<|endoftext|>")
        config = FalconConfig(**shape, vocab_size=len(tokenizer), multi_query=True, parallel_attn=True, bias=False)
        model = FalconForCausalLM(config)
    elif name in ("gemma", "gemma3"):
        tokenizer = sentence_piece(folder, ["<start_of_turn>", "<end_of_turn>"], GEMMA, prefix=False)
        common = {**shape, "intermediate_size": 128, "head_dim": 16, "vocab_size": len(tokenizer)}
        if name == "gemma":
            model = GemmaForCausalLM(GemmaConfig(**common, num_key_value_heads=1))
        else:
            window = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
            model = Gemma3ForCausalLM(Gemma3TextConfig(**common, num_key_value_heads=2, **window))
    else:
        tokenizer = byte_level(
            folder, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML, None, "<|im_end|>", ("<think>", "</think>")
        )
        config = Qwen3Config(
            **shape, intermediate_size=128, num_key_value_heads=2, head_dim=16, vocab_size=len(tokenizer)
        )
        model = Qwen3ForCausalLM(config)
    # Larger than the usual start, so that differences between conversations show in the logits.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make_model(name, root / name) for name in ARCHITECTURES}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public sets that some tests take as real input; a test that needs them is skipped where they are not."""
    folder = Path(os.environ.get("WARMLINE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the public data sets are not on this machine (WARMLINE_SHARED_DATA)")
    return folder


# ---------------------------------------------------------------------- a run, ready to be measured or exported

WORDS = tuple(
    "kettle night bus shift rota mother work sleep quiet winter letter kitchen window harbour ward garden school "
    "morning brother phone street rain music dog train paper doctor money cold tea".split()
)


def conversation(number: int, split: str):
    """Two messages that share no long sequence of words with any other."""
    from warmline.messages import Conversation, Message

    draw = random.Random(f"{split} {number}")
    asked = f"I keep thinking of {' and the '.join(draw.sample(WORDS, 7))}."
    said = f"What is it about {' and the '.join(draw.sample(WORDS, 5))} that stays with you?"
    return Conversation(f"{split}-{number}", (Message("user", asked), Message("assistant", said)))


def make_run(folder: Path, source: Path | str, /, *, epochs: float = 2.0, **changes: Any):
    """A run that was never trained: its adapter's random weights change its base visibly. `changes` are sections.

    Of ten held-out conversations the first stands in the training split too.
    """
    import torch

    from warmline import recipe
    from warmline.model import adapter, load
    from warmline.runs import Run, write_atomically, write_json, write_jsonl

    tree = {
        "name": folder.name,
        "base": {"model": str(source), "load": "fp32"} | changes.get("base", {}),
        "adapter": {"rank": 4, "alpha": 8} | changes.get("adapter", {}),
        "prompt": changes.get("prompt", {}),
        "evaluate": {"prompts": ["I cannot sleep.", "Hello."], "new_tokens": 8},
    }
    settings = recipe.parse(tree)
    run = Run.create(folder)
    write_atomically(folder / "recipe.yaml", recipe.dump(settings))
    write_json(folder / "environment.json", {"python": "3", "system": "test", "packages": {}})
    data = run.stage("data", {})
    at = data.begin()
    held_out = [conversation(n, "test") for n in range(10)]
    training = [conversation(n, "training") for n in range(12)]
    write_jsonl(at / "test.jsonl", (c.to_json() for c in held_out))
    write_jsonl(at / "train.jsonl", (c.to_json() for c in [*training, held_out[0]]))
    counts = {"train": 13, "read": 23, "val": 0, "test": 10}
    splits = {"train": {"conversations": 13, "words": 400}, "test": {"conversations": 10, "words": 300}}
    data.finish({"licences": ["MIT"], "counts": counts, "splits": splits, "rejects": {}, "sources": []}, {})
    train = run.stage("train", {"base": str(source)})
    plain = settings.base.model_copy(update={"load": "fp32"})
    model = adapter.add_adapter(load.load_model(plain), settings.adapter, seed=3)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    adapter.save_adapter(model, train.begin() / "adapter", load.identity(settings.base))
    counted = {"conversations": 13, "tokens": 900, "targets": 400, "split": 0, "left_out": 0}
    summary = {
        "steps": 3,
        "epochs": epochs,
        "seconds": 1.0,
        "targets_per_second": 9.0,
        "parameters": 1000,
        "trained": 100,
        "train": counted,
        "template": "chat",
        "best_validation": None,
        "best_step": 3,
        "loss": 1.0,
    }
    write_atomically(train.partial / "metrics.jsonl", '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    train.finish(summary, {})
    return run, settings
