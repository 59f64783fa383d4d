"""Header, encoder and decoder: how a frame becomes the one ZeroMQ part that carries it, and back.

    magic 4s | version u8 | type u8 | source role u8 | source rank u8 | boot id u64 | source epoch u32 |
    body length u32 | CRC32 of the body, begun at `seal` u32 | body (tagged msgspec array)

ZeroMQ is treated as a lossy pipe that may deliver foreign bytes; `Decoder.decode` raises FrameError for everything
that must not be acted upon and nothing else.
"""

import struct
import zlib
from typing import Any, Generic, TypeVar, get_args

import msgspec

from quartet.wire.errors import FrameError
from quartet.wire.ids import Epoch, Role

MAGIC = b"QRTT"
VERSION = 12
HEADER = struct.Struct("<4sBBBBQIII")
MAX_FRAME_BYTES = 64 << 20
ROLES = {int(role): role for role in Role}

T = TypeVar("T")


class Source(msgspec.Struct, frozen=True):
    """The process that sent a frame."""

    role: Role
    rank: int
    epoch: Epoch


def seal(role: int, rank: int, epoch: int, kind: int = 0) -> int:
    """Return what the CRC of a body begins with, so that it tells a damaged source or type, too.

    A frame that arrives with a higher epoch than its sender's would fence off the sender."""
    return rank << 8 ^ role << 16 ^ kind << 24 ^ epoch


class Encoder:
    """Turns frames of one process incarnation into bytes."""

    def __init__(self, source: Source, boot_id: int) -> None:
        self._source = source
        self._boot_id = boot_id
        self._seal = seal(source.role, source.rank, source.epoch)
        self._encode = msgspec.msgpack.Encoder().encode

    def encode(self, frame: msgspec.Struct) -> bytes:
        """Return header and body; raises FrameError("too_big") above MAX_FRAME_BYTES."""
        body = self._encode(frame)
        if len(body) + HEADER.size > MAX_FRAME_BYTES:
            raise FrameError("too_big", f"{type(frame).__name__} of {len(body)} bytes")
        source = self._source
        kind: Any = frame.__struct_config__.tag
        header = HEADER.pack(
            MAGIC,
            VERSION,
            kind,
            source.role,
            source.rank,
            self._boot_id,
            source.epoch,
            len(body),
            zlib.crc32(body, self._seal ^ kind << 24),
        )
        return header + body


class Decoder(Generic[T]):
    """Turns bytes into frames of one inbox's union; everything else is a FrameError.

    Args:
        inbound: the tagged union of frames this inbox takes.
        boot_id: boot id of this launch; frames of another launch are refused.
    """

    def __init__(self, inbound: Any, boot_id: int) -> None:
        kinds = get_args(inbound) or (inbound,)
        self._types = frozenset(kind.__struct_config__.tag for kind in kinds)
        self._decode = msgspec.msgpack.Decoder(inbound).decode
        self._boot_id = boot_id

    def decode(self, data: bytes) -> tuple[Source, T]:
        """Return the sender and the frame; raises FrameError whose reason is one of short, magic, version, type,
        role, boot, length, crc, body."""
        if len(data) < HEADER.size:
            raise FrameError("short")
        magic, version, kind, role, rank, boot_id, epoch, length, crc = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise FrameError("magic")
        if version != VERSION:
            raise FrameError("version", f"{version} instead of {VERSION}")
        if boot_id != self._boot_id:
            raise FrameError("boot")
        if kind not in self._types:
            raise FrameError("type", str(kind))
        body = memoryview(data)[HEADER.size :]
        if len(body) != length:
            raise FrameError("length")
        # `seal`, without a call for each frame.
        if zlib.crc32(body, rank << 8 ^ role << 16 ^ kind << 24 ^ epoch) != crc:
            raise FrameError("crc")
        if role not in ROLES:
            raise FrameError("role", str(role))
        try:
            frame = self._decode(body)
        except ValueError as error:
            raise FrameError("body", str(error)) from error
        except RecursionError as error:
            raise FrameError("body", "nested too deeply") from error
        if type(frame).__struct_config__.tag != kind:
            raise FrameError("type", "header and body disagree")
        return Source(ROLES[role], rank, Epoch(epoch)), frame
