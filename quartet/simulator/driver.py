"""A simulation: the scheduler's own core on a pump with a virtual clock, between a workload and a simulated device.

The pipeline is the engine's: the scheduler issues steps ahead, the device begins each when the one before has ended,
and a result reaches the scheduler when its step ends. Frames take no time. Nothing is random and nothing is measured:
the same workload and settings give the same run.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from quartet.runtime.clock import ManualClock
from quartet.runtime.core import Core, Sent
from quartet.runtime.pump import Pump
from quartet.simulator.device import DeviceCore, SimulatedDevice
from quartet.simulator.prompts import EOS_ID
from quartet.simulator.record import Run, Sample
from quartet.simulator.request import Workload
from quartet.simulator.workload import SimulationError, WorkloadCore
from quartet.wire.codec import Source
from quartet.wire.config import DEFAULT_SLOTS, Config, ResolvedModel, SchedulerConfig, WorkerConfig
from quartet.wire.frames import ProcessStatus, ProcessTable, StepResult, WorkerHello
from quartet.wire.ids import Epoch, Role, process_name
from scheduler_proc.core.step_cost import StepCost
from scheduler_proc.scheduler_core import SchedulerCore

__all__ = ["SimulatedEngine", "SimulationError", "simulate"]

EPOCH = Epoch(1)
VOCAB_SIZE = 1
"""Not looked at: prompts are ids already."""


class SimulatedEngine(msgspec.Struct, frozen=True, kw_only=True):
    """The engine that is simulated: what its worker would report (`mixed_tokens`: see WorkerHello), and what its steps
    cost. With `checkpoints` of 0 and more its model has states, and as many copies of them."""

    cost: StepCost
    kv_tokens: int
    context_length: int
    page_size: int = 16
    max_slots: int = DEFAULT_SLOTS
    is_cpu: bool = False
    mixed_tokens: int = 0
    checkpoints: int = -1


def simulate(requests: Sequence[Workload], engine: SimulatedEngine, config: SchedulerConfig) -> Run:
    """Run a workload to its end; returns what happened.

    Args:
        requests: in the order of arrival.
        engine: the engine's size and cost.
        config: scheduling settings, as the engine takes them.

    Raises:
        SimulationError: the scheduler rests although requests are alive.
    """
    record = Run(requests)
    scheduler = SampledScheduler(_config(engine, config), record)
    client = WorkloadCore(requests, record)
    device = DeviceCore(SimulatedDevice(engine.cost, record), _hello(engine), record)
    clock = ManualClock()
    pump = Pump(clock)
    # At one moment a deadline comes before a result, and a result before an arrival.
    cores: list[tuple[Role, Core]] = [
        (Role.SCHEDULER, scheduler),
        (Role.WORKER, device),
        (Role.API, client),
        (Role.DETOK, client),
    ]
    for role, core in cores:
        pump.add(process_name(role, 0), Source(role, 0, EPOCH), core)
    pump.announce(ProcessTable([ProcessStatus(role, 0, 0, EPOCH, "ready", "", 0) for role, _ in cores], False))
    pump.run(clock.advance_to)
    if client.alive:
        gauges, _ = scheduler.metrics()
        raise SimulationError(f"{client.alive} requests never end; the scheduler rests with {gauges}")
    record.counters = dict(scheduler.metrics().counters)
    return record


class SampledScheduler(SchedulerCore):
    """The scheduler's core; a sample of its state is taken after each result."""

    def __init__(self, config: Config, record: Run) -> None:
        super().__init__(config, EPOCH)
        self._record = record

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        """Take one frame."""
        sent = super().handle(source, frame, now)
        for request in self.scheduler.take_finished():
            number = int.from_bytes(request.rid, "big")
            self._record.outcomes[number].parts = request.timeline.parts(now)
        if isinstance(frame, StepResult):
            gauges, _ = self.metrics()
            tenants = self.scheduler.queue.tenants
            if tenants is not None:
                self._record.largest_service_gap = max(self._record.largest_service_gap, tenants.largest_gap(now))
            self._record.timeline.add(
                Sample(
                    now,
                    int(gauges["num_queue_reqs"]),
                    int(gauges["num_running_reqs"]),
                    int(gauges["kv_used_tokens"]),
                    gauges["new_token_ratio"],
                )
            )
        return sent


def _hello(engine: SimulatedEngine) -> WorkerHello:
    """Return what the engine's worker reports of itself."""
    return WorkerHello(
        scheduler_epoch=EPOCH,
        is_ready=False,
        page_size=engine.page_size,
        page_count=engine.kv_tokens // engine.page_size,
        max_slots=engine.max_slots,
        vocab_size=VOCAB_SIZE,
        context_length=engine.context_length,
        device="cpu" if engine.is_cpu else "simulated",
        mixed_tokens=engine.mixed_tokens,
        has_states=engine.checkpoints >= 0,
        checkpoints=max(0, engine.checkpoints),
    )


def _config(engine: SimulatedEngine, config: SchedulerConfig) -> Config:
    """Return the configuration of a launch with that engine."""
    model = ResolvedModel(
        folder="",
        name="",
        architecture="",
        vocab_size=VOCAB_SIZE,
        context_length=engine.context_length,
        eos_token_ids=(EOS_ID,),
    )
    return Config(scheduler=config, worker=WorkerConfig(page_size=engine.page_size), resolved=model)
