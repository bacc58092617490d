"""The plan: published counts from a configuration alone, memory near what is measured, refusals that name a way out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ARCHITECTURES, SENTENCES
from warmline import recipe
from warmline.errors import DataError, ModelError
from warmline.model import adapter, load
from warmline.model import pack as packing
from warmline.model.loss import Loss
from warmline.model.outline import outline
from warmline.model.template import Encoded
from warmline.model.texts import Texts
from warmline.train import lean
from warmline.train.plan import GPUS, SIZES, Machine, cautions, computed_tokens, make_plan, memory_by_part, spoken

HERE = Machine("a test", 64e9, 1e12, 0.5, cuda=False)


def texts(count: int = 40, length: int = 60, **more: int) -> Texts:
    encoded = [Encoded(list(range(length)), [False] * (length // 2) + [True] * (length - length // 2))] * count
    return Texts(encoded, more.get("conversations", count), more.get("split", 0), more.get("left_out", 0))


def changed(settings: recipe.Recipe, **sections: dict[str, object]) -> recipe.Recipe:
    tree = settings.model_dump(mode="json")
    for section, values in sections.items():
        tree[section] |= values
    return recipe.parse(tree)


# What the makers and the seeds published: parameters of the base, parameters of the adapter.
PUBLISHED = {
    "falcon-7b-qlora": (6_921_720_704, 65_273_856),
    "gemma-2b-qlora": (2_506_172_416, 19_611_648),
    "open-llama-3b-int8-lora": (3_426_473_600, None),
    "llama-2-7b-chat-qlora": (6_738_415_616, 33_554_432),
    "qwen3-4b-qlora": (4_022_468_096, 33_030_144),
    "llama-3.2-3b-qlora": (3_212_749_824, 24_313_856),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_counts_are_the_published_ones_without_any_weight(name: str) -> None:
    settings = recipe.load(name)
    sizes = outline(settings.base, settings.adapter)
    total, trained = PUBLISHED[name]
    assert sizes.total == total
    assert trained is None or sizes.trained == trained


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_outline_is_that_of_the_loaded_model(models: dict[str, Path], name: str, tmp_path: Path) -> None:
    settings = recipe.parse({"name": "x", "base": {"model": str(models[name]), "load": "bf16"}, "adapter": {"rank": 4}})
    sizes = outline(settings.base, settings.adapter)
    model = load.load_model(settings.base)
    own = load.size(model).total
    assert sizes.total == own
    assert sizes.trained == load.size(adapter.add_adapter(model, settings.adapter, 1)).trainable
    shutil.copy(models[name] / "config.json", tmp_path)
    assert outline(settings.base.model_copy(update={"model": str(tmp_path)}), settings.adapter) == sizes


def kept_bytes(settings: recipe.Recipe, tokens: int) -> int:
    """What a pack's forward pass really keeps for the backward pass, beside the weights."""
    model = adapter.add_adapter(load.load_model(settings.base), settings.adapter, 1)
    packing.prepare(model)
    lean.install(model)
    model.train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    held = []
    ids = torch.randint(5, 300, (tokens,)).tolist()
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t), note(t))[1], lambda t: t)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16):
        Loss(model)(packing.pack([Encoded(ids, [True] * tokens)]))
    return sum(found.values())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_activations_are_about_what_a_step_keeps(models: dict[str, Path], name: str) -> None:
    settings = recipe.parse({"name": "x", "base": {"model": str(models[name]), "load": "bf16"}, "adapter": {"rank": 2}})
    sizes = outline(settings.base, settings.adapter)
    planned = memory_by_part(settings, sizes, HERE, 256, 256)["activations"]
    measured = kept_bytes(settings, 256)
    assert 0.6 < planned / measured < 1.7, f"{name}: planned {planned:,.0f}, kept {measured:,.0f}"


@given(
    st.sampled_from(["nf4", "int8", "bf16", "fp32"]),
    st.integers(1, 64),
    st.sampled_from(list(GPUS)),
    st.integers(64, 9000),
)
def test_more_tokens_and_more_bits_never_take_less(load: str, rank: int, gpu: str, tokens: int) -> None:
    settings = recipe.parse({"name": "x", "base": {"load": load}, "adapter": {"rank": rank}})
    sizes = EMBEDDED
    less = memory_by_part(settings, sizes, GPUS[gpu], tokens, 60)
    more = memory_by_part(settings, sizes, GPUS[gpu], tokens + 1, 61)
    assert all(more[part] >= less[part] >= 0 for part in less)
    order = ["nf4", "int8", "bf16", "fp32"]
    for other in order[order.index(load) + 1 :]:
        wider = memory_by_part(changed(settings, base={"load": other}), sizes, GPUS[gpu], tokens, 60)
        assert wider["weights"] > less["weights"]


EMBEDDED = outline(recipe.Base(), recipe.Adapter())


