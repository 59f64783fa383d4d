"""Slots and chunk size where the configuration leaves them to the engine (CFG-3)."""

from quartet.wire.config import DEFAULT_SLOTS, DEFAULT_SLOTS_CPU, SchedulerConfig
from quartet.wire.lengths import AUTO_CHUNK, AUTO_CHUNK_CPU


def slots_in_force(config: SchedulerConfig, worker_slots: int, capacity_tokens: int, is_cpu: bool) -> int:
    """Return how many requests run at once on a worker that has `worker_slots` slots."""
    auto = DEFAULT_SLOTS_CPU if is_cpu else min(capacity_tokens // 2, DEFAULT_SLOTS)
    return max(1, min(config.max_running_requests or auto, worker_slots))


def chunk_tokens_in_force(config: SchedulerConfig, is_cpu: bool) -> int:
    """Return the prompt tokens of one prefill step, or -1 without chunking."""
    return config.chunked_prefill_size or (AUTO_CHUNK_CPU if is_cpu else AUTO_CHUNK)
