"""The scheduler's face: events in, frames out (see the package docstring for the parts).

`handle` never blocks, reads no clock and draws no random number: the same events give the same frames.
"""

import msgspec

from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import Abort, LiveRequests, Query, QueryReply, StepFailed, StepResult, Stopped, Submit
from scheduler_proc.core.audit import audit
from scheduler_proc.core.batch import Batch
from scheduler_proc.core.delivery import Delivery, Sent
from scheduler_proc.core.events import BeginDrain, Event, Tick, WorkerLost, WorkerUp
from scheduler_proc.core.in_flight import StepsInFlight
from scheduler_proc.core.intake import Intake
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.lengths import LengthRules
from scheduler_proc.core.queries import timeline_json, trace_json
from scheduler_proc.core.queue import WaitingQueue
from scheduler_proc.core.ratio import NewTokenRatio
from scheduler_proc.core.request import Request
from scheduler_proc.core.request_table import RequestTable
from scheduler_proc.core.results import Results
from scheduler_proc.core.sizes import chunk_tokens_in_force, slots_in_force
from scheduler_proc.core.state import State
from scheduler_proc.core.step_time_model import StepTimeModel
from scheduler_proc.core.steps import Steps


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
        kv = KvCache(
            0,
            page_size,
            not config.disable_radix_cache,
            config.radix_eviction_policy,
            config.enable_priority_scheduling,
            config.cache_priority_isolation,
        )
        queue = WaitingQueue(config)
        in_flight = StepsInFlight(StepTimeModel() if config.tbt_target_ms > 0 else None)
        batch = Batch(kv, in_flight)
        delivery = Delivery(config.stream_interval)
        self._state = State(
            config,
            page_size,
            context_length,
            eos_token_ids,
            worker_name,
            NewTokenRatio(config),
            queue,
            kv,
            in_flight,
            batch,
            delivery,
            RequestTable(config, queue, batch, delivery),
        )
        self._results = Results(self._state)
        self._intake = Intake(self._state)
        self._steps = Steps(self._state)

    def handle(self, event: Event, now: float) -> list[Sent]:
        """Take one frame or internal event; return what to send as (destination, frame).

        Whenever fewer than two steps are outstanding and there is work, the result holds the next Step.
        """
        self._state.now = now
        self._take(event)
        self._steps.pump()
        return self._state.delivery.take()

    def _take(self, event: Event) -> None:
        match event:
            case StepResult():
                self._results.on_result(event)
            case Submit():
                self._intake.on_submit(event)
            case Abort():
                self._intake.on_abort(event.rid)
            case LiveRequests():
                self._intake.on_live_requests(event)
            case Stopped():
                self._results.on_stopped(event)
            case StepFailed():
                self._results.on_step_failed(event)
            case Tick():
                self._state.table.fail_expired(self._state.now)
            case WorkerUp():
                self._on_worker_up(event)
            case WorkerLost():
                self._on_worker_lost()
            case BeginDrain():
                self._state.is_draining = True
            case Query():
                self._on_query(event)

    def _on_worker_up(self, event: WorkerUp) -> None:
        state = self._state
        self._on_worker_lost()
        config = state.config
        state.in_flight.start(event.epoch)
        state.kv.restart(event.page_count)
        state.lengths = LengthRules(state.context_length, state.kv.capacity_tokens, state.page_size)
        state.batch.restart(slots_in_force(config, event.max_slots, state.kv.capacity_tokens, event.is_cpu))
        state.chunk_tokens = chunk_tokens_in_force(config, event.is_cpu)
        self._intake.on_worker_up()

    def _on_worker_lost(self) -> None:
        state = self._state
        if state.in_flight.worker_epoch is None:
            return
        state.in_flight.stop()
        state.counters.worker_losses += 1
        self._results.requeue_all()
        state.kv.clear()

    def _on_query(self, ask: Query) -> None:
        state = self._state
        if ask.what == "config":
            body = msgspec.json.encode(self._effective_config())
        elif ask.what == "timeline":
            body = timeline_json(state, ask.argument)
        elif ask.what == "trace":
            body = trace_json(state)
        elif ask.what == "flush":
            body = msgspec.json.encode({"freed_tokens": state.kv.flush()})
        else:
            body = msgspec.json.encode({"error": f"unknown question {ask.what!r}"})
        state.delivery.put(ask.reply_to, QueryReply(ask.ask, body))

    def _effective_config(self) -> dict[str, object]:
        """Return every setting, with what was chosen for those left to the engine, and the ratio's constants."""
        state = self._state
        ratio = state.ratio
        return {
            **msgspec.structs.asdict(state.config),
            "max_running_requests": state.batch.max_slots,
            "chunked_prefill_size": state.chunk_tokens,
            "page_size": state.page_size,
            "kv_capacity_tokens": state.kv.capacity_tokens,
            "effective_new_token_ratio": {
                "initial": ratio.initial,
                "minimum": ratio.minimum,
                "decay": ratio.decay,
                "current": ratio.current,
            },
        }

    def next_deadline(self) -> float | None:
        """Return when a Tick is wanted, in the caller's time."""
        return self._state.table.next_deadline()

    def take_finished(self) -> list[Request]:
        """Return the requests that ended by themselves since the last call, for whoever records them.

        Nothing is kept until the first call, and then at most as many as timelines are.
        """
        return self._state.table.take_finished()

    def is_idle(self) -> bool:
        """Say whether nothing is held and nothing is in flight."""
        return self._state.table.is_empty and not self._state.in_flight.steps

    def audit(self) -> None:
        """Check every invariant by name; raises InvariantViolation with the state that breaks it."""
        audit(self._state)

    def snapshot(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return (gauges, counters) by metric name (MET-1, MET-2, MET-4)."""
        state = self._state
        kv = state.kv
        gauges: dict[str, float] = {
            "num_running_reqs": len(state.batch.running) + (state.batch.chunked is not None),
            "num_queue_reqs": len(state.queue.waiting),
            "new_token_ratio": state.ratio.current,
        }
        if kv.capacity_tokens:
            used = kv.capacity_tokens - kv.reachable_tokens()
            gauges["kv_capacity_tokens"] = kv.capacity_tokens
            gauges["kv_available_tokens"] = kv.pool.available_tokens
            gauges["kv_evictable_tokens"] = kv.tree.evictable_tokens
            gauges["kv_used_tokens"] = used
            gauges["token_usage"] = used / kv.capacity_tokens
            gauges["kv_protected_tokens"] = kv.tree.protected_tokens
        gauges["longest_decode_gap_s"] = self._steps.longest_gap_s
        counted = {name: float(getattr(state.counters, name)) for name in state.counters.__slots__}
        counted["prefill_tokens"] = float(state.queue.computed_tokens)
        counted["finished"] = float(state.table.finished_count)
        counted |= {f'requests_ended{{cause="{cause}"}}': float(n) for cause, n in state.table.ends_by_cause.items()}
        counted |= {f'passes_stopped{{reason="{reason}"}}': float(n) for reason, n in state.queue.stop_reasons.items()}
        return gauges, counted
