"""The scheduler's face: events in, frames out. `handle` postprocesses the event, then schedules and issues steps.

It never blocks, reads no clock and draws no random number: the same events give the same frames. See the package
docstring for the parts and what each owns.
"""

from quartet.quarantine import QUARANTINED
from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import (
    Abort,
    GrammarCompiled,
    LiveRequests,
    Query,
    Step,
    StepFailed,
    StepResult,
    Stopped,
    Submit,
    Written,
    pack_ids,
)
from scheduler_proc.core import reports
from scheduler_proc.core.audit import audit
from scheduler_proc.core.batch import Batch
from scheduler_proc.core.counters import DecodeGaps, SchedulerCounters
from scheduler_proc.core.delivery import Delivery, Sent
from scheduler_proc.core.events import BeginDrain, Event, StepsLost, Tick, WorkerLost, WorkerUp
from scheduler_proc.core.grammars import GrammarQueue
from scheduler_proc.core.in_flight import StepsInFlight
from scheduler_proc.core.intake import Intake
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.lengths import LengthRules
from scheduler_proc.core.memory_limit import MemoryLimit
from scheduler_proc.core.meters import NO_WORKER, STEP
from scheduler_proc.core.observed import ObservedLengths
from scheduler_proc.core.prefill import PrefillPass
from scheduler_proc.core.queue import WaitingQueue
from scheduler_proc.core.ratio import NewTokenRatio
from scheduler_proc.core.request import Request
from scheduler_proc.core.request_table import RequestTable
from scheduler_proc.core.results import Results
from scheduler_proc.core.retraction import Retraction
from scheduler_proc.core.sessions import Sessions
from scheduler_proc.core.sizes import chunk_tokens_in_force, slots_in_force
from scheduler_proc.core.speculation import Speculation
from scheduler_proc.core.step_work import PrefillBatch, StepWork
from scheduler_proc.core.suspects import Suspects


