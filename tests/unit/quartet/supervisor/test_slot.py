"""A process's row of the table, through deaths and starts."""

from types import SimpleNamespace
from typing import Any

import pytest

from quartet.supervisor.error_output import cause_of_end
from quartet.supervisor.liveness import START_TIMEOUT_S, UNRESPONSIVE_S, Liveness
from quartet.supervisor.plan import ProcessSpec
from quartet.supervisor.restart import RestartPolicy
from quartet.supervisor.slot import ProcessSlot
from quartet.wire.frames import Heartbeat, LastEnd
from quartet.wire.ids import Role


def start(slot: ProcessSlot, now: float) -> Any:
    """Give the slot a child that has just been started."""
    child: Any = SimpleNamespace(pid=7, is_ready=False, beat=None, liveness=Liveness(now, 2.0))
    slot.child = child
    return child


@pytest.fixture
def slot() -> ProcessSlot:
    return ProcessSlot(ProcessSpec(Role.DETOK, 0, "detok_proc"), RestartPolicy(5))


def states(slot: ProcessSlot, now: float) -> tuple[str, str]:
    return slot.status(False, now).state, slot.status(True, now).state


def test_the_states_of_a_life(slot: ProcessSlot) -> None:
    assert states(slot, 0.0) == ("down", "down")
    child = start(slot, 10.0)
    assert states(slot, 10.0 + START_TIMEOUT_S) == ("starting", "starting"), "a start may be silent"
    child.is_ready = True
    slot.on_ready(20.0)
    child.liveness.on_heartbeat(Heartbeat("serving", 1, 0.0), 21.0)
    assert states(slot, 21.5) == ("ready", "draining")
    assert states(slot, 21.1 + UNRESPONSIVE_S) == ("unresponsive", "unresponsive")


def test_readiness_is_a_sign_of_life(slot: ProcessSlot) -> None:
    """What was imported before the first heartbeat has taken its time."""
    child = start(slot, 0.0)
    child.is_ready = True
    slot.on_ready(30.0)
    assert states(slot, 30.0 + UNRESPONSIVE_S) == ("ready", "draining")
    assert child.liveness.hang(32.0, True) is None


def test_a_recovery_lasts_from_the_death_to_readiness(slot: ProcessSlot) -> None:
    start(slot, 0.0)
    slot.on_ready(1.0)
    assert slot.status(False, 1.0).recovery_s == 0.0
    slot.child, slot.died_s = None, 5.0
    start(slot, 5.5)
    slot.on_ready(7.0)
    assert slot.status(False, 7.0).recovery_s == 2.0


def test_a_row_says_what_ended_the_last_incarnation(slot: ProcessSlot) -> None:
    assert (slot.status(False, 0.0).restarts, slot.status(False, 0.0).last_cause) == (0, "")
    for number, (code, cause) in enumerate([(-9, "signal SIGKILL"), (1, "exit code 1")], 1):
        child = start(slot, 10.0)
        child.last_end, child.last_cause = lambda code: LastEnd.CRASHED, lambda code: cause_of_end(code, "")
        slot.on_death(child, code, 11.0)
        row = slot.status(False, 11.0)
        assert (row.restarts, row.last_cause, row.last_end) == (number, cause, LastEnd.CRASHED)
