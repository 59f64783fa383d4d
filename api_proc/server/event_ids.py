"""The ids of a stream's events, `id: <request id>:<number>`, and what of it a client has seen already.

Numbers count the events of the response from 0, without comments. They follow from the recorded output alone, so the
same event has the same number in every process and on every connection.
"""

from quartet.wire.ids import Rid

END = b"\n\n"
"""The end of an event; JSON holds no bare line ends."""


class EventIds:
    """Numbers the events of one connection.

    Args:
        stream: the response.
        seen: the number of the last event that the client has; events up to it are left out. None: it has none.
    """

    def __init__(self, stream: Rid, seen: int | None) -> None:
        self._prefix = b"id: %b:" % stream.hex().encode()
        self._first = 0 if seen is None else seen + 1
        self._next = 0

    def number(self, payload: bytes) -> bytes:
        """Return the events of `payload` that the client has not seen, each with its id."""
        # The search for one byte is many times faster than for two.
        if payload.find(b"\n") == len(payload) - len(END):
            return self._one(payload)
        return b"".join(self._one(event + END) for event in payload.split(END)[:-1])

    def _one(self, event: bytes) -> bytes:
        number = self._next
        self._next = number + 1
        return b"%b%d\n%b" % (self._prefix, number, event) if number >= self._first else b""
