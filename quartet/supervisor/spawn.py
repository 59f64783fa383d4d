"""One incarnation of a child process: its pid, its control channel, its last heartbeat."""

import os
import signal
import socket
import subprocess
import sys

from quartet.runtime.control import ControlChannel, control_pair
from quartet.runtime.lifetime import stop_signals_blocked
from quartet.supervisor.plan import ProcessSpec
from quartet.wire.frames import Assignment, Heartbeat, SupervisorInbound


class Child:
    """A spawned process. `beat` is the last heartbeat, `beat_s` its time; `progress_s` is when it last progressed."""

    def __init__(self, spec: ProcessSpec, assignment: Assignment, listen_fd: int, now: float) -> None:
        ours, theirs = control_pair()
        passed = [theirs.fileno()] + ([listen_fd] if listen_fd >= 0 else [])
        command = [sys.executable, "-m", spec.module]
        command += ["--control-fd", str(theirs.fileno()), "--parent-pid", str(os.getpid())]
        with stop_signals_blocked():
            self.process = subprocess.Popen(command, pass_fds=passed, stdin=subprocess.DEVNULL)
        theirs.close()
        self.spec = spec
        self.pidfd = os.pidfd_open(self.process.pid)
        self.channel: ControlChannel[SupervisorInbound] = ControlChannel(ours, SupervisorInbound)
        self.channel.send(assignment)
        self.started_s = self.beat_s = self.progress_s = now
        self.beat: Heartbeat | None = None
        self.is_ready = False
        self.is_drained = False
        self.is_hung = False
        self.fatal: str | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def on_heartbeat(self, beat: Heartbeat, now: float) -> None:
        """Note a heartbeat."""
        if self.beat is None or beat.progress != self.beat.progress:
            self.progress_s = now
        self.beat, self.beat_s = beat, now

    def grant_grace(self, now: float) -> None:
        """Restart the deadlines, after the supervisor itself was not scheduled for a while (faults R11)."""
        self.beat_s = self.progress_s = now

    def hang(self, now: float, hang_timeout_s: float, start_timeout_s: float) -> str | None:
        """Return why the process counts as hung, or None."""
        if self.beat is None:
            return f"silent for {start_timeout_s:g} s" if now - self.beat_s > start_timeout_s else None
        if now - self.beat_s > hang_timeout_s:
            return f"no heartbeat for {hang_timeout_s:g} s"
        if self.beat.deadline_s and now - self.progress_s > self.beat.deadline_s:
            return f"no progress in phase {self.beat.phase!r} for {self.beat.deadline_s:g} s"
        return None

    def kill(self) -> None:
        """SIGKILL; works on a stopped process too."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for the dead process and close its descriptors; returns the exit code, negative for a signal."""
        code = self.process.wait()
        os.close(self.pidfd)
        self.channel.socket.close()
        return code


def listening_socket(host: str, port: int) -> socket.socket:
    """Bind and listen; the socket is inherited by every api process. Raises OSError, UnicodeError for no host name.

    Of a name with several addresses it is one of IPv4, if there is one."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(1024)
    except OSError:
        sock.close()
        raise
    sock.set_inheritable(True)
    return sock
