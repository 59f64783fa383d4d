"""What the runtime gives the main coroutine of a process."""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from quartet.runtime.clock import Clock
from quartet.runtime.core import Metrics
from quartet.wire.codec import Source
from quartet.wire.config import Config
from quartet.wire.frames import ProcessTable
from quartet.wire.ids import Epoch, Role

Facts = dict[str, str | int | float]
"""The contents of the ready line, e.g. kv_tokens."""


class BlockingLink(Protocol):
    """An inbox and outboxes for one thread that blocks on its inbox (the worker's)."""

    def recv(self, timeout_s: float) -> tuple[Source, Any] | None:
        """Return the next good frame, or None after `timeout_s` (0: only what is there). Bad frames are counted."""
        ...

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        """Queue a frame for the process of that name; never blocks."""
        ...


class OpenInbox(Protocol):
    """An inbox that delivers frames on the event loop."""

    def close(self) -> None:
        """Stop to deliver, and unbind."""
        ...


class FrameHandler(Protocol):
    """What an inbox delivers to, on the event loop. An exception that it passes on is logged and counted."""

    def on_frame(self, source: Source, frame: Any) -> None:
        """Take one frame."""
        ...

    def on_batch_end(self) -> None:
        """A burst of frames has been delivered."""
        ...

    def on_process_table(self, table: ProcessTable) -> None:
        """The process table has changed."""
        ...

    @property
    def metrics(self) -> Callable[[], Metrics]:
        """Returns metrics for the Snapshot of each second."""
        ...


class Context(Protocol):
    """One process incarnation. Methods are for the loop's thread, but for those that say otherwise."""

    role: Role
    rank: int
    epoch: Epoch
    name: str
    config: Config
    clock: Clock

    @property
    def process_table(self) -> ProcessTable:
        """The process table as last received. Safe from any thread."""
        ...

    @property
    def run_dir(self) -> str:
        """The private run directory of the launch."""
        ...

    @property
    def is_recovery(self) -> bool:
        """Whether the process was ready before in this launch: clients may be waiting for it."""
        ...

    @property
    def listen_fd(self) -> int:
        """The inherited listening socket of an api process, else -1."""
        ...

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        """Queue a frame for the process of that name (wire.ids.process_name); never blocks. Frames of the control link
        may go to the supervisor."""
        ...

    def set_phase(self, phase: str, deadline_s: float = 0.0) -> None:
        """Declare the current phase and how long it may go without progress; 0: only heartbeats are required.

        Safe from any thread."""
        ...

    def progress(self) -> None:
        """Count one unit of progress in the current phase. Safe from any thread."""
        ...

    def finished_work(self) -> None:
        """Note that a step or job is finished: a later death is not that of a process which cannot run. Safe from any
        thread."""
        ...

    def open_inbox(self, inbound: Any, handler: FrameHandler) -> OpenInbox:
        """Bind the inbox for a union of frames; `handler` takes frames and process tables and returns metrics."""
        ...

    def blocking_link(self, inbound: Any) -> BlockingLink:
        """Bind the inbox for the calling thread instead. Call it in that thread."""
        ...

    def report_metrics(self, metrics: Callable[[], Metrics]) -> None:
        """Put the metrics that the function returns into the Snapshot of each second; `open_inbox` does so itself."""
        ...

    def process_metrics(self) -> Metrics:
        """Return what every process reports: its memory and processor time, and what became of its frames."""
        ...

    def ready(self, facts: Facts) -> None:
        """Tell the supervisor that the inbox is bound and work can be taken."""
        ...

    def on_bug(self) -> None:
        """Called while an exception of the core is handled, whose state it may have left half changed. Ends the
        process, whose successor starts from what others hold of it; not an api process, which holds connections."""
        ...

    async def promoted(self) -> bool:
        """Wait until this standby has got the place of another process: its role, rank, epoch and name.

        Returns False if it is to drain instead."""
        ...

    async def drain_requested(self) -> float:
        """Wait until the supervisor wants the process to drain; return the limit in seconds."""
        ...
