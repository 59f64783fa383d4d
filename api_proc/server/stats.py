"""Counters and latencies of one api process, as its clients see them.

A metric is a name, with its labels in braces where it has some: the form in which Snapshots carry them.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from quartet.runtime.clock import Clock

FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SLOW_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
TOKENS = tuple(float(2**power) for power in range(18))


class Histogram:
    """Counts of observations by upper bound."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def counters(self, name: str) -> dict[str, float]:
        """Return the cumulative buckets, sum and count under `name`."""
        result: dict[str, float] = {}
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            label = "+Inf" if bound == float("inf") else f"{bound:g}"
            result[f'{name}_bucket{{le="{label}"}}'] = total
        result[f"{name}_sum"] = self._sum
        result[f"{name}_count"] = total
        return result


class RateMeter:
    """How fast a counter of another process grows, seen by those who ask for it, a second apart at least."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s = clock.now()
        self._total = 0.0
        self._rate = 0.0

    def per_second(self, total: float) -> float:
        """Take the counter's value; return its growth per second since a value before."""
        now = self._clock.now()
        if total < self._total:
            # The counting process has been replaced.
            self._since_s, self._total, self._rate = now, total, 0.0
        elif now - self._since_s >= 1.0:
            self._rate = (total - self._total) / (now - self._since_s)
            self._since_s, self._total = now, total
        return self._rate


class ApiStats:
    """Counters and histograms of one api process."""

    def __init__(self) -> None:
        self.http: Counter[tuple[str, int]] = Counter()
        self.rejected: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.sse_writes = 0
        self.clients_closed = 0
        self.clients_stalled = 0
        self.time_to_first_token_s = Histogram(SLOW_S)
        self.inter_token_latency_s = Histogram(FAST_S)
        self.time_per_output_token_s = Histogram(FAST_S)
        self.e2e_latency_s = Histogram(SLOW_S)
        self.queue_time_s = Histogram(SLOW_S)
        self.prefill_time_s = Histogram(SLOW_S)
        self.decode_time_s = Histogram(SLOW_S)
        self.prompt_tokens = Histogram(TOKENS)
        self.generation_tokens = Histogram(TOKENS)
        self.longest_generation_tokens = Histogram(TOKENS)

    def counters(self) -> dict[str, float]:
        """Return everything counted so far, by metric name."""
        result: dict[str, float] = {
            "sse_writes": self.sse_writes,
            "clients_closed": self.clients_closed,
            "clients_stalled": self.clients_stalled,
        }
        for (route, status), count in self.http.items():
            result[f'http_requests{{route="{route}",status="{status}"}}'] = count
        for code, count in self.rejected.items():
            result[f'requests_rejected{{reason="{code}"}}'] = count
        for reason, count in self.finished.items():
            result[f'requests{{finish_reason="{reason}"}}'] = count
        result |= self.time_to_first_token_s.counters("time_to_first_token_seconds")
        result |= self.inter_token_latency_s.counters("inter_token_latency_seconds")
        result |= self.time_per_output_token_s.counters("request_time_per_output_token_seconds")
        result |= self.e2e_latency_s.counters("e2e_request_latency_seconds")
        result |= self.queue_time_s.counters("request_queue_time_seconds")
        result |= self.prefill_time_s.counters("request_prefill_time_seconds")
        result |= self.decode_time_s.counters("request_decode_time_seconds")
        result |= self.longest_generation_tokens.counters("request_max_num_generation_tokens")
        result |= self.prompt_tokens.counters("request_prompt_tokens")
        result |= self.generation_tokens.counters("request_generation_tokens")
        return result
