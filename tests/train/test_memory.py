"""What saves memory changes no step: blocks computed again, averages in 8 bits. The plan asks when needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ARCHITECTURES
from tests.train import tiny
from tests.train.test_group import losses
from tests.train.test_plan import changed, texts
from warmline import recipe
from warmline.errors import RunError
from warmline.model import adapter, load
from warmline.model.outline import outline
from warmline.model.template import Encoded
from warmline.runs import read_json
from warmline.train import checkpoint
from warmline.train.loop import Loop
from warmline.train.plan import GPUS, Machine, Way, make_plan, memory_by_part


def one_step(path: Path, folder: Path, recompute: bool) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, gradients, and the bytes kept for the backward pass of a pack."""
    base = recipe.Base(model=str(path), load="bf16")
    model = adapter.add_adapter(load.load_model(base), recipe.Adapter(rank=2, dropout=0.1), 1)
    rows = [Encoded([*range(5, 45)], [place > 9 for place in range(40)], str(i)) for i in range(3)]
    loop = Loop(model, rows, [], tiny.settings(batch=3, share_prefixes=False), folder, recompute=recompute)
    model.train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    torch.manual_seed(1)
    [(packed, _)] = loop._rows(rows, 200)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), loop._autocast():
        loss = loop.loss(packed)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in loop.parameters.items() if p.grad is not None}, kept


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_computed_again_give_the_same_step_and_keep_less(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Bit for bit, dropout included."""
    loss, gradients, kept = one_step(models[name], tmp_path, recompute=False)
    again, same, less = one_step(models[name], tmp_path, recompute=True)
    assert again == loss
    assert same.keys() == gradients.keys()
    assert all(torch.equal(same[key], gradients[key]) for key in gradients)
    assert less < 0.5 * kept, f"{less:,} of {kept:,} bytes"


def test_a_run_with_blocks_computed_again_has_the_same_losses(tmp_path: Path) -> None:
    for name, recompute in (("kept", False), ("again", True)):
        tiny.loop(tmp_path / name, tiny.settings(), dropout=0.1, recompute=recompute).run()
    assert losses(tmp_path / "again") == losses(tmp_path / "kept")


def test_the_plan_computes_blocks_again_only_where_nothing_else_fits() -> None:
    settings = recipe.load("qwen3-4b-qlora", ("train.pack=4096",))
    sizes = outline(settings.base, settings.adapter)
    train = texts(length=200)

    def need(way: Way, cuda: bool = True) -> float:
        machine = replace(GPUS["t4"], cuda=cuda)
        return sum(memory_by_part(settings, sizes, machine, 4096, 200, way).values())

    plain, small, again, least = (
        need(Way(4096, kind, recompute))  # type: ignore[arg-type]
        for recompute in (False, True)
        for kind in ("adamw", "adamw-8bit")
    )
    assert plain > small > again > least
    for memory, optimizer, recompute in (
        (plain, "adamw", False),
        (small, "adamw-8bit", False),
        (again, "adamw", True),
        (least, "adamw-8bit", True),
    ):
        plan = make_plan(settings, replace(GPUS["t4"], memory=memory + 1), train, train)
        assert (plan.optimizer, plan.recompute) == (optimizer, recompute)
        assert plan.needed <= memory + 1
        assert any("computed again" in line for line in plan.short()) == recompute
    slow = make_plan(settings, replace(GPUS["t4"], memory=again + 1), train, train).seconds
    fast = make_plan(settings, replace(GPUS["t4"], memory=plain + 1), train, train).seconds
    assert slow is not None
    assert fast is not None
    assert 1.3 < slow / fast < 1.6
    here = Machine("a CPU", need(Way(4096), cuda=False) - 1, 1e12, 0.5, cuda=False)
    assert make_plan(settings, here, train, train).optimizer == "adamw", "8 bits are a GPU's remedy"
    own = changed(settings, train={"optimizer": "adamw-8bit"})
    assert make_plan(own, replace(GPUS["t4"], memory=1e12), train, train).optimizer == "adamw-8bit"


def test_a_split_model_takes_less_of_each() -> None:
    settings = recipe.load("qwen3-4b-qlora", ("adapter.method=full", "train.learning_rate=1e-5"))
    sizes = outline(settings.base, settings.adapter)
    needs = [
        memory_by_part(settings, sizes, replace(GPUS["h200"], slices=slices), 2048, 200) for slices in (1, 2, 4, 8)
    ]
    for part in ("weights", "gradients", "optimizer"):
        assert [need[part] for need in needs] == sorted((need[part] for need in needs), reverse=True)
    assert needs[3]["optimizer"] == needs[0]["optimizer"] / 8
    assert needs[3]["activations"] == needs[0]["activations"]


@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_eight_bits_learn_alike_and_resume_bit_for_bit(tmp_path: Path) -> None:
    """On a CPU bitsandbytes computes the same averages without the pages."""
    exact = tiny.settings(steps=6, learning_rate=1e-3)
    eight = tiny.settings(steps=6, learning_rate=1e-3, optimizer="adamw-8bit")
    tiny.loop(tmp_path / "exact", exact, width=64).run()
    tiny.loop(tmp_path / "eight", eight, width=64).run()
    assert losses(tmp_path / "eight") == pytest.approx(losses(tmp_path / "exact"), rel=0.03)
    assert losses(tmp_path / "eight") != losses(tmp_path / "exact"), "it is another optimizer"
    stopped = tiny.loop(tmp_path / "stopped", eight, width=64)
    real = stopped._step

    def step(number: int) -> tuple[float, float, int]:
        if number == 4:
            raise RuntimeError("gone")
        return real(number)

    stopped._step = step  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="gone"):
        stopped.run()
    found = checkpoint.newest(tmp_path / "stopped" / "checkpoints")
    assert found is not None
    assert read_json(found / "state.json")["step"] == 4
    averages = load_file(found / "optimizer.safetensors")
    assert averages["state1:model.embed_tokens.weight"].dtype == torch.uint8
    tiny.loop(tmp_path / "stopped", eight, width=64).run()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "eight")
    with pytest.raises(RunError, match="another precision") as caught:
        tiny.loop(tmp_path / "stopped", exact, width=64).run()
    assert caught.value.code == "resume-changed"
    last = [checkpoint.at(tmp_path / name / "checkpoints", 6) / "weights.safetensors" for name in ("stopped", "eight")]
    assert last[0].read_bytes() == last[1].read_bytes()
