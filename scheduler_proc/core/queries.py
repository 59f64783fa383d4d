"""What the scheduler answers to a Query: timelines of requests as JSON, and as a Chrome/Perfetto trace."""

import msgspec

from scheduler_proc.core.request import Request
from scheduler_proc.core.state import State


def timeline_json(state: State, rid: str) -> bytes:
    """Return the timelines of every choice of the request with that id (hexadecimal), live or lately ended.

    `error` says so if it is unknown. Times are seconds since the request arrived.
    """
    found = [request for request in _remembered(state) if request.rid.hex() == rid]
    if not found:
        return msgspec.json.encode(
            {"error": f"no request {rid!r} is live or among the last {state.table.ended.maxlen}"}
        )
    return msgspec.json.encode({"rid": rid, "choices": [_timeline(request) for request in found]})


def trace_json(state: State) -> bytes:
    """Return everything remembered as a trace in Chrome's JSON format: a row for each request, spans for its states."""
    events = []
    for row, request in enumerate(_remembered(state)):
        name = f"{request.rid.hex()[:8]}/{request.choice}"
        events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": row, "args": {"name": name}})
        ends = [when for when, _, _ in request.timeline.events[1:]] + [state.now]
        for (begin, what, details), end in zip(request.timeline.events, ends, strict=True):
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
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"})


def _remembered(state: State) -> list[Request]:
    return [*state.table.ended, *state.table.live()]


def _timeline(request: Request) -> dict[str, object]:
    return {
        "choice": request.choice,
        "attempt": request.stream.attempt,
        "state": request.state.name.lower(),
        "priority": request.timeline.priority,
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": len(request.output_ids),
        "max_new_tokens": request.max_new_tokens,
        "cached_tokens": max(0, request.timeline.cached_tokens),
        "retractions": request.timeline.retractions,
        "recomputed_tokens": request.timeline.recomputed_tokens,
        "events": [
            {"at_s": round(when - request.timeline.arrived_s, 6), "event": what, **details}
            for when, what, details in request.timeline.events
        ],
    }
