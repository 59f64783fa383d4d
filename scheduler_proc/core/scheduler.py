"""The scheduler's face: events in, frames out (see the package docstring for the parts).

`handle` never blocks, reads no clock and draws no random number: the same events give the same frames.
"""

import msgspec

from quartet.config import SchedulerConfig
from quartet.frames import Abort, Answer, Ask, LiveSet, Step, StepFailed, StepResult, Stopped, Submit, pack_ids
from scheduler_proc.core.audit import audit
from scheduler_proc.core.decode import DecodePass
from scheduler_proc.core.events import BeginDrain, Event, Tick, WorkerLost, WorkerUp
from scheduler_proc.core.intake import Intake
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.lengths import LengthRules
from scheduler_proc.core.outbox import Sent
from scheduler_proc.core.prefill import PrefillBatch, PrefillPass
from scheduler_proc.core.ratio import NewTokenRatio
from scheduler_proc.core.request import Request
from scheduler_proc.core.results import Results
from scheduler_proc.core.state import AUTO_CHUNK, AUTO_CHUNK_CPU, AUTO_SLOTS, AUTO_SLOTS_CPU, Outstanding, State

MAX_OUTSTANDING = 2
"""Steps issued whose results are not back: the device works on one while the next is prepared."""


class Scheduler:
    """Owns queue, batch, pages, tree and ratio.

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
        self._state = State(config, page_size, context_length, eos_token_ids, worker_name, NewTokenRatio(config))
        self._results = Results(self._state)
        self._intake = Intake(self._state, self._results)
        self._prefill = PrefillPass(self._state)
        self._decode = DecodePass(self._state)

    def handle(self, event: Event, now: float) -> list[Sent]:
        """Take one frame or internal event; return what to send as (destination, frame).

        Whenever fewer than two steps are outstanding and there is work, the result holds the next Step.
        """
        self._state.now = now
        self._take(event)
        self._pump()
        return self._state.outbox.take()

    def _take(self, event: Event) -> None:
        match event:
            case StepResult():
                self._results.on_result(event)
            case Submit():
                self._intake.on_submit(event)
            case Abort():
                self._intake.on_abort(event.rid)
            case LiveSet():
                self._intake.on_live_set(event)
            case Stopped():
                self._results.on_stopped(event)
            case StepFailed():
                self._results.on_step_failed(event)
            case Tick():
                self._intake.on_deadlines()
            case WorkerUp():
                self._on_worker_up(event)
            case WorkerLost():
                self._on_worker_lost()
            case BeginDrain():
                self._state.is_draining = True
            case Ask():
                self._on_ask(event)

    def _pump(self) -> None:
        state = self._state
        while state.worker_epoch is not None and len(state.outstanding) < MAX_OUTSTANDING:
            if not self._issue_next():
                break
        if not state.requests and not state.outstanding:
            state.ratio.on_idle()

    def _issue_next(self) -> bool:
        """Issue one step if there is anything to run: prefill first, else decode."""
        state = self._state
        step = state.step + 1
        batch = self._prefill.form(step) if self._prefill.is_due() else None
        if batch is not None:
            state.counters.prefill_steps += 1
            self._issue(step, batch, batch.new_pages, decode=False)
            state.require_kv().pool.free(batch.freed_pages)
            state.page_writes += batch.next_writes
            return True
        writes = self._decode.form()
        if writes is None:
            return False
        state.counters.decode_steps += 1
        self._issue(step, PrefillBatch(), writes, decode=True)
        return True

    def _issue(self, step: int, batch: PrefillBatch, writes: list[tuple[int, int, int]], decode: bool) -> None:
        state = self._state
        assert state.worker_epoch is not None
        owed = [
            (request.slot, index, page)
            for request, generation, index, page in state.page_writes
            if request.generation == generation and request.slot >= 0
        ]
        state.page_writes.clear()
        frame = Step(
            state.worker_epoch,
            step,
            pack_ids(state.released_slots),
            batch.enter,
            pack_ids([number for write in owed + writes for number in write]),
            batch.chunks,
            decode,
            b"",
        )
        state.released_slots.clear()
        state.step = step
        state.outstanding.append(Outstanding(step, not decode, batch.requests))
        state.outbox.put(state.worker_name, frame)
        self._release_complete(batch.requests if not decode else list(state.running.values()))

    def _release_complete(self, launched: list[Request]) -> None:
        """Take requests whose last row has just been launched out of their slots (STEP-10)."""
        for request in launched:
            if request.launched >= request.rows_wanted and request.slot >= 0 and request.in_flight:
                self._state.give_slot_back(request)

    def _on_worker_up(self, event: WorkerUp) -> None:
        state = self._state
        if state.kv is not None:
            self._on_worker_lost()
        config = state.config
        state.worker_epoch = event.epoch
        state.kv = KvCache(event.page_count, state.page_size, not config.disable_radix_cache)
        state.lengths = LengthRules(state.context_length, state.kv.capacity_tokens, state.page_size)
        auto = AUTO_SLOTS_CPU if event.is_cpu else min(state.kv.capacity_tokens // 2, AUTO_SLOTS)
        state.max_slots = max(1, min(config.max_running_requests or auto, event.max_slots))
        state.free_slots = list(range(state.max_slots - 1, -1, -1))
        state.released_slots.clear()
        state.chunk_tokens = config.chunked_prefill_size or (AUTO_CHUNK_CPU if event.is_cpu else AUTO_CHUNK)
        state.is_full = False
        self._intake.on_worker_up()

    def _on_worker_lost(self) -> None:
        state = self._state
        if state.worker_epoch is None:
            return
        state.worker_epoch = None
        state.counters.worker_losses += 1
        self._results.requeue_all()
        kv = state.require_kv()
        kv.pool.free([page for node in kv.tree.nodes() for page in node.pages])
        kv.tree.clear()

    def _on_ask(self, ask: Ask) -> None:
        state = self._state
        if ask.what == "config":
            body = msgspec.json.encode(state.config)
        elif ask.what == "flush":
            body = msgspec.json.encode({"freed_tokens": self._flush()})
        else:
            body = msgspec.json.encode({"error": f"unknown question {ask.what!r}"})
        state.outbox.put(ask.reply_to, Answer(ask.ask, body))

    def _flush(self) -> int:
        """Forget every cached prefix that nobody uses."""
        kv = self._state.kv
        if kv is None:
            return 0
        freed = kv.tree.evict(kv.tree.evictable_tokens)
        kv.pool.free(freed)
        return len(freed) * kv.page_size

    def next_deadline(self) -> float | None:
        """Return when a Tick is wanted, in the caller's time."""
        return self._intake.next_deadline()

    def is_idle(self) -> bool:
        """Say whether nothing is held and nothing is in flight."""
        return not self._state.requests and not self._state.outstanding

    def audit(self) -> None:
        """Check every invariant by name; raises InvariantViolation with the state that breaks it."""
        audit(self._state)

    def snapshot(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return (gauges, counters) by metric name (MET-1, MET-2, MET-4)."""
        state = self._state
        kv = state.kv
        gauges: dict[str, float] = {
            "num_running_reqs": len(state.running) + (state.chunked is not None),
            "num_queue_reqs": len(state.waiting),
            "new_token_ratio": state.ratio.current,
        }
        if kv is not None:
            used = kv.capacity_tokens - kv.reachable_tokens()
            gauges["kv_capacity_tokens"] = kv.capacity_tokens
            gauges["kv_available_tokens"] = kv.pool.available_tokens
            gauges["kv_evictable_tokens"] = kv.tree.evictable_tokens
            gauges["kv_used_tokens"] = used
            gauges["token_usage"] = used / kv.capacity_tokens
        counted = {name: float(getattr(state.counters, name)) for name in state.counters.__slots__}
        return gauges, counted
