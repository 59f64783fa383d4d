"""The socketpair between the supervisor and one child: one datagram a message, never ZeroMQ.

End of file means that the other side is gone. The child's end is inherited, so no name or address exists that
another process could connect to.
"""

import collections
import socket
from typing import Any, Generic, TypeVar

import msgspec

from quartet.wire.errors import FrameError

T = TypeVar("T")
MAX_MESSAGE_BYTES = 1 << 18


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Return (supervisor's end, child's end); the child's is inheritable, the supervisor's non-blocking."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_MESSAGE_BYTES)
    ours.setblocking(False)
    theirs.set_inheritable(True)
    return ours, theirs


class ControlChannel(Generic[T]):
    """One end of the pair.

    Args:
        end: the socket; made non-blocking.
        inbound: tagged union of the messages taken at this end.
    """

    def __init__(self, end: socket.socket, inbound: Any) -> None:
        self.socket = end
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(inbound).decode
        self._unsent: collections.deque[bytes] = collections.deque()

    def send(self, message: msgspec.Struct) -> None:
        """Send a message that must arrive; kept and tried again by the next send or flush if the peer is slow.

        Raises FrameError for one that is longer than the other side reads."""
        data = self._encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            raise FrameError("too_big", f"a control message of {len(data)} bytes, at most {MAX_MESSAGE_BYTES}")
        self._unsent.append(data)
        self.flush()

    def send_if_possible(self, message: msgspec.Struct) -> None:
        """Send a message that the next one makes obsolete; dropped if the peer is slow or anything waits."""
        self.flush()
        if not self._unsent:
            self._try(self._encode(message))

    def flush(self) -> None:
        """Try to send what waits."""
        while self._unsent and self._try(self._unsent[0]):
            self._unsent.popleft()

    def _try(self, data: bytes) -> bool:
        try:
            self.socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            # The peer is gone; the end of file follows on `recv`.
            self._unsent.clear()
            return False
        return True

    def receive(self) -> T | None:
        """Return the next message; None at end of file. Raises BlockingIOError if there is nothing to read."""
        try:
            data = self.socket.recv(MAX_MESSAGE_BYTES)
        except ConnectionResetError:
            return None
        return self._decode(data) if data else None
