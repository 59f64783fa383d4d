"""What fits into one prefill pass (rules ADM-1 to ADM-11). Pure arithmetic over token counts.

Source: SGLang's PrefillAdder, with the departures that the rules name.
"""

from collections.abc import Iterable
from enum import Enum, auto

from quartet.config import SchedulerConfig
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.lengths import ceil_to, floor_to
from scheduler_proc.core.request import Request


class Verdict(Enum):
    """What the pass may do with the next candidate."""

    CONTINUE = auto()
    NO_TOKEN = auto()
    """KV will not fit: stop, and do not try again before something leaves."""
    OTHER = auto()
    """The budget of this pass is used up."""


class PrefillAdder:
    """The budget of one pass.

    Args:
        running: the running requests, whose remaining output is reserved at the current ratio.
        ratio: the new-token ratio.
        chunk_tokens: chunk budget of the pass, or -1 without chunking.
        mixed_rows: decode rows that join the pass.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        kv: KvCache,
        running: Iterable[Request],
        ratio: float,
        chunk_tokens: int,
        mixed_rows: int = 0,
    ) -> None:
        self._kv = kv
        self._page = kv.page_size
        self._clip = config.clip_max_new_tokens_estimation
        self.total_offset: float = mixed_rows + sum(
            min(request.remaining_tokens, self._clip) * (1.0 if request.params.ignore_eos else ratio)
            for request in running
        )
        self.current_offset = mixed_rows
        self.remaining_input = config.max_prefill_tokens - mixed_rows
        self.remaining_chunk = chunk_tokens - mixed_rows if chunk_tokens > 0 else None
        self.admitted = 0

    def remaining_total(self) -> float:
        """rem_total: tokens left when every running request takes its reservation; live, as locks change it."""
        return self._kv.reachable_tokens() - self.total_offset

    def verdict(self) -> Verdict:
        """Judge the next candidate (ADM-1)."""
        if self.remaining_total() <= 0 or self._kv.reachable_tokens() - self.current_offset <= 0:
            return Verdict.NO_TOKEN
        if self.remaining_input <= 0 or (self.remaining_chunk is not None and self.remaining_chunk <= 0):
            return Verdict.OTHER
        return Verdict.CONTINUE

    def continue_chunked(self, request: Request) -> int:
        """Return how many tokens the chunked request computes in this pass, and charge them (ADM-8)."""
        extend = request.total_tokens - request.committed
        if self.remaining_chunk is None:
            limit = extend
        else:
            limit = min(self.remaining_chunk, int(self.remaining_total()))
            if limit <= 0:
                limit = self.remaining_chunk if self.remaining_chunk > 0 else self._page
        length = min(extend, limit)
        self._commit(length, self._reservation(request) if extend <= limit else 0)
        return length

    def add(self, request: Request) -> tuple[int, Verdict]:
        """Test a candidate whose match is locked (ADM-3 to ADM-7).

        Returns the tokens to compute now, 0 if it is not admitted, and the verdict: on the candidate if it is not
        admitted, else on the next one.
        """
        extend = request.total_tokens - request.committed
        if extend + self._reservation(request) + self._page >= self.remaining_total():
            return 0, Verdict.NO_TOKEN
        padded = ceil_to(extend, self._page)
        length, reservation = extend, self._reservation(request)
        if self.remaining_chunk is None:
            if self.admitted and padded >= self.remaining_input:
                return 0, Verdict.OTHER
        elif padded > self.remaining_chunk:
            length, reservation = floor_to(self.remaining_chunk, self._page), 0
            if length <= 0:
                return 0, Verdict.OTHER
        self._commit(length, reservation)
        return length, self.verdict()

    def _reservation(self, request: Request) -> int:
        return min(request.remaining_tokens, self._clip)

    def _commit(self, length: int, reservation: int) -> None:
        padded = ceil_to(length, self._page)
        self.total_offset += padded + self._page + reservation
        self.current_offset += padded + self._page
        self.remaining_input -= padded
        if self.remaining_chunk is not None:
            self.remaining_chunk -= padded
        self.admitted += 1
