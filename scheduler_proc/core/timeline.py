"""What happened to one request, and when. It explains: no decision of the scheduler reads an event."""

from typing import Any

MOST_EVENTS = 200
Event = tuple[float, str, dict[str, Any]]
"""When, what, and the numbers that explain it."""


class Timeline:
    """Events and times of one request; seconds of the caller's clock, -1 for what has not happened yet.

    `cached_tokens` are those of the prompt at the first admission, -1 before it. `recomputed_tokens` counts tokens that
    left the KV cache with a retraction. `first_step` is the step with which the request last entered the batch.
    `queued_s` is when its present or last wait began, `running_since_s` when it would have entered the batch if it had
    run without a break.
    """

    __slots__ = (
        "_ran_s",
        "_stop_reasons_at_entry",
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

    def __init__(self, now: float, priority: int | None) -> None:
        self.priority = priority
        self.events: list[Event] = []
        self.arrived_s = self.queued_s = now
        self.started_s = self.running_since_s = -1.0
        self._ran_s = 0.0
        self.cached_tokens = -1
        self.recomputed_tokens = 0
        self.retractions = 0
        self.first_step = 0
        self._stop_reasons_at_entry: dict[str, int] = {}

    def note(self, now: float, what: str, details: dict[str, Any]) -> None:
        """Add an event. Of a long history the middle is not kept."""
        if len(self.events) >= MOST_EVENTS:
            del self.events[MOST_EVENTS // 2]
        self.events.append((now, what, details))

    def on_queued(self, now: float, position: int, stop_reasons: dict[str, int]) -> None:
        """The request enters the queue, for the first time or again; `stop_reasons` counts those of all passes."""
        self.queued_s = now
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
    ) -> None:
        """The request enters the batch. The counts at its entry tell which passes have stopped before it, and why."""
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
        self.recomputed_tokens += lost_tokens
        self.queued_s, self._ran_s = now, now - self.running_since_s
        self.note(now, what, details)

    def on_ended(self, now: float, cause: str, outputs: int) -> None:
        """The request has left the scheduler."""
        self.note(now, "ended", {"cause": cause, "outputs": outputs})