class Scheduler:
    """Makes the owners and the parts that work on them, and decides which step comes next. Others read `in_flight`,
    `queue`, `memory`, `grammars` and `kv`.

    Args:
        config: scheduling settings.
        page_size: tokens of a KV page.
        context_length: the model's context in tokens.
        eos_token_ids: ids that end a sequence.
        worker_name: where steps go.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        page_size: int,
        context_length: int,
        eos_token_ids: tuple[int, ...],
        worker_name: str = "worker-0",
    ) -> None:
        self._config = config
        self._context_length = context_length
        self._worker_name = worker_name
        self.kv = self._kv = kv = KvCache.configured(config, page_size)
        self.queue = self._queue = queue = WaitingQueue(config)
        self.in_flight = self._in_flight = in_flight = StepsInFlight(config)
        self._batch = batch = Batch(kv, in_flight)
        self._delivery = delivery = Delivery(config.stream_interval)
        self._ratio = ratio = NewTokenRatio(config)
        self._counters = counters = SchedulerCounters()
        lengths = ObservedLengths(config.reservation == "observed")
        sessions = Sessions(config, kv, in_flight.prefill_s)
        self._table = table = RequestTable(config, queue, batch, delivery, lengths, sessions)
        self._retraction = Retraction(config, queue, batch, in_flight, kv, ratio, table, counters)
        suspects, memory = Suspects(), MemoryLimit(page_size)
        self.memory = memory
        retraction = self._retraction
        self._speculation = Speculation(config.speculative_tokens)
        self._prefill = PrefillPass(
            config, queue, batch, kv, ratio, counters, retraction, suspects, memory, lengths, sessions
        )
        self._results = Results(in_flight, delivery, table, self._retraction, suspects, memory, counters)
        self.grammars = GrammarQueue()
        self._intake = Intake(config, eos_token_ids, table, delivery, suspects, self.grammars, worker_name)
        self._decode_gaps = DecodeGaps()

    def handle(self, event: Event, now: float) -> list[Sent]:
        """Take one frame or internal event; return what to send as (destination, frame).

        Whenever fewer than two steps are in flight and there is work, the result holds the next Step.
        """
        self._postprocess(event, now)
        self._schedule(now)
        return self._delivery.take()

    def _postprocess(self, event: Event, now: float) -> None:
        match event:
            case StepResult():
                self._results.on_result(event, now)
            case Submit():
                self._intake.on_submit(event, now)
            case Abort():
                self._intake.on_abort(event.rid, now)
            case LiveRequests():
                self._intake.on_live_requests(event, self._in_flight, now)
            case Stopped():
                self._results.on_stopped(event, now)
            case StepFailed():
                self._results.on_step_failed(event, now)
            case Tick():
                self._intake.on_tick(now)
            case GrammarCompiled():
                self._intake.on_compiled(event, now)
            case WorkerUp():
                self._on_worker_up(event, now)
            case WorkerLost():
                self._on_worker_lost(event.was_killed, now)
            case StepsLost():
                self._on_worker_lost(None, now)
            case BeginDrain():
                self._intake.begin_drain()
            case Written():
                self._table.ended.note_written(event.rid, event.seconds)
            case Query():
                self._on_query(event, now)

    # Schedule: which step comes next (rules STEP-1 to STEP-8, RET-12)

    def _schedule(self, now: float) -> None:
        """Issue steps until two are in flight or there is nothing to run."""
        self._kv.holds.end_passed(now)
        self._batch.settle_saved()
        speculation = self._speculation
        if speculation.is_wanted:
            speculation.look_at(self._batch.rows())
            self._in_flight.overlap(not speculation.is_on)
        while self._in_flight.has_room:
            had_rows = bool(self._batch.running)
            work = self._next_step(now)
            if work is not None:
                if speculation.is_on and not self._in_flight.steps:
                    self._batch.launch_drafts(work, speculation.drafts(work))
                self._issue(work, now)
            elif not had_rows or self._batch.running:
                break
            # Else the last row has given way to a prompt (RET-4), or failed: what waited for its pages can go on.
        if self.is_idle():
            self._ratio.on_idle()
        if not self._batch.running:
            self._decode_gaps.pause()

    def _next_step(self, now: float) -> StepWork | None:
        if self._config.step_order != "prefill_first":
            return self._form_bounded(now) or self._retraction.form_decode(now)
        work = None
        if self._prefill.may_begin(now):
            work = self._form_mixed(now) if self._prefill.is_mixing else self._form_prefill(now)
        return work or self._retraction.form_decode(now)

    def _form_prefill(self, now: float) -> StepWork | None:
        prefill = self._prefill.form(self._in_flight.last_step + 1, now)
        return StepWork(prefill) if prefill.chunks else None

    def _form_mixed(self, now: float) -> StepWork | None:
        """Decode rows join a prefill step as one-token extends; rows that do not fit are left out (RET-12)."""
        rows = self._batch.rows()
        prefill = self._prefill.form(self._in_flight.last_step + 1, now, mixed_rows=len(rows))
        if not prefill.chunks:
            return None
        rows = [request for request in rows if request.slot >= 0]  # Without one it was preempted in the pass.
        if not rows or not self._retraction.fits(rows):
            return StepWork(prefill)
        return StepWork(prefill, rows, self._batch.launch_rows(rows))

    def _form_bounded(self, now: float) -> StepWork | None:
        """Rows first, then as much prompt as the step has time for; none is admitted beside a retraction (STEP-8). By
        slack, rows are left out until they are due (STEP-16)."""
        rows = self._batch.rows()
        has_rows, token_cap = self._in_flight.plan(rows, *self._prefill.backlog(), now)
        rows = rows if has_rows else []
        has_retracted = False
        if rows:
            rows, has_retracted = self._retraction.make_fit(rows, now)
        # The rows' pages are taken before the pass can give them away.
        writes = self._batch.launch_rows(rows)
        prefill = PrefillBatch()
        if self._prefill.is_due():
            step = self._in_flight.last_step + 1
            prefill = self._prefill.form(step, now, len(rows), token_cap, admits=not has_retracted)
            rows, writes = self._batch.withdraw_preempted(rows, writes)
        if not rows and not prefill.chunks:
            return None
        if rows and not prefill.chunks and not has_retracted:
            self._ratio.on_decode()
        return StepWork(prefill, rows, writes)

    # Issue

    def _issue(self, work: StepWork, now: float) -> None:
        """Send one step; afterwards the pages that it replaced are free, and slots without further rows."""
        prefill, rows, batch = work.prefill, work.rows, self._batch
        assert self._in_flight.worker_epoch is not None
        for request in prefill.requests:
            if not request.stream.is_open:
                self._delivery.open(request, now)
        self._in_flight.issue(work, now)
        page_writes = batch.take_later_writes() + prefill.new_pages + work.page_writes
        # Decode rows are implicit: all slots past their prompt, and all of them decode whenever any does.
        step = Step(
            self._in_flight.worker_epoch,
            self._in_flight.last_step,
            pack_ids(batch.take_released_slots()),
            prefill.enter,
            pack_ids([number for write in page_writes if not write[0] for number in write[1:]]),
            prefill.chunks,
            bool(rows),
            self._speculation.given_rows(work),
            pack_ids(batch.save_states(work)),
            pack_ids([number for write in page_writes if write[0] for number in write]),
        )
        self._delivery.send_step(self._worker_name, step)
        batch.on_issued(prefill.requests, prefill.later_writes, prefill.replaced)
        has_chunks, has_rows = bool(prefill.chunks), bool(rows)
        self._prefill.on_issued(has_chunks, has_rows)
        self._counters.prefill_steps += has_chunks
        self._counters.decode_steps += has_rows and not has_chunks
        if has_rows:
            self._decode_gaps.on_decode(now)

    # The worker comes and goes

    def _on_worker_up(self, event: WorkerUp, now: float) -> None:
        self._on_worker_lost(None, now)
        kv, config = self._kv, self._config
        kv.restart(event.page_count, event.has_states, event.checkpoints, event.windows)
        self._in_flight.start(event.epoch)
        self._queue.waits.switch(STEP, now)
        self._batch.restart(slots_in_force(config, event.max_slots, kv.capacity_tokens, event.is_cpu))
        self._prefill.restart(chunk_tokens_in_force(config, event.is_cpu), event.mixed_tokens)
        self._intake.on_worker_up(LengthRules(self._context_length, kv.capacity_tokens, kv.page_size), now)

    def _on_worker_lost(self, was_killed: bool | None, now: float) -> None:
        """The worker has dropped its slots: it has died, or lives (`was_killed` is None)."""
        if self._in_flight.worker_epoch is None:
            return
        self._in_flight.stop()
        self._queue.waits.switch(NO_WORKER, now)
        self._counters.worker_losses += 1
        self._results.on_worker_lost(was_killed, now)
        self._intake.on_worker_lost(was_killed, now)
        self._kv.clear()

    # What others ask

    def _on_query(self, query: Query, now: float) -> None:
        match query.what:
            case "config":
                body = reports.settings_in_force(self._config, self._batch, self._prefill, self._kv, self._ratio)
            case "abort":
                body = {"aborted": self._intake.cancel(query, now)}
            case "flush":
                body = {"freed_tokens": self._kv.flush()}
            case _:
                body = reports.recalled(self._table, query, now)
        self._delivery.put(query.reply_to, reports.reply(query, body))

    def next_deadline(self) -> float | None:
        """Return when a Tick is wanted, in the caller's time."""
        return self._intake.next_deadline()

    def take_finished(self) -> list[Request]:
        """Return the requests that ended by themselves since the last call; nothing is kept before the first call."""
        return self._table.take_finished()

    @property
    def quarantined_count(self) -> int:
        """How many requests have been found at fault for the deaths of workers."""
        return self._table.ends_by_cause[QUARANTINED]

    def is_idle(self) -> bool:
        """Say whether no request is live or held, and no step is in flight."""
        return self._table.is_empty and not self._in_flight.steps and not len(self.grammars)

    def audit(self) -> None:
        """Check every invariant by name; raises InvariantViolation for the first that does not hold."""
        audit(self._table, self._queue, self._batch, self._in_flight, self._kv)

    def snapshot(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return (gauges, counters) by metric name (MET-1, MET-2, MET-4)."""
        gauges = reports.gauges(self._queue, self._batch, self._kv, self._ratio, self._decode_gaps)
        return gauges, reports.counts(self._counters, self._queue, self._table)
