"""Reads the header of a GGUF file: metadata and the position of each tensor. Reads no tensor data.

The layout (GGUF versions 2 and 3, little-endian) is that of ggml's `docs/gguf.md`:

    "GGUF" | version u32 | tensor count u64 | key count u64 | keys and values | tensor infos | padding | tensor data

Every length is checked against the file size before it is used, so that a damaged or hostile file is refused
with one line instead of exhausting memory. Called by the converter alone, because gguf's constants import numpy.
"""

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from quartet.checkpoint.readable import unreadable
from quartet.wire.errors import ModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_NESTING = 4
_MAX_ITEMS = 5_000_000
"""Of all arrays of the metadata; more than twice what the largest vocabulary has."""
_DEFAULT_ALIGNMENT = 32
_OLDER_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggmf", b"ggjt", b"ggla")
_LFS_POINTER = b"version https://git-lfs"
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING = 8
_ARRAY = 9
_U32 = _SCALARS[4]
_U64 = _SCALARS[10]


class TensorInfo(NamedTuple):
    """The position of one tensor: `shape` outermost dimension first, `start` in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size_bytes: int


class GgufHeader(NamedTuple):
    """Everything in front of the tensor data."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> GgufHeader:
    """Return metadata and tensor infos of the GGUF file at `path`.

    Raises ModelError with one line if the file is missing, no GGUF, cut short or contradicts itself.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).read()
    except OSError as error:
        raise unreadable(error, path) from error
    except _Unsupported as error:
        raise ModelError(f"{path.name} {error}") from error
    except (_Damaged, struct.error, ValueError) as error:
        raise ModelError(f"{path} is not a usable GGUF file: {error}; download it again") from error


def _refuse_part(metadata: dict[str, Any]) -> None:
    count, number = metadata.get("split.count", 1), metadata.get("split.no", 0)
    if isinstance(count, int) and isinstance(number, int) and count > 1:
        raise _Unsupported(
            f"is part {number + 1} of {count}; join the parts with "
            "`llama-gguf-split --merge FIRST_PART WHOLE_FILE` and give the whole file"
        )


class _Damaged(Exception):
    """The file contradicts itself."""


class _Unsupported(Exception):
    """The file is whole, but of a kind that is not read; the text says what to do."""


class _Reader:
    """A cursor over the bytes of a header."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0
        self._items = 0

    def read(self) -> GgufHeader:
        if self._data[:4] != _MAGIC:
            self._refuse_other_file()
        self._at = 4
        self._check_version(self._scalar(_U32))
        tensor_count, key_count = self._count(24), self._count(12)
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string()
            metadata[key] = self._value(self._scalar(_U32))
        _refuse_part(metadata)
        infos = [self._tensor_info() for _ in range(tensor_count)]
        return GgufHeader(metadata, self._place(infos, metadata))

    def _refuse_other_file(self) -> None:
        if self._data[:4] in _OLDER_MAGICS:
            raise _Unsupported("is of an older format than GGUF; convert the model again with a newer llama.cpp")
        if self._data[: len(_LFS_POINTER)] == _LFS_POINTER:
            raise _Unsupported("is a Git LFS pointer instead of the file itself; fetch it with git lfs pull")
        raise _Damaged("it does not start with the letters GGUF")

    @staticmethod
    def _check_version(version: int) -> None:
        if version in _VERSIONS:
            return
        if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *_VERSIONS):
            raise _Unsupported("is big-endian; convert it with gguf-convert-endian FILE little")
        if version == 1:
            raise _Unsupported("is of GGUF version 1; convert the model again with a newer llama.cpp")
        raise _Unsupported(f"is of GGUF version {version}, newer than {_VERSIONS[-1]}, which is the newest supported")

    def _scalar(self, layout: struct.Struct) -> Any:
        at = self._at
        self._at = at + layout.size
        if self._at > len(self._data):
            raise _Damaged("it ends inside the header")
        return layout.unpack_from(self._data, at)[0]

    def _count(self, smallest_item_bytes: int) -> int:
        """Read a number of items and refuse it if so many could not lie in the rest of the file."""
        count: int = self._scalar(_U64)
        if count * smallest_item_bytes > len(self._data) - self._at:
            raise _Damaged("it ends inside the header")
        return count

    def _string(self) -> str:
        length = self._count(1)
        start = self._at
        self._at = start + length
        return self._data[start : self._at].decode("utf-8", "surrogateescape")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY and depth < _MAX_NESTING:
            return self._array(depth)
        raise _Damaged(f"metadata type {kind} is unknown")

    def _array(self, depth: int) -> list[Any]:
        kind = self._scalar(_U32)
        if kind in _SCALARS:
            layout = _SCALARS[kind]
            count = self._items_of_array(layout.size)
            start = self._at
            self._at = start + count * layout.size
            return list(struct.unpack_from(f"<{count}{layout.format[1:]}", self._data, start))
        count = self._items_of_array(8)
        return [self._value(kind, depth + 1) for _ in range(count)]

    def _items_of_array(self, smallest_item_bytes: int) -> int:
        """Read the length of an array; a list takes up to 64 bytes of memory for a byte of the file."""
        count = self._count(smallest_item_bytes)
        self._items += count
        if self._items > _MAX_ITEMS:
            raise _Damaged(f"its metadata has more than {_MAX_ITEMS} values")
        return count

    def _tensor_info(self) -> TensorInfo:
        """Read one info; its `start` still counts from the start of the tensor data."""
        name = self._string()
        dimensions = self._scalar(_U32)
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise _Damaged(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._scalar(_U64) for _ in range(dimensions))[::-1]
        kind = self._tensor_kind(name)
        start = self._scalar(_U64)
        block_items, block_bytes = GGML_QUANT_SIZES[kind]
        items = 1
        for extent in shape:
            items *= extent
        if not items or shape[-1] % block_items:
            raise _Damaged(f"tensor {name!r} of shape {shape} cannot be of type {kind.name}")
        return TensorInfo(name, shape, kind, start, items // block_items * block_bytes)

    def _tensor_kind(self, name: str) -> GGMLQuantizationType:
        number = self._scalar(_U32)
        try:
            return GGMLQuantizationType(number)
        except ValueError as error:
            raise _Unsupported(
                f"holds tensor {name!r} of type {number}, which is not known; take another quantisation"
            ) from error

    def _place(self, infos: list[TensorInfo], metadata: dict[str, Any]) -> dict[str, TensorInfo]:
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise _Damaged(f"alignment {alignment!r} is impossible")
        data_start = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for info in infos:
            placed = info._replace(start=data_start + info.start)
            if placed.start + placed.size_bytes > len(self._data):
                raise _Damaged(f"it ends before the end of tensor {info.name!r}")
            if info.name in tensors:
                raise _Damaged(f"tensor {info.name!r} appears twice")
            tensors[info.name] = placed
        if sum(info.size_bytes for info in infos) > len(self._data):
            raise _Damaged("its tensors overlap")
        return tensors
