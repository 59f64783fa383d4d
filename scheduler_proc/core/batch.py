"""The batch: requests with a slot and KV, the one way in and the one way out.

waiting ──enter──► chunked (at most one) ──last chunk──► running ──leave──► waiting, finished, aborted, failed
"""

from collections.abc import Iterable

from scheduler_proc.core.in_flight import StepsInFlight
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.lease import NONE
from scheduler_proc.core.request import Request, RequestState
from scheduler_proc.core.saved_states import save_state, settle_state
from scheduler_proc.core.step_work import LaterWrite, PageWrite, StepWork


class Batch:
    """Places, slots and page table writes of the requests that the worker knows, or is about to.

    `running` is by generation, in batch order. A running request without a slot waits for its last results. `is_full`
    means that the last pass could admit nothing more, and that since then neither a request nor a slot has been given
    back (ADM-11).
    """

    def __init__(self, kv: KvCache, in_flight: StepsInFlight) -> None:
        self.running: dict[int, Request] = {}
        self.chunked: Request | None = None
        self.is_full = False
        self.max_slots = 0
        self.free_slots: list[int] = []
        self._released_slots: list[int] = []
        self._later_writes: list[LaterWrite] = []
        self._complete: list[Request] = []
        self._saving: list[tuple[Request, int]] = []
        self._kv = kv
        self._in_flight = in_flight

    def restart(self, max_slots: int) -> None:
        """Begin with the slots of a new worker; nothing is in the batch."""
        self.max_slots = max_slots
        self.free_slots = list(range(max_slots - 1, -1, -1))
        self._released_slots.clear()
        self._saving.clear()
        self.is_full = False

    def note_full(self, is_full: bool) -> None:
        """Note whether what a pass could not admit can only be admitted when something leaves."""
        self.is_full = is_full

    def on_board(self) -> list[Request]:
        """Return every request in the batch, in order of arrival."""
        requests = [*self.running.values(), *([self.chunked] if self.chunked else [])]
        return sorted(requests, key=lambda request: request.seq)

    def rows(self) -> list[Request]:
        """Return the requests that decode; those whose last row is launched have left their slot."""
        slots_of_running = self.max_slots - len(self.free_slots) - (self.chunked is not None)
        if slots_of_running == len(self.running):
            return list(self.running.values())
        return [request for request in self.running.values() if request.slot >= 0]

    # In and out

    def enter(self, request: Request) -> None:
        """Give a request, which has pages, a slot and a generation; the caller has checked that a slot is free."""
        request.slot = self.free_slots.pop()
        request.launched = request.launched_at_entry = len(request.output_ids)
        self._in_flight.begin_generation(request)

    def leave(self, request: Request, to: RequestState, keeps_kv: bool = False) -> None:
        """Take a request out: place, slot and KV are given back; what a finished one computed stays cached,
        of another with `keeps_kv`."""
        if self.chunked is request:
            self.chunked = None
        self.running.pop(request.generation, None)
        self.is_full = False
        self.release_slot(request)
        if request.lease.pending is not None and to in (RequestState.FINISHED, RequestState.WAITING):
            self._settle(request)
        if to is RequestState.FINISHED or keeps_kv:
            self._kv.finish(request.lease, request.key(), self._in_flight.last_step)
        else:
            self._kv.release(request.lease)
        request.move_to(to)

    def release_slot(self, request: Request) -> None:
        """Free a request's slot; the next step tells the worker, before another request enters the slot."""
        if request.slot >= 0:
            self._released_slots.append(request.slot)
            self.free_slots.append(request.slot)
            request.slot = -1
            self.is_full = False
        self._in_flight.end_generation(request)

    # Launching rows

    def launch_chunk(self, request: Request, is_last: bool) -> None:
        """The step being formed computes a chunk of a request; the last one samples a token."""
        if is_last:
            if self.chunked is request:
                self.chunked = None
            request.move_to(RequestState.RUNNING)
            request.launched += 1
            request.in_flight += 1
            self.running[request.generation] = request
        elif self.chunked is None:
            request.move_to(RequestState.PREFILLING)
            self.chunked = request

    def launch_rows(self, rows: list[Request]) -> list[PageWrite]:
        """Launch one token of each row, for which there is room; returns the page table writes."""
        kv = self._kv
        page_size = kv.page_size
        writes = []
        complete = self._complete
        for request in rows:
            lease = request.lease
            computed = lease.num_computed_tokens
            if computed % page_size == 0:
                # None is new where a draft that did not hold has left one.
                slot = request.slot
                writes += [(group, slot, index, page) for group, index, page in kv.extend(lease, computed + 1)]
            lease.num_computed_tokens = computed + 1
            request.in_flight += 1
            request.launched = launched = request.launched + 1
            # are_all_rows_launched for a row that decodes, written out: this runs for every token.
            if launched >= request.max_new_tokens:
                complete.append(request)
        return writes

    def launch_drafts(self, work: StepWork, drafts: Iterable[tuple[Request, list[int]]]) -> None:
        """Launch drafted tokens after the rows of a step, in pages that are their own or free; a page for each row is
        left free (STEP-20)."""
        kv, reserve = self._kv, len(work.rows) * self._kv.page_size
        for request, ids in drafts:
            lease, slot = request.lease, request.slot
            own = len(lease.pages) * kv.page_size - lease.num_computed_tokens
            room = own + max(0, kv.available_tokens - reserve)
            count = min(len(ids), room)
            if count < 1:
                continue
            lease.num_computed_tokens += count
            entries = kv.extend(lease, lease.num_computed_tokens)
            request.launched += count
            request.in_flight += count
            work.page_writes += [(group, slot, index, page) for group, index, page in entries]
            work.drafts[request.generation] = ids[:count]

    def take_back(self, request: Request, count: int) -> None:
        """The last `count` tokens launched of a request do not hold; their pages are for those that come instead."""
        if request.slot >= 0 and request.state is RequestState.RUNNING:
            request.lease.num_computed_tokens -= count
            request.launched -= count

    def withdraw_preempted(self, rows: list[Request], writes: list[PageWrite]) -> tuple[list[Request], list[PageWrite]]:
        """Leave out launched rows that the prefill pass has preempted: slot and pages are given back already."""
        left = [request for request in rows if request.slot >= 0]
        if len(left) == len(rows):
            return rows, writes
        for request in rows:
            if request.slot < 0:
                request.in_flight -= 1
                self._in_flight.end_generation(request)
        slots = {request.slot for request in left}
        return left, [write for write in writes if write[1] in slots]

    # Checkpoints of states (rules CKP)

    def save_states(self, work: StepWork) -> list[int]:
        """Return slot and checkpoint, one after the other, of each state that is saved after a step being issued."""
        kv, step, pairs = self._kv, self._in_flight.last_step, list[int]()
        if kv.checkpoints is None:
            return pairs
        for request in [*work.prefill.requests, *work.rows]:
            # A cut is at the end of a page, too.
            if request.lease.num_computed_tokens % kv.page_size:
                continue
            number = save_state(kv, request.lease, step, request.state is RequestState.RUNNING)
            if number == NONE:
                continue
            pairs += request.slot, number
            if request.lease.pending is not None:
                self._saving.append((request, request.generation))
        return pairs

    def settle_saved(self) -> None:
        """Put into the tree what rows have saved, as far as their tokens are known."""
        self._saving = [
            (request, generation)
            for request, generation in self._saving
            if request.generation == generation and request.lease.pending is not None and not self._settle(request)
        ]

    def _settle(self, request: Request) -> bool:
        changes = settle_state(self._kv, request.lease, request.key(), self._in_flight.last_step)
        if changes is None:
            return False
        writes, replaced = changes
        self._later_writes += [(request, request.generation, index, page) for index, page in writes]
        self._kv.free(replaced)
        return True

    # Issuing a step

    def take_released_slots(self) -> list[int]:
        """Return the slots released since the last step."""
        released, self._released_slots = self._released_slots, []
        return released

    def take_later_writes(self) -> list[PageWrite]:
        """Return the page table writes that the last step left for this one."""
        later, self._later_writes = self._later_writes, []
        return [
            (0, request.slot, index, page)
            for request, generation, index, page in later
            if request.generation == generation and request.slot >= 0
        ]

    def on_issued(self, prefilled: list[Request], later_writes: list[LaterWrite], replaced: list[int]) -> None:
        """A step is issued: pages that it replaced are free, and slots that see no further row (STEP-10)."""
        self._later_writes = later_writes
        self._kv.free(replaced)
        launched = [*prefilled, *self._complete]
        self._complete = []
        for request in launched:
            if request.are_all_rows_launched and request.slot >= 0 and request.in_flight:
                self.release_slot(request)

    def forget_writes(self) -> None:
        """Drop the writes left for the next step: every request has left the batch."""
        self._later_writes.clear()