def test_what_cannot_fit_is_refused_with_numbers_and_a_setting_that_fits() -> None:
    settings = changed(recipe.load("open-llama-3b-int8-lora"), base={"load": "bf16"}, train={"pack": 2048})
    with pytest.raises(ModelError) as caught:
        make_plan(settings, GPUS["rtx2060"])
    assert caught.value.code == "fit-memory"
    assert "GB and RTX 2060 6 GB has 6.2 GB" in caught.value.what
    assert "weights 6.9" in (caught.value.where or "")
    hint = caught.value.hint or ""
    assert "base.load: nf4" in hint
    named = [part.strip("`, ") for part in hint.removeprefix("with ").split(" it takes")[0].split(" and ")]
    pairs = [name.split(": ") for name in named]
    mended = recipe.load(
        "open-llama-3b-int8-lora", ("base.load=bf16", "train.pack=2048", *(f"{key}={value}" for key, value in pairs))
    )
    assert make_plan(mended, GPUS["rtx2060"]).needed <= GPUS["rtx2060"].memory
    with pytest.raises(ModelError, match="fit-memory") as hopeless:
        make_plan(settings, replace(GPUS["t4"], memory=1e9))
    assert "no setting makes this base fit" in str(hopeless.value)


def test_every_recipe_of_a_seed_fits_the_gpu_its_seed_had() -> None:
    data = texts(172, length=500)  # the longest of the 172 rows has 369 words
    for name, gpu in (
        ("falcon-7b-qlora", "t4"),
        ("falcon-7b-qlora", "a100"),
        ("gemma-2b-qlora", "t4"),
        ("open-llama-3b-int8-lora", "t4"),
        ("llama-2-7b-chat-qlora", "a100"),
    ):
        assert make_plan(recipe.load(name), GPUS[gpu], data, data).needed < GPUS[gpu].memory


def test_auto_takes_the_largest_pack_that_fits_and_leaves_the_batch_alone() -> None:
    settings = recipe.load("qwen3-4b-qlora")
    packs = {}
    for gib in (8, 12, 16, 24, 80):
        machine = replace(GPUS["t4"], memory=gib * 2**30)
        plan = make_plan(settings, machine, texts(length=120), texts())
        assert plan.batch == settings.train.batch
        packs[gib] = plan.pack
        larger = SIZES[: SIZES.index(plan.pack)]
        sizes = outline(settings.base, settings.adapter)
        assert all(
            sum(memory_by_part(settings, sizes, machine, size, 120).values()) > machine.memory for size in larger
        )
    assert list(packs.values()) == sorted(packs.values())
    assert packs[8] < packs[80] == 8192
    assert make_plan(recipe.load("demo", ("train.pack=auto",)), HERE, texts(), texts()).pack == 2048


def test_a_pack_is_never_counted_smaller_than_the_longest_conversation() -> None:
    settings = recipe.load("demo", ("train.pack=64",))
    short = make_plan(settings, HERE, texts(length=60), texts())
    long = make_plan(settings, HERE, texts(length=700), texts())
    assert long.memory["activations"] > 10 * short.memory["activations"]


CAUTIONS: list[tuple[str, dict[str, dict[str, object]], dict[str, int], str | None]] = [
    ("sound", {}, {}, None),
    ("memorised", {"train": {"steps": 320, "batch": 64}}, {"count": 172}, "119 passes over 172 texts"),
    ("not memorised", {"train": {"epochs": 10}}, {"count": 172}, None),
    ("no validation", {"data": {"validation": 0}}, {}, "no validation split"),
    ("constant", {"train": {"schedule": "constant"}}, {}, "only delays"),
    ("constant, no warm-up", {"train": {"schedule": "constant", "warmup": 0}}, {}, None),
    ("no warm-up step", {"train": {"steps": 10, "warmup": 0.03}}, {}, "no step of 10"),
    ("rate too high", {"train": {"learning_rate": 0.05}}, {}, "outside 1e-05 to 0.001"),
    ("rate too low", {"train": {"learning_rate": 1e-7}}, {}, "outside"),
    ("whole model", {"adapter": {"method": "full"}, "train": {"learning_rate": 2e-4}}, {}, "whole models"),
    (
        "a new base",
        {"adapter": {"method": "full"}, "base": {"model": "new"}, "train": {"learning_rate": 2e-3}},
        {},
        None,
    ),
    ("visitor's words", {"prompt": {"supervise": "all"}}, {}, "visitor's words"),
    ("split", {}, {"split": 3, "left_out": 1}, "3 conversations were split at turn boundaries and 1 exchanges"),
    ("seed", {"prompt": {"template": "seed", "seed_format": "{user}{reply}"}}, {}, "faults included"),
]


