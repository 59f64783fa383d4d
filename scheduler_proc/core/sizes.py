"""Slots, chunk size and mixed steps where the configuration leaves them to the engine (CFG-3)."""

from collections.abc import Iterable

from quartet.wire.config import DEFAULT_SLOTS, DEFAULT_SLOTS_CPU, SchedulerConfig
from quartet.wire.lengths import AUTO_CHUNK, AUTO_CHUNK_CPU
from scheduler_proc.core.request import Request

BACKLOG_STEPS = 4
"""Steps over which a backlog of prompts is spread while others decode, if their size allows it."""


def slots_in_force(config: SchedulerConfig, worker_slots: int, capacity_tokens: int, is_cpu: bool) -> int:
    """Return how many requests run at once on a worker that has `worker_slots` slots."""
    auto = DEFAULT_SLOTS_CPU if is_cpu else min(capacity_tokens // 2, DEFAULT_SLOTS)
    return max(1, min(config.max_running_requests or auto, worker_slots))


def is_mixing(config: SchedulerConfig, mixed_tokens: int) -> bool:
    """Say whether decode rows join prefill steps, on a worker with that WorkerHello.mixed_tokens."""
    return mixed_tokens > 0 if config.enable_mixed_chunk is None else config.enable_mixed_chunk


def mixed_budget(
    config: SchedulerConfig, chunk_tokens: int, mixed_tokens: int, rows: int, waiting: Iterable[Request]
) -> int:
    """Return the tokens of a prefill step that `rows` decode rows join, those included, or -1 without a bound.

    A size that is given holds as it is. Otherwise many rows leave a quarter of the worker's size to prompts, and a step
    takes a share of a deep backlog, whose requests wait for longer than the rows pause."""
    if config.chunked_prefill_size or not mixed_tokens or not rows:
        return chunk_tokens
    backlog = 0
    for request in waiting:
        backlog += request.uncomputed_tokens
        if backlog >= chunk_tokens * BACKLOG_STEPS:
            break
    return min(chunk_tokens, max(mixed_tokens, rows + mixed_tokens // 4, backlog // BACKLOG_STEPS))


def chunk_tokens_in_force(config: SchedulerConfig, is_cpu: bool) -> int:
    """Return the prompt tokens of one prefill step, or -1 without chunking."""
    return config.chunked_prefill_size or (AUTO_CHUNK_CPU if is_cpu else AUTO_CHUNK)
