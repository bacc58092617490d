"""A model split over processes by FSDP2: each holds a slice of every weight, and a block whole while it computes it.

Knows nothing of steps or data. What is said here of tensors holds for those that are not split, too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from warmline.errors import ModelError


def split(model: Any) -> None:
    """Split `model` over all processes, by its blocks; a summed gradient arrives in slices, too.

    Parameters are new objects afterwards. All processes must run the model equally often.

    Raises:
        ModelError: the base is kept in a form whose slices can't be put together again.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    for module in model.modules():
        state = getattr(module._parameters.get("weight"), "quant_state", None)
        if type(module).__name__ == "Linear8bitLt" or (state is not None and _dora(model)):
            raise ModelError(
                "int8 weights, and DoRA on NF4 weights, cannot be split: their scales would stay behind",
                code="launch-unsupported",
                hint="set base.load to `nf4` or `bf16` and adapter.dora to false, or launch with one-machine.yaml",
            )
        if state is not None:
            # NF4's bytes are split like any weight; their scales, a few in a hundred of them, stay whole.
            state.to(kind)
            module.quant_state = state
            module.weight = torch.nn.Parameter(module.weight.data, requires_grad=False)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    mesh = init_device_mesh(kind, (distributed.get_world_size(),))
    freed = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in ("true", "full_shard")
    blocks = [module for module in base.modules() if type(module).__name__ in (base._no_split_modules or ())]
    for part in [*blocks, model]:
        # What belongs to no block, the head among it, is used once more by the loss: it stays whole until the end.
        fully_shard(part, mesh=mesh, reshard_after_forward=freed and part is not model)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def _dora(model: Any) -> bool:
    return any(config.use_dora for config in getattr(model, "peft_config", {}).values())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; of one that is split, all processes must ask for it."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def gather(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, keep: bool) -> dict[str, torch.Tensor]:
    """All tensors whole, in main memory; of a split model every process must ask, and those that need not keep none."""
    found = {}
    for name, tensor in tensors.items():
        held = whole(tensor)
        if keep:
            found[name] = held.to("cpu", dtype)
    return found


def like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """`value` where `parameter` is, and split as that is, if it is one number for each of the parameter's."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value
