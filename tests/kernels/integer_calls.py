"""The calls of kernels on integers of 4 and 8 bits that cross_compile.py compiles."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from kernels.integer_linear import dequantize_integers, integer_linear, integer_tile

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def integer_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, call) for the linears on integers of 4 and 8 bits, and the dequantisation before those of many rows."""
    width, depth = 4096, 4096
    for bits, group, zeros in ((4, 128, BF16), (4, 32, FP32), (8, 32, FP32), (8, 16, None)):
        shape, dtype = ((width, depth // 2), torch.uint8) if bits == 4 else ((width, depth), torch.int8)
        codes, scale = empty(*shape, dtype=dtype), empty(width, depth // group, dtype=FP16 if zeros == BF16 else FP32)
        zero = None if zeros is None else empty(width, depth // group, dtype=zeros)
        label = f"{bits} bits by {group}, {width} x {depth}"
        for rows, form in ((1, "split_k"), (40, "plain"), (64, "split_k")):
            x = empty(rows, depth)
            args = x, codes, scale, zero, integer_tile(form, codes, depth // group, x)
            yield f"integer linear {form} {rows} rows, {label}", lambda a=args: integer_linear(*a)
        yield f"dequantise {label}", lambda a=(codes, scale, zero, BF16): dequantize_integers(*a)
