"""The loss of a pack without its logits: a few rows at a time, and their gradient while they are still there.

Logits of a pack of 2048 tokens and a vocabulary of 128,000 would take 1 GB in fp32, their gradient as much again. Here
the largest piece has `PIECE` entries. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from warmline.model import pack as packing
from warmline.model.pack import Pack

PIECE = 2**25
"""Entries of the largest piece of logits: 64 MB in bf16."""
ROWS = 256
"""Rows of a piece on a CPU at most: products with more are slower there, for what they write leaves the cache."""


class Loss:
    """The summed loss of a pack under `model`, for training and for measuring.

    Heads that are more than one frozen or trained matrix and a soft cap are computed by the model itself, logits whole.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.head = self.base.get_output_embeddings()
        self.plain = type(self.head) is torch.nn.Linear and self.head.bias is None

    def __call__(self, packed: Pack) -> torch.Tensor:
        """Negative log-likelihood in nats of all supervised tokens together, fp32."""
        if self.plain:
            hidden, cap = self._hidden(packed)
            if hidden is not None:
                kind = hidden.device.type
                dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
                return _chunked(hidden.to(dtype), self.head.weight, packed.labels, cap)
            self.plain = False
        return packing.surprise(self.model, packed).sum()

    def _hidden(self, packed: Pack) -> tuple[torch.Tensor | None, float | None]:
        """What the head is given at the supervised places [targets, width], and the cap on what it gives back.

        The model runs whole with a head that keeps its input and gives back a few known numbers: what becomes of them
        shows what the model does with logits. None: it does something else than to cap them.
        """
        seen: list[torch.Tensor] = []
        probe = torch.tensor([-60.0, -3.0, 0.5, 90.0], device=packed.ids.device)

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            seen.append(hidden.flatten(0, -2))
            return probe.expand(*hidden.shape[:-1], len(probe))

        own = self.head.__dict__.get("forward")
        self.head.forward = forward
        try:
            came = packing.logits(self.model, packed)[-1].float()
        finally:
            del self.head.forward
            if own is not None:
                self.head.forward = own
        hidden = torch.cat(seen)
        cap = getattr(self.base.config.get_text_config(), "final_logit_softcapping", None)
        expected = cap * torch.tanh(probe / cap) if cap else probe
        known = came.shape == probe.shape and torch.allclose(came, expected, rtol=1e-2, atol=1e-2)
        return (hidden, cap) if known and len(hidden) == len(packed.rows) else (None, None)


class _Chunked(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T`; the gradient is made beside the loss, from the same logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, cap: float | None
    ) -> torch.Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        matrix = weight.detach().to(hidden.dtype)
        to_hidden = torch.empty_like(hidden) if need_hidden else None
        to_weight = torch.zeros(weight.shape, device=weight.device) if need_weight else None
        total = torch.zeros((), device=hidden.device)
        rows = max(16, PIECE // len(weight))
        if hidden.device.type == "cpu":
            rows = min(rows, ROWS)
        piece = hidden.new_empty(min(rows, len(hidden)), len(weight))  # one for all: fresh memory costs more than it
        for start in range(0, len(hidden), rows):
            some, wanted = hidden[start : start + rows], labels[start : start + rows]
            logits = torch.mm(some, matrix.t(), out=piece[: len(some)])
            total += _softmax(logits, wanted, cap, need_hidden or need_weight)
            if to_hidden is not None:
                torch.mm(logits, matrix, out=to_hidden[start : start + rows])
            if to_weight is not None:
                to_weight += logits.t() @ some
        ctx.save_for_backward(to_hidden, to_weight)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        to_hidden, to_weight = ctx.saved_tensors
        return (
            None if to_hidden is None else (to_hidden * grads[0]).to(to_hidden.dtype),
            None if to_weight is None else (to_weight * grads[0]).to(ctx.dtype),
            None,
            None,
        )


_chunked: Callable[..., torch.Tensor] = _Chunked.apply


def _softmax(logits: torch.Tensor, labels: torch.Tensor, cap: float | None, gradient: bool) -> torch.Tensor:
    """Summed loss in fp32; `logits` become their gradient in place if it is wanted."""
    # On a CPU 16 rows at a time stay in the cache; on a GPU each call costs more than it saves.
    step = 16 if logits.device.type == "cpu" else len(logits)
    total = torch.zeros((), device=logits.device)
    for start in range(0, len(logits), step):
        part, wanted = logits[start : start + step].float(), labels[start : start + step, None]
        slope = None
        if cap:
            part.div_(cap).tanh_()
            slope = 1 - part.square()
            part.mul_(cap)
        right = part.gather(1, wanted)
        largest = part.amax(-1, keepdim=True)
        part.sub_(largest).exp_()
        mass = part.sum(-1, keepdim=True)
        total += (mass.log() + largest - right).sum()
        if gradient:
            part.div_(mass).scatter_add_(1, wanted, -torch.ones_like(right))
            logits[start : start + step] = part if slope is None else part.mul_(slope)
    return total
