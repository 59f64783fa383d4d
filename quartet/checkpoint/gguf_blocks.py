"""Divides the blocks of a quantised GGUF tensor into integers, scales and minimums: the same numbers, nothing rounded.

The blocks are those of ggml's `ggml-common.h`. The parts are what GroupForm of quartet/checkpoint/quantization.py says.
Called by the converter alone, which imports numpy.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from quartet.checkpoint.quantization import GGUF_FORMS, NIBBLES

Bytes = npt.NDArray[Any]
"""Of uint8, as their operations are."""
Parts = dict[str, npt.NDArray[Any]]
"""codes, scale and minimum, as `Quantization.stored` names them."""

_SUPER = 256
"""Numbers of a block of the types with K."""


def divide_blocks(rows: Bytes, kind: str) -> Parts:
    """Return the parts of a tensor of type `kind`, which GGUF_FORMS has, from its rows [N, bytes of a row]."""
    form = GGUF_FORMS[kind]
    block_bytes, divide = _TYPES[kind]
    blocks = rows.reshape(rows.shape[0], -1, block_bytes)
    codes, scale, minimum = divide(blocks)
    parts: Parts = {"codes": codes.reshape(len(rows), -1), "scale": scale.reshape(len(rows), -1)}
    if form.has_minimum:
        assert minimum is not None
        parts["minimum"] = minimum.reshape(len(rows), -1)
    return {name: np.ascontiguousarray(part) for name, part in parts.items()}


Divided = tuple[Any, Any, Any]


def _half(blocks: Bytes, at: int) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)


def _q4_0(blocks: Bytes) -> Divided:
    scale = _half(blocks, 0)
    return blocks[..., 2:], scale, -8 * scale.astype(np.float32)


def _q4_1(blocks: Bytes) -> Divided:
    return blocks[..., 4:], _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Divided:
    return _five_bits(blocks[..., 2:6], blocks[..., 6:]) - 16, _half(blocks, 0), None


def _q5_1(blocks: Bytes) -> Divided:
    return _five_bits(blocks[..., 4:8], blocks[..., 8:]), _half(blocks, 0), _half(blocks, 2)


def _five_bits(high: Bytes, low: Bytes) -> Bytes:
    fifth = np.unpackbits(high, axis=-1, bitorder="little")
    codes: Bytes = np.concatenate((low & 15, low >> 4), axis=-1) | fifth << 4
    return codes.astype(np.int8)


def _q8_0(blocks: Bytes) -> Divided:
    return blocks[..., 2:].view(np.int8), _half(blocks, 0), None


def _scales_and_minimums(blocks: Bytes) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return scale and minimum of the eight groups of each block that begins with d, dmin and 12 bytes of 6 bits."""
    scale, minimum = (_half(blocks, at).astype(np.float32) for at in (0, 2))
    low, middle, high = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = np.concatenate((low & 63, high & 15 | low >> 6 << 4), axis=-1)
    minimums = np.concatenate((middle & 63, high >> 4 | middle >> 6 << 4), axis=-1)
    return scale * scales, -(minimum * minimums)


def _q4_k(blocks: Bytes) -> Divided:
    scale, minimum = _scales_and_minimums(blocks)
    return packed_nibbles(_halves(blocks[..., 16:])), scale, minimum


def _q5_k(blocks: Bytes) -> Divided:
    scale, minimum = _scales_and_minimums(blocks)
    fifth = (blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    codes = _halves(blocks[..., 48:]) | fifth.reshape(*blocks.shape[:-1], _SUPER) << 4
    return codes.astype(np.int8), scale, minimum


def _halves(packed: Bytes) -> Bytes:
    """Return the lower halves of 32 bytes, then their upper ones, and so on."""
    runs = packed.reshape(*packed.shape[:-1], -1, 32)
    halves: Bytes = np.concatenate((runs & 15, runs >> 4), axis=-1)
    return halves.reshape(*packed.shape[:-1], -1)


def _q6_k(blocks: Bytes) -> Divided:
    low = blocks[..., :128].reshape(*blocks.shape[:-1], 2, 64)
    low = np.concatenate((low & 15, low >> 4), axis=-1)
    high = blocks[..., 128:192].reshape(*blocks.shape[:-1], 2, 1, 32)
    high = (high >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]) & 3
    codes = low | high.reshape(low.shape) << 4
    scale = _half(blocks, 208).astype(np.float32) * blocks[..., 192:208].view(np.int8)
    return codes.astype(np.int8) - np.int8(32), scale, None


def packed_nibbles(codes: Bytes) -> Bytes:
    """Return integers of 4 bits [..., K] packed as NIBBLES says, [..., K / 2]."""
    runs = codes.reshape(*codes.shape[:-1], -1, 2, NIBBLES // 2)
    pairs: Bytes = runs[..., 0, :] | runs[..., 1, :] << 4
    return pairs.reshape(*codes.shape[:-1], -1)


_TYPES: dict[str, tuple[int, Callable[[Bytes], Divided]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}
"""Bytes of a block, and what divides an array of them [N, blocks, bytes]."""
