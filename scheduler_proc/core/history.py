"""The last requests that have ended: encoded facts for the timeline, within a bound of bytes."""

import collections
from typing import Any

import msgspec

from quartet.wire.ids import Rid
from scheduler_proc.core.naming import RequestName
from scheduler_proc.core.request import Request
from scheduler_proc.core.timeline import Part

MOST_KEPT = 1000
MAX_BYTES = 8 << 20
WRITING = "writing"
"""Part of a request's time: its client has not read what was there."""


class RequestFacts(msgspec.Struct, frozen=True, array_like=True):
    """What a timeline tells of one request. `events` are (seconds of the scheduler's clock, what, details), `parts`
    where its time from `accepted_s` to `until_s` went."""

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
    accepted_s: float
    arrived_s: float
    until_s: float
    events: list[tuple[float, str, dict[str, Any]]]
    parts: list[Part]


def facts_of(request: Request, now: float) -> RequestFacts:
    """Return what is to be told of a request, live or ended, until `now`."""
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
        times.accepted_s,
        times.arrived_s,
        now,
        times.events,
        times.parts(now),
    )


class History:
    """Facts of the last MOST_KEPT requests that ended, oldest first; of fewer if they take more than MAX_BYTES."""

    def __init__(self) -> None:
        self._records: collections.deque[tuple[Rid, str, str, bytes]] = collections.deque()
        """Id, the client's id, tenant, encoded facts."""
        self._bytes = 0
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(RequestFacts).decode

    def add(self, request: Request, now: float) -> None:
        """Remember a request that has just ended."""
        record = self._encode(facts_of(request, now))
        self._records.append((request.rid, request.request_id, request.namespace[0], record))
        self._bytes += len(record)
        while self._bytes > MAX_BYTES or len(self._records) > MOST_KEPT:
            self._bytes -= len(self._records.popleft()[-1])

    def note_written(self, rid: Rid, seconds: float) -> None:
        """Add the time that the client of a request took to read its end, to the choice that ended last."""
        for place in range(len(self._records) - 1, -1, -1):
            found, request_id, tenant, record = self._records[place]
            if found == rid:
                facts = self._decode(record)
                parts = [*facts.parts, (WRITING, "", seconds)]
                facts = msgspec.structs.replace(facts, parts=parts, until_s=facts.until_s + seconds)
                self._records[place] = found, request_id, tenant, self._encode(facts)
                self._bytes += len(self._records[place][-1]) - len(record)
                return

    def facts(self, name: RequestName | None = None) -> list[RequestFacts]:
        """Return what is remembered of the requests that are named, or everything."""
        return [
            self._decode(record)
            for rid, request_id, tenant, record in self._records
            if name is None or name.fits(rid, tenant, request_id)
        ]
