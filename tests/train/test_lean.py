"""The lean way computes what peft and transformers compute: losses, gradients, names, and nothing it does not know."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ARCHITECTURES, SENTENCES
from warmline import recipe
from warmline.messages import Message
from warmline.model import adapter, load
from warmline.model import pack as packing
from warmline.model.loss import Loss
from warmline.model.template import Encoded, Template
from warmline.train import lean


def texts_for(base: recipe.Base, count: int = 4) -> list[Encoded]:
    template = Template(load.load_tokenizer(base))
    turns = [[SENTENCES[(i + k) % 6] for k in range(4)] for i in range(count)]
    texts = [template.encode([Message(("user", "assistant")[k % 2], t) for k, t in enumerate(row)]) for row in turns]
    return [Encoded(text.ids, [True] * len(text)) for text in texts]


def adapted(base: recipe.Base, **settings: Any) -> Any:
    """A model with an adapter that is not zero, so that both of its halves get a gradient."""
    model = adapter.add_adapter(load.load_model(base), recipe.Adapter(**{"rank": 4, **settings}), seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    packing.prepare(model)
    return model


def computed(model: Any, texts: list[Encoded], half: bool, loss: Any = None) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one pack, by `loss` or by the plain path."""
    model.train()
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        total = (loss or (lambda packed: packing.surprise(model, packed).sum()))(packing.pack(texts))
    total.backward()
    return float(total.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def lean_modules(model: Any) -> dict[str, int]:
    """How many modules of each kind were given another way to compute themselves."""
    found: dict[str, int] = {}
    for module in model.modules():
        if "forward" in module.__dict__:
            found[type(module).__name__] = found.get(type(module).__name__, 0) + 1
    return found


def test_in_full_precision_the_numbers_are_pefts(models: dict[str, Path]) -> None:
    for name in ARCHITECTURES:
        base = recipe.Base(model=str(models[name]), load="fp32")
        texts = texts_for(base)
        ours = adapted(base)
        theirs = copy.deepcopy(ours)
        lean.install(ours)
        assert not lean_modules(theirs)
        expected_loss, expected = computed(theirs, texts, half=False)
        loss, grads = computed(ours, texts, half=False, loss=Loss(ours))
        assert loss == pytest.approx(expected_loss, rel=1e-5), name
        assert list(grads) == list(expected)
        for key, grad in grads.items():
            assert torch.allclose(grad, expected[key], rtol=1e-3, atol=1e-4 * float(expected[key].abs().max())), key


@pytest.mark.parametrize("precision", ["nf4", "int8", "bf16"])
def test_in_half_precision_the_error_is_no_larger_than_pefts(models: dict[str, Path], precision: str) -> None:
    """Against the same frozen weights in fp32: rounding differs, so neither path can be the other's reference."""
    for name in ARCHITECTURES:
        base = recipe.Base(model=str(models[name]), load=precision)
        texts = texts_for(base)
        theirs, ours, exact = adapted(base), adapted(base), adapted(base)
        computed(exact, texts, half=True)  # bitsandbytes moves int8 scales about at the first use
        for layer in list(exact.modules()):
            if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
                frozen = layer.base_layer
                plain = torch.nn.Linear(frozen.in_features, frozen.out_features, bias=False)
                plain.weight = torch.nn.Parameter(lean.weight(frozen, torch.float32), requires_grad=False)
                layer.base_layer = plain
        exact.float()
        for layer in exact.modules():
            if type(layer).__name__ in ("Linear4bit", "Linear8bitLt") and hasattr(layer, "lora_A"):
                layer.forward = lambda x, layer=layer: (
                    layer.base_layer(x) + layer.lora_B["default"](layer.lora_A["default"](x)) * layer.scaling["default"]
                )
        lean.install(ours)
        true_loss, true = computed(exact, texts, half=False)
        _, their_grads = computed(theirs, texts, half=True)
        our_loss, our_grads = computed(ours, texts, half=True, loss=Loss(ours))
        assert our_loss == pytest.approx(true_loss, rel=1e-2), name

        def distance(grads: dict[str, torch.Tensor], true: dict[str, torch.Tensor] = true) -> float:
            off = sum(float((grads[key] - true[key]).square().sum()) for key in true)
            return (off / sum(float(t.square().sum()) for t in true.values())) ** 0.5

        assert distance(our_grads) < 1.2 * distance(their_grads) + 0.005, name


def test_dropout_drops_the_share_it_says_and_its_gradient_is_that_of_the_mask(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    kept, factor = lean._mask(torch.Size((300, 301)), 0.25, torch.device("cpu"))
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.01)
    assert factor == pytest.approx(4 / 3)
    again, _ = lean._mask(torch.Size((300, 301)), 0.25, torch.device("cpu"))
    assert not torch.equal(kept, again)

    # One mask for all, so that peft's path can be given the very same one.
    def mask(shape: torch.Size, chance: float, device: torch.device) -> tuple[torch.Tensor, float]:
        return (torch.arange(shape.numel()) % 3 > 0).view(shape), 1.5

    class Drop(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            keep, scale = mask(x.flatten(0, -2).shape, 0.3, x.device)
            return x * keep.view(x.shape) * scale

    base = recipe.Base(model=str(models["qwen3"]), load="fp32")
    texts = texts_for(base)
    ours, theirs = adapted(base, dropout=0.3), adapted(base, dropout=0.3)
    for module in theirs.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = Drop()
    monkeypatch.setattr(lean, "_mask", mask)
    lean.install(ours)
    expected_loss, expected = computed(theirs, texts, half=False)
    loss, grads = computed(ours, texts, half=False)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for key, grad in grads.items():
        assert torch.allclose(grad, expected[key], rtol=1e-3, atol=1e-4 * float(expected[key].abs().max())), key
    with torch.no_grad():
        ours.eval()
        without = float(packing.surprise(ours, packing.pack(texts)).sum())
    assert abs(without - loss) > 1e-3, "measured without dropout"


@pytest.mark.parametrize("settings", [{"dora": True}, {"rslora": True}], ids=str)
def test_kinds_of_adapter(models: dict[str, Path], settings: dict[str, Any]) -> None:
    """rsLoRA is another scale; DoRA is left to peft, layer by layer."""
    base = recipe.Base(model=str(models["llama"]), load="fp32")
    texts = texts_for(base)
    ours, theirs = adapted(base, **settings), adapted(base, **settings)
    lean.install(ours)
    assert ("Linear" in lean_modules(ours)) == ("rslora" in settings)
    expected_loss, expected = computed(theirs, texts, half=False)
    loss, grads = computed(ours, texts, half=False)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for key, grad in grads.items():
        assert torch.allclose(grad, expected[key], rtol=1e-3, atol=1e-4 * float(expected[key].abs().max())), key


def test_switched_off_merged_or_called_otherwise_it_is_the_layers_own(models: dict[str, Path]) -> None:
    base = recipe.Base(model=str(models["llama"]), load="fp32")
    model = adapted(base)
    model.eval()
    packed = packing.pack(texts_for(base))
    plain = load.load_model(base)
    packing.prepare(plain)
    with torch.no_grad():
        before = packing.logits(model, packed)
        lean.install(model)
        assert torch.allclose(packing.logits(model, packed), before, atol=1e-4)
        with model.disable_adapter():
            assert torch.allclose(packing.logits(model, packed), packing.logits(plain, packed), atol=1e-4)
        attention = model.get_base_model().model.layers[0].self_attn
        one, other = torch.randn(2, 3, 64), torch.randn(2, 3, 64)
        first = attention.v_proj(one)
        attention.q_proj(one)  # computes k and v of `one` too
        assert torch.allclose(
            attention.v_proj(other), type(attention.v_proj).forward(attention.v_proj, other), atol=1e-5
        )
        assert torch.allclose(attention.v_proj(one), first, atol=1e-6), "not that of another input"
        model.merge_adapter()
        assert torch.allclose(packing.logits(model, packed), before, atol=1e-3)
        model.unmerge_adapter()
        merged = model.merge_and_unload()
        assert torch.allclose(packing.logits(merged, packed), before, atol=1e-3)


def test_what_is_saved_is_an_ordinary_adapter(models: dict[str, Path], tmp_path: Path) -> None:
    base = recipe.Base(model=str(models["gemma3"]), load="fp32")
    model = adapted(base)
    names = [name for name, _ in model.named_parameters()]
    lean.install(model)
    assert [name for name, _ in model.named_parameters()] == names
    adapter.save_adapter(model, tmp_path, load.identity(base))
    again = adapter.load_adapter(load.load_model(base), tmp_path, load.identity(base))
    packing.prepare(again)
    packed = packing.pack(texts_for(base))
    with torch.no_grad():
        assert torch.allclose(packing.logits(again, packed), packing.logits(model.eval(), packed), atol=1e-4)


def test_every_layer_of_the_known_architectures_is_lean(models: dict[str, Path]) -> None:
    """Two blocks each: none is slow unnoticed."""
    kinds = {"llama": (5, 2), "gemma": (5, 2), "gemma3": (13, 2), "qwen3": (9, 2), "falcon": (0, 0)}
    for name, (norms, gates) in kinds.items():
        model = adapted(recipe.Base(model=str(models[name]), load="bf16"))
        lean.install(model)
        found = lean_modules(model)
        loras = sum(1 for module in model.modules() if hasattr(module, "lora_A"))
        assert sum(count for kind, count in found.items() if kind.endswith("RMSNorm")) == norms, name
        assert sum(count for kind, count in found.items() if kind.endswith("MLP")) == gates, name
        assert found["Linear"] == loras > 0


@pytest.mark.parametrize(("precision", "kept"), [("nf4", torch.uint8), ("int8", torch.int8)])
def test_every_adapted_layer_is_in_the_precision_asked_for(
    models: dict[str, Path], precision: str, kept: torch.dtype
) -> None:
    """transformers passes over linear layers of a class of their own, as Falcon's are, and says nothing."""
    for name in ARCHITECTURES:
        model = adapted(recipe.Base(model=str(models[name]), load=precision))
        stored = {layer.get_base_layer().weight.dtype for layer in model.modules() if hasattr(layer, "lora_A")}
        assert stored == {kept}, name


def test_norms_and_blocks_of_other_shapes_are_left_alone() -> None:
    class OddRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight + 0.1

    class Block(torch.nn.Module):
        def __init__(self, act: torch.nn.Module, gated: bool) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(8, 8) for _ in range(3))
            self.act_fn, self.gated = act, gated

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x) + (0 if self.gated else x))

    class Plain(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    odd = torch.nn.ModuleList(
        [OddRMSNorm(), Block(torch.nn.SiLU(), False), Plain(torch.nn.ReLU(), True), Plain(torch.nn.GELU(), True)]
    )
    lean.install(odd)
    assert not lean_modules(odd)
    known = torch.nn.ModuleList([Plain(torch.nn.SiLU(), True), Plain(torch.nn.GELU(approximate="tanh"), True)])
    plain = copy.deepcopy(known)
    lean.install(known)
    assert lean_modules(known) == {"Plain": 2}
    for one, other in zip(known, plain, strict=True):
        x = torch.linspace(-3, 3, 24).view(3, 8).requires_grad_()
        y = x.detach().clone().requires_grad_()
        one(x).square().sum().backward()
        other(y).square().sum().backward()
        assert torch.allclose(x.grad, y.grad, atol=1e-5)


def test_the_full_method_trains_its_norms(models: dict[str, Path]) -> None:
    for name in ("llama", "gemma3"):
        base = recipe.Base(model=str(models[name]), load="fp32")
        texts = texts_for(base)
        ours, theirs = load.load_model(base), load.load_model(base)
        for model in (ours, theirs):
            packing.prepare(model)
            model.requires_grad_(True)
        lean.install(ours)
        expected_loss, expected = computed(theirs, texts, half=False)
        loss, grads = computed(ours, texts, half=False, loss=Loss(ours))
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert any("norm" in key for key in grads)
        for key, grad in grads.items():
            assert torch.allclose(grad, expected[key], rtol=1e-3, atol=1e-4 * float(expected[key].abs().max())), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_norms_and_their_gradients_are_the_formulas_and_spare_the_input(dtype: torch.dtype, shift: float) -> None:
    """fp32 input is where a norm that works in place would write over what others still read."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(3, 5, 32, generator=generator) * 2).to(dtype).requires_grad_()
    size = torch.randn(32, generator=generator).requires_grad_()
    grad = torch.randn(3, 5, 32, generator=generator)
    before, grad_before = x.detach().clone(), grad.clone()
    ours = lean._norm(x, size, 1e-5, shift)
    full = x.float()
    theirs = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + 1e-5) * (size + shift)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    assert torch.allclose(ours.float(), theirs, **near)
    expected = torch.autograd.grad(theirs, (x, size), grad)
    grads = torch.autograd.grad(ours, (x, size), grad.to(ours.dtype))
    for one, other in zip(grads, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one.float(), other.float(), rtol=near["rtol"], atol=10 * near["atol"])
    assert torch.equal(x.detach(), before)
    assert torch.equal(grad, grad_before)
