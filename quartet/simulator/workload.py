"""The workload as a core: submits each request when it arrives, and notes what the engine sends for it."""

import heapq
from collections.abc import Sequence
from typing import Any

from quartet.runtime.core import Metrics, Sent
from quartet.simulator.prompts import PromptMaker
from quartet.simulator.record import Run
from quartet.simulator.request import Workload
from quartet.wire.codec import Source
from quartet.wire.errors import QuartetError
from quartet.wire.frames import ApiInbound, DetokInbound, Failed, Open, Rejected, SamplingParams, Submit, Tokens
from quartet.wire.ids import Rid

RID_BYTES = 16


class SimulationError(QuartetError):
    """The scheduler rests although requests wait: a bug in it, or a setting that can never admit them."""


class WorkloadCore:
    """Plays the api process and the detokenizer of a simulation.

    Args:
        requests: in the order of arrival.
        record: takes what happens to each.
    """

    inbound: Any = ApiInbound | DetokInbound

    def __init__(self, requests: Sequence[Workload], record: Run) -> None:
        self._requests = requests
        self._record = record
        self._prompts = PromptMaker()
        self._handles: dict[int, int] = {}
        self._due: list[tuple[float, int]] = []
        """A heap of what is sent next: when, and its number."""
        self._followers: dict[int, tuple[int, float]] = {}
        """By the number of a turn that of the next one, and the gap between them."""
        self._unsent = len(requests)
        last: dict[str, int] = {}
        for number, request in enumerate(requests):
            before = last.get(request.session) if request.session and request.gap_s is not None else None
            if before is None or request.gap_s is None:
                self._due.append((request.arrival_s, number))
            else:
                self._followers[before] = number, request.gap_s
            last[request.session] = number
        heapq.heapify(self._due)
        self.alive = 0
        """Requests that have been submitted and have not ended."""

    def tick(self, now: float) -> list[Sent]:
        """Submit the request that arrives at this moment."""
        _, number = heapq.heappop(self._due)
        request = self._requests[number]
        outcome = self._record.outcomes[number]
        outcome.arrival_s = now
        outcome.passes_at_arrival = len(self._record.admitting_passes)
        self._unsent -= 1
        self.alive += 1
        # Greedy; the device finds the number of the request in its seed.
        params = SamplingParams(max_new_tokens=request.max_tokens, temperature=0.0, seed=number)
        frame = Submit(
            Rid(number.to_bytes(RID_BYTES, "big")),
            0,
            0,
            "api-0",
            "detok-0",
            self._prompts.make(request),
            b"",
            params,
            request.priority,
            request.tenant,
            routing_key=request.routing_key,
            weight=request.weight,
            session_id=request.session,
        )
        return [("scheduler-0", frame)]

    def next_deadline(self) -> float | None:
        """Return the time of the next arrival."""
        return self._due[0][0] if self._due else None

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        """Note the ends of requests."""
        match frame:
            case Tokens():
                for end in frame.ends:
                    self._end(self._handles.pop(end.handle), end.reason, now, end.count)
            case Open():
                self._handles[frame.handle] = int.from_bytes(frame.rid, "big")
            case Rejected():
                number = int.from_bytes(frame.rid, "big")
                self._end(number, frame.code, now, 0)
                self._record.outcomes[number].is_rejected = True
            case Failed():
                self._end(int.from_bytes(frame.rid, "big"), frame.code, now, 0)
        return []

    def is_idle(self) -> bool:
        """Say whether every request has arrived and ended."""
        return not self._unsent and not self.alive

    def metrics(self) -> Metrics:
        """Return none: the record has them."""
        return Metrics({}, {})

    def _end(self, number: int, ending: str, now: float, count: int) -> None:
        outcome = self._record.outcomes[number]
        if outcome.ending:
            raise SimulationError(f"request {number} ended twice: {outcome.ending}, {ending}")
        outcome.ending, outcome.end_s, outcome.output_tokens = ending, now, count
        if count:
            outcome.last_token_s = now
        self.alive -= 1
        if number in self._followers:
            follower, gap_s = self._followers.pop(number)
            heapq.heappush(self._due, (now + gap_s, follower))
        self._record.end_s = max(self._record.end_s, now)
