"""Weights of linears in fewer bits: how they are held, cut, joined, and turned into plain numbers.

A weight [out, in] is codes and, for each group of them, its parameters (a scale, say). Everything that a loader does
with rows and columns follows from that, for every kind; what codes mean is one entry of FORMATS. What a checkpoint
holds is turned into this by an entry of READERS. See also quartet/checkpoint/quantization.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from quartet.checkpoint.quantization import Layout, Quantization, WeightKind
from worker_proc.weights import fp8, integers, mxfp4

Join = Callable[[list[Tensor]], Tensor]
"""Returns several tensors' rows as one tensor."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A linear's weight of `shape` (out, in).

    `codes` are [out, n], where n is proportional to `in`. `group` is the rows and columns of the weight that share one
    entry of each of `scales`, which are [ceil(out / rows), ceil(in / columns)]; the last group may be a part of one."""

    kind: WeightKind
    shape: tuple[int, int]
    group: tuple[int, int]
    codes: Tensor
    scales: Mapping[str, Tensor]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {"codes": self.codes, **self.scales}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "QuantizedWeight":
        """Return the weight with each tensor changed, to another device for example."""
        return replace(self, codes=change(self.codes), scales={name: change(one) for name, one in self.scales.items()})

    def rows(self, first: int, end: int) -> "QuantizedWeight":
        """Return rows `first` up to `end`, as a view if they are whole groups."""
        size, total = self.group[0], self.shape[0]
        if first % size or (end % size and end != total):
            return self.by_row().rows(first, end)
        scales = {name: one[first // size : -(-end // size)] for name, one in self.scales.items()}
        return replace(self, shape=(end - first, self.shape[1]), codes=self.codes[first:end], scales=scales)

    def columns(self, first: int, end: int) -> "QuantizedWeight":
        """Return columns `first` up to `end` as a view. Raises ValueError if they are not whole groups."""
        total, size = self.shape[1], min(self.group[1], self.shape[1])
        is_whole = size == total
        if not is_whole and (first % size or (end % size and end != total)):
            raise ValueError(f"columns {first} to {end} are no whole groups of {size}")
        n = self.codes.shape[1]
        scales = {
            name: one if is_whole else one[:, first // size : -(-end // size)] for name, one in self.scales.items()
        }
        codes = self.codes[:, first * n // total : end * n // total]
        return replace(self, shape=(self.shape[0], end - first), group=(self.group[0], min(size, end - first)),
                       codes=codes, scales=scales)  # fmt: skip

    def ordered(self, rows: Tensor) -> "QuantizedWeight":
        """Return the weight with its rows in another order."""
        weight = self.by_row()
        return weight.mapped(lambda tensor: tensor[rows])

    def by_row(self) -> "QuantizedWeight":
        """Return the weight with parameters for each row."""
        size, total = self.group[0], self.shape[0]
        if size == 1:
            return self
        scales = {name: one.repeat_interleave(size, 0)[:total] for name, one in self.scales.items()}
        return replace(self, group=(1, self.group[1]), scales=scales)


Weight = Tensor | QuantizedWeight


class Format(NamedTuple):
    """What codes of a kind mean. `quantize` makes a weight [out, in] of plain numbers into one with groups of so many
    rows and columns; 0 stands for all."""

    dequantize: Callable[[QuantizedWeight], Tensor]
    quantize: Callable[[Tensor, tuple[int, int]], QuantizedWeight]


def dequantized(weight: Weight, dtype: torch.dtype) -> Tensor:
    """Return a weight as plain numbers [out, in] of `dtype`; a tensor as it is."""
    if isinstance(weight, Tensor):
        return weight
    return FORMATS[weight.kind].dequantize(weight).to(dtype)


def embedded(weight: Weight, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the rows of a weight that `ids` [T] name, as plain numbers [T, in] of `dtype`."""
    if isinstance(weight, Tensor):
        return functional.embedding(ids, weight)
    return dequantized(replace(weight.ordered(ids), shape=(len(ids), weight.shape[1])), dtype)


def quantized(weight: Tensor, method: Quantization) -> QuantizedWeight:
    """Return a weight [out, in] of plain numbers in the format of a model, on the same device."""
    return FORMATS[method.kind].quantize(weight, method.group)


