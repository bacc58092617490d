"""Attention by blocks is causal attention: outputs and gradients, with prefixes, windows and shared keys."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from warmline.model import attention


def tensors(tokens: int, seen: int, groups: int, dtype: torch.dtype, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, 4, tokens, 8), (1, groups, seen + tokens, 8), (1, groups, seen + tokens, 8)]
    return [(torch.randn(shape, generator=generator) * 2).to(dtype).requires_grad_() for shape in shapes]


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None) -> torch.Tensor:
    seen = key.shape[2] - query.shape[2]
    behind = torch.arange(seen, key.shape[2])[:, None] - torch.arange(key.shape[2])
    mask = (behind >= 0) & (behind < (window or key.shape[2]))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.detach().float() - other.detach().float()).norm() / other.detach().float().norm())


@settings(max_examples=40)
@given(
    tokens=st.integers(1, 40),
    seen=st.integers(0, 20),
    groups=st.sampled_from([1, 2, 4]),
    window=st.sampled_from([None, 1, 5, 16]),
    block=st.sampled_from([1, 7, 16, 128]),
)
def test_it_is_causal_attention(tokens: int, seen: int, groups: int, window: int | None, block: int) -> None:
    inputs = tensors(tokens, seen, groups, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        ours = attention.attend_short(*inputs, 0.3, window)
    theirs = exact(*inputs, window)
    assert torch.allclose(ours, theirs, atol=1e-5)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    for one, other in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 4])
def test_in_half_precision_it_is_as_near_as_the_librarys(groups: int) -> None:
    inputs = tensors(200, 30, groups, torch.bfloat16)
    truth = [tensor.detach().float().requires_grad_() for tensor in inputs]
    grad = torch.randn(1, 4, 200, 8, generator=torch.Generator().manual_seed(2))
    right = exact(*truth, None)
    rights = [right, *torch.autograd.grad(right, truth, grad)]
    ours, theirs = attention.attend_short(*inputs, 0.3, None), exact(*inputs, None)
    ours_all = [ours, *torch.autograd.grad(ours, inputs, grad.bfloat16())]
    theirs_all = [theirs, *torch.autograd.grad(theirs, inputs, grad.bfloat16())]
    for one, other, truly in zip(ours_all, theirs_all, rights, strict=True):
        assert one.dtype == torch.bfloat16
        assert distance(one, truly) < 1.3 * distance(other, truly) + 0.002


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_inputs_in_any_order_of_memory_are_read_and_left_alone(groups: int) -> None:
    """Models hand over heads inside tokens; the same numbers in another order give the same, and stay as they were."""
    inputs = tensors(40, 10, groups, torch.float32)
    turned = [t.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for t in inputs]
    before = [tensor.detach().clone() for tensor in inputs]
    grad = torch.randn(1, 40, 4, 8, generator=torch.Generator().manual_seed(2)).transpose(1, 2)
    grad_before = grad.clone()
    results = []
    for order in (inputs, turned):
        output = attention.attend_short(*order, 0.3, 7)
        results.append([output, *torch.autograd.grad(output, order, grad)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    for order in (inputs, turned):
        assert all(torch.equal(tensor.detach(), old) for tensor, old in zip(order, before, strict=True))
    assert torch.equal(grad, grad_before)
