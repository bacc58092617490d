"""GGUF: the next tokens of transformers on every architecture, tokens that round-trip, faults that are seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ARCHITECTURES, LLAMA2, SENTENCES, byte_level
from tests.export.conftest import make_run, needs_llama_cpp
from warmline import recipe
from warmline.errors import ModelError
from warmline.model import load
from warmline.model.export import QUANTS, make, merge, verify, vocabulary, weights
from warmline.model.template import Template
from warmline.runs import Run, read_json

Make = Callable[..., tuple[Run, recipe.Recipe]]


@needs_llama_cpp
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_in_every_format_says_what_the_trained_model_says(run_of: Make, name: str) -> None:
    run, chosen = run_of(name)
    stage = make.export(run, chosen, [*(f"gguf:{quant}" for quant in QUANTS), "gguf:lora"])
    verified = stage.manifest["summary"]["verified"]
    assert set(verified) == {*(f"gguf:{quant}" for quant in QUANTS), "gguf:lora"}
    for form in ("gguf:f32", "gguf:f16", "gguf:lora"):
        assert verified[form]["same_choice"] > 0.98, form
        assert verified[form]["tokens"]["same_tokens"] == verified[form]["tokens"]["texts"]
    sizes = [(stage.folder / "gguf" / verified[f"gguf:{q}"]["file"]).stat().st_size for q in QUANTS]
    assert sizes == sorted(sizes, reverse=True)
    left = {str(path.relative_to(stage.folder)) for path in stage.folder.rglob("*") if path.is_file()}
    expected = {f"gguf/{row['file']}" for row in verified.values()} | {f"gguf/{verified['gguf:lora']['base']}"}
    assert left == expected | {"gguf/README.md", "verified.json", "MANIFEST.json"}, "no scratch stays"


@needs_llama_cpp
def test_the_adapter_apart_is_off_and_on_what_base_and_tuned_are(run_of: Make) -> None:
    run, chosen = run_of("llama", adapter={"rslora": True})
    folder = make.export(run, chosen, ["gguf:lora"]).folder / "gguf"
    base, lora = folder / "llama-run-base-f32.gguf", folder / "llama-run-lora.gguf"
    template = Template(load.load_tokenizer(chosen.base))
    ids = verify.prompt_ids(template)
    plain = verify.logits(merge.original(chosen.base), ids)
    off, on = verify.gguf_logits(base, ids), verify.gguf_logits(base, ids, lora)
    assert verify.compare(plain, off, 0.005).kept
    assert not verify.compare(plain, on, 0.1).kept, "switched on it is another model"


@needs_llama_cpp
def test_an_adapter_that_llama_cpp_cannot_add_is_refused_apart_and_merged_all_the_same(run_of: Make) -> None:
    run, chosen = run_of("qwen3", adapter={"dora": True})
    with pytest.raises(ModelError) as caught:
        make.export(run, chosen, ["gguf:lora"])
    assert caught.value.code == "export-unsupported"
    assert "use_dora" in str(caught.value)
    make.export(run, chosen, ["gguf:f16"])


@needs_llama_cpp
def test_a_base_trained_whole_needs_no_adapter(models: dict[str, Path], run_of: Make) -> None:
    run, chosen = run_of("qwen3")
    shutil.rmtree(run.folder / "train" / "adapter")
    shutil.copytree(models["qwen3"], run.folder / "train" / "model")
    whole = chosen.model_copy(update={"adapter": recipe.Adapter(method="full")})
    verified = make.export(run, whole, ["gguf:f16", "merged"]).manifest["summary"]["verified"]
    assert verified["gguf:f16"]["same_choice"] > 0.98
    with pytest.raises(ModelError) as caught:
        make.export(run, whole, ["adapter"])
    assert caught.value.code == "adapter-missing"


FAULTS: dict[str, tuple[str, Callable[[weights.Shape, str, Any], Any]]] = {
    "rotary rows not reordered": ("llama", lambda shape, name, tensor: tensor),
    "norms not shifted": ("gemma", lambda shape, name, tensor: shape.rows(name, tensor)),
    "attention scale not carried": ("gemma3", lambda shape, name, tensor: tensor + 1 if "norm" in name else tensor),
    "one matrix turned round": ("qwen3", lambda shape, name, tensor: tensor[::-1] if "up_proj" in name else tensor),
    "embeddings off by one": (
        "falcon",
        lambda shape, name, tensor: np.roll(tensor, 1, 0) if "embed" in name else tensor,
    ),
    "not a number": ("qwen3", lambda shape, name, tensor: tensor * np.nan if "down_proj" in name else tensor),
}


@needs_llama_cpp
@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_written_wrongly_is_seen(run_of: Make, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    name, numbers = FAULTS[fault]
    run, chosen = run_of(name)
    monkeypatch.setattr(weights.Shape, "numbers", lambda self, label, tensor: numbers(self, label, tensor))
    with pytest.raises(ModelError) as caught:
        make.export(run, chosen, ["gguf:q4_0"])
    assert caught.value.code == "export-differs"
    assert not list(run.folder.rglob("*.gguf")), "a file that failed does not stay"


@needs_llama_cpp
def test_a_vocabulary_written_wrongly_is_seen(run_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(path: Path) -> Any:
        state = read_json(path)
        state["model"]["merges"].reverse()
        return state

    monkeypatch.setattr(vocabulary, "read_json", spoilt)
    run, chosen = run_of("qwen3")
    with pytest.raises(ModelError) as caught:
        make.export(run, chosen, ["gguf:f16"])
    assert caught.value.code == "export-differs"
    assert "ordinary text" in str(caught.value)
    assert "anxious" not in str(caught.value)


@needs_llama_cpp
def test_a_damaged_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(ModelError) as caught:
        verify.gguf_logits(tmp_path / "bad.gguf", [[1, 2]])
    assert caught.value.code == "export-differs"


@pytest.fixture(scope="module")
def one_file(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    made = {}
    for name in ("llama", "gemma", "qwen3"):
        tokenizer = load.load_tokenizer(recipe.Base(model=str(models[name])))
        path = tmp_path_factory.mktemp(name) / "model.gguf"
        weights.write_gguf(models[name], path, "f16", Template(tokenizer))
        made[name] = (path, tokenizer)
    return made


@needs_llama_cpp
@pytest.mark.parametrize("name", ["llama", "gemma", "qwen3"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_text_becomes_the_tokens_of_transformers(
    one_file: dict[str, tuple[Path, Any]], name: str, data: st.DataObject
) -> None:
    path, tokenizer = one_file[name]
    pieces = st.one_of(
        st.text(max_size=12), st.sampled_from([*tokenizer.added_tokens_encoder, "\n", "  ", "don't", "42"])
    )
    text = "".join(data.draw(st.lists(pieces, max_size=6)))
    text = text.replace("\0", "").replace("\u2581", "")  # C strings end at NUL; ▁ is SentencePiece's own space
    expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    with verify.opened(path) as model:
        ids = model.tokenize(text.encode(), add_bos=False, special=False)
        back = verify.spelt(model, ids).decode()
    assert ids == expected
    assert text in (back, back.removeprefix(" "))


def test_falcons_groups_become_queries_then_keys_then_values() -> None:
    shape = weights.Shape("falcon", {}, 1, width=12, heads=6, kv_heads=2, head_width=2)
    order = ["q0", "q1", "q2", "k0", "v0", "q3", "q4", "q5", "k1", "v1"]
    rows = np.array([[label] * 3 for label in order for _ in range(2)])
    after = shape.rows("transformer.h.0.self_attention.query_key_value.weight", rows)
    assert list(after[::2, 0]) == ["q0", "q1", "q2", "q3", "q4", "q5", "k0", "k1", "v0", "v1"]


@needs_llama_cpp
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                    "rope_theta": 10000.0,
                }
            },
        ),
    ],
)
def test_variants_of_the_architectures(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = byte_level(tmp_path / "base", ["<|endoftext|>"], None, None, "<|endoftext|>")
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
    more = {"vocab_size": len(tokenizer)}
    more |= {"intermediate_size": 128, "num_key_value_heads": 2} if kind == "llama" else {"bias": False}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **more, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn(parameter.shape) * (0.08 if parameter.dim() > 1 else 0.3) + (parameter.dim() < 2)
            )
    model.save_pretrained(tmp_path / "base")
    run, chosen = make_run(tmp_path / "runs" / "variant", tmp_path / "base")
    verified = make.export(run, chosen, ["gguf:f16", "gguf:lora"]).manifest["summary"]["verified"]
    assert verified["gguf:f16"]["same_choice"] > 0.95


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"model_type": "falcon", "alibi": True}, "ALiBi"),
        ({"layer_types": ["sliding_attention"]}, "sliding"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    models: dict[str, Path], change: dict[str, Any], named: str
) -> None:
    config = read_json(models["llama"] / "config.json") | change
    with pytest.raises(ModelError) as caught:
        weights.Shape.of(config).describe(_Sink())
    assert caught.value.code == "export-unsupported"
    assert named in str(caught.value)


class _Sink:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def test_a_vocabulary_that_llama_cpp_does_not_have_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    for file in models["qwen3"].iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    state = read_json(tmp_path / "tokenizer.json")
    template = Template(load.load_tokenizer(recipe.Base(model=str(models["qwen3"]))))
    for spoilt in (
        state | {"model": state["model"] | {"type": "Unigram"}},
        state | {"pre_tokenizer": {"type": "Whitespace"}},
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(spoilt))
        with pytest.raises(ModelError) as caught:
            vocabulary.add_vocabulary(_Sink(), tmp_path, state["model"].get("size", 390), template)
        assert caught.value.code == "export-unsupported"


SPLITS: list[tuple[dict[str, Any], str]] = [
    ({"type": "ByteLevel", "use_regex": True}, "gpt-2"),
    (
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        },
        "smollm",
    ),
    (
        {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {
                        "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                    },
                    "behavior": "Isolated",
                },
                {"type": "ByteLevel", "use_regex": False},
            ],
        },
        "qwen2",
    ),
    (
        {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {
                        "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                    },
                },
                {"type": "ByteLevel", "use_regex": False},
            ],
        },
        "llama-bpe",
    ),
    (
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Punctuation", "behavior": "Contiguous"},
                {"type": "ByteLevel", "use_regex": True},
                {"type": "Digits", "individual_digits": False},
                {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}},
            ],
        },
        "falcon",
    ),
]


@pytest.mark.parametrize(("pre", "name"), SPLITS, ids=[name for _, name in SPLITS])
def test_ways_to_cut_text_are_known_by_their_rules(pre: dict[str, Any], name: str) -> None:
    assert vocabulary.splitter(pre) == name


@needs_llama_cpp
@pytest.mark.parametrize(("pre", "name"), SPLITS, ids=[name for _, name in SPLITS])
def test_llama_cpp_cuts_as_those_rules_say(tmp_path: Path, pre: dict[str, Any], name: str) -> None:
    """The real families' rules on a tiny vocabulary: learnt, written, and held against transformers on hostile text."""
    from tokenizers import Tokenizer, decoders, models, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    empty = json.loads(Tokenizer(models.BPE()).to_str())
    defaults = {"add_prefix_space": False, "trim_offsets": True, "behavior": "Isolated", "invert": False}
    full = json.loads(json.dumps(pre))
    for step in full.get("pretokenizers", [full]):
        for key, value in defaults.items():
            if (step["type"], key) in {
                ("ByteLevel", "add_prefix_space"),
                ("ByteLevel", "trim_offsets"),
                ("Split", "behavior"),
                ("Split", "invert"),
            }:
                step.setdefault(key, value)
    backend = Tokenizer.from_str(json.dumps(empty | {"pre_tokenizer": full}))
    backend.decoder = decoders.ByteLevel()
    from tokenizers import pre_tokenizers

    text = [turn for turns in verify.PROMPTS for turn in turns] + list(verify.HOSTILE)
    backend.train_from_iterator(
        text * 3,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path)
    shape = LlamaConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=len(tokenizer)
    )
    LlamaForCausalLM(shape).save_pretrained(tmp_path)
    template = Template(load.load_tokenizer(recipe.Base(model=str(tmp_path))))
    tokenizer.chat_template = template.tokenizer.chat_template = ""
    weights.write_gguf(tmp_path, tmp_path / "m.gguf", "f16", template)
    found = verify.check_tokens(tmp_path / "m.gguf", template.tokenizer)
    assert found["same_tokens"] >= found["texts"] - 1


