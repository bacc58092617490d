"""Several processes on one training: which of them is this, which texts are its share, sums over all of them.

Knows nothing of models. Every process computes its share of each optimizer step; sums of losses and gradients are added
up and divided once by all supervised tokens, so several processes equal one. Each holds the whole model, or, where the
launcher asks for it, a slice of it (see `shard`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from warmline.errors import ModelError
from warmline.model.template import Encoded

_BUCKET = 1 << 24
"""Gradients are added up in pieces of about so many numbers: one message for many small ones, no copy of all."""


@dataclass(frozen=True, slots=True)
class Group:
    """This process among `size`. Every method that needs the others must be called by all of them."""

    rank: int = 0
    size: int = 1
    split: bool = False
    """Whether the model is to be split over the processes."""

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes and prints."""
        return self.rank == 0

    def mine(self, texts: Sequence[Encoded]) -> list[Encoded]:
        """This process's share of the texts; shares are disjoint, complete and about equally long."""
        if self.size == 1:
            return list(texts)
        return sorted(texts, key=len, reverse=True)[self.rank :: self.size]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size == 1:
            return
        bucket: list[torch.Tensor] = []
        for index, tensor in enumerate(tensors):
            bucket.append(tensor)
            if sum(t.numel() for t in bucket) >= _BUCKET or index == len(tensors) - 1:
                flat = torch.cat([t.reshape(-1) for t in bucket])
                distributed.all_reduce(flat)
                for t, piece in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
                    t.copy_(piece.view_as(t))
                bucket = []

    def total(self, *values: float) -> tuple[float, ...]:
        """The sums of these numbers over all processes."""
        return self._reduce(values, distributed.ReduceOp.SUM)

    def most(self, value: int) -> int:
        """The largest of all processes' numbers."""
        return int(self._reduce((value,), distributed.ReduceOp.MAX)[0])

    def least(self, value: int) -> int:
        """The smallest of all processes' numbers."""
        return -self.most(-value)

    def _reduce(self, values: tuple[float, ...], how: distributed.ReduceOp.RedOpType) -> tuple[float, ...]:
        if self.size == 1:
            return values
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(tensor, how)
        return tuple(tensor.tolist())

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.most(0)


def join() -> Group:
    """The processes that `accelerate launch` or `torchrun` started; without these, a group of one.

    Raises:
        ModelError: the launcher asks for another way of splitting a model than FSDP2.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        return Group()
    split = _asked("FSDP")
    for kind, asked in (
        ("DeepSpeed", _asked("DEEPSPEED")),
        ("Megatron-LM", _asked("MEGATRON_LM")),
        ("FSDP1", split and os.environ.get("FSDP_VERSION", "2") != "2"),
        ("FSDP2's offloading", split and os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true"),
    ):
        if asked:
            raise ModelError(
                f"the launcher asks for {kind}, and Warmline splits a model by FSDP2 in the devices' memory only",
                code="launch-unsupported",
                hint="launch with recipes/accelerate/fsdp2.yaml; base.load: nf4 lets a larger base fit",
            )
    if split:
        # Each process reads the base by itself; transformers would leave all but the first with empty weights.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if not distributed.is_initialized():
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            backend = "nccl"
        # The leader prepares the data alone, however long it takes; the launcher ends all when one dies.
        distributed.init_process_group(backend, timeout=timedelta(days=1))
    return Group(distributed.get_rank(), size, split)


def _asked(kind: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true"


def leave() -> None:
    """End the group; what follows is done by one process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
