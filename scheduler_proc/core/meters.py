"""Where time goes: meters add up seconds by cause for everyone, and a request reads off what falls on it.

A request is always measured by one meter: that of the queue while it waits, one of its own while its prompt is
computed, that of the device while it decodes. The readings at both ends of such a stretch give its parts, and what no
cause explains is a part of its own, so the parts of a request add up to its time.
"""

from scheduler_proc.core.timeline import Timeline

NO_WORKER = "queued_for_worker"
STEP = "queued_for_step"
DECODES = "queued_for_decodes"
PROMPTS = "queued_behind_prompts"
KV = "queued_for_kv"
BEHIND_KV = "queued_behind_kv"
_CAUSES = {
    "budget": PROMPTS,
    "prefill_max_requests": PROMPTS,
    "checkpoint": PROMPTS,
    "no_kv": KV,
    "thrash_guard": KV,
    "no_slot": "queued_for_slot",
    "memory": "queued_for_memory",
    "probation": "queued_on_probation",
    "token_in_flight": "queued_for_own_token",
}
"""The part of a waiting request's time that a pass's reason to stop accounts for."""
_WAITS = (NO_WORKER, STEP, DECODES, *dict.fromkeys(_CAUSES.values()))


class WaitMeter:
    """Why the queue waits: one cause is in force at any time, from the end of a pass to that of the next.

    The request at which a pass stops for want of KV waits for KV; those behind it wait behind it.
    """

    names = _WAITS
    rest = STEP

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(_WAITS, 0.0)
        self._cause, self._since_s = NO_WORKER, 0.0
        self._first: Timeline | None = None

    def read(self, now: float) -> tuple[float, ...]:
        """Return the seconds by name."""
        self._seconds[self._cause] += max(0.0, now - self._since_s)
        if self._first is not None and self._cause == KV:
            self._first.wait_for_kv(now - self._since_s)
        self._since_s = now
        return tuple(self._seconds.values())

    def on_stop(self, reason: str, first: Timeline, now: float) -> None:
        """A pass has stopped at the request of `first`."""
        self.switch(_CAUSES[reason], now)
        self._first = first

    def switch(self, cause: str, now: float) -> None:
        """Another cause is in force."""
        self.read(now)
        self._cause, self._first = cause, None

    def on_first_entry(self, now: float) -> None:
        """The queue has been empty, so what has stopped earlier passes says nothing about the request that enters."""
        if self._cause != NO_WORKER:
            self.switch(STEP, now)


class PrefillMeter:
    """The steps that compute a request's prompt; the rest of the time others' steps run."""

    names = ("prefill",)
    rest = "prefill_waits"

    def __init__(self) -> None:
        self._seconds = 0.0

    def read(self, now: float) -> tuple[float, ...]:
        """Return the seconds by name."""
        return (self._seconds,)

    def on_step(self, seconds: float) -> None:
        """A step with a chunk of the request took `seconds`."""
        self._seconds += seconds


class DeviceMeter:
    """What the device does for requests that decode: their rows, or prompts of others while they stand still."""

    names = ("decode", "decode_stalled")
    rest = "decode_other"

    def __init__(self) -> None:
        self._decode_s = self._stalled_s = 0.0
        self._row_step_s = 0.0

    def read(self, now: float) -> tuple[float, ...]:
        """Return the seconds by name."""
        return self._decode_s, self._stalled_s

    def on_step(self, seconds: float, has_rows: bool, has_prompts: bool) -> None:
        """A step took `seconds`. Of one with both, rows account for what the last step of rows alone took."""
        if has_rows and not has_prompts:
            self._row_step_s = seconds
        decode_s = min(seconds, self._row_step_s) if has_rows else 0.0
        self._decode_s += decode_s
        self._stalled_s += seconds - decode_s
