"""The counts of one response: tokens and finish by choice, and their times.

Streamed and whole responses have one each; it makes the `usage` and `timings` objects.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from api_proc.server.stats import ApiStats
from quartet.client.request import Output
from quartet.runtime.clock import Clock
from quartet.wire.frames import Finish


class Totals(msgspec.Struct, frozen=True, array_like=True):
    """The counts of a response whose choices have all finished."""

    first_s: float
    last_s: float
    counts: list[int]
    finishes: list[Finish | None]


class Usage(Protocol):
    """The counts of one response as an EventStream uses them."""

    @property
    def counts(self) -> list[int]:
        """Output tokens by choice."""
        ...

    def add(self, base: int, outputs: Sequence[Output]) -> float:
        """Count outputs of the prompt whose first choice is `base`; return the time, in the clock's seconds."""
        ...

    def close(self) -> None:
        """Every choice has finished."""
        ...

    def usage(self) -> bytes:
        """Return OpenAI's `usage` object as JSON, of the output so far."""
        ...

    def timings(self) -> bytes:
        """Return where the time of the response went, as JSON."""
        ...


class UsageCounter:
    """Counts what the choices of one HTTP request have produced.

    `prompt_tokens` has one entry per prompt; each prompt has `choices_each` choices, numbered through. `on_first` is
    called at the first output; `last_s` is when the last one came, `accepted_s` when the engine had taken the request.
    """

    __slots__ = (
        "_choices_each",
        "_clock",
        "_first_s",
        "_on_first",
        "_prompt_tokens",
        "_stats",
        "accepted_s",
        "counts",
        "finishes",
        "last_s",
        "start_s",
    )

    def __init__(
        self,
        prompt_tokens: Sequence[int],
        choices_each: int,
        start_s: float,
        clock: Clock,
        stats: ApiStats,
        on_first: Callable[[], None],
    ) -> None:
        self._on_first = on_first
        self._prompt_tokens = tuple(prompt_tokens)
        self._choices_each = choices_each
        self._clock = clock
        self._stats = stats
        self.start_s = start_s
        self.accepted_s = clock.now()
        self._first_s = 0.0
        self.last_s = 0.0
        self.counts = [0] * (len(self._prompt_tokens) * choices_each)
        self.finishes: list[Finish | None] = [None] * len(self.counts)

    @property
    def is_complete(self) -> bool:
        """Every choice has finished."""
        return None not in self.finishes

    def add(self, base: int, outputs: Sequence[Output]) -> float:
        """Count outputs of the prompt whose first choice is `base`; return the time, in the clock's seconds."""
        now = self._clock.now()
        if self._first_s:
            # Several choices get their tokens from the same step, so the gaps between events would mean nothing.
            if len(self.counts) == 1:
                self._stats.inter_token_latency_s.observe(now - self.last_s)
        else:
            self._first_s = now
            self._on_first()
            self._stats.time_to_first_token_s.observe(now - self.start_s)
        self.last_s = now
        # count_into, without a call for each event.
        for output in outputs:
            choice = base + output.choice
            self.counts[choice] += len(output.ids)
            if output.finish is not None:
                self.counts[choice] = output.finish.count
                self.finishes[choice] = output.finish
        return now

    def restore(self, base: int, output: Output, time_s: float) -> None:
        """Count output that came at `time_s`, to a predecessor of this process."""
        self._first_s = self._first_s or time_s
        self.last_s = time_s
        count_into(self.counts, self.finishes, base, [output])

    def totals(self) -> Totals:
        """Return everything that was counted."""
        return Totals(self._first_s, self.last_s, self.counts, self.finishes)

    def restore_totals(self, totals: Totals) -> None:
        """Count what a predecessor of this process has counted."""
        self._first_s, self.last_s = totals.first_s, totals.last_s
        self.counts, self.finishes = totals.counts, totals.finishes

    def close(self) -> None:
        """Record the finished response in the statistics; called once, when every choice has finished."""
        stats = self._stats
        for finish in self.finishes:
            if finish is not None:
                stats.finished[finish.reason] += 1
        tokens = sum(self.counts)
        for count in self._prompt_tokens:
            stats.prompt_tokens.observe(count)
        stats.generation_tokens.observe(tokens)
        stats.longest_generation_tokens.observe(max(self.counts))
        queue_s, prefill_s, decode_s = self.stages()
        stats.queue_time_s.observe(queue_s)
        stats.prefill_time_s.observe(prefill_s)
        stats.decode_time_s.observe(decode_s)
        stats.e2e_latency_s.observe(self.last_s - self.start_s)
        if tokens > 1:
            stats.time_per_output_token_s.observe((self.last_s - self._first_s) / (tokens - 1))

    def usage(self) -> bytes:
        """Return OpenAI's `usage` object as JSON, of the output so far."""
        return self.usage_of(self.counts, self.finishes)

    def usage_of(self, counts: Sequence[int], finishes: Sequence[Finish | None]) -> bytes:
        """Return the `usage` object of a part of the output."""
        prompt, completion = sum(self._prompt_tokens), sum(counts)
        firsts = finishes[:: self._choices_each]
        return msgspec.json.encode(
            {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": sum(f.timings.cached_tokens for f in firsts if f)},
            }
        )

    def stages(self) -> tuple[float, float, float]:
        """Return the seconds in the queue, in prefill and in decode, each of the slowest choice that has finished."""
        parts = [finish.timings for finish in self.finishes if finish is not None]
        return (
            max((part.queue_s for part in parts), default=0.0),
            max((part.prefill_s for part in parts), default=0.0),
            max((part.decode_s for part in parts), default=0.0),
        )

    @property
    def has_setbacks(self) -> bool:
        """A choice was retracted."""
        return any(finish is not None and finish.timings.retractions for finish in self.finishes)

    def summary(self) -> dict[str, int | float | str]:
        """Return what a line of the log says of the response: tokens, finish, times in milliseconds."""
        reasons = {finish.reason if finish is not None else "unfinished" for finish in self.finishes}
        firsts = self.finishes[:: self._choices_each]
        queue_s, _, _ = self.stages()
        return {
            "prompt": sum(self._prompt_tokens),
            "cached": sum(finish.timings.cached_tokens for finish in firsts if finish),
            "output": sum(self.counts),
            "finish": "+".join(sorted(reasons)),
            "queue_ms": _ms(queue_s),
            "ttft_ms": _ms(max(0.0, self._first_s - self.start_s)) if self._first_s else 0.0,
        }

    def timings(self) -> bytes:
        """Return where the time of the response went, as JSON: the slowest choice, in milliseconds."""
        parts = [finish.timings for finish in self.finishes if finish is not None]
        queue_s, prefill_s, decode_s = self.stages()
        return msgspec.json.encode(
            {
                "queue_ms": _ms(queue_s),
                "prefill_ms": _ms(prefill_s),
                "decode_ms": _ms(decode_s),
                "ttft_ms": _ms(max(0.0, self._first_s - self.start_s)),
                "total_ms": _ms(max(0.0, self.last_s - self.start_s)),
                "retractions": sum(part.retractions for part in parts),
            }
        )


