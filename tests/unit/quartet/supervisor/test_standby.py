"""When a standby is started and which child becomes the worker, on slots with stub children."""

from typing import cast

from quartet.supervisor.plan import plan_processes
from quartet.supervisor.restart import RestartPolicy
from quartet.supervisor.slot import ProcessSlot
from quartet.supervisor.spawn import Child, CommonEnd
from quartet.supervisor.standby import Standby
from quartet.wire.config import Config, ServerConfig
from quartet.wire.frames import LastEnd
from quartet.wire.ids import Role

SILENT_S = 3.0


class StubChild:
    """What the rules look at."""

    def __init__(self, is_ready: bool = True, is_killed: bool = False) -> None:
        self.is_ready, self.is_killed = is_ready, is_killed
        self.ends: list[CommonEnd] = []

    def kill_dependent(self, end: CommonEnd) -> None:
        self.ends.append(end)

    def can_take_over(self, now: float) -> bool:
        return self.is_ready and not self.is_killed and now < SILENT_S


class Launch:
    """The slots of a launch with a standby, by role."""

    def __init__(self) -> None:
        plan = plan_processes(Config(server=ServerConfig(standby=True)))
        self.slots = {spec.role: ProcessSlot(spec, RestartPolicy(5)) for spec in plan}
        self.standby = Standby([*self.slots.values()])

    def put(self, role: Role, child: StubChild | None) -> Child | None:
        self.slots[role].child = cast("Child | None", child)
        return self.slots[role].child


def test_a_standby_is_due_once_the_worker_serves() -> None:
    launch = Launch()
    assert launch.standby.due(0.0) is None
    launch.put(Role.WORKER, StubChild(is_ready=False))
    assert launch.standby.due(0.0) is None, "the worker needs the processor"
    launch.put(Role.WORKER, StubChild())
    assert launch.standby.due(0.0) is launch.slots[Role.STANDBY]
    launch.put(Role.STANDBY, StubChild(is_ready=False))
    assert launch.standby.due(0.0) is None, "there is one"


def test_no_standby_is_due_while_the_worker_is_being_killed() -> None:
    launch = Launch()
    launch.put(Role.WORKER, StubChild(is_killed=True))
    assert launch.standby.due(0.0) is None


def test_a_standby_that_has_died_comes_back_after_its_delay_or_not_at_all() -> None:
    launch = Launch()
    launch.put(Role.WORKER, StubChild())
    launch.standby.on_death(2.0, now=10.0)
    assert launch.standby.due(11.9) is None
    assert launch.standby.due(12.0) is not None
    launch.standby.on_death(None, now=12.0)
    assert launch.standby.due(1e9) is None


def test_a_ready_standby_takes_the_workers_place_once() -> None:
    launch = Launch()
    child = launch.put(Role.STANDBY, StubChild())
    worker = launch.slots[Role.WORKER]
    assert launch.standby.take(worker, 0.0) is child
    assert launch.slots[Role.STANDBY].child is None
    assert launch.standby.take(worker, 0.0) is None


def test_no_other_process_is_replaced_by_it() -> None:
    launch = Launch()
    launch.put(Role.STANDBY, StubChild())
    for role, slot in launch.slots.items():
        if role is not Role.WORKER:
            assert launch.standby.take(slot, 0.0) is None
    assert launch.slots[Role.STANDBY].child is not None


def test_a_standby_that_is_loading_or_killed_is_not_taken() -> None:
    launch = Launch()
    for child in (StubChild(is_ready=False), StubChild(is_killed=True), None):
        kept = launch.put(Role.STANDBY, child)
        assert launch.standby.take(launch.slots[Role.WORKER], 0.0) is None
        assert launch.slots[Role.STANDBY].child is kept


def test_a_standby_without_heartbeats_is_not_taken() -> None:
    launch = Launch()
    launch.put(Role.STANDBY, StubChild())
    assert launch.standby.take(launch.slots[Role.WORKER], SILENT_S) is None
    assert launch.standby.take(launch.slots[Role.WORKER], 0.0) is not None


def test_the_death_of_the_holder_is_that_of_all_who_map_its_memory() -> None:
    launch = Launch()
    launch.standby.on_exit(launch.slots[Role.WEIGHTS], 1)
    worker, standby = StubChild(), StubChild(is_ready=False)
    launch.put(Role.WORKER, worker)
    launch.put(Role.STANDBY, standby)
    launch.standby.on_exit(launch.slots[Role.WORKER], 1)
    launch.standby.on_exit(launch.slots[Role.STANDBY], 1)
    assert not worker.ends and not standby.ends
    launch.standby.on_exit(launch.slots[Role.WEIGHTS], 1)
    assert worker.ends == standby.ends == [CommonEnd("weights-0", LastEnd.KILLED, 1, True)]


def test_without_a_standby_nothing_is_ever_due() -> None:
    slots = [ProcessSlot(spec, RestartPolicy(5)) for spec in plan_processes(Config())]
    standby = Standby(slots)
    assert standby.due(0.0) is None
    assert all(standby.take(slot, 0.0) is None for slot in slots)


def test_a_launch_is_complete_without_its_standby() -> None:
    launch = Launch()
    for role in launch.slots:
        if role is not Role.STANDBY:
            launch.put(role, StubChild())
    assert all(slot.is_up for slot in launch.slots.values())
    launch.put(Role.WEIGHTS, None)
    assert not all(slot.is_up for slot in launch.slots.values())
