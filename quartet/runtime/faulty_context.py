"""A process context whose links and phases are failpoints (runtime.failpoints); imported only if some are set."""

import collections
from typing import Any

import msgspec
import zmq

from quartet.runtime import failpoints
from quartet.runtime.context import BlockingLink, Facts, FrameHandler, OpenInbox
from quartet.runtime.control import ControlChannel
from quartet.runtime.failpoints import Failpoints
from quartet.runtime.link import Outboxes, ThreadLink
from quartet.runtime.process import ProcessContext
from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.frames import Assignment, ChildInbound, ProcessTable

COPIES = {"drop": 0, "duplicate": 2}
"""How often a frame is passed on after an action; once after any other."""


class FaultyOutboxes(Outboxes):
    """Outboxes that pass the points send and sent."""

    def __init__(self, context: "zmq.Context[Any]", run_dir: str, encoder: Encoder, points: Failpoints) -> None:
        super().__init__(context, run_dir, encoder)
        self._sound = encoder.encode
        self._points = points

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        """Queue a frame, unless a fault keeps it."""
        name = type(frame).__name__
        action = self._points.reach(f"send.{name}", frame)
        self._encode = self._damaged if action == "damage" else self._sound
        for _ in range(COPIES.get(action, 1)):
            super().send(destination, frame)
        self._points.reach(f"sent.{name}", frame)

    def _damaged(self, frame: msgspec.Struct) -> bytes:
        data = self._sound(frame)
        return data[:-1] + bytes([data[-1] ^ 0xFF])


class FaultyLink(ThreadLink):
    """A thread's link that passes the points recv and taken: a frame is taken when the thread turns to the link again.

    Args: those of ThreadLink, then the points.
    """

    def __init__(
        self,
        context: "zmq.Context[Any]",
        run_dir: str,
        name: str,
        decoder: Decoder[Any],
        encoder: Encoder,
        dropped: "collections.Counter[str]",
        points: Failpoints,
    ) -> None:
        super().__init__(context, run_dir, name, decoder, encoder, dropped)
        self._outboxes = FaultyOutboxes(context, run_dir, encoder, points)
        self._points = points
        self._again: collections.deque[tuple[Source, Any]] = collections.deque()
        self._in_hand: Any = None

    def recv(self, timeout_s: float) -> tuple[Source, Any] | None:
        """Return the next frame that no fault keeps, or None after `timeout_s`."""
        self._pass_taken()
        if not self._again:
            received = super().recv(timeout_s)
            if received is None:
                return None
            action = self._points.reach(f"recv.{type(received[1]).__name__}", received[1])
            self._again.extend([received] * COPIES.get(action, 1))
        if not self._again:
            return None
        received = self._again.popleft()
        self._in_hand = received[1]
        return received

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        """Queue a frame for a process."""
        self._pass_taken()
        super().send(destination, frame)

    def _pass_taken(self) -> None:
        frame, self._in_hand = self._in_hand, None
        if frame is not None:
            self._points.reach(f"taken.{type(frame).__name__}", frame)


class FaultyHandler:
    """A handler of frames behind the points recv and taken."""

    def __init__(self, inner: FrameHandler, points: Failpoints) -> None:
        self._inner = inner
        self._points = points
        self.metrics = inner.metrics

    def on_frame(self, source: Source, frame: Any) -> None:
        """Take one frame, unless a fault keeps it."""
        name = type(frame).__name__
        action = self._points.reach(f"recv.{name}", frame)
        for _ in range(COPIES.get(action, 1)):
            self._inner.on_frame(source, frame)
        self._points.reach(f"taken.{name}", frame)

    def on_batch_end(self) -> None:
        """A burst of frames has been delivered."""
        self._inner.on_batch_end()

    def on_process_table(self, table: ProcessTable) -> None:
        """The process table has changed."""
        self._inner.on_process_table(table)


class FaultyContext(ProcessContext):
    """Implements runtime.context.Context with faults."""

    def __init__(self, assignment: Assignment, channel: "ControlChannel[ChildInbound]", points: Failpoints) -> None:
        self._points = points
        super().__init__(assignment, channel)

    def _take(self, assignment: Assignment) -> None:
        if self.is_ready:
            # A standby has got the place of another process, and its points with it.
            failpoints.activate(assignment.role.label)
            self._points = failpoints.active or self._points
        super()._take(assignment)
        self._outboxes = FaultyOutboxes(self._zmq, self.run_dir, self._encoder, self._points)
        self._points.reach("start")

    def set_phase(self, phase: str, deadline_s: float = 0.0) -> None:
        """Declare the current phase."""
        super().set_phase(phase, deadline_s)
        self._points.reach(f"phase.{phase.replace(' ', '_')}")

    def open_inbox(self, inbound: Any, handler: FrameHandler) -> OpenInbox:
        """Bind the inbox."""
        return super().open_inbox(inbound, FaultyHandler(handler, self._points))

    def blocking_link(self, inbound: Any) -> BlockingLink:
        """Bind the inbox for the calling thread."""
        decoder: Decoder[Any] = Decoder(inbound, self._boot_id)
        link = FaultyLink(self._zmq, self.run_dir, self.name, decoder, self._encoder, self._dropped, self._points)
        self._inbox = link
        return link

    def ready(self, facts: Facts) -> None:
        """Report Ready."""
        self._points.reach("ready")
        super().ready(facts)
