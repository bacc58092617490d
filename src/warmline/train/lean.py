"""What peft and transformers compute, with less memory kept for backward and fewer passes over it.

`install` gives the layers it knows another way to compute themselves: LoRA on a frozen linear layer, of any precision,
by itself or together with those that read the same input; RMS norms; gated activations. Parameters, their names and
what is saved stay peft's. A layer it does not know, or that is switched off or merged, computes itself as before.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that read the same input, by the names of the Llama family."""


def install(model: Any) -> None:
    """Let every layer of `model` that is known compute itself the lean way."""
    for parent in list(model.modules()):
        layers = {name: child for name, child in parent.named_children() if _known_lora(child)}
        sets = [[layers.pop(name) for name in names if name in layers] for names in TOGETHER]
        for layer_set in [*sets, *([layer] for layer in layers.values())]:
            for same in _alike(layer_set):
                _Group(same)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            _lean_norm(module)
        elif {"gate_proj", "up_proj", "down_proj", "act_fn"} == {name for name, _ in module.named_children()}:
            _lean_gate(module)


def _dtype(x: torch.Tensor) -> torch.dtype:
    """What `x` is multiplied in: autocast's precision where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


# ---------------------------------------------------------------------------------------------------- LoRA


def _known_lora(module: torch.nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    if not isinstance(module, LoraLayer):
        return False
    layer: Any = module
    if not layer.active_adapters or not set(layer.active_adapters) <= set(layer.lora_A):
        return False
    name = layer.active_adapters[0]
    base = layer.get_base_layer()
    plain = type(layer).__name__ in ("Linear", "Linear4bit", "Linear8bitLt") and not layer.lora_variant.get(name)
    frozen = not any(parameter.requires_grad for parameter in base.parameters())
    bias = layer.lora_bias.get(name) or getattr(layer, "fan_in_fan_out", False)
    kinds = ("Linear", "FalconLinear", "Linear4bit", "Linear8bitLt")
    return len(layer.active_adapters) == 1 and plain and frozen and not bias and type(base).__name__ in kinds


def _alike(layers: list[Any]) -> list[list[Any]]:
    """Split a set of layers by input width and dropout: only alike ones share a product and a mask."""
    found: dict[tuple[int, float], list[Any]] = {}
    for layer in layers:
        name = layer.active_adapters[0]
        found.setdefault((layer.lora_A[name].in_features, _chance(layer.lora_dropout[name])), []).append(layer)
    return list(found.values())


def _chance(dropout: torch.nn.Module) -> float:
    return dropout.p if isinstance(dropout, torch.nn.Dropout) else 0.0


class _Group:
    """LoRA layers that read the same input. The first one called computes all; the others find theirs ready."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.name = layers[0].active_adapters[0]
        self.own: list[Callable[..., torch.Tensor]] = [layer.forward for layer in layers]
        self.input: torch.Tensor | None = None
        self.ready: dict[int, torch.Tensor] = {}
        for place, layer in enumerate(layers):
            layer.forward = lambda x, *rest, place=place, **more: self.forward(place, x, *rest, **more)

    def forward(self, place: int, x: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        if rest or more or any(self._changed(layer) for layer in self.layers):
            return self.own[place](x, *rest, **more)
        if self.input is not x or place not in self.ready:
            matrices = [layer.lora_A[self.name].weight for layer in self.layers]
            matrices += [layer.lora_B[self.name].weight for layer in self.layers]
            bases = [layer.get_base_layer() for layer in self.layers]
            scales = [float(layer.scaling[self.name]) for layer in self.layers]
            chance = _chance(self.layers[0].lora_dropout[self.name]) if self.layers[0].training else 0.0
            outputs = _lora(x, bases, scales, chance, _dtype(x), *matrices)
            self.input, self.ready = x, dict(enumerate(outputs))
        output = self.ready.pop(place)
        if not self.ready:
            self.input = None
        return output

    def _changed(self, layer: Any) -> bool:
        return bool(layer.disable_adapters or layer.merged or list(layer.active_adapters) != [self.name])


def weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The matrix of a frozen linear layer as it is multiplied.

    Dequantised anew at each use: that takes 1 % of the product's time, keeping it would take four times the base's
    memory.
    """
    stored: Any = layer.weight
    state = getattr(stored, "quant_state", None)
    if state is None:
        state = getattr(layer, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        matrix: torch.Tensor = dequantize_4bit(stored.data, state).to(dtype)
    elif stored.dtype == torch.int8:
        scale = stored.SCB if getattr(stored, "SCB", None) is not None else layer.state.SCB
        matrix = (stored.data * (scale.float() / 127)[:, None]).to(dtype)
    else:
        matrix = stored.detach().to(dtype)
    return matrix


def _mask(shape: torch.Size, chance: float, device: torch.device) -> tuple[torch.Tensor, float]:
    """Which inputs to keep, eight decided by one random number, and what to multiply the kept ones by.

    The chance is rounded to 1/256. torch's own dropout on a CPU draws a number for each input, which takes ten times
    as long.
    """
    threshold = max(1, round(chance * 256))
    count = shape.numel()
    drawn = torch.empty((count + 7) // 8, dtype=torch.int64, device=device).random_(-(2**63), None)
    return (drawn.view(torch.uint8)[:count] >= threshold).view(shape), 256 / (256 - threshold)


class _Lora(torch.autograd.Function):
    """y_i = x W_iᵀ + b_i + s_i (drop(x) A_iᵀ) B_iᵀ. Keeps x, the narrow x Aᵀ and the mask for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        bases: list[Any],
        scales: list[float],
        chance: float,
        dtype: torch.dtype,
        *matrices: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        downs, ups = matrices[: len(bases)], matrices[len(bases) :]
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        mask, factor = _mask(rows.shape, chance, x.device) if chance else (None, 1.0)
        outputs = []
        with torch.autocast(x.device.type, enabled=False):
            narrow = (rows if mask is None else rows * mask) @ torch.cat([down.to(dtype) for down in downs]).t()
            if mask is not None:
                narrow *= factor
            parts = torch.split(narrow, [len(down) for down in downs], dim=1)
            for base, scale, up, part in zip(bases, scales, ups, parts, strict=True):
                bias = None if base.bias is None else base.bias.to(dtype)
                # In the shape it leaves in: Falcon adds to it in place, which autograd forbids for a view.
                output = functional.linear(rows.view(x.shape), weight(base, dtype), bias)
                output.view(len(rows), -1).addmm_(part, up.to(dtype).t(), alpha=scale)
                outputs.append(output)
        ctx.save_for_backward(rows, narrow, mask, *matrices)
        ctx.bases, ctx.scales, ctx.factor, ctx.shape, ctx.kind = bases, scales, factor, x.shape, x.dtype
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, narrow, mask, *matrices = ctx.saved_tensors
        count, dtype = len(ctx.bases), rows.dtype
        downs, ups = matrices[:count], matrices[count:]
        widths = [len(down) for down in downs]
        to_narrow = torch.empty_like(narrow)
        to_x: torch.Tensor | None = None
        to_ups = []
        parts, to_parts = torch.split(narrow, widths, 1), torch.split(to_narrow, widths, 1)
        pieces = zip(ctx.bases, ctx.scales, ups, parts, to_parts, grads, strict=True)
        for base, scale, up, part, to_part, grad in pieces:
            flat = grad.reshape(-1, grad.shape[-1]).to(dtype)
            to_part.copy_(flat @ (up * scale).to(dtype))
            to_ups.append((flat.t() @ part).to(up.dtype).mul_(scale))
            if ctx.needs_input_grad[0]:
                matrix = weight(base, dtype)
                to_x = flat @ matrix if to_x is None else to_x.addmm_(flat, matrix)
        to_narrow *= ctx.factor
        stacked = to_narrow.t() @ (rows if mask is None else rows * mask)
        to_downs = [grad.to(down.dtype) for grad, down in zip(torch.split(stacked, widths), downs, strict=True)]
        if to_x is not None:
            down = torch.cat([down.to(dtype) for down in downs])
            if mask is None:
                to_x.addmm_(to_narrow, down)
            else:
                to_x.addcmul_(to_narrow @ down, mask.to(dtype))
            to_x = to_x.view(ctx.shape).to(ctx.kind)
        return to_x, None, None, None, None, *to_downs, *to_ups


_lora: Callable[..., tuple[torch.Tensor, ...]] = _Lora.apply


# ---------------------------------------------------------------------------------------------------- norms


class _Norm(torch.autograd.Function):
    """x / rms(x) * (weight + shift) with fp32 inside. Keeps x and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, shift: float) -> torch.Tensor:
        full = x.to(torch.float32, copy=True)  # products and sums of mixed precision take several times as long
        length = torch.linalg.vector_norm(full, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        ctx.shift = shift
        # Llama multiplies by the weight in its own precision, Gemma in fp32 and gives back the input's.
        dtype = x.dtype if shift else torch.promote_types(x.dtype, weight.dtype)
        normed: torch.Tensor = full.mul_(inverse).mul_(weight.float() + shift).to(dtype)
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        normed = x.to(torch.float32, copy=True).mul_(inverse)
        to_normed = grads[0].to(torch.float32, copy=True).mul_(weight.float() + ctx.shift)
        mean = (to_normed * normed).mean(-1, keepdim=True)
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = (grads[0] * normed).flatten(0, -2).sum(0).to(weight.dtype)
        to_x = to_normed.addcmul_(normed, mean, value=-1).mul_(inverse).to(x.dtype)
        return to_x, to_weight, None, None


_norm: Callable[..., torch.Tensor] = _Norm.apply


def _lean_norm(module: Any) -> None:
    """Replace the norm's computation if, tried out, it is one of the two known forms."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    size = getattr(module, "weight", None)
    if not isinstance(eps, float) or size is None or size.dim() != 1 or size.is_meta:
        return
    with torch.no_grad():
        # Small numbers too, so that eps counts.
        sample = torch.randn(2, len(size), generator=torch.Generator().manual_seed(1)) * torch.tensor([[1.0], [1e-3]])
        sample = sample.to(size.device, size.dtype)
        expected = module(sample)
        for shift in (0.0, 1.0):
            ours = _norm(sample, size, eps, shift)
            if ours.dtype == expected.dtype and torch.allclose(ours, expected, rtol=2e-2, atol=1e-3):
                module.forward = lambda x, shift=shift: _norm(x, module.weight, eps, shift)
                return


# ---------------------------------------------------------------------------------------------------- activations


def _silu_backward(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.ops.aten.silu_backward(grad, x)
    return result


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


def _gelu_backward(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
    return result


ACTIVATIONS: tuple[tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]], ...] = (
    (functional.silu, _silu_backward),
    (_gelu, _gelu_backward),
)


class _Gate(torch.autograd.Function):
    """act(gate) * up. Keeps the two inputs only."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, kind: int) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.kind = kind
        return ACTIVATIONS[kind][0](gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        act, back = ACTIVATIONS[ctx.kind]
        return back(grads[0] * up, gate), act(gate).mul_(grads[0]), None


_gate: Callable[..., torch.Tensor] = _Gate.apply


def _lean_gate(module: Any) -> None:
    """Replace the block's computation if, tried out on plain numbers, it is down(act(gate(x)) * up(x))."""
    sample = torch.linspace(-4, 4, 64)
    bare = SimpleNamespace(
        act_fn=module.act_fn, gate_proj=lambda x: x, up_proj=lambda x: x + 1, down_proj=lambda x: 3 * x
    )
    try:
        computed = type(module).forward(bare, sample)
    except (AttributeError, TypeError):
        return
    for kind, (act, _) in enumerate(ACTIVATIONS):
        if torch.allclose(computed, 3 * act(sample) * (sample + 1), atol=1e-5):
            module.forward = lambda x, kind=kind: module.down_proj(_gate(module.gate_proj(x), module.up_proj(x), kind))
            return
