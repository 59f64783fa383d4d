"""Writes weights as safetensors files of bounded size, so that a model larger than memory can be converted."""

import errno
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, TensorSpec, serialize_file

SHARD_BYTES = 2 << 30
"""What one file holds at most, unless one tensor is larger; this much is in memory at a time."""
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}


class StoredShape(NamedTuple):
    """One tensor of the output; `dtype` is a key of _ITEM_BYTES."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        """Size of its values."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def write_shards(
    folder: Path, tensors: Sequence[StoredShape], load: Callable[[int], npt.NDArray[Any]], limit: int = SHARD_BYTES
) -> None:
    """Write `tensors` to model.safetensors, or to several files and their index if they take more than `limit` bytes.

    `load(index)` returns the values of each in turn: its shape, C-contiguous, those of bfloat16 as uint16. Raises
    OSError if the disk is full.
    """
    shards = _divide(tensors, limit)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
    for name, members in zip(names, shards, strict=True):
        values = {index: load(index) for index in members}
        _save(folder / name, {tensors[index]: values[index] for index in members})
    if len(shards) > 1:
        places = {tensors[index].name: name for name, members in zip(names, shards, strict=True) for index in members}
        total = {"total_size": sum(tensor.size_bytes for tensor in tensors)}
        index_file = folder / "model.safetensors.index.json"
        index_file.write_text(json.dumps({"metadata": total, "weight_map": places}, indent=2), encoding="utf-8")


def _divide(tensors: Sequence[StoredShape], limit: int) -> list[list[int]]:
    shards: list[list[int]] = [[]]
    filled = 0
    for index, tensor in enumerate(tensors):
        if shards[-1] and filled + tensor.size_bytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(index)
        filled += tensor.size_bytes
    return shards


def _save(path: Path, values: dict[StoredShape, npt.NDArray[Any]]) -> None:
    specs = {}
    for tensor, array in values.items():
        assert array.shape == tensor.shape and array.flags.c_contiguous and array.nbytes == tensor.size_bytes, tensor
        specs[tensor.name] = TensorSpec(
            dtype=tensor.dtype, shape=list(tensor.shape), data_ptr=array.ctypes.data, data_len=array.nbytes
        )
    try:
        serialize_file(specs, str(path), {"format": "pt"})
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number) if found else str(error), str(path)) from error


def as_stored(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return `values`, which lose nothing in `dtype`, as `write_shards` takes them."""
    whole = np.ascontiguousarray(values)
    if dtype == "bfloat16":
        # The upper half of a float32.
        return (whole.view(np.uint32) >> 16).astype(np.uint16)
    return whole.astype(dtype, copy=False)
