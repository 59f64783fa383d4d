"""The executor and the actor over an in-memory link: hellos, stale frames, failures, two steps in flight."""

import asyncio
import collections
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tiny_models import TINY, make_weights, resolved, write_folder

from quartet.runtime.clock import ManualClock
from quartet.wire.codec import Source
from quartet.wire.config import Config, SchedulerConfig, WorkerConfig
from quartet.wire.errors import ModelError
from quartet.wire.frames import (
    Chunk,
    Enter,
    ProcessStatus,
    ProcessTable,
    SamplingParams,
    SchedulerHello,
    Step,
    StepFailed,
    StepResult,
    StepTimes,
    WorkerHello,
    pack_ids,
    unpack_ids,
)
from quartet.wire.ids import Epoch, Role
from tests.support.fake_context import FakeContext, running
from worker_proc.contract import Capacity, DeviceLostError, OutOfMemoryError
from worker_proc.executor import FRAME_POLL_S, IDLE_POLL_S, NEXT_STEP_POLL_S, Executor
from worker_proc.process import main
from worker_proc.simulated import SimulatedRunner

WORKER = Epoch(4)


class MemoryLink:
    """In-memory BlockingLink: a queue of frames in, a list of frames out. Without frames `recv` advances the clock."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.inbox: collections.deque[tuple[Source, Any]] = collections.deque()
        self.sent: list[msgspec.Struct] = []
        self.is_idle = self.is_loaded = False

    def recv(self, timeout_s: float) -> tuple[Source, Any] | None:
        if self.inbox:
            return self.inbox.popleft()
        self.clock.advance(timeout_s)
        self.is_idle = timeout_s >= IDLE_POLL_S
        return None

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        assert destination == "scheduler-0"
        self.sent.append(frame)


class WorkerContext(FakeContext):
    """A worker's context whose link is in memory."""

    def __init__(self, config: Config) -> None:
        super().__init__(Role.WORKER, config, ManualClock())
        self.epoch = WORKER
        assert isinstance(self.clock, ManualClock)
        self.manual_clock = self.clock
        self.link = MemoryLink(self.manual_clock)

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        raise AssertionError("the worker sends through its link")

    def blocking_link(self, inbound: Any) -> MemoryLink:
        return self.link

    def show_scheduler(self, epoch: int) -> None:
        self.process_table = ProcessTable(
            [ProcessStatus(Role.SCHEDULER, 0, 1, Epoch(epoch), "ready", "idle", 0)], False
        )

    def arrive(self, frame: msgspec.Struct, epoch: int = 1) -> None:
        self.link.inbox.append((Source(Role.SCHEDULER, 0, Epoch(epoch)), frame))


def settings(step_ms: float = 0.0) -> Config:
    return Config(
        worker=WorkerConfig(page_size=4, max_total_tokens=400, simulated_worker=True, simulated_step_ms=step_ms),
        scheduler=SchedulerConfig(max_running_requests=4),
        resolved=resolved(Path(), TINY),
    )


def step(number: int, worker: int = WORKER, decode: bool = True, **changes: Any) -> Step:
    values = {"release": b"", "enter": [], "pages": b"", "chunks": [], **changes}
    return Step(worker_epoch=Epoch(worker), step=number, decode=decode, **values)


def entering(number: int, slot: int = 0) -> Step:
    enter = Enter(slot, 1, pack_ids([3, 4, 5]), 3, 0, pack_ids([slot * 5 + i for i in (1, 2, 3)]), SamplingParams(), 0)
    return step(number, enter=[enter], chunks=[Chunk(slot, 3, True)])


class Rig:
    """An executor on a simulated runner, polled by the test."""

    def __init__(self, step_ms: float = 0.0) -> None:
        self.context = WorkerContext(settings(step_ms))
        self.ready: list[dict[str, Any]] = []
        self.runner = SimulatedRunner(self.context.config, self.context.clock, self.context.manual_clock.advance)
        self.executor = Executor(self.context, lambda: self.runner, self.ready.append)

    def run(self) -> list[msgspec.Struct]:
        """Poll until the executor is idle; return the frames it sent."""
        link = self.context.link
        if not link.is_loaded:
            link.is_loaded = True
            self.executor.load()
        link.is_idle = False
        while not link.is_idle:
            self.executor.poll_once()
        sent, link.sent = link.sent, []
        return sent

    def connect(self, epoch: int = 1) -> None:
        self.context.show_scheduler(epoch)
        (hello,) = self.run()
        assert isinstance(hello, WorkerHello)
        self.context.arrive(SchedulerHello(WORKER, 100), epoch)
        (ready,) = self.run()
        assert isinstance(ready, WorkerHello) and ready.is_ready


