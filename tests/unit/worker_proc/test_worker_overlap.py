"""The executor with two steps in flight: what is launched, waited for and sent, and in which order."""

from executor_rig import WORKER, Rig, step

from quartet.wire.frames import (
    SchedulerHello,
    Step,
    StepResult,
    StepTimes,
    WorkerHello,
)
from quartet.wire.ids import Epoch
from tests.support.grammars import tiny_tokenizer
from worker_proc.contract import Capacity
from worker_proc.executor import FRAME_POLL_S, NEXT_STEP_POLL_S
from worker_proc.grammar.compiler import GrammarCompiler


class SlowRunner:
    """A runner that logs launches and waits; its steps are done once `done` is set or after a few polls."""

    capacity = Capacity(4, 100, 4, 96, 256, "cpu")
    late_compiles = 0
    is_prepared = True

    def __init__(self) -> None:
        self.grammars = GrammarCompiler(tiny_tokenizer)
        self.log: list[str] = []
        self.done = False

    def facts(self) -> dict[str, str | int | float]:
        return {}

    def load_kernels(self) -> None:
        self.log.append("load kernels")

    def count_pages(self) -> None:
        self.log.append("count pages")

    def prepare_next(self) -> bool:
        return False

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
