"""The calls of kernels on FP8 that cross_compile.py compiles: linears of few rows and of many, attention, the cache."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from kernels.fp8_numbers import quantize_rows
from kernels.fp8_tiles import fp8_tile
from kernels.gemm_fp8_blocks import gemm_fp8_blocks
from kernels.paged_decode import paged_decode
from kernels.paged_extend import paged_extend
from kernels.rope_kv import rope_and_write_kv
from kernels.skinny_fp8 import skinny_fp8
from kernels.tiles import SkinnyTile

BF16, FP32 = torch.bfloat16, torch.float32


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def fp8_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, call) for linears on FP8 weights: scales of rows and of blocks, few rows and many."""
    for width, depth in ((4096, 4096), (28672, 4096)):
        codes = empty(width, depth, dtype=torch.float8_e4m3fn)
        for kind, scales in (("rows", (width, 1)), ("blocks", (width // 128, depth // 128))):
            scale = empty(*scales, dtype=FP32)
            for rows in (1, 40, 64, 128):
                x = empty(rows, depth)
                for form in ("plain", "split_k", "gated"):
                    args = x, codes, scale, fp8_tile(form, codes, x, is_blocked=kind == "blocks")
                    call = lambda a=args, g=form == "gated": skinny_fp8(*a, gated=g)  # noqa: E731
                    yield f"fp8 linear {form} {rows} x {width} x {depth} {kind}", call
            few = empty(8, depth), codes, scale, SkinnyTile(64, 128, 1, 4, 4)
            yield f"fp8 portable {width} x {depth} {kind}", lambda a=few: skinny_fp8(*a)
            x = empty(4096, depth)
            yield f"codes of rows {depth} {kind}", lambda x=x, g=kind == "blocks": quantize_rows(x, grouped=g)
    x, x_scale = empty(4096, depth, dtype=torch.float8_e4m3fn), empty(4096, depth // 128, dtype=FP32)
    yield "fp8 product of blocks", lambda a=(x, x_scale, codes, scale, BF16): gemm_fp8_blocks(*a)


def fp8_cache_calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """(label, call) for attention over a cache in e4m3, and the write to it."""
    for heads, kv_heads, dim in ((32, 8, 128), (16, 8, 128), (9, 3, 64)):
        label = f"{heads}/{kv_heads} D{dim} page16 fp8"
        cache, table = empty(4096, 2, kv_heads, 16, dim, dtype=torch.float8_e4m3fn), empty(4, 512, dtype=torch.int32)
        lens, cu_q, q = empty(4, dtype=torch.int32), empty(5, dtype=torch.int32), empty(4096, heads, dim)
        yield f"fp8 decode {label}", lambda a=(q[:4], cache, table, lens): paged_decode(*a, 0.1)
        for longest in (4, 1024):
            args = q, cache, table, cu_q, lens
            yield f"fp8 extend<={longest} {label}", lambda a=args, n=longest: paged_extend(*a, 0.1, max_q_len=n)
        fused, ids = empty(64, heads + 2 * kv_heads, dim), empty(64, dtype=torch.int64)
        parts = fused.split((heads, kv_heads, kv_heads), dim=1)
        args = *parts, empty(4096, dim, dtype=FP32), ids, ids, cache
        yield f"fp8 rope {label}", lambda a=args: rope_and_write_kv(*a)
