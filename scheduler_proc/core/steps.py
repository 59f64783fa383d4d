"""Which step comes next: prefill, decode or both (rules STEP-1 to STEP-8, RET-12), and what its frame says."""

from quartet.wire.frames import Step, pack_ids
from scheduler_proc.core.batch import PageWrite
from scheduler_proc.core.decode import DecodePass
from scheduler_proc.core.prefill import PrefillBatch, PrefillPass
from scheduler_proc.core.request import Request
from scheduler_proc.core.retract import Retraction
from scheduler_proc.core.state import State
from scheduler_proc.core.step_time_model import StepTimeModel

MIN_STEPS_TO_TRUST_COST = 8


class Steps:
    """Issues steps. `state` is shared with the rest of the scheduler."""

    def __init__(self, state: State) -> None:
        self._state = state
        retraction = Retraction(state)
        self._prefill = PrefillPass(state, retraction)
        self._decode = DecodePass(state, retraction)
        self._decodes_owed = 0
        self._last_decode_s = -1.0
        self.longest_gap_s = 0.0

    def pump(self) -> None:
        """Issue steps until two are outstanding or there is nothing to run."""
        state = self._state
        while state.in_flight.has_room:
            if not self._issue_next():
                break
        if state.table.is_empty and not state.in_flight.steps:
            state.ratio.on_idle()
        if not state.batch.running:
            self._last_decode_s = -1.0

    def _issue_next(self) -> bool:
        if self._state.config.step_order == "decode_first":
            return self._issue_decode_first()
        if self._may_prefill():
            if self._state.config.enable_mixed_chunk:
                if self._issue_mixed():
                    return True
            elif self._issue_prefill():
                return True
        return self._issue_decode()

    def _may_prefill(self) -> bool:
        """Say whether a prefill pass is due and not deferred in favour of who decodes (STEP-5, STEP-6, RET-16)."""
        state, config = self._state, self._state.config
        if not self._prefill.is_due():
            return False
        running = len(state.batch.running)
        if self._decodes_owed > 0 and running >= max(config.prefill_decode_interval_min_bs, 1):
            return False
        if config.test_retract_no_prefill_bs and running > config.test_retract_no_prefill_bs:
            return False
        is_short_of_slots = running > 0 and len(state.batch.free_slots) < config.min_free_slots_delay
        return not (is_short_of_slots and state.batch.chunked is None)

    def _issue_prefill(self) -> bool:
        step = self._state.in_flight.last_step + 1
        batch = self._prefill.form(step)
        if not batch.chunks:
            return False
        self._issue(step, batch, [], [])
        return True

    def _issue_mixed(self) -> bool:
        """Decode rows join a prefill step as one-token extends; if they do not fit they sit it out (RET-12)."""
        step = self._state.in_flight.last_step + 1
        rows = self._state.batch.rows()
        batch = self._prefill.form(step, mixed_rows=len(rows))
        if not batch.chunks:
            return False
        # Who was preempted in the pass decodes no more.
        rows = [request for request in rows if request.slot >= 0]
        fits = bool(rows) and self._decode.fits(rows)
        self._issue(step, batch, rows if fits else [], self._state.batch.launch_rows(rows) if fits else [])
        return True

    def _issue_decode(self) -> bool:
        rows = self._state.batch.rows()
        if not rows:
            return False
        rows, has_retracted = self._decode.make_fit(rows)
        if not rows:
            return False
        if not has_retracted:
            self._state.ratio.on_decode()
        self._issue(self._state.in_flight.last_step + 1, PrefillBatch(), rows, self._state.batch.launch_rows(rows))
        return True

    def _issue_decode_first(self) -> bool:
        """Decode rows first, then as much prompt as the budget has left; nobody enters beside a retraction (STEP-8)."""
        state = self._state
        step = state.in_flight.last_step + 1
        rows, has_retracted = self._state.batch.rows(), False
        if rows:
            rows, has_retracted = self._decode.make_fit(rows)
        # The rows' pages are taken before the pass can give them away.
        writes = self._state.batch.launch_rows(rows)
        batch = PrefillBatch()
        if self._prefill.is_due():
            batch = self._prefill.form(step, len(rows), self._token_cap(rows), admits=not has_retracted)
            rows, writes = state.batch.withdraw_preempted(rows, writes)
        if not rows and not batch.chunks:
            return False
        if rows and not batch.chunks and not has_retracted:
            state.ratio.on_decode()
        self._issue(step, batch, rows, writes)
        return True

    def _token_cap(self, rows: list[Request]) -> int | None:
        """Return how many prompt tokens keep the step within the target time, or None for no bound (U1)."""
        state = self._state
        if state.in_flight.time_model is None or not rows:
            return None
        if state.in_flight.time_model.steps_seen < MIN_STEPS_TO_TRUST_COST:
            return state.page_size
        target_s = state.config.tbt_target_ms / 1000
        prefill_context = state.batch.chunked.lease.num_computed_tokens if state.batch.chunked else 0
        row_context = sum(request.lease.num_computed_tokens for request in rows)
        budget = state.in_flight.time_model.prefill_budget(target_s, len(rows), row_context, prefill_context)
        return max(budget // state.page_size * state.page_size, state.page_size)

    def _issue(self, step: int, batch: PrefillBatch, rows: list[Request], writes: list[PageWrite]) -> None:
        """Send one step; afterwards the pages that it replaced are free, and slots without further rows."""
        state = self._state
        assert state.in_flight.worker_epoch is not None
        # Decode rows are implicit: all slots past their prompt, and all of them decode whenever any does.
        page_writes = state.batch.take_later_writes() + batch.new_pages + writes
        frame = Step(
            state.in_flight.worker_epoch,
            step,
            pack_ids(state.batch.take_released_slots()),
            batch.enter,
            pack_ids([number for write in page_writes for number in write]),
            batch.chunks,
            bool(rows),
        )
        state.in_flight.issue(self._features(batch, rows), state.now)
        state.delivery.send_step(state.worker_name, frame)
        self._count(batch, rows)
        state.batch.on_issued(batch.requests, batch.later_writes, batch.replaced)

    def _features(self, batch: PrefillBatch, rows: list[Request]) -> list[float]:
        if self._state.in_flight.time_model is None:
            return []
        row_context = sum(request.lease.num_computed_tokens for request in rows)
        mean_context = batch.context_tokens // max(1, len(batch.chunks))
        return StepTimeModel.features(len(rows), row_context, batch.tokens, mean_context)

    def _count(self, batch: PrefillBatch, rows: list[Request]) -> None:
        state = self._state
        if batch.chunks:
            state.counters.prefill_steps += 1
            self._decodes_owed = state.config.prefill_decode_interval
        if rows:
            if not batch.chunks:
                state.counters.decode_steps += 1
                self._decodes_owed = max(0, self._decodes_owed - 1)
            if self._last_decode_s >= 0:
                self.longest_gap_s = max(self.longest_gap_s, state.now - self._last_decode_s)
            self._last_decode_s = state.now
