"""What happened to one request and when, and where its time went. No decision of the scheduler reads any of it."""

from typing import Any, Protocol

MOST_EVENTS = 200
Event = tuple[float, str, dict[str, Any]]
"""When, what, and the numbers that explain it."""
Part = tuple[str, str, float]
"""What a request's time went into, after which setback ("" before the first), and how many seconds."""
SETBACKS = {"retracted": "retraction", "preempted": "preemption", "requeued": "restart"}


class Meter(Protocol):
    """Seconds by cause; see scheduler_proc.core.meters. `rest` names what no cause explains."""

    @property
    def names(self) -> tuple[str, ...]:
        """The causes."""
        ...

    @property
    def rest(self) -> str:
        """The part that is left over."""
        ...

    def read(self, now: float) -> tuple[float, ...]:
        """Return the seconds of each cause so far."""
        ...


class Timeline:
    """Events and times of one request; seconds of the caller's clock, -1 for what has not happened yet.

    `cached_tokens` are those of the prompt at the first admission, -1 before it. `recomputed_tokens` counts tokens that
    left the KV cache with a retraction. `first_step` is the step with which the request last entered the batch.
    `queued_s` is when its present or last wait began, `running_since_s` when it would have entered the batch if it had
    run without a break. `accepted_s` is when the api process took the request.
    """

    __slots__ = (
        "_kv_s",
        "_mark",
        "_meter",
        "_parts",
        "_ran_s",
        "_setback",
        "_since_s",
        "_stop_reasons_at_entry",
        "accepted_s",
        "arrived_s",
        "cached_tokens",
        "events",
        "first_step",
        "priority",
        "queued_s",
        "recomputed_tokens",
        "retractions",
        "running_since_s",
        "started_s",
    )

    def __init__(self, now: float, priority: int | None, accepted_s: float | None = None) -> None:
        self.priority = priority
        self.events: list[Event] = []
        self.arrived_s = self.queued_s = now
        self.accepted_s = accepted_s if accepted_s is not None and 0 <= accepted_s <= now else now
        self.started_s = self.running_since_s = -1.0
        self._ran_s = 0.0
        self.cached_tokens = -1
        self.recomputed_tokens = 0
        self.retractions = 0
        self.first_step = 0
        self._stop_reasons_at_entry: dict[str, int] = {}
        self._parts: dict[tuple[str, str], float] = {}
        self._meter: Meter | None = None
        self._mark: tuple[float, ...] = ()
        self._since_s = now
        self._kv_s = 0.0
        self._setback = ""

    # Where the time went

    def on_arrived(self, tokenizing_s: float, is_replay: bool, held_for: str, now: float) -> None:
        """The request is going to be queued, after time in the api process and, from its arrival on, `held_for`."""
        before_s = self.arrived_s - self.accepted_s
        tokenizing_s = tokenizing_s if 0 <= tokenizing_s <= before_s else 0.0
        self.add_part("tokenizing", tokenizing_s)
        self.add_part("earlier_attempts" if is_replay else "accepting", before_s - tokenizing_s)
        self.add_part(held_for, now - self.arrived_s)

    def begin(self, meter: Meter, now: float) -> None:
        """From `now` on another meter measures the request: what the one before has measured is a part of its time."""
        self._close(now)
        self._meter, self._mark, self._since_s = meter, meter.read(now), now

    def add_part(self, name: str, seconds: float) -> None:
        """Account for time that no meter has measured."""
        if seconds > 0:
            key = name, self._setback
            self._parts[key] = self._parts.get(key, 0.0) + seconds

    def wait_for_kv(self, seconds: float) -> None:
        """The queue has waited for KV for this request, and not for one before it."""
        self._kv_s += seconds

    def parts(self, now: float) -> list[Part]:
        """Return where the time has gone until `now`; the seconds add up to those since `accepted_s`."""
        if self._meter is not None:
            self.begin(self._meter, now)
        return [(name, setback, seconds) for (name, setback), seconds in self._parts.items()]

    def _close(self, now: float, rest: str = "") -> None:
        meter, self._meter = self._meter, None
        if meter is None:
            return
        seconds = now - self._since_s
        for name, before, after in zip(meter.names, self._mark, meter.read(now), strict=True):
            part = after - before
            seconds -= part
            if name == "queued_for_kv" and part:
                self.add_part("queued_behind_kv", part - self._kv_s)
                part, self._kv_s = self._kv_s, 0.0
            self.add_part(name, part)
        self.add_part(rest or meter.rest, seconds)
        self._since_s = now

    def note(self, now: float, what: str, details: dict[str, Any]) -> None:
        """Add an event. Of a long history the middle is not kept."""
        if len(self.events) >= MOST_EVENTS:
            del self.events[MOST_EVENTS // 2]
        self.events.append((now, what, details))

    def on_queued(self, now: float, position: int, stop_reasons: dict[str, int], meter: Meter) -> None:
        """The request enters the queue, for the first time or again; `stop_reasons` counts those of all passes."""
        self.queued_s = now
        self.begin(meter, now)
        self._stop_reasons_at_entry = dict(stop_reasons)
        self.note(now, "queued", {"position": position})

    def on_admitted(
        self,
        now: float,
        step: int,
        cached_tokens: int,
        passes_waited: int,
        stop_reasons: dict[str, int],
        details: dict[str, Any],
        meter: Meter,
    ) -> None:
        """The request enters the batch. The counts at its entry tell which passes have stopped before it, and why."""
        self.begin(meter, now)
        self.first_step, self.running_since_s = step, now - self._ran_s
        if self.cached_tokens < 0:
            self.cached_tokens, self.started_s = cached_tokens, now
        before = self._stop_reasons_at_entry
        passed_over = {
            reason: count - before.get(reason, 0)
            for reason, count in stop_reasons.items()
            if count > before.get(reason, 0)
        }
        waited = {"waited_s": round(now - self.queued_s, 6), "passes_waited": passes_waited}
        self.note(now, "admitted", {**details, **waited, "passed_over": passed_over})

    def on_requeued(self, now: float, what: str, lost_tokens: int, details: dict[str, Any]) -> None:
        """The request leaves the batch for the queue: `lost_tokens` of it must be computed or found again."""
        self._close(now, "step_lost" if what == "requeued" else "")
        self._setback = SETBACKS[what]
        self.recomputed_tokens += lost_tokens
        self.queued_s, self._ran_s = now, now - self.running_since_s
        self.note(now, what, details)

    def on_prefilled(self, now: float, meter: Meter) -> None:
        """The last chunk has been computed, so the request is where it was before a setback."""
        self.begin(meter, now)
        self._setback = ""

    def on_ended(self, now: float, cause: str, outputs: int) -> None:
        """The request has left the scheduler."""
        self._close(now)
        self.note(now, "ended", {"cause": cause, "outputs": outputs})
