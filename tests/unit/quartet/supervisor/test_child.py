"""One child incarnation: what it is given, what it says, and how it is put away."""

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quartet.supervisor.listener import listening_socket
from quartet.supervisor.plan import ProcessSpec
from quartet.supervisor.spawn import Child, CommonEnd
from quartet.wire.frames import Assignment, Heartbeat, LastEnd, Ready
from quartet.wire.ids import Epoch, Role
from tests.support.wire_samples import BOOT, CONFIG

SPEC = ProcessSpec(Role.DETOK, 0, "quiet_child")

Spawn = Callable[..., Child]


@pytest.fixture
def spawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spawn]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.getcwd()]))
    children: list[Child] = []

    def start(listen_fd: int = -1) -> Child:
        assignment = Assignment(BOOT, Role.DETOK, 0, Epoch(3), "/run/q", CONFIG, listen_fd)
        children.append(Child(SPEC, assignment, listen_fd, now=100.0))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.reap()


def first_message(child: Child) -> Any:
    assert select.select([child.channel.socket], [], [], 10)[0], "the child is silent"
    return child.channel.receive()


def wait_for_end(child: Child) -> None:
    assert select.select([child.pidfd], [], [], 10)[0], "the child lives on"


def test_it_is_given_its_assignment_and_its_parent(spawn: Spawn) -> None:
    child = spawn()
    message = first_message(child)
    assert isinstance(message, Ready)
    assert message.facts["run_dir"] == "/run/q" and message.facts["parent"] == os.getpid()
    assert not child.is_ready, "only the supervisor's loop decides that"


def test_it_inherits_the_control_channel_and_nothing_else(spawn: Spawn) -> None:
    with socket.socket() as mine:
        mine.set_inheritable(True)
        spawn()
        message = first_message(spawn())
    assert message.facts["descriptors"] == 4, "three standard ones and the control channel"


def test_it_inherits_the_listening_socket(spawn: Spawn) -> None:
    with listening_socket("127.0.0.1", 0) as listener:
        message = first_message(spawn(listener.fileno()))
        assert message.facts["port"] == listener.getsockname()[1]


def test_its_end_is_seen_on_the_pidfd_and_the_channel(spawn: Spawn) -> None:
    child = spawn()
    first_message(child)
    os.kill(child.pid, signal.SIGKILL)
    wait_for_end(child)
    assert child.channel.receive() is None


def test_it_ends_with_its_supervisors_channel(spawn: Spawn) -> None:
    child = spawn()
    first_message(child)
    child.channel.socket.shutdown(socket.SHUT_RDWR)
    wait_for_end(child)


def test_kill_works_on_a_stopped_process_and_twice(spawn: Spawn) -> None:
    child = spawn()
    os.kill(child.pid, signal.SIGSTOP)
    child.kill()
    wait_for_end(child)
    child.kill()


def test_reap_returns_the_signal_and_closes_everything(spawn: Spawn) -> None:
    before = len(os.listdir("/proc/self/fd"))
    child = Child(SPEC, Assignment(BOOT, Role.DETOK, 0, Epoch(1), "/", CONFIG), -1, now=0.0)
    child.kill()
    assert child.reap() == -signal.SIGKILL
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_its_standard_error_is_passed_on_and_its_last_line_kept(
    spawn: Spawn, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    child = spawn()
    wait_for_end(child)
    while child.errors.forward(100.0):
        pass
    assert "No module named" in capfd.readouterr().err
    assert "No module named quiet_child" in child.errors.last_words(101.0)
    assert child.errors.last_words(103.0) == "", "written too long before"


@pytest.mark.parametrize(
    ("role", "is_ready", "has_worked", "was_useful"),
    [
        (Role.WORKER, True, True, True),
        (Role.WORKER, True, False, False),
        (Role.WORKER, False, True, False),
        (Role.WEIGHTS, True, False, True),
        (Role.WEIGHTS, False, False, False),
    ],
)
def test_a_useful_life(spawn: Spawn, role: Role, is_ready: bool, has_worked: bool, was_useful: bool) -> None:
    child = spawn()
    child.spec = ProcessSpec(role, 0, "quiet_child")
    child.is_ready = is_ready
    assert not child.was_useful or role is Role.WEIGHTS
    child.liveness.on_heartbeat(Heartbeat("serving", 1, 0.0, 0, has_worked), 101.0)
    assert child.was_useful == was_useful


def test_a_death_for_another_process_is_not_held_against_it(spawn: Spawn) -> None:
    child = spawn()
    child.is_ready = True
    child.kill_dependent(CommonEnd("weights-0", LastEnd.KILLED, -signal.SIGSEGV, True))
    child.kill_dependent(CommonEnd("worker-1", LastEnd.CRASHED, 1, False))
    wait_for_end(child)
    assert child.was_useful and child.last_end(-signal.SIGKILL) is LastEnd.KILLED
    assert child.last_cause(-signal.SIGKILL) == "signal SIGSEGV of weights-0"
    assert child.explain(-signal.SIGKILL, 100.0).endswith("ended by signal SIGSEGV of weights-0")


# A standby


def test_a_standby_that_is_ready_can_take_over_and_is_promoted_to_begin_again(spawn: Spawn) -> None:
    child = spawn()
    first_message(child)
    assert not child.can_take_over(100.0)
    child.is_ready = True
    assert child.can_take_over(100.0) and not child.can_take_over(102.0), "no heartbeat"
    spec = ProcessSpec(Role.WORKER, 0, "worker_proc")
    child.promote(spec, Assignment(BOOT, Role.WORKER, 0, Epoch(7), "/run/q", CONFIG), 200.0)
    assert child.spec is spec and not child.is_ready and child.started_s == 200.0
    assert child.hang(200.0) is None


def test_a_standby_that_is_stopped_or_killed_cannot_take_over(spawn: Spawn) -> None:
    stopped, killed = spawn(), spawn()
    for child in (stopped, killed):
        first_message(child)
        child.is_ready = True
    os.kill(stopped.pid, signal.SIGSTOP)
    os.waitpid(stopped.pid, os.WUNTRACED)
    killed.kill()
    assert not stopped.can_take_over(100.0) and not killed.can_take_over(100.0)
