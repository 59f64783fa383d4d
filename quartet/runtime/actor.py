"""The seam between an actor and its runtime: what each may ask of the other."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from quartet.runtime.clock import Clock
from quartet.wire.codec import Source
from quartet.wire.config import Config
from quartet.wire.frames import ProcessTable
from quartet.wire.ids import Epoch, Role


class Metrics(NamedTuple):
    """One process's metrics by name without the `quartet_` prefix; counters without `_total`."""

    gauges: Mapping[str, float]
    counters: Mapping[str, float]


class BlockingLink(Protocol):
    """An inbox and outboxes for an actor that runs in a thread of its own (the worker)."""

    def recv(self, timeout_s: float) -> tuple[Source, Any] | None:
        """Return the next good frame, or None after `timeout_s` (0: only what is there). Bad frames are counted."""
        ...

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        """Queue a frame for the process of that name; never blocks."""
        ...


class Context(Protocol):
    """What the runtime gives an actor."""

    role: Role
    rank: int
    epoch: Epoch
    name: str
    config: Config
    clock: Clock

    @property
    def process_table(self) -> ProcessTable:
        """The process table as last heard."""
        ...

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        """Queue a frame for the process of that name (wire.ids.process_name); never blocks. Loop thread only."""
        ...

    def set_phase(self, phase: str, deadline_s: float = 0.0) -> None:
        """Declare what the actor does and how long it may go without progress; 0: only heartbeats are required.

        Safe from any thread."""
        ...

    def progress(self) -> None:
        """Count one unit of progress in the current phase. Safe from any thread."""
        ...

    def blocking_link(self) -> BlockingLink:
        """Bind the inbox for use by one thread, instead of `Actor.on_frame`. The actor sets `is_threaded`."""
        ...


class Actor(Protocol):
    """What the runtime asks of an actor. Nothing here may block the loop for more than a millisecond."""

    inbound: Any
    """Union of the frames its inbox takes."""
    is_threaded: bool
    """True if the actor reads its inbox itself through `Context.blocking_link`."""

    async def start(self) -> dict[str, str | int | float]:
        """Get ready; the inbox is bound, and frames come once this has returned.

        Returns the facts of the ready line. Raises ModelError or ConfigError when
        a restart cannot help."""
        ...

    def on_frame(self, source: Source, frame: Any) -> None:
        """Take one frame. An exception is logged and counted, and ends neither the loop nor the process."""
        ...

    def on_batch_end(self) -> None:
        """Called after each burst of frames has been taken: the place to send what was gathered."""
        ...

    def on_process_table(self, process_table: ProcessTable) -> None:
        """The process table has changed."""
        ...

    def metrics(self) -> Metrics:
        """Metrics for the Snapshot of each second."""
        ...

    async def drain(self, limit_s: float) -> None:
        """Finish what was accepted and take nothing else; at the latest after `limit_s`."""
        ...

    async def close(self) -> None:
        """Release everything; called last."""
        ...
