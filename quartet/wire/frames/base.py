"""What every frame is, and how token ids travel in one."""

import sys
from array import array

import msgspec

ID_BYTES = 4
"""Bytes of a token id, slot or page on the wire."""


class Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of everything on the wire."""


def pack_ids(ids: "list[int] | array[int]") -> bytes:
    """Return little-endian int32 bytes of `ids`."""
    packed = array("i", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(data: bytes) -> list[int]:
    """Return the ids in little-endian int32 bytes; raises ValueError if the length is no multiple of ID_BYTES."""
    unpacked = array("i")
    unpacked.frombytes(data)
    if sys.byteorder == "big":
        unpacked.byteswap()
    return unpacked.tolist()
