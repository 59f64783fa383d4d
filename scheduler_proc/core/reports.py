"""What the scheduler reports: answers to queries, gauges and counts. It reads the owners and changes nothing."""

from typing import Any

import msgspec

from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.batch import Batch
from scheduler_proc.core.counters import DecodeGaps, SchedulerCounters
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.queue import WaitingQueue
from scheduler_proc.core.ratio import NewTokenRatio
from scheduler_proc.core.request import Request
from scheduler_proc.core.request_table import RequestTable


def settings_in_force(
    config: SchedulerConfig, max_slots: int, chunk_tokens: int, kv: KvCache, ratio: NewTokenRatio
) -> dict[str, Any]:
    """Return every setting, with what was chosen for those left to the engine, and the ratio's constants (CFG-3)."""
    return {
        **msgspec.structs.asdict(config),
        "max_running_requests": max_slots,
        "chunked_prefill_size": chunk_tokens,
        "page_size": kv.page_size,
        "kv_capacity_tokens": kv.capacity_tokens,
        "effective_new_token_ratio": {
            "initial": ratio.initial,
            "minimum": ratio.minimum,
            "decay": ratio.decay,
            "current": ratio.current,
        },
    }


def timeline(table: RequestTable, rid: str) -> dict[str, Any]:
    """Return the timelines of every choice of the request with that id (hexadecimal), live or lately ended.

    `error` says so if it is unknown. Times are seconds since the request arrived.
    """
    found = [request for request in _remembered(table) if request.rid.hex() == rid]
    if not found:
        return {"error": f"no request {rid!r} is live or among the last {table.ended.maxlen}"}
    return {"rid": rid, "choices": [_choice(request) for request in found]}


def _choice(request: Request) -> dict[str, Any]:
    times = request.timeline
    return {
        "choice": request.choice,
        "attempt": request.stream.attempt,
        "state": request.state.name.lower(),
        "priority": times.priority,
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": len(request.output_ids),
        "max_new_tokens": request.max_new_tokens,
        "cached_tokens": max(0, times.cached_tokens),
        "retractions": times.retractions,
        "recomputed_tokens": times.recomputed_tokens,
        "events": [
            {"at_s": round(when - times.arrived_s, 6), "event": what, **details} for when, what, details in times.events
        ],
    }


def trace(table: RequestTable, now: float) -> dict[str, Any]:
    """Return everything remembered as a trace in Chrome's format: a row for each request, spans for its states."""
    events = []
    for row, request in enumerate(_remembered(table)):
        name = f"{request.rid.hex()[:8]}/{request.choice}"
        events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": row, "args": {"name": name}})
        happened = request.timeline.events
        ends = [when for when, _, _ in happened[1:]] + [now]
        for (begin, what, details), end in zip(happened, ends, strict=True):
            events.append(
                {
                    "ph": "X",
                    "name": what,
                    "pid": 1,
                    "tid": row,
                    "ts": round(begin * 1e6, 1),
                    "dur": 0 if what == "ended" else round((end - begin) * 1e6, 1),
                    "args": details,
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _remembered(table: RequestTable) -> list[Request]:
    return [*table.ended, *table.live()]


def gauges(
    queue: WaitingQueue, batch: Batch, kv: KvCache, ratio: NewTokenRatio, decode_gaps: DecodeGaps
) -> dict[str, float]:
    """Return what is so at the moment, by metric name (MET-1)."""
    found: dict[str, float] = {
        "num_running_reqs": len(batch.on_board()),
        "num_queue_reqs": len(queue.waiting),
        "new_token_ratio": ratio.current,
    }
    if kv.capacity_tokens:
        used = kv.capacity_tokens - kv.reachable_tokens()
        found["kv_capacity_tokens"] = kv.capacity_tokens
        found["kv_available_tokens"] = kv.pool.available_tokens
        found["kv_evictable_tokens"] = kv.tree.evictable_tokens
        found["kv_used_tokens"] = used
        found["token_usage"] = used / kv.capacity_tokens
        found["kv_protected_tokens"] = kv.tree.protected_tokens
    found["longest_decode_gap_s"] = decode_gaps.longest_s
    return found


def counts(counters: SchedulerCounters, queue: WaitingQueue, table: RequestTable) -> dict[str, float]:
    """Return what has happened so far, by metric name (MET-2)."""
    found = {name: float(getattr(counters, name)) for name in counters.__slots__}
    found["prefill_tokens"] = float(queue.computed_tokens)
    found["finished"] = float(table.finished_count)
    found |= {f'requests_ended{{cause="{cause}"}}': float(count) for cause, count in table.ends_by_cause.items()}
    found |= {f'passes_stopped{{reason="{reason}"}}': float(count) for reason, count in queue.stop_reasons.items()}
    return found
