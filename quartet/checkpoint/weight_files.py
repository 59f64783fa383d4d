"""The safetensors files of a Hugging Face folder: checked against their own headers before their data is used.

Start-up checks names, shapes and types of all tensors; the worker reads the data. Imports no torch.
"""

import itertools
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from quartet.checkpoint.bounded_json import MANY_VALUES, decode_json
from quartet.checkpoint.model_folder import read_json
from quartet.checkpoint.quantization import PLAIN_FLOATS, StoredPart
from quartet.checkpoint.readable import open_file, unreadable
from quartet.checkpoint.spec import ModelSpec, expected_shapes
from quartet.checkpoint.text_part import text_name
from quartet.wire.errors import ModelError

_MAX_HEADER_BYTES = 100 << 20
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# The same weights in the layout of Mistral's own programs, and LoRA adapters: neither is a part of the model.
_OTHER_FILES = ("consolidated", "adapter")
_LFS_POINTER = b"version "
# Buffers saved by old exports. With tied embeddings a saved lm_head repeats the embedding.
_IGNORED = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")
# Stacks of all experts of a layer, and what their rows are.
_STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_MOST_STACKED = 1 << 12


class StoredTensor(NamedTuple):
    """One tensor of a checkpoint; `name` in its file, `dtype` as safetensors names it. `part` is set for rows of a
    stack [E, rows, columns] in the file: which of its matrices, and the first row."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    part: tuple[int, int] | None = None


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the model's weights: one whole file, else those of the index, else all that may.

    Raises ModelError if there are none or if one is missing."""
    if os.path.lexists(folder / _WHOLE):
        return [folder / _WHOLE]
    if (folder / _INDEX).exists():
        return _indexed_files(folder)
    found = _visible_files(folder)
    chosen = [path for path in found if not path.name.startswith(_OTHER_FILES)]
    if not chosen:
        others = f" (found {', '.join(path.name for path in found)})" if found else ""
        raise ModelError(
            f"no *.safetensors in {folder} are weights in Hugging Face layout{others}; "
            "other formats are not loaded, for safety"
        )
    return chosen


def other_files(folder: Path) -> list[str]:
    """Return the names of the safetensors files in the folder that are not read; none if there are no weights."""
    try:
        read = {path.name for path in weight_files(folder)}
    except ModelError:
        return []
    return sorted({path.name for path in _visible_files(folder)} - read)


def find_tensors(folder: Path, spec: ModelSpec | None = None) -> dict[str, StoredTensor]:
    """Return every tensor of the text part of the folder's weights, by its name in a model of text alone. Stacks of
    experts are taken apart, unless `spec` has them stacked.

    Raises ModelError in one line for a folder without weights, a missing shard, a damaged header, a file whose size
    contradicts its header (an incomplete download), or a tensor that two files hold."""
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        for stored, tensor in _read_header(path).items():
            name = text_name(stored)
            if name is None:
                continue
            if name in found:
                raise ModelError(f"tensor {name} is in {found[name].path.name} and in {path.name}: remove one of them")
            found[name] = tensor
    is_stacked = spec is not None and spec.experts is not None and spec.experts.names.is_stacked
    return found if is_stacked else _unstacked(found)


