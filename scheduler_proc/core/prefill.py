"""One prefill pass: the chunked request in progress, then the waiting queue in policy order (rules ADM-2, TREE-8)."""

from quartet.frames import Chunk, Enter, pack_ids
from scheduler_proc.core.admission import PrefillAdder, Verdict
from scheduler_proc.core.policies import POLICIES
from scheduler_proc.core.request import Request
from scheduler_proc.core.request import State as RequestState
from scheduler_proc.core.state import State


class PrefillBatch:
    """What one pass put together for a Step."""

    def __init__(self) -> None:
        self.enter: list[Enter] = []
        self.chunks: list[Chunk] = []
        self.requests: list[Request] = []
        self.new_pages: list[tuple[int, int, int]] = []
        """(slot, index, page) for the chunked request, whose slot is already known to the worker."""
        self.next_writes: list[tuple[Request, int, int, int]] = []
        """Page table writes for the step after this one."""
        self.freed_pages: list[int] = []
        """Pages replaced by the tree's; free once this step is issued."""


class PrefillPass:
    """Forms prefill batches. `state` is shared with the rest of the scheduler."""

    def __init__(self, state: State) -> None:
        self._state = state

    def is_due(self) -> bool:
        """Say whether a pass could do anything."""
        state = self._state
        return state.chunked is not None or (bool(state.waiting) and not state.is_full)

    def form(self, step: int) -> PrefillBatch | None:
        """Form the batch of step number `step`; None if nothing can be computed."""
        state = self._state
        kv = state.require_kv()
        adder = PrefillAdder(state.config, kv, state.running.values(), state.ratio.current, state.chunk_tokens)
        batch = PrefillBatch()
        if state.chunked is not None:
            self._continue(state.chunked, adder, batch, step)
        if state.chunked is None and state.waiting and not state.is_full:
            self._admit_waiting(adder, batch, step)
        return batch if batch.chunks else None

    def _continue(self, request: Request, adder: PrefillAdder, batch: PrefillBatch, step: int) -> None:
        kv = self._state.require_kv()
        length = adder.continue_chunked(request)
        if not kv.make_room(length + kv.page_size):
            # Its pages can only come from requests that decode: it waits for the decode pass to retract some.
            if self._state.running:
                return
            length = kv.pool.available_tokens - (-request.committed % kv.page_size)
            if length <= 0:
                return
        index = len(request.pages)
        pages = kv.extend(request, request.committed + length)
        batch.new_pages += [(request.slot, index + i, page) for i, page in enumerate(pages)]
        self._compute(request, length, batch, step)

    def _admit_waiting(self, adder: PrefillAdder, batch: PrefillBatch, step: int) -> None:
        state = self._state
        POLICIES[state.config.schedule_policy](state.waiting)
        limit = state.config.prefill_max_requests
        verdict = adder.verdict()
        admitted = 0
        for request in state.waiting:
            if verdict is Verdict.OTHER or (limit and admitted >= limit) or self._must_wait(request, batch):
                break
            if not state.free_slots:
                state.is_full = True
                break
            if verdict is Verdict.CONTINUE:
                length, verdict = self._try_add(request, adder)
            else:
                length = 0
            if not length:
                if verdict is Verdict.NO_TOKEN:
                    state.is_full = bool(state.running or batch.chunks)
                break
            self._enter(request, length, batch, step)
            admitted += 1
        del state.waiting[:admitted]

    def _must_wait(self, request: Request, batch: PrefillBatch) -> bool:
        """A suspect of failed steps runs alone; a retracted request waits for its token in flight (RET-10)."""
        state = self._state
        is_alone = not state.running and not batch.chunks
        others = any(other.suspicion > 1 for other in state.running.values()) or any(
            other.suspicion > 1 for other in batch.requests
        )
        return request.in_flight > 0 or others or (request.suspicion > 1 and not is_alone)

    def _try_add(self, request: Request, adder: PrefillAdder) -> tuple[int, Verdict]:
        kv = self._state.require_kv()
        kv.match_and_lock(request)
        length, verdict = adder.add(request)
        if length and not kv.make_room(length + kv.page_size):
            length, verdict = 0, Verdict.NO_TOKEN
        if not length:
            kv.unlock_match(request)
        return length, verdict

    def _enter(self, request: Request, length: int, batch: PrefillBatch, step: int) -> None:
        state = self._state
        kv = state.require_kv()
        cached = request.committed
        kv.extend(request, cached + length)
        state.take_slot(request)
        request.first_step = step
        if request.cached_tokens < 0:
            request.cached_tokens = cached
            request.started_s = state.now
        if not request.is_open:
            state.outbox.open(request, state.now)
        state.counters.cached_tokens += cached
        batch.enter.append(
            Enter(
                request.slot,
                request.generation,
                request.key(),
                request.prompt_tokens,
                cached,
                pack_ids(request.pages),
                request.params,
                request.choice,
            )
        )
        self._compute(request, length, batch, step)

    def _compute(self, request: Request, length: int, batch: PrefillBatch, step: int) -> None:
        """Put `length` tokens of a request that has pages for them into the batch."""
        state = self._state
        request.committed += length
        is_last = request.committed == request.total_tokens
        batch.chunks.append(Chunk(request.slot, length, is_last))
        batch.requests.append(request)
        state.counters.prefill_tokens += length
        writes, replaced = state.require_kv().register(request, step)
        batch.next_writes += [(request, request.generation, index, page) for index, page in writes]
        batch.freed_pages += replaced
        if is_last:
            if state.chunked is request:
                state.chunked = None
            request.move_to(RequestState.RUNNING)
            request.launched += 1
            request.in_flight += 1
            state.running[request.generation] = request
        elif state.chunked is None:
            request.move_to(RequestState.PREFILLING)
            state.chunked = request
