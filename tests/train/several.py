"""Several gloo processes on one machine, with the environment that a launcher gives them."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
"""What `accelerate launch` sets for recipes/accelerate/fsdp2.yaml."""

forks = pytest.mark.skipif(
    not hasattr(os, "fork") or torch.cuda.is_available(), reason="CPU processes are made by fork"
)


def together(work: Callable[..., Any], *given: Any, processes: int = 2, **environment: str) -> list[int]:
    """Call `work` in so many processes; returns their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            torch.set_num_threads(1)
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes), "GLOO_SOCKET_IFNAME": "lo"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **environment}
            work(*given)
            code = 0
        except SystemExit as stopped:
            code = int(str(stopped.code))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
