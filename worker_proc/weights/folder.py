"""The safetensors files of a Hugging Face folder: checked against their own headers before their data is used."""

import json
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from quartet.wire.errors import ModelError

_MAX_HEADER_BYTES = 100 << 20
_INDEX = "model.safetensors.index.json"


def find_tensors(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Return file and shape of every tensor in the folder.

    Raises ModelError in one line for a folder without weights, a missing shard, a damaged header, or a file whose size
    contradicts its header (an incomplete download)."""
    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for path in _files(folder):
        for name, info in _read_header(path).items():
            if name != "__metadata__":
                found[name] = (path, tuple(info["shape"]))
    return found


def prefetch(folder: Path) -> None:
    """Have the operating system read the weights into the page cache; returns at once and never fails."""
    for path in folder.glob("*.safetensors"):
        with suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def check_names(
    found: dict[str, tuple[Path, tuple[int, ...]]], expected: dict[str, tuple[int, ...]], ignored: Iterable[str]
) -> None:
    """Raise ModelError naming the first tensor that is missing, unexpected or of another shape than expected.

    `ignored` are suffixes of the names of tensors that the model does not need."""
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"tensor {name} is missing from the checkpoint")
        if found[name][1] != shape:
            raise ModelError(f"tensor {name} has shape {list(found[name][1])}, config.json asks for {list(shape)}")
    endings = tuple(ignored)
    for name in found:
        if name not in expected and not name.endswith(endings):
            raise ModelError(f"tensor {name} is unexpected: config.json describes another model")


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"no *.safetensors in {folder}; give a folder in Hugging Face layout")
        return files
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is damaged: {error}") from error
    for name in names:
        if Path(name).name != name or not (folder / name).exists():
            raise ModelError(f"{index.name} names {name}, which is not in the folder: download it again")
    return [folder / name for name in names]


def _read_header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise ModelError(f"{path.name} is no safetensors file or is cut short ({size} bytes)")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            end = max((info["data_offsets"][1] for name, info in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(f"{path.name} has a damaged header: {error}") from error
    if 8 + length + end != size:
        raise ModelError(f"{path.name} has {size} bytes, its header asks for {8 + length + end}: download it again")
    return header
