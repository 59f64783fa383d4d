"""The linears of --deterministic that cross_compile compiles."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from kernels.invariant_linear import invariant_linear

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def invariant_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, call): split and whole, biased, and of sizes that no tile divides."""
    for width, depth, dtype in ((4096, 4096, BF16), (28672, 4096, BF16), (2001, 576, FP16), (576, 1536, FP32)):
        weight = empty(width, depth, dtype=dtype)
        for rows in (8, 512):
            x, label = empty(rows, depth, dtype=dtype), f"{width}x{depth} of {rows} {str(dtype)[6:]}"
            yield f"invariant linear {label}", lambda x=x, w=weight: invariant_linear(x, w)
            yield f"invariant partial {label}", lambda x=x, w=weight: invariant_linear(x, w, partial=True)
    yield "invariant biased", lambda: invariant_linear(empty(64, 4096), empty(4096, 4096), empty(4096))
