"""One incarnation of a child process: its pid, its control channel, its heartbeats."""

import os
import signal
import subprocess
import sys
from typing import NamedTuple

from quartet.runtime.control import ControlChannel, control_pair
from quartet.runtime.lifetime import stop_signals_blocked
from quartet.runtime.output import write_line
from quartet.supervisor.error_output import ErrorOutput, cause_of_end
from quartet.supervisor.liveness import Liveness, observe
from quartet.supervisor.plan import ProcessSpec
from quartet.wire.frames import Assignment, Fatal, Heartbeat, LastEnd, SupervisorInbound
from quartet.wire.ids import Role

REAP_LIMIT_S = 2.0
IDLE_ROLES = (Role.WEIGHTS, Role.STANDBY)
"""Roles without steps or jobs."""


class CommonEnd(NamedTuple):
    """The end of a process, which is that of others, too: its name, how it ended, and what that says of a restart."""

    name: str
    how: LastEnd
    code: int
    was_useful: bool


class Child:
    """A spawned process."""

    def __init__(self, spec: ProcessSpec, assignment: Assignment, listen_fd: int, now: float) -> None:
        ours, theirs = control_pair()
        passed = [theirs.fileno()] + ([listen_fd] if listen_fd >= 0 else [])
        command = [sys.executable, "-m", spec.module]
        command += ["--control-fd", str(theirs.fileno()), "--parent-pid", str(os.getpid())]
        is_debugging = assignment.config.monitoring.log_level == "debug"
        self.errors = ErrorOutput(holds_traceback=not assignment.is_recovery and not is_debugging)
        try:
            with stop_signals_blocked(), self.errors.write_end() as stderr:
                self.process = subprocess.Popen(command, pass_fds=passed, stdin=subprocess.DEVNULL, stderr=stderr)
        except OSError:
            self.errors.close()
            raise
        theirs.close()
        self.spec = spec
        self.pidfd = os.pidfd_open(self.process.pid)
        self.channel: ControlChannel[SupervisorInbound] = ControlChannel(ours, SupervisorInbound)
        self.channel.send(assignment)
        self.started_s = now
        self.liveness = Liveness(now, assignment.config.server.hang_timeout)
        self.is_ready = False
        self.is_drained = False
        self.is_killed = False
        self.killed_s: float | None = None
        """When it was found hung and killed."""
        self.common_end: CommonEnd | None = None
        """The end of another process, because of which it was killed."""
        self.fatal: Fatal | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def beat(self) -> Heartbeat | None:
        """The last heartbeat."""
        return self.liveness.beat

    @property
    def was_useful(self) -> bool:
        """Whether its death says nothing against another start: it has finished a step or job since it was ready, if
        its role has any, or that death is the end of another process, of which this is true."""
        if self.common_end is not None:
            return self.common_end.was_useful
        has_worked = self.beat is not None and self.beat.has_finished_work
        return self.is_ready and (has_worked or self.spec.role in IDLE_ROLES)

    def hang(self, now: float) -> str | None:
        """Return why the process counts as hung, or None."""
        seen = observe(self.pid) if self.liveness.wants_observation(now) else None
        return self.liveness.hang(now, self.is_ready, seen)

    def can_take_over(self, now: float) -> bool:
        """Return whether this standby can be given another process's place: it is ready and neither killed nor hung."""
        if not self.is_ready or self.is_killed or self.liveness.is_unresponsive(now):
            return False
        seen = observe(self.pid)
        return seen is not None and not seen.is_stopped

    def promote(self, spec: ProcessSpec, assignment: Assignment, now: float) -> None:
        """Give this standby the place of another process; it reports ready again when it serves there."""
        self.spec, self.started_s, self.is_ready = spec, now, False
        self.liveness = Liveness(now, assignment.config.server.hang_timeout)
        self.channel.send(assignment)

    def last_end(self, code: int) -> LastEnd:
        """Return how it ended, given its exit code."""
        if not self.is_ready:
            return LastEnd.STARTING
        if self.common_end is not None:
            return self.common_end.how
        is_from_outside = self.killed_s is None or self.liveness.was_stopped
        return LastEnd.KILLED if code == -signal.SIGKILL and is_from_outside else LastEnd.CRASHED

    def last_cause(self, code: int) -> str:
        """Return what ended it, given its exit code, in a few words."""
        end = self.common_end
        return cause_of_end(code, "") if end is None else f"{cause_of_end(end.code, '')} of {end.name}"

    @property
    def has_lasting_error(self) -> bool:
        """Whether it has ended by an error that another start would meet, too."""
        return self.fatal is not None and self.fatal.is_lasting

    def explain(self, code: int, now: float) -> str:
        """Return how it ended, given its exit code; passes on what was held of its output."""
        words = self.errors.last_words(now)
        self.errors.release()
        if self.fatal is not None:
            words = self.fatal.message
            if self.fatal.traceback:
                write_line(self.fatal.traceback.rstrip())
        cause = self.last_cause(code) if self.common_end is not None else cause_of_end(code, words)
        return f"{self.spec.name} (pid {self.pid}) ended by {cause}"

    def kill(self) -> None:
        """SIGKILL; works on a stopped process too."""
        self.is_killed = True
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)

    def kill_dependent(self, end: CommonEnd) -> None:
        """SIGKILL, because it cannot go on after the end of another process; the first such end counts."""
        self.common_end = self.common_end or end
        self.kill()

    def reap(self) -> int:
        """Wait for the killed or dead process and close its descriptors; returns the exit code, negative for a signal.

        One that the kernel does not let end is left to it."""
        try:
            code = self.process.wait(REAP_LIMIT_S)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        os.close(self.pidfd)
        self.errors.close()
        self.channel.socket.close()
        return code
