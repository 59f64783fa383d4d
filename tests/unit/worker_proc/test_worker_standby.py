"""A standby worker: what it does before it gets a place, what after, and how it ends without one."""

import asyncio
import threading
from typing import Any

import pytest
from executor_rig import WORKER, WorkerContext, entering, settings

from quartet.runtime.clock import ManualClock
from quartet.wire.config import Config
from quartet.wire.errors import ModelError
from quartet.wire.frames import SchedulerHello, StepResult, WorkerHello
from quartet.wire.ids import Epoch, Role
from tests.support.fake_context import running
from worker_proc.executor import Executor
from worker_proc.process import main
from worker_proc.simulated import SimulatedRunner


class LoggedRunner(SimulatedRunner):
    """A simulated runner that logs what comes before the first step."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, ManualClock(), lambda seconds: None)
        self.log: list[str] = []

    def load_kernels(self) -> None:
        self.log.append("load kernels")

    def count_pages(self) -> None:
        self.log.append("count pages")

    def allocate(self, page_count: int) -> None:
        self.log.append(f"allocate {page_count}")
        super().allocate(page_count)


class StandbyContext(WorkerContext):
    """The context of a standby, which counts the links that are bound."""

    def __init__(self) -> None:
        super().__init__(settings())
        self.role, self.epoch = Role.STANDBY, Epoch(1)
        self.links = 0

    def blocking_link(self, inbound: Any) -> Any:
        self.links += 1
        return super().blocking_link(inbound)

    def promote(self) -> None:
        """Do what the supervisor does when the worker has died."""
        self.role, self.epoch, self.is_promoted, self.facts = Role.WORKER, WORKER, True, None


def test_a_standby_loads_kernels_before_and_counts_memory_after_it_has_a_place() -> None:
    context = StandbyContext()
    runner = LoggedRunner(context.config)

    def hold() -> None:
        assert runner.log == ["load kernels"] and context.links == 0
        context.promote()

    executor = Executor(context, lambda: runner, lambda facts: None, hold)
    executor.load()
    assert runner.log == ["load kernels", "count pages"] and context.links == 1
    context.show_scheduler(1)
    context.arrive(SchedulerHello(WORKER, 70))
    for _ in range(3):
        executor.poll_once()
    hellos = [frame for frame in context.link.sent if isinstance(frame, WorkerHello)]
    assert [(hello.is_ready, hello.page_count) for hello in hellos] == [(False, 100), (True, 70)]
    assert runner.log[-1] == "allocate 70"
    assert [phase for phase, _ in context.phases][:3] == ["loading weights", "standing by", "counting pages"]


async def test_a_standby_is_ready_twice_and_serves_under_the_epoch_of_its_place() -> None:
    context = StandbyContext()
    async with running(main, context, 10):
        assert context.facts == {} and context.links == 0
        context.show_scheduler(1)
        context.arrive(SchedulerHello(WORKER, 100))
        context.arrive(entering(1))
        await asyncio.sleep(0.05)
        assert not context.link.sent, "a standby speaks to no scheduler"
        context.promote()
        async with asyncio.timeout(10):
            while context.facts is None or not any(isinstance(one, StepResult) for one in context.link.sent):
                await asyncio.sleep(0.005)
        assert context.facts["kv_tokens"] == 400 and float(context.facts["takeover_s"]) > 0
        assert context.metrics().gauges['worker_start_up_seconds{phase="takeover"}'] > 0


async def test_a_standby_without_a_place_ends_with_the_drain() -> None:
    context = StandbyContext()
    async with running(main, context, 10) as task:
        pass
    assert task.done() and context.links == 0


async def test_a_standby_that_cannot_load_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ModelError("no such model")

    monkeypatch.setattr("worker_proc.process.make_runner", fail)
    with pytest.raises(ModelError, match="no such model"):
        async with running(main, StandbyContext(), 10):
            pass


async def test_what_goes_wrong_after_the_promotion_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    class Broken(LoggedRunner):
        def count_pages(self) -> None:
            failed.set()
            raise RuntimeError("no memory")

    context = StandbyContext()
    monkeypatch.setattr("worker_proc.process.make_runner", lambda *_: Broken(context.config))
    with pytest.raises(RuntimeError, match="no memory"):
        async with running(main, context, 10) as task:
            context.promote()
            await asyncio.wait_for(task, 10)
    assert failed.is_set()