class ReaderUsage:
    """The counts of what a reader of a recorded response has read so far; the times are those of the response."""

    def __init__(self, recorded: UsageCounter) -> None:
        self._recorded = recorded
        self.counts = [0] * len(recorded.counts)
        self.finishes: list[Finish | None] = [None] * len(self.counts)

    def add(self, base: int, outputs: Sequence[Output]) -> float:
        """Count outputs that are read."""
        count_into(self.counts, self.finishes, base, outputs)
        return 0.0

    def close(self) -> None:
        """The response itself is recorded in the statistics when it ends, not when it is read."""

    def usage(self) -> bytes:
        """Return OpenAI's `usage` object as JSON, of the output read so far."""
        return self._recorded.usage_of(self.counts, self.finishes)

    def timings(self) -> bytes:
        """Return where the time of the response went, as JSON."""
        return self._recorded.timings()


def count_into(counts: list[int], finishes: list[Finish | None], base: int, outputs: Sequence[Output]) -> None:
    """Add outputs of the prompt whose first choice is `base` to the counts of all choices."""
    for output in outputs:
        choice = base + output.choice
        counts[choice] += len(output.ids)
        if output.finish is not None:
            counts[choice] = output.finish.count
            finishes[choice] = output.finish


def _ms(seconds: float) -> float:
    return round(seconds * 1000.0, 3)