def test_hello_is_repeated_until_answered_and_ready_comes_last() -> None:
    rig = Rig()
    assert rig.run() == []
    rig.context.show_scheduler(1)
    (hello,) = rig.run()
    assert isinstance(hello, WorkerHello)
    assert (hello.scheduler_epoch, hello.is_ready, hello.page_count, hello.max_slots) == (1, False, 100, 4)
    rig.context.manual_clock.advance(1.0)
    assert rig.run() == [hello]
    assert not rig.ready
    rig.context.arrive(SchedulerHello(WORKER, 90))
    (ready,) = rig.run()
    assert (ready.is_ready, ready.page_count) == (True, 90)
    assert rig.ready == [rig.runner.facts()]
    rig.context.manual_clock.advance(10.0)
    assert rig.run() == [ready], "the last hello may have been lost"
    rig.context.arrive(entering(1))
    rig.run()
    rig.context.manual_clock.advance(10.0)
    assert rig.run() == []
    assert [phase for phase, _ in rig.context.phases] == [
        "loading weights",
        "idle",
        "warming up",
        "idle",
        "step",
        "idle",
    ]


def test_duplicate_frames_are_handled_once() -> None:
    rig = Rig()
    rig.connect()
    rig.context.arrive(SchedulerHello(WORKER, 100))
    assert rig.run() == []
    rig.context.arrive(entering(1))
    (result,) = rig.run()
    rig.context.arrive(entering(1))
    rig.context.arrive(SchedulerHello(WORKER, 100))
    assert rig.run() == []
    rig.context.arrive(step(2))
    (result,) = rig.run()
    assert isinstance(result, StepResult) and len(result.slots) == 4


def test_a_new_scheduler_finds_no_slots_and_frames_of_the_old_one_are_stale() -> None:
    rig = Rig()
    rig.connect(epoch=1)
    rig.context.arrive(entering(1))
    rig.run()
    rig.connect(epoch=2)
    rig.context.arrive(step(7), epoch=1)
    rig.context.arrive(SchedulerHello(WORKER, 100), epoch=1)
    assert rig.run() == []
    assert rig.executor.counters.stale_frames == 2
    rig.context.arrive(step(1), epoch=2)
    (result,) = rig.run()
    assert isinstance(result, StepResult)
    assert (result.scheduler_epoch, result.slots) == (2, b"")


def test_frames_for_another_incarnation_of_the_worker_are_dropped() -> None:
    rig = Rig()
    rig.context.show_scheduler(1)
    rig.run()
    rig.context.arrive(SchedulerHello(Epoch(3), 100))
    assert rig.run() == []
    rig.context.arrive(SchedulerHello(WORKER, 100))
    rig.run()
    rig.context.arrive(step(1, worker=3))
    assert rig.run() == []
    assert rig.executor.counters.stale_frames == 2


def test_another_page_count_than_the_allocated_one_ends_the_worker() -> None:
    rig = Rig()
    rig.connect()
    rig.context.show_scheduler(2)
    rig.context.arrive(SchedulerHello(WORKER, 50), epoch=2)
    with pytest.raises(RuntimeError, match="100 pages are allocated, the scheduler wants 50"):
        rig.run()


def test_a_contradictory_step_fails_and_the_worker_continues() -> None:
    rig = Rig()
    rig.connect()
    rig.context.arrive(entering(1))
    rig.context.arrive(step(2, chunks=[Chunk(3, 1, True)], decode=False))
    rig.context.arrive(step(3))
    first, failed, third = rig.run()
    assert isinstance(failed, StepFailed)
    assert (failed.step, failed.kind, failed.scheduler_epoch) == (2, "error", 1)
    assert "slot 3 is not in prefill" in failed.message
    assert isinstance(first, StepResult) and isinstance(third, StepResult)
    assert unpack_ids(third.slots) == [0]


def test_running_out_of_memory_has_its_own_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.connect()

    def launch(frame: Step, epoch: Epoch) -> Any:
        raise OutOfMemoryError("no 7 GiB")

    monkeypatch.setattr(rig.runner, "launch", launch)
    rig.context.arrive(step(1))
    (failed,) = rig.run()
    assert isinstance(failed, StepFailed)
    assert (failed.kind, failed.message) == ("oom", "OutOfMemoryError: no 7 GiB")


def test_a_lost_device_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.connect()

    def launch(frame: Step, epoch: Epoch) -> Any:
        raise DeviceLostError("an illegal memory access was encountered")

    monkeypatch.setattr(rig.runner, "launch", launch)
    rig.context.arrive(step(1))
    with pytest.raises(DeviceLostError):
        rig.run()


class SlowRunner:
    """A runner that logs launches and waits; its steps are done once `done` is set or after a few polls."""

    capacity = Capacity(4, 100, 4, 96, 256, "cpu")
    late_compiles = 0

    def __init__(self) -> None:
        self.log: list[str] = []
        self.done = False

    def facts(self) -> dict[str, str | int | float]:
        return {}

    def allocate(self, page_count: int) -> None:
        self.log.append(f"allocate {page_count}")

    def reset(self) -> None:
        self.log.append("reset")

    def launch(self, frame: Step, scheduler_epoch: Epoch) -> "SlowRunner.InFlight":
        self.log.append(f"launch {frame.step}")
        return SlowRunner.InFlight(self, frame.step)

    class InFlight:
        def __init__(self, runner: "SlowRunner", number: int) -> None:
            self.runner, self.number, self.polls = runner, number, 0

        def is_done(self) -> bool:
            self.polls += 1
            return self.runner.done or self.polls > 3

        def wait(self) -> StepResult:
            self.runner.log.append(f"wait {self.number}")
            return StepResult(Epoch(1), self.number, b"", b"", b"", [], [], StepTimes(0, 0, 0, 0))


