"""How requests go from the batch back to the queue: retracted when KV runs out, preempted by a more urgent request,
requeued when a step or the worker is lost (rules RET-1 to RET-13, PRE-1 to PRE-7).

What a victim gives back and what it keeps is the same in each case (RET-5 to RET-7, PRE-6). Source of the choice of
victims: SGLang's retract_decode and preempt_to_schedule, with the departures that the rules name.
"""

from collections.abc import Iterable, Sequence

from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.admission import PrefillAdder
from scheduler_proc.core.batch import Batch
from scheduler_proc.core.counters import SchedulerCounters
from scheduler_proc.core.in_flight import StepsInFlight
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.queue import WaitingQueue
from scheduler_proc.core.ratio import NewTokenRatio
from scheduler_proc.core.request import Request, RequestState
from scheduler_proc.core.request_table import RequestTable
from scheduler_proc.core.step_work import PrefillBatch, StepWork
from scheduler_proc.core.thrash_guard import ThrashGuard

FORCED_EVERY = 3
"""Decode steps from one retraction to the next with the setting test_retract (RET-16)."""


class Retraction:
    """The memory check of decode steps, and every way from the batch back to the queue."""

    def __init__(
        self,
        config: SchedulerConfig,
        queue: WaitingQueue,
        batch: Batch,
        in_flight: StepsInFlight,
        kv: KvCache,
        ratio: NewTokenRatio,
        table: RequestTable,
        counters: SchedulerCounters,
    ) -> None:
        self._config = config
        self._queue = queue
        self._batch = batch
        self._in_flight = in_flight
        self._kv = kv
        self._ratio = ratio
        self._table = table
        self._counters = counters
        self.guard = ThrashGuard(config, kv)
        self._checks = 0
        self._policy = config.retraction_policy
        if self._policy == "auto":
            # By length, an urgent request that has just begun would give way, and preempt another to come back.
            self._policy = "priority" if config.enable_priority_scheduling else "length"

    # Shortage of KV

    def fits(self, rows: list[Request]) -> bool:
        """Evict what is short of the next token of each row; say whether they fit then (RET-1)."""
        if self._kv.windows:
            for request in rows:
                # A row takes a page, and can do without one, at page boundaries alone.
                if request.lease.num_computed_tokens % self._kv.page_size == 0:
                    self._kv.trim(request.lease)
        needed = self._needed_tokens(rows)
        if self.guard.keeps_kv and needed > self._kv.pool.available_tokens:
            self.guard.refresh()
        return self._kv.make_room(needed)

    def make_fit(self, rows: list[Request], now: float) -> tuple[list[Request], bool]:
        """Retract rows until the next token of the rest fits.

        Returns the rows that decode in this step, perhaps none, and whether any request was retracted. The ratio is
        re-estimated if so.
        """
        self._checks += 1
        is_forced = self._config.test_retract and self._checks % FORCED_EVERY == 0 and len(rows) > 1
        if not is_forced and self.fits(rows):
            return rows, False
        if len(rows) < len(self._batch.running) and not is_forced:
            # Requests that only wait for their last result will free their pages: cheaper than a retraction (RET-9).
            return [], False
        if len(rows) == 1:
            self._settle_lone(rows[0], now)
            return [], False
        return self._shrink(rows, now), True

    def form_decode(self, now: float) -> StepWork | None:
        """Return a step that decodes a token of each row, or None if there is none, or none fits."""
        rows = self._batch.rows()
        if not rows:
            return None
        rows, has_retracted = self.make_fit(rows, now)
        if not rows:
            return None
        if not has_retracted:
            self._ratio.on_decode()
        return StepWork(PrefillBatch(), rows, self._batch.launch_rows(rows))

    def _needed_tokens(self, rows: list[Request]) -> int:
        page_size = self._kv.page_size
        full = [request.lease for request in rows if request.lease.num_computed_tokens % page_size == 0]
        # Drafts that did not hold may have left a page to a row.
        return page_size * len([1 for lease in full if len(lease.pages) * page_size == lease.num_computed_tokens])

    def _shrink(self, rows: list[Request], now: float) -> list[Request]:
        """Take victims until the rest fits (RET-2, RET-3, RET-5); returns the survivors."""
        rows = list(rows)
        while True:
            shortage = self._needed_tokens(rows) - self._kv.pool.available_tokens
            if self.guard.keeps_kv:
                victim = self.guard.pick(rows, self._policy == "priority")
            else:
                victim = pick_retracted(rows, self._policy)
            rows.remove(victim)
            self._retract(victim, shortage, now)
            if not self.guard.keeps_kv:
                self._kv.make_room(self._config.retract_decode_steps * len(rows))
            if self.fits(rows):
                break
            if len(rows) == 1:
                self._settle_lone(rows[0], now)
                rows = []
                break
        self._ratio.on_retract((len(request.output_ids), request.max_new_tokens) for request in rows)
        return rows

    def _settle_lone(self, request: Request, now: float) -> None:
        """Decide what becomes of the last row if it does not fit: it waits while pages can still come back. Then a
        prompt in progress, which could not go on either, takes its place; without one the request fails (RET-4)."""
        if self._in_flight.steps:
            return
        if self._batch.chunked is not None:
            self._retract(request, self._needed_tokens([request]), now)
        else:
            message = "The KV cache is too small for this request even after retracting every other request."
            self._table.fail(request, 500, "out_of_memory", message, now)

    def _retract(self, request: Request, shortage_tokens: int, now: float) -> None:
        counters = self._counters
        counters.retractions += 1
        counters.retracted_input_tokens += request.prompt_tokens
        counters.retracted_output_tokens += len(request.output_ids)
        request.timeline.retractions += 1
        self._leave(request, "retracted", {"shortage_tokens": shortage_tokens}, now, self.guard.keeps_kv)
        self.guard.note(request)
        self._queue.requeue(request, now)

    def drop_drafts(self, request: Request, count: int) -> None:
        """Take back the last `count` tokens launched of a request: drafts that do not hold (STEP-18)."""
        self._batch.take_back(request, count)

    # Preemption

    @property
    def can_preempt(self) -> bool:
        """Say whether a more urgent request may take the place of others."""
        return self._config.enable_priority_scheduling and not self._config.disable_priority_preemption

    def preempt_for(
        self, newcomer: Request, adder: PrefillAdder, entered: Iterable[Request], needs_slot: bool, now: float
    ) -> bool:
        """Preempt less urgent running requests so that `newcomer` fits (PRE-1, PRE-6); say whether any was.

        `entered` are requests of the pass in progress, which are not preempted.
        """
        if not self.can_preempt:
            return False
        excluded = {id(request) for request in entered}
        candidates = [request for request in self._batch.rows() if id(request) not in excluded]
        withheld = self._kv.withheld_tokens(newcomer.urgency)
        victims = pick_preempted(newcomer, candidates, adder, self._config, needs_slot, withheld)
        for victim in victims:
            adder.forget_victim(victim)
            self._counters.preemptions += 1
            victim.timeline.retractions += 1
            self._leave(victim, "preempted", {"by": newcomer.rid.hex()}, now)
            self._queue.requeue(victim, now)
        if victims:
            self._kv.make_room(self._config.retract_decode_steps * len(self._batch.running))
        return bool(victims)

    # A lost worker, a failed step

    def requeue_all(self, now: float) -> list[Request]:
        """Take everything out of the batch and forget the steps in flight. Returns the requests, oldest first.

        They were admitted before all that wait, so they go to the head of the queue.
        """
        on_board = self._batch.on_board()
        for request in on_board:
            self._leave(request, "requeued", {}, now)
        for request in [*on_board, *self._queue.waiting]:
            request.in_flight = 0
        self._queue.put_first(on_board, now)
        self._in_flight.clear()
        self._batch.forget_writes()
        return on_board

    def undo_step(self, step: int, now: float) -> list[Request]:
        """Undo a failed step and those issued after it, which are computed again; returns the requests on board."""
        on_board = self.requeue_all(now)
        self._kv.forget_written_since(step)
        return on_board

    def _leave(
        self, request: Request, what: str, details: dict[str, object], now: float, keeps_kv: bool = False
    ) -> None:
        details = {**details, "outputs": len(request.output_ids)}
        request.timeline.on_requeued(now, what, request.lease.num_computed_tokens, details)
        self._batch.leave(request, RequestState.WAITING, keeps_kv)


