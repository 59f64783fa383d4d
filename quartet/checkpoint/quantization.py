"""How the linears of a model are quantised: which tensors a checkpoint holds for them, and which the worker.

A layout is what a checkpoint holds for one linear; a kind is what the worker holds. Imports no torch: start-up checks
and sizes by it, and so does the worker, whose half is worker_proc/weights/quantized.py.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

WeightKind = Literal["fp8"]
"""Codes of the worker. fp8: numbers of e4m3, each group of which is multiplied by a float32 scale."""
Layout = Literal["plain", "fp8"]
"""Tensors of a checkpoint. plain: not quantised, the worker does it on loading; fp8: codes and scales by name."""
Strategy = Literal["tensor", "channel", "block"]

BLOCK = 128
"""Rows and columns of a block of FP8, in every published checkpoint that has blocks."""
PLAIN_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class StoredPart:
    """One tensor of a checkpoint: shape, and the types that safetensors may name for it."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = PLAIN_FLOATS


@dataclass(frozen=True, slots=True)
class Quantization:
    """The format of a model's linears.

    `method` is for people. `group` is the rows and columns of a weight that share a scale, 0 for all of them.
    `scale_name` is the ending of the tensor with the scales, `unused` are those of tensors that are not read. `ignored`
    are linears that stay as they are, `targets` those that are meant (empty: all): names, or after re: expressions."""

    method: str
    kind: WeightKind
    layout: Layout
    group: tuple[int, int]
    scale_name: str = "weight_scale"
    unused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    @property
    def is_made_on_loading(self) -> bool:
        """Whether the checkpoint holds plain numbers."""
        return self.layout == "plain"

    def covers(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether the tensor of this name and shape, as a plain checkpoint has it, is a quantised linear."""
        module, _, ending = name.rpartition(".")
        if ending != "weight" or len(shape) != 2 or module.endswith("embed_tokens"):
            return False
        if any(_is_named(module, pattern) for pattern in self.ignored):
            return False
        return not self.targets or any(_is_named(module, pattern) for pattern in self.targets)

    def stored(self, shape: tuple[int, ...]) -> dict[str, StoredPart]:
        """Return what a checkpoint holds for a linear of `shape`, by the ending of its name."""
        rows, columns = shape
        return _STORED[self.layout](self, rows, columns)

    def held_bytes(self, shape: tuple[int, ...], item_bytes: int, is_cuda: bool) -> int:
        """Return the bytes of a linear of `shape` in the worker, whose other numbers have `item_bytes`."""
        rows, columns = shape
        if not is_kept_on(self.kind, is_cuda):
            return rows * columns * item_bytes
        return _HELD_BYTES[self.kind](self, rows, columns)


_KEPT_ON_CPU: frozenset[WeightKind] = frozenset()


def is_kept_on(kind: WeightKind, is_cuda: bool) -> bool:
    """Return whether the worker computes from codes of that kind, or else dequantises a linear once, on loading."""
    return is_cuda or kind in _KEPT_ON_CPU


ON_LOADING: dict[str, Quantization] = {
    # The last linear decides the answer; in FP8 checkpoints, too, it is left as it is.
    "fp8": Quantization("fp8 on loading", "fp8", "plain", (1, 0), ignored=("lm_head",)),
}
"""What --quantization makes of a checkpoint of plain numbers."""


def _stored_plain(_: Quantization, rows: int, columns: int) -> dict[str, StoredPart]:
    return {"weight": StoredPart((rows, columns))}


def _stored_fp8(method: Quantization, rows: int, columns: int) -> dict[str, StoredPart]:
    down, across = method.group
    scales = (-(-rows // down) if down else 1, -(-columns // across) if across else 1)
    return {
        "weight": StoredPart((rows, columns), ("F8_E4M3",)),
        method.scale_name: StoredPart(scales if down else (1,)),
    }


_STORED: dict[Layout, Callable[[Quantization, int, int], dict[str, StoredPart]]] = {
    "plain": _stored_plain,
    "fp8": _stored_fp8,
}


def _held_fp8(method: Quantization, rows: int, columns: int) -> int:
    down, across = method.group
    # Rows share a scale where they fill their blocks.
    down = down if down and rows % down == 0 else 1
    return rows * columns + 4 * (rows // down) * (-(-columns // across) if across else 1)


_HELD_BYTES: dict[WeightKind, Callable[[Quantization, int, int], int]] = {"fp8": _held_fp8}


def _is_named(module: str, pattern: str) -> bool:
    """Return whether a pattern of a list means the module: its name, the end or a leading part of it, or after re: an
    expression that matches from its beginning."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return f".{module}.".startswith(f".{pattern}.") or f".{module}".endswith(f".{pattern}")
