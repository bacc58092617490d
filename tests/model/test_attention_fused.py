"""What a GPU is given computes the same attention: checked on a CPU, where the same calls find slower kernels."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import FalconConfig, FalconForCausalLM, Gemma2Config, Gemma2ForCausalLM

from tests.model.test_attention import exact, tensors
from warmline import recipe
from warmline.model import load
from warmline.model import pack as packing
from warmline.model.template import Encoded


@settings(max_examples=60)
@given(
    tokens=st.integers(1, 40),
    seen=st.integers(0, 20),
    groups=st.sampled_from([1, 2, 4]),
    window=st.sampled_from([None, 1, 5, 16, 60]),
    flash=st.booleans(),
)
def test_it_is_causal_attention(tokens: int, seen: int, groups: int, window: int | None, flash: bool) -> None:
    inputs = tensors(tokens, seen, groups, torch.float32)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(packing, "can_use_flash_attention", lambda asked: flash)
        ours = packing._attend_fused(*inputs, 0.3, window, 0.0)
    theirs = exact(*inputs, window)
    assert torch.allclose(ours, theirs, atol=1e-5)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    ours_all, theirs_all = (torch.autograd.grad(of, inputs, grad) for of in (ours, theirs))
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(ours_all, theirs_all, strict=True))


@pytest.mark.parametrize(
    ("seen", "groups", "window", "flash", "copied", "bias"),
    [
        (0, 4, None, True, False, None),  # a text by itself: plain causal attention
        (0, 1, None, True, False, None),  # shared keys: FlashAttention knows them
        (0, 1, None, False, True, None),  # an older GPU does not
        (9, 1, None, True, False, "CausalBias"),  # behind a shared beginning: no mask of numbers, that FlashAttention
        (9, 1, None, False, True, "CausalBias"),  # would refuse
        (9, 2, 40, True, False, "CausalBias"),  # all within the window
        (9, 2, 5, True, True, "Tensor"),  # a window needs a mask, and a mask keys of each head's own
        (9, 4, 5, True, False, "Tensor"),
    ],
)
def test_what_the_kernel_is_asked(
    monkeypatch: pytest.MonkeyPatch,
    seen: int,
    groups: int,
    window: int | None,
    flash: bool,
    copied: bool,
    bias: str | None,
) -> None:
    asked: dict[str, object] = {}

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **how: object) -> torch.Tensor:
        asked.update(how, heads=k.shape[1])
        return q

    monkeypatch.setattr(packing, "can_use_flash_attention", lambda asked: flash)
    monkeypatch.setattr(packing, "scaled_dot_product_attention", kernel)
    packing._attend_fused(*tensors(12, seen, groups, torch.bfloat16), None, window, 0.0)
    assert asked["heads"] == (4 if copied else groups)
    assert asked["enable_gqa"] == (groups < 4 and not copied)
    assert asked["is_causal"] == (bias is None)
    assert (type(asked["attn_mask"]).__name__ if bias else asked["attn_mask"]) == bias


@pytest.mark.parametrize("groups", [1, 4])
def test_what_is_not_on_a_cpu_goes_there(monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    """In one precision: after a rotation queries may be finer than values, and fused kernels want them alike."""
    seen: list[tuple[torch.dtype, ...]] = []
    own = packing._attend_fused

    def noted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *how: object) -> torch.Tensor:
        seen.append((q.dtype, k.dtype, v.dtype))
        return own(q, k, v, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "_attend_fused", noted)
    query, key, value = (torch.empty(1, heads, 12, 8, device="meta") for heads in (4, groups, groups))
    layout = packing.Layout((5, 3, 4), ((0,), (0, 1), (0, 2)))
    module = torch.nn.Module().eval()
    output, _ = packing.attend(module, query, key, value.bfloat16(), None, layout=layout)
    assert (output.shape, output.device.type, output.dtype) == ((1, 12, 4, 8), "meta", torch.bfloat16)
    assert seen == [(torch.bfloat16,) * 3] * 3


@pytest.mark.parametrize("share", [True, False])
def test_falcons_own_attention_is_told_what_sees_what(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    """A pack in one go has the logits of each conversation by itself, computed by the library's own code."""
    texts = [
        Encoded([*range(10, 40), *range(50 + 7 * n, 56 + 9 * n)], [True] * (36 + 2 * n), f"c{n}") for n in range(4)
    ]
    model = load.load_model(recipe.Base(model=str(models["falcon"]), load="fp32"))
    alone = [model(torch.tensor([text.ids]), use_cache=False).logits[0, :-1] for text in texts]
    packing.prepare(model)
    assert packing.at_once(model)
    calls = []
    own = packing.attend
    monkeypatch.setattr(packing, "attend", lambda *given, **named: calls.append(1) or own(*given, **named))
    packed = packing.pack(texts, share)
    together = packing.logits(model, packed)
    assert len(calls) == model.config.num_hidden_layers
    for number, expected in enumerate(alone):
        assert torch.allclose(together[packed.owners == number], expected, atol=1e-4)


def test_who_cannot_be_told() -> None:
    """ALiBi reads the mask, and other architectures read it too."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    told = [FalconForCausalLM(FalconConfig(**shape, alibi=alibi)) for alibi in (False, True)]
    gemma2 = Gemma2ForCausalLM(
        Gemma2Config(**shape, intermediate_size=16, head_dim=8, num_key_value_heads=1, layer_types=["full_attention"])
    )
    assert [packing.takes_told(model) for model in (*told, gemma2)] == [True, False, False]
    for model in told:
        packing.prepare(model)
    assert [packing.at_once(model) for model in told] == [True, False]
