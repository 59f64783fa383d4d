"""How much of a worker's memory is for states of linear attention: those of slots, and checkpoints of them."""

import sys
from dataclasses import dataclass

import torch

from quartet.checkpoint.spec import ModelSpec
from quartet.sizing.model_bytes import checkpoints_within, default_slots, page_bytes, slots_for_states, state_bytes
from quartet.wire.config import Config
from worker_proc.kv_pool import pool_bytes


@dataclass(frozen=True, slots=True)
class StateMemory:
    """`slots` at once, 0 where their number is left to that of the pages; `checkpoints`; bytes of one state."""

    slots: int
    checkpoints: int = 0
    one_bytes: int = 0

    def facts(self) -> dict[str, int]:
        """Return what the ready line says; nothing of a model without states."""
        if not self.one_bytes:
            return {}
        return {"slots": self.slots, "state_bytes_per_slot": self.one_bytes, "checkpoints": self.checkpoints}

    @property
    def total_bytes(self) -> int:
        """All states, with the one of rows that are padding."""
        return self.one_bytes and (self.slots + 1 + self.checkpoints) * self.one_bytes


def plan_states(
    config: Config, spec: ModelSpec, item_bytes: int, kv_item_bytes: int, device: torch.device, is_empty: bool
) -> StateMemory:
    """Return the slots that are asked for, or those whose states fit, and a share of what is left as checkpoints.

    Args:
        item_bytes: of the model's dtype.
        kv_item_bytes: of a number in the KV cache.
        device: of the worker.
        is_empty: what is in use of a GPU counts as free; see pool_bytes.
    """
    slots, worker = config.scheduler.max_running_requests, config.worker
    if spec.linear is None:
        return StateMemory(slots)
    one, tokens = state_bytes(spec, item_bytes), worker.max_total_tokens
    budget = pool_bytes(worker, device, is_empty)
    if not slots:
        slots = slots_for_states(default_slots(tokens or sys.maxsize, device.type == "cpu"), budget, one)
    pool = tokens * page_bytes(spec, 1, kv_item_bytes) if tokens else budget - (slots + 1) * one
    is_sharing = not config.scheduler.disable_radix_cache
    return StateMemory(slots, checkpoints_within(pool, one) if is_sharing else 0, one)
