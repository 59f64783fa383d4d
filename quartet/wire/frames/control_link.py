"""supervisor ── Assignment | ProcessTable | Drain ──► child
child ── Ready | Heartbeat | Exempt | Drained | Fatal ──► supervisor

The link is the socketpair that each child inherits. Snapshots go from every process to each api process, over
ZeroMQ.
"""

from enum import StrEnum

from quartet.wire.config import Config
from quartet.wire.frames.base import Frame
from quartet.wire.ids import Epoch, Role


class LastEnd(StrEnum):
    """How a process ended: not at all, before it was ready, from outside (SIGKILL, SIGSTOP), or by itself.

    A SIGKILL may come from an operator or from the kernel's OOM killer, so it says little about what was on board."""

    NONE = "none"
    STARTING = "starting"
    KILLED = "killed"
    CRASHED = "crashed"


class ProcessStatus(Frame, frozen=True):
    """One row of the process table. `state`: starting, ready, unresponsive (heartbeats are missing), draining, down.
    `last_end` is how the incarnation before this one ended, `last_cause` what ended it (`signal SIGKILL`).
    `recovery_s`: how long the last restart took, from the death to readiness."""

    role: Role
    rank: int
    pid: int
    epoch: Epoch
    state: str
    phase: str
    restarts: int
    last_end: LastEnd = LastEnd.NONE
    recovery_s: float = 0.0
    last_cause: str = ""


class Assignment(Frame, frozen=True, tag=50):
    """First message to a child: its role, rank and epoch, and the configuration of the launch.

    A standby gets a second one, which gives it the role, rank and epoch of a process that has died. `is_recovery`: the
    process was ready before in this launch, so clients may be waiting."""

    boot_id: int
    role: Role
    rank: int
    epoch: Epoch
    run_dir: str
    config: Config
    listen_fd: int = -1
    is_recovery: bool = False


class ProcessTable(Frame, frozen=True, tag=51):
    """The process table, sent to every child whenever it changes. `is_draining`: the service is shutting down;
    `has_failed`: because a process cannot be started, so that no request can go on. `serial` rises with each table; a
    heartbeat carries the serial of the last one that the child has read."""

    processes: list[ProcessStatus]
    is_draining: bool
    serial: int = 0
    has_failed: bool = False


class Drain(Frame, frozen=True, tag=52):
    """Finish what is accepted, take nothing else, then answer Drained; at the latest after `limit_s`."""

    limit_s: float


class Ready(Frame, frozen=True, tag=53):
    """The child has bound its inbox and can work. `facts` are for the ready line, e.g. kv_tokens."""

    facts: dict[str, str | int | float]


class Heartbeat(Frame, frozen=True, tag=54):
    """Four times a second, from the main loop. No rise of `progress` within `deadline_s` is a hang; a deadline of 0
    means that the process is idle and only the heartbeats themselves are required. `has_finished_work`: a step or job
    was finished since the start, so that the process's death is not one of a process that cannot run."""

    phase: str
    progress: int
    deadline_s: float
    table_serial: int = 0
    has_finished_work: bool = False


class Exempt(Frame, frozen=True, tag=57):
    """The death of that incarnation of a process is pinned on a quarantined request: it does not count towards giving
    up. From the scheduler or an api process."""

    role: Role
    rank: int
    epoch: Epoch


class Drained(Frame, frozen=True, tag=55):
    """The child has finished everything it had accepted."""


class Fatal(Frame, frozen=True, tag=56):
    """An error ends the child. `message` is one line for the user, `exit_code` that of a launch that ends by it.

    `is_lasting`: a restart will not help. Otherwise it is an exception whose `traceback` is for the log: it ends the
    launch if the process has never been ready."""

    message: str
    exit_code: int
    is_lasting: bool = True
    traceback: str = ""


class Snapshot(Frame, frozen=True, tag=40):
    """Metrics of one process, by metric name without prefix."""

    role: Role
    rank: int
    epoch: Epoch
    gauges: dict[str, float]
    counters: dict[str, float]
