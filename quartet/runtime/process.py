"""The entry of every child process: takes the assignment, binds the inbox, keeps the heart beating.

A child dies with its supervisor: by the parent-death signal, and by end of file on the control socket should the
signal be lost.
"""

import argparse
import asyncio
import collections
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import msgspec
import uvloop
import zmq

from quartet.runtime.actor import Actor, BlockingLink, Context
from quartet.runtime.clock import Clock, MonotonicClock
from quartet.runtime.control import ControlChannel
from quartet.runtime.link import Inbox, Outboxes, ThreadLink
from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.errors import ConfigError, ModelError
from quartet.wire.frames import (
    Assignment,
    ChildInbound,
    Drain,
    Drained,
    Fatal,
    Heartbeat,
    ProcessTable,
    Ready,
    Snapshot,
)
from quartet.wire.ids import Role, process_name

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.25
SNAPSHOT_S = 1.0
EXIT_FATAL = 3
PR_SET_PDEATHSIG = 1


class ProcessContext:
    """The runtime's side of quartet.runtime.actor.Context, for one process incarnation."""

    def __init__(self, assignment: Assignment) -> None:
        self.role: Role = assignment.role
        self.rank = assignment.rank
        self.epoch = assignment.epoch
        self.name = process_name(assignment.role, assignment.rank)
        self.config = assignment.config
        self.listen_fd = assignment.listen_fd
        self.clock: Clock = MonotonicClock()
        self.process_table = ProcessTable([], False)
        self.dropped: collections.Counter[str] = collections.Counter()
        self.inbound: object = None
        self.run_dir = assignment.run_dir
        self.boot_id = assignment.boot_id
        self.zmq = zmq.Context[zmq.Socket[bytes]](io_threads=1)
        self.encoder = Encoder(Source(self.role, self.rank, self.epoch), self.boot_id)
        self.outboxes = Outboxes(self.zmq, self.run_dir, self.encoder)
        self._phase_lock = threading.Lock()
        self._phase = ("starting", 0, 0.0)

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        """Queue a frame for the process of that name; never blocks. Loop thread only."""
        self.outboxes.send(destination, frame)

    def set_phase(self, phase: str, deadline_s: float = 0.0) -> None:
        """Declare what is being done, and how long it may go without progress (0: only heartbeats count)."""
        with self._phase_lock:
            self._phase = (phase, self._phase[1] + 1, deadline_s)

    def leave_phase(self, old: str, new: str) -> None:
        """Move on from a phase unless the actor has declared another itself."""
        if self._phase[0] == old:
            self.set_phase(new)

    def progress(self) -> None:
        """Count one unit of progress."""
        with self._phase_lock:
            phase, count, deadline_s = self._phase
            self._phase = (phase, count + 1, deadline_s)

    def heartbeat(self) -> Heartbeat:
        """Return the heartbeat for this moment."""
        return Heartbeat(*self._phase, self.process_table.serial)

    def blocking_link(self) -> BlockingLink:
        """Bind the inbox for the calling thread."""
        decoder = self.decoder()
        return ThreadLink(self.zmq, self.run_dir, self.name, decoder, self.encoder, self.dropped)

    def decoder(self) -> "Decoder[object]":
        """Return a decoder for the actor's inbox."""
        return Decoder(self.inbound, self.boot_id)


class _Process:
    """One child's main coroutine and the tasks it owns."""

    def __init__(self, context: ProcessContext, channel: "ControlChannel[ChildInbound]", actor: Actor) -> None:
        self._context = context
        self._channel = channel
        self._actor = actor
        self._drain_wanted: asyncio.Future[Drain] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel.socket.fileno(), self._on_control)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._beat()), group.create_task(self._report())]
            inbox = self._bind()
            facts = await self._actor.start()
            if inbox:
                inbox.open()
            _settle_memory()
            self._context.leave_phase("starting", "serving")
            self._channel.send(Ready(facts))
            drain = await self._drain_wanted
            self._context.set_phase("draining")
            await self._actor.drain(drain.limit_s)
            if inbox:
                inbox.close()
            await self._actor.close()
            for task in tasks:
                task.cancel()
        self._channel.send(Drained())

    def _bind(self) -> Inbox | None:
        context, actor = self._context, self._actor
        context.inbound = actor.inbound
        if actor.is_threaded:
            return None
        return Inbox(
            context.zmq,
            context.run_dir,
            context.name,
            context.decoder(),
            actor.on_frame,
            actor.on_batch_end,
            context.dropped,
        )

    def _on_control(self) -> None:
        process_table = None
        while True:
            try:
                message = self._channel.receive()
            except BlockingIOError:
                break
            if message is None:
                # The supervisor is gone, and with it every reason to live. Nothing is flushed: clients are gone too.
                os._exit(1)
            if isinstance(message, ProcessTable):
                process_table = message
            elif isinstance(message, Drain) and not self._drain_wanted.done():
                self._drain_wanted.set_result(message)
        if process_table is not None:
            self._context.process_table = process_table
            self._actor.on_process_table(process_table)
            self._channel.send_if_possible(self._context.heartbeat())

    async def _beat(self) -> None:
        while True:
            self._channel.send_if_possible(self._context.heartbeat())
            await asyncio.sleep(HEARTBEAT_S)

    async def _report(self) -> None:
        context = self._context
        while True:
            await asyncio.sleep(SNAPSHOT_S)
            gauges, counters = self._actor.metrics()
            dropped = {
                f'frames_dropped{{reason="{reason}"}}': float(count) for reason, count in context.dropped.items()
            }
            snapshot = Snapshot(context.role, context.rank, context.epoch, dict(gauges), {**counters, **dropped})
            for process in context.process_table.processes:
                name = process_name(process.role, process.rank)
                if process.role is Role.API and name != context.name:
                    context.send(name, snapshot)


def _settle_memory() -> None:
    """Take what start-up has made out of the garbage collector's sight, and let it run less often: a full collection
    of a large process would stop it for tens of milliseconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies; exits at once if the parent is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def configure_logging(level: str, name: str) -> None:
    """Log to standard error, one line an event, with the process's name."""
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format=f"%(asctime)s {name:<11} %(levelname).1s %(message)s"
    )


def run_process(make_actor: Callable[[Context], Actor]) -> None:
    """Run one actor until the supervisor has it drained, or dies. Never returns.

    Reads `--control-fd` and `--parent-pid` from the command line. Exit code 0 after a drain, 3 if the actor could
    not start and a restart would not help.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=arguments.control_fd)
    control.setblocking(True)
    channel: ControlChannel[ChildInbound] = ControlChannel(control, ChildInbound)
    assignment = channel.receive()
    if not isinstance(assignment, Assignment):
        sys.exit(1)
    control.setblocking(False)
    configure_logging(assignment.config.server.log_level, process_name(assignment.role, assignment.rank))
    sys.exit(uvloop.run(_main(assignment, channel, make_actor)))


async def _main(
    assignment: Assignment, channel: "ControlChannel[ChildInbound]", make_actor: Callable[[Context], Actor]
) -> int:
    context = ProcessContext(assignment)
    exit_code = 0
    try:
        process = _Process(context, channel, make_actor(context))
        await process.run()
    except* (ConfigError, ModelError) as group:
        channel.send(Fatal(str(_first(group))))
        exit_code = EXIT_FATAL
    finally:
        context.outboxes.close()
        context.zmq.destroy(linger=0)
    return exit_code


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
