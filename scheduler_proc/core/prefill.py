"""One prefill pass: the chunked request in progress, then the waiting queue in policy order (rules ADM-2, TREE-8)."""

from dataclasses import dataclass, field

from quartet.wire.frames import Chunk, Enter, pack_ids
from scheduler_proc.core.admission import PrefillAdder, Verdict
from scheduler_proc.core.batch import LaterWrite, PageWrite
from scheduler_proc.core.policies import reserve_for_short
from scheduler_proc.core.preemption import pick_victims
from scheduler_proc.core.radix import ID_BYTES
from scheduler_proc.core.request import Request
from scheduler_proc.core.retract import Retraction
from scheduler_proc.core.state import State


@dataclass(slots=True)
class PrefillBatch:
    """What one pass put together for a Step. `new_pages` are page table writes of slots the worker knows; `replaced`
    are pages that the tree's replace, free once the step is issued; their writes go with the step after it."""

    enter: list[Enter] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    new_pages: list[PageWrite] = field(default_factory=list)
    later_writes: list[LaterWrite] = field(default_factory=list)
    replaced: list[int] = field(default_factory=list)
    context_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Prompt tokens that are computed."""
        return sum(chunk.length for chunk in self.chunks)


class PrefillPass:
    """Forms prefill batches. `state` is shared with the rest of the scheduler."""

    def __init__(self, state: State, retraction: Retraction) -> None:
        self._state = state
        self._retraction = retraction

    def is_due(self) -> bool:
        """Say whether a pass could do anything."""
        state = self._state
        may_admit = not state.batch.is_full or self._can_preempt
        return state.batch.chunked is not None or (bool(state.queue.waiting) and may_admit)

    @property
    def _can_preempt(self) -> bool:
        config = self._state.config
        return config.enable_priority_scheduling and not config.disable_priority_preemption

    def form(self, step: int, mixed_rows: int = 0, token_cap: int | None = None, admits: bool = True) -> PrefillBatch:
        """Form the batch of step number `step`; it may turn out empty.

        Args:
            mixed_rows: decode rows that join the step.
            token_cap: bound on the prompt tokens of the step, for a step bounded by time.
            admits: whether new requests may enter; the chunked one continues in any case.
        """
        state = self._state
        chunk_tokens = state.chunk_tokens
        if token_cap is not None:
            # What is left for the prompt when the rows have taken theirs.
            cap = max(token_cap, state.page_size) + mixed_rows
            chunk_tokens = min(chunk_tokens, cap) if chunk_tokens > 0 else cap
        adder = PrefillAdder(
            state.config, state.kv, state.batch.running.values(), state.ratio.current, chunk_tokens, mixed_rows
        )
        batch = PrefillBatch()
        tree = state.kv.tree if not state.config.disable_radix_cache else None
        state.queue.begin_pass(tree, state.batch.running.values())
        reserved = 0
        if state.batch.chunked is not None:
            reserved = self._continue(state.batch.chunked, adder, batch, step)
        has_place = state.batch.chunked is None or reserved > 0
        if admits and has_place and state.queue.waiting and not (state.batch.is_full and not self._can_preempt):
            if not reserved:
                state.queue.order()
            self._admit_waiting(adder, batch, step)
        return batch

    # The chunked request

    def _continue(self, request: Request, adder: PrefillAdder, batch: PrefillBatch, step: int) -> int:
        """Compute more of the chunked request; returns the tokens of the chunk kept for shorter ones (4.8), for which
        the queue is in order then."""
        state = self._state
        kv = state.kv
        cap, reserved = None, 0
        if state.config.schedule_policy == "shortest-prefill-first" and state.queue.waiting and adder.remaining_chunk:
            state.queue.order()
            left = request.uncomputed_tokens
            reserved = reserve_for_short(state.queue.waiting, left, adder.remaining_chunk, kv.page_size)
            if reserved:
                cap = (adder.remaining_chunk - reserved) // kv.page_size * kv.page_size
        length = adder.continue_chunked(request, cap)
        if not kv.make_room(length + kv.page_size):
            # Its pages can only come from requests that decode, so it waits for some of them to end or give way.
            if state.batch.running:
                return reserved
            length = min(length, kv.pool.available_tokens - (-request.lease.num_computed_tokens % kv.page_size))
            if length <= 0:
                return reserved
        index = len(request.lease.pages)
        pages = kv.extend(request.lease, request.lease.num_computed_tokens + length)
        batch.new_pages += [(request.slot, index + i, page) for i, page in enumerate(pages)]
        self._compute(request, length, batch, step)
        return reserved

    # The waiting queue

    def _admit_waiting(self, adder: PrefillAdder, batch: PrefillBatch, step: int) -> None:
        state = self._state
        admitted: set[int] = set()
        reason = None
        for request in list(state.queue.waiting):
            reason = self._reason_to_stop(request, adder, batch, len(admitted))
            if reason is None:
                reason = self._admit(request, adder, batch, step)
            if reason is not None:
                break
            admitted.add(id(request))
        state.queue.end_pass(admitted, reason)

    def _reason_to_stop(self, request: Request, adder: PrefillAdder, batch: PrefillBatch, admitted: int) -> str | None:
        """Say why this pass must not even look at a candidate, or None."""
        state = self._state
        if adder.verdict() is Verdict.OTHER:
            return "budget"
        limit = state.config.prefill_max_requests
        if limit and admitted >= limit:
            return "prefill_max_requests"
        if request.in_flight:
            return "token_in_flight"
        return "probation" if self._must_run_alone(request, batch) else None

    def _must_run_alone(self, request: Request, batch: PrefillBatch) -> bool:
        """A suspect of failed steps runs alone, and nobody joins one."""
        on_board = [*self._state.batch.running.values(), *batch.requests]
        if any(other.suspicion > 1 for other in on_board):
            return True
        return request.suspicion > 1 and bool(on_board)

    def _admit(self, request: Request, adder: PrefillAdder, batch: PrefillBatch, step: int) -> str | None:
        """Admit a candidate, preempting others for it if that is what it takes; else say why the pass stops."""
        state = self._state
        kv = state.kv
        kv.match_and_lock(request.lease, request.key()[:-ID_BYTES], request.namespace, request.urgency)
        needs_slot = not state.batch.free_slots
        length, verdict = (0, Verdict.NO_TOKEN) if needs_slot else self._test(request, adder, batch)
        is_kv_short = not length and verdict is Verdict.NO_TOKEN
        has_budget = adder.has_budget_for(request, state.batch.chunked is None)
        if is_kv_short and has_budget and self._preempt_for(request, adder, batch, needs_slot):
            length, verdict = self._test(request, adder, batch)
        if length:
            self._enter(request, length, batch, step)
            return None
        kv.unlock_match(request.lease)
        if verdict is Verdict.OTHER:
            return "budget"
        state.batch.note_full(needs_slot or bool(state.batch.running or batch.chunks))
        return "no_slot" if needs_slot else "no_kv"

    def _test(self, request: Request, adder: PrefillAdder, batch: PrefillBatch) -> tuple[int, Verdict]:
        kv = self._state.kv
        if adder.verdict() is Verdict.NO_TOKEN:
            return 0, Verdict.NO_TOKEN
        is_alone = self._is_alone(batch)
        withheld = 0 if is_alone else kv.withheld_tokens(request.urgency)
        length, verdict = adder.add(request, withheld, may_chunk=self._state.batch.chunked is None)
        if length and not kv.make_room_for(request.urgency, length + kv.page_size, is_alone):
            return 0, Verdict.NO_TOKEN
        return length, verdict

    def _is_alone(self, batch: PrefillBatch) -> bool:
        return not self._state.batch.running and not batch.chunks

    def _preempt_for(self, request: Request, adder: PrefillAdder, batch: PrefillBatch, needs_slot: bool) -> bool:
        """Preempt less urgent running requests so that this one fits (PRE-1, PRE-6); says whether any was."""
        state = self._state
        if not self._can_preempt:
            return False
        entered = {id(other) for other in batch.requests}
        candidates = [other for other in state.batch.running.values() if other.slot >= 0 and id(other) not in entered]
        withheld = state.kv.withheld_tokens(request.urgency)
        victims = pick_victims(request, candidates, adder, state.config, needs_slot, withheld)
        for victim in victims:
            adder.forget_victim(victim)
            self._retraction.preempt(victim, request)
        if victims:
            remaining = state.config.retract_decode_steps * len(state.batch.running)
            state.kv.make_room(remaining)
        return bool(victims)

    def _enter(self, request: Request, length: int, batch: PrefillBatch, step: int) -> None:
        state = self._state
        kv = state.kv
        cached = request.lease.num_computed_tokens
        kv.extend(request.lease, cached + length)
        state.batch.enter(request)
        state.note_admission(request, step, cached, length)
        if not request.stream.is_open:
            state.delivery.open(request, state.now)
        batch.enter.append(
            Enter(
                request.slot,
                request.generation,
                request.key(),
                request.prompt_tokens,
                cached,
                pack_ids(request.lease.pages),
                request.params,
                request.choice,
            )
        )
        self._compute(request, length, batch, step)

    def _compute(self, request: Request, length: int, batch: PrefillBatch, step: int) -> None:
        """Put `length` tokens of a request that has pages for them into the batch."""
        state = self._state
        batch.context_tokens += request.lease.num_computed_tokens + length // 2
        request.lease.num_computed_tokens += length
        is_last = not request.uncomputed_tokens
        batch.chunks.append(Chunk(request.slot, length, is_last))
        batch.requests.append(request)
        state.queue.note_computed(length)
        request.timeline.note(state.now, "chunk", {"tokens": length, "is_last": is_last, "step": step})
        writes, replaced = state.kv.register(request.lease, request.key(), step)
        batch.later_writes += [(request, request.generation, index, page) for index, page in writes]
        batch.replaced += replaced
        state.batch.launch_chunk(request, is_last)
