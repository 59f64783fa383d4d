"""The records of recorded streams, and how they lie in a file. Sans-IO.

    body length u32 | CRC32 of the body u32 | body (tagged msgpack array)

A process that is killed leaves at most one incomplete record, the last. Its output was not sent to the client:
records are written first.
"""

import struct
import zlib
from typing import NamedTuple

import msgspec

from api_proc.server.usage import Totals
from quartet.client.request import GenerateRequest, Output
from quartet.wire.errors import RequestError
from quartet.wire.frames import Encoded, unpack_ids
from quartet.wire.ids import Rid

HEADER = struct.Struct("<II")


class _Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of what is written."""


class RecordedPrompt(_Record, frozen=True):
    """One request of the engine. `request` has no prompt, `encoded` its ids, and its text if that is echoed."""

    rid: Rid
    request: GenerateRequest
    encoded: Encoded

    @property
    def prompt_text(self) -> str:
        """The prompt's text, if it is echoed."""
        return self.encoded.text

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt as the tokenizer encoded it."""
        return unpack_ids(self.encoded.ids)


class Begun(_Record, frozen=True, tag=1):
    """A response begins. `stream` is the rid of its first prompt, `owner` the digest of its API key, `window_s` how
    long it is kept without a reader, `start_s` when it was asked for, on the machine's monotonic clock, `shape` what
    writes it."""

    stream: Rid
    owner: str
    window_s: float
    start_s: float
    shape: msgspec.Raw
    include_usage: bool
    continuous_usage: bool
    choices_each: int
    prompts: list[RecordedPrompt]


class Delivered(_Record, frozen=True, tag=2):
    """One increment, of the prompt whose first choice is `base`; it came at `time_s`."""

    stream: Rid
    base: int
    time_s: float
    output: Output


class Ended(_Record, frozen=True, tag=5):
    """Every choice of the response has finished; what its increments add up to."""

    stream: Rid
    totals: Totals


class Broken(_Record, frozen=True, tag=3):
    """The response has ended with an error."""

    stream: Rid
    status: int
    code: str
    message: str
    param: str | None
    retry_after_s: float | None

    @classmethod
    def of(cls, stream: Rid, error: RequestError) -> "Broken":
        """Return the record of an error."""
        return cls(stream, error.status, error.code, error.message, error.param, error.retry_after_s)

    def error(self) -> RequestError:
        """Return the error."""
        return RequestError(self.status, self.code, self.message, self.param, self.retry_after_s)


class Forgotten(_Record, frozen=True, tag=4):
    """The response's window has passed."""

    stream: Rid


Record = Begun | Delivered | Ended | Broken | Forgotten

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Record).decode
decode_delivered = msgspec.msgpack.Decoder(Delivered).decode

DELIVERED = b"\x95\x02\xc4\x10"
"""How a Delivered begins: an array of five, the tag, a string of 16 bytes."""


def stream_of_delivered(body: bytes) -> Rid | None:
    """Return the stream of a Delivered without decoding it; None for another record."""
    return Rid(body[4:20]) if body.startswith(DELIVERED) else None


class DamagedError(Exception):
    """A file holds what was never written to it."""


def framed(body: bytes) -> bytes:
    """Return a record as it lies in a file."""
    return HEADER.pack(len(body), zlib.crc32(body)) + body


class Scan(NamedTuple):
    """The bodies of a file's records, and the bytes up to the end of the last whole one."""

    bodies: list[bytes]
    good_bytes: int


def scan(data: bytes) -> Scan:
    """Read a file; an incomplete last record is left out. Raises DamagedError for a body that its CRC contradicts."""
    bodies = []
    at = 0
    while at + HEADER.size <= len(data):
        length, crc = HEADER.unpack_from(data, at)
        body = data[at + HEADER.size : at + HEADER.size + length]
        if len(body) < length:
            break
        if zlib.crc32(body) != crc:
            raise DamagedError(f"record at byte {at}")
        bodies.append(body)
        at += HEADER.size + length
    return Scan(bodies, at)
