"""Writes a safetensors file tensor by tensor, so that a model larger than memory can be converted.

The layout is that of the safetensors format: header length u64, JSON header padded with spaces to 8 bytes, data.
"""

import json
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

_ALIGNMENT = 8


def write_float32(
    path: Path,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    load: Callable[[int], npt.NDArray[np.float32]],
) -> None:
    """Write `tensors` (name, shape) to `path`; `load(index)` returns the values of each in turn.

    Raises ValueError if `load` returns another shape, OSError if the disk is full.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors:
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for index, (name, shape) in enumerate(tensors):
            values = load(index)
            if values.shape != shape:
                raise ValueError(f"tensor {name} has the shape {values.shape} instead of {shape}")
            file.write(np.ascontiguousarray(values, dtype="<f4").data)
