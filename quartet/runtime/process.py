"""The entry of every child process: takes the assignment, runs the main coroutine, sends heartbeats and snapshots.

A child dies with its supervisor: by the parent-death signal, and by end of file on the control socket should the
signal be lost.
"""

import argparse
import asyncio
import collections
import logging
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import uvloop
import zmq

from quartet.runtime import failpoints
from quartet.runtime.child_error import EXIT_BUG, fatal_of, first_of
from quartet.runtime.clock import Clock, MonotonicClock
from quartet.runtime.context import BlockingLink, Context, Facts, FrameHandler, OpenInbox
from quartet.runtime.control import ControlChannel
from quartet.runtime.core import SUPERVISOR_NAME, Metrics
from quartet.runtime.interpreter import defer_collection, settle_memory
from quartet.runtime.lifetime import depend_on_parent
from quartet.runtime.link import Inbox, Outboxes, ThreadLink
from quartet.runtime.logs import configure_logging
from quartet.runtime.vitals import Vitals
from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.errors import ConfigError, StartError
from quartet.wire.frames import (
    Assignment,
    ChildInbound,
    Drain,
    Drained,
    Heartbeat,
    ProcessTable,
    Ready,
    Snapshot,
)
from quartet.wire.ids import Role, process_name

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.25
SNAPSHOT_S = 1.0
Main = Callable[[Context], Awaitable[None]]
"""The main coroutine of a process: returns when a requested drain is over; raises ConfigError or ModelError when a
restart cannot help."""


class ProcessContext:
    """Implements runtime.context.Context for one process incarnation."""

    def __init__(self, assignment: Assignment, channel: "ControlChannel[ChildInbound]") -> None:
        self.config = assignment.config
        self.clock: Clock = MonotonicClock()
        self.process_table = ProcessTable([], False)
        self.run_dir = assignment.run_dir
        self._boot_id = assignment.boot_id
        self._channel = channel
        self._dropped: collections.Counter[str] = collections.Counter()
        self._zmq = zmq.Context[zmq.Socket[bytes]](io_threads=1)
        self._phase_lock = threading.Lock()
        self._phase = ("starting", 0, 0.0)
        self._loop = asyncio.get_running_loop()
        self._drain: asyncio.Future[Drain] = self._loop.create_future()
        self._promotion: asyncio.Future[bool] = self._loop.create_future()
        self._metrics: Callable[[], Metrics] = lambda: Metrics({}, {})
        self._on_process_table: Callable[[ProcessTable], None] | None = None
        self._inbox: Inbox | ThreadLink | None = None
        self._vitals = Vitals(self._dropped)
        self.is_ready = False
        self._take(assignment)

    def _take(self, assignment: Assignment) -> None:
        """Become the process that the assignment names."""
        self.role: Role = assignment.role
        self.rank = assignment.rank
        self.epoch = assignment.epoch
        self.name = process_name(assignment.role, assignment.rank)
        self.listen_fd = assignment.listen_fd
        self.is_recovery = assignment.is_recovery
        self.is_ready = self._has_finished_work = False
        self._encoder = Encoder(Source(self.role, self.rank, self.epoch), self._boot_id)
        self._outboxes = Outboxes(self._zmq, self.run_dir, self._encoder)

    # What the main coroutine uses

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        """Queue a frame for the process of that name; never blocks. Loop thread only."""
        if destination == SUPERVISOR_NAME:
            self._channel.send(frame)
        else:
            self._outboxes.send(destination, frame)

    def set_phase(self, phase: str, deadline_s: float = 0.0) -> None:
        """Declare the current phase, and how long it may go without progress (0: only heartbeats count)."""
        with self._phase_lock:
            self._phase = (phase, self._phase[1] + 1, deadline_s)

    def progress(self) -> None:
        """Count one unit of progress."""
        with self._phase_lock:
            phase, count, deadline_s = self._phase
            self._phase = (phase, count + 1, deadline_s)

    def finished_work(self) -> None:
        """Note a finished step or job. The first is reported at once: the process may end before its next heartbeat."""
        if not self._has_finished_work:
            self._has_finished_work = True
            self._loop.call_soon_threadsafe(lambda: self._channel.send(self._heartbeat()))

    def open_inbox(self, inbound: Any, handler: FrameHandler) -> OpenInbox:
        """Bind the inbox and deliver frames, process tables and requests for metrics to `handler`."""
        self._metrics = handler.metrics
        self._on_process_table = handler.on_process_table
        if self.process_table.processes:
            handler.on_process_table(self.process_table)
        decoder: Decoder[Any] = Decoder(inbound, self._boot_id)
        take, end = handler.on_frame, handler.on_batch_end
        self._inbox = inbox = Inbox(self._zmq, self.run_dir, self.name, decoder, take, end, self._dropped)
        inbox.open()
        return inbox

    def blocking_link(self, inbound: Any) -> BlockingLink:
        """Bind the inbox for the calling thread."""
        decoder: Decoder[Any] = Decoder(inbound, self._boot_id)
        link = ThreadLink(self._zmq, self.run_dir, self.name, decoder, self._encoder, self._dropped)
        self._inbox = link
        return link

    def report_metrics(self, metrics: Callable[[], Metrics]) -> None:
        """Put the metrics that the function returns into the Snapshot of each second."""
        self._metrics = metrics

    def process_metrics(self) -> Metrics:
        """Return what the vitals of this process are."""
        return self._vitals.metrics(self.role.label)

    def ready(self, facts: Facts) -> None:
        """Report Ready. A phase that the main coroutine has declared itself is kept."""
        settle_memory()
        if self._phase[0] == "starting":
            self.set_phase("serving")
        self.is_ready = True
        self._vitals.on_ready()
        self._channel.send(Ready(facts))

    def on_bug(self) -> None:
        """End the process at once, unless it is an api process. Called while the exception is handled."""
        if self.role is Role.API:
            return
        error = sys.exception()
        if self.is_ready or error is None:
            log.critical("a bug ends this process", exc_info=True)
            logging.shutdown()
        else:
            self._channel.send(fatal_of(error))
        os._exit(EXIT_BUG)

    async def promoted(self) -> bool:
        """Wait for the supervisor's second Assignment, or its Drain; return whether it was the former."""
        await asyncio.wait((self._promotion, self._drain), return_when=asyncio.FIRST_COMPLETED)
        return self._promotion.done()

    async def drain_requested(self) -> float:
        """Wait for the supervisor's Drain; return its limit."""
        return (await self._drain).limit_s

    # What the runtime does beside it

    def on_control(self) -> None:
        """Read the control socket until it is empty."""
        table = None
        while True:
            try:
                message = self._channel.receive()
            except BlockingIOError:
                break
            if message is None:
                # The supervisor is gone, and with it every client. Nothing is flushed.
                os._exit(1)
            if isinstance(message, ProcessTable):
                table = message
            elif isinstance(message, Drain) and not self._drain.done():
                self._drain.set_result(message)
            elif isinstance(message, Assignment) and not self._promotion.done():
                self._outboxes.close()
                self._take(message)
                _configure_logging(message)
                self._promotion.set_result(True)
        if table is not None:
            self.process_table = table
            try:
                if self._on_process_table is not None:
                    self._on_process_table(table)
            finally:
                self._channel.send_if_possible(self._heartbeat())

    async def send_heartbeats(self) -> None:
        """Send a heartbeat four times a second, from the main loop."""
        while True:
            self._channel.send_if_possible(self._heartbeat())
            await asyncio.sleep(HEARTBEAT_S)

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(*self._phase, self.process_table.serial, self._has_finished_work)

    async def send_snapshots(self) -> None:
        """Send the metrics to every api process each second, and look whether the inbox can be reached."""
        while True:
            await asyncio.sleep(SNAPSHOT_S)
            if self._inbox is not None:
                self._inbox.keep_reachable()
                self._vitals.queue_depth = self._inbox.take_depth()
            numbers = self._vitals.with_metrics(self.role.label, self._metrics())
            snapshot = Snapshot(self.role, self.rank, self.epoch, *numbers)
            for process in self.process_table.processes:
                name = process_name(process.role, process.rank)
                if process.role is Role.API and name != self.name:
                    self.send(name, snapshot)

    def close(self) -> None:
        """Close every socket."""
        self._outboxes.close()
        self._zmq.destroy(linger=0)


