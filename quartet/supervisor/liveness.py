"""When a process counts as unresponsive or hung (faults R10, R11). Pure: time and what /proc shows are arguments.

silent for UNRESPONSIVE_S ──► unresponsive: the service is not ready
silent for the hang timeout ──► hung, if it is stopped, busy without a heartbeat, or blocked
silent for STARVED_FACTOR times that ──► hung, even if it is only short of CPU or waits for a disk
no progress within the deadline that it has declared ──► hung
"""

from pathlib import Path
from typing import NamedTuple

from quartet.wire.frames import Heartbeat

UNRESPONSIVE_S = 1.0
OBSERVED_AFTER_S = 0.5
"""Silence from which on a process is looked at in /proc."""
BUSY_CPU_S = 0.8
"""CPU time of the main thread in one silence that no callback of a main loop may take."""
STARVED_FACTOR = 6.0
START_TIMEOUT_S = 60.0
"""How long a process may be silent until it is ready: imports and files on slow disks hold up its main loop."""
CLOCK_TICK_S = 0.01
"""Unit of the CPU times in /proc; the kernel's interface has it fixed."""


class Observation(NamedTuple):
    """A process as /proc shows it at one moment.

    `main_cpu_s`: CPU time of its main thread; `cpu_s`: of all threads. `is_waiting`: a thread wants the CPU or a disk.
    """

    is_stopped: bool
    is_waiting: bool
    main_cpu_s: float
    cpu_s: float


class Liveness:
    """The heartbeats of one incarnation. `beat` is the last one.

    Args:
        now: when it was started.
        hang_timeout_s: longest silence once it is ready.
    """

    def __init__(self, now: float, hang_timeout_s: float) -> None:
        self.beat: Heartbeat | None = None
        self.was_stopped = False
        """Whether it was found hung because something had stopped it."""
        self._hang_timeout_s = hang_timeout_s
        self._beat_s = self._progress_s = now
        self._first: Observation | None = None
        """What was seen first in the current silence."""

    def on_heartbeat(self, beat: Heartbeat, now: float) -> None:
        """Note a heartbeat."""
        if self.beat is None or beat.progress != self.beat.progress:
            self._progress_s = now
        self.beat, self._beat_s, self._first = beat, now, None

    def grant_grace(self, now: float) -> None:
        """Restart the deadlines, after the supervisor itself was not scheduled for a while (faults R11)."""
        self._beat_s = self._progress_s = now
        self._first = None

    def is_unresponsive(self, now: float) -> bool:
        """Return whether heartbeats are missing."""
        return now - self._beat_s > UNRESPONSIVE_S

    def wants_observation(self, now: float) -> bool:
        """Return whether `hang` needs to know what /proc shows."""
        return now - self._beat_s > OBSERVED_AFTER_S

    def hang(self, now: float, is_ready: bool, seen: Observation | None = None) -> str | None:
        """Return why the process counts as hung, or None. `seen`: what /proc shows, if `wants_observation`."""
        silent_s = now - self._beat_s
        if seen is not None and self._first is None:
            self._first = seen
        if silent_s > self._hang_timeout_s and seen is not None and seen.is_stopped:
            self.was_stopped = True
            return f"stopped, no heartbeat for {self._hang_timeout_s:g} s"
        if not is_ready:
            if silent_s > START_TIMEOUT_S:
                return f"silent for {START_TIMEOUT_S:g} s"
        elif silent_s > self._hang_timeout_s * STARVED_FACTOR:
            return f"no heartbeat for {self._hang_timeout_s * STARVED_FACTOR:g} s"
        elif silent_s > self._hang_timeout_s and (condition := self._condition(seen)):
            return f"{condition}, no heartbeat for {self._hang_timeout_s:g} s"
        # Up to the last heartbeat: whether a silent process makes progress is not known.
        if self.beat and self.beat.deadline_s and self._beat_s - self._progress_s > self.beat.deadline_s:
            return f"no progress in phase {self.beat.phase!r} for {self.beat.deadline_s:g} s"
        return None

    def _condition(self, seen: Observation | None) -> str | None:
        """Return what keeps the main loop from its heartbeats, None if that is a lack of CPU or a slow disk."""
        first = self._first
        if seen is None or first is None or first is seen:
            return None
        if seen.main_cpu_s - first.main_cpu_s >= BUSY_CPU_S:
            return "busy"
        return None if seen.is_waiting or seen.cpu_s > first.cpu_s else "blocked"


def observe(pid: int) -> Observation | None:
    """Return what /proc shows of a process; None if it has ended."""
    try:
        main = _stat(Path(f"/proc/{pid}/task/{pid}/stat"))
        threads = [_stat(task / "stat") for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return None
    return Observation(
        is_stopped=main[0] in "Tt",
        is_waiting=any(state in "RD" for state, _ in threads),
        main_cpu_s=main[1],
        cpu_s=sum(cpu_s for _, cpu_s in threads),
    )


def _stat(path: Path) -> tuple[str, float]:
    """Return state and CPU time of a thread."""
    fields = path.read_text().rpartition(")")[2].split()
    return fields[0], (int(fields[11]) + int(fields[12])) * CLOCK_TICK_S