def _unstacked(found: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors with those of all experts of a layer taken apart, as other checkpoints have them."""
    parts: dict[str, StoredTensor] = {}
    for name, tensor in found.items():
        module, _, last = name.rpartition(".")
        names, shape = _STACKED.get(last, ()), tensor.shape
        if not names or not module.endswith(".experts") or len(shape) != 3 or shape[0] > _MOST_STACKED:
            parts[name] = tensor
            continue
        rows = shape[1] // len(names)
        for expert, (place, own) in itertools.product(range(shape[0]), enumerate(names)):
            own_part = tensor._replace(shape=(rows, shape[2]), part=(expert, place * rows))
            parts[f"{module}.{expert}.{own}.weight"] = own_part
    return parts


def check_tensors(found: Mapping[str, StoredTensor], spec: ModelSpec) -> None:
    """Raise ModelError naming the first tensor that does not fit `spec`, by its shape or by how it is quantised."""
    expected = stored_tensors(spec)
    method = spec.quantization
    unused = tuple(f".{ending}" for ending in method.unused) if method is not None else ()
    ignored = (*_IGNORED, *unused, "lm_head.weight") if spec.is_tied else (*_IGNORED, *unused)
    for name, tensor in found.items():
        allowed = expected[name].dtypes if name in expected else PLAIN_FLOATS
        if tensor.dtype not in allowed and not name.endswith(ignored):
            asked = "an unquantised model" if allowed is PLAIN_FLOATS else f"{' or '.join(allowed)} in its place"
            raise ModelError(
                f"tensor {name} in {tensor.path.name} is stored as {tensor.dtype}: config.json describes {asked}; "
                "take a checkpoint whose config.json has its quantization_config, or the unquantised model"
            )
    shapes = {name: _fitted(tensor.shape, expected.get(name)) for name, tensor in found.items()}
    _check_shapes(shapes, {name: part.shape for name, part in expected.items()}, "config.json", ignored)


def stored_tensors(spec: ModelSpec) -> dict[str, StoredPart]:
    """Return the name, shape and types of every tensor that a checkpoint of `spec` must hold."""
    stored: dict[str, StoredPart] = {}
    for name, shape in expected_shapes(spec).items():
        if spec.quantization is None or not spec.quantization.covers(name, shape):
            stored[name] = StoredPart(shape)
            continue
        module = name.removesuffix("weight")
        stored |= {f"{module}{ending}": part for ending, part in spec.quantization.stored(name, shape).items()}
    return stored


def _fitted(shape: tuple[int, ...], expected: StoredPart | None) -> tuple[int, ...]:
    """Return the expected shape for one that differs from it by extents of 1: tools disagree about those of scales."""
    if expected is None or [size for size in shape if size != 1] != [size for size in expected.shape if size != 1]:
        return shape
    return expected.shape


def check_shapes(
    found: Mapping[str, tuple[int, ...]], spec: ModelSpec, source: str, ignored: Iterable[str] = ()
) -> None:
    """Raise ModelError naming the first tensor that is missing, unexpected or of another shape than `spec` has.

    `source` is where the spec comes from; `ignored` are ends of names of tensors that the model does not need."""
    _check_shapes(found, expected_shapes(spec), source, ignored)


def _check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], source: str, ignored: Iterable[str]
) -> None:
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"tensor {name} is missing from the checkpoint")
        if found[name] != shape:
            raise ModelError(f"tensor {name} has shape {list(found[name])}, {source} asks for {list(shape)}")
    endings = tuple(ignored)
    for name in found:
        if name not in expected and not name.endswith(endings):
            raise ModelError(f"tensor {name} is unexpected: {source} describes another model")


def prefetch(folder: Path) -> None:
    """Have the operating system read the weights into the page cache; returns at once and never fails."""
    with suppress(ModelError):
        for path in weight_files(folder):
            with suppress(OSError), path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _visible_files(folder: Path) -> list[Path]:
    """Return the safetensors files of the folder; names that start with a dot are notes of other programs."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors") and not name.startswith("."))
    return [folder / name for name in names]


def _indexed_files(folder: Path) -> list[Path]:
    index = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise ModelError(f"{folder / _INDEX} is damaged: it has no usable weight_map; download it again")
    names = sorted(set(index.values()))
    missing = [name for name in names if Path(name).name != name or not os.path.lexists(folder / name)]
    if missing:
        more = f" ({len(missing)} of {len(names)} files)" if len(missing) > 1 else ""
        raise ModelError(f"{_INDEX} names {missing[0]}, which is not in the folder{more}: download it again")
    return [folder / name for name in names]


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if prefix == _LFS_POINTER:
                raise ModelError(
                    f"{path.name} is a Git LFS pointer instead of the file itself; fetch it with git lfs pull"
                )
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ModelError(f"{path.name} is no safetensors file or is cut short ({size} bytes)")
            tensors, end = _parse_header(path, decode_json(file.read(length), MANY_VALUES))
    except OSError as error:
        raise unreadable(error, path) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{path.name} has a damaged header: {error}") from error
    if 8 + length + end != size:
        raise ModelError(f"{path.name} has {size} bytes, its header asks for {8 + length + end}: download it again")
    return tensors


def _parse_header(path: Path, header: dict[str, Any]) -> tuple[dict[str, StoredTensor], int]:
    """Return the tensors and where their data ends; raises one of several errors if the header is malformed."""
    tensors, end = {}, 0
    for name, info in header.items():
        if name != "__metadata__":
            shape, dtype = tuple(info["shape"]), info["dtype"]
            if not isinstance(dtype, str) or not all(type(extent) is int for extent in shape):
                raise ValueError(f"tensor {name} has no usable type and shape")
            tensors[name] = StoredTensor(path, name, shape, dtype)
            end = max(end, info["data_offsets"][1])
    return tensors, end
