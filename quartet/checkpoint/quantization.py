"""How the linears of a model are quantised: which tensors a checkpoint holds for them, and which the worker.

A layout is what a checkpoint holds for one linear; a kind is what the worker holds. Imports no torch: start-up checks
and sizes by it, and so does the worker, whose half is worker_proc/weights/quantized.py.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal, NamedTuple

from quartet.wire.errors import ModelError

WeightKind = Literal["fp8", "int4", "int8", "mxfp4"]
"""Codes of the worker. fp8: numbers of e4m3, each group of which is multiplied by a float32 scale; int4, int8: see
GroupForm; mxfp4: numbers of e2m1, two in a byte, the first in its lower half, and for each MX of a row the exponent of
a power of two, plus 127."""
Layout = Literal["plain", "fp8", "grouped", "awq", "gptq", "packed", "mxfp4"]
"""Tensors of a checkpoint. plain: not quantised, the worker does it on loading; fp8: codes and scales by name; grouped:
what a GGUF file is converted to, for each linear in a form of its own; awq, gptq, packed (compressed-tensors): eight
integers of 4 bits in an int32; mxfp4: stacks of experts alone, each matrix by rows of outputs."""
Strategy = Literal["tensor", "channel", "block"]

BLOCK = 128
"""Rows and columns of a block of FP8, in every published checkpoint that has blocks."""
NIBBLES = 32
"""Columns of 4 bits that are packed together: byte i of 16 has column i in its lower half, i + 16 in its upper."""
MX = 32
"""Columns that share a scale in the formats of the Open Compute Project (OCP Microscaling Formats, v1.0)."""
PLAIN_FLOATS = ("F64", "F32", "F16", "BF16")


class GroupForm(NamedTuple):
    """Integers of `bits` (4: unsigned, packed as NIBBLES says; 8: signed), in groups of `group` columns of a row: a
    number is its integer times the group's scale, plus the group's minimum if there is one."""

    bits: int
    group: int
    has_minimum: bool

    @property
    def kind(self) -> WeightKind:
        """The codes of the worker."""
        return "int4" if self.bits == 4 else "int8"


GGUF_FORMS: dict[str, GroupForm] = {
    "Q4_0": GroupForm(4, 32, True),
    "Q4_1": GroupForm(4, 32, True),
    "Q5_0": GroupForm(8, 32, False),
    "Q5_1": GroupForm(8, 32, True),
    "Q8_0": GroupForm(8, 32, False),
    "Q4_K": GroupForm(4, 32, True),
    "Q5_K": GroupForm(8, 32, True),
    "Q6_K": GroupForm(8, 16, False),
}
"""The types of a GGUF file that are kept quantised, and the form that holds exactly their numbers."""


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
    are linears that stay as they are, `targets` those that are meant (empty: all): names, or after re: expressions.
    `forms` are the linears, the embedding among them, of a checkpoint that has one for each, by name."""

    method: str
    kind: WeightKind
    layout: Layout
    group: tuple[int, int]
    scale_name: str = "weight_scale"
    unused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    forms: tuple[tuple[str, GroupForm], ...] = ()
    has_zeros: bool = True
    """Whether integers have a zero point for each group; otherwise it is 8."""

    @property
    def is_made_on_loading(self) -> bool:
        """Whether the checkpoint holds plain numbers."""
        return self.layout == "plain"

    def covers(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether the tensor of this name and shape, as a plain checkpoint has it, is a quantised linear."""
        module, _, ending = name.rpartition(".")
        if self.layout == "mxfp4":
            return len(shape) == 3 and not any(_is_named(name, pattern) for pattern in self.ignored)
        if self.forms:
            return ending == "weight" and module in _by_name(self.forms)
        if ending != "weight" or len(shape) != 2 or module.endswith("embed_tokens"):
            return False
        if any(_is_named(module, pattern) for pattern in self.ignored):
            return False
        return not self.targets or any(_is_named(module, pattern) for pattern in self.targets)

    def stored(self, name: str, shape: tuple[int, ...]) -> dict[str, StoredPart]:
        """Return what a checkpoint holds for the linear, or the stack of them, whose weight has this name and shape, by
        the ending of its name. Raises ModelError for integers of 4 bits that are no whole groups."""
        size = math.lcm(self.group[1] or NIBBLES, NIBBLES)
        if self.layout in ("awq", "gptq", "packed") and shape[-1] % size:
            raise ModelError(f"{name}: {shape[-1]} columns are no whole groups of {size} in 4 bits")
        return _STORED[self.layout](self, name, *shape)

    def held_bytes(self, name: str, shape: tuple[int, ...], item_bytes: int, is_cuda: bool) -> int:
        """Return the bytes of a linear in the worker, whose other numbers have `item_bytes`."""
        if not self.is_kept(name, is_cuda):
            return math.prod(shape) * item_bytes
        form = self.form(name)
        if form is None and self.kind == "mxfp4":
            return _held_mxfp4(math.prod(shape), is_cuda)
        rows, columns = shape
        return _held_fp8(self, rows, columns) if form is None else _held_integers(form, rows, columns)

    def is_kept(self, name: str, is_cuda: bool) -> bool:
        """Return whether the worker computes from the codes of the linear whose weight has this name."""
        form = self.form(name)
        return is_kept_on(self.kind if form is None else form.kind, is_cuda)

    def form(self, name: str) -> GroupForm | None:
        """Return the form of the linear whose weight has this name; None if its codes are no integers."""
        if self.forms:
            return _by_name(self.forms)[name.removesuffix(".weight")]
        return GroupForm(4, self.group[1], True) if self.kind == "int4" else None


_KEPT_ON_CUDA: frozenset[WeightKind] = frozenset({"fp8", "int4", "int8", "mxfp4"})
_KEPT_ON_CPU: frozenset[WeightKind] = frozenset({"int4", "int8", "mxfp4"})


def is_kept_on(kind: WeightKind, is_cuda: bool) -> bool:
    """Return whether the worker computes from codes of that kind, or else dequantises a linear once, on loading."""
    return kind in _KEPT_ON_CUDA if is_cuda else kind in _KEPT_ON_CPU and has_cpu_compiler()


def has_cpu_compiler() -> bool:
    """Return whether llvmlite is there, by which the worker compiles its kernels for the CPU."""
    return find_spec("llvmlite") is not None


@cache
def _by_name(forms: tuple[tuple[str, GroupForm], ...]) -> dict[str, GroupForm]:
    return dict(forms)


ON_LOADING: dict[str, Quantization] = {
    # The last linear decides the answer; in FP8 checkpoints, too, it is left as it is.
    "fp8": Quantization("fp8 on loading", "fp8", "plain", (1, 0), ignored=("lm_head",)),
}
"""What --quantization makes of a checkpoint of plain numbers."""


def _stored_plain(_: Quantization, name: str, rows: int, columns: int) -> dict[str, StoredPart]:
    return {"weight": StoredPart((rows, columns))}


def _stored_fp8(method: Quantization, name: str, rows: int, columns: int) -> dict[str, StoredPart]:
    down, across = method.group
    scales = (-(-rows // down) if down else 1, -(-columns // across) if across else 1)
    return {
        "weight": StoredPart((rows, columns), ("F8_E4M3",)),
        method.scale_name: StoredPart(scales if down else (1,)),
    }


def _stored_grouped(method: Quantization, name: str, rows: int, columns: int) -> dict[str, StoredPart]:
    bits, group, has_minimum = _by_name(method.forms)[name.removesuffix(".weight")]
    parameters = StoredPart((rows, columns // group))
    codes = StoredPart((rows, columns * bits // 8), ("U8",) if bits == 4 else ("I8",))
    return {"codes": codes, "scale": parameters, **({"minimum": parameters} if has_minimum else {})}


def _stored_awq(method: Quantization, name: str, rows: int, columns: int) -> dict[str, StoredPart]:
    groups = columns // (method.group[1] or columns)
    return {
        "qweight": StoredPart((columns, rows // 8), ("I32",)),
        "qzeros": StoredPart((groups, rows // 8), ("I32",)),
        "scales": StoredPart((groups, rows)),
    }


def _stored_gptq(method: Quantization, name: str, rows: int, columns: int) -> dict[str, StoredPart]:
    stored = _stored_awq(method, name, rows, columns)
    return {**stored, "qweight": StoredPart((columns // 8, rows), ("I32",))}


def _stored_packed(method: Quantization, name: str, rows: int, columns: int) -> dict[str, StoredPart]:
    groups = columns // (method.group[1] or columns)
    zeros = {"weight_zero_point": StoredPart((-(-rows // 8), groups), ("I32",))} if method.has_zeros else {}
    codes = StoredPart((rows, columns // 8), ("I32",))
    return {"weight_packed": codes, "weight_scale": StoredPart((rows, groups)), **zeros}


def _stored_mxfp4(_: Quantization, name: str, count: int, columns: int, rows: int) -> dict[str, StoredPart]:
    return {
        "_blocks": StoredPart((count, rows, columns // MX, MX // 2), ("U8",)),
        "_scales": StoredPart((count, rows, columns // MX), ("U8",)),
    }


_STORED: dict[Layout, Callable[..., dict[str, StoredPart]]] = {
    "plain": _stored_plain,
    "fp8": _stored_fp8,
    "grouped": _stored_grouped,
    "awq": _stored_awq,
    "gptq": _stored_gptq,
    "packed": _stored_packed,
    "mxfp4": _stored_mxfp4,
}
"""By the method, the name, and the shape of the weight."""


def _held_fp8(method: Quantization, rows: int, columns: int) -> int:
    down, across = method.group
    # Rows share a scale where they fill their blocks.
    down = down if down and rows % down == 0 else 1
    return rows * columns + 4 * (rows // down) * (-(-columns // across) if across else 1)


def _held_integers(form: GroupForm, rows: int, columns: int) -> int:
    groups = columns // form.group if form.group else 1
    return rows * columns * form.bits // 8 + 4 * rows * groups * (1 + form.has_minimum)


def _held_mxfp4(numbers: int, is_cuda: bool) -> int:
    """On a CPU codes become bytes and scales float32."""
    return numbers // 2 + numbers // MX if is_cuda else numbers + 4 * numbers // MX


def _is_named(module: str, pattern: str) -> bool:
    """Return whether a pattern of a list means the module: its name, the end or a leading part of it, or after re: an
    expression that matches from its beginning."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), module) is not None
    return f".{module}.".startswith(f".{pattern}.") or f".{module}".endswith(f".{pattern}")
