"""The loss in pieces is the loss of whole logits, to the gradient, and no piece is larger than it may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import ARCHITECTURES, SENTENCES
from warmline import recipe
from warmline.messages import Message
from warmline.model import load
from warmline.model import loss as loss_module
from warmline.model import pack as packing
from warmline.model.loss import Loss
from warmline.model.template import Encoded, Template


def opened(folder: Path) -> tuple[Any, packing.Pack]:
    base = recipe.Base(model=str(folder), load="fp32")
    template = Template(load.load_tokenizer(base))
    turns = [[SENTENCES[(i + k) % 6] for k in range(4)] for i in range(3)]
    texts = [template.encode([Message(("user", "assistant")[k % 2], t) for k, t in enumerate(row)]) for row in turns]
    model = load.load_model(base)
    packing.prepare(model)
    # Every token a target: more rows than one piece holds.
    return model, packing.pack([Encoded(text.ids, [True] * len(text)) for text in texts])


def gradients(model: Any, total: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, grad in ours.items():
        assert torch.allclose(grad, theirs[name], rtol=1e-3, atol=1e-5 * float(theirs[name].abs().max()) + 1e-7), name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_gets_the_gradient_of_whole_logits(
    models: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full method: heads of their own (Llama) and heads that are the embedding (Gemma, Falcon) alike."""
    model, packed = opened(models[name])
    monkeypatch.setattr(loss_module, "PIECE", 20 * model.config.vocab_size)
    model.requires_grad_(True)
    loss = Loss(model)
    ours = gradients(model, total := loss(packed))
    assert loss.plain
    expected = packing.surprise(model, packed).sum()
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    same(ours, gradients(model, expected))
    assert "forward" not in loss.head.__dict__, "the model's own head is back in place"


def test_a_soft_cap_is_kept(models: dict[str, Path]) -> None:
    model, packed = opened(models["gemma3"])
    with torch.no_grad():
        model.model.norm.weight.fill_(50.0)  # a random model's logits are too small to be capped
        without = float(Loss(model)(packed))
    model.config.final_logit_softcapping = 3.0
    model.requires_grad_(True)
    loss = Loss(model)
    ours = gradients(model, total := loss(packed))
    expected = packing.surprise(model, packed).sum()
    assert loss.plain
    assert abs(without - float(total.detach())) > 1, "the cap changes something, or the test shows nothing"
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    same(ours, gradients(model, expected))


@pytest.mark.parametrize("change", ["bias", "scale", "shift"])
def test_a_head_we_do_not_know_is_left_to_the_model(
    models: dict[str, Path], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, packed = opened(models["llama"])
    if change == "bias":
        model.lm_head.bias = torch.nn.Parameter(torch.linspace(-2, 2, model.config.vocab_size))
    else:
        own = type(model).forward

        def forward(self: Any, *args: Any, **more: Any) -> Any:
            output = own(self, *args, **more)
            output.logits = output.logits * 0.25 if change == "scale" else output.logits + 1
            return output

        monkeypatch.setattr(type(model), "forward", forward)
    model.requires_grad_(True)
    loss = Loss(model)
    ours = gradients(model, total := loss(packed))
    assert not loss.plain
    expected = packing.surprise(model, packed).sum()
    assert float(total.detach()) == float(expected.detach())
    same(ours, gradients(model, expected))


class Largest(TorchDispatchMode):
    """Notes the most entries any tensor as wide as the vocabulary has, the head's own matrix apart."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary, self.width, self.entries = vocabulary, width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if not isinstance(tensor, torch.Tensor) or tensor.shape == (self.width, self.vocabulary):
                continue
            if tensor.shape[-1:] == (self.vocabulary,):
                self.entries = max(self.entries, tensor.numel())
        return result


@pytest.mark.parametrize("limit", ["entries", "rows"])
def test_logits_are_never_whole(limit: str, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, packed = opened(models["llama"])
    vocabulary, width = model.config.vocab_size, model.config.hidden_size
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    monkeypatch.setattr(loss_module, *(("PIECE", 16 * vocabulary) if limit == "entries" else ("ROWS", 16)))
    assert len(packed.rows) > 64
    with Largest(vocabulary, width) as pieces:
        Loss(model)(packed).backward()
    with Largest(vocabulary, width) as whole:
        packing.surprise(model, packed).sum().backward()
    assert 0 < pieces.entries <= 16 * vocabulary
    assert whole.entries >= len(packed.rows) * vocabulary


@given(
    rows=st.integers(1, 70),
    vocabulary=st.integers(2, 50),
    cap=st.sampled_from([None, 2.0, 30.0]),
    scale=st.sampled_from([0.01, 1.0, 300.0]),
    seed=st.integers(0, 99),
)
def test_any_shape_equals_cross_entropy(rows: int, vocabulary: int, cap: float | None, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(rows, 8, generator=generator) * scale).requires_grad_()
    matrix = torch.randn(vocabulary, 8, generator=generator).requires_grad_()
    labels = torch.randint(vocabulary, (rows,), generator=generator)

    def expected() -> torch.Tensor:
        logits = hidden @ matrix.T
        logits = cap * torch.tanh(logits / cap) if cap else logits
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "PIECE", 17 * vocabulary)
        total = loss_module._Chunked.apply(hidden, matrix, labels, cap)
    ours = torch.autograd.grad(total * 0.5, [hidden, matrix])
    theirs = torch.autograd.grad(expected() * 0.5, [hidden, matrix])
    assert float(total.detach()) == pytest.approx(float(expected().detach()), rel=1e-4, abs=1e-4)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()) + 1e-6)


def test_measuring_needs_no_gradient(models: dict[str, Path]) -> None:
    model, packed = opened(models["qwen3"])
    with torch.no_grad():
        assert float(Loss(model)(packed)) == pytest.approx(float(packing.surprise(model, packed).sum()), rel=1e-5)
