"""A model split over two processes by FSDP2 learns what a whole one learns, and its checkpoints are anyone's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train import several, tiny
from tests.train.several import forks
from tests.train.test_group import losses
from tests.train.test_loop import data, settings  # noqa: F401
from warmline import recipe
from warmline.errors import ModelError
from warmline.model import adapter, load
from warmline.train import checkpoint, shard
from warmline.train.group import Group, join, leave
from warmline.train.loop import Loop
from warmline.train.tune import tune


def train(folder: Path) -> None:
    group = join()
    loop = tiny.loop(folder, tiny.settings(), group=group)
    if group.split:
        held = sum(p.to_local().numel() for p in loop.parameters.values())  # type: ignore[attr-defined]
        assert held <= 0.51 * sum(p.numel() for p in loop.parameters.values()), "a process holds its slice only"
    loop.run()
    leave()


@forks
def test_every_weight_split_equals_one_process_and_one_goes_on_from_two(tmp_path: Path) -> None:
    tiny.loop(tmp_path / "one", tiny.settings()).run()
    two = tmp_path / "two"
    assert several.together(train, two, **several.FSDP2) == [0, 0]
    for kind in ("loss", "validation", "norm"):
        assert losses(two, kind) == pytest.approx(losses(tmp_path / "one", kind), rel=2e-3)
    assert losses(two, "targets") == losses(tmp_path / "one", "targets")
    saved = checkpoint.at(two / "checkpoints", 8)
    for name in ("weights", "optimizer"):
        alone = load_file(checkpoint.at(tmp_path / "one" / "checkpoints", 8) / f"{name}.safetensors")
        split = load_file(saved / f"{name}.safetensors")
        assert {key: value.shape for key, value in split.items()} == {key: v.shape for key, v in alone.items()}
    shutil.rmtree(saved)
    three = shutil.copytree(two, tmp_path / "three")
    tiny.loop(two, tiny.settings()).run()
    assert losses(two) == pytest.approx(losses(tmp_path / "one"), rel=2e-3)
    assert several.together(train, three, processes=3, **several.FSDP2) == [0, 0, 0]
    assert losses(three) == pytest.approx(losses(tmp_path / "one"), rel=2e-3)


def tuned(plan: recipe.Recipe, conversations: Path, folder: Path) -> None:
    group = join()
    if group.leads:
        folder.mkdir()
    group.wait()
    tune(plan, conversations, folder, group=group)
    leave()


@forks
@pytest.mark.parametrize(
    ("architecture", "base", "method"),
    [("qwen3", "nf4", "lora"), ("falcon", "bf16", "lora"), ("llama", "fp32", "full")],
)
def test_what_two_leave_behind_is_what_one_does(
    models: dict[str, Path],
    data: Path,  # noqa: F811
    tmp_path: Path,
    architecture: str,
    base: str,
    method: str,
) -> None:
    changes = {"base__load": base, "adapter__method": method, "adapter__dropout": 0, "train__steps": 3}
    plan = settings(models[architecture], **changes, train__learning_rate=1e-3)
    tuned(plan, data, tmp_path / "one")
    assert several.together(tuned, plan, data, tmp_path / "two", **several.FSDP2) == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-3)
    name = "adapter/adapter_model.safetensors" if method == "lora" else "model/model.safetensors"
    one, two = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
    assert one.keys() == two.keys()
    for key in one:
        assert one[key].dtype == two[key].dtype
        assert torch.allclose(one[key], two[key], atol=5e-3)


def test_int8_and_dora_on_nf4_are_refused(models: dict[str, Path]) -> None:
    for changes in ({"load": "int8"}, {"load": "nf4", "dora": True}):
        dora = changes.pop("dora", False)
        base = recipe.Base(model=str(models["llama"]), **changes)  # type: ignore[arg-type]
        model = adapter.add_adapter(load.load_model(base), recipe.Adapter(rank=2, dora=bool(dora)), 1)
        with pytest.raises(ModelError, match="cannot be split"):
            shard.split(model)


def test_eight_bit_averages_of_a_split_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "split", lambda model: None)
    with pytest.raises(ModelError, match="8-bit averages") as caught:
        Loop(
            tiny.model(),
            tiny.texts(2),
            [],
            tiny.settings(optimizer="adamw-8bit"),
            tmp_path,
            group=Group(0, 1, split=True),
        )
    assert caught.value.code == "launch-unsupported"


def test_a_whole_tensor_is_itself() -> None:
    parameter = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    assert torch.equal(shard.whole(parameter), parameter)
    assert not shard.whole(parameter).requires_grad
    assert torch.equal(shard.like(torch.ones(2, 3), parameter), torch.ones(2, 3))
    assert shard.gather({"a": parameter}, torch.bfloat16, keep=True)["a"].dtype == torch.bfloat16
    assert shard.gather({"a": parameter}, torch.bfloat16, keep=False) == {}


@pytest.mark.slow
def test_the_shipped_file_tells_the_launcher_what_is_tested_here(tmp_path: Path) -> None:
    script = tmp_path / "tell.py"
    script.write_text(
        "import json, os, pathlib\n"
        "pathlib.Path(__file__).with_name(os.environ['RANK'] + '.json').write_text(json.dumps(dict(os.environ)))\n"
    )
    config = resources.files("warmline") / "recipes" / "accelerate" / "fsdp2.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), str(script)]
    subprocess.run(launch, check=True, capture_output=True, timeout=300)
    for rank in ("0", "1"):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert told | several.FSDP2 == told
        assert told["WORLD_SIZE"] == "2"
        assert told["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
