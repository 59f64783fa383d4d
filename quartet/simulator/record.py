"""What a run leaves behind: times of each request, gaps between tokens, and the engine's state over time."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from quartet.simulator.request import Workload
from scheduler_proc.core.timeline import Part

NEVER = -1.0


@dataclass(slots=True)
class Outcome:
    """What became of one request; times in seconds of the virtual clock, NEVER where it did not happen.

    `ending` is stop, length, or the code of an error. `admissions` counts how often it took a slot.
    `passes_at_arrival` and `passes_at_admission` count the steps before them that admitted a request for the first
    time; `computed_tokens` is the prompt computed for it, `recomputed_tokens` the part of that computed before.
    `parts` is where its time went.
    """

    request: Workload
    arrival_s: float = NEVER
    admitted_s: float = NEVER
    first_token_s: float = NEVER
    last_token_s: float = NEVER
    end_s: float = NEVER
    ending: str = ""
    is_rejected: bool = False
    output_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    recomputed_tokens: int = 0
    admissions: int = 0
    passes_at_arrival: int = 0
    passes_at_admission: int = 0
    parts: list[Part] = field(default_factory=list)
    entered_s: list[float] = field(default_factory=list)
    left_s: list[float] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """Say whether it ended as it should."""
        return self.ending in ("stop", "length")


@dataclass(frozen=True, slots=True)
class Sample:
    """The engine's state at one moment. `ratio` is the new-token ratio."""

    time_s: float
    queued: int
    running: int
    kv_used_tokens: int
    ratio: float


class Gaps:
    """Times between tokens of one class of requests, as (seconds, how many rows had it)."""

    def __init__(self) -> None:
        self.seconds = array("d")
        self.counts = array("l")

    def add(self, seconds: float, count: int = 1) -> None:
        """Note that `count` rows waited `seconds` for their next token."""
        self.seconds.append(seconds)
        self.counts.append(count)


class Timeline:
    """The samples, thinned so that a long run keeps at most MAX_SAMPLES, and exact integrals and maxima of all."""

    MAX_SAMPLES = 4096

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.max_queued = 0
        self.max_kv_used_tokens = 0
        self.running_seconds = 0.0
        self.busy_s = 0.0
        self._stride = 1
        self._seen = 0
        self._last_s = 0.0
        self._last_running = 0

    def add(self, sample: Sample) -> None:
        """Take the state at the end of a step."""
        if self._last_running:
            elapsed_s = sample.time_s - self._last_s
            self.running_seconds += self._last_running * elapsed_s
            self.busy_s += elapsed_s
        self._last_s, self._last_running = sample.time_s, sample.running
        self.max_queued = max(self.max_queued, sample.queued)
        self.max_kv_used_tokens = max(self.max_kv_used_tokens, sample.kv_used_tokens)
        if self._seen % self._stride == 0:
            self.samples.append(sample)
            if len(self.samples) > self.MAX_SAMPLES:
                del self.samples[1::2]
                self._stride *= 2
        self._seen += 1


class Run:
    """Everything a run leaves behind.

    Args:
        requests: the workload, in the order of arrival; outcomes have the same order.
    """

    def __init__(self, requests: Sequence[Workload]) -> None:
        self.outcomes = [Outcome(request) for request in requests]
        self.gaps: dict[str, Gaps] = {}
        self.timeline = Timeline()
        self.admission_order: list[int] = []
        self.admitting_passes: list[int] = []
        """For each step that admitted a request for the first time, the latest arrival among those admitted."""
        self.steps = 0
        self.decode_rows = 0
        self.end_s = 0.0
        self.counters: dict[str, float] = {}
        self.largest_service_gap = 0.0
        """Between two tenants that wait, with tenant_weights."""
