"""What the scheduler reports: answers to queries, gauges and counts. It reads the owners and changes nothing."""

from typing import Any

import msgspec

from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import Query, QueryReply
from scheduler_proc.core.batch import Batch
from scheduler_proc.core.counters import DecodeGaps, SchedulerCounters
from scheduler_proc.core.explain import sentences
from scheduler_proc.core.history import MOST_KEPT, RequestFacts, facts_of
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.naming import RequestName
from scheduler_proc.core.prefill import PrefillPass
from scheduler_proc.core.queue import WaitingQueue
from scheduler_proc.core.ratio import NewTokenRatio
from scheduler_proc.core.request import Request, RequestState
from scheduler_proc.core.request_table import RequestTable

MOST_SHOWN = 200
"""Rows of one reply about live requests."""


def settings_in_force(
    config: SchedulerConfig, batch: Batch, prefill: PrefillPass, kv: KvCache, ratio: NewTokenRatio
) -> dict[str, Any]:
    """Return every setting, with what was chosen for those left to the engine, and the ratio's constants (CFG-3)."""
    return {
        **msgspec.structs.asdict(config),
        "max_running_requests": batch.max_slots,
        "chunked_prefill_size": prefill.chunk_tokens,
        "enable_mixed_chunk": prefill.is_mixing,
        "disable_radix_cache": not kv.is_sharing,
        "page_size": kv.page_size,
        "kv_capacity_tokens": kv.capacity_tokens,
        "effective_new_token_ratio": {
            "initial": ratio.initial,
            "minimum": ratio.minimum,
            "decay": ratio.decay,
            "current": ratio.current,
        },
    }


def reply(query: Query, body: dict[str, Any]) -> QueryReply:
    """Return the reply to a query."""
    return QueryReply(query.number, msgspec.json.encode(body))


def recalled(table: RequestTable, query: Query, now: float) -> dict[str, Any]:
    """Answer a query about requests that are live or have lately ended."""
    match query.what:
        case "timeline":
            return timeline(table, query, now)
        case "trace":
            return trace(table, now)
        case "requests":
            return live_requests(table, query, now)
    return {"error": f"unknown question {query.what!r}"}


def timeline(table: RequestTable, query: Query, now: float) -> dict[str, Any]:
    """Return the timelines of every choice of the request that a query names, live or lately ended.

    Of several requests that a client calls by one id, the last is shown. `error` says so if there is none. Times are
    seconds since the request arrived in the scheduler; the seconds of `parts` add up to `total_s`, the time since the
    api process took it.
    """
    name = RequestName(query.argument, query.tenant)
    found = [*table.ended.facts(name), *(facts_of(one, now) for one in table.named(name))]
    if not found:
        return {"error": f"no request {query.argument!r} is live or among the last {MOST_KEPT}"}
    rid = found[-1].rid
    return {"rid": rid.hex(), "choices": [_choice(facts) for facts in found if facts.rid == rid]}


def _choice(facts: RequestFacts) -> dict[str, Any]:
    told = msgspec.structs.asdict(facts)
    for name in ("rid", "tenant", "arrived_s", "accepted_s", "until_s"):
        del told[name]
    if not facts.request_id:
        del told["request_id"]
    told["events"] = [
        {"at_s": round(when - facts.arrived_s, 6), "event": what, **details} for when, what, details in facts.events
    ]
    total_s = facts.until_s - facts.accepted_s
    told["total_s"] = round(total_s, 6)
    told["summary"] = sentences(facts.parts, total_s)
    told["parts"] = [
        {"part": name, "seconds": round(seconds, 6), **({"after": setback} if setback else {})}
        for name, setback, seconds in facts.parts
    ]
    return told


def trace(table: RequestTable, now: float) -> dict[str, Any]:
    """Return everything remembered as a trace in Chrome's format: a row for each request, spans for its states."""
    events = []
    for row, facts in enumerate([*table.ended.facts(), *(facts_of(one, now) for one in table.live())]):
        name = f"{facts.rid.hex()[:8]}/{facts.choice}"
        events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": row, "args": {"name": name}})
        happened = facts.events
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


def live_requests(table: RequestTable, query: Query, now: float) -> dict[str, Any]:
    """Return a row for each live choice that a query names, those on board first, and how many there are.

    There are MOST_SHOWN rows at most; half of them are kept for either kind, if there are as many.
    """
    found = table.named(RequestName(query.argument, query.tenant))
    waiting = [one for one in found if one.state is RequestState.WAITING]
    on_board = [one for one in found if one.state is not RequestState.WAITING]
    shown = on_board[: max(MOST_SHOWN // 2, MOST_SHOWN - len(waiting))]
    shown += waiting[: MOST_SHOWN - len(shown)]
    return {"total": len(found), "rows": [_row(request, now) for request in shown]}


def _row(request: Request, now: float) -> dict[str, Any]:
    """Return what is so of one live request. `wait_s` is its present wait, or that before its first admission."""
    times = request.timeline
    is_waiting = request.state is RequestState.WAITING
    return {
        "rid": request.rid.hex(),
        "choice": request.choice,
        "request_id": request.request_id,
        "state": request.state.name.lower(),
        "priority": times.priority,
        "prompt_tokens": request.prompt_tokens,
        "cached_tokens": max(0, times.cached_tokens),
        "output_tokens": len(request.output_ids),
        "max_new_tokens": request.max_new_tokens,
        "wait_s": round(now - times.queued_s if is_waiting else times.started_s - times.arrived_s, 3),
        "age_s": round(now - times.arrived_s, 3),
        "retractions": times.retractions,
    }


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
    if kv.checkpoints is not None:
        found["state_checkpoints"], found["state_checkpoints_held"] = kv.checkpoints.count, kv.checkpoints.held_count
    for group in kv.windows:
        label, capacity = f'{{window="{group.window}"}}', group.pool.capacity_tokens
        found[f"kv_window_capacity_tokens{label}"] = capacity
        found[f"kv_window_used_tokens{label}"] = capacity - group.reachable_tokens
    found["longest_decode_gap_s"] = decode_gaps.longest_s
    return found


def counts(counters: SchedulerCounters, queue: WaitingQueue, table: RequestTable) -> dict[str, float]:
    """Return what has happened so far, by metric name (MET-2)."""
    found = {name: float(getattr(counters, name)) for name in counters.__slots__}
    found["prefill_tokens"] = float(queue.computed_tokens)
    found["session_turns"] = float(table.sessions.turns)
    found["session_held_turns"] = float(table.sessions.held_turns)
    found["finished"] = float(table.finished_count)
    found |= {f'requests_ended{{cause="{cause}"}}': float(count) for cause, count in table.ends_by_cause.items()}
    found |= {f'passes_stopped{{reason="{reason}"}}': float(count) for reason, count in queue.stop_reasons.items()}
    return found
