"""Admission at the edge: whether a request may be read, tokenized and queued is decided before any work is done for it.

The scheduler's queue has the limit and the last word. This process counts its own choices from the moment their
request has been read, without awaiting anything before it is passed on, so a burst is refused as it arrives; while the
body is on its way it takes no place, since a slow client would keep it from others. At first it admits as
many as the scheduler could hold, running or waiting; once the scheduler has refused one, as many as may wait, until
the queue has shrunk. A request that has output counts as running.
"""

import collections
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from api_proc.server.drain_rate import DrainRate
from quartet.runtime.clock import Clock
from quartet.wire.config import DEFAULT_SLOTS, Config
from quartet.wire.errors import RequestError
from quartet.wire.frames import Snapshot
from quartet.wire.ids import Role, process_name
from quartet.wire.urgency import urgency_of

LARGE_BYTES = 1 << 16
"""A body of more bytes takes part of the budget for large ones."""
LARGE_BODIES = 2
"""The budget, in bodies of the largest size: what may be held of large ones until they are tokenized."""
SCHEDULER = process_name(Role.SCHEDULER, 0)


class Place:
    """What one HTTP request takes: choices, of which all wait or all run, and bytes of a large body.

    There are no choices until they are claimed. `since_s` is when the head of the request was there.
    """

    def __init__(self, admission: "Admission", tenant: str, since_s: float) -> None:
        self.tenant = tenant
        self.since_s = since_s
        self.choices = 0
        self.urgency = 0
        self.body_bytes = 0
        self.is_waiting = False
        self._admission = admission

    def hold(self, body_bytes: int) -> None:
        """Note how much of the body is held; raises RequestError 503 if too much of large bodies is."""
        if body_bytes > LARGE_BYTES:
            self._admission.hold(self, body_bytes)

    def claim(self, choices: int, priority: int | None) -> None:
        """Take a place for each choice; raises RequestError 503 if there are too few."""
        self._admission.claim(self, choices, priority)

    def on_refused(self, error: RequestError) -> None:
        """The engine has refused the request."""
        if error.code == "queue_full":
            self._admission.note_full()

    def on_accepted(self) -> None:
        """The body is not needed any more."""
        self._admission.hold(self, 0)

    def on_output(self) -> None:
        """The choices run."""
        if self.is_waiting:
            self._admission.start(self)


