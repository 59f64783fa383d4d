"""One prefill pass: the chunked request in progress, then the waiting queue in policy order (rules ADM-2, TREE-8)."""

from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import ID_BYTES, Chunk
from scheduler_proc.core.admission import PrefillAdder, Verdict
from scheduler_proc.core.admitted import note_admission
from scheduler_proc.core.batch import Batch
from scheduler_proc.core.counters import SchedulerCounters
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.memory_limit import MemoryLimit
from scheduler_proc.core.meters import DECODES, PROMPTS
from scheduler_proc.core.observed import ObservedLengths
from scheduler_proc.core.policies import reserve_for_short
from scheduler_proc.core.prompt_cuts import prompt_cuts
from scheduler_proc.core.queue import WaitingQueue
from scheduler_proc.core.ratio import NewTokenRatio
from scheduler_proc.core.request import Request
from scheduler_proc.core.retraction import Retraction
from scheduler_proc.core.sessions import Sessions
from scheduler_proc.core.sizes import is_mixing, mixed_budget
from scheduler_proc.core.step_cost import pairs
from scheduler_proc.core.step_work import PrefillBatch, entering
from scheduler_proc.core.suspects import Suspects

BACKLOG_LOOKED_AT = 64


class PrefillPass:
    """Forms prefill batches. `chunk_tokens` bounds one step, -1: no chunking; `is_mixing`: rows join it (STEP-2)."""

    def __init__(
        self,
        config: SchedulerConfig,
        queue: WaitingQueue,
        batch: Batch,
        kv: KvCache,
        ratio: NewTokenRatio,
        counters: SchedulerCounters,
        retraction: Retraction,
        suspects: Suspects,
        memory: MemoryLimit,
        lengths: ObservedLengths,
        sessions: Sessions,
    ) -> None:
        self.chunk_tokens, self.is_mixing, self._mixed_tokens = -1, False, 0
        self._config, self._queue, self._batch = config, queue, batch
        self._kv, self._ratio, self._counters = kv, ratio, counters
        self._retraction, self._suspects = retraction, suspects
        self._memory, self._lengths, self._sessions = memory, lengths, sessions
        self._decodes_owed, self._changes_when_full, self._fits_below = 0, 0, 0.0
        """The last: the ratio below which what the last pass could not admit may fit."""

    def restart(self, chunk_tokens: int, mixed_tokens: int = 0) -> None:
        """Begin with the budgets of a new worker; `mixed_tokens`: see WorkerHello."""
        self.chunk_tokens, self._mixed_tokens = chunk_tokens, mixed_tokens
        self.is_mixing = is_mixing(self._config, mixed_tokens)

    def is_due(self) -> bool:
        """Say whether a pass could do anything."""
        return self._batch.chunked is not None or (bool(self._queue.waiting) and self._may_admit)

    def backlog(self) -> tuple[int, int]:
        """Return how many prompt tokens wait, of the first of a long queue, and the context of the first of them."""
        chunked = self._batch.chunked
        waiting = self._queue.waiting[:BACKLOG_LOOKED_AT] if self._may_admit else []
        tokens = sum(request.uncomputed_tokens for request in waiting)
        if chunked is None:
            return tokens, 0
        return tokens + chunked.uncomputed_tokens, chunked.lease.num_computed_tokens

    @property
    def _may_admit(self) -> bool:
        if not self._batch.is_full or self._retraction.can_preempt:
            return True
        return self._changes != self._changes_when_full or self._ratio.current < self._fits_below

    @property
    def _changes(self) -> int:
        """Count what may make room without a request or a slot being given back."""
        return self._queue.changes + self._kv.holds.ended_count

    def may_begin(self, now: float) -> bool:
        """Say whether a pass is due and has not to wait for decode steps first."""
        if not self.is_due():
            return False
        if self._is_deferred():
            self._queue.waits.switch(DECODES, now)
            return False
        return True

    def on_issued(self, has_chunks: bool, has_rows: bool) -> None:
        """A step is issued: it counts for the decode steps that are owed after a prefill step."""
        if has_chunks:
            self._decodes_owed = self._config.prefill_decode_interval
        elif has_rows:
            self._decodes_owed = max(0, self._decodes_owed - 1)

    def _is_deferred(self) -> bool:
        """Say whether a pass that is due has to wait for decode steps first (STEP-5, STEP-6, RET-16)."""
        config, running = self._config, len(self._batch.running)
        if self._decodes_owed > 0 and running >= max(config.prefill_decode_interval_min_bs, 1):
            return True
        if config.test_retract_no_prefill_bs and running > config.test_retract_no_prefill_bs:
            return True
        is_short_of_slots = running > 0 and len(self._batch.free_slots) < config.min_free_slots_delay
        return is_short_of_slots and self._batch.chunked is None

    def form(
        self, step: int, now: float, mixed_rows: int = 0, token_cap: int | None = None, admits: bool = True
    ) -> PrefillBatch:
        """Form the batch of step number `step`; it may turn out empty.

        Args:
            now: the time of the step.
            mixed_rows: decode rows that join the step.
            token_cap: bound on the prompt tokens of the step, for a step bounded by time.
            admits: whether new requests may enter; the chunked one continues in any case.
        """
        adder = self._adder(mixed_rows, token_cap)
        pass_batch = PrefillBatch(step, now)
        tree = self._kv.tree if self._kv.is_sharing else None
        self._queue.begin_pass(tree, self._batch.running.values(), self._counters.output_tokens, now)
        reserved, chunked = 0, self._batch.chunked
        if chunked is not None:
            reserved = self._continue(chunked, adder, pass_batch)
        has_place = self._batch.chunked is None or reserved > 0
        if admits and has_place and self._queue.waiting and self._may_admit:
            if not reserved:
                self._queue.order(now)
            self._admit_waiting(adder, pass_batch)
        elif not has_place:
            self._queue.waits.switch(PROMPTS, now)
        return pass_batch

    def _adder(self, mixed_rows: int, token_cap: int | None) -> PrefillAdder:
        # A bound by time takes the place of the worker's.
        rows = mixed_rows if token_cap is None else 0
        budget = mixed_budget(self._config, self.chunk_tokens, self._mixed_tokens, rows, self._queue.waiting)
        chunk_tokens = self._memory.budget(budget)
        if token_cap is not None:
            # What is left for the prompt when the rows have taken theirs.
            page_size = self._kv.page_size
            cap = max(token_cap // page_size * page_size, page_size) + mixed_rows
            chunk_tokens = min(chunk_tokens, cap) if chunk_tokens > 0 else cap
        running, ratio = self._batch.running.values(), self._ratio.current
        return PrefillAdder(self._config, self._kv, running, ratio, chunk_tokens, mixed_rows, self._lengths)

    # The chunked request

    def _continue(self, request: Request, adder: PrefillAdder, pass_batch: PrefillBatch) -> int:
        """Compute more of the chunked request; returns the tokens of the chunk kept for shorter ones (4.8), for which
        the queue is in order then."""
        kv, lease = self._kv, request.lease
        kv.trim(lease)
        cap, reserved = None, 0
        keeps_for_short = self._config.schedule_policy == "shortest-prefill-first" and self._queue.waiting
        if keeps_for_short and adder.remaining_chunk:
            self._queue.order(pass_batch.now)
            left = request.uncomputed_tokens
            reserved = reserve_for_short(self._queue.waiting, left, adder.remaining_chunk, kv.page_size)
            if reserved:
                cap = (adder.remaining_chunk - reserved) // kv.page_size * kv.page_size
        length = adder.continue_chunked(request, cap)
        if not kv.make_room(length + kv.page_size):
            # Its pages can only come from requests that decode, so it waits for some of them to end or give way.
            if self._batch.running:
                return reserved
            length = min(length, kv.available_tokens - (-lease.num_computed_tokens % kv.page_size))
            if length <= 0:
                return reserved
        entries = kv.extend(lease, lease.num_computed_tokens + length)
        pass_batch.new_pages += [(group, request.slot, index, page) for group, index, page in entries]
        self._compute(request, length, pass_batch)
        return reserved

    # The waiting queue

    def _admit_waiting(self, adder: PrefillAdder, pass_batch: PrefillBatch) -> None:
        admitted, stop = set[int](), None
        guard = self._retraction.guard
        for request in guard.returning_first(self._suspects.suspects_first(self._queue.waiting)):
            reason = self._reason_to_stop(request, adder, pass_batch, len(admitted))
            if reason is None:
                reason = self._admit(request, adder, pass_batch)
            if reason is not None:
                stop = reason, request
                break
            admitted.add(id(request))
        self._queue.end_pass(admitted, stop, pass_batch.now)

    def _reason_to_stop(
        self, request: Request, adder: PrefillAdder, pass_batch: PrefillBatch, admitted: int
    ) -> str | None:
        """Say why this pass must not even look at a candidate, or None."""
        if adder.verdict() is Verdict.OTHER:
            return "budget"
        if 0 < self._config.prefill_max_requests <= admitted:
            return "prefill_max_requests"
        if request.in_flight:
            return "token_in_flight"
        batch = self._batch
        if self._retraction.guard.holds_back(request, batch.running.values()):
            self._note_full(False, pass_batch, 0.0)
            return "thrash_guard"
        if self._memory.is_full(len(batch.running) + (batch.chunked is not None) + admitted):
            return "memory"
        if not self._suspects.are_open:
            return None
        on_board = [*batch.on_board(), *pass_batch.requests]
        return "probation" if self._suspects.must_wait(request, on_board) else None

    def _admit(self, request: Request, adder: PrefillAdder, pass_batch: PrefillBatch) -> str | None:
        """Admit a candidate, preempting others for it if that is what it takes; else say why the pass stops."""
        kv, batch = self._kv, self._batch
        reusable = request.key()[: request.reusable_tokens * ID_BYTES]
        kv.match_and_lock(request.lease, reusable, request.namespace, request.urgency)
        if kv.checkpoints is not None:
            request.lease.cuts = prompt_cuts(request, self._queue.waiting, kv.spacing.cut, kv.page_size)
            if request.lease.cuts and batch.chunked is not None:
                # One prompt is cut at a time, perhaps for this one.
                kv.unlock_match(request.lease)
                return "checkpoint"
        needs_slot = not batch.free_slots
        length, verdict = (0, Verdict.NO_TOKEN) if needs_slot else self._test(request, adder, pass_batch)
        is_kv_short = not length and verdict is Verdict.NO_TOKEN
        if is_kv_short and adder.has_budget_for(request, batch.chunked is None):
            entered, now = pass_batch.requests, pass_batch.now
            if self._retraction.preempt_for(request, adder, entered, needs_slot, now):
                length, verdict = self._test(request, adder, pass_batch)
        if length:
            self._enter(request, length, pass_batch)
            return None
        fits_below = 0.0 if needs_slot or verdict is Verdict.OTHER else adder.ratio_that_fits(request)
        kv.unlock_match(request.lease)
        if verdict is Verdict.OTHER:
            return "budget"
        self._note_full(needs_slot, pass_batch, fits_below)
        return "no_slot" if needs_slot else "no_kv"

    def _note_full(self, needs_slot: bool, pass_batch: PrefillBatch, fits_below: float) -> None:
        # What this pass computes reserves less once it runs (RAT-6), so the next pass looks again.
        self._batch.note_full(needs_slot or (bool(self._batch.running) and not pass_batch.chunks))
        self._changes_when_full, self._fits_below = self._changes, fits_below

    def _test(self, request: Request, adder: PrefillAdder, pass_batch: PrefillBatch) -> tuple[int, Verdict]:
        is_alone = not self._batch.running and not pass_batch.chunks
        length, verdict = self._test_once(request, adder, is_alone)
        # What is held gives way to a request that would wait for nothing else, or is more urgent.
        above = None if is_alone else request.urgency
        while verdict is Verdict.NO_TOKEN and not length and self._kv.holds.end_next(above):
            length, verdict = self._test_once(request, adder, is_alone)
        return length, verdict

    def _test_once(self, request: Request, adder: PrefillAdder, is_alone: bool) -> tuple[int, Verdict]:
        kv = self._kv
        if adder.verdict() is Verdict.NO_TOKEN:
            return 0, Verdict.NO_TOKEN
        withheld = 0 if is_alone else kv.withheld_tokens(request.urgency)
        length, verdict = adder.add(request, withheld, may_chunk=self._batch.chunked is None)
        if length and not kv.make_room_for(request.urgency, length + kv.page_size, is_alone):
            return 0, Verdict.NO_TOKEN
        return length, verdict

    def _enter(self, request: Request, length: int, pass_batch: PrefillBatch) -> None:
        cached = request.lease.num_computed_tokens
        self._kv.extend(request.lease, cached + length)
        self._batch.enter(request)
        note_admission(request, cached, length, pass_batch, self._queue, self._counters, self._ratio.current)
        self._queue.note_admitted(request, cached, pass_batch.now)
        self._sessions.on_admitted(request, request.lease.node, request.total_tokens - cached)
        pass_batch.enter.append(entering(request))
        self._compute(request, length, pass_batch)

    def _compute(self, request: Request, length: int, pass_batch: PrefillBatch) -> None:
        """Put `length` tokens of a request that has pages for them into the batch of the pass."""
        lease, step = request.lease, pass_batch.step
        pass_batch.pairs += pairs(lease.num_computed_tokens, length)
        lease.num_computed_tokens += length
        is_last = not request.uncomputed_tokens
        pass_batch.chunks.append(Chunk(request.slot, length, is_last))
        pass_batch.requests.append(request)
        self._queue.note_computed(length)
        request.timeline.note(pass_batch.now, "chunk", {"tokens": length, "is_last": is_last, "step": step})
        # What it computes may be the prefix of a request that did not fit without.
        self._batch.note_full(False)
        writes, replaced = self._kv.register(lease, request.key(), step)
        pass_batch.later_writes += [(request, request.generation, index, page) for index, page in writes]
        pass_batch.replaced += replaced
        self._batch.launch_chunk(request, is_last)
