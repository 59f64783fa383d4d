"""The ranks of a model that is divided among processes (--tp-size), and what they compute together.

torch.distributed: NCCL between GPUs, gloo on the CPU. All ranks are on one machine, so both use its loopback interface.
Ranks wait for each other without a limit of their own: the supervisor ends a rank that makes no progress, and with one
all others.
"""

import logging
import os
import time
from datetime import timedelta
from typing import NoReturn

import torch
from torch import Tensor, distributed
from torch._C._distributed_c10d import FileStore

from worker_proc.contract import DeviceLostError, Place

logger = logging.getLogger(__name__)

_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_LIMIT = timedelta(hours=1)
_LOST_S = 10.0
"""A rank is killed milliseconds after another has died."""


class Ranks:
    """Implements Collectives. One of a process; on CUDA its operations can be captured in graphs.

    Args:
        place: of this rank; the constructor waits for all others.
        device: of the tensors.

    Every method raises DeviceLostError if another rank is gone, but not before the supervisor had time to end this one:
    the death is the other's.
    """

    def __init__(self, place: Place, device: torch.device) -> None:
        self._device = device
        for name in _INTERFACES:
            os.environ.setdefault(name, "lo")
        is_cuda = device.type == "cuda"
        try:
            distributed.init_process_group(
                "nccl" if is_cuda else "gloo",
                store=FileStore(str(place.meeting), place.size),
                rank=place.rank,
                world_size=place.size,
                timeout=_LIMIT,
                device_id=device if is_cuda else None,
            )
        except RuntimeError as error:
            _wait_for_the_end(error)
        # Communicators are made at their first use, which no capture of a graph may be.
        self.broadcast(torch.zeros(1, device=device))
        self.least(0)

    def all_reduce(self, x: Tensor) -> Tensor:
        """See Collectives."""
        try:
            distributed.all_reduce(x)
        except RuntimeError as error:
            _wait_for_the_end(error)
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """See Collectives."""
        try:
            distributed.broadcast(x, src=0)
        except RuntimeError as error:
            _wait_for_the_end(error)
        return x

    def least(self, number: int) -> int:
        """Return the smallest of the ranks' numbers, once all ranks have called this."""
        numbers = torch.tensor([number], device=self._device)
        try:
            distributed.all_reduce(numbers, distributed.ReduceOp.MIN)
        except RuntimeError as error:
            _wait_for_the_end(error)
        return int(numbers)


def _wait_for_the_end(error: RuntimeError) -> NoReturn:
    """Wait to be killed; raises DeviceLostError if that does not happen."""
    logger.error("another rank is gone: %s", str(error).splitlines()[0])
    time.sleep(_LOST_S)
    raise DeviceLostError("another rank is gone") from error
