"""Adapter and merged weights: what leaves is what was trained, to tolerance, on every architecture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ARCHITECTURES, SENTENCES
from tests.export.conftest import make_run
from warmline import recipe
from warmline.errors import ModelError
from warmline.messages import Message
from warmline.model import adapter, load
from warmline.model.export import make, merge, verify
from warmline.model.template import Template
from warmline.runs import MANIFEST, Run, read_json, sha256

Make = Callable[..., tuple[Run, recipe.Recipe]]


def unmerged(run: Run, settings: recipe.Recipe, ids: list[int]) -> torch.Tensor:
    base = settings.base.model_copy(update={"load": "fp32"})
    model = adapter.load_adapter(load.load_model(base), run.folder / "train" / "adapter", load.identity(base))
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def merged(folder: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_merged_is_unmerged(run_of: Make, name: str) -> None:
    run, settings = run_of(name)
    stage = make.export(run, settings, ["merged"])
    tokenizer = AutoTokenizer.from_pretrained(stage.folder / "merged")
    ids = tokenizer(" ".join(SENTENCES), add_special_tokens=False).input_ids
    before, after = unmerged(run, settings, ids), merged(stage.folder / "merged", ids)
    plain = merged(Path(settings.base.model), ids)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-4)
    assert (plain - before).abs().max() > 0.1, "the adapter changes nothing, so the test shows nothing"
    row = stage.manifest["summary"]["verified"]["merged"]
    assert row["same_choice"] == 1.0
    assert row["distance"] < 1e-4


@pytest.mark.parametrize("method", [{"dora": True}, {"rslora": True}])
def test_other_kinds_of_adapters_merge_too(run_of: Make, method: dict[str, bool]) -> None:
    run, settings = run_of("qwen3", adapter=method)
    stage = make.export(run, settings, ["merged"])
    ids = list(range(10, 60))
    assert torch.allclose(unmerged(run, settings, ids), merged(stage.folder / "merged", ids), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_a_base_trained_on_in_few_bits_is_merged_from_its_original_weights(run_of: Make, precision: str) -> None:
    run, settings = run_of("llama", base={"load": precision})
    stage = make.export(run, settings, ["merged"])
    ids = list(range(10, 60))
    assert torch.allclose(unmerged(run, settings, ids), merged(stage.folder / "merged", ids), rtol=1e-3, atol=1e-4)
    config = read_json(stage.folder / "merged" / "config.json")
    assert "quantization_config" not in config
    assert "not to that quantised copy" in (stage.folder / "merged" / "README.md").read_text("utf-8")


def test_a_16_bit_base_stays_16_bit_and_is_added_up_in_32(models: dict[str, Path], tmp_path: Path) -> None:
    """Added in bf16, an update that is small beside its weight would be lost."""
    model = AutoModelForCausalLM.from_pretrained(models["qwen3"], dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(models["qwen3"]).save_pretrained(tmp_path / "half")
    run, settings = make_run(tmp_path / "runs" / "half-run", tmp_path / "half")
    stage = make.export(run, settings, ["merged"])
    assert read_json(stage.folder / "merged" / "config.json")["dtype"] == "bfloat16"
    name = "model.layers.0.self_attn.v_proj"
    loaded = adapter.load_adapter(
        load.load_model(settings.base), run.folder / "train" / "adapter", load.identity(settings.base)
    )
    layer = loaded.get_submodule(f"base_model.model.{name}")
    exact = layer.base_layer.weight + layer.get_delta_weight("default")
    saved = AutoModelForCausalLM.from_pretrained(stage.folder / "merged", dtype=torch.bfloat16).get_submodule(name)
    assert torch.equal(saved.weight, exact.to(torch.bfloat16)), "the nearest 16-bit number to the exact sum"


def test_the_adapter_is_the_runs_in_pefts_layout_without_a_path_of_this_machine(run_of: Make) -> None:
    run, settings = run_of("llama")
    folder = make.export(run, settings, ["adapter"]).folder / "adapter"
    source = run.folder / "train" / "adapter" / "adapter_model.safetensors"
    assert sha256(folder / source.name) == sha256(source)
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "llama"
    for path in folder.iterdir():
        assert str(run.folder.parent.parent).encode() not in path.read_bytes(), path.name
    from peft import PeftModel

    model = PeftModel.from_pretrained(load.load_model(settings.base), str(folder)).eval()
    ids = list(range(10, 60))
    with torch.no_grad():
        assert torch.equal(model(input_ids=torch.tensor([ids])).logits[0], unmerged(run, settings, ids))
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_forms_made_before_stay_and_nothing_is_made_twice(run_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run, settings = run_of("falcon")
    first = make.export(run, settings, ["merged"])
    before = (first.folder / "merged" / "model.safetensors").stat()
    monkeypatch.setattr(merge, "merge", lambda *_: pytest.fail("merged again"))
    both = make.export(run, settings, ["adapter"])
    assert set(both.manifest["summary"]["verified"]) == {"adapter", "merged"}
    assert (both.folder / "merged" / "model.safetensors").stat().st_ino == before.st_ino
    assert read_json(both.folder / MANIFEST)["files"]["merged/model.safetensors"]
    again = make.export(run, settings, ["merged"])
    assert again.manifest == both.manifest


def test_an_interrupted_export_goes_on(run_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run, settings = run_of("gemma")
    with monkeypatch.context() as patch:
        patch.setattr(merge, "merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            make.export(run, settings, ["adapter", "merged"])
    assert not (run.folder / "export").exists()
    assert set(read_json(run.folder / ".export" / "verified.json")) == {"adapter"}
    stage = make.export(run, settings, ["adapter", "merged"])
    assert set(stage.manifest["summary"]["verified"]) == {"adapter", "merged"}
    assert not (run.folder / ".export").exists()


def test_a_changed_base_is_refused(run_of: Make, models: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(models["llama"], tmp_path / "own")
    run, settings = make_run(tmp_path / "runs" / "own-run", tmp_path / "own")
    config = read_json(tmp_path / "own" / "config.json")
    (tmp_path / "own" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(ModelError) as caught:
        make.export(run, settings, ["merged"])
    assert caught.value.code == "base-mismatch"
    assert not (run.folder / "export").exists()


def test_a_merge_that_went_wrong_does_not_leave(run_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run, settings = run_of("qwen3")
    honest = merge.save

    def spoilt(model: Any, template: Template, target: Path) -> None:
        model.get_input_embeddings().weight.data[:50] += 0.05
        honest(model, template, target)

    monkeypatch.setattr(merge, "save", spoilt)
    with pytest.raises(ModelError) as caught:
        make.export(run, settings, ["merged"])
    assert caught.value.code == "export-differs"
    assert not (run.folder / "export").exists()


def test_memory_that_does_not_suffice_is_said_before_loading(run_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run, settings = run_of("llama")
    free = type("Memory", (), {"available": 1000})()
    monkeypatch.setattr(merge.psutil, "virtual_memory", lambda: free)
    with pytest.raises(ModelError) as caught:
        make.export(run, settings, ["merged"])
    assert caught.value.code == "fit-memory"


def test_with_little_memory_it_is_merged_in_the_bases_own_precision(
    run_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = run_of("gemma3")
    monkeypatch.setattr(merge, "widen", lambda model: None)
    assert make.export(run, settings, ["merged"]).manifest["summary"]["verified"]["merged"]["same_choice"] == 1.0


@pytest.mark.parametrize("system", ["", "Be kind."])
def test_a_base_without_a_chat_template_takes_the_plain_one_along(run_of: Make, system: str) -> None:
    run, settings = run_of("falcon", prompt={"system": system})
    folder = make.export(run, settings, ["merged"]).folder / "merged"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = Template(load.load_tokenizer(settings.base), "plain", system)
    turns = [Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(SENTENCES[:3])]
    rows = [{"role": "system", "content": system}] if system else []
    rows += [{"role": turn.role, "content": turn.content} for turn in turns]
    text = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    assert text == tokenizer.decode(template.encode(turns, reply=True).ids)


def test_prompts_cover_more_than_a_sliding_window(models: dict[str, Path]) -> None:
    for folder in models.values():
        template = Template(load.load_tokenizer(recipe.Base(model=str(folder))))
        assert max(map(len, verify.prompt_ids(template))) > 48
