"""What training does otherwise on a GPU, as far as a machine without one can tell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.train import tiny
from warmline import recipe
from warmline.model import adapter, load
from warmline.model.template import Encoded
from warmline.train.loop import Loop
from warmline.train.plan import GPUS, known_gpu, this_machine


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),  # not an A10, whose name is the beginning of its name
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 3060", "rtx3060"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx4090"),
        ("NVIDIA L40S", None),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A4000", None),
        ("Quadro T400", None),
        ("", None),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(said: str, key: str | None) -> None:
    assert known_gpu(said) is (GPUS[key] if key else None)


def gpu(monkeypatch: pytest.MonkeyPatch, major: int, name: str) -> None:
    """torch's answers on a machine with such a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)  # they imitate it
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (15 * 10**9, 16 * 10**9))


@pytest.mark.parametrize(
    ("major", "name", "half"), [(7, "Tesla T4", torch.float16), (8, "NVIDIA A100-SXM4-40GB", torch.bfloat16)]
)
def test_a_gpu_without_bf16_units_computes_in_fp16(
    monkeypatch: pytest.MonkeyPatch, major: int, name: str, half: torch.dtype
) -> None:
    gpu(monkeypatch, major, name)
    assert torch.cuda.is_bf16_supported()  # torch says so of both
    assert load.half("cuda") == half
    assert load.half("cpu") == torch.bfloat16
    machine = this_machine()
    assert (machine.bf16, machine.memory) == (half == torch.bfloat16, 15e9)
    assert machine.rate == known_gpu(name).rate  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["llama", "falcon", "gemma"])
def test_fp16_needs_no_scaled_loss(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    """A step's loss is a sum: its gradients are far above what fp16 loses, and below what it cannot hold."""
    generator = torch.Generator().manual_seed(1)
    rows = [
        Encoded(torch.randint(5, 300, (60,), generator=generator).tolist(), [i > 9 for i in range(60)], str(n))
        for n in range(6)
    ]
    gradients: list[dict[str, torch.Tensor]] = []
    for half in (torch.float32, torch.float16):
        base = load.load_model(recipe.Base(model=str(models[name]), load="fp32")).to(half)
        model = adapter.add_adapter(base, recipe.Adapter(rank=4), 1)
        for label, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(len(label)))
                parameter.data = parameter.data.float()
        loop = Loop(model, rows, [], tiny.settings(batch=6, pack=256), tmp_path / str(half))
        if half == torch.float32:
            loop._autocast = lambda: torch.autocast("cpu", enabled=False)  # type: ignore[method-assign]
        loop.half = half
        model.train()
        loop._gradients(0)
        gradients.append({label: p.grad for label, p in loop.parameters.items() if p.grad is not None})
    exact, ours = gradients
    assert exact.keys() == ours.keys()
    assert exact
    for label, right in exact.items():
        assert torch.isfinite(ours[label]).all()
        assert float((ours[label] - right).norm()) < 0.05 * float(right.norm()), label
        lost = (ours[label] == 0) & (right != 0)
        assert float(lost.float().mean()) < 0.01