@needs_llama_cpp
def test_a_vocabulary_of_sentencepiece_itself(tmp_path: Path) -> None:
    """Learnt by SentencePiece, read by transformers, written as GGUF: llama.cpp cuts as SentencePiece does."""
    pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")
    import sentencepiece
    from transformers import LlamaConfig, LlamaForCausalLM

    source, folder = tmp_path / "source", tmp_path / "base"
    source.mkdir()
    ordinary = [turn for turns in verify.PROMPTS for turn in turns]
    lines = [text.replace("\n", " ") for text in (*SENTENCES * 5, *ordinary * 5, *verify.HOSTILE) if text.strip()]
    (source / "text").write_text("\n".join(lines), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(source / "text"),
        model_prefix=str(source / "tokenizer"),
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=3,
    )
    names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (source / "tokenizer_config.json").write_text(json.dumps(names | {"legacy": False, "add_bos_token": True}))
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer = load.load_tokenizer(recipe.Base(model=str(source)))
    tokenizer.chat_template = LLAMA2
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    LlamaForCausalLM(LlamaConfig(**size, vocab_size=len(tokenizer))).save_pretrained(folder)
    weights.write_gguf(folder, folder / "m.gguf", "f16", Template(tokenizer))
    found = verify.check_tokens(folder / "m.gguf", tokenizer)
    assert found["same_tokens"] >= found["texts"] - 2, "transformers itself differs on spaces at the start"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    with verify.opened(folder / "m.gguf") as model:
        for text in (*SENTENCES, *ordinary, *verify.HOSTILE):
            assert model.tokenize(text.encode(), add_bos=False, special=False) == theirs.encode(text)
    assert vocabulary.adds_bos(tokenizer)


def test_transformers_own_tags_are_gone_and_the_text_is_the_same(models: dict[str, Path]) -> None:
    from warmline.model.scratch import CHAT_TEMPLATE

    tokenizer = load.load_tokenizer(recipe.Base(model=str(models["qwen3"])))
    spaced = "{% for m in messages %}\n {%- generation -%}\n {{ m.content }} {%+ endgeneration %} x\n{% endfor %}"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Hello "}]
    for written in (CHAT_TEMPLATE, spaced):
        plain = vocabulary.plain_jinja(written)
        assert "generation" not in plain.replace("add_generation_prompt", "")
        tokenizer.chat_template = written
        before = tokenizer.apply_chat_template(turns, tokenize=False)
        tokenizer.chat_template = plain
        assert tokenizer.apply_chat_template(turns, tokenize=False) == before


def test_without_llama_cpp_it_is_said_before_anything_is_made(run_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", None)
    verify.llama_cpp.cache_clear()
    run, chosen = run_of("llama")
    with pytest.raises(ModelError) as caught:
        make.export(run, chosen, ["gguf:f16"])
    assert caught.value.code == "dependency-missing"
    assert not (run.folder / ".export").exists()
    verify.llama_cpp.cache_clear()