def stored_weight(method: Quantization, shape: tuple[int, ...], stored: Mapping[str, Tensor]) -> QuantizedWeight:
    """Return the weight of what a checkpoint holds for it, by the endings of `Quantization.stored`."""
    rows, columns = shape
    return READERS[method.layout](method, (rows, columns), stored)


def joined(parts: list[QuantizedWeight], join: Join) -> QuantizedWeight | None:
    """Return the rows of several weights as one, each of its tensors made by `join`; None if they are not of a kind."""
    parts = _alike(parts)
    if len({(part.kind, part.shape[1], part.group[1]) for part in parts}) > 1:
        return None
    size = parts[0].group[0]
    if any(part.group[0] != size or part.shape[0] % size for part in parts):
        parts = [part.by_row() for part in parts]
    first = parts[0]
    scales = {name: join([part.scales[name] for part in parts]) for name in first.scales}
    rows = sum(part.shape[0] for part in parts)
    return replace(first, shape=(rows, first.shape[1]), codes=join([part.codes for part in parts]), scales=scales)


def _alike(parts: list[QuantizedWeight]) -> list[QuantizedWeight]:
    """Return weights of integers in the narrowest form that holds the numbers of all; others as they are."""
    forms = {(part.kind, part.group[1], "minimum" in part.scales) for part in parts}
    if len(forms) == 1 or any(part.kind not in ("int4", "int8") for part in parts):
        return parts
    group, has_minimum = min(one for _, one, _ in forms), any(one for _, _, one in forms)
    return [integers_as_bytes(part, group, has_minimum) for part in parts]