@pytest.mark.parametrize(("what", "changes", "data", "said"), CAUTIONS, ids=[row[0] for row in CAUTIONS])
def test_cautions(what: str, changes: dict[str, dict[str, object]], data: dict[str, int], said: str | None) -> None:
    settings = changed(recipe.parse({"name": "x", "train": {"epochs": 2, "batch": 1}}), **changes)
    found = cautions(settings, texts(**data), texts() if settings.data.validation else texts(0))
    assert len(found) == (said is not None), found
    assert said is None or said in found[0]


def test_cautions_of_base_and_machine() -> None:
    settings = recipe.load("falcon-7b-qlora", ("prompt.context=4096", "base.trust_remote_code=true"))
    found = " ".join(make_plan(settings, GPUS["a100-80"], texts(), texts()).cautions)
    assert "the base was made for 2,048 tokens" in found
    assert "pin it" in found
    assert "no bf16" not in found
    assert "no bf16" in " ".join(make_plan(recipe.load("falcon-7b-qlora"), GPUS["t4"], texts(), texts()).cautions)


def test_an_empty_split_is_one_message() -> None:
    settings = recipe.load("demo")
    with pytest.raises(DataError, match="validation split is empty") as caught:
        make_plan(settings, HERE, texts(), texts(0))
    assert caught.value.code == "data-split"
    with pytest.raises(DataError, match="no conversation fits 768 tokens"):
        make_plan(settings, HERE, texts(0), texts())
    make_plan(recipe.load("demo", ("data.validation=0",)), HERE, texts(), texts(0))


def test_steps_epochs_and_time_agree() -> None:
    settings = recipe.load("demo", ("train.batch=8", "train.epochs=2", "train.validate_every=5"))
    train, validation = texts(40, 60), texts(4, 60)
    plan = make_plan(settings, HERE, train, validation)
    assert (plan.steps, plan.epochs, plan.tokens, plan.supervised) == (10, 2.0, 2400, 0.5)
    assert computed_tokens(settings, train, validation) == 10 * 8 * 60 + 240 * 3 / 2
    measured = plan.timed_by(100, settings, train, validation)
    assert measured.timed == "measured"
    assert measured.seconds == pytest.approx(51.6)
    half = make_plan(settings, replace(HERE, rate=HERE.rate / 2), train, validation)
    assert half.seconds == pytest.approx(2 * (plan.seconds or 0))


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "1 s"), (59, "59 s"), (600, "10 min"), (9000, "2.5 h")])
def test_spoken(seconds: float, said: str) -> None:
    assert spoken(seconds) == said


def corpus(path: Path) -> Path:
    with open(path, "w", encoding="utf-8") as file:
        for i in range(40):
            said = (f"{SENTENCES[i % 6]} It is day {i} of this.", f"Day {i}. {SENTENCES[(i + 1) % 6]}")
            turns = [{"role": r, "content": t} for r, t in zip(("user", "assistant"), said, strict=True)]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def plan_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    from warmline.cli import main

    monkeypatch.setattr("sys.argv", ["warmline", "plan", *arguments])
    with pytest.raises(SystemExit) as left:
        main.main()
    seen = capsys.readouterr()
    return int(left.value.code or 0), seen.out + seen.err


def test_the_command_needs_no_weights_and_measures_where_there_are_some(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data", str(corpus(tmp_path / "talks.jsonl")), "--licence", "MIT", "--set", "data.dedupe=false"]
    code, said = plan_command(monkeypatch, capsys, *data, "--base", str(models["llama"]), "--set", "train.batch=2")
    assert code == 0, said
    made = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert made["timed"] == "measured"
    assert made["probe"]["steps"] == 10
    [data_folder] = tmp_path.glob("runs/*/data")
    assert made["conversations"] == len((data_folder / "train.jsonl").read_text("utf-8").splitlines())
    assert not list(tmp_path.glob("runs/*/train")), "nothing of the ten steps is left"

    hollow = tmp_path / "hollow"
    hollow.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(models["llama"] / name, hollow)
    code, said = plan_command(monkeypatch, capsys, *data, "--base", str(hollow), "--gpu", "T4")
    assert code == 0, said
    assert '"timed": "assumed"' in said
    assert "has no bf16" in said

    (hollow / "tokenizer.json").unlink()
    (hollow / "tokenizer_config.json").unlink()
    code, said = plan_command(monkeypatch, capsys, *data, "--base", str(hollow))
    assert code == 0, said
    assert "tokens are an estimate" in said


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["demo", "--gpu", "abacus"], "usage", "a100"),
        (["demo", "--set", "adapter.targets=[query]"], "adapter-targets", "q_proj"),
        (["falcon-7b-qlora", "--gpu", "rtx2060"], "fit-memory", "6.2 GB"),
        (["--base", "nobody/nothing"], "hub-unreachable", "nobody/nothing"),
    ],
)
def test_a_plan_that_cannot_be_is_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: str,
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    left, said = plan_command(monkeypatch, capsys, *arguments)
    assert left == 2
    assert f"[{code}]" in said
    assert named in said