def slow_rig() -> tuple[Rig, SlowRunner]:
    rig, runner = Rig(), SlowRunner()
    rig.runner = runner  # type: ignore[assignment]
    rig.connect()
    assert runner.log == ["reset", "allocate 100"]
    runner.log.clear()
    return rig, runner


def test_the_next_step_is_launched_before_the_one_before_is_waited_for() -> None:
    rig, runner = slow_rig()
    for number in (1, 2, 3):
        rig.context.arrive(step(number))
    assert [frame.step for frame in rig.run()] == [1, 2, 3]
    assert runner.log == ["launch 1", "launch 2", "wait 1", "launch 3", "wait 2", "wait 3"]


def test_a_result_that_is_done_is_not_held_back() -> None:
    rig, runner = slow_rig()
    runner.done = True
    for number in (1, 2):
        rig.context.arrive(step(number))
    rig.run()
    assert runner.log == ["launch 1", "wait 1", "launch 2", "wait 2"]


def test_a_step_that_arrives_while_another_runs_is_launched_behind_it() -> None:
    rig, runner = slow_rig()
    rig.context.arrive(step(1))
    for _ in range(2):
        rig.executor.poll_once()
    assert runner.log == ["launch 1"]
    rig.context.arrive(step(2))
    rig.executor.poll_once()
    assert runner.log == ["launch 1", "launch 2", "wait 1"]


def test_the_link_sleeps_while_the_end_of_a_step_is_not_due() -> None:
    rig, _ = slow_rig()
    rig.context.arrive(step(1))
    rig.executor.poll_once()
    rig.context.manual_clock.advance(0.010)
    rig.run()
    rig.context.arrive(step(2))
    rig.executor.poll_once()
    waits = []
    for _ in range(3):
        before = rig.context.clock.now()
        rig.executor.poll_once()
        waits.append(round(rig.context.clock.now() - before, 4))
        rig.context.manual_clock.advance(0.004)
    assert waits == [FRAME_POLL_S, FRAME_POLL_S, NEXT_STEP_POLL_S]


def test_a_new_scheduler_gets_no_results_of_the_old_ones_steps() -> None:
    rig, runner = slow_rig()
    rig.context.show_scheduler(2)
    rig.context.arrive(step(1), epoch=1)
    rig.context.arrive(SchedulerHello(WORKER, 100), epoch=2)
    sent = rig.run()
    assert [type(frame) for frame in sent] == [WorkerHello, WorkerHello]
    assert runner.log == ["launch 1", "wait 1", "reset", "allocate 100"]


def test_steps_are_declared_with_their_deadline_and_count_as_progress() -> None:
    rig = Rig()
    rig.connect()
    rig.context.phases.clear()
    before = rig.context.steps_of_progress
    rig.context.arrive(entering(1))
    rig.run()
    assert rig.context.phases == [("step", 60.0), ("idle", 0.0)]
    assert rig.context.steps_of_progress > before
    assert rig.executor.counters.sampled_tokens == 1


async def test_the_process_is_ready_when_the_scheduler_has_been_answered() -> None:
    context = WorkerContext(settings())
    context.show_scheduler(1)
    context.arrive(SchedulerHello(WORKER, 100))
    context.arrive(entering(1))
    async with running(main, context, 10):
        assert context.facts is not None and context.facts["kv_tokens"] == 400
        while context.metrics().counters["worker_sampled_tokens"] < 1:
            await asyncio.sleep(0.005)
    assert context.metrics().counters["worker_steps"] == 1


async def test_a_model_that_cannot_be_loaded_fails_the_start(tmp_path: Path) -> None:
    config = Config(worker=WorkerConfig(device="cpu"), resolved=resolved(tmp_path, TINY))
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        async with running(main, WorkerContext(config)):
            pass


async def test_metrics_say_how_long_each_phase_of_the_start_took(tmp_path: Path) -> None:
    write_folder(tmp_path, TINY, make_weights(TINY))
    worker = WorkerConfig(device="cpu", max_total_tokens=400, page_size=4)
    context = WorkerContext(Config(worker=worker, resolved=resolved(tmp_path, TINY)))
    context.show_scheduler(1)
    context.arrive(SchedulerHello(WORKER, 100))
    async with running(main, context):
        phases = {name.removeprefix("worker_start_up_"): seconds for name, seconds in context.metrics().gauges.items()}
    names = ("imports", "load", "kernels", "warm_up", "graphs")
    assert set(phases) == {f"{name}_seconds" for name in names} and min(phases.values()) >= 0.0
    assert phases["load_seconds"] > 0.0 and phases["warm_up_seconds"] > 0.0
