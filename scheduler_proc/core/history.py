"""The last requests that have ended: encoded facts for the timeline, within a bound of bytes."""

import collections
from typing import Any

import msgspec

from quartet.wire.ids import Rid
from scheduler_proc.core.naming import RequestName
from scheduler_proc.core.request import Request

MOST_KEPT = 1000
MAX_BYTES = 8 << 20


class RequestFacts(msgspec.Struct, frozen=True, array_like=True):
    """What a timeline tells of one request. `events` are (seconds of the scheduler's clock, what, details)."""

    rid: bytes
    request_id: str
    tenant: str
    choice: int
    attempt: int
    state: str
    priority: int | None
    prompt_tokens: int
    output_tokens: int
    max_new_tokens: int
    cached_tokens: int
    retractions: int
    recomputed_tokens: int
    arrived_s: float
    events: list[tuple[float, str, dict[str, Any]]]


def facts_of(request: Request) -> RequestFacts:
    """Return what is to be told of a request, live or ended."""
    times = request.timeline
    return RequestFacts(
        request.rid,
        request.request_id,
        request.namespace[0],
        request.choice,
        request.stream.attempt,
        request.state.name.lower(),
        times.priority,
        request.prompt_tokens,
        len(request.output_ids),
        request.max_new_tokens,
        max(0, times.cached_tokens),
        times.retractions,
        times.recomputed_tokens,
        times.arrived_s,
        times.events,
    )


class History:
    """Facts of the last MOST_KEPT requests that ended, oldest first; of fewer if they take more than MAX_BYTES."""

    def __init__(self) -> None:
        self._records: collections.deque[tuple[Rid, str, str, bytes]] = collections.deque()
        """Id, the client's id, tenant, encoded facts."""
        self._bytes = 0
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(RequestFacts).decode

    def add(self, request: Request) -> None:
        """Remember a request that has just ended."""
        record = self._encode(facts_of(request))
        self._records.append((request.rid, request.request_id, request.namespace[0], record))
        self._bytes += len(record)
        while self._bytes > MAX_BYTES or len(self._records) > MOST_KEPT:
            self._bytes -= len(self._records.popleft()[-1])

    def facts(self, name: RequestName | None = None) -> list[RequestFacts]:
        """Return what is remembered of the requests that are named, or everything."""
        return [
            self._decode(record)
            for rid, request_id, tenant, record in self._records
            if name is None or name.fits(rid, tenant, request_id)
        ]
