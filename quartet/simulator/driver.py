"""The virtual clock: hands arrivals and results to the scheduler in the order of their times.

The pipeline is the engine's: the scheduler issues steps ahead, the device begins each when the one before has ended,
and a result reaches the scheduler when its step ends. Frames take no time. Nothing is random and nothing is measured:
the same workload and settings give the same run.
"""

from collections import deque
from collections.abc import Sequence

import msgspec

from quartet.simulator.cost import StepCost
from quartet.simulator.device import SimulatedDevice
from quartet.simulator.prompts import EOS_ID, PromptMaker
from quartet.simulator.record import Run, Sample
from quartet.simulator.request import Workload
from quartet.wire.config import DEFAULT_SLOTS, SchedulerConfig
from quartet.wire.errors import QuartetError
from quartet.wire.frames import Failed, Open, Rejected, SamplingParams, Step, StepResult, Submit, Tokens
from quartet.wire.ids import Epoch, Rid
from scheduler_proc.core.events import Event, Tick, WorkerUp
from scheduler_proc.core.scheduler import Scheduler

RID_BYTES = 16
FOREVER = float("inf")


class SimulationError(QuartetError):
    """The scheduler rests although requests wait: a bug in it, or a setting that can never admit them."""


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """The engine that is simulated: what its worker would report, and what its steps cost."""

    cost: StepCost
    kv_tokens: int
    context_length: int
    page_size: int = 16
    max_slots: int = DEFAULT_SLOTS
    is_cpu: bool = False


def simulate(requests: Sequence[Workload], engine: Engine, config: SchedulerConfig) -> Run:
    """Run a workload to its end; returns what happened.

    Args:
        requests: in the order of arrival.
        engine: the engine's size and cost.
        config: scheduling settings, as the engine takes them.

    Raises:
        SimulationError: the scheduler rests although requests are alive.
    """
    return _Simulation(requests, engine, config).run()


class _Simulation:
    """One run in progress."""

    def __init__(self, requests: Sequence[Workload], engine: Engine, config: SchedulerConfig) -> None:
        self._requests = requests
        self._engine = engine
        self._scheduler = Scheduler(config, engine.page_size, engine.context_length, (EOS_ID,))
        self._record = Run(requests)
        self._device = SimulatedDevice(engine.cost, self._record)
        self._prompts = PromptMaker()
        self._in_flight: deque[tuple[float, StepResult]] = deque()
        self._handles: dict[int, int] = {}
        self._next = 0
        self._alive = 0

    def run(self) -> Run:
        """Turn the clock until every request has ended."""
        engine = self._engine
        self._handle(
            WorkerUp(Epoch(1), engine.kv_tokens // engine.page_size, engine.max_slots, engine.is_cpu),
            0.0,
        )
        while self._turn():
            pass
        if self._alive:
            gauges, _ = self._scheduler.snapshot()
            raise SimulationError(f"{self._alive} requests never end; the scheduler rests with {gauges}")
        self._record.counters = self._scheduler.snapshot()[1]
        return self._record

    def _turn(self) -> bool:
        """Do what comes next, a result before an arrival at the same time; False when nothing will."""
        result_s = self._in_flight[0][0] if self._in_flight else FOREVER
        arrival_s = self._requests[self._next].arrival_s if self._next < len(self._requests) else FOREVER
        deadline_s = self._scheduler.next_deadline()
        first_s = min(result_s, arrival_s)
        if deadline_s is not None and deadline_s <= first_s:
            self._handle(Tick(), deadline_s)
        elif result_s <= arrival_s and result_s < FOREVER:
            self._handle(self._in_flight.popleft()[1], result_s)
            self._sample(result_s)
        elif arrival_s < FOREVER:
            self._submit(arrival_s)
        else:
            return False
        return True

    def _submit(self, now: float) -> None:
        number = self._next
        request = self._requests[number]
        outcome = self._record.outcomes[number]
        outcome.arrival_s = now
        outcome.passes_at_arrival = len(self._record.admitting_passes)
        self._next += 1
        self._alive += 1
        # Greedy, with the number of the request where the device finds it again.
        params = SamplingParams(max_new_tokens=request.max_tokens, temperature=0.0, seed=number)
        frame = Submit(
            Rid(number.to_bytes(RID_BYTES, "big")),
            0,
            0,
            "api-0",
            "detok-0",
            self._prompts.make(request),
            b"",
            params,
            request.priority,
            request.tenant,
        )
        self._handle(frame, now)

    def _handle(self, event: Event, now: float) -> None:
        for _, frame in self._scheduler.handle(event, now):
            match frame:
                case Step():
                    self._note_admissions(frame)
                    self._in_flight.append(self._device.launch(frame, now))
                case Tokens():
                    for end in frame.ends:
                        self._end(self._handles.pop(end.handle), end.reason, now, end.count)
                case Open():
                    self._handles[frame.handle] = int.from_bytes(frame.rid, "big")
                case Rejected():
                    number = int.from_bytes(frame.rid, "big")
                    self._end(number, frame.code, now, 0)
                    self._record.outcomes[number].is_rejected = True
                case Failed():
                    self._end(int.from_bytes(frame.rid, "big"), frame.code, now, 0)
                case _:
                    pass

    def _note_admissions(self, step: Step) -> None:
        record = self._record
        fresh = [enter.params.seed for enter in step.enter if record.outcomes[enter.params.seed].admissions == 0]
        if fresh:
            for number in fresh:
                record.outcomes[number].passes_at_admission = len(record.admitting_passes)
            record.admission_order += fresh
            record.admitting_passes.append(max(fresh))

    def _end(self, number: int, ending: str, now: float, count: int) -> None:
        outcome = self._record.outcomes[number]
        if outcome.ending:
            raise SimulationError(f"request {number} ended twice: {outcome.ending}, {ending}")
        outcome.ending, outcome.end_s, outcome.output_tokens = ending, now, count
        if count:
            outcome.last_token_s = now
        self._alive -= 1
        self._record.end_s = max(self._record.end_s, now)

    def _sample(self, now: float) -> None:
        gauges, _ = self._scheduler.snapshot()
        self._record.timeline.add(
            Sample(
                now,
                int(gauges["num_queue_reqs"]),
                int(gauges["num_running_reqs"]),
                int(gauges["kv_used_tokens"]),
                gauges["new_token_ratio"],
            )
        )