class Admission:
    """Counts what is admitted in one api process, and refuses what is too much.

    Args:
        config: of the launch.
        clock: for the rate at which requests leave the queue.
        snapshots: returns the newest snapshot of each process.
        jitter: returns a number from 0 to 1; clients that were refused together are not to come back together.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        snapshots: Callable[[], Mapping[str, Snapshot]],
        jitter: Callable[[], float],
    ) -> None:
        self.num_waiting = 0
        self.num_admitted = 0
        self.large_bytes = 0
        self._scheduler = config.scheduler
        self._api_procs = config.server.api_procs
        self._most_per_key = config.server.max_requests_per_key
        self._most_large_bytes = LARGE_BODIES * config.server.max_body_bytes
        self._snapshots = snapshots
        self._clock = clock
        self._rate = DrainRate(clock, jitter)
        self._large_of_tenant: collections.Counter[str] = collections.Counter()
        self._urgencies: collections.Counter[int] = collections.Counter()
        self._tenants: collections.Counter[str] = collections.Counter()
        self._full_since: Snapshot | None = None
        self._is_full = False

    @contextmanager
    def enter(self, tenant: str) -> Iterator[Place]:
        """Let a request be read and served in the block, if one choice could be admitted.

        Raises RequestError 429 or 503.
        """
        if self._most_per_key and self._tenants[tenant] >= self._most_per_key:
            message = f"{self._tenants[tenant]} requests of this key are in progress already."
            raise RequestError(429, "rate_limit_exceeded", message, None, self.retry_after_s())
        if not self._scheduler.enable_priority_scheduling and not self._has_room(1):
            raise self._queue_full()
        place = Place(self, tenant, self._clock.now())
        self._tenants[tenant] += 1
        try:
            yield place
        except RequestError as error:
            if error.code == "queue_full":
                error.retry_after_s = self.retry_after_s()
            raise
        finally:
            self._leave(place)

    def retry_after_s(self) -> float:
        """Estimate when what waits will have left the queue."""
        return self._rate.seconds_to_drain(self.num_waiting)

    # A place changes

    def claim(self, place: Place, choices: int, priority: int | None) -> None:
        """Take a place for each choice of a request whose body has been read; raises RequestError 503."""
        urgency = urgency_of(priority, self._scheduler)
        if not self._has_room(choices) and urgency >= max(self._urgencies, default=urgency):
            # One that is more urgent than what waits displaces it in the scheduler (PRI-4).
            raise self._queue_full()
        if not self.num_waiting:
            self._rate.begin()
        self.num_admitted += choices
        self.num_waiting += choices
        self._urgencies[urgency] += 1
        place.choices, place.urgency, place.is_waiting = choices, urgency, True

    def hold(self, place: Place, body_bytes: int) -> None:
        """Note how much a place holds of a large body; raises RequestError 503 above the budget."""
        more = body_bytes - place.body_bytes
        # One key takes at most half of what several share.
        most_of_tenant = self._most_large_bytes // 2 if place.tenant else self._most_large_bytes
        if more > 0 and (
            self.large_bytes + more > self._most_large_bytes
            or self._large_of_tenant[place.tenant] + more > most_of_tenant
        ):
            raise RequestError(503, "queue_full", "Too many large requests are being read; try again.")
        self._hold(place, body_bytes)

    def start(self, place: Place) -> None:
        """Count a request as running."""
        self._rate.note(place.choices)
        self._stop_waiting(place)

    def _hold(self, place: Place, body_bytes: int) -> None:
        more = body_bytes - place.body_bytes
        place.body_bytes = body_bytes
        self.large_bytes += more
        self._large_of_tenant[place.tenant] += more
        if not self._large_of_tenant[place.tenant]:
            del self._large_of_tenant[place.tenant]

    def _stop_waiting(self, place: Place) -> None:
        place.is_waiting = False
        self.num_waiting -= place.choices
        self._urgencies[place.urgency] -= 1
        if not self._urgencies[place.urgency]:
            del self._urgencies[place.urgency]

    def _leave(self, place: Place) -> None:
        if place.is_waiting:
            self._stop_waiting(place)
        self.num_admitted -= place.choices
        self._hold(place, 0)
        self._tenants[place.tenant] -= 1
        if not self._tenants[place.tenant]:
            del self._tenants[place.tenant]

    # The limit

    def _has_room(self, choices: int) -> bool:
        """Say whether that many more choices can be admitted."""
        limit, scheduler = self._scheduler.max_queued_requests, self._snapshots().get(SCHEDULER)
        gauges = {} if scheduler is None else scheduler.gauges
        if self._is_full and scheduler is not self._full_since:
            waiting = gauges.get("num_queue_reqs", 0.0) + gauges.get("num_grammar_queue_reqs", 0.0)
            self._is_full = waiting > limit // 2
        if self._is_full:
            return self.num_waiting + choices <= max(1, limit // self._api_procs)
        slots = gauges.get("max_running_reqs") or self._scheduler.max_running_requests or DEFAULT_SLOTS
        return self.num_admitted + choices <= limit + slots

    def note_full(self) -> None:
        """The engine's queue is full."""
        self._is_full = True
        self._full_since = self._snapshots().get(SCHEDULER)

    def _queue_full(self) -> RequestError:
        message = f"{self.num_waiting} requests are waiting already; the queue is full."
        return RequestError(503, "queue_full", message, None, self.retry_after_s())
