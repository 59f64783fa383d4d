"""Weights that one process holds and others map: what is where, and how it is shared and mapped.

    holder   ModelTensors ─► blocks of memory  +  manifest (a file in the run directory)
    worker   manifest ─► the same blocks, mapped ─► ModelTensors

On the CPU there is one block, an anonymous file whose contents are sealed; on CUDA each block is an allocation of the
driver. A manifest has numbers and handles, never code.
"""

import fcntl
import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from quartet.checkpoint.quantization import WeightKind
from worker_proc.weights.cuda_ipc import SharingError, allocation_of, export_allocation, open_allocation
from worker_proc.weights.quantized import QuantizedWeight, Weight
from worker_proc.weights.tensors import ExpertTensors, LayerTensors, LinearTensors, ModelTensors

MANIFEST = "weights.manifest"
_ALIGNMENT = 64


class Block(msgspec.Struct, frozen=True, array_like=True):
    """Shared memory: `handle` opens it on CUDA; on the CPU it is the holder's descriptor `file`."""

    size_bytes: int
    handle: bytes = b""
    file: int = -1


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """One tensor, contiguous: where it begins in which block; `dtype` as torch names it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    block: int
    offset_bytes: int


class Quantized(msgspec.Struct, frozen=True, array_like=True):
    """A quantised weight, whose tensors are the pieces `name`:codes and so on; see QuantizedWeight."""

    name: str
    kind: WeightKind
    shape: tuple[int, int]
    group: tuple[int, int]


class Manifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The weights of one holder, which is process `pid`, incarnation `epoch`."""

    pid: int
    epoch: int
    device: str
    blocks: list[Block]
    pieces: list[Piece]
    quantized: list[Quantized]


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Put the manifest into the run directory, where it replaces that of an earlier incarnation at once."""
    unfinished = folder / f"{MANIFEST}.new"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.msgpack.encode(manifest))
    unfinished.rename(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest in the run directory. Raises SharingError for one that is damaged."""
    try:
        return msgspec.msgpack.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SharingError(f"the manifest of the shared weights cannot be read: {error}") from error


def share(tensors: ModelTensors, epoch: int) -> tuple[Manifest, object]:
    """Return the manifest of these weights, and what keeps them: hold it as long as another process may map them.

    On the CPU each tensor is copied and let go of, layer by layer. Raises SharingError if the device cannot share."""
    device, found = tensors.final_norm.device.type, list[Quantized]()
    named = _named(tensors, found)
    blocks, pieces, kept = _share_allocations(named) if device == "cuda" else _share_file(named)
    return Manifest(os.getpid(), epoch, device, blocks, pieces, found), kept


def map_weights(manifest: Manifest) -> ModelTensors:
    """Return the weights of a manifest, in memory that the holder owns. Raises SharingError if that is gone."""
    blocks = [_open_file(manifest.pid, one) if one.file >= 0 else open_allocation(one.handle, one.size_bytes)
              for one in manifest.blocks]  # fmt: skip
    named: dict[str, Any] = {piece.name: _tensor(piece, blocks) for piece in manifest.pieces}
    try:
        for one in manifest.quantized:
            endings = [name for name in named if name.startswith(f"{one.name}:")]
            parts = {name.partition(":")[2]: named.pop(name) for name in endings}
            codes = parts.pop("codes")
            named[one.name] = QuantizedWeight(one.kind, one.shape, one.group, codes, parts)
        return _assembled(named)
    except (KeyError, ValueError) as error:
        raise SharingError(f"the manifest of the shared weights describes no model: {error}") from error


def _assembled(named: dict[str, Any]) -> ModelTensors:
    layers: dict[int, dict[str, Any]] = {}
    for name, tensor in named.items():
        if name.startswith("layers."):
            _, number, field = name.split(".", 2)
            layers.setdefault(int(number), {})[field] = tensor
    return ModelTensors(
        embedding=named["embedding"],
        layers=[_layer(layers[number]) for number in range(len(layers))],
        final_norm=named["final_norm"],
        lm_head=named.get("lm_head"),
    )