def pick_retracted(rows: Sequence[Request], policy: str) -> Request:
    """Return the request to retract: shortest output, then longest prompt, then latest in the batch (RET-2, RET-11).

    The shortest output loses the least work; among equals the longest prompt frees the most. With `policy` priority the
    least urgent go first, and that order decides among them.
    """
    by_priority = policy == "priority"
    position = min(
        range(len(rows)),
        key=lambda at: (
            -rows[at].urgency if by_priority else 0,
            len(rows[at].output_ids),
            -rows[at].prompt_tokens,
            -at,
        ),
    )
    return rows[position]


def pick_preempted(
    newcomer: Request,
    running: Iterable[Request],
    adder: PrefillAdder,
    config: SchedulerConfig,
    needs_slot: bool,
    withheld_tokens: int = 0,
) -> list[Request]:
    """Return the requests to preempt so that `newcomer`, whose match is locked, is admitted; none if it cannot be.

    All or nothing (PRE-5). With `needs_slot` at least one is taken even if KV suffices.

    Args:
        running: candidates in batch order; nothing of this pass, not the chunked request.
        adder: the budget of the pass.
        withheld_tokens: cached tokens that the newcomer may not evict.
    """
    fits = adder.fits_without_compat if config.preempt_accounting == "compat" else adder.fits_without
    victims: list[Request] = []
    for victim in sorted(running, key=lambda request: (-request.urgency, -request.qseq)):
        if (victims or not needs_slot) and fits(newcomer, victims, withheld_tokens):
            break
        if victim.urgency - newcomer.urgency <= config.priority_scheduling_preemption_threshold:
            break
        victims.append(victim)
    return victims if victims and fits(newcomer, victims, withheld_tokens) else []
