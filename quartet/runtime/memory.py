"""The in-memory wire: frames of a Pump pass through the codec, so they fit a socket; with faults on demand."""

from collections.abc import Callable
from typing import Any

import msgspec

from quartet.wire.codec import Decoder, Encoder, Source

Fault = Callable[[str, bytes], list[bytes]]
"""Given the destination and the bytes of one frame, the frames that arrive instead: [] drops, two duplicate."""


class MemoryWire:
    """Encodes what is sent and decodes what arrives. `fault` may be set at any time."""

    def __init__(self, boot_id: int = 1) -> None:
        self.boot_id = boot_id
        self.fault: Fault | None = None
        self._encoders: dict[Source, Encoder] = {}
        self._decoders: dict[Any, Decoder[Any]] = {}

    def send(self, source: Source, destination: str, frame: msgspec.Struct) -> list[bytes]:
        """Return the bytes that travel to the destination."""
        encoder = self._encoders.get(source)
        if encoder is None:
            encoder = self._encoders[source] = Encoder(source, self.boot_id)
        data = encoder.encode(frame)
        return [data] if self.fault is None else self.fault(destination, data)

    def receive(self, inbound: Any, data: bytes) -> tuple[Source, Any]:
        """Return the sender and the frame; raises FrameError for what an inbox of that union must not act upon."""
        decoder = self._decoders.get(inbound)
        if decoder is None:
            decoder = self._decoders[inbound] = Decoder(inbound, self.boot_id)
        return decoder.decode(data)
