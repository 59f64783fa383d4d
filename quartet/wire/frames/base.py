"""What every frame is, and how token ids travel in one."""

import sys
from array import array

import msgspec

ID_BYTES = 4
"""Bytes of a token id, slot or page on the wire."""


class Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of everything on the wire.

    A frame with columns of ids checks their lengths in `__post_init__`, so that one with others does not pass the
    codec."""


def check_ids(*columns: bytes) -> None:
    """Raise ValueError unless each column consists of whole ids."""
    for column in columns:
        if len(column) % ID_BYTES:
            raise ValueError(f"a column of ids of {len(column)} bytes")


def check_columns(first: bytes, *others: bytes) -> None:
    """Raise ValueError unless the columns consist of whole ids, and of equally many."""
    check_ids(first)
    for column in others:
        if len(column) != len(first):
            raise ValueError(f"columns of {len(first)} and {len(column)} bytes")


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