def _named(tensors: ModelTensors, quantized: list[Quantized]) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor with its name, e.g. layers.3.qkv, layer by layer; those of a quantised weight are listed."""
    for name, weight in _weights(tensors):
        if isinstance(weight, QuantizedWeight):
            quantized.append(Quantized(name, weight.kind, weight.shape, weight.group))
            yield from ((f"{name}:{part}", tensor.contiguous()) for part, tensor in weight.tensors.items())
        else:
            yield name, weight.contiguous()


def _weights(tensors: ModelTensors) -> Iterator[tuple[str, Weight]]:
    for name in ("embedding", "final_norm", "lm_head"):
        if (weight := getattr(tensors, name)) is not None:
            yield name, weight
    for number, layer in enumerate(tensors.layers):
        yield from _fields(layer, f"layers.{number}.")


def _fields(record: LayerTensors | ExpertTensors | LinearTensors, prefix: str) -> Iterator[tuple[str, Weight]]:
    for field in fields(record):
        part = getattr(record, field.name)
        if isinstance(part, ExpertTensors | LinearTensors):
            yield from _fields(part, f"{prefix}{field.name}.")
        elif part is not None:
            yield prefix + field.name, part


def _layer(found: dict[str, Any]) -> LayerTensors:
    parts: dict[str, Any] = {field.name: found.get(field.name) for field in fields(LayerTensors)}
    for name, kind in (("experts", ExpertTensors), ("linear", LinearTensors)):
        if any(one.startswith(f"{name}.") for one in found):
            inner: dict[str, Any] = {field.name: found.get(f"{name}.{field.name}") for field in fields(kind)}
            parts[name] = kind(**inner)
    return LayerTensors(**parts)


def _tensor(piece: Piece, blocks: list[Tensor]) -> Tensor:
    dtype = getattr(torch, piece.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise SharingError(f"the manifest of the shared weights names no dtype {piece.dtype}")
    size = math.prod(piece.shape) * dtype.itemsize
    if not 0 <= piece.block < len(blocks) or min(piece.offset_bytes, *piece.shape) < 0:
        raise SharingError(f"the manifest of the shared weights names no memory for {piece.name}")
    block = blocks[piece.block]
    if piece.offset_bytes + size > len(block):
        raise SharingError(f"the manifest of the shared weights puts {piece.name} beyond its block")
    return block[piece.offset_bytes : piece.offset_bytes + size].view(dtype).view(piece.shape)


def _share_allocations(named: Iterator[tuple[str, Tensor]]) -> tuple[list[Block], list[Piece], object]:
    blocks: dict[int, tuple[int, Block]] = {}
    pieces, kept = [], []
    for name, tensor in named:
        base, size = allocation_of(tensor)
        if base not in blocks:
            blocks[base] = len(blocks), Block(size, export_allocation(base))
        pieces.append(Piece(name, tuple(tensor.shape), _name_of(tensor), blocks[base][0], tensor.data_ptr() - base))
        kept.append(tensor)
    torch.cuda.synchronize()
    return [block for _, block in blocks.values()], pieces, kept


def _share_file(named: Iterator[tuple[str, Tensor]]) -> tuple[list[Block], list[Piece], object]:
    descriptor = os.memfd_create("weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    pieces, end = [], 0
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        for name, tensor in named:
            file.write(bytes(-end % _ALIGNMENT))
            end += -end % _ALIGNMENT
            pieces.append(Piece(name, tuple(tensor.shape), _name_of(tensor), 0, end))
            data = tensor.view(-1).view(torch.uint8).numpy()
            file.write(data.data)
            end += data.nbytes
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return [Block(end, file=descriptor)], pieces, descriptor


def _name_of(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _open_file(pid: int, block: Block) -> Tensor:
    """Return the holder's file as [size] uint8. The mapping is private: nothing written to it reaches the holder."""
    try:
        with open(f"/proc/{pid}/fd/{block.file}", "rb") as file:
            if os.fstat(file.fileno()).st_size < block.size_bytes:
                raise SharingError("the shared weights are shorter than their manifest says")
            mapped = mmap.mmap(file.fileno(), block.size_bytes, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise SharingError(f"the shared weights cannot be mapped: {error.strerror}") from error
    return torch.frombuffer(mapped, dtype=torch.uint8)
