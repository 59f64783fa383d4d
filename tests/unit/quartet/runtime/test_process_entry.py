"""The entry of every child: assignment, heartbeat, inbox, drain, and the ways in which it ends. Real processes."""

import collections
import os
import select
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zmq

from quartet.runtime.child_error import EXIT_BUG
from quartet.runtime.link import ThreadLink, endpoint
from quartet.supervisor.plan import ProcessSpec
from quartet.supervisor.spawn import Child
from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.config import Config, ModelConfig
from quartet.wire.frames import (
    ApiInbound,
    Assignment,
    Drain,
    Drained,
    Exempt,
    Fatal,
    Heartbeat,
    ProcessStatus,
    ProcessTable,
    Query,
    QueryReply,
    Ready,
    Snapshot,
    StepResult,
    StepTimes,
)
from quartet.wire.ids import Epoch, Role
from tests.support.wire_samples import BOOT

T = TypeVar("T")
API = ProcessStatus(Role.API, 0, 1, Epoch(1), "ready", "", 0)


class Rig:
    """A supervisor and an api for one stub process."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir
        self.context = zmq.Context[zmq.Socket[bytes]]()
        self.dropped: collections.Counter[str] = collections.Counter()
        encoder = Encoder(Source(Role.API, 0, Epoch(1)), BOOT)
        self.api = ThreadLink(self.context, run_dir, "api-0", Decoder[Any](ApiInbound, BOOT), encoder, self.dropped)
        self.child: Child | None = None

    def start(self, mode: str = "", role: Role = Role.SCHEDULER, rank: int = 0) -> Child:
        spec = ProcessSpec(role, rank, "stub_process")
        config = Config(model=ModelConfig(model_path=mode))
        self.source = Source(role, rank, Epoch(4))
        assignment = Assignment(BOOT, role, rank, Epoch(4), self.run_dir, config)
        self.child = Child(spec, assignment, -1, now=0.0)
        return self.child

    def next(self, kind: type[T], **fields: Any) -> T:
        """Return the child's next message of that type with those fields; None-free: fails after 10 s or at its end."""
        assert self.child is not None
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            select.select([self.child.channel.socket], [], [], 1)
            try:
                message = self.child.channel.receive()
            except BlockingIOError:
                continue
            assert message is not None, f"it ended without {kind.__name__}"
            if isinstance(message, kind) and all(getattr(message, name) == value for name, value in fields.items()):
                return message
        raise AssertionError(f"no {kind.__name__} with {fields}")

    def heard(self, kind: type[T], **fields: Any) -> T:
        """Return the next frame of that type at the api."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            taken = self.api.recv(0.5)
            if taken and isinstance(taken[1], kind) and all(getattr(taken[1], n) == v for n, v in fields.items()):
                assert taken[0] == self.source
                return taken[1]
        raise AssertionError(f"no {kind.__name__} with {fields}")

    def stranger(self) -> "zmq.Socket[bytes]":
        """Return a socket that sends any bytes to the child."""
        socket = self.context.socket(zmq.PUSH)
        socket.connect(endpoint(self.run_dir, "scheduler-0"))
        return socket

    def exit_code(self) -> int:
        assert self.child is not None
        return self.child.process.wait(10)

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.reap()
        self.api.close()
        self.context.destroy(linger=0)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.getcwd()]))
    with tempfile.TemporaryDirectory(dir="/tmp") as run_dir:
        rig = Rig(run_dir)
        yield rig
        rig.close()


def test_a_life_from_assignment_to_drain(rig: Rig) -> None:
    child = rig.start()
    assert rig.next(Heartbeat).phase == "starting", "the heart beats before the actor is ready"
    assert rig.next(Ready).facts == {"name": "scheduler-0", "epoch": 4}
    assert rig.next(Heartbeat).phase == "serving"
    rig.api.send("scheduler-0", Query(1, "api-0", "echo", "hello"))
    assert rig.heard(QueryReply).body == b"hello"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(child.pid, number)
    child.channel.send(Drain(1.5))
    rig.next(Drained)
    assert rig.exit_code() == 0
    assert rig.heard(QueryReply).body == b"drained within 1.5 s"


def test_the_core_is_ticked_at_its_deadline(rig: Rig) -> None:
    rig.start()
    rig.next(Ready)
    started = time.monotonic()
    rig.api.send("scheduler-0", Query(1, "api-0", "tick", "later"))
    assert rig.heard(QueryReply).body == b"later"
    assert time.monotonic() - started >= 0.05


def test_a_drain_before_it_is_ready_comes_after_the_start(rig: Rig) -> None:
    child = rig.start()
    child.channel.send(Drain(0.5))
    rig.next(Ready)
    rig.next(Drained)
    assert rig.exit_code() == 0


def test_the_first_output_is_reported_at_once(rig: Rig) -> None:
    """The process may not live until its next heartbeat."""
    rig.start()
    rig.next(Ready)
    assert not rig.next(Heartbeat).has_finished_work
    rig.api.send("scheduler-0", StepResult(Epoch(4), 1, b"", b"", b"", [], [], StepTimes(0.0, 0.0, 0.0, 0.0)))
    started = time.monotonic()
    assert rig.next(Heartbeat, has_finished_work=True)
    assert time.monotonic() - started < 0.2


def test_what_a_core_sends_to_the_supervisor_goes_over_the_control_channel(rig: Rig) -> None:
    rig.start()
    rig.next(Ready)
    rig.api.send("scheduler-0", Query(1, "api-0", "exempt"))
    assert rig.next(Exempt).epoch == 8


def test_the_process_table_is_acknowledged_by_the_next_heartbeat(rig: Rig) -> None:
    child = rig.start()
    rig.next(Ready)
    child.channel.send(ProcessTable([API], False, 5))
    child.channel.send(ProcessTable([API], False, 6))
    assert rig.next(Heartbeat, table_serial=6)


def test_metrics_and_dropped_frames_are_reported_to_each_api_process(rig: Rig) -> None:
    child = rig.start()
    rig.next(Ready)
    child.channel.send(ProcessTable([API], False, 1))
    gauges = rig.heard(Snapshot).gauges
    assert gauges.pop("stub") == 1.5
    role = '{role="scheduler"}'
    assert gauges.keys() == {
        f"ipc_queue_depth{role}",
        f"process_resident_memory_bytes{role}",
        f"process_start_up_seconds{role}",
    }
    assert gauges[f"process_resident_memory_bytes{role}"] > 1e6 and 0 < gauges[f"process_start_up_seconds{role}"] < 60
    with closing(rig.stranger()) as stranger:
        stranger.send(b"nothing that we know")
        deadline = time.monotonic() + 5
        while not (dropped := _dropped(rig.heard(Snapshot))):
            assert time.monotonic() < deadline
    assert dropped == 1.0


def _dropped(snapshot: Snapshot) -> float:
    return sum(count for name, count in snapshot.counters.items() if name.startswith("frames_dropped"))


@pytest.mark.parametrize("what", ["fail", "fail tick"])
def test_a_core_that_raises_ends_its_process(rig: Rig, what: str) -> None:
    rig.start()
    rig.next(Ready)
    rig.api.send("scheduler-0", Query(1, "api-0", what))
    assert rig.exit_code() == EXIT_BUG


def test_a_core_that_raises_over_the_process_table_ends_its_process(rig: Rig) -> None:
    child = rig.start()
    rig.next(Ready)
    child.channel.send(ProcessTable([API], False, 13))
    assert rig.exit_code() == EXIT_BUG


def test_an_api_process_counts_what_its_core_raises_and_goes_on(rig: Rig) -> None:
    """The connections of its clients hang on it; what is missing is found by its journal."""
    child = rig.start(role=Role.API, rank=1)
    rig.next(Ready)
    child.channel.send(ProcessTable([API], False, 13))
    child.channel.send(ProcessTable([API], False, 14))
    assert rig.next(Heartbeat, table_serial=14)
    rig.api.send("api-1", Query(1, "api-0", "fail"))
    rig.api.send("api-1", Query(2, "api-0", "echo", "alive"))
    assert rig.heard(QueryReply, number=2).body == b"alive"
    deadline = time.monotonic() + 5
    while 'frames_dropped{reason="handler"}' not in (counters := rig.heard(Snapshot).counters):
        assert time.monotonic() < deadline
    assert counters['frames_dropped{reason="handler"}'] == 1.0


def test_a_phase_declared_by_the_actor_is_kept(rig: Rig) -> None:
    rig.start("phased")
    rig.next(Ready)
    beat = rig.next(Heartbeat)
    assert (beat.phase, beat.deadline_s) == ("idle", 3.5)


@pytest.mark.parametrize(
    ("mode", "message", "code"),
    [
        ("damaged", "the model is damaged", 3),
        ("refused", "--model-path: refused", 2),
        ("unreadable", "/proc/self/status/missing: Not a directory", 3),
    ],
)
def test_what_a_restart_cannot_help_is_fatal(rig: Rig, mode: str, message: str, code: int) -> None:
    rig.start(mode)
    assert rig.next(Fatal) == Fatal(message, code)
    assert rig.exit_code() == code


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("buggy", "ZeroDivisionError"),
        ("busy", "BlockingIOError: [Errno 11] Resource temporarily unavailable: '/a/file'"),
        ("buggy core", "ZeroDivisionError: a core that fails"),
    ],
)
def test_an_exception_at_the_start_travels_with_its_traceback(
    rig: Rig, mode: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    child = rig.start(mode)
    fatal = rig.next(Fatal)
    assert (fatal.message, fatal.exit_code, fatal.is_lasting) == (message, EXIT_BUG, False)
    assert "stub_process.py" in fatal.traceback
    assert rig.exit_code() == EXIT_BUG
    while child.errors.forward(0.0):
        pass
    assert child.errors.held == "" and "Traceback" not in capfd.readouterr().err


def test_it_ends_with_its_supervisor(rig: Rig) -> None:
    child = rig.start()
    rig.next(Ready)
    child.channel.socket.shutdown(2)
    assert rig.exit_code() == 1
