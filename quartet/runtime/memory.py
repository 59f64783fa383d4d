"""The in-memory twin of the links: named inboxes in one process, with faults on demand.

Frames still pass through the codec, so what works here fits on the wire. Delivery is in order for each pair and
happens only in `deliver` or `run_until_idle`, so that a test decides when.
"""

import collections
from collections.abc import Callable
from typing import Any

import msgspec

from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.errors import FrameError

Handler = Callable[[Source, Any], None]
Fault = Callable[[str, bytes], list[bytes]]
"""Given the destination and the bytes of one frame, the frames that arrive instead: [] drops, two duplicate."""


class MemoryNetwork:
    """A run directory without sockets.

    `dropped` counts what was not acted upon by reason, as the real links do; `fault` may be set at any time.
    """

    def __init__(self, boot_id: int = 1) -> None:
        self.boot_id = boot_id
        self.dropped: collections.Counter[str] = collections.Counter()
        self.fault: Fault | None = None
        self._inboxes: dict[str, tuple[Decoder[Any], Handler]] = {}
        self._waiting: collections.deque[tuple[str, bytes]] = collections.deque()

    def bind(self, name: str, inbound: Any, handler: Handler) -> None:
        """Bind an inbox; a later bind of the same name replaces it, as a restarted process does."""
        self._inboxes[name] = (Decoder(inbound, self.boot_id), handler)

    def unbind(self, name: str) -> None:
        """Take an inbox away; what is sent to it waits for the next bind."""
        self._inboxes.pop(name, None)

    def sender(self, source: Source) -> Callable[[str, msgspec.Struct], None]:
        """Return the `send(destination, frame)` of one process incarnation."""
        encoder = Encoder(source, self.boot_id)

        def send(destination: str, frame: msgspec.Struct) -> None:
            data = encoder.encode(frame)
            for copy in [data] if self.fault is None else self.fault(destination, data):
                self._waiting.append((destination, copy))

        return send

    @property
    def is_busy(self) -> bool:
        """Whether a frame waits that could be delivered."""
        return any(name in self._inboxes for name, _ in self._waiting)

    def deliver(self) -> bool:
        """Deliver the oldest frame that has an inbox; returns False if there is none."""
        for position, (name, data) in enumerate(self._waiting):
            inbox = self._inboxes.get(name)
            if inbox is not None:
                del self._waiting[position]
                decoder, handler = inbox
                try:
                    handler(*decoder.decode(data))
                except FrameError as error:
                    self.dropped[error.reason] += 1
                return True
        return False

    def run_until_idle(self, limit: int = 1_000_000) -> int:
        """Deliver until nothing is left; returns how many. Raises RuntimeError past `limit`: the actors never rest."""
        for count in range(limit):
            if not self.deliver():
                return count
        raise RuntimeError(f"still busy after {limit} frames")
