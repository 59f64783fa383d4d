"""The ranks of a worker start with one epoch and end together, on slots with stub children."""

import signal
from typing import Any, cast

import pytest

from quartet.supervisor.plan import DRAIN_ORDER, plan_processes
from quartet.supervisor.ranks import Ranks
from quartet.supervisor.restart import RestartPolicy
from quartet.supervisor.slot import ProcessSlot
from quartet.supervisor.spawn import Child, CommonEnd
from quartet.wire.config import Config, ServerConfig, WorkerConfig
from quartet.wire.frames import LastEnd
from quartet.wire.ids import Role

SIGKILL = -int(signal.SIGKILL)


class StubChild:
    """What the rules look at and do."""

    def __init__(self, how: LastEnd = LastEnd.KILLED, was_useful: bool = True) -> None:
        self.how, self.was_useful = how, was_useful
        self.ends: list[CommonEnd] = []

    def last_end(self, code: int) -> LastEnd:
        return self.how

    def kill_dependent(self, end: CommonEnd) -> None:
        self.ends.append(end)


class Launch:
    """A launch with three ranks and two detokenizers, all of them started."""

    def __init__(self) -> None:
        config = Config(worker=WorkerConfig(tp_size=3), server=ServerConfig(detok_procs=2))
        self.slots = [ProcessSlot(spec, RestartPolicy(2)) for spec in plan_processes(config)]
        self.ranks = Ranks(self.slots)
        self.workers = [slot for slot in self.slots if slot.spec.role is Role.WORKER]
        for slot in self.slots:
            self.start(slot)

    def start(self, slot: ProcessSlot) -> StubChild:
        slot.epoch = self.ranks.next_epoch(slot)
        child = StubChild()
        slot.child = cast("Child", child)
        return child

    def end(self, slot: ProcessSlot, code: int = SIGKILL, **how: Any) -> None:
        """Have the child of a slot end, as the supervisor sees it."""
        slot.child = None
        self.ranks.on_exit(slot, cast("Child", StubChild(**how)), code)

    def epochs(self) -> list[int]:
        return [slot.epoch for slot in self.workers]


@pytest.fixture
def launch() -> Launch:
    return Launch()


def test_the_plan_has_a_process_for_each_rank_and_one_without_the_setting() -> None:
    names = [spec.name for spec in plan_processes(Config(worker=WorkerConfig(tp_size=3)))]
    assert names[:3] == ["worker-0", "worker-1", "worker-2"]
    assert [spec.name for spec in plan_processes(Config()) if spec.role is Role.WORKER] == ["worker-0"]
    assert Role.WORKER in DRAIN_ORDER


def test_all_start_with_one_epoch(launch: Launch) -> None:
    assert launch.epochs() == [1, 1, 1]


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_the_death_of_a_rank_is_that_of_all(launch: Launch, dead: int) -> None:
    launch.end(launch.workers[dead], -int(signal.SIGSEGV), how=LastEnd.CRASHED, was_useful=False)
    end = CommonEnd(f"worker-{dead}", LastEnd.CRASHED, -int(signal.SIGSEGV), False)
    others = [cast(StubChild, slot.child) for slot in launch.workers if slot.child is not None]
    assert len(others) == 2 and all(one.ends == [end] for one in others)
    rest = [cast(StubChild, slot.child) for slot in launch.slots if slot.spec.role is not Role.WORKER]
    assert len(rest) == 5 and not any(one.ends for one in rest)


def test_other_processes_die_alone_and_have_epochs_of_their_own(launch: Launch) -> None:
    detok = next(slot for slot in launch.slots if slot.spec.role is Role.DETOK)
    launch.end(detok)
    launch.start(detok)
    assert detok.epoch == 2 and [slot.epoch for slot in launch.slots if slot.spec.role is Role.DETOK] == [2, 1]
    assert not any(cast(StubChild, slot.child).ends for slot in launch.slots)


def test_a_rank_that_is_started_again_survives_the_end_of_those_that_were_killed_with_it(launch: Launch) -> None:
    first, second, third = launch.workers
    launch.end(second)
    again = launch.start(second)
    for slot in (first, third):
        launch.end(slot)
        launch.start(slot)
    assert not again.ends and launch.epochs() == [2, 2, 2]


def test_ranks_find_each_other_though_one_dies_again_before_another_has_ended(launch: Launch) -> None:
    first, second, third = launch.workers
    launch.end(second)
    launch.start(second)
    launch.end(second)
    launch.start(second)
    for slot in (first, third):
        launch.end(slot)
        launch.start(slot)
    assert launch.epochs() == [3, 3, 3]
    assert not any(cast(StubChild, slot.child).ends for slot in launch.workers)


def test_a_death_that_is_pinned_on_a_request_counts_for_no_rank(launch: Launch) -> None:
    for epoch in (1, 2, 3, 4):
        for slot in launch.workers:
            assert slot.policy.on_death(float(epoch), epoch, was_useful=False) is not None
        for slot in launch.ranks.of(Role.WORKER, 0):
            slot.policy.forgive(epoch)
    assert launch.ranks.of(Role.DETOK, 1) == [launch.slots[-1]]
