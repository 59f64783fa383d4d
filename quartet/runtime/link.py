"""ZeroMQ links: an inbox that its owner binds, and one PUSH socket for each destination.

The receiver binds and senders connect, so that what was sent to a process that died waits for its successor. The
inbox drains its file descriptor on the event loop: awaiting every message would cost more than the message.
"""

import asyncio
import collections
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from quartet.wire.codec import MAX_FRAME_BYTES, Decoder, Encoder, Source
from quartet.wire.errors import FrameError

log = logging.getLogger(__name__)

DRAIN_BUDGET = 256
"""Frames taken in one turn of the loop before others get theirs."""
RECONNECT_MS = 5


def endpoint(run_dir: str, name: str) -> str:
    """Return the ZeroMQ endpoint of the process of that name."""
    return f"ipc://{os.path.join(run_dir, name)}.sock"


class _BoundFile:
    """A PULL socket and the socket file that senders find it by.

    Without its file the socket keeps its connections, but no process that starts later reaches it.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", run_dir: str, name: str) -> None:
        self.socket = context.socket(zmq.PULL)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._endpoint = endpoint(run_dir, name)
        self.bind()

    def bind(self) -> None:
        """Make the file. Raises zmq.ZMQError if its folder is missing."""
        self.socket.bind(self._endpoint)
        self._inode = self._found()

    def is_lost(self) -> bool:
        """Return whether the file is gone, or is that of another socket. Safe from any thread."""
        return not self.socket.closed and self._found() != self._inode

    def bind_again(self) -> None:
        """Make the file again, if its folder is there. What is connected stays."""
        try:
            self.bind()
        except zmq.ZMQError as error:
            log.error("%s cannot be bound again: %s", self._endpoint, error.strerror)
        else:
            log.warning("%s was gone and is bound again", self._endpoint)

    def _found(self) -> int:
        try:
            return os.stat(self._endpoint.removeprefix("ipc://")).st_ino
        except OSError:
            return -1


class Outboxes:
    """One PUSH socket for each destination, connected at first use. For one thread.

    The high-water mark is off: the number of frames in flight is bounded by admission, not here.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", run_dir: str, encoder: Encoder) -> None:
        self._context = context
        self._run_dir = run_dir
        self._encode = encoder.encode
        self._sockets: dict[str, zmq.Socket[bytes]] = {}

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        """Queue a frame for a process; never blocks. What does not fit into a frame raises FrameError."""
        socket = self._sockets.get(destination)
        if socket is None:
            socket = self._sockets[destination] = self._connect(destination)
        socket.send(self._encode(frame), zmq.NOBLOCK)

    def _connect(self, destination: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(zmq.PUSH)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 50)
        socket.connect(endpoint(self._run_dir, destination))
        return socket

    def close(self) -> None:
        """Close every socket; what is still queued is dropped."""
        for socket in self._sockets.values():
            socket.close(linger=0)
        self._sockets.clear()


class Inbox:
    """The inbox of an actor that lives on the event loop.

    Args:
        on_frame: called for each good frame. An exception from it is logged and counted; the loop goes on.
        on_batch_end: called after each burst.
        dropped: counts frames not acted upon, by reason.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        run_dir: str,
        name: str,
        decoder: Decoder[Any],
        on_frame: Callable[[Source, Any], None],
        on_batch_end: Callable[[], None],
        dropped: "collections.Counter[str]",
    ) -> None:
        self._file = _BoundFile(context, run_dir, name)
        self._socket = self._file.socket
        self._decode = decoder.decode
        self._on_frame = on_frame
        self._on_batch_end = on_batch_end
        self._dropped = dropped
        self._depth = 0
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        """Begin to take frames; what came since the inbox was bound has waited."""
        self._loop.add_reader(self._socket.fileno(), self._drain)
        self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        # The descriptor is edge-triggered: it must be read until empty, or looked at again without waiting for it.
        if self._socket.closed:
            return
        taken = 0
        while taken < DRAIN_BUDGET:
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            taken += 1
            self._take(data)
        else:
            self._loop.call_soon(self._drain)
        if taken > self._depth:
            self._depth = taken
        if taken:
            try:
                self._on_batch_end()
            except Exception:
                self._dropped["handler"] += 1
                log.exception("a handler failed at the end of a batch")

    def _take(self, data: bytes) -> None:
        try:
            source, frame = self._decode(data)
            self._on_frame(source, frame)
        except FrameError as error:
            self._dropped[error.reason] += 1
            log.debug("frame dropped: %s", error)
        except Exception:
            # Only an api process gets here: of any other a bug of the core ends the process (Context.on_bug).
            self._dropped["handler"] += 1
            log.exception("a handler failed")

    def take_depth(self) -> int:
        """Return how many frames waited at most when the inbox was looked at, since the last call."""
        depth, self._depth = self._depth, 0
        return depth

    def keep_reachable(self) -> None:
        """Bind again if the socket's file is gone. Called each second."""
        if self._file.is_lost():
            self._file.bind_again()

    def close(self) -> None:
        """Stop reading and unbind."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close(linger=0)


class ThreadLink:
    """Inbox and outboxes for one thread that blocks on its inbox. Create and use it in that thread."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        run_dir: str,
        name: str,
        decoder: Decoder[Any],
        encoder: Encoder,
        dropped: "collections.Counter[str]",
    ) -> None:
        self._file = _BoundFile(context, run_dir, name)
        self._socket = self._file.socket
        self._is_lost = False
        self._outboxes = Outboxes(context, run_dir, encoder)
        self._decode = decoder.decode
        self._dropped = dropped
        self._waiting = self._depth = 0

    def recv(self, timeout_s: float) -> tuple[Source, Any] | None:
        """Return the next good frame, or None after `timeout_s`; bad ones are counted and skipped."""
        if self._is_lost:
            self._is_lost = False
            self._file.bind_again()
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                data = self._socket.recv(zmq.NOBLOCK)
                self._waiting += 1
            except zmq.Again:
                self._depth, self._waiting = max(self._depth, self._waiting), 0
                left_ms = int((deadline_s - time.monotonic()) * 1000) if timeout_s > 0 else 0
                if left_ms <= 0:
                    return None
                self._socket.setsockopt(zmq.RCVTIMEO, left_ms)
                try:
                    data = self._socket.recv()
                except zmq.Again:
                    return None
            try:
                return self._decode(data)
            except FrameError as error:
                self._dropped[error.reason] += 1
                log.debug("frame dropped: %s", error)

    def take_depth(self) -> int:
        """Return how many frames in a row did not have to be waited for, at most, since the last call. Any thread."""
        depth, self._depth = self._depth, 0
        return depth

    def keep_reachable(self) -> None:
        """Have the thread bind again if the socket's file is gone. Called each second, from any thread."""
        self._is_lost = self._file.is_lost()

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        """Queue a frame for a process; never blocks."""
        self._outboxes.send(destination, frame)

    def close(self) -> None:
        """Close every socket."""
        self._outboxes.close()
        self._socket.close(linger=0)