def integers_as_bytes(weight: QuantizedWeight, group: int, has_minimum: bool) -> QuantizedWeight:
    """Return a weight of integers with the same numbers in codes of 8 bits and groups of a divisor of its own."""
    scales = {name: one.float().repeat_interleave(weight.group[1] // group, 1) for name, one in weight.scales.items()}
    if has_minimum and "minimum" not in scales:
        scales["minimum"] = torch.zeros_like(scales["scale"])
    return QuantizedWeight("int8", weight.shape, (1, group), integers.unpacked(weight.codes), scales)


def mxfp4_as_bytes(weight: QuantizedWeight) -> QuantizedWeight:
    """Return a weight in MXFP4 with the same numbers in codes of 8 bits and scales of float32."""
    codes, scale = mxfp4.as_integers(weight.codes, weight.scales["scale"])
    return QuantizedWeight("int8", weight.shape, weight.group, codes, {"scale": scale})


def _dequantize_fp8(weight: QuantizedWeight) -> Tensor:
    return fp8.dequantize(weight.codes, weight.scales["scale"], weight.group)


def _quantize_fp8(weight: Tensor, group: tuple[int, int]) -> QuantizedWeight:
    # One scale for a whole tensor would be less exact and no smaller in effect; q, k and v have one each.
    group = group[0] or 1, group[1] or weight.shape[1]
    codes, scale = fp8.quantize(weight, group)
    return QuantizedWeight("fp8", (weight.shape[0], weight.shape[1]), group, codes, {"scale": scale})


def _read_fp8(method: Quantization, shape: tuple[int, int], stored: Mapping[str, Tensor]) -> QuantizedWeight:
    rows, columns = method.group[0] or 1, method.group[1] or shape[1]
    scale = stored[method.scale_name].float()
    if not method.group[0]:
        scale = scale.reshape(1, 1).expand(shape[0], 1)
    scale = scale.reshape(-(-shape[0] // rows), -(-shape[1] // columns)).contiguous()
    return QuantizedWeight("fp8", shape, (rows, columns), stored["weight"], {"scale": scale})


def _dequantize_integers(weight: QuantizedWeight) -> Tensor:
    return integers.dequantize(weight.codes, weight.scales["scale"], weight.scales.get("minimum"), weight.group[1])


def _quantize_int4(weight: Tensor, group: tuple[int, int]) -> QuantizedWeight:
    size = group[1] or weight.shape[1]
    codes, scale, minimum = integers.quantize4(weight, size)
    return QuantizedWeight(
        "int4", (weight.shape[0], weight.shape[1]), (1, size), codes, {"scale": scale, "minimum": minimum}
    )


def _quantize_int8(weight: Tensor, group: tuple[int, int]) -> QuantizedWeight:
    size = group[1] or weight.shape[1]
    codes, scale = integers.quantize8(weight, size)
    return QuantizedWeight("int8", (weight.shape[0], weight.shape[1]), (1, size), codes, {"scale": scale})


def _read_grouped(method: Quantization, shape: tuple[int, int], stored: Mapping[str, Tensor]) -> QuantizedWeight:
    codes, scales = stored["codes"], {name: one for name, one in stored.items() if name != "codes"}
    kind: WeightKind = "int4" if codes.dtype == torch.uint8 else "int8"
    return QuantizedWeight(kind, shape, (1, shape[1] // scales["scale"].shape[1]), codes, scales)


def _from_zeros(integers_: Tensor, zeros: Tensor, scale: Tensor) -> QuantizedWeight:
    """Return the weight of numbers (integer - zero) * scale; integers are [out, in], the others [out, groups]."""
    rows, columns = integers_.shape
    scale = scale.float().contiguous()
    scales = {"scale": scale, "minimum": -zeros * scale}
    return QuantizedWeight("int4", (rows, columns), (1, columns // scale.shape[1]), integers.packed(integers_), scales)


def _read_awq(method: Quantization, shape: tuple[int, int], stored: Mapping[str, Tensor]) -> QuantizedWeight:
    # Of eight outputs the even ones come first in an int32.
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    codes, zeros = (
        integers.eighths(stored[name]).view(len(stored[name]), -1, 8)[..., order].flatten(1)
        for name in ("qweight", "qzeros")
    )
    return _from_zeros(codes.T, zeros.T, stored["scales"].T)


def _read_gptq(method: Quantization, shape: tuple[int, int], stored: Mapping[str, Tensor]) -> QuantizedWeight:
    codes, zeros = integers.eighths(stored["qweight"].T), integers.eighths(stored["qzeros"])
    if method.method == "gptq":
        zeros = (zeros + 1) & 15
    return _from_zeros(codes, zeros.T, stored["scales"].T)


def _read_packed(method: Quantization, shape: tuple[int, int], stored: Mapping[str, Tensor]) -> QuantizedWeight:
    scale = stored["weight_scale"].view(shape[0], -1)
    zeros = torch.full_like(scale, 8, dtype=torch.int32)
    if method.has_zeros:
        zeros = integers.eighths(stored["weight_zero_point"].view(-1, scale.shape[1]).T).T[: shape[0]]
    return _from_zeros(integers.eighths(stored["weight_packed"]), zeros, scale)


def _dequantize_mxfp4(weight: QuantizedWeight) -> Tensor:
    return mxfp4.dequantize(weight.codes, weight.scales["scale"])


def _quantize_mxfp4(weight: Tensor, group: tuple[int, int]) -> QuantizedWeight:
    codes, scale = mxfp4.quantize(weight)
    return QuantizedWeight("mxfp4", (weight.shape[0], weight.shape[1]), group, codes, {"scale": scale})


def _read_mxfp4(method: Quantization, shape: tuple[int, int], stored: Mapping[str, Tensor]) -> QuantizedWeight:
    codes = stored["_blocks"].reshape(shape[0], -1)
    return QuantizedWeight("mxfp4", shape, method.group, codes, {"scale": stored["_scales"]})


FORMATS: dict[WeightKind, Format] = {
    "fp8": Format(_dequantize_fp8, _quantize_fp8),
    "int4": Format(_dequantize_integers, _quantize_int4),
    "int8": Format(_dequantize_integers, _quantize_int8),
    "mxfp4": Format(_dequantize_mxfp4, _quantize_mxfp4),
}
READERS: dict[Layout, Callable[[Quantization, tuple[int, int], Mapping[str, Tensor]], QuantizedWeight]] = {
    "fp8": _read_fp8,
    "grouped": _read_grouped,
    "awq": _read_awq,
    "gptq": _read_gptq,
    "packed": _read_packed,
    "mxfp4": _read_mxfp4,
}
