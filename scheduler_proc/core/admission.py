"""What fits into one prefill pass (rules ADM-1 to ADM-11, BLK-1 to BLK-3). Pure arithmetic over token counts.

Source: SGLang's PrefillAdder, with the departures that the rules name; block mode is FastDeploy's.
"""

import math
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Protocol

from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.lease import Lease
from scheduler_proc.core.lengths import ceil_to, floor_to
from scheduler_proc.core.peak import Expectation, PeakEstimate
from scheduler_proc.core.request import Request
from scheduler_proc.core.window_budget import WindowBudget
from scheduler_proc.core.window_group import WindowGroup


class Verdict(Enum):
    """What the pass may do with the next candidate."""

    CONTINUE = auto()
    NO_TOKEN = auto()
    """KV will not fit: stop, and do not try again before something leaves."""
    OTHER = auto()
    """The budget of this pass is used up."""


class KvRoom(Protocol):
    """What admission needs to know of the KV cache."""

    page_size: int
    is_sharing: bool
    windows: tuple[WindowGroup, ...]

    def reachable_tokens(self) -> int:
        """avail + evict: what could be allocated at most."""
        ...

    def sole_tokens(self, lease: Lease) -> int:
        """Return the tokens that come back when a lease ends."""
        ...


class PrefillAdder:
    """The budget of one pass.

    Args:
        running: the running requests, whose remaining output is reserved at the current ratio.
        ratio: the new-token ratio.
        chunk_tokens: chunk budget of the pass, or -1 without chunking.
        mixed_rows: decode rows that join the pass.
        lengths: what is expected of outputs by reservation observed.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        kv: KvRoom,
        running: Iterable[Request],
        ratio: float,
        chunk_tokens: int,
        mixed_rows: int = 0,
        lengths: Expectation | None = None,
    ) -> None:
        self._config = config
        self._kv = kv
        self.page_size = kv.page_size
        self._clip = config.clip_max_new_tokens_estimation
        self._ratio = 1.0 if config.reservation == "full" else ratio
        self._running = list(running)
        self._peak: PeakEstimate | None = None
        if config.reservation == "observed" and lengths is not None and lengths.are_enough:
            self._peak = PeakEstimate(kv, lengths, self._running)
        self.total_offset: float = mixed_rows + sum(self.reservation_of(request) for request in self._running)
        self.current_offset = mixed_rows
        self.remaining_input = config.max_prefill_tokens - mixed_rows
        self.remaining_chunk = chunk_tokens - mixed_rows if chunk_tokens > 0 else None
        self.admitted: list[Request] = []
        self._block_tokens = 0
        self._windows = WindowBudget(kv.windows, self._running, self.reservation_of)

    def reservation_of(self, running: Request) -> float:
        """Return what a running request's remaining output counts for (RAT-6)."""
        return self._estimate(running) * (1.0 if running.params.ignore_eos else self._ratio)

    def _estimate(self, request: Request) -> int:
        if self._config.reservation == "full":
            return request.remaining_tokens
        if self._peak is not None:
            return 0
        return min(request.remaining_tokens, self._clip)

    def remaining_total(self) -> float:
        """rem_total: tokens left when every running request takes its reservation; live, as locks change it."""
        return self._kv.reachable_tokens() - self.total_offset

    def _remaining_current(self) -> int:
        return self._kv.reachable_tokens() - self.current_offset

    def verdict(self) -> Verdict:
        """Judge the next candidate (ADM-1)."""
        if self.remaining_total() <= 0 or self._remaining_current() <= 0:
            return Verdict.NO_TOKEN
        if self.remaining_input <= 0 or (self.remaining_chunk is not None and self.remaining_chunk <= 0):
            return Verdict.OTHER
        return Verdict.CONTINUE

    def continue_chunked(self, request: Request, cap: int | None = None) -> int:
        """Return how many tokens the chunked request computes in this pass, at most `cap`, and charge them (ADM-8)."""
        extend = request.uncomputed_tokens
        if self.remaining_chunk is None:
            limit = extend
        else:
            limit = min(self.remaining_chunk, int(self.remaining_total()))
            if limit <= 0:
                # It must progress: its pages are only released by progress.
                limit = self.remaining_chunk if self.remaining_chunk > 0 else self.page_size
        if cap is not None:
            limit = min(limit, max(cap, self.page_size))
        length = request.lease.up_to_cut(min(extend, limit))
        self._commit(request, length, self._estimate(request) if length == extend else 0)
        return length

    def has_budget_for(self, request: Request, may_chunk: bool = True) -> bool:
        """Say whether the pass has room for a candidate, or for a first chunk of it (ADM-4, ADM-5)."""
        padded = ceil_to(request.uncomputed_tokens, self.page_size)
        if self.remaining_chunk is None:
            return not self.admitted or padded < self.remaining_input
        return padded <= self.remaining_chunk or (may_chunk and self.remaining_chunk >= self.page_size)

    def add(self, request: Request, withheld_tokens: int = 0, may_chunk: bool = True) -> tuple[int, Verdict]:
        """Test a candidate whose match is locked (ADM-3 to ADM-7).

        `withheld_tokens` it may not evict; with `may_chunk` false it must be computed whole, since another is chunked.

        Returns the tokens to compute now, 0 if it is not admitted, and the verdict: on the candidate if it is not
        admitted, else on the next one.
        """
        extend = request.uncomputed_tokens
        if not self._fits(request, extend, withheld_tokens):
            return 0, Verdict.NO_TOKEN
        if not self.has_budget_for(request, may_chunk):
            return 0, Verdict.OTHER
        length, reservation = extend, self._estimate(request)
        if self.remaining_chunk is not None and ceil_to(extend, self.page_size) > self.remaining_chunk:
            length, reservation = floor_to(self.remaining_chunk, self.page_size), 0
        if request.lease.cuts:
            length, reservation = request.lease.up_to_cut(length), 0
        self._commit(request, length, reservation)
        return length, self.verdict()

    def fits_without(self, request: Request, victims: Sequence[Request], withheld: int) -> bool:
        """Say whether a candidate whose match is locked is admitted once `victims` have left the batch (PRE-4)."""
        return self._fits(request, request.uncomputed_tokens, withheld, victims)

    def fits_without_compat(self, request: Request, victims: Sequence[Request], withheld: int) -> bool:
        """SGLang's test in place of `fits_without`: victims give their reservations alone, and suffice at equality."""
        if self._peak is not None:
            return self.fits_without(request, victims, withheld)
        if not self._windows_fit(request, victims):
            return False
        missing = request.uncomputed_tokens + min(request.max_new_tokens, self._clip) - self.remaining_total()
        return missing + withheld <= sum(self.reservation_of(victim) for victim in victims)

    def ratio_that_fits(self, request: Request) -> float:
        """Return the ratio below which a candidate that does not fit may fit, if nothing else changes; 0 for none."""
        if not self._windows_fit(request):
            # Running requests give pages of windows back while they run.
            return math.inf
        if self._peak is not None:
            return 0.0
        if self._config.reservation == "blocks" or (request.params.ignore_eos and not self._kv.is_sharing):
            return self._ratio
        remaining = sum(self._estimate(one) for one in self._running if not one.params.ignore_eos)
        if self._config.reservation == "full" or not remaining:
            return 0.0
        needed = request.uncomputed_tokens + self._estimate(request) + self.page_size
        return self._ratio - max(0.0, needed - self.remaining_total()) / remaining

    def forget_victim(self, victim: Request) -> None:
        """A running request was preempted: its reservation is free (PRE-6). Call before its KV is released."""
        self.total_offset -= self.reservation_of(victim)
        self._windows.remove(victim)
        self._running.remove(victim)
        if self._peak is not None:
            self._peak.remove(victim)

    def _windows_fit(self, request: Request, victims: Sequence[Request] = ()) -> bool:
        return self._windows.fits(request, self._length_now(request), self._estimate(request), victims)

    def _length_now(self, request: Request) -> int:
        extend, most = request.uncomputed_tokens, self.remaining_chunk
        return extend if most is None else max(0, min(extend, most))

    def _fits(self, request: Request, extend: int, withheld: int, victims: Sequence[Request] = ()) -> bool:
        if not self._windows_fit(request, victims):
            return False
        running = [one for one in self._running if one not in victims] if victims else self._running
        freed = sum(ceil_to(one.lease.num_computed_tokens, self.page_size) - one.lease.protected for one in victims)
        total = self.remaining_total() + freed + sum(self.reservation_of(victim) for victim in victims)
        if victims and (total <= 0 or self._remaining_current() + freed <= 0):
            return False
        if self._peak is not None and (running or self.admitted):
            now = self._remaining_current() + freed - withheld
            return ceil_to(extend, self.page_size) + self.page_size <= now and self._peak.fits(
                request, withheld, victims
            )
        if self._config.reservation == "blocks":
            return self._fits_in_blocks(request, extend, running, freed)
        if request.params.ignore_eos and not self._kv.is_sharing and (running or self.admitted):
            # A request alone takes the plain test: the spare token would keep out one that LEN-2 has accepted.
            return self._fits_simulated(request, extend, running, self._remaining_current() + freed, total)
        return extend + self._estimate(request) + self.page_size < total - withheld

    def _fits_in_blocks(self, request: Request, extend: int, running: list[Request], freed: int) -> bool:
        """Full reservation for the candidate, a share of it for running requests, in whole blocks (BLK-1, BLK-2)."""
        is_full_basis = self._config.reserve_basis == "full"
        decode = sum(self._ratio * (one.max_new_tokens if is_full_basis else self._estimate(one)) for one in running)
        tokens = ceil_to(extend, self.page_size) + request.remaining_tokens + self._block_tokens + decode
        return needed_blocks(tokens, self.page_size) * self.page_size <= self._kv.reachable_tokens() + freed

    def _fits_simulated(
        self, request: Request, extend: int, running: list[Request], current: int, total: float
    ) -> bool:
        """Play the batch to its end, shortest first; each must leave a spare token for all alive (ADM-10)."""
        padded = ceil_to(extend, self.page_size) + self.page_size
        if padded > min(current, total):
            return False
        competing = [request, *running, *self.admitted]
        states = sorted((left, alive.total_tokens) for alive in competing if (left := self._left_to_come(alive)) > 0)
        free, freed = current - padded, 0
        for position, (left, occupied) in enumerate(states):
            alive_count = len(states) - position
            if free + freed - left * alive_count <= alive_count:
                return False
            freed += occupied
        return True

    def _left_to_come(self, request: Request) -> float:
        share = 1.0 if request.params.ignore_eos else self._ratio
        return request.max_new_tokens * share - len(request.output_ids)

    def _commit(self, request: Request, length: int, reservation: int) -> None:
        padded = ceil_to(length, self.page_size)
        self._windows.add(request, length, self._estimate(request))
        self.total_offset += padded + self.page_size + reservation
        self.current_offset += padded + self.page_size
        # What is left of the prompt needs its blocks, too (BLK-3).
        self._block_tokens += ceil_to(request.uncomputed_tokens, self.page_size)
        self._block_tokens += request.remaining_tokens if reservation else 0
        self.remaining_input -= padded
        if self.remaining_chunk is not None:
            self.remaining_chunk -= padded
        self.admitted.append(request)
        if self._peak is not None:
            self._peak.add(request)


def needed_blocks(tokens: float, page_size: int) -> int:
    """Round tokens up to whole blocks, once, as an integer (BLK-2)."""
    whole = int(tokens)
    return -(-(whole + (tokens > whole)) // page_size)
