"""The face of a core: one part of the engine without its sockets, threads and clock.

A core is driven by frames and time and returns frames. A process runs one core (runtime.shell), or one process runs
several (runtime.pump). The process table and the request to drain reach it as frames of the supervisor.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from quartet.wire.codec import Source
from quartet.wire.ids import Epoch, Role, process_name

Sent = tuple[str, msgspec.Struct]
"""The name of the process that a frame goes to (wire.ids.process_name), and the frame."""

SUPERVISOR_NAME = process_name(Role.SUPERVISOR, 0)
"""The destination of frames that go over the control channel."""

SUPERVISOR = Source(Role.SUPERVISOR, 0, Epoch(0))
"""The source of ProcessTable and Drain."""


class Metrics(NamedTuple):
    """One process's metrics by name without the `quartet_` prefix; counters without `_total`."""

    gauges: Mapping[str, float]
    counters: Mapping[str, float]


class Core(Protocol):
    """What every core offers. Nothing here blocks or reads a clock; `now` is in seconds on the caller's clock."""

    inbound: Any
    """Union of the frames that its inbox takes."""

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        """Take one frame of the inbox, or the supervisor's ProcessTable or Drain; return the frames to send.

        Raises FrameError for a frame that must not be acted upon; its state is then as before."""
        ...

    def tick(self, now: float) -> list[Sent]:
        """Do what is due at `now`; return the frames to send."""
        ...

    def next_deadline(self) -> float | None:
        """Return when `tick` is wanted next, or None."""
        ...

    def is_idle(self) -> bool:
        """Say whether nothing accepted is unfinished: a drain may end here."""
        ...

    def metrics(self) -> Metrics:
        """Return gauges and counters for the Snapshot of each second."""
        ...


class TimelessCore:
    """The part of Core that is the same in every core without deadlines."""

    def tick(self, now: float) -> list[Sent]:
        """Return no frames."""
        return []

    def next_deadline(self) -> float | None:
        """Return None."""
        return None

    def is_idle(self) -> bool:
        """Return True: frames are answered at once. A core that queues work overrides this."""
        return True