def run_process(main: Main) -> None:
    """Run a main coroutine until the supervisor has the process drained, or dies. Never returns.

    Reads `--control-fd` and `--parent-pid` from the command line. Exit code 0 after a drain, that of a StartError, and
    EXIT_BUG for any other exception before the process was ready. The supervisor is told of such errors.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    arguments = parser.parse_args()
    depend_on_parent(arguments.parent_pid)
    defer_collection()
    control = socket.socket(fileno=arguments.control_fd)
    control.setblocking(True)
    channel: ControlChannel[ChildInbound] = ControlChannel(control, ChildInbound)
    assignment = channel.receive()
    if not isinstance(assignment, Assignment):
        sys.exit(1)
    control.setblocking(False)
    _configure_logging(assignment)
    sys.exit(uvloop.run(_run(assignment, channel, main)))


def _configure_logging(assignment: Assignment) -> None:
    config, name = assignment.config, process_name(assignment.role, assignment.rank)
    configure_logging(config.monitoring.log_level, name, config.monitoring.log_format, config.is_coloured)


def _make_context(assignment: Assignment, channel: "ControlChannel[ChildInbound]") -> ProcessContext:
    """Return the context, with faults if there are any. Raises ConfigError if they cannot be read."""
    failpoints.activate(assignment.role.label)
    if failpoints.active is None:
        return ProcessContext(assignment, channel)
    from quartet.runtime.faulty_context import FaultyContext

    log.warning("%s is set: faults are injected into this process", failpoints.VARIABLE)
    return FaultyContext(assignment, channel, failpoints.active)


async def _run(assignment: Assignment, channel: "ControlChannel[ChildInbound]", main: Main) -> int:
    try:
        context = _make_context(assignment, channel)
    except ConfigError as refusal:
        channel.send(fatal_of(refusal))
        return refusal.exit_code
    exit_code = 0
    try:
        asyncio.get_running_loop().add_reader(channel.socket.fileno(), context.on_control)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(context.send_heartbeats()), group.create_task(context.send_snapshots())]
            await main(context)
            for task in tasks:
                task.cancel()
        channel.send(Drained())
    except* Exception as group_of_errors:
        error = first_of(group_of_errors)
        if context.is_ready and not isinstance(error, StartError):
            raise
        fatal = fatal_of(error)
        channel.send(fatal)
        exit_code = fatal.exit_code
    finally:
        context.close()
    return exit_code
